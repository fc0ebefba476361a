"""FedMultimodal's clients of UCI HAR, from made files of HAPT's layout: each subject is shared out among clients."""

import numpy as np
import pytest

from experiments.common import data
from experiments.fedavg import study


@pytest.fixture
def folder(tmp_path):
    """Five subjects, of whom 2 and 4 are of the test, walk and then sit, for 640 rows each."""
    raw, lines = tmp_path / "RawData", []
    raw.mkdir()
    rng = np.random.default_rng(0)
    for subject in range(1, 6):
        for name in ("acc", "gyro"):
            np.savetxt(raw / f"{name}_exp{subject:02}_user{subject:02}.txt", rng.normal(size=(1280, 3)), fmt="%.3f")
        lines += [f"{subject} {subject} 1 1 640", f"{subject} {subject} 4 641 1280"]
    (raw / "labels.txt").write_text("\n".join(lines) + "\n")
    return str(tmp_path)


def test_a_subject_is_shared_out_among_its_own_clients(folder):
    problem = data.load("hapt", folder, "AB9", 5.0, 0, cutting=data.Cutting(tuning_subjects=0))
    assert problem.data.sizes == {"accelerometer+gyroscope": 9} and "valid" not in problem.dataset.splits
    train, cohort = problem.dataset.splits["train"], problem.data.cohorts["accelerometer+gyroscope"]
    owned = np.split(cohort.rows, cohort.offsets[1:-1])
    subjects = [set(train["group"][rows]) for rows in owned]
    assert all(len(one) == 1 for one in subjects) and sorted(map(min, subjects)) == [1, 1, 1, 3, 3, 3, 5, 5, 5]
    assert sorted(np.concatenate(owned)) == list(range(len(train["label"])))
    with pytest.raises(ValueError, match="--cohorts AB10 has 10 clients; write a multiple of the 3 subjects"):
        data.load("hapt", folder, "AB10", 5.0, 0, cutting=data.Cutting(tuning_subjects=0))
    held_out = data.load("hapt", folder, "AB4", 5.0, 0)
    assert len(held_out.dataset.splits["valid"]["label"]) and len(set(held_out.dataset.splits["train"]["group"])) == 2


def test_the_preset_is_the_quickstart_of_fedmultimodal():
    settings = study.PRESETS["hapt"]
    assert (settings.problem.cohorts, settings.problem.alpha, settings.problem.common.rounds) == ("AB105", 5.0, 200)
    assert settings.fusion == "attention" and settings.problem.cutting.tuning_subjects == 0
