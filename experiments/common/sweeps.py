"""`python -m experiments.<paper> sweep --grid client_lr=.01,.1 prox=0,.1 --seeds 8`: a grid of a study's settings.

All runs are one program (see docs/sweeps.md) and are scored on the split `valid`, so that settings are chosen without a
look at the test; the best ones are then run without `sweep`. The data, with its split and clients, is that of the first
seed for all of them. `--out` gets sweep.md and its picture, and in its folder sweep/ a line for every run.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, get_type_hints

from experiments.common import cli
from fedjax_mm import report, run
from fedjax_mm.data import FederatedData
from fedjax_mm.run.grid import Build


class Subject(NamedTuple):
    """What a study trains in a sweep."""

    build: Callable[[Any], Any]
    """From settings to a Method or a list of Stage."""
    data: FederatedData
    per_round: int | Mapping[str, int]
    valid: Mapping[str, Any]
    rounds: int | None
    """None: as many as the stages have."""
    metric: str
    """By which settings are chosen."""


def main(
    presets: Any,
    arguments: Sequence[str],
    description: str | None,
    common: Callable[[Any], cli.Common],
    subject_of: Callable[[Any], Subject],
    names: Sequence[str],
) -> run.Sweep:
    """Runs the command, prints the table and the best settings, and writes the report.

    presets, description: as `cli.parse` takes them. common: the settings that all studies have, of a study's. names:
    the settings that a method reads, by their flags; others cannot be swept.
    """
    grid, rest = split_grid(arguments)
    settings = cli.parse(presets, rest, description)
    if not grid:
        raise ValueError("there is no --grid; give for instance --grid client_lr=.01,.1 prox=0,.1")
    axes = {name: [_value(presets, rest, description, name, text) for text in texts] for name, texts in grid.items()}
    for name in axes:
        cli.one_of("setting of --grid", name, names)
    chosen = common(settings)
    cli.without_runs(chosen)
    subject = subject_of(settings)
    out = pathlib.Path(chosen.out)
    sweep = run.sweep(
        _by_name(subject.build, settings, list(axes)),
        subject.data,
        grid=axes,
        seeds=chosen.all_seeds,
        rounds=subject.rounds,
        per_round=subject.per_round,
        valid=subject.valid,
        directory=out / "sweep",
        chunk=None if chosen.chunk in (1, "1", "auto") else int(chosen.chunk),
        devices=chosen.devices or 1,
        config=cli.by_flag(settings) | {"seed": None, "seeds": None},
    )
    cli.write(out, settings)
    path = report.write_sweep(out / "sweep", out, subject.metric)
    report.show(report.sweep_table(sweep), report.sweep_columns(sweep, subject.metric))
    best, said = report.best_setting(sweep, subject.metric)
    print(*said, sep="\n")
    flags = " ".join(cli.flags(sweep.settings[best]))
    print(f"Wrote {path} and its picture. For the test: the same command without sweep and --grid, with {flags}")
    return sweep


def fields(settings: Any, prefix: str = "") -> list[str]:
    """The names of all fields of a dataclass or NamedTuple, as flags with this prefix have them."""
    return [f"{prefix}{name}" for name in getattr(settings, "_fields", ()) or get_type_hints(settings)]


def split_grid(arguments: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
    """({setting: its values}, the other arguments): what stands behind --grid is name=value,value,...

    Raises ValueError where it is something else.

    >>> split_grid(["--grid", "client-lr=.01,.1", "prox=0", "--seeds", "8"])
    ({'client_lr': ['.01', '.1'], 'prox': ['0']}, ['--seeds', '8'])
    """
    grid, rest, inside = {}, [], False
    for argument in arguments:
        if argument == "--grid" or argument.startswith("--"):
            inside = argument == "--grid"
            rest += [] if inside else [argument]
        elif inside:
            name, equals, values = argument.partition("=")
            if not equals or not name or not all(values.split(",")):
                raise ValueError(f"--grid has {argument!r}; write a setting and its values, such as client_lr=.01,.1")
            grid[name.replace("-", "_")] = values.split(",")
        else:
            rest.append(argument)
    return grid, rest


def replace(settings: Any, name: str, value: Any) -> Any:
    """The settings with another value of the flag `name`, such as "client_lr" or "method.client_lr".

    Raises ValueError where there is no such flag.
    """
    first, _, rest = name.partition(".")
    if hasattr(settings, "_replace"):  # a NamedTuple
        fields, nested, changed = settings._fields, (), settings._replace
    else:
        hints = get_type_hints(type(settings), include_extras=True)
        fields, changed = list(hints), functools.partial(dataclasses.replace, settings)
        nested = [field for field in hints if cli.FLAT in getattr(hints[field], "__metadata__", ())]
    if first in fields and first not in nested:
        return changed(**{first: replace(getattr(settings, first), rest, value) if rest else value})
    for field in nested:
        if first in cli.by_flag(getattr(settings, field)):
            return changed(**{field: replace(getattr(settings, field), name, value)})
    raise ValueError(f"there is no setting {name}")


def value_of(settings: Any, name: str) -> Any:
    """The value of the flag `name`."""
    for part in name.split("."):
        values = cli.by_flag(settings) if dataclasses.is_dataclass(settings) else settings._asdict()
        settings = values[part]
    return settings


def _value(presets: Any, rest: Sequence[str], description: str | None, name: str, text: str) -> Any:
    """A value as the flag of the setting reads it."""
    value = {"true": True, "false": False}.get(text.lower(), text)
    return value_of(cli.parse(presets, [*rest, *cli.flags({name: value})], description), name)


def _by_name(build: Callable[[Any], Any], settings: Any, names: Sequence[str]) -> Build:
    """The build of a sweep: the study's settings with the values of an axis in their places."""

    def build_point(**values: Any) -> Any:
        changed = settings
        for name in names:
            changed = replace(changed, name, values[name])
        return build(changed)

    return build_point
