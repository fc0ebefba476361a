"""Encoders into a joint space of images and texts: heads on trunks, and a text encoder from word vectors.

Embeddings are not of unit length, because the methods normalise them.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from fedjax_mm.checks import check_flag
from fedjax_mm.models.checks import check_dtype, check_model, check_number, check_sizes, one_of
from fedjax_mm.models.layers import Model, as_model, run_module
from fedjax_mm.models.text import GRU
from fedjax_mm.types import Key, PyTree


class Pie(nn.Module):
    """LayerNorm(out + sigmoid(FC(x pooled by attention))): out [B, D], x [B, T, C], valid [B, T] bool -> [B, D].

    The attention weights are softmax(w2 tanh(W1 x)) over the valid places T, and over all places where none is valid.
    (PIE-Net of Song & Soleymani 2019, with one embedding and without dropout) Parameters: w1 [C, C/2] and w2 [C/2, 1]
    (kernel), fc (kernel, bias), norm (scale, bias).
    """

    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, out: jax.Array, x: jax.Array, valid: jax.Array) -> jax.Array:
        hidden = nn.tanh(nn.Dense(x.shape[-1] // 2, use_bias=False, dtype=self.dtype, name="w1")(x))
        logits = nn.Dense(1, use_bias=False, dtype=self.dtype, name="w2")(hidden)[..., 0].astype(jnp.float32)
        # Not -inf, with which a row without any valid T would be NaN.
        weights = jax.nn.softmax(jnp.where(valid, logits, 0.7 * jnp.finfo(logits.dtype).min))
        pooled = jnp.einsum("bt,btc->bc", weights, x)
        residual = nn.sigmoid(nn.Dense(out.shape[-1], dtype=self.dtype, name="fc")(pooled).astype(jnp.float32))
        # Two passes: a single one loses a variance that is small compared with the mean.
        return nn.LayerNorm(1e-5, use_fast_variance=False, name="norm")(out + residual)


class PieImage(nn.Module):
    """A linear layer on the mean over a feature map's cells, and `Pie` over these cells."""

    dim: int
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        x = _cells(features)
        out = nn.Dense(self.dim, dtype=self.dtype, name="fc")(x.mean(1)).astype(jnp.float32)
        return Pie(self.dtype, name="pie")(out, x, jnp.ones(x.shape[:2], bool))


