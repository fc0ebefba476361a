"""Residual networks (He et al. 2016) as feature maps: from scratch with group norms, pretrained with batch norms."""

import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from fedjax_mm.models import configs, pretrained
from fedjax_mm.models.checks import check_dtype, check_sizes, check_widths, one_of
from fedjax_mm.models.layers import Conv, GroupNorm, pixels, run_module
from fedjax_mm.models.pretrained import CONV, Checkpoint, tensor
from fedjax_mm.types import Key, PyTree

CONFIG = configs.Config(
    "resnet",
    {"depths": "depths", "widths": "hidden_sizes", "block": "layer_type"},
    {"hidden_act": "relu", "downsample_in_first_stage": False, "downsample_in_bottleneck": False},
)


class ResNet(NamedTuple):
    """A residual network as pure functions over {"stem", "stage_0_block_00_unit_0", ..., "stage_1_block_00_shortcut"}.

    Each entry of the parameters is a convolution and its norm: conv (kernel) and norm (scale, bias; a batch norm also
    has running_mean and running_variance, which get no gradient: see `heads.is_statistic`).

    `apply(params, images)` gives the last stage's feature map, float32 [B, h, w, width]. Images are [B, H, W, 3] of any
    size, uint8 (normalised inside) or float (taken as they are).
    """

    width: int
    init: Callable[[Key, jax.Array], PyTree]
    apply: Callable[[PyTree, jax.Array], jax.Array]
    example: jax.ShapeDtypeStruct  # a batch of one image, in shapes
    checkpoint: Checkpoint


class BatchNorm(nn.Module):
    """Batch normalisation of [B, H, W, F] by its stored statistics, in training too, as detectors are fine-tuned.

    Parameters: scale [F] and bias [F] train; running_mean [F] and running_variance [F] do not.
    """

    dtype: jax.typing.DTypeLike = jnp.float32
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        # A batch's own statistics would let examples leak into each other's features, and clients whose data differ
        # have none that could be averaged: the pretrained ones stay.
        mean = jax.lax.stop_gradient(self.param("running_mean", nn.initializers.zeros, shape))
        variance = jax.lax.stop_gradient(self.param("running_variance", nn.initializers.ones, shape))
        slope = scale * jax.lax.rsqrt(variance + self.epsilon)
        slope, offset = (a.astype(self.dtype)[None, None, None] for a in (slope, bias - mean * slope))
        return x * slope + offset


