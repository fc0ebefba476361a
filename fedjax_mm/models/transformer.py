"""Transformer encoders in pieces: embeddings, layers by number, and what follows them.

A shallower encoder is a smaller tree of parameters: `apply` runs the layers it is given. Families (vit, bert, ast)
bring their embeddings and the names of their tensors in checkpoints.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from fedjax_mm.models.pretrained import Checkpoint
from fedjax_mm.types import Key, PyTree


class Transformer(NamedTuple):
    """Pure functions over {"embeddings", "layers": {"00", "01", ...}} and, where the family has them, "norm", "pooler".

    `init(key, batch)` gives all layers; a batch is [B, ...]. `tokens(params, batch, key=None, dropout_from=0)` runs the
    layers that are in `params`, in order of their numbers, and the norm: float32 [B, T, D]. `apply`, with the same
    arguments, gives token 0 alone: [B, D].

    A `key` turns dropout on, in the layers numbered `dropout_from` (a static int) or more; the embeddings count with
    layer 0. What a layer draws depends on the key and its own number, not on which other layers there are.
    """

    depth: int  # number of layers that init gives
    width: int  # D
    init: Callable[[Key, jax.Array], PyTree]
    apply: Callable[..., jax.Array]
    tokens: Callable[..., jax.Array]
    example: jax.ShapeDtypeStruct  # a batch of one
    checkpoint: Checkpoint


def first(params: PyTree, layers: int) -> PyTree:
    """The parameters of the encoder with the first `layers` layers alone."""
    names = sorted(params["layers"], key=int)
    if not 0 <= layers <= len(names):
        raise ValueError(f"layers is {layers}; there are {len(names)}")
    return {**params, "layers": {name: params["layers"][name] for name in names[:layers]}}


def pooled(params: PyTree, tokens: jax.Array) -> jax.Array:
    """BERT's pooler, tanh(token 0 W + b): tokens [B, T, D] -> [B, D]."""
    pooler = params["pooler"]
    return jnp.tanh(tokens[:, 0] @ pooler["kernel"] + pooler["bias"][None])


def dropout(x: jax.Array, rate: float, key: Key | None) -> jax.Array:
    """`x` with a share `rate` of its values at 0 and the others scaled to keep the mean; `x` itself without a key."""
    if key is None or rate == 0.0:
        return x
    return jnp.where(jax.random.bernoulli(key, 1.0 - rate, x.shape), x / (1.0 - rate), 0)


def attention(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None, rate: float, dropout_key: Key | None
) -> jax.Array:
    """Softmax attention over [B, T, heads, D/heads], the same shape; softmax in float32.

    mask [B, T], True where a key takes part; a row without any attends to all alike, so that nothing becomes NaN. With
    `dropout_key`, a share `rate` of the weights is dropped.
    """
    if mask is not None:
        mask = mask[:, None, None, :]
    if dropout_key is None or rate == 0.0:
        return jax.nn.dot_product_attention(query, key, value, mask=mask)
    logits = jnp.einsum("bthd,bshd->bhts", query, key, preferred_element_type=jnp.float32) * query.shape[-1] ** -0.5
    if mask is not None:
        logits = jnp.where(mask, logits, 0.7 * jnp.finfo(logits.dtype).min)
    weights = dropout(jax.nn.softmax(logits), rate, dropout_key).astype(value.dtype)
    return jnp.einsum("bhts,bshd->bthd", weights, value)


