"""Opportunity challenge: body-worn accelerometers and gyroscopes, four subjects, seventeen kitchen gestures."""

import os
import types
from collections.abc import Mapping, Sequence

import numpy as np

from fedjax_mm.data import arguments, prepared, windows
from fedjax_mm.data.dataset import Dataset

# Columns of the official files, from 0 (column 0 is the time).
COLUMNS = types.MappingProxyType(
    {
        # Twelve accelerometers, five inertial units, and the shoes' in the room's and in their own axes; milli-g.
        "accelerometer": (*range(1, 40), *(c for first in (46, 55, 64, 73) for c in range(first, first + 3)))
        + (*range(85, 91), *range(101, 107)),
        # Back, right and left upper and lower arms; 1000 times a unit that the files do not name.
        "gyroscope": tuple(c for first in (40, 49, 58, 67, 76) for c in range(first, first + 3)),
    }
)
# FedMEKT's code: for the left lower arm it takes an acceleration (66) and two columns a second time (67, 68).
RELEASED_COLUMNS = types.MappingProxyType({**COLUMNS, "gyroscope": (*COLUMNS["gyroscope"][:12], 66, 67, 68)})

# (subject, run); as in FedMEKT's code, which takes two fifteenths of the remaining rows as the labelled set.
FIXED = types.MappingProxyType({"proxy": ((1, 4), (1, 5), (4, 4), (4, 5)), "test": ((2, 4), (2, 5), (3, 4), (3, 5))})
SIZES = types.MappingProxyType({"valid": 2, "labelled": 2})


def load(
    data_dir: str | os.PathLike | None = None,
    prepared_dir: str | os.PathLike | None = None,
    window: int = 24,
    stride: int = 24,
    seed: int = 0,
    sizes: windows.Sizes = SIZES,
    columns: Mapping[str, Sequence[int]] = COLUMNS,
) -> Dataset:
    """Returns Opportunity as windows of rows at 30 Hz, split by recording (one run of one subject).

    data_dir: the folder with S1-ADL1.dat .. S4-ADL5.dat. None takes what is prepared, and downloads the files if
    nothing is. prepared_dir: where the dataset is prepared, once (None: the user's cache). window, stride: in rows.
    seed: decides which recordings are in which split. sizes: split -> recordings, as number or fraction, of the twelve
    that are neither test (runs 4 and 5 of subjects 2 and 3) nor proxy (runs 4 and 5 of subjects 1 and 4); `train` gets
    the rest. columns: modality -> columns 1..113 of the official files, from 0; RELEASED_COLUMNS are those of FedMEKT's
    code, with its slip in the gyroscope.

    The splits train, valid, labelled, proxy, test have `accelerometer` [M, window, 63], `gyroscope` [M, window, 15],
    float32, z-scores by training statistics (FedMEKT: each split by its own); `labels` [M, window], `label` [M] (last
    row) int32, 0 none, 1..17 gestures; `group` [M], the recording, 5 * (subject - 1) + run - 1.
    Raises FileNotFoundError or ValueError naming the raw file that is missing or cut off.
    """
    from fedjax_mm.data.opportunity import opportunity_dataset_builder as builder

    if taken := sorted(set(FIXED) & set(sizes)):
        raise ValueError(f"sizes names {taken}, whose recordings are fixed; name other splits, like {dict(SIZES)}")
    for modality, chosen in columns.items():
        if outside := [c for c in chosen if not 1 <= c <= builder.SENSORS]:
            raise ValueError(f"columns[{modality!r}] has {outside}; the sensors are columns 1..{builder.SENSORS}")
    arguments.check_whole(1, window=window, stride=stride)
    files = None if data_dir is None else prepared.find(data_dir, builder.REQUIRED, (), builder.SOURCE)
    folder = prepared.prepare(builder.Builder, files, data_dir, prepared_dir)
    recordings = {
        builder.RECORDINGS.index((row["subject"], row["run"])): {
            **{modality: row["sensors"][:, np.subtract(chosen, 1)] for modality, chosen in columns.items()},
            "labels": row["label"],
        }
        for row in prepared.examples("opportunity", folder, "train")
    }
    fixed = {split: [builder.RECORDINGS.index(pair) for pair in pairs] for split, pairs in FIXED.items()}
    free = sorted(set(recordings) - {i for ids in fixed.values() for i in ids})
    ids = {**windows.split_groups(free, ["recording"] * len(free), sizes, seed), **fixed}
    splits = windows.cut_splits(recordings, ids, tuple(columns), window, stride)
    return Dataset("opportunity", splits, tuple(columns), builder.CLASSES)
