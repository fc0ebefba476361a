"""mHealth (UCI 319): body-worn accelerometers, gyroscopes and magnetometers, ten subjects, twelve activities."""

import os
import types
from collections.abc import Mapping

import numpy as np

from fedjax_mm.data import arguments, arrays, prepared, windows
from fedjax_mm.data.dataset import Dataset

# FedMEKT (arXiv 2307.13214, its code): one subject for the test, one further subject as the proxy set.
SIZES = types.MappingProxyType({"valid": 1, "proxy": 1, "labelled": 1, "test": 1})


def load(
    data_dir: str | os.PathLike | None = None,
    prepared_dir: str | os.PathLike | None = None,
    window: int = 24,
    stride: int = 24,
    seed: int = 0,
    sizes: windows.Sizes = SIZES,
) -> Dataset:
    """Returns mHealth as windows of rows at 50 Hz, split by subject.

    data_dir: the folder with mHealth_subject1.log .. mHealth_subject10.log. None takes what is prepared, and downloads
    the files if nothing is. prepared_dir: where the dataset is prepared, once (None: the user's cache). window, stride:
    in rows. seed: decides which subjects are in which split. sizes: split -> subjects, as number or fraction; `train`
    gets the rest.

    The splits train, valid, proxy, labelled, test have `accelerometer` [M, window, 9], `gyroscope` [M, window, 6],
    `magnetometer` [M, window, 6], float32, z-scores by training statistics (FedMEKT: per subject, test included);
    `labels` [M, window], `label` [M] (last row) int32, 0 none, 1..12 activities; `group` [M], the subject 1..10.
    Raises FileNotFoundError or ValueError naming the raw file that is missing or cut off.
    """
    from fedjax_mm.data.mhealth import mhealth_dataset_builder as builder

    arguments.check_whole(1, window=window, stride=stride)
    files = None if data_dir is None else prepared.find(data_dir, builder.REQUIRED, (), builder.SOURCE)
    folder = prepared.prepare(builder.Builder, files, data_dir, prepared_dir)
    rows = sorted(prepared.examples("mhealth", folder, "train"), key=lambda row: row["subject"])
    modalities = tuple(builder.COLUMNS)
    recordings = {int(row["subject"]): {**{m: row[m] for m in modalities}, "labels": row["label"]} for row in rows}
    ids = windows.split_groups(list(recordings), ["subject"] * len(recordings), sizes, seed)
    splits = windows.cut_splits(recordings, ids, modalities, window, stride)
    return Dataset("mhealth", splits, modalities, builder.CLASSES)


def load_windows(path: str | os.PathLike, seed: int = 0, sizes: windows.Sizes = SIZES, steps: int = 100) -> Dataset:
    """Returns the reduced mHealth, chest accelerometer and wrist gyroscope, split by subject.

    path: an npz with windows already cut (2 s at 50 Hz, half overlapping) and z-scored per subject: x_acce, x_gyro
    [M, 100, 3], y [M] 0..11, subject [M], classes [12]. seed, sizes: as of `load`. steps: the number of time steps to
    which a window is averaged.
    The splits train, valid, proxy, labelled, test have `accelerometer`, `gyroscope` [M, steps, 3] float32, not
    normalised again; `label` [M], `labels` [M, steps] (a window has one activity) int32; `group` [M], the subject
    1..10.
    Raises FileNotFoundError, KeyError or ValueError where the file is missing, another one, or cut off.
    """
    arguments.check_whole(1, steps=steps)
    npz = arrays.load_npz(arguments.check_folder("path", path), ("x_acce", "x_gyro", "y", "subject", "classes"))
    classes = _class_names(npz, path)
    owner = arrays.as_int32(npz["subject"], f"{path}: the subjects")
    labels = arrays.as_int32(npz["y"], f"{path}: the labels")
    if not np.isin(labels, range(len(classes))).all():
        raise ValueError(f"{path} has a label outside 0..{len(classes) - 1}, the numbers of its `classes`")
    subjects = np.unique(owner)
    ids = windows.split_groups(subjects, ["subject"] * len(subjects), sizes, seed)
    length = npz["x_acce"].shape[1]
    if length % steps:
        raise ValueError(f"steps is {steps}; it must divide the windows' {length} rows")
    averaged = lambda x: x.astype(np.float32).reshape(len(x), steps, length // steps, -1).mean(2)
    splits = {}
    for split, members in ids.items():
        rows = np.flatnonzero(np.isin(owner, members))
        label = labels[rows]
        splits[split] = {
            "accelerometer": averaged(npz["x_acce"][rows]),
            "gyroscope": averaged(npz["x_gyro"][rows]),
            "label": label,
            "labels": np.repeat(label[:, None], steps, axis=1),
            "group": owner[rows],
        }
    return Dataset("mhealth", splits, ("accelerometer", "gyroscope"), classes)


def _class_names(npz: Mapping[str, np.ndarray], path: str | os.PathLike) -> tuple[str, ...]:
    """The names of the classes; raises ValueError where the arrays of the file do not fit together."""
    windows_of = npz["x_acce"].shape
    lengths = {name: len(npz[name]) if npz[name].ndim else 0 for name in ("x_acce", "x_gyro", "y", "subject")}
    if len(windows_of) != 3 or npz["x_gyro"].shape != windows_of or len(set(lengths.values())) > 1:
        raise ValueError(
            f"{path} has arrays of lengths {lengths}; it must have windows [M, T, 3] and M labels, subjects"
        )
    names = npz["classes"]
    return tuple(np.char.decode(names, "utf-8").tolist() if names.dtype.kind == "S" else map(str, names.tolist()))
