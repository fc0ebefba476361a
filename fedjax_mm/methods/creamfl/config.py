"""Settings of CreamFL, and its variants."""

import dataclasses
from typing import Literal

from fedjax_mm.methods.creamfl.training import RELEASED, Training

ANCHORED = ("contrastive", "similarity")  # weighings that compare clients with the server


@dataclasses.dataclass(frozen=True)
class CreamFLConfig:
    """Settings of one run."""

    training: Training = Training()
    """How the server and the clients learn their own tasks."""
    inter: bool = True
    """Whether a client's loss has the contrast between modalities."""
    intra: bool = True
    """Whether a client's loss has the contrast within a modality."""
    gamma: float = 0.5
    """Weight of the two contrastive losses in a client's loss."""
    temperature: float = 0.5
    """Temperature of the two contrastive losses."""
    phases: Literal["joint", "alternate"] = "joint"
    """joint: a step has a batch of the client's own examples and public examples drawn at random; alternate: an epoch
    is a pass over the client's own examples and then a pass over the public ones."""
    public_batch: int = 64
    """Public examples in a step of a client."""
    public_views: bool = False
    """Whether contrasts and distillation see random views of public examples, as a model's own task does, in place of
    whole images. What is sent is always of whole images."""
    intra_mean: bool = False
    """Whether a client with both modalities takes the mean of its two losses within a modality, not their sum."""
    weighing: Literal["contrastive", "similarity", "mean", "size", "variance", "consensus", "entropy"] = "contrastive"
    """How the server weighs the clients' representations of a public example."""
    weighing_temperature: float = 1.0
    """Temperature of "contrastive" weights."""
    exclude_match: bool = False
    """Whether the denominator of "contrastive" weights leaves out the public example's own pair."""
    both_weight: float = 1.0
    """How many times its number of examples a client with both modalities counts in "size" weights (100 in IoT)."""
    distance: Literal["l2", "mse"] = "l2"
    """Distance that distillation reduces: l2 is the length of the difference between two representations, mse its mean
    square over the D dimensions."""
    kd_weight: float = 1.0
    """Weight of distillation's loss. Adam divides a gradient by its scale, so this weight changes almost nothing."""
    kd_rate: float = 1.0
    """Learning rate of distillation, as a share of the server's learning rate."""
    kd_state: Literal["shared", "own"] = "shared"
    """Whether distillation goes on with the state of Adam that the pairs' loss has left, as in the paper, or has one of
    its own. The pairs' gradients are a thousand times larger, so that in a shared state distillation hardly moves."""
    kd_epochs: int = 1
    """Passes of distillation over the public pairs; 0: clients and server exchange nothing."""

    @property
    def exchanges(self) -> bool:
        """Whether clients send representations."""
        return self.kd_epochs > 0

    @property
    def contrasts(self) -> bool:
        """Whether clients compare their representations with the server's, so that the server sends its own."""
        return self.exchanges and (self.inter or self.intra)

    @property
    def represents(self) -> bool:
        """Whether the server represents the public pairs, for its clients or for its own weights."""
        return self.exchanges and (self.contrasts or self.weighing in ANCHORED)


VARIANTS = {
    "ours": CreamFLConfig(
        Training(server_lr=3e-3, client_lr=3e-3, both_lr=3e-3), gamma=1.0, temperature=0.1, kd_rate=0.1
    ),
    "paper": CreamFLConfig(RELEASED, temperature=1.0, exclude_match=True, public_batch=128, public_views=True),
    "released": CreamFLConfig(
        dataclasses.replace(RELEASED, margin=4.0, orthogonality=0.5, nonnegative=True),
        phases="alternate",
        public_batch=128,
        public_views=True,
        intra_mean=True,
        distance="mse",
        kd_weight=0.6,
    ),
}
"""ours: rates for small models that start fresh, chosen on a validation split; paper: the paper's equations; released:
what the authors' released code does."""
