"""A small convolutional image encoder."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from fedjax_mm.models.checks import check_dtype, check_sizes, check_widths, one_of
from fedjax_mm.models.layers import Conv, GroupNorm, Model, as_model, pixels


class Stages(nn.Module):
    """Stages, each a 3x3 convolution with stride 2, a norm and a relu."""

    channels: Sequence[int]
    norm: str | None = "group"
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        x = pixels(images, self.dtype)
        for features in self.channels:
            x = Conv(features, stride=2, use_bias=self.norm is None, dtype=self.dtype)(x)
            x = nn.relu(x if self.norm is None else GroupNorm(dtype=self.dtype)(x))
        return x


class CNN(nn.Module):
    """`Stages`, then a pool and a linear layer."""

    channels: Sequence[int]
    dim: int
    norm: str | None = "group"
    pool: str = "mean"
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        x = Stages(self.channels, self.norm, self.dtype)(images)
        x = x.mean((1, 2)) if self.pool == "mean" else x.reshape(x.shape[0], -1)
        return nn.Dense(self.dim, dtype=self.dtype)(x).astype(jnp.float32)


def encoder(
    channels: Sequence[int],
    dim: int,
    norm: str | None = "group",
    pool: str = "mean",
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> Model:
    """An encoder of images [B, H, W, channels], uint8 (scaled to [-1, 1]) or float, -> [B, dim].

    Each entry of `channels` is a stage that halves height and width. `norm` is "group" or None. `pool` "mean" averages
    over places and forgets where things are; "flatten" keeps places, and ties the parameters to the image size.

    Raises ValueError for another norm, pool or dtype, and for sizes that are no integers of at least 1.

    >>> model, batch = encoder([4, 8], 6), jnp.ones((2, 8, 8, 3))
    >>> params = jax.eval_shape(model.init, jax.random.key(0), batch)
    >>> jax.eval_shape(model.apply, params, batch).shape
    (2, 6)
    """
    one_of("norm", norm, ("group", None))
    one_of("pool", pool, ("mean", "flatten"))
    check_widths(channels=channels)
    check_sizes(dim=dim)
    check_dtype(dtype)
    return as_model(CNN(tuple(channels), dim, norm, pool, dtype))


def trunk(channels: Sequence[int], norm: str | None = "group", dtype: jax.typing.DTypeLike = jnp.float32) -> Model:
    """`encoder` without its pool and linear layer: images -> a map [B, h, w, D], for the heads of models.embedding.

    >>> model, batch = trunk([4, 8]), jnp.ones((2, 8, 8, 3))
    >>> params = jax.eval_shape(model.init, jax.random.key(0), batch)
    >>> jax.eval_shape(model.apply, params, batch).shape
    (2, 2, 2, 8)
    """
    one_of("norm", norm, ("group", None))
    check_widths(channels=channels)
    check_dtype(dtype)
    return as_model(Stages(tuple(channels), norm, dtype))
