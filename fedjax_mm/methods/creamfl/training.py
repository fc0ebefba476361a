"""How every model of CreamFL and its baselines is trained: rates, batches, optimisers.

Section numbers refer to docs/specs/creamfl.md.
"""

import dataclasses
from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp
import optax

from fedjax_mm.local import Step
from fedjax_mm.models import Model

Encoders = Mapping[str, Model]  # modality -> Model [B, ...] -> [B, D], of the clients of a cohort or of the server


@dataclasses.dataclass(frozen=True)
class Training:
    """How every model learns its own task. A rate holds for one step, a count for one round."""

    client_lr: float = 1e-3
    """Learning rate of clients with one modality."""
    both_lr: float = 1e-3
    """Learning rate of clients with both modalities, whose optimiser is Adam."""
    server_lr: float = 1e-3
    """Learning rate of the server, whose optimiser is Adam."""
    client_optimizer: Literal["adam", "sgd"] = "adam"
    """Optimiser of clients with one modality; sgd has momentum 0.9 and weight decay 5e-5."""
    milestones: tuple[int, ...] = ()
    """Rounds at which the learning rate of clients with one modality falls to a tenth."""
    server_rounds: int | None = None
    """Rounds of a cosine schedule that takes the server's learning rate to 0; None keeps the rate constant."""
    clip: float | None = None
    """Largest norm of a gradient of the server and of clients with both modalities; None: no gradient is clipped."""
    batch_size: int = 32
    """Own examples in a step of a client."""
    single_batch: int | None = None
    """Own examples in a step of a client with one modality; None: `batch_size`."""
    epochs: int = 5
    """Passes of a client over its own examples."""
    server_batch: int = 64
    """Public pairs in a step of the server."""
    server_epochs: int = 1
    """Passes of the server over the public pairs before it sends anything."""
    crop: float | None = None
    """Least share of an image's area that a random crop keeps while the server and the clients learn their own tasks;
    None: they see whole images."""
    side: int | None = None
    """Side of the images that encoders see, where those that are stored have another one: crops are resized to it. The
    encoders then take whole images of both sides. None: the stored side."""
    flip: bool = False
    """Whether crops are mirrored, each with a chance of one half."""
    alone: Literal["crop", "turn"] = "crop"
    """How a client with images alone sees its own: as all others do (crop), or as the released code shows CIFAR-100
    (turn): resized to 281/256 of the side, turned by up to 10 degrees, a part of the side at a random place, mirrored.
    It needs a `side`."""
    margin: float = 0.0
    """Amount by which a classifier's logit of the right class is lowered while the classifier learns."""
    orthogonality: float = 0.0
    """Weight of a cross-entropy which asks that a classifier's class vectors differ from each other."""
    nonnegative: bool = False
    """Whether negative entries of a classifier's class vectors are set to 0 after every step."""
    block: int = 256
    """Number of public examples that a model represents at a time."""
    at_once: int | None = None
    """Examples of a batch that are seen, and that an encoder computes, at once while it learns. Their activations alone
    are in memory, and are computed again for the gradient, which takes about a third more time. It changes results by
    rounding alone. None: the whole batch."""


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
    flip=True,
    alone="turn",
)
"""The rates of CreamFL's released code (section 6), for pretrained encoders and for 30 rounds."""


def batch_of(training: Training, encoders: Encoders) -> int:
    """The number of own examples in a step of a client with these encoders."""
    return training.single_batch or training.batch_size if len(encoders) == 1 else training.batch_size


def optimizer(training: Training, encoders: Encoders | None, round: jax.Array | int) -> optax.GradientTransformation:
    """The optimiser of clients with these encoders, or of the server (None), at the learning rate of a round [].

    Its state fits the optimiser of any other round.

    >>> params, slope = {"w": jnp.ones(2)}, {"w": jnp.ones(2)}
    >>> for round in (0, 15):  # half a cosine over the server's 30 rounds
    ...     tx = optimizer(RELEASED, None, jnp.int32(round))
    ...     change, _ = tx.update(slope, tx.init(params), params)
    ...     print(f"{change['w'][0]:.1e}")
    -1.0e-05
    -5.0e-06
    """
    clip = optax.identity() if training.clip is None else optax.clip_by_global_norm(training.clip)
    if encoders is None:
        rate = training.server_lr
        if training.server_rounds:
            rate *= 0.5 * (1 + jnp.cos(jnp.pi * jnp.minimum(round / training.server_rounds, 1)))
        return optax.chain(clip, optax.scale_by_adam(), optax.scale(-rate))
    if len(encoders) > 1:
        return optax.chain(clip, optax.scale_by_adam(), optax.scale(-training.both_lr))
    falls = sum(jnp.float32(round >= milestone) for milestone in training.milestones)
    rate = training.client_lr * 0.1**falls
    if training.client_optimizer == "adam":
        return optax.chain(optax.scale_by_adam(), optax.scale(-rate))
    return optax.chain(optax.add_decayed_weights(5e-5), optax.trace(0.9), optax.scale(-rate))


def finish_step(training: Training, step: Step) -> Step:
    """A step over (params, optimiser state) that also sets negative entries of class vectors to 0, where the settings
    ask for it (`Training.nonnegative`).

    >>> params = {"head": {"kernel": jnp.array([-1.0, 2.0])}}
    >>> step = finish_step(Training(nonnegative=True), lambda carry, batch, key: (carry, {}))
    >>> (params, _), _ = step((params, ()), {}, jax.random.key(0))
    >>> params["head"]["kernel"].tolist()
    [0.0, 2.0]
    """
    if not training.nonnegative:
        return step

    def cut(carry, batch, key):
        (params, opt), metrics = step(carry, batch, key)
        if "head" in params:
            params = {**params, "head": {**params["head"], "kernel": jnp.maximum(params["head"]["kernel"], 0)}}
        return (params, opt), metrics

    return cut
