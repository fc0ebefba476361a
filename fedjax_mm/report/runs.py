"""Tables and plots of finished runs: `python -m fedjax_mm.report RUN [RUN ...] --out DIR`.

Runs that differ only in their seed are one line and one curve: the mean, and the sample standard deviation (tables)
or the range (curves) over seeds.
"""

import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedjax_mm.report import plots
from fedjax_mm.report.plots import modalities, plot_split
from fedjax_mm.report.tables import Cell, heading, table
from fedjax_mm.run.records import read_metrics


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run's directory holds (see run.py); `rows` has one mapping per round."""

    name: str
    config: Mapping[str, Any]
    split: Mapping[str, Any]
    costs: Mapping[str, Mapping[str, float]]
    rows: Sequence[Mapping[str, float]]


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
        try:
            contents[part] = json.loads(file.read_text())
        except ValueError as error:
            raise ValueError(f"{file} is damaged ({error}); restore it or leave the run out") from error
    rows = read_metrics(path) if (path / "metrics.jsonl").is_file() else []
    if not rows:
        raise FileNotFoundError(f"{path} has no finished round in metrics.jsonl; run it on and report then")
    is_seed = _without_seed(path.name, contents["config"]["seed"]) == ""  # as in creamfl/seed0
    return Run(f"{path.parent.name}/{path.name}" if is_seed else path.name, **contents, rows=rows)


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
        for i, differs in zip(namesakes, _differences([groups[i] for i in namesakes]), strict=True):
            names[i] = f"{name} ({', '.join(f'{key} {value}' for key, value in differs.items())})"
    return dict(zip(names, groups, strict=True))


def summary(runs: Sequence[Run]) -> list[dict[str, Cell]]:
    """A row per group of runs that differ only in seed:

    "run"; "seeds", how many; "rounds", at the last test; every metric "test/..." of that test, (mean, sample std)
    over seeds, a float for one seed, None unless all seeds have it; "MB down" and "MB up" per client and round (MB is
    10^6 bytes), "GFLOP per step" and "peak MB" of a client's local step, each the largest over cohorts (costs_table
    has them all); "s per round", the median of all rounds but each run's first, which warms up.
    """
    rows = []
    for name, same in group(runs).items():
        tested = [[r for r in run.rows if any(key.startswith("test/") for key in r)] or run.rows for run in same]
        last = [of_run[-1] for of_run in tested]
        rounds = sorted({row["round"] for row in last})
        row = {"run": name, "seeds": len(same)}
        row["rounds"] = rounds[0] if len(rounds) == 1 else f"{rounds[0]} to {rounds[-1]}"
        for metric in (key for key in all_keys(last) if key.startswith("test/")):
            row[metric] = _over_seeds([r.get(metric) for r in last])
        costs = _costs(name, same)
        row |= {key: max(c[key] for c in costs) for key in ("MB down", "MB up", "GFLOP per step", "peak MB")}
        row["s per round"] = float(np.median([r["seconds"] for run in same for r in run.rows[1:] or run.rows]))
        rows.append(row)
    return rows


def costs_table(runs: Sequence[Run]) -> list[dict[str, Cell]]:
    """A row per group and cohort: what one client pays per round (MB) and local step; the largest over seeds.

    "MB held" are frozen weights, sent only to a client that joins late.
    """
    return [row for name, same in group(runs).items() for row in _costs(name, same)]


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


def plot_curves(runs: Sequence[Run], metric: str | Sequence[str], path: str | os.PathLike) -> None:
    """Writes a picture of one or several metrics over rounds; see plots.plot_curves."""
    metrics = [metric] if isinstance(metric, str) else metric
    plots.plot_curves({name: [run.rows for run in same] for name, same in group(runs).items()}, metrics, path)


