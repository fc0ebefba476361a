import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
import requests

from fedjax_mm.data import prepared, ur_fall

FRAMES = 12
BROKEN = "fall-02-acc.csv"


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """The official files, tiny: 12 frames a sequence, depth = frame + 0.1 column, acceleration = its row's time."""
    folder = tmp_path_factory.mktemp("raw")
    for kind, number in (("fall", 30), ("adl", 40)):
        lines = []
        for n in range(1, number + 1):
            for frame in range(1, FRAMES + 1):
                depth = ",".join(f"{frame + 0.1 * column:.1f}" for column in range(8))
                lines.append(f"{kind}-{n:02},{frame},{frame % 3 - 1},{depth}\n")
            # Rows each 20 ms in shuffled order up to 400 ms: all frames (the last is at 367 ms) have a match.
            times = np.random.default_rng(n).permutation(np.arange(0, 401, 20))
            rows = "".join(f"{t},1.0,{t},{t + 0.25},{-t}\r\n" for t in times)
            (folder / f"{kind}-{n:02}-acc.csv").write_text(rows, newline="")
        (folder / f"urfall-cam0-{kind}s.csv").write_text("".join(lines))
    return folder


@pytest.fixture(scope="module")
def prepared_dir(raw, tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    ur_fall.load(raw, folder, window=4, stride=4)
    return folder


@pytest.fixture
def copy(raw, tmp_path):
    return shutil.copytree(raw, tmp_path / "copy")


def test_importing_the_loader_leaves_tfds_alone():
    code = "import sys, fedjax_mm.data.ur_fall, fedjax_mm.data.mhealth; sys.exit('tensorflow_datasets' in sys.modules)"
    root = pathlib.Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=root, check=False).returncode == 0


def test_every_frame_gets_the_accelerometer_row_nearest_in_time(prepared_dir):
    rows = prepared.examples("ur_fall", prepared_dir, "train")
    assert len(rows) == 70 and {row["sequence"] for row in rows} >= {b"fall-01", b"adl-40"}
    for row in rows:
        frames = np.arange(1, FRAMES + 1)
        nearest = 20 * np.round((frames - 1) * (1000 / 30) / 20)
        np.testing.assert_allclose(row["accelerometer"], np.stack([nearest, nearest + 0.25, -nearest], 1))
        np.testing.assert_allclose(row["depth"], frames[:, None] + 0.1 * np.arange(8), rtol=1e-6)
        np.testing.assert_array_equal(row["label"], frames % 3)
        np.testing.assert_array_equal(row["frame"], frames)
        assert row["dropped"] == 0
        kind, number = row["sequence"].decode().split("-")
        assert row["number"] == int(number) - 1 + (30 if kind == "adl" else 0)


def test_load_splits_by_sequence_with_falls_in_proportion(prepared_dir):
    data = ur_fall.load(None, prepared_dir, window=4, stride=2)
    assert data.modalities == ("accelerometer", "depth") and data.classes == ("not lying", "falling", "lying")
    groups = {split: np.unique(arrays["group"]) for split, arrays in data.splits.items()}
    np.testing.assert_array_equal(np.sort(np.concatenate(list(groups.values()))), np.arange(70))
    falls = {split: (int((ids < 30).sum()), len(ids)) for split, ids in groups.items()}
    assert falls == {"train": (18, 42), "valid": (3, 7), "proxy": (3, 7), "labelled": (3, 7), "test": (3, 7)}
    windows = (FRAMES - 4) // 2 + 1
    for split, arrays in data.splits.items():
        m = windows * len(groups[split])
        shapes = {name: array.shape for name, array in arrays.items()}
        assert shapes == {
            "accelerometer": (m, 4, 3),
            "depth": (m, 4, 8),
            "labels": (m, 4),
            "label": (m,),
            "group": (m,),
        }
        np.testing.assert_array_equal(arrays["label"], arrays["labels"][:, -1])
    assert abs(data.splits["train"]["depth"].mean()) < 1e-5


def test_match_drops_frames_after_the_last_row_and_in_gaps():
    from fedjax_mm.data.ur_fall.ur_fall_dataset_builder import match

    times = np.array([0.0, 40.0, 100.0, 149.0, 151.0, 300.0, 301.0, np.nan])
    rows = np.array([300.0, 10.0, 50.0, -500.0, 200.0])
    kept, row = match(times, rows)
    np.testing.assert_array_equal(kept, [True, True, True, False, True, True, False, False])
    np.testing.assert_array_equal(row, [1, 2, 2, 4, 0])


def test_the_sync_file_gives_the_times_where_there_is_one(copy, tmp_path):
    # Frames 20 ms apart, and frame 12 not in the file: it has no time, hence no match.
    (copy / "fall-03-data.csv").write_text("".join(f"{f},{20 * (f - 1)},1.0\n" for f in range(1, FRAMES)))
    ur_fall.load(copy, tmp_path / "prepared", window=4)
    rows = {row["sequence"]: row for row in prepared.examples("ur_fall", tmp_path / "prepared", "train")}
    np.testing.assert_allclose(rows[b"fall-03"]["accelerometer"][:, 0], 20 * np.arange(FRAMES - 1))
    assert rows[b"fall-03"]["dropped"] == 1 and rows[b"fall-04"]["dropped"] == 0


def cut_off_line(folder):
    text = (folder / BROKEN).read_text()
    (folder / BROKEN).write_text(text[: len(text) - 12])
    return rf"{BROKEN} is cut off or not a table of 5 columns .*get it again from https://fenix"


