"""What an ALBEF computes, from its pieces: what no adapter changes, then the rest with adapters, then words.

The three parts of the parameters are named as their sites are: "image" for the ViT, "text" for BERT, "decoder".
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from fedjax_mm.models import adapters as tunings
from fedjax_mm.models import bert, vit
from fedjax_mm.models.attention import dropout
from fedjax_mm.models.layers import gelu, run_module
from fedjax_mm.models.transformer_layer import Layer
from fedjax_mm.types import Arrays, Key, PyTree

MEAN, DEVIATION = (
    (0.48145466, 0.4578275, 0.40821073),
    (0.26862954, 0.26130258, 0.27577711),
)  # CLIP's, of red, green, blue


class Started(NamedTuple):
    """What no adapter changes: the picture after its first layer, the question's and the answers' embeddings."""

    image: jax.Array  # [B, 1 + patches, D]
    question: jax.Array  # [B, T, D]
    is_word: jax.Array  # [B, T] bool
    choices: jax.Array  # [B K, L, D]
    is_piece: jax.Array  # [B, K, L] bool


class WordHead(nn.Module):
    """Hidden [..., D] and word vectors [V, D] -> logits float32 [..., V]: linear, exact gelu, norm, product, bias."""

    vocabulary: int
    std: float
    dtype: jax.typing.DTypeLike

    @nn.compact
    def __call__(self, hidden: jax.Array, words: jax.Array) -> jax.Array:
        kernel = nn.initializers.normal(self.std)
        x = nn.Dense(hidden.shape[-1], kernel_init=kernel, dtype=self.dtype, name="dense")(hidden)
        x = nn.LayerNorm(1e-12, use_fast_variance=False, dtype=self.dtype, name="norm")(gelu(x))
        bias = self.param("bias", nn.initializers.zeros, (self.vocabulary,))
        logits = jnp.matmul(x, words.T.astype(x.dtype), preferred_element_type=jnp.float32)
        return logits + bias.reshape((1,) * (logits.ndim - 1) + bias.shape)


class Pieces(NamedTuple):
    """What `albef.encoder` makes an ALBEF of."""

    patches: vit.Embeddings
    image: Layer
    norm: nn.LayerNorm
    words: bert.Embeddings
    text: Layer
    decoder: Layer
    head: WordHead
    depths: Mapping[str, int]
    dropout: float
    width: int

    @property
    def fusion(self) -> int:
        """The number of BERT's first layer that sees the picture."""
        return self.depths["text"] // 2


def init(pieces: Pieces, key: Key, batch: Arrays) -> PyTree:
    """All parameters: {"image", "text", "decoder", "head"}."""
    keys = iter(jax.random.split(key, 5 + sum(pieces.depths.values())))
    x = jnp.zeros((1, 1, pieces.width))
    fresh = lambda module, *args: module.init(next(keys), *args)["params"]
    memory = lambda part, i: x if part == "decoder" or (part == "text" and i >= pieces.fusion) else None
    layer = lambda part, i: fresh(getattr(pieces, part), x, None, None, memory(part, i))
    layers = {part: {f"{i:02d}": layer(part, i) for i in range(depth)} for part, depth in pieces.depths.items()}
    token = jnp.zeros((1, 1), jnp.int32)
    return {
        "image": {
            "embeddings": fresh(pieces.patches, jnp.zeros(batch["image"].shape)),
            "layers": layers["image"],
            "norm": fresh(pieces.norm, x),
        },
        "text": {"embeddings": fresh(pieces.words, token), "layers": layers["text"]},
        "decoder": {"embeddings": fresh(pieces.words, token), "layers": layers["decoder"]},
        "head": init_head(pieces, next(keys)),
    }


def init_head(pieces: Pieces, key: Key) -> PyTree:
    """A fresh head: dense, norm, bias [vocabulary]."""
    return pieces.head.init(key, jnp.zeros((1, pieces.width)), jnp.zeros((pieces.head.vocabulary, pieces.width)))[
        "params"
    ]


def start(pieces: Pieces, key: Key | None, params: PyTree, batch: Arrays) -> Started:
    """What no adapter changes, with the dropout that `key` draws."""
    image, choices = params["image"], batch["choices"]
    if choices.ndim != 3 or not jnp.issubdtype(choices.dtype, jnp.integer):
        raise ValueError(f"choices must be integers [B, K, L], got {choices.dtype} {choices.shape}")
    h = run_module(pieces.patches, image["embeddings"], _normalised(batch["image"]))
    h = run_module(pieces.image, image["layers"]["00"], h)

    def embedded(part: str, tokens: jax.Array, place: int) -> jax.Array:
        x = run_module(pieces.words, params[part]["embeddings"], tokens)
        return dropout(x, pieces.dropout, _fold(key, place))

    words = embedded("decoder", choices.reshape(-1, choices.shape[-1]), 1)
    return Started(h, embedded("text", batch["question"], 0), batch["question"] != 0, words, choices != 0)


def finish(
    pieces: Pieces, key: Key | None, params: PyTree, started: Started, adapters: Sequence[PyTree]
) -> dict[str, jax.Array]:
    """{"hidden" [B, K, L, D], "words" [vocabulary, D]} with the mean of the adapters' outputs in every layer."""
    sites = lambda part, i: tuple(jax.tree.map(lambda leaf: leaf[i], tree[part]) for tree in adapters)
    h = tunings.adapted(sites("image", 0), started.image)
    for i in range(1, pieces.depths["image"]):
        h = tunings.adapted(sites("image", i), run_module(pieces.image, params["image"]["layers"][f"{i:02d}"], h))
    seen = run_module(pieces.norm, params["image"]["norm"], h)

    def post_norm(part: str, i: int, *args: Any) -> jax.Array:
        change = functools.partial(tunings.change, sites(part, i)) if adapters else None
        return run_module(getattr(pieces, part), params[part]["layers"][f"{i:02d}"], *args, change)

    x = started.question
    for i in range(pieces.depths["text"]):
        drops, memory = _fold(key, 100 + i), seen if i >= pieces.fusion else None
        x = post_norm("text", i, x, started.is_word, drops, memory, None)
    y, is_piece = started.choices, started.is_piece
    for i in range(pieces.depths["decoder"]):
        mask = is_piece.reshape(-1, is_piece.shape[-1])
        y = post_norm("decoder", i, y, mask, _fold(key, 200 + i), x, started.is_word)
    return {"hidden": y.reshape(*is_piece.shape, -1), "words": params["decoder"]["embeddings"]["word"]}


def word_logits(pieces: Pieces, head: PyTree, features: Mapping[str, jax.Array]) -> jax.Array:
    """The logits of the next word behind each place, float32 [..., vocabulary], of `finish`'s features."""
    return run_module(pieces.head, head, features["hidden"], features["words"])


def _normalised(image: jax.Array) -> jax.Array:
    """uint8 pictures as CLIP's encoders take them; others as they are."""
    if image.dtype != jnp.uint8:
        return image
    mean, deviation = (jnp.array(x).reshape(1, 1, 1, 3) for x in (MEAN, DEVIATION))
    return (image.astype(jnp.float32) / 255 - mean) / deviation


def _fold(key: Key | None, place: int) -> Key | None:
    return None if key is None else jax.random.fold_in(key, place)
