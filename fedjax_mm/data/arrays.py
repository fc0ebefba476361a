"""Files of plain numbers: read whole, or refused in one sentence that names the file and the cure."""

import os
import pathlib
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np


def load_npz(path: str | os.PathLike, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Returns the named arrays of an npz file; pickled objects are refused.

    Raises FileNotFoundError, KeyError where a name is not in the file, or ValueError where the file is cut off or
    damaged.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; give the path of the npz file itself")
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as npz:
            if missing := sorted(set(names) - set(npz.files)):
                raise KeyError(f"{path} has no array {missing}; it has {sorted(npz.files)}")
            return {name: npz[name] for name in names}
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError) as error:
        raise ValueError(f"{path} is cut off or damaged ({error}); copy or download it again") from error


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
    a line has too few or too many columns (as in a broken-off download), or where something is no number.
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
    if table.shape[1] != columns:
        raise ValueError(f"{path} has {table.shape[1]} columns where {columns} are expected; {again}")
    return table
