"""What CreamFL and its baselines train: image and text encoders into one space, with a task for each kind of client.

A cohort whose arrays have `image` and `text` learns to retrieve, from pairs; one with `image` or `text` alone
classifies, by `label`. Section numbers are those of CreamFL's description in the project's specification.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_mm import aggregate, losses
from fedjax_mm.local import Batch, local_steps, masked_mean, whole
from fedjax_mm.losses import unit
from fedjax_mm.methods.augment import one_of_several, random_resized_crop
from fedjax_mm.models import Model
from fedjax_mm.types import Arrays, ClientData, Key, PyTree

MODALITIES = ("image", "text")
OTHER = {"image": "text", "text": "image"}
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


def represent(
    model: Model, params: PyTree, x: jax.Array, block: int = 256, wanted: jax.Array | bool = True
) -> jax.Array:
    """Unit representations [P, D] of examples [P, ...], `block` at a time; zeros, at no cost, where not `wanted` []."""
    total, block = len(x), min(block, len(x))
    blocks = -(-total // block)
    width = jax.eval_shape(model.apply, params, x[:1]).shape[-1]

    def one(i, reps):
        start = jnp.minimum(i * block, total - block)  # the last block overlaps the one before
        some = jax.lax.dynamic_slice_in_dim(x, start, block)
        return jax.lax.dynamic_update_slice_in_dim(reps, unit(model.apply(params, some)), start, 0)

    return jax.lax.fori_loop(0, jnp.where(wanted, blocks, 0), one, jnp.zeros((total, width)))


def represent_all(
    encoders: Encoders, block: int, params: PyTree, examples: Arrays, wanted: jax.Array | bool = True
) -> dict[str, jax.Array]:
    """{m: [P, D]}, `represent` for each encoder's modality."""
    return {m: represent(encoders[m], params[m], examples[m], block, wanted) for m in encoders}


def held(cohort) -> tuple[str, ...]:
    """The modalities of a cohort of a FederatedData."""
    return tuple(m for m in MODALITIES if m in cohort.arrays)


def init(key: Key, encoders: Encoders, arrays: Arrays, num_classes: int | None) -> PyTree:
    """{m: parameters}, with `head` for classes, and with `scale` and `shift` (15 both) where pairs are retrieved."""
    params = {}
    for i, (m, model) in enumerate(encoders.items()):
        shape, dtype = np.shape(arrays[m]), arrays[m].dtype
        shape = shape[2:] if m == "text" and len(shape) == 3 else shape[1:]  # one of several captions
        params[m] = model.init(jax.random.fold_in(key, i), jnp.zeros((1, *shape), dtype))
    if len(encoders) > 1:
        return params | {"scale": jnp.float32(15), "shift": jnp.float32(15)}
    (m,) = encoders
    example = jax.ShapeDtypeStruct((1, *shape), dtype)
    width = jax.eval_shape(encoders[m].apply, params[m], example).shape[-1]
    kernel = jax.nn.initializers.glorot_uniform()(jax.random.fold_in(key, len(encoders)), (width, num_classes))
    return params | {"head": {"kernel": kernel, "bias": jnp.zeros(num_classes)}}


def classify(encoders: Encoders, params: PyTree, x: jax.Array) -> jax.Array:
    """Logits [B, K] of a client with one modality."""
    (m,) = encoders
    return encoders[m].apply(params[m], x) @ params["head"]["kernel"] + params["head"]["bias"][None]


