"""Rounds of `run.train` over the same number of devices, of one process and of several that talk over loopback."""

import dataclasses
import json
import os
import pathlib
import socket
import subprocess
import tempfile
from typing import Any

import jax
import numpy as np

from benchmarks import engine
from benchmarks.timing import command, trained, with_devices


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of the measurement."""

    processes: tuple[int, ...] = (1, 2)
    """Numbers of processes."""
    devices: int = 2
    """Forced host devices in all, which are spread evenly over the processes."""
    widths: tuple[tuple[int, ...], ...] = ((200, 200), (2000, 2000))
    """Hidden layers of the classifiers: what devices exchange in a round is as large as one."""
    rounds: int = 50
    """Rounds that are timed, after one that is not; their median is reported."""
    repetitions: int = 3
    """Runs of each number of processes, in turn."""
    patience: float = 600.0
    """Seconds a run may take."""
    seed: int = 0
    """Seed of the data, the weights and the participants."""


def processes(settings: Settings) -> list[dict]:
    """A row per classifier and number of processes: wall time a round of the slowest, CPU time of all together.

    difference: the largest between weights and those of the first number of processes.
    """
    rows = []
    for widths in settings.widths:
        times, ends = {n: [] for n in settings.processes}, {}
        for turn in range(settings.repetitions):
            for number in settings.processes[:: -1 if turn % 2 else 1]:
                taken, ends[number] = launched(settings, widths, number)
                times[number].append(taken)
        for number in settings.processes:
            cpu, wall = np.median(times[number], axis=0).tolist()
            apart = max(
                float(np.abs(a - b).max()) for a, b in zip(ends[number], ends[settings.processes[0]], strict=True)
            )
            row = {"widths": "-".join(map(str, widths)), "MB": sum(x.nbytes for x in ends[number]) / 1e6}
            rows.append({**row, "processes": number, "CPU ms": cpu, "ms": wall, "difference": apart})
    return rows


def launched(settings: Settings, widths: tuple[int, ...], number: int) -> tuple[tuple[float, float], list[np.ndarray]]:
    """((CPU ms a round of all processes, wall ms of the slowest), the weights at the end)."""
    if settings.devices % number:
        raise ValueError(f"{settings.devices} devices cannot be spread evenly over {number} processes")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": with_devices(settings.devices // number)}
    with tempfile.TemporaryDirectory() as folder:
        commands = [command(member, settings, widths, number, i, port, folder) for i in range(number)]
        members = [subprocess.Popen(one, env=environment, stdout=subprocess.PIPE, text=True) for one in commands]
        try:
            said = [one.communicate(timeout=settings.patience)[0] for one in members]
        finally:
            for one in members:  # one that waits for another that died
                one.kill()
        if any(one.returncode for one in members):
            raise RuntimeError(f"of {number} processes some failed: exits {[one.returncode for one in members]}")
        times = [json.loads(one.splitlines()[-1]) for one in said]
        with np.load(pathlib.Path(folder) / "end.npz") as arrays:
            end = [arrays[name] for name in arrays.files]
    return (sum(cpu for cpu, _ in times), max(wall for _, wall in times)), end


def member(
    settings: Settings, widths: tuple[int, ...], number: int, index: int, port: int, folder: str
) -> tuple[float, float]:
    """(CPU ms, wall ms) a round of this process, the medians; process 0 leaves the weights in the folder."""
    if number > 1:
        jax.distributed.initialize(f"127.0.0.1:{port}", number, index)
    workload = engine.Settings(widths=widths, seed=settings.seed)
    data, method = engine.workload(workload)
    given: dict[str, Any] = {"per_round": workload.per_round, "seed": settings.seed, "devices": settings.devices}
    state, (cpu, wall) = trained(method, data, settings.rounds, **given)
    if index == 0:
        leaves = [np.asarray(x.addressable_data(0)) for x in jax.tree.leaves(state.server["params"])]
        np.savez(pathlib.Path(folder) / "end.npz", *leaves)
    return cpu, wall
