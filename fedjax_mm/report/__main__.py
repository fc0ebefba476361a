"""The command `python -m fedjax_mm.report RUN [RUN ...] --out DIR [--html] [--pdf] [--latex]`."""

import pathlib

import tyro

from fedjax_mm.report.own_scores import own_scores_table
from fedjax_mm.report.page import result_columns, write
from fedjax_mm.report.paired import differences_table, paired_differences
from fedjax_mm.report.runs import all_keys, load, summary
from fedjax_mm.report.sweeps import best_setting, read_sweep, sweep_columns, sweep_table, write_sweep
from fedjax_mm.report.tables import show
from fedjax_mm.run.sweep_files import ABOUT


def main(
    runs: tyro.conf.Positional[tuple[pathlib.Path, ...]],
    out: pathlib.Path = pathlib.Path("report"),
    html: tyro.conf.FlagCreatePairsOff[bool] = False,
    pdf: tyro.conf.FlagCreatePairsOff[bool] = False,
    latex: tyro.conf.FlagCreatePairsOff[bool] = False,
) -> None:
    """Writes a report of finished runs, or of one sweep, and prints its results.

    Args:
        runs: directories that run.train wrote; the others are compared with the first one, seed by seed. Or one that
            run.sweep wrote.
        out: directory for report.md, or sweep.md, and its pictures.
        html: write report.html too, one page with everything in it.
        pdf: write every picture as PDF too.
        latex: write every table as a .tex file too.
    """
    if len(runs) == 1 and (runs[0] / ABOUT).is_file():
        return report_sweep(runs[0], out)
    try:
        report = write(runs, out, html=html, pdf=pdf, tex=latex)
    except (OSError, ValueError) as error:
        raise SystemExit(str(error)) from error
    loaded = [load(directory) for directory in runs]
    rows = summary(loaded)
    for columns in result_columns([key for key in all_keys(rows) if key.startswith("test/")]):
        show(rows, columns)
    for found in (differences_table(paired_differences(loaded)), own_scores_table(loaded)):
        if found:
            show(found)
    show(rows, ["run", "MB down", "MB up", "GFLOP per step", "peak MB", "s per round"])
    print(f"written to {report.with_suffix('.html') if html else report}")


def report_sweep(directory: pathlib.Path, out: pathlib.Path) -> None:
    """Writes the report of a sweep and prints its table."""
    try:
        path, sweep = write_sweep(directory, out), read_sweep(directory)
    except (OSError, ValueError) as error:
        raise SystemExit(str(error)) from error
    rows = sweep_table(sweep)
    show(rows, sweep_columns(sweep))
    print(*best_setting(sweep)[1], f"written to {path}", sep="\n")


if __name__ == "__main__":
    tyro.cli(main)
