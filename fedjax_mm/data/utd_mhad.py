"""UTD-MHAD: an inertial sensor on the wrist or thigh and a Kinect's skeleton, eight subjects, 27 actions."""

import os
import pathlib
import types

import numpy as np

from fedjax_mm.data import arguments, arrays, windows
from fedjax_mm.data.dataset import Dataset

FILE = "utd_mhad_inertial_skeleton.npz"
SOURCE = "https://personal.utdallas.edu/~kehtar/UTD-MHAD.html"
HIP_CENTRE = 3  # of the 20 joints: head, shoulder centre, spine, hip centre, four of each arm, four of each leg
# Two subjects for the test, because one alone decides too much; three are left for train.
SIZES = types.MappingProxyType({"valid": 1, "proxy": 1, "labelled": 1, "test": 2})
CLASSES = (
    "swipe left",
    "swipe right",
    "wave",
    "clap",
    "throw",
    "cross arms",
    "basketball shoot",
    "draw x",
    "draw circle clockwise",
    "draw circle counter-clockwise",
    "draw triangle",
    "bowling",
    "boxing",
    "baseball swing",
    "tennis swing",
    "arm curl",
    "tennis serve",
    "push",
    "knock",
    "catch",
    "pick up and throw",
    "jog",
    "walk",
    "sit to stand",
    "stand to sit",
    "lunge",
    "squat",
)


def load(
    data_dir: str | os.PathLike,
    window: int = 24,
    stride: int = 12,
    seed: int = 0,
    sizes: windows.Sizes = SIZES,
    whole: bool = False,
) -> Dataset:
    """Returns UTD-MHAD as windows of skeleton frames, split by subject.

    data_dir: the folder with utd_mhad_inertial_skeleton.npz, all 861 trials one after the other: `inertial` [.., 6]
    (acceleration in g, angular rate in deg/s), `skeleton` [.., 20, 3] (m) and `meta` [861, 5] (action 1..27, subject
    1..8, trial, number of inertial and of skeleton rows). window, stride: in skeleton frames; a trial has 41 to 125,
    and one shorter than `window` is left out. seed: decides which subjects are in which split. sizes: split ->
    subjects, as number or fraction; `train` gets the rest. whole: whether a window is a whole trial, interpolated at
    `window` equal distances from its first frame to its last; `stride` then says nothing.

    The splits train, valid, proxy, labelled, test have `inertial` [M, window, 6], `skeleton` [M, window, 60] (joint by
    joint, relative to the hip centre, whose own three columns are 0), float32, z-scores by training statistics; `label`
    [M], `labels` [M, window] (a trial has one action) int32; `group` [M], the subject 1..8; `trial` [M], its row of
    `meta`.

    The inertial rows of a trial are interpolated at its skeleton frames, first on first and last on last. By the
    sensors' nominal rates (50 Hz, 30 frames/s) the two would have 1.7 rows a frame, but the recordings have 2.7: the
    hand's speed in the skeleton correlates with the wrist's angular rate at 0.65 this way, at 0.22 by nominal rates.
    Raises FileNotFoundError, KeyError or ValueError where the file is missing, another one, or cut off.
    """
    arguments.check_whole(1, window=window, stride=stride)
    path = arguments.check_folder("data_dir", data_dir) / FILE
    if not path.is_file():
        raise FileNotFoundError(f"{data_dir} has no {FILE}; join the trials of {SOURCE} as `load` describes")
    npz = arrays.load_npz(path, ("inertial", "skeleton", "meta"))
    trials, subjects = _trials(npz, path)
    present = np.unique(subjects)
    ids = windows.split_groups(present, ["subject"] * len(present), sizes, seed)
    of_subjects = {split: np.flatnonzero(np.isin(subjects, members)) for split, members in ids.items()}
    if whole:
        trials = [_resampled(trial, window) for trial in trials]
    splits = windows.cut_splits(dict(enumerate(trials)), of_subjects, ("inertial", "skeleton"), window, stride)
    for split in splits.values():
        split["trial"], split["group"] = split["group"], subjects[split["group"]]
    return Dataset("utd_mhad", splits, ("inertial", "skeleton"), CLASSES)


def resample(rows: np.ndarray, steps: int) -> np.ndarray:
    """Returns rows [T, D] at `steps` equal distances from the first to the last, interpolated linearly, [steps, D]."""
    places = np.linspace(0, len(rows) - 1, steps)
    return np.stack([np.interp(places, np.arange(len(rows)), column) for column in rows.T], axis=1)


def _resampled(trial: dict[str, np.ndarray], steps: int) -> dict[str, np.ndarray]:
    """A trial of `steps` steps; all its labels are one."""
    arrays = {m: resample(trial[m], steps) for m in ("inertial", "skeleton")}
    return {**arrays, "labels": np.full(steps, trial["labels"][0], np.int32)}


def _trials(npz: dict[str, np.ndarray], path: pathlib.Path) -> tuple[list[dict[str, np.ndarray]], np.ndarray]:
    """One dict of arrays [T, ...] per trial, and the subjects [trials] int32."""
    shapes = {name: npz[name].shape[1:] for name in npz}
    if shapes != {"inertial": (6,), "skeleton": (20, 3), "meta": (5,)}:
        raise ValueError(f"{path} has rows of shapes {shapes}; it must be the file that `load` describes")
    action, subject, _, *lengths = arrays.as_int32(npz["meta"], f"{path}: the rows of `meta`").T
    for name, length in zip(("inertial", "skeleton"), lengths, strict=True):
        if length.sum() != len(npz[name]):
            raise ValueError(f"{path}: `{name}` has {len(npz[name])} rows, but `meta` counts {length.sum()}")
    if not np.isin(action, range(1, len(CLASSES) + 1)).all():
        raise ValueError(f"{path}: `meta` has an action outside 1..{len(CLASSES)} in its first column")
    skeleton = npz["skeleton"].astype(np.float32)
    relative = (skeleton - skeleton[:, HIP_CENTRE, None]).reshape(len(skeleton), -1)
    parts = (
        np.split(a, np.cumsum(length)[:-1]) for a, length in zip((npz["inertial"], relative), lengths, strict=True)
    )
    trials = [
        {"inertial": resample(i, len(s)), "skeleton": s, "labels": np.full(len(s), a - 1, np.int32)}
        for i, s, a in zip(*parts, action, strict=True)
    ]
    return trials, subject
