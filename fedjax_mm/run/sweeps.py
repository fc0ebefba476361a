"""A sweep: a method at every point of a grid of settings, with several seeds, as one program.

Numbers are inputs of the program, and runs are an axis over which its rounds are mapped: nine settings with eight seeds
are 72 runs that are compiled once. Settings on which shapes or the method's Python depend (texts, whole numbers, truth
values, and floats that cannot be traced, which the log names) are compiled apart. Every run has the first states, the
participants and the keys of `run.train` with its settings and its seed, and all share the example arrays.

A run whose server is not finite, or of whose participants all were left out, has diverged: its scores are NaN from
there on, and the others go on. A directory is written when the whole sweep is done, or not at all.
"""

import functools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np

from fedjax_mm import stages
from fedjax_mm.checks import check_whole
from fedjax_mm.data import FederatedData
from fedjax_mm.participation import Chooser
from fedjax_mm.run import mapped
from fedjax_mm.run.arguments import check_sweep
from fedjax_mm.run.client_scores import own_scores, summary
from fedjax_mm.run.grid import Build, Group, Point, build_points, check_grid, find_untraceable, gather
from fedjax_mm.run.job import take_part
from fedjax_mm.run.mapped import Mapped, Runs, pairs
from fedjax_mm.run.placement import on_mesh
from fedjax_mm.run.scoring import unchecked
from fedjax_mm.run.sweep_files import Sweep, claim
from fedjax_mm.run.sweep_job import Done, Job
from fedjax_mm.run.tune import free_bytes, more_bytes
from fedjax_mm.run.watch import flat
from fedjax_mm.types import Arrays, FedState, PyTree, RoundData

TOGETHER, ENOUGH = 80, 32
"""What an accelerator vmaps at a time if the memory holds it: so many runs, and with fewer than ENOUGH of them so many
clients of all runs. docs/performance.md has what a TPU's compiler says of other numbers."""


def sweep(
    build: Build,
    data: FederatedData,
    *,
    grid: Mapping[str, Sequence],
    seeds: int | Sequence[int] = 1,
    rounds: int | None = None,
    per_round: int | Mapping[str, int] | None = None,
    choose: Chooser | None = None,
    valid: Arrays | None = None,
    test: Arrays | None = None,
    evaluate_every: int | None = None,
    directory: str | os.PathLike | None = None,
    chunk: int | Mapping[str, int] | None = None,
    runs_at_once: int | Literal["auto"] = "auto",
    devices: int = 1,
    config: Any = None,
    log: Callable[[str], None] = print,
) -> Sweep:
    """Trains a method with every combination of the grid's values and every seed; this file's head says how.

    build: from settings to a Method or a list of Stage, such as `lambda client_lr, prox: fedavg.build(...)`.
    grid: setting -> its values. A list with a float in it is traced; write 1.0 and not 1 to have a number traced.
    seeds: how many, numbered from 0, or which. A seed draws first states, participants and batches, not the data.
    rounds, per_round, choose: as in `run.train`.
    valid, test: arrays on which every run is scored, as "valid/<metric>" and "test/<metric>". Choose on valid.
    evaluate_every: rounds between two scores; by default the end alone is scored.
    directory: where the settings and a line for every run are written in the end. It must hold no sweep.
    chunk: clients of a run that are vmapped at a time, as in `run.train`, but for "auto".
    runs_at_once: runs that a device vmaps at a time. "auto" takes one on a CPU, and elsewhere up to 80, less where the
        memory does not hold them; with fewer than 32, and chunk None, also clients of each, so that 80 are together.
        Neither this nor `chunk` nor `devices` changes a result, but for rounding.
    devices: how many to spread the runs over.
    config: a dataclass or mapping that is kept with the settings in the directory.

    Raises ValueError where an argument is none, before anything is compiled, and what `build` raises for a value.
    """
    axes = check_grid(build, grid)
    points = build_points(build, axes, rounds)
    plans = [point.plan for point in points]
    who = (per_round, choose)
    numbers = check_sweep(plans, data, seeds, rounds, who, valid, test, evaluate_every, chunk, devices, log)
    if runs_at_once != "auto":
        check_whole("runs_at_once", runs_at_once, 1)
    files = None if directory is None else claim(directory, axes, numbers, data, per_round, config)
    total = rounds or sum(stage.rounds for stage in plans[0])
    arrays = {name: given for name, given in (("valid", valid), ("test", test)) if given is not None}
    data = on_mesh(data, mapped.make_mesh(devices))
    how = (total, evaluate_every or total, arrays, chunk, runs_at_once, devices, log)
    result = _run(Job(build, data, functools.partial(take_part, data, *who), numbers, *how), points, axes)
    if files is not None:
        files.write(result)
    return result


def _run(job: Job, points: Sequence[Point], axes: Mapping[str, list]) -> Sweep:
    """All runs, program after program."""
    done, groups, seeds = Done(points, job), _groups(job, points, axes), len(job.seeds)
    runs = f"{len(points)} settings x {seeds} seeds are {len(points) * seeds} runs"
    job.log(f"{runs} in {len(groups)} program{'s' if len(groups) > 1 else ''}")
    for group in groups:
        _run_group(job, points, group, done)
    return done.result()


