"""What CreamFL and its baselines train: image and text encoders into one space, with a task for each kind of client.

A cohort whose arrays are `image` and `text` learns to retrieve, from pairs; a cohort with `image` or `text` alone
classifies, by `label`. Section numbers refer to docs/specs/creamfl.md.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_mm import aggregate, losses, streamed
from fedjax_mm.local import Loss, Step, gradient_step, in_blocks, local_steps, masked_mean, take, whole
from fedjax_mm.losses import unit
from fedjax_mm.methods.creamfl.training import Encoders, Training, optimizer
from fedjax_mm.methods.creamfl.views import MODALITIES, views
from fedjax_mm.methods.settings import is_used
from fedjax_mm.models import Model
from fedjax_mm.split_rows import in_step, is_split
from fedjax_mm.streamed import is_streamed
from fedjax_mm.types import Arrays, ClientData, Key, Metrics, PyTree

OTHER = {"image": "text", "text": "image"}
Shapes = Mapping[str, Any]  # arrays, or jax.ShapeDtypeStructs in their place


def represent(
    model: Model, params: PyTree, x: jax.Array, block: int = 256, wanted: jax.Array | bool = True
) -> jax.Array:
    """Unit representations [P, D] of examples [P, ...], `block` at a time; zeros, at no cost, where not `wanted` [].

    >>> model = Model(lambda key, x: 3.0, lambda params, x: params * x)
    >>> reps = represent(model, 3.0, jnp.array([[3.0, 4.0], [1.0, 0.0], [0.0, 2.0]]), block=2)
    >>> print(np.asarray(reps).round(3))
    [[0.6 0.8]
     [1.  0. ]
     [0.  1. ]]
    """
    total, block = len(x), min(block, len(x))
    blocks = -(-total // block)
    width = jax.eval_shape(model.apply, params, jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype)).shape[-1]

    def one(i, reps):
        start = jnp.minimum(i * block, total - block)  # the last block overlaps the one before
        if is_split(x) or is_streamed(x):
            some = take({"x": x}, start + jnp.arange(block), streamed.following(x, start, block))["x"]
        else:
            some = jax.lax.dynamic_slice_in_dim(x, start, block)
        return jax.lax.dynamic_update_slice_in_dim(reps, unit(model.apply(params, some)), start, 0)

    trips = in_step(jnp.where(wanted, blocks, 0), x)
    reps = jax.lax.fori_loop(0, trips, one, jnp.zeros((total, width)))
    return jnp.where(wanted, reps, 0) if is_split(x) else reps


def encode(model: Model, params: PyTree, x: jax.Array, at_once: int | None = None) -> jax.Array:
    """Representations [B, D] of a batch [B, ...], `at_once` examples at a time (see Training.at_once).

    >>> model = Model(lambda key, x: 3.0, lambda params, x: params * x)
    >>> jax.grad(lambda w: encode(model, w, jnp.arange(10.0).reshape(5, 2), 2).sum())(3.0).item()
    45.0
    """
    if at_once is None or at_once >= len(x):
        return model.apply(params, x)
    again = jax.checkpoint(model.apply, prevent_cse=False)  # a loop keeps the two passes apart as it is
    return in_blocks(functools.partial(again, params), at_once, x)


def represent_all(
    encoders: Encoders, block: int, params: PyTree, examples: Arrays, wanted: jax.Array | bool = True
) -> dict[str, jax.Array]:
    """{m: [P, D]}, `represent` for each encoder's modality."""
    return {m: represent(encoders[m], params[m], examples[m], block, wanted) for m in encoders}


def modalities_of(arrays: Shapes) -> tuple[str, ...]:
    """The modalities among a cohort's arrays."""
    return tuple(m for m in MODALITIES if m in arrays)


def init(key: Key, encoders: Encoders, arrays: Shapes, num_classes: int | None) -> PyTree:
    """{m: parameters}, with `head` for classes, and with `scale` and `shift` (15 both) where pairs are retrieved.

    arrays: examples [E, ...] of each modality, of which the shapes alone count.

    >>> model = Model(lambda key, x: jnp.ones((x.shape[-1], 4)), lambda params, x: x @ params)
    >>> sorted(init(jax.random.key(0), {"image": model}, {"image": jnp.ones((5, 3))}, 2))
    ['head', 'image']
    """
    params, shape, dtype = {}, (), jnp.float32
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


def classify(encoders: Encoders, params: PyTree, x: jax.Array, at_once: int | None = None) -> jax.Array:
    """Logits [B, K] of examples [B, ...], by a client with one modality."""
    (m,) = encoders
    return encode(encoders[m], params[m], x, at_once) @ params["head"]["kernel"] + params["head"]["bias"][None]


