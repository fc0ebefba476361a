"""Heads on embeddings [B, D]."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from fedjax_mm.models.layers import Model, as_model
from fedjax_mm.models.mlp import MLP


def linear(num_classes: int, dtype: jax.typing.DTypeLike = jnp.float32) -> Model:
    """A linear classifier [B, D] -> [B, num_classes] logits."""
    return mlp((), num_classes, dtype)


def mlp(widths: Sequence[int], num_classes: int, dtype: jax.typing.DTypeLike = jnp.float32) -> Model:
    """A classifier [B, D] -> [B, num_classes] logits with relu layers of `widths`."""
    return as_model(MLP(tuple(widths), num_classes, nn.relu, dtype))
