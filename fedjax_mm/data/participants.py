"""Who takes part in a round, with which weight, and how much of its work each one does."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from fedjax_mm.checks import check_array

ANY = (np.integer, np.floating)


class Participants(NamedTuple):
    """The participants of one cohort in one round.

    >>> Participants([3, 0], work=[1.0, 0.0])  # client 3 does all of its steps; what client 0 sends never arrives
    Participants(index=[3, 0], weight=None, work=[1.0, 0.0])
    """

    index: Any
    """[C] whole numbers: the clients, and N for nobody."""
    weight: Any = None
    """[C] floats from 0: the weight of each in an average. None: its number of examples."""
    work: Any = None
    """[C] floats in 0..1: the share of its steps that each takes before a deadline; 0 for one that drops out in the
    round, of which nothing is heard. None: all of them."""


def checked(
    name: str, chosen: Any, size: int
) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray], np.ndarray | None]:
    """(the numbers [C] of a cohort's participants, a function from their counts of examples to their weights, the
    shares of their steps [C]). Raises ValueError for what is no such thing, and for a client that is named twice.

    chosen: Participants, or their numbers alone. size: N.
    """
    given = chosen if isinstance(chosen, Participants) else Participants(chosen)
    index = check_array(f"participants of {name}", given.index, (np.integer,), "[C]")
    if len(index) and (index.min() < 0 or index.max() > size):
        raise ValueError(f"cohort {name} has clients 0..{size - 1}, not {index.min()}..{index.max()}")
    real = index[index < size]
    if len(np.unique(real)) < len(real):
        raise ValueError(f"a client of {name} takes part twice in {index.tolist()}; name each once")
    weight = None if given.weight is None else _floats(f"the weights of participants of {name}", given.weight, index)
    work = None if given.work is None else _floats(f"the work of participants of {name}", given.work, index, 1.0)

    def weigh(count: np.ndarray) -> np.ndarray:
        """float32; 0 for nobody, for a client without examples and for one that drops out."""
        own = count.astype(np.float32) if weight is None else np.where(count > 0, weight, 0).astype(np.float32)
        return own if work is None else np.where(work > 0, own, 0).astype(np.float32)

    return index, weigh, work


def _floats(name: str, value: Any, index: np.ndarray, most: float = np.inf) -> np.ndarray:
    array = check_array(name, value, ANY, "[C]").astype(np.float32)
    if array.shape != index.shape or not (np.isfinite(array) & (array >= 0) & (array <= most)).all():
        bound = "" if most == np.inf else f" to {most:g}"
        raise ValueError(f"{name} is {array.tolist()}; give one number from 0{bound} for each of {len(index)}")
    return array
