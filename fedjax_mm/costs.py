"""What a method costs, read off its types and its compiled client step; nothing is estimated by hand."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.extend.core
import numpy as np

from fedjax_mm import transforms, trees
from fedjax_mm.checks import check_callable, check_mapping, check_number, say
from fedjax_mm.federate import Method
from fedjax_mm.local import STEP_NAME
from fedjax_mm.types import ClientData, CohortRound, Download, FedState, PyTree, RoundData


class Cost(NamedTuple):
    """What one client of a cohort pays.

    The last four are None where the client's update runs no `local_steps`: there is then no step to count.
    """

    bytes_down: int
    """Bytes of the tree that a client gets in a round."""
    bytes_up: int
    """Bytes of the tree that a client sends in a round, as its upload's transforms encode it."""
    bytes_held: int
    """Bytes of the frozen weights that a client must have besides. With `bytes_down`, what a late client downloads."""
    flops: float | None = None
    """FLOPs of the matrix multiplications of one local step, counted on the traced program: a multiply-add counts 2, an
    inner scan as often as it runs. Where an update has several kinds of step, their sum."""
    xla_flops: float | None = None
    """XLA's own count of FLOPs of the same steps, compiled for a CPU. It counts a loop's body once."""
    peak_bytes: int | None = None
    """Bytes of the arguments and temporaries of the compiled step: weights, optimiser state, one batch, activations and
    gradients. The new weights replace the old ones in place. Where an update has several kinds of step, the most. The
    step is compiled for a CPU, wherever the run is: an accelerator's compiler may take minutes."""
    round_flops: float | None = None
    """FLOPs of the matrix multiplications in a client's whole update, all its steps and what else it computes; see
    `of` for how many examples it has."""


def of(
    method: Method, data: RoundData, state: FedState | None = None, examples: Mapping[str, float] | None = None
) -> dict[str, Cost]:
    """The cost of one client of each cohort. `data` and `state` may hold `jax.ShapeDtypeStruct` leaves.

    examples: cohort -> how many examples the client of `round_flops` has, rounded, such as the mean over all clients.
        None: the mean over those who take part in `data`, or the most where that holds shapes.

    Raises ValueError for arguments that are no such thing, and for other cohorts in `examples`.

    >>> from fedjax_mm import Cohort, Download, FederatedData, Mean, Server, federate
    >>> def update(download, state, data, key):  # it runs no local_steps
    ...     return {"w": Mean(download.sent[:2], data.weight)}, state, {}
    >>> server = Server(lambda key: np.zeros(5, "f"), lambda w, public: {"all": Download(w)}, lambda w, *_: (w, {}))
    >>> data = FederatedData.from_arrays({"x": np.zeros(3)}, [[0, 1], [2]])
    >>> method = federate(server, {"all": Cohort(2, lambda key: (), update)})
    >>> cost = of(method, data.round({"all": np.arange(2)}))["all"]
    >>> cost.bytes_down, cost.bytes_up, cost.flops
    (20, 8, None)
    """
    for name, value, kind in (("method", method, Method), ("data", data, RoundData), ("state", state, FedState)):
        if not isinstance(value, kind) and not (name == "state" and state is None):
            raise ValueError(f"{name} is {say(value)}; give a {kind.__name__}")
    own = {} if examples is None else check_mapping("examples", examples, "cohort to a number of examples")
    if unknown := sorted(str(name) for name in own if name not in data.cohorts):
        raise ValueError(f"examples names cohorts {unknown}; the data has {sorted(data.cohorts)}")
    own = {name: check_number(f"examples of {name}", number, least=0) for name, number in own.items()}
    sizes = {name: _examples(taken, own.get(name)) for name, taken in data.cohorts.items()}
    before = jax.eval_shape(method.init, jax.random.key(0)) if state is None else state
    before, data = jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype), (before, data))
    downloads = jax.eval_shape(method.server.download, before.server, data.public)
    of_cohort = lambda name: _of_cohort(method, name, downloads[name], before.clients[name], data, sizes[name])
    return {name: of_cohort(name) for name in method.cohorts}


def matmul_flops(function: Callable, *args: PyTree, unknown_trips: float = 1.0) -> float:
    """FLOPs of the matrix multiplications and convolutions in `function(*args)`, which is traced and not run.

    A multiply-add counts 2, an inner scan as often as it runs, and of the branches of a condition the one with most; of
    those that `jax.lax.platform_dependent` chooses among, which compute the same, the one with least. A loop of unknown
    length counts `unknown_trips` times. args may hold `jax.ShapeDtypeStruct` leaves.

    >>> a, b = jax.ShapeDtypeStruct((2, 3), np.float32), jax.ShapeDtypeStruct((3, 4), np.float32)
    >>> matmul_flops(lambda a, b: a @ b, a, b)  # 2 * 2 * 3 * 4
    48.0
    """
    check_callable("function", function, "of the args")
    for leaf in jax.tree.leaves(args):
        if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
            check_number("a leaf of args", leaf)
    check_number("unknown_trips", unknown_trips, least=0)
    return _matmul_flops(jax.make_jaxpr(function)(*args).jaxpr, unknown_trips)


