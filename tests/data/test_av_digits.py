import numpy as np
import pytest

from fedjax_mm.data import audio, av_digits, prepared

PAIRS = {"train": 95, "valid": 20, "test": 40}
SPEAKERS, TAKES = 2, 9


@pytest.fixture
def raw(tmp_path, monkeypatch):
    """MNIST with 12 pictures of a digit (8 in test), whose first pixels are its place; 2 speakers, 9 takes a digit."""

    def mnist(name, data_dir, split, columns):
        assert (name, data_dir, columns) == ("mnist", tmp_path / "tfds", ("image", "label"))
        label = np.random.default_rng(0).permutation(
            np.repeat(np.arange(10, dtype=np.int32), 12 + 2 * (split == "test"))
        )
        image = np.zeros((len(label), 28, 28, 1), np.uint8)
        image[:, 0, 0, 0], image[:, 0, 1, 0] = np.arange(len(label)), split == "test"
        image[:, 0, 2, 0] = label
        return {"image": image, "label": label}

    monkeypatch.setattr(prepared, "load", mnist)
    label, index = (a.ravel() for a in np.meshgrid(np.arange(10), np.tile(np.arange(TAKES), SPEAKERS)))
    lengths = np.random.default_rng(1).integers(300, 900, len(label))
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    arrays = {
        "audio": np.random.default_rng(2).integers(-9000, 9000, offsets[-1]).astype(np.int16),
        "offsets": offsets,
        "label": label,
        "index": index,
        "sample_rate": np.array(8000),
    }
    (tmp_path / "spoken_digit").mkdir()
    np.savez(tmp_path / av_digits.SPOKEN, **arrays)
    return arrays


def test_picture_and_sound_of_a_pair_show_its_digit(raw, tmp_path):
    data = av_digits.load(tmp_path, pairs=PAIRS, mels=16, frames=8)
    assert data.modalities == ("image", "audio") and data.classes == tuple("0123456789")
    for split, arrays in data.splits.items():
        m = PAIRS[split]
        assert {k: (a.shape, a.dtype) for k, a in arrays.items()} == {
            "image": ((m, 28, 28, 1), np.uint8),
            "audio": ((m, 8, 16), np.float32),
            "label": ((m,), np.int32),
            "group": ((m,), np.int32),
        }
        np.testing.assert_array_equal(arrays["label"], np.arange(m) % 10)
        np.testing.assert_array_equal(arrays["image"][:, 0, 2, 0], arrays["label"])
        np.testing.assert_array_equal(raw["label"][arrays["group"]], arrays["label"])
        for features, recording in zip(arrays["audio"], arrays["group"], strict=True):
            start, end = raw["offsets"][recording : recording + 2]
            expected = audio.log_mel(raw["audio"][start:end] / 32768.0, 8000, 8, 16)
            np.testing.assert_allclose(features, expected, atol=1e-4)


def test_no_picture_is_in_two_pairs_and_no_recording_in_two_splits(raw, tmp_path):
    splits = av_digits.load(tmp_path, pairs=PAIRS, mels=16, frames=8).splits
    pictures = np.concatenate([arrays["image"][:, 0, :2, 0] for arrays in splits.values()])
    assert len(np.unique(pictures, axis=0)) == sum(PAIRS.values())
    assert all((arrays["image"][:, 0, 1, 0] == (split == "test")).all() for split, arrays in splits.items())
    takes = {split: set(raw["index"][arrays["group"]]) for split, arrays in splits.items()}
    assert takes == {"train": {7, 8}, "valid": {5, 6}, "test": {0, 1, 2, 3, 4}}
    for split, arrays in splits.items():  # 2 speakers x 2 or 5 takes a digit, each as often as the others
        often = np.unique(arrays["group"], return_counts=True)[1]
        assert often.max() - often.min() <= 1 or split == "train"  # whose last digits have 9 pairs, not 10
        for digit in range(10):
            often = np.unique(arrays["group"][arrays["label"] == digit], return_counts=True)[1]
            assert often.max() - often.min() <= 1


def test_the_seed_draws_the_pairs(raw, tmp_path):
    first, same, other = (av_digits.load(tmp_path, seed, PAIRS, 16, 8).splits["train"] for seed in (0, 0, 1))
    for name in first:
        np.testing.assert_array_equal(first[name], same[name])
    assert (first["image"] != other["image"]).any() and (first["group"] != other["group"]).any()


def test_what_there_is_not_enough_of_is_named(raw, tmp_path):
    load = lambda **pairs: av_digits.load(tmp_path, pairs=pairs, mels=16, frames=8)
    assert list(load(test=5).splits) == ["test"]
    with pytest.raises(ValueError, match="asks for 3 pictures of digit 0 for valid, and 2 of MNIST's train are left"):
        load(train=100, valid=21)
    with pytest.raises(ValueError, match=r"pairs names \['proxy'\]; the splits are train, valid, test"):
        load(proxy=10)
    with pytest.raises(ValueError, match="asks for 0 pairs"):
        load(train=0)
    np.savez(tmp_path / av_digits.SPOKEN, **{**raw, "label": raw["label"] % 9})
    with pytest.raises(ValueError, match="spoken_digit_8khz.npz has no recording of digit 9 for test"):
        load(test=10)
    np.savez(tmp_path / av_digits.SPOKEN, **{**raw, "audio": raw["audio"][:-1]})
    with pytest.raises(ValueError, match="spoken_digit_8khz.npz: `audio` has .* samples, `offsets` count"):
        load(test=10)


def test_the_real_digits(shared_data):
    splits = av_digits.load(shared_data, pairs={"train": 500, "valid": 100, "test": 300}, mels=32, frames=32).splits
    with np.load(shared_data / av_digits.SPOKEN) as npz:
        official, speaker = npz["split"], npz["speaker"]
    for split, arrays in splits.items():
        assert set(official[arrays["group"]]) == {"test" if split == "test" else "train"}
        assert len(set(speaker[arrays["group"]])) == 6
        assert 0.3 < arrays["audio"].std() < 0.7 and np.isfinite(arrays["audio"]).all()
    groups = [set(arrays["group"]) for arrays in splits.values()]
    assert not (groups[0] & groups[1] or groups[0] & groups[2] or groups[1] & groups[2])
    # Whose nearest training sound is of the same digit: far more than one in ten, so label and sound belong together.
    train, test = (splits[s]["audio"].reshape(len(splits[s]["audio"]), -1) for s in ("train", "test"))
    distance = (train**2).sum(1)[None] - 2 * test @ train.T  # less |test|^2, the same in a row
    nearest = distance.argmin(1)
    assert (splits["train"]["label"][nearest] == splits["test"]["label"]).mean() > 0.5
