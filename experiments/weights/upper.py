"""Pretrained encoders cut in two: the lower layers stay frozen and are run once, the last ones are an encoder."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import numpy as np
from flax import linen as nn

from experiments.weights import sources
from experiments.weights.features import hidden
from fedjax_mm.models import Transformer, transformer
from fedjax_mm.models.pretrained import Checkpoint
from fedjax_mm.models.transformer import Layer
from fedjax_mm.types import PyTree


class Upper(NamedTuple):
    """A pretrained encoder whose last layers are trained."""

    name: str
    """In the cache of experiments.weights."""
    depth: int
    """Layers that it has."""
    axes: int
    """Axes of an example."""
    layer: Layer
    """A layer of this family."""


def uppers(dropout: float, dtype: str = "float32") -> dict[str, Upper]:
    """Modality -> the encoder. dropout: rate of the trained layers of the text encoder, which was trained with .1.
    dtype: type of the trained layers' arithmetic."""
    found = {
        "image": Upper("vit_s14", 9, 3, Layer(6, 1536, epsilon=1e-6)),
        "text": Upper("minilm", 6, 1, Layer(12, 1536, pre_norm=False, dropout=(dropout, dropout, dropout))),
        "audio": Upper("whisper_base", 6, 2, Layer(8, 2048, epsilon=1e-5, key_bias=False)),
    }
    return {m: one._replace(layer=dataclasses.replace(one.layer, dtype=dtype)) for m, one in found.items()}


class Kept(nn.Module):
    """In place of an encoder's embeddings: what its lower layers gave, as it is."""

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        return tokens


def given(upper: Upper, examples: np.ndarray, above: int) -> np.ndarray:
    """What the layers below the last `above` ones give of examples [E, ...] or [E, V, ...]: [..., T, D] float16."""
    outer, own = examples.shape[: -upper.axes], examples.shape[-upper.axes :]
    tokens = hidden(upper.name, upper.depth - above, examples.reshape(-1, *own))
    return tokens.reshape(*outer, *tokens.shape[1:])


def upper_encoder(upper: Upper, tokens: np.ndarray, layers: int) -> tuple[Transformer, PyTree]:
    """(an encoder of the last `layers` layers, their pretrained parameters); `apply` is the mean of the tokens.

    tokens: [..., T, D] as the layers below them give them, 0 where there is padding.
    """
    above = transformer.above(_weights(upper.name), upper.depth - layers)["layers"] if layers else {}
    model = transformer.stack(
        Kept(),
        upper.layer if layers else dataclasses.replace(upper.layer, pre_norm=False),
        layers,
        tokens.shape[-1],
        jax.ShapeDtypeStruct((1, *tokens.shape[-2:]), tokens.dtype),
        Checkpoint({}, "", ()),
        mask=lambda x: (x != 0).any(-1),
        pool="mean",
    )
    return model, {"embeddings": {}, "layers": {f"{i:02d}": layer for i, layer in enumerate(above.values())}}


@functools.lru_cache(3)
def _weights(name: str) -> PyTree:
    return sources.load(name)[1]
