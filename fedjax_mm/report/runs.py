"""Tables and plots of finished runs: `python -m fedjax_mm.report RUN [RUN ...] --out DIR`.

Runs that differ only in their seed are one line and one curve: the mean, and the sample standard deviation (tables)
or the range (curves) over seeds.
"""

import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fedjax_mm.report import curves
from fedjax_mm.report.plots import modalities
from fedjax_mm.report.tables import Cell
from fedjax_mm.run.json_files import read_json
from fedjax_mm.run.records import read_metrics

COSTS = {  # heading -> the key of costs.json, and its unit
    "MB down": ("bytes_down", 1e6),
    "MB up": ("bytes_up", 1e6),
    "MB held": ("bytes_held", 1e6),
    "GFLOP per step": ("flops", 1e9),
    "peak MB": ("peak_bytes", 1e6),
}


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run's directory holds (see run.py); `rows` has one mapping per round."""

    name: str
    config: Mapping[str, Any]
    split: Mapping[str, Any]
    costs: Mapping[str, Mapping[str, float]]
    rows: Sequence[Mapping[str, float]]
    own_scores: Mapping[str, Mapping[str, Sequence[float | None]]] = dataclasses.field(default_factory=dict)
    """Cohort -> metric -> the last score of every client on its own test rows; None for a client that has none."""


def load(directory: str | os.PathLike) -> Run:
    """The run that `run.train` wrote to `directory`.

    Raises FileNotFoundError where there is no run or no finished round, ValueError for a damaged file.
    """
    path = pathlib.Path(directory).absolute()
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is no directory; give the directory of a run")
    contents = {}
    for part in ("config", "split", "costs"):
        file = path / f"{part}.json"
        if not file.is_file():
            raise FileNotFoundError(f"{path} is no run, it has no {file.name}; give a directory that run.train wrote")
        contents[part] = _read(file, KINDS[part])
    if (file := path / "own_scores.json").is_file():
        contents["own_scores"] = _read(file, lambda content: _is_tables(content["cohorts"]))["cohorts"]
    rows = read_metrics(path) if (path / "metrics.jsonl").is_file() else []
    if not rows:
        raise FileNotFoundError(f"{path} has no finished round in metrics.jsonl; run it on and report then")
    if wrong := [row["round"] for row in rows if not all(type(value) in (int, float) for value in row.values())]:
        raise ValueError(f"{path / 'metrics.jsonl'} is damaged (round {wrong[0]} has what is no number); leave it out")
    rows = [row for row in rows if "seconds" in row]
    is_seed = _without_seed(path.name, contents["config"]["seed"]) == ""  # as in creamfl/seed0
    return Run(f"{path.parent.name}/{path.name}" if is_seed else path.name, **contents, rows=rows)


def _read(file: pathlib.Path, fits: Callable[[Any], bool]) -> dict[str, Any]:
    """What a file of a run holds. Raises ValueError, with its name, where it is damaged."""
    content = read_json(file)
    try:
        fit = fits(content)
    except (KeyError, TypeError, AttributeError):
        fit = False
    if not fit:
        raise ValueError(f"{file} is damaged (it holds something else); bring it back or leave the run out")
    return content


def _is_tables(content: Any) -> bool:
    """Whether these are mappings in a mapping."""
    return all(isinstance(of, dict) for of in content.values())


KINDS: Mapping[str, Callable[[Any], bool]] = {
    "config": lambda content: type(content["seed"]) is int and isinstance(content["device"], str),
    "split": lambda content: all(isinstance(of["examples"], list) and of["examples"] for of in content.values()),
    "costs": lambda content: all(set(of) >= {key for key, _ in COSTS.values()} for of in content.values()),
}


