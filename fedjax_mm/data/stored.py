"""Folders that TFDS prepared: opened only where they name no code, and their values as NumPy arrays."""

import os
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from fedjax_mm.data import arrays, pixels
from fedjax_mm.data.text_files import parse_json, read_lines

CURE = "copy or prepare it again"
# TFDS imports the module of a feature's class by its name, so the name must be one of its own.
OWN_CLASS = re.compile(r"tensorflow_datasets(\.[A-Za-z_]\w*)+")
CLASS_KEYS = ("pythonClassName", "python_class_name", "type")  # the last is TFDS's before version 4.5


def open_folder(folder: pathlib.Path) -> Any:
    """Returns TFDS's builder of a prepared folder, without running what the folder says.

    Raises ValueError where its features name a class that is not TFDS's own (nothing is imported then), or where its
    description is damaged.
    """
    import tensorflow_datasets as tfds

    for path in (folder / "features.json", folder / "dataset_info.json"):
        text = "\n".join(read_lines(path, CURE)) if path.is_file() else "{}"  # TFDS says what is missing
        described = parse_json(text, path, CURE)
        # What is beside the features in dataset_info.json has types of its own, which are no classes.
        if path.stem == "dataset_info" and isinstance(described, dict):
            described = described.get("features")
        for name in _class_names(described, path):
            if not OWN_CLASS.fullmatch(name):
                raise ValueError(
                    f"{path} names the class {name!r}, which is not of tensorflow_datasets and might run any code; "
                    "take the dataset from a source that you trust, or prepare it with TFDS's own features"
                )
    try:
        builder = tfds.builder_from_directory(folder)
        if not isinstance(builder.info.features, tfds.features.FeaturesDict):
            raise ValueError("its features have no names")
    except Exception as error:  # of protocol buffers, of JSON, of each feature's own constructor
        raise ValueError(f"{folder} has a damaged description ({error}); {CURE}") from error
    return builder


def _class_names(value: Any, path: pathlib.Path) -> Iterator[str]:
    """All names of classes in a description, at whatever depth, JSON in texts of JSON included."""
    left = [value]
    while left:
        value = left.pop()
        if isinstance(value, list):
            left.extend(value)
        elif isinstance(value, dict):
            for key, inner in value.items():
                if key in CLASS_KEYS and isinstance(inner, str):
                    yield inner
                if key == "json" and isinstance(inner, str):
                    inner = parse_json(inner, f"a feature in {path}", CURE)
                left.append(inner)


class _Skip:
    """A decoder, as TFDS calls it, that leaves a feature as it is stored."""

    def setup(self, *, feature: Any) -> None: ...

    def decode_example_np(self, value: Any) -> Any:
        return value

    def decode_batch_example_np(self, values: Any) -> Any:
        return values

    def decode_ragged_example_np(self, values: Any) -> Any:
        return values


class _Picture(_Skip):
    """A decoder of pictures in 8 bits, which TFDS itself would leave sideways and decode at any size."""

    def __init__(self, where: str) -> None:
        self.where, self.channels = where, 3

    def setup(self, *, feature: Any) -> None:
        self.channels = feature.shape[-1]

    def decode_example_np(self, value: bytes) -> np.ndarray:
        with pixels.opened(value, self.where) as picture:
            shown = pixels.upright(picture)
            if self.channels == 3:
                shown = pixels.rgb(shown)
            elif self.channels == 1 and shown.mode != "L":
                shown = pixels.rgb(shown).convert("L")
            elif self.channels == 4:
                shown = shown.convert("RGBA")
            array = np.asarray(shown, np.uint8)
        return array if array.ndim == 3 else array[..., None]

    def decode_batch_example_np(self, values: Any) -> Any:
        decoded = [self.decode_example_np(value) for value in values]
        return np.stack(decoded) if len({array.shape for array in decoded}) == 1 else decoded


def decoders(features: Any, columns: Sequence[str], where: str) -> dict[str, Any]:
    """Returns TFDS's `decoders`: other columns than these are not decoded, and pictures are as `pixels` has them.

    where: what pictures that cannot be read are of, for their errors.
    """
    of = {
        name: _decoder(features[name], None if name in columns else _Skip(), f"column {name!r} of {where}")
        for name in features
    }
    return {name: decoder for name, decoder in of.items() if decoder is not None}


def _decoder(feature: Any, skip: _Skip | None, where: str) -> Any:
    """The decoder of a feature, in the structure of its parts; None is TFDS's own."""
    import tensorflow_datasets as tfds

    if isinstance(feature, tfds.features.FeaturesDict):
        parts = {name: _decoder(part, skip, where) for name, part in feature.items()}
        return {name: part for name, part in parts.items() if part is not None} or None
    if isinstance(feature, tfds.features.Dataset):
        return skip
    if isinstance(feature, tfds.features.Sequence):
        return _decoder(feature.feature, skip, where)
    if skip is None and type(feature) is tfds.features.Image and feature.np_dtype == np.uint8:
        return _Picture(f"a picture in {where}")
    return skip


def stack(values: list[Any], column: str) -> np.ndarray:
    """Returns a column's values as one array [M, ...]: texts as NumPy strings, whole numbers of 64 bits as int32.

    Raises ValueError, naming the column, where that is not possible without a loss.
    """
    if isinstance(values[0], dict):
        raise ValueError(f"column {column!r} is a dict of columns and fits no array; read it with `examples`")
    if isinstance(values[0], bytes):
        return np.array([_text(value, column) for value in values])
    if len({np.shape(value) for value in values}) > 1:
        raise ValueError(f"the examples differ in the shape of {column!r} and fit no array; read them with `examples`")
    stacked = np.stack(values)
    if stacked.dtype.kind in "OS":
        flat = [_text(value, column) for value in stacked.ravel().tolist()]
        return np.array(flat, str).reshape(stacked.shape)
    if stacked.dtype in (np.int64, np.uint64):
        return arrays.as_int32(stacked, f"the numbers of column {column!r}")
    if stacked.dtype.kind == "f" and np.isinf(stacked).any():  # TFDS keeps 64 bits of a float in 32
        raise ValueError(f"column {column!r} has infinite numbers or such that 32 bits do not hold; leave it out")
    return stacked


def _text(value: Any, column: str) -> str:
    try:
        return value.decode()
    except (UnicodeDecodeError, AttributeError) as error:
        raise ValueError(
            f"column {column!r} has something that is no text ({error}); read it with `examples`"
        ) from error


def newest(folders: Sequence[pathlib.Path]) -> pathlib.Path:
    """Returns the folder whose name is the highest version."""
    return max(folders, key=lambda version: [int(n) if n.isdigit() else -1 for n in version.name.split(".")])


def check_records(split: Any) -> None:
    """Raises FileNotFoundError or ValueError where a record file of a split is missing or cut off."""
    from array_record.python.array_record_module import ArrayRecordReader

    for path, length in zip(map(str, split.filepaths), split.shard_lengths, strict=True):
        if not os.path.isfile(path):
            raise FileNotFoundError(f"there is no record file {path}; copy or prepare the dataset again")
        # A cut-off file loses its footer: the reader then counts 0 records, but hands out damaged ones when asked.
        if (found := ArrayRecordReader(path).num_records()) != length:
            raise ValueError(f"{path} is cut off: {found} readable records where {length} are expected; {CURE}")
