"""How the cost of a round grows with the population, wherever clients' states are kept.

FedAvg of a small classifier whose head (2,010 floats) is personal: a state every client keeps from round to round. The
clients' examples are drawn from one pool, so that of the data nothing grows but the row numbers. Rounds are those of
`run.train`, without files and checkpoints; each run has a process of its own, because memory is measured at its peak.
"""

import dataclasses
import pathlib
import tempfile
import time
import zlib
from typing import Literal

import jax
import numpy as np

from benchmarks.timing import in_own_process, peak_rss_mb, trained
from fedjax_mm import trees
from fedjax_mm.data import FederatedData
from fedjax_mm.federate import Method
from fedjax_mm.methods import fedavg
from fedjax_mm.models import heads, mlp

Place = Literal["device", "host", "disk"]


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of the measurement."""

    populations: tuple[int, ...] = (10, 100, 1000, 10_000, 100_000)
    """Numbers of clients."""
    client_states: tuple[Place, ...] = ("device", "host", "disk")
    """Places where the states of clients are kept."""
    per_round: int = 10
    """Clients that take part in a round."""
    pool: int = 6000
    """Examples that all clients draw theirs from."""
    examples: int = 60
    """Examples of each client."""
    features: int = 784
    """Numbers of an example."""
    width: int = 200
    """Units of the encoder, and inputs of a client's head."""
    batch_size: int = 20
    """Examples in a batch."""
    rounds: int = 50
    """Rounds that are timed, after one that is not; their median is reported."""
    folder: str = "runs/throughput"
    """Folder of the states on disk, for as long as a run takes."""
    seed: int = 0
    """Seed of the data, the weights and the participants."""


def population(settings: Settings) -> list[dict]:
    """A row for each population and place of the states, each from a process of its own.

    Raises ArithmeticError where two places give other weights.
    """
    pathlib.Path(settings.folder).mkdir(parents=True, exist_ok=True)
    rows = []
    for clients in settings.populations:
        for place in settings.client_states:
            one = dataclasses.replace(settings, populations=(clients,), client_states=(place,))
            rows += in_own_process(measured, one, devices=1)
        if len({row["checksum"] for row in rows if row["clients"] == clients}) > 1:
            raise ArithmeticError(f"{clients} clients do not end with the same weights in all of {rows}")
    return rows


def measured(settings: Settings) -> list[dict]:
    """The row of one population and one place: what a round costs, and what this process held."""
    (clients,), (place,) = settings.populations, settings.client_states
    data, method = workload(settings, clients)
    live = []
    look = lambda: live.append(sum(x.nbytes for x in jax.live_arrays()))
    with tempfile.TemporaryDirectory(dir=settings.folder) as folder:
        begun = time.perf_counter()
        given = {"per_round": settings.per_round, "seed": settings.seed}
        where = folder if place == "disk" else place
        state, (cpu, wall) = trained(method, data, settings.rounds, look, client_state=where, **given)
        whole = time.perf_counter() - begun
    row = {"clients": clients, "client states": place, "states MB": trees.size_bytes(state.clients) / 1e6}
    row |= {"CPU ms": cpu, "ms": wall, "device MB": max(live) / 1e6, "peak RSS MB": peak_rss_mb(), "whole run s": whole}
    ends = jax.tree.leaves(jax.device_get(state.server["params"]))
    return [{**row, "checksum": zlib.crc32(b"".join(x.tobytes() for x in ends))}]


def workload(settings: Settings, clients: int) -> tuple[FederatedData, Method]:
    """FedAvg of an encoder, the head personal, and rows of the pool for each client."""
    rng = np.random.default_rng(settings.seed)
    pixels = rng.integers(0, 256, (settings.pool, settings.features), np.uint8)
    arrays = {"x": pixels, "label": rng.integers(0, 10, settings.pool).astype(np.int32)}
    data = FederatedData.from_arrays(arrays, list(rng.integers(0, settings.pool, (clients, settings.examples))))
    config = fedavg.FedAvgConfig(batch_size=settings.batch_size, shared=("x",))
    encoder = mlp.encoder((settings.width,), settings.width)
    return data, fedavg.build(config, data, {"x": encoder}, heads.linear(10))
