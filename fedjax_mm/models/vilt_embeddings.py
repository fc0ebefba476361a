"""What a ViLT's layers start from: words and patches as vectors, with their positions (section 6 of
docs/specs/feddat.md)."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn

from fedjax_mm.models import bert
from fedjax_mm.models.layers import Conv, pixels
from fedjax_mm.types import Arrays

Started = tuple[jax.Array, jax.Array]  # h [B, T, D] and its mask [B, T], True at real tokens


def interpolation(length: jax.Array, size: int, grid: int) -> jax.Array:
    """Rows that stretch `grid` values over the first `length` [B] of `size` places, corner to corner: [B, size, grid].

    Rows behind `length` are 0. The interpolation is linear, as PyTorch's with align_corners. (section 6)

    >>> interpolation(jnp.array([3]), size=4, grid=2)[0].tolist()
    [[1.0, 0.0], [0.5, 0.5], [0.0, 1.0], [0.0, 0.0]]
    """
    places = jnp.arange(size, dtype=jnp.float32)[None]
    source = places * ((grid - 1) / jnp.maximum(length - 1, 1)[:, None])
    weight = jnp.maximum(1 - jnp.abs(source[..., None] - jnp.arange(grid)[None, None]), 0)
    return jnp.where((places < length[:, None])[..., None], weight, 0)


class ImageEmbeddings(nn.Module):
    """Images [B, H, W, 3] and sizes [B, 2] in pixels -> [B, 1 + patches, D] and a mask: the class token, then patches.

    Positions are learned on a grid of patches, and stretched over the patches of each image. Parameters: patch (kernel
    [patch, patch, 3, D], bias), cls [1, D], positions [1 + grid^2, D].
    """

    grid: int
    patch: int
    dim: int
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, size: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        if images.ndim != 4 or images.shape[1] % self.patch or images.shape[2] % self.patch or images.shape[3] != 3:
            raise ValueError(f"image must be [B, H, W, 3], H and W multiples of {self.patch}, got {images.shape}")
        if size is None:
            size = jnp.broadcast_to(jnp.array(images.shape[1:3]), (images.shape[0], 2))
        if size.shape != (images.shape[0], 2) or not jnp.issubdtype(size.dtype, jnp.integer):
            raise ValueError(f"size must be integers [{images.shape[0]}, 2], got {size.dtype} {size.shape}")
        x = Conv(self.dim, self.patch, self.patch, dtype=self.dtype, name="patch")(pixels(images, self.dtype))
        vectors = lambda name, rows: self.param(name, nn.initializers.normal(0.02), (rows, self.dim))
        cls, positions = vectors("cls", 1), vectors("positions", 1 + self.grid**2)
        rows, columns = (interpolation(size[:, i] // self.patch, x.shape[1 + i], self.grid) for i in range(2))
        # Accelerators' usual precision would round positions even where there is nothing to interpolate.
        table = positions[1:].reshape(self.grid, self.grid, self.dim)
        stretched = jnp.einsum("brg,bch,ghd->brcd", rows, columns, table, precision="highest")
        x = (x + stretched).reshape(x.shape[0], -1, self.dim)
        x = jnp.concatenate([jnp.broadcast_to((cls + positions[:1])[None], (x.shape[0], 1, self.dim)), x], axis=1)
        real = rows.any(-1)[:, :, None] & columns.any(-1)[:, None, :]
        return x, jnp.pad(real.reshape(x.shape[0], -1), ((0, 0), (1, 0)), constant_values=True)


class Embeddings(nn.Module):
    """A batch -> [B, T, D] and its mask [B, T]: text, then image, each plus the vector of its modality.

    "words" [B, T, D] in the batch take the place of the question's word vectors (models.vault). `prompts` holds tokens
    [length, D] to insert behind the first token of "text" and of "image". Parameters: text (see bert.Embeddings), image
    (see ImageEmbeddings), modality [2, D].
    """

    vocabulary: int
    text_length: int
    grid: int
    patch: int
    dim: int
    epsilon: float = 1e-12
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, batch: Arrays, prompts: Mapping[str, jax.Array] | None = None) -> Started:
        question = batch["question"]
        read = bert.Embeddings(self.vocabulary, self.dim, self.text_length, 2, self.epsilon, self.dtype, name="text")
        text = read(question, batch.get("words")), question != 0
        see = ImageEmbeddings(self.grid, self.patch, self.dim, self.dtype, name="image")
        image = see(batch["image"], batch.get("size"))
        modality = self.param("modality", nn.initializers.normal(0.02), (2, self.dim))
        if prompts is not None:
            text, image = _inserted(*text, prompts["text"]), _inserted(*image, prompts["image"])
        x = jnp.concatenate([text[0] + modality[None, :1], image[0] + modality[None, 1:]], axis=1)
        return x.astype(self.dtype), jnp.concatenate([text[1], image[1]], axis=1)


def _inserted(x: jax.Array, mask: jax.Array, prompt: jax.Array) -> Started:
    """x [B, T, D] and its mask with `prompt` [length, D] behind the first token."""
    more = jnp.broadcast_to(prompt[None].astype(x.dtype), (x.shape[0], *prompt.shape))
    real = jnp.ones(more.shape[:2], bool)
    behind = lambda x, more: jnp.concatenate([x[:, :1], more, x[:, 1:]], axis=1)
    return behind(x, more), behind(mask, real)


def resized_size(
    height: int, width: int, short: int = 384, long: int | None = None, patch: int = 32
) -> tuple[int, int]:
    """The (height, width) in pixels to which the reference processor resizes an image.

    The short side becomes `short`, the long one at most `long`, which is 1333/800 of `short` unless given (639 for 384:
    at most 12 x 19 patches). Sides are rounded down to whole patches, and to one patch at least. (Hugging Face's
    ViltImageProcessor, which interpolates bicubically)

    It is a rule that `data.vqa.load` takes. Its own one is another: an image is scaled to touch a bucket of a fixed
    size. (section 5)

    >>> resized_size(480, 640), resized_size(300, 900)
    ((384, 512), (192, 608))
    """
    long = int(1333 / 800 * short) if long is None else long
    # In their order: of 2:1 images the short side is 319.5, and rounding errors decide between 288 and 320.
    scale = short / min(height, width)
    sides = [short if side == min(height, width) else scale * side for side in (height, width)]
    shrink = long / max(sides) if max(sides) > long else 1.0
    rounded_height, rounded_width = (max(int(shrink * side + 0.5) // patch * patch, patch) for side in sides)
    return rounded_height, rounded_width
