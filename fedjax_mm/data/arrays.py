"""Files of plain numbers: read whole, or refused in one sentence that names the file and the cure."""

import math
import os
import pathlib
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np


def load_npz(path: str | os.PathLike, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Returns the named arrays of an npz file; pickled objects are refused.

    Raises FileNotFoundError, KeyError where a name is not in the file, or ValueError where the file is cut off or
    damaged, or where an array claims more bytes than the file holds of it.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; give the path of the npz file itself")
    try:
        with zipfile.ZipFile(path) as file:
            there = sorted(member.removesuffix(".npy") for member in file.namelist())
            found = {name: _read_member(file, f"{name}.npy") for name in names if name in there}
    except Exception as error:  # zipfile, zlib and NumPy's header, a Python literal, each have their own
        reason = f"{type(error).__name__}: {error}" if isinstance(error, MemoryError) else error
        raise ValueError(f"{path} is cut off or damaged ({reason}); copy or download it again") from error
    if missing := sorted(set(names) - set(found)):
        raise KeyError(f"{path} has no array {missing}; it has {there}")
    return found


def _read_member(file: zipfile.ZipFile, member: str) -> np.ndarray:
    """One array of an npz, its claimed size compared with what the archive holds before memory is taken."""
    with file.open(member) as content:
        version = np.lib.format.read_magic(content)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version in read:
            shape, _, dtype = read[version](content)
            needed, there = math.prod(shape) * dtype.itemsize, file.getinfo(member).file_size
            if needed > there and not dtype.hasobject:
                raise ValueError(f"{member} claims {needed} bytes and holds {there}")
    with file.open(member) as content:
        return np.lib.format.read_array(content, allow_pickle=False)


def as_int32(values: Any, name: str) -> np.ndarray:
    """Returns whole numbers, of whatever type, as int32.

    Raises ValueError where one is not whole, or is more than 32 bits hold and would come out as another number.

    >>> as_int32([1.0, 2.0], "labels")
    array([1, 2], dtype=int32)
    """
    values = np.asarray(values)
    if values.dtype.kind not in "iufb":
        raise ValueError(f"{name} are of type {values.dtype}; give whole numbers")
    bounds = np.iinfo(np.int32)
    wrong = ~((values >= bounds.min) & (values <= bounds.max))
    if values.dtype.kind == "f":
        wrong |= values != np.floor(values)
    if wrong.any():
        raise ValueError(f"{name} have {values[wrong].flat[0]}; give whole numbers from {bounds.min} to {bounds.max}")
    return values.astype(np.int32)


def load_table(
    path: str | os.PathLike,
    columns: int,
    source: str,
    delimiter: str | None = None,
    converters: Mapping[int | str, Callable[[str], float]] | None = None,
) -> np.ndarray:
    """Returns a text file of numbers as float64 [rows, columns].

    source: where to get the file again, for the error. delimiter: None is white space. converters: column -> function
    of its text, for columns that are no numbers. Raises FileNotFoundError, or ValueError where the file is empty, where
    a line has too few or too many columns (as in a broken-off download), or where something is no number or infinite.
    """
    path = pathlib.Path(path)
    again = f"get it again from {source}"
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; get it from {source}")
    if not path.stat().st_size:
        raise ValueError(f"{path} is empty; {again}")
    try:
        table = np.loadtxt(path, delimiter=delimiter, converters=converters, ndmin=2)
    except ValueError as error:
        raise ValueError(f"{path} is cut off or not a table of {columns} columns ({error}); {again}") from error
    if np.isinf(table).any():
        raise ValueError(f"{path} has an infinite number in row {np.argwhere(np.isinf(table))[0, 0]}; {again}")
    if table.shape[1] != columns:
        raise ValueError(f"{path} has {table.shape[1]} columns where {columns} are expected; {again}")
    return table
