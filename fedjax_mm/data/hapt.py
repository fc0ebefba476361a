"""HAPT (UCI 341), the raw recordings of UCI HAR: a phone's accelerometer and gyroscope at the waist, 30 subjects."""

import os
import pathlib
import types

import numpy as np

from fedjax_mm.data import arguments, arrays, windows
from fedjax_mm.data.dataset import Dataset

SOURCE = "https://archive.ics.uci.edu/dataset/341"
CLASSES = ("walking", "walking upstairs", "walking downstairs", "sitting", "standing", "laying")
# UCI HAR's own split by subject: these nine are its test, and the other 21 its train.
TEST_SUBJECTS = (2, 4, 9, 10, 12, 13, 18, 20, 24)
# One subject whose examples choose settings, so that 20 are left for train; {} leaves all 21, as in FedMultimodal.
SIZES = types.MappingProxyType({"valid": 1})


def load(
    data_dir: str | os.PathLike, window: int = 128, stride: int = 64, seed: int = 0, sizes: windows.Sizes = SIZES
) -> Dataset:
    """Returns HAPT's six activities as windows of rows at 50 Hz, split by subject.

    data_dir: the folder with RawData, which has labels.txt and acc_expNN_userNN.txt and gyro_expNN_userNN.txt of each
    experiment. window, stride: in rows; 128 and 64 are those of UCI HAR. A window lies within one activity, and the
    transitions between postures (activities 7 to 12) are left out. seed, sizes: which of the 21 training subjects are
    in which further split, as number or fraction; `train` gets the rest.

    The splits train, test and those of `sizes` have `accelerometer` and `gyroscope` [M, window, 3], float32, z-scores
    by training statistics; `label` [M], `labels` [M, window] int32, 0..5; `group` [M], the subject 1..30. UCI HAR
    filters noise and takes gravity apart, which is not done here. `partition.within_groups(train["group"],
    train["label"], 5, alpha, seed)` shares a subject out among five clients: 105 of 21 subjects, those of FedMultimodal
    (arXiv 2306.09486).

    Raises FileNotFoundError or ValueError naming the raw file that is missing or cut off.
    """
    arguments.check_whole(1, window=window, stride=stride)
    folder = arguments.check_folder("data_dir", data_dir) / "RawData"
    segments, subjects = _segments(folder)
    train = [subject for subject in np.unique(subjects) if subject not in TEST_SUBJECTS]
    if not train or len(train) == len(np.unique(subjects)):
        found = f"{folder / 'labels.txt'} has the subjects {np.unique(subjects).tolist()}"
        raise ValueError(f"{found}, which are all of UCI HAR's test or all of its train; get it again from {SOURCE}")
    split_of = {**windows.split_groups(train, ["subject"] * len(train), sizes, seed), "test": np.array(TEST_SUBJECTS)}
    ids = {split: np.flatnonzero(np.isin(subjects, members)) for split, members in split_of.items()}
    modalities = ("accelerometer", "gyroscope")
    splits = windows.cut_splits(dict(enumerate(segments)), ids, modalities, window, stride)
    for split in splits.values():
        split["group"] = subjects[split["group"]]
    return Dataset("hapt", splits, modalities, CLASSES)


def _segments(folder: pathlib.Path) -> tuple[list[dict[str, np.ndarray]], np.ndarray]:
    """(the stretches of one activity, {modality: [T, 3], "labels": [T]}, [segments] int32 their subjects)."""
    table = arrays.load_table(folder / "labels.txt", 5, SOURCE)  # experiment, subject, activity, first and last row
    if (table != np.floor(table)).any() or (table < 1).any():
        raise ValueError(f"{folder}/labels.txt holds other than whole numbers from 1 on; get it again from {SOURCE}")
    segments, subjects = [], []
    for experiment, subject in np.unique(table[:, :2], axis=0).astype(int):
        of_both = {
            modality: arrays.load_table(folder / f"{name}_exp{experiment:02}_user{subject:02}.txt", 3, SOURCE)
            for modality, name in (("accelerometer", "acc"), ("gyroscope", "gyro"))
        }
        here = (table[:, 0] == experiment) & (table[:, 1] == subject) & (table[:, 2] <= len(CLASSES))
        for activity, first, last in table[here, 2:].astype(int):
            cut = {modality: rows[first - 1 : last] for modality, rows in of_both.items()}
            _check_rows(folder, experiment, subject, last, of_both)
            segments.append({**cut, "labels": np.full(last - first + 1, activity - 1, np.int32)})
            subjects.append(subject)
    return segments, np.array(subjects, np.int32)


def _check_rows(folder: pathlib.Path, experiment: int, subject: int, last: int, found: dict[str, np.ndarray]) -> None:
    for modality, rows in found.items():
        if last > len(rows):
            said = f"experiment {experiment} of subject {subject} has {len(rows)} rows of the {modality}"
            raise ValueError(f"{said}, and labels.txt names row {last}; get {folder} again from {SOURCE}")
