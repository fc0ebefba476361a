import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from fedjax_mm.data import digits


@pytest.fixture(scope="module")
def images():
    return digits.load("image").splits


@pytest.fixture(scope="module")
def sequences():
    return digits.load("sequence").splits


def whole(split):
    """The 8x8 digits put together again, in 0..16."""
    return np.concatenate([split["left"], split["right"]], axis=2)[..., 0] * 16


def test_the_splits_together_are_all_digits_once(images):
    label = np.concatenate([split["label"] for split in images.values()])
    pixels = np.concatenate([whole(split) for split in images.values()]).reshape(-1, 64)
    ours, theirs = np.column_stack([label, pixels]), np.column_stack([load_digits().target, load_digits().data])
    np.testing.assert_array_equal(*(rows[np.lexsort(rows.T)] for rows in (ours, theirs)))


def test_splits_have_their_shares_in_every_class(images):
    shares = {"test": 0.25, "valid": 0.1, "proxy": 0.15, "labelled": 0.1, "train": 0.4}
    assert set(images) == set(shares)
    total = np.bincount(load_digits().target)
    for name, share in shares.items():
        assert np.abs(np.bincount(images[name]["label"], minlength=10) - share * total).max() < 2


def test_shapes_and_types(images, sequences):
    for form, shape in ((images, (8, 4, 1)), (sequences, (8, 4))):
        for split in form.values():
            for side in ("left", "right"):
                assert split[side].shape == (len(split["label"]), *shape) and split[side].dtype == np.float32
            assert split["label"].dtype == np.int32
    assert 0 == min(s["left"].min() for s in images.values()) and 1 == max(s["right"].max() for s in images.values())


def test_sequences_are_standardised_by_training_rows_alone(images, sequences):
    for side in ("left", "right"):
        train = images["train"][side].astype(np.float64)
        for name in images:
            expected = (images[name][side][..., 0] - train.mean()) / train.std()
            np.testing.assert_allclose(sequences[name][side], expected, atol=1e-5)


def test_the_seed_decides_the_split(images):
    again, other = digits.load("image").splits, digits.load("image", seed=1).splits
    for name, array in images["train"].items():
        assert array.tobytes() == again["train"][name].tobytes()
    assert images["train"]["left"].tobytes() != other["train"]["left"].tobytes()


def test_two_halves_tell_more_than_one(images):
    def accuracy(*sides):
        x, y = (np.concatenate([images[name][s].reshape(-1, 32) for s in sides], 1) for name in ("train", "test"))
        probe = LogisticRegression(max_iter=500, tol=1e-2).fit(x, images["train"]["label"])
        return probe.score(y, images["test"]["label"])

    assert max(accuracy("left"), accuracy("right")) + 0.02 < accuracy("left", "right")


def test_proportions_can_be_chosen():
    splits = digits.load(proportions={"test": 0.5}).splits
    assert {name: len(split["label"]) for name, split in splits.items()} == {"train": 899, "test": 898}


def test_errors_say_what_would_be_right():
    with pytest.raises(ValueError, match='"image" or "sequence"'):
        digits.load("pixels")
    with pytest.raises(ValueError, match="sum to less than 1"):
        digits.load(proportions={"test": 0.6, "valid": 0.4})
    with pytest.raises(ValueError, match="above 0"):
        digits.load(proportions={"test": 0.5, "valid": 0.0})
    with pytest.raises(ValueError, match="train is what"):
        digits.load(proportions={"train": 0.5})
