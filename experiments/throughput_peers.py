"""A round of ours against peers': fedjax, pfl, DrJAX, Flower, a PyTorch loop and a JAX round written by hand.

    python -m experiments.throughput_peers
    python -m experiments.throughput_peers --workloads mlp --peers fedjax pfl --repetitions 5

Each peer is a script of experiments/peers in a process and an environment of its own, made on first use (some minutes,
5 GB) and kept in `cache`. All are pinned to the same cores, get the same data, start and participants (Flower draws its
own), and are timed in turn, A B C, C B A, ...; while one works the others wait for a line on stdin. CPU time is that of
all threads and child processes. A ratio is of two timings of one turn: peer's / ours.

That all do the same job is seen on a round of three clients whose result does not depend on shuffling (`difference`:
the most that a weight differs from ours) and in the loss after all rounds.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import re
import select
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import tyro

from experiments.peers import workload
from fedjax_mm import report

HERE = pathlib.Path(__file__).resolve().parent
JUDGED = 200  # examples in the loss
TOLERANCE = 1e-4  # of a weight after one round of the check


class Peer(NamedTuple):
    """A script, and what it needs. Without requirements it runs in this environment."""

    script: pathlib.Path
    requirements: tuple[str, ...] = ()
    without: Mapping[str, str] = {}  # workload -> why this peer leaves it out
    repetitions: int | None = None  # at most, where a timing takes minutes


TORCH = ("torch==2.13.0", "numpy==2.4.6")
PEERS: Mapping[str, Peer] = {
    "ours": Peer(HERE / "peers/our_round.py"),
    "hand": Peer(HERE / "peers/hand_round.py"),
    # The newest JAX and Haiku that fedjax can be imported with.
    "fedjax": Peer(
        HERE / "peers/fedjax_round.py",
        ("fedjax==0.0.17", "jax==0.4.30", "jaxlib==0.4.30", "dm-haiku==0.0.13", "optax==0.2.2", "chex==0.1.86")
        + ("scipy==1.12.0", "numpy==1.26.4"),
    ),
    "drjax": Peer(
        HERE / "peers/drjax_round.py",
        ("drjax==0.2.1", "jax==0.10.2", "numpy==2.4.6"),
        without=dict.fromkeys(
            ("femnist_cnn", "cifar_cnn"),
            "XLA's convolutions in a vmapped loop on a CPU: 45 s for a round of femnist_cnn",
        ),
    ),
    "torch": Peer(HERE / "peers/torch_round.py", TORCH),
    "pfl": Peer(HERE / "peers/pfl_round.py", ("pfl[pytorch]==0.6.0", *TORCH)),
    "flower": Peer(
        HERE / "peers/flower_round.py",
        ("flwr[simulation]==1.20.0", "ray==2.31.0", *TORCH),
        without=dict.fromkeys(("femnist_cnn", "cifar_cnn"), "a supernode for each of thousands of clients"),
        repetitions=3,
    ),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of the measurement."""

    workloads: tuple[str, ...] = tuple(workload.KINDS)
    peers: tuple[str, ...] = tuple(name for name in PEERS if name != "ours")
    repetitions: int = 15
    """Timings of each peer; reported are median and quartiles."""
    rounds: int | None = None
    """Rounds in one timing; each workload has a number of its own."""
    cores: int = 1
    cache: str = "~/.cache/fedjax_mm/peers"
    """Folder of the peers' environments."""
    torch_wheels: str = "https://download.pytorch.org/whl/cpu/torch/"
    """Page of PyTorch wheels without CUDA; unreachable, PyPI's are taken."""
    patience: float = 1200.0
    """Seconds to wait for a peer's answer."""
    seed: int = 0
    out: str = "runs/throughput_peers"


class Running(NamedTuple):
    """A peer's process, and where it writes what goes wrong."""

    process: subprocess.Popen
    log: pathlib.Path
    patience: float


class PeerError(Exception):
    """A peer could not be installed or started, or died."""


def main(settings: Settings) -> pathlib.Path:
    """Measures, prints a table and writes peers.json, whose path is returned."""
    load = os.getloadavg()
    rows = peers(settings)
    report.show(rows, COLUMNS)
    path = pathlib.Path(settings.out) / "peers.json"
    result = {"settings": dataclasses.asdict(settings), "load_average": [load, os.getloadavg()], "rows": rows}
    path.write_text(json.dumps(result, indent=1))
    print(f"written to {path}")
    return path


