"""The UCI handwritten digits that ship with scikit-learn, cut into a left and a right half: two real modalities."""

from collections.abc import Mapping
from typing import Any, cast

import numpy as np

from fedjax_mm.data import arguments
from fedjax_mm.data.dataset import Dataset

PROPORTIONS = {"test": 0.25, "valid": 0.10, "proxy": 0.15, "labelled": 0.10}


def load(form: str = "image", seed: int = 0, proportions: Mapping[str, float] = PROPORTIONS) -> Dataset:
    """Returns 1,797 digits as modalities `left` and `right` with `label` [M] int32, in splits stratified by class.

    form: "image" gives float32 [M, 8, 4, 1] in 0..1; "sequence" gives float32 [M, 8, 4], one image row a time step,
        each modality shifted and scaled by the mean and deviation of its training rows.
    proportions: split name -> share of all examples; `train` is what is left over.
    Source: Alpaydin and Kaynak 1998, UCI "Optical Recognition of Handwritten Digits" (its test part), 8x8, 0..16.

    >>> dataset = load()
    >>> dataset.modalities, dataset.splits["train"]["left"].shape, len(dataset.splits["test"]["label"])
    (('left', 'right'), (718, 8, 4, 1), 449)
    """
    if form not in ("image", "sequence"):
        raise ValueError(f'form is {form!r}; it can be "image" or "sequence"')
    arguments.check_whole(0, seed=seed)
    if not isinstance(proportions, Mapping) or not all(isinstance(share, float) for share in proportions.values()):
        raise ValueError(f"proportions is {proportions!r}; give a mapping from split to a share between 0 and 1")
    from sklearn.datasets import load_digits

    digits = cast(Any, load_digits())
    pixels = (digits.images / 16).astype(np.float32)
    label = digits.target.astype(np.int32)
    rows = _split(label, proportions, seed)
    halves = {"left": pixels[:, :, :4], "right": pixels[:, :, 4:]}
    if form == "image":
        modalities = {name: half[..., None] for name, half in halves.items()}
    else:
        modalities = {name: _standardise(half, rows["train"]) for name, half in halves.items()}
    arrays = {**modalities, "label": label}
    return Dataset(
        name=f"digits_{form}",
        splits={split: {name: array[own] for name, array in arrays.items()} for split, own in rows.items()},
        modalities=("left", "right"),
        classes=tuple(str(k) for k in range(10)),
    )


def _split(label: np.ndarray, proportions: Mapping[str, float], seed: int) -> dict[str, np.ndarray]:
    from sklearn.model_selection import train_test_split

    if "train" in proportions:
        raise ValueError("proportions names train; train is what the other splits leave over")
    if min(proportions.values(), default=1) <= 0 or sum(proportions.values()) >= 1:
        raise ValueError(f"proportions {dict(proportions)} must be above 0 and sum to less than 1; train is the rest")
    rows: dict[str, np.ndarray] = {}
    rest = np.arange(len(label))
    for name, share in proportions.items():
        count = round(share * len(label))
        taken = train_test_split(rest, test_size=count, stratify=label[rest], random_state=seed)
        rest, rows[name] = cast(list[np.ndarray], taken)
    return {"train": rest, **rows}


def _standardise(half: np.ndarray, train: np.ndarray) -> np.ndarray:
    # One mean and deviation for all four columns: the outermost pixels are nearly always 0, their own deviation tiny.
    return (half - half[train].mean()) / half[train].std()
