"""From how many questions of a client on a mode is ahead: scores against the number of questions."""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.common import jobs, tables
from experiments.feddat import study
from fedjax_mm import report
from fedjax_mm.report import plots
from fedjax_mm.report.runs import over_seeds

LEADING = ("standalone", "adapter", "dat")
FILE = "questions.png"


def parts(settings: study.Settings, own: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The parts of a report about --sizes and the study's own size; trains what is not there, draws the picture."""
    scores: dict[str, dict[int, list[float]]] = {name: {} for name in LEADING}
    for size in sorted({*settings.sizes, settings.train}):
        out = settings.common.out if size == settings.train else f"{settings.common.out}/questions_{size}"
        here = dataclasses.replace(settings, train=size, common=dataclasses.replace(settings.common, out=out))
        for name, runs in jobs.loaded(functools.partial(study.train, here, own), LEADING, here.common).items():
            scores[name][size] = [run.rows[-1]["test/score"] for run in runs]
    _draw(scores, pathlib.Path(settings.common.out) / FILE)
    rows = []
    for size in scores["dat"]:
        row: dict[str, Any] = {"questions": size} | {name: over_seeds(scores[name][size]) for name in LEADING}
        by_mode = {name: [{"score": one} for one in scores[name][size]] for name in LEADING}
        ahead = tables.ahead(by_mode, "dat", {"score": "score"})
        rows.append(row | {f"dat minus {one['dat minus']}": one["score"] for one in ahead})
    return ["## Questions of a client", report.table(rows), f"![Scores against questions]({FILE})"]


def _draw(scores: Mapping[str, Mapping[int, list[float]]], path: pathlib.Path) -> None:
    """The mean of each mode against the number of questions, its band from min to max."""
    figure = Figure((6.5, 3.7), layout="constrained")
    panel = figure.subplots()
    for (name, by_size), colour in zip(scores.items(), plots.COLOURS, strict=False):
        sizes, values = list(by_size), np.array(list(by_size.values()))
        panel.plot(sizes, values.mean(1), color=colour, marker="o", markersize=4, label=name)
        panel.fill_between(sizes, values.min(1), values.max(1), color=colour, alpha=0.2, linewidth=0)
    panel.set_xscale("log", base=2)
    sizes = list(scores["dat"])
    panel.set_xticks(sizes, [str(size) for size in sizes])
    plots.style(panel, "", "questions that a client learns from", "mean VQA score of the clients")
    panel.legend(frameon=False)
    plots.save(figure, path)
