"""Tables of plain dicts, in Markdown and on the terminal. A cell is a number, a text, (mean, std) or None."""

import html
import math
import re
from collections.abc import Mapping, Sequence
from numbers import Integral, Real

import rich.box
import rich.console
import rich.table
import rich.text

Cell = float | str | tuple[float, float] | None
Row = Mapping[str, Cell]
Columns = Sequence[str] | Mapping[str, str] | None


def table(rows: Sequence[Row], columns: Columns = None) -> str:
    """A Markdown table. columns: keys in order, or {key: heading}; None is every key of the rows."""
    heads = columns_of(rows, columns)
    line = lambda cells: "| " + " | ".join(map(escape, cells)) + " |\n"
    rule = "|" + "|".join(" ---: " if is_number(rows, key) else " --- " for key in heads) + "|\n"
    return line(heads.values()) + rule + "".join(line(cell_text(row.get(key)) for key in heads) for row in rows)


def latex(rows: Sequence[Row], columns: Columns = None) -> str:
    """The table that `table` writes as a LaTeX tabular with booktabs' rules, to be put into a document by input.

    >>> print(latex([{"run": "a_b", "F1": (0.8125, 0.0312)}]))
    \\begin{tabular}{lr}
    \\toprule
    run & F1 \\\\
    \\midrule
    a\\_b & $0.812 \\pm 0.031$ \\\\
    \\bottomrule
    \\end{tabular}
    <BLANKLINE>
    """
    heads = columns_of(rows, columns)
    kinds = "".join("r" if is_number(rows, key) else "l" for key in heads)
    line = lambda cells: " & ".join(map(_tex, cells)) + " \\\\\n"
    body = "".join(line(cell_text(row.get(key)) for key in heads) for row in rows)
    rules = f"\\begin{{tabular}}{{{kinds}}}\n\\toprule\n", "\\midrule\n", "\\bottomrule\n\\end{tabular}\n"
    return f"{rules[0]}{line(heads.values())}{rules[1]}{body}{rules[2]}"


def _tex(text: str) -> str:
    """A text as LaTeX shows it."""
    if text == "–":
        return "--"
    if found := re.fullmatch(r"(\S+) ± (\S+)", text):
        return f"${found[1]} \\pm {found[2]}$"
    known = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$"}
    known |= {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "–": "--"}
    known |= {one: f"\\{one}" for one in "&%$#_{}"}
    return "".join(known.get(one, one) for one in " ".join(text.split()))


def escape(text: str) -> str:
    """A text as Markdown shows it: names of runs and cohorts are no HTML, no link and no new column.

    >>> escape("<b>a|b</b> [c](d)")
    '&lt;b&gt;a\\\\|b&lt;/b&gt; \\\\[c\\\\](d)'
    """
    text = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"([|\[\]`*\\])", r"\\\1", text)


def show(rows: Sequence[Row], columns: Columns = None) -> None:
    """Prints the table that `table` writes, for a terminal."""
    heads = columns_of(rows, columns)
    grid = rich.table.Table(box=rich.box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for key, head in heads.items():
        grid.add_column(rich.text.Text(head), justify="right" if is_number(rows, key) else "left", overflow="fold")
    for row in rows:
        grid.add_row(*(rich.text.Text(cell_text(row.get(key))) for key in heads))
    console = rich.console.Console()
    if not console.is_terminal:  # a log has no edge to wrap at
        console = rich.console.Console(width=240)
    console.print(grid)


def cell_text(cell: Cell) -> str:
    """A cell as people write it: 0.831 for a number, 0.831 ± 0.012 for (mean, std), – for None.

    Three digits, or as many as the std has; never less than one of the std.
    """
    if cell is None:
        return "–"
    if not isinstance(cell, tuple):
        return str(cell) if isinstance(cell, str | Integral) else _fixed(cell, decimals(cell, 3))
    mean, std = cell
    if not std > 1e-6 * abs(mean):  # float32 has no more digits
        return f"{_fixed(mean, decimals(mean, 3))} ± {std:.0f}"
    places = min(decimals(std, 2), max(decimals(mean, 3), decimals(std, 1)))
    return f"{_fixed(mean, places)} ± {_fixed(std, places)}"


def heading(metric: str) -> str:
    """A logged metric's name for people: "test/left+right/macro_f1" -> "left+right macro F1"; others as they are."""
    *where, last = metric.removeprefix("test/").split("/")
    return " ".join([*where, quantity(last).removesuffix(" (0 to 1)")])


def quantity(metric: str) -> str:
    """What a metric measures, with its unit: "image/macro_f1" -> "macro F1 (0 to 1)"."""
    last = metric.rpartition("/")[2]
    known = {
        "accuracy": "accuracy (0 to 1)",
        "macro_f1": "macro F1 (0 to 1)",
        "weighted_f1": "weighted F1 (0 to 1)",
        "seconds": "time per round (s)",
        "clients": "clients taking part",
        "left_out": "clients left out",
    }
    if found := re.fullmatch(r"(i2t|t2i)_(?:r(\d+)|medr)", last):
        way = {"i2t": "image to text", "t2i": "text to image"}[found[1]]
        return f"{way} R@{found[2]} (%)" if found[2] else f"{way} median rank"
    return known.get(last, last)


def columns_of(rows: Sequence[Row], columns: Columns) -> dict[str, str]:
    """{key: heading} of a table's columns."""
    if columns is None:
        columns = list(dict.fromkeys(key for row in rows for key in row))
    return dict(columns) if isinstance(columns, Mapping) else {key: key for key in columns}


def is_number(rows: Sequence[Row], key: str) -> bool:
    """Whether a column holds numbers."""
    cells = [row.get(key) for row in rows]
    return all(cell is None or isinstance(cell, tuple | Real) for cell in cells)


def decimals(x: float, digits: int) -> int:
    """Decimal places that show `digits` significant ones."""
    return max(0, digits - 1 - math.floor(math.log10(abs(x)))) if x and math.isfinite(x) else 0


def _fixed(x: float, decimals: int) -> str:
    return f"{x:.2e}" if decimals > 6 else f"{x:.{decimals}f}"
