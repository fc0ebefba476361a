"""Multimodal federated averaging: the round (method.py), the parts it averages (network.py), scores (evaluation.py)."""

from fedjax_mm.methods.fedavg.config import CLIENT_OPTIMIZERS, SERVER_OPTIMIZERS, FedAvgConfig, shared_parts
from fedjax_mm.methods.fedavg.evaluation import client_score, predict_classes, scores
from fedjax_mm.methods.fedavg.method import build, client_update, init_server, server_download, server_update
from fedjax_mm.methods.fedavg.network import init_parts, kind_weight, local_loss, predict_logits

__all__ = [
    "CLIENT_OPTIMIZERS",
    "SERVER_OPTIMIZERS",
    "FedAvgConfig",
    "build",
    "client_score",
    "client_update",
    "init_parts",
    "init_server",
    "kind_weight",
    "local_loss",
    "predict_classes",
    "predict_logits",
    "scores",
    "server_download",
    "server_update",
    "shared_parts",
]
