"""What uploads cost in scores: FedAvg and FedMEKT on UR Fall, CreamFL on scenes, with each transform and each epsilon.

python -m benchmarks uploads --data-dir DIR        DIR: the folder of UR Fall; without it these two methods are skipped
python -m benchmarks uploads --only creamfl --seeds 1

A row is a method with one upload: its score on the test split over the seeds, how far that is from the row without a
transform (or without noise), the bytes that a client sends in a round as `costs` counts them, and the epsilon that it
spent. Controls send nothing. Runs that are found in --out are not repeated. docs/uploads.md has a table.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, get_args

import numpy as np

from benchmarks.upload_picture import draw
from experiments.common import cli, data, jobs, tables
from experiments.creamfl import study as creamfl_study
from experiments.creamfl.data import Numbers
from experiments.fedavg import study as fedavg_study
from experiments.fedmekt import study as fedmekt_study
from fedjax_mm import _lazy, evaluate, participation, report, uploads
from fedjax_mm.data import FederatedData
from fedjax_mm.federate import Method
from fedjax_mm.methods.fedavg import FedAvgConfig
from fedjax_mm.report.paired import difference_cells, interval
from fedjax_mm.report.runs import over_seeds
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
ALONE = {"fedavg": "local only", "fedmekt": "server only", "creamfl": "server only"}
"""The control that learns without uploads."""
COLUMNS = ("method", "upload", "epsilon", "score", "difference", "95 % interval", "kB up")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Which methods, for how long, and the noise."""

    only: tuple[Name, ...] = get_args(Name)
    """Methods that are measured."""
    transforms: tuple[str, ...] = tuple(COMPRESSIONS)
    """Compressions that are measured, by their names in COMPRESSIONS."""
    cohorts: str = "A10_B10_AB10"
    """Clients of UR Fall in the runs without noise."""
    private_cohorts: str = "A40_B40_AB40"
    """Clients of UR Fall in the runs with noise, in which few clients drown; their classes are less skewed."""
    epsilons: tuple[float, ...] = (8.0, 4.0, 1.0)
    """What a run of FedAvg or FedMEKT may spend."""
    local_epsilons: tuple[float, ...] = (1000.0, 100.0, 8.0)
    """What a run of CreamFL may spend: its uploads are seen one by one, so each client adds noise to its own."""
    common: Annotated[cli.Common, cli.FLAT] = cli.Common(rounds=40, seeds=5, out="runs/uploads")
    """--rounds are those of FedAvg without noise; the others have half as many, and CreamFL a fifth."""


class Row(NamedTuple):
    """A method with one upload, or a control, which sends nothing that is used."""

    method: Name
    upload: str
    private: bool = False  # clipped, and with noise where there is an epsilon
    epsilon: float | None = None
    control: bool = False


class Task(NamedTuple):
    """A method and its data, as one seed has them."""

    method: Method
    alone: Method  # the control that learns without uploads
    data: FederatedData
    test: Mapping[str, np.ndarray]
    score: str  # key of the method's scores
    per_round: int | Mapping[str, int]
    rounds: int
    change: bool  # whether what clients send is best seen as a change
    clip: float


def all_rows(settings: Settings) -> dict[str, Row]:
    """The rows of the table by the names of their folders."""
    rows = []
    for name in settings.only:
        labels = [cli.one_of("transform", label, COMPRESSIONS) for label in settings.transforms]
        epsilons = settings.local_epsilons if name == "creamfl" else settings.epsilons
        rows += [
            *(Row(name, label) for label in labels),
            Row(name, ALONE[name], control=True),
            Row(name, "clipped", True),
        ]
        rows += [Row(name, f"clipped, epsilon {epsilon:g}", True, epsilon) for epsilon in epsilons]
        if name != "creamfl":  # whose runs with and without noise have the same clients, and so the same control
            rows.append(Row(name, ALONE[name], True, control=True))
    return {f"{row.method}{'_private' * row.private}/{row.upload}".replace("%", " percent"): row for row in rows}


