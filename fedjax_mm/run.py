"""The loop over rounds: the one place with jit, clocks, files and printing.

A run's directory holds `config.json` (settings, seed, versions), `split.json` (examples per client and class),
`costs.json`, `chunk.json` (how "auto" mapped clients, and what it measured), `metrics.jsonl` (a line per round)
and `checkpoints/`. Since a round's draws come from the seed and the round's number, the FedState and the round
are all that a continuation needs: killed at any point, a run resumes bit for bit.
"""

import dataclasses
import os
import time
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fedjax_mm import clients, costs
from fedjax_mm.federate import remap
from fedjax_mm.records import RunDirectory
from fedjax_mm.tune import chosen_chunks
from fedjax_mm.types import FedState, Method, OverClients, PyTree


def train(
    method: Method,
    data,
    *,
    rounds: int,
    per_round: int | Mapping[str, int],
    seed: int = 0,
    directory: str | os.PathLike | None = None,
    test: Mapping[str, Any] | None = None,
    evaluate_every: int | None = None,
    checkpoint_every: int | None = None,
    chunk: int | Mapping[str, int] | str = 1,
    devices: int | Mesh | None = None,
    config: Any = None,
    tensorboard: bool = False,
    log: Callable[[str], None] = print,
) -> FedState:
    """The FedState after `rounds` rounds.

    data: a FederatedData. per_round: how many clients take part (see clients.choose).
    directory: where the run is written; if it holds this run already, it goes on from its last checkpoint. None
        keeps nothing.
    test: arrays for `method.evaluate`, used every `evaluate_every` rounds and after the last.
    checkpoint_every: rounds between checkpoints; by default ten in a run. One is always written at the end.
    chunk: clients vmapped at a time (never changes a result), or "auto": timed on the first round's data, the
        fastest that fits the memory is kept. devices: how many to spread clients over, or a mesh; None is one.
    config: a dataclass or mapping of the experiment's settings, kept in config.json and compared on resuming.

    Raises ValueError for settings that do not fit the data or the directory, FloatingPointError when every
    participant of a round diverged, OSError when a file cannot be written (what was saved before stays).
    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    clients.choose(data.sizes, per_round, 0, seed)  # bad settings fail before anything is written
    mesh = devices if isinstance(devices, Mesh) or devices is None else clients.make_mesh(devices)
    data = _placed(data, mesh)
    round_data = lambda r: _replicated(data.round(clients.choose(data.sizes, per_round, r, seed)), mesh)
    init_key, round_key = (jax.random.fold_in(jax.random.key(seed), i) for i in (0, 1))
    state = _replicated(jax.jit(method.init)(init_key), mesh)
    files = None
    if directory is not None:
        owners = {name: zlib.crc32(c.rows.tobytes() + c.offsets.tobytes()) for name, c in data.cohorts.items()}
        settings = {"per_round": per_round, "seed": seed, "sizes": data.sizes, "owners": owners, "config": config}
        files = RunDirectory(directory, settings)
        files.write("split.json", data.split())
        state = files.restore(state, log)
    start = int(state.round)
    if start >= rounds:
        log(f"this run has its {rounds} rounds already")
        files.close()
        return state

    first = round_data(start)
    over = OverClients(chunk if chunk != "auto" else 1, mesh)
    if chunk == "auto":
        over = over._replace(chunk=chosen_chunks(method, state, first, round_key, mesh, files, log))
    if files and start == 0:
        files.write("costs.json", {name: cost._asdict() for name, cost in costs.of(method, first, state).items()})

    begun = time.perf_counter()
    step = jax.jit(remap(method, over).round, donate_argnums=0).lower(state, first, round_key).compile()
    log(f"compiled the round in {time.perf_counter() - begun:.1f} s")
    evaluate_every = evaluate_every or rounds
    checkpoint_every = checkpoint_every or max(1, rounds // 10)
    writer = _tensorboard(files, start) if tensorboard else None
    this_round = first
    for r in range(start, rounds):
        begun = time.perf_counter()
        state, metrics = step(state, this_round, round_key)
        last = r + 1 == rounds
        if not last:  # the next round's rows are laid out while this one computes
            this_round = round_data(r + 1)
        row = {"round": r + 1, **_flat(jax.device_get(metrics))}
        row["seconds"] = round(time.perf_counter() - begun, 4)
        if test is not None and (last or (r + 1) % evaluate_every == 0):
            row |= {f"test/{k}": v for k, v in method.evaluate(_local(state, mesh), test).items()}
            log(f"round {r + 1}: " + ", ".join(f"{k} {v:.4f}" for k, v in row.items() if k.startswith("test/")))
        for name in data.sizes:
            if row[f"{name}/left_out"]:
                log(f"round {r + 1}: left out {row[f'{name}/left_out']:.0f} clients of {name}, update not finite")
        if files:
            files.append(row)
            if last or (r + 1) % checkpoint_every == 0:
                files.save(state)
        if writer:
            for name, value in row.items():
                writer.add_scalar(name, value, r + 1)
        _check_diverged(row, data.sizes, r + 1)
    if files:
        files.close()
    if writer:
        writer.close()
    return state


def _replicated(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """The tree on every device of the mesh, over all processes."""
    if mesh is None:
        return tree
    sharding = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda x: x if getattr(x, "sharding", None) == sharding else _put(x, sharding), tree)


def _put(x, sharding):
    if isinstance(x, jax.Array) and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        data = jax.device_put(np.asarray(jax.random.key_data(x)), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
    return jax.device_put(np.asarray(x), sharding)


def _placed(data, mesh: Mesh | None):
    """Data whose arrays are on the mesh already, so that no round moves them again."""
    if mesh is None:
        return data
    put = lambda arrays: None if arrays is None else _replicated(dict(arrays), mesh)
    cohorts = data.cohorts
    if data.on_device:
        cohorts = {name: dataclasses.replace(c, arrays=put(c.arrays)) for name, c in cohorts.items()}
    return dataclasses.replace(data, cohorts=cohorts, public=put(data.public))


def _local(state: FedState, mesh: Mesh | None) -> FedState:
    """The state on this process's own device, for evaluation."""
    return state if mesh is None else jax.tree.map(lambda x: x.addressable_data(0), state)


def _check_diverged(row: Mapping[str, float], sizes: Iterable[str], round: int) -> None:
    left_out = sum(row[f"{name}/left_out"] for name in sizes)
    if left_out and not sum(row[f"{name}/clients"] for name in sizes):
        raise FloatingPointError(
            f"round {round}: the update of every participant ({left_out:.0f}) is not finite; lower the learning rate "
            "or look for bad values in the data"
        )


def _flat(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    rows = {}
    for key, value in metrics.items():
        if isinstance(value, Mapping):
            rows |= _flat(value, f"{prefix}{key}/")
        else:
            rows[f"{prefix}{key}"] = float(value)
    return rows


def _tensorboard(files: RunDirectory | None, start: int):
    if files is None or jax.process_index() != 0:
        return None
    from tensorboardX import SummaryWriter

    return SummaryWriter(str(files.path / "tensorboard"), purge_step=start + 1)
