"""WordPiece tokens by Hugging Face's `tokenizers`: BERT's vocabulary from a file, or one trained on texts."""

import os
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PAD = 0
SOURCE = "https://huggingface.co/google-bert/bert-base-uncased"


def load(path: str | os.PathLike) -> Tokenizer:
    """The tokenizer of a checkpoint: its vocab.txt (a token a line; read as uncased BERT does) or tokenizer.json.

    Raises FileNotFoundError, or ValueError where the file is no vocabulary, lacks one of [UNK], [CLS], [SEP], or has
    another number than 0 for [PAD].
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; give a BERT vocab.txt or tokenizer.json, as {SOURCE} has")
    if path.suffix == ".json":
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise ValueError(f"{path} is cut off or no tokenizer.json ({error}); get it again") from error
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return _finished(tokenizer, path)
    try:
        words = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no vocab.txt ({error}); it must have one token a line") from error
    return _wordpiece({word: number for number, word in enumerate(words)}, path)


def train(texts: Iterable[str], vocabulary_size: int) -> Tokenizer:
    """A tokenizer of at most `vocabulary_size` lower-cased word pieces, fitted to texts; the same in every run.

    Its numbers 0 to 4 are [PAD], [UNK], [CLS], [SEP], [MASK]. Raises ValueError where the texts have too many
    different characters for a vocabulary of that size.
    """
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
    trainer = trainers.WordPieceTrainer(vocab_size=vocabulary_size, special_tokens=known, show_progress=False)
    learner.train_from_iterator(texts, trainer)
    return _wordpiece(learner.get_vocab(), "the trained vocabulary")


def encode(tokenizer: Tokenizer, texts: Sequence[str], length: int) -> np.ndarray:
    """[CLS] pieces [SEP] of each text as int32 [M, length], cut so that [SEP] is still in, padded with 0 ([PAD])."""
    if length < 3:
        raise ValueError(f"length is {length}; it must hold [CLS], [SEP] and at least one token: 3 or more")
    tokens = np.full((len(texts), length), PAD, np.int32)
    for row, encoding in zip(tokens, tokenizer.encode_batch_fast(list(texts)), strict=True):
        ids = encoding.ids
        if len(ids) > length:
            ids = [*ids[: length - 1], ids[-1]]
        row[: len(ids)] = ids
    return tokens


def _bert(vocabulary: dict[str, int]) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def _wordpiece(vocabulary: dict[str, int], origin: str | os.PathLike) -> Tokenizer:
    tokenizer = _bert(vocabulary)
    return _finished(tokenizer, origin)


def _finished(tokenizer: Tokenizer, origin: str | os.PathLike) -> Tokenizer:
    if missing := [token for token in SPECIAL[:4] if tokenizer.token_to_id(token) is None]:
        raise ValueError(f"{origin} has no token {missing[0]}; a BERT vocabulary has {', '.join(SPECIAL[:4])}")
    if (number := tokenizer.token_to_id("[PAD]")) != PAD:
        raise ValueError(f"{origin} has [PAD] as number {number}; models take 0 for padding, so it must come first")
    cls, sep = ((token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]"))
    tokenizer.post_processor = processors.BertProcessing(sep, cls)
    return tokenizer