def too_few_columns(folder):
    (folder / BROKEN).write_text("0,1.0,1.0\n" * 5)
    return rf"{BROKEN} has 3 columns where 5 are expected; get it again"


def empty(folder):
    (folder / BROKEN).write_text("")
    return rf"{BROKEN} is empty; get it again"


def lost_sequences(folder):
    path = folder / "urfall-cam0-adls.csv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[: 38 * FRAMES]))
    return r"urfall-cam0-adls.csv is cut off: it has no adl-39 \(38 of 40 sequences\); get it again"


def swapped(folder):
    shutil.copy(folder / "urfall-cam0-falls.csv", folder / "urfall-cam0-adls.csv")
    return r"urfall-cam0-adls.csv is cut off or not a table .*'fall-01'.* at row 0, column 1"


def strange_label(folder):
    path = folder / "urfall-cam0-falls.csv"
    path.write_text(path.read_text().replace("fall-01,1,0,", "fall-01,1,7,"))
    return r"urfall-cam0-falls.csv has a label other than -1, 0 and 1"


@pytest.mark.parametrize("damage", [cut_off_line, too_few_columns, empty, lost_sequences, swapped, strange_label])
def test_a_damaged_file_is_named_with_its_cure(copy, tmp_path, damage):
    message = damage(copy)
    with pytest.raises(ValueError, match=message):
        ur_fall.load(copy, tmp_path / "prepared")
    assert not list((tmp_path / "prepared").rglob("*.array_record*"))


def test_a_missing_file_is_named_with_its_cure(copy, tmp_path):
    (copy / BROKEN).unlink()
    with pytest.raises(FileNotFoundError, match=rf"has no {BROKEN} \(1 of 72 files are missing\); get it from https"):
        ur_fall.load(copy, tmp_path / "prepared")
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere"):
        ur_fall.load(tmp_path / "nowhere", tmp_path / "prepared")


def test_without_files_and_network_it_says_so(tmp_path, monkeypatch):
    def offline(*args, **kwargs):
        raise requests.ConnectionError("no network")

    monkeypatch.setattr(requests, "head", offline)
    with pytest.raises(ConnectionError, match=r"download failed \(no network\); put the raw files of https.* data_dir"):
        ur_fall.load(None, tmp_path)


def test_other_raw_files_than_the_prepared_ones_are_noticed(copy, prepared_dir):
    assert ur_fall.load(copy, prepared_dir, window=4)
    (copy / BROKEN).write_text("0,1.0,0,0,1\n400,1.0,0,0,1\n")
    with pytest.raises(ValueError, match="prepared from other raw files than those in .*delete it, or choose another"):
        ur_fall.load(copy, prepared_dir, window=4)


def test_prepared_dir_is_the_users_cache_unless_given(raw, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    ur_fall.load(raw, window=4)
    assert (tmp_path / "fedjax_mm" / "ur_fall" / "1.0.0" / "dataset_info.json").is_file()


def test_two_runs_may_prepare_at_once(raw, tmp_path, monkeypatch):
    from fedjax_mm.data.ur_fall.ur_fall_dataset_builder import Builder

    plain = Builder._split_generators

    def overtaken(self, dl_manager):
        monkeypatch.setattr(Builder, "_split_generators", plain)
        ur_fall.load(raw, tmp_path, window=4)
        return plain(self, dl_manager)

    monkeypatch.setattr(Builder, "_split_generators", overtaken)
    assert ur_fall.load(raw, tmp_path, window=4).splits["train"]["group"].size


def test_the_real_recordings(shared_data, tmp_path):
    folder = shared_data / "ur_fall"
    data = ur_fall.load(folder, tmp_path)
    rows = prepared.examples("ur_fall", tmp_path, "train", ["sequence", "label", "dropped"])
    dropped = {row["sequence"].decode(): row["dropped"] for row in rows if row["dropped"]}
    assert len(rows) == 70 and dropped == {"fall-10": 31, "adl-25": 15, "adl-27": 19}
    # Published: 7,452 not lying, 1,719 falling, 2,373 lying. The dropped frames of the two adls are not lying, those
    # at the end of fall-10 are lying.
    counts = np.bincount(np.concatenate([row["label"] for row in rows]))
    np.testing.assert_array_equal(counts, [7452 - 15 - 19, 1719, 2373 - 31])
    # Beside an independent reading of one sequence whose file of frame times is there.
    lines = (folder / "urfall-cam0-falls.csv").read_text().splitlines()
    frames = np.array([line.split(",")[1:] for line in lines if line.startswith("fall-01,")], float)
    acceleration, sync = (np.loadtxt(folder / f"fall-01-{kind}.csv", delimiter=",") for kind in ("acc", "data"))
    nearest = [np.abs(acceleration[:, 0] - sync[sync[:, 0] == f, 1]).argmin() for f in frames[:, 0]]
    (first,) = [row for row in prepared.examples("ur_fall", tmp_path, "train") if row["sequence"] == b"fall-01"]
    np.testing.assert_allclose(first["accelerometer"], acceleration[nearest, 2:], rtol=1e-6)
    np.testing.assert_allclose(first["depth"], frames[:, 2:], rtol=1e-6)
    for split, arrays in data.splits.items():
        assert np.isfinite(arrays["depth"]).all() and set(np.unique(arrays["labels"])) == {0, 1, 2}, split
    assert os.listdir(tmp_path / "ur_fall") == ["1.0.0"]
