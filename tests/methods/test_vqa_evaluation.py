"""The classifier against what counting gives; its controls, its losses, and questions from data.vqa to a score."""

import dataclasses

import jax
import numpy as np
import pytest

from fedjax_mm.data import vqa as questions
from fedjax_mm.data.vqa import Question, Source
from fedjax_mm.methods.creamfl import vqa_evaluation
from fedjax_mm.methods.creamfl.vqa_evaluation import Questions, VQAProbe

KEY = jax.random.key(0)
PROBE = VQAProbe(hidden=32, lr=0.01, epochs=30, batch_size=64, weight_decay=0.0)


def world(rows, seed):
    """A picture has a colour 0..2 and a shape 3..5, one more common than the others and one shown by nothing; a
    question asks for one of the two.

    -> Questions [rows, 6], and the question asked and the right answer [rows].
    """
    rng = np.random.default_rng(seed)
    seen = np.stack([rng.choice(3, rows, p=[0.2, 0.6, 0.2]), 3 + rng.choice(3, rows, p=[0.2, 0.2, 0.6])], axis=1)
    asked = rng.integers(2, size=rows)
    image = np.eye(6, dtype=np.float32)[seen].sum(1) * np.float32([[0, 30, 30, 0, 30, 30]])
    question = np.repeat(np.eye(2, dtype=np.float32)[asked], 3, axis=1)
    answer = seen[np.arange(rows), asked]
    return Questions(image, question, np.eye(6, dtype=np.float32)[answer]), asked, answer


def noise(rows, width=8, answers=20, seed=0):
    rng = np.random.default_rng(seed)
    return Questions(
        rng.normal(size=(rows, width)).astype(np.float32),
        rng.normal(size=(rows, width)).astype(np.float32),
        rng.choice(np.float32([0, 0, 0, 0.3, 1]), size=(rows, answers)),
    )


@pytest.mark.parametrize("loss", ["ce", "bce"])
def test_pictures_are_needed_and_the_controls_are_what_counting_gives(loss):
    (train, asked, answer), (test, test_asked, test_answer) = world(400, 1), world(150, 2)
    found = vqa_evaluation.vqa(dataclasses.replace(PROBE, loss=loss), train, test, KEY)
    commonest = lambda answers: np.bincount(answers, minlength=6).argmax()
    guess = np.array([commonest(answer[asked == kind]) for kind in (0, 1)])
    assert found["vqa_score"] == pytest.approx(100)
    assert found["question_only"] == pytest.approx(100 * np.mean(guess[test_asked] == test_answer))
    assert found["constant"] == pytest.approx(100 * np.mean(commonest(answer) == test_answer))
    assert found["constant"] < found["question_only"] < 75


def test_test_questions_without_a_known_answer_count_as_wrong():
    (train, _, _), (test, _, _) = world(400, 1), world(150, 2)
    known = np.arange(150) % 3 > 0
    target = (0.6 * test.target * known[:, None]).astype(np.float16)
    predict = vqa_evaluation.fit(PROBE, *train, KEY)
    found = vqa_evaluation.score(predict, test.image, test.question, target)
    assert found == {"vqa_score": pytest.approx(100 * 0.6 * 2 / 3, rel=1e-3)}


def test_training_questions_without_a_known_answer_teach_ce_nothing_and_bce_something():
    rows, new = noise(60), noise(200, seed=1)
    twice = Questions(*(np.concatenate([x, x]) for x in rows))
    half_unknown = twice._replace(target=np.concatenate([rows.target, 0 * rows.target]))
    for loss, nothing in (("ce", True), ("bce", False)):
        probe = VQAProbe(hidden=16, lr=0.01, epochs=5, batch_size=120, weight_decay=0.0, loss=loss)
        one, other = (vqa_evaluation.fit(probe, *r, KEY)(*new[:2]) for r in (rows, half_unknown))
        assert (np.mean(one == other) > 0.98) == nothing, loss  # halving ce halves its gradient, which Adam ignores


def test_scales_do_not_matter_and_the_product_is_seen():
    rng = np.random.default_rng(3)
    image, question = rng.normal(size=(2, 1000, 16)).astype(np.float32)
    agree = (image * question).sum(1) > 0
    target = np.stack([agree, ~agree], axis=1).astype(np.float32)
    probe = dataclasses.replace(PROBE, hidden=8, epochs=10)
    predict = vqa_evaluation.fit(probe, image[:500], question[:500], target[:500], KEY)
    found = predict(image[500:], question[500:])
    assert np.mean(found == ~agree[500:]) > 0.85  # without the product: 16 pairs of numbers to multiply, from 500 rows
    scale = np.logspace(-3, 3, 16, dtype=np.float32)[None]
    predict = vqa_evaluation.fit(probe, image[:500] * scale, question[:500], target[:500], KEY)
    assert np.mean(predict(image[500:] * scale, question[500:]) == found) > 0.98


