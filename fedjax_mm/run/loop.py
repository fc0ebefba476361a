"""A run: the rounds, what watches them, and the directory it is written to.

**Directory.** It holds `config.json` (settings, seed, versions, digests of the data and of each stage's lowered round),
`split.json` (examples per client and class), `costs.json`, `chunk.json` (what "auto" measured), `metrics.jsonl` (a line
per round; what is not finite is null), `own_scores.json` (every client's last score on its own test rows),
`checkpoints/`, each with a digest of its state, and `lock`; files and lines end with a checksum. It belongs to these
settings, this program and these data: other ones are refused before the first round. Since a round's draws come from
the seed and the round's number, the FedState and the round are all that a continuation needs: killed at any point, a
run resumes bit for bit. Ctrl-C, SIGTERM and SIGHUP take effect once the round in flight is saved. Of several stages
every line has its "stage", from 1, `costs.json` has "<stage>/<cohort>", and each has a folder for its `chunk.json`.

**Scores.** A score is a function from the FedState to {metric: number}; `evaluate={"valid": score}` logs
"valid/<metric>" every `evaluate_every` rounds and after the last one, and `run.Every(10, score)` has a period of its
own. `test=arrays` is short for the method's own scores of these arrays, under the name "test". Where the data has
clients' own test rows (`FederatedData.from_arrays(..., test=...)`) and the method says how a client's model is scored,
"own/<cohort>/<metric>" is the mean over clients, with "_p10", "_worst" and "_spread" (client_scores.summary).

**Watchers.** `watch=[f]` calls `f(done, row)` after every round, with the finished round (`run.Round`: number, metrics,
state) and its row of the log; what it returns is added to the row, and `raise run.StopRun("why")` ends the run. One
that has a `close` is closed with the run. `run.track` has those for TensorBoard, Weights & Biases and MLflow.

**Calls.** With `rounds_per_call=10` the device runs ten rounds in one call, without the host's time between them.
Scores and checkpoints are due, watchers find the state, and the run can be stopped, behind every tenth round alone.

**Clients' states.** With `client_state="device"` the device has the states of all clients; several devices of one
process have a part each. With "host" they are NumPy arrays in memory, with a folder memory-mapped files, and devices
have the participants' alone. Where no device has all, scores get, and `train` returns, NumPy arrays; a checkpoint has
all, by way of memory. A run may go on with another choice, none of which changes a result; so with `split_public`.
"""

import contextlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from fedjax_mm import clients, stages
from fedjax_mm.data import FederatedData
from fedjax_mm.federate import Method
from fedjax_mm.participation import Chooser
from fedjax_mm.run.arguments import check_arguments
from fedjax_mm.run.compilation import Chunk, Compiler
from fedjax_mm.run.job import Job, settings_of
from fedjax_mm.run.over_devices import client_states
from fedjax_mm.run.placement import States, local, on_mesh
from fedjax_mm.run.processes import agree, all_or_none, any_of, watched_peers
from fedjax_mm.run.progress import Progress
from fedjax_mm.run.records import RunDirectory
from fedjax_mm.run.rounds import Round
from fedjax_mm.run.rounds import rounds as rounds_of
from fedjax_mm.run.scoring import Every, mend, scoring
from fedjax_mm.run.signals import Interruption
from fedjax_mm.run.track import tensorboard as tensorboard_tracker
from fedjax_mm.run.watch import (
    Files,
    Score,
    StopRun,
    Watcher,
    close_with,
    divergence,
    finite,
    flat,
    reads_state,
    say_left_out,
)
from fedjax_mm.stages import Stage
from fedjax_mm.types import Arrays, FedState


