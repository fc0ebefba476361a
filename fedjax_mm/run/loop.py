"""A run: the rounds, what watches them, and the directory it is written to.

**Directory.** It holds `config.json` (settings, seed, versions), `split.json` (examples per client and class),
`costs.json`, `chunk.json` (how "auto" mapped clients, and what it measured), `metrics.jsonl` (a line per round),
`own_scores.json` (every client's last score on its own test rows) and `checkpoints/`. Since a round's draws come from
the seed and the round's number, the FedState and the round are all that a continuation needs: killed at any point, a
run resumes bit for bit. With several stages every line has the number of its "stage", from 1, in `costs.json` cohorts
go by "<stage>/<cohort>", and each stage's `chunk.json` is in a folder of its name.

**Scores.** A score is a function from the FedState to {metric: number}; `evaluate={"valid": score}` logs
"valid/<metric>" every `evaluate_every` rounds and after the last one, and `run.Every(10, score)` has a period of its
own. `test=arrays` is short for the method's own scores of these arrays, under the name "test". Where the data has
clients' own test rows (`FederatedData.from_arrays(..., test=...)`) and the method says how a client's model is scored,
"own/<cohort>/<metric>" is the mean over clients, with "_p10", "_worst" and "_spread" (client_scores.summary).

**Watchers.** `watch=[f]` calls `f(done, row)` after every round, with the finished round (`run.Round`: number, metrics,
state) and its row of the log; what it returns is added to the row, and `raise run.StopRun("why")` ends the run.

**Clients' states.** With `client_state="device"` the device holds the states of all clients; with "host" they are NumPy
arrays in memory, and with a folder memory-mapped files, of which the device holds the participants' alone. Scores then
get, and `train` returns, a FedState whose clients are NumPy arrays; a checkpoint, which has all of them, is written and
read by way of memory. A run may go on with another choice.
"""

import contextlib
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from fedjax_mm import clients, stages
from fedjax_mm.data import FederatedData
from fedjax_mm.data.federated import CohortExamples
from fedjax_mm.federate import Method
from fedjax_mm.run.compilation import Chunk, Compiler
from fedjax_mm.run.placement import OffDevice, States, client_states, on_mesh
from fedjax_mm.run.progress import Progress
from fedjax_mm.run.records import Folder, RunDirectory
from fedjax_mm.run.rounds import Round
from fedjax_mm.run.rounds import rounds as rounds_of
from fedjax_mm.run.watch import (
    Board,
    Every,
    Files,
    LeftOut,
    OwnScores,
    Score,
    Scores,
    StopRun,
    Watcher,
    check_diverged,
    flat,
)
from fedjax_mm.stages import Stage
from fedjax_mm.types import Arrays, FedState, RoundData


def train(
    method: Method | Sequence[Stage],
    data: FederatedData,
    *,
    rounds: int | None = None,
    per_round: int | Mapping[str, int],
    seed: int = 0,
    directory: str | os.PathLike | None = None,
    test: Arrays | None = None,
    evaluate: Mapping[str, Score | Every] | None = None,
    evaluate_every: int | None = None,
    watch: Sequence[Watcher] = (),
    checkpoint_every: int | None = None,
    chunk: Chunk = None,
    devices: int | Mesh | None = None,
    client_state: str | os.PathLike = "device",
    config: Any = None,
    tensorboard: bool = False,
    progress: bool | None = None,
    log: Callable[[str], None] = print,
) -> FedState:
    """The FedState after `rounds` rounds; this file's head says more of the directory, scores, watchers and states.

    method: one, or stages, run one after the other (then `rounds` may be left out). per_round: how many clients take
        part, of all or of each cohort (see clients.choose).
    directory: where the run is written; it goes on from the last checkpoint there. None keeps nothing.
    test, evaluate, evaluate_every: what is scored and how often. watch: the user's own watchers.
    checkpoint_every: rounds between checkpoints; by default ten in a run. One is always written at the end.
    chunk: clients vmapped at a time (never changes a result), or "auto": timed on the first round's data, the fastest
        that fits the memory is kept. devices: how many to spread clients over, or a mesh. None: as `method.over` says.
    client_state: "device", "host" or a folder: where clients' states are kept (never changes a result).
    config: a dataclass or mapping of the experiment's settings, kept in config.json and compared on resuming.
    progress: whether a bar is shown. None: where the output is a terminal or a notebook.

    Raises ValueError for settings that do not fit the data or the directory, FloatingPointError when every
    participant of a round diverged, OSError when a file cannot be written (what was saved before stays).
    """
    plan = stages.plan(method, rounds)
    clients.choose(data.sizes, per_round, 0, seed)  # bad settings fail before anything is written
    files = None if directory is None else RunDirectory(directory, _settings(data, plan, per_round, seed, config))
    mesh = clients.make_mesh(devices) if isinstance(devices, int) else devices or plan[0].method.over.mesh
    job = _Job(plan, rounds or sum(stage.rounds for stage in plan), on_mesh(data, mesh), per_round, seed, files, log)
    scored = _scored(job, test, evaluate or {}, evaluate_every or job.rounds)
    with contextlib.ExitStack() as closing:
        show = lambda start: _shown(job, start, checkpoint_every, tensorboard, progress, closing)
        return _run(job, client_states(client_state, mesh), chunk, mesh, [*scored, *watch], show)


