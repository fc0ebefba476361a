"""Datasets by name, and clients that a short code describes."""

import dataclasses
import functools
import inspect
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Literal, NamedTuple

import numpy as np

from experiments.common import cli
from fedjax_mm.data import (
    Dataset,
    FederatedData,
    digits,
    mhealth,
    opportunity,
    partition,
    scenes,
    ur_fall,
    utd_mhad,
)
from fedjax_mm.models import Model, cnn, lstm, mlp, text

SIZES = {"test": 0.2, "proxy": 0.1, "labelled": 0.1, "valid": 0.1}  # shares of recordings; clients own the rest
Name = Literal["digits", "scenes", "ur_fall", "mhealth", "utd_mhad", "opportunity"]
DATASETS: Mapping[Name, Callable[..., Dataset]] = {  # of a folder, a seed, and what of `Cutting` the dataset knows
    "digits": lambda data_dir, seed: digits.load("sequence", seed),
    "scenes": lambda data_dir, seed: scenes.load(seed=seed),
    "ur_fall": lambda data_dir, seed, labelled=0.1, stride=6: ur_fall.load(
        data_dir, seed=seed, sizes=SIZES | {"labelled": labelled}, stride=stride, lead_in=True
    ),
    "mhealth": lambda data_dir, seed, labelled=1, modalities=("accelerometer", "gyroscope"): _mhealth(
        pathlib.Path(data_dir or "."), seed, {"test": 2, "proxy": 1, "labelled": labelled, "valid": 1}, modalities
    ),
    "utd_mhad": lambda data_dir, seed, labelled=1, stride=12, whole=False: utd_mhad.load(
        data_dir or ".", stride=stride, seed=seed, sizes={**utd_mhad.SIZES, "labelled": labelled}, whole=whole
    ),
    "opportunity": lambda data_dir, seed: opportunity.load(data_dir, seed=seed),
}


def _mhealth(folder: pathlib.Path, seed: int, sizes: Mapping[str, int | float], modalities: Sequence[str]) -> Dataset:
    """The official logs where they are, else the reduced windows; with these modalities, in this order."""
    if (folder / "mHealth_subject1.log").is_file():
        dataset = mhealth.load(folder, seed=seed, sizes=sizes)
    else:
        dataset = mhealth.load_windows(folder / "mhealth_chestacc_wristgyro_w100.npz", seed, sizes, steps=25)
    if unknown := sorted(set(modalities) - set(dataset.modalities)):
        raise ValueError(f"--modalities has {', '.join(unknown)}; {folder} has {', '.join(dataset.modalities)}")
    others = set(dataset.modalities) - set(modalities)
    splits = {name: {k: x for k, x in own.items() if k not in others} for name, own in dataset.splits.items()}
    return dataset._replace(splits=splits, modalities=tuple(modalities))


FOLLOWING = {"mhealth": 24, "opportunity": 24}
"""Dataset -> frames of its windows, each of which begins where the one before ends."""


