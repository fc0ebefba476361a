"""TFDS builder of Flickr8k; without TensorFlow, from the official folders."""

import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from fedjax_mm.data import images, prepared
from fedjax_mm.data.captions import PER_IMAGE
from fedjax_mm.data.text_files import read_lines

SOURCE = "https://hockenmaier.cs.illinois.edu/8k-pictures.html"
IMAGES = "Flicker8k_Dataset"  # the official spelling
TOKENS = "Flickr8k_text/Flickr8k.token.txt"
SPLITS = {
    "train": "Flickr8k_text/Flickr_8k.trainImages.txt",
    "valid": "Flickr8k_text/Flickr_8k.devImages.txt",
    "test": "Flickr8k_text/Flickr_8k.testImages.txt",
}
TEXTS = (TOKENS, *SPLITS.values())


class Builder(tfds.core.GeneratorBasedBuilder):
    """Flickr8k: one example is one photo with its five captions."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Official files and splits."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"Put the folders {IMAGES} and Flickr8k_text of {SOURCE} there."

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "file": tfds.features.Text(),
                    "number": np.int32,  # its line in the split's list
                    "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
                    "captions": tfds.features.Sequence(tfds.features.Text(), length=PER_IMAGE),
                }
            ),
            homepage=SOURCE,
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        files = raw_files(pathlib.Path(dl_manager.manual_dir))
        prepared.sign(self, files)
        captions = read_captions(files[TOKENS])
        return {split: self._generate_examples(files, names(files[path]), captions) for split, path in SPLITS.items()}

    def _generate_examples(
        self, files: dict[str, pathlib.Path], members: Sequence[str], captions: dict[str, list[str]]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        for number, name in enumerate(members):
            path = files[f"{IMAGES}/{name}"]
            images.read(path, 8)  # a damaged picture is to be found now, and by its file's name
            yield name, {"file": name, "number": number, "image": str(path), "captions": captions[name]}


def raw_files(data_dir: pathlib.Path) -> dict[str, pathlib.Path]:
    """Returns name -> path of the four text files and of all pictures of the official splits.

    Raises FileNotFoundError with the first that is missing, or ValueError where the texts are cut off.
    """
    texts = prepared.find(data_dir, TEXTS, (), SOURCE)
    captions = read_captions(texts[TOKENS])
    members = [name for path in SPLITS.values() for name in names(texts[path])]
    if len(set(members)) < len(members):
        twice = next(name for name in members if members.count(name) > 1)
        raise ValueError(
            f"{data_dir} names {twice} twice in {', '.join(SPLITS.values())}; get them again from {SOURCE}"
        )
    for name in members:
        if len(captions.get(name, ())) != PER_IMAGE:
            raise ValueError(
                f"{texts[TOKENS]} is cut off: it has {len(captions.get(name, ()))} captions of {name}, not {PER_IMAGE};"
                f" get it again from {SOURCE}"
            )
    return texts | prepared.find(data_dir, [f"{IMAGES}/{name}" for name in members], (), SOURCE)


def names(path: pathlib.Path) -> list[str]:
    """Returns the names of the pictures that a split's file lists."""
    listed = [line.strip() for line in read_lines(path, f"get it again from {SOURCE}") if line.strip()]
    if not listed or not all(name.endswith(".jpg") for name in listed):
        raise ValueError(f"{path} is cut off or no list of .jpg files; get it again from {SOURCE}")
    return listed


def read_captions(path: pathlib.Path) -> dict[str, list[str]]:
    """Returns picture -> its captions in the order of their numbers; a line is `name.jpg#number`, a tab, a caption."""
    captions: dict[str, dict[str, str]] = {}
    for line in read_lines(path, f"get it again from {SOURCE}"):
        key, tab, caption = line.partition("\t")
        name, hash_sign, number = key.rpartition("#")
        if not tab or not hash_sign:
            raise ValueError(
                f"{path} has a line that is no `name.jpg#0`, tab, caption: {line[:80]!r}; get it again from {SOURCE}"
            )
        captions.setdefault(name, {})[number] = caption.strip()
    return {name: [numbered[n] for n in sorted(numbered)] for name, numbered in captions.items()}
