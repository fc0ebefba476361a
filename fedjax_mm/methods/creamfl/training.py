"""How every model of CreamFL and its baselines is trained: rates, batches, optimisers."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Literal

import jax
import jax.numpy as jnp
import optax

from fedjax_mm.models import Model

Encoders = Mapping[str, Model]  # of a cohort, or of the server: modality -> [B, ...] -> [B, D]


@dataclasses.dataclass(frozen=True)
class Training:
    """How every model learns its own task; rates per step, counts per round."""

    client_lr: float = 1e-3
    """Of clients with one modality."""
    both_lr: float = 1e-3
    """Adam, of clients with both."""
    server_lr: float = 1e-3
    """Adam."""
    client_optimizer: Literal["adam", "sgd"] = "adam"
    """Of clients with one modality; sgd has momentum 0.9 and weight decay 5e-5."""
    milestones: tuple[int, ...] = ()
    """Rounds at which the rate of clients with one modality falls to a tenth."""
    server_rounds: int | None = None
    """Rounds of a cosine that takes the server's rate to 0; None keeps it."""
    clip: float | None = None
    """Largest norm of a gradient of the server and of clients with both modalities."""
    batch_size: int = 32
    single_batch: int | None = None
    """Of clients with one modality; None: as batch_size."""
    epochs: int = 5
    """Passes over a client's own examples."""
    server_batch: int = 64
    server_epochs: int = 1
    """Passes over the public pairs, before anything is sent."""
    crop: float | None = None
    """The least share of an image's area that a random crop keeps, where the server and clients learn their tasks."""
    margin: float = 0.0
    """What a classifier's logit of the right class is lowered by while it learns."""
    orthogonality: float = 0.0
    """Weight of a cross-entropy that makes a classifier's class vectors tell themselves from each other."""
    nonnegative: bool = False
    """A classifier's class vectors are cut at 0 after every step."""
    block: int = 256
    """Public examples represented at a time."""


RELEASED = Training(
    client_lr=1e-4,
    both_lr=2e-4,
    server_lr=1e-5,
    client_optimizer="sgd",
    milestones=(15, 24),
    server_rounds=30,
    clip=2.0,
    batch_size=128,
    single_batch=512,
    server_batch=128,
    crop=0.08,
)
"""The rates of CreamFL's released code (6), for pretrained encoders."""


def batch_of(training: Training, encoders: Encoders) -> int:
    """Own examples in a step of a client with these encoders."""
    return training.single_batch or training.batch_size if len(encoders) == 1 else training.batch_size


def optimizer(training: Training, encoders: Encoders | None, round: jax.Array) -> optax.GradientTransformation:
    """A cohort's optimiser, or the server's (None), at the rate of a round; its state fits that of any round."""
    clip = optax.identity() if training.clip is None else optax.clip_by_global_norm(training.clip)
    if encoders is None:
        rate = training.server_lr
        if training.server_rounds:
            rate *= 0.5 * (1 + jnp.cos(jnp.pi * jnp.minimum(round / training.server_rounds, 1)))
        return optax.chain(clip, optax.scale_by_adam(), optax.scale(-rate))
    if len(encoders) > 1:
        return optax.chain(clip, optax.scale_by_adam(), optax.scale(-training.both_lr))
    rate = training.client_lr * 0.1 ** sum((round >= at).astype(jnp.float32) for at in training.milestones)
    if training.client_optimizer == "adam":
        return optax.chain(optax.scale_by_adam(), optax.scale(-rate))
    return optax.chain(optax.add_decayed_weights(5e-5), optax.trace(0.9), optax.scale(-rate))


def finish_step(training: Training, step: Callable) -> Callable:
    """A step over (params, optimiser state) after which class vectors are cut at 0, where they are to be."""
    if not training.nonnegative:
        return step

    def cut(carry, batch, key):
        (params, opt), metrics = step(carry, batch, key)
        if "head" in params:
            params = {**params, "head": {**params["head"], "kernel": jnp.maximum(params["head"]["kernel"], 0)}}
        return (params, opt), metrics

    return cut
