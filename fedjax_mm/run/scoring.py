"""The scores of a run: which are due after a round, and what they add to its row of the log."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fedjax_mm import stages
from fedjax_mm.checks import say
from fedjax_mm.data import FederatedData
from fedjax_mm.federate import Evaluation, Method
from fedjax_mm.run.client_scores import own_scores, summary
from fedjax_mm.run.job import Job
from fedjax_mm.run.records import RunDirectory
from fedjax_mm.run.rounds import Round
from fedjax_mm.run.watch import Row, Score, Waited, Watcher, is_due, keep_costs
from fedjax_mm.stages import Stage
from fedjax_mm.types import Arrays, FedState, RoundData


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


def scoring(job: Job, test: Arrays | None, evaluate: Mapping[str, Score | Every], every: int) -> list[Watcher]:
    """The watchers that the user's own come after, and find what they add in the row."""
    scored = Scores(evaluate, test, every, job.log), OwnScores(job.data, every, job.files, job.log)
    return [Waited(job.data, job.log), *scored]


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


def unchecked(method: Method) -> Callable[[FedState, Arrays], Mapping[str, float]]:
    """How a method scores arrays that were checked before."""
    return method.evaluate.scores if isinstance(method.evaluate, Evaluation) else method.evaluate


def _or_none(values: np.ndarray) -> list[float | None]:
    """The numbers, None in the place of what is not finite, which JSON does not have."""
    return [value if math.isfinite(value) else None for value in values.tolist()]


def _under(name: str, values: Mapping[str, float]) -> dict[str, float]:
    return {f"{name}/{key}": value for key, value in values.items()}
