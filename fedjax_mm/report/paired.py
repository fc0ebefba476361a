"""How far runs are ahead of another one, seed by seed, with confidence intervals."""

import os
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from fedjax_mm.report.plots import COLOURS, GREY, INK, save, style
from fedjax_mm.report.runs import Run, all_keys, group, is_score
from fedjax_mm.report.tables import Cell, Row, decimals, heading

LEVEL = 0.95


def interval(differences: Sequence[float], level: float = LEVEL) -> tuple[float, float, float]:
    """(mean, lower end, upper end) of the mean's confidence interval by Student's t, of two values or more.

    >>> [round(x, 3) for x in interval([0.1, 0.2, 0.3])]
    [0.2, -0.048, 0.448]
    """
    values = np.asarray(differences, float)
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(f"differences has {values.size} values; give two or more, one for each seed")
    mean, error = float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))
    half = float(stats.t.ppf((1 + level) / 2, len(values) - 1)) * error
    return mean, mean - half, mean + half


def paired_differences(runs: Sequence[Run], baseline: str | None = None) -> list[dict[str, Cell]]:
    """A row per group and score: the group minus the baseline, of runs with the same seed, after their last test.

    Keys: "run", "metric" (as in the log), "pairs", "difference", "low" and "high": the ends of a 95 % confidence
    interval by Student's t, which takes seeds for independent draws. Each interval stands alone: of twenty, one is
    expected to miss. baseline: a group's name; None: that of the first run. A score of which there are fewer than two
    pairs has no row. Raises ValueError for a baseline that there is not.
    """
    groups = group(runs)
    baseline = next(iter(groups), None) if baseline is None else baseline
    if baseline not in groups:
        raise ValueError(f"baseline is {baseline!r}; the runs are {', '.join(groups)}")
    last = {name: {run.config["seed"]: _last_scores(run) for run in same} for name, same in groups.items()}
    rows = []
    for name in (name for name in groups if name != baseline):
        both = [(last[name][seed], last[baseline][seed]) for seed in last[name] if seed in last[baseline]]
        for metric in filter(_is_shown, all_keys([scores for scores, _ in both])):
            found = [ours[metric] - theirs[metric] for ours, theirs in both if metric in ours and metric in theirs]
            if len(found) > 1:
                ends = dict(zip(("difference", "low", "high"), interval(found), strict=True))
                rows.append({"run": name, "metric": metric, "pairs": len(found), **ends})
    return rows


def differences_table(rows: Sequence[Row]) -> list[dict[str, Cell]]:
    """The rows of `paired_differences` as people read them, in the order of the metrics."""
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    shown = []
    for row in sorted(rows, key=lambda row: metrics.index(row["metric"])):
        mean, low, high = (row[key] for key in ("difference", "low", "high"))
        assert isinstance(mean, float) and isinstance(low, float) and isinstance(high, float)
        metric = {"metric": heading(str(row["metric"])), "run": row["run"], "pairs": row["pairs"]}
        shown.append({**metric, **difference_cells(mean, low, high, 3)})
    return shown


def difference_cells(mean: float, low: float, high: float, digits: int = 2) -> dict[str, str]:
    """A difference and its interval as people read them, with as many digits of the interval's width, or of the
    difference where the seeds agree to the last bit.

    >>> difference_cells(0.2, -0.048, 0.448)
    {'difference': '+0.20', '95 % interval': '-0.05 to +0.45'}
    >>> difference_cells(-0.0, -0.0, -0.0)["difference"], difference_cells(-0.25, -0.25, -0.25)["difference"]
    ('+0', '-0.25')
    """
    places = decimals(high - low or abs(mean), digits)
    mean_text, *ends = (f"{x:+z.{places}f}" for x in (mean, low, high))
    return {"difference": mean_text, "95 % interval": " to ".join(ends)}


def plot_differences(rows: Sequence[Row], path: str | os.PathLike) -> None:
    """Writes a panel per score: each run's mean difference and its interval, and a line at no difference.

    A full dot says that the interval leaves out 0. rows: as `paired_differences` gives them. Raises ValueError where
    there are none.
    """
    metrics = list(dict.fromkeys(str(row["metric"]) for row in rows))
    if not metrics:
        raise ValueError("no two runs have two seeds in common; give runs of the same seeds")
    names = list(dict.fromkeys(str(row["run"]) for row in rows))
    across = min(3, len(metrics))
    down = -(-len(metrics) // across)
    figure = Figure((6.5 if across == 1 else 9, (0.9 + 0.3 * len(names)) * down + 0.2), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False, sharey=True).ravel()
    for panel, metric in zip(panels, metrics, strict=False):
        panel.axvline(0, color=GREY, linewidth=1, linestyle=":")
        for row in (row for row in rows if row["metric"] == metric):
            mean, low, high = (float(row[key]) for key in ("difference", "low", "high"))  # pyright: ignore[reportArgumentType]
            at = names.index(str(row["run"]))
            clear = low > 0 or high < 0
            look = {"color": COLOURS[0] if clear else INK, "mfc": COLOURS[0] if clear else "white"}
            panel.errorbar(mean, at, xerr=[[mean - low], [high - mean]], fmt="o", markersize=5, capsize=3, **look)
        style(panel, heading(metric), "difference", "")
        panel.set_yticks(range(len(names)), names)
        panel.set_ylim(len(names) - 0.5, -0.5)
    for panel in panels[len(metrics) :]:
        panel.set_axis_off()
    save(figure, path)


def _last_scores(run: Run) -> dict[str, float]:
    tested = [row for row in run.rows if any(map(is_score, row))]
    return {key: value for key, value in tested[-1].items() if is_score(key)} if tested else {}


def _is_shown(metric: str) -> bool:
    """Not how clients' own scores are spread, of which the mean is shown."""
    return not (metric.startswith("own/") and metric.endswith(("_p10", "_worst", "_spread")))
