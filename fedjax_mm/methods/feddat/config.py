"""The settings of FedDAT with its variants, and of the methods that it is compared with.

Section numbers are those of docs/specs/feddat.md.
"""

import dataclasses
from typing import Literal

from fedjax_mm.methods.feddat.vqa_tuning import Training


@dataclasses.dataclass(frozen=True)
class FedDATConfig:
    """Settings of one run. Each client counts the rounds in which it took part, and only these."""

    training: Training = Training()
    """Optimiser, learning rate, batches and task loss of a client."""
    temperature: float = 3.0
    """T, the temperature of both distillation losses."""
    alpha: float = 1.0
    """Weight of what A_s learns from the teacher DAT. With 0 the teacher teaches nobody."""
    beta: float = 1.0
    """Weight of what A_c learns from A_s. 0 is the ablation that the released code calls "xxx"."""
    dual: bool = True
    """False: A_c alone stands in the place of DAT, which is plain mutual distillation; the released code calls this
    ablation "yyy"."""
    warmup_rounds: int = 0
    """A client's first rounds, in which only A_s and the head train, on the task alone."""
    weights: Literal["uniform", "size"] = "uniform"
    """Weight of a client in the server's mean. uniform: all clients are alike; size: its number of examples."""
    compat_freeze_local: bool = False
    """True: A_c trains in a client's first round alone, as in the released code (section 1b, D1)."""
    compat_double_schedule: bool = False
    """True: the schedule advances after step (1) and after step (2), as in the released code (section 1b, D3)."""


VARIANTS = {
    "paper": FedDATConfig(),
    "released": FedDATConfig(compat_freeze_local=True, compat_double_schedule=True),
    "no_distillation": FedDATConfig(alpha=0.0, beta=0.0),
    "mutual": FedDATConfig(dual=False),
}
"""paper: the algorithm as it is described; released: with the defects D1 and D3 of the released code (section 1b);
no_distillation and mutual: two ablations."""


@dataclasses.dataclass(frozen=True)
class PEFTConfig:
    """Settings of one run."""

    training: Training = Training()
    """Optimiser, learning rate, batches and task loss of a client."""
    head_steps: int = 1
    """AdamW steps of the head per batch. The first is taken together with w; each further one is on the task alone, and
    reads the features that the first one had, which XLA computes again in part: with 2 a round over a trunk of two
    layers has 1.3 times the FLOPs of 1. With 2 the head trains as often as FedDAT's; the authors' baselines take 1."""
    travels: bool = True
    """False: nothing is sent, and every client tunes for itself."""
    weights: Literal["uniform", "size"] = "uniform"
    """Weight of a client in the server's mean. uniform: all clients are alike; size: its number of examples."""
    prox: float = 0.0
    """mu of FedProx, the weight of the proximal term. 0 leaves the term out."""
    dyn: float = 0.0
    """alpha of FedDyn. 0 leaves FedDyn out."""
    server_optimizer: Literal["sgd", "momentum", "adam", "yogi"] = "sgd"
    """The server's optimiser. sgd with rate 1 is FedAvg; the others are FedAvgM, FedAdam and FedYogi."""
    server_lr: float = 1.0
    """Learning rate of the server's optimiser."""
