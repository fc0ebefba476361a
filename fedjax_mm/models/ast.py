"""Audio spectrogram transformers (Gong et al. 2021)."""

import pathlib

import jax
import jax.numpy as jnp
from flax import linen as nn

from fedjax_mm.models import configs, pretrained
from fedjax_mm.models.checks import check_number, check_sizes
from fedjax_mm.models.pretrained import BATCHED, CONV, Checkpoint, linear, tensor
from fedjax_mm.models.transformer import Layer, Transformer, stack
from fedjax_mm.models.vit import layer_names
from fedjax_mm.types import PyTree

CONFIG = configs.Config(
    "audio-spectrogram-transformer",
    {
        **configs.SIZES,
        "mels": "num_mel_bins",
        "frames": "max_length",
        "patch": "patch_size",
        "stride": "time_stride",
        "epsilon": "layer_norm_eps",
    },
    {"hidden_act": "gelu"},
)


def windows(x: jax.Array, axis: int, size: int, stride: int) -> jax.Array:
    """Windows along one axis, without padding: [..., n, ..., F] -> [..., (n - size) // stride + 1, ..., size F].

    >>> windows(jnp.arange(5).reshape(5, 1), axis=0, size=3, stride=2).tolist()
    [[0, 1, 2], [2, 3, 4]]
    """
    count = (x.shape[axis] - size) // stride + 1
    cut = lambda start: jax.lax.slice_in_dim(x, start, start + (count - 1) * stride + 1, stride, axis)
    return jnp.concatenate([cut(start) for start in range(size)], axis=-1)


class Patches(nn.Module):
    """Overlapping patches of [B, frames, mels] -> [B, bands x steps, D]; the steps of the lowest band come first.

    It is one matrix product of windows, not a convolution. Parameters: kernel [patch mels, patch frames, 1, D] and bias
    [D].
    """

    patch: int
    stride: int
    dim: int
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.patch, self.patch, 1, self.dim)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.dim,)).astype(self.dtype)
        x = windows(x.astype(self.dtype).swapaxes(1, 2)[..., None], 2, self.patch, self.stride)
        x = windows(x, 1, self.patch, self.stride)  # [B, bands, steps, patch mels x patch frames]
        return x.reshape(x.shape[0], -1, x.shape[-1]) @ kernel.reshape(-1, self.dim) + bias[None, None]


class Embeddings(nn.Module):
    """Spectrograms [B, frames, mels] -> [B, 2 + patches, D]: two special tokens and the patches, plus positions.

    Parameters: patch (kernel, bias), cls [1, D], distillation [1, D], positions [2 + patches, D].
    """

    mels: int
    frames: int
    patch: int
    stride: int
    dim: int
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, spectrograms: jax.Array) -> jax.Array:
        if spectrograms.shape[1:] != (self.frames, self.mels):
            raise ValueError(f"spectrograms must be [B, {self.frames}, {self.mels}], got {spectrograms.shape}")
        x = Patches(self.patch, self.stride, self.dim, self.dtype, name="patch")(spectrograms)
        vectors = lambda name, rows: self.param(name, nn.initializers.normal(0.02), (rows, self.dim))
        special = jnp.concatenate([vectors("cls", 1), vectors("distillation", 1)])[None]
        x = jnp.concatenate([jnp.broadcast_to(special, (x.shape[0], 2, self.dim)), x], axis=1)
        return x + vectors("positions", x.shape[1])[None]


def encoder(
    mels: int = 128,
    frames: int = 1024,
    patch: int = 16,
    stride: int = 10,
    dim: int = 768,
    depth: int = 6,
    heads: int = 12,
    mlp: int = 3072,
    epsilon: float = 1e-12,
    std: float = 0.02,
    repository: str = "",
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> Transformer:
    """An encoder of log-mel spectrograms [B, frames, mels], float. Token 0 is the class token, token 1 distillation's.

    patch, stride: in frames and in mels. std: standard deviation of the layers' first kernels. repository: place of the
    weights on huggingface.co. dtype: type of arithmetic.

    Pretrained encoders need 16 kHz audio in steps of 10 ms, normalised to (x + 4.2677) / (2 * 4.5690), as Hugging
    Face's ASTFeatureExtractor gives it. Raises ValueError where mels or frames are fewer than a patch.

    >>> model = encoder(mels=8, frames=10, patch=4, stride=2, dim=6, depth=1, heads=2, mlp=12)
    >>> params = jax.eval_shape(model.init, jax.random.key(0), model.example)
    >>> jax.eval_shape(model.tokens, params, model.example).shape  # 2 special tokens, 3 bands of 4 steps
    (1, 14, 6)
    """
    check_sizes(mels=mels, frames=frames, patch=patch, stride=stride)
    check_sizes(0, depth=depth)
    check_number("std", std)
    if min(mels, frames) < patch:
        raise ValueError(f"mels {mels} and frames {frames} must be at least a patch, {patch}")
    names = (
        linear("embeddings.patch_embeddings.projection", "embeddings/patch", CONV)
        | tensor("embeddings.cls_token", "embeddings/cls", BATCHED)
        | tensor("embeddings.distillation_token", "embeddings/distillation", BATCHED)
        | tensor("embeddings.position_embeddings", "embeddings/positions", BATCHED)
        | layer_names(depth)
        | pretrained.norm("layernorm", "norm")
    )
    sizes = {"dim": dim, "depth": depth, "heads": heads, "mlp": mlp, "patch": patch, "stride": stride}
    config = configs.stated(CONFIG, mels=mels, frames=frames, epsilon=epsilon, **sizes) | {"frequency_stride": stride}
    return stack(
        Embeddings(mels, frames, patch, stride, dim, dtype),
        Layer(heads, mlp, epsilon=epsilon, std=std, dtype=dtype),
        depth,
        dim,
        jax.ShapeDtypeStruct((1, frames, mels), jnp.float32),
        Checkpoint(names, "audio_spectrogram_transformer.", ("classifier.",), repository, config=config),
    )


def from_pretrained(
    folder: str | pathlib.Path, dtype: jax.typing.DTypeLike = jnp.float32
) -> tuple[Transformer, PyTree]:
    """(the encoder that a Hugging Face folder's config.json describes, its parameters).

    dtype: type of arithmetic. Raises what `pretrained.load` raises, and FileNotFoundError or ValueError where
    config.json is missing, damaged, or describes no audio spectrogram transformer.
    """
    model = encoder(**configs.arguments_of(folder, CONFIG), dtype=dtype)
    return model, pretrained.load(model, folder)


def distilled(dtype: jax.typing.DTypeLike = jnp.float32) -> Transformer:
    """Distil-AST on AudioSet: 6 layers of width 768, 1214 tokens."""
    return encoder(repository="bookbot/distil-ast-audioset", dtype=dtype)
