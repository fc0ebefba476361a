"""The loop over rounds, as a generator: it knows no file, no test set and no screen. What watches it is in watch.py."""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import NamedTuple, Protocol

import jax
from jax.sharding import Mesh

from fedjax_mm import stages
from fedjax_mm.federate import Method
from fedjax_mm.run.placement import States, local
from fedjax_mm.stages import Stage
from fedjax_mm.types import FedState, Key, Metrics, RoundData


class Inputs(NamedTuple):
    """The arguments of Method.round."""

    state: FedState
    data: RoundData
    key: Key


class Compiler(Protocol):
    """How a stage's round is compiled: as the stage is entered, or ahead of that in a thread."""

    def now(self, stage: Stage, inputs: Inputs, begun: Future | None) -> Callable: ...

    def ahead(self, later: Stage, inputs: Inputs) -> Future | None: ...


class Round(NamedTuple):
    """A finished round, as a watcher sees it.

    The arrays of `state` are given away to the next round: a watcher that keeps them must copy them.
    """

    number: int
    """Rounds behind the run, from 1."""
    last: bool
    """Whether the run ends with this round."""
    metrics: Metrics
    """What Method.round gave, as NumPy numbers: {cohort or "server": {name: value}}."""
    seconds: float
    """From the start of the round to the end of its work on the device, in seconds."""
    stage: Stage
    """The stage that the round lies in; its name is "" where the run has one."""
    stage_number: int
    """From 1."""
    first_of_stage: bool
    """Whether this run entered the stage with this round."""
    data: RoundData
    """Who took part, and with which rows."""
    whole: FedState
    """The state after the round over all devices, with the states of all clients, as a checkpoint has it."""
    mesh: Mesh | None
    """The devices that `whole` lies on; None: one."""
    finite: bool
    """Whether the server's new state is finite."""

    @property
    def method(self) -> Method:
        """The method of the round's stage."""
        return self.stage.method

    @property
    def state(self) -> FedState:
        """The state after the round on this process's own device, with the states of all clients."""
        return local(self.whole, self.mesh)


def rounds(
    plan: Sequence[Stage],
    state: FedState,
    feed: Callable[[int], RoundData],
    states: States,
    compiler: Compiler,
    keys: tuple[Key, Key],
    *,
    until: int,
    mesh: Mesh | None = None,
) -> Iterator[Round]:
    """Every round from where `state` stands up to round `until`, as it is finished.

    plan: the stages. state: whole, as `states.first` or a checkpoint gives it. feed: the data of round r, from 0; that
    of the next round is laid out while a round computes. keys: of the first states, and of the rounds.
    """
    init_key, round_key = keys
    start = int(state.round)
    # The stage that the state was made in: a state at a stage's end has still to enter the next one.
    at, step, later = stages.index(plan, max(0, start - 1)), None, None
    data = states.placed(feed(start))
    for r in range(start, until):
        entered = (here := stages.index(plan, r)) != at
        if entered:
            state, at, step = states.enter(state, plan[here].method, init_key), here, None
        if step is None:
            state = states.load(state, data)
            step = compiler.now(plan[at], Inputs(state, data, round_key), later)
            end = sum(stage.rounds for stage in plan[: at + 1])
            if end < until:
                later = compiler.ahead(plan[stages.index(plan, end)], Inputs(state, data, round_key))
        begun = time.perf_counter()
        state, metrics, finite = step(state, data, round_key)
        done, last = data, r + 1 == until
        coming = None if last else states.placed(feed(r + 1))  # laid out while this round computes
        fetched = None if coming is None else states.prefetch(coming)
        metrics, finite = jax.device_get((metrics, finite))
        state = states.exchange(state, done, coming, fetched)
        seconds = time.perf_counter() - begun
        first = entered or r == start
        whole = states.whole(state)
        yield Round(r + 1, last, metrics, seconds, plan[at], at + 1, first, done, whole, mesh, bool(finite))
        data = coming if coming is not None else data