COLUMNS = ("workload", "peer", "CPU ms", "ms", "CPU ratio", "CPU ratio low", "CPU ratio high", "ratio") + (
    "first round s",
    "difference",
    "loss",
    "rounds",
    "skipped",
)


def peers(
    settings: Settings, table: Mapping[str, Peer] = PEERS, kinds: Mapping[str, workload.Kind] = workload.KINDS
) -> list[dict]:
    """A row per workload and peer, ours first: milliseconds per round and the ratio to ours, each with its quartiles.

    A peer that leaves a workload out, cannot be installed or started, dies or does another job than ours has a row that
    says why ("skipped").
    Raises PeerError where ours does, ValueError for names that are not in the tables.
    """
    names = ("ours", *settings.peers)
    _known("peers", names, table)
    _known("workloads", settings.workloads, kinds)
    pythons, reasons, rows = {}, {}, []
    for name in names:
        try:
            pythons[name] = environment(name, table[name], settings)
        except PeerError as error:
            reasons[name] = str(error)
    for kind in settings.workloads:
        task = workload.make(kinds[kind], settings.seed, settings.cores)
        folder = pathlib.Path(settings.out) / kind
        workload.write(task, folder)
        workload.write(workload.check(task), folder / "check")
        skipped = reasons | {n: table[n].without[kind] for n in names if kind in table[n].without}
        usable = {name: (table[name], python) for name, python in pythons.items() if name not in skipped}
        measured, died = measure(settings, usable, task, folder, settings.rounds or kinds[kind].rounds)
        skipped |= died
        if "ours" in skipped:
            raise PeerError(f"{kind}: our own round does not run: {skipped['ours']}")
        for name in names:
            row = {"skipped": skipped[name]} if name in skipped else measured[name]
            rows.append({"workload": kind, "peer": name, **row})
    return rows


def measure(
    settings: Settings, usable: Mapping[str, tuple[Peer, str]], task: workload.Workload, folder, rounds: int
) -> tuple[dict[str, dict], dict[str, str]]:
    """(a row for each peer that lived, why the others did not)."""
    rows, died, first = {}, {}, {}
    times = {name: [] for name in usable}
    with contextlib.ExitStack() as stack:
        running = {}
        for name, (peer, python) in usable.items():
            try:
                first[name] = checked(peer, python, folder / "check", name, settings)
                running[name] = stack.enter_context(started(peer, python, folder, name, settings))
                answer = ask(running[name], "run 1")
                rows[name] = {"first round s": answer.get("first", answer["wall"]), "rounds": 1}
            except PeerError as error:
                died[name] = str(error)
        for turn in range(settings.repetitions + 1):  # the first is not counted
            for name in list(running)[:: -1 if turn % 2 else 1]:
                most = usable[name][0].repetitions
                if name in died or (most is not None and turn > most):
                    continue
                try:
                    answer = ask(running[name], f"run {rounds}")
                except PeerError as error:
                    died[name] = str(error)
                    continue
                times[name].append((turn, answer["cpu"] / answer["rounds"], answer["wall"] / answer["rounds"]))
                rows[name]["rounds"] = answer.get("trained", rows[name]["rounds"] + answer["rounds"])
        for name in (n for n in running if n not in died):
            try:
                layers = saved(running[name], folder / f"{name}.npz")
            except PeerError as error:
                died[name] = str(error)
                continue
            rows[name]["loss"] = workload.loss(layers, task.x[:JUDGED], task.label[:JUDGED])
    if "ours" in died:
        return {}, died
    for name in (n for n in rows if n not in died):
        rows[name]["difference"] = workload.max_difference(first[name], first["ours"])
        if not rows[name]["difference"] <= TOLERANCE:
            died[name] = f"does not do the same job: after one round weights differ by {rows[name]['difference']:.1e}"
        rows[name] |= statistics(times[name], times["ours"])
    return {name: row for name, row in rows.items() if name not in died}, died


