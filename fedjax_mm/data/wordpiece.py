"""WordPiece tokens by Hugging Face's `tokenizers`: BERT's vocabulary from a file, or one trained on texts."""

import numbers
import os
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from fedjax_mm import _lazy
from fedjax_mm.data import arguments
from fedjax_mm.data.text_files import read_lines

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PAD = 0
SPECIAL_TOKEN = re.compile(r"\[.*\]|<.*>")  # such as [CLS] and [unused7]
STRAY = (
    0.001  # the share of tokens with capitals that may stand in an uncased vocabulary; of cased ones it is a quarter
)
SOURCE = "https://huggingface.co/google-bert/bert-base-uncased"


def load(path: str | os.PathLike) -> "Tokenizer":
    """Returns the tokenizer of a checkpoint.

    path: its vocab.txt, which has a token a line and is read as uncased BERT reads it, or its tokenizer.json, which
    says itself how it is read. Raises FileNotFoundError, or ValueError where the file is no vocabulary or that of a
    cased model, names a token twice, lacks one of [UNK], [CLS], [SEP], or has another number than 0 for [PAD].
    """
    tokenizers = _lazy.require("tokenizers", "text")
    path = arguments.check_folder("tokenizer", path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; give a BERT vocab.txt or tokenizer.json, as {SOURCE} has")
    if path.suffix == ".json":
        try:
            tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise ValueError(f"{path} is cut off or no tokenizer.json ({error}); get it again") from error
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return _frame(tokenizer, path)
    words = read_lines(path, "a vocab.txt has one token a line")
    _check_words(words, path)
    return _frame(_bert({word: number for number, word in enumerate(words)}), path)


def train(texts: Iterable[str], vocabulary_size: int) -> "Tokenizer":
    """Returns a tokenizer of at most `vocabulary_size` lower-cased word pieces fitted to texts, the same in every run.

    Its numbers 0 to 4 are [PAD], [UNK], [CLS], [SEP], [MASK]. Raises ValueError where the texts have too many
    different characters for a vocabulary of that size.
    """
    arguments.check_whole(1, vocabulary_size=vocabulary_size)
    if isinstance(texts, str):
        raise ValueError(f"texts is the text {texts[:40]!r}; give a list of texts")
    texts = list(texts)
    learner = _bert({token: number for number, token in enumerate(SPECIAL)})
    characters = sorted({c for text in texts for c in learner.normalizer.normalize_str(text) if not c.isspace()})
    # Naming the pieces of one character beforehand gives them fixed numbers. Left to itself the library numbers them
    # in the order of a hash table, which differs from run to run, and breaks ties between merges by these numbers.
    known = [*SPECIAL, *characters, *(f"##{character}" for character in characters)]
    if not characters or len(known) > vocabulary_size:
        raise ValueError(
            f"{len(texts)} texts with {len(characters)} different characters do not fit a vocabulary of "
            f"{vocabulary_size}; give texts, and a size of at least {len(known)}"
        )
    trainer = _lazy.require("tokenizers.trainers", "text").WordPieceTrainer(
        vocab_size=vocabulary_size, special_tokens=known, show_progress=False
    )
    learner.train_from_iterator(texts, trainer)
    return _frame(_bert(learner.get_vocab()), "the trained vocabulary")


def choose(
    tokenizer: "Tokenizer | str | os.PathLike | None", texts: Iterable[str], vocabulary_size: int
) -> "Tokenizer":
    """Returns the tokenizer that a loader's argument means.

    tokenizer: one, or the path of its vocab.txt or tokenizer.json, or None: `vocabulary_size` word pieces are fitted
    to the texts.
    """
    if tokenizer is None:
        return train(texts, vocabulary_size)
    if isinstance(tokenizer, str | os.PathLike):
        return load(tokenizer)
    if not isinstance(tokenizer, _lazy.require("tokenizers", "text").Tokenizer):
        raise ValueError(f"tokenizer is {tokenizer!r}; give a tokenizers.Tokenizer, the path of its file, or None")
    return tokenizer


def encode(tokenizer: "Tokenizer", texts: Sequence[str], length: int) -> np.ndarray:
    """Returns [CLS] pieces [SEP] of each text as int32 [M, length].

    A text that is too long loses pieces before its [SEP]; a shorter one is padded with 0, [PAD].
    """
    if not isinstance(length, numbers.Integral) or length < 3:
        raise ValueError(f"length is {length!r}; it must hold [CLS], [SEP] and at least one token: 3 or more")
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise ValueError("texts are not all text; give a list of texts")
    tokens = np.full((len(texts), length), PAD, np.int32)
    for row, encoding in zip(tokens, tokenizer.encode_batch_fast(list(texts)), strict=True):
        ids = encoding.ids
        if len(ids) > length:
            ids = [*ids[: length - 1], ids[-1]]
        row[: len(ids)] = ids
    return tokens


def _check_words(words: Sequence[str], path: pathlib.Path) -> None:
    """Refuses words that are twice there, and those of a cased model, of which lower-cased names find nothing."""
    first = {}
    for number, word in enumerate(words, 1):
        if first.setdefault(word, number) != number:
            raise ValueError(
                f"{path} has the token {word!r} in lines {first[word]} and {number}; a vocabulary has each once"
            )
    cased = [word for word in words if not SPECIAL_TOKEN.fullmatch(word) and word != word.lower()]
    if len(cased) > STRAY * len(words):
        raise ValueError(
            f"{path} is of a cased model: {len(cased)} of {len(words)} tokens have capitals, as {cased[0]!r}, and "
            "would be read as uncased; give the model's tokenizer.json, which says so, or an uncased vocab.txt"
        )


def _bert(vocabulary: dict[str, int]) -> "Tokenizer":
    tokenizers = _lazy.require("tokenizers", "text")
    model = tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100)
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    return tokenizer


def _frame(tokenizer: "Tokenizer", origin: str | os.PathLike) -> "Tokenizer":
    """Makes the tokenizer put [CLS] before and [SEP] behind a text; refuses one that lacks a special token."""
    if missing := [token for token in SPECIAL[:4] if tokenizer.token_to_id(token) is None]:
        raise ValueError(f"{origin} has no token {missing[0]}; a BERT vocabulary has {', '.join(SPECIAL[:4])}")
    if (number := tokenizer.token_to_id("[PAD]")) != PAD:
        raise ValueError(f"{origin} has [PAD] as number {number}; models take 0 for padding, so it must come first")
    cls, sep = ((token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]"))
    tokenizer.post_processor = _lazy.require("tokenizers.processors", "text").BertProcessing(sep, cls)
    return tokenizer
