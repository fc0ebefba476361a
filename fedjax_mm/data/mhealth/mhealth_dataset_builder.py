"""TFDS builder of mHealth (UCI 319); without TensorFlow, from the official logs."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from fedjax_mm.data import arrays, prepared

SOURCE = "https://archive.ics.uci.edu/dataset/319/mhealth+dataset"
URL = "https://archive.ics.uci.edu/static/public/319/mhealth+dataset.zip"
SUBJECTS = tuple(range(1, 11))
REQUIRED = tuple(f"mHealth_subject{n}.log" for n in SUBJECTS)
# Columns of a log, from 0; 3 and 4 are the electrocardiogram.
COLUMNS = {
    "accelerometer": (0, 1, 2, 5, 6, 7, 14, 15, 16),  # chest, left ankle, right lower arm
    "gyroscope": (8, 9, 10, 17, 18, 19),  # left ankle, right lower arm
    "magnetometer": (11, 12, 13, 20, 21, 22),  # left ankle, right lower arm
}
LABEL = 23
CLASSES = (
    "none",
    "standing still",
    "sitting and relaxing",
    "lying down",
    "walking",
    "climbing stairs",
    "waist bends forward",
    "frontal elevation of arms",
    "knees bending",
    "cycling",
    "jogging",
    "running",
    "jump front and back",
)


class Builder(tfds.core.GeneratorBasedBuilder):
    """mHealth: one example is one subject's whole recording."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Accelerometers, gyroscopes and magnetometers."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"Optional: put {REQUIRED[0]} .. {REQUIRED[-1]} of {SOURCE} there."

    def _info(self) -> tfds.core.DatasetInfo:
        sensors = {
            name: tfds.features.Tensor(shape=(None, len(columns)), dtype=np.float32)
            for name, columns in COLUMNS.items()
        }
        label = tfds.features.Tensor(shape=(None,), dtype=np.int32)
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict({"subject": np.int32, **sensors, "label": label}),
            homepage=SOURCE,
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        files = prepared.raw_files(dl_manager, REQUIRED, (), URL, SOURCE)
        prepared.sign(self, files)
        return {"train": self._generate_examples(files)}

    def _generate_examples(self, files: Mapping[str, Any]) -> Iterator[tuple[int, dict[str, Any]]]:
        for subject, name in zip(SUBJECTS, REQUIRED, strict=True):
            table = arrays.load_table(files[name], LABEL + 1, SOURCE)
            if not np.isin(table[:, LABEL], range(len(CLASSES))).all():
                raise ValueError(
                    f"{files[name]} has a label outside 0..12 in its last column; get it again from {SOURCE}"
                )
            table = fill(table)
            sensors = {name: table[:, columns].astype(np.float32) for name, columns in COLUMNS.items()}
            yield subject, {"subject": subject, **sensors, "label": table[:, LABEL].astype(np.int32)}


def fill(table: np.ndarray) -> np.ndarray:
    """Returns the table [T, D] with every NaN replaced by the last value before it, or by 0 before the first value."""
    known = ~np.isnan(table)
    last = np.maximum.accumulate(np.where(known, np.arange(len(table))[:, None], 0), axis=0)
    return np.nan_to_num(np.take_along_axis(table, last, axis=0), nan=0.0)
