"""Nine settings as one sweep, compared with nine calls of `run.train`: CPU seconds, compiling and rounds apart.

FedAvg of a small network, scored once at the end. Every time is that of a process of its own, after its imports and its
data; what a way takes once, besides its rounds, is what runs of one round take.
"""

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.timing import in_own_process
from fedjax_mm import run
from fedjax_mm.data import FederatedData
from fedjax_mm.federate import Method
from fedjax_mm.methods import fedavg
from fedjax_mm.models import heads, mlp

GRID = {"client_lr": [0.03, 0.1, 0.3], "prox": [0.0, 0.1, 1.0]}
QUIET: dict[str, Any] = {"log": lambda line: None}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of the comparison."""

    seeds: tuple[int, ...] = (1, 8)
    """Numbers of seeds of each of the nine settings. Single runs are made for the first number alone."""
    rounds: int = 30
    """Rounds of a run."""
    per_round: int = 10
    """Clients of 100 that take part in a round."""
    examples: int = 60
    """Examples of each client."""
    features: int = 64
    """Numbers of an example."""
    width: int = 32
    """Units of the encoder's two layers."""
    pairs: int = 3
    """Times that each way is measured, in turn; the median is reported."""
    way: str = ""
    """Way that a process of its own measures."""


def sweep(settings: Settings) -> list[dict[str, Any]]:
    """A row for each way: CPU seconds of the whole, of what is not rounds, and of rounds."""
    ways = [("run.train", settings.seeds[:1])] + [("run.sweep", (number,)) for number in settings.seeds]
    taken: dict[Any, list[tuple[float, float]]] = {way: [] for way in ways}
    for pair in range(settings.pairs):
        for way, seeds in ways[:: -1 if pair % 2 else 1]:
            one = dataclasses.replace(settings, way=way, seeds=seeds)
            (whole,) = in_own_process(measured, one, devices=1)
            (short,) = in_own_process(measured, dataclasses.replace(one, rounds=1), devices=1)
            taken[way, seeds].append((whole["CPU s"], short["CPU s"]))
    rows = []
    for (way, (seeds,)), times in taken.items():
        whole, short = np.median(times, axis=0)
        rows.append({"way": way, "settings": 9, "seeds": seeds, "rounds": settings.rounds, "CPU s": float(whole)})
        rows[-1] |= {"once": float(short), "the other rounds": float(whole - short)}
    return rows


def measured(settings: Settings) -> list[dict[str, Any]]:
    """The row of one way: CPU seconds of all runs, and the mean of their scores."""
    data, test = workload(settings)
    encoders, head = {"x": mlp.encoder((settings.width,), settings.width)}, heads.linear(10)

    def build(client_lr: float, prox: float) -> Method:
        config = fedavg.FedAvgConfig(client_lr=client_lr, prox=prox, batch_size=20)
        return fedavg.build(config, data, encoders, head)

    begun = time.process_time()
    (seeds,) = settings.seeds
    given: dict[str, Any] = {"rounds": settings.rounds, "per_round": settings.per_round, "test": test}
    if settings.way == "run.sweep":
        found = run.sweep(build, data, grid=GRID, seeds=seeds, **given, **QUIET)
        scores: Sequence[float] = found.scores["test/x/accuracy"].ravel().tolist()
    else:
        scores = []
        keep = lambda done, row: scores.append(row["test/x/accuracy"]) if done.last else None
        for rate in GRID["client_lr"]:
            for prox in GRID["prox"]:
                for seed in range(seeds):
                    one: dict[str, Any] = {"seed": seed, "watch": [keep], "progress": False}
                    run.train(build(rate, prox), data, **given, **one, **QUIET)
    return [{"CPU s": time.process_time() - begun, "accuracy": float(np.mean(scores))}]


def workload(settings: Settings) -> tuple[FederatedData, dict[str, np.ndarray]]:
    """(100 clients, a test set) of ten noisy classes."""
    rng, total = np.random.default_rng(0), 100 * settings.examples
    label = rng.integers(0, 10, total + 200).astype(np.int32)
    x = rng.normal(size=(total + 200, settings.features)) + 2 * np.eye(settings.features)[label]
    arrays = {"x": x.astype(np.float32), "label": label}
    owned = np.split(np.arange(total), 100)
    first = {name: array[:total] for name, array in arrays.items()}
    return FederatedData.from_arrays(first, owned), {name: array[total:] for name, array in arrays.items()}
