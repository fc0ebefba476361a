"""What the models are made of: `Model`, and a convolution and a group norm that map over clients like dense layers.

Under per-client weights a native convolution becomes a grouped one, slow everywhere and slowest inside a loop body on
CPU; here it is shifted slices and one matmul.
"""

from collections.abc import Callable
from math import gcd
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from fedjax_mm.types import Key, PyTree


class Model(NamedTuple):
    """Two pure functions. `params` is a nested dict of float32 arrays; a batch is [B, ...], and `init` reads its shape.

    `apply` returns float32: [B, D] from an encoder, [B, K] logits from a head.
    """

    init: Callable[[Key, jax.Array], PyTree]
    apply: Callable[[PyTree, jax.Array], jax.Array]


def as_model(module: nn.Module) -> Model:
    """The `Model` of a linen module that has parameters only: no batch statistics, no dropout."""
    return Model(
        init=lambda key, batch: module.init(key, batch)["params"],
        apply=lambda params, batch: module.apply({"params": params}, batch),
    )


def one_of(name: str, value: object, allowed: tuple) -> None:
    """Raises a ValueError that names the argument unless its value is allowed."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {allowed}, got {value!r}")


def pixels(x: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
    """`x` as `dtype`; uint8 images are scaled to [-1, 1], everything else keeps its values."""
    scaled = x.astype(jnp.float32) / 127.5 - 1.0 if x.dtype == jnp.uint8 else x
    return scaled.astype(dtype)


def _padding(size: int, kernel: int, stride: int, padding: int | None) -> tuple[int, tuple[int, int]]:
    """The output size and the (low, high) padding, XLA's SAME where none is given."""
    if padding is not None:
        return (size + 2 * padding - kernel) // stride + 1, (padding, padding)
    out = -(-size // stride)
    total = max((out - 1) * stride + kernel - size, 0)
    return out, (total // 2, total - total // 2)


def patches(x: jax.Array, kernel: int, stride: int, padding: int | None = None) -> jax.Array:
    """The input under each position of a SAME-padded kernel: [B, H, W, F] -> [B, H/stride, W/stride, kernel^2 F].

    With `padding` zeros on every side instead, as PyTorch pads, sizes are (H + 2 padding - kernel) // stride + 1. The
    last axis runs over (row, column, F), as a kernel [kernel, kernel, F, out] does when reshaped to a matrix.
    """
    (height, pad_h), (width, pad_w) = (_padding(n, kernel, stride, padding) for n in x.shape[1:3])
    x = jnp.pad(x, ((0, 0), pad_h, pad_w, (0, 0)))
    if kernel == stride and padding is None:
        x = x.reshape(x.shape[0], height, kernel, width, kernel, x.shape[-1])
        return x.swapaxes(2, 3).reshape(*x.shape[:2], width, -1)
    # Columns first, then rows: 2 kernel slices instead of kernel^2.
    x = jnp.concatenate([x[:, :, j : j + (width - 1) * stride + 1 : stride] for j in range(kernel)], axis=-1)
    return jnp.concatenate([x[:, i : i + (height - 1) * stride + 1 : stride] for i in range(kernel)], axis=-1)


class Conv(nn.Module):
    """SAME convolution [B, H, W, F] -> [B, H/stride, W/stride, features], sizes rounded up; equal to XLA's own.

    Parameters: kernel [kernel, kernel, F, features] and, with `use_bias`, bias [features], named and laid out as in
    `flax.linen.Conv`. With kernel = stride it is a patch embedding. `padding` is that of `patches`.
    """

    features: int
    kernel: int = 3
    stride: int = 1
    use_bias: bool = True
    dtype: jax.typing.DTypeLike = jnp.float32
    padding: int | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if x.ndim != 4:
            raise ValueError(f"images must be [B, H, W, channels], got shape {x.shape}; grey images need x[..., None]")
        shape = (self.kernel, self.kernel, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape).astype(self.dtype)
        y = patches(x.astype(self.dtype), self.kernel, self.stride, self.padding) @ kernel.reshape(-1, self.features)
        if self.use_bias:
            y += self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)[None, None, None]
        return y


class GroupNorm(nn.Module):
    """Group normalisation (Wu & He 2018) of [B, H, W, F], with gcd(groups, F) groups; statistics in float32.

    One multiply-add per value. On CPU a training step of a small network with it is ~15 times cheaper than with
    `flax.linen.GroupNorm`, which repeats its statistics over the channels. Parameters: scale [F], bias [F].
    """

    groups: int = 8
    epsilon: float = 1e-6
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, height, width, features = x.shape
        groups = gcd(self.groups, features)
        grouped = (1, groups, features // groups)
        scale = self.param("scale", nn.initializers.ones, (features,)).reshape(grouped)
        bias = self.param("bias", nn.initializers.zeros, (features,)).reshape(grouped)

        def group_mean(values: jax.Array) -> jax.Array:  # -> [B, groups, 1]
            return values.mean((1, 2), dtype=jnp.float32).reshape(batch, *grouped[1:]).mean(-1, keepdims=True)

        mean = group_mean(x)
        variance = jnp.maximum(group_mean(jnp.square(x.astype(jnp.float32))) - jnp.square(mean), 0.0)
        slope = scale * jax.lax.rsqrt(variance + self.epsilon)
        offset = bias - mean * slope
        slope, offset = (a.reshape(batch, 1, 1, features).astype(self.dtype) for a in (slope, offset))
        return x.astype(self.dtype) * slope + offset
