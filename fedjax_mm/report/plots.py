"""Pictures of who holds what, and of quality beside cost; sizes and fonts suit a page 900 pixels wide."""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.text import Text
from sklearn.decomposition import PCA

from fedjax_mm.report.tables import Cell, Row, cell_text, heading

# Okabe and Ito's colours, told apart with any kind of colour vision; grey is for controls.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#B8A800")
GREY, LIGHT_GREY, INK = "#8C8C8C", "#C4C4C4", "#303030"
DOWN, UP = "#B5500A", "#F2A65A"


def modalities(holds: Mapping[str, Any]) -> list[str]:
    """What a cohort of split.json holds of every example, besides its label, group and marks of what is missing."""
    return [name for name in holds["arrays"] if name not in ("label", "group") and not name.startswith("has_")]


def plot_split(split: Mapping[str, Any], path: str | os.PathLike, classes: Sequence[str] | None = None) -> None:
    """Writes the picture of who holds what: a bar per client, by class where there are labels, a panel per cohort.

    classes: K names; by default numbers.
    """
    figure = Figure((9, 0.5 + 1.9 * len(split)), layout="constrained")
    tops = [max(holds["examples"]) for holds in split.values()]
    alike = max(tops) <= 5 * min(tops)  # one scale, unless it would flatten a cohort
    panels = figure.subplots(len(split), 1, sharey=alike, squeeze=False)[:, 0]
    most = max(len(holds["examples"]) for holds in split.values())
    count = max(len(holds["classes"][0]) if "classes" in holds else 0 for holds in split.values())
    palette = COLOURS if count <= len(COLOURS) else matplotlib.colormaps["viridis"](np.linspace(0, 1, count))
    for panel, top, (cohort, holds) in zip(panels, tops, split.items(), strict=True):
        sizes = np.asarray(holds["examples"])
        by_class = np.asarray(holds.get("classes", sizes[:, None]))  # [N, K]
        bottom = np.zeros(len(sizes))
        for k, held in enumerate(by_class.T):
            some = np.flatnonzero(held)
            edge = {"edgecolor": "white", "linewidth": 0.4 if most <= 50 else 0}
            panel.bar(some, held[some], 0.82, bottom[some], color=palette[k] if "classes" in holds else GREY, **edge)
            bottom += held
        for client, size in enumerate(sizes if most <= 50 else ()):
            place = {"xytext": (0, 2), "textcoords": "offset points", "ha": "center", "rotation": 90 * (most > 20)}
            panel.annotate(f"{size}", (client, size), fontsize=8, color=INK, **place)
        held = ", ".join(modalities(holds))  # which often is the cohort's name
        style(panel, cohort if cohort == held.replace(", ", "+") else f"{cohort}: {held}", "", "examples")
        about = f"{len(sizes)} clients, {sizes.sum():,} examples, {sizes.min():,} to {sizes.max():,} each"
        panel.set_title(about, loc="right", fontsize=9, color=INK)
        panel.set_xlim(-0.7, max(most, 10) - 0.3)  # a bar is as wide in every panel
        panel.set_ylim(0, 1.22 * (max(tops) if alike else top))
        panel.set_xticks(range(0, len(sizes), -(-most // 20)))
        panel.grid(False, axis="x")
    panels[-1].set_xlabel("client of the cohort", fontsize=9, color=INK)
    if 1 < count <= 20:
        names = classes if classes is not None else [str(k) for k in range(count)]
        patches = [Patch(color=palette[k], label=names[k]) for k in reversed(range(count))]
        figure.legend(handles=patches, title="class", loc="outside right center", frameon=False, fontsize=9)
    elif count > 20:
        figure.colorbar(ScalarMappable(Normalize(0, count - 1), "viridis"), ax=panels, label="class")
    save(figure, path)


def plot_costs(
    rows: Sequence[Row], path: str | os.PathLike, *, costs: Sequence[str], by: str = "plan", at: str = "stage"
) -> None:
    """Writes a panel per cost, in it a bar per row: side by side for each value of `by`, along the axis of `at`.

    A value of `by` that has one row alone is a line across. rows: of numbers under the keys `costs`; at most one for
    each pair of `by` and `at`.
    """
    figure = Figure((9, 2.8), layout="constrained")
    panels = figure.subplots(1, len(costs), squeeze=False)[0]
    names, places = ([*dict.fromkeys(row[key] for row in rows)] for key in (by, at))
    width = 0.84 / len(names)
    for panel, cost in zip(panels, costs, strict=True):
        for i, name in enumerate(names):
            mine = {places.index(row[at]): row[cost] for row in rows if row[by] == name}
            look = {"color": COLOURS[i], "label": str(name)}
            if len(mine) == 1 < len(places):
                panel.axhline(*mine.values(), linestyle="--", linewidth=1.6, **look)
            else:
                x = np.array([*mine]) + (i - (len(names) - 1) / 2) * width
                panel.bar(x, [*mine.values()], width, **look)
        style(panel, cost, at, "")
        panel.set_xticks(range(len(places)), [str(place) for place in places])
        panel.grid(False, axis="x")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(names), frameon=False)
    save(figure, path)


def plot_bars(
    rows: Sequence[Row],
    path: str | os.PathLike,
    *,
    quality: str,
    cost: tuple[str, ...] = ("MB down", "MB up"),
    label: str = "run",
    controls: Sequence[str] = (),
    quality_axis: str | None = None,
    cost_axis: str = "MB per client and round",
) -> None:
    """Writes a bar of quality (with its std) per row, and beside it the one or two costs, stacked.

    quality, cost, label: keys of the rows; controls: labels of the rows to grey.
    """
    look = {"quality_axis": quality_axis or heading(quality), "cost_axis": cost_axis}
    plot_bar_groups({"": rows}, path, quality=quality, cost=cost, label=label, controls=controls, **look)


def plot_bar_groups(
    groups: Mapping[str, Sequence[Row]],
    path: str | os.PathLike,
    *,
    quality: str,
    cost: tuple[str, ...] = ("MB down", "MB up"),
    label: str = "run",
    controls: Sequence[str] = (),
    quality_axis: str,
    cost_axis: str = "MB per client and round",
) -> None:
    """Writes the panels of `plot_bars` for each group of rows, one group below the other, on the same two axes.

    groups: title, "" for none, -> rows.
    """
    sizes, titled = [len(rows) for rows in groups.values()], sum(map(bool, groups))
    figure = Figure((9, 1.1 + (0.3 if titled else 0.36) * sum(sizes) + 0.35 * titled), layout="constrained")
    ratios = {"width_ratios": (3, 2), "height_ratios": sizes}
    panels = figure.subplots(len(groups), 2, squeeze=False, sharex="col", sharey="row", **ratios)
    ends = []
    for (left, right), (title, rows) in zip(panels, groups.items(), strict=True):
        style(left, title, "", "")
        style(right, "", "", "")
        ends.append(_draw_bars(left, right, rows, quality, cost, label, controls))
        for axis in (left, right):
            axis.grid(False, axis="y")
            axis.tick_params(axis="y", length=0)
    for axis, end, about in zip(panels[-1], np.max(ends, axis=0), (quality_axis, cost_axis), strict=True):
        axis.set_xlim(0, 1.4 * max(end, 1e-9))  # room for the numbers
        axis.set_xticks([tick for tick in axis.get_xticks() if tick <= 1.1 * end])
        axis.set_xlabel(about, fontsize=10.5, color=INK)
    if len(cost) > 1:
        patches = [Patch(color=colour, label=key) for key, colour in zip(cost, (DOWN, UP), strict=False)]
        figure.legend(handles=patches, loc="outside upper right", ncols=2, frameon=False, fontsize=9.5)
    save(figure, path)


def _draw_bars(
    left: Axes,
    right: Axes,
    rows: Sequence[Row],
    quality: str,
    cost: Sequence[str],
    label: str,
    controls: Sequence[str],
) -> tuple[float, float]:
    """How far the longest bars reach, with their std, after a bar of quality and of cost for each row are drawn."""
    at, names = np.arange(len(rows)), [str(row[label]) for row in rows]
    pick = lambda colour, grey: [grey if name in controls else colour for name in names]
    bars = {"height": 0.7, "edgecolor": "white", "linewidth": 0.5}
    mean, std = np.array([_mean_std(row.get(quality)) for row in rows]).T
    left.barh(at, mean, color=pick(COLOURS[0], GREY), **bars)
    left.errorbar(mean, at, xerr=np.where(std > 0, std, np.nan), fmt="none", ecolor=INK, elinewidth=1.2, capsize=3)
    parts = np.array([[_mean_std(row.get(key))[0] for row in rows] for key in cost])  # [costs, rows]
    starts = np.cumsum(parts, 0) - parts
    for part, start, colour, grey in zip(parts, starts, (DOWN, UP), (GREY, LIGHT_GREY), strict=False):
        right.barh(at, part, left=start, color=pick(colour, grey), **bars)
    total = parts.sum(0)
    totals = [cell_text(None if np.isnan(x) else x) for x in total.tolist()]
    qualities = [cell_text(row.get(quality)) for row in rows]
    for axis, ends, texts in ((left, mean + std, qualities), (right, total, totals)):
        for y, end, text in zip(at, np.nan_to_num(ends), texts, strict=True):
            axis.annotate(text, (end, y), (5, 0), textcoords="offset points", va="center", fontsize=9.5, color=INK)
    left.set_yticks(at, names, fontsize=10.5)
    left.invert_yaxis()
    for text, name in zip(left.get_yticklabels(), names, strict=True):
        text.set_color(GREY if name in controls else "black")
    return float(np.nan_to_num(mean + std).max()), float(np.nan_to_num(total).max())


def plot_representations(groups: Mapping[str, Mapping[str, np.ndarray]], path: str | os.PathLike, title: str) -> None:
    """Writes a panel per modality: representations of the same examples by several models, on two principal axes.

    groups: modality -> model -> [P, D]. One cloud means that models agree, clouds apart that they drifted.
    """
    figure = Figure((9, 4.2), layout="constrained")
    names = list(dict.fromkeys(name for models in groups.values() for name in models))
    handles = {}
    for panel, (modality, models) in zip(
        figure.subplots(1, len(groups), squeeze=False)[0], groups.items(), strict=True
    ):
        axes = PCA(2).fit(np.concatenate([*models.values()]))
        for name, z in models.items():
            i = names.index(name)
            look = {"color": COLOURS[i % len(COLOURS)], "marker": "o^s"[i // len(COLOURS) % 3]}
            handles[name] = panel.scatter(*axes.transform(z).T, s=7, alpha=0.5, linewidths=0, **look)
        share = ", ".join(f"{100 * part:.0f} %" for part in axes.explained_variance_ratio_)
        style(panel, f"{title}: {modality}", f"principal axes, {share} of the variance", "")
    figure.legend(list(handles.values()), list(handles), loc="outside right center", frameon=False, fontsize=9)
    save(figure, path)


def _mean_std(cell: Cell) -> tuple[float, float]:
    """A cell's numbers; nan for the mean where there is none, 0 for the std."""
    if isinstance(cell, str):
        raise ValueError(f"{cell!r} is no number that a bar can show")
    return cell if isinstance(cell, tuple) else (np.nan if cell is None else cell, 0.0)


def style(panel: Axes, title: str, x: str, y: str) -> None:
    panel.set_title(title, loc="left", fontsize=10, fontweight="bold", color="black")
    panel.set_xlabel(x, fontsize=9, color=INK)
    panel.set_ylabel(y, fontsize=9, color=INK)
    panel.spines[["top", "right"]].set_visible(False)
    panel.spines[["left", "bottom"]].set_color("#B0B0B0")
    panel.tick_params(labelsize=9, color="#B0B0B0", labelcolor=INK)
    panel.grid(True, color="#E8E8E8", linewidth=0.7)
    panel.set_axisbelow(True)


def save(figure: Figure, path: str | os.PathLike) -> None:
    FigureCanvasAgg(figure)
    for part in figure.findobj(Text):
        if isinstance(part, Text) and "$" in part.get_text():
            part.set_parse_math(False)  # a name is no formula
    figure.savefig(pathlib.Path(path), dpi=200, facecolor="white")
