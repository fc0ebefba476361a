"""What watches a run: scores, the log, costs, checkpoints, and the user's own.

A watcher is a function `watch(done, row)` of a finished round and the row of the log so far; what it returns is added
to the row. It may end the run by raising `StopRun`: the round is still logged and saved. One that has a method
`reads_state(number)` says whether it may read the state after a round; one without may after every round. Behind a
round that nobody reads, the device goes on while the round is logged.
"""

import contextlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedjax_mm import costs, stages
from fedjax_mm.checks import say
from fedjax_mm.data import FederatedData
from fedjax_mm.federate import Evaluation, Method
from fedjax_mm.run.client_scores import own_scores, summary
from fedjax_mm.run.job import Job
from fedjax_mm.run.records import RunDirectory
from fedjax_mm.run.rounds import Round
from fedjax_mm.stages import Stage
from fedjax_mm.streamed import seconds_waited, streams
from fedjax_mm.types import Arrays, FedState, RoundData

Row = Mapping[str, float]
Watcher = Callable[[Round, Row], Row | None]
Score = Callable[[FedState], Mapping[str, float]]


class StopRun(Exception):
    """Raised by a watcher to end the run after this round, which is logged and saved; its text says why."""


class Every(NamedTuple):
    """A score that is taken every `rounds` rounds, and after the last one."""

    rounds: int
    score: Score


def scores(method: Method, arrays: Arrays) -> Score:
    """The method's own scores on `arrays`, for `run.train(evaluate={"valid": run.scores(method, valid)})`.

    Raises ValueError where the arrays do not fit the method.
    """
    if not isinstance(method, Method):
        raise ValueError(f"method is {say(method)}; give a Method, as `build` makes it")
    score = checked(method, arrays)
    return lambda state: score(state, arrays)


def checked(method: Method, arrays: Arrays) -> Callable[[FedState, Arrays], Mapping[str, float]]:
    """How a method scores these arrays, which are checked here once and not again at every evaluation."""
    if isinstance(method.evaluate, Evaluation):
        method.evaluate.check(arrays)
    return unchecked(method)


class Scores:
    """Adds "<name>/<metric>" of every score that is due, and logs them in one line.

    test: arrays for the `evaluate` of the round's own method, under the name "test".
    """

    def __init__(
        self,
        evaluate: Mapping[str, Score | Every],
        test: Arrays | None,
        every: int,
        log: Callable[[str], None],
    ):
        periods = {name: s if isinstance(s, Every) else Every(every, s) for name, s in evaluate.items()}
        self.evaluate, self.test, self.every, self.log = periods, test, every, log

    def reads_state(self, number: int) -> bool:
        """Whether a score is due."""
        periods = [every for every, _ in self.evaluate.values()] + ([] if self.test is None else [self.every])
        return any(number % every == 0 for every in periods)

    def __call__(self, done: Round, row: Row) -> Row:
        scored = {}
        if self.test is not None and is_due(done, self.every):
            # `check_arguments` had the arrays checked.
            scored |= _under("test", unchecked(done.method)(done.state, self.test))
        for name, (every, score) in self.evaluate.items():
            if is_due(done, every):
                scored |= _under(name, score(done.state))
        if scored:
            self.log(f"round {done.number}: " + ", ".join(f"{k} {v:.4f}" for k, v in scored.items()))
        return scored


class OwnScores:
    """Adds how well clients' models do on their own test rows, "own/<cohort>/<metric>", and keeps every client's."""

    def __init__(self, data: FederatedData, every: int, files: RunDirectory | None, log: Callable[[str], None]):
        self.data, self.every, self.files, self.log = data, every, files, log

    def reads_state(self, number: int) -> bool:
        """Whether scores are due."""
        return number % self.every == 0 and any(cohort.test_rows is not None for cohort in self.data.cohorts.values())

    def __call__(self, done: Round, row: Row) -> Row:
        if not is_due(done, self.every):
            return {}
        scored = summary(self.keep(done.number, done.method, done.state))
        if scored:
            self.log(f"round {done.number}: " + ", ".join(f"{k} {v:.4f}" for k, v in scored.items()))
        return scored

    def keep(self, number: int, method: Method, state: FedState) -> Mapping[str, Mapping[str, np.ndarray]]:
        """The scores of every client after so many rounds, which own_scores.json keeps."""
        each = own_scores(method, state, self.data)
        if self.files and each:
            plain = {name: {key: _or_none(values) for key, values in of.items()} for name, of in each.items()}
            self.files.write("own_scores.json", {"round": number, "cohorts": plain})
        return each


class Waited:
    """Adds "seconds_waited": how long the devices waited for rows of arrays that are streamed, since the row before.

    It says once that reading is the limit, where they have waited for more than a tenth of the rounds' time.
    """

    def __init__(self, data: FederatedData, log: Callable[[str], None]):
        self.arrays = data.public, *(cohort.arrays for cohort in data.cohorts.values())
        self.log, self.seconds, self.said = log, 0.0, False
        self.first = self.before = seconds_waited(self.arrays)

    def reads_state(self, number: int) -> bool:
        """Never."""
        return False

    def __call__(self, done: Round, row: Row) -> Row:
        now, self.seconds = seconds_waited(self.arrays), self.seconds + done.seconds
        new, self.before = now - self.before, now
        if done.has_state and not self.said and now - self.first > self.seconds / 10:
            self.said = True
            self.log(
                f"round {done.number}: {now - self.first:.1f} of {self.seconds:.1f} s were waited for rows, so that "
                "reading them is the limit (docs/streaming.md)"
            )
        return {"seconds_waited": round(new, 4)} if streams(self.arrays) else {}


