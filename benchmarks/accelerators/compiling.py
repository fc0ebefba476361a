"""One row, compiled for one chip: what the compiler says of memory, time and traffic."""

import math
import pathlib
import time
from collections.abc import Sequence
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from benchmarks.accelerators import chips, hlo, kernels
from benchmarks.accelerators.papers import ROWS
from benchmarks.accelerators.placing import placed
from benchmarks.accelerators.rows import Workload
from fedjax_mm import costs
from fedjax_mm.clients import AXIS
from fedjax_mm.types import OverClients, PyTree, RoundData


def compiled(
    name: str, chip_name: str, dtype: str, chunk: int, devices: int, keep: str, top: int, effort: float
) -> dict[str, Any]:
    """The numbers of a row, or {"skipped": why} beside those that need no compiler where it refuses the program.

    keep: file that the program's text is written to; "" keeps none.
    """
    chip, topology = chips.find(chip_name)[0], chips.topology_for(chip_name, devices)
    mesh = Mesh(chips.devices(chip_name, topology)[:devices], (AXIS,))
    several = mesh if devices > 1 else None
    # A model that asks which machine this is, for a kernel of its own, is told the chip's.
    with mock.patch.object(jax, "default_backend", lambda: {"cuda": "gpu"}.get(chip.platform, chip.platform)):
        workload = made(name, dtype, several)
        one_device, given = workload.round(OverClients())
        flops = costs.matmul_flops(one_device, *given, unknown_trips=workload.trips) / devices
        round, shapes = workload.round(OverClients(chunk, several))
        laid = placed(workload, shapes[-1], mesh, ROWS[name].off_device)
        begun = time.perf_counter()
        lowered = jax.jit(round, donate_argnums=0).lower(*laid)
    middle = time.perf_counter()
    row = {"topology": topology, "effort": effort, "lower s": middle - begun, "TFLOP a device": flops / 1e12}
    options = {**chip.options, **({"exec_time_optimization_effort": effort} if effort else {})}
    row |= {"least ms": flops / (1e9 * chip.tflops), "arguments GB": held(laid) / 1e9}
    try:
        program = lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        said = " ".join(str(error).splitlines()[0].split())
        return row | {"skipped": said, "compile s": time.perf_counter() - middle}
    row |= {"compile s": time.perf_counter() - middle, **memory(program)}
    text = program.as_text() or ""
    if keep:
        pathlib.Path(keep).write_text(text)
    found = hlo.operations(hlo.parse(text), workload.trips)
    if chip.platform == "tpu":
        found = kernels.with_cycles(found, chip_name)
    return row | read(found, chip, flops, _examples(workload.data), top)


def made(name: str, dtype: str, mesh: Mesh | None = None) -> Workload:
    """The workload of a row. mesh: over whose devices the clients are spread."""
    row = ROWS[name]
    return row.make(jnp.dtype(dtype), *([mesh] if row.takes_mesh else []))


def held(laid: PyTree) -> int:
    """Bytes of arguments on one device, by their shapes."""
    leaves = [x for x in jax.tree.leaves(laid) if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key)]
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)


def memory(program: jax.stages.Compiled) -> dict[str, float]:
    """Gigabytes on one device: arguments, results and temporaries, less the state that is replaced in place."""
    found = program.memory_analysis()
    if found is None:
        return {}
    arguments, temporaries = found.argument_size_in_bytes, found.temp_size_in_bytes
    total = arguments + temporaries + found.output_size_in_bytes - found.alias_size_in_bytes
    named = {"HBM GB": total, "arguments GB": arguments, "temporaries GB": temporaries}
    return {name: size / 1e9 for name, size in named.items()}


def read(found: Sequence[hlo.Operation], chip: chips.Chip, flops: float, examples: list, top: int) -> dict[str, Any]:
    """What the program on one device says. flops: of the products that this device has to do."""
    talks = [one for one in found if hlo.is_collective(one)]
    again = hlo.copies(found, examples)
    inside, once = [one for one in again if one.depth], [one for one in again if not one.depth]
    traffic = lambda some: sum(hlo.moved(one) * one.times for one in some)
    row: dict[str, Any] = {
        "collectives": sum(one.times for one in talks if not one.depth),
        "in loops": sum(one.times for one in talks if one.depth),
        "collective MB": traffic(talks) / 1e6,
        "example copies": sum(one.times for one in inside),
        "example copies GB": traffic(inside) / 1e9,
        "copies once": len(once),
        "copies once GB": traffic(once) / 1e9,
        "not estimated GB": traffic(hlo.without_estimate(found)) / 1e9,
        "loops": [[one.op_name, one.trips, one.times, one.known] for one in found if one.trips is not None],
    }
    row["unknown loops"] = sum(not known for *_, known in row["loops"])
    by_kind: dict[str, float] = {}
    for one in talks:
        by_kind[one.op.removesuffix("-start")] = by_kind.get(one.op.removesuffix("-start"), 0) + one.times
    row |= {"collectives by kind": by_kind, "copied examples": [[one.op, one.type, one.times] for one in again]}
    if not chip.ghz:
        return row
    in_ms = 1e-6 / chip.ghz
    est = hlo.cycles(found) * in_ms
    largest = [
        {"ms": total * in_ms, "times": times, "op": one.op, "type": one.type, "op_name": one.op_name}
        for total, times, one in hlo.largest(found, top)
    ]
    return row | {"est ms": est, "share": flops / (est * 1e9 * chip.tflops) if est else None, "largest": largest}


def _examples(data: RoundData) -> list[tuple[str, tuple[int, ...]]]:
    arrays = [x for cohort in data.cohorts.values() for x in cohort.arrays.values()]
    return [(str(x.dtype), x.shape) for x in arrays]
