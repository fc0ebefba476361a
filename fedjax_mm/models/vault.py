"""VAuLT (Chochlakis et al. 2022, arXiv 2208.09021): a ViLT that reads what a frozen BERT makes of the question."""

import pathlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from fedjax_mm.models import bert, vilt
from fedjax_mm.models.transformer import Transformer
from fedjax_mm.models.vilt import Started, Vilt
from fedjax_mm.types import Arrays, Key, PyTree


def encoder(language: Transformer, trunk: Vilt) -> Vilt:
    """The `trunk`, whose word vectors are what `language` gives of the question's tokens.

    Its parameters are those of the trunk without its own word vectors, and "language", those of the encoder. BERT runs
    in `start`, because no adapter changes it, and without dropout. Positions, type and norm of the trunk's text stay.

    language: a bert.encoder, or whatever has its `init`, its `tokens` [B, T] -> [B, T, D], and its checkpoint.
    Raises ValueError where their widths or their vocabularies differ.

    >>> read = bert.encoder(vocabulary=9, dim=4, depth=1, heads=2, mlp=8, positions=3, types=2)
    >>> trunk = vilt.encoder(image=4, patch=2, vocabulary=9, text_length=3, dim=4, depth=2, heads=2, mlp=8)
    >>> model = encoder(read, trunk)
    >>> params = jax.eval_shape(model.init, jax.random.key(0), model.example)
    >>> sorted(params["embeddings"]["text"]), jax.eval_shape(model.apply, params, model.example).shape
    (['norm', 'positions', 'types'], (1, 4))
    """
    if language.width != trunk.width or language.vocabulary != trunk.vocabulary:
        of = lambda model: f"width {model.width} and {model.vocabulary} words"
        raise ValueError(f"the text encoder has {of(language)}, the trunk {of(trunk)}; they must be the same")

    def told(params: PyTree, batch: Arrays) -> Arrays:
        return {**batch, "words": language.tokens(params["language"], batch["question"])}

    def init(key: Key, batch: Arrays) -> PyTree:
        keys, question = jax.random.split(key), jnp.zeros(batch["question"].shape, jnp.int32)
        words = jnp.zeros((*question.shape, trunk.width))
        return {"language": language.init(keys[0], question)} | trunk.init(keys[1], {**batch, "words": words})

    def apply(params: PyTree, batch: Arrays, tuning: Mapping[str, PyTree] = {}) -> jax.Array:
        return trunk.apply(params, told(params, batch), tuning)

    def tokens(params: PyTree, batch: Arrays, tuning: Mapping[str, PyTree] = {}) -> jax.Array:
        return trunk.tokens(params, told(params, batch), tuning)

    def start(params: PyTree, batch: Arrays) -> Started:
        return trunk.start(params, told(params, batch))

    kept = {ours: entry for ours, entry in trunk.checkpoint.names.items() if ours != "embeddings/text/word"}
    read = {f"language/{ours}": (f"bert.{name}", layout) for ours, (name, layout) in language.checkpoint.names.items()}
    checkpoint = trunk.checkpoint._replace(names=kept | read, repository="", config={})
    return trunk._replace(init=init, apply=apply, tokens=tokens, start=start, checkpoint=checkpoint)


def from_pretrained(
    folder: str | pathlib.Path,
    language: str | pathlib.Path,
    lora_alpha: float = 16.0,
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> tuple[Vilt, PyTree]:
    """(the VAuLT of a ViLT's folder and a BERT's folder, its parameters), as vilt and bert `from_pretrained` read them.

    folder: of the ViLT; language: of the BERT. lora_alpha, dtype: as vilt.encoder takes them. Raises what these two
    raise, and ValueError where the two do not fit.
    """
    trunk, params = vilt.from_pretrained(folder, lora_alpha, dtype)
    read, words = bert.from_pretrained(language, dtype=dtype)
    model = encoder(read, trunk)
    text = {name: leaf for name, leaf in params["embeddings"]["text"].items() if name != "word"}
    return model, {**params, "language": words, "embeddings": {**params["embeddings"], "text": text}}


def base(dtype: jax.typing.DTypeLike = jnp.float32) -> Vilt:
    """BERT-base, uncased, below ViLT-B/32: 12 layers of width 768 each."""
    return encoder(bert.encoder(depth=12, types=2, dtype=dtype), vilt.base(dtype=dtype))
