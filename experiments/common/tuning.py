"""A row's sweep over its grid on the split valid of one seed, and several such sweeps as one."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedjax_mm import run
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
        print(f"{name}, seed {seed}: tuned", flush=True)
        return folder
    if kept.axes != {key: list(values) for key, values in grid.items()} or said["config"] != about:
        raise ValueError(f"{folder} has a sweep of other settings; give another --out")
    return folder


def joined(same: Sequence[Sweep]) -> Sweep:
    """Sweeps of one grid, each with a seed of its own, as one."""
    scores = {key: np.concatenate([one.scores[key] for one in same], axis=1) for key in same[0].scores}
    seeds = tuple(seed for one in same for seed in one.seeds)
    return same[0]._replace(seeds=seeds, scores=scores, diverged=np.concatenate([one.diverged for one in same], axis=1))
