"""Multi-layer perceptrons: an encoder, and the classifier of the first FedAvg experiments."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from fedjax_mm.models.checks import check_dtype, check_sizes, check_widths
from fedjax_mm.models.layers import Model, as_model, pixels


class MLP(nn.Module):
    """Dense layers: the batch [B, ...] is flattened -> [B, outputs] float32. No activation follows the last layer."""

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
    """An encoder [B, ...] -> [B, dim].

    It flattens the batch (uint8 is scaled to [-1, 1]), applies gelu layers of `widths`, and ends in a linear layer.
    Raises ValueError for sizes that are no integers of at least 1, and for another dtype.

    >>> model, batch = encoder([8], 4), jnp.ones((2, 5, 5))
    >>> params = jax.eval_shape(model.init, jax.random.key(0), batch)
    >>> jax.eval_shape(model.apply, params, batch).shape
    (2, 4)
    """
    check_widths(widths=widths)
    check_sizes(dim=dim)
    check_dtype(dtype)
    return as_model(MLP(tuple(widths), dim, nn.gelu, dtype))


def classifier(widths: Sequence[int], num_classes: int, dtype: jax.typing.DTypeLike = jnp.float32) -> Model:
    """A classifier [B, ...] -> [B, num_classes] logits with relu layers; `widths` (200, 200) is McMahan's 2NN (2017).

    >>> params = jax.eval_shape(classifier((200, 200), 10).init, jax.random.key(0), jnp.ones((1, 28, 28)))
    >>> sum(leaf.size for leaf in jax.tree.leaves(params))
    199210
    """
    check_widths(widths=widths)
    check_sizes(num_classes=num_classes)
    check_dtype(dtype)
    return as_model(MLP(tuple(widths), num_classes, nn.relu, dtype))
