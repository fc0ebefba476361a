"""The settings of federated averaging, and the optimisers that they name."""

import dataclasses
from collections.abc import Iterable
from typing import Literal

import optax


@dataclasses.dataclass(frozen=True)
class FedAvgConfig:
    """Settings of one run. Rates are per step, counts are per round."""

    client_lr: float = 0.1
    """Learning rate of the clients' optimiser."""
    client_optimizer: Literal["sgd", "adam"] = "sgd"
    """Optimiser of the clients. Every client starts it afresh in every round."""
    batch_size: int = 20
    """Examples in one step of a client."""
    epochs: int = 1
    """Passes over a client's own examples in a round."""
    server_optimizer: Literal["sgd", "momentum", "adam", "yogi"] = "sgd"
    """Optimiser of the server. sgd with rate 1 is FedAvg; the others are FedAvgM, FedAdam and FedYogi."""
    server_lr: float = 1.0
    """Learning rate of the server's optimiser."""
    prox: float = 0.0
    """mu, the weight of FedProx's proximal term. 0 leaves the term out."""
    multimodal_weight: float = 1.0
    """Factor on the number of examples of a client with several modalities (100 in Zhao et al.)."""
    shared: tuple[str, ...] | None = None
    """Parts that travel: modality names and "head". None: all. (): none, which is local-only training."""


CLIENT_OPTIMIZERS = {"sgd": optax.sgd, "adam": optax.adam}
SERVER_OPTIMIZERS = {  # epsilon and momenta of Reddi et al. 2021, section 5
    "sgd": optax.sgd,
    "momentum": lambda lr: optax.sgd(lr, momentum=0.9),
    "adam": lambda lr: optax.adam(lr, b1=0.9, b2=0.99, eps=1e-3),
    "yogi": lambda lr: optax.yogi(lr, b1=0.9, b2=0.99, eps=1e-3),
}


def shared_parts(config: FedAvgConfig, modalities: Iterable[str]) -> tuple[str, ...]:
    """The names of the parts that travel. Raises ValueError where `config.shared` names something else.

    >>> shared_parts(FedAvgConfig(), ["image", "text"])
    ('image', 'text', 'head')
    """
    parts = (*modalities, "head")
    shared = parts if config.shared is None else tuple(config.shared)
    if set(shared) - set(parts):
        raise ValueError(f"shared names parts {sorted(set(shared) - set(parts))}; this model has {list(parts)}")
    return shared
