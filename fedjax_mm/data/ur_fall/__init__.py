"""UR Fall Detection: a body-worn accelerometer and features of a depth camera, 30 falls, 40 everyday sequences."""

import logging
import os
import types

from fedjax_mm.data import arguments, prepared, windows
from fedjax_mm.data.dataset import Dataset

# FedMEKT (arXiv 2307.13214, its code): 3 falls and 4 everyday sequences for the test and as many for the proxy set.
SIZES = types.MappingProxyType({"valid": 0.1, "proxy": 0.1, "labelled": 0.1, "test": 0.1})


def load(
    data_dir: str | os.PathLike | None = None,
    prepared_dir: str | os.PathLike | None = None,
    window: int = 24,
    stride: int = 12,
    seed: int = 0,
    sizes: windows.Sizes = SIZES,
    lead_in: bool = False,
) -> Dataset:
    """Returns UR Fall as windows of depth frames, split by sequence with falls and everyday acts in proportion.

    data_dir: the folder with urfall-cam0-falls.csv, urfall-cam0-adls.csv and the *-acc.csv (*-data.csv where there
    are some). None takes what is prepared, and downloads the files if nothing is. prepared_dir: where the dataset is
    prepared, once (None: the user's cache). window, stride: in frames of about 33 ms. seed: decides which sequences are
    in which split. sizes: split -> sequences of each kind, as fraction or number; `train` gets the rest. lead_in: a
    recording's first frame is repeated before it, so that every frame is the last of a window; without it the first
    window - 1 frames (nobody lies in most of them) are never tested.

    The splits train, valid, proxy, labelled, test have `accelerometer` [M, window, 3] (x, y, z) and `depth`
    [M, window, 8], float32, z-scores by training statistics (FedMEKT: per sequence, test included); `labels`
    [M, window], `label` [M] (last frame) int32, 0 not lying, 1 falling, 2 lying; `group` [M], 0..29 falls, 30..69
    everyday acts.
    Raises FileNotFoundError or ValueError naming the raw file that is missing or cut off.
    """
    from fedjax_mm.data.ur_fall import ur_fall_dataset_builder as builder

    arguments.check_whole(1, window=window, stride=stride)
    files = None if data_dir is None else prepared.find(data_dir, builder.REQUIRED, builder.OPTIONAL, builder.SOURCE)
    folder = prepared.prepare(builder.Builder, files, data_dir, prepared_dir)
    columns = ("number", "accelerometer", "depth", "label", "dropped")
    rows = sorted(prepared.examples("ur_fall", folder, "train", columns), key=lambda row: row["number"])
    dropped = sum(row["dropped"] for row in rows)
    logging.getLogger(__name__).info("ur_fall: %d frames have no accelerometer row and were dropped", dropped)
    modalities = ("accelerometer", "depth")
    recordings = {int(row["number"]): {**{m: row[m] for m in modalities}, "labels": row["label"]} for row in rows}
    falls = [number < builder.KINDS["fall"] for number in recordings]
    ids = windows.split_groups(list(recordings), falls, sizes, seed)
    splits = windows.cut_splits(recordings, ids, modalities, window, stride, lead_in)
    return Dataset("ur_fall", splits, modalities, builder.CLASSES)
