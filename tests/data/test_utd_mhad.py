import numpy as np
import pytest
from scipy import interpolate

from fedjax_mm.data import utd_mhad

SPLITS = {"train": 3, "valid": 1, "proxy": 1, "labelled": 1, "test": 2}


def write(folder, **changed):
    """27 actions x 8 subjects x 1 trial. Both sensors say the trial's number and how much of it has passed, 0..1."""
    rng = np.random.default_rng(0)
    meta = np.array([(a, s, 1, rng.integers(60, 90), rng.integers(12, 20)) for a in range(1, 28) for s in range(1, 9)])
    inertial, skeleton = [], []
    for number, (*_, i, s) in enumerate(meta):
        inertial.append(np.stack([np.full(i, number), np.linspace(0, 1, i), *rng.normal(size=(4, i))], axis=1))
        joints = rng.normal(size=(s, 20, 3))
        joints[:, 3] = 0
        joints[:, 0] = np.stack([np.full(s, number), np.linspace(0, 1, s), np.zeros(s)], axis=1)
        skeleton.append(joints)
    arrays = {
        "inertial": np.concatenate(inertial).astype(np.float32),
        "skeleton": np.concatenate(skeleton).astype(np.float32),
        "meta": meta.astype(np.int32),
        **changed,
    }
    np.savez(folder / utd_mhad.FILE, **arrays)
    return arrays


def back(scores, raw):
    """z-scores in their own units again; `raw` holds the values of the training windows."""
    return scores * raw.std() + raw.mean()


def test_resample_keeps_the_ends_and_is_linear_between():
    rows = np.random.default_rng(0).normal(size=(17, 3))
    np.testing.assert_array_equal(utd_mhad.resample(rows, 17), rows)
    for steps in (5, 40):
        spline = interpolate.make_interp_spline(np.linspace(0, 1, 17), rows, k=1)
        np.testing.assert_allclose(utd_mhad.resample(rows, steps), spline(np.linspace(0, 1, steps)), atol=1e-12)


