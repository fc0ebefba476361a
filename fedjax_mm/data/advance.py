"""ADVANCE: aerial photos and the sounds recorded there, 13 classes of scene."""

import os
import pathlib

import numpy as np

from fedjax_mm.data import arguments, audio, images
from fedjax_mm.data.dataset import Dataset

SOURCE = "https://zenodo.org/records/3828124"
RATE = 16_000


def load(
    data_dir: str | os.PathLike,
    image: int = 224,
    mels: int = 128,
    frames: int = 1024,
    seed: int = 0,
    valid: float = 0.0,
    cache_dir: str | os.PathLike | None = None,
) -> Dataset:
    """Returns `image` [M, image, image, 3] uint8, `audio` [M, frames, mels] float32 and `label` [M] int32.

    data_dir: the folder with vision/<class>/<name>.jpg and sound/<class>/<name>.wav. A class is a folder; the official
    set has 13 of them and 5,075 pairs. image: pixels of a side; photos are squashed to a square. mels, frames: as in
    `audio.log_mel`, of the sound at 16 kHz. seed: decides which 4/5 of a class (rounded down) are `train`; the rest is
    `test`. valid: the share of train that makes a split of its own instead. cache_dir: where decoded photos and
    features are kept, written at the first call (None: the user's cache); with the default arguments they take 0.8 and
    2.7 GB, and as much memory.

    Raises FileNotFoundError for a photo without its sound or a sound without its photo, and ValueError for a file that
    is cut off.
    Source: Hu 2020 (ECCV), arXiv 2005.08449; the split of LW-FedMML (arXiv 2407.15426, its code).
    """
    arguments.check_whole(0, seed=seed)
    arguments.check_whole(1, image=image, mels=mels, frames=frames)
    if isinstance(valid, bool) or not isinstance(valid, int | float) or not 0 <= valid < 1:
        raise ValueError(f"valid is {valid!r}; give the share of train that it takes, from 0 to below 1")
    photos, sounds = _pairs(arguments.check_folder("data_dir", data_dir))
    classes = tuple(sorted({path.parent.name for path in photos}))
    version = images.listing([*photos, *sounds])
    photo_cache = images.cache_file(cache_dir, "advance_image", image, version)
    sound_cache = images.cache_file(cache_dir, "advance_audio", frames, mels, version)
    arrays = {
        "image": images.memory_map(photo_cache, len(photos), lambda i: images.read(photos[i], image)),
        "audio": images.memory_map(sound_cache, len(sounds), lambda i: _features(sounds[i], frames, mels)),
        "label": np.array([classes.index(path.parent.name) for path in photos], np.int32),
    }
    splits = {
        split: {name: np.asarray(array[rows]) for name, array in arrays.items()}
        for split, rows in _split(arrays["label"], len(classes), valid, seed).items()
        if split != "valid" or valid
    }
    return Dataset("advance", splits, ("image", "audio"), classes)


def _pairs(data_dir: pathlib.Path) -> tuple[list[pathlib.Path], list[pathlib.Path]]:
    """Photos and their sounds, sorted by class and name."""
    photos, sounds = (_files(data_dir / room, suffix) for room, suffix in (("vision", ".jpg"), ("sound", ".wav")))
    for here, there, room in ((photos, sounds, "sound"), (sounds, photos, "vision")):
        if missing := sorted(set(here) - set(there)):
            raise FileNotFoundError(
                f"{data_dir}/{room} has nothing to go with {here[missing[0]]} ({len(missing)} of {len(here)} are "
                f"missing); get it from {SOURCE}"
            )
    keys = sorted(photos)
    return [photos[key] for key in keys], [sounds[key] for key in keys]


def _features(path: pathlib.Path, frames: int, mels: int) -> np.ndarray:
    waveform, rate = audio.read_wav(path)
    return audio.log_mel(audio.resample(waveform, rate, RATE), RATE, frames, mels)


def _split(label: np.ndarray, classes: int, valid: float, seed: int) -> dict[str, np.ndarray]:
    """Split -> rows, sorted: of each class 4/5 are train, and `valid` of these are valid."""
    rng = np.random.default_rng(seed)
    rows: dict[str, list[np.ndarray]] = {"train": [], "valid": [], "test": []}
    for number in range(classes):
        order = rng.permutation(np.flatnonzero(label == number))
        train = len(order) * 4 // 5
        kept = train - round(valid * train)
        for split, part in zip(rows, np.split(order, [kept, train]), strict=True):
            rows[split].append(part)
    return {split: np.sort(np.concatenate(parts)) for split, parts in rows.items()}


def _files(folder: pathlib.Path, suffix: str) -> dict[tuple[str, str], pathlib.Path]:
    """(class, name without suffix) -> file."""
    found = {
        (path.parent.name, path.stem): path for path in folder.glob("[!.]*/[!.]*") if path.suffix.lower() == suffix
    }
    if not found:
        raise FileNotFoundError(f"{folder} has no <class>/*{suffix}; get it from {SOURCE}")
    return found
