"""An LSTM layer, and the encoder of sequences that is made of it."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from fedjax_mm.models.checks import check_dtype, check_sizes, one_of
from fedjax_mm.models.layers import Model, as_model, scan


def unit_forget_bias(key: jax.Array, shape: tuple[int], dtype: jax.typing.DTypeLike = jnp.float32) -> jax.Array:
    """A bias [4H] of zeros, with ones at the forget gate: a fresh cell then remembers (Jozefowicz et al. 2015).

    >>> unit_forget_bias(jax.random.key(0), (8,)).tolist()
    [0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    """
    hidden = shape[0] // 4
    return jnp.zeros(shape, dtype).at[hidden : 2 * hidden].set(1.0)


class LSTM(nn.Module):
    """One LSTM layer that starts from a zero state: [B, T, F] -> its outputs at every step [B, T, H], float32.

    i, f, g, o = split(x W + h U + b), c' = sigmoid(f) c + sigmoid(i) tanh(g), h' = sigmoid(o) tanh(c'). This is the
    order of the gates in PyTorch, with one bias where PyTorch has two. The parameters are input_kernel W [F, 4H],
    recurrent_kernel U [H, 4H] and bias b [4H].
    """

    hidden: int
    """H, the width of the state and of an output."""
    input_init: Callable = nn.initializers.glorot_uniform()
    """Draws input_kernel at the start."""
    recurrent_init: Callable = nn.initializers.orthogonal()
    """Draws recurrent_kernel at the start."""
    bias_init: Callable = unit_forget_bias
    """Gives the bias at the start."""
    dtype: jax.typing.DTypeLike = jnp.float32
    """Precision of the inputs of the matrix products; sums and states are float32."""

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
    """The outputs [T, B, H] of an LSTM; `projected` [T, B, 4H] are its inputs times W, plus b; kernel U [H, 4H].

    The gradient is written by hand. It keeps a third of what automatic differentiation of the scan keeps, and it sums
    the gradient of the kernel over all steps in one matmul, where automatic differentiation takes one for each step.

    >>> outputs = recurrence(jnp.zeros((5, 3, 8)), jnp.ones((2, 8)))
    >>> outputs.shape, bool((outputs == 0).all())
    ((5, 3, 2), True)
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
    h, c, gates = scan(step, (zero, zero), projected)[1]
    return h, (h, c, gates, kernel)


def _backward(residuals, d_outputs):
    h, c, gates, kernel = residuals
    previous = lambda x: jnp.concatenate([jnp.zeros_like(x[:1]), x[:-1]])

    # What does not depend on the carry is computed for all steps at once.
    i, f, g, o = jnp.split(gates, 4, axis=-1)
    t = jnp.tanh(c)
    through_tanh = o * (1 - t * t)
    slopes = [g * i * (1 - i), previous(c) * f * (1 - f), i * (1 - g * g), t * o * (1 - o)]
    slopes = jnp.concatenate(slopes, axis=-1)

    def step(carry, inputs):
        dh, dc = carry
        d_output, f, through_tanh, slopes = inputs
        dh = dh + d_output
        dc = dc + dh * through_tanh
        d_gates = jnp.concatenate([dc, dc, dc, dh], axis=-1) * slopes
        dh = jnp.matmul(d_gates.astype(kernel.dtype), kernel.T, preferred_element_type=jnp.float32)
        return (dh, dc * f), d_gates

    zero = jnp.zeros_like(h[0])
    d_projected = scan(step, (zero, zero), (d_outputs, f, through_tanh, slopes), reverse=True)[1]
    d_kernel = jnp.einsum("tbh,tbg->hg", previous(h), d_projected)
    return d_projected, d_kernel.astype(kernel.dtype)


recurrence.defvjp(_forward, _backward)


class LSTMEncoder(nn.Module):
    """Stacked LSTM layers, then a pool over time, then a linear layer: [B, T, F] -> [B, dim], float32."""

    hidden: int
    """Width of every LSTM layer."""
    dim: int
    """Width of the result."""
    layers: int = 1
    """Number of LSTM layers."""
    pool: str = "last"
    """What is read of the outputs: that of the last step ("last"), or their mean over time ("mean")."""
    dtype: jax.typing.DTypeLike = jnp.float32
    """Precision of the inputs of the matrix products."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for _ in range(self.layers):
            x = LSTM(self.hidden, dtype=self.dtype)(x)
        x = x[:, -1] if self.pool == "last" else x.mean(1)
        return nn.Dense(self.dim, dtype=self.dtype)(x).astype(jnp.float32)


def encoder(
    hidden: int, dim: int, layers: int = 1, pool: str = "last", dtype: jax.typing.DTypeLike = jnp.float32
) -> Model:
    """An encoder of sequences [B, T, F] -> [B, dim]: `layers` LSTMs, the "last" output or the "mean" over time, a
    linear layer. Raises ValueError for another pool or dtype, and for sizes that are no integers of at least 1.

    >>> model, x = encoder(hidden=16, dim=4), jnp.zeros((8, 20, 3))
    >>> params = jax.eval_shape(model.init, jax.random.key(0), x)
    >>> jax.eval_shape(model.apply, params, x).shape
    (8, 4)
    """
    one_of("pool", pool, ("last", "mean"))
    check_sizes(hidden=hidden, dim=dim, layers=layers)
    check_dtype(dtype)
    return as_model(LSTMEncoder(hidden, dim, layers, pool, dtype))
