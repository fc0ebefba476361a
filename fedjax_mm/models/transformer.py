"""Transformer encoders in pieces: embeddings, layers by number, and what follows them.

A shallower encoder is a smaller tree of parameters, because `apply` runs the layers that it is given. Each family (vit,
bert, ast) adds its embeddings and the names of its tensors in checkpoints.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from flax import linen as nn

from fedjax_mm.checks import say
from fedjax_mm.models.attention import dropout
from fedjax_mm.models.checks import check_dtype, check_number, check_sizes
from fedjax_mm.models.layers import run_module
from fedjax_mm.models.pretrained import Checkpoint
from fedjax_mm.models.transformer_layer import Layer
from fedjax_mm.types import Key, PyTree

Pool = Literal["first", "mean"]
"""What stands for all tokens: token 0, or the mean of the real ones."""


class Transformer(NamedTuple):
    """An encoder as pure functions over {"embeddings", "layers": {"00", "01", ...}, "norm", "pooler"}.

    Not every family has a norm and a pooler. `init(key, batch)` gives the parameters of all layers; a batch is
    [B, ...]. `tokens(params, batch, key=None, dropout_from=0)` runs the layers that are in `params`, in order of their
    numbers, and then the norm: float32 [B, T, D]. `apply` takes the same arguments and gives [B, D]: token 0 alone, or
    the mean of the real tokens in families without a class token.

    `hidden(params, batch, key=None, dropout_from=0)` is all tokens [B, T, D] before the norm. `apply` and `tokens` take
    such an array as `below`, what the layers below those in `params` gave of the same batch: they run the layers in
    `params` on it, and no embeddings. So an encoder is cut in two: `hidden` of `first(params, n)`, then `apply` of
    `above(params, n)`.

    A `key` turns dropout on in the layers numbered `dropout_from` (a static int) or more; the embeddings count with
    layer 0. What a layer draws depends on the key and on its own number, not on which other layers there are.

    >>> from fedjax_mm.models import vit
    >>> model = vit.encoder(image=8, patch=4, dim=6, depth=2, heads=2, mlp=12)
    >>> params = jax.eval_shape(model.init, jax.random.key(0), model.example)
    >>> sorted(params["layers"]), jax.eval_shape(model.apply, first(params, 1), model.example).shape
    (['00', '01'], (1, 6))
    """

    depth: int  # number of layers that init gives
    width: int  # D
    init: Callable[[Key, jax.Array], PyTree]
    apply: Callable[..., jax.Array]
    tokens: Callable[..., jax.Array]
    example: jax.ShapeDtypeStruct  # a batch of one
    checkpoint: Checkpoint
    vocabulary: int | None = None  # token ids are 0..vocabulary-1; None where no tokens are read
    hidden: Callable[..., jax.Array] | None = None  # None where the encoder cannot be cut


def first(params: PyTree, layers: int) -> PyTree:
    """The parameters of the encoder that has the first `layers` layers alone. Raises ValueError where there are fewer.

    >>> first({"norm": 1, "layers": {"00": 2, "01": 3}}, 1)
    {'norm': 1, 'layers': {'00': 2}}
    """
    names = sorted(params["layers"], key=int)
    if not 0 <= layers <= len(names):
        raise ValueError(f"layers is {layers}; there are {len(names)}")
    return {**params, "layers": {name: params["layers"][name] for name in names[:layers]}}


def above(params: PyTree, layers: int) -> PyTree:
    """The parameters without the first `layers` layers, whose outputs `apply` then takes as `below`.

    >>> above({"norm": 1, "layers": {"00": 2, "01": 3}}, 1)
    {'norm': 1, 'layers': {'01': 3}}
    """
    return {**params, "layers": {name: layer for name, layer in params["layers"].items() if int(name) >= layers}}


def pooled(params: PyTree, tokens: jax.Array) -> jax.Array:
    """BERT's pooler, tanh(token 0 W + b): tokens [B, T, D] -> [B, D].

    >>> params = {"pooler": {"kernel": jnp.eye(2), "bias": jnp.zeros(2)}}
    >>> pooled(params, jnp.zeros((1, 3, 2))).tolist()
    [[0.0, 0.0]]
    """
    pooler = params["pooler"]
    return jnp.tanh(tokens[:, 0] @ pooler["kernel"] + pooler["bias"][None])


class _Pieces(NamedTuple):
    """What `stack` makes an encoder of."""

    embeddings: nn.Module
    layer: Layer
    norm: nn.LayerNorm
    depth: int
    width: int
    pooler: bool
    embeddings_dropout: float
    mask: Callable[[jax.Array], jax.Array | None]
    pool: Pool
    remat: bool = False


def remat(model: Transformer) -> Transformer:
    """The same encoder, which keeps what enters each layer alone, and computes what is inside again for the gradient.

    A third more time buys the activations of all layers but one (Chen et al. 2016, arXiv 1604.06174). Results differ by
    rounding. Raises ValueError for an encoder that `stack` has not made.

    >>> example = jax.ShapeDtypeStruct((1, 3, 2), jnp.float32)
    >>> model = remat(stack(nn.Dense(4), Layer(heads=2, mlp=8), 1, 4, example, Checkpoint({}, "", ())))
    >>> jax.eval_shape(model.apply, jax.eval_shape(model.init, jax.random.key(0), example), example).shape
    (1, 4)
    """
    pieces = model.apply.args[0] if isinstance(model, Transformer) and isinstance(model.apply, functools.partial) else 0
    if not isinstance(pieces, _Pieces):
        raise ValueError(f"model is {say(model)}; give an encoder as vit.encoder and its siblings make it")
    return model._replace(**_functions(pieces._replace(remat=True)))


def stack(
    embeddings: nn.Module,
    layer: Layer,
    depth: int,
    width: int,
    example: jax.ShapeDtypeStruct,
    checkpoint: Checkpoint,
    pooler: bool = False,
    embeddings_dropout: float = 0.0,
    mask: Callable[[jax.Array], jax.Array | None] = lambda batch: None,
    vocabulary: int | None = None,
    pool: Pool = "first",
) -> Transformer:
    """The encoder of `depth` layers like `layer` on `embeddings`, a module from a batch to [B, T, width].

    `mask` gives a batch's real tokens [B, T] as `Layer` takes them. A pre-norm encoder ends in a norm. With `pooler`
    the parameters hold a pooler, which `apply` does not use; see `pooled`. pool: "first" lets `apply` give token 0,
    "mean" the mean of the real tokens.

    Raises ValueError for sizes, rates and types that are none, and where the heads do not divide the width.

    >>> embed = nn.Dense(4)
    >>> example = jax.ShapeDtypeStruct((1, 3, 2), jnp.float32)
    >>> model = stack(embed, Layer(heads=2, mlp=8), 1, 4, example, Checkpoint({}, "", ()))
    >>> params = jax.eval_shape(model.init, jax.random.key(0), example)
    >>> jax.eval_shape(model.tokens, params, example).shape
    (1, 3, 4)
    """
    check_sizes(dim=width, heads=layer.heads, mlp=layer.mlp)
    check_sizes(0, depth=depth)
    check_number("epsilon", layer.epsilon)
    check_dtype(layer.dtype)
    for rate in (*layer.dropout, embeddings_dropout):
        check_number("dropout", rate, below=1)
    if width % layer.heads:
        raise ValueError(f"heads {layer.heads} must divide the width {width}")
    norm = nn.LayerNorm(layer.epsilon, use_fast_variance=False)
    if pool not in get_args(Pool):
        raise ValueError(f"pool is {pool!r}; it must be one of {', '.join(get_args(Pool))}")
    pieces = _Pieces(embeddings, layer, norm, depth, width, pooler, embeddings_dropout, mask, pool)
    return Transformer(
        depth=depth, width=width, example=example, checkpoint=checkpoint, vocabulary=vocabulary, **_functions(pieces)
    )


def _functions(pieces: _Pieces) -> dict[str, Callable]:
    all_of_them = {"init": _init, "apply": _apply, "tokens": _tokens, "hidden": _hidden}
    return {name: functools.partial(f, pieces) for name, f in all_of_them.items()}


def _init(pieces: _Pieces, key: Key, batch: jax.Array) -> PyTree:
    layer = pieces.layer
    keys = jax.random.split(key, pieces.depth + 2)
    x = jnp.zeros((1, 1, pieces.width))
    params = {"embeddings": pieces.embeddings.init(keys[0], batch).get("params", {})}
    params["layers"] = {f"{i:02d}": layer.init(keys[2 + i], x)["params"] for i in range(pieces.depth)}
    if layer.pre_norm:
        params["norm"] = pieces.norm.init(keys[1], x)["params"]
    if pieces.pooler:
        pooler = nn.Dense(pieces.width, kernel_init=nn.initializers.normal(layer.std))
        params["pooler"] = pooler.init(keys[1], x)["params"]
    return params


def _hidden(
    pieces: _Pieces,
    params: PyTree,
    batch: jax.Array,
    key: Key | None = None,
    dropout_from: int = 0,
    below: jax.Array | None = None,
) -> jax.Array:
    """All tokens [B, T, D] after the last layer there is, before the norm."""

    def drops(number: int, place: int) -> Key | None:
        return None if key is None or number < dropout_from else jax.random.fold_in(key, place)

    run = functools.partial(run_module, pieces.layer)
    run = jax.checkpoint(run) if pieces.remat else run
    x = below
    if x is None:
        x = run_module(pieces.embeddings, params["embeddings"], batch)
        x = dropout(x, pieces.embeddings_dropout, drops(0, 0))
    for name in sorted(params["layers"], key=int):
        number = int(name)
        x = run(params["layers"][name], x, pieces.mask(batch), drops(number, 1 + number))
    return x.astype(jnp.float32)


def _normed(pieces: _Pieces, params: PyTree, x: jax.Array) -> jax.Array:
    return run_module(pieces.norm, params["norm"], x) if pieces.layer.pre_norm else x


def _tokens(pieces: _Pieces, params: PyTree, batch: jax.Array, *more: Any, **named: Any) -> jax.Array:
    return _normed(pieces, params, _hidden(pieces, params, batch, *more, **named))


def _apply(pieces: _Pieces, params: PyTree, batch: jax.Array, *more: Any, **named: Any) -> jax.Array:
    x = _hidden(pieces, params, batch, *more, **named)
    if pieces.pool == "first":
        return _normed(pieces, params, x[:, 0])
    x, mask = _normed(pieces, params, x), pieces.mask(batch)
    if mask is None:
        return x.mean(1)
    real = mask[..., None].astype(x.dtype)
    return (x * real).sum(1) / jnp.maximum(real.sum(1), 1)