def _groups(job: Job, points: Sequence[Point], axes: Mapping[str, list]) -> list[Group]:
    """The programs: settings that cannot be traced are found, and fixed."""
    fixed: tuple[str, ...] = ()
    data = job.round(job.seeds[0], 0)
    while True:
        groups = gather(points, axes, fixed)
        found = {name for group in groups for name in find_untraceable(job.build, group, data, jax.random.key(0))}
        if not found:
            return groups
        job.log(f"{', '.join(sorted(found))} cannot be traced, so that every value is compiled apart")
        fixed = (*fixed, *found)


def _run_group(job: Job, points: Sequence[Point], group: Group, done: Done) -> None:
    """Trains and scores the runs of one program, stage after stage."""
    per_call = job.rounds_in_a_call(group)
    at, data = stages.index(group.plan, 0), job.feed(range(per_call))
    how, runs, states, step = _start(job, points, group, at, data)
    for behind in range(per_call, job.rounds + 1, per_call):
        if (here := stages.index(group.plan, behind - 1)) != at:
            at, states = here, how.enter(here, states, runs)
            step = _compiled(how, at, states, data, runs, job.log)
        states, told = step(states, data, runs)
        if behind < job.rounds:  # while these rounds compute
            data = job.feed(range(behind, behind + per_call))
        metrics, finite = jax.device_get(told)
        done.mark_diverged(group, behind - per_call, metrics, finite)
        if behind in done.rounds:
            _score(job, points, group, at, states, metrics, behind, done)
            job.log(f"round {behind} of {job.rounds}")
    for n, point in enumerate(group.points):
        own = slice(n * len(job.seeds), (n + 1) * len(job.seeds))
        done.states[point] = jax.tree.map(lambda x, own=own: x[own], states)


def _start(
    job: Job, points: Sequence[Point], group: Group, at: int, data: RoundData
) -> tuple[Mapped, Runs, FedState, jax.stages.Compiled]:
    """(how the runs are mapped, what differs between them, their first states, the compiled rounds).

    Where the number of runs at once is not given, a program that the memory does not hold is made smaller.
    """
    mesh, auto = mapped.make_mesh(job.devices), job.at_once == "auto"
    here = -(-len(pairs(group, job.seeds)) // job.devices)
    together = 1 if jax.default_backend() == "cpu" else TOGETHER
    free = auto and job.chunk is None and group.plan[at].method.over.chunk == 1
    while True:
        at_once = _even(here, together if job.at_once == "auto" else job.at_once)
        places = {name: taken.index.shape[-1] for name, taken in data.cohorts.items()}
        room = together // at_once if at_once < ENOUGH else 1
        even = {name: _even(number, room) for name, number in places.items()}
        chunk = even if free else job.chunk
        how = Mapped(job.build, group, chunk, at_once, mesh)
        runs = mapped.make_runs(points, group, job.seeds, at_once * job.devices, mesh)
        states = how.init(runs)
        vmapped = at_once * (max(even.values()) if free else 1)
        try:
            step = _compiled(how, at, states, data, runs, job.log)
            share = free_bytes() / max(1.0, more_bytes(step))
        except jax.errors.JaxRuntimeError as error:
            if not auto or vmapped == 1 or "RESOURCE_EXHAUSTED" not in str(error):
                raise
            step, share = None, 0.5
        if step is not None and (not auto or vmapped == 1 or share >= 1):
            return how, runs, states, step
        together = max(1, int(vmapped * share))
        job.log(f"{at_once} runs at once do not fit the memory; trying {together}, clients counted")


def _even(total: int, most: int) -> int:
    """The size of parts of like size, `most` at most, that make up the total."""
    return -(-total // -(-total // max(1, min(most, total))))


def _compiled(
    how: Mapped, at: int, states: FedState, data: RoundData, runs: Runs, log: Callable[[str], None]
) -> jax.stages.Compiled:
    begun = time.perf_counter()
    step = how.lower(at, states, data, runs).compile()
    name = how.group.plan[at].name
    log(
        f"compiled the rounds{f' of {name}' if name else ''} of {len(runs.seed)} runs, {how.at_once} at once, in "
        f"{time.perf_counter() - begun:.1f} s"
    )
    return step


def _score(
    job: Job,
    points: Sequence[Point],
    group: Group,
    at: int,
    states: FedState,
    metrics: Mapping[str, Mapping[str, np.ndarray]],
    behind: int,
    done: Done,
) -> None:
    """Adds the metrics of the last round, and the scores after it, of every run that has not diverged.

    metrics: leaves [R, n].
    """
    first = None if job.devices == 1 else jax.devices()[0]
    for i, (point, seed) in enumerate(pairs(group, job.seeds)):
        if done.diverged[point, seed]:
            continue
        method, state = points[point].plan[at].method, jax.device_put(_pick(states, i), first)
        row = flat(jax.tree.map(lambda x, i=i: x[i, -1], metrics)) | summary(own_scores(method, state, job.data))
        for name, arrays in job.arrays.items():
            row |= {f"{name}/{key}": value for key, value in unchecked(method)(state, arrays).items()}
        done.add(point, seed, behind, row)


@jax.jit
def _pick(tree: PyTree, i: int) -> PyTree:
    """Row i of every leaf."""
    return jax.tree.map(lambda x: x[i], tree)