def test_windows_are_of_one_trial_and_one_time(tmp_path):
    meta = write(tmp_path)["meta"]
    splits = utd_mhad.load(tmp_path, window=4, stride=3).splits
    train = splits["train"]["trial"]
    first = np.concatenate([np.arange(n) for n in np.unique(train, return_counts=True)[1]]) * 3
    frames = meta[train, 4]
    passed = (first[:, None] + np.arange(4)) / (frames[:, None] - 1)  # of the trial's time, in every frame of a window
    number = np.repeat(train[:, None], 4, 1)
    for split in splits.values():
        length = meta[:, 4][np.unique(split["trial"])]
        assert len(split["trial"]) == ((length - 4) // 3 + 1).sum()
        for modality in ("inertial", "skeleton"):
            shown = back(split[modality][..., 0], number)
            np.testing.assert_allclose(shown, np.repeat(split["trial"][:, None], 4, 1), atol=1e-3)
        both = [back(split[m][..., 1], passed) for m in ("inertial", "skeleton")]
        np.testing.assert_allclose(*both, atol=1e-5)
    np.testing.assert_allclose(back(splits["train"]["skeleton"][..., 1], passed), passed, atol=1e-5)


def test_a_whole_trial_is_one_window_from_its_first_frame_to_its_last(tmp_path):
    meta = write(tmp_path)["meta"]
    splits = utd_mhad.load(tmp_path, window=5, whole=True).splits
    assert sum(len(split["label"]) for split in splits.values()) == len(meta)
    train = splits["train"]
    np.testing.assert_array_equal(train["label"], meta[train["trial"], 0] - 1)
    passed = np.tile(np.linspace(0, 1, 5), (len(train["trial"]), 1))
    for modality in ("inertial", "skeleton"):
        np.testing.assert_allclose(back(train[modality][..., 1], passed), passed, atol=1e-5)


def test_labels_are_the_trials_actions_and_groups_its_subjects(tmp_path):
    meta = write(tmp_path)["meta"]
    data = utd_mhad.load(tmp_path, window=8, stride=4)
    assert data.modalities == ("inertial", "skeleton") and len(data.classes) == 27
    for split in data.splits.values():
        m = len(split["label"])
        assert split["inertial"].shape == (m, 8, 6) and split["skeleton"].shape == (m, 8, 60)
        np.testing.assert_array_equal(split["label"], meta[split["trial"], 0] - 1)
        np.testing.assert_array_equal(split["labels"], np.repeat(split["label"][:, None], 8, 1))
        np.testing.assert_array_equal(split["group"], meta[split["trial"], 1])
        assert {a.dtype for k, a in split.items() if k not in data.modalities} == {np.dtype(np.int32)}
        assert {split[modality].dtype for modality in data.modalities} == {np.dtype(np.float32)}


def test_subjects_are_split_whole(tmp_path):
    write(tmp_path)

    def subjects(**options):
        splits = utd_mhad.load(tmp_path, window=8, **options).splits
        return {name: set(split["group"].tolist()) for name, split in splits.items()}

    for seed in range(3):
        drawn = subjects(seed=seed)
        assert {name: len(ids) for name, ids in drawn.items()} == SPLITS
        assert set.union(*drawn.values()) == set(range(1, 9))
    assert subjects(seed=0) == subjects() != subjects(seed=1)
    assert {name: len(ids) for name, ids in subjects(sizes={"test": 0.25}).items()} == {"train": 6, "test": 2}


def test_only_training_subjects_set_the_scale(tmp_path):
    arrays = write(tmp_path)
    before = utd_mhad.load(tmp_path, window=8).splits
    for modality in ("inertial", "skeleton"):
        axes = (0, 1)
        varies = np.arange(before["train"][modality].shape[-1]) if modality == "inertial" else np.arange(12, 60)
        np.testing.assert_allclose(before["train"][modality].mean(axes)[varies], 0, atol=1e-4)
        np.testing.assert_allclose(before["train"][modality].std(axes)[varies], 1, atol=1e-4)
    is_test = np.isin(arrays["meta"][:, 1], before["test"]["group"])
    changed = arrays["inertial"] * np.where(np.repeat(is_test, arrays["meta"][:, 3]), 5, 1)[:, None]
    write(tmp_path, inertial=changed)
    after = utd_mhad.load(tmp_path, window=8).splits
    for split in ("train", "valid", "proxy", "labelled"):
        np.testing.assert_array_equal(before[split]["inertial"], after[split]["inertial"])
    assert abs(after["test"]["inertial"] - before["test"]["inertial"]).max() > 1


def test_where_the_person_stands_does_not_matter(tmp_path):
    arrays = write(tmp_path)
    before = utd_mhad.load(tmp_path, window=8).splits["test"]["skeleton"]
    moved = arrays["skeleton"] + np.random.default_rng(1).integers(-4, 5, (len(arrays["skeleton"]), 1, 3))
    write(tmp_path, skeleton=moved)
    after = utd_mhad.load(tmp_path, window=8).splits["test"]["skeleton"]
    np.testing.assert_allclose(before, after, atol=1e-4)
    assert (after[..., 9:12] == 0).all()


def test_a_bad_file_is_named_with_its_cure(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"has no {utd_mhad.FILE}; join the trials of https"):
        utd_mhad.load(tmp_path)
    arrays = write(tmp_path)
    write(tmp_path, inertial=arrays["inertial"][:-1])
    n = len(arrays["inertial"])
    with pytest.raises(ValueError, match=rf"{utd_mhad.FILE}: `inertial` has {n - 1} rows, but `meta` counts {n}"):
        utd_mhad.load(tmp_path)
    write(tmp_path, meta=arrays["meta"] + np.array([1, 0, 0, 0, 0]))
    with pytest.raises(ValueError, match="an action outside 1..27 in its first column"):
        utd_mhad.load(tmp_path)
    write(tmp_path)
    with pytest.raises(ValueError, match="no sequence is 200 steps long"):
        utd_mhad.load(tmp_path, window=200)
    content = (tmp_path / utd_mhad.FILE).read_bytes()
    (tmp_path / utd_mhad.FILE).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="is cut off or damaged"):
        utd_mhad.load(tmp_path)


def test_the_real_trials(shared_data):
    folder = shared_data / "utd_mhad"
    splits = utd_mhad.load(folder).splits
    assert sorted(t for split in splits.values() for t in np.unique(split["trial"])) == list(range(861))
    for split in splits.values():
        share = np.bincount(split["label"], minlength=27) / len(split["label"])
        assert share.min() > 0.02 and share.max() < 0.07
        assert np.isfinite(split["inertial"]).all() and np.isfinite(split["skeleton"]).all()
    # The two sensors run alike: a wrist that turns is a hand that moves (actions 1..21 have the sensor on the wrist).
    with np.load(folder / utd_mhad.FILE) as npz:
        inertial, skeleton, meta = (npz[name] for name in ("inertial", "skeleton", "meta"))
    place, likeness = np.cumsum(meta[:, 3:], axis=0) - meta[:, 3:], []
    for (action, *_, i, s), (i0, s0) in zip(meta, place, strict=True):
        if action <= 21:
            hand = (skeleton[s0 : s0 + s, 11] - skeleton[s0 : s0 + s, utd_mhad.HIP_CENTRE]).astype(float)
            speed = np.linalg.norm(np.diff(hand, axis=0), axis=1)
            turning = np.linalg.norm(utd_mhad.resample(inertial[i0 : i0 + i, 3:], s)[1:], axis=1)
            likeness.append(np.corrcoef(speed, turning)[0, 1])
    assert np.mean(likeness) > 0.5