def write(directories: Sequence[str | os.PathLike], out: str | os.PathLike) -> pathlib.Path:
    """The report.md written to `out`, its pictures beside it: results, curves, costs, and who holds what."""
    runs, out = [load(directory) for directory in directories], pathlib.Path(out)
    if not runs:
        raise ValueError("no run is given; give at least one directory that run.train wrote")
    groups, rows = group(runs), summary(runs)
    out.mkdir(parents=True, exist_ok=True)
    keys = all_keys([row for run in runs for row in run.rows])
    tests = [key for key in keys if key.startswith("test/")]
    text = ["# Report", table(_settings_table(groups)), "## Results"]
    text += ["At the last test: mean ± sample standard deviation over seeds."]
    text += [table(rows, columns) for columns in result_columns(tests)]
    losses = [key for key in keys if key.endswith("/loss") and key not in tests]
    for name, metrics in {"test": tests, "loss": losses}.items():
        if metrics:
            plot_curves(runs, metrics, out / f"curves-{name}.png")
            text += [f"![{name} over rounds](curves-{name}.png)"]
    text += ["Lines are means over seeds, bands go from the least to the most.", "## Costs"]
    text += ["Of one client: MB (10^6 bytes) per round, matrix-multiplication FLOP and memory of a local step."]
    text += [
        table(costs_table(runs)),
        "A whole round with all its participants takes, in seconds (median):",
        table(rows, ["run", "s per round"]),
    ]
    shown = []
    for first in (same[0] for same in groups.values()):
        if first.split not in shown:
            shown.append(first.split)
            plot_split(first.split, out / f"split-{len(shown)}.png")
            text += [f"## Who holds what: {first.name}", table(split_table(first.split))]
            text += [f"![examples per client and class](split-{len(shown)}.png)"]
    (out / "report.md").write_text("\n\n".join(part.strip() for part in text) + "\n")
    return out / "report.md"


def _settings(run: Run) -> dict[str, Any]:
    """Setting -> value, without the seed, what it drew, and what merely tells where the run ran."""
    own = {key: value for key, value in run.config.items() if key not in ("seed", "owners", "versions", "device")}
    config = own.pop("config", None)
    config = {key: v for key, v in config.items() if key != "seed"} if isinstance(config, Mapping) else config
    return _flat(own) | (_flat(config) if isinstance(config, Mapping) else {"config": config})


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    rows = {}
    for key, value in tree.items():
        rows |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return rows


def _differences(groups: Sequence[Sequence[Run]]) -> list[dict[str, Any]]:
    """Per group, the settings that are not the same in all groups."""
    settings = [_settings(same[0]) for same in groups]
    differs = [key for key in all_keys(settings) if any(s.get(key) != settings[0].get(key) for s in settings)]
    return [{key: s.get(key) for key in differs} for s in settings]


def _settings_table(groups: Mapping[str, Sequence[Run]]) -> list[dict[str, Cell]]:
    rows = []
    for (name, same), differs in zip(groups.items(), _differences(list(groups.values())), strict=True):
        row = {"run": name, "seeds": ", ".join(str(run.config["seed"]) for run in same)}
        row |= {key: str(value) for key, value in differs.items()}
        rows.append(row | {"device": ", ".join(sorted({run.config["device"] for run in same}))})
    return rows


def _costs(name: str, same: Sequence[Run]) -> list[dict[str, Cell]]:
    rows = []
    for cohort in same[0].costs:
        most = {key: max(run.costs[cohort][key] for run in same) for key in same[0].costs[cohort]}
        row = {"run": name, "cohort": cohort, "MB down": most["bytes_down"] / 1e6, "MB up": most["bytes_up"] / 1e6}
        row |= {"MB held": most["bytes_held"] / 1e6, "GFLOP per step": most["flops"] / 1e9}
        rows.append(row | {"peak MB": most["peak_bytes"] / 1e6})
    return rows


def _over_seeds(values: Sequence[float | None]) -> Cell:
    if None in values:
        return None
    return values[0] if len(values) == 1 else (float(np.mean(values)), float(np.std(values, ddof=1)))


def result_columns(tests: Sequence[str]) -> list[dict[str, str]]:
    """The columns of the results, in as many tables as fit a page."""
    parts = [tests[i : i + 4] for i in range(0, max(len(tests), 1), 4)]
    return [{k: k for k in ("run", "seeds", "rounds")} | {k: heading(k) for k in part} for part in parts]


def all_keys(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key in row))


def _without_seed(name: str, seed: int) -> str:
    """A run's name without its own seed: creamfl-seed0, creamfl_0, creamfl/0 -> creamfl; seed0 -> nothing."""
    return re.sub(rf"(^|[-_./ ])(seed[-_= ]?|s)?{seed}$", "", name)
