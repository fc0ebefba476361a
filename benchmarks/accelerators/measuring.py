"""One row, run on the accelerator that is here: what its round takes, beside what a compiler said of it."""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.accelerators.compiling import made, memory
from benchmarks.accelerators.rows import Shape
from fedjax_mm import costs
from fedjax_mm.types import CohortRound, OverClients, PyTree


def measured(name: str, dtype: str, chunk: int, repetitions: int) -> dict[str, Any]:
    """The milliseconds of a round, its median over repetitions, on made-up weights and examples of the row's shapes."""
    workload = made(name, dtype)
    round, (state, data, key) = workload.round(OverClients(chunk))
    flops = costs.matmul_flops(round, state, data, key, unknown_trips=workload.trips)
    state, key = filled(state), jax.random.key(0)
    cohorts = {name: _everybody(cohort) for name, cohort in data.cohorts.items()}
    data = data._replace(cohorts=cohorts, public=filled(data.public))
    begun = time.perf_counter()
    program = jax.jit(round, donate_argnums=0).lower(state, data, key).compile()
    compiled, times = time.perf_counter() - begun, []
    for _ in range(repetitions + 1):  # the first fills caches
        begun = time.perf_counter()
        state, _ = jax.block_until_ready(program(state, data, key))
        times.append(1000 * (time.perf_counter() - begun))
    ms = float(np.median(times[1:]))
    about = {"device": jax.devices()[0].device_kind, "TFLOP": flops / 1e12}
    return about | memory(program) | {"ms": ms, "TFLOP/s": flops / ms / 1e9, "compile s": compiled}


def filled(shapes: PyTree) -> PyTree:
    """Arrays of these shapes: floats in [0, 0.05), bytes of all values, and integers in 0..3, which any table holds."""
    rng = np.random.default_rng(0)

    def fill(shape: Shape) -> Any:
        if jnp.issubdtype(shape.dtype, jnp.floating):
            return jax.random.uniform(jax.random.key(rng.integers(1 << 30)), shape.shape, maxval=0.05).astype(
                shape.dtype
            )
        if jnp.issubdtype(shape.dtype, jax.dtypes.prng_key):
            return jax.random.split(jax.random.key(0), shape.shape)
        return jnp.asarray(rng.integers(0, 256 if shape.dtype == np.uint8 else 4, shape.shape).astype(shape.dtype))

    return jax.tree.map(fill, shapes)


def _everybody(cohort: CohortRound) -> CohortRound:
    number, owned = cohort.rows.shape
    rows = np.arange(number * owned, dtype=np.int32).reshape(number, owned)
    count = np.full(number, owned, np.int32)
    index, weight = np.arange(number, dtype=np.int32), np.ones(number, np.float32)
    given: tuple[Any, ...] = (*map(jnp.asarray, (index, weight, rows, count)), filled(cohort.arrays))
    return CohortRound(*given, uniform=cohort.uniform)
