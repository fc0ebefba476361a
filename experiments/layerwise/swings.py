"""How much scores swing from round to round: `python -m experiments.layerwise swings --data av_digits --data-dir DIR`.

Every plan is trained once. After each of the last rounds its model is scored with the averages of the clients' running
statistics, as the released code has them, and with statistics of its own; training reads neither. The swing is the
sample standard deviation of a score over these rounds.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.common import cli, jobs, tables
from experiments.layerwise import study
from experiments.layerwise.costs import PLANS
from experiments.layerwise.recalibrated import recalibration
from fedjax_mm import report, run
from fedjax_mm.methods import layerwise
from fedjax_mm.report.runs import over_seeds
from fedjax_mm.types import FedState

LAST = 8
"""Rounds that are scored."""
KINDS = ("averaged", "recalibrated")


def compare(settings: study.Settings) -> list[dict[str, Any]]:
    """A row for each plan and kind of statistics: the mean of the score over the last rounds, and its swing."""
    cli.write(settings.common.out, settings)
    if settings.common.rounds < LAST:
        raise ValueError(f"--rounds is {settings.common.rounds}; the last {LAST} are scored, so give as many or more")
    found = jobs.trained(functools.partial(scored, settings), PLANS, settings.common)
    shown = swings_table(found)
    report.show(shown)
    out = pathlib.Path(settings.common.out) / "swings.md"
    about = f"{settings.data}, the last {LAST} of {settings.common.rounds} rounds, {settings.common.about_seeds}."
    out.write_text("\n\n".join(["# Swings from round to round", about, report.table(shown)]) + "\n")
    return shown


def scored(settings: study.Settings, plan: study.Plan, seed: int) -> dict[str, list[float]]:
    """Kind of statistics -> the scores of a plan after each of the last rounds."""
    problem = study.load(settings, seed)
    config = dataclasses.replace(study.config_of(settings, plan), statistics="recalibrated")
    stages = layerwise.build(config, problem.data, problem.encoders, problem.num_classes)
    own = recalibration(stages, problem.data, settings.per_round, seed)
    arrays: Any = problem.test
    score, total = run.scores(stages[-1].method, arrays), settings.common.rounds

    def scores(kind: str, state: FedState) -> dict[str, float]:
        if int(state.round) <= total - LAST:
            return {}
        return dict(score(own(state) if kind == "recalibrated" else state))

    folder, _ = tables.finish(
        stages[:-1],
        problem.data,
        settings.common,
        dataclasses.replace(settings, plan=plan),
        plan,
        seed,
        per_round=settings.per_round,
        evaluate={kind: functools.partial(scores, kind) for kind in KINDS},
        evaluate_every=1,
        config={"settings": tables.of_a_run(settings), "method": config},
    )
    rows = report.load(folder).rows[-LAST:]
    metric = "accuracy" if problem.num_classes else "i2t_r10"
    return {kind: [row[f"{kind}/{metric}"] for row in rows] for kind in KINDS}


def swings_table(found: Mapping[str, Sequence[Mapping[str, Sequence[float]]]]) -> list[dict[str, Any]]:
    """A row for each plan and kind of statistics, over seeds; and how much less the second kind swings.

    >>> shown = swings_table({"layer-wise": [{"averaged": [0.2, 0.6], "recalibrated": [0.5, 0.5]}] * 2})
    >>> [round(row["swing"][0], 2) for row in shown], shown[1]["swing, minus averaged"]
    ([0.28, 0.0], '-0.28 (-0.28 to -0.28)')
    """
    shown = []
    swing = lambda scores: float(np.std(scores, ddof=1))
    for plan, seeds in found.items():
        for kind in KINDS:
            row: dict[str, Any] = {"plan": plan, "statistics": kind}
            row["mean score"] = over_seeds([float(np.mean(one[kind])) for one in seeds])
            row["swing"] = over_seeds([swing(one[kind]) for one in seeds])
            row["worst round"] = over_seeds([min(one[kind]) for one in seeds])
            for name, of in (("mean score", np.mean), ("swing", swing)):
                values = [float(of(one[kind]) - of(one["averaged"])) for one in seeds]
                row[f"{name}, minus averaged"] = tables.difference(values) if kind != "averaged" else None
            shown.append(row)
    return shown
