"""Vision transformers (Dosovitskiy et al. 2021)."""

import pathlib

import jax
import jax.numpy as jnp
from flax import linen as nn

from fedjax_mm.checks import check_flag
from fedjax_mm.models import configs, pretrained
from fedjax_mm.models.checks import check_number, check_sizes
from fedjax_mm.models.layers import Conv, pixels
from fedjax_mm.models.pretrained import BATCHED, CONV, Checkpoint, linear, tensor
from fedjax_mm.models.transformer import Layer, Transformer, stack
from fedjax_mm.types import PyTree

CONFIG = configs.Config(
    "vit",
    {**configs.SIZES, "image": "image_size", "patch": "patch_size", "epsilon": "layer_norm_eps"},
    {"hidden_act": "gelu"},
)


class Embeddings(nn.Module):
    """Images [B, image, image, 3] -> [B, 1 + patches, D]: the class token and patches row by row, plus positions.

    Parameters: patch (kernel [patch, patch, 3, D], bias), cls [1, D], positions [1 + patches, D].
    """

    image: int
    patch: int
    dim: int
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        shape = (self.image, self.image, 3)
        if images.shape[1:] != shape:
            raise ValueError(f"images must be [B, {', '.join(map(str, shape))}], got {images.shape}")
        x = Conv(self.dim, self.patch, self.patch, dtype=self.dtype, name="patch")(pixels(images, self.dtype))
        x = x.reshape(x.shape[0], -1, self.dim)
        cls = self.param("cls", nn.initializers.normal(0.02), (1, self.dim))
        positions = self.param("positions", nn.initializers.normal(0.02), (1 + x.shape[1], self.dim))
        x = jnp.concatenate([jnp.broadcast_to(cls[None], (x.shape[0], 1, self.dim)), x], axis=1)
        return x + positions[None]


def encoder(
    image: int = 224,
    patch: int = 16,
    dim: int = 192,
    depth: int = 12,
    heads: int = 3,
    mlp: int = 768,
    pooler: bool = False,
    epsilon: float = 1e-12,
    std: float = 0.02,
    repository: str = "",
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> Transformer:
    """A transformer of images [B, image, image, 3], uint8 (scaled to [-1, 1]) or float; token 0 is the class token.

    image, patch: sides in pixels. std: standard deviation of the layers' first kernels. repository: place of the
    weights on huggingface.co. dtype: type of arithmetic.

    Raises ValueError where `patch` does not divide `image`.

    >>> model = encoder(image=8, patch=4, dim=6, depth=1, heads=2, mlp=12)
    >>> params = jax.eval_shape(model.init, jax.random.key(0), model.example)
    >>> jax.eval_shape(model.tokens, params, model.example).shape
    (1, 5, 6)
    """
    check_sizes(image=image, patch=patch)
    check_sizes(0, depth=depth)
    check_flag("pooler", pooler)
    check_number("std", std)
    if image % patch:
        raise ValueError(f"image {image} must be a multiple of patch {patch}")
    names = (
        linear("embeddings.patch_embeddings.projection", "embeddings/patch", CONV)
        | tensor("embeddings.cls_token", "embeddings/cls", BATCHED)
        | tensor("embeddings.position_embeddings", "embeddings/positions", BATCHED)
        | layer_names(depth)
        | pretrained.norm("layernorm", "norm")
        | linear("pooler.dense", "pooler")
    )
    # ViTForImageClassification's files have no pooler, ViTModel's have one.
    heads_of_others = ("classifier.", "pooler.", "decoder.", "embeddings.mask_token")
    sizes = {"image": image, "patch": patch, "dim": dim, "depth": depth, "heads": heads, "mlp": mlp, "epsilon": epsilon}
    config = configs.stated(CONFIG, **sizes)
    return stack(
        Embeddings(image, patch, dim, dtype),
        Layer(heads, mlp, epsilon=epsilon, std=std, dtype=dtype),
        depth,
        dim,
        jax.ShapeDtypeStruct((1, image, image, 3), jnp.uint8),
        Checkpoint(names, "vit.", heads_of_others, repository, optional=("pooler",), config=config),
        pooler,
    )


def tiny(dtype: jax.typing.DTypeLike = jnp.float32) -> Transformer:
    """ViT-Tiny/16 at 224x224: 12 layers of width 192, and a pooler, which nothing reads but which counts as a cost."""
    return encoder(pooler=True, repository="WinKawaks/vit-tiny-patch16-224", dtype=dtype)


def from_pretrained(
    folder: str | pathlib.Path, pooler: bool = False, dtype: jax.typing.DTypeLike = jnp.float32
) -> tuple[Transformer, PyTree]:
    """(the encoder that a Hugging Face folder's config.json describes, its parameters).

    pooler, dtype: as `encoder` takes them. Raises what `pretrained.load` raises, and FileNotFoundError or ValueError
    where config.json is missing, damaged, or describes no ViT.
    """
    model = encoder(**configs.arguments_of(folder, CONFIG), pooler=pooler, dtype=dtype)
    return model, pretrained.load(model, folder)


def layer_names(depth: int) -> pretrained.Names:
    """The names of the layers' tensors in files of ViT, and in files of AST and ViLT, which took them over."""
    linears = {f"attention.attention.{name}": name for name in ("query", "key", "value")}
    linears |= {"attention.output.dense": "out", "intermediate.dense": "fc_1", "output.dense": "fc_2"}
    norms = {"layernorm_before": "norm_1", "layernorm_after": "norm_2"}
    return pretrained.layers("encoder.layer", depth, linears, norms)
