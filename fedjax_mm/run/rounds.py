"""The loop over rounds, as a generator: it knows no file, no test set and no screen. What watches it is in watch.py."""

import dataclasses
import functools
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from fedjax_mm import stages, trees
from fedjax_mm.federate import Method
from fedjax_mm.run.placement import States, local
from fedjax_mm.split import WHOLE
from fedjax_mm.stages import Stage
from fedjax_mm.types import Arrays, FedState, Key, Metrics, RoundData


class Inputs(NamedTuple):
    """The arguments of Method.round."""

    state: FedState
    data: RoundData
    key: Key


class Compiler(Protocol):
    """How a stage's rounds are compiled, `number` of them in one call: as they are needed, or ahead in a thread."""

    def now(self, stage: Stage, inputs: Inputs, number: int, begun: Future | None) -> Callable: ...

    def ahead(self, later: Stage, inputs: Inputs, number: int) -> Future | None: ...


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
    """From the start of the round, or the end of the one before if that is later, until its metrics are read."""
    stage: Stage
    """The stage that the round lies in; its name is "" where the run has one."""
    stage_number: int
    """From 1."""
    first_of_stage: bool
    """Whether this run entered the stage with this round."""
    data: RoundData
    """Who took part, and with which rows."""
    gather: Callable[[], FedState] | None
    """Gives `whole`. None where the device has gone on from the state after the round."""
    mesh: Mesh | None
    """The devices that `whole` lies on; None: one."""
    finite: bool
    """Whether the server's new state is finite."""

    @property
    def method(self) -> Method:
        """The method of the round's stage."""
        return self.stage.method

    @property
    def has_state(self) -> bool:
        """Whether there is a state after the round; if not, the device has gone on from it."""
        return self.gather is not None

    @property
    def whole(self) -> FedState | None:
        """The state after the round over all devices, with the states of all clients, as a checkpoint has it. None
        where the device has gone on from it."""
        return None if self.gather is None else self.gather()

    @property
    def state(self) -> FedState:
        """The state after the round on this process's own device, with the states of all clients.

        Raises ValueError where the device has gone on from it.
        """
        whole = self.whole
        if whole is None:
            why = "it lies within a call of several rounds, or no watcher said that it reads the state"
            raise ValueError(f"the state after round {self.number} never leaves the device: {why}")
        return local(whole, self.mesh)


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
    per_call: int = 1,
    asks: Callable[[int], bool] = lambda number: True,
) -> Iterator[Round]:
    """Every round from where `state` stands up to round `until`, as it is finished.

    plan: the stages. state: whole, as `states.first` or a checkpoint gives it. feed: the data of round r, from 0; that
    of the next call is laid out while a call computes. keys: of the first states, and of the rounds. per_call: rounds
    that the device runs in one call; calls end at its multiples, and rounds before the first and after the last of
    these in a stage are run one by one. asks: whether anybody asks for the state after round `number`, from 1. Where
    nobody does, the metrics of a call are read a call late, while the next one computes.
    """
    init_key, round_key = keys
    start = int(state.round)
    # The stage that the state was made in: a state at a stage's end has still to enter the next one.
    at, steps, later, kept = stages.index(plan, max(0, start - 1)), {}, None, {}

    number_at = lambda r: _in_one_call(plan, r, until, per_call)
    r, each = start, [feed(start + i) for i in range(number_at(start))]
    data, unread, since = states.placed(several(each)), None, 0.0
    while r < until:
        entered = (here := stages.index(plan, r)) != at
        if entered:
            state, at, steps = states.enter(state, plan[here].method, init_key), here, {}
        if not steps:
            state, kept = states.load(state, data), _kept(plan[at], state, data, mesh)
        full = stages.joined(data, kept)
        if len(each) not in steps:
            begun, ends = (None, None) if steps else (later, _end(plan, at))
            steps[len(each)] = compiler.now(plan[at], Inputs(state, full, round_key), len(each), begun)
            if ends is not None and ends < until:
                inputs = Inputs(state, states.placed(each[0]), round_key)
                later = compiler.ahead(plan[stages.index(plan, ends)], inputs, number_at(ends))
        begun = time.perf_counter()
        state, *told = steps[len(each)](state, full, round_key)
        call = _Call(each, r, told, begun, plan[at], at + 1, entered or r == start)
        done, r = data, r + len(each)
        # While these rounds compute:
        each = [feed(r + i) for i in range(number_at(r))] if r < until else []
        coming = states.placed(several(each)) if each else None
        fetched = None if coming is None else states.prefetch(coming)
        if unread is not None:
            since = yield from _read(unread, None, until, mesh, since)
        state = states.exchange(state, done, coming, fetched)
        goes_on = r < until and stages.index(plan, r) == at and len(each) in steps and not asks(r)
        unread = call if goes_on else None
        if unread is None:
            gather = functools.cache(functools.partial(states.whole, state))
            since = yield from _read(call, gather, until, mesh, since)
        data = coming if coming is not None else data


