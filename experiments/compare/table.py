"""The table and the picture of the comparison, and what they say of each paper in a sentence."""

import functools
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.common import cli, jobs, tables
from experiments.compare import papers, study
from experiments.compare.papers import Paper
from fedjax_mm import report
from fedjax_mm.report.paired import difference_cells, interval
from fedjax_mm.report.runs import over_seeds
from fedjax_mm.report.tables import Cell

Rows = Mapping[str, Mapping[str, Any]]  # row -> "score", percent for each seed, "s" and costs
COLUMNS = {"paper": "paper", "row": "row", "score": "score (%)", "ahead": "the paper is ahead by"}
COLUMNS |= {key: key for key in (*study.COSTS, "s")}
NOTES = (
    "The score is that of each paper's own task, which is named above its bars. All seeds have the same split and "
    "clients; a seed draws weights, participants and batches. Differences are taken within a seed, with a 95 % "
    "interval over seeds. MB and MFLOP are those of a client in a round and peak MB those of its step; of several "
    "kinds of clients, those of the one that pays most. Seconds are those of all seeds, compilation included; "
    "rows of one program have equal parts of its time. FedDAT's head takes two steps a batch, and its controls' one."
)


def compare(settings: study.Settings) -> list[dict[str, Any]]:
    """Trains all papers and their controls, prints the table and writes report.md, table.json and bars.png to `out`."""
    begun, common = time.perf_counter(), settings.common
    cli.write(common.out, settings)
    made = {name: make(common.split, common.all_seeds[0]) for name, make in papers.PAPERS.items()}
    # What takes longest comes first, so that no process waits for it in the end.
    which = [(name, program) for name in reversed(made) for program in made[name].programs]
    done = dict(zip(which, jobs.done_all(functools.partial(study.train, settings), which, common.jobs), strict=True))
    groups, said = {}, []
    for name, paper in made.items():
        found = all_rows(paper, [done[name, program]["rows"] for program in paper.programs], len(common.all_seeds))
        groups[f"{name}: {paper.about}"] = [{"paper": name, **row} for row in table_rows(paper, found)]
        said.append(f"- {verdict(paper, found)}")
    rows = [row for group in groups.values() for row in group]
    apart = sorted({str(row["row"]) for row in rows} - {paper.row for paper in made.values()})
    axes: dict[str, Any] = {"quality_axis": "score (%)", "cost_axis": "MB per client and round"}
    report.plot_bar_groups(
        groups, pathlib.Path(common.out) / "bars.png", quality="score", label="row", controls=apart, **axes
    )
    about = f"Embedded digits, {common.rounds} rounds, {common.about_seeds}, {common.split} split."
    parts = ["![scores and bytes](bars.png)", NOTES, "\n".join(said)]
    first = report.Run("compare", next(iter(done.values())), {}, {}, [])
    tables.save(common, settings, "Every paper beside its controls", about, rows, COLUMNS, parts, first)
    print(*said, f"Took {time.perf_counter() - begun:.0f} s.", sep="\n")
    return rows


def all_rows(paper: Paper, programs: Sequence[Rows], seeds: int) -> dict[str, Mapping[str, Any]]:
    """The rows of all programs, after those that learn nothing, the paper's own row last."""
    rows = {name: {"score": [score] * seeds} for name, score in paper.chance.items()}
    rows |= {name: row for program in programs for name, row in program.items()}
    return {name: row for name, row in rows.items() if name != paper.row} | {paper.row: rows[paper.row]}


def table_rows(paper: Paper, rows: Rows) -> list[dict[str, Cell]]:
    """Each row with its score as (mean, sample standard deviation), and how far the paper's own row is ahead of it.

    >>> paper = Paper("ours", "", "", 1.0, {}, {})
    >>> table_rows(paper, {"alone": {"score": [1.0, 2.0]}, "ours": {"score": [2.0, 4.0], "MB up": 0.1}})[0]["ahead"]
    '+2 (-5 to +8)'
    """
    shown = []
    for name, row in rows.items():
        cells = {key: value for key, value in row.items() if key != "score"}
        ahead = None if name == paper.row else _ahead(rows[paper.row]["score"], row["score"]).text
        shown.append({"row": name, "score": over_seeds(row["score"]), "ahead": ahead, **cells})
    return shown


def verdict(paper: Paper, rows: Rows) -> str:
    """A sentence that says how the paper's own row compares with the best of its controls.

    >>> paper = Paper("ours", "", "", 1.0, {}, {}, ceiling="all data")
    >>> rows = {"alone": {"score": [1.0, 2.0]}, "all data": {"score": [9.0, 9.0]}, "ours": {"score": [2.0, 3.1]}}
    >>> verdict(paper, rows)
    'ours is ahead of its best control, alone: +1.1 (+0.4 to +1.7). Against all data: -6 (-13 to +1).'
    """
    scores = {name: row["score"] for name, row in rows.items() if name not in (paper.row, paper.ceiling)}
    known = {name: sum(score) for name, score in scores.items() if None not in score}
    if not known or None in rows[paper.row]["score"]:
        return f"{paper.row} cannot be compared, as runs diverged."
    best = max(known, key=lambda name: known[name])
    found = _ahead(rows[paper.row]["score"], scores[best])
    how = "is ahead of" if found.low > 0 else "is behind" if found.high < 0 else "is not clearly apart from"
    against = _ahead(rows[paper.row]["score"], rows[paper.ceiling]["score"]).text if paper.ceiling else None
    beyond = f" Against {paper.ceiling}: {against}." if against else ""
    return f"{paper.row} {how} its best control, {best}: {found.text}.{beyond}"


class Ahead(NamedTuple):
    """A mean difference over seeds, and the ends of its 95 % interval, which one seed does not have."""

    text: str | None
    low: float = -np.inf
    high: float = np.inf


def _ahead(ours: Sequence[float | None], theirs: Sequence[float | None]) -> Ahead:
    if None in (*ours, *theirs):
        return Ahead(None)
    differences = [a - b for a, b in zip(ours, theirs, strict=True) if a is not None and b is not None]
    if len(differences) == 1:
        return Ahead(f"{differences[0]:+.1f} (one seed)")
    mean, low, high = interval(differences)
    text, ends = difference_cells(mean, low, high).values()
    return Ahead(f"{text} ({ends})", low, high)
