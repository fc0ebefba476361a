"""Text encoders on token ids, with 0 for padding."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from fedjax_mm.models.checks import check_dtype, check_sizes, one_of
from fedjax_mm.models.layers import Model, as_model, scan


class GRU(nn.Module):
    """One GRU layer from a zero state: x [B, T, F], valid [B, T] bool -> its state after every step [B, T, H], float32.

    With r, z, n = split(x W + b) and r', z', n' = split(h U), the reset gate is s = sigmoid(r + r'), the update gate is
    u = sigmoid(z + z'), and the new state is (1 - u) tanh(n + s (n' + b')) + u h. A step that is not valid leaves the
    state as it was. Parameters: input_kernel W [F, 3H], recurrent_kernel U [H, 3H] (uniform in +-1/sqrt(H) at the
    start, as PyTorch's), bias b [3H], recurrent_bias b' [H].
    """

    hidden: int
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, valid: jax.Array) -> jax.Array:
        gates = 3 * self.hidden
        kernel = self.param("input_kernel", nn.initializers.glorot_uniform(), (x.shape[-1], gates))
        # Not orthogonal: the QR of many clients' kernels at once hung XLA's thread pool on 2 cores (jax 0.10.2).
        uniform = lambda key, shape: jax.random.uniform(key, shape, minval=-1, maxval=1) * self.hidden**-0.5
        recurrent = self.param("recurrent_kernel", uniform, (self.hidden, gates))
        bias = self.param("bias", nn.initializers.zeros, (gates,))
        recurrent_bias = self.param("recurrent_bias", nn.initializers.zeros, (self.hidden,))[None]
        kernel, recurrent = kernel.astype(self.dtype), recurrent.astype(self.dtype)

        def step(h: jax.Array, inputs: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            projected, keep = inputs
            recurred = jnp.matmul(h.astype(self.dtype), recurrent, preferred_element_type=jnp.float32)
            r, z, n = jnp.split(projected, 3, axis=-1)
            r_h, z_h, n_h = jnp.split(recurred, 3, axis=-1)
            update = nn.sigmoid(z + z_h)
            new = jnp.tanh(n + nn.sigmoid(r + r_h) * (n_h + recurrent_bias))
            h = jnp.where(keep[:, None], (1.0 - update) * new + update * h, h)
            return h, h

        # The projection of all steps is one matmul outside the scan.
        steps = x.astype(self.dtype).swapaxes(0, 1)
        projected = jnp.matmul(steps, kernel, preferred_element_type=jnp.float32) + bias[None, None]
        # zeros_like, because inside shard_map a carry must vary over devices as its inputs do.
        zero = jnp.zeros_like(projected[0, :, : self.hidden])
        _, states = scan(step, zero, (projected, valid.swapaxes(0, 1)))
        return states.swapaxes(0, 1)


class TextEncoder(nn.Module):
    """Embeddings, then either a masked mean with one gelu layer or a GRU, then a linear layer."""

    vocabulary_size: int
    dim: int
    width: int
    kind: str = "bag"
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise ValueError(f"tokens must be integers [B, L], got {tokens.dtype} {tokens.shape}")
        valid = tokens != 0
        x = nn.Embed(self.vocabulary_size, self.width, dtype=self.dtype)(tokens)
        if self.kind == "bag":
            total = jnp.where(valid[..., None], x, 0).sum(1)
            x = total / jnp.maximum(valid.sum(1, keepdims=True), 1).astype(self.dtype)
            x = nn.gelu(nn.Dense(self.width, dtype=self.dtype)(x))
        else:
            x = GRU(self.width, dtype=self.dtype)(x, valid)[:, -1]
        return nn.Dense(self.dim, dtype=self.dtype)(x).astype(jnp.float32)


def encoder(
    vocabulary_size: int, dim: int, width: int, kind: str = "bag", dtype: jax.typing.DTypeLike = jnp.float32
) -> Model:
    """An encoder of token ids [B, L] in 0..vocabulary_size-1 -> [B, dim].

    0 is padding and changes nothing, wherever it stands. `kind` "bag" averages the embeddings of the tokens; "gru"
    reads the tokens in order and takes the state after the last one. `width` is the width of the embeddings and of the
    hidden layer.

    Raises ValueError for another kind or dtype, for sizes that are no integers of at least 1, and for tokens that are
    not integers [B, L].

    >>> model, tokens = encoder(10, dim=4, width=6), jnp.array([[3, 5, 0], [2, 0, 0]])
    >>> params = jax.eval_shape(model.init, jax.random.key(0), tokens)
    >>> jax.eval_shape(model.apply, params, tokens).shape
    (2, 4)
    """
    one_of("kind", kind, ("bag", "gru"))
    check_sizes(vocabulary_size=vocabulary_size, dim=dim, width=width)
    check_dtype(dtype)
    return as_model(TextEncoder(vocabulary_size, dim, width, kind, dtype), vocabulary_size)
