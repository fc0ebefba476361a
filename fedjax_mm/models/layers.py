"""What the models are made of: `Model`, and a convolution, a scan and a group norm that are fast on every platform."""

import functools
from collections.abc import Callable, Sequence
from math import gcd
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from fedjax_mm.checks import check_traced
from fedjax_mm.types import Key, PyTree


class Model(NamedTuple):
    """A model as two pure functions, `init(key, batch)` -> params and `apply(params, batch)` -> float32.

    `params` is a nested dict of float32 arrays. A batch is [B, ...], and `init` reads its shape alone. `apply` returns
    embeddings [B, D] from an encoder, and logits [B, K] from a head.

    >>> mean = Model(init=lambda key, batch: {}, apply=lambda params, batch: batch.mean(1, keepdims=True))
    >>> mean.apply(mean.init(jax.random.key(0), jnp.ones((2, 3))), jnp.ones((2, 3))).shape
    (2, 1)
    """

    init: Callable[[Key, jax.Array], PyTree]
    apply: Callable[[PyTree, jax.Array], jax.Array]
    vocabulary: int | None = None
    """How many token ids a model of texts knows: 0..vocabulary-1. None: it reads no tokens, or does not say."""


def as_model(module: nn.Module, vocabulary: int | None = None) -> Model:
    """The `Model` of a linen module that has parameters only, neither batch statistics nor dropout.

    >>> model = as_model(nn.Dense(4))
    >>> params = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((2, 3)))
    >>> {name: leaf.shape for name, leaf in params.items()}
    {'bias': (4,), 'kernel': (3, 4)}
    """
    return Model(
        init=lambda key, batch: module.init(key, batch)["params"],
        apply=lambda params, batch: run_module(module, params, batch),
        vocabulary=vocabulary,
    )


def run_module(module: nn.Module, params: PyTree, *args: Any) -> Any:
    """What a linen module that has parameters only gives for `args`.

    linen declares that `apply` may also give the variables it has changed, which it does where it is asked to.
    """
    return module.apply({"params": params}, *args)


