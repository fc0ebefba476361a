"""What a sweep does with every run, and what is known of all runs so far."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from fedjax_mm.data import FederatedData
from fedjax_mm.run import mapped
from fedjax_mm.run.grid import Build, Group, Point
from fedjax_mm.run.sweep_files import Sweep
from fedjax_mm.types import Arrays, FedState, RoundData

MOST_IN_A_CALL = 64  # rounds that the device runs in one call


class Job(NamedTuple):
    """What a sweep does with every run."""

    build: Build
    data: FederatedData
    round: Callable[[int, int], RoundData]
    """(seed, r) -> the data of round r, from 0, of the runs of this seed."""
    seeds: tuple[int, ...]
    rounds: int
    every: int
    arrays: Mapping[str, Arrays]
    chunk: int | Mapping[str, int] | None
    at_once: int | Literal["auto"]
    devices: int
    log: Callable[[str], None]

    def feed(self, rounds: range) -> RoundData:
        """The participants of these rounds, of each seed."""
        return mapped.feed(self.round, self.seeds, rounds)

    def rounds_in_a_call(self, group: Group) -> int:
        """As many as there can be with all evaluations and the ends of all stages behind a call."""
        together = math.gcd(self.rounds, self.every, *(stage.rounds for stage in group.plan))
        return next(n for n in range(min(together, MOST_IN_A_CALL), 0, -1) if together % n == 0)


class Done:
    """What is known of all runs so far."""

    def __init__(self, points: Sequence[Point], job: Job):
        self.points, self.seeds, self.cohorts, self.log = points, job.seeds, tuple(job.data.sizes), job.log
        self.rounds = tuple(r for r in range(1, job.rounds + 1) if r % job.every == 0 or r == job.rounds)
        self.scores: dict[str, np.ndarray] = {}
        self.diverged = np.zeros((len(points), len(job.seeds)), int)
        self.states: list[FedState | None] = [None] * len(points)

    def add(self, point: int, seed: int, round: int, row: Mapping[str, float]) -> None:
        """Adds the scores of a run after a round."""
        shape = (*self.diverged.shape, len(self.rounds))
        for name, value in row.items():
            self.scores.setdefault(name, np.full(shape, np.nan))[point, seed, self.rounds.index(round)] = value

    def mark_diverged(self, group: Group, before: int, metrics: Mapping, finite: np.ndarray) -> None:
        """Marks the runs of a group that diverged in the n rounds behind round `before`; leaves [R, n]."""
        of_all = lambda name: sum(metrics[cohort][name] for cohort in self.cohorts)
        lost = ~finite | ((of_all("left_out") > 0) & (of_all("clients") == 0))
        for (point, seed), each in zip(mapped.pairs(group, self.seeds), lost, strict=False):
            if each.any() and not self.diverged[point, seed]:
                self.diverged[point, seed] = round = before + int(each.argmax()) + 1
                about = ", ".join(f"{name} {value}" for name, value in self.points[point].settings.items())
                self.log(f"{about or 'the run'}, seed {self.seeds[seed]}: diverged in round {round}")

    def result(self) -> Sweep:
        """The whole sweep."""
        settings = tuple(point.settings for point in self.points)
        return Sweep(
            settings,
            self.seeds,
            self.rounds,
            self.scores,
            self.diverged,
            tuple(state for state in self.states if state is not None),
        )
