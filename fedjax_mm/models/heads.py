"""Heads on embeddings [B, D]."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from fedjax_mm.models.checks import check_dtype, check_number, check_sizes, check_widths, one_of
from fedjax_mm.models.layers import Model, as_model
from fedjax_mm.models.mlp import MLP
from fedjax_mm.models.transformer import dropout
from fedjax_mm.types import Key, PyTree


def linear(num_classes: int, dtype: jax.typing.DTypeLike = jnp.float32) -> Model:
    """A linear classifier [B, D] -> [B, num_classes] logits.

    >>> head, embeddings = linear(3), jnp.ones((2, 5))
    >>> params = jax.eval_shape(head.init, jax.random.key(0), embeddings)
    >>> jax.eval_shape(head.apply, params, embeddings).shape
    (2, 3)
    """
    return mlp((), num_classes, dtype)


def mlp(widths: Sequence[int], num_classes: int, dtype: jax.typing.DTypeLike = jnp.float32) -> Model:
    """A classifier [B, D] -> [B, num_classes] logits with relu layers of `widths`, then a linear layer.

    >>> params = jax.eval_shape(mlp([7], 3).init, jax.random.key(0), jnp.ones((2, 5)))
    >>> [params[f"Dense_{i}"]["kernel"].shape for i in range(2)]
    [(5, 7), (7, 3)]
    """
    check_widths(widths=widths)
    check_sizes(num_classes=num_classes)
    check_dtype(dtype)
    return as_model(MLP(tuple(widths), num_classes, nn.relu, dtype))


class Head(NamedTuple):
    """A head that is another function while it trains: it drops units, and may normalise by its batch.

    `init(key, width)` gives the parameters for inputs [..., B, width]. The running statistics of a batch norm are
    leaves among them (see `is_statistic`). `apply(params, x)` uses these statistics. `train(params, x, key)` uses the
    batch's own; it returns the output and the parameters with new running statistics.
    """

    init: Callable[..., PyTree]  # prediction heads take the number of modalities too
    apply: Callable[[PyTree, jax.Array], jax.Array]
    train: Callable[[PyTree, jax.Array, Key], tuple[jax.Array, PyTree]]


def is_statistic(path: str) -> bool:
    """Whether the leaf of a path, as trees.path_mask writes it, is a running statistic.

    Running statistics are averaged over clients and never optimised.

    >>> is_statistic("norm_0/running_mean"), is_statistic("norm_0/scale")
    (True, False)
    """
    return path.rpartition("/")[2] in ("running_mean", "running_variance")


def projection(hidden: int = 4096, dim: int = 256, layers: int = 3, rate: float = 0.1, keep: float = 0.9) -> Head:
    """A projection head [B, D] -> [B, dim] of `layers` linear layers without bias, each followed by a batch norm.

    Between two layers stand dropout of `rate`, the norm with scale and bias, and relu. The last norm has neither scale
    nor bias. Running statistics keep a share `keep` of their old value, 0.9 unless given, and their variance is the
    unbiased one, as in PyTorch. With `keep` 0 they are the batch's own. (Tun 2025, LW-FedMML) Parameters: dense_0
    (kernel), norm_0 (scale, bias, running_mean, running_variance), dense_1, ...

    >>> head, x = projection(hidden=6, dim=4, layers=2), jnp.ones((3, 5))
    >>> params = jax.eval_shape(lambda key: head.init(key, 5), jax.random.key(0))
    >>> jax.eval_shape(head.apply, params, x).shape
    (3, 4)
    """
    check_sizes(hidden=hidden, dim=dim, layers=layers)
    check_number("rate", rate, below=1)
    check_number("keep", keep, below=1)
    widths = [hidden] * (layers - 1) + [dim]

    def init(key: Key, width: int) -> PyTree:
        params = {}
        for i, (fan_in, out) in enumerate(zip([width, *widths], widths, strict=False)):
            params[f"dense_{i}"] = {"kernel": _uniform(jax.random.fold_in(key, i), fan_in, out)}
            params[f"norm_{i}"] = {"running_mean": jnp.zeros(out), "running_variance": jnp.ones(out)}
            if i < layers - 1:
                params[f"norm_{i}"] |= {"scale": jnp.ones(out), "bias": jnp.zeros(out)}
        return params

    def run(params: PyTree, x: jax.Array, key: Key | None) -> tuple[jax.Array, PyTree]:
        new = {}
        for i in range(layers):
            norm, last = params[f"norm_{i}"], i == layers - 1
            x = x @ params[f"dense_{i}"]["kernel"]
            if key is not None and not last:
                x = dropout(x, rate, jax.random.fold_in(key, i))
            x, new[f"norm_{i}"] = _normalised(norm, x, train=key is not None, keep=keep)
            x = x if last else nn.relu(x * norm["scale"][None] + norm["bias"][None])
        return x, {**params, **new}

    return Head(init, lambda params, x: run(params, x, None)[0], run)


FUSIONS = ("concat", "add", "attention", "co-attention")


def prediction(num_classes: int, fusion: str = "concat", hidden: int = 256, rate: float = 0.1) -> Head:
    """A classifier of the modalities' embeddings [M, B, D] -> [B, num_classes] logits.

    It concatenates the embeddings. With `fusion` "add" their sum is concatenated to them. With "attention" a sum of
    linear maps of them is, weighted by a softmax over modalities. With "co-attention", which takes two modalities, each
    is, once more, weighted by a softmax over its features that a linear map of the other gives. Then come a layer of
    `hidden` units, dropout of `rate`, relu, and a linear layer. `init` takes the number of modalities last, 2 unless
    given.

    (Tun 2025, LW-FedMML. Attention and co-attention are modules of our own: the released code lets "attention" weigh
    by two columns of a wider softmax, and "co-attention" is our reading of the paper. At width 6 "attention" adds 91
    parameters where the original adds 498, and "co-attention" 84 where it adds 42.)

    Parameters: dense_0, dense_1 (kernel, bias); with attention also map_0, map_1, ... and, for "attention", score.

    Raises ValueError for another fusion, and for co-attention of other than two modalities.

    >>> head, z = prediction(3, fusion="attention", hidden=4), jnp.ones((2, 5, 6))
    >>> params = jax.eval_shape(lambda key: head.init(key, 6), jax.random.key(0))
    >>> sorted(params), jax.eval_shape(head.apply, params, z).shape
    (['dense_0', 'dense_1', 'map_0', 'map_1', 'score'], (5, 3))
    """
    one_of("fusion", fusion, FUSIONS)
    check_sizes(num_classes=num_classes, hidden=hidden)
    check_number("rate", rate, below=1)

    def init(key: Key, width: int, modalities: int = 2) -> PyTree:
        keys = jax.random.split(key, 3 + modalities)
        if fusion == "co-attention" and modalities != 2:
            raise ValueError(f"co-attention is of two modalities, not {modalities}")
        vectors = modalities + {"concat": 0, "co-attention": 2}.get(fusion, 1)
        params = {
            "dense_0": _linear(keys[0], vectors * width, hidden),
            "dense_1": _linear(keys[1], hidden, num_classes),
        }
        if fusion in ("attention", "co-attention"):
            params |= {f"map_{i}": _linear(keys[3 + i], width, width) for i in range(modalities)}
        if fusion == "attention":
            params["score"] = _linear(keys[2], width, 1)
        return params

    def run(params: PyTree, z: jax.Array, key: Key | None) -> tuple[jax.Array, PyTree]:
        x = dropout(_dense(params["dense_0"], jnp.concatenate(_fused(params, z, fusion), axis=-1)), rate, key)
        return _dense(params["dense_1"], nn.relu(x)), params

    return Head(init, lambda params, z: run(params, z, None)[0], run)


def _fused(params: PyTree, z: jax.Array, fusion: str) -> list[jax.Array]:
    """The vectors [B, D] that `prediction` concatenates: the embeddings z [M, B, D], and what the fusion adds."""
    vectors = [*z]
    if fusion == "add":
        vectors.append(z.sum(0))
    elif fusion == "attention":
        mapped = jnp.stack([_dense(params[f"map_{i}"], x) for i, x in enumerate(z)])
        share = jax.nn.softmax(jnp.stack([_dense(params["score"], x) for x in mapped]), axis=0)  # [M, B, 1]
        vectors.append((share * mapped).sum(0))
    elif fusion == "co-attention":
        share = [jax.nn.softmax(_dense(params[f"map_{i}"], x)) for i, x in enumerate(z)]
        vectors += [share[1] * z[0], share[0] * z[1]]
    return vectors


def _linear(key: Key, fan_in: int, out: int) -> PyTree:
    return {"kernel": _uniform(key, fan_in, out), "bias": jnp.zeros(out)}


def _dense(layer: PyTree, x: jax.Array) -> jax.Array:
    return x @ layer["kernel"] + layer["bias"][None]


def _uniform(key: Key, fan_in: int, out: int) -> jax.Array:
    """PyTorch's initial weights of a linear layer."""
    return jax.random.uniform(key, (fan_in, out), minval=-1, maxval=1) * fan_in**-0.5


def _normalised(
    norm: PyTree, x: jax.Array, train: bool, keep: float, epsilon: float = 1e-5
) -> tuple[jax.Array, PyTree]:
    """x [B, D] normalised by its own statistics (train) or the running ones, and `norm` with new running ones."""
    mean, variance = norm["running_mean"], norm["running_variance"]
    if train:
        batch_mean, batch_variance = x.mean(0), x.var(0)
        unbiased = batch_variance * len(x) / max(len(x) - 1, 1)
        moved = lambda old, new: keep * old + (1 - keep) * jax.lax.stop_gradient(new)
        norm = {**norm, "running_mean": moved(mean, batch_mean), "running_variance": moved(variance, unbiased)}
        mean, variance = batch_mean, batch_variance
    return (x - mean[None]) * jax.lax.rsqrt(variance + epsilon)[None], norm