def imagenet_pixels(x: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
    """`x` [B, H, W, 3] as `dtype`. In uint8 images, ImageNet's mean and deviation of each colour become 0 and 1."""
    if x.dtype == jnp.uint8:
        mean, deviation = jnp.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[:, None, None, None]
        x = (x.astype(jnp.float32) / 255 - mean) / deviation
    return x.astype(dtype)


def max_pool(x: jax.Array) -> jax.Array:
    """The maxima of 3x3 windows with stride 2 and a padding of 1: [B, H, W, F] -> [B, H/2, W/2, F], rounded up.

    Of equal maxima of a window each has its share of the gradient, on a TPU the first has all of it.
    """

    def sliced(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
        x = jnp.maximum(jnp.maximum(x[:, :, :-2:2], x[:, :, 1:-1:2]), x[:, :, 2::2])
        return jnp.maximum(jnp.maximum(x[:, :-2:2], x[:, 1:-1:2]), x[:, 2::2])

    sides: Any = ((1, 1), (1, 1))  # flax declares a name alone
    native = functools.partial(nn.max_pool, window_shape=(3, 3), strides=(2, 2), padding=sides)
    return jax.lax.platform_dependent(x, tpu=native, default=sliced)


NORMS = {"group": GroupNorm, "batch": BatchNorm}
NORMALISE = {"signed": pixels, "imagenet": imagenet_pixels}
STEMS = {"imagenet": (7, 2), "small": (3, 1)}  # kernel and stride
# A block's convolutions, each by kernel, stride and features.
BLOCKS = {
    "basic": lambda width, stride: ((3, stride, width), (3, 1, width)),
    "bottleneck": lambda width, stride: ((1, 1, width // 4), (3, stride, width // 4), (1, 1, width)),
}


class Unit(nn.Module):
    """A convolution and its norm [B, H, W, F] -> [B, H/stride, W/stride, features]. Parameters: conv, norm."""

    kernel: int
    stride: int
    features: int
    norm: str
    dtype: jax.typing.DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        # Padded as published weights expect it: where the stride is 2, SAME's grid is another.
        x = Conv(self.features, self.kernel, self.stride, False, self.dtype, self.kernel // 2, name="conv")(x)
        return NORMS[self.norm](dtype=self.dtype, name="norm")(x)


class Trunk(nn.Module):
    """The whole network up to the last feature map, of units that are named as in `ResNet`."""

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    block: str
    norm: str
    stem: str
    normalise: str
    dtype: jax.typing.DTypeLike

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        if images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(f"images must be [B, H, W, 3], got {images.shape}")

        def unit(name: str, sizes: tuple[int, ...], x: jax.Array) -> jax.Array:
            kernel, stride, features = sizes
            return Unit(kernel, stride, features, self.norm, self.dtype, name=name)(x)

        features = BLOCKS[self.block](self.widths[0], 1)[0][-1]
        x = nn.relu(unit("stem", (*STEMS[self.stem], features), NORMALISE[self.normalise](images, self.dtype)))
        x = max_pool(x) if self.stem == "imagenet" else x
        for i, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True)):
            for j in range(depth):
                name, y = f"stage_{i}_block_{j:02d}", x
                stride = 2 if i > 0 and j == 0 else 1
                for k, sizes in enumerate(BLOCKS[self.block](width, stride)):
                    y = unit(f"{name}_unit_{k}", sizes, nn.relu(y) if k else y)
                if stride != 1 or x.shape[-1] != width:
                    x = unit(f"{name}_shortcut", (1, stride, width), x)
                x = nn.relu(x + y)
        return x.astype(jnp.float32)


def encoder(
    depths: Sequence[int],
    widths: Sequence[int],
    block: str = "basic",
    norm: str = "group",
    stem: str = "imagenet",
    normalise: str = "signed",
    image: int = 224,
    repository: str = "",
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> ResNet:
    """A ResNet whose stages have `depths` blocks and maps of `widths` channels; all stages but the first halve the
    sides.

    block: "basic", or "bottleneck", which works at a quarter of its width.
    norm: "group" (8 groups), to train from scratch, or "batch", which normalises by a checkpoint's statistics.
    stem: "imagenet" divides the sides by 4, "small" keeps them; halves are rounded up.
    normalise: what becomes of uint8 images. "signed" scales them to [-1, 1], "imagenet" to mean 0 and deviation 1 over
        ImageNet.
    image: side of `example` in pixels. repository: place of the weights on huggingface.co. dtype: type of arithmetic.

    Raises ValueError for another block, norm, stem or normalise, and for depths and widths that do not fit.

    >>> model, images = encoder([1, 1], [4, 8], stem="small"), jnp.ones((2, 8, 8, 3))
    >>> params = jax.eval_shape(model.init, jax.random.key(0), images)
    >>> jax.eval_shape(model.apply, params, images).shape
    (2, 4, 4, 8)
    """
    one_of("block", block, tuple(BLOCKS))
    one_of("norm", norm, tuple(NORMS))
    one_of("stem", stem, tuple(STEMS))
    one_of("normalise", normalise, tuple(NORMALISE))
    check_widths(depths=depths, widths=widths)
    check_sizes(image=image)
    check_dtype(dtype)
    depths, widths = tuple(depths), tuple(widths)
    if len(depths) != len(widths) or not depths or min(depths) < 1:
        raise ValueError(f"depths and widths must be of the same stages, one block or more; got {depths} and {widths}")
    if block == "bottleneck" and any(width % 4 for width in widths):
        raise ValueError(f"widths of bottlenecks must be multiples of 4, got {widths}")
    config = configs.stated(CONFIG, depths=depths, widths=widths, block=block)
    module = Trunk(depths, widths, block, norm, stem, normalise, dtype)
    return ResNet(
        width=widths[-1],
        init=lambda key, images: module.init(key, images)["params"],
        apply=lambda params, images: run_module(module, params, images),
        example=jax.ShapeDtypeStruct((1, image, image, 3), jnp.uint8),
        checkpoint=Checkpoint(_names(depths, block, norm), "resnet.", ("classifier.",), repository, config=config),
    )


def from_pretrained(
    folder: str | pathlib.Path, image: int = 224, dtype: jax.typing.DTypeLike = jnp.float32
) -> tuple[ResNet, PyTree]:
    """(the ResNet that a Hugging Face folder's config.json describes, its parameters with their running statistics).

    image, dtype: as `encoder` takes them. Raises what `pretrained.load` raises, and FileNotFoundError or ValueError
    where config.json is missing, damaged, or describes no ResNet.
    """
    sizes = configs.arguments_of(folder, CONFIG)
    model = encoder(**sizes, norm="batch", stem="imagenet", normalise="imagenet", image=image, dtype=dtype)
    return model, pretrained.load(model, folder)


def resnet18(image: int = 224, dtype: jax.typing.DTypeLike = jnp.float32) -> ResNet:
    """ResNet-18 as published, width 512: 11,176,512 parameters and 9,600 running statistics."""
    return _published(18, (2, 2, 2, 2), "basic", image, dtype)


def resnet50(image: int = 224, dtype: jax.typing.DTypeLike = jnp.float32) -> ResNet:
    """ResNet-50 as published, width 2048: 23,508,032 parameters and 53,120 running statistics."""
    return _published(50, (3, 4, 6, 3), "bottleneck", image, dtype)


def resnet101(image: int = 224, dtype: jax.typing.DTypeLike = jnp.float32) -> ResNet:
    """ResNet-101 as published, width 2048: 42,500,160 parameters and 105,344 running statistics."""
    return _published(101, (3, 4, 23, 3), "bottleneck", image, dtype)


def _published(number: int, depths: Sequence[int], block: str, image: int, dtype: jax.typing.DTypeLike) -> ResNet:
    widths = [64 * 2**i * (4 if block == "bottleneck" else 1) for i in range(4)]
    return encoder(depths, widths, block, "batch", "imagenet", "imagenet", image, f"microsoft/resnet-{number}", dtype)


def _names(depths: Sequence[int], block: str, norm: str) -> pretrained.Names:
    units = {"embedder.embedder": "stem"}
    for i, depth in enumerate(depths):
        for j in range(depth):
            theirs, ours = f"encoder.stages.{i}.layers.{j}", f"stage_{i}_block_{j:02d}"
            units |= {f"{theirs}.layer.{k}": f"{ours}_unit_{k}" for k in range(len(BLOCKS[block](4, 1)))}
            if j == 0 and (i > 0 or block == "bottleneck"):
                units[f"{theirs}.shortcut"] = f"{ours}_shortcut"
    names = {}
    for theirs, ours in units.items():
        names |= tensor(f"{theirs}.convolution.weight", f"{ours}/conv/kernel", CONV)
        names |= pretrained.norm(f"{theirs}.normalization", f"{ours}/norm")
        if norm == "batch":
            names |= tensor(f"{theirs}.normalization.running_mean", f"{ours}/norm/running_mean")
            names |= tensor(f"{theirs}.normalization.running_var", f"{ours}/norm/running_variance")
    return names
