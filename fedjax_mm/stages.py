"""Training in stages: a list of methods, each compiled as a program of its own.

A stage begins with the parameters that the server had at the end of the stage before.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from fedjax_mm import trees
from fedjax_mm.checks import check_whole, say
from fedjax_mm.federate import Method
from fedjax_mm.types import Arrays, FedState, PyTree, RoundData


class Stage(NamedTuple):
    """A method with a name, and the number of rounds that it runs.

    A stage of 0 rounds is skipped. What it would have attached is attached by the next stage.
    """

    name: str
    method: Method
    rounds: int
    cache: Callable[[PyTree, Arrays], Arrays] | None = None
    """`cache(server, arrays)` gives arrays [E, ...] that a cohort has besides its own while `run.train` runs the stage:
    what its clients compute of each of their examples once, as the stage begins. `server` is the server's state. They
    may depend on that part of it alone which the stage leaves as it is, and a round must give the same without them.
    None where clients keep nothing."""


def kept(stage: Stage, server: PyTree, data: RoundData) -> dict[str, Arrays]:
    """{cohort: the arrays that the stage's clients keep}, empty where it has no `cache`.

    server: the server's state. data: of any round. Both may hold shapes under `jax.eval_shape`.
    """
    if stage.cache is None:
        return {}
    return {name: stage.cache(server, taken.arrays) for name, taken in data.cohorts.items()}


def frozen(plan: Sequence[Stage]) -> tuple[str, ...]:
    """The entries of the server's state that no round of any stage changes (`Server.frozen`)."""
    first, *others = (stage.method.server.frozen for stage in plan)
    return tuple(name for name in first if all(name in names for names in others))


def joined(data: RoundData, kept: Mapping[str, Arrays]) -> RoundData:
    """The data of a round with the arrays that its clients keep."""
    add = lambda name, taken: dataclasses.replace(taken, arrays={**taken.arrays, **kept[name]}) if kept else taken
    return data._replace(cohorts={name: add(name, taken) for name, taken in data.cohorts.items()})


def check_caches(plan: Sequence[Stage], on_device: bool) -> None:
    """Raises ValueError where clients keep something of examples that are off the device, of which no round has all."""
    for stage in plan:
        if stage.cache is not None and not on_device:
            raise ValueError(
                f"clients of {stage.name!r} keep something of all their examples, and these are off the device; make "
                "the data with on_device=True, or build the stages without a cache"
            )


def with_shapes(stage: Stage, data: RoundData) -> RoundData:
    """The data of a round with the shapes of the arrays that the stage's clients keep, as `costs.of` takes it."""
    server = jax.eval_shape(stage.method.server.init, jax.random.key(0))
    return joined(data, jax.eval_shape(functools.partial(kept, stage), server, data))


def blocks(depth: int, stages: int) -> list[range]:
    """The numbers of the layers that each stage attaches: `depth` layers, cut into equal blocks.

    Raises ValueError where the number of stages does not divide the depth.

    >>> blocks(6, 3)
    [range(0, 2), range(2, 4), range(4, 6)]
    """
    depth, stages = check_whole("depth", depth, least=1), check_whole("stages", stages)
    if stages < 1 or depth % stages:
        raise ValueError(f"{depth} layers cannot be cut into {stages} equal blocks; the stages must divide the depth")
    size = depth // stages
    return [range(s * size, (s + 1) * size) for s in range(stages)]


def uniform(stages: int, rounds: int) -> tuple[int, ...]:
    """The rounds of each stage, `rounds` in all, spread evenly; where they do not divide, some stages have one more.

    >>> uniform(3, 7)
    (2, 2, 3)
    """
    stages, rounds = check_whole("stages", stages, least=1), check_whole("rounds", rounds)
    return tuple(rounds * (s + 1) // stages - rounds * s // stages for s in range(stages))


def enter(before: FedState, fresh: FedState) -> FedState:
    """The state with which a stage begins after the stage that ended in `before`.

    The server keeps the value of every leaf that it had, and the number of rounds goes on. New leaves and the clients'
    own states have the values of `fresh`, the first state of the new stage's method. A server's state is a nested dict.
    A leaf that the new method lacks is dropped. Raises ValueError where a leaf changed its shape, or a leaf became a
    dict or the reverse.

    >>> before = FedState({"layer_0": 0.5}, {}, 10)
    >>> after = enter(before, FedState({"layer_0": 0.0, "layer_1": 0.0}, {}, 0))
    >>> after.server, after.round
    ({'layer_0': 0.5, 'layer_1': 0.0}, 10)
    """
    for name, state in (("before", before), ("fresh", fresh)):
        if not isinstance(state, FedState):
            raise ValueError(f"{name} is {say(state)}; give a FedState")
    return dataclasses.replace(fresh, server=trees.grow(before.server, fresh.server), round=before.round)


def plan(method: Method | Sequence[Stage], rounds: int | None) -> list[Stage]:
    """The stages of a run of `rounds` rounds. A plain method becomes one stage without a name.

    rounds: None means as many rounds as the stages have; a plain method needs a number. Raises ValueError for a number
    of rounds that does not fit, and for two stages of the same name.

    >>> from fedjax_mm.types import Cohort, Server
    >>> method = Method(Server(None, None, None), {"all": Cohort(1, None, None)})
    >>> [(stage.name, stage.rounds) for stage in plan([Stage("one", method, 0), Stage("two", method, 5)], None)]
    [('one', 0), ('two', 5)]
    """
    if isinstance(method, Method):
        if rounds is None or check_whole("rounds", rounds, least=None) < 1:
            raise ValueError(f"rounds must be at least 1, got {rounds}")
        return [Stage("", method, int(rounds))]
    given = _check_stages(method)
    if odd := [stage.name for stage in given if not isinstance(stage.method, Method)]:
        raise ValueError(f"the stages {odd} have no Method; give each what a build returns")
    if odd := [stage.name for stage in given if stage.cache is not None and not callable(stage.cache)]:
        raise ValueError(f"the stages {odd} have a cache that is no function; give cache(server, arrays), or None")
    rounds = None if rounds is None else check_whole("rounds", rounds)
    names, numbers = [stage.name for stage in given], [stage.rounds for stage in given]
    if len(set(names)) < len(names):
        raise ValueError(f"stages need names of their own, got {names}")
    if not given or min(numbers) < 0 or not 1 <= (sum(numbers) if rounds is None else rounds) <= sum(numbers):
        raise ValueError(f"rounds is {rounds}, the stages have {numbers}; leave it out or give 1 to {sum(numbers)}")
    return given


def index(stages: Sequence[Stage], round: int) -> int:
    """The number of the stage that runs round number `round`; both count from 0.

    A round beyond the end belongs to the last stage.

    >>> stages = [Stage("one", None, 2), Stage("two", None, 0), Stage("three", None, 3)]
    >>> [index(stages, round) for round in (0, 1, 2, 9)]
    [0, 0, 2, 2]
    """
    _check_stages(stages)
    check_whole("round", round)
    ends = itertools.accumulate(stage.rounds for stage in stages)
    return next((i for i, end in enumerate(ends) if round < end), len(stages) - 1)


def _check_stages(stages: Any) -> list[Stage]:
    given = list(stages) if isinstance(stages, Sequence) else [stages]
    for stage in given:
        if not isinstance(stage, Stage) or not isinstance(stage.name, str):
            raise ValueError(f"a stage is {say(stage)}; give a Method, or a list of Stage(name, method, rounds)")
        check_whole(f"rounds of stage {stage.name!r}", stage.rounds, least=None)
    return given
