"""Recall against brute-force sorting and closed forms; scores against counting by hand."""

import numpy as np
import pytest

from fedjax_mm import evaluate


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def brute_force(image, text, owner, k):
    """R@k by sorting every query's candidates, in percent: image to text, text to image."""
    cosine = np.array([[v @ t / np.linalg.norm(v) / np.linalg.norm(t) for t in text] for v in image])
    i2t = [np.any(owner[np.argsort(-row)[:k]] == i) for i, row in enumerate(cosine)]
    t2i = [owner[q] in np.argsort(-column)[:k] for q, column in enumerate(cosine.T)]
    return 100 * np.mean(i2t), 100 * np.mean(t2i)


def brute_force_median(image, text, owner):
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
    cosine = unit(image) @ unit(text).T
    i2t = [1 + np.flatnonzero(owner[np.argsort(-row)] == i)[0] for i, row in enumerate(cosine)]
    t2i = [1 + np.flatnonzero(np.argsort(-column) == owner[q])[0] for q, column in enumerate(cosine.T)]
    return np.median(i2t), np.median(t2i)


@pytest.fixture
def pairs():
    """30 images of different lengths, two or three texts each in mixed order, close enough to be found sometimes."""
    owner = np.random.default_rng(1).permutation(np.r_[np.repeat(np.arange(30), 2), np.arange(10)])
    image = draw(30, 8) * np.linspace(0.1, 9, 30)[:, None]
    text = image[owner] / np.linalg.norm(image[owner], axis=1, keepdims=True) + 0.5 * draw(70, 8, seed=2)
    return image, text, owner


def test_recall_is_what_sorting_gives(pairs):
    found = evaluate.retrieval_recall(*pairs, ks=(1, 3, 10))
    assert set(found) == {f"{way}_{m}" for way in ("i2t", "t2i") for m in ("r1", "r3", "r10", "medr")}
    for k in (1, 3, 10):
        want = brute_force(*pairs, k)
        np.testing.assert_allclose([found[f"i2t_r{k}"], found[f"t2i_r{k}"]], want, rtol=1e-9)
    np.testing.assert_allclose([found["i2t_medr"], found["t2i_medr"]], brute_force_median(*pairs))
    assert 5 < found["i2t_r1"] < 95


def test_blocks_of_queries_do_not_matter(pairs, monkeypatch):
    want = evaluate.retrieval_recall(*pairs)
    monkeypatch.setattr(evaluate.retrieval, "BLOCK", 7)
    assert evaluate.retrieval_recall(*pairs) == pytest.approx(want)


def test_perfect_and_hopeless_encoders():
    reps, owner = np.eye(6), np.repeat(np.arange(6), 2)
    found = evaluate.retrieval_recall(reps, 3 * reps[owner], owner, ks=(1,))
    assert found == {"i2t_r1": 100, "t2i_r1": 100, "i2t_medr": 1, "t2i_medr": 1}
    found = evaluate.retrieval_recall(reps, -reps[owner], owner, ks=(1, 5, 6, 10, 11))
    assert (found["t2i_r1"], found["t2i_r5"], found["t2i_r6"]) == (0, 0, 100)
    assert (found["i2t_r10"], found["i2t_r11"]) == (0, 100)
    assert (found["i2t_medr"], found["t2i_medr"]) == (11, 6)


