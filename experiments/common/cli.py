"""The command lines of the studies: settings that all share, presets, files of settings, and errors in one line.

The settings of a study are frozen dataclasses. --data chooses a preset, a file of settings (--config) overrides the
preset, and flags override both. Every run writes its settings to settings.yaml, and --config takes that file back.
"""

import argparse
import contextlib
import dataclasses
import io
import linecache
import os
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import Annotated, Any, Generic, Literal, TypeVar, get_type_hints

import jax
import tyro
import yaml

import fedjax_mm

T = TypeVar("T")
FLAT = tyro.conf.arg(name="")
"""Marks a nested dataclass whose flags have no prefix."""
SEEDS = tyro.conf.create_mutex_group(required=False, title="seeds")
FILE = "settings.yaml"
ROOT = pathlib.Path(__file__).resolve().parents[2]
OWN = (ROOT / "experiments", ROOT / "benchmarks", *(pathlib.Path(path).resolve() for path in fedjax_mm.__path__))
"""Folders of this project's source."""


@dataclasses.dataclass(frozen=True)
class Common:
    """The settings that every study has."""

    data_dir: str | None = None
    """Folder that holds the files of the dataset. Embedded datasets need none."""
    rounds: int = 60
    """Communication rounds of a run."""
    seed: Annotated[int | None, SEEDS] = None
    """Run this seed alone. A seed draws the split, the clients, the weights and the batches."""
    seeds: Annotated[int, SEEDS] = 3
    """Run this many seeds, which are numbered from 0."""
    split: Literal["test", "valid"] = "test"
    """Split that the models are evaluated on. Tune on valid and report test."""
    chunk: Annotated[int | str, tyro.conf.arg(metavar="INT|auto")] = 1
    """Clients that are vmapped at a time; auto times a few numbers in the first round and keeps the fastest."""
    devices: int | None = None
    """Devices that the clients of a round are spread over."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the inputs of the models' matrix products. Parameters, sums, norms and losses are float32."""
    client_state: Literal["device", "host", "folder"] = "device"
    """Where clients' states are kept between rounds; folder is one in the run's own. It changes no result."""
    checkpoint_every: int | None = None
    """Rounds between two checkpoints; None takes the study's own number."""
    jobs: int = 1
    """Runs of a table that are trained at a time, each in a process of its own. More than 1 is for CPUs."""
    out: str = "runs"
    """Directory of the runs, the table and the pictures. A finished run that is found there is not repeated."""

    def __post_init__(self) -> None:
        at_least(1, rounds=self.rounds, seeds=self.seeds, jobs=self.jobs)
        at_least(1, devices=1 if self.devices is None else self.devices)
        at_least(1, checkpoint_every=1 if self.checkpoint_every is None else self.checkpoint_every)
        at_least(0, seed=self.seed or 0)
        if self.chunk != "auto" and not (str(self.chunk).isdigit() and int(self.chunk) > 0):
            raise ValueError(f"--chunk is {self.chunk}; it must be a number of clients that is at least 1, or auto")

    @property
    def all_seeds(self) -> tuple[int, ...]:
        """The seeds of all runs."""
        return tuple(range(self.seeds)) if self.seed is None else (self.seed,)

    @property
    def about_seeds(self) -> str:
        """The seeds in words, for the line above a table."""
        if len(self.all_seeds) == 1:
            return f"seed {self.all_seeds[0]}"
        return f"{self.seeds} seeds (mean ± sample standard deviation)"


def at_least(least: float, **values: float) -> None:
    """Raises ValueError where the value of a flag is less than `least`."""
    for name, value in values.items():
        if value < least:
            raise ValueError(f"--{_dashed(name)} is {value}; it must be at least {least}")


def without_runs(common: Common) -> None:
    """Raises ValueError where a flag is about single runs, and the command trains all of them as one program."""
    for name, unset in (("client_state", "device"), ("checkpoint_every", None)):
        if getattr(common, name) != unset:
            raise ValueError(f"--{_dashed(name)} says nothing of runs that are one program; leave it out")


def command(arguments: Sequence[str], names: Sequence[str]) -> tuple[str, list[str]]:
    """(command, the other arguments). The command is "" where the first argument is a flag or is missing.

    Raises ValueError where the command is not one of `names`.
    """
    if not arguments or arguments[0].startswith("-"):
        return "", list(arguments)
    return one_of("command", arguments[0], names), list(arguments[1:])


def given(flag: str, arguments: Sequence[str]) -> bool:
    """Whether a flag is among the arguments.

    >>> given("--seed", ["--seed=1"]), given("--seed", ["--seeds", "1"])
    (True, False)
    """
    return any(argument.partition("=")[0] == flag for argument in arguments)


