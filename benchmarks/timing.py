"""What every measurement of speed needs: variants timed in turn, memory, a process of its own.

Variants are timed in turn within one process, every other time in reverse order (A B B A), so that a busy machine slows
all of them alike; CPU time is the whole process's, all threads together. A round is timed as `run.train` runs it,
without evaluation and files.
"""

import json
import os
import pickle
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_mm import clients, run
from fedjax_mm.data import FederatedData
from fedjax_mm.federate import Method
from fedjax_mm.types import FedState, OverClients, PyTree, RoundData


class Timed(NamedTuple):
    """What is timed: `state = step(state, input)` over all inputs, always from a copy of the same start."""

    step: Callable[[PyTree, Any], PyTree]
    start: PyTree
    inputs: Sequence[Any] | np.ndarray
    rounds: int  # in one timing


def after(timed: Timed) -> PyTree:
    """The state after all inputs."""
    return _run(timed, jax.tree.map(jnp.copy, timed.start))


def timings(variants: Mapping[Any, Timed], repetitions: int) -> dict[Any, np.ndarray]:
    """[repetitions, 2] milliseconds per round of each variant, CPU and wall, after one run that is not counted."""
    taken = {name: [] for name in variants}
    for repetition in range(repetitions + 1):
        for name in list(variants)[:: 1 if repetition % 2 else -1]:
            start = jax.block_until_ready(jax.tree.map(jnp.copy, variants[name].start))
            cpu, wall = time.process_time(), time.perf_counter()
            _run(variants[name], start)
            taken[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    return {name: 1e3 * np.array(times[1:]) / variants[name].rounds for name, times in taken.items()}


def _run(timed: Timed, state: PyTree) -> PyTree:
    for x in timed.inputs:
        state = timed.step(state, x)
    return jax.block_until_ready(state)


def median(times: np.ndarray) -> list[float]:
    return np.median(times, axis=0).tolist()


def max_difference(a: PyTree, b: PyTree) -> float:
    return max(jax.tree.leaves(jax.tree.map(lambda x, y: float(np.abs(np.asarray(x) - np.asarray(y)).max()), a, b)))


def peak_rss_mb() -> float:
    """The most memory this process has held so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def replicated(tree: PyTree, mesh: jax.sharding.Mesh) -> PyTree:
    return jax.device_put(tree, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))


def start_of(method: Method, seed: int) -> FedState:
    return jax.jit(method.init)(jax.random.key(seed + 1))


def rounds_of(data: FederatedData, per_round: int | Mapping[str, int], rounds: int, seed: int) -> list[RoundData]:
    return [data.round(clients.choose(data.sizes, per_round, r, seed)) for r in range(rounds)]


def ours(method: Method, over: OverClients, state: FedState, rounds: Sequence[RoundData], key) -> tuple[Timed, dict]:
    """(the engine's round as run.train runs it, what compiling took and what it holds besides its arguments)."""
    begun = time.perf_counter()
    step = jax.jit(method._replace(over=over).round, donate_argnums=0).lower(state, rounds[0], key).compile()
    cost = {"compile s": time.perf_counter() - begun}
    memory = step.memory_analysis()
    assert memory, "the backend does not say what a program holds"
    cost["temporary MB"] = memory.temp_size_in_bytes / 1e6
    return Timed(lambda state, taken: step(state, taken, key)[0], state, rounds, len(rounds)), cost


def trained(
    method: Method, data: FederatedData, rounds: int, look: Callable[[], None] = lambda: None, **given: Any
) -> tuple[FedState, list[float]]:
    """(state after run.train, median CPU and wall ms of a round after the first); look() after each is not timed."""
    times = []

    def evaluate(state: FedState, test) -> dict:
        begun = time.process_time(), time.perf_counter()
        look()
        times.append((begun, (time.process_time(), time.perf_counter())))
        return {}

    seen = {"rounds": rounds + 1, "test": {}, "evaluate_every": 1, "log": lambda line: None}
    state = run.train(method._replace(evaluate=evaluate), data, **seen, **given)
    between = [np.subtract(now, before) for (_, before), (now, _) in zip(times, times[1:], strict=False)]
    return state, (1e3 * np.median(between, axis=0)).tolist()


def in_own_process(section: Callable[[Any], list[dict]], settings: Any, devices: int) -> list[dict]:
    """section(settings), its rows, from a process with that many forced host devices."""
    environment = {**os.environ, "XLA_FLAGS": with_devices(devices)}
    given = {"env": environment, "check": True, "stdout": subprocess.PIPE, "text": True}
    return json.loads(subprocess.run(command(section, settings), **given).stdout.splitlines()[-1])


def with_devices(number: int) -> str:
    """XLA_FLAGS that force so many host devices."""
    return f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={number}"


def command(function: Callable, *args: Any) -> list[str]:
    """A command line that prints function(*args) as JSON; the function is one of a module, args can be pickled."""
    name, given = function.__name__, pickle.dumps(args).hex()
    called = f"{name}(*pickle.loads(bytes.fromhex({given!r})))"
    code = f"import json, pickle; from {function.__module__} import {name}; print(json.dumps({called}))"
    return [sys.executable, "-c", code]
