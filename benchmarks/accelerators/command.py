"""The command: each row that is asked for, compiled or run in its own process, printed and saved; files compared."""

import dataclasses
import json
import os
import pathlib
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from benchmarks.accelerators import chips
from benchmarks.timing import command
from experiments.common import cli
from fedjax_mm import report
from fedjax_mm.checks import check_number, check_whole
from fedjax_mm.run import records

KEY = ("row", "chip", "dtype", "chunk", "devices")
CHANGES_COMPILING = ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR")  # what was kept takes no time to compile
SHOWN = (*KEY, "HBM GB", "est ms", "least ms", "share", "collectives", "in loops", "collective MB", "example copies")
SHOWN += ("compile s",)
HERE = "here"  # the device that this machine has, on which rows are run
RUN = (*KEY, "ms", "TFLOP/s", "HBM GB", "compile s")
COMPARED = ("est ms", "HBM GB", "collectives", "in loops", "example copies", "compile s")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is compiled, and for what."""

    chip: str = "v5e"
    """Chip, with a topology or without: v5e:2x2, v5e, v6e, v5p, v4, h100. Without one it is as small as it can be. Or
    "here": the rows are run on the device that this machine has."""
    papers: tuple[str, ...] = ("all",)
    """Papers whose rounds are compiled: fedavg, fedmekt, feddat, layerwise, creamfl, or all."""
    only: tuple[str, ...] = ()
    """Rows, such as fedavg/mlp; by default all of the papers."""
    chunks: tuple[int, ...] = ()
    """Clients vmapped at a time; by default each row's own."""
    dtypes: tuple[Literal["bfloat16", "float32"], ...] = ("bfloat16", "float32")
    """Types of arithmetic; a row whose models have but one is compiled with it."""
    devices: tuple[int, ...] = (1, 4, 8)
    """Numbers of devices that the clients are spread over; "here" it is one."""
    effort: float = 0.0
    """Of the compiler for speed, from -1 to 1. At -1 a TPU's needs a fifth of the time, for a program that is several
    times as slow and takes somewhat more memory, so that what fits with it fits without."""
    limit: float = 3600.0
    """Seconds that one row may take."""
    repetitions: int = 10
    """Rounds that are timed "here", of which the median counts."""
    top: int = 8
    """Largest operations of each row that are saved; three are printed."""
    keep: bool = False
    """Keep the text of every program beside the table."""
    out: str = "runs/accelerators"
    """Folder that <chip>.json is written to."""
    compare: tuple[str, ...] = ()
    """Two such files, which are compared row by row; nothing is compiled then."""


def main(arguments: Sequence[str]) -> list[dict[str, Any]]:
    """Runs the command: prints the rows and returns them."""
    settings = cli.parse(Settings(), arguments, __doc__)
    if settings.compare:
        if len(settings.compare) != 2:
            raise ValueError(f"--compare has {len(settings.compare)} files; give two, the one before and the one after")
        before, after = (json.loads(pathlib.Path(path).read_text())["rows"] for path in settings.compare)
        rows = compared(before, after)
        if not rows:
            raise ValueError("--compare names files without a common row; a row is one by its name, chip and numbers")
        report.show(rows)
        return rows
    return measure(settings)


def measure(settings: Settings) -> list[dict[str, Any]]:
    """Compiles, prints and saves the rows, each as it is done. One that fails is a row that says why."""
    for name in ("chunks", "devices"):
        for number in getattr(settings, name):
            check_whole(f"a number of {name}", number, 1)
    check_whole("top", settings.top)
    check_whole("repetitions", settings.repetitions, 1)
    check_number("limit", settings.limit, above=0)
    check_number("effort", settings.effort, least=-1, most=1)
    if settings.chip != HERE:
        chip, topology = chips.find(settings.chip)
        if topology:
            chips.count(chip, topology)  # which refuses one that is none
    out, asked = pathlib.Path(settings.out), list(chosen(settings))
    path, rows = out / f"{settings.chip.replace(':', '-')}.json", []
    out.mkdir(parents=True, exist_ok=True)
    for row in asked:
        rows.append({**row, **outcome(row, settings)})
        _say(rows[-1])
        about = {"settings": dataclasses.asdict(settings), "versions": records.versions(), "cpus": os.cpu_count()}
        path.write_text(json.dumps({**about, "load_average": os.getloadavg(), "rows": rows}, indent=1))
    shown = RUN if settings.chip == HERE else SHOWN
    report.show([{key: row.get(key) for key in (*shown, "skipped")} for row in rows])
    print(f"written to {path}")
    return rows


