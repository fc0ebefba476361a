"""A row's sweep over its grid on the split valid of one seed, and several such sweeps as one."""

import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from experiments.common import cli, jobs
from fedjax_mm import report, run
from fedjax_mm.data import FederatedData
from fedjax_mm.run.grid import Build
from fedjax_mm.run.json_files import read_json
from fedjax_mm.run.sweep_files import Sweep, read_sweep


def swept(
    folder: pathlib.Path,
    build: Build,
    data: FederatedData,
    *,
    grid: Mapping[str, Sequence[float]],
    seed: int,
    rounds: int | None,
    per_round: int | Mapping[str, int],
    valid: Mapping[str, Any],
    about: Mapping[str, Any],
    name: str,
) -> pathlib.Path:
    """The folder of a sweep, where it is there already or else after it.

    about: the settings of all points, as `tables.of_a_run` gives them. name: the row, as a line says when it is done.
    Raises ValueError where the folder has a sweep of other settings.
    """
    about = json.loads(json.dumps(about))
    try:
        kept, said = read_sweep(folder), read_json(folder / "sweep.json")
    except FileNotFoundError:
        run.sweep(
            build,
            data,
            grid=grid,
            seeds=(seed,),
            rounds=rounds,
            per_round=per_round,
            valid=valid,
            directory=folder,
            config=about,
            log=lambda line: None,
        )
        jax.clear_caches()  # with the programs of dozens of sweeps a process comes to the end of its memory maps
        print(f"{name}, seed {seed}: tuned", flush=True)
        return folder
    if kept.axes != {key: list(values) for key, values in grid.items()} or said["config"] != about:
        raise ValueError(f"{folder} has a sweep of other settings; give another --out")
    return folder


def chosen(
    tune: Callable[[str, int], pathlib.Path], names: Sequence[str], valid: cli.Common, metric: str
) -> tuple[dict[str, Mapping[str, Any]], list[str]]:
    """({row: the values that were best for it}, the parts of a report that say what was tried).

    tune: (row, seed) -> the folder of its sweep, see `swept`. valid: its seeds are those of tuning.
    """
    own, notes = {}, ["## What was tried on the split valid"]
    for name, folders in jobs.trained(tune, names, valid).items():
        sweep = joined([read_sweep(folder) for folder in folders])
        best, said = report.best_setting(sweep, metric)
        own[name] = sweep.settings[best]
        tried = report.table(report.sweep_table(sweep), report.sweep_columns(sweep, metric))
        notes += [f"### {name}", " ".join(said), tried]
    return own, notes


def joined(same: Sequence[Sweep]) -> Sweep:
    """Sweeps of one grid, each with a seed of its own, as one."""
    scores = {key: np.concatenate([one.scores[key] for one in same], axis=1) for key in same[0].scores}
    seeds = tuple(seed for one in same for seed in one.seeds)
    return same[0]._replace(seeds=seeds, scores=scores, diverged=np.concatenate([one.diverged for one in same], axis=1))
