"""TFDS builder of the UR Fall Detection Dataset; without TensorFlow, from the official csv files."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from fedjax_mm.data import arrays, prepared

SOURCE = "https://fenix.ur.edu.pl/~mkepski/ds/uf.html"
URL = "https://fenix.ur.edu.pl/~mkepski/ds/data/"
KINDS = {"fall": 30, "adl": 40}
SEQUENCES = tuple(f"{kind}-{n:02}" for kind, number in KINDS.items() for n in range(1, number + 1))
FEATURES = {kind: f"urfall-cam0-{kind}s.csv" for kind in KINDS}
REQUIRED = (*FEATURES.values(), *(f"{sequence}-acc.csv" for sequence in SEQUENCES))
OPTIONAL = tuple(f"{sequence}-data.csv" for sequence in SEQUENCES)  # official times of the frames
CLASSES = ("not lying", "falling", "lying")  # the files' -1, 0, 1
FRAME_MS = 1000 / 30
# An accelerometer row further away is no match. The slowest recordings have a row each 31 ms.
MAX_GAP_MS = 50.0


class Builder(tfds.core.GeneratorBasedBuilder):
    """UR Fall: one example is one sequence, its accelerometer rows matched to its depth frames."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Accelerometer and depth features of camera 0."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"Optional: put {REQUIRED[0]}, {REQUIRED[1]} and the *-acc.csv of {SOURCE} there."
    MAX_SIMULTANEOUS_DOWNLOADS = 4  # a small university server, 142 small files

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "sequence": tfds.features.Text(),
                    "number": np.int32,
                    "accelerometer": tfds.features.Tensor(shape=(None, 3), dtype=np.float32),
                    "depth": tfds.features.Tensor(shape=(None, 8), dtype=np.float32),
                    "label": tfds.features.Tensor(shape=(None,), dtype=np.int32),
                    "frame": tfds.features.Tensor(shape=(None,), dtype=np.int32),
                    "dropped": np.int32,
                }
            ),
            homepage=SOURCE,
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        urls = {name: URL + name for name in (*REQUIRED, *OPTIONAL)}
        files = prepared.raw_files(dl_manager, REQUIRED, OPTIONAL, urls, SOURCE)
        prepared.sign(self, files)
        return {"train": self._generate_examples(files)}

    def _generate_examples(self, files: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        for kind, number in KINDS.items():
            table = _features(files[FEATURES[kind]], kind, number)
            for n in range(1, number + 1):
                sequence = f"{kind}-{n:02}"
                frames = table[table[:, 0] == n]
                acceleration = arrays.load_table(files[f"{sequence}-acc.csv"], 5, SOURCE, ",")
                sync = files.get(f"{sequence}-data.csv")
                times = frame_times(frames[:, 1], arrays.load_table(sync, 3, SOURCE, ",") if sync else None)
                kept, row = match(times, acceleration[:, 0])
                yield (
                    sequence,
                    {
                        "sequence": sequence,
                        "number": SEQUENCES.index(sequence),
                        "accelerometer": acceleration[row, 2:5].astype(np.float32),
                        "depth": frames[kept, 3:].astype(np.float32),
                        "label": frames[kept, 2].astype(np.int32) + 1,
                        "frame": frames[kept, 1].astype(np.int32),
                        "dropped": int(np.sum(~kept)),
                    },
                )


def frame_times(frames: np.ndarray, sync: np.ndarray | None) -> np.ndarray:
    """Returns the time in ms of frame numbers [T] (the first is 1), NaN for a frame that the sync file lacks.

    sync: the rows (frame, ms, ...) of the sync file; None means 30 frames/s.
    """
    if sync is None:
        return (frames - 1) * FRAME_MS
    official = dict(zip(sync[:, 0], sync[:, 1], strict=True))
    return np.array([official.get(frame, np.nan) for frame in frames])


def match(times: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns which frames keep an accelerometer row, [T] bool, and for each of these the row nearest in time, int.

    times: [T] of frames, ms. rows: [R] times of accelerometer rows, ms; they need not ascend (adl-27 starts anew in the
    middle). Frames after the last row are dropped, as FedMEKT does, and those that have no row within MAX_GAP_MS.
    """
    order = np.argsort(rows, kind="stable")
    ascending = rows[order]
    after = np.clip(np.searchsorted(ascending, times), 0, len(rows) - 1)
    before = np.maximum(after - 1, 0)
    nearest = np.where(np.abs(ascending[before] - times) <= np.abs(ascending[after] - times), before, after)
    kept = (times <= ascending[-1]) & (np.abs(ascending[nearest] - times) <= MAX_GAP_MS)
    return kept, order[nearest[kept]]


def _features(path: Any, kind: str, number: int) -> np.ndarray:
    """The depth features of one kind: [rows, 11], sequence number, frame, label, 8 features; frames ascending."""
    table = arrays.load_table(path, 11, SOURCE, ",", {0: lambda name: float(name.removeprefix(f"{kind}-"))})
    if missing := sorted(set(range(1, number + 1)) - set(table[:, 0].astype(int))):
        raise ValueError(
            f"{path} is cut off: it has no {kind}-{missing[0]:02} ({number - len(missing)} of {number} sequences); "
            f"get it again from {SOURCE}"
        )
    if not np.isin(table[:, 2], (-1, 0, 1)).all():
        raise ValueError(f"{path} has a label other than -1, 0 and 1 in its third column; get it again from {SOURCE}")
    return table[np.lexsort((table[:, 1], table[:, 0]))]
