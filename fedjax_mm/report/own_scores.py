"""Clients on their own test rows: a table and a picture of how their scores are spread."""

import os
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from fedjax_mm.report.plots import COLOURS, save, style
from fedjax_mm.report.runs import Run, summary
from fedjax_mm.report.tables import Cell, quantity
from fedjax_mm.run.client_scores import less_is_better


def own_scores_table(runs: Sequence[Run]) -> list[dict[str, Cell]]:
    """A row per group, cohort and metric of clients on their own test rows, (mean, sample std) over seeds:

    "mean" over clients, "10th percentile" from the bad end, "worst" client, "spread", the standard deviation.
    """
    ends = {"mean": "", "10th percentile": "_p10", "worst": "_worst", "spread": "_spread"}
    rows = []
    for row in summary(runs):
        for key in (key for key in row if key.startswith("own/") and f"{key}_p10" in row):
            _, cohort, metric = key.split("/", 2)
            found = {"run": row["run"], "cohort": cohort, "metric": quantity(metric)}
            rows.append(found | {name: row[key + end] for name, end in ends.items()})
    return rows


def plot_own_scores(
    groups: Mapping[str, Sequence[Mapping[str, Mapping[str, Sequence[float | None]]]]], path: str | os.PathLike
) -> None:
    """Writes a panel per cohort and metric: every client's score on its own test rows, the worst client first.

    groups: name -> for each seed, cohort -> metric -> a score of each client, None for one without test rows.
    """
    known = dict.fromkeys((c, m) for seeds in groups.values() for seed in seeds for c, of in seed.items() for m in of)
    if not known:
        raise ValueError("no run has scores of clients on their own test rows; give FederatedData.from_arrays a test=")
    across = min(3, len(known))
    down = -(-len(known) // across)
    figure = Figure((6.5 if across == 1 else 9, 0.7 + (3 if across < 3 else 2.3) * down), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False).ravel()
    lines = {}
    for panel, (cohort, metric) in zip(panels, known, strict=False):
        for i, (name, seeds) in enumerate(groups.items()):
            values = np.concatenate([np.asarray(seed.get(cohort, {}).get(metric, []), float) for seed in seeds])
            values = np.sort(values[~np.isnan(values)])
            if less_is_better(metric):
                values = values[::-1]
            share = 100 * (np.arange(len(values)) + 0.5) / max(len(values), 1)
            look = {"color": COLOURS[i % len(COLOURS)], "linestyle": ("-", "--", ":", "-.")[i // len(COLOURS) % 4]}
            dots = {"marker": "o", "markersize": 3} if len(values) <= 50 else {}
            (lines[name],) = panel.plot(share, values, linewidth=1.6, **look, **dots)
        panel.set_xlim(0, 100)
        style(panel, f"own test rows: {cohort}", "clients (%), the worst first", quantity(metric))
    for panel in panels[len(known) :]:
        panel.set_axis_off()
    place = {"loc": "outside lower center", "ncols": min(len(lines), 4), "frameon": False, "fontsize": 9}
    figure.legend(list(lines.values()), list(lines), **place)
    save(figure, path)
