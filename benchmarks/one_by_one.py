"""A round without the engine: clients one after another, each in one compiled call or in one for every batch."""

import zlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np

from fedjax_mm.federate import Method
from fedjax_mm.local import STEP_NAME
from fedjax_mm.types import ClientData, Each, FedState, Mean, PyTree, RoundData


def separate(method: Method, state: FedState) -> PyTree:
    """The state as `serial` keeps it: (the server's, {cohort: a list of its clients'}, round)."""
    one = lambda name, i: jax.tree.map(lambda x: x[i], state.clients[name])
    clients = {name: [one(name, i) for i in range(cohort.size)] for name, cohort in method.cohorts.items()}
    return state.server, clients, jnp.copy(state.round)


def serial(method: Method, key, compiled: Callable = jax.jit) -> Callable[[PyTree, RoundData], PyTree]:
    """The round as a loop in Python over its clients, with the same draws as the engine's.

    compiled: jax.jit, a call for every client, or `by_batch`, a call for every batch of a client or of the server.
    """
    stay = lambda server, public, key: (server, {})
    begin, download = compiled(method.server.begin or stay), jax.jit(method.server.download)
    fold = jax.jit(lambda key, *numbers: [key := jax.random.fold_in(key, n) for n in numbers][-1])
    gather = jax.jit(lambda sent: {slot: _gathered([upload[slot] for upload in sent]) for slot in sent[0]})
    server_update = compiled(method.server.update)
    updates = {name: compiled(cohort.update) for name, cohort in method.cohorts.items()}

    def one_round(state: PyTree, data: RoundData) -> PyTree:
        server, clients, number = state
        round_key = fold(key, 1, number)
        server, _ = begin(server, data.public, fold(round_key, 1))
        downloads, uploads = download(server, data.public), {}
        clients = {name: list(states) for name, states in clients.items()}
        for name, taken in data.cohorts.items():
            sent, cohort_key = [], np.uint32(zlib.crc32(name.encode()))
            for i, index in enumerate(taken.index):
                own = (taken.rows[i], taken.count[i], taken.weight[i])
                seen = ClientData(taken.arrays, *own, data.public, taken.uniform)
                client_key = fold(round_key, cohort_key, index, 0)
                upload, clients[name][index], _ = updates[name](downloads[name], clients[name][index], seen, client_key)
                sent.append(upload)
            uploads[name] = gather(sent)
        server, _ = server_update(server, uploads, data.public, fold(round_key, 0))
        return server, clients, number + 1

    return one_round


def _gathered(sent: Sequence[Mean | Each]) -> Mean | Each:
    weight = jnp.stack([jnp.float32(s.weight) for s in sent])
    stack = jax.tree.map(lambda *x: jnp.stack(x), *[s.value for s in sent])
    if isinstance(sent[0], Each):
        return Each(stack, weight)
    return Mean(jax.tree.map(lambda x: jnp.tensordot(weight / weight.sum(), x, 1), stack), weight.sum())


def by_batch(function: Callable) -> Callable:
    """The same function with its loops over batches in Python: a compiled call for each batch and for what is between.

    The loops are those around the step that `local_steps` names client_step. Shapes must be alike in every call.
    """
    traced = []

    def run(*args):
        if not traced:
            jaxpr, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
            traced.extend((_pieces(jaxpr.jaxpr), jaxpr.consts, jax.tree.structure(shapes)))
        call, consts, structure = traced
        return jax.tree.unflatten(structure, call(*consts, *jax.tree.leaves(args)))

    return run


def _pieces(jaxpr) -> Callable[..., list]:
    """Runs a jaxpr: what lies between loops over batches in one compiled call each, these loops in Python."""
    inputs = [*jaxpr.constvars, *jaxpr.invars]
    groups: list[list] = []
    for eqn in jaxpr.eqns:
        if not groups or _is_loop(eqn) or _is_loop(groups[-1][0]):
            groups.append([])
        groups[-1].append(eqn)
    needed, calls = {v for v in jaxpr.outvars if _is_variable(v)}, []
    for eqns in reversed(groups):
        made = [v for eqn in eqns for v in eqn.outvars]
        gives = [v for v in made if v in needed]
        takes = list(dict.fromkeys(v for eqn in eqns for v in eqn.invars if _is_variable(v) and v not in made))
        call = _loop(eqns[0], takes, gives) if _is_loop(eqns[0]) else _straight(jaxpr, eqns, takes, gives)
        calls.insert(0, (call, takes, gives))
        needed |= set(takes)

    def run(*values):
        known = dict(zip(inputs, values, strict=True))
        for call, takes, gives in calls:
            known.update(zip(gives, call(*(known[v] for v in takes)), strict=True))
        return [_value(v, known) for v in jaxpr.outvars]

    return run


def _straight(jaxpr, eqns: Sequence, takes: Sequence, gives: Sequence) -> Callable[..., list]:
    part = jaxpr.replace(constvars=[], invars=takes, outvars=gives, eqns=eqns)
    return jax.jit(jax.extend.core.jaxpr_as_fun(jax.extend.core.ClosedJaxpr(part, ())))


def _loop(eqn, takes: Sequence, gives: Sequence) -> Callable[..., list]:
    """A `fori_loop`, which a trip count known beforehand makes a scan."""
    params, scan = eqn.params, eqn.primitive.name == "scan"
    body = params["jaxpr" if scan else "body_jaxpr"]
    first = 0 if scan else params["cond_nconsts"]
    last = first + params["num_consts" if scan else "body_nconsts"]
    counted = scan or [e.primitive.name for e in params["cond_jaxpr"].eqns] == ["lt"]
    if not counted or (scan and last + params["num_carry"] != len(eqn.invars)):
        raise NotImplementedError("a loop around local_steps must be a fori_loop to be taken apart")
    piece = _pieces(body.jaxpr)

    def run(*values):
        known = dict(zip(takes, values, strict=True))
        inputs = [_value(v, known) for v in eqn.invars]
        consts, carry = inputs[first:last], inputs[last:]
        times = params["length"] if scan else int(carry[1]) - int(carry[0])
        for _ in range(times):
            carry = piece(*body.consts, *consts, *carry)
        known = dict(zip(eqn.outvars, carry, strict=True))
        return [known[v] for v in gives]

    return run


def _is_loop(eqn) -> bool:
    return eqn.primitive.name in ("while", "scan") and any(map(_has_step, jax.extend.core.jaxprs_in_params(eqn.params)))


def _has_step(jaxpr) -> bool:
    inside = lambda eqn: jax.extend.core.jaxprs_in_params(eqn.params)
    return any(eqn.params.get("name") == STEP_NAME or any(map(_has_step, inside(eqn))) for eqn in jaxpr.eqns)


def _is_variable(v) -> bool:
    return not isinstance(v, jax.extend.core.Literal)


def _value(v, known: dict) -> Any:
    return known[v] if _is_variable(v) else v.val
