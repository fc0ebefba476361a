import json

import numpy as np
import pytest
import tokenizers

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
    with pytest.raises(ValueError, match="vocab.txt is no UTF-8 text .*one token a line"):
        wordpiece.load(vocab)
    (tmp_path / "cut.json").write_text(json.dumps({"version": "1.0"})[:-3])
    with pytest.raises(ValueError, match="cut.json is cut off or no tokenizer.json"):
        wordpiece.load(tmp_path / "cut.json")


def test_only_ends_of_lines_end_a_token(tmp_path):
    odd = ["\u2028", "\x85", "a\x0cb", "\x1c", "\u2029"]  # which str.splitlines takes for ends
    words = [*wordpiece.SPECIAL, *odd, "last"]
    for end in ("\n", "\r\n"):
        (tmp_path / "vocab.txt").write_bytes(end.join([*words, ""]).encode())
        tokenizer = wordpiece.load(tmp_path / "vocab.txt")
        assert [tokenizer.token_to_id(word) for word in words] == list(range(len(words)))
        assert wordpiece.encode(tokenizer, ["last"], 3).tolist() == [[2, len(words) - 1, 3]]


def test_a_vocabulary_that_would_be_misread_is_refused(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join([*wordpiece.SPECIAL, "[unused1]", "Paris", "the"]))
    with pytest.raises(ValueError, match="of a cased model: 1 of 8 tokens have capitals, as 'Paris'.*tokenizer.json"):
        wordpiece.load(path)
    path.write_text("\n".join([*wordpiece.SPECIAL, "[unused1]", "paris", "the", "paris"]))
    with pytest.raises(ValueError, match="has the token 'paris' in lines 7 and 9"):
        wordpiece.load(path)


def test_a_cased_tokenizer_is_read_from_its_json(tmp_path):
    words = {word: number for number, word in enumerate([*wordpiece.SPECIAL, "Paris", "paris"])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert wordpiece.encode(wordpiece.load(tmp_path / "tokenizer.json"), ["Paris paris"], 4).tolist() == [[2, 5, 6, 3]]


def test_wrong_arguments_are_named():
    tokenizer = wordpiece.train(["a b"], 20)
    for texts in ("abc", [None], [b"a"]):
        with pytest.raises(ValueError, match="texts are not all text"):
            wordpiece.encode(tokenizer, texts, 5)
    with pytest.raises(ValueError, match="length is '5'"):
        wordpiece.encode(tokenizer, ["a"], "5")
    with pytest.raises(ValueError, match="vocabulary_size is 20.5"):
        wordpiece.train(["a b"], 20.5)
    with pytest.raises(ValueError, match="texts is the text 'abc'"):
        wordpiece.train("abc", 20)
    with pytest.raises(ValueError, match="tokenizer is 5; give a tokenizers.Tokenizer, the path"):
        wordpiece.choose(5, ["a b"], 20)
