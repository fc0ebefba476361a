"""LW-FedMML and Prog-FedMML: rounds (method.py), stages (plan.py), the network (network.py), scores (evaluation.py)."""

from fedjax_mm.methods.layerwise.cache import frozen_outputs
from fedjax_mm.methods.layerwise.client import client_update, train_step
from fedjax_mm.methods.layerwise.config import ADVANCE_LR, COCO_LR, SCHEDULES, VARIANTS, LayerwiseConfig
from fedjax_mm.methods.layerwise.evaluation import client_score, contrastive_scores, scores, supervised_scores
from fedjax_mm.methods.layerwise.method import build, server_download, server_update
from fedjax_mm.methods.layerwise.network import (
    PREDICTION,
    contrastive_loss,
    draw_view,
    embed_views,
    frozen_name,
    init_network,
    local_loss,
    predict_logits,
    prediction_head,
    project,
    projection_head,
    supervised_loss,
)
from fedjax_mm.methods.layerwise.plan import (
    StageSpec,
    first_dropout_layers,
    is_trained,
    make_optimizer,
    plan_stages,
    split_statistics,
    split_trained,
)
from fedjax_mm.methods.layerwise.statistics import (
    STATISTICS,
    batch_moments,
    pool_statistics,
    recalibrate,
    statistics_update,
)

__all__ = [
    "ADVANCE_LR",
    "COCO_LR",
    "PREDICTION",
    "SCHEDULES",
    "STATISTICS",
    "VARIANTS",
    "LayerwiseConfig",
    "StageSpec",
    "batch_moments",
    "build",
    "client_score",
    "client_update",
    "contrastive_loss",
    "contrastive_scores",
    "draw_view",
    "embed_views",
    "first_dropout_layers",
    "frozen_name",
    "frozen_outputs",
    "init_network",
    "is_trained",
    "local_loss",
    "make_optimizer",
    "plan_stages",
    "pool_statistics",
    "predict_logits",
    "prediction_head",
    "project",
    "projection_head",
    "recalibrate",
    "scores",
    "server_download",
    "server_update",
    "split_statistics",
    "split_trained",
    "statistics_update",
    "supervised_loss",
    "supervised_scores",
    "train_step",
]
