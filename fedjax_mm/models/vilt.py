"""ViLT (Kim et al. 2021): one transformer over the words of a question and the patches of an image."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from fedjax_mm.models import adapters as tunings
from fedjax_mm.models import bert, pretrained, transformer, vit
from fedjax_mm.models.layers import Conv, pixels
from fedjax_mm.models.pretrained import BATCHED, CONV, Checkpoint, linear, tensor
from fedjax_mm.types import Arrays, Key, PyTree

Started = tuple[jax.Array, jax.Array]  # h [B, T, D] and its mask [B, T], True at real tokens


class Vilt(NamedTuple):
    """Pure functions over {"embeddings", "layers": leaves [L, ...], "norm", "pooler"}.

    A batch is "image" [B, H, W, 3], uint8 (scaled to [-1, 1]) or float, padded at the right and at the bottom;
    optionally "size" [B, 2] int32, the real heights and widths in pixels, multiples of the patch (without it images are
    whole); and "question" [B, T] int32, where 0 is padding. Padding changes nothing.

    `apply(params, batch, tuning={})` gives the pooler's output, float32 [B, D]; `tuning` holds any of "adapter",
    "lora" and "prompt", as models.adapters makes them. `tokens`, with the same arguments, gives all tokens behind the
    last norm, float32 [B, T, D]: the text's, the class token and the patches row by row, with prompts behind the first
    token of each.

    What adapters leave alone, the embeddings and the first layer, can be computed once: `finish(params, start(params,
    batch), (adapter,))` is `apply` with that adapter, and with several their outputs are averaged in every layer.

    Parameters that do not train may be given in `dtype` to begin with, which spares casting them in every call.
    """

    depth: int  # L
    width: int  # D
    init: Callable[[Key, Arrays], PyTree]
    apply: Callable[..., jax.Array]
    tokens: Callable[..., jax.Array]
    start: Callable[[PyTree, Arrays], Started]
    finish: Callable[[PyTree, Started, Sequence[PyTree]], jax.Array]
    example: Arrays  # a batch of one, in shapes
    checkpoint: Checkpoint


def interpolation(length: jax.Array, size: int, grid: int) -> jax.Array:
    """Rows that stretch `grid` values over the first `length` of `size` places, corners to corners: [B, size, grid].

    length [B]; rows behind it are 0. Bilinear, as PyTorch does with align_corners.
    """
    places = jnp.arange(size, dtype=jnp.float32)[None]
    source = places * ((grid - 1) / jnp.maximum(length - 1, 1)[:, None])
    weight = jnp.maximum(1 - jnp.abs(source[..., None] - jnp.arange(grid)[None, None]), 0)
    return jnp.where((places < length[:, None])[..., None], weight, 0)


class ImageEmbeddings(nn.Module):
    """Images [B, H, W, 3] and sizes [B, 2] in pixels -> [B, 1 + patches, D] and a mask: the class token, then patches.

    Positions are learned on a grid of patches and stretched over each image's own. Parameters: patch (kernel
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
    """A batch -> [B, T, D] and its mask [B, T]: text, then image, each plus its modality's vector.

    `prompts` holds tokens [length, D] to insert behind the first one of "text" and of "image". Parameters: text (see
    bert.Embeddings), image (see above), modality [2, D].
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
        text = read(question), question != 0
        see = ImageEmbeddings(self.grid, self.patch, self.dim, self.dtype, name="image")
        image = see(batch["image"], batch.get("size"))
        modality = self.param("modality", nn.initializers.normal(0.02), (2, self.dim))
        if prompts is not None:
            text, image = _inserted(*text, prompts["text"]), _inserted(*image, prompts["image"])
        x = jnp.concatenate([text[0] + modality[None, :1], image[0] + modality[None, 1:]], axis=1)
        return x.astype(self.dtype), jnp.concatenate([text[1], image[1]], axis=1)


def encoder(
    image: int = 384,
    patch: int = 32,
    vocabulary: int = 30522,
    text_length: int = 40,
    dim: int = 768,
    depth: int = 12,
    heads: int = 12,
    mlp: int = 3072,
    lora_alpha: float = 16.0,
    std: float = 0.02,
    repository: str = "",
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> Vilt:
    """A ViLT whose positions are learned on images [image, image]; others' are interpolated.

    Questions have at most `text_length` words of 0..vocabulary-1. `lora_alpha` over the rank scales low-rank changes.
    `std` is that of the layers' first kernels, `repository` where on huggingface.co its weights are, and `dtype` is for
    arithmetic.
    """
    if image % patch or dim % heads or depth < 1:
        sizes = f"image {image}, patch {patch}, dim {dim}, heads {heads}, depth {depth}"
        raise ValueError(f"patch must divide image, heads dim, and depth be at least 1; got {sizes}")
    embeddings = Embeddings(vocabulary, text_length, image // patch, patch, dim, dtype=dtype)
    block = transformer.Layer(heads, mlp, std=std, dtype=dtype)
    norm = nn.LayerNorm(block.epsilon, use_fast_variance=False)

    def init(key: Key, batch: Arrays) -> PyTree:
        keys = jax.random.split(key, 3)
        x = jnp.zeros((1, 1, dim))
        return {
            "embeddings": embeddings.init(keys[0], batch)["params"],
            "layers": jax.vmap(lambda key: block.init(key, x)["params"])(jax.random.split(keys[1], depth)),
            "norm": norm.init(keys[2], x)["params"],
            "pooler": nn.Dense(dim, kernel_init=nn.initializers.normal(0.02)).init(keys[2], x)["params"],
        }

    def embedded(params: PyTree, batch: Arrays, prompts: Mapping[str, jax.Array] | None = None) -> Started:
        return embeddings.apply({"params": params["embeddings"]}, batch, prompts)

    def layer(params: PyTree, h: jax.Array, mask: jax.Array, changes: Mapping[str, PyTree]) -> jax.Array:
        with nn.intercept_methods(tunings.low_rank(changes, lora_alpha)):
            return block.apply({"params": params}, h, mask)

    def later(params: PyTree, h: jax.Array, mask: jax.Array, first: int, sites: tuple, lora: PyTree) -> jax.Array:
        for number in range(first, depth):  # a scan copies what it keeps, a fifth of a small round
            trunk, site, changes = _at((params["layers"], sites, lora), number)
            h = tunings.adapted(site, layer(trunk, h, mask, changes))
        return h

    def normed(params: PyTree, h: jax.Array) -> jax.Array:
        return norm.apply({"params": params["norm"]}, h.astype(jnp.float32))

    def hidden(params: PyTree, batch: Arrays, tuning: Mapping[str, PyTree]) -> jax.Array:
        if unknown := tuning.keys() - {"adapter", "lora", "prompt"}:
            raise ValueError(f"tuning may hold adapter, lora and prompt, got {sorted(unknown)}")
        prompts = tunings.prompts(tuning["prompt"]) if "prompt" in tuning else None
        h, mask = embedded(params, batch, prompts)
        sites = (tuning["adapter"],) if "adapter" in tuning else ()
        return later(params, h, mask, 0, sites, tuning.get("lora", {}))

    def apply(params: PyTree, batch: Arrays, tuning: Mapping[str, PyTree] = {}) -> jax.Array:
        return transformer.pooled(params, normed(params, hidden(params, batch, tuning)[:, :1]))

    def tokens(params: PyTree, batch: Arrays, tuning: Mapping[str, PyTree] = {}) -> jax.Array:
        return normed(params, hidden(params, batch, tuning))

    def start(params: PyTree, batch: Arrays) -> Started:
        h, mask = embedded(params, batch)
        return layer(_at(params["layers"], 0), h, mask, {}), mask

    def finish(params: PyTree, started: Started, adapters: Sequence[PyTree]) -> jax.Array:
        h, mask = started
        h = later(params, tunings.adapted(_at(tuple(adapters), 0), h), mask, 1, tuple(adapters), {})
        return transformer.pooled(params, normed(params, h[:, :1]))

    example = {
        "image": jax.ShapeDtypeStruct((1, image, image, 3), jnp.uint8),
        "question": jax.ShapeDtypeStruct((1, text_length), jnp.int32),
    }
    others = ("mlm_score.", "classifier.", "rank_output.")
    checkpoint = Checkpoint(_names(depth), "vilt.", others, repository, stacked=True)
    return Vilt(depth, dim, init, apply, tokens, start, finish, example, checkpoint)


def base(lora_alpha: float = 16.0, dtype: jax.typing.DTypeLike = jnp.float32) -> Vilt:
    """ViLT-B/32: 12 layers of width 768, positions of images of 384x384 and of 40 words; 111,595,008 parameters."""
    return encoder(lora_alpha=lora_alpha, repository="dandelin/vilt-b32-mlm", dtype=dtype)


def resized_size(
    height: int, width: int, short: int = 384, long: int | None = None, patch: int = 32
) -> tuple[int, int]:
    """The (height, width) to resize an image to: its short side `short`, its long one at most `long`, in whole patches.

    `long` is 1333/800 of `short` unless given, 639 for 384: at most 12 x 19 patches. Sides are rounded down to whole
    patches, but not to none. (Hugging Face's ViltImageProcessor, which interpolates bicubically)
    """
    long = int(1333 / 800 * short) if long is None else long
    # In their order: of 2:1 images the short side is 319.5, and rounding errors decide between 288 and 320.
    scale = short / min(height, width)
    sides = [short if side == min(height, width) else scale * side for side in (height, width)]
    shrink = long / max(sides) if max(sides) > long else 1.0
    return tuple(max(int(shrink * side + 0.5) // patch * patch, patch) for side in sides)


def _at(stack: PyTree, number: int) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[number], stack)


def _inserted(x: jax.Array, mask: jax.Array, prompt: jax.Array) -> Started:
    """x [B, T, D] and its mask with `prompt` [length, D] behind the first token."""
    more = jnp.broadcast_to(prompt[None].astype(x.dtype), (x.shape[0], *prompt.shape))
    real = jnp.ones(more.shape[:2], bool)
    behind = lambda x, more: jnp.concatenate([x[:, :1], more, x[:, 1:]], axis=1)
    return behind(x, more), behind(mask, real)


def _names(depth: int) -> pretrained.Names:
    words, image = "embeddings.text_embeddings", "embeddings/image"
    return (
        tensor(f"{words}.word_embeddings.weight", "embeddings/text/word")
        | tensor(f"{words}.position_embeddings.weight", "embeddings/text/positions")
        | tensor(f"{words}.token_type_embeddings.weight", "embeddings/text/types")
        | pretrained.norm(f"{words}.LayerNorm", "embeddings/text/norm")
        | linear("embeddings.patch_embeddings.projection", f"{image}/patch", CONV)
        | tensor("embeddings.cls_token", f"{image}/cls", BATCHED)
        | tensor("embeddings.position_embeddings", f"{image}/positions", BATCHED)
        | tensor("embeddings.token_type_embeddings.weight", "embeddings/modality")
        | vit.layer_names(depth)
        | pretrained.norm("layernorm", "norm")
        | linear("pooler.dense", "pooler")
    )
