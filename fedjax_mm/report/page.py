"""A report: report.md and its pictures; on demand report.html, pictures as PDF, and tables for LaTeX."""

import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from fedjax_mm.report import web
from fedjax_mm.report.curves import AXES
from fedjax_mm.report.own_scores import own_scores_table, plot_own_scores
from fedjax_mm.report.paired import differences_table, paired_differences, plot_differences
from fedjax_mm.report.parts import Heading, Note, Part, Picture, Table, markdown
from fedjax_mm.report.plots import plot_split
from fedjax_mm.report.runs import (
    Run,
    all_keys,
    costs_table,
    differences,
    group,
    load,
    plot_curves,
    privacy_table,
    rows_with_costs,
    split_table,
    summary,
)
from fedjax_mm.report.tables import Cell, heading, latex

AGAINST = {"round": "rounds", "MB": "bytes", "GFLOP": "FLOPs", "spent seconds": "seconds"}
SPENT = (
    "Bytes and FLOPs are those of all clients that took part; each counts as a client of the mean size of its cohort. "
    "FLOPs are those of matrix products. Seconds are those that the rounds took where they ran."
)
Draw = Callable[..., str]  # (a plot's function, its arguments, name=) -> the name of the picture without its ending


def write(
    directories: Sequence[str | os.PathLike],
    out: str | os.PathLike,
    *,
    html: bool = False,
    pdf: bool = False,
    tex: bool = False,
) -> pathlib.Path:
    """The report.md written to `out`, its pictures beside it: results, curves, costs, and who holds what.

    html: report.html too, one page with everything in it, whose curves are also drawn against bytes, FLOPs and seconds.
    pdf: every picture as PDF too. tex: every table as a .tex file too. The first run's group is what the others are
    compared with. Raises FileNotFoundError and ValueError as `load` and `group` do.
    """
    runs, out = [load(directory) for directory in directories], pathlib.Path(out)
    if not runs:
        raise ValueError("no run is given; give at least one directory that run.train wrote")
    rows = summary(runs)
    out.mkdir(parents=True, exist_ok=True)

    def draw(plot: Callable, *args: Any, name: str, **settings: Any) -> str:
        for kind in ("png", "pdf") if pdf else ("png",):
            plot(*args, out / f"{name}.{kind}", **settings)
        return name

    parts = [*_results(runs, rows, draw, html), *_paired(runs, draw), *_own(runs, draw)]
    parts += [*_private(runs), *_costs(runs, rows), *_splits(runs, draw)]
    (out / "report.md").write_text(markdown("Report", parts))
    if html:
        (out / "report.html").write_text(web.page("Report", parts, out), encoding="utf-8")
    for part in parts:
        if tex and isinstance(part, Table):
            (out / f"{part.name}.tex").write_text(latex(part.rows, part.columns), encoding="utf-8")
    return out / "report.md"


def _results(runs: Sequence[Run], rows: Sequence[dict[str, Cell]], draw: Draw, every_axis: bool) -> Iterator[Part]:
    keys = all_keys([row for run in runs for row in run.rows])
    tests = [key for key in keys if key.startswith("test/")]
    yield Table("settings", _settings_table(group(runs)))
    yield Heading("Results")
    yield Note("At the last test: mean ± sample standard deviation over seeds.")
    for i, columns in enumerate(result_columns(tests), 1):
        yield Table(f"results-{i}", rows, columns)
    losses = [key for key in keys if key.endswith("/loss") and key not in tests]
    known = set.intersection(*(set(rows_with_costs(run)[-1]) for run in runs))
    axes = {axis: word for axis, word in AGAINST.items() if axis == "round" or (every_axis and axis in known)}
    assert AXES.keys() == AGAINST.keys()
    for name, metrics in {"test": tests, "loss": losses}.items():
        if metrics:
            file = lambda word, name=name: f"curves-{name}" if word == "rounds" else f"curves-{name}-{word.lower()}"
            drawn = {
                word: draw(lambda path, a=axis, m=metrics: plot_curves(runs, m, path, a), name=file(word))
                for axis, word in axes.items()
            }
            yield Picture(f"{name} over rounds", drawn, SPENT if name == "test" or not tests else "")
    yield Note("Lines are means over seeds, bands go from the least to the most.")


def _paired(runs: Sequence[Run], draw: Draw) -> Iterator[Part]:
    rows = paired_differences(runs)
    if rows:
        baseline = next(iter(group(runs)))
        yield Heading(f"Differences from {baseline}, seed by seed")
        yield Table("differences", differences_table(rows))
        yield Picture("differences and their intervals", {"": draw(plot_differences, rows, name="differences")})
        yield Note(
            "Means over pairs of runs with the same seed, with 95 % confidence intervals by Student's t. A full dot "
            "says that the interval leaves out 0. Each stands alone: of twenty, one is expected to miss."
        )


def _own(runs: Sequence[Run], draw: Draw) -> Iterator[Part]:
    if own := own_scores_table(runs):
        scores = {name: [run.own_scores for run in same] for name, same in group(runs).items()}
        yield Heading("Clients on their own test rows")
        yield Table("own", own)
        yield Picture("scores of clients", {"": draw(plot_own_scores, scores, name="own")})
        yield Note("Clients of all seeds in the order of their scores, the worst first.")


def _private(runs: Sequence[Run]) -> Iterator[Part]:
    if private := privacy_table(runs):
        yield Heading("Privacy")
        yield Note("A client's, after the last round, as each run's own accountant has it.")
        yield Table("privacy", private)


def _costs(runs: Sequence[Run], rows: Sequence[dict[str, Cell]]) -> Iterator[Part]:
    yield Heading("Costs")
    yield Note("Of one client: MB (10^6 bytes) per round, matrix-multiplication FLOP and memory of a local step.")
    yield Table("costs", costs_table(runs))
    yield Note("A whole round with all its participants takes, in seconds (median):")
    yield Table("seconds", rows, ["run", "s per round"])


def _splits(runs: Sequence[Run], draw: Draw) -> Iterator[Part]:
    shown = []
    for first in (same[0] for same in group(runs).values()):
        if first.split not in shown:
            shown.append(first.split)
            number = len(shown)
            yield Heading(f"Who holds what: {first.name}")
            yield Table(f"split-{number}", split_table(first.split))
            yield Picture("examples per client and class", {"": draw(plot_split, first.split, name=f"split-{number}")})


def result_columns(tests: Sequence[str]) -> list[dict[str, str]]:
    """The columns of the results, in as many tables as fit a page."""
    parts = [tests[i : i + 4] for i in range(0, max(len(tests), 1), 4)]
    return [{k: k for k in ("run", "seeds", "rounds")} | {k: heading(k) for k in part} for part in parts]


def _settings_table(groups: Mapping[str, Sequence[Run]]) -> list[dict[str, Cell]]:
    rows = []
    for (name, same), differs in zip(groups.items(), differences(list(groups.values())), strict=True):
        row = {"run": name, "seeds": ", ".join(str(run.config["seed"]) for run in same)}
        row |= {key: str(value) for key, value in differs.items()}
        rows.append(row | {"device": ", ".join(sorted({run.config["device"] for run in same}))})
    return rows
