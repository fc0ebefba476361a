"""Small networks that compile fast: an encoder in layers, an autoencoder, and a trunk that takes adapters."""

import itertools
import types
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.compare.data import Arrays, whole
from fedjax_mm.models import Transformer, adapters
from fedjax_mm.models.autoencoder import AutoEncoder
from fedjax_mm.models.pretrained import Checkpoint
from fedjax_mm.types import PyTree


def residual(example: np.ndarray, depth: int, width: int) -> Transformer:
    """An encoder [B, ...] -> [B, width] of `depth` layers h + tanh(h W), after a linear map of the whole example."""

    def init(key, batch):
        normal = lambda i, rows: jax.random.normal(jax.random.fold_in(key, i), (rows, width)) * rows**-0.5
        layers = {f"{i:02d}": normal(i, width) for i in range(depth)}
        return {"embeddings": normal(depth, example.size), "layers": layers}

    def apply(params, batch, key=None, dropout_from=0):  # nothing is dropped here
        h = batch.reshape(len(batch), example.size) @ params["embeddings"]
        for kernel in params["layers"].values():
            h = h + jnp.tanh(h @ kernel)
        return h

    shape, checkpoint = jax.ShapeDtypeStruct((1, *example.shape), example.dtype), Checkpoint({}, "", ())
    return Transformer(depth, width, init, apply, apply, shape, checkpoint)


def autoencoder(example: Mapping[str, np.ndarray], hidden: int, width: int) -> AutoEncoder:
    """A dense autoencoder of whole windows [B, T, F]: embeddings [B, 1, width], first layer [B, 1, hidden].

    example: modality -> a window of it.
    """
    sizes = {m: window.size for m, window in example.items()}

    def init(key):
        params = {}
        for i, (m, size) in enumerate(sizes.items()):
            shapes = itertools.pairwise((size, hidden, width, hidden, size))
            keys = jax.random.split(jax.random.fold_in(key, i), 4)
            first, second, third, last = (
                jax.random.normal(k, shape) * shape[0] ** -0.5 for k, shape in zip(keys, shapes, strict=True)
            )
            params |= {f"encoder_{m}": (first, second), f"decoder_{m}": (third, last)}
        return params

    def encode(params, m, x):
        first, second = params[f"encoder_{m}"]
        h = jnp.tanh(x.reshape(len(x), 1, -1) @ first)
        return h @ second, h

    def decode(params, m, code, steps):
        first, second = params[f"decoder_{m}"]
        return (jnp.tanh(code @ first) @ second).reshape(len(code), steps, -1)

    return AutoEncoder(tuple(sizes), init, encode, decode)


def trunk(width: int, depth: int) -> Any:
    """What FedDAT tunes, [B, width] of `image` [B, 8, 8]: `depth` layers h + tanh(h W) with an adapter behind each."""
    layer = lambda kernel, h: h + jnp.tanh(h @ kernel)

    def start(params, batch):  # what no adapter changes
        return layer(params["layers"][0], batch["image"].reshape(len(batch["image"]), -1) @ params["embed"])

    def finish(params, h, tuned):  # tuned: any number of adapters
        for i in range(depth):
            h = layer(params["layers"][i], h) if i else h
            h = adapters.adapted([jax.tree.map(lambda leaf, i=i: leaf[i], one) for one in tuned], h)
        return h

    def apply(params, batch, tuning):
        return finish(params, start(params, batch), [tuning["adapter"]] if "adapter" in tuning else [])

    return types.SimpleNamespace(width=width, start=start, finish=finish, apply=apply)


def pretrained(model: Any, digits: Arrays, width: int, depth: int, steps: int = 200) -> PyTree:
    """Parameters of a `trunk` that has learnt to name digits mirrored at the diagonal, which no client holds."""
    keys, adam = jax.random.split(jax.random.key(0)), optax.adam(3e-3)
    layers = jax.random.normal(keys[1], (depth, width, width)) / width**0.5
    params: dict[str, Any] = {"trunk": {"embed": jax.random.normal(keys[0], (64, width)) / 8, "layers": layers}}
    params["head"] = jnp.zeros((width, 10))
    image, label = whole(digits).transpose(0, 2, 1), digits["label"]

    def loss(params):
        logits = model.apply(params["trunk"], {"image": image}, {}) @ params["head"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()

    def step(carry, _):
        params, opt = carry
        updates, opt = adam.update(jax.grad(loss)(params), opt)
        return (optax.apply_updates(params, updates), opt), None

    learn = jax.jit(lambda carry: jax.lax.scan(step, carry, length=steps)[0])
    return learn((params, adam.init(params)))[0]["trunk"]
