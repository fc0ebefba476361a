"""Flickr30k: photos of people and animals, five captions each, that stay on the disk."""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fedjax_mm.data import arguments, captions, streams
from fedjax_mm.data.captions import PER_IMAGE, Captioned
from fedjax_mm.data.text_files import parse_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SOURCE = "https://shannon.cs.illinois.edu/DenotationGraph"
SPLIT_SOURCE = "https://cs.stanford.edu/people/karpathy/deepimagesent"
IMAGES, LIST = "flickr30k-images", "dataset_flickr30k.json"
SPLITS = {"train": "train", "valid": "val", "test": "test"}


def load(
    data_dir: str | os.PathLike,
    splits: Sequence[str] = tuple(SPLITS),
    image: int = 224,
    length: int = 40,
    tokenizer: "Tokenizer | str | os.PathLike | None" = None,
    vocabulary: int = 8000,
    centre: bool = False,
) -> Captioned:
    """Returns Flickr30k in the splits of Karpathy and Fei-Fei 2015: 29,000, 1,014 and 1,000 photos.

    data_dir: the folder with the official photos in flickr30k-images, and Karpathy's dataset_flickr30k.json with their
    splits and captions. splits: some of train, valid, test. image: pixels of a side; photos are squashed to a square,
    or with `centre` keep their aspect, and lose what is outside of their middle square. length, tokenizer, vocabulary:
    as in `captions.tokenized`; without a tokenizer one is fitted to the captions of the first split named.

    Every split has `image` [I, image, image, 3] uint8, a Streamed, and `text` [I, 5, length] int32, as listed.
    Raises FileNotFoundError, or ValueError, naming what is missing or damaged.
    """
    arguments.check_whole(1, image=image)
    arguments.check_whole(3, length=length)
    arguments.check_names("splits", splits)
    if unknown := sorted(set(splits) - SPLITS.keys()):
        raise ValueError(f"splits has {unknown}; there are {', '.join(SPLITS)}")
    folder = arguments.check_folder("data_dir", data_dir)
    listed = _listed(folder / LIST)
    pictures, texts, names = {}, {}, {}
    for split in splits:
        own = [entry for entry in listed if entry["split"] == SPLITS[split]]
        if not own:
            raise ValueError(f"{folder / LIST} has no photo of the split {split!r}; get it again from {SPLIT_SOURCE}")
        names[split] = np.array([entry["filename"] for entry in own])
        texts[split] = np.array([entry["captions"] for entry in own])
        pictures[split] = streams.files([folder / IMAGES / name for name in names[split]], image, centre=centre)
    fit_on = texts[splits[0]].reshape(-1).tolist()
    return captions.tokenized("flickr30k", pictures, texts, names, tokenizer, fit_on, vocabulary, length)


def _listed(path: pathlib.Path) -> list[Mapping[str, Any]]:
    """{"filename", "split", "captions"} of every photo in Karpathy's list."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; get it from {SPLIT_SOURCE}, and the photos from {SOURCE}")
    content = parse_json(path.read_bytes(), path, f"get it again from {SPLIT_SOURCE}")
    try:
        return [_entry(entry) for entry in content["images"]]
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} is no list of photos ({error!r}); get it again from {SPLIT_SOURCE}") from error


def _entry(entry: Mapping[str, Any]) -> dict[str, Any]:
    name, said = entry["filename"], [sentence["raw"].strip() for sentence in entry["sentences"]]
    if os.path.basename(name) != name or len(said) < PER_IMAGE:
        raise ValueError(f"{name} with {len(said)} captions")
    return {"filename": name, "split": entry["split"], "captions": said[:PER_IMAGE]}
