"""What every loader returns: named splits of flat NumPy arrays."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np


class Dataset(NamedTuple):
    """A dataset in disjoint splits.

    name: what the dataset is called.
    splits: name -> arrays with leaves [M, ...]: one per modality (float32, or uint8 images, or int32 tokens) and
        `label` [M] int32 in 0..K-1. Where examples come in groups that must stay whole (a subject, a recording), there
        is `group` [M] int32. Usual names of splits are train, valid and test; methods that need a public set use proxy,
        and those whose server needs labelled examples use labelled.
    modalities: the names of the arrays that a client may lack, in the order in which the papers call them A, B, ...
    classes: the names of the K classes.

    >>> train = {"image": np.zeros((5, 8, 8, 1)), "text": np.zeros((5, 12), np.int32), "label": np.zeros(5, np.int32)}
    >>> dataset = Dataset("tiny", {"train": train}, modalities=("image", "text"), classes=("cat", "dog"))
    >>> {name: dataset.splits["train"][name].shape for name in dataset.modalities}
    {'image': (5, 8, 8, 1), 'text': (5, 12)}
    """

    name: str
    splits: Mapping[str, Mapping[str, np.ndarray]]
    modalities: tuple[str, ...]
    classes: tuple[str, ...]
