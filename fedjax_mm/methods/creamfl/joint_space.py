"""What CreamFL and its baselines train: image and text encoders into one space, with a task for each kind of client.

A cohort whose arrays have `image` and `text` learns to retrieve, from pairs; one with `image` or `text` alone
classifies, by `label`. Section numbers are those of CreamFL's description in the project's specification.
"""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_mm import aggregate, losses
from fedjax_mm.local import Batch, local_steps, masked_mean, whole
from fedjax_mm.losses import unit
from fedjax_mm.methods.augment import one_of_several, random_resized_crop
from fedjax_mm.methods.creamfl.training import Encoders, Training
from fedjax_mm.models import Model
from fedjax_mm.types import Arrays, ClientData, Key, PyTree

MODALITIES = ("image", "text")
OTHER = {"image": "text", "text": "image"}


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
