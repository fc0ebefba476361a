"""Datasets prepared by TensorFlow Datasets (array_record files), read into NumPy arrays without TensorFlow."""

import hashlib
import os
import pathlib
import shutil
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import numpy as np

from fedjax_mm.data import arguments, downloads, pixels, stored

LARGEST_MEMBER = 2**29  # bytes of one file in a downloaded archive; the largest that is known has 40 million

# tensorflow_datasets is imported inside the functions: it takes half a second, and most users of fedjax_mm.data
# never come here.


def load(
    name: str,
    data_dir: str | os.PathLike,
    split: str,
    columns: Sequence[str] | None = None,
    limit: int | None = None,
) -> dict[str, np.ndarray]:
    """Returns flat arrays of one split of a prepared dataset, in the order in which it is stored.

    name: a folder of data_dir, `cifar100` (its newest version) or `cifar100/3.0.2`. columns: None is all of them; what
    is not asked for is not decoded. limit: at most so many examples, from the first on; None is all.
    The result is column -> [M, ...]: images uint8 [M, H, W, C], upright; class labels and other numbers of 64 bits as
    int32 [M]; texts [M] as NumPy strings.
    Raises FileNotFoundError (folder, dataset, record file), KeyError (split, column: with a list of what is there) or
    ValueError (a record file is cut off; a feature whose class is not TFDS's own; numbers that int32 does not hold;
    examples of different shapes, for which there is `examples`).
    """
    rows = examples(name, data_dir, split, columns, limit)
    return {column: stored.stack([row[column] for row in rows], column) for column in rows[0]}


def examples(
    name: str,
    data_dir: str | os.PathLike,
    split: str,
    columns: Sequence[str] | None = None,
    limit: int | None = None,
) -> list[dict[str, Any]]:
    """Returns what `load` does as one dict per example: for recordings and other examples whose shapes differ."""
    arguments.check_limit(limit=limit)
    builder = opened(name, data_dir, split)
    features = cast(Mapping[str, Any], builder.info.features)
    if columns is not None:
        arguments.check_names("columns", columns)
    columns = sorted(features) if columns is None else list(columns)
    if unknown := sorted(set(columns) - set(features)):
        raise KeyError(f"{name} has no column {unknown}; it has {sorted(features)}")
    stored.check_records(builder.info.splits[split])
    try:
        rows_of = source(builder, split, stored.decoders(features, columns, name))
        number = len(rows_of) if limit is None else min(limit, len(rows_of))
        arguments.say_fewer(f"split {split!r} of {name}", len(rows_of), limit=limit)
        rows = rows_of.__getitems__(range(number))
    except pixels.PictureError:
        raise
    except Exception as error:  # of the record reader, of protocol buffers, of each feature's own decoder
        raise ValueError(
            f"a record of {name} in {builder.data_path} is damaged ({error}); copy or prepare it again"
        ) from error
    if not rows:
        raise ValueError(f"split {split!r} of {name} in {builder.data_path} has no examples; prepare it again")
    return [{column: row[column] for column in columns} for row in rows]


def opened(name: str, data_dir: str | os.PathLike, split: str) -> Any:
    """Returns TFDS's builder of a prepared dataset that has this split. Raises what `load` raises."""
    if not all(isinstance(text, str) and text for text in (name, split)):
        raise ValueError(f"name is {name!r} and split {split!r}; give the names of a prepared dataset and of its split")
    builder = stored.open_folder(_version_folder(arguments.check_folder("data_dir", data_dir), name))
    if split not in builder.info.splits:
        raise KeyError(f"{name} has no split {split!r}; it has {sorted(builder.info.splits)}")
    return builder


def source(builder: Any, split: str, decoders: Mapping[str, Any] | None = None) -> Any:
    """Returns the examples of a split as TFDS's random-access source.

    The builder is Any because TFDS wraps this method in a decorator that hides its arguments from type checkers.
    """
    return builder.as_data_source(split, decoders=decoders)


def _version_folder(data_dir: pathlib.Path, name: str) -> pathlib.Path:
    if not data_dir.is_dir():
        raise FileNotFoundError(f"there is no folder {data_dir}; give the folder that holds the prepared datasets")
    folder = data_dir / name
    if (folder / "dataset_info.json").is_file():
        return folder
    versions = [info.parent for info in folder.glob("*.*.*/dataset_info.json")]
    if not versions:
        there = sorted({str(info.parents[1].relative_to(data_dir)) for info in data_dir.glob("*/*/dataset_info.json")})
        raise FileNotFoundError(f"{data_dir} has no prepared dataset {name!r}; it has {there}")
    return stored.newest(versions)


def cache_dir() -> pathlib.Path:
    """Returns where datasets are prepared by default: $XDG_CACHE_HOME/fedjax_mm, or ~/.cache/fedjax_mm."""
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "fedjax_mm"


