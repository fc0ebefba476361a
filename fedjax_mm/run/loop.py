"""The loop over rounds: the one place with jit, clocks, files and printing.

A run's directory holds `config.json` (settings, seed, versions), `split.json` (examples per client and class),
`costs.json`, `chunk.json` (how "auto" mapped clients, and what it measured), `metrics.jsonl` (a line per round)
and `checkpoints/`. Since a round's draws come from the seed and the round's number, the FedState and the round
are all that a continuation needs: killed at any point, a run resumes bit for bit.

With several stages every line has the number of its "stage", from 1, in `costs.json` cohorts go by "<stage>/<cohort>",
and each stage's `chunk.json` is in a folder of its name.
"""

import dataclasses
import os
import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fedjax_mm import clients, costs, stages
from fedjax_mm.federate import Method
from fedjax_mm.run import client_state as off_device
from fedjax_mm.run import compilation
from fedjax_mm.run.records import RunDirectory
from fedjax_mm.stages import Stage
from fedjax_mm.types import FedState, PyTree


def train(
    method: Method | Sequence[Stage],
    data,
    *,
    rounds: int | None = None,
    per_round: int | Mapping[str, int],
    seed: int = 0,
    directory: str | os.PathLike | None = None,
    test: Mapping[str, Any] | None = None,
    evaluate_every: int | None = None,
    checkpoint_every: int | None = None,
    chunk: int | Mapping[str, int] | str = 1,
    devices: int | Mesh | None = None,
    client_state: str | os.PathLike = "device",
    config: Any = None,
    tensorboard: bool = False,
    log: Callable[[str], None] = print,
) -> FedState:
    """The FedState after `rounds` rounds.

    method: one, or stages, run one after the other, each compiled once (unless chunk is "auto", while the one before
        trains); with stages, rounds may be left out (all they have), and fewer end the run early.
    data: a FederatedData. per_round: how many clients take part (see clients.choose).
    directory: where the run is written; if it holds this run already, it goes on from its last checkpoint. None
        keeps nothing.
    test: arrays for `method.evaluate`, used every `evaluate_every` rounds and after the last.
    checkpoint_every: rounds between checkpoints; by default ten in a run. One is always written at the end.
    chunk: clients vmapped at a time (never changes a result), or "auto": timed on the first round's data, the
        fastest that fits the memory is kept. devices: how many to spread clients over, or a mesh; None is one.
    client_state: where clients' states are kept (never changes a result): "device", all of them; "host", in memory as
        NumPy arrays, or a folder, in memory-mapped files, of which the device then holds the participants' alone.
        With these, `evaluate` gets and `train` returns a FedState whose clients are NumPy arrays; a checkpoint, which
        has all of them, is written and read by way of memory. A run may go on with another choice.
    config: a dataclass or mapping of the experiment's settings, kept in config.json and compared on resuming.

    Raises ValueError for settings that do not fit the data or the directory, FloatingPointError when every
    participant of a round diverged, OSError when a file cannot be written (what was saved before stays).
    """
    plan = stages.plan(method, rounds)
    rounds = rounds or sum(stage.rounds for stage in plan)
    clients.choose(data.sizes, per_round, 0, seed)  # bad settings fail before anything is written
    mesh = devices if isinstance(devices, Mesh) or devices is None else clients.make_mesh(devices)
    data = _placed(data, mesh)
    streamed, folder = client_state != "device", None if client_state == "host" else client_state
    init_key, round_key = (jax.random.fold_in(jax.random.key(seed), i) for i in (0, 1))

    def round_data(r):
        taken = data.round(clients.choose(data.sizes, per_round, r, seed))
        return _replicated(off_device.placed(taken) if streamed else taken, mesh)

    def fresh(at):
        method = plan[at].method
        if not streamed:
            return _replicated(jax.jit(method.init)(init_key), mesh)
        state = jax.jit(lambda key: dataclasses.replace(method.init(key), clients={}))(init_key)
        return dataclasses.replace(_replicated(state, mesh), clients=off_device.init(method, init_key, folder))

    files, several = None, len(plan) > 1
    if directory is not None:
        owners = {name: zlib.crc32(c.rows.tobytes() + c.offsets.tobytes()) for name, c in data.cohorts.items()}
        settings = {"per_round": per_round, "seed": seed, "sizes": data.sizes, "owners": owners, "config": config}
        if several:
            settings["stages"] = {stage.name: stage.rounds for stage in plan}
        files = RunDirectory(directory, settings)
        files.write("split.json", data.split())
    at = stages.index(plan, max(0, files.saved_round - 1) if files else 0)  # the stage a checkpoint was written in
    state = fresh(at)
    if files:
        first, state = state, files.restore(state, log)
        if streamed and state is not first:
            off_device.fill(first.clients, state.clients)
            state = dataclasses.replace(state, clients=first.clients)
    start = int(state.round)
    if start >= rounds:
        log(f"this run has its {rounds} rounds already")
        files.close()
        return state

    evaluate_every = evaluate_every or rounds
    checkpoint_every = checkpoint_every or max(1, rounds // 10)
    writer = _tensorboard(files, start) if tensorboard else None
    this_round, step, ahead, everybody = round_data(start), None, None, None
    whole = lambda state: dataclasses.replace(state, clients=everybody) if streamed else state
    for r in range(start, rounds):
        if entered := (here := stages.index(plan, r)) != at:
            state, at, step = stages.enter(state, fresh(here)), here, None
        if step is None and streamed:
            everybody = state.clients
            state = dataclasses.replace(state, clients=_on(off_device.read(everybody, this_round), mesh))
        if files and (entered or r == 0):
            prefix = f"{plan[at].name}/" if several else ""
            cost = costs.of(plan[at].method, this_round, state)
            files.add("costs.json", {prefix + name: c._asdict() for name, c in cost.items()})
        if step is None:
            own = files.folder(plan[at].name) if files and several and chunk == "auto" else files
            step = compilation.compiled(plan[at], (state, this_round, round_key), chunk, mesh, own, ahead, log)
            end = sum(stage.rounds for stage in plan[: at + 1])
            if chunk != "auto" and end < rounds:
                later = plan[stages.index(plan, end)]
                ahead = compilation.ahead(later, (state, this_round, round_key), init_key, chunk, mesh, streamed)
        begun = time.perf_counter()
        state, metrics = step(state, this_round, round_key)
        done, last = this_round, r + 1 == rounds
        if not last:  # the next round's rows are laid out while this one computes
            this_round = round_data(r + 1)
            coming = off_device.read(everybody, this_round) if streamed else None
        row = {"round": r + 1, **({"stage": at + 1} if several else {}), **_flat(jax.device_get(metrics))}
        if streamed:
            off_device.write(everybody, done, jax.device_get(state.clients))
            if not last:
                off_device.read_again(everybody, this_round, coming, done)
                state = dataclasses.replace(state, clients=_on(coming, mesh))
        row["seconds"] = round(time.perf_counter() - begun, 4)
        if test is not None and (last or (r + 1) % evaluate_every == 0):
            row |= {f"test/{k}": v for k, v in plan[at].method.evaluate(whole(_local(state, mesh)), test).items()}
            log(f"round {r + 1}: " + ", ".join(f"{k} {v:.4f}" for k, v in row.items() if k.startswith("test/")))
        for name in data.sizes:
            if row[f"{name}/left_out"]:
                log(f"round {r + 1}: left out {row[f'{name}/left_out']:.0f} clients of {name}, update not finite")
        if files:
            files.append(row)
            if last or (r + 1) % checkpoint_every == 0:
                files.save(whole(state))
        if writer:
            for name, value in row.items():
                writer.add_scalar(name, value, r + 1)
        _check_diverged(row, data.sizes, r + 1)
    if files:
        files.close()
    if writer:
        writer.close()
    return whole(state)


def _on(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """The tree on the device, or on every device of the mesh."""
    return jax.device_put(tree) if mesh is None else _replicated(tree, mesh)


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
