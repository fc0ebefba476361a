"""Every method's round lowers for TPU and for CUDA, in float32 and in bfloat16, without float64 and without the host.

Lowering needs neither an accelerator nor its compiler. `python -m benchmarks accelerators` compiles full-size rounds.
"""

import dataclasses
import re
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import io_callback
from test_laws import case_of, every_method

from fedjax_mm.data import FederatedData
from fedjax_mm.federate import federate
from fedjax_mm.local import local_steps
from fedjax_mm.types import Cohort, Download, Mean, RoundData, Server

PLATFORMS = ("tpu", "cuda")
IN_FLOAT32 = ("knowledge", "known", "reps")  # of representations, which every model gives in float32


def faults(function, *args) -> list[str]:
    """What in the function's program has no place on an accelerator. Raises where the program does not lower."""
    traced = jax.jit(function).trace(*args)
    calls = {name for name in primitives(traced.jaxpr.jaxpr) if re.search("callback|debug_print|infeed|outfeed", name)}
    if calls:  # which do not lower for two platforms at once
        return sorted(calls)
    return ["float64"] if re.search("[<x]f64>", traced.lower(lowering_platforms=PLATFORMS).as_text()) else []


def primitives(jaxpr) -> Iterator[str]:
    """The names of all operations, those of inner programs too."""
    for eqn in jaxpr.eqns:
        yield eqn.primitive.name
        for value in eqn.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from primitives(inner)


def in_type(tree, dtype):
    """The shapes of a tree, whose float32 arrays have another type, but for what no model's type changes."""

    def shape(path, x):
        kept = x.dtype != np.float32 or any(f"'{part}'" in jax.tree_util.keystr(path) for part in IN_FLOAT32)
        return jax.ShapeDtypeStruct(np.shape(x), x.dtype if kept else dtype)

    return jax.tree_util.tree_map_with_path(shape, tree)


@every_method  # on the worker of its laws, which has traced it
def test_a_round_lowers_without_float64_and_without_the_host(name):
    case = case_of(name)
    assert faults(case.step, jax.eval_shape(case.init, case.key), case.taken, case.key) == []


@every_method
def test_a_round_in_half_precision_does_too(name):
    case, arrays = case_of(name), {}
    for cohort, taken in case.taken.cohorts.items():
        arrays[cohort] = dataclasses.replace(taken, arrays=in_type(dict(taken.arrays), jnp.bfloat16))
    public = None if case.taken.public is None else in_type(dict(case.taken.public), jnp.bfloat16)
    state = in_type(jax.eval_shape(case.init, case.key), jnp.bfloat16)
    assert faults(case.step, state, RoundData(arrays, public), case.key) == []


def double(x):
    return (x.astype(jnp.float64) + 1).astype(x.dtype)


def on_host(x):
    return jax.pure_callback(np.sin, jax.ShapeDtypeStruct(x.shape, x.dtype), x)


def printed(x):
    jax.debug.print("{}", x)
    return x


def sent(x):
    io_callback(print, None, x)
    return x


def planted(plant):
    """A method whose clients do `plant` in every step."""
    step = lambda w, batch, key: (plant(w - batch["x"].mean(0)), {})

    def update(download, state, data, key):
        return {"w": Mean(local_steps(step, download.sent, data, key, batch_size=1)[0], data.weight)}, state, {}

    combine = lambda w, uploads, public, key: (uploads["all"]["w"].value, {})
    server = Server(lambda key: jnp.zeros(2, jnp.float32), lambda w, public: {"all": Download(w)}, combine)
    return federate(server, {"all": Cohort(2, lambda key: (), update)})


@pytest.mark.parametrize(
    "plant, fault",
    [(double, "float64"), (on_host, "pure_callback"), (printed, "debug_print"), (sent, "io_callback")],
)
def test_what_has_no_place_on_an_accelerator_is_found(plant, fault):
    """It is planted in a client's step, inside the loops of a round."""
    method, x = planted(plant), np.zeros((4, 2), np.float32)
    given = FederatedData.from_arrays({"x": x}, [[0, 1], [2, 3]]).round({"all": np.arange(2)})
    state = jax.eval_shape(method.init, jax.random.key(0))
    with jax.enable_x64(fault == "float64"):
        (found,) = faults(method.round, state, given, jax.random.key(0))
    assert found.startswith(fault) and faults(planted(lambda w: w).round, state, given, jax.random.key(0)) == []
