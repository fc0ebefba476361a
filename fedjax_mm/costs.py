"""What a method costs, read off its types and its compiled client step; nothing is estimated by hand."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import jax
import jax.extend.core
import numpy as np

from fedjax_mm import trees
from fedjax_mm.federate import Method, transformed
from fedjax_mm.types import ClientData, Download, FedState, RoundData


class Cost(NamedTuple):
    """What one client of a cohort pays.

    bytes_down, bytes_up: per round, the leaf sizes of the trees that travel (uploads after their transforms).
    bytes_held: frozen weights it must have besides; with bytes_down, the worst case of a client that joins late.
    flops: matrix-multiplication FLOPs of one local step (2 per multiply-add, inner scans times their length),
        counted on the traced program; where an update has several kinds of step, their sum.
    xla_flops: XLA's own count for the same compiled steps (it counts a loop's body once).
    peak_bytes: arguments and temporaries of the compiled step (the largest, where there are several): weights,
        optimiser state, one batch, activations and gradients. The new weights replace the old ones in place.
    """

    bytes_down: int
    bytes_up: int
    bytes_held: int
    flops: float
    xla_flops: float
    peak_bytes: int


def of(method: Method, data: RoundData, state: FedState | None = None) -> dict[str, Cost]:
    """Cost per cohort. Shapes are enough: `data` and `state` may hold `jax.ShapeDtypeStruct` leaves."""
    if state is None:
        state = jax.eval_shape(method.init, jax.random.key(0))
    state, data = jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype), (state, data))
    downloads = jax.eval_shape(method.server.download, state.server, data.public)
    return {name: _of_cohort(method, name, downloads[name], state, data) for name in method.cohorts}


def matmul_flops(function: Callable, *args) -> float:
    """FLOPs of the matrix multiplications and convolutions in `function(*args)`, traced and not run.

    2 per multiply-add, inner scans times their length. Shapes are enough: args may hold `jax.ShapeDtypeStruct` leaves.
    """
    return _matmul_flops(jax.make_jaxpr(function)(*args).jaxpr)


def _of_cohort(method: Method, name: str, download: Download, state: FedState, data: RoundData) -> Cost:
    taken = data.cohorts[name]
    struct = lambda x: jax.ShapeDtypeStruct(np.shape(x)[1:], x.dtype)
    mine = jax.tree.map(struct, state.clients[name])
    seen = ClientData(
        taken.arrays, struct(taken.rows), struct(taken.count), struct(taken.weight), data.public, taken.uniform
    )

    def update(download, mine, seen, key):
        uploads, _, _ = method.cohorts[name].update(download, mine, seen, key)
        travels = transformed(method.upload, uploads, download.sent, key)
        return {slot: sent.value for slot, sent in travels.items()}

    key = jax.eval_shape(lambda: jax.random.key(0))
    jaxpr, upload = jax.make_jaxpr(update, return_shape=True)(download, mine, seen, key)
    # Machine code is left plain, which halves the time and changes neither XLA's buffers nor its count.
    plain = {"xla_backend_optimization_level": 0}
    lowered = [jax.jit(jax.extend.core.jaxpr_as_fun(s)).lower(*s.in_avals) for s in _client_steps(jaxpr.jaxpr)]
    steps = [step.compile(compiler_options=plain) for step in lowered]
    memory = [s.memory_analysis() for s in steps]
    return Cost(
        bytes_down=trees.size_bytes(download.sent),
        bytes_up=trees.size_bytes(upload),
        bytes_held=trees.size_bytes(download.held),
        flops=sum(_matmul_flops(s.jaxpr) for s in _client_steps(jaxpr.jaxpr)),
        xla_flops=sum(_cost_analysis(s).get("flops", 0.0) for s in steps),
        peak_bytes=max((m.argument_size_in_bytes + m.temp_size_in_bytes for m in memory), default=0),
    )


def _cost_analysis(compiled) -> Mapping[str, float]:
    return compiled.cost_analysis() or {}


def _client_steps(jaxpr) -> list:
    """The closed jaxprs of the steps that `local_steps` runs, found by name wherever their loop stands."""
    found = []
    for eqn in jaxpr.eqns:
        if eqn.params.get("name") == "client_step":
            found.append(eqn.params["jaxpr"])
        else:
            for inner, _ in _inner(eqn):
                found += _client_steps(inner)
    return found


def _inner(eqn) -> Iterator[tuple]:
    """(jaxpr, times it runs) inside an equation; a `while` of unknown length counts once."""
    times = eqn.params.get("length", 1) if eqn.primitive.name == "scan" else 1
    for value in eqn.params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if hasattr(item, "eqns"):
                yield item, times
            elif hasattr(item, "jaxpr"):
                yield item.jaxpr, times


def _matmul_flops(jaxpr) -> float:
    total = 0.0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contract, _), _ = eqn.params["dimension_numbers"]
            total += 2.0 * eqn.outvars[0].aval.size * math.prod(eqn.invars[0].aval.shape[d] for d in contract)
        elif eqn.primitive.name == "conv_general_dilated":
            kernel = eqn.invars[1].aval
            out_features = kernel.shape[eqn.params["dimension_numbers"].rhs_spec[0]]
            total += 2.0 * eqn.outvars[0].aval.size * kernel.size / out_features
        total += sum(times * _matmul_flops(inner) for inner, times in _inner(eqn))
    return total
