"""The tables and pictures of CreamFL's study: retrieval, questions, clients' own tasks, bytes, weights."""

import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.common import cli, jobs, tables
from experiments.creamfl import study
from experiments.creamfl.data import Problem
from fedjax_mm import evaluate, report
from fedjax_mm.methods.creamfl import vqa_evaluation
from fedjax_mm.methods.creamfl.encoder_averaging import AveragingConfig
from fedjax_mm.methods.creamfl.joint_space import MODALITIES, represent
from fedjax_mm.report import plots
from fedjax_mm.report.curves import plot_curves
from fedjax_mm.report.runs import over_seeds
from fedjax_mm.types import FedState

SHOWN = ("i2t_r10", "t2i_r10", "rsum", "r1_sum", "image/own_accuracy", "text/own_accuracy", "both/i2t_r10")
COLUMNS = {"method": "method"} | {f"test/{key}": key for key in SHOWN}
COLUMNS |= {key: key for key in ("VQA", "MB down", "MB up", "peak MB", "s per round")}
COMPARED = ("rsum", "r1_sum", "image/own_accuracy", "text/own_accuracy", "both/i2t_r10")
CURVES = ("server only", "server only, one pass", "FedAvg", "FedMD", "reamFL+Avg", "CreamFL")
PICTURED = ("FedMD", "CreamFL")
"""Whose representations are shown."""


class Finished(NamedTuple):
    """What the table needs of a row's run of one seed."""

    folder: pathlib.Path
    answer: dict[str, float] | None
    seen: dict[str, dict[str, np.ndarray]] | None
    """{modality: representations}, of one seed of the methods that are pictured; the state itself is let go of."""


