"""The settings of FedMEKT, its variants, and the checks of a setting against what the clients own.

Numbers in parentheses are sections of docs/specs/fedmekt.md.
"""

import dataclasses
from collections.abc import Container
from typing import Literal

from fedjax_mm.methods.fedmekt.autoencoding import Objective, Variant
from fedjax_mm.methods.fedmekt.linear_evaluation import Probe
from fedjax_mm.methods.fedmekt.readout import Readout
from fedjax_mm.methods.settings import check_settings
from fedjax_mm.models.autoencoder import AutoEncoder


@dataclasses.dataclass(frozen=True)
class FedMEKTConfig:
    """Settings of one run. Learning rates are per step; numbers of passes are per round."""

    alpha: float = 1.0
    """Weight of the distillation of z in a client's loss (the released code has 0.01 to 0.1, which makes it 0.1 to
    0.3 % of the loss; `knowledge.distillation_share` logs what share it has)."""
    eta: float = 1.0
    """Weight of the distillation of z in the server's loss. With eta and gamma 0 the server hears no client: the
    server-only control."""
    beta: float = 0.4
    """Weight of the distillation of h in a client's loss; it counts only where h travels."""
    gamma: float = 0.4
    """Weight of the distillation of h in the server's loss; it counts only where h travels."""
    temperature: float = 3.0
    """Temperature T of the softmaxes that "kl" compares."""
    client_lr: float = 0.004
    """Learning rate of a client's Adam, whose state stays with the client from round to round."""
    server_lr: float = 0.002
    """Learning rate of the server's Adam, whose state is kept from round to round."""
    batch_size: int = 24
    """Own windows in each step of a client."""
    epochs: int = 2
    """Passes of a client over its own windows in a round."""
    proxy_batch: int = 24
    """Proxy windows in each step of a client, and in each step of the server."""
    server_epochs: int = 2
    """R, passes of the server over the proxy windows in a round."""
    knowledge: Readout | Literal["seq", "seq+hidden"] = "last"
    """What travels of a window: one row (see `readout.Readout`), z at all steps, or both z and h at all steps."""
    kd: Literal["kl", "cosine", "mse"] = "kl"
    """How two messages are compared: T^2 KL of softmaxes at temperature T, 1 - cosine, or the mean squared error."""
    kd_axis: Literal["feature", "time"] = "feature"
    """Axis of the softmaxes that "kl" compares."""
    aggregate: Literal["mean", "last"] = "mean"
    """How the server combines its clients' knowledge: their mean, or that of the last listed owner, which is what the
    released code computes (5.1)."""
    released: bool = False
    """Whether the distillation is that of the released code: a sum in place of a mean over the modalities of one model,
    through a frozen random map, and KL(student || teacher) on the server."""
    variant: Variant = "C"
    """Whether a step trains all modalities at once ("C"), or one after the other, the other encoders frozen ("S")."""
    objective: Objective = "split"
    """The loss without distillation: reconstruction across modalities ("split"), or correlation of the modalities'
    embeddings ("dcc", for DCCAE)."""
    probe: Probe = Probe()
    """The generalised classifier by which the global encoder is evaluated."""


VARIANTS = {
    "ours": FedMEKTConfig(),
    "released": FedMEKTConfig(
        *(0.1, 0.1, 0.04, 0.04), knowledge="seq+hidden", kd_axis="time", aggregate="last", released=True
    ),
}
"""ours: what we recommend. released: what the released code computes, with its weights. The width of the embedding
belongs to the autoencoder: the released code has 10 (Opportunity), 4 (mHealth) and 2 (UR Fall with the accelerometer);
`split_lstm` has 4 unless told otherwise."""


def check(config: FedMEKTConfig, ae: AutoEncoder, public: Container[str]) -> None:
    """Raises ValueError where a setting is out of range, settings do not go together, or proxy windows are missing.

    public: the names of the public arrays.
    """
    check_settings(config, FedMEKTConfig)
    if config.kd_axis == "time" and config.knowledge not in ("seq", "seq+hidden"):
        raise ValueError('kd_axis "time" compares whole sequences; set knowledge to "seq" or "seq+hidden"')
    if config.kd_axis == "time" and config.kd != "kl":
        raise ValueError(f'kd_axis "time" is an axis of softmaxes, and kd {config.kd!r} has none; set kd to "kl"')
    if config.objective == "dcc" and config.variant == "S":
        raise ValueError('the dcc objective needs both encoders in one step; use variant "C"')
    if missing := [m for m in ae.modalities if m not in public]:
        raise ValueError(
            f"the public arrays have no {missing}; FedMEKT needs proxy windows of every modality, index-aligned: "
            "FederatedData.from_arrays(..., public={modality: [P, T, F]})"
        )
