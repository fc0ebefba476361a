"""ViLT (Kim et al. 2021): one transformer over the words of a question and the patches of an image.

Section numbers are those of docs/specs/feddat.md; section 6 has the model, and the names of its tensors.

The layers are compiled one after the other and not as one scan, because a scan copies what it keeps, a fifth of a small
round on a CPU. The price is that a deep trunk compiles slowly: a FedDAT round over 12 layers takes minutes. (section 5)
"""

import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from fedjax_mm.models import adapters as tunings
from fedjax_mm.models import configs, pretrained, transformer, vit
from fedjax_mm.models.checks import check_dtype, check_number, check_sizes
from fedjax_mm.models.layers import run_module
from fedjax_mm.models.pretrained import BATCHED, CONV, Checkpoint, linear, tensor
from fedjax_mm.models.vilt_embeddings import Embeddings, ImageEmbeddings, Started, interpolation, resized_size
from fedjax_mm.types import Arrays, Key, PyTree

__all__ = ["Embeddings", "ImageEmbeddings", "Started", "Vilt", "base", "encoder", "from_pretrained", "interpolation"]
__all__ += ["resized_size"]

CONFIG = configs.Config(
    "vilt",
    {
        **configs.SIZES,
        "image": "image_size",
        "patch": "patch_size",
        "vocabulary": "vocab_size",
        "text_length": "max_position_embeddings",
    },
    {"hidden_act": "gelu", "layer_norm_eps": 1e-12},
)


class Vilt(NamedTuple):
    """A ViLT as pure functions over {"embeddings", "layers": leaves [L, ...], "norm", "pooler"}.

    A batch holds "image" [B, H, W, 3], uint8 (scaled to [-1, 1]) or float, padded at the right and at the bottom;
    "question" [B, T] int32, where 0 is padding; and, optionally, "size" [B, 2] int32, the real heights and widths in
    pixels, which are multiples of the patch. Without sizes the images are whole. Padding changes nothing.

    `apply(params, batch, tuning={})` gives the pooler's output, float32 [B, D]. `tuning` holds any of "adapter",
    "lora" and "prompt", as models.adapters makes them. `tokens` takes the same arguments and gives all tokens behind
    the last norm, float32 [B, T, D]: those of the text, the class token and the patches row by row; prompts stand
    behind the first token of the text and behind the class token.

    What no adapter changes, the embeddings and the first layer, can be computed once: `finish(params, start(params,
    batch), (adapter,))` is `apply` with that adapter. With several adapters their outputs are averaged in every layer.

    Parameters that do not train may be given in `dtype` from the start, so that no call has to cast them.

    >>> model = encoder(image=4, patch=2, vocabulary=9, text_length=3, dim=4, depth=2, heads=2, mlp=8)
    >>> params = jax.eval_shape(model.init, jax.random.key(0), model.example)
    >>> jax.eval_shape(model.apply, params, model.example).shape
    (1, 4)
    >>> jax.eval_shape(model.tokens, params, model.example).shape  # 3 words, the class token, 4 patches
    (1, 8, 4)
    """

    depth: int  # L
    width: int  # D
    init: Callable[[Key, Arrays], PyTree]
    apply: Callable[..., jax.Array]
    tokens: Callable[..., jax.Array]
    start: Callable[[PyTree, Arrays], Started]
    finish: Callable[[PyTree, Started, Sequence[PyTree]], jax.Array]
    example: Mapping[str, jax.ShapeDtypeStruct]  # a batch of one, in shapes
    checkpoint: Checkpoint
    vocabulary: int | None = None  # the ids of "question" are 0..vocabulary-1


