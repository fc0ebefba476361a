"""TFDS builder of the Opportunity challenge; without TensorFlow, from the official dat files."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from fedjax_mm.data import arrays, prepared
from fedjax_mm.data.mhealth.mhealth_dataset_builder import fill

SOURCE = "https://www.opportunity-project.eu/challengeDataset"
URL = "https://www.opportunity-project.eu/system/files/Challenge/OpportunityChallengeLabeled.zip"
SUBJECTS = (1, 2, 3, 4)
RUNS = (1, 2, 3, 4, 5)
RECORDINGS = tuple((subject, run) for subject in SUBJECTS for run in RUNS)
REQUIRED = tuple(f"S{subject}-ADL{run}.dat" for subject, run in RECORDINGS)
SENSORS = 113  # columns 1..113 of a file, from 0; column 0 is the time in ms, 114 the locomotion label
LABEL = 115
GESTURES = {  # the files' codes in ascending order, as FedMEKT numbers them
    0: "none",
    504605: "close dishwasher",
    504608: "close drawer 3",
    504611: "close drawer 2",
    504616: "close door 1",
    504617: "close door 2",
    504619: "close drawer 1",
    504620: "close fridge",
    505606: "toggle switch",
    506605: "open dishwasher",
    506608: "open drawer 3",
    506611: "open drawer 2",
    506616: "open door 1",
    506617: "open door 2",
    506619: "open drawer 1",
    506620: "open fridge",
    507621: "drink from cup",
    508612: "clean table",
}
CLASSES = tuple(GESTURES.values())


class Builder(tfds.core.GeneratorBasedBuilder):
    """Opportunity: one example is one run of one subject."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "All body-worn sensors and the gestures of the ADL runs."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"Optional: put {REQUIRED[0]} .. {REQUIRED[-1]} of {SOURCE} there."

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "subject": np.int32,
                    "run": np.int32,
                    "sensors": tfds.features.Tensor(shape=(None, SENSORS), dtype=np.float32),
                    "label": tfds.features.Tensor(shape=(None,), dtype=np.int32),
                }
            ),
            homepage=SOURCE,
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        files = prepared.raw_files(dl_manager, REQUIRED, (), URL, SOURCE)
        prepared.sign(self, files)
        return {"train": self._generate_examples(files)}

    def _generate_examples(self, files: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        codes = np.array(list(GESTURES))
        for (subject, run), name in zip(RECORDINGS, REQUIRED, strict=True):
            table = arrays.load_table(files[name], LABEL + 1, SOURCE)
            if not np.isin(table[:, LABEL], codes).all():
                raise ValueError(
                    f"{files[name]} has a gesture in its last column that is none of {codes.tolist()}; "
                    f"get it again from {SOURCE}"
                )
            yield (
                name,
                {
                    "subject": subject,
                    "run": run,
                    "sensors": fill(table[:, 1 : 1 + SENSORS]).astype(np.float32),
                    "label": np.searchsorted(codes, table[:, LABEL]).astype(np.int32),
                },
            )
