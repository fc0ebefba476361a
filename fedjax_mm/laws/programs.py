"""Laws about a round as a program: traced once, scanned, vmapped, counted, and built from the method's fields."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_mm import clients
from fedjax_mm.federate import Method
from fedjax_mm.laws.case import Case
from fedjax_mm.laws.deviation import Deviation, counted, deviation, rows, worst
from fedjax_mm.types import Each, FedState, OverClients


def one_trace_for_all_rounds(case: Case) -> Deviation:
    """All rounds are one traced program: the state keeps its shapes and types, and so does the data."""
    traces, state = [], case.state
    round = jax.jit(lambda *inputs: (traces.append(1), case.step(*inputs))[1])
    for number in range(3):
        round.trace(state, case.round_data(number), case.key)
        state, _ = case.step(state, case.round_data(number), case.key)
    return worst(
        counted(len(traces), 1, "the number of traces of three rounds"),
        counted(state.round, 3, "the state's round after three rounds"),
    )


def scan_over_rounds_equals_a_loop(case: Case) -> Deviation:
    """`jax.lax.scan` over three rounds gives what a loop over them gives."""
    rounds = [case.round_data(number) for number in range(3)]
    fields = ["index", "weight", "rows", "count"] + ([] if case.data.on_device else ["arrays"])
    cohorts = rounds[0].cohorts
    each = lambda name, field: [getattr(data.cohorts[name], field) for data in rounds]
    stacked = {name: {f: jax.tree.map(lambda *x: np.stack(x), *each(name, f)) for f in fields} for name in cohorts}

    def one(state, taken):
        these = {name: dataclasses.replace(cohorts[name], **taken[name]) for name in cohorts}
        return case.step(state, rounds[0]._replace(cohorts=these), case.key)

    scanned, _ = jax.jit(lambda state: jax.lax.scan(one, state, stacked))(case.state)
    looped = case.state
    for data in rounds:
        looped, _ = case.step(looped, data, case.key)
    return deviation(scanned, looped, case.tolerance)


def vmap_over_seeds_equals_one_seed_at_a_time(case: Case) -> Deviation:
    """`jax.vmap` over the keys of two runs gives what each run gives."""
    keys = jax.random.split(jax.random.key(case.seed + 5), 2)
    states = jax.jit(jax.vmap(case.init))(keys)
    many, _ = jax.jit(jax.vmap(case.step, (0, None, 0)))(states, case.taken, keys)
    found = []
    for i in range(2):
        one, _ = case.step(case.init(keys[i]), case.taken, keys[i])
        found.append(deviation(rows(many, i), one, case.tolerance, f"seed {i}: "))
    return worst(*found)


def bytes_reported_are_the_bytes_of_the_trees_that_travel(case: Case) -> Deviation:
    """`costs.of` reports the bytes of the very trees that travel."""
    reported = case.costs
    _, downloads = case.begin(case.state.server, case.taken.public, case.round_key(case.state))
    nbytes = lambda tree: sum(np.asarray(x).nbytes for x in jax.tree.leaves(tree))
    found = []
    for name in case.method.cohorts:
        part = case.client[name](downloads[name], case.client_state(name, 0), case.client_data(name, 0), case.key)
        up = sum(nbytes(slot.value) for slot in part.travels.values())
        found.append(counted(reported[name].bytes_up, up, f"bytes_up of {name}"))
        found.append(counted(reported[name].bytes_down, nbytes(downloads[name].sent), f"bytes_down of {name}"))
    return worst(*found)


def replaced_fields_mean_what_they_say(case: Case) -> Deviation:
    """`method._replace(server=..., cohorts=..., upload=..., over=...)` gives the method that has these fields.

    Here every client sends ones, and the server keeps what arrives: ones, or zeros after a transform that erases.
    """
    stub = _of_ones(case)
    erase = optax.stateless(lambda updates, params: jax.tree.map(jnp.zeros_like, updates))
    found = []
    for arrives, upload in ((1, optax.identity()), (0, erase)):
        new, _ = jax.jit(stub._replace(upload=upload).round)(case.state, case.taken, case.key)
        found.append(_arrivals(case, new, arrives, "identity" if arrives else "a transform that erases"))
    programs = {
        over: str(jax.make_jaxpr(stub._replace(over=over).round)(case.state, case.taken, case.key))
        for over in (OverClients(1), OverClients(2), OverClients(1, clients.make_mesh(1)))
    }
    one, two, mesh = programs.values()
    if max(len(taken.index) for taken in case.taken.cohorts.values()) > 1:
        found.append(counted(one != two, 1, "whether over=OverClients(2) gives another program"))
    found.append(counted("shard_map" in mesh, 1, "whether a mesh in over=OverClients(...) is in the program"))
    return worst(*found)


def _of_ones(case: Case) -> Method:
    """The method with clients that send ones in every slot, and a server whose new state is what arrives."""

    def cohort(name):
        _, downloads = case.begin(case.state.server, case.taken.public, case.key)
        seen = case.client_state(name, 0), case.client_data(name, 0)
        shapes = jax.eval_shape(case.client[name], downloads[name], *seen, case.key).sent
        ones = lambda tree: jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), tree)
        send = lambda data: {slot: s._replace(value=ones(s.value), weight=data.weight) for slot, s in shapes.items()}
        return case.method.cohorts[name]._replace(update=lambda download, state, data, key: (send(data), state, {}))

    keep = lambda state, uploads, public, key: (uploads, {})
    server = case.method.server._replace(begin=None, update=keep)
    return case.method._replace(server=server, cohorts={name: cohort(name) for name in case.method.cohorts})


def _arrivals(case: Case, new: FedState, arrives: int, upload: str) -> Deviation:
    """How far what arrived is from `arrives` in every number."""
    found = []
    for name, slots in new.server.items():
        for slot, sent in slots.items():
            there = np.asarray(sent.weight) > 0
            expected = lambda x, there=there: np.where(there.reshape(-1, *[1] * (x.ndim - 1)), arrives, 0)
            if not isinstance(sent, Each):
                expected = lambda x, there=there: np.full(x.shape, arrives * there)
            like = jax.tree.map(
                lambda x, expected=expected: jnp.broadcast_to(expected(x), x.shape).astype(x.dtype), sent.value
            )
            of = f"upload={upload}: slot {slot} of {name} "
            found.append(deviation(sent.value, like, case.tolerance, of))
            found.append(counted(there.sum() > 0, len(case.present(name)) > 0, f"{of}has a weight, which"))
    return worst(*found)
