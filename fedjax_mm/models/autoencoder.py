"""Split autoencoders: an encoder and a decoder for each modality; any code can be decoded into every modality."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from fedjax_mm.checks import check_flag, say
from fedjax_mm.models.checks import check_dtype, check_sizes
from fedjax_mm.models.lstm import LSTM
from fedjax_mm.types import Key, PyTree


class AutoEncoder(NamedTuple):
    """Pure functions over parameters {"encoder_<m>", "decoder_<m>" for each modality m}.

    F is the number of features of a modality, H the width of the first layer, D the width of an embedding. The code
    of a window is its embedding at the last step. A client that owns some of the modalities has the parameters of
    these alone, and calls `encode` and `decode` with them.
    """

    modalities: tuple[str, ...]
    """Names of the modalities, in the order in which losses go through them."""
    init: Callable[[Key], PyTree]
    """Draws the parameters of all modalities."""
    encode: Callable[[PyTree, str, jax.Array], tuple[jax.Array, jax.Array]]
    """(params, modality, windows [B, T, F]) -> embeddings z [B, T, D] and states of the first layer h [B, T, H]."""
    decode: Callable[[PyTree, str, jax.Array, int], jax.Array]
    """(params, modality, codes [B, D], T) -> windows of the modality [B, T, F], in which the last step comes first."""

    def parts(self, modality: str) -> tuple[str, str]:
        """The names of a modality's encoder and decoder in the parameters."""
        return f"encoder_{modality}", f"decoder_{modality}"


class Half(nn.Module):
    """Two stacked LSTM layers F -> hidden -> out, or one LSTM layer and a linear readout.

    It gives its outputs [B, T, out] and those of the first layer [B, T, hidden]. The kernels of the first layer start
    orthogonal. Those of the second layer and all biases start uniform in +-1/sqrt(size of the layer), as in FedMEKT's
    released code.
    """

    hidden: int
    """Width of the first layer."""
    out: int
    """Width of the second layer or of the readout."""
    readout: bool = False
    """Whether the second layer is a linear map in place of an LSTM."""
    dtype: jax.typing.DTypeLike = jnp.float32
    """Precision of the inputs of the matrix products."""

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        orthogonal = nn.initializers.orthogonal()
        h = LSTM(self.hidden, orthogonal, orthogonal, _uniform(self.hidden), self.dtype)(x)
        if self.readout:
            return nn.Dense(self.out, dtype=self.dtype)(h).astype(jnp.float32), h
        uniform = _uniform(self.out)
        return LSTM(self.out, uniform, uniform, uniform, self.dtype)(h), h


def split_lstm(
    features: Mapping[str, int],
    hidden: int = 32,
    width: int = 4,
    readout: bool = False,
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> AutoEncoder:
    """For each modality, LSTMs F -> hidden -> width that encode and LSTMs width -> hidden -> F that decode.

    features: {modality: F}. A decoder gets the code at every step. Without a readout the outputs of a decoder are LSTM
    states, so they lie in -1..1 whatever the inputs are (Le et al. 2025, FedMEKT). With a readout they are a linear map
    of the first layer. Each layer has one bias vector where PyTorch has two: that makes 4 (hidden + width + hidden + F)
    parameters fewer for each modality. dtype: precision of the inputs of the matrix products. Raises ValueError where
    there is no modality, a size is below 1 or a dtype is no precision.

    >>> ae = split_lstm({"accelerometer": 9, "gyroscope": 6}, hidden=32, width=4)
    >>> params = jax.eval_shape(ae.init, jax.random.key(0))
    >>> def translate(params, gyroscope):
    ...     z, h = ae.encode(params, "gyroscope", gyroscope)
    ...     return z, h, ae.decode(params, "accelerometer", z[:, -1], steps=24)
    >>> jax.tree.map(jnp.shape, jax.eval_shape(translate, params, jnp.zeros((8, 24, 6))))
    ((8, 24, 4), (8, 24, 32), (8, 24, 9))
    """
    _check_features(features)
    check_sizes(hidden=hidden, width=width)
    check_flag("readout", readout)
    check_dtype(dtype)
    encoder = Half(hidden, width, dtype=dtype)
    decoder = {m: Half(hidden, size, readout, dtype) for m, size in features.items()}

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
        z_and_h: Any = encoder.apply({"params": params[f"encoder_{modality}"]}, x)
        return z_and_h

    def decode(params, modality, code, steps):
        repeated = jnp.broadcast_to(code[:, None], (len(code), steps, width))
        return decoder[modality].apply({"params": params[f"decoder_{modality}"]}, repeated)[0]

    return AutoEncoder(tuple(features), init, encode, decode)


def linear(features: Mapping[str, int], width: int = 4) -> AutoEncoder:
    """For each modality, a matrix [F, width] that encodes every step and a matrix [width, F] that decodes every step.

    h_t = x_t U, and z_t is the mean of h_1 .. h_t. For examples and tests: it compiles in a small part of the time that
    the LSTMs take. features: {modality: F}.

    >>> ae = linear({"a": 3}, width=2)
    >>> params = ae.init(jax.random.key(0))
    >>> z, h = ae.encode(params, "a", jnp.ones((8, 5, 3)))
    >>> z.shape, h.shape, ae.decode(params, "a", z[:, -1], 5).shape
    ((8, 5, 2), (8, 5, 2), (8, 5, 3))
    """

    _check_features(features)
    check_sizes(width=width)

    def init(key):
        params = {}
        for i, (m, size) in enumerate(features.items()):
            keys = jax.random.split(jax.random.fold_in(key, i))
            params[f"encoder_{m}"] = {"kernel": jax.random.normal(keys[0], (size, width)) * size**-0.5}
            params[f"decoder_{m}"] = {"kernel": jax.random.normal(keys[1], (width, size)) * width**-0.5}
        return params

    def encode(params, modality, x):
        h = x @ params[f"encoder_{modality}"]["kernel"]
        steps = jnp.arange(1, x.shape[1] + 1, dtype=h.dtype)
        return h.cumsum(1) / steps[None, :, None], h

    def decode(params, modality, code, steps):
        return jnp.repeat((code @ params[f"decoder_{modality}"]["kernel"])[:, None], steps, axis=1)

    return AutoEncoder(tuple(features), init, encode, decode)


def _check_features(features: Mapping[str, int]) -> None:
    if not isinstance(features, Mapping) or not features:
        raise ValueError(f"features must be a mapping from modality to its number of features, got {say(features)}")
    check_sizes(**{f"features[{m!r}]": size for m, size in features.items()})


def _uniform(size: int) -> Callable:
    limit = size**-0.5
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -limit, limit)
