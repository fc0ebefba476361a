"""COCO captions: photos of everyday scenes with five captions each, too many for the memory."""

import functools
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fedjax_mm.data import arguments, captions, images, prepared, stored
from fedjax_mm.data.captions import PER_IMAGE, Captioned
from fedjax_mm.data.text_files import parse_json
from fedjax_mm.streamed import of_rows

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SOURCE = "https://cocodataset.org/#download"
FOREIGN = {"valid": "val"}  # our name of a split -> the official one, where they differ


def load(
    data_dir: str | os.PathLike,
    splits: Sequence[str] = ("train", "valid"),
    image: int = 224,
    length: int = 40,
    tokenizer: "Tokenizer | str | os.PathLike | None" = None,
    vocabulary: int = 8000,
    limit: int | None = None,
    cache_dir: str | os.PathLike | None = None,
    stream: bool = False,
    centre: bool = False,
) -> Captioned:
    """Returns COCO captions with `image` [I, image, image, 3] uint8 as read-only memory maps, or as Streamed arrays.

    data_dir: the folder with train2017, val2017 and annotations of the official files, or else the one that holds
    TFDS's prepared `coco_captions` (array_record; its splits are Karpathy's of 2014, with `test` and `restval` too).
    splits: some of train, valid (and test, restval). image: pixels of a side; photos are squashed to a
    square, or with `centre` keep their aspect, and lose what is outside of their middle square.
    length, tokenizer, vocabulary: as in `captions.tokenized`; without a tokenizer one is fitted to the captions of the
    first split named. limit: at most so many photos of each split, from the first on in the order of COCO's ids.
    cache_dir: where the decoded photos are kept, written at the first call (None: the user's cache); 224 x 224 pixels
    of train2017 take 17.8 GB. stream: whether nothing is kept, and photos are decoded from their files as steps need
    them. A memory map is streamed with `data.streams.array`, and is not decoded again in each epoch.

    A photo has five to seven captions; `text` [I, 5, length] int32 holds the first five.
    Raises FileNotFoundError, KeyError (no such split) or ValueError naming the file that is missing or damaged.
    """
    arguments.check_whole(1, image=image)
    arguments.check_whole(3, length=length)
    arguments.check_limit(limit=limit)
    arguments.check_names("splits", splits)
    data_dir = arguments.check_folder("data_dir", data_dir)
    if not data_dir.is_dir():
        raise FileNotFoundError(f"there is no folder {data_dir}; get train2017, val2017 and annotations from {SOURCE}")
    read = _prepared if (data_dir / "coco_captions").is_dir() else _official
    pictures, texts, names = {}, {}, {}
    for split in splits:
        photos = read(data_dir, split, limit)
        arguments.say_fewer(f"split {split!r} of {data_dir}", len(photos.names), limit=limit)
        row = functools.partial(_decode, photos, image, centre)
        about = (split, image, *["centre"] * centre, len(photos.names), photos.version)
        path = images.cache_file(cache_dir, "coco_captions", *about)
        if stream:
            pictures[split] = of_rows(row, len(photos.names), (image, image, 3), np.uint8, version=path.name)
        else:
            pictures[split] = images.memory_map(path, len(photos.names), row)
        texts[split] = np.array(photos.captions)
        names[split] = np.array(photos.names)
    fit_on = texts[splits[0]].reshape(-1).tolist()
    return captions.tokenized("coco_captions", pictures, texts, names, tokenizer, fit_on, vocabulary, length)


class _Photos(NamedTuple):
    names: Sequence[str]
    captions: Sequence[Sequence[str]]  # five of each
    content: Callable[[int], bytes]  # the encoded photo
    version: str  # of the files they come from


def _decode(photos: _Photos, size: int, centre: bool, place: int) -> np.ndarray:
    return images.decode(photos.content(place), size, photos.names[place], centre)


def _official(data_dir: pathlib.Path, split: str, limit: int | None) -> _Photos:
    official = f"{FOREIGN.get(split, split)}2017"
    path = data_dir / "annotations" / f"captions_{official}.json"
    folder = data_dir / official
    if not path.is_file():
        raise FileNotFoundError(
            f"{data_dir} has neither coco_captions prepared by TFDS nor annotations/{path.name}; get it from {SOURCE}"
        )
    listed = parse_json(path.read_bytes(), path, f"get it again from {SOURCE}")
    try:
        names = {entry["id"]: entry["file_name"] for entry in listed["images"]}
        texts = {number: [] for number in sorted(names)}
        for entry in listed["annotations"]:
            texts[entry["image_id"]].append(entry["caption"].strip())
        if not all(isinstance(name, str) and os.path.basename(name) == name for name in names.values()):
            raise ValueError("a file_name that is no name of a file")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no list of captions ({error!r}); get it again from {SOURCE}") from error
    ids = list(texts)[:limit]
    there = {entry.name for entry in os.scandir(folder)} if folder.is_dir() else set()
    if missing := [names[i] for i in ids if names[i] not in there]:
        raise FileNotFoundError(
            f"{folder} has no {missing[0]} ({len(missing)} of {len(ids)} photos are missing); get it from {SOURCE}"
        )
    return _Photos(
        [names[i] for i in ids],
        [_five(texts[i], names[i]) for i in ids],
        lambda place: (folder / names[ids[place]]).read_bytes(),
        prepared.fingerprint({path.name: path})[:16],
    )


def _prepared(data_dir: pathlib.Path, split: str, limit: int | None) -> _Photos:
    import tensorflow_datasets as tfds

    versions = [info.parent for info in (data_dir / "coco_captions").rglob("dataset_info.json")]
    if not versions:
        raise FileNotFoundError(f"{data_dir}/coco_captions has no dataset_info.json; prepare it again with TFDS")
    folder = stored.newest(versions)
    builder = stored.open_folder(folder)
    official = FOREIGN.get(split, split)
    if official not in builder.info.splits:
        raise KeyError(f"{folder} has no split {official!r}; it has {sorted(builder.info.splits)}")
    stored.check_records(builder.info.splits[official])
    source = prepared.source(builder, official, decoders={"image": tfds.decode.SkipDecoding()})
    # Picked from each row as it comes: the encoded photos of train alone are 13 GB.
    rows = [(int(row["image/id"]), row["image/filename"].decode(), row["captions"]["text"]) for row in source]
    order = sorted(range(len(rows)), key=lambda row: rows[row][0])[:limit]
    names = [rows[row][1] for row in order]
    return _Photos(
        names,
        [_five([text.decode().strip() for text in rows[row][2]], rows[row][1]) for row in order],
        lambda place: source[order[place]]["image"],
        prepared.fingerprint({"dataset_info.json": folder / "dataset_info.json"})[:16],
    )


def _five(texts: Sequence[str], name: str) -> Sequence[str]:
    if len(texts) < PER_IMAGE:
        raise ValueError(f"{name} has {len(texts)} captions where {PER_IMAGE} are expected; get the files again")
    return texts[:PER_IMAGE]
