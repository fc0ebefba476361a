"""How fast a round is, compared with a loop by hand, clients one by one, centralised SGD, the matrix peak, and peers.

python -m benchmarks                                        all sections
python -m benchmarks --only handwritten --repetitions 40    one section
python -m benchmarks accelerators --chip v5e --papers all   rounds compiled for chips that need not be there
python -m benchmarks uploads --data-dir DIR                 scores against bytes and epsilon (uploads.py)
python -m benchmarks neighbours                             FedAvg and general methods in one world (neighbours.py)

timing.py says how times are taken. On 2 shared CPU cores, without a GPU, a round takes 1.02 to 1.07 times the CPU time
of one written by hand for the same workload, and on one core half of fedjax's; docs/performance.md has all numbers.
"""

import dataclasses
import json
import os
import pathlib
import platform
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, get_args

from benchmarks import (
    engine,
    femnist,
    host,
    methods,
    neighbours,
    peak,
    population,
    price,
    processes,
    steps,
    streaming,
    sweeps,
    timing,
    uploads,
)
from benchmarks.accelerators import command as accelerators
from benchmarks.engine import Settings as Engine
from benchmarks.femnist import Settings as Femnist
from benchmarks.host import Settings as Host
from benchmarks.methods import Settings as Methods
from benchmarks.peak import Settings as Peak
from benchmarks.peers import comparison
from benchmarks.population import Settings as Population
from benchmarks.price import Settings as Price
from benchmarks.processes import Settings as Processes
from benchmarks.steps import Settings as Steps
from benchmarks.streaming import Settings as Streaming
from benchmarks.sweeps import Settings as Sweeps
from experiments.common import cli
from fedjax_mm import report
from fedjax_mm.run import records

Section = Literal[
    "handwritten",
    "clients_per_round",
    "population",
    "host",
    "mapping",
    "processes",
    "skew",
    "one_after_another",
    "price",
    "peak",
    "client_steps",
    "peers",
    "sweep",
    "streaming",
    "femnist",
]


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of the measurement."""

    only: tuple[Section, ...] = get_args(Section)
    """Sections that are measured; by default all."""
    engine: Annotated[Engine, cli.FLAT] = Engine()
    methods: Methods = Methods()
    price: Price = Price()
    peak: Peak = Peak()
    steps: Steps = Steps()
    host: Host = Host()
    population: Population = Population()
    processes: Processes = Processes()
    peers: comparison.Settings = comparison.Settings()
    sweeps: Sweeps = Sweeps()
    streaming: Streaming = Streaming()
    femnist: Femnist = Femnist()
    out: str = "runs/throughput"
    """Folder that throughput.json is written to."""


SECTIONS: Mapping[Section, Callable[[Settings], list[dict[str, Any]]]] = {
    "handwritten": lambda settings: engine.handwritten(settings.engine),
    "clients_per_round": lambda settings: engine.clients_per_round(settings.engine),
    "population": lambda settings: population.population(settings.population),
    "host": lambda settings: host.host(settings.host),
    "mapping": lambda settings: engine.mapping(settings.engine),
    "processes": lambda settings: processes.processes(settings.processes),
    "skew": lambda settings: engine.skew(settings.engine),
    "one_after_another": lambda settings: methods.one_after_another(settings.methods),
    "price": lambda settings: price.price(settings.price),
    "peak": lambda settings: peak.peak(settings.peak),
    # These two alone: JAX with threads of its own and the fork that starts a peer do not go together.
    "client_steps": lambda settings: timing.in_own_process(steps.client_steps, settings.steps, devices=1),
    "peers": lambda settings: timing.in_own_process(comparison.peers, settings.peers, devices=1),
    "sweep": lambda settings: sweeps.sweep(settings.sweeps),
    "streaming": lambda settings: streaming.streaming(settings.streaming),
    "femnist": lambda settings: femnist.femnist(settings.femnist),
}
COLUMNS = {  # of the printed table; the file has all
    "handwritten": ("chunk", "rounds", "ours CPU ms", "hand CPU ms", "CPU ratio", "CPU low", "CPU high", "ratio"),
    "one_after_another": ("method", "clients", *(f"{how} CPU ms" for how in methods.WAYS)),
    "peers": comparison.COLUMNS,
    "client_steps": ("step", "cores", "ours CPU ms", "torch CPU ms", "torch CPU ratio", "ours ms", "torch ms")
    + ("torch ratio", "ours loss", "torch loss", "skipped"),
}


def measure(settings: Settings) -> pathlib.Path:
    """Measures, prints a table per section and writes throughput.json, whose path is returned."""
    out = pathlib.Path(settings.out)
    cli.write(out, settings)
    path, load, sections = out / "throughput.json", [os.getloadavg()], {}
    about = {
        "settings": dataclasses.asdict(settings),
        "versions": records.versions(),
        "device": records.device(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
    }
    for name in settings.only:
        sections[name] = SECTIONS[name](settings)
        load.append(os.getloadavg())
        print(f"{name} (load average {load[-1][0]:.1f} on {os.cpu_count()} CPUs)")
        report.show(sections[name], COLUMNS.get(name))
        # After each section, so that what is done stays.
        path.write_text(json.dumps({**about, "load_average": load, "sections": sections}, indent=1))
    print(f"written to {path}")
    return path


def main(arguments: Sequence[str]) -> object:
    """Runs the command."""
    commands = {"accelerators": accelerators, "neighbours": neighbours, "uploads": uploads}
    command, arguments = cli.command(arguments, tuple(commands))
    if command:
        return commands[command].main(arguments)
    return measure(cli.parse(Settings(), arguments, __doc__))


if __name__ == "__main__":
    cli.run(main)
