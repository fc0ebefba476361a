"""The picture of `python -m benchmarks uploads`: scores against bytes and against epsilon, a row of panels a method."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from fedjax_mm.report import plots

TITLES = {"fedavg": "FedAvg, UR Fall", "fedmekt": "FedMEKT, UR Fall", "creamfl": "CreamFL, scenes"}
SCORES = {"fedavg": "macro F1", "fedmekt": "macro F1", "creamfl": "recall sum"}


def draw(rows: Sequence[Mapping[str, Any]], path: str | os.PathLike) -> None:
    """Writes the picture. rows: of the benchmark."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    figure = Figure((10, 3.1 * len(methods)), layout="constrained")
    panels = figure.subplots(len(methods), 2, squeeze=False, width_ratios=(3, 2))
    for (left, right), name in zip(panels, methods, strict=True):
        of = [row for row in rows if row["method"] == name]
        both = [[row for row in of if row["private"] == private] for private in (False, True)]
        _against_bytes(left, name, [row for row in both[0] if not row["control"]])
        _against_epsilon(right, name, [row for row in both[1] if not row["control"]])
        for axis, side in zip((left, right), both, strict=True):
            _controls(axis, [row for row in side if row["control"]])
        low, high = (f(axis.get_ylim()[i] for axis in (left, right)) for i, f in ((0, min), (1, max)))
        for axis in (left, right):
            axis.set_ylim(low, high)
    plots.save(figure, path)


def _against_bytes(panel: Any, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    ordered = sorted(rows, key=lambda row: row["kB up"])
    for i, row in enumerate(ordered):
        mean, std = _mean_std(row["score"])
        panel.errorbar(row["kB up"], mean, std, fmt="o", color=plots.COLOURS[0], ecolor="#B0B0B0", capsize=2)
        # Neighbours may have nearly as many bytes: their names stand at four heights.
        offset, align = (((0, 9), "bottom"), ((0, -9), "top"), ((0, 22), "bottom"), ((0, -22), "top"))[i % 4]
        panel.annotate(row["upload"], (row["kB up"], mean), offset, textcoords="offset points", fontsize=8, ha="center",
                       va=align, color=plots.INK)  # fmt: skip
    panel.set_xscale("log")
    panel.margins(0.15, 0.35)
    plots.style(panel, TITLES[name], "kB that a client sends in a round", SCORES[name])


def _against_epsilon(panel: Any, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    ordered = sorted(rows, key=lambda row: row["epsilon"] or float("inf"))
    means, stds = zip(*(_mean_std(row["score"]) for row in ordered), strict=True)
    panel.errorbar(range(len(ordered)), means, stds, fmt="o-", color=plots.COLOURS[1], ecolor="#B0B0B0", capsize=2)
    panel.set_xticks(
        range(len(ordered)), ["none" if row["epsilon"] is None else f"{row['epsilon']:g}" for row in ordered]
    )
    panel.margins(0.1, 0.35)
    plots.style(panel, "by noise", "epsilon spent", "")


def _controls(panel: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    """A dotted line at the score of each control."""
    for row in rows:
        mean, _ = _mean_std(row["score"])
        panel.axhline(mean, color=plots.GREY, linewidth=1, linestyle=":")
        panel.annotate(row["upload"], (0, mean), (3, -2), xycoords=("axes fraction", "data"),
                       textcoords="offset points", fontsize=8, va="top", color=plots.GREY)  # fmt: skip


def _mean_std(cell: Any) -> tuple[float, float]:
    return (cell[0], cell[1]) if isinstance(cell, tuple | list) else (cell, 0.0)