def chosen(settings: Settings) -> Iterator[dict[str, Any]]:
    """The keys of the rows that are asked for. Raises ValueError for an unknown paper or row."""
    from benchmarks.accelerators.papers import ROWS

    known = {name.partition("/")[0]: None for name in ROWS}
    for paper in settings.papers:
        cli.one_of("paper", paper, ("all", *known))
    for name in settings.only:
        cli.one_of("row", name, ROWS)
    in_papers = [n for n in ROWS if {"all", n.partition("/")[0]} & set(settings.papers)]
    for name in settings.only or in_papers:
        row = ROWS[name]
        dtypes = [dtype for dtype in row.dtypes if dtype in settings.dtypes] or row.dtypes
        for devices in (1,) if settings.chip == HERE else settings.devices:
            for dtype in dtypes:
                for chunk in settings.chunks or row.chunks:
                    yield dict(zip(KEY, (name, settings.chip, dtype, chunk, devices), strict=True))


def outcome(row: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """The numbers of a row, from a process of its own; {"skipped": why} where there are none."""
    if settings.chip == HERE:
        from benchmarks.accelerators.measuring import measured

        given = row["row"], row["dtype"], row["chunk"], settings.repetitions
        return _in_a_process(command(measured, *given), settings, {})
    chip, _ = chips.find(settings.chip)
    if why := chips.missing(chip):
        return {"skipped": why}
    try:
        chips.topology_for(settings.chip, row["devices"])
    except ValueError as error:
        return {"skipped": str(error)}
    keep = ""
    if settings.keep:
        named = "-".join(str(row[key]) for key in KEY).replace("/", "-").replace(":", "-")
        keep = str(pathlib.Path(settings.out).absolute() / f"{named}.txt")
    from benchmarks.accelerators.compiling import compiled

    line = command(compiled, *(row[key] for key in KEY), keep, settings.top, settings.effort)
    several = f"--xla_force_host_platform_device_count={row['devices']}"  # as there are there
    return _in_a_process(line, settings, {**chips.WITHOUT_A_TPU, "XLA_FLAGS": several})


def _in_a_process(line: Sequence[str], settings: Settings, environment: Mapping[str, str]) -> dict[str, Any]:
    """What a process says in its last line, or why it says nothing."""
    kept = {name: value for name, value in os.environ.items() if name not in CHANGES_COMPILING}
    given: dict[str, Any] = {"env": {**kept, **environment}, "capture_output": True, "text": True}
    try:
        done = subprocess.run(line, timeout=settings.limit, **given)
    except subprocess.TimeoutExpired:
        return {"skipped": f"not done in {settings.limit:g} s"}
    if done.returncode:
        said = [text.strip() for text in done.stderr.splitlines() if text.strip()]
        errors = [text for text in said if "Error" in text.partition(":")[0]]
        return {"skipped": " ".join((errors or said or [f"exit {done.returncode}"])[-1].split())[:400]}
    return json.loads(done.stdout.splitlines()[-1])


def compared(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each that both have: numbers before and after, and how many times as long the later one takes."""
    which = lambda row: (*(row[key] for key in KEY), row.get("effort", 0.0))
    earlier = {which(row): row for row in before}
    rows = []
    for now in after:
        then = earlier.get(which(now))
        if then is None:
            continue
        row = {key: now[key] for key in KEY}
        for name in COMPARED:
            row |= {name: then.get(name), f"{name}, after": now.get(name)}
        if then.get("est ms") and now.get("est ms"):
            row["est ratio"] = now["est ms"] / then["est ms"]
        rows.append(row)
    return rows


def _say(row: Mapping[str, Any]) -> None:
    """A line for a row, and its largest operations."""
    print(" ".join(str(row[key]) for key in KEY), end=": ")
    if "skipped" in row:
        print(row["skipped"], flush=True)
        return
    keys = (RUN if row["chip"] == HERE else SHOWN)[len(KEY) :]
    numbers = [f"{key} {row[key]:.4g}" for key in keys if row.get(key) is not None]
    print(", ".join(numbers), flush=True)
    for one in row.get("largest", ())[:3]:
        print(f"    {one['ms']:.3f} ms  {one['op']} x {one['times']:g}  {one['op_name'][-90:]}", flush=True)