def pixels(x: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
    """`x` [B, ...] as `dtype`. uint8 images are scaled to [-1, 1]; all other arrays keep their values.

    >>> pixels(jnp.array([0, 255], jnp.uint8), jnp.float32).tolist()
    [-1.0, 1.0]
    """
    scaled = x.astype(jnp.float32) / 127.5 - 1.0 if x.dtype == jnp.uint8 else x
    return scaled.astype(dtype)


def gelu(x: jax.Array) -> jax.Array:
    """The exact GELU, x Phi(x), computed in float32 and given in `x`'s precision. (Hendrycks & Gimpel 2016)

    With erf, as PyTorch has it. `jax.nn.gelu` takes erfc, which keeps the digits of values below 1e-6 and takes a third
    longer on a CPU; on a TPU the product that it belongs to then takes twice as long.

    >>> float(gelu(jnp.array(0.0))), round(float(gelu(jnp.array(1.0))), 4)
    (0.0, 0.8413)
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (0.5 * wide * (1 + jax.lax.erf(wide * 0.5**0.5))).astype(x.dtype)


def _padding(size: int, kernel: int, stride: int, padding: int | None) -> tuple[int, tuple[int, int]]:
    """The output size and the (low, high) padding of one axis. Without `padding` they are XLA's SAME."""
    if padding is not None:
        return (size + 2 * padding - kernel) // stride + 1, (padding, padding)
    out = -(-size // stride)
    total = max((out - 1) * stride + kernel - size, 0)
    return out, (total // 2, total - total // 2)


def patches(x: jax.Array, kernel: int, stride: int, padding: int | None = None) -> jax.Array:
    """The input under each position of a SAME-padded kernel: [B, H, W, F] -> [B, H/stride, W/stride, kernel^2 F].

    `padding` puts so many zeros on every side instead, as PyTorch does; the sizes are then
    (H + 2 padding - kernel) // stride + 1. The last axis runs over (row, column, F), as a kernel
    [kernel, kernel, F, out] does when it is reshaped to a matrix.

    >>> patches(jnp.ones((1, 4, 6, 3)), kernel=2, stride=2).shape
    (1, 2, 3, 12)
    """
    (height, pad_h), (width, pad_w) = (_padding(n, kernel, stride, padding) for n in x.shape[1:3])
    x = jnp.pad(x, ((0, 0), pad_h, pad_w, (0, 0)))
    if kernel == stride and padding is None:
        x = x.reshape(x.shape[0], height, kernel, width, kernel, x.shape[-1])
        return x.swapaxes(2, 3).reshape(*x.shape[:2], width, -1)
    # Columns first, then rows: 2 kernel slices instead of kernel^2.
    x = jnp.concatenate([x[:, :, j : j + (width - 1) * stride + 1 : stride] for j in range(kernel)], axis=-1)
    return jnp.concatenate([x[:, i : i + (height - 1) * stride + 1 : stride] for i in range(kernel)], axis=-1)


def convolve(x: jax.Array, kernel: jax.Array, stride: int = 1, padding: int | None = None) -> jax.Array:
    """The convolution of [B, H, W, F] with a kernel [k, k, F, out]: [B, H/stride, W/stride, out], as `patches` pads.

    It is shifted slices and one matrix product on a CPU, where XLA's native convolution is slow inside a loop, and the
    native one on a TPU. On a GPU it is the native one, but under `vmap`, where each client may have a kernel of its
    own, slices and a product: a native convolution then becomes a grouped one, which is many times slower.

    Raises ValueError for arrays of other ranks, and where the channels F differ.

    >>> convolve(jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 1, 1)))[0, :, :, 0].tolist()[0]
    [4.0, 6.0, 6.0, 4.0]
    """
    check_traced("x", x, "[B, H, W, F]")
    check_traced("kernel", kernel, "[k, k, F, out]")
    size = kernel.shape[0]
    if kernel.shape[1:3] != (size, x.shape[-1]):
        raise ValueError(f"kernel is {kernel.shape}; it must be [k, k, F, out] with F {x.shape[-1]}, as x has it")

    def sliced(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return patches(x, size, stride, padding) @ kernel.reshape(-1, kernel.shape[-1])

    def native(x: jax.Array, kernel: jax.Array) -> jax.Array:
        sides = "SAME" if padding is None else [(padding, padding)] * 2
        return jax.lax.conv_general_dilated(x, kernel, (stride, stride), sides, dimension_numbers=_LAYOUT)

    if size == 1 or (size == stride and padding is None):  # the slices are the input itself
        return sliced(x, kernel)
    return jax.lax.platform_dependent(x, kernel, cpu=sliced, cuda=_unless_mapped(native, sliced), default=native)


def convolve_depthwise(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """Each channel of [B, H, W, F] convolved with its own of a kernel [k, k, 1, F]: [B, H/stride, W/stride, F].

    It is padded as XLA's SAME, and written by platform as `convolve` is. On a CPU it is a sum of shifted slices, each
    times its weights.

    Raises ValueError for arrays of other ranks, and where the channels F differ.

    >>> convolve_depthwise(jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 1, 2)))[0, 0, :, 1].tolist()
    [4.0, 6.0, 6.0, 4.0]
    """
    check_traced("x", x, "[B, H, W, F]")
    check_traced("kernel", kernel, "[k, k, 1, F]")
    size, features = kernel.shape[0], x.shape[-1]
    if kernel.shape[1:] != (size, 1, features):
        raise ValueError(f"kernel is {kernel.shape}; it must be [k, k, 1, F] with F {features}, as x has it")

    def sliced(x: jax.Array, kernel: jax.Array) -> jax.Array:
        (height, pad_h), (width, pad_w) = (_padding(n, size, stride, None) for n in x.shape[1:3])
        padded = jnp.pad(x, ((0, 0), pad_h, pad_w, (0, 0)))
        rows, columns = (stride * (n - 1) + 1 for n in (height, width))
        at = lambda i, j: padded[:, i : i + rows : stride, j : j + columns : stride] * kernel[i, j][None, None]
        return jnp.asarray(sum(at(i, j) for i in range(size) for j in range(size)), x.dtype)

    def native(x: jax.Array, kernel: jax.Array) -> jax.Array:
        how = {"dimension_numbers": _LAYOUT, "feature_group_count": features}
        return jax.lax.conv_general_dilated(x, kernel.astype(x.dtype), (stride, stride), "SAME", **how)

    return jax.lax.platform_dependent(x, kernel, cpu=sliced, cuda=_unless_mapped(native, sliced), default=native)


_LAYOUT = ("NHWC", "HWIO", "NHWC")


def _unless_mapped(plain: Callable, mapped: Callable) -> Callable:
    """`plain(x, kernel)` and its gradient, and under `vmap` those of `mapped`, an equal function."""
    both = _switched(plain, mapped)
    function = jax.custom_vjp(both)
    gradient = lambda function: lambda x, kernel, dy: jax.vjp(function, x, kernel)[1](dy)
    backward = _switched(gradient(plain), gradient(mapped))
    function.defvjp(lambda x, kernel: (both(x, kernel), (x, kernel)), lambda kept, dy: backward(*kept, dy))
    return function


def _switched(plain: Callable, mapped: Callable) -> Callable:
    function = jax.custom_batching.custom_vmap(plain)

    @function.def_vmap
    def under_vmap(axis_size: int, in_batched: Sequence[bool], *args: jax.Array) -> tuple[PyTree, PyTree]:
        out = jax.vmap(mapped, [0 if batched else None for batched in in_batched])(*args)
        return out, jax.tree.map(lambda _: True, out)

    return function


def scan(step: Callable, carry: PyTree, inputs: PyTree, reverse: bool = False) -> tuple[PyTree, PyTree]:
    """`jax.lax.scan` of a step that is little work: eight steps in a loop's body, but one on a CPU.

    A loop's overhead is a large share of such a step on accelerators. A CPU runs the longer body slower.

    >>> total, sums = scan(lambda total, x: (total + x, total + x), jnp.float32(0), jnp.arange(3.0))
    >>> float(total), sums.tolist()
    (3.0, [0.0, 1.0, 3.0])
    """
    run = functools.partial(jax.lax.scan, step, reverse=reverse)
    return jax.lax.platform_dependent(carry, inputs, cpu=run, default=functools.partial(run, unroll=8))


class Conv(nn.Module):
    """A SAME convolution [B, H, W, F] -> [B, H/stride, W/stride, features], sizes rounded up, equal to XLA's own.

    Parameters: kernel [kernel, kernel, F, features] and, with `use_bias`, bias [features], named and laid out as in
    `flax.linen.Conv`. With kernel = stride it is a patch embedding. `padding` means the same as for `patches`.
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
        y = convolve(x.astype(self.dtype), kernel, self.stride, self.padding)
        if self.use_bias:
            y += self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)[None, None, None]
        return y


class GroupNorm(nn.Module):
    """Group normalisation (Wu & He 2018) of [B, H, W, F] with gcd(groups, F) groups and statistics in float32.

    It costs one multiply-add per value. On a CPU a training step of a small network is ~15 times cheaper with it than
    with `flax.linen.GroupNorm`, which repeats its statistics over the channels. Parameters: scale [F], bias [F].
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
