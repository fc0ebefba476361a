"""The tables of stage-wise training: scores, what a client pays over a whole schedule, and pictures."""

import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.common import cli, jobs, tables
from experiments.layerwise import study
from experiments.layerwise.costs import PLANS
from fedjax_mm import report


def compare(settings: study.Settings) -> list[dict[str, Any]]:
    """All plans at equal rounds: a row each with scores, what a client pays over the whole schedule, and pictures."""
    common, out = settings.common, pathlib.Path(settings.common.out)
    cli.write(out, settings)
    runs = jobs.loaded(functools.partial(study.train, settings), PLANS, common)
    rows = [chance(settings)] + [_row(settings, plan, same) for plan, same in runs.items()]
    columns = _columns(rows[1])
    quality = "test/accuracy" if "test/accuracy" in columns else "test/i2t_r10"
    report.plot_curves([r for same in runs.values() for r in same], ["all/loss", quality], out / "curves.png")
    paid_axis = {"cost": ("MB in all",), "cost_axis": "MB of a client, in all rounds"}
    report.plot_bars(rows, out / "bars.png", quality=quality, label="plan", controls=(rows[0]["plan"],), **paid_axis)
    problem, rounds = study.load(settings, common.all_seeds[0]), settings.rounds_of_stages
    skewed = f" (Dirichlet {settings.alpha:g})" if problem.num_classes else ""
    about = (
        f"{settings.data}, {settings.clients} clients{skewed}, {settings.per_round} a round, {sum(rounds)} rounds in "
        f"stages of {', '.join(map(str, rounds))}, {common.about_seeds}, {common.split} split, "
        f"{len(next(iter(problem.test.values())))} examples."
    )
    parts = ["![scores and bytes](bars.png)", "![curves](curves.png)", "## All metrics"]
    parts += [report.table(rows, ["plan", *(key for key in rows[1] if key.startswith("test/"))])]
    tables.save(common, settings, "Stage by stage", about, rows, columns, parts, runs[PLANS[0]][0])
    return rows


def _columns(row: Mapping[str, Any]) -> dict[str, str]:
    scores = ("_r1", "_r10", "/accuracy", "/zero_shot_accuracy", "/macro_f1")
    shown = [key for key in row if key.startswith("test/") and key.endswith(scores)]
    paid = ("MB in all", "MB in all, late", "TFLOP in all", "peak MB", "s per round")
    return {"plan": "plan"} | {key: report.heading(key) for key in shown} | {key: key for key in paid}


def chance(settings: study.Settings) -> dict[str, Any]:
    """The row of an encoder that knows nothing: any order of the candidates, or the commonest class."""
    problem, scores = study.load(settings, settings.common.all_seeds[0]), {}
    if "label" in problem.test:
        share = float(np.bincount(problem.test["label"]).max() / len(problem.test["label"]))
        scores = {"test/accuracy" if problem.num_classes else "test/zero_shot_accuracy": share}
    if problem.num_classes:
        return {"plan": "constant", **scores}
    images = len(problem.test["image"])
    captions = problem.test["text"].size // problem.test["text"].shape[-1]
    each = captions // images
    for k in (1, 5, 10, 50):
        missed = np.prod([(captions - each - i) / (captions - i) for i in range(min(k, captions))])
        scores |= {f"test/i2t_r{k}": 100 * float(1 - missed), f"test/t2i_r{k}": 100 * min(1.0, k / images)}
    for name, arrays in problem.zero_shot.items():
        scores[f"test/{name}/zero_shot_accuracy"] = float(np.bincount(arrays["label"]).max() / len(arrays["label"]))
    return {"plan": "chance", **scores}


def _row(settings: study.Settings, plan: str, same: list[report.Run]) -> dict[str, Any]:
    """Scores, and what a client pays that takes part in every round."""
    (row,) = report.summary(same)
    return {**row, **paid(same[0], settings.batch_size, settings.epochs), "plan": plan}


def paid(run: report.Run, batch_size: int, epochs: int, until: int | None = None) -> dict[str, float]:
    """What a client pays that takes part in every round, or in the first `until` of them."""
    batches = float(np.mean([count // batch_size for count in run.split["all"]["examples"]]))
    total: dict[str, float] = dict.fromkeys(("MB in all", "MB in all, late", "TFLOP in all"), 0.0)
    names = list(run.config["stages"] or [])
    for r in run.rows[:until]:
        name = names[int(r["stage"]) - 1] if names else ""
        cost = run.costs[f"{name}/all" if name else "all"]
        travels = (cost["bytes_down"] + cost["bytes_up"]) / 1e6
        total["MB in all"] += travels
        total["MB in all, late"] += travels + cost["bytes_held"] / 1e6
        total["TFLOP in all"] += cost["flops"] * batches * (1 if name == "statistics" else epochs) / 1e12
    return total


def single(settings: study.Settings) -> None:
    """Runs one plan and prints its row."""
    runs = jobs.loaded(functools.partial(study.train, settings), [settings.plan], settings.common)
    row = _row(settings, settings.plan, runs[settings.plan])
    report.show([chance(settings), row], _columns(row))
