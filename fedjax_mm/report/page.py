"""The page of a report: report.md and its pictures."""

import os
import pathlib
from collections.abc import Mapping, Sequence

from fedjax_mm.report.own_scores import own_scores_table, plot_own_scores
from fedjax_mm.report.plots import plot_split
from fedjax_mm.report.runs import (
    Run,
    all_keys,
    costs_table,
    differences,
    group,
    load,
    plot_curves,
    split_table,
    summary,
)
from fedjax_mm.report.tables import Cell, escape, heading, table


def write(directories: Sequence[str | os.PathLike], out: str | os.PathLike) -> pathlib.Path:
    """The report.md written to `out`, its pictures beside it: results, curves, costs, and who holds what."""
    runs, out = [load(directory) for directory in directories], pathlib.Path(out)
    if not runs:
        raise ValueError("no run is given; give at least one directory that run.train wrote")
    groups, rows = group(runs), summary(runs)
    out.mkdir(parents=True, exist_ok=True)
    keys = all_keys([row for run in runs for row in run.rows])
    tests, own = [key for key in keys if key.startswith("test/")], own_scores_table(runs)
    text = ["# Report", table(_settings_table(groups)), "## Results"]
    text += ["At the last test: mean ± sample standard deviation over seeds."]
    text += [table(rows, columns) for columns in result_columns(tests)]
    losses = [key for key in keys if key.endswith("/loss") and key not in tests]
    for name, metrics in {"test": tests, "loss": losses}.items():
        if metrics:
            plot_curves(runs, metrics, out / f"curves-{name}.png")
            text += [f"![{name} over rounds](curves-{name}.png)"]
    text += ["Lines are means over seeds, bands go from the least to the most."]
    if own:
        scores = {name: [run.own_scores for run in same] for name, same in groups.items()}
        plot_own_scores(scores, out / "own.png")
        text += ["## Clients on their own test rows", table(own), "![scores of clients](own.png)"]
        text += ["Clients of all seeds in the order of their scores, the worst first."]
    text += ["## Costs"]
    text += ["Of one client: MB (10^6 bytes) per round, matrix-multiplication FLOP and memory of a local step."]
    text += [
        table(costs_table(runs)),
        "A whole round with all its participants takes, in seconds (median):",
        table(rows, ["run", "s per round"]),
    ]
    shown = []
    for first in (same[0] for same in groups.values()):
        if first.split not in shown:
            shown.append(first.split)
            plot_split(first.split, out / f"split-{len(shown)}.png")
            text += [f"## Who holds what: {escape(first.name)}", table(split_table(first.split))]
            text += [f"![examples per client and class](split-{len(shown)}.png)"]
    (out / "report.md").write_text("\n\n".join(part.strip() for part in text) + "\n")
    return out / "report.md"


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
