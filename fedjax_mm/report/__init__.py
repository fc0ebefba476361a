"""Tables and plots of finished runs: `python -m fedjax_mm.report RUN [RUN ...] --out DIR [--html]`."""

from fedjax_mm import _lazy

for package in ("matplotlib", "rich", "tyro"):  # before any of them is imported: the error says what to install
    _lazy.require(package, "report")

from fedjax_mm.report.own_scores import own_scores_table, plot_own_scores
from fedjax_mm.report.page import write
from fedjax_mm.report.paired import differences_table, paired_differences, plot_differences
from fedjax_mm.report.plots import plot_bar_groups, plot_bars, plot_costs, plot_representations, plot_split
from fedjax_mm.report.runs import Run, costs_table, group, load, plot_curves, privacy_table, split_table, summary
from fedjax_mm.report.sweeps import best_setting, plot_sweep, read_sweep, sweep_columns, sweep_table, write_sweep
from fedjax_mm.report.tables import heading, latex, show, table

__all__ = [
    "Run",
    "best_setting",
    "costs_table",
    "differences_table",
    "group",
    "heading",
    "load",
    "latex",
    "own_scores_table",
    "paired_differences",
    "plot_bar_groups",
    "plot_bars",
    "plot_costs",
    "plot_curves",
    "plot_differences",
    "plot_own_scores",
    "plot_representations",
    "plot_split",
    "plot_sweep",
    "read_sweep",
    "privacy_table",
    "show",
    "split_table",
    "summary",
    "sweep_columns",
    "sweep_table",
    "table",
    "write",
    "write_sweep",
]
