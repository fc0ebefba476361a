import functools
import http.server
import shutil
import threading

import numpy as np
import pytest

from fedjax_mm.data import opportunity, prepared

ROWS = 60
NAMES = [f"S{subject}-ADL{run}.dat" for subject in range(1, 5) for run in range(1, 6)]
# From the label legend of the challenge: no gesture, then closing, toggling, opening, drinking, cleaning.
CODES = [0, 504605, 504608, 504611, 504616, 504617, 504619, 504620, 505606]
CODES += [506605, 506608, 506611, 506616, 506617, 506619, 506620, 507621, 508612]
# From the column names of the challenge.
ACCELEROMETER = [*range(1, 40), 46, 47, 48, 55, 56, 57, 64, 65, 66, 73, 74, 75, *range(85, 91), *range(101, 107)]
GYROSCOPE = [40, 41, 42, 49, 50, 51, 58, 59, 60, 67, 68, 69, 76, 77, 78]


def table(number):
    """[ROWS, 116]: noise of another scale in each column and recording, and gestures that take turns."""
    rng = np.random.default_rng(number)
    values = np.round(rng.normal(size=(ROWS, 116)) * (1 + np.arange(116)) * (1 + number) + 7 * np.arange(116), 3)
    values[:, 115] = np.resize(CODES, ROWS)
    return values


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw") / "OpportunityChallengeLabeled"
    folder.mkdir()
    for number, name in enumerate(NAMES):
        values = table(number)
        if number == 6:
            values[0, 40] = values[3:5, 113] = values[2, 1] = np.nan
        np.savetxt(folder / name, values, fmt="%.9g", delimiter=" ")
    return folder


