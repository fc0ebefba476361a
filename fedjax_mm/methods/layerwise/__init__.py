"""LW-FedMML and Prog-FedMML: rounds (method.py), stages (plan.py), the network (network.py), scores (evaluation.py)."""

from fedjax_mm.methods.layerwise.client import client_update, train_step
from fedjax_mm.methods.layerwise.config import ADVANCE_LR, COCO_LR, SCHEDULES, VARIANTS, LayerwiseConfig
from fedjax_mm.methods.layerwise.evaluation import client_score, contrastive_scores, scores, supervised_scores
from fedjax_mm.methods.layerwise.method import build, server_download, server_update
from fedjax_mm.methods.layerwise.network import (
    PREDICTION,
    contrastive_loss,
    embed_views,
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

__all__ = [
    "ADVANCE_LR",
    "COCO_LR",
    "PREDICTION",
    "SCHEDULES",
    "VARIANTS",
    "LayerwiseConfig",
    "StageSpec",
    "build",
    "client_score",
    "client_update",
    "contrastive_loss",
    "contrastive_scores",
    "embed_views",
    "first_dropout_layers",
    "init_network",
    "is_trained",
    "local_loss",
    "make_optimizer",
    "plan_stages",
    "predict_logits",
    "prediction_head",
    "project",
    "projection_head",
    "scores",
    "server_download",
    "server_update",
    "split_statistics",
    "split_trained",
    "supervised_loss",
    "supervised_scores",
    "train_step",
]
