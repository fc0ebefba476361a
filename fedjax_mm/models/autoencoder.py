"""Split LSTM autoencoders: an encoder and a decoder per modality, any code decoded into every modality."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from fedjax_mm.models.lstm import LSTM
from fedjax_mm.types import Key, PyTree


class AutoEncoder(NamedTuple):
    """Pure functions over parameters {"encoder_<m>", "decoder_<m>" for each modality m}; D is the width of a code.

    A client that holds some of the modalities has their parts alone, and calls encode and decode with them.
    """

    modalities: tuple[str, ...]
    init: Callable[[Key], PyTree]
    encode: Callable[[PyTree, str, jax.Array], tuple[jax.Array, jax.Array]]  # x [B, T, F] -> z [B, T, D], h [B, T, H]
    decode: Callable[
        [PyTree, str, jax.Array, int], jax.Array
    ]  # code [B, D], T -> the modality [B, T, F], last step first

    def parts(self, modality: str) -> tuple[str, str]:
        """Names of the modality's two halves."""
        return f"encoder_{modality}", f"decoder_{modality}"


class Half(nn.Module):
    """Two stacked LSTM layers F -> hidden -> out, or one and a linear readout: (its outputs, the first layer's).

    The first layer starts orthogonal, the second and all biases uniform in +-1/sqrt(its size), as in the authors' code.
    """

    hidden: int
    out: int
    readout: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        orthogonal = nn.initializers.orthogonal()
        h = LSTM(self.hidden, orthogonal, orthogonal, _uniform(self.hidden))(x)
        if self.readout:
            return nn.Dense(self.out)(h), h
        uniform = _uniform(self.out)
        return LSTM(self.out, uniform, uniform, uniform)(h), h


def split_lstm(features: Mapping[str, int], hidden: int = 32, width: int = 4, readout: bool = False) -> AutoEncoder:
    """Per modality an encoder F -> hidden -> width and a decoder width -> hidden -> F.

    features: modality -> F. A decoder sees its code at every step. Without a readout its outputs are LSTM states, so
    they lie in -1..1 whatever the inputs are (Le 2023, FedMEKT); with one they are a linear map of the hidden layer.

    One bias vector per layer, where PyTorch has two: 4 (hidden + width + hidden + F) parameters fewer per modality.
    """
    if not features or min(hidden, width, *features.values()) < 1:
        raise ValueError(f"features {dict(features)}, hidden {hidden} and width {width} must all be at least 1")
    encoder = Half(hidden, width)
    decoder = {m: Half(hidden, size, readout) for m, size in features.items()}

    def init(key):
        params = {}
        for i, (m, size) in enumerate(features.items()):
            keys = jax.random.split(jax.random.fold_in(key, i))
            params[f"encoder_{m}"] = encoder.init(keys[0], jnp.zeros((1, 1, size)))["params"]
            params[f"decoder_{m}"] = decoder[m].init(keys[1], jnp.zeros((1, 1, width)))["params"]
        return params

    def encode(params, modality, x):
        if x.ndim != 3 or x.shape[-1] != features[modality]:
            raise ValueError(f"{modality} is {x.shape}; it must be [B, T, {features[modality]}]")
        return encoder.apply({"params": params[f"encoder_{modality}"]}, x)

    def decode(params, modality, code, steps):
        repeated = jnp.broadcast_to(code[:, None], (len(code), steps, width))
        return decoder[modality].apply({"params": params[f"decoder_{modality}"]}, repeated)[0]

    return AutoEncoder(tuple(features), init, encode, decode)


def _uniform(size: int) -> Callable:
    limit = size**-0.5
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -limit, limit)
