"""The settings of MMFL."""

import dataclasses
from typing import Literal

from fedjax_mm.methods.fedmekt.autoencoding import Objective, Variant
from fedjax_mm.methods.fedmekt.linear_evaluation import Probe


@dataclasses.dataclass(frozen=True)
class MMFLConfig:
    """Settings of one run. Learning rates are per step; numbers of passes are per round."""

    prox: float = 0.0
    """mu, weight of FedProx's term in a client's loss; 0 is without it."""
    moon: float = 0.0
    """nu, weight of MOON's term in a client's loss; 0 is without it."""
    moon_axis: Literal["feature", "time"] = "feature"
    """Axis of the cosines in MOON's term."""
    moon_temperature: float = 0.5
    """Number by which the cosines in MOON's term are divided."""
    multimodal_weight: float = 1.0
    """How many times its examples a client with several modalities counts in the mean (100 in Zhao et al.)."""
    client_lr: float = 0.004
    """Learning rate of a client's Adam."""
    persistent: bool = False
    """Whether clients keep Adam's state from round to round."""
    batch_size: int = 24
    """Own windows in each step of a client."""
    epochs: int = 2
    """Passes of a client over its own windows in a round."""
    shared: bool = True
    """Whether weights travel. With False, the control, clients keep their own autoencoders and nothing travels."""
    variant: Variant = "C"
    """Whether a step trains all modalities at once ("C"), or one after the other, the other encoders frozen ("S")."""
    objective: Objective = "split"
    """The loss without FedProx and MOON: reconstruction across modalities ("split"), or correlation of the modalities'
    embeddings ("dcc", for DCCAE)."""
    probe: Probe = Probe()
    """The linear classifier by which encoders are evaluated."""
