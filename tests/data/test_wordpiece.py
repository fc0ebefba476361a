import json

import numpy as np
import pytest

from fedjax_mm.data import wordpiece

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "dog", "run", "##s", "##ning", "cafe", ",", "r", "##u", "##n"]
TEXTS = ["A dog runs, running.", "the dogs RAN up the hill", "a hill with dogs and cats", "cats & dogs (two) run"]


@pytest.fixture
def vocab(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(WORDS) + "\n")
    return path


def greedy(word):
    """Longest match first, as the WordPiece paper has it."""
    pieces, rest = [], word
    while rest:
        prefix = "##" if pieces else ""
        for end in range(len(rest), 0, -1):
            if prefix + rest[:end] in WORDS:
                pieces.append(WORDS.index(prefix + rest[:end]))
                rest = rest[end:]
                break
        else:
            return [WORDS.index("[UNK]")]
    return pieces


def test_a_vocabulary_splits_lower_cased_words_by_longest_match(vocab):
    tokens = wordpiece.encode(wordpiece.load(vocab), ["A DOG, runs", "Café running run zebra", ""], 12)
    assert tokens.dtype == np.int32 and tokens.shape == (3, 12)
    for row, words in zip(tokens, ("a dog , runs", "cafe running run zebra", ""), strict=True):
        expected = [2, *(number for word in words.split() for number in greedy(word)), 3]
        np.testing.assert_array_equal(row, expected + [0] * (12 - len(expected)))


def test_a_long_text_is_cut_and_still_ends_in_sep(vocab):
    tokenizer = wordpiece.load(vocab)
    whole, cut = (wordpiece.encode(tokenizer, ["dog run a a dog"], length)[0] for length in (7, 6))
    np.testing.assert_array_equal(whole, [2, 5, 6, 4, 4, 5, 3])
    np.testing.assert_array_equal(cut, [2, 5, 6, 4, 4, 3])
    with pytest.raises(ValueError, match="length is 2; .* 3 or more"):
        wordpiece.encode(tokenizer, ["dog"], 2)


def test_training_gives_the_same_vocabulary_each_time():
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefgh"), 6)) for _ in range(60)]  # many ties between merges
    first, *others = (wordpiece.train(words, 60) for _ in range(4))
    assert all(other.get_vocab() == first.get_vocab() for other in others)


def test_a_trained_tokenizer_knows_its_texts_and_has_special_tokens_first():
    tokenizer = wordpiece.train(TEXTS, 90)
    assert [tokenizer.token_to_id(token) for token in wordpiece.SPECIAL] == [0, 1, 2, 3, 4]
    assert tokenizer.get_vocab_size() <= 90 and tokenizer.token_to_id("dogs") is not None
    tokens = wordpiece.encode(tokenizer, TEXTS, 40)
    assert (tokens != 1).all() and tokens.max() < 90
    decoded = [tokenizer.decode(row[row > 4].tolist(), skip_special_tokens=False) for row in tokens]
    plain = [text.replace(" ##", "").replace(" ", "") for text in decoded]
    assert plain == [text.lower().replace(" ", "") for text in TEXTS]
    np.testing.assert_array_equal(wordpiece.encode(tokenizer, ["\u4e2d"], 4), [[2, 1, 3, 0]])  # never seen
    with pytest.raises(ValueError, match=r"4 texts with .* do not fit a vocabulary of 10; give texts, and a size of"):
        wordpiece.train(TEXTS, 10)
    with pytest.raises(ValueError, match="0 texts with 0 different characters"):
        wordpiece.train([], 100)


def test_vocab_txt_and_tokenizer_json_agree(vocab, tmp_path):
    tokenizer = wordpiece.load(vocab)
    expected = wordpiece.encode(tokenizer, TEXTS, 9)
    tokenizer.enable_truncation(4)  # what a checkpoint's file may ask for
    tokenizer.enable_padding(length=20)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    np.testing.assert_array_equal(wordpiece.encode(wordpiece.load(tmp_path / "tokenizer.json"), TEXTS, 9), expected)


def test_a_file_that_is_no_vocabulary_is_named(vocab, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file .*none.txt; give a BERT vocab.txt or"):
        wordpiece.load(tmp_path / "none.txt")
    vocab.write_text("\n".join(word for word in WORDS if word != "[SEP]"))
    with pytest.raises(ValueError, match=r"vocab.txt has no token \[SEP\]"):
        wordpiece.load(vocab)
    vocab.write_text("\n".join(WORDS[::-1]))
    with pytest.raises(ValueError, match=r"vocab.txt has \[PAD\] as number 13"):
        wordpiece.load(vocab)
    vocab.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="vocab.txt is no vocab.txt"):
        wordpiece.load(vocab)
    (tmp_path / "cut.json").write_text(json.dumps({"version": "1.0"})[:-3])
    with pytest.raises(ValueError, match="cut.json is cut off or no tokenizer.json"):
        wordpiece.load(tmp_path / "cut.json")