def statistics(times: list, ours: list) -> dict[str, float]:
    """Medians and quartiles of (turn, CPU s, wall s) in ms, and of ratios to ours of the same turn; without turn 0."""
    mine, theirs = ({turn: (cpu, wall) for turn, cpu, wall in t if turn} for t in (times, ours))
    row = {}
    for i, clock in enumerate(("CPU ", "")):
        values = [1e3 * mine[turn][i] for turn in mine]
        ratios = [mine[turn][i] / theirs[turn][i] for turn in mine]
        for name, numbers in ((f"{clock}ms", values), (f"{clock}ratio", ratios)):
            low, middle, high = np.quantile(numbers, (0.25, 0.5, 0.75)).tolist()
            row |= {name: middle, f"{name} low": low, f"{name} high": high}
    return row


def checked(peer: Peer, python: str, folder: pathlib.Path, name: str, settings: Settings) -> workload.Layers:
    """The weights after one round of the check, by a process that ends with it."""
    with started(peer, python, folder, name, settings) as running:
        ask(running, "run 1")
        return saved(running, folder / f"{name}.npz")


def saved(running: Running, path: pathlib.Path) -> workload.Layers:
    return workload.read_layers(ask(running, f"save {path.resolve()}")["saved"])


@contextlib.contextmanager
def started(peer: Peer, python: str, folder: pathlib.Path, name: str, settings: Settings) -> Iterator[Running]:
    """The peer's process, set up on the workload in `folder` and waiting; ended on leaving."""
    threads = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    around = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "PYTHONPATH")}
    around |= dict.fromkeys(threads, str(settings.cores)) | {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    if not peer.requirements:
        around["PYTHONPATH"] = str(HERE.parent)
    log = folder / f"{name}.log"
    with log.open("w") as errors, _pinned(settings.cores):
        process = subprocess.Popen(
            [python, str(peer.script), str(folder.resolve())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=around,
        )
    running = Running(process, log, settings.patience)
    try:
        _answer(running)  # ready
        yield running
    finally:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


@contextlib.contextmanager
def _pinned(cores: int) -> Iterator[None]:
    """This thread is held to so many cores, and with it what it starts, where the system can do that."""
    if not hasattr(os, "sched_setaffinity"):  # Linux has it
        yield
        return
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(allowed)[-cores:])
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def ask(running: Running, request: str) -> dict:
    """The peer's answer; see peers/protocol.py. Raises PeerError if it dies or takes too long."""
    with contextlib.suppress(BrokenPipeError):
        print(request, file=running.process.stdin, flush=True)
    return _answer(running)


def _answer(running: Running) -> dict:
    if not select.select([running.process.stdout], [], [], running.patience)[0]:
        running.process.kill()
        raise PeerError(f"no answer in {running.patience:.0f} s; see {running.log}")
    line = running.process.stdout.readline()
    if not line:
        said = running.log.read_text().strip().splitlines() or ["it ended without a word"]
        errors = [line for line in said if re.match(r"[\w.]+(Error|Exception)\b", line)]
        raise PeerError(f"{(errors or said)[-1]}; see {running.log}")
    return json.loads(line)


def environment(name: str, peer: Peer, settings: Settings) -> str:
    """The Python of the peer's environment, which is made if it is not there. Raises PeerError if it cannot be."""
    if not peer.requirements:
        return sys.executable
    folder = pathlib.Path(settings.cache).expanduser() / name
    python, kept = folder / "bin" / "python", folder / "requirements.txt"
    wanted = "\n".join(peer.requirements)
    if kept.exists() and kept.read_text() == wanted:
        return str(python)
    print(f"installing {', '.join(peer.requirements)} in {folder}")
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True)
    pip = [python, "-m", "pip", "install", "--quiet", "--retries", "1"]
    if any(r.startswith("torch==") for r in peer.requirements) and settings.torch_wheels:
        pip += ["--find-links", settings.torch_wheels]
    done = subprocess.run([*pip, *peer.requirements], stderr=subprocess.PIPE, text=True)
    if done.returncode:
        problems = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or [done.stderr.strip()]
        raise PeerError(f"cannot be installed: {problems[0]}")
    kept.write_text(wanted)
    return str(python)


def _known(what: str, given, table: Mapping) -> None:
    if unknown := set(given) - set(table):
        raise ValueError(f"{what} {sorted(unknown)} are not known; there are {sorted(table)}")


if __name__ == "__main__":
    main(tyro.cli(Settings))
