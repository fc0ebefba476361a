"""A picture of a digit and somebody saying it: MNIST and Free Spoken Digits, paired by label."""

import os
import pathlib
import types
from collections.abc import Mapping

import numpy as np

from fedjax_mm.data import arguments, arrays, audio, prepared
from fedjax_mm.data.dataset import Dataset

SPOKEN = pathlib.Path("spoken_digit") / "spoken_digit_8khz.npz"
PAIRS = types.MappingProxyType({"train": 6000, "valid": 600, "test": 1200})
# By the number of a recording among those of its speaker and digit. The source keeps 0..4 for the test.
RECORDINGS = types.MappingProxyType({"train": range(7, 50), "valid": range(5, 7), "test": range(5)})
DIGITS = 10


def load(
    data_dir: str | os.PathLike,
    seed: int = 0,
    pairs: Mapping[str, int] = PAIRS,
    mels: int = 64,
    frames: int = 64,
) -> Dataset:
    """Returns pairs of one digit: `image` [M, 28, 28, 1] uint8, `audio` [M, frames, mels] float32, `label` [M] int32.

    data_dir: the folder with tfds/mnist (prepared) and spoken_digit/spoken_digit_8khz.npz. seed: decides which picture
    goes with which recording, and which of MNIST's training pictures are for valid. pairs: how many pairs each of the
    splits train, valid, test has; the digits take turns. mels, frames: as in `audio.log_mel`, of the sound at its
    8 kHz; 64 frames (0.65 s) hold 95 % of the recordings whole.

    No picture is in two pairs. A recording is in several pairs of one split, each recording of a digit equally often
    (give or take one); `group` [M] int32 is its number in the file. Every speaker is in every split.
    Raises FileNotFoundError, KeyError or ValueError where a file is missing, another one or cut off, and ValueError
    where there are fewer pictures of a digit than pairs ask for.
    Source: Vielzeuf 2018 (CentralNet, arXiv 1808.07275) pairs MNIST and spoken digits thus.
    """
    arguments.check_whole(0, seed=seed)
    arguments.check_whole(1, mels=mels, frames=frames)
    if not isinstance(pairs, Mapping):
        raise ValueError(f"pairs is {pairs!r}; give a mapping from split to a number of pairs")
    if unknown := [split for split in pairs if split not in RECORDINGS]:
        raise ValueError(f"pairs names {unknown}; the splits are {', '.join(RECORDINGS)}")
    data_dir = arguments.check_folder("data_dir", data_dir)
    spoken = arrays.load_npz(data_dir / SPOKEN, ("audio", "offsets", "label", "index", "sample_rate"))
    features = _features(spoken, data_dir / SPOKEN, mels, frames)
    mnist = {split: prepared.load("mnist", data_dir / "tfds", split, ("image", "label")) for split in ("train", "test")}
    labels = {split: _in_turn(number) for split, number in pairs.items()}
    chosen = _pair(labels, {split: m["label"] for split, m in mnist.items()}, spoken, data_dir / SPOKEN, seed)
    splits = {
        split: {
            "image": mnist[_mnist_split(split)]["image"][picture],
            "audio": features[recording],
            "label": labels[split],
            "group": recording.astype(np.int32),
        }
        for split, (picture, recording) in chosen.items()
    }
    return Dataset("av_digits", splits, ("image", "audio"), tuple(map(str, range(DIGITS))))


def _features(spoken: Mapping[str, np.ndarray], path: pathlib.Path, mels: int, frames: int) -> np.ndarray:
    """Log-mel features of every recording, [recordings, frames, mels]."""
    if spoken["audio"].dtype != np.int16 or spoken["audio"].ndim != 1 or spoken["sample_rate"].size != 1:
        raise ValueError(f"{path} must have `audio` [T] int16 and one `sample_rate`, not {spoken['audio'].dtype}")
    offsets, rate = arrays.as_int32(spoken["offsets"], f"{path}: `offsets`"), int(spoken["sample_rate"])
    if (offsets.ndim, *map(len, (spoken["label"], spoken["index"]))) != (1, len(offsets) - 1, len(offsets) - 1):
        raise ValueError(f"{path}: `label` and `index` must have one number for each recording between two `offsets`")
    if offsets[0] != 0 or (np.diff(offsets) < 1).any() or offsets[-1] != len(spoken["audio"]):
        raise ValueError(f"{path}: `audio` has {len(spoken['audio'])} samples, `offsets` count {offsets[-1]}")
    waveform = spoken["audio"].astype(np.float32) / 32768
    recordings = (waveform[start:end] for start, end in zip(offsets[:-1], offsets[1:], strict=True))
    return np.stack([audio.log_mel(recording, rate, frames, mels) for recording in recordings])


def _pair(
    labels: Mapping[str, np.ndarray],
    pictured: Mapping[str, np.ndarray],
    spoken: Mapping[str, np.ndarray],
    path: pathlib.Path,
    seed: int,
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Split -> (rows [M] of pictures, rows [M] of recordings) whose digits are `labels` [M].

    pictured: the digit of every picture of MNIST's train and test.
    """
    rng = np.random.default_rng(seed)
    chosen = {split: (np.empty(len(label), int), np.empty(len(label), int)) for split, label in labels.items()}
    for digit in range(DIGITS):
        pool = {source: rng.permutation(np.flatnonzero(pictured[source] == digit)) for source in pictured}
        for split, label in labels.items():
            places = np.flatnonzero(label == digit)
            source = _mnist_split(split)
            if len(places) > len(pool[source]):
                raise ValueError(
                    f"pairs asks for {len(places)} pictures of digit {digit} for {split}, and {len(pool[source])} of "
                    f"MNIST's {source} are left; ask for fewer"
                )
            pictures, pool[source] = np.split(pool[source], [len(places)])
            said = np.flatnonzero((spoken["label"] == digit) & np.isin(spoken["index"], RECORDINGS[split]))
            if not len(said):
                raise ValueError(f"{path} has no recording of digit {digit} for {split}")
            often = np.concatenate([rng.permutation(said) for _ in range(-(-len(places) // len(said)))] or [said])
            chosen[split][0][places], chosen[split][1][places] = pictures, often[: len(places)]
    return chosen


def _mnist_split(split: str) -> str:
    return "test" if split == "test" else "train"


def _in_turn(number: int) -> np.ndarray:
    """The digits 0, 1, .., 9, 0, .. of so many pairs."""
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise ValueError(f"pairs asks for {number!r} pairs; give 1 or more, or leave the split out")
    return np.arange(number, dtype=np.int32) % DIGITS