class _Call(NamedTuple):
    """What the device was given in one call."""

    each: Sequence[RoundData]  # a round each
    start: int  # rounds behind the run when it begins
    told: Any  # the metrics of every round, and whether its state is finite; on the device
    begun: float
    stage: Stage
    stage_number: int
    first_of_stage: bool  # of its first round


def _read(
    call: _Call, gather: Callable[[], FedState] | None, until: int, mesh: Mesh | None, since: float
) -> Generator[Round, None, float]:
    """Every round of a call, when the device has done them; returns the time of that.

    gather: gives the state after the call, if there is one. since: the time when the call before was done.
    """
    told, number = jax.device_get(call.told), len(call.each)
    now = time.perf_counter()
    seconds = (now - max(since, call.begun)) / number
    for i, one in enumerate(call.each):
        metrics, finite = told if number == 1 else jax.tree.map(lambda x, i=i: x[i], told)
        behind, first = call.start + i + 1, call.first_of_stage and i == 0
        about = (behind, behind == until, metrics, seconds, call.stage, call.stage_number, first)
        yield Round(*about, one, gather if i + 1 == number else None, mesh, bool(finite))
    return now


def _kept(stage: Stage, state: FedState, data: RoundData, mesh: Mesh | None) -> Mapping[str, Arrays]:
    """What the stage's clients keep of their examples, on every device."""
    if stage.cache is None:
        return {}
    everywhere = None if mesh is None else NamedSharding(mesh, WHOLE)
    return jax.jit(functools.partial(stages.kept, stage), out_shardings=everywhere)(state.server, data)


def _in_one_call(plan: Sequence[Stage], r: int, until: int, per_call: int) -> int:
    """How many rounds the call has that begins with round r, from 0."""
    end = min(until, _end(plan, stages.index(plan, r)))
    return per_call if r % per_call == 0 and r + per_call <= end else 1


def _end(plan: Sequence[Stage], at: int) -> int:
    """The rounds behind a run when stage number `at` ends."""
    return sum(stage.rounds for stage in plan[: at + 1])


def participants(data: RoundData) -> dict[str, dict[str, Any]]:
    """What differs between rounds of the same arrays, by cohort: who takes part, and with which rows."""
    fields = ("index", "weight", "rows", "count", "work")
    found = {}
    for name, taken in data.cohorts.items():
        # Where states are exchanged between devices, their places differ too.
        differ = fields + ("place",) if taken.split else fields
        found[name] = {field: getattr(taken, field) for field in differ if getattr(taken, field) is not None}
    return found


def with_participants(data: RoundData, those: Mapping[str, Mapping[str, Any]]) -> RoundData:
    """The data with other participants."""
    return data._replace(cohorts={k: dataclasses.replace(taken, **those[k]) for k, taken in data.cohorts.items()})


def several(each: Sequence[RoundData]) -> RoundData:
    """Rounds of the same arrays as one, whose participants have leaves [n, ...]; a single round stays as it is."""
    if len(each) == 1:
        return each[0]
    stacked = jax.tree.map(lambda *x: np.stack([np.asarray(one) for one in x]), *map(participants, each))
    return with_participants(each[0], stacked)


def with_finite(
    method: Method,
) -> Callable[[FedState, RoundData, Key], tuple[FedState, Mapping[str, Metrics], jax.Array]]:
    """The method's round, which also says whether the server's new state is finite."""

    def round(state: FedState, data: RoundData, key: Key) -> tuple[FedState, Mapping[str, Metrics], jax.Array]:
        new, metrics = method.round(state, data, key)
        return new, metrics, trees.all_finite(new.server)

    return round


def scan_rounds(round: Callable, state: FedState, data: RoundData, key: Key) -> tuple[FedState, Any, jax.Array]:
    """`round(state, data, key)` of the rounds that `several` made one of: the last state, and what each tells."""

    def one(state: FedState, those: Any) -> tuple[FedState, Any]:
        new, *told = round(state, with_participants(data, those), key)
        return new, told

    new, told = jax.lax.scan(one, state, participants(data))
    return new, *told
