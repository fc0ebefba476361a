"""What every loader returns: named splits of flat NumPy arrays."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np


class Dataset(NamedTuple):
    """A dataset cut into disjoint splits.

    splits: name -> arrays with leaves [M, ...]: one per modality (float32, or uint8 images, or int32 tokens),
        `label` [M] int32 in 0..K-1 and, where examples come in groups that must not be torn apart (a subject, a
        recording), `group` [M] int32. Usual names: train, valid, test, and proxy, labelled for the methods that
        need a public or a labelled server set.
    modalities: names of the arrays a client may lack, in the order the papers call them A, B, ...
    classes: K names.
    """

    name: str
    splits: Mapping[str, Mapping[str, np.ndarray]]
    modalities: tuple[str, ...]
    classes: tuple[str, ...]
