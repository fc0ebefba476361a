"""The table and the picture of a sweep, and the setting that is best where one may choose."""

import itertools
import math
import numbers
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

from fedjax_mm.report.plots import COLOURS, GREY, INK, save, style
from fedjax_mm.report.runs import over_seeds
from fedjax_mm.report.tables import Cell, cell_text, heading, quantity, table
from fedjax_mm.run.client_scores import less_is_better
from fedjax_mm.run.sweep_files import Sweep, read_sweep

PANELS = 12  # of a picture


def sweep_table(sweep: Sweep) -> list[dict[str, Cell]]:
    """A row for each of the settings: their values, how many "seeds", and every score after the last round.

    A score is (mean, sample standard deviation) over seeds, a float for one seed, and None where a seed diverged; then
    "diverged" says how many did. Of what was logged in training, "<cohort>/loss" is kept.
    """
    names = [name for name in sweep.scores if name.startswith(("valid/", "test/", "own/")) or name.endswith("/loss")]
    rows = []
    for p, settings in enumerate(sweep.settings):
        row: dict[str, Cell] = {name: _text(value) for name, value in settings.items()}
        row["seeds"] = len(sweep.seeds)
        row |= {name: _cell(sweep.scores[name][p, :, -1]) for name in names}
        if sweep.diverged.any():
            row["diverged"] = int((sweep.diverged[p] > 0).sum())
        rows.append(row)
    return rows


def best_setting(sweep: Sweep, metric: str | None = None) -> tuple[int, list[str]]:
    """(the number of the best settings, what is to be said of them): by the mean over seeds after the last round.

    metric: by default the first one of "valid", of which it is chosen without a look at the test. More is better,
    unless the name ends in "loss", "error" or "medr". A best value at the end of its axis is warned of: the grid may
    end too early. At 0 an axis ends by itself.

    Raises ValueError for a metric that there is not, and where all settings diverged.
    """
    metric = _metric(sweep, metric)
    means = sweep.scores[metric][..., -1].mean(1)
    if np.isnan(means).all():
        raise ValueError(f"no setting has {metric} of all seeds, as runs diverged; lower the learning rate")
    best = int(np.nanargmin(means) if less_is_better(metric) else np.nanargmax(means))
    named = ", ".join(f"{name} {_text(value)}" for name, value in sweep.settings[best].items()) or "the only setting"
    said = [f"Best by {metric}: {named} ({cell_text(_cell(sweep.scores[metric][best, :, -1]))})."]
    if not metric.startswith("valid/"):
        said.append(f"{metric} is no score on validation data, so that the best of it is too good: sweep with valid=.")
    for name, values in sweep.axes.items():
        value = sweep.settings[best][name]
        if _are_numbers(values) and len(values) > 1 and (value == max(values) or value == min(values) != 0):
            reach = f"{_text(min(values))} to {_text(max(values))}"
            said.append(f"{name} {_text(value)} lies at the edge of its values, {reach}: a better one may lie beyond.")
    return best, said


def plot_sweep(sweep: Sweep, path: str | os.PathLike, metric: str | None = None) -> None:
    """Writes a picture of a metric after the last round: a heat map over two axes, a line over one.

    With more axes there is a heat map of the last two for each combination of the others. metric: as `best_setting`
    takes it; its best setting is framed. Raises ValueError for a metric that there is not, and for too many axes.
    """
    metric = _metric(sweep, metric)
    axes = {name: values for name, values in sweep.axes.items() if len(values) > 1}
    if len(axes) < 2:
        return _plot_line(sweep, axes, metric, path)
    *others, y, x = axes
    panels = list(itertools.product(*(axes[name] for name in others)))
    if len(panels) > PANELS:
        raise ValueError(f"the axes {others} have {len(panels)} combinations; sweep fewer, or draw a part of them")
    means = sweep.scores[metric][..., -1].mean(1)
    limits = (np.nanmin(means), np.nanmax(means)) if np.isfinite(means).any() else (0.0, 1.0)
    best = best_setting(sweep, metric)[0] if np.isfinite(means).any() else -1
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    wide, high = 1.5 + 1.0 * len(axes[x]), 1.2 + 0.55 * len(axes[y])
    figure = Figure((max(5.0, columns * wide), rows * high), layout="constrained")
    drawn = figure.subplots(rows, columns, squeeze=False).ravel()
    image = None
    for panel, values in zip(drawn, panels, strict=False):
        chosen = dict(zip(others, values, strict=True))
        image = _heat_map(panel, sweep, metric, (y, x), chosen, limits, best)
        title = ", ".join(f"{name} {_text(value)}" for name, value in chosen.items())
        panel.set_title(
            title or f"{heading(metric)} after {sweep.rounds[-1]} rounds", loc="left", fontsize=10, fontweight="bold"
        )
    for panel in drawn[len(panels) :]:
        panel.set_axis_off()
    if image is not None:
        figure.colorbar(image, ax=list(drawn), label=quantity(metric))
    save(figure, path)


def sweep_columns(sweep: Sweep, metric: str | None = None) -> dict[str, str]:
    """The columns of the table for one metric: the settings, how many seeds, the metric, how many diverged."""
    keys = [*sweep.axes, "seeds", _metric(sweep, metric), *(["diverged"] if sweep.diverged.any() else [])]
    return {key: heading(key) for key in keys}


