"""LSTM sequences and the encoder made of them."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from fedjax_mm.models.layers import Model, as_model, one_of


def unit_forget_bias(key: jax.Array, shape: tuple[int], dtype: jax.typing.DTypeLike = jnp.float32) -> jax.Array:
    """A bias [4H] of zeros, with ones at the forget gate so that a fresh cell remembers (Jozefowicz et al. 2015)."""
    hidden = shape[0] // 4
    return jnp.zeros(shape, dtype).at[hidden : 2 * hidden].set(1.0)


class LSTM(nn.Module):
    """One LSTM layer from a zero state: [B, T, F] -> its outputs at every step [B, T, H], float32.

    i, f, g, o = split(x W + h U + b), c' = sigmoid(f) c + sigmoid(i) tanh(g), h' = sigmoid(o) tanh(c'): PyTorch's gate
    order, with one bias instead of its two. Parameters: input_kernel W [F, 4H], recurrent_kernel U [H, 4H], bias [4H].
    """

    hidden: int
    input_init: Callable = nn.initializers.glorot_uniform()
    recurrent_init: Callable = nn.initializers.orthogonal()
    bias_init: Callable = unit_forget_bias
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if x.ndim != 3:
            raise ValueError(f"sequences must be [B, T, features], got shape {x.shape}")
        gates = 4 * self.hidden
        kernel = self.param("input_kernel", self.input_init, (x.shape[-1], gates)).astype(self.dtype)
        recurrent = self.param("recurrent_kernel", self.recurrent_init, (self.hidden, gates)).astype(self.dtype)
        bias = self.param("bias", self.bias_init, (gates,))

        # The projection of all steps is one matmul outside the scan.
        steps = x.astype(self.dtype).swapaxes(0, 1)
        projected = jnp.matmul(steps, kernel, preferred_element_type=jnp.float32) + bias[None, None]
        return recurrence(projected, recurrent).swapaxes(0, 1)


@jax.custom_vjp
def recurrence(projected: jax.Array, kernel: jax.Array) -> jax.Array:
    """The outputs [T, B, H] of an LSTM whose inputs are projected already [T, B, 4H]; kernel [H, 4H].

    Its gradient by hand keeps a third of what autodiff of the scan would, and sums the kernel's over all steps in one
    matmul in place of one a step.
    """
    return _forward(projected, kernel)[0]


def _forward(projected, kernel):
    hidden = kernel.shape[0]
    # tanh(x) = 2 sigmoid(2 x) - 1 makes all four gates one operation: a small cell's time goes into dispatching them.
    is_tanh = (jnp.arange(4 * hidden) // hidden == 2)[None]
    slope, shift = jnp.where(is_tanh, 2.0, 1.0), jnp.where(is_tanh, -1.0, 0.0)

    def step(carry, projected):
        h, c = carry
        recurred = jnp.matmul(h.astype(kernel.dtype), kernel, preferred_element_type=jnp.float32)
        gates = slope * nn.sigmoid(slope * (projected + recurred)) + shift
        i, f, g, o = jnp.split(gates, 4, axis=-1)
        c = f * c + i * g
        h = o * jnp.tanh(c)
        return (h, c), (h, c, gates)

    # zeros_like, because inside shard_map a carry must vary over devices as its inputs do.
    zero = jnp.zeros_like(projected[0, :, :hidden])
    h, c, gates = jax.lax.scan(step, (zero, zero), projected)[1]
    return h, (h, c, gates, kernel)


def _backward(kept, d_outputs):
    h, c, gates, kernel = kept
    before = lambda x: jnp.concatenate([jnp.zeros_like(x[:1]), x[:-1]])

    # What does not depend on the carry is computed for all steps at once.
    i, f, g, o = jnp.split(gates, 4, axis=-1)
    t = jnp.tanh(c)
    through_tanh = o * (1 - t * t)
    slopes = [g * i * (1 - i), before(c) * f * (1 - f), i * (1 - g * g), t * o * (1 - o)]
    slopes = jnp.concatenate(slopes, axis=-1)

    def step(carry, at):
        dh, dc = carry
        d_output, f, through_tanh, slopes = at
        dh = dh + d_output
        dc = dc + dh * through_tanh
        d_gates = jnp.concatenate([dc, dc, dc, dh], axis=-1) * slopes
        dh = jnp.matmul(d_gates.astype(kernel.dtype), kernel.T, preferred_element_type=jnp.float32)
        return (dh, dc * f), d_gates

    zero = jnp.zeros_like(h[0])
    d_projected = jax.lax.scan(step, (zero, zero), (d_outputs, f, through_tanh, slopes), reverse=True)[1]
    d_kernel = jnp.einsum("tbh,tbg->hg", before(h), d_projected)
    return d_projected, d_kernel.astype(kernel.dtype)


recurrence.defvjp(_forward, _backward)


class LSTMEncoder(nn.Module):
    """Stacked LSTM layers, a pool over time and a linear layer."""

    hidden: int
    dim: int
    layers: int = 1
    pool: str = "last"
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for _ in range(self.layers):
            x = LSTM(self.hidden, dtype=self.dtype)(x)
        x = x[:, -1] if self.pool == "last" else x.mean(1)
        return nn.Dense(self.dim, dtype=self.dtype)(x).astype(jnp.float32)


def encoder(
    hidden: int, dim: int, layers: int = 1, pool: str = "last", dtype: jax.typing.DTypeLike = jnp.float32
) -> Model:
    """An encoder of sequences [B, T, F] -> [B, dim]: `layers` LSTMs, then the "last" output or the "mean" over time."""
    one_of("pool", pool, ("last", "mean"))
    if layers < 1:
        raise ValueError(f"layers must be at least 1, got {layers}")
    return as_model(LSTMEncoder(hidden, dim, layers, pool, dtype))
