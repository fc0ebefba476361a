"""Settings of CreamFL, and its variants."""

import dataclasses
from typing import Literal

from fedjax_mm.methods.creamfl.training import RELEASED, Training


@dataclasses.dataclass(frozen=True)
class CreamFLConfig:
    """Settings of one run."""

    training: Training = Training()
    inter: bool = True
    intra: bool = True
    gamma: float = 0.5
    """Weight of both contrasts."""
    temperature: float = 0.5
    """Of both contrasts."""
    phases: Literal["joint", "alternate"] = "joint"
    """joint: a step has own examples and public ones drawn at random; alternate: an epoch is a pass over each."""
    public_batch: int = 64
    intra_mean: bool = False
    """Of a client with both modalities: the mean of its two intra terms, not their sum."""
    weighing: Literal["contrastive", "similarity", "mean", "size", "variance", "consensus", "entropy"] = "contrastive"
    weighing_temperature: float = 1.0
    """Of contrastive weights."""
    exclude_match: bool = False
    """The item's own pair is left out of the denominator of contrastive weights."""
    both_weight: float = 1.0
    """How many times its examples a client with both modalities counts in "size" weights (IoT: 100)."""
    distance: Literal["l2", "mse"] = "l2"
    """Of distillation: the length of the difference, or its mean square over dimensions."""
    kd_weight: float = 1.0
    kd_rate: float = 1.0
    """The rate of distillation, as a share of the server's: to Adam, which forgets scale, kd_weight is nothing."""
    kd_epochs: int = 1
    """Passes over the public pairs; 0: nothing is exchanged."""


PRESETS = {
    "small": CreamFLConfig(
        Training(server_lr=3e-3, client_lr=3e-3, both_lr=3e-3), gamma=1.0, temperature=0.1, kd_rate=0.1
    ),
    "paper": CreamFLConfig(RELEASED, temperature=1.0, exclude_match=True, public_batch=128),
    "code": CreamFLConfig(
        dataclasses.replace(RELEASED, margin=4.0, orthogonality=0.5, nonnegative=True),
        phases="alternate",
        public_batch=128,
        intra_mean=True,
        distance="mse",
        kd_weight=0.6,
    ),
}