@functools.lru_cache(2)
def task_of(settings: Settings, name: Name, seed: int, private: bool) -> Task:
    """The method by name, and its data."""
    return scenes(settings, seed) if name == "creamfl" else ur_fall(settings, name, seed, private)


def ur_fall(settings: Settings, name: Name, seed: int, private: bool) -> Task:
    """FedAvg or FedMEKT. With noise, the server of FedAvg takes plain steps: Adam's are as long for noise alone."""
    common, code = settings.common, settings.private_cohorts if private else settings.cohorts
    problem = data.load("ur_fall", common.data_dir, code, 1.0 if private else 0.3, seed)
    some = data.taking_part(problem, 1 / 3)
    test = data.tested(problem, common.split)
    both = "+".join(problem.dataset.modalities)
    if name == "fedavg":
        config = fedavg_study.PRESETS["ur_fall"].method
        alone = tables.controls(config)[ALONE[name]]
        if private:
            config = FedAvgConfig(client_lr=config.client_lr, batch_size=config.batch_size, epochs=config.epochs)
        method, rounds, clip = tables.fedavg_variant(config), common.rounds // (2 if private else 1), 0.3
    else:
        study = fedmekt_study.PRESETS["ur_fall"]
        alone, rounds, clip = fedmekt_study.controls(study)[ALONE[name]], common.rounds // 2, 1.0
        method = fedmekt_study.variants(study)["FedMEKT"]
    assert method.build is not None and alone.build is not None
    made = method.build(problem), alone.build(problem)
    return Task(*made, problem.data, test, f"{both}/macro_f1", some, max(1, rounds), True, clip)