@dataclasses.dataclass(frozen=True)
class Cutting:
    """How recordings are cut into windows and how many are labelled; None leaves it to the dataset."""

    labelled: int | float | None = None
    """Subjects whose windows the server has labels of (mhealth, utd_mhad), or share of the recordings (ur_fall)."""
    stride: int | None = None
    """Frames from the start of a window to that of the next (ur_fall, utd_mhad)."""
    whole: bool = False
    """Whether a window is a whole trial, interpolated at 24 steps (utd_mhad)."""
    modalities: tuple[str, ...] | None = None
    """Modalities, of which the first is A in --cohorts: of mhealth's logs, any of accelerometer, gyroscope and
    magnetometer."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """The dataset, and the clients that own it."""

    data: Name = "digits"
    """Dataset: digits and scenes are embedded, and the others are read from --data-dir."""
    cohorts: str = "A10_B10_AB10"
    """How many clients own which modalities; A and B are the first and the second modality of the dataset."""
    alpha: float = 0.3
    """Dirichlet concentration of classes over clients where examples come in no groups; smaller is more skewed."""
    proxy: int = 128
    """Examples that the server and all clients share, evenly spaced over the split `proxy`."""
    fraction: float = 0.34
    """Share of the clients of each cohort that takes part in a round."""
    cutting: Annotated[Cutting, cli.FLAT] = Cutting()
    common: Annotated[cli.Common, cli.FLAT] = cli.Common()

    def __post_init__(self) -> None:
        cli.at_least(1, proxy=self.proxy)
        if not 0 < self.fraction <= 1:
            raise ValueError(f"--fraction is {self.fraction}; it must be more than 0 and at most 1")
        if not self.alpha > 0:
            raise ValueError(f"--alpha is {self.alpha}; it must be more than 0")


class Problem(NamedTuple):
    """A dataset that is distributed over clients."""

    data: FederatedData
    dataset: Dataset
    dtype: str = "float32"  # precision of the inputs of its models' matrix products


def load_problem(settings: Settings, seed: int) -> Problem:
    """The problem of one seed."""
    folder = settings.common.data_dir
    found = load(settings.data, folder, settings.cohorts, settings.alpha, seed, settings.proxy, settings.cutting)
    return found._replace(dtype=settings.common.dtype)


@functools.lru_cache(8)
def load(
    name: Name,
    data_dir: str | None,
    cohorts: str,
    alpha: float,
    seed: int,
    proxy: int = 128,
    cutting: Cutting = Cutting(),
) -> Problem:
    """The named dataset with its training examples in the hands of the clients that `cohorts` describes.

    cohorts: "A10_B10_AB10", the letters standing for the dataset's modalities in order. Where examples come in groups
    (subjects, recordings) a client owns whole groups, if there are enough; else the split is Dirichlet(alpha) by
    class. `proxy` examples of the split of that name, where there is one, are what the server and all clients share.
    Raises ValueError where the dataset does not know a setting of `cutting`.
    """
    given = dataclasses.asdict(cutting)
    chosen = {key: value for key, value in given.items() if value is not None and value is not False}
    if unknown := sorted(chosen.keys() - inspect.signature(DATASETS[name]).parameters.keys()):
        raise ValueError(f"--{unknown[0]} says nothing with --data {name}; leave it out")
    dataset = DATASETS[name](data_dir, seed, **chosen)
    train = dataset.splits["train"]
    holders = parse_cohorts(cohorts, dataset.modalities)
    total = sum(holders.values())
    if "group" in train and len(np.unique(train["group"])) >= total:
        parts = partition.by_group(train["group"], total, seed)
    else:
        parts = partition.dirichlet(train["label"], total, alpha, seed, min_size=2)
    who = partition.missing_modality(total, dataset.modalities, holders, seed)
    kept = {key: _padded(train[key]) for key in (*dataset.modalities, "label")}
    arrays = {cohort: {k: kept[k] for k in (*cohort.split("+"), "label")} for cohort in who}
    owned = {cohort: [parts[j] for j in ids] for cohort, ids in who.items()}
    public = None
    if "proxy" in dataset.splits:
        windows = len(dataset.splits["proxy"]["label"])
        rows = np.linspace(0, windows - 1, min(proxy, windows)).astype(int)
        public = {m: dataset.splits["proxy"][m][rows] for m in dataset.modalities}
    data = FederatedData.from_arrays(arrays, owned, public=public, num_classes=len(dataset.classes))
    return Problem(data, dataset)


def _padded(array: np.ndarray, multiple: int = 256) -> np.ndarray:
    """The array with rows that nobody owns, so that splits of nearly the same size compile to one program."""
    return np.concatenate([array, np.zeros((-len(array) % multiple, *array.shape[1:]), array.dtype)])


def taking_part(problem: Problem, share: float) -> dict[str, int]:
    """How many clients of each cohort take part in a round: a share of them, and one at least."""
    return {cohort: max(1, round(share * n)) for cohort, n in problem.data.sizes.items()}


def tested(problem: Problem, split: str) -> dict[str, np.ndarray]:
    """The arrays of a split that a method is scored on."""
    arrays = problem.dataset.splits[split]
    return {key: arrays[key] for key in (*problem.dataset.modalities, "label", "labels") if key in arrays}


def recordings(problem: Problem, split: str) -> dict[str, np.ndarray]:
    """A split's recordings one after the other, {m: [T, F]} with `labels` [T], of windows that follow one another.

    Raises ValueError for a dataset whose windows do not.
    """
    name, arrays = problem.dataset.name, problem.dataset.splits[split]
    keys = (*problem.dataset.modalities, "labels")
    if name not in FOLLOWING or any(np.shape(arrays.get(key))[1:2] != (FOLLOWING[name],) for key in keys):
        raise ValueError("--stateful is for windows that follow one another: mhealth from its logs, and opportunity")
    return {key: arrays[key].reshape(-1, *arrays[key].shape[2:]) for key in keys}


def parse_cohorts(code: str, modalities: Sequence[str]) -> dict[tuple[str, ...], int]:
    """ "A10_B10_AB10" -> {("left",): 10, ("right",): 10, ("left", "right"): 10}."""
    holders = {}
    for piece in code.split("_"):
        match = re.fullmatch(r"([A-Z]+)([1-9]\d*)", piece)
        letters = [ord(c) - ord("A") for c in match[1]] if match else []
        if not match or max(letters) >= len(modalities):
            known = ", ".join(f"{chr(ord('A') + i)} = {m}" for i, m in enumerate(modalities))
            raise ValueError(f"--cohorts {code} is not understood at {piece!r}; write e.g. A10_B10_AB10 with {known}")
        holders[tuple(modalities[i] for i in letters)] = int(match[2])
    return holders


def encoders(dataset: Dataset, dim: int = 32, dtype: str = "float32") -> dict[str, Model]:
    """A small encoder for each modality, by its shape: tokens [L], sequences [T, F], images [H, W, C]."""
    found = {}
    for name in dataset.modalities:
        array = dataset.splits["train"][name]
        if array.dtype.kind == "i":
            found[name] = text.encoder(int(array.max()) + 1, dim, 64, dtype=dtype)
        elif array.ndim == 3:
            found[name] = lstm.encoder(32, dim, dtype=dtype)
        elif array.shape[1] >= 16:
            found[name] = cnn.encoder((16, 32, 64), dim, dtype=dtype)
        else:
            found[name] = mlp.encoder((64,), dim, dtype=dtype)
    return found