def _of_cohort(method: Method, name: str, download: Download, states: PyTree, data: RoundData, examples: int) -> Cost:
    """The cost of a client of a cohort whose clients' states are `states`, leaves [N, ...].

    examples: how many the client has.
    """

    def update(download, states, data, key):
        taken = data.cohorts[name]
        state = jax.tree.map(lambda x: x[0], states)
        # With a known number of examples and none of its steps cut, the number of steps is known while tracing.
        who = taken.count[0], taken.weight[0], data.public, True, taken.index[0], None
        seen = ClientData(taken.arrays, taken.rows[0, :examples], *who)
        uploads, _, _ = method.cohorts[name].update(download, state, seen, key)
        travels = transforms.encode(method.upload, uploads, download.sent, key)
        return {slot: sent.value for slot, sent in travels.items()}

    key = jax.eval_shape(lambda: jax.random.key(0))
    jaxpr, upload = jax.make_jaxpr(update, return_shape=True)(download, states, data, key)
    steps = _client_steps(jaxpr.jaxpr)
    cost = Cost(trees.size_bytes(download.sent), trees.size_bytes(upload), trees.size_bytes(download.held))
    if not steps:
        return cost
    # Machine code is left plain, which halves the time and changes neither XLA's buffers nor its count.
    plain: dict[str, str | bool] = {"xla_backend_optimization_level": "0"}
    at = _on_a_cpu()
    shapes = [[jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at) for x in step.in_avals] for step in steps]
    programs = [jax.jit(jax.extend.core.jaxpr_as_fun(step)) for step in steps]
    lowered = [program.lower(*given) for program, given in zip(programs, shapes, strict=True)]
    compiled = [step.compile(compiler_options=plain) for step in lowered]
    memory = [step.memory_analysis() for step in compiled]
    return cost._replace(
        flops=sum(_matmul_flops(step.jaxpr) for step in steps),
        xla_flops=sum(_cost_analysis(step).get("flops", 0.0) for step in compiled),
        peak_bytes=max(
            (m.argument_size_in_bytes + m.temp_size_in_bytes for m in memory if m is not None), default=None
        ),
        round_flops=_matmul_flops(jaxpr.jaxpr),
    )


def _on_a_cpu() -> jax.sharding.Sharding | None:
    """Where the steps are compiled for; None, the default device, where JAX was told to know no CPU."""
    try:
        return jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
    except RuntimeError:
        return None


def _examples(taken: CohortRound, number: float | None) -> int:
    """The number, or the mean of the participants that have some; from 1 to the places that there are."""
    most = taken.rows.shape[1]
    if number is None and not isinstance(taken.count, jax.ShapeDtypeStruct):
        counts = np.asarray(taken.count)
        number = float(counts[counts > 0].mean()) if counts.any() else most
    return most if number is None else min(most, max(1, round(number)))


def _cost_analysis(compiled: jax.stages.Compiled) -> Mapping[str, float]:
    return compiled.cost_analysis() or {}


def _client_steps(jaxpr: jax.extend.core.Jaxpr) -> list[jax.extend.core.ClosedJaxpr]:
    """The closed jaxprs of the steps that `local_steps` runs, found by name wherever their loop stands."""
    found = []
    for eqn in jaxpr.eqns:
        if eqn.params.get("name") == STEP_NAME:
            found.append(eqn.params["jaxpr"])
        else:
            for inner, _ in _inner(eqn):
                found += _client_steps(inner)
    return found


def _inner(eqn: jax.extend.core.JaxprEqn, unknown_trips: float = 1.0) -> Iterator[tuple[jax.extend.core.Jaxpr, float]]:
    """(jaxpr, times it runs) inside an equation."""
    name, times = eqn.primitive.name, 1.0
    if name == "pallas_call":
        times = math.prod(eqn.params["grid_mapping"].grid)
    elif name in ("scan", "while"):
        times = eqn.params.get("length", unknown_trips)
    for value in eqn.params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if hasattr(item, "eqns"):
                yield item, times
            elif hasattr(item, "jaxpr"):
                yield item.jaxpr, times


def _matmul_flops(jaxpr: Any, unknown_trips: float = 1.0) -> float:  # a Jaxpr, whose stubs know no shapes
    total = 0.0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contract, _), _ = eqn.params["dimension_numbers"]
            total += 2.0 * eqn.outvars[0].aval.size * math.prod(eqn.invars[0].aval.shape[d] for d in contract)
        elif eqn.primitive.name == "conv_general_dilated":
            kernel = eqn.invars[1].aval
            out_features = kernel.shape[eqn.params["dimension_numbers"].rhs_spec[0]]
            products = eqn.outvars[0].aval.size * kernel.size / out_features
            total += 2.0 * products / math.prod(eqn.params["lhs_dilation"])  # the zeros put in between are no work
        inner = [times * _matmul_flops(one, unknown_trips) for one, times in _inner(eqn, unknown_trips)]
        if eqn.params.get("branches_platforms"):
            total += min((flops for flops in inner if flops), default=0.0)  # a kernel of cuDNN shows no products
        else:
            total += max(inner, default=0.0) if eqn.primitive.name == "cond" else sum(inner)
    return total