def scoring(job: Job, test: Arrays | None, evaluate: Mapping[str, Score | Every], every: int) -> list[Watcher]:
    """The watchers that the user's own come after, and find what they add in the row."""
    scored = Scores(evaluate, test, every, job.log), OwnScores(job.data, every, job.files, job.log)
    return [Waited(job.data, job.log), *scored]


def say_left_out(row: Row, cohorts: Iterable[str], log: Callable[[str], None]) -> None:
    """Logs the clients that a round left out."""
    for name in cohorts:
        if number := row[f"{name}/left_out"]:
            log(f"round {row['round']}: left out {number:.0f} clients of {name}, update not finite")


def divergence(done: Round, cohorts: Iterable[str]) -> FloatingPointError | None:
    """Why a run must not go on: everybody who took part was left out, or the server's new state is not finite."""
    total = lambda metric: sum(float(done.metrics[name][metric]) for name in cohorts)
    cure = "lower the learning rate or look for bad values in the data"
    if total("left_out") and not total("clients"):
        return FloatingPointError(
            f"round {done.number}: the update of every participant ({total('left_out'):.0f}) is not finite; {cure}"
        )
    if not done.finite:
        return FloatingPointError(f"round {done.number}: the server's new state is not finite; {cure}")
    return None


class Files:
    """Writes costs.json as a stage begins, a line of the log for every round, and a checkpoint when one is due."""

    def __init__(self, files: RunDirectory, checkpoint_every: int, plan: Sequence[Stage], data: FederatedData):
        self.files, self.checkpoint_every, self.plan, self.data = files, checkpoint_every, plan, data

    def reads_state(self, number: int) -> bool:
        """Whether a checkpoint is due."""
        return number % self.checkpoint_every == 0

    def __call__(self, done: Round, row: Row) -> None:
        if done.first_of_stage:
            keep_costs(self.files, self.plan, done.stage_number, self.data, done.data, done.whole)
        self.files.append(row)
        if is_due(done, self.checkpoint_every) and (whole := done.whole) is not None:
            self.files.checkpoints.save(whole)


def keep_costs(
    files: RunDirectory,
    plan: Sequence[Stage],
    entered: int,
    data: FederatedData,
    taken: RoundData,
    state: FedState | None = None,
) -> None:
    """Adds to costs.json what is not known there of the first `entered` stages.

    taken: the data of any round. state: of the last one of these stages.
    """
    known = files.read_or_rebuild("costs.json")
    # Of all clients, so that it does not count who took part first.
    mean = {name: float(c.counts[c.counts > 0].mean()) for name, c in data.cohorts.items()}
    for number, stage in enumerate(plan[:entered], 1):
        prefix = f"{stage.name}/" if len(plan) > 1 else ""
        if stage.rounds and any(not isinstance(known.get(f"{prefix}{name}"), dict) for name in stage.method.cohorts):
            full = stages.with_shapes(stage, taken)
            cost = costs.of(stage.method, full, state if number == entered else None, mean)
            files.add("costs.json", {prefix + name: c._asdict() for name, c in cost.items()})


def mend(
    files: RunDirectory | None, plan: Sequence[Stage], data: FederatedData, taken: RoundData, state: FedState
) -> None:
    """Makes anew what is missing or damaged of a finished run's files. taken: the data of any round."""
    if files is None:
        return
    at = stages.index(plan, int(state.round) - 1)
    keep_costs(files, plan, at + 1, data, taken)
    if not files.read_or_rebuild("own_scores.json"):
        OwnScores(data, 1, files, files.log).keep(int(state.round), plan[at].method, state)


def close_with(closing: contextlib.ExitStack, watchers: Sequence[Watcher]) -> Sequence[Watcher]:
    """The watchers, of which those that have a `close` are closed with the run, also where it fails."""
    for watcher in watchers:
        if callable(close := getattr(watcher, "close", None)):
            closing.callback(close)
    return watchers


def reads_state(watcher: Watcher, number: int) -> bool:
    """Whether a watcher may read the state after round `number`: it may, where it does not say.

    >>> reads_state(lambda done, row: None, 3)
    True
    """
    says = getattr(watcher, "reads_state", None)
    return True if says is None else says(number)


def is_due(done: Round, every: int) -> bool:
    """Whether what is done every `every` rounds, and after the last, is done after this one."""
    return done.last or done.number % every == 0


def flat(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """{"cohort": {"loss": 1}} -> {"cohort/loss": 1.0}."""
    row = {}
    for key, value in metrics.items():
        row |= flat(value, f"{prefix}{key}/") if isinstance(value, Mapping) else {f"{prefix}{key}": float(value)}
    return row


def finite(row: Row, log: Callable[[str], None]) -> dict[str, Any]:
    """The row with None for numbers that are not finite; where there are any, "not_finite" says how many."""
    bad = [key for key, value in row.items() if not math.isfinite(value)]
    if not bad:
        return dict(row)
    log(f"round {row['round']}: not finite: {', '.join(bad)}")
    return {**row, **dict.fromkeys(bad), "not_finite": len(bad)}


def unchecked(method: Method) -> Callable[[FedState, Arrays], Mapping[str, float]]:
    """How a method scores arrays that were checked before."""
    return method.evaluate.scores if isinstance(method.evaluate, Evaluation) else method.evaluate


def _or_none(values: np.ndarray) -> list[float | None]:
    """The numbers, None in the place of what is not finite, which JSON does not have."""
    return [value if math.isfinite(value) else None for value in values.tolist()]


def _under(name: str, values: Mapping[str, float]) -> dict[str, float]:
    return {f"{name}/{key}": value for key, value in values.items()}