@pytest.mark.parametrize("folds", [1, 4, 5, 11])
def test_folds_are_consecutive_images_with_their_own_texts(pairs, folds):
    image, text, owner = pairs
    size, want = 30 // folds, []  # 4 folds leave 2 images out, and 11 leave 8, four times a fold
    for fold in range(folds):
        mine = np.flatnonzero(owner // size == fold)
        parts = image[fold * size : (fold + 1) * size], text[mine], owner[mine] % size
        want.append([*brute_force(*parts, 1), *brute_force(*parts, 5), *brute_force_median(*parts)])
    found = evaluate.retrieval_folds(*pairs, folds=folds)
    assert set(found) == set(evaluate.retrieval_recall(*pairs))
    keys = ("i2t_r1", "t2i_r1", "i2t_r5", "t2i_r5", "i2t_medr", "t2i_medr")
    np.testing.assert_allclose([found[key] for key in keys], np.mean(want, axis=0), rtol=1e-9)


def test_sums_are_those_of_creamfls_table():
    # Its row of CreamFL: R@1, R@5, R@10 from image to text, then from text to image, of 5,000 and of 1,000 images
    keys = [f"{way}_r{k}" for way in ("i2t", "t2i") for k in (1, 5, 10)]
    whole = dict(zip(keys, (25.34, 53.62, 66.95, 18.94, 44.68, 58.82), strict=True)) | {"i2t_medr": 5.0}
    folds = dict(zip(keys, (49.66, 80.66, 90.13, 38.94, 75.02, 87.14), strict=True)) | {"i2t_medr": 2.0}
    found = evaluate.recall_sums(whole, folds)
    want = {"rsum": 145.91 + 122.44, "fold/rsum": 220.45 + 201.10, "r1_sum": 132.88}
    assert found == pytest.approx(want)


def test_both_protocols_are_the_two_and_their_sums(pairs):
    whole, folds = evaluate.retrieval_recall(*pairs), evaluate.retrieval_folds(*pairs, folds=3)
    found = evaluate.both_protocols(*pairs, folds=3)
    sums = ("rsum", "fold/rsum", "r1_sum")
    assert set(found) == {*whole, *(f"fold/{key}" for key in folds), *sums}
    assert all(found[key] == whole[key] and found[f"fold/{key}"] == folds[key] for key in whole)
    assert {key: found[key] for key in sums} == evaluate.recall_sums(whole, folds)
    assert found["fold/t2i_r5"] > found["t2i_r5"]


@pytest.mark.parametrize("fill", [1.0, 0.0, np.nan, np.inf])
def test_a_collapsed_or_diverged_encoder_scores_at_chance(fill):
    owner = np.repeat(np.arange(20), 5)
    found = evaluate.retrieval_recall(np.full((20, 4), fill), np.full((100, 4), fill), owner, ks=(1, 10))
    np.testing.assert_allclose(found["t2i_r1"], 100 / 20)
    np.testing.assert_allclose(found["t2i_r10"], 100 * 10 / 20)
    np.testing.assert_allclose(found["i2t_r1"], 100 * 5 / 100)
    miss = np.prod([(95 - j) / (100 - j) for j in range(10)])  # none of 10 texts drawn is one of the image's 5
    np.testing.assert_allclose(found["i2t_r10"], 100 * (1 - miss))
    np.testing.assert_allclose([found["t2i_medr"], found["i2t_medr"]], [21 / 2, 101 / 6])  # expected minimum of a draw


def test_two_images_with_one_caption_share_the_hit():
    text = np.eye(4)[[0, 0, 1, 2]]
    image = np.stack([text[0], -text[1], text[2], text[3]])
    found = evaluate.retrieval_recall(image, text, np.arange(4), ks=(1, 3))
    np.testing.assert_allclose(found["i2t_r1"], 100 * (0.5 + 0 + 1 + 1) / 4)
    np.testing.assert_allclose(found["i2t_r3"], 100 * (1 + 0.5 + 1 + 1) / 4)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: evaluate.retrieval_recall(np.ones((3, 2)), np.ones((3, 4)), np.arange(3)), "do not fit"),
        (lambda: evaluate.retrieval_recall(np.ones((3, 2)), np.ones((3, 2)), np.array([0, 1, 3])), "every image"),
        (lambda: evaluate.retrieval_recall(np.ones((3, 2)), np.ones((2, 2)), np.array([0, 1])), "every image"),
        (lambda: evaluate.retrieval_recall(np.ones((2, 2)), np.ones((2, 2)), np.arange(2), ks=(0,)), "ks"),
        (lambda: evaluate.retrieval_folds(np.ones((3, 2)), np.ones((3, 2)), np.arange(3)), "3 images do not make 5"),
        (lambda: evaluate.retrieval_folds(np.ones((3, 2)), np.ones((3, 2)), np.arange(3), 0), "1 fold or more"),
        (lambda: evaluate.retrieval_folds(np.ones((5, 2)), np.ones((5, 2)), np.arange(5) + 1), "every image"),
        (lambda: evaluate.classification([0, 1], [0, 2], 2), "predictions holds"),
        (lambda: evaluate.classification([0, -1], [0, 1], 2), "labels holds"),
        (lambda: evaluate.classification([0, 1], [0, 1, 1], 2), r"\[M\] both"),
        (lambda: evaluate.constant([], [0], 2), "M at least 1"),
        (lambda: evaluate.classification([0, 1], [0, 1], 2.0), "num_classes is 2.0; give a whole number"),
        (lambda: evaluate.classification([0, 1], [0, 1], 0), "num_classes is 0"),
        (lambda: evaluate.classification([0.0, 1.0], [0, 1], 2), "labels is float64"),
        (lambda: evaluate.precision_recall([0, 1], [0, 2], 2), "predictions holds int64 from 0 to 2"),
        (lambda: evaluate.precision_recall([0, 1], [0, 1, 1], 2), r"\[M\] both"),
        (lambda: evaluate.batch_means([], []), "M at least 1"),  # once NaN, with a warning
        (lambda: evaluate.batch_means([0, 1], [0, 1, 1]), r"\[M\] both"),
        (lambda: evaluate.batch_means([0, 1], [0, 1], 0), "batch is 0; give a whole number from 1"),
        (lambda: evaluate.vqa_score([0], [[np.nan, 1.0]]), "target goes from nan"),
        (lambda: evaluate.vqa_score([0], [[100.0, 0.0]]), "target goes from 0.0 to 100.0; give scores in 0..1"),
        (lambda: evaluate.recall_sums({"i2t_r1": 1.0}, {}), "whole has no .*; give the scores of retrieval_recall"),
        (lambda: evaluate.retrieval_recall(np.eye(2), np.eye(2), np.arange(2), ks=(1.5,)), "of ks is 1.5"),
        (lambda: evaluate.retrieval_recall(np.eye(2), np.eye(2), np.arange(2.0)), "text_to_image is float64"),
        (lambda: evaluate.zero_shot(np.zeros((0, 2)), np.eye(2), np.zeros(0, int)), "do not fit"),
        (lambda: evaluate.linear_probe(np.eye(2), ["a", "b"], np.eye(2), [0, 1]), "name the classes alike"),
        (lambda: evaluate.linear_probe(np.eye(2), [0.5, 1.5], np.eye(2), [0, 1]), "train_y is float64"),
        (
            lambda: evaluate.linear_probe(np.ones((3, 2)), np.zeros(3, int), np.ones((3, 2)), np.zeros(3, int)),
            "one class",
        ),
        (lambda: evaluate.linear_probe(np.ones((3, 2)), np.arange(2), np.ones((3, 2)), np.arange(3)), "train_x"),
        (lambda: evaluate.linear_probe(np.ones((3, 2)), np.arange(3), np.full((3, 2), np.nan), np.arange(3)), "test_x"),
        (lambda: evaluate.linear_probe(np.ones((3, 2)), np.arange(3), np.ones((3, 5)), np.arange(3)), "one encoder"),
    ],
)
def test_wrong_arguments_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_classification_counts():
    labels = np.array([0, 0, 0, 0, 1, 1, 2, 2])
    predictions = np.array([0, 0, 0, 1, 1, 2, 2, 2])
    f1 = np.array([2 * 3 / (4 + 3), 2 * 1 / (2 + 2), 2 * 2 / (2 + 3), 0])  # 2 TP / (true + predicted); class 3 unseen
    found = evaluate.classification(labels, predictions, 4)
    assert set(found) == {"accuracy", "macro_f1", "weighted_f1"}
    np.testing.assert_allclose(found["accuracy"], 6 / 8)
    np.testing.assert_allclose(found["macro_f1"], f1.mean())
    np.testing.assert_allclose(found["weighted_f1"], f1 @ [4, 2, 2, 0] / 8)


