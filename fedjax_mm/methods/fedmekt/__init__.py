"""FedMEKT and its steps (method.py), federated averaging of autoencoders (mmfl.py), and linear evaluation."""

from fedjax_mm.methods.fedmekt.client import client_loss, client_update, init_client, score_client
from fedjax_mm.methods.fedmekt.config import VARIANTS, FedMEKTConfig
from fedjax_mm.methods.fedmekt.knowledge import combine_knowledge, distillation, embed, message
from fedjax_mm.methods.fedmekt.linear_evaluation import Probe
from fedjax_mm.methods.fedmekt.method import build, scores
from fedjax_mm.methods.fedmekt.server import download, init_server, server_loss, server_update

__all__ = [
    "VARIANTS",
    "FedMEKTConfig",
    "Probe",
    "build",
    "client_loss",
    "client_update",
    "combine_knowledge",
    "distillation",
    "download",
    "embed",
    "init_client",
    "init_server",
    "message",
    "score_client",
    "scores",
    "server_loss",
    "server_update",
]
