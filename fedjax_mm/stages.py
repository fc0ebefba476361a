"""Training in stages: a list of methods, each a program of its own, that hand the server's parameters on."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import NamedTuple

from fedjax_mm import trees
from fedjax_mm.federate import Method
from fedjax_mm.types import FedState


class Stage(NamedTuple):
    """A method and for how many rounds it runs. One of 0 rounds is skipped: the next has its layers too."""

    name: str
    method: Method
    rounds: int


def blocks(depth: int, stages: int) -> list[range]:
    """The layers each stage attaches, `depth` of them in equal blocks."""
    if stages < 1 or depth % stages:
        raise ValueError(f"{depth} layers cannot be cut into {stages} equal blocks; the stages must divide the depth")
    size = depth // stages
    return [range(s * size, (s + 1) * size) for s in range(stages)]


def uniform(stages: int, rounds: int) -> tuple[int, ...]:
    """`rounds` spread evenly over the stages; where they do not divide, later stages have one more."""
    return tuple(rounds * (s + 1) // stages - rounds * s // stages for s in range(stages))


def enter(before: FedState, fresh: FedState) -> FedState:
    """The state a stage begins with: `fresh`, with every leaf that the server had before as it was, and its rounds.

    What is new keeps its fresh value, and so do the clients' own states. A server's state is a nested dict.
    """
    return dataclasses.replace(fresh, server=trees.grow(before.server, fresh.server), round=before.round)


def plan(method: Method | Sequence[Stage], rounds: int | None) -> list[Stage]:
    """The stages of a run of `rounds` rounds (None: as many as the stages have); a plain method is one without a name.

    Raises ValueError for a number of rounds that does not fit, and for stages of one name.
    """
    if isinstance(method, Method):
        if rounds is None or rounds < 1:
            raise ValueError(f"rounds must be at least 1, got {rounds}")
        return [Stage("", method, rounds)]
    given = list(method)
    names, numbers = [stage.name for stage in given], [stage.rounds for stage in given]
    if len(set(names)) < len(names):
        raise ValueError(f"stages need names of their own, got {names}")
    if not given or min(numbers) < 0 or not 1 <= (sum(numbers) if rounds is None else rounds) <= sum(numbers):
        raise ValueError(f"rounds is {rounds}, the stages have {numbers}; leave it out or give 1 to {sum(numbers)}")
    return given


def index(stages: Sequence[Stage], round: int) -> int:
    """Which stage the round numbered `round`, from 0, lies in; the last one for any beyond the end."""
    ends = itertools.accumulate(stage.rounds for stage in stages)
    return next((i for i, end in enumerate(ends) if round < end), len(stages) - 1)
