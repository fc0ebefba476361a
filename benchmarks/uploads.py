"""What uploads cost in scores: FedAvg and FedMEKT on UR Fall, CreamFL on scenes, with each transform and each epsilon.

python -m benchmarks uploads --data-dir DIR        DIR: the folder of UR Fall; without it these two methods are skipped
python -m benchmarks uploads --only creamfl --seeds 1

A row is a run: its score on the test split, the bytes that a client sends in a round as `costs` counts them, and the
epsilon that it spent. docs/uploads.md has a table.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from benchmarks.upload_picture import draw
from experiments.common import cli, data, tables
from experiments.creamfl import study as creamfl_study
from experiments.creamfl.data import Numbers
from experiments.fedavg import study as fedavg_study
from experiments.fedmekt import study as fedmekt_study
from fedjax_mm import costs, participation, report, run, uploads
from fedjax_mm.data import FederatedData
from fedjax_mm.federate import Method
from fedjax_mm.methods import fedmekt
from fedjax_mm.methods.fedavg import FedAvgConfig
from fedjax_mm.uploads.privacy import Privacy, noise_for

Name = Literal["fedavg", "fedmekt", "creamfl"]
COMPRESSIONS = {
    "as it is": None,
    "16 bits": uploads.quantise(16),
    "8 bits": uploads.quantise(8),
    "4 bits": uploads.quantise(4),
    "top 10%": uploads.error_feedback(uploads.top_k(0.1)),
    "top 1%": uploads.error_feedback(uploads.top_k(0.01)),
    "top 10%, 8 bits": uploads.error_feedback(uploads.chain(uploads.top_k(0.1), uploads.quantise(8))),
    "random 10%": uploads.error_feedback(uploads.random_k(0.1, unbiased=False)),
    "rank 2": uploads.error_feedback(uploads.low_rank(2)),
    "signs": uploads.error_feedback(uploads.sign()),
}
COLUMNS = ("method", "upload", "epsilon", "score", "kB up")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Which methods, for how long, and the noise."""

    only: tuple[Name, ...] = get_args(Name)
    """Methods that are measured."""
    data_dir: str | None = None
    """Folder of UR Fall. None skips FedAvg and FedMEKT."""
    transforms: tuple[str, ...] = tuple(COMPRESSIONS)
    """Compressions that are measured, by their names in COMPRESSIONS."""
    seeds: int = 3
    """Seeds, from 0."""
    rounds: int = 40
    """Rounds of FedAvg; FedMEKT has half as many, and CreamFL 8."""
    cohorts: str = "A10_B10_AB10"
    """Clients of UR Fall in the runs without noise."""
    private_cohorts: str = "A40_B40_AB40"
    """Clients of UR Fall in the runs with noise, in which few clients drown; their classes are less skewed."""
    epsilons: tuple[float, ...] = (8.0, 4.0, 1.0)
    """What a run of FedAvg or FedMEKT may spend."""
    local_epsilons: tuple[float, ...] = (1000.0, 100.0, 8.0)
    """What a run of CreamFL may spend: its uploads are seen one by one, so each client adds noise to its own."""
    out: str = "runs/uploads"
    """Folder of uploads.json and uploads.png."""


class Task(NamedTuple):
    """A method and its data, as one seed has them."""

    method: Method
    data: FederatedData
    test: Mapping[str, np.ndarray]
    score: str  # key of the method's scores
    per_round: int | Mapping[str, int]
    rounds: int
    change: bool  # whether what clients send is best seen as a change
    clip: float