class Layer(nn.Module):
    """One encoder layer [B, T, D] -> [B, T, D] in `dtype`; mask [B, T] is True at real tokens; `key` turns dropout on.

    Pre-norm: x + attention(norm(x)), then x + mlp(norm(x)); post-norm: norm(x + attention(x)), then norm(x + mlp(x)).
    `dropout` holds the rates on attention weights, on attention's output and on the MLP's. GELU is the exact one.
    Kernels start as N(0, std^2); BERT's and ViT's 0.02 is for a width of 768, and much narrower layers learn slowly.
    Parameters: norm_1, norm_2 (scale, bias); query, key, value, out, fc_1, fc_2 (kernel [in, out], bias).
    """

    heads: int
    mlp: int
    pre_norm: bool = True
    epsilon: float = 1e-12
    dropout: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: float = 0.02
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None = None, key: Key | None = None) -> jax.Array:
        shape, width = x.shape, x.shape[-1]
        keys = (None, None, None) if key is None else jax.random.split(key, 3)
        normal = nn.initializers.normal(self.std)
        dense = lambda name, features: nn.Dense(features, kernel_init=normal, dtype=self.dtype, name=name)
        # Two passes, as a single one loses a small variance beside a large mean.
        norm = lambda name: nn.LayerNorm(self.epsilon, use_fast_variance=False, dtype=self.dtype, name=name)

        def attend(x: jax.Array) -> jax.Array:
            split = lambda name: dense(name, width)(x).reshape(*shape[:2], self.heads, -1)
            y = attention(split("query"), split("key"), split("value"), mask, self.dropout[0], keys[0])
            return dropout(dense("out", width)(y.reshape(x.shape)), self.dropout[1], keys[1])

        def mlp(x: jax.Array) -> jax.Array:
            hidden = nn.gelu(dense("fc_1", self.mlp)(x), approximate=False)
            return dropout(dense("fc_2", width)(hidden), self.dropout[2], keys[2])

        # One row a token: contracting over two axes at once, a kernel's gradient takes twice as long on CPUs.
        x = x.astype(self.dtype).reshape(-1, width)
        if self.pre_norm:
            x = x + attend(norm("norm_1")(x))
            x = x + mlp(norm("norm_2")(x))
        else:
            x = norm("norm_1")(x + attend(x))
            x = norm("norm_2")(x + mlp(x))
        return x.reshape(shape)


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
) -> Transformer:
    """The encoder of `depth` layers like `layer` on `embeddings`, a module from a batch to [B, T, width].

    `mask` gives a batch's real tokens [B, T] as `Layer` takes them. A pre-norm encoder ends in a norm. The pooler is
    among the parameters but no part of `apply`; see `pooled`.
    """
    if depth < 0 or width % layer.heads:
        raise ValueError(f"depth {depth} must be at least 0, and heads {layer.heads} must divide the width {width}")
    norm = nn.LayerNorm(layer.epsilon, use_fast_variance=False)

    def init(key: Key, batch: jax.Array) -> PyTree:
        keys = jax.random.split(key, depth + 2)
        x = jnp.zeros((1, 1, width))
        params = {"embeddings": embeddings.init(keys[0], batch)["params"]}
        params["layers"] = {f"{i:02d}": layer.init(keys[2 + i], x)["params"] for i in range(depth)}
        if layer.pre_norm:
            params["norm"] = norm.init(keys[1], x)["params"]
        if pooler:
            params["pooler"] = nn.Dense(width, kernel_init=nn.initializers.normal(layer.std)).init(keys[1], x)["params"]
        return params

    def hidden(params: PyTree, batch: jax.Array, key: Key | None, dropout_from: int) -> jax.Array:
        def drops(number: int, place: int) -> Key | None:
            return None if key is None or number < dropout_from else jax.random.fold_in(key, place)

        x = embeddings.apply({"params": params["embeddings"]}, batch)
        x = dropout(x, embeddings_dropout, drops(0, 0))
        for name in sorted(params["layers"], key=int):
            variables = {"params": params["layers"][name]}
            x = layer.apply(variables, x, mask(batch), drops(int(name), 1 + int(name)))
        return x.astype(jnp.float32)

    def normed(params: PyTree, x: jax.Array) -> jax.Array:
        return norm.apply({"params": params["norm"]}, x) if layer.pre_norm else x

    def tokens(params: PyTree, batch: jax.Array, key: Key | None = None, dropout_from: int = 0) -> jax.Array:
        return normed(params, hidden(params, batch, key, dropout_from))

    def apply(params: PyTree, batch: jax.Array, key: Key | None = None, dropout_from: int = 0) -> jax.Array:
        return normed(params, hidden(params, batch, key, dropout_from)[:, 0])

    return Transformer(depth, width, init, apply, tokens, example, checkpoint)