def group(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Name -> runs that differ only in seed (and versions and device).

    A name is that of the first run without its seed and, where two groups would share it, with the settings in which
    they differ. Raises ValueError for two runs of the same settings and seed: they are no two samples.
    """
    together: dict[str, list[Run]] = {}
    for run in runs:
        same = together.setdefault(json.dumps(_settings(run), sort_keys=True), [])
        if twins := [other.name for other in same if other.config["seed"] == run.config["seed"]]:
            raise ValueError(f"runs {twins[0]} and {run.name} have the same settings and the same seed; give only one")
        same.append(run)
    groups = list(together.values())
    names = [_without_seed(same[0].name, same[0].config["seed"]) for same in groups]
    for name in {n for n in names if names.count(n) > 1}:
        namesakes = [i for i, n in enumerate(names) if n == name]
        for i, differs in zip(namesakes, differences([groups[i] for i in namesakes]), strict=True):
            names[i] = f"{name} ({', '.join(f'{key} {value}' for key, value in differs.items())})"
    return dict(zip(names, groups, strict=True))


def summary(runs: Sequence[Run]) -> list[dict[str, Cell]]:
    """A row per group of runs that differ only in seed:

    "run"; "seeds", how many; "rounds", at the last test; every metric "test/..." and "own/..." of that test, (mean,
    sample std) over seeds, a float for one seed, None unless all seeds have it; "MB down" and "MB up" per client and
    round (MB is 10^6 bytes), "GFLOP per step" and "peak MB" of a client's local step, each the largest over cohorts
    (costs_table has them all); "s per round", the median of all rounds but each run's first, which warms up.
    """
    rows = []
    for name, same in group(runs).items():
        tested = [[r for r in run.rows if any(map(is_score, r))] or run.rows for run in same]
        last = [of_run[-1] for of_run in tested]
        rounds = sorted({row["round"] for row in last})
        row = {"run": name, "seeds": len(same)}
        row["rounds"] = rounds[0] if len(rounds) == 1 else f"{rounds[0]} to {rounds[-1]}"
        for metric in filter(is_score, all_keys(last)):
            row[metric] = over_seeds([r.get(metric) for r in last])
        costs = _costs(name, same)
        row |= {key: _largest([c[key] for c in costs]) for key in ("MB down", "MB up", "GFLOP per step", "peak MB")}
        row["s per round"] = float(np.median([r["seconds"] for run in same for r in run.rows[1:] or run.rows]))
        rows.append(row)
    return rows


def is_score(key: str) -> bool:
    """Whether a key of the log is a score of the common test set, or of clients on their own test rows."""
    return key.startswith(("test/", "own/"))


def costs_table(runs: Sequence[Run]) -> list[dict[str, Cell]]:
    """A row per group and cohort: what one client pays per round (MB) and local step; the largest over seeds.

    "MB held" are frozen weights, sent only to a client that joins late.
    """
    return [row for name, same in group(runs).items() for row in _costs(name, same)]


def privacy_table(runs: Sequence[Run]) -> list[dict[str, Cell]]:
    """A row per group of runs that logged what privacy they spent (uploads.privacy): the largest epsilon, its delta.

    A run without noise has spent an epsilon that is not finite, of which the log has none.
    """
    rows = []
    for name, same in group(runs).items():
        spent = [row for run in same for row in run.rows if "privacy/delta" in row]
        if spent:
            known = [epsilon for row in spent if (epsilon := row.get("privacy/epsilon")) is not None]
            epsilon = max(known) if len(known) == len(spent) else "infinite"
            last = max(row["round"] for row in spent)
            rows.append({"run": name, "rounds": last, "epsilon": epsilon, "delta": spent[0]["privacy/delta"]})
    return rows


def split_table(split: Mapping[str, Any]) -> list[dict[str, Cell]]:
    """A row per cohort: modalities, clients, examples, the least, median and most examples and classes of a client."""
    spread = lambda x: f"{np.min(x):.0f} / {np.median(x):g} / {np.max(x):.0f}"
    rows = []
    for cohort, holds in split.items():
        row = {"cohort": cohort, "modalities": ", ".join(modalities(holds)), "clients": len(holds["examples"])}
        row |= {"examples": sum(holds["examples"]), "per client (min / median / max)": spread(holds["examples"])}
        if "classes" in holds:
            row["classes per client"] = spread((np.asarray(holds["classes"]) > 0).sum(1))
        rows.append(row)
    return rows


def plot_curves(
    runs: Sequence[Run], metric: str | Sequence[str], path: str | os.PathLike, against: str = "round"
) -> None:
    """Writes a picture of one or several metrics over rounds, or against what they have cost; see curves.plot_curves.

    against: "round", or a key that curves.with_costs gives. Raises ValueError for a metric that no run has.
    """
    metrics = [metric] if isinstance(metric, str) else metric
    rows = {
        name: [rows_with_costs(run) if against != "round" else run.rows for run in same]
        for name, same in group(runs).items()
    }
    curves.plot_curves(rows, metrics, path, against)


def rows_with_costs(run: Run) -> list[dict[str, float]]:
    """The rows of a run, each with what it has cost so far; see curves.with_costs."""
    return curves.with_costs(run.rows, run.costs, list(run.config.get("stages") or {}))


def _settings(run: Run) -> dict[str, Any]:
    """Setting -> value, without the seed, what it drew, and what merely tells where the run ran."""
    own = {
        key: value
        for key, value in run.config.items()
        if key not in ("seed", "owners", "data", "programs", "versions", "device")
    }
    config = own.pop("config", None)
    config = {key: v for key, v in config.items() if key != "seed"} if isinstance(config, Mapping) else config
    return _flat(own) | (_flat(config) if isinstance(config, Mapping) else {"config": config})


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    rows = {}
    for key, value in tree.items():
        rows |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return rows


def differences(groups: Sequence[Sequence[Run]]) -> list[dict[str, Any]]:
    """Per group, the settings that are not the same in all groups."""
    settings = [_settings(same[0]) for same in groups]
    differs = [key for key in all_keys(settings) if any(s.get(key) != settings[0].get(key) for s in settings)]
    return [{key: s.get(key) for key in differs} for s in settings]


def _costs(name: str, same: Sequence[Run]) -> list[dict[str, Cell]]:
    rows = []
    for cohort in same[0].costs:
        row: dict[str, Cell] = {"run": name, "cohort": cohort}
        for heading, (cost, unit) in COSTS.items():
            most = _largest([run.costs[cohort][cost] for run in same])
            row[heading] = most if most is None else most / unit
        rows.append(row)
    return rows


def _largest(values: Sequence[Any]) -> float | None:
    """The largest number; None where there is none."""
    return max((value for value in values if value is not None), default=None)


def over_seeds(values: Sequence[float | None]) -> Cell:
    """(mean, sample standard deviation), the value of a single seed, or None where a seed has none."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    return float(known[0]) if len(known) == 1 else (float(np.mean(known)), float(np.std(known, ddof=1)))


def all_keys(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key in row))


def _without_seed(name: str, seed: int) -> str:
    """A run's name without its own seed: creamfl-seed0, creamfl_0, creamfl/0 -> creamfl; seed0 -> nothing."""
    return re.sub(rf"(^|[-_./ ])(seed[-_= ]?|s)?{seed}$", "", name)