def test_constant_answers_the_commonest_training_class():
    found = evaluate.constant(np.array([1, 1, 0, 2]), np.array([1, 1, 1, 0, 2, 2, 2, 2]), 3)
    f1 = 2 * 3 / (3 + 8)
    np.testing.assert_allclose(found["accuracy"], 3 / 8)
    np.testing.assert_allclose(found["macro_f1"], f1 / 3)
    np.testing.assert_allclose(found["weighted_f1"], f1 * 3 / 8)


def test_linear_probe_reads_what_is_linear_and_nothing_else():
    x = draw(300, 3)
    y = (x[:, 0] + x[:, 1] > 0).astype(int)
    shifted = x * [1, 1000, 1e-3] + [5, -3000, 0]  # needs standardising
    y_shifted = (x[:, 0] + x[:, 1] > 0).astype(int)
    found = evaluate.linear_probe(shifted[:200], y_shifted[:200], shifted[200:], y_shifted[200:])
    assert min(found.values()) > 0.95
    xor = (x[:, 0] * x[:, 1] > 0).astype(int)
    assert evaluate.linear_probe(x[:200], xor[:200], x[200:], xor[200:])["accuracy"] < 0.7
    np.testing.assert_allclose(
        list(evaluate.linear_probe(x[:200], y[:200], x[200:], y[200:]).values()), list(found.values()), atol=1e-9
    )
    # two points apart, a class that only the test has: right on 2 of 3, F1 2/3, 1, 0
    far = evaluate.linear_probe(
        np.array([[0.0], [9.0]]), np.array([0, 1]), np.array([[0.0], [9.0], [0.0]]), np.array([0, 1, 2])
    )
    np.testing.assert_allclose([far["accuracy"], far["macro_f1"]], [2 / 3, (2 / 3 + 1 + 0) / 3])


