"""The tables and pictures of FedDAT's study: scores of all clients and of each, what is trained, what travels."""

import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.common import cli, jobs, tables
from experiments.feddat import study
from experiments.feddat.modes import modes, size
from fedjax_mm import report
from fedjax_mm.data import vqa
from fedjax_mm.report.curves import plot_curves
from fedjax_mm.report.runs import over_seeds

CURVES = ("standalone", "lora", "full", "adapter", "dat", "dat, no distillation")
CONTROLS = ("constant", "classifier", "standalone")


def compare(
    settings: study.Settings, own: Mapping[str, Mapping[str, Any]] = {}, notes: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """A row per mode: scores of all clients and of each, what is trained, what travels.

    own: mode -> values of its own (see `study.mode_of`); notes: parts of the report after the table.
    """
    common, names = settings.common, settings.modes or modes(settings.training)
    cli.write(common.out, settings)
    rows = [constant(settings)]  # first: it makes the trunk where there is none, which the processes then find
    runs = jobs.loaded(functools.partial(study.train, settings, own), names, common)
    for name, same in runs.items():
        rows += _rows(settings, name, same)
    problem = study.load(settings, common.all_seeds[0])
    clients = list(problem.tasks.tasks)
    columns = {"mode": "mode", "score": "score"} | {name: name for name in clients}
    columns |= {key: key for key in ("trained", "MB up", "peak MB", "s per round")}
    curves = _draw(pathlib.Path(common.out), rows, runs)
    about = (
        f"{settings.data}{f', {settings.benchmark}' if settings.benchmark else ''}, {len(clients)} clients, "
        f"all in each of {common.rounds} rounds, {common.about_seeds}, {common.split} split; VQA scores in percent."
    )
    parts = ["![scores and bytes](bars.png)"]
    if "dat" in runs:
        parts += ["## Differences within a seed (mean and 95 % interval)", report.table(paired(runs, clients))]
    parts += [*notes]
    parts += ["## Over rounds", "![curves](curves.png)"] if curves else []
    parts += [f"## Who is asked what (seed {common.all_seeds[0]})", report.table(_asked(problem.tasks))]
    parts += [f"Trunk: {problem.trunk.scores}."]
    tables.save(common, settings, "FedDAT", about, rows, columns, parts, next(iter(runs.values()))[0])
    return rows


def single(settings: study.Settings) -> None:
    """Runs one mode and prints its rows."""
    rows = [constant(settings)]  # first, as in `compare`
    runs = jobs.loaded(functools.partial(study.train, settings, {}), [settings.mode], settings.common)
    report.show([*rows, *_rows(settings, settings.mode, runs[settings.mode])])


def _draw(out: pathlib.Path, rows: Sequence[dict[str, Any]], runs: Mapping[str, list[report.Run]]) -> bool:
    """Writes bars and curves; whether there are curves."""
    whole = [row for row in rows if "MB up" in row]
    bars = {"quality": "score", "quality_axis": "mean VQA score of the clients", "cost": ("MB down", "MB up")}
    report.plot_bars([rows[0], *whole], out / "bars.png", label="mode", controls=CONTROLS, **bars)
    curves = {name: [run.rows for run in runs[name]] for name in CURVES if name in runs}
    if curves:
        plot_curves(curves, ["test/score"], out / "curves.png")
    return bool(curves)


def constant(settings: study.Settings) -> dict[str, Any]:
    """The row of each client's commonest answer."""
    scores = []
    for seed in settings.common.all_seeds:
        splits = {name: task.splits for name, task in study.load(settings, seed).tasks.tasks.items()}
        first = {name: split[settings.common.split]["target"][:, 0] for name, split in splits.items()}
        scores.append({name: 100 * float(target.mean()) for name, target in first.items()})
    whole = over_seeds([float(np.mean(list(one.values()))) for one in scores])
    by_client = {name: over_seeds([one[name] for one in scores]) for name in scores[0]}
    return {"mode": "constant", "score": whole, **by_client}


def _rows(settings: study.Settings, name: str, same: list[report.Run]) -> list[dict[str, Any]]:
    """One row, and of a run with two adapters one more for each of them alone."""
    (row,) = report.summary(same)
    problem, rows = study.load(settings, settings.common.all_seeds[0]), []
    mode = modes(settings.training)[name]
    counted = size(mode, settings.widths, problem.data, problem.trunk.model, problem.trunk.params, problem.head)
    kinds = {"score": "", "local": ", its own adapter", "shared": ", the shared adapter"}
    for kind, addition in ((kind, addition) for kind, addition in kinds.items() if f"test/{kind}" in row):
        scores = {"score": row[f"test/{kind}"]}
        scores |= {client: row[f"test/client {i}/{kind}"] for i, client in enumerate(problem.tasks.tasks)}
        costs = {"trained": counted.trained} | {key: row[key] for key in ("MB down", "MB up", "peak MB", "s per round")}
        rows.append({"mode": name + addition, **scores, **({} if addition else costs)})
    return rows


def paired(runs: Mapping[str, list[report.Run]], clients: Sequence[str]) -> list[dict[str, Any]]:
    """How far FedDAT is ahead of every other mode, seed by seed, on the same questions."""
    which = {"score": ""} | {client: f"client {i}/" for i, client in enumerate(clients)}
    scores = lambda last: {name: last[f"test/{prefix}score"] for name, prefix in which.items()}
    last = {name: [scores(run.rows[-1]) for run in same] for name, same in runs.items()}
    return tables.ahead(last, "dat", {name: name for name in which})


def _asked(tasks: vqa.Tasks) -> list[dict[str, Any]]:
    rows = []
    for name, task in tasks.tasks.items():
        row = {"client": name, "answers": len(task.answers)}
        row |= {split: len(arrays["target"]) for split, arrays in task.splits.items()}
        rows.append(row | {"unknown in test": task.unknown["test"], "commonest": task.answers[0]})
    return rows