@pytest.fixture(scope="module")
def prepared_dir(raw, tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    opportunity.load(raw, folder, window=8)
    return folder


@pytest.fixture
def copy(raw, tmp_path):
    return shutil.copytree(raw, tmp_path / "copy")


def test_an_example_is_a_run_with_its_sensors_and_gestures(prepared_dir):
    rows = {(row["subject"], row["run"]): row for row in prepared.examples("opportunity", prepared_dir, "train")}
    assert len(rows) == 20
    for number, (subject, run) in enumerate(sorted(rows)):
        values = table(number)
        if number == 6:  # a value that is missing is the row before's, and 0 in the first row
            values[0, 40], values[3:5, 113], values[2, 1] = 0, values[2, 113], values[1, 1]
        np.testing.assert_allclose(rows[subject, run]["sensors"], values[:, 1:114], rtol=1e-6)
        np.testing.assert_array_equal(rows[subject, run]["label"], np.arange(ROWS) % 18)


def test_the_gyroscope_columns_are_the_corrected_ones():
    assert list(opportunity.COLUMNS["accelerometer"]) == ACCELEROMETER and len(ACCELEROMETER) == 63
    assert list(opportunity.COLUMNS["gyroscope"]) == GYROSCOPE
    assert list(opportunity.RELEASED_COLUMNS["gyroscope"]) == [*GYROSCOPE[:12], 66, 67, 68]
    assert opportunity.RELEASED_COLUMNS["accelerometer"] == opportunity.COLUMNS["accelerometer"]


def windows_of(numbers, columns):
    """[M, 8, columns] by plain slicing, stride 4."""
    parts = [table(n)[first : first + 8, columns] for n in numbers for first in range(0, ROWS - 8 + 1, 4)]
    return np.stack(parts)


@pytest.mark.parametrize("columns", [opportunity.COLUMNS, opportunity.RELEASED_COLUMNS], ids=["corrected", "released"])
def test_windows_of_the_columns_are_scaled_by_the_training_recordings(copy, tmp_path, columns):
    np.savetxt(copy / NAMES[6], table(6), fmt="%.9g", delimiter=" ")
    data = opportunity.load(copy, tmp_path / "prepared", window=8, stride=4, columns=columns)
    assert data.modalities == ("accelerometer", "gyroscope") and len(data.classes) == 18
    train = np.unique(data.splits["train"]["group"])
    for split in data.splits.values():
        numbers = np.unique(split["group"])
        np.testing.assert_array_equal(split["group"], np.repeat(numbers, (ROWS - 8) // 4 + 1))
        for modality in data.modalities:
            chosen = list(columns[modality])
            reference = windows_of(train, chosen)
            scaled = (windows_of(numbers, chosen) - reference.mean((0, 1))) / reference.std((0, 1))
            np.testing.assert_allclose(split[modality], scaled, rtol=1e-4, atol=1e-4)
            assert split[modality].dtype == np.float32
        np.testing.assert_array_equal(CODES, np.unique(windows_of(numbers, 115)))
        np.testing.assert_array_equal(np.take(CODES, split["labels"]), windows_of(numbers, 115))
        np.testing.assert_array_equal(split["label"], split["labels"][:, -1])


def test_test_and_proxy_are_fixed_and_the_rest_is_drawn(prepared_dir):
    test, proxy = {8, 9, 13, 14}, {3, 4, 18, 19}  # subjects 2 and 3, subjects 1 and 4, each runs 4 and 5
    assert [NAMES[n] for n in sorted(test)] == ["S2-ADL4.dat", "S2-ADL5.dat", "S3-ADL4.dat", "S3-ADL5.dat"]
    seen = set()
    for seed in range(3):
        splits = opportunity.load(None, prepared_dir, window=8, seed=seed).splits
        groups = {name: set(split["group"].tolist()) for name, split in splits.items()}
        assert groups["test"] == test and groups["proxy"] == proxy
        assert {name: len(ids) for name, ids in groups.items()} == {
            "train": 8,
            "valid": 2,
            "labelled": 2,
            "proxy": 4,
            "test": 4,
        }
        assert set.union(*groups.values()) == set(range(20))
        seen.add(tuple(sorted(groups["valid"])))
    assert len(seen) > 1


def test_wrong_arguments_are_named(prepared_dir):
    with pytest.raises(ValueError, match=r"sizes names \['test'\], whose recordings are fixed"):
        opportunity.load(None, prepared_dir, sizes={"test": 2})
    with pytest.raises(ValueError, match=r"columns\['a'\] has \[0, 114\]; the sensors are columns 1..113"):
        opportunity.load(None, prepared_dir, columns={"a": (0, 1, 113, 114)})


def cut_off(folder):
    path = folder / "S3-ADL2.dat"
    path.write_text(path.read_text()[:-200])
    return ValueError, r"S3-ADL2.dat is cut off or not a table of 116 columns .*get it again from http"


def other_columns(folder):
    np.savetxt(folder / "S3-ADL2.dat", np.zeros((3, 250)))
    return ValueError, r"S3-ADL2.dat has 250 columns where 116 are expected; get it again"


def other_gesture(folder):
    path = folder / "S3-ADL2.dat"
    path.write_text(path.read_text().replace("504605", "406505"))
    return ValueError, r"S3-ADL2.dat has a gesture in its last column that is none of \[0, 504605"


def missing(folder):
    (folder / "S3-ADL2.dat").unlink()
    return FileNotFoundError, r"has no S3-ADL2.dat \(1 of 20 files are missing\); get it from http"


@pytest.mark.parametrize("damage", [cut_off, other_columns, other_gesture, missing])
def test_a_bad_file_is_named_with_its_cure(copy, tmp_path, damage):
    error, message = damage(copy)
    with pytest.raises(error, match=message):
        opportunity.load(copy, tmp_path / "prepared")


def test_download_takes_the_runs_out_of_the_archive(raw, tmp_path, monkeypatch):
    from fedjax_mm.data.opportunity import opportunity_dataset_builder as builder

    shutil.make_archive(str(tmp_path / "www" / "opportunity"), "zip", raw.parent)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path / "www"))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(builder, "URL", f"http://127.0.0.1:{server.server_port}/opportunity.zip")
    try:
        data = opportunity.load(None, tmp_path / "prepared", window=8)
    finally:
        server.shutdown()
        server.server_close()
    again = opportunity.load(raw, tmp_path / "prepared", window=8)  # the same files, so the same fingerprint
    np.testing.assert_array_equal(data.splits["test"]["gyroscope"], again.splits["test"]["gyroscope"])
