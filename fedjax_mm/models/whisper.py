"""The encoder of Whisper (Radford et al. 2022), on log-mel spectrograms of speech."""

import pathlib

import jax
import jax.numpy as jnp
from flax import linen as nn

from fedjax_mm.models import configs, pretrained
from fedjax_mm.models.ast import windows
from fedjax_mm.models.checks import check_sizes
from fedjax_mm.models.layers import gelu
from fedjax_mm.models.pretrained import Checkpoint, Layout, layers, linear, norm, tensor
from fedjax_mm.models.transformer import Layer, Transformer, stack
from fedjax_mm.types import PyTree

CONFIG = configs.Config(
    "whisper",
    {
        "mels": "num_mel_bins",
        "positions": "max_source_positions",
        "dim": "d_model",
        "depth": "encoder_layers",
        "heads": "encoder_attention_heads",
        "mlp": "encoder_ffn_dim",
    },
    {"activation_function": "gelu", "scale_embedding": False},
)
CONV_1D = Layout(
    lambda x: x.transpose(2, 1, 0), lambda x: x.transpose(2, 1, 0)
)  # [out, in, width] <-> [width, in, out]


class Convolution(nn.Module):
    """[B, T, F] -> [B, ceil(T / stride), D]: windows of three steps, one product and the exact GELU.

    It is one matrix product of windows, not a convolution. Parameters: kernel [3, F, D] and bias [D].
    """

    dim: int
    stride: int
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (3, x.shape[-1], self.dim)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.dim,)).astype(self.dtype)
        x = windows(jnp.pad(x.astype(self.dtype), ((0, 0), (1, 1), (0, 0))), 1, 3, self.stride)
        return gelu(x @ kernel.reshape(-1, self.dim) + bias[None, None])


class Embeddings(nn.Module):
    """Spectrograms [B, frames, mels] -> [B, ceil(frames / 2), D]: two convolutions, plus positions.

    Parameters: conv_1, conv_2 (kernel, bias), positions [positions, D]. Fewer frames have the first positions.
    """

    mels: int
    positions: int
    dim: int
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, spectrograms: jax.Array) -> jax.Array:
        shape = spectrograms.shape
        if len(shape) != 3 or shape[2] != self.mels or not 1 <= shape[1] <= 2 * self.positions:
            raise ValueError(f"spectrograms must be [B, up to {2 * self.positions}, {self.mels}], got {shape}")
        x = Convolution(self.dim, 1, self.dtype, name="conv_1")(spectrograms)
        x = Convolution(self.dim, 2, self.dtype, name="conv_2")(x)
        return x + self.param("positions", _sinusoids, (self.positions, self.dim))[None, : x.shape[1]]


def _sinusoids(key: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """Whisper's positions before training, which it leaves as they are: sines in the first half, then cosines."""
    half = shape[1] // 2
    speeds = jnp.exp(-jnp.log(10_000.0) / max(half - 1, 1) * jnp.arange(half))
    angles = jnp.arange(shape[0])[:, None] * speeds[None]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)


def encoder(
    mels: int = 80,
    positions: int = 1500,
    dim: int = 512,
    depth: int = 6,
    heads: int = 8,
    mlp: int = 2048,
    repository: str = "",
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> Transformer:
    """An encoder of log-mel spectrograms [B, frames, mels], float: two frames are a token, and `apply` is their mean.

    frames: at most 2 positions. Pretrained encoders have seen 3,000 of them, silence included, and take fewer too; make
        them with `data.audio.whisper_log_mel`.
    repository: place of the weights on huggingface.co. dtype: type of arithmetic.

    Raises ValueError for sizes that are none, and for an odd dim.

    >>> model = encoder(mels=4, positions=6, dim=6, depth=1, heads=2, mlp=12)
    >>> params = jax.eval_shape(model.init, jax.random.key(0), model.example)
    >>> jax.eval_shape(model.tokens, params, jax.ShapeDtypeStruct((1, 9, 4), jnp.float32)).shape
    (1, 5, 6)
    """
    check_sizes(mels=mels, positions=positions, dim=dim)
    check_sizes(0, depth=depth)
    if dim % 2:
        raise ValueError(f"dim is {dim}; half of a position are sines and half cosines, so that it must be even")
    linears = {f"self_attn.{letter}_proj": name for letter, name in (("q", "query"), ("k", "key"), ("v", "value"))}
    linears |= {"self_attn.out_proj": "out", "fc1": "fc_1", "fc2": "fc_2"}
    norms = {"self_attn_layer_norm": "norm_1", "final_layer_norm": "norm_2"}
    names = (
        linear("encoder.conv1", "embeddings/conv_1", CONV_1D)
        | linear("encoder.conv2", "embeddings/conv_2", CONV_1D)
        | tensor("encoder.embed_positions.weight", "embeddings/positions")
        | layers("encoder.layers", depth, linears, norms)
        | norm("encoder.layer_norm", "norm")
    )
    sizes = {"mels": mels, "positions": positions, "dim": dim, "depth": depth, "heads": heads, "mlp": mlp}
    config = configs.stated(CONFIG, **sizes)
    return stack(
        Embeddings(mels, positions, dim, dtype),
        Layer(heads, mlp, epsilon=1e-5, key_bias=False, dtype=dtype),
        depth,
        dim,
        jax.ShapeDtypeStruct((1, 2 * positions, mels), jnp.float32),
        Checkpoint(names, "model.", ("decoder.", "proj_out."), repository, config=config),
        pool="mean",
    )


def from_pretrained(
    folder: str | pathlib.Path, dtype: jax.typing.DTypeLike = jnp.float32
) -> tuple[Transformer, PyTree]:
    """(the encoder that a Hugging Face folder's config.json describes, its parameters).

    dtype: type of arithmetic. Raises what `pretrained.load` raises, and FileNotFoundError or ValueError where
    config.json is missing, damaged, or describes no Whisper.
    """
    model = encoder(**configs.arguments_of(folder, CONFIG), dtype=dtype)
    return model, pretrained.load(model, folder)


def base(dtype: jax.typing.DTypeLike = jnp.float32) -> Transformer:
    """The encoder of Whisper base: 6 layers of width 512, 20.6 million parameters."""
    return encoder(repository="openai/whisper-base", dtype=dtype)
