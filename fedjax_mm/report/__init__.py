"""Tables and plots of finished runs: `python -m fedjax_mm.report RUN [RUN ...] --out DIR`."""

from fedjax_mm.report.plots import plot_bars, plot_split
from fedjax_mm.report.runs import Run, costs_table, group, load, plot_curves, split_table, summary, write
from fedjax_mm.report.tables import heading, show, table

__all__ = ["Run", "costs_table", "group", "heading", "load", "plot_bars", "plot_curves", "plot_split"]
__all__ += ["show", "split_table", "summary", "table", "write"]