class _Pieces(NamedTuple):
    """What `encoder` makes a ViLT of."""

    embeddings: nn.Module
    layer: transformer.Layer
    norm: nn.LayerNorm
    depth: int
    width: int
    lora_alpha: float


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
    own: tuple[nn.Module, Mapping[str, jax.ShapeDtypeStruct]] | None = None,
) -> Vilt:
    """A ViLT whose positions are learned on images [image, image]; those of other images are interpolated.

    vocabulary, text_length: questions have at most `text_length` words of 0..vocabulary-1.
    lora_alpha: low-rank changes are scaled by it, divided by their rank.
    std: standard deviation of the layers' first kernels.
    repository: place of the weights on huggingface.co. dtype: type of arithmetic.
    own: in place of ViLT's, a module (batch, prompts) -> (tokens [B, T, dim], mask [B, T]), and a batch of one, in
        shapes. Such a ViLT has no checkpoint and no vocabulary.

    Raises ValueError where `patch` does not divide `image`, `heads` does not divide `dim`, or `depth` is below 1.
    """
    check_sizes(image=image, patch=patch, vocabulary=vocabulary, text_length=text_length, dim=dim, heads=heads, mlp=mlp)
    check_sizes(0, depth=depth)
    check_number("lora_alpha", lora_alpha)
    check_number("std", std)
    check_dtype(dtype)
    if image % patch or dim % heads or depth < 1:
        sizes = f"image {image}, patch {patch}, dim {dim}, heads {heads}, depth {depth}"
        raise ValueError(f"patch must divide image, heads dim, and depth be at least 1; got {sizes}")
    embeddings: nn.Module = Embeddings(vocabulary, text_length, image // patch, patch, dim, dtype=dtype)
    layer = transformer.Layer(heads, mlp, std=std, dtype=dtype)
    norm = nn.LayerNorm(layer.epsilon, use_fast_variance=False)
    pieces = _Pieces(own[0] if own else embeddings, layer, norm, depth, dim, lora_alpha)
    example = {
        "image": jax.ShapeDtypeStruct((1, image, image, 3), jnp.uint8),
        "question": jax.ShapeDtypeStruct((1, text_length), jnp.int32),
    }
    others = ("mlm_score.", "classifier.", "rank_output.")
    sizes = {"image": image, "patch": patch, "vocabulary": vocabulary, "text_length": text_length, "dim": dim}
    config = configs.stated(CONFIG, depth=depth, heads=heads, mlp=mlp, **sizes)
    checkpoint = Checkpoint(_names(depth), "vilt.", others, repository, stacked=True, config=config)
    return Vilt(
        depth,
        dim,
        init=functools.partial(_init, pieces),
        apply=functools.partial(_apply, pieces),
        tokens=functools.partial(_tokens, pieces),
        start=functools.partial(_start, pieces),
        finish=functools.partial(_finish, pieces),
        example=own[1] if own else example,
        checkpoint=Checkpoint({}, "", ()) if own else checkpoint,
        vocabulary=None if own else vocabulary,
    )


def _init(pieces: _Pieces, key: Key, batch: Arrays) -> PyTree:
    keys = jax.random.split(key, 3)
    x = jnp.zeros((1, 1, pieces.width))
    pooler = nn.Dense(pieces.width, kernel_init=nn.initializers.normal(0.02))
    init_layer = jax.vmap(lambda key: pieces.layer.init(key, x)["params"])
    return {
        "embeddings": pieces.embeddings.init(keys[0], batch)["params"],
        "layers": init_layer(jax.random.split(keys[1], pieces.depth)),
        "norm": pieces.norm.init(keys[2], x)["params"],
        "pooler": pooler.init(keys[2], x)["params"],
    }


def _embed(pieces: _Pieces, params: PyTree, batch: Arrays, prompts: Mapping[str, jax.Array] | None = None) -> Started:
    return run_module(pieces.embeddings, params["embeddings"], batch, prompts)


def _layer(pieces: _Pieces, params: PyTree, h: jax.Array, mask: jax.Array, changes: Mapping[str, PyTree]) -> jax.Array:
    """One layer [B, T, D] -> [B, T, D] with the low-rank changes of its query and value."""
    with nn.intercept_methods(tunings.low_rank(changes, pieces.lora_alpha)):
        return run_module(pieces.layer, params, h, mask)


def _layers_from(
    pieces: _Pieces, params: PyTree, started: Started, first: int, sites: tuple[PyTree, ...], lora: PyTree
) -> jax.Array:
    """The layers numbered `first` or more, each with its adapters and low-rank changes: [B, T, D] -> [B, T, D]."""
    h, mask = started
    for number in range(first, pieces.depth):  # a scan copies what it keeps, a fifth of a small round
        trunk, site, changes = _at((params["layers"], sites, lora), number)
        h = tunings.adapted(site, _layer(pieces, trunk, h, mask, changes))
    return h


def _normed(pieces: _Pieces, params: PyTree, h: jax.Array) -> jax.Array:
    return run_module(pieces.norm, params["norm"], h.astype(jnp.float32))


def _hidden(pieces: _Pieces, params: PyTree, batch: Arrays, tuning: Mapping[str, PyTree]) -> jax.Array:
    """All tokens [B, T, D] after the last layer, before the norm."""
    if unknown := tuning.keys() - {"adapter", "lora", "prompt"}:
        raise ValueError(f"tuning may hold adapter, lora and prompt, got {sorted(unknown)}")
    prompts = tunings.prompts(tuning["prompt"]) if "prompt" in tuning else None
    started = _embed(pieces, params, batch, prompts)
    sites = (tuning["adapter"],) if "adapter" in tuning else ()
    return _layers_from(pieces, params, started, 0, sites, tuning.get("lora", {}))


def _apply(pieces: _Pieces, params: PyTree, batch: Arrays, tuning: Mapping[str, PyTree] = {}) -> jax.Array:
    h = _hidden(pieces, params, batch, tuning)
    return transformer.pooled(params, _normed(pieces, params, h[:, :1]))


def _tokens(pieces: _Pieces, params: PyTree, batch: Arrays, tuning: Mapping[str, PyTree] = {}) -> jax.Array:
    return _normed(pieces, params, _hidden(pieces, params, batch, tuning))


def _start(pieces: _Pieces, params: PyTree, batch: Arrays) -> Started:
    h, mask = _embed(pieces, params, batch)
    return _layer(pieces, _at(params["layers"], 0), h, mask, {}), mask


def _finish(pieces: _Pieces, params: PyTree, started: Started, adapters: Sequence[PyTree]) -> jax.Array:
    h, mask = started
    sites = tuple(adapters)
    h = _layers_from(pieces, params, (tunings.adapted(_at(sites, 0), h), mask), 1, sites, {})
    return transformer.pooled(params, _normed(pieces, params, h[:, :1]))


def from_pretrained(
    folder: str | pathlib.Path, lora_alpha: float = 16.0, dtype: jax.typing.DTypeLike = jnp.float32
) -> tuple[Vilt, PyTree]:
    """(the ViLT that a Hugging Face folder's config.json describes, its parameters).

    lora_alpha, dtype: as `encoder` takes them. Raises what `pretrained.load` raises, and FileNotFoundError or
    ValueError where config.json is missing, damaged, or describes no ViLT.
    """
    model = encoder(**configs.arguments_of(folder, CONFIG), lora_alpha=lora_alpha, dtype=dtype)
    return model, pretrained.load(model, folder)


def base(lora_alpha: float = 16.0, dtype: jax.typing.DTypeLike = jnp.float32) -> Vilt:
    """ViLT-B/32: 12 layers of width 768, positions of 384x384 images and of 40 words; 111,595,008 parameters."""
    return encoder(lora_alpha=lora_alpha, repository="dandelin/vilt-b32-mlm", dtype=dtype)


def _at(stack: PyTree, number: int) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[number], stack)


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
