"""Multi-layer perceptrons: an encoder, and the classifier of the first FedAvg experiments."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from fedjax_mm.models.layers import Model, as_model, pixels


class MLP(nn.Module):
    """Dense layers with an activation between them, none after the last: [B, ...] flattened -> [B, outputs] float32."""

    widths: Sequence[int]
    outputs: int
    activation: Callable[[jax.Array], jax.Array]
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = pixels(x.reshape(x.shape[0], -1), self.dtype)
        for width in self.widths:
            x = self.activation(nn.Dense(width, dtype=self.dtype)(x))
        return nn.Dense(self.outputs, dtype=self.dtype)(x).astype(jnp.float32)


def encoder(widths: Sequence[int], dim: int, dtype: jax.typing.DTypeLike = jnp.float32) -> Model:
    """An encoder [B, ...] -> [B, dim]: flattened (uint8 scaled to [-1, 1]), gelu layers of `widths`, a linear one."""
    return as_model(MLP(tuple(widths), dim, nn.gelu, dtype))


def classifier(widths: Sequence[int], num_classes: int, dtype: jax.typing.DTypeLike = jnp.float32) -> Model:
    """A classifier [B, ...] -> [B, num_classes] logits with relu layers; (200, 200) is the 2NN of McMahan 2017."""
    return as_model(MLP(tuple(widths), num_classes, nn.relu, dtype))