def task(training: Training, encoders: Encoders) -> Callable[[PyTree, Batch, Key], tuple[jax.Array, dict]]:
    """loss(params, batch, key) of a model's own task: retrieval with both modalities, else classification."""

    def view(batch, key):
        seen = {}
        for m in encoders:
            x, mine = batch[m], jax.random.fold_in(key, MODALITIES.index(m))
            if m == "text" and x.ndim == 3:
                x = one_of_several(mine, x)
            if m == "image" and training.crop is not None:
                x = random_resized_crop(mine, x, training.crop)
            seen[m] = x
        return seen

    def retrieve(params, batch, key):
        z = {m: unit(encoders[m].apply(params[m], x)) for m, x in view(batch, key).items()}
        loss = losses.soft_contrastive(z["image"], z["text"], params["scale"], params["shift"], mask=batch["mask"])
        return loss, {}

    def label(params, batch, key):
        ((_, x),) = view(batch, key).items()
        logits = classify(encoders, params, x)
        right = jax.nn.one_hot(batch["label"], logits.shape[-1])
        ce = optax.softmax_cross_entropy(logits - training.margin * right, right)
        loss = masked_mean(ce, batch["mask"])
        if training.orthogonality:
            kernel = params["head"]["kernel"]
            own = optax.softmax_cross_entropy_with_integer_labels(kernel.T @ kernel, jnp.arange(kernel.shape[1]))
            loss += training.orthogonality * own.mean()
        return loss, {"accuracy": masked_mean((logits.argmax(-1) == batch["label"]).astype(loss.dtype), batch["mask"])}

    return retrieve if len(encoders) > 1 else label


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


def over_public(public: Arrays, wanted: jax.Array | bool = True) -> ClientData:
    """The public examples as a client's own, with `row` [P] their numbers; none where not `wanted` []."""
    data = whole({**public, "row": jnp.arange(len(next(iter(public.values()))), dtype=jnp.int32)})
    if wanted is True:
        return data
    return dataclasses.replace(data, count=jnp.where(wanted, data.count, 0), uniform=False)


def passes(step: Callable, carry, public: Arrays, key: Key, batch_size: int, epochs: int):
    """(carry, metrics) after the server's passes over the public pairs."""
    size = min(batch_size, len(next(iter(public.values()))))
    return local_steps(step, carry, over_public(public), key, batch_size=size, epochs=epochs)


def evenness(share: jax.Array, reps: jax.Array, weight: jax.Array) -> dict[str, jax.Array]:
    """How even the weights [C, P] are, 1 being a plain mean, and how far apart the clients' representations [C, P, D].

    entropy: of an item's weights over that of equal ones, the mean over items; drift: 1 - the length of the plain mean
    of unit vectors, 0 where all clients agree.
    """
    sent = (weight > 0).astype(jnp.float32)
    clients = sent.sum()
    entropy = -jnp.where(share > 0, share * jnp.log(jnp.maximum(share, 1e-30)), 0).sum(0).mean()
    mean = aggregate.combine(sent[:, None] / jnp.maximum(clients, 1) * jnp.ones(share.shape), reps)
    length = jnp.sqrt(jnp.square(mean).sum(-1) + 1e-12).mean()
    even = jnp.where(clients > 1, entropy / jnp.log(jnp.maximum(clients, 2)), 1.0)
    return {"entropy": even, "drift": jnp.where(clients > 0, 1 - length, 0.0)}


def check(data, server: Encoders, clients: Mapping[str, Encoders], num_classes: Mapping[str, int]) -> None:
    """Raises a ValueError where the data, a FederatedData, and the models do not fit."""
    public = data.public or {}
    if missing := [m for m in MODALITIES if m not in public or m not in server]:
        raise ValueError(
            f"the public arrays {sorted(public)} and the server's encoders {sorted(server)} need both image and text; "
            f"{missing} is missing"
        )
    if len(shape := np.shape(public["text"])) != 2:
        raise ValueError(f"the public texts are {shape}; they must be [P, L], one for each image")
    if set(clients) != set(data.cohorts):
        raise ValueError(f"encoders are given for cohorts {sorted(clients)}; the data has {sorted(data.cohorts)}")
    for name, cohort in data.cohorts.items():
        if set(mine := held(cohort)) != set(clients[name]):
            raise ValueError(f"clients of {name} hold {list(mine)} and have encoders of {list(clients[name])}")
        if len(mine) == 1 and ("label" not in cohort.arrays or name not in num_classes):
            raise ValueError(f"clients of {name} have {mine[0]} alone: they need an array 'label' and num_classes")