def ur_fall(settings: Settings, name: Name, seed: int, private: bool) -> Task:
    """FedAvg or FedMEKT. With noise, the server of FedAvg takes plain steps: Adam's are as long for noise alone."""
    code = settings.private_cohorts if private else settings.cohorts
    problem = data.load("ur_fall", settings.data_dir, code, 1.0 if private else 0.3, seed)
    third = data.taking_part(problem, 1 / 3)
    test = problem.dataset.splits["test"]
    both = "+".join(problem.dataset.modalities)
    if name == "fedavg":
        config = fedavg_study.PRESETS["ur_fall"].method
        if private:
            config = FedAvgConfig(client_lr=config.client_lr, batch_size=config.batch_size, epochs=config.epochs)
        method = tables.fedavg_variant(config).build(problem)
        rounds = settings.rounds // (2 if private else 1)
        return Task(method, problem.data, test, f"{both}/macro_f1", third, rounds, True, 0.3)
    study = fedmekt_study.PRESETS["ur_fall"]
    method = fedmekt_study.variant(fedmekt, study.method, study.autoencoder).build(problem)
    return Task(method, problem.data, test, f"{both}/macro_f1", third, settings.rounds // 2, True, 1.0)


def scenes(seed: int) -> Task:
    """CreamFL with few clients. All models have learnt from other examples before."""
    numbers = Numbers(image=4, text=4, both=6, per_client=60, public=600, test=200, asked=8, pretraining=3000)
    settings = creamfl_study.Settings(numbers=numbers, pretraining=8, epochs=2, common=cli.Common(seeds=1))
    problem = creamfl_study.load(settings, seed)
    method = creamfl_study.method_of(settings, "CreamFL", problem)
    return Task(method, problem.data, problem.test, "rsum", 6, 8, False, float(np.sqrt(numbers.public)))


def task_of(settings: Settings, name: Name, seed: int, private: bool) -> Task:
    """The method by name, and its data."""
    return scenes(seed) if name == "creamfl" else ur_fall(settings, name, seed, private)


def compressed(task: Task, transform: uploads.Transform | None) -> Method:
    """The method whose uploads, or their changes, pass the transform."""
    if transform is None:
        return task.method
    return uploads.attach(task.method, uploads.on_change(transform) if task.change else transform, task.data)


def score(task: Task, method: Method, seed: int, **settings: Any) -> float:
    """The score after the last round."""
    who = {} if "choose" in settings else {"per_round": task.per_round}
    quiet = {"log": lambda line: None, "progress": False}
    state = run.train(method, task.data, rounds=task.rounds, seed=seed, **who, **quiet, **settings)
    return float(method.evaluate(state, task.test)[task.score])


def kilobytes(task: Task, method: Method) -> float:
    """What a client sends in a round, of the cohort that sends most."""
    nobody = {name: np.arange(1) for name in task.data.sizes}
    return max(cost.bytes_up for cost in costs.of(method, task.data.round(nobody)).values()) / 1e3


def of_bytes(settings: Settings, name: Name) -> list[dict[str, Any]]:
    """A row for every compression."""
    rows = []
    for label in settings.transforms:
        transform = COMPRESSIONS[cli.one_of("transform", label, COMPRESSIONS)]
        tasks = [task_of(settings, name, seed, private=False) for seed in range(settings.seeds)]
        scores = [score(task, compressed(task, transform), seed) for seed, task in enumerate(tasks)]
        size = kilobytes(tasks[0], compressed(tasks[0], transform))
        rows.append({"method": name, "upload": label, "epsilon": None, "score": tables.spread(scores), "kB up": size})
        print(rows[-1], flush=True)
    return rows


def of_epsilon(settings: Settings, name: Name) -> list[dict[str, Any]]:
    """A row for every epsilon, and one for the clip alone."""
    rows = []
    for epsilon in (None, *(settings.local_epsilons if name == "creamfl" else settings.epsilons)):
        tasks = [task_of(settings, name, seed, private=True) for seed in range(settings.seeds)]
        made = [with_noise(task, name, epsilon) for task in tasks]
        scores = [
            score(task, method, seed, **how)
            for seed, (task, (method, how, _)) in enumerate(zip(tasks, made, strict=True))
        ]
        _, _, z = made[0]
        label = "clipped" if epsilon is None else f"clipped, noise {z:.2f}"
        row = {"method": name, "upload": label, "epsilon": epsilon, "score": tables.spread(scores)}
        rows.append({**row, "kB up": kilobytes(tasks[0], made[0][0]), "private": True})
        print(rows[-1], flush=True)
    return rows


def with_noise(task: Task, name: Name, epsilon: float | None) -> tuple[Method, dict[str, Any], float]:
    """(the method, the settings of its run, the noise multiplier). delta is 1 / the number of clients, at most.

    FedAvg and FedMEKT: the server's noise, each client taking part by itself. CreamFL: each client's own.
    """
    clients = sum(task.data.sizes.values())
    delta = 10.0 ** np.floor(-np.log10(clients))
    if name == "creamfl":
        z = 0.0 if epsilon is None else noise_for(epsilon, delta, task.rounds, "local")
        noise = uploads.chain(uploads.clip_by_norm(task.clip), uploads.add_noise(z * task.clip))
        return uploads.attach(task.method, noise, task.data), {}, z
    rate = 1 / 3
    z = 0.0 if epsilon is None else noise_for(epsilon, delta, task.rounds, "independent", rate)
    expected = {cohort: rate * n for cohort, n in task.data.sizes.items()}
    method = uploads.central_noise(
        task.method, task.data, clip=task.clip, noise_multiplier=z, denominator=expected, weight_cap=None
    )
    choose = participation.independent(task.data, rate)
    watch = [Privacy(z, delta, "independent", rate, every=task.rounds)] if z else []
    return method, {"choose": choose, "watch": watch}, z


def main(arguments: Sequence[str]) -> pathlib.Path:
    """Runs what the arguments ask for, prints the tables and writes uploads.json and uploads.png."""
    settings = cli.parse(Settings(), arguments, __doc__)
    cli.cache_compilations()
    out = pathlib.Path(settings.out)
    cli.write(out, settings)
    rows = []
    for name in settings.only:
        if name != "creamfl" and settings.data_dir is None:
            print(f"{name} is skipped: --data-dir names no folder of UR Fall")
            continue
        rows += of_bytes(settings, name) + of_epsilon(settings, name)
        (out / "uploads.json").write_text(json.dumps(rows, indent=1))  # after each method, so that what is done stays
    report.show(rows, COLUMNS)
    (out / "uploads.md").write_text(report.table(rows, COLUMNS))
    draw(rows, out / "uploads.png")
    print(f"written to {out}")
    return out