class PieText(nn.Module):
    """A bidirectional GRU on word vectors, and `Pie` over these vectors."""

    vocabulary: int
    dim: int
    width: int
    backward: str
    table: nn.initializers.Initializer
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise ValueError(f"tokens must be integers [B, L], got {tokens.dtype} {tokens.shape}")
        valid = tokens != 0
        embedded = nn.Embed(self.vocabulary, self.width, embedding_init=self.table, name="words")(tokens)
        x = jnp.where(valid[..., None], embedded, 0.0)
        backwards, there = x[:, ::-1], valid[:, ::-1]  # padding comes first and leaves the state at zero
        if self.backward == "last":
            last = there.argmax(1)[:, None]
            backwards = jnp.take_along_axis(backwards, last[..., None], axis=1)
            there = jnp.take_along_axis(there, last, axis=1)
        read = lambda name, x, valid: GRU(self.dim // 2, dtype=self.dtype, name=name)(x, valid)[:, -1]
        out = jnp.concatenate([read("forward", x, valid), read("backward", backwards, there)], axis=-1)
        return Pie(self.dtype, name="pie")(out, x, valid)


def pie_image(trunk: Model, dim: int, dtype: jax.typing.DTypeLike = jnp.float32) -> Model:
    """An encoder of images [B, H, W, channels] -> [B, dim]: LayerNorm(FC(mean) + sigmoid(FC'(attention))) over cells.

    trunk: a resnet.ResNet, or whatever has its `init` and an `apply` that gives feature maps [B, h, w, C]. (CreamFL's
    server and multimodal clients) dtype: precision of the inputs of the head's matrix products; the trunk has its own.
    Parameters: trunk; head (fc, and those of `Pie` as pie).

    >>> from fedjax_mm.models import cnn
    >>> model, images = pie_image(cnn.trunk([4]), 6), jnp.ones((2, 8, 8, 3))
    >>> params = jax.eval_shape(model.init, jax.random.key(0), images)
    >>> jax.eval_shape(model.apply, params, images).shape
    (2, 6)
    """
    check_sizes(dim=dim)
    check_dtype(dtype)
    return _headed(trunk, PieImage(dim, dtype))


def mean_image(trunk: Model, dim: int, scale: float = 1.0) -> Model:
    """An encoder of images [B, H, W, channels] -> [B, dim]: a linear layer on `scale` times the mean over cells.

    trunk: as for `pie_image`. (CreamFL's image-only clients. The released code has a scale of 128, and no linear layer
    where dim is the trunk's width.) Parameters: trunk; head (kernel, bias).

    >>> from fedjax_mm.models import cnn
    >>> params = jax.eval_shape(mean_image(cnn.trunk([4]), 6).init, jax.random.key(0), jnp.ones((2, 8, 8, 3)))
    >>> params["head"]["kernel"].shape
    (4, 6)
    """
    check_model("trunk", trunk)
    check_number("scale", scale)
    mean = lambda params, images: scale * _cells(trunk.apply(params, images)).mean(1)
    return linear(Model(trunk.init, mean), dim)


def linear(trunk: Model, dim: int) -> Model:
    """A linear layer on what a trunk gives, [B, D], such as token 0 of a Transformer (vit, bert): -> [B, dim].

    (CreamFL's server reads texts with BERT.) Parameters: trunk; head (kernel, bias).

    >>> trunk = Model(init=lambda key, batch: {}, apply=lambda params, batch: batch)
    >>> params = jax.eval_shape(linear(trunk, 6).init, jax.random.key(0), jnp.ones((2, 5)))
    >>> params["head"]["kernel"].shape
    (5, 6)
    """
    check_sizes(dim=dim)
    return _headed(trunk, nn.Dense(dim))


def pie_text(
    vocabulary: int,
    dim: int,
    width: int = 300,
    relu: bool = False,
    scale: float = 1.0,
    backward: str = "full",
    table: np.ndarray | None = None,
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> Model:
    """An encoder of token ids [B, L] in 0..vocabulary-1 -> [B, dim]: LayerNorm(GRU + sigmoid(FC(attention))).

    It has word vectors [vocabulary, width], which start from `table` (see `glove`) where one is given, attention over
    them, and a GRU of dim/2 units in each direction. 0 is padding and changes nothing. A text of padding alone gives a
    constant.

    The forward half is the state after the last word. The backward half with `backward` "full" is the state after the
    first word, when all words have been read; with "last" it is the output at the last word, which has read that word
    alone, as in CreamFL's released code. `scale` and then `relu` follow the norm. (CreamFL's multimodal clients, and
    with 128 and relu the text-only clients of the released code) `dtype` is the precision of the inputs of matrix
    products. Parameters: words (embedding), forward and backward (`GRU`), pie (`Pie`).

    Raises ValueError for another `backward` or dtype, an odd dim, and a table of another shape.

    >>> model, tokens = pie_text(10, dim=4, width=6), jnp.array([[3, 5, 0], [2, 0, 0]])
    >>> params = jax.eval_shape(model.init, jax.random.key(0), tokens)
    >>> jax.eval_shape(model.apply, params, tokens).shape
    (2, 4)
    """
    one_of("backward", backward, ("full", "last"))
    check_flag("relu", relu)
    check_sizes(vocabulary=vocabulary, dim=dim, width=width)
    check_number("scale", scale)
    check_dtype(dtype)
    if dim % 2:
        raise ValueError(f"dim must be even, half for each direction of the GRU; got {dim}")
    if table is not None and np.shape(table) != (vocabulary, width):
        raise ValueError(f"table must be [vocabulary, width], {(vocabulary, width)}, got {np.shape(table)}")
    given = lambda key, shape, dtype: jnp.asarray(table, dtype)
    random = nn.initializers.variance_scaling(1.0, "fan_in", "normal", out_axis=0)
    model = as_model(PieText(vocabulary, dim, width, backward, random if table is None else given, dtype))

    def apply(params: PyTree, tokens: jax.Array) -> jax.Array:
        z = scale * model.apply(params, tokens)
        return nn.relu(z) if relu else z

    return Model(model.init, apply, vocabulary)


def glove(path: str | os.PathLike, words: Sequence[str]) -> np.ndarray:
    """The vectors of `words` in a GloVe text file, whose lines are "word v1 v2 ...": float32 [len(words), F].

    A word that is not in the file gets values from N(0, 0.1^2), the same in every call. GloVe's own words are in lower
    case. Raises FileNotFoundError where there is no file, and ValueError for a damaged line or where no word is found.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no GloVe vectors at {path}; get them from https://nlp.stanford.edu/projects/glove/")
    # Bytes, as some published files hold characters that are line ends, or no characters at all, to Unicode.
    wanted, found, width = {word.encode() for word in words}, {}, 0
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            line = line.rstrip()
            width = width or line.count(b" ")
            word, *values = line.rsplit(b" ", width)
            # Words may hold spaces, but one that ends in a number is a line with too many.
            _, space, last = word.rpartition(b" ")
            wrong = not values or len(values) < width or (space and _vector([last]) is not None)
            if not wrong and word in wanted:
                found[word] = _vector(values)
                wrong = found[word] is None
            if wrong:
                expected = f"expected a word and {width or 'its'} numbers"
                raise ValueError(f"{path}, line {number}: {expected}, got {line[:60]!r}")
    if not found:
        raise ValueError(f"{path} has none of the {len(words)} words; are they in lower case, as GloVe's are?")
    table = np.random.default_rng(0).normal(0.0, 0.1, (len(words), width)).astype(np.float32)
    for row, word in enumerate(words):
        table[row] = found.get(word.encode(), table[row])
    return table


def _vector(values: Sequence[bytes]) -> np.ndarray | None:
    """The numbers that `values` spell, or None where one of them is not finite or is no number."""
    try:
        vector = np.array([float(value) for value in values], np.float32)
    except ValueError:
        return None
    return vector if np.isfinite(vector).all() else None


def _cells(features: jax.Array) -> jax.Array:
    """A feature map [B, h, w, C] -> [B, h w, C]."""
    if features.ndim != 4:
        raise ValueError(f"the trunk must give feature maps [B, h, w, C], got shape {features.shape}")
    return features.reshape(features.shape[0], -1, features.shape[-1])


def _headed(trunk: Model, head: nn.Module) -> Model:
    """The trunk with `head` on what it gives."""
    check_model("trunk", trunk)

    def init(key: Key, batch: jax.Array) -> PyTree:
        keys = jax.random.split(key)
        params = trunk.init(keys[0], batch)
        features = jax.eval_shape(trunk.apply, params, batch)
        return {"trunk": params, "head": head.init(keys[1], jnp.zeros(features.shape))["params"]}

    def apply(params: PyTree, batch: jax.Array) -> jax.Array:
        return run_module(head, params["head"], trunk.apply(params["trunk"], batch))

    return Model(init, apply, getattr(trunk, "vocabulary", None))
