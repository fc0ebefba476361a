import functools
import http.server
import shutil
import threading

import numpy as np
import pytest

from fedjax_mm.data import mhealth, prepared

ROWS = 30


def log(subject):
    """[ROWS, 24]: subject * 1000 + 24 * row + column, and a label in 0..12."""
    table = subject * 1000.0 + np.arange(ROWS * 24).reshape(ROWS, 24)
    table[:, 23] = np.arange(ROWS) % 13
    return table


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw") / "MHEALTHDATASET"
    folder.mkdir()
    for subject in range(1, 11):
        table = log(subject)
        if subject == 2:
            table[0, 0] = table[3, 5] = table[4, 5] = np.nan
        np.savetxt(folder / f"mHealth_subject{subject}.log", table, fmt="%.6g", delimiter="\t")
    return folder


@pytest.fixture
def copy(raw, tmp_path):
    return shutil.copytree(raw, tmp_path / "copy")


def check(data, window=8, stride=8):
    assert data.modalities == ("accelerometer", "gyroscope", "magnetometer") and len(data.classes) == 13
    groups = {split: set(arrays["group"].tolist()) for split, arrays in data.splits.items()}
    assert {split: len(ids) for split, ids in groups.items()} == {
        "train": 6,
        "valid": 1,
        "proxy": 1,
        "labelled": 1,
        "test": 1,
    }
    assert set.union(*groups.values()) == set(range(1, 11))
    m = (ROWS - window) // stride + 1
    for split, arrays in data.splits.items():
        assert [arrays[name].shape[1:] for name in data.modalities] == [(window, 9), (window, 6), (window, 6)]
        np.testing.assert_array_equal(
            arrays["labels"][:m], np.stack([np.arange(i * 8, i * 8 + 8) % 13 for i in range(m)])
        )
        assert len(arrays["label"]) == m * len(groups[split])


def test_load_gives_the_sensors_columns_by_subject(raw, tmp_path):
    check(mhealth.load(raw, tmp_path, window=8, stride=8))
    rows = {row["subject"]: row for row in prepared.examples("mhealth", tmp_path, "train")}
    table = log(7)
    np.testing.assert_allclose(rows[7]["accelerometer"], table[:, [0, 1, 2, 5, 6, 7, 14, 15, 16]])
    np.testing.assert_allclose(rows[7]["gyroscope"], table[:, [8, 9, 10, 17, 18, 19]])
    np.testing.assert_allclose(rows[7]["magnetometer"], table[:, [11, 12, 13, 20, 21, 22]])
    filled = log(2)
    filled[0, 0], filled[3:5, 5] = 0, filled[2, 5]
    np.testing.assert_allclose(rows[2]["accelerometer"][:, [0, 3]], filled[:, [0, 5]])


def test_download_takes_the_logs_out_of_the_archive(raw, tmp_path, monkeypatch):
    from fedjax_mm.data.mhealth import mhealth_dataset_builder as builder

    shutil.make_archive(str(tmp_path / "www" / "mhealth"), "zip", raw.parent)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path / "www"))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(builder, "URL", f"http://127.0.0.1:{server.server_port}/mhealth.zip")
    try:
        check(mhealth.load(None, tmp_path / "prepared", window=8, stride=8))
    finally:
        server.shutdown()
        server.server_close()
    assert mhealth.load(raw, tmp_path / "prepared", window=8)  # the same files, so the same fingerprint


def cut_off(folder):
    path = folder / "mHealth_subject4.log"
    path.write_text(path.read_text()[:-20])
    return ValueError, r"mHealth_subject4.log is cut off or not a table of 24 columns .*get it again from https"


def other_label(folder):
    path = folder / "mHealth_subject4.log"
    path.write_text("\t".join(["1"] * 23 + ["13"]) + "\n")
    return ValueError, r"mHealth_subject4.log has a label outside 0..12"


def missing(folder):
    (folder / "mHealth_subject10.log").unlink()
    return FileNotFoundError, r"has no mHealth_subject10.log \(1 of 10 files are missing\); get it from https"


@pytest.mark.parametrize("damage", [cut_off, other_label, missing])
def test_a_bad_file_is_named_with_its_cure(copy, tmp_path, damage):
    error, message = damage(copy)
    with pytest.raises(error, match=message):
        mhealth.load(copy, tmp_path / "prepared")


@pytest.fixture
def npz(tmp_path):
    rng = np.random.default_rng(0)
    subject = np.repeat(np.arange(1, 11), 4)
    arrays = {
        "x_acce": rng.normal(size=(40, 100, 3)).astype(np.float16),
        "x_gyro": rng.normal(size=(40, 100, 3)).astype(np.float16),
        "y": (subject % 12).astype(np.uint8),
        "subject": subject.astype(np.uint8),
        "classes": np.array([f"c{k}" for k in range(12)]),
    }
    np.savez_compressed(tmp_path / "windows.npz", **arrays)
    return tmp_path / "windows.npz", arrays


def test_load_windows_splits_by_subject(npz):
    path, arrays = npz
    data = mhealth.load_windows(path)
    assert data.classes[3] == "c3" and data.modalities == ("accelerometer", "gyroscope")
    seen = [subject for split in data.splits.values() for subject in np.unique(split["group"])]
    assert sorted(seen) == list(range(1, 11))
    for split in data.splits.values():
        rows = np.isin(arrays["subject"], split["group"])
        np.testing.assert_array_equal(split["accelerometer"], arrays["x_acce"][rows].astype(np.float32))
        np.testing.assert_array_equal(split["label"], split["group"] % 12)
        assert (split["labels"] == split["label"][:, None]).all() and split["labels"].shape[1] == 100
    short = mhealth.load_windows(path, steps=25).splits["test"]
    means = data.splits["test"]["gyroscope"][:, 4:8].mean(1)
    np.testing.assert_allclose(short["gyroscope"][:, 1], means, rtol=1e-5, atol=1e-6)
    assert short["gyroscope"].shape[1:] == (25, 3) and short["labels"].shape[1] == 25
    with pytest.raises(ValueError, match="steps is 30; it must divide"):
        mhealth.load_windows(path, steps=30)


def test_load_windows_names_a_bad_file(npz, tmp_path):
    path, arrays = npz
    with pytest.raises(FileNotFoundError, match="there is no file .*other.npz"):
        mhealth.load_windows(tmp_path / "other.npz")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="windows.npz is cut off or damaged"):
        mhealth.load_windows(path)
    np.savez(path, **{name: array for name, array in arrays.items() if name != "y"})
    with pytest.raises(KeyError, match="has no array .'y'.; it has"):
        mhealth.load_windows(path)


def test_the_real_windows(shared_data):
    data = mhealth.load_windows(shared_data / "mhealth" / "mhealth_chestacc_wristgyro_w100.npz")
    assert sum(len(split["label"]) for split in data.splits.values()) == 6768
    for split in data.splits.values():
        assert set(split["label"]) == set(range(12)) and np.isfinite(split["gyroscope"]).all()
