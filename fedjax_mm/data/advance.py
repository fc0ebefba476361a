"""ADVANCE: aerial photos and the sounds recorded there, 13 classes of scene."""

import os
import pathlib

import numpy as np

from fedjax_mm.data import audio, images
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
    """ADVANCE as `image` [M, image, image, 3] uint8, `audio` [M, frames, mels] float32 and `label` [M] int32.

    data_dir: the folder with vision/<class>/<name>.jpg and sound/<class>/<name>.wav. A class is a folder; the official
    set has 13 of them and 5,075 pairs. image: pixels of a side; photos are squashed to a square. mels, frames: as in
    `audio.log_mel`, of the sound at 16 kHz. seed: which 4/5 of a class (rounded down) are `train`; the rest is `test`.
    valid: the share of train that makes a split of its own instead. cache_dir: where decoded photos and features are
    kept, written at the first call (None: the user's cache): 0.8 and 2.7 GB, and as much memory, as the arguments are.

    Raises FileNotFoundError for a photo without its sound, a sound without its photo, and ValueError for a file that
    is cut off.
    Source: Hu 2020 (ECCV), arXiv 2005.08449; the split of LW-FedMML (arXiv 2407.15426, its code).
    """
    if not 0 <= valid < 1:
        raise ValueError(f"valid is {valid}; give the share of train that it takes, from 0 to below 1")
    data_dir = pathlib.Path(data_dir)
    photos, sounds = (_files(data_dir / room, suffix) for room, suffix in (("vision", ".jpg"), ("sound", ".wav")))
    for here, there, room in ((photos, sounds, "sound"), (sounds, photos, "vision")):
        if missing := sorted(set(here) - set(there)):
            raise FileNotFoundError(
                f"{data_dir}/{room} has nothing to go with {here[missing[0]]} ({len(missing)} of {len(here)} are "
                f"missing); get it from {SOURCE}"
            )
    pairs = sorted(photos)
    classes = tuple(sorted({folder for folder, _ in pairs}))
    label = np.array([classes.index(folder) for folder, _ in pairs], np.int32)

    def features(i: int) -> np.ndarray:
        waveform, rate = audio.read_wav(sounds[pairs[i]])
        return audio.log_mel(audio.resample(waveform, rate, RATE), RATE, frames, mels)

    version = images.listing([*photos.values(), *sounds.values()])
    arrays = {
        "image": images.memory_map(
            images.cache_file(cache_dir, "advance_image", image, version),
            len(pairs),
            lambda i: images.read(photos[pairs[i]], image),
        ),
        "audio": images.memory_map(
            images.cache_file(cache_dir, "advance_audio", frames, mels, version), len(pairs), features
        ),
        "label": label,
    }
    rng, rows = np.random.default_rng(seed), {"train": [], "valid": [], "test": []}
    for number in range(len(classes)):
        drawn = rng.permutation(np.flatnonzero(label == number))
        train = len(drawn) * 4 // 5
        kept = train - round(valid * train)
        for split, part in zip(rows, np.split(drawn, [kept, train]), strict=True):
            rows[split].append(part)
    splits = {
        split: {name: np.asarray(array[np.sort(np.concatenate(parts))]) for name, array in arrays.items()}
        for split, parts in rows.items()
        if split != "valid" or valid
    }
    return Dataset("advance", splits, ("image", "audio"), classes)


def _files(folder: pathlib.Path, suffix: str) -> dict[tuple[str, str], pathlib.Path]:
    """(class, name without suffix) -> file."""
    found = {
        (path.parent.name, path.stem): path for path in folder.glob("[!.]*/[!.]*") if path.suffix.lower() == suffix
    }
    if not found:
        raise FileNotFoundError(f"{folder} has no <class>/*{suffix}; get it from {SOURCE}")
    return found