def train(
    method: Method | Sequence[Stage],
    data: FederatedData,
    *,
    rounds: int | None = None,
    per_round: int | Mapping[str, int] | None = None,
    choose: Chooser | None = None,
    seed: int = 0,
    directory: str | os.PathLike | None = None,
    test: Arrays | None = None,
    evaluate: Mapping[str, Score | Every] | None = None,
    evaluate_every: int | None = None,
    watch: Sequence[Watcher] = (),
    checkpoint_every: int | None = None,
    rounds_per_call: int = 1,
    chunk: Chunk = None,
    devices: int | Mesh | None = None,
    client_state: str | os.PathLike = "device",
    split_public: bool = False,
    config: Any = None,
    tensorboard: bool = False,
    progress: bool | None = None,
    peer_timeout: float | None = 60.0,
    log: Callable[[str], None] = print,
) -> FedState:
    """The FedState after `rounds` rounds; this file's head says more of the directory, scores, watchers and states.

    method: one, or stages, run one after the other (then `rounds` may be left out). per_round: how many clients take
        part, of all or of each cohort (see clients.choose). choose: who does, in its place (see participation).
    directory: where the run is written; it goes on from the last checkpoint there. None keeps nothing.
    test, evaluate, evaluate_every: what is scored and how often. watch: the user's own watchers. checkpoint_every:
        rounds between checkpoints; by default ten in a run. One is always written at the end.
    rounds_per_call: rounds in one call of the device (never changes a result). There are states at its multiples alone.
    chunk: clients vmapped at a time (never changes a result), or "auto": the fastest on the first round's data that
        fits the memory. devices: how many to spread clients over, or a mesh. None: as `method.over` says.
    client_state: "device", "host" or a folder, of clients' states. split_public: devices divide the public rows.
    config: a dataclass or mapping of the experiment's settings, kept in config.json and compared on resuming. progress:
        whether a bar is shown; None: where the output is a terminal or a notebook. peer_timeout: of processes that
        share a directory, one that is silent for so many seconds ends them all; None: they wait for it.

    Raises ValueError for arguments that do not fit each other, the data or the directory; FloatingPointError when every
    participant diverged or the server's state is not finite; OSError when a file cannot be read or written.
    """
    plan, settings = _agreed(dict(locals()))
    files = None if directory is None else all_or_none(lambda: RunDirectory(directory, settings, log))
    mesh = clients.make_mesh(devices) if isinstance(devices, int) else devices or plan[0].method.over.mesh
    stop = Interruption()
    with contextlib.ExitStack() as closing:
        if files:
            closing.callback(files.close)
            closing.enter_context(watched_peers(files.path / "peers", peer_timeout))
            files.open_checkpoints(stages.frozen(plan))
            closing.enter_context(stop)
        total = rounds or sum(stage.rounds for stage in plan)
        job = Job(plan, total, on_mesh(data, mesh, split_public), per_round, seed, files, log, stop, choose)
        watchers = close_with(closing, [*scoring(job, test, evaluate or {}, evaluate_every or total), *watch])
        show = lambda start: _shown(job, start, checkpoint_every, rounds_per_call, tensorboard, progress, closing)
        state = _run(job, client_state, (chunk, mesh, rounds_per_call), watchers, show)
    stop.take_effect(lambda name: log(f"{name} after round {int(state.round)}, which is saved; run again to go on"))
    return state


def _agreed(given: Mapping[str, Any]) -> tuple[Sequence[Stage], Mapping[str, Any]]:
    """(the stages, what a directory belongs to), the same in all processes. given: the arguments of `train`."""

    def check() -> tuple[Sequence[Stage], Mapping[str, Any]]:
        plan = check_arguments(**given)
        kept = given["directory"] is not None or jax.process_count() > 1
        settled = (given[k] for k in ("data", "per_round", "seed", "config", "choose"))
        return plan, settings_of(plan, *settled) if kept else {}

    plan, settings = all_or_none(check)
    agree({"data": json.dumps(settings.get("data")), "settings": json.dumps(settings)})
    return plan, settings


