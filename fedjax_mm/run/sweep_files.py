"""What a sweep gives, and the directory that it is written to: `sweep.json`, and in `sweep.jsonl` a line for each run.

Both are written when the sweep is done. A directory without them holds no sweep, whatever was cut off.
"""

import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np

from fedjax_mm.checks import say
from fedjax_mm.data import FederatedData
from fedjax_mm.run import digests
from fedjax_mm.run.json_files import Folder, line_of, read_json, read_lines
from fedjax_mm.run.records import check_name, device, versions
from fedjax_mm.types import FedState

ABOUT, LINES = "sweep.json", "sweep.jsonl"


class Sweep(NamedTuple):
    """The scores of every run of a sweep, of P settings, S seeds and V evaluations. It prints as a summary."""

    settings: tuple[Mapping[str, Any], ...]
    """P: setting -> value. The last setting varies first."""
    seeds: tuple[int, ...]
    """S."""
    rounds: tuple[int, ...]
    """V: the rounds behind which runs were scored."""
    scores: Mapping[str, np.ndarray]
    """Name, as in the log of `run.train` -> [P, S, V]; NaN from the round on in which a run diverged."""
    diverged: np.ndarray
    """[P, S]: the round in which a run diverged, 0 for one that did not."""
    states: tuple[FedState, ...] = ()
    """P: the last states of all seeds, leaves [S, ...]. () where the sweep was read from its directory."""

    @property
    def axes(self) -> dict[str, list]:
        """Setting -> its values, in the order of the grid."""
        named = {name: [point[name] for point in self.settings] for name in self.settings[0]}
        return {name: [v for i, v in enumerate(values) if v not in values[:i]] for name, values in named.items()}

    def __repr__(self) -> str:
        lines = [f"Sweep of {len(self.settings)} settings x {len(self.seeds)} seeds, scored after rounds {self.rounds}"]
        lines += [f"  {name}: {values}" for name, values in self.axes.items()]
        return "\n".join(
            [*lines, f"  scores: {', '.join(self.scores)}; {np.count_nonzero(self.diverged)} runs diverged"]
        )


class SweepDirectory(NamedTuple):
    """The directory of a sweep that is not done yet."""

    path: pathlib.Path
    about: Mapping[str, Any]

    def write(self, sweep: Sweep) -> None:
        """Writes the sweep; the settings last, which say that it is whole."""
        self.path.mkdir(parents=True, exist_ok=True)
        temporary = self.path / f"{LINES}.tmp"
        temporary.write_text("".join(line_of(row) for row in _rows(sweep)))
        temporary.replace(self.path / LINES)
        names = list(sweep.scores)
        Folder(self.path).write(ABOUT, {**self.about, "rounds": list(sweep.rounds), "scores": names})


def claim(
    directory: Any, axes: Mapping[str, list], seeds: Sequence[int], data: FederatedData, per_round: Any, config: Any
) -> SweepDirectory:
    """The directory of a sweep. Raises ValueError where it is none or holds a sweep, or a setting is no plain value."""
    if not isinstance(directory, str | os.PathLike):
        raise ValueError(f"directory is {say(directory)}; give the path of a folder")
    check_name("directory", directory)
    path = pathlib.Path(directory).absolute()
    if (path / ABOUT).exists():
        raise ValueError(f"directory {path} holds a sweep already; give another one, or remove it")
    about = {"grid": axes, "seeds": list(seeds), "per_round": per_round, "config": config}
    about = {name: digests.plain(value, name) for name, value in about.items()}
    about |= {"data": digests.of_data(data), "versions": versions(), "device": device()}
    return SweepDirectory(path, about)


def read_sweep(directory: str | os.PathLike) -> Sweep:
    """The sweep that `run.sweep` wrote to a directory, without its states.

    Raises FileNotFoundError where there is none, and ValueError for a damaged file.
    """
    path = pathlib.Path(directory).absolute()
    if not (path / ABOUT).is_file() or not (path / LINES).is_file():
        raise FileNotFoundError(f"{path} holds no sweep; give a directory that run.sweep wrote")
    about = read_json(path / ABOUT)
    lines, damaged = cast(tuple[list[dict[str, Any]], int], read_lines(path / LINES))
    settings = list({json.dumps(line["settings"]): line["settings"] for line in lines}.values())
    if damaged or len(lines) != len(settings) * len(about["seeds"]):
        raise ValueError(f"{path / LINES} is damaged (lines of it are gone); bring it back or run the sweep again")
    shape = (len(settings), len(about["seeds"]))
    of = lambda line, name: [np.nan if value is None else value for value in line["scores"][name]]
    scores = {name: np.array([of(line, name) for line in lines], float).reshape(*shape, -1) for name in about["scores"]}
    diverged = np.array([line["diverged"] for line in lines]).reshape(shape)
    return Sweep(tuple(settings), tuple(about["seeds"]), tuple(about["rounds"]), scores, diverged)


def _rows(sweep: Sweep) -> Iterator[dict[str, Any]]:
    """A row for each run, seed by seed for each of the settings; what is not finite is null."""
    plain = lambda values: [value if np.isfinite(value) else None for value in values.tolist()]
    for p, settings in enumerate(sweep.settings):
        for s, seed in enumerate(sweep.seeds):
            scores = {name: plain(values[p, s]) for name, values in sweep.scores.items()}
            about = {"round": sweep.rounds[-1], "settings": digests.plain(settings, "grid"), "seed": seed}
            yield {**about, "diverged": int(sweep.diverged[p, s]), "scores": scores}
