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

        def step(carry: tuple[jax.Array, jax.Array], projected: jax.Array) -> tuple:
            h, c = carry
            recurred = jnp.matmul(h.astype(self.dtype), recurrent, preferred_element_type=jnp.float32)
            i, f, g, o = jnp.split(projected + recurred, 4, axis=-1)
            c = nn.sigmoid(f) * c + nn.sigmoid(i) * jnp.tanh(g)
            h = nn.sigmoid(o) * jnp.tanh(c)
            return (h, c), h

        # The projection of all steps is one matmul outside the scan.
        steps = x.astype(self.dtype).swapaxes(0, 1)
        projected = jnp.matmul(steps, kernel, preferred_element_type=jnp.float32) + bias[None, None]
        # zeros_like, because inside shard_map a carry must vary over devices as its inputs do.
        zero = jnp.zeros_like(projected[0, :, : self.hidden])
        _, outputs = jax.lax.scan(step, (zero, zero), projected)
        return outputs.swapaxes(0, 1)


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