def _run(
    job: Job,
    client_state: str | os.PathLike,
    how: tuple[Chunk, Mesh | None, int],
    watchers: Sequence[Watcher],
    show: Callable[[int], Sequence[Watcher]],
) -> FedState:
    """Every round that is left, watched.

    how: the chunk, the mesh and the rounds in a call. show: the watchers of a run that starts behind so many rounds.
    """
    chunk, mesh, per_call = how
    states = client_states(client_state, mesh, job.plan, job.data)
    keys = (jax.random.fold_in(jax.random.key(job.seed), 0), jax.random.fold_in(jax.random.key(job.seed), 1))
    if job.files:
        job.files.renew("split.json", job.data.split())
    compiler = Compiler(chunk, mesh, keys[0], states, job.feed, job.folder, job.files, set(), {}, job.log)
    state = _first(job, states, keys[0], compiler)
    if int(state.round) >= job.rounds:
        job.log(f"this run has its {job.rounds} rounds already")
        mend(job.files, job.plan, job.data, job.feed(0), local(state, mesh))
        return state
    shown, stopped = show(int(state.round)), False
    asks = lambda number: stopped or any(reads_state(watcher, number) for watcher in (*watchers, *shown))
    mapped: dict[str, Any] = {"until": job.rounds, "mesh": mesh, "per_call": per_call}
    for done in rounds_of(job.plan, state, job.feed, states, compiler, keys, asks=asks, **mapped):
        stopped = _watched(done, watchers, shown, job, stopped)
        if done.has_state and (stopped or done.last):
            return done.whole or state
    return state


def _first(job: Job, states: States, init_key: jax.Array, compiler: Compiler) -> FedState:
    """The state that the run starts or goes on from."""
    first: list[FedState] = []

    def like(round: int) -> FedState:
        """A state as the checkpoint of that round has it."""
        first[:] = [states.first(job.plan[stages.index(job.plan, max(0, round - 1))].method, init_key)]
        return first[0]

    if not job.files:
        return like(0)
    for last in job.files.checkpoints.rounds[:1]:  # before they are read: they are of this program, or damaged
        for stage in job.plan[: stages.index(job.plan, last - 1) + 1]:
            if stage.rounds:
                compiler.claim(stage)
    saved = job.files.checkpoints.restore(like, job.log)
    job.files.cut_log(0 if saved is None else int(saved.round))
    if saved is None:
        return like(0)
    job.log(f"resuming {job.files.path.name} after round {int(saved.round)}")
    return states.restored(first[0], saved)


def _shown(
    job: Job,
    start: int,
    checkpoint_every: int | None,
    per_call: int,
    tensorboard: bool,
    progress: bool | None,
    closing: contextlib.ExitStack,
) -> Sequence[Watcher]:
    """The watchers that log, save and show the row as all others leave it."""
    watchers: list[Watcher] = []
    if job.files:
        every = checkpoint_every or -(-max(1, job.rounds // 10) // per_call) * per_call
        watchers.append(Files(job.files, every, job.plan, job.data))
        if tensorboard:
            watchers.append(tensorboard_tracker(job.files.path / "tensorboard"))
    if progress is not False:
        watchers.append(Progress(start, job.rounds, force=progress is True))
    return close_with(closing, watchers)


def _watched(done: Round, watchers: Sequence[Watcher], shown: Sequence[Watcher], job: Job, stopping: bool) -> bool:
    """Makes the round's row of the log, with what every watcher adds, and shows it; whether the run stops here.

    stopping: whether an earlier round of the call asked for it. Raises FloatingPointError, when the row is written,
    where the round must not be saved.
    """
    row: dict[str, float] = {"round": done.number, **({"stage": done.stage_number} if job.several else {})}
    row |= flat(done.metrics)
    row["seconds"] = round(done.seconds, 4)
    say_left_out(row, job.data.sizes, job.log)
    if problem := divergence(done, job.data.sizes):
        if job.files:
            job.files.append(finite(row, job.log))
        raise problem
    stopped = None
    for watcher in watchers:
        try:
            row |= watcher(done, row) or {}
        except StopRun as stop:
            stopped, done = stop, done._replace(last=done.has_state)
    job.stop.begin()
    stopping = any_of(stopping or stopped is not None or job.stop.signal is not None)
    row = finite(row, job.log)
    for watcher in shown:  # the last round is saved
        watcher(done._replace(last=done.last or stopping and done.has_state), row)
    if stopped is not None:
        job.log(f"stopped after round {done.number}: {stopped}")
    return stopping