def write_sweep(directory: str | os.PathLike, out: str | os.PathLike, metric: str | None = None) -> pathlib.Path:
    """Writes sweep.md and sweep.png, the table, the picture and the best setting of a sweep, to the folder `out`.

    metric: as `best_setting` takes it. Raises FileNotFoundError where `directory` holds no sweep, and ValueError where
    it is damaged.
    """
    sweep, out = read_sweep(directory), pathlib.Path(out)
    out.mkdir(parents=True, exist_ok=True)
    plot_sweep(sweep, out / "sweep.png", metric)
    rows, said = sweep_table(sweep), best_setting(sweep, metric)[1]
    numbers = f"{len(sweep.settings)} settings, {len(sweep.seeds)} seeds, {sweep.rounds[-1]} rounds"
    parts = ["# Sweep", f"{numbers}; mean ± sample standard deviation over seeds.", *said, "![scores](sweep.png)"]
    path = out / "sweep.md"
    parts += [
        table(rows, sweep_columns(sweep, metric)),
        "## All scores",
        table(rows, {key: heading(key) for key in rows[0]}),
    ]
    path.write_text("\n\n".join(part.strip() for part in parts) + "\n")
    return path


def _heat_map(
    panel: Axes,
    sweep: Sweep,
    metric: str,
    names: tuple[str, str],
    chosen: Mapping[str, Any],
    limits: tuple[float, float],
    best: int,
) -> AxesImage:
    """One panel: rows and columns are the values of `names`, all other settings as chosen."""
    y, x = (sweep.axes[name] for name in names)
    means = np.full((len(y), len(x)), np.nan)
    colours = matplotlib.colormaps["viridis_r" if less_is_better(metric) else "viridis"].with_extremes(bad="#EEEEEE")
    for p, settings in enumerate(sweep.settings):
        if any(settings[name] != value for name, value in chosen.items()):
            continue
        at, values = (y.index(settings[names[0]]), x.index(settings[names[1]])), sweep.scores[metric][p, :, -1]
        means[at] = values.mean()
        share = (means[at] - limits[0]) / ((limits[1] - limits[0]) or 1.0)
        dark = np.isfinite(share) and (share < 0.5) != less_is_better(metric)
        lost = int((sweep.diverged[p] > 0).sum())
        text = f"{lost} of {len(sweep.seeds)}\ndiverged" if lost else cell_text(_cell(values)).replace(" ±", "\n±")
        weight = "bold" if p == best else "normal"
        centre = {"ha": "center", "va": "center", "fontsize": 9, "fontweight": weight}
        panel.text(at[1], at[0], text, color="white" if dark else INK, **centre)
        if p == best:
            frame = {"fill": False, "edgecolor": COLOURS[1], "linewidth": 2.5}
            panel.add_patch(Rectangle((at[1] - 0.47, at[0] - 0.47), 0.94, 0.94, **frame))
    image = panel.imshow(means, colours, vmin=limits[0], vmax=limits[1], aspect="auto")
    panel.set_xticks(range(len(x)), list(map(_text, x)))
    panel.set_yticks(range(len(y)), list(map(_text, y)))
    panel.set_xlabel(names[1], fontsize=9, color=INK)
    panel.set_ylabel(names[0], fontsize=9, color=INK)
    panel.tick_params(labelsize=9, length=0)
    panel.spines[:].set_visible(False)
    return image


def _plot_line(sweep: Sweep, axes: Mapping[str, list], metric: str, path: str | os.PathLike) -> None:
    """The mean over seeds along the only axis, each seed a dot."""
    ((name, values),) = axes.items() or (("", [""]),)
    figure = Figure((6, 3.4), layout="constrained")
    panel, each = figure.subplots(), sweep.scores[metric][..., -1]
    as_numbers = _are_numbers(values)
    x = np.array(values, float) if as_numbers else np.arange(len(values))
    order = np.argsort(x)
    panel.plot(x[order], each.mean(1)[order], color=COLOURS[0], marker="o", linewidth=1.6)
    for one in each.T:
        panel.plot(x, one, ".", color=GREY, markersize=5, zorder=1)
    if as_numbers and x.min() > 0 and x.max() >= 10 * x.min():
        panel.set_xscale("log")
    panel.set_xticks(x, list(map(_text, values)), minor=False)
    panel.minorticks_off()
    style(panel, f"{heading(metric)} after {sweep.rounds[-1]} rounds", name, quantity(metric))
    save(figure, path)


def _metric(sweep: Sweep, metric: str | None) -> str:
    """The metric, or the one that a setting is chosen by."""
    if metric is None:
        first = [name for start in ("valid/", "test/", "") for name in sweep.scores if name.startswith(start)]
        losses = [name for name in first if name.startswith(("valid/", "test/")) or name.endswith("/loss")]
        metric = next(iter(losses or first), None)
    if metric is None or metric not in sweep.scores:
        raise ValueError(f"the sweep has no metric {metric!r}; it has {sorted(sweep.scores)}")
    return metric


def _cell(values: np.ndarray) -> Cell:
    """`over_seeds` of an array, in which a seed without a number is not finite."""
    return over_seeds([value if math.isfinite(value) else None for value in values.tolist()])


def _are_numbers(values: Sequence) -> bool:
    return all(isinstance(value, numbers.Real) and not isinstance(value, bool) for value in values)


def _text(value: Any) -> str:
    """A value of a setting as people write it."""
    return f"{value:g}" if isinstance(value, float) and math.isfinite(value) else str(value)
