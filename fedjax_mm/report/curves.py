"""Pictures of metrics against rounds, or against what the rounds have cost: bytes, FLOPs or seconds."""

import itertools
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedjax_mm.report import plots
from fedjax_mm.report.plots import COLOURS, GREY, INK
from fedjax_mm.report.tables import quantity

AXES = {  # key of a row -> what the axis says
    "round": "communication round",
    "MB": "MB sent and received by all clients",
    "GFLOP": "GFLOP of all clients",
    "spent seconds": "time (s)",
}
_CORNER = {"rotation": 90, "ha": "right", "va": "top", "fontsize": 8}


def plot_curves(
    groups: Mapping[str, Sequence[Sequence[Mapping[str, float]]]],
    metrics: Sequence[str],
    path: str | os.PathLike,
    against: str = "round",
) -> None:
    """Writes a picture of metrics over rounds, a panel each: the mean of a group's seeds, its band from min to max.

    against: a key of AXES, in whose place rows have what they have cost so far; a round is put at the mean over seeds.

    groups: name -> the metrics.jsonl rows of each seed. A round that lacks the metric in one of the seeds is left
    out, and so is one in which nobody of a cohort took part. A dotted line marks where a stage of a run begins.
    Raises ValueError for a metric that no run has.
    """
    known = dict.fromkeys(key for seeds in groups.values() for rows in seeds for row in rows for key in row)
    if unknown := [metric for metric in metrics if metric not in known]:
        raise ValueError(f"no run has the metric '{unknown[0]}'; they have {', '.join(sorted(known))}")
    across = min(3, len(metrics))
    down = -(-len(metrics) // across)
    figure = Figure((6.5 if across == 1 else 9, 0.7 + (3 if across < 3 else 2.3) * down), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False).ravel()
    lines = {}
    for panel, metric in zip(panels, metrics, strict=False):
        for i, (name, seeds) in enumerate(groups.items()):
            rounds, values = _over_rounds(seeds, metric, against)
            look = {"color": COLOURS[i % len(COLOURS)], "linestyle": ("-", "--", ":", "-.")[i // len(COLOURS) % 4]}
            dots = {"marker": "o", "markersize": 3} if len(rounds) <= 25 else {}
            (lines[name],) = panel.plot(rounds, values.mean(0), linewidth=1.6, **look, **dots)
            panel.fill_between(rounds, values.min(0), values.max(0), color=look["color"], alpha=0.2, linewidth=0)
        *where, _ = metric.split("/")
        title = "test: " + " ".join(where[1:]) if where[:1] == ["test"] else "training: " + " ".join(where)
        plots.style(panel, title.removesuffix(": "), AXES[against], quantity(metric))
        for round, stage in (_stage_starts(groups) if against == "round" else {}).items():
            panel.axvline(round, color=GREY, linestyle=":", linewidth=1)
            panel.text(round, 1, f"stage {stage} ", transform=panel.get_xaxis_transform(), color=INK, **_CORNER)
        panel.xaxis.set_major_locator(MaxNLocator(6, integer=against == "round"))
    for panel in panels[len(metrics) :]:
        panel.set_axis_off()
    names = [f"{name} ({len(groups[name])} seeds)" if len(groups[name]) > 1 else name for name in lines]
    place = {
        "loc": "outside lower center",
        "ncols": min(len(names), 4 if across == 3 else 3),
        "frameon": False,
        "fontsize": 9,
    }
    figure.legend(list(lines.values()), names, **place)
    plots.save(figure, path)


def with_costs(
    rows: Sequence[Mapping[str, float]], costs: Mapping[str, Mapping[str, float]], stages: Sequence[str] = ()
) -> list[dict[str, float]]:
    """The rows of a run, each with what it has cost so far.

    "MB": what its clients sent and received (frozen weights that a late client downloads are not counted); "GFLOP": the
    matrix multiplications of their updates, each taken as that of a client of mean size (left out where it is not
    known); "spent seconds": the sum of all rounds. costs: as costs.json has them. stages: their names, where there are
    several.

    >>> cost = {"bytes_down": 1_500_000, "bytes_up": 500_000, "round_flops": 1e9}
    >>> row = {"all/clients": 2.0, "all/left_out": 1.0, "seconds": 0.5}
    >>> rows = with_costs([{"round": 1, **row}, {"round": 2, **row}], {"all": cost})
    >>> [(row["MB"], row["GFLOP"], row["spent seconds"]) for row in rows]
    [(6.0, 3.0, 0.5), (12.0, 6.0, 1.0)]
    """
    spent, found = {"MB": 0.0, "GFLOP": 0.0, "spent seconds": 0.0}, []
    for row in rows:
        prefix = f"{stages[int(row['stage']) - 1]}/" if stages and "stage" in row else ""
        spent["spent seconds"] += row["seconds"]
        for cohort in (key.removesuffix("/clients") for key in row if key.endswith("/clients")):
            number = row[f"{cohort}/clients"] + row.get(f"{cohort}/left_out", 0.0)
            cost = costs.get(prefix + cohort, {})
            if number:
                spent["MB"] += number * (cost.get("bytes_down", 0) + cost.get("bytes_up", 0)) / 1e6
                spent["GFLOP"] += number * (cost.get("round_flops") or math.nan) / 1e9
        found.append({**row, **{key: value for key, value in spent.items() if not math.isnan(value)}})
    return found


def _over_rounds(
    seeds: Sequence[Sequence[Mapping[str, float]]], metric: str, against: str
) -> tuple[list[float], np.ndarray]:
    """Where the rounds stand that have the metric in every seed, and its values [seeds, rounds]."""
    taking_part = f"{metric.partition('/')[0]}/clients"
    curves = [{r["round"]: r[metric] for r in rows if metric in r and r.get(taking_part, 1)} for rows in seeds]
    rounds = sorted(set.intersection(*map(set, curves)))
    places = [{r["round"]: r[against] for r in rows} for rows in seeds]
    where = [float(np.mean([place[r] for place in places])) for r in rounds]
    return where, np.array([[curve[r] for r in rounds] for curve in curves]).reshape(len(curves), len(rounds))


def _stage_starts(groups: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]]) -> dict[int, int]:
    """Round -> number of the stage that begins with it, in any of the runs; first stages left out."""
    pairs = (pair for seeds in groups.values() for rows in seeds for pair in itertools.pairwise(rows))
    return {b["round"]: b["stage"] for a, b in pairs if a.get("stage") != b.get("stage")}
