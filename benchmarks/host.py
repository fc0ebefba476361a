"""The host's share of a round: rounds of `run.train`, with a directory and without, beside the same rounds alone.

Alone they are scanned in one program, so that the host gives nothing but their participants. The clients are those of
engine.py. What the host does while the device computes costs a run nothing, so that the share is what it waits for.
"""

import contextlib
import dataclasses
import tempfile
import time
from collections.abc import Mapping

import jax
import numpy as np

from benchmarks import engine
from benchmarks.timing import Timed, median, start_of, timings
from fedjax_mm import run
from fedjax_mm.data import FederatedData
from fedjax_mm.federate import Method


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of the measurement."""

    networks: tuple[tuple[int, ...], ...] = ((), (200, 200))
    """Hidden layers of the classifiers; without any a round is next to nothing."""
    calls: tuple[int, ...] = (1, 10)
    """Rounds in one call of the device (`rounds_per_call`)."""
    chunk: int = 1
    """Clients vmapped at a time."""
    rounds: int = 200
    """Rounds that are timed, a multiple of all of `calls`; those of one call before them are not."""
    repetitions: int = 5
    """Runs of each way, in turn; reported are medians."""


def host(settings: Settings) -> list[dict]:
    """A row for each network, number of rounds in a call, and directory or none."""
    rows = []
    for widths in settings.networks:
        of = engine.Settings(widths=widths, rounds=settings.rounds)
        data, method = engine.workload(of)
        alone = median(timings({"alone": _alone(settings, of, data, method)}, settings.repetitions)["alone"])
        ways, times = [(number, kept) for number in settings.calls for kept in (False, True)], {}
        for repetition in range(settings.repetitions):
            for way in ways[:: 1 if repetition % 2 else -1]:
                times.setdefault(way, []).append(_trained(settings, of, data, method, *way))
        for number, kept in ways:
            cpu, wall = median(np.array(times[number, kept]))
            row = {"network": "-".join(map(str, (784, *widths, 10))), "rounds in a call": number, "directory": kept}
            row |= {"CPU ms": cpu, "ms": wall, "alone CPU ms": alone[0], "alone ms": alone[1]}
            rows.append(row | {"host ms": wall - alone[1]})
    return rows


def _alone(settings: Settings, of: engine.Settings, data: FederatedData, method: Method) -> Timed:
    """All rounds in one program."""
    rounds = engine.chosen(data, of)
    many = engine.scanned(method, settings.chunk, rounds, jax.random.key(of.seed))
    arrays = data.cohorts[engine.COHORT].arrays
    return Timed(lambda state, arrays: many(state, arrays)[0], start_of(method, of.seed), [arrays], len(rounds))


def _trained(
    settings: Settings, of: engine.Settings, data: FederatedData, method: Method, number: int, kept: bool
) -> np.ndarray:
    """[2] CPU and elapsed milliseconds of a round of `run.train`, `number` of them in a call."""
    clock, total = Clock(), settings.rounds + number
    given = {"rounds": total, "per_round": of.per_round, "rounds_per_call": number, "chunk": settings.chunk}
    with tempfile.TemporaryDirectory() if kept else contextlib.nullcontext() as folder:
        given |= {"directory": folder, "checkpoint_every": total if kept else None}
        run.train(method, data, watch=[clock], progress=False, log=lambda line: None, **given)
    return 1e3 * (np.array(clock.at[total]) - clock.at[number]) / settings.rounds


class Clock:
    """A watcher that notes the CPU time and the time at which it is told of each round."""

    def __init__(self) -> None:
        self.at: dict[int, tuple[float, float]] = {}

    def reads_state(self, number: int) -> bool:
        """Never."""
        return False

    def __call__(self, done: run.Round, row: Mapping[str, float]) -> None:
        self.at[done.number] = time.process_time(), time.perf_counter()
