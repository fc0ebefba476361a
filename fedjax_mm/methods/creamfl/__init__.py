"""CreamFL (method.py has the paper), the baselines that average weights (encoder_averaging.py), and their scores.

A paper's steps can be imported and jitted on their own; `build` binds them to a Method.
"""

from fedjax_mm.methods.creamfl.client import Anchors, client_update, contrasts, init_client, score_client, train_client
from fedjax_mm.methods.creamfl.config import VARIANTS, CreamFLConfig
from fedjax_mm.methods.creamfl.joint_space_scores import scores
from fedjax_mm.methods.creamfl.method import build
from fedjax_mm.methods.creamfl.server import average, distil, download, init_server, server_update, train_server, weigh
from fedjax_mm.methods.creamfl.training import Training

__all__ = [
    "VARIANTS",
    "Anchors",
    "CreamFLConfig",
    "Training",
    "average",
    "build",
    "client_update",
    "contrasts",
    "distil",
    "download",
    "init_client",
    "init_server",
    "score_client",
    "scores",
    "server_update",
    "train_client",
    "train_server",
    "weigh",
]
