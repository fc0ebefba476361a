"""What watches a run: scores, the log, costs, checkpoints, and the user's own.

A watcher is a function `watch(done, row)` of a finished round and the row of the log so far; what it returns is added
to the row. It may end the run by raising `StopRun`: the round is still logged and saved. One that has a method
`reads_state(number)` says whether it may read the state after a round; one without may after every round. Behind a
round that nobody reads, the device goes on while the round is logged.
"""

import contextlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from fedjax_mm import costs, stages
from fedjax_mm.data import FederatedData
from fedjax_mm.run.records import RunDirectory
from fedjax_mm.run.rounds import Round
from fedjax_mm.stages import Stage
from fedjax_mm.streamed import seconds_waited, streams
from fedjax_mm.types import FedState, RoundData

Row = Mapping[str, float]
Watcher = Callable[[Round, Row], Row | None]
Score = Callable[[FedState], Mapping[str, float]]


class StopRun(Exception):
    """Raised by a watcher to end the run after this round, which is logged and saved; its text says why."""


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
