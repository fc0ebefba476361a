"""The rows of a table, one a method, over several seeds, and the report of a study: table, controls and pictures."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.common import cli, data, jobs
from experiments.common.data import Problem, Settings, encoders, load_problem
from fedjax_mm import evaluate, report, run
from fedjax_mm.data import Dataset, FederatedData, pooled
from fedjax_mm.federate import Method
from fedjax_mm.methods import fedavg
from fedjax_mm.models import heads
from fedjax_mm.report.paired import difference_cells, interval
from fedjax_mm.report.runs import over_seeds
from fedjax_mm.types import FedState

OTHERS = "test/stateful/"  # scores of other rows than those of the constant prediction
COSTS = ("MB down", "MB up", "GFLOP per step", "peak MB", "s per round")


class Variant(NamedTuple):
    """One row of a table: a method on the federated or on pooled data; or, where build is None, what `score` gives of a
    problem and a split, or the constant prediction."""

    build: Callable[[Problem], Method] | None
    config: Any = None
    pool: Callable[[Problem], FederatedData] | None = None  # all examples as those of one client
    score: Callable[[Problem, str], Mapping[str, float]] | None = None
    watch: Sequence[Callable[..., Any]] = ()  # of run.train
    evaluate: Callable[[Problem, str], Mapping[str, Any]] | None = None  # a problem and a split -> that of run.train
    everyone: bool = False  # all clients take part in every round: a round stands for an epoch and nothing travels
    control: bool = False  # shown apart from the methods
    travels: bool = True  # False: what clients send is not used, and not counted


CONSTANT = Variant(None, control=True)
POOLED = lambda problem: pooled(problem.data)


def fedavg_variant(config: fedavg.FedAvgConfig, **settings: Any) -> Variant:
    """A row of federated averaging."""

    def build(problem: Problem) -> Method:
        head = heads.linear(len(problem.dataset.classes), problem.dtype)
        return fedavg.build(config, problem.data, encoders(problem.dataset, dtype=problem.dtype), head)

    return Variant(build, config, **settings)


def controls(config: fedavg.FedAvgConfig) -> dict[str, Variant]:
    """The controls of every table, with the same model, rate, batch size and epochs."""
    plain = dataclasses.replace(config, prox=0.0, server_optimizer="sgd", server_lr=1.0, multimodal_weight=1.0)
    return {
        "constant": CONSTANT,
        "local only": fedavg_variant(dataclasses.replace(plain, shared=()), everyone=True, control=True),
        "centralised": fedavg_variant(plain, pool=POOLED, control=True),
    }


def compare(
    problem: Settings, make_variants: Callable[[], Mapping[str, Variant]], study: Any = None
) -> list[dict[str, Any]]:
    """A row per variant (see report.summary), with scores as (mean, sample standard deviation) over the seeds.

    make_variants: a function that can be pickled, so that every process of --jobs has variants of its own.
    Each run is written to out/variant/seed<k>, with the settings of the whole study, by default those of the problem.
    """
    for seed in problem.common.all_seeds:  # what is wrong with the data is said before the first run
        load_problem(problem, seed)
    variants = make_variants()
    train = functools.partial(_finish, make_variants, problem, problem if study is None else study)
    folders = jobs.trained(train, [name for name, one in variants.items() if one.build], problem.common)
    return _with_constant([_row(name, one, folders.get(name, []), problem) for name, one in variants.items()])


def folder(common: cli.Common, name: str, seed: int) -> pathlib.Path:
    """The folder of a row's run of one seed."""
    return pathlib.Path(common.out) / name.replace(" ", "_") / f"seed{seed}"


