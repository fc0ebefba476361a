"""What an accelerator's compiler says of a sweep: milliseconds of a round for each run, by runs and clients at once.

    python -m benchmarks.accelerators.sweeping v5e

The round is that of small MLPs: 10 of 100 clients with 60 examples each, in batches of 20.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from benchmarks.accelerators import chips, hlo
from benchmarks.accelerators.compiling import memory
from benchmarks.accelerators.papers import IDENTITY, LABEL
from benchmarks.accelerators.rows import Clients, Shape
from benchmarks.timing import command
from fedjax_mm import report
from fedjax_mm.methods import fedavg
from fedjax_mm.models import mlp
from fedjax_mm.run import grid, mapped
from fedjax_mm.run.rounds import participants, with_participants
from fedjax_mm.types import Population, RoundData

ROWS = ((1, 1, 1), (1, 10, 1), (8, 1, 8), (8, 5, 8), (8, 10, 8), (32, 1, 8), (32, 1, 32), (32, 2, 32), (32, 10, 32))
"""Runs, clients at once, runs at once."""


def compiled(chip_name: str, runs: int, chunk: int, at_once: int) -> dict[str, Any]:
    """The row of one program; runs are those of two learning rates, or the only one."""
    chip, _ = chips.find(chip_name)
    mesh = Mesh(chips.devices(chip_name, chips.topology_for(chip_name, 1))[:1], ("one",))
    clients = Clients(100, 60, {"x": Shape((784,), np.float32), "label": LABEL}, taking_part=10)
    population, model = Population({"all": clients.population()}), mlp.classifier((200, 200), 10, np.dtype("bfloat16"))
    config = lambda rate: fedavg.FedAvgConfig(client_lr=rate, batch_size=20)
    build = lambda client_lr: fedavg.build(config(client_lr), population, {"x": model}, IDENTITY)
    axes, seeds = {"client_lr": [0.1, 0.2] if runs > 1 else [0.1]}, tuple(range(max(1, runs // 2)))
    points = grid.build_points(build, axes, 1)
    (group,) = grid.gather(points, axes)
    how = mapped.Mapped(build, group, chunk, at_once, None)
    swept = jax.eval_shape(lambda: mapped.make_runs(points, group, seeds, at_once, None))
    states, one = jax.eval_shape(how.init, swept), RoundData({"all": clients.round()})
    of_all = jax.tree.map(lambda x: Shape((len(seeds), 1, *x.shape), x.dtype), participants(one))
    at = NamedSharding(mesh, PartitionSpec())
    place = lambda x: Shape(x.shape, x.dtype, sharding=at, weak_type=getattr(x, "weak_type", False))
    given = jax.tree.map(place, (states, with_participants(one, of_all), swept))
    program = how.lower(0, *given).compile(compiler_options=dict(chip.options))
    row = {"runs": runs, "chunk": chunk, "at once": at_once, **memory(program)}
    if chip.ghz:
        cycles = hlo.cycles(hlo.operations(hlo.parse(program.as_text() or "")))
        row["est ms a run"] = cycles * 1e-6 / chip.ghz / runs
    return row


def main(arguments: Sequence[str]) -> list[dict[str, Any]]:
    """Compiles every row in a process of its own, and prints them."""
    name = arguments[0] if arguments else "v5e"
    if why := chips.missing(chips.find(name)[0]):
        raise ValueError(why)
    rows = []
    for row in ROWS:
        line, environment = command(compiled, name, *row), {**os.environ, **chips.WITHOUT_A_TPU}
        done = subprocess.run(line, env=environment, check=True, stdout=subprocess.PIPE, text=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(rows[-1], flush=True)
    report.show(rows)
    return rows


if __name__ == "__main__":
    main(sys.argv[1:])
