"""Where Arrow tables come from: Hugging Face's folders and datasets, Parquet and Arrow files, tables in memory."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

from fedjax_mm import _lazy
from fedjax_mm.checks import say

EXTRA = "arrow"
FIT = (
    "give a folder that save_to_disk wrote or that holds Parquet files, a .parquet or .arrow file, a datasets.Dataset "
    "or a pyarrow.Table"
)


def open_table(source: Any, split: str | None) -> tuple[Any, pathlib.Path | None]:
    """(the pyarrow.Table, the folder that paths in it start from).

    Raises ValueError for what is no table or has no rows, for a split that there is not, and where a file is damaged;
    FileNotFoundError where there is none.
    """
    table, folder = _opened(source, split)
    if not len(table):
        raise ValueError("source has no rows; give a table with examples")
    return table, folder


def _opened(source: Any, split: str | None) -> tuple[Any, pathlib.Path | None]:
    arrow = _lazy.require("pyarrow", EXTRA)
    if isinstance(source, arrow.Table):
        _no_split(split)
        return source, None
    if isinstance(source, dict):  # a datasets.DatasetDict is one
        return _opened(_chosen(split, source, list(source)), None)
    if hasattr(source, "with_format") and hasattr(source, "features") and hasattr(source, "__len__"):
        _no_split(split)
        return source.with_format("arrow")[:], None
    if not isinstance(source, str | pathlib.PurePath) or not str(source):
        raise ValueError(f"source is {say(source)}; {FIT}")
    path = pathlib.Path(source)
    if not path.exists():
        raise FileNotFoundError(f"source: there is nothing at {path}; {FIT}")
    if path.is_file():
        _no_split(split)
        return _read([path]), path.parent
    return _of_folder(path, split)


def _of_folder(path: pathlib.Path, split: str | None) -> tuple[Any, pathlib.Path]:
    if (path / "dataset_dict.json").is_file():
        splits = _json(path / "dataset_dict.json", "splits")
        return _of_folder(path / _chosen(split, {name: name for name in splits}, splits), None)
    if (path / "state.json").is_file():
        _no_split(split)
        return _read([path / file["filename"] for file in _json(path / "state.json", "_data_files")]), path
    files = sorted(path.rglob("*.parquet"))
    if not files:
        raise FileNotFoundError(f"source: {path} has neither state.json nor Parquet files; {FIT}")
    by_split: dict[str, list[pathlib.Path]] = {}
    for file in files:  # data/train-00000-of-00002.parquet, train/0000.parquet, train.parquet
        name = file.stem.partition("-")[0]
        by_split.setdefault(file.parent.name if name.isdigit() else name, []).append(file)
    return _read(_chosen(split, by_split, list(by_split))), path


def _chosen(split: str | None, of: Any, names: Sequence[str]) -> Any:
    if split is None and len(names) == 1:
        return of[names[0]]
    if split not in names:
        raise ValueError(f"split is {split!r}; the source has the splits {', '.join(map(repr, names))}")
    return of[split]


def _no_split(split: str | None) -> None:
    if split is not None:
        raise ValueError(f"split is {split!r}, and the source has no splits; leave it out")


def _json(file: pathlib.Path, key: str) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))[key]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise ValueError(f"{file} is damaged ({error!r}); copy the folder again") from error


def _read(files: Sequence[pathlib.Path]) -> Any:
    arrow = _lazy.require("pyarrow", EXTRA)
    tables = []
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"source: there is no file {file}; copy the folder again")
        try:
            if file.suffix == ".parquet":
                # Not pyarrow.parquet.read_table, which takes the names of folders for columns.
                tables.append(_lazy.require("pyarrow.parquet", EXTRA).ParquetFile(file).read())
            else:
                tables.append(_arrow_file(arrow, file))
        except (arrow.ArrowException, OSError) as error:
            said = " ".join(str(error).split())[:200]
            raise ValueError(f"{file} is cut off, damaged or no table ({said}); copy it again") from error
    try:
        return arrow.concat_tables(tables)
    except arrow.ArrowException as error:
        raise ValueError(f"{files[0].parent} has files whose columns differ; give one of them") from error


def _arrow_file(arrow: Any, file: pathlib.Path) -> Any:
    """A stream, as datasets writes it, or a file with a footer, as Feather does."""
    with open(file, "rb") as content:
        begins = content.read(6)
    source = arrow.memory_map(str(file))
    return (arrow.ipc.open_file if begins == b"ARROW1" else arrow.ipc.open_stream)(source).read_all()