def test_macro_precision_and_recall_count_by_hand():
    labels, predictions = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 2, 1])
    # precision 2/2, 1/3, 0/1, and 0 for class 3, which is not there; recall 2/3, 1/2, 0/1, 0
    scores = evaluate.precision_recall(labels, predictions, 4)
    assert scores == {
        "macro_precision": pytest.approx((1 + 1 / 3) / 4),
        "macro_recall": pytest.approx((2 / 3 + 1 / 2) / 4),
    }


def test_batch_means_average_what_each_batch_says_of_its_own_classes():
    labels, predictions = np.array([0, 0, 1, 1, 5]), np.array([0, 0, 1, 2, 5])
    # Batches of two: all right; class 1 half recalled and class 2 never there; all right, one row.
    scores = evaluate.batch_means(labels, predictions, 2)
    assert scores == {
        "batch2_accuracy": pytest.approx((1 + 0.5 + 1) / 3),
        "batch2_macro_precision": pytest.approx((1 + (1 + 0) / 2 + 1) / 3),
        "batch2_macro_recall": pytest.approx((1 + (0.5 + 0) / 2 + 1) / 3),
        "batch2_macro_f1": pytest.approx((1 + (2 / 3 + 0) / 2 + 1) / 3),
    }


def test_zero_shot_is_the_nearest_prompt_and_chance_where_all_are_equal():
    prompts, labels = draw(4, 8), np.arange(60) % 4
    image = (prompts[labels] + 0.8 * draw(60, 8, seed=2)) * np.linspace(0.1, 9, 60)[:, None]
    cosine = [[v @ p / np.linalg.norm(p) for p in prompts] for v in image]
    expected = np.mean(np.argmax(cosine, axis=1) == labels)
    assert 0.3 < expected < 1
    assert evaluate.zero_shot(image, prompts, labels) == {"zero_shot_accuracy": pytest.approx(expected)}
    same = evaluate.zero_shot(np.ones((60, 8)), np.ones((4, 8)), labels)
    assert same == {"zero_shot_accuracy": pytest.approx(1 / 4)}


def test_zero_shot_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="do not fit"):
        evaluate.zero_shot(draw(5, 8), draw(3, 7), np.zeros(5, int))
    with pytest.raises(ValueError, match=r"it must hold integers in 0\.\.2"):
        evaluate.zero_shot(draw(5, 8), draw(3, 8), np.full(5, 3))


def test_vqa_score_is_the_mean_score_of_what_was_said():
    target = np.array([[1, 0, 0], [0.3, 0.6, 0], [0, 0, 0], [0, 0, 0.9]], np.float32)
    assert evaluate.vqa_score([0, 1, 0, 1], target) == {"vqa_score": pytest.approx(100 * (1 + 0.6) / 4)}
    assert evaluate.vqa_score([0, 0, 2, 2], target) == {"vqa_score": pytest.approx(100 * (1 + 0.3 + 0.9) / 4)}
    with pytest.raises(ValueError, match=r"must be \[M\] and \[M, K\]"):
        evaluate.vqa_score([0, 1], target)
    with pytest.raises(ValueError, match=r"it must hold integers in 0\.\.2"):
        evaluate.vqa_score([0, 1, 3, 0], target)