def task(training: Training, encoders: Encoders) -> Loss:
    """loss(params, batch, key) of a model's own task (section 1.4): retrieval with both modalities, else
    classification. The key draws captions and crops.

    >>> model = Model(lambda key, x: jnp.zeros((x.shape[-1], 4)), lambda params, x: x @ params)
    >>> batch = {"image": jnp.ones((5, 3)), "label": jnp.arange(5) % 2, "mask": jnp.ones(5)}
    >>> params = init(jax.random.key(0), {"image": model}, batch, 2)
    >>> loss, metrics = task(Training(), {"image": model})(params, batch, jax.random.key(0))
    >>> round(float(loss), 3), round(float(metrics["accuracy"]), 1)  # log 2: this encoder says nothing
    (0.693, 0.6)
    """

    view = functools.partial(views, training, modalities=tuple(encoders))

    def retrieve(params, batch, key):
        z = {m: unit(encode(encoders[m], params[m], x, training.at_once)) for m, x in view(batch, key=key).items()}
        loss = losses.soft_contrastive(z["image"], z["text"], params["scale"], params["shift"], mask=batch["mask"])
        return loss, {}

    def label(params, batch, key):
        ((_, x),) = view(batch, key=key).items()
        logits = classify(encoders, params, x, training.at_once)
        right = jax.nn.one_hot(batch["label"], logits.shape[-1])
        ce = optax.softmax_cross_entropy(logits - training.margin * right, right)
        loss = masked_mean(ce, batch["mask"])
        if is_used(training.orthogonality):
            kernel = params["head"]["kernel"]
            itself = optax.softmax_cross_entropy_with_integer_labels(kernel.T @ kernel, jnp.arange(kernel.shape[1]))
            loss += training.orthogonality * itself.mean()
        return loss, {"accuracy": masked_mean((logits.argmax(-1) == batch["label"]).astype(loss.dtype), batch["mask"])}

    return retrieve if len(encoders) > 1 else label


def over_public(public: Arrays, wanted: jax.Array | bool = True) -> ClientData:
    """The public examples as a client's own, with their row numbers `row` [P]; none where not `wanted` []."""
    data = whole({**public, "row": jnp.arange(len(next(iter(public.values()))), dtype=jnp.int32)})
    if wanted is True:
        return data
    return dataclasses.replace(data, count=jnp.where(wanted, data.count, 0), uniform=False)


def passes(step: Step, carry: Any, public: Arrays, key: Key, batch_size: int, epochs: int) -> tuple[Any, Metrics]:
    """(carry, metrics) after the server's passes over the public pairs."""
    size = min(batch_size, len(next(iter(public.values()))))
    return local_steps(step, carry, over_public(public), key, batch_size=size, epochs=epochs)


def init_server(training: Training, encoders: Encoders, public: Shapes, key: Key) -> dict[str, PyTree]:
    """The first state of a server of both modalities: its parameters, its optimiser, and the number of rounds."""
    params = init(key, encoders, public, None)
    opt = optimizer(training, None, jnp.int32(0)).init(params)
    return {"params": params, "opt": opt, "round": jnp.int32(0)}


def train_on_pairs(
    training: Training, encoders: Encoders, state: dict[str, PyTree], public: Arrays, key: Key
) -> tuple[dict[str, PyTree], Metrics]:
    """(the server's state, metrics) after it has learnt to retrieve public pairs, `image` [P, ...] and `text` [P, L].

    >>> model = Model(lambda key, x: jax.random.normal(key, (x.shape[-1], 4)), lambda params, x: x @ params)
    >>> encoders, public = {"image": model, "text": model}, {"image": jnp.eye(6), "text": jnp.eye(6)}
    >>> training = Training(server_lr=0.01)
    >>> state = init_server(training, encoders, public, jax.random.key(0))
    >>> state, first = train_on_pairs(training, encoders, state, public, jax.random.key(1))
    >>> state, second = train_on_pairs(training, encoders, state, public, jax.random.key(1))
    >>> bool(second["loss"] < first["loss"])
    True
    """
    step = gradient_step(task(training, encoders), optimizer(training, None, state["round"]))
    carry = (state["params"], state["opt"])
    carry, metrics = passes(step, carry, public, key, training.server_batch, training.server_epochs)
    return {**state, "params": carry[0], "opt": carry[1]}, metrics


def measure_evenness(share: jax.Array, reps: jax.Array, weight: jax.Array) -> dict[str, jax.Array]:
    """How even the clients' shares [C, P] are, and how far apart their representations [C, P, D] are.

    weight [C], above 0 for those who sent. entropy: the entropy of an item's shares over that of equal shares, the
    mean over items, so that 1 is a plain mean; drift: 1 - the length of the plain mean of unit vectors, so that 0 says
    that all clients agree.

    >>> reps = jnp.stack([jnp.eye(3), jnp.eye(3)])
    >>> evenness = measure_evenness(jnp.full((2, 3), 0.5), reps, jnp.ones(2))
    >>> {name: abs(round(float(value), 3)) for name, value in evenness.items()}
    {'entropy': 1.0, 'drift': 0.0}
    """
    present = (weight > 0).astype(jnp.float32)
    clients = present.sum()
    entropy = -jnp.where(share > 0, share * jnp.log(jnp.maximum(share, 1e-30)), 0).sum(0).mean()
    mean = aggregate.combine(present[:, None] / jnp.maximum(clients, 1) * jnp.ones(share.shape), reps)
    length = jnp.sqrt(jnp.square(mean).sum(-1) + 1e-12).mean()
    even = jnp.where(clients > 1, entropy / jnp.log(jnp.maximum(clients, 2)), 1.0)
    return {"entropy": even, "drift": jnp.where(clients > 0, 1 - length, 0.0)}
