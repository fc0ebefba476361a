"""FedDAT (method.py, its batch in steps.py), the other ways of tuning one trunk (peft.py), and what they share
(vqa_tuning.py)."""

from fedjax_mm.methods.feddat.answers import Answers
from fedjax_mm.methods.feddat.config import VARIANTS, FedDATConfig
from fedjax_mm.methods.feddat.method import (
    build,
    client_init,
    client_update,
    download,
    predict,
    send,
    server_init,
    server_update,
)
from fedjax_mm.methods.feddat.steps import (
    DualAdapter,
    Teacher,
    distilled_loss,
    dual_adapter_step,
    forward_dual,
    start,
    step_local,
    step_shared,
)
from fedjax_mm.methods.feddat.vqa_tuning import Training

__all__ = [
    "VARIANTS",
    "Answers",
    "DualAdapter",
    "FedDATConfig",
    "Teacher",
    "Training",
    "build",
    "client_init",
    "client_update",
    "distilled_loss",
    "download",
    "dual_adapter_step",
    "forward_dual",
    "predict",
    "send",
    "server_init",
    "server_update",
    "start",
    "step_local",
    "step_shared",
]