class _Job(NamedTuple):
    """What a run does, however it is mapped and watched."""

    plan: Sequence[Stage]
    rounds: int
    data: FederatedData
    per_round: int | Mapping[str, int]
    seed: int
    files: RunDirectory | None
    log: Callable[[str], None]

    @property
    def several(self) -> bool:
        """Whether there are several stages."""
        return len(self.plan) > 1

    def feed(self, r: int) -> RoundData:
        """The data of round r, from 0."""
        return self.data.round(clients.choose(self.data.sizes, self.per_round, r, self.seed))

    def folder(self, stage: Stage) -> RunDirectory | Folder | None:
        """Where what is known of a stage is remembered."""
        return self.files.folder(stage.name) if self.files and self.several else self.files


def _run(
    job: _Job,
    states: States,
    chunk: Chunk,
    mesh: Mesh | None,
    watchers: Sequence[Watcher],
    show: Callable[[int], Sequence[Watcher]],
) -> FedState:
    """Every round that is left, watched. show: the watchers of a run that starts behind so many rounds."""
    keys = (jax.random.fold_in(jax.random.key(job.seed), 0), jax.random.fold_in(jax.random.key(job.seed), 1))
    if job.files:
        job.files.write("split.json", job.data.split())
    state = _first(job, states, keys[0])
    if int(state.round) >= job.rounds:
        job.log(f"this run has its {job.rounds} rounds already")
        return state
    watchers = [*watchers, *show(int(state.round))]
    compiler = Compiler(chunk, mesh, keys[0], isinstance(states, OffDevice), job.folder, job.log)
    for done in rounds_of(job.plan, state, job.feed, states, compiler, keys, until=job.rounds, mesh=mesh):
        row, stopped = _watched(done, watchers, job.several)
        state = done.whole
        check_diverged(row, job.data.sizes)
        if stopped is not None:
            job.log(f"stopped after round {done.number}: {stopped}")
            break
    return state


def _first(job: _Job, states: States, init_key: jax.Array) -> FedState:
    """The state that the run starts or goes on from."""
    # The stage a checkpoint was written in.
    at = stages.index(job.plan, max(0, job.files.saved_round - 1) if job.files else 0)
    state = states.first(job.plan[at].method, init_key)
    return states.restored(state, job.files.restore(state, job.log)) if job.files else state


def _scored(job: _Job, test: Arrays | None, evaluate: Mapping[str, Score | Every], every: int) -> list[Watcher]:
    """The watchers that give scores, which the user's own watchers find in the row."""
    return [Scores(evaluate, test, every, job.log), OwnScores(job.data, every, job.files, job.log)]


def _shown(
    job: _Job,
    start: int,
    checkpoint_every: int | None,
    tensorboard: bool,
    progress: bool | None,
    closing: contextlib.ExitStack,
) -> list[Watcher]:
    """The watchers that log, save and show the row as all others leave it; they are closed with the run."""
    watchers: list[Watcher] = [LeftOut(job.data.sizes, job.log)]
    if job.files:
        closing.callback(job.files.close)
        watchers.append(Files(job.files, checkpoint_every or max(1, job.rounds // 10), job.several))
        if tensorboard and jax.process_index() == 0:
            watchers.append(Board(job.files, start))
    if progress is not False:
        watchers.append(Progress(start, job.rounds, force=progress is True))
    for watcher in watchers:
        if isinstance(watcher, Board | Progress):
            closing.callback(watcher.close)
    return watchers


def _watched(done: Round, watchers: Sequence[Watcher], several: bool) -> tuple[dict[str, float], StopRun | None]:
    """(the round's row of the log, with what every watcher adds; what a watcher stopped the run with)."""
    row = {"round": done.number, **({"stage": done.stage_number} if several else {}), **flat(done.metrics)}
    row["seconds"] = round(done.seconds, 4)
    stopped = None
    for watcher in watchers:
        try:
            row |= watcher(done, row) or {}
        except StopRun as stop:
            stopped, done = stop, done._replace(last=True)  # so that the round is saved
    return row, stopped


def _settings(
    data: FederatedData, plan: Sequence[Stage], per_round: int | Mapping[str, int], seed: int, config: Any
) -> dict[str, Any]:
    """What a directory belongs to."""
    owners = {name: zlib.crc32(_owned(cohort)) for name, cohort in data.cohorts.items()}
    settings = {"per_round": per_round, "seed": seed, "sizes": data.sizes, "owners": owners, "config": config}
    return settings | ({"stages": {stage.name: stage.rounds for stage in plan}} if len(plan) > 1 else {})


def _owned(cohort: CohortExamples) -> bytes:
    """Which rows each client owns, and holds out."""
    parts = (cohort.rows, cohort.offsets, cohort.test_rows, cohort.test_offsets)
    return b"".join(part.tobytes() for part in parts if part is not None)