def finish(
    method: Any, data: FederatedData, common: cli.Common, study: Any, name: str, seed: int, **given: Any
) -> tuple[pathlib.Path, FedState]:
    """(folder, last state) of a row's run of one seed, which is trained to its end; `given` goes to run.train.

    The folder gets settings.yaml: the study's settings with this seed alone.
    """
    directory = folder(common, name, seed)
    if not (directory / cli.FILE).exists():
        cli.write(directory, study, seed=seed)
    chunk = common.chunk if common.chunk == "auto" else int(common.chunk)
    quiet = {"log": lambda line: None, "progress": None if common.jobs == 1 else False}  # bars would overwrite others'
    states = directory / "client_states" if common.client_state == "folder" else common.client_state
    given = {"directory": directory, "chunk": chunk, "devices": common.devices, "client_state": states} | quiet | given
    if common.checkpoint_every:
        given["checkpoint_every"] = common.checkpoint_every
    state = run.train(method, data, seed=seed, **given)
    cli.write(directory, study, seed=seed)  # a run that was there may go on with more rounds
    print(f"{name}, seed {seed}: done", flush=True)
    return directory, state


def of_a_run(settings: Any) -> dict[str, Any]:
    """The settings that decide what a run gives, for its config.json: more seeds or a moved folder change no run."""
    about = (
        "data_dir mode modes sizes plan method rows teachers trunk seed seeds tuning_seeds chunk devices client_state "
    )
    about = f"{about} checkpoint_every jobs out head_rates encoder_rates".split()
    nested = lambda value: dataclasses.is_dataclass(value) and not isinstance(value, type)
    plain = lambda value: dataclasses.asdict(value) if nested(value) else value
    return {key: plain(value) for key, value in cli.by_flag(settings).items() if key not in about}


def _row(name: str, variant: Variant, folders: Sequence[pathlib.Path], settings: Settings) -> dict[str, Any]:
    if variant.score:
        scores = [variant.score(load_problem(settings, k), settings.common.split) for k in settings.common.all_seeds]
        return {"method": name} | {f"test/{key}": over_seeds([one[key] for one in scores]) for key in scores[0]}
    if variant.build is None:
        scores = []
        for seed in settings.common.all_seeds:
            dataset = load_problem(settings, seed).dataset
            train, test = (dataset.splits[split]["label"] for split in ("train", settings.common.split))
            scores.append(evaluate.constant(train, test, len(dataset.classes)))
        return {"method": name, "constant": {key: [score[key] for score in scores] for key in scores[0]}}
    (row,) = report.summary([report.load(folder) for folder in folders])
    alone = variant.pool is not None or not variant.travels
    return {**row, "method": name} | ({"MB down": None, "MB up": None} if alone else {})


