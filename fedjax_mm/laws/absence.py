"""The law about what nobody sent: it stays as it was."""

from collections.abc import Callable

import jax
import jax.extend.core
import numpy as np

from fedjax_mm.laws.case import Case
from fedjax_mm.laws.deviation import Deviation, deviation, finite, worst
from fedjax_mm.types import Each, FedState, PyTree


def cohort_in_which_nobody_takes_part_leaves_its_parts_untouched(case: Case) -> Deviation:
    """Where nobody of a cohort takes part, what this cohort alone changes stays as it was, and all is finite.

    That is: no bit of its clients' states changes; nor do the numbers of the server's state that clients get in a later
    round and that depend on no other cohort's uploads. A server's counters and moments may go on.
    """
    state, _ = case.after  # so that a server's optimiser has moments that could move a part
    sources = _sources(case, state)
    names = list(case.method.cohorts)
    found = []
    for present in [(), *([(name,) for name in names] if len(names) > 1 else [])]:
        chosen = {name: np.asarray(case.taken.cohorts[name].index) for name in names}
        nobody = {name: np.full_like(i, case.method.cohorts[name].size) for name, i in chosen.items()}
        taken = case.data.round({**nobody, **{name: chosen[name] for name in present}})
        new, metrics = case.step(state, taken, case.key)
        of = f"with participants of {present[0]} alone: " if present else "with no participants: "
        found.append(finite((new, metrics), of))
        found += [
            deviation(new.clients[name], state.clients[name], 0.0, f"{of}the states of {name}")
            for name in names
            if name not in present
        ]
        before, _ = case.begin(state.server, taken.public, case.round_key(state))
        tolerance = case.tolerance if case.method.server.begin else 0.0  # a beginning is a program of its own here
        leaves = jax.tree_util.tree_leaves_with_path(new.server)
        for (path, x), y, on in zip(leaves, jax.tree.leaves(before), sources, strict=True):
            if on and not on & set(present):
                found.append(deviation(x, y, tolerance, f"{of}the server's {jax.tree_util.keystr(path)}"))
    return worst(*found)


def _sources(case: Case, state: FedState) -> list[set[str]]:
    """The cohorts whose uploads each leaf of the server's state depends on; none where no client ever gets it."""
    key, public = case.round_key(state), case.taken.public
    server, downloads = case.begin(state.server, public, key)
    uploads = {}
    for name, client in case.client.items():
        one = jax.eval_shape(client, downloads[name], case.client_state(name, 0), case.client_data(name, 0), key)
        places = len(case.taken.cohorts[name].index)
        stack = lambda x, places=places: jax.ShapeDtypeStruct((places, *x.shape), x.dtype)
        arrives = one.arrives.items()
        uploads[name] = {slot: jax.tree.map(stack, s) if isinstance(s, Each) else s for slot, s in arrives}
    owners = [path[0].key for path, _ in jax.tree_util.tree_leaves_with_path(uploads)]
    size = len(jax.tree.leaves(server))
    update = lambda uploads, server: case.method.server.update(server, uploads, public, key)[0]
    sent = lambda server: {name: get.sent for name, get in case.begin(server, public, key)[1].items()}
    read = set().union(*_reads(sent, server)) if size else set()
    written = _reads(update, uploads, server)
    return [{owners[i] for i in on if i < len(owners)} if leaf in read else set() for leaf, on in enumerate(written)]


def _reads(function: Callable, *args: PyTree) -> list[set[int]]:
    """The numbers of the arguments' leaves that each leaf of `function(*args)` may depend on."""
    jaxpr = jax.make_jaxpr(function)(*args).jaxpr
    return _flow(jaxpr, [{i} for i in range(len(jaxpr.invars))])


def _flow(jaxpr: jax.extend.core.Jaxpr, inputs: list[set[int]]) -> list[set[int]]:
    """What each output depends on, where the inputs depend on `inputs`; loops and branches mix all that they get."""
    known = dict(zip(jaxpr.invars, inputs, strict=True))
    on = lambda x: set() if isinstance(x, jax.extend.core.Literal) else known.get(x, set())
    for eqn in jaxpr.eqns:
        given = [on(x) for x in eqn.invars]
        if eqn.primitive.name == "jit":
            outputs = _flow(eqn.params["jaxpr"].jaxpr, given)
        else:
            outputs = [set().union(*given)] * len(eqn.outvars)
        known |= dict(zip(eqn.outvars, outputs, strict=True))
    return [on(x) for x in jaxpr.outvars]
