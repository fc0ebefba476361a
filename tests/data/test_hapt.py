"""HAPT's raw files, made in its format: windows within one activity, subjects apart, errors that name the file."""

import numpy as np
import pytest

from fedjax_mm.data import hapt, partition

SUBJECTS = (1, 2, 3, 4, 5)  # 2 and 4 are of UCI HAR's test
WALK, SIT, TURN = 1, 4, 8


@pytest.fixture
def folder(tmp_path):
    """Each subject walks for 20 rows, turns for 5, and sits for 15; a value says subject and row."""
    raw, lines = tmp_path / "RawData", []
    raw.mkdir()
    for experiment, subject in enumerate(SUBJECTS, 1):
        rows = np.arange(40)[:, None] + 100 * subject + np.array([0, 0.25, 0.5])
        for name, sign in (("acc", 1), ("gyro", -1)):
            np.savetxt(raw / f"{name}_exp{experiment:02}_user{subject:02}.txt", sign * rows)
        for activity, first, last in ((WALK, 1, 20), (TURN, 21, 25), (SIT, 26, 40)):
            lines.append(f"{experiment} {subject} {activity} {first} {last}")
    (raw / "labels.txt").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_windows_lie_within_one_activity_of_one_subject(folder):
    dataset = hapt.load(folder, window=8, stride=4)
    train, test = dataset.splits["train"], dataset.splits["test"]
    assert set(test["group"]) == {2, 4} and len(set(train["group"])) == 2 and len(dataset.splits["valid"]["label"])
    per_subject = 4 + 2  # of 20 rows and of 15
    assert {name: len(split["label"]) for name, split in dataset.splits.items()} == {
        "train": 2 * per_subject,
        "valid": per_subject,
        "test": 2 * per_subject,
    }
    own = test["group"] == 2
    assert test["label"][own].tolist() == [0] * 4 + [3] * 2
    # Undone, the z-scores of the first column are subject and row.
    first = np.array([[100 * s + r for r in range(40)] for s in sorted(set(train["group"]))])
    used = np.concatenate([[row[i : i + 8] for i in (0, 4, 8, 12, 25, 29)] for row in first])
    values = test["accelerometer"][own][:, :, 0] * used.std() + used.mean()
    np.testing.assert_allclose(values, [200 + i + np.arange(8) for i in (0, 4, 8, 12, 25, 29)], atol=1e-3)
    np.testing.assert_allclose(test["gyroscope"][..., 0], -test["accelerometer"][..., 0], atol=1e-5)


def test_a_subject_is_shared_out_among_clients_of_its_own(folder):
    train = hapt.load(folder, window=8, stride=4, sizes={}).splits["train"]
    parts = partition.within_groups(train["group"], train["label"], 2, alpha=1.0, seed=0)
    assert len(parts) == 6 and sorted(np.concatenate(parts)) == list(range(len(train["label"])))
    assert [set(train["group"][part]) for part in parts] == [{1}, {1}, {3}, {3}, {5}, {5}]


@pytest.mark.parametrize(
    ("damage", "error", "said"),
    [
        (lambda raw: (raw / "labels.txt").unlink(), FileNotFoundError, "no file .*labels.txt; get it from https"),
        (lambda raw: (raw / "gyro_exp02_user02.txt").unlink(), FileNotFoundError, "no file .*gyro_exp02_user02.txt"),
        (lambda raw: (raw / "acc_exp03_user03.txt").write_text("1 2\n"), ValueError, "2 columns where 3 are expected"),
        (
            lambda raw: (raw / "acc_exp03_user03.txt").write_text("1 2 3\n"),
            ValueError,
            "experiment 3 of subject 3 has 1 rows of the accelerometer, and labels.txt names row 20",
        ),
        (lambda raw: (raw / "labels.txt").write_text("1 1 1 0.5 9\n"), ValueError, "whole numbers from 1 on"),
        (lambda raw: (raw / "labels.txt").write_text("1 1 1 1 20\n"), ValueError, r"the subjects \[1\], which are all"),
    ],
)
def test_what_is_missing_or_damaged_is_named(folder, damage, error, said):
    damage(folder / "RawData")
    with pytest.raises(error, match=said):
        hapt.load(folder, window=8, stride=4)
