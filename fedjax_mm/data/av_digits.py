"""A picture of a digit and somebody saying it: MNIST and Free Spoken Digits, paired by label."""

import os
import pathlib
import types
from collections.abc import Mapping

import numpy as np

from fedjax_mm.data import arrays, audio, prepared
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
    """Pairs of one digit: `image` [M, 28, 28, 1] uint8, `audio` [M, frames, mels] float32, `label` [M] int32, 0..9.

    data_dir: the folder with tfds/mnist (prepared) and spoken_digit/spoken_digit_8khz.npz. seed: which picture goes
    with which recording, and which of MNIST's training pictures are for valid. pairs: how many each of the splits
    train, valid, test has, the digits in turn. mels, frames: as in `audio.log_mel`, of the sound at its 8 kHz; 64
    frames (0.65 s) hold 95 % of the recordings whole.

    No picture is in two pairs. A recording is in several, of one split, each of a digit equally often (give or take
    one); `group` [M] int32 is its number in the file. Every speaker is in every split.
    Raises FileNotFoundError, KeyError or ValueError where a file is missing, another one or cut off, and ValueError
    where there are fewer pictures of a digit than pairs ask for.
    Source: Vielzeuf 2018 (CentralNet, arXiv 1808.07275) pairs MNIST and spoken digits thus.
    """
    if unknown := sorted(set(pairs) - set(RECORDINGS)):
        raise ValueError(f"pairs names {unknown}; the splits are {', '.join(RECORDINGS)}")
    data_dir = pathlib.Path(data_dir)
    spoken = arrays.load_npz(data_dir / SPOKEN, ("audio", "offsets", "label", "index", "sample_rate"))
    offsets, rate = spoken["offsets"], int(spoken["sample_rate"])
    if offsets[-1] != len(spoken["audio"]):
        raise ValueError(
            f"{data_dir / SPOKEN}: `audio` has {len(spoken['audio'])} samples, `offsets` count {offsets[-1]}"
        )
    waveform = spoken["audio"].astype(np.float32) / 32768
    features = np.stack(
        [
            audio.log_mel(waveform[start:end], rate, frames, mels)
            for start, end in zip(offsets[:-1], offsets[1:], strict=True)
        ]
    )
    mnist = {split: prepared.load("mnist", data_dir / "tfds", split, ("image", "label")) for split in ("train", "test")}
    rng = np.random.default_rng(seed)
    owed = {split: _in_turn(number) for split, number in pairs.items()}
    chosen = {split: (np.empty(len(label), int), np.empty(len(label), int)) for split, label in owed.items()}
    for digit in range(DIGITS):
        pool = {split: rng.permutation(np.flatnonzero(mnist[split]["label"] == digit)) for split in mnist}
        for split, label in owed.items():
            places = np.flatnonzero(label == digit)
            source = "test" if split == "test" else "train"
            if len(places) > len(pool[source]):
                raise ValueError(
                    f"pairs asks for {len(places)} pictures of digit {digit} for {split}, and {len(pool[source])} of "
                    f"MNIST's {source} are left; ask for fewer"
                )
            drawn, pool[source] = np.split(pool[source], [len(places)])
            said = np.flatnonzero((spoken["label"] == digit) & np.isin(spoken["index"], RECORDINGS[split]))
            if not len(said):
                raise ValueError(f"{data_dir / SPOKEN} has no recording of digit {digit} for {split}")
            often = np.concatenate([rng.permutation(said) for _ in range(-(-len(places) // len(said)))] or [said])
            chosen[split][0][places], chosen[split][1][places] = drawn, often[: len(places)]
    splits = {
        split: {
            "image": mnist["test" if split == "test" else "train"]["image"][picture],
            "audio": features[recording],
            "label": owed[split],
            "group": recording.astype(np.int32),
        }
        for split, (picture, recording) in chosen.items()
    }
    return Dataset("av_digits", splits, ("image", "audio"), tuple(map(str, range(DIGITS))))


def _in_turn(number: int) -> np.ndarray:
    if number < 1:
        raise ValueError(f"pairs asks for {number} pairs; give 1 or more, or leave the split out")
    return np.arange(number, dtype=np.int32) % DIGITS