def find(
    folder: str | os.PathLike, required: Iterable[str], optional: Iterable[str], source: str
) -> dict[str, pathlib.Path]:
    """Returns name -> path of a dataset's raw files: all required ones, and the optional ones that are there.

    Raises FileNotFoundError with the first file that is missing and where to get it.
    """
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}; give the folder with the raw files of {source}")
    required = list(required)
    if missing := [name for name in required if not (folder / name).is_file()]:
        raise FileNotFoundError(
            f"{folder} has no {missing[0]} ({len(missing)} of {len(required)} files are missing); get it from {source}"
        )
    return {name: folder / name for name in (*required, *optional) if (folder / name).is_file()}


def fingerprint(files: Mapping[str, str | os.PathLike]) -> str:
    """Returns the SHA-256 of the names and contents of files, which tells whether a folder was prepared from them."""
    total = hashlib.sha256()
    for name in sorted(files):
        with open(files[name], "rb") as file:
            total.update(f"{name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()


def sign(builder: Any, files: Mapping[str, str | os.PathLike]) -> None:
    """Writes the fingerprint of the raw files into the metadata of the dataset that a builder prepares from them."""
    builder.info.metadata["fingerprint"] = fingerprint(files)


def raw_files(
    dl_manager: Any, required: Iterable[str], optional: Iterable[str], urls: Mapping[str, str] | str, source: str
) -> dict[str, pathlib.Path]:
    """Returns name -> path of a builder's raw files.

    They are those in TFDS's manual folder where it has any of them: then it must have all, and the network is not
    asked. Otherwise they are downloaded and checked, as downloads.fetch says. urls: name -> address of single files, or
    the address of one archive of all.
    """
    required, optional = list(required), list(optional)
    try:
        manual = pathlib.Path(dl_manager.manual_dir)
    except AssertionError:  # TFDS's word for: there is no manual folder, or nothing in it
        manual = None
    if manual and any((manual / name).is_file() for name in required):
        return find(manual, required, optional, source)
    fetched = downloads.fetch(dl_manager, urls, source)
    return find(_unzip(fetched[""], required), required, optional, source) if isinstance(urls, str) else fetched


def _unzip(archive: pathlib.Path, names: Iterable[str]) -> pathlib.Path:
    """Returns a folder with those members of a zip, wherever they lie in it; TFDS's own extractor needs TensorFlow.

    Only the last part of a member's path is used, and only where it is one of the names.
    """
    names, folder = set(names), archive.with_suffix(".members")
    folder.mkdir(exist_ok=True)
    try:
        with zipfile.ZipFile(archive) as opened:
            found = [member for member in opened.infolist() if pathlib.PurePosixPath(member.filename).name in names]
            _check_members(found, folder)
            for member in found:
                with opened.open(member) as content:
                    with open(folder / pathlib.PurePosixPath(member.filename).name, "wb") as file:
                        shutil.copyfileobj(content, file)  # at most the size that was checked
    except Exception as error:  # of zipfile and of each way to compress
        raise ValueError(f"{archive} is cut off or damaged ({error}); delete it, and it is downloaded again") from error
    return folder


def _check_members(members: Sequence[zipfile.ZipInfo], folder: pathlib.Path) -> None:
    sizes: dict[str, tuple[int, int]] = {}
    for member in members:
        name, content = pathlib.PurePosixPath(member.filename).name, (member.file_size, member.CRC)
        if sizes.setdefault(name, content) != content:
            raise ValueError(f"it has two different files {name}")
        if member.file_size > LARGEST_MEMBER:
            raise ValueError(f"{member.filename} claims {member.file_size} bytes")
    needed, free = sum(size for size, _ in sizes.values()), shutil.disk_usage(folder).free
    if needed > free:
        raise ValueError(f"its files need {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free")


def prepare(
    builder_class: Any,
    files: Mapping[str, pathlib.Path] | None,
    data_dir: str | os.PathLike | None,
    prepared_dir: str | os.PathLike | None,
) -> pathlib.Path:
    """Returns the folder in which the builder's dataset is prepared (array_record), and prepares it if it is not yet.

    files: the raw files in data_dir; None, with data_dir None, means what is prepared, and downloads if nothing is.
    prepared_dir: None is `cache_dir()`. Raises ValueError where the dataset was prepared from other files.
    """
    import tensorflow_datasets as tfds

    prepared_dir = pathlib.Path(prepared_dir or cache_dir())
    config = tfds.download.DownloadConfig(manual_dir=data_dir)
    builder = builder_class(data_dir=prepared_dir, file_format="array_record")
    try:
        builder.download_and_prepare(download_config=config)
    except OSError:
        # Two runs that prepare the same dataset at once: the slower one may not rename its folder into place.
        builder = builder_class(data_dir=prepared_dir, file_format="array_record")
        if not builder.is_prepared():
            raise
    if files is not None and builder.info.metadata["fingerprint"] != fingerprint(files):
        raise ValueError(
            f"{builder.data_path} was prepared from other raw files than those in {data_dir}; "
            "delete it, or choose another prepared_dir"
        )
    return prepared_dir
