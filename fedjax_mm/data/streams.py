"""Examples that stay on the disk: what a step needs of them is read and decoded while the step before computes.

    pictures = data.streams.files(paths, size=224)  # or records(...) of a dataset that TFDS prepared, or array(...)
    federated = FederatedData.from_arrays({"image": pictures, "text": tokens}, clients)

Every method takes them, and gives the same bits as with the same arrays on the device. `tables.read(..., stream=True)`
and `coco_captions.load(..., stream=True)` give such arrays too. docs/streaming.md says what they cost.
"""

import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from fedjax_mm.checks import check_array
from fedjax_mm.data import arguments, images, incoming, prepared, stored
from fedjax_mm.readers import KEPT_BYTES
from fedjax_mm.streamed import Streamed, of_array, of_rows


def array(values: Any, threads: int | None = None) -> Streamed:
    """Returns an array [E, ...] whose rows stay where they are: in memory, or in the file of a memory map.

    threads: how many copy rows; None: as many as there are processors. Raises ValueError for values that are not
    finite, or that 32 bits do not hold, as FederatedData.from_arrays does.

    >>> array(np.zeros((5, 2))).shape
    (5, 2)
    """
    checked: Any = incoming.check_values("values", check_array("values", values), None, on_device=False)
    if checked.ndim < 2:
        raise ValueError(f"values has the shape {checked.shape}; an array of a number an example stays in memory")
    return of_array(checked, threads)


def files(
    paths: Sequence[str | os.PathLike],
    size: int,
    index: Any = None,
    threads: int | None = None,
    kept_bytes: int = KEPT_BYTES,
    centre: bool = False,
) -> Streamed:
    """Returns the pictures of files as an array [E, size, size, 3] uint8, each decoded when a step asks for it.

    index: [E] int, the number of each example's path, so that a picture of several examples is decoded once for all of
    them in a batch and kept once; None: a path is an example. size, centre: as of images.decode. threads: how many
    decode; None: as many as there are processors. kept_bytes: of pictures that stay decoded in memory, the first that
    come.
    Raises FileNotFoundError, with the first file that is missing, and ValueError for wrong arguments.
    """
    arguments.check_whole(1, size=size)
    arguments.check_whole(0, kept_bytes=kept_bytes)
    found = [pathlib.Path(path) for path in paths]
    images.check_there(found)
    read = lambda number: images.read(found[number], size, centre)
    version = images.version(found, size, *["centre"] * centre)
    kept = {"index": index, "version": version, "threads": threads, "kept_bytes": kept_bytes}
    return of_rows(read, len(found), (size, size, 3), np.uint8, **kept)


def records(
    name: str,
    data_dir: str | os.PathLike,
    split: str,
    size: int,
    column: str = "image",
    threads: int | None = None,
    kept_bytes: int = KEPT_BYTES,
) -> Streamed:
    """Returns the pictures of a dataset that TFDS prepared as array_record, as `files` does; in the order of `load`.

    name, data_dir, split: as of prepared.load, which gives the other columns. Raises FileNotFoundError, KeyError or
    ValueError as it does.
    """
    import tensorflow_datasets as tfds

    arguments.check_whole(1, size=size)
    arguments.check_whole(0, kept_bytes=kept_bytes)
    builder = prepared.opened(name, data_dir, split)
    features: Any = builder.info.features
    if column not in features or not isinstance(features[column], tfds.features.Image):
        raise KeyError(f"{name} has no pictures {column!r}; it has {sorted(features)}")
    stored.check_records(builder.info.splits[split])
    source = prepared.source(builder, split, {column: tfds.decode.SkipDecoding()})
    read = lambda number: images.decode(source[number][column], size, f"{column} {number} of {name}, {split}")
    files_of = [pathlib.Path(path) for path in builder.info.splits[split].filepaths]
    version = f"{images.listing(files_of)} {column} {size} {images.DECODING}"
    kept = {"version": version, "threads": threads, "kept_bytes": kept_bytes}
    return of_rows(read, len(source), (size, size, 3), np.uint8, **kept)