def scenes(settings: Settings, seed: int) -> Task:
    """CreamFL with few clients. All models have learnt from other examples before."""
    numbers = Numbers(image=4, text=4, both=6, per_client=60, public=600, test=200, asked=8, pretraining=3000)
    common = cli.Common(seeds=1, split=settings.common.split)
    study = creamfl_study.Settings(numbers=numbers, pretraining=8, epochs=2, common=common)
    problem = creamfl_study.load(study, seed)
    method, alone = (creamfl_study.method_of(study, row, problem) for row in ("CreamFL", ALONE["creamfl"]))
    rounds, clip = max(1, settings.common.rounds // 5), float(np.sqrt(numbers.public))
    return Task(method, alone, problem.data, problem.test, "rsum", 6, rounds, False, clip)


def train(settings: Settings, name: str, seed: int) -> pathlib.Path:
    """The folder of a row's run of one seed, trained to its end."""
    row = all_rows(settings)[name]
    task = task_of(settings, row.method, seed, row.private)
    how: dict[str, Any] = {"per_round": task.per_round}
    if row.control:
        method = task.alone
        if row.method == "fedavg":  # clients that learn alone do so in every round
            how = {"per_round": dict(task.data.sizes)}
    elif row.private:
        method, how = with_noise(task, row)
    else:
        method = compressed(task, COMPRESSIONS[row.upload])
    about = {"row": row._asdict(), "clip": task.clip if row.private else None}
    given = {"rounds": task.rounds, "test": task.test, "evaluate_every": task.rounds, "checkpoint_every": task.rounds}
    folder, _ = tables.finish(method, task.data, settings.common, settings, name, seed, config=about, **given, **how)
    return folder


def compressed(task: Task, transform: uploads.Transform | None) -> Method:
    """The method whose uploads, or their changes, pass the transform."""
    if transform is None:
        return task.method
    return uploads.attach(task.method, uploads.on_change(transform) if task.change else transform, task.data)


def with_noise(task: Task, row: Row) -> tuple[Method, dict[str, Any]]:
    """(the method, the settings of its run). delta is 1 / the number of clients, at most.

    FedAvg and FedMEKT: the server's noise, each client taking part by itself. CreamFL: each client's own.
    """
    clients = sum(task.data.sizes.values())
    delta = 10.0 ** np.floor(-np.log10(clients))
    if row.method == "creamfl":
        z = 0.0 if row.epsilon is None else noise_for(row.epsilon, delta, task.rounds, "local")
        noise = uploads.chain(uploads.clip_by_norm(task.clip), uploads.add_noise(z * task.clip))
        return uploads.attach(task.method, noise, task.data), {"per_round": task.per_round}
    rate = 1 / 3
    z = 0.0 if row.epsilon is None else noise_for(row.epsilon, delta, task.rounds, "independent", rate)
    expected = {cohort: rate * n for cohort, n in task.data.sizes.items()}
    method = uploads.central_noise(
        task.method, task.data, clip=task.clip, noise_multiplier=z, denominator=expected, weight_cap=None
    )
    watch = [Privacy(z, delta, "independent", rate, every=task.rounds)] if z else []
    return method, {"choose": participation.independent(task.data, rate), "watch": watch}


def result(settings: Settings, row: Row, runs: Sequence[report.Run], first: Mapping[str, Sequence[float]]) -> Any:
    """A row of the table. first: (method, private) -> scores of the row that it is compared with."""
    key = f"test/{task_of(settings, row.method, settings.common.all_seeds[0], row.private).score}"
    scores = [run.rows[-1][key] for run in runs]
    shown = {"method": row.method, "upload": row.upload, "epsilon": row.epsilon, "private": row.private}
    shown |= {"control": row.control, "score": over_seeds(scores), "scores": scores}
    base = first.get((row.method, row.private), [])
    if base and len(scores) > 1 and base != scores:
        shown |= difference_cells(*interval([a - b for a, b in zip(scores, base, strict=True)]))
    if not row.control:
        shown["kB up"] = max(cost["bytes_up"] for cost in runs[0].costs.values()) / 1e3
    return shown


def constant(settings: Settings, row: Row) -> dict[str, Any]:
    """The row of the control that always says the most frequent class."""
    scores = []
    for seed in settings.common.all_seeds:
        code = settings.private_cohorts if row.private else settings.cohorts
        _, dataset = data.load("ur_fall", settings.common.data_dir, code, 1.0 if row.private else 0.3, seed)
        train, test = (dataset.splits[split]["label"] for split in ("train", settings.common.split))
        scores.append(evaluate.constant(train, test, len(dataset.classes))["macro_f1"])
    shown = {"method": row.method, "upload": "constant", "private": row.private, "control": True}
    return {**shown, "score": over_seeds(scores), "scores": scores}


def main(arguments: Sequence[str]) -> pathlib.Path:
    """Runs what the arguments ask for, prints the table and writes uploads.json, uploads.md and uploads.png."""
    settings = cli.parse(Settings(), arguments, __doc__)
    cli.cache_compilations()
    if settings.common.data_dir is None and set(settings.only) != {"creamfl"}:
        print("fedavg and fedmekt are skipped: --data-dir names no folder of UR Fall")
        settings = dataclasses.replace(settings, only=tuple(name for name in settings.only if name == "creamfl"))
    out = pathlib.Path(settings.common.out)
    cli.write(out, settings)
    chosen = all_rows(settings)
    if any(row.epsilon for row in chosen.values() if row.method != "creamfl"):
        _lazy.require("dp_accounting", "privacy")  # now, and not after an hour
    runs = jobs.loaded(functools.partial(train, settings), list(chosen), settings.common)
    rows, first = [], {}
    for name, row in chosen.items():
        rows.append(result(settings, row, runs[name], first))
        if not row.control:
            first.setdefault((row.method, row.private), rows[-1]["scores"])
        elif row.method != "creamfl":
            rows.append(constant(settings, row))
    device = runs[next(iter(runs))][0].config
    kept = {"settings": dataclasses.asdict(settings), "versions": device["versions"], "device": device["device"]}
    (out / "uploads.json").write_text(json.dumps({**kept, "rows": rows}, indent=1))
    report.show(rows, COLUMNS)
    (out / "uploads.md").write_text(report.table(rows, COLUMNS))
    draw(rows, out / "uploads.png")
    print(f"written to {out}")
    return out
