"""The command `python -m fedjax_mm.report RUN [RUN ...] --out DIR`."""

import pathlib

import tyro

from fedjax_mm.report.own_scores import own_scores_table
from fedjax_mm.report.page import result_columns, write
from fedjax_mm.report.runs import all_keys, load, summary
from fedjax_mm.report.tables import show


def main(runs: tyro.conf.Positional[tuple[pathlib.Path, ...]], out: pathlib.Path) -> None:
    """Writes a report of finished runs and prints its results.

    Args:
        runs: directories that run.train wrote.
        out: directory for report.md and its pictures.
    """
    try:
        report = write(runs, out)
    except (OSError, ValueError) as error:
        raise SystemExit(str(error)) from error
    rows = summary([load(directory) for directory in runs])
    for columns in result_columns([key for key in all_keys(rows) if key.startswith("test/")]):
        show(rows, columns)
    if own := own_scores_table([load(directory) for directory in runs]):
        show(own)
    show(rows, ["run", "MB down", "MB up", "GFLOP per step", "peak MB", "s per round"])
    print(f"written to {report}")


if __name__ == "__main__":
    tyro.cli(main)