def compare(
    settings: study.Settings, own: Mapping[str, study.Settings] | None = None, notes: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """A row per method: the server's retrieval and questions, what clients can do, bytes, time, evenness of weights.

    own: the settings of rows that have other rates. notes: parts of the report behind the differences.
    """
    common, names = settings.common, study.named(settings)
    cli.write(common.out, settings)
    done = jobs.trained(functools.partial(_finish, dict.fromkeys(names, settings) | dict(own or {})), names, common)
    runs = {name: [report.load(one.folder) for one in same] for name, same in done.items()}
    rows = [chance(settings), *(_row(name, runs[name], [one.answer for one in done[name]]) for name in names)]
    pictured = _draw(settings, rows, runs, {name: same[0].seen for name, same in done.items()})
    last = {name: [run.rows[-1] for run in same] for name, same in runs.items()}
    leader = "CreamFL" if "CreamFL" in names else names[-1]
    differences = tables.ahead(last, leader, {f"test/{key}": key for key in COMPARED})
    weights = list(dict.fromkeys(key for row in rows for key in row if key.startswith("server/")))
    parts = ["![scores and bytes](bars.png)"]
    if differences:
        parts += ["## Differences within a seed (mean and 95 % interval)", report.table(differences)]
    parts += notes
    if weights:
        parts += ["## Weights and drift, last round", report.table(rows[1:], ["method", *weights])]
    parts += [f"![{name}](representations_{name}.png)" for name in pictured]
    parts += ["## Over rounds", "![curves](curves.png)", "## All metrics"]
    parts += [report.table(rows, ["method", *(key for key in rows[1] if key.startswith("test/"))])]
    tables.save(common, settings, "CreamFL", _about(settings), rows, COLUMNS, parts, runs[leader][0])
    return rows


def single(settings: study.Settings) -> None:
    """Runs one method and prints its row."""
    name = settings.method
    done = jobs.trained(functools.partial(_finish, {name: settings}), [name], settings.common)[name]
    row = _row(name, [report.load(one.folder) for one in done], [one.answer for one in done])
    report.show([chance(settings), row], COLUMNS)


def _finish(own: Mapping[str, study.Settings], name: str, seed: int) -> Finished:
    settings = own[name]
    folder, state = study.train(settings, name, seed)
    seen = None
    if name in PICTURED and seed == settings.common.all_seeds[0]:
        problem = study.load(settings, seed)
        seen = {m: representations(settings, problem, state, m) for m in MODALITIES}
    return Finished(folder, answer(settings, name, seed, state), seen)


def _draw(settings: study.Settings, rows: list[dict[str, Any]], runs: Mapping, seen: Mapping) -> list[str]:
    """Writes bars, curves and representations; the names of the methods whose representations are shown."""
    out = pathlib.Path(settings.common.out)
    bars = {"quality": "test/rsum", "quality_axis": "sum of recalls, %", "cost": ("MB down", "MB up")}
    apart = ("chance", *(name for name in runs if "server" in name))
    report.plot_bars(rows, out / "bars.png", label="method", controls=apart, **bars)
    curves = {name: [run.rows for run in runs[name]] for name in [name for name in CURVES if name in runs] or runs}
    plot_curves(curves, ["test/rsum", "test/both/i2t_r10"], out / "curves.png")
    pictured = [name for name in PICTURED if name in runs]
    for name in pictured:
        plots.plot_representations(seen[name], out / f"representations_{name}.png", name)
    return pictured


def _about(settings: study.Settings) -> str:
    problem, common = study.load(settings, settings.common.all_seeds[0]), settings.common
    mean = lambda name: float(problem.data.cohorts[name].counts.mean())
    sizes = ", ".join(f"{n} with {name} ({mean(name):.0f} examples)" for name, n in problem.data.sizes.items())
    return (
        f"{settings.data}, clients: {sizes}, {settings.per_round} of them a round, {common.rounds} rounds, "
        f"{settings.numbers.public} public pairs, {len(problem.test['image'])} test pictures; "
        f"{common.about_seeds}, {common.split} split, variant {settings.variant}."
    )


def chance(settings: study.Settings) -> dict[str, Any]:
    """The row of models that know nothing: any order of the candidates, the commonest class, the commonest answer."""
    problem, row = study.load(settings, settings.common.all_seeds[0]), {"method": "chance"}
    images, texts = len(problem.test["image"]), problem.test["text"]
    owner = np.repeat(np.arange(images), texts.shape[1] if texts.ndim == 3 else 1)
    one_point = evaluate.both_protocols(np.zeros((images, 1)), np.zeros((len(owner), 1)), owner)
    row |= {f"test/{key}": value for key, value in one_point.items()}
    for name in ("image", "text"):
        labels = problem.test[f"{name}/label"]
        row[f"test/{name}/accuracy"] = float(np.bincount(labels).max() / len(labels))
        counts = np.array(problem.data.split()[name]["classes"])
        row[f"test/{name}/own_accuracy"] = float((counts.max(1) / counts.sum(1)).mean())
    if problem.questions:
        row["VQA"] = 100 * float(problem.questions[1].target.mean(0).max())
    return row


def answer(settings: study.Settings, name: str, seed: int, state: FedState) -> dict[str, float] | None:
    """Scores of questions answered from the server's representations of picture and question."""
    problem = study.load(settings, seed)
    if problem.questions is None:
        return None
    models = study.models(settings)
    encoders = models.equal if isinstance(study.variants(settings)[name], AveragingConfig) else models.server
    of = jax.jit(lambda params, m, x: represent(encoders[m], params[m], x), static_argnums=1)
    params, pictures = state.server["params"], {id(q.image): q.image for q in problem.questions}  # each of them once
    seen = {key: np.asarray(of(params, "image", images)) for key, images in pictures.items()}
    train, test = (
        vqa_evaluation.Questions(seen[id(q.image)][q.row], np.asarray(of(params, "text", q.question)), q.target)
        for q in problem.questions
    )
    return vqa_evaluation.vqa(vqa_evaluation.VQAProbe(), train, test, jax.random.key(seed))


def representations(
    settings: study.Settings, problem: Problem, state: FedState, m: str, few: int = 200
) -> dict[str, np.ndarray]:
    """Representations [few, D] of the first public examples by the server and by three clients of each kind."""
    models, some = study.models(settings), (problem.data.public or {})[m][:few]
    of = lambda encoders, params: np.asarray(represent(encoders[m], params[m], some))
    found = {"server": of(models.server, state.server["params"])}
    for name, encoders in models.clients.items():
        for k in range(min(3, problem.data.sizes[name]) if m in encoders else 0):
            params = jax.tree.map(lambda x, k=k: x[k], state.clients[name]["params"])
            found[f"{name} {k}"] = of(encoders, params)
    return found


def _row(name: str, same: Sequence[report.Run], answers: Sequence[dict[str, float] | None]) -> dict[str, Any]:
    (row,) = report.summary(same)
    last = [run.rows[-1] for run in same]
    about = [key for key in last[0] if key.startswith(("server/entropy", "server/drift"))]
    row |= {key: over_seeds([one[key] for one in last]) for key in about}
    if scores := [one["vqa_score"] for one in answers if one]:
        row["VQA"] = over_seeds(scores)
    return {**row, "method": name}
