"""What the loaders of captioned pictures share: five captions a picture, as text and as tokens."""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fedjax_mm.data import wordpiece

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PER_IMAGE = 5


class Captioned(NamedTuple):
    """Captioned pictures in disjoint splits: a `Dataset` together with the strings and their tokenizer.

    splits: name -> `image` [I, H, W, 3] uint8 (perhaps a memory map, or a Streamed) and `text` [I, 5, L] int32, the
        tokens of its captions: [CLS] pieces [SEP], padded with 0. A client trains on one of the five captions in a
        step; `queries` gives all of them, for retrieval.
    captions: name -> [I, 5] str.
    files: name -> [I] str, the file name of each picture.
    """

    name: str
    splits: Mapping[str, Mapping[str, Any]]
    captions: Mapping[str, np.ndarray]
    files: Mapping[str, np.ndarray]
    tokenizer: "Tokenizer"
    modalities: tuple[str, ...] = ("image", "text")
    classes: tuple[str, ...] = ()


def tokenized(
    name: str,
    images: Mapping[str, Any],
    captions: Mapping[str, np.ndarray],
    files: Mapping[str, np.ndarray],
    tokenizer: "Tokenizer | str | os.PathLike | None",
    fit_on: Sequence[str],
    vocabulary: int,
    length: int,
) -> Captioned:
    """Returns pictures [I, H, W, 3] and captions [I, 5] str by split, with tokens of `length`.

    tokenizer: one, or the path of its vocab.txt or tokenizer.json, or None: `vocabulary` word pieces are fitted to
    `fit_on`.
    """
    tokenizer = wordpiece.choose(tokenizer, fit_on, vocabulary)
    splits = {
        split: {
            "image": image,
            "text": wordpiece.encode(tokenizer, captions[split].reshape(-1).tolist(), length).reshape(
                len(image), PER_IMAGE, length
            ),
        }
        for split, image in images.items()
    }
    return Captioned(name, splits, captions, files, tokenizer)


def queries(text: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns every caption as a query of its own: tokens [5 I, L], and the picture of each, [5 I] int32.

    text: [I, 5, L].

    >>> tokens, picture = queries(np.arange(20).reshape(2, 5, 2))
    >>> tokens.shape, picture.tolist()
    ((10, 2), [0, 0, 0, 0, 0, 1, 1, 1, 1, 1])
    """
    return text.reshape(-1, text.shape[-1]), np.repeat(np.arange(len(text), dtype=np.int32), text.shape[1])