def _finish(
    make_variants: Callable[[], Mapping[str, Variant]], settings: Settings, study: Any, name: str, seed: int
) -> pathlib.Path:
    """The folder of a row's run of one seed, trained to its end."""
    variant, problem = make_variants()[name], load_problem(settings, seed)
    assert variant.build is not None
    tested, common = data.tested(problem, settings.common.split), settings.common
    others = variant.evaluate(problem, common.split) if variant.evaluate else {}
    if variant.pool:
        problem = problem._replace(data=variant.pool(problem))
    share = 1.0 if variant.pool or variant.everyone else settings.fraction if variant.travels else 0.0
    done, _ = finish(
        variant.build(problem),
        problem.data,
        common,
        study,
        name,
        seed,
        rounds=common.rounds,
        per_round=data.taking_part(problem, share),
        test=tested,
        evaluate=others,
        evaluate_every=max(1, common.rounds // 6),
        checkpoint_every=max(1, common.rounds // 3),
        watch=variant.watch,
        config=variant.config,
    )
    return done


def write(
    settings: Settings,
    variants: Mapping[str, Variant],
    rows: list[dict[str, Any]],
    title: str,
    metrics: Sequence[str] = ("macro_f1",),
    notes: Sequence[str] = (),
    study: Any = None,
) -> None:
    """Prints the table of `metrics` and writes report.md (with all metrics), table.json and the pictures to `out`."""
    common, out = settings.common, pathlib.Path(settings.common.out)
    seeds, problem = common.all_seeds, load_problem(settings, common.all_seeds[0])
    tested = list(dict.fromkeys(key for row in rows for key in row if key.startswith("test/")))
    columns = {"method": "method"}
    columns |= {key: report.heading(key) for metric in metrics for key in tested if key.endswith(f"/{metric}")}
    columns |= {key: key for key in COSTS}
    shown = f"test/{'+'.join(problem.dataset.modalities)}/{metrics[0]}"
    apart = [name for name, variant in variants.items() if variant.control]
    methods = [name for name in variants if name not in apart]
    report.plot_bars(rows, out / "bars.png", quality=shown, label="method", controls=apart)
    first = report.load(folder(common, methods[0], seeds[0]))
    report.plot_split(first.split, out / "split.png", problem.dataset.classes)
    runs = [report.load(folder(common, name, seed)) for name in methods for seed in seeds]
    report.plot_curves(runs, [shown], out / "curves.png")
    sizes = ", ".join(f"{len(arrays['label'])} {name}" for name, arrays in problem.dataset.splits.items())
    about = (
        f"{settings.data}, clients {settings.cohorts}, {common.rounds} rounds, {common.about_seeds}, {common.split} "
        f"split. Examples at seed {seeds[0]}: {sizes}."
    )
    parts = ["![scores and bytes](bars.png)", *notes, "## Over rounds", "![curves](curves.png)"]
    parts += [f"## Who holds what (seed {seeds[0]})", report.table(report.split_table(first.split))]
    parts += ["![split](split.png)", "Share of each class in each split:", report.table(_class_shares(problem.dataset))]
    others = {key: report.heading(key) for key in tested if key not in columns}
    parts += ["## Other metrics", report.table(rows, {"method": "method"} | others)] if others else []
    save(common, settings if study is None else study, title, about, rows, columns, parts, first)


def save(
    common: cli.Common,
    study: Any,
    title: str,
    about: str,
    rows: list[dict[str, Any]],
    columns: Mapping[str, str],
    parts: Sequence[str],
    first: report.Run,
) -> None:
    """Prints a table and writes report.md, `parts` after the table, table.json and settings.yaml to `out`.

    first: a run whose versions and device the report states.
    """
    out = pathlib.Path(common.out)
    report.show(rows, columns)
    device = f"Run on {first.config['device']}, {first.config['versions']}."
    text = [f"# {title}", about, report.table(rows, columns), *parts, device]
    (out / "report.md").write_text("\n\n".join(text) + "\n")
    kept = {"settings": dataclasses.asdict(study), "versions": first.config["versions"]}
    kept |= {"device": first.config["device"], "rows": rows}
    (out / "table.json").write_text(json.dumps(kept, indent=1))
    cli.write(out, study)
    print(f"{about}\nWrote {out}/report.md and its pictures.")


def ahead(
    rows: Mapping[str, Sequence[Mapping[str, float]]], leader: str, keys: Mapping[str, str]
) -> list[dict[str, Any]]:
    """How far one row is ahead of every other, seed by seed on the same split and clients: the mean difference and its
    95 % interval by Student's t, or the difference of a single seed.

    rows: last metrics of each row's runs, one a seed. keys: metric -> its heading; one that a row lacks is left out.
    """
    found = []
    for name in (name for name in rows if name != leader):
        row: dict[str, Any] = {f"{leader} minus": name}
        for key, heading in keys.items():
            if key in rows[name][0]:
                row[heading] = difference([a[key] - b[key] for a, b in zip(rows[leader], rows[name], strict=True)])
        found.append(row)
    return found


def difference(values: Sequence[float]) -> float | str:
    """The mean over seeds and its 95 % interval in words; of one seed its value."""
    if len(values) < 2:
        return values[0]
    mean, ends = difference_cells(*interval(values)).values()
    return f"{mean} ({ends})"


def _class_shares(dataset: Dataset) -> list[dict[str, Any]]:
    shares = lambda labels: np.bincount(labels, minlength=len(dataset.classes)) / len(labels)
    by_split = {split: shares(arrays["label"]) for split, arrays in dataset.splits.items()}
    return [{"split": split, **dict(zip(dataset.classes, map(float, s), strict=True))} for split, s in by_split.items()]


def _with_constant(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows, the constant prediction with the same score whatever is tested."""
    tested = [key for row in rows for key in row if key.startswith("test/")]
    for row in rows:
        if "constant" in row:
            values = row.pop("constant")
            known = {key: key.rpartition("/")[2] for key in tested if not key.startswith(OTHERS)}
            row |= {key: over_seeds(values[metric]) for key, metric in known.items() if metric in values}
    return rows
