"""A round of ours compared with peers': fedjax, pfl, BlazeFL, DrJAX, Flower, a PyTorch loop, and one by hand in JAX.

    python -m benchmarks --only peers
    python -m benchmarks --only peers --peers.workloads mlp --peers.peers fedjax pfl
    python -m benchmarks --only peers --peers.device here --peers.peers hand torch pfl

Each peer is a script of benchmarks/peers in a process and an environment of its own (see peers/processes.py). All get
the same data, start and participants (Flower draws its own) and are timed in turn, A B C, C B A, ...; while one works
the others wait. CPU time is that of all threads and child processes. A ratio is of two timings of a turn: peer / ours.

That all do the same job is seen on a round of three clients whose result does not depend on shuffling (`difference`:
the most that a weight differs from ours) and in the loss after all rounds.
"""

import contextlib
import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Annotated

import numpy as np
import tyro

from benchmarks.peers import processes, workload
from benchmarks.peers.processes import HERE, TORCH, Peer, PeerError, ask, checked, environment, saved, started

JUDGED = 200  # examples in the loss
TOLERANCE = {"cpu": 1e-4, "here": 1e-3}  # of a weight after a round of the check; GPUs round factors
PEERS: Mapping[str, Peer] = {
    "ours": Peer(HERE / "our_round.py"),
    "hand": Peer(HERE / "hand_round.py"),
    # The newest JAX and Haiku that fedjax can be imported with.
    "fedjax": Peer(
        HERE / "fedjax_round.py",
        ("fedjax==0.0.17", "jax==0.4.30", "jaxlib==0.4.30", "dm-haiku==0.0.13", "optax==0.2.2", "chex==0.1.86")
        + ("scipy==1.12.0", "numpy==1.26.4"),
    ),
    "drjax": Peer(
        HERE / "drjax_round.py",
        ("drjax==0.2.1", "jax==0.10.2", "numpy==2.4.6"),
        without=dict.fromkeys(
            ("femnist_cnn", "cifar_cnn"),
            "XLA's convolutions in a vmapped loop on a CPU: 45 s for a round of femnist_cnn",
        ),
    ),
    "torch": Peer(HERE / "torch_round.py", TORCH),
    # 3.0 needs Python 3.14.
    "blazefl": Peer(HERE / "blazefl_round.py", ("blazefl==2.0.3", "tqdm", *TORCH), python="3.13"),
    "pfl": Peer(HERE / "pfl_round.py", ("pfl[pytorch]==0.6.0", *TORCH)),
    "flower": Peer(
        HERE / "flower_round.py",
        ("flwr[simulation]==1.42.0", *TORCH),
        without=dict.fromkeys(("femnist_cnn", "cifar_cnn"), "a supernode for each of thousands of clients"),
        repetitions=3,
    ),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of the measurement."""

    workloads: tuple[str, ...] = tuple(workload.KINDS)
    """Workloads that are measured."""
    peers: tuple[str, ...] = tuple(name for name in PEERS if name != "ours")
    """Peers that are compared with ours."""
    repetitions: int = 15
    """Timings of each peer; their median and quartiles are reported."""
    rounds: int | None = None
    """Rounds in one timing; None takes each workload's own number."""
    running: Annotated[processes.Settings, tyro.conf.arg(name="")] = processes.Settings()
    seed: int = 0
    """Seed of the data, the weights and the participants."""
    out: str = "runs/throughput_peers"
    """Folder of the workloads and of the peers' logs."""


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
            pythons[name] = environment(name, table[name], settings.running)
        except PeerError as error:
            reasons[name] = str(error)
    for kind in settings.workloads:
        task = workload.make(kinds[kind], settings.seed, settings.running.cores)
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
                first[name] = checked(peer, python, folder / "check", name, settings.running)
                running[name] = stack.enter_context(started(peer, python, folder, name, settings.running))
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
        if not rows[name]["difference"] <= TOLERANCE[settings.running.device]:
            died[name] = f"does not do the same job: after one round weights differ by {rows[name]['difference']:.1e}"
        rows[name] |= statistics(times[name], times["ours"])
    return {name: row for name, row in rows.items() if name not in died}, died


def statistics(times: list, ours: list) -> dict[str, float]:
    """Medians and quartiles of (turn, CPU s, wall s) in ms, and of ratios to ours of the same turn; without turn 0."""
    taken, theirs = ({turn: (cpu, wall) for turn, cpu, wall in t if turn} for t in (times, ours))
    row = {}
    for i, clock in enumerate(("CPU ", "")):
        values = [1e3 * taken[turn][i] for turn in taken]
        ratios = [taken[turn][i] / theirs[turn][i] for turn in taken]
        for name, numbers in ((f"{clock}ms", values), (f"{clock}ratio", ratios)):
            low, middle, high = np.quantile(numbers, (0.25, 0.5, 0.75)).tolist()
            row |= {name: middle, f"{name} low": low, f"{name} high": high}
    return row


def _known(what: str, given, table: Mapping) -> None:
    if unknown := set(given) - set(table):
        raise ValueError(f"{what} {sorted(unknown)} are not known; there are {sorted(table)}")