def taken(flag: str, arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """(the value of a flag or None, the arguments without it).

    >>> taken("--preset", ["--data", "vqa", "--preset", "paper"])
    ('paper', ['--data', 'vqa'])
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument(flag, dest="value", nargs="?")
    early, others = first.parse_known_args(arguments)
    return early.value, others


def one_of(what: str, name: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    """The name. Raises ValueError that lists the known names where it is not one of them."""
    if name not in known:
        raise ValueError(f"the {what} {name} is not known; there are {', '.join(known)}")
    return name


@dataclasses.dataclass(frozen=True)
class _Call(Generic[T]):
    """Settings, and the file that they are read from."""

    settings: Annotated[T, FLAT]
    config: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """YAML file of settings, e.g. the settings.yaml of a run. Flags override it."""


def parse(presets: Any, arguments: Sequence[str], description: str | None) -> Any:
    """The settings that the arguments ask for.

    presets: the settings of each dataset; --data chooses one, by default the first. A study without --data gives its
        settings themselves.
    Raises ValueError where the arguments, or the file that --config names, cannot be understood.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("--data", "--config", "--seed", "--seeds"):
        first.add_argument(name, nargs="?")
    early, _ = first.parse_known_args(arguments)
    content = read(early.config) if early.config else {}
    if early.seed or early.seeds:  # they replace what the file says of either
        content = {name: value for name, value in content.items() if name not in ("seed", "seeds")}
    default = presets
    if isinstance(presets, Mapping):
        chosen = early.data or content.get("data") or next(iter(presets))
        default = presets[one_of("dataset of --data", chosen, presets)]
    given = [*flags(content), *arguments]
    return call(_Call[type(default)], given, description=description, default=_Call(default)).settings


def call(function: Callable[..., T], arguments: Sequence[str], **given: Any) -> T:
    """tyro.cli, but what it would print in a box about wrong arguments is one line: the message of a ValueError."""
    printed, spec = io.StringIO(), getattr(sys.modules["__main__"], "__spec__", None)
    name = f"python -m {spec.name.removesuffix('.__main__')}" if spec else None  # as `--help` states it
    try:
        with contextlib.redirect_stderr(printed):
            return tyro.cli(function, prog=name, args=list(arguments), **given)
    except SystemExit as end:
        if not end.code:
            raise
        raise ValueError(_one_line(printed.getvalue())) from None


def _one_line(box: str) -> str:
    """What tyro's box says before its first rule, and the flags that it suggests."""
    lines = [line.strip("│ ") for line in box.splitlines()[1:-1]]
    rules = [i for i, line in enumerate(lines) if line.startswith("──")]
    said = " ".join(lines[: rules[0]] if rules else lines)
    similar = [line.split()[0] for line in lines if line.startswith("--")]
    return f"{said}; perhaps {', '.join(similar)}" if similar and similar[0] not in said else said


def run(main: Callable[[list[str]], Any]) -> None:
    """Runs a script's `main` on the command line's arguments; a wrong setting costs one line and exit status 2."""
    cache_compilations()
    try:
        main(sys.argv[1:])
    except (ValueError, OSError) as error:
        if not is_about_settings(error):
            raise
        print(f"error: {' '.join(_message(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None


def is_about_settings(error: Exception) -> bool:
    """Whether an error tells the user what is wrong with a setting or a file, and is no fault of the program.

    Errors of files are such errors, and those that a `raise` statement of this project states. An error that Python or
    a library raises in the middle of a computation is a fault, whose traceback is wanted.
    """
    if isinstance(error, OSError):
        return True
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    if trace is None:
        return False
    file = trace.tb_frame.f_code.co_filename
    inside = any(pathlib.Path(file).resolve().is_relative_to(folder) for folder in OWN)
    return inside and linecache.getline(file, trace.tb_lineno).lstrip().startswith("raise ")


def _message(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def by_flag(settings: Any) -> dict[str, Any]:
    """The values of a dataclass by the names of their flags: a nested dataclass without a prefix is merged in."""
    hints, values = get_type_hints(type(settings), include_extras=True), {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        merged = FLAT in getattr(hints[field.name], "__metadata__", ())
        values |= by_flag(value) if merged else {field.name: value}
    return values


def write(folder: str | pathlib.Path, settings: Any, **changed: Any) -> None:
    """Writes settings.yaml, which --config takes back, with some values changed; `seed` replaces `seeds`."""
    values = by_flag(settings) | changed
    if "seed" in values and "seeds" in values:
        values.pop("seeds" if values["seed"] is not None else "seed")
    pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
    (pathlib.Path(folder) / FILE).write_text(yaml.safe_dump(_plain(values), sort_keys=False, allow_unicode=True))


def _plain(value: Any) -> Any:
    """Mappings, lists and scalars in place of dataclasses and tuples."""
    if dataclasses.is_dataclass(value):
        value = by_flag(value)
    elif hasattr(value, "_asdict"):  # a NamedTuple
        value = value._asdict()
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


def read(path: str | pathlib.Path) -> dict[str, Any]:
    """The content of a file of settings. Raises ValueError where it is not a YAML mapping, OSError where it is not."""
    try:
        content = yaml.safe_load(pathlib.Path(path).read_text()) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must map the names of settings to values, as settings.yaml of a run does")
    return content


def flags(content: Mapping[Any, Any], prefix: str = "") -> list[str]:
    """The flags that say what a file of settings says, so that its values are checked as flags are."""
    found = []
    for key, value in content.items():
        name = _dashed(f"{prefix}{key}")
        if isinstance(value, list) and any(isinstance(one, list) for one in value):
            value = dict(enumerate(value))
        if isinstance(value, Mapping):
            found += flags(value, f"{prefix}{key}.")
        elif isinstance(value, bool):
            found.append(f"--{name}" if value else f"--{_dashed(prefix)}no-{_dashed(str(key))}")
        elif isinstance(value, list):
            found += [f"--{name}", *map(str, value)]
        else:
            found.append(f"--{name}={value}")
    return found


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def cache_compilations() -> None:
    """Keeps compiled programs in the user's cache, so that a second run starts at once."""
    folder = pathlib.Path.home() / ".cache" / "fedjax_mm" / "compiled"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def compile_fast() -> None:
    """Has XLA spend less on the programs of a CPU, which then are compiled in a quarter of the time and run slower.

    For commands that compile longer than they train. It must be called before anything is computed.
    """
    flags = "--xla_backend_optimization_level=0"
    if metadata.version("jaxlib").startswith("0.10."):  # another version may not know these, and would stop
        flags += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
