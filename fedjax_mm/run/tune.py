"""`chunk="auto"`: timing each cohort's map over clients on the real round, and keeping the fastest that fits."""

import dataclasses
import math
import os
import pathlib
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from fedjax_mm.federate import Method, federate
from fedjax_mm.run.json_files import Folder
from fedjax_mm.run.records import RunDirectory
from fedjax_mm.types import FedState, OverClients, RoundData


def tune_chunks(
    method: Method, state: FedState, data: RoundData, key: jax.Array, mesh: Mesh | None = None, repeats: int = 3
) -> dict[str, dict[str, float]]:
    """Seconds per round of each cohort at three chunk sizes at most: {cohort: {chunk: seconds}}, on the real data.

    Each cohort is timed alone (its own download, update and reduction): one client at a time, all at once, and between
    them about the root of their number. A chunk for which the device has no memory, by its compiler, beside what the
    cohorts before it have sent, is left out; larger ones are then not tried.
    """
    devices = mesh.size if mesh is not None else 1
    seconds, sent = {}, 0.0
    for name, cohort in method.cohorts.items():
        only = lambda server, uploads, public, key: (server, uploads)
        keep = method.server._replace(update=only, begin=None)
        places = -(-data.cohorts[name].index.shape[0] // devices)
        seconds[name], of_cohort = {}, 0.0
        alone = dataclasses.replace(state, clients={name: state.clients[name]})
        its_own = data._replace(cohorts={name: data.cohorts[name]})
        for chunk in sorted({1, 2 ** round(math.log2(places) / 2), places}):
            round_of = federate(keep, {name: cohort}, upload=method.upload, over=OverClients(chunk, mesh)).round
            try:
                compiled = jax.jit(round_of, donate_argnums=0).lower(alone, its_own, key).compile()
                took = _timed(compiled, alone, its_own, key, repeats, sent)
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                took = None
            if took is None:
                break
            seconds[name][str(chunk)], of_cohort = took, sent_bytes(compiled)
        sent += of_cohort
    return seconds


def _timed(
    compiled: jax.stages.Compiled, state: FedState, data: RoundData, key: jax.Array, repeats: int, sent: float
) -> float | None:
    """The median seconds of a round, which the state passes through as it does in a run; None where it does not fit.

    sent: bytes of uploads that the device holds besides.
    """
    state = jax.tree.map(jnp.copy, state)  # the round is given it
    if more_bytes(compiled) + sent > free_bytes():
        return None
    times = []
    for _ in range(repeats + 1):
        begun = time.perf_counter()
        state, _ = jax.block_until_ready(compiled(state, data, key))
        times.append(time.perf_counter() - begun)
    return float(np.median(times[1:]))


def chosen_chunks(
    method: Method,
    state: FedState,
    data: RoundData,
    key: jax.Array,
    mesh: Mesh | None,
    files: RunDirectory | Folder | None,
    log: Callable[[str], None],
) -> dict[str, int]:
    """The best chunk of every cohort: what `files` remembers in chunk.json, else measured now and kept there."""
    seconds = Folder(files.path).read_or_rebuild("chunk.json", log) if files else {}
    if not _is_measured(seconds, method.cohorts):
        seconds = tune_chunks(method, state, data, key, mesh)
        if files:
            files.write("chunk.json", seconds)
    # Where nothing could be measured, not even one client at a time fits; compiling it says what is missing.
    best = [int(min(seconds[name], key=lambda chunk: seconds[name][chunk], default=1)) for name in method.cohorts]
    if jax.process_count() > 1:  # all hosts must compile the same program
        best = [int(b) for b in multihost_utils.broadcast_one_to_all(np.array(best))]
    chosen = dict(zip(method.cohorts, best, strict=True))
    for name, chunk in chosen.items():
        times = ", ".join(f"{c}: {1000 * s:.1f}" for c, s in seconds[name].items())
        log(f"chunk of {name} is {chunk} (ms per round at each chunk: {times})")
    return chosen


def _is_measured(seconds: Mapping[str, Any], cohorts: Iterable[str]) -> bool:
    """Whether what chunk.json holds says a time for some chunk of every cohort."""
    times = [seconds.get(name) for name in cohorts]
    return all(
        isinstance(of, dict)
        and of
        and all(c.isdigit() and int(c) > 0 and type(s) in (int, float) for c, s in of.items())
        for of in times
    )


def more_bytes(compiled: jax.stages.Compiled) -> float:
    """What a program needs on a device besides its arguments, by its compiler; 0 where that does not say."""
    memory = compiled.memory_analysis()
    return 0.0 if memory is None else memory.temp_size_in_bytes + sent_bytes(compiled)


def sent_bytes(compiled: jax.stages.Compiled) -> float:
    """What a cohort's round leaves on a device beside the states: its uploads. 0 where the compiler does not say."""
    memory = compiled.memory_analysis()
    return 0.0 if memory is None else memory.output_size_in_bytes - memory.alias_size_in_bytes


def free_bytes() -> float:
    """The memory of the first device that nothing holds."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    try:  # with what the system keeps of files and gives back when asked
        lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
        available = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 0.8 * available