def test_weight_decay_is_adamws():
    rows = noise(60)._replace(target=np.zeros((60, 20)))  # no gradient: only decay moves
    probe = VQAProbe(hidden=16, lr=1 / 128, epochs=1, batch_size=60)
    answers = lambda decay: vqa_evaluation.fit(dataclasses.replace(probe, weight_decay=decay), *rows, KEY)(*rows[:2])
    assert len(np.unique(answers(0.0))) > 1
    assert np.unique(answers(128.0)).tolist() == [0]  # one step takes every parameter to 0, and all answers are level


def test_many_questions_are_answered_block_by_block():
    predict = vqa_evaluation.fit(PROBE, *noise(40), KEY)
    new = noise(2 * vqa_evaluation.BLOCK + 5, seed=4)
    one_by_one = np.concatenate([predict(new.image[s], new.question[s]) for s in (slice(0, 700), slice(700, None))])
    found = predict(new.image, new.question)
    assert found.shape == (len(new.image),) and np.issubdtype(found.dtype, np.integer)
    np.testing.assert_array_equal(found, one_by_one)


def test_questions_of_data_vqa_compose():
    colours = np.array([[250, 0, 0], [0, 250, 0], [0, 0, 250], [250, 250, 0]], np.uint8)
    names = ["red", "green", "blue", "purple"]
    shown = np.r_[np.arange(48) % 3, 3, np.arange(16) % 4]  # one purple picture to train on, every fourth of the test's
    asked = [Question(row, "which colour is it", (names[c],) * 8 + ("red", "blue")) for row, c in enumerate(shown)]
    pictures = np.broadcast_to(colours[shown][:, None, None], (len(shown), 16, 16, 3))
    source = Source(asked[:49], asked[49:], pictures)
    tasks = questions.load({"vqa": source}, image=(16, 16), length=8, answers=3)
    assert sorted(tasks.tasks["vqa"].answers) == ["blue", "green", "red"]
    seen = tasks.image.mean((1, 2))  # the server's representations, [I, 3]
    word = np.random.default_rng(0).normal(size=(tasks.tokenizer.get_vocab_size(), 3))

    def represented(split):
        rows = tasks.tasks["vqa"].splits[split]
        return Questions(seen[rows["image_row"]], word[rows["question"]].mean(1), rows["target"])

    train, test = represented("train"), represented("test")
    found = vqa_evaluation.vqa(PROBE, train, test, KEY)
    # "purple" is no answer: 4 of the 16 test questions still give 0.3 to whoever says red or blue.
    assert 100 * 12 / 16 <= found["vqa_score"] <= 100 * (12 + 4 * 0.3) / 16 + 1e-6
    best = train.target.sum(0).argmax()
    assert found["constant"] == pytest.approx(100 * test.target[:, best].mean())
    assert found["question_only"] <= 100 * test.target.mean(0).max() + 1e-6 < 60  # one question: one answer to all


@pytest.mark.parametrize(
    "change, words",
    [
        ({"image": np.full((40, 8), np.nan)}, "train image representations hold NaN"),
        ({"question": np.full((40, 8), np.inf)}, "train question representations hold NaN"),
        ({"question": np.ones((40, 7))}, r"train image \(40, 8\) and question \(40, 7\)"),
        ({"target": np.ones((39, 20))}, r"train target is \(39, 20\); it must be \[40, K\]"),
        ({"target": np.full((40, 20), 3.0)}, "train target goes from 3.0"),
        ({"target": np.full((40, 20), np.nan)}, "train target goes from nan"),
        ({"target": np.ones((40, 21))}, "same K answers"),
    ],
)
def test_wrong_rows_are_named(change, words):
    with pytest.raises(ValueError, match=words):
        vqa_evaluation.vqa(PROBE, noise(40)._replace(**change), noise(10), KEY)


def test_wrong_test_rows_and_divergence_are_named():
    train = noise(40)
    predict = vqa_evaluation.fit(PROBE, *train, KEY)
    with pytest.raises(ValueError, match="test image representations hold NaN"):
        predict(np.full((3, 8), np.nan), np.ones((3, 8)))
    with pytest.raises(ValueError, match="use one server"):
        predict(np.ones((3, 5)), np.ones((3, 5)))
    with pytest.raises(ValueError, match="test target goes from"):
        vqa_evaluation.vqa(PROBE, train, noise(10)._replace(target=np.full((10, 20), -1.0)), KEY)
    with pytest.raises(ValueError, match=r"lower probe\.lr"):
        vqa_evaluation.fit(dataclasses.replace(PROBE, lr=1e30), *train, KEY)
