"""Laws about what a round gives: whoever takes part, in whatever order, and however they are mapped."""

import dataclasses
import zlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_mm import clients
from fedjax_mm.laws.case import Case, ClientPart, DoesNotApply
from fedjax_mm.laws.deviation import Deviation, counted, deviation, finite, rows, worst
from fedjax_mm.types import CohortRound, Download, Each, Mean, OverClients, RoundData


def mapped_round_equals_a_python_loop_over_clients(case: Case) -> Deviation:
    """A round gives what a Python loop gives that calls the update of one participant after the other."""
    key = case.round_key(case.state)
    server, downloads = case.begin(case.state.server, case.taken.public, key)
    new, _ = case.after
    uploads, found = {}, []
    for name in case.method.cohorts:
        cohort_key, parts = jax.random.fold_in(key, zlib.crc32(name.encode())), []
        for place in case.present(name):
            number = int(case.taken.cohorts[name].index[place])
            own = case.client_state(name, place), case.client_data(name, place)
            part = case.client[name](downloads[name], *own, jax.random.fold_in(cohort_key, number))
            parts.append(part)
            after = part.state if part.finite else own[0]
            got = rows(new.clients[name], number)
            found.append(deviation(got, after, case.tolerance, f"the state of client {number} of {name}"))
        uploads[name] = _reduced([part for part in parts if part.finite]) or _nothing(case, name, downloads[name])
    expected, _ = case.update(server, uploads, case.taken.public, jax.random.fold_in(key, 0))
    return worst(deviation(new.server, expected, case.tolerance, "the server's state"), *found)


def _reduced(parts: Sequence[ClientPart]) -> dict[str, Mean | Each]:
    """The uploads of several clients as the server gets them, by NumPy."""
    slots = {slot: [part.arrives[slot] for part in parts] for slot in (parts[0].arrives if parts else ())}
    return {slot: _reduced_slot(sent) for slot, sent in slots.items()}


def _reduced_slot(sent: Sequence[Mean | Each]) -> Mean | Each:
    weight = jnp.asarray([one.weight for one in sent], jnp.float32)
    stack = jax.tree.map(lambda *x: np.stack(x), *[one.value for one in sent])
    if isinstance(sent[0], Each):
        return Each(stack, weight)
    share = np.asarray(weight / jnp.where(weight.sum() > 0, weight.sum(), 1))
    wide = lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return Mean(jax.tree.map(lambda x: np.tensordot(share, wide(x), 1), stack), weight.sum())


def _nothing(case: Case, name: str, download: Download) -> dict[str, Mean | Each]:
    """What the server gets of a cohort in which nobody counts."""
    part = case.client[name](download, case.client_state(name, 0), case.client_data(name, 0), case.key)
    blank = lambda slot: slot._replace(value=jax.tree.map(jnp.zeros_like, slot.value), weight=np.float32(0))
    return {slot: _reduced_slot([blank(sent)]) for slot, sent in part.arrives.items()}


def chunks_and_devices_agree(case: Case) -> Deviation:
    """A round gives the same however many clients are vmapped at a time, and on several devices, where there are."""
    devices = min(4, jax.device_count())
    over = OverClients(2, clients.make_mesh(devices)) if devices > 1 else OverClients(3)
    way = f"chunks of 2 on {devices} devices: " if devices > 1 else "chunks of 3: "
    got = jax.jit(case.method._replace(over=over).round)(case.state, case.taken, case.key)
    note = "" if devices > 1 else "JAX sees one device, so chunks alone were compared"
    return deviation(got, case.after, case.tolerance, way)._replace(note=note)


def order_of_participants_does_not_matter(case: Case) -> Deviation:
    """A round gives the same in whatever order its participants come."""
    if max(len(case.present(name)) for name in case.method.cohorts) < 2:
        raise DoesNotApply("no cohort has two participants with examples")
    turned = {name: _at_places(taken, slice(None, None, -1)) for name, taken in case.taken.cohorts.items()}
    new, _ = case.step(case.state, case.taken._replace(cohorts=turned), case.key)
    return deviation(new, case.after[0], case.tolerance)


def _at_places(taken: CohortRound, places: slice) -> CohortRound:
    per_client = ("index", "weight", "rows", "count")
    return dataclasses.replace(taken, **{field: getattr(taken, field)[places] for field in per_client})


def who_does_not_take_part_does_not_change(case: Case) -> Deviation:
    """A round changes no bit of the states of clients that do not take part, or that have no examples."""
    found = []
    for name, size in case.data.sizes.items():
        idle = np.setdiff1d(np.arange(size), np.asarray(case.taken.cohorts[name].index)[case.present(name)])
        before, after = (rows(state.clients[name], idle) for state in (case.state, case.after[0]))
        if len(idle):
            found.append(deviation(after, before, 0.0, f"idle clients of {name}"))
    if not found:
        raise DoesNotApply("every client takes part in every round; ask for fewer with per_round")
    return worst(*found)


def padding_clients_change_nothing_even_if_their_rows_are_nan(case: Case) -> Deviation:
    """A round with padding clients added gives the same, even where the rows that they point to hold NaN."""
    padded = {name: _with_padding(taken, case.method.cohorts[name].size) for name, taken in case.taken.cohorts.items()}
    return deviation(case.step(case.state, case.taken._replace(cohorts=padded), case.key), case.after, case.tolerance)


def _with_padding(taken: CohortRound, size: int) -> CohortRound:
    nan_row = len(next(iter(taken.arrays.values())))
    nan = lambda x: jnp.full((1, *x.shape[1:]), jnp.nan if jnp.issubdtype(x.dtype, jnp.floating) else 0, x.dtype)
    more = lambda x, value: np.concatenate([x, np.full((2, *x.shape[1:]), value, x.dtype)])
    return dataclasses.replace(
        taken,
        index=more(taken.index, size),
        weight=more(taken.weight, 0),
        rows=more(taken.rows, nan_row),
        count=more(taken.count, min(3, taken.rows.shape[1])),
        arrays={name: jnp.concatenate([x, nan(x)]) for name, x in taken.arrays.items()},
    )


def client_whose_update_is_not_finite_is_left_out_and_counted(case: Case) -> Deviation:
    """A client with infinite examples is left out of the round as if it had no weight, and `left_out` counts it."""
    found, reasons = [], []
    for name in case.method.cohorts:
        place, own = _own_rows(case, name)
        floats = [key for key, x in case.taken.cohorts[name].arrays.items() if jnp.issubdtype(x.dtype, jnp.floating)]
        if not floats:
            reasons.append(f"{name} has no array of floats")
        elif place is None:
            reasons.append(f"no client of {name} has examples of its own")
        elif (left_out := _left_out(case, name, place, own, floats)) is None:
            reasons.append(f"the update of a client of {name} stays finite though its examples are infinite")
        else:
            found.append(left_out)
    if not found:
        raise DoesNotApply("; ".join(reasons))
    return worst(*found)._replace(note="; ".join(reasons))


def _own_rows(case: Case, name: str) -> tuple[int | None, np.ndarray]:
    """A participant of the cohort, by its place, and the rows that no other participant owns."""
    taken = case.taken.cohorts[name]
    owned = {place: np.asarray(taken.rows[place][: taken.count[place]]) for place in case.present(name)}
    for place in list(owned)[1:] + list(owned)[:1]:
        others = np.concatenate([theirs for other, theirs in owned.items() if other != place] + [np.zeros(0, np.int32)])
        if len(own := np.setdiff1d(owned[place], others)):
            return place, own
    return None, np.zeros(0, np.int32)


def _left_out(case: Case, name: str, place: int, own: np.ndarray, floats: Sequence[str]) -> Deviation | None:
    """The deviation where the examples `own` of a participant are infinite; None where its update stays finite."""
    taken, key = case.taken.cohorts[name], case.round_key(case.state)
    infinite = {array: jnp.asarray(taken.arrays[array]).at[own].set(jnp.inf) for array in floats}
    bad = dataclasses.replace(taken, arrays={**taken.arrays, **infinite})
    _, downloads = case.begin(case.state.server, case.taken.public, key)
    seen = dataclasses.replace(case.client_data(name, place), arrays=bad.arrays)
    client_key = jax.random.fold_in(jax.random.fold_in(key, zlib.crc32(name.encode())), taken.index[place])
    if case.client[name](downloads[name], case.client_state(name, place), seen, client_key).finite:
        return None
    weight = np.where(np.arange(len(taken.weight)) == place, 0, taken.weight)
    without = dataclasses.replace(taken, weight=weight.astype(taken.weight.dtype))
    in_cohort = lambda cohort: case.taken._replace(cohorts={**case.taken.cohorts, name: cohort})
    new, metrics = case.step(case.state, in_cohort(bad), case.key)
    expected, usual = case.step(case.state, in_cohort(without), case.key)
    return worst(
        counted(metrics[name]["left_out"] - usual[name]["left_out"], 1, f"left_out of {name}"),
        counted(metrics[name]["clients"] - usual[name]["clients"], 0, f"clients of {name}, more than without it,"),
        deviation(new, expected, case.tolerance, f"a client of {name} is not finite: "),
        finite((new, metrics), f"a client of {name} is not finite: "),
    )


def a_draw_does_not_depend_on_who_else_takes_part(case: Case) -> Deviation:
    """A client ends a round with the same state when it takes part alone."""
    some = {name: case.present(name) for name in case.method.cohorts}
    kept = [name for name in some if len(some[name]) and jax.tree.leaves(case.state.clients[name])]
    if not kept or sum(map(len, some.values())) < 2:
        raise DoesNotApply("no client keeps a state" if not kept else "no round has two participants with examples")
    found = []
    for name in kept:
        place = some[name][len(some[name]) // 2]
        new, _ = case.step(case.state, _alone(case.taken, name, place), case.key)
        number = case.taken.cohorts[name].index[place]
        alone, together = (rows(state.clients[name], number) for state in (new, case.after[0]))
        found.append(deviation(alone, together, case.tolerance, f"the state of client {number} of {name}, alone, "))
    return worst(*found)


def _alone(data: RoundData, name: str, place: int) -> RoundData:
    """The round's data, all weights 0 but that of one participant."""
    zero = lambda taken: dataclasses.replace(taken, weight=np.zeros_like(taken.weight))
    taken = data.cohorts[name]
    weight = np.where(np.arange(len(taken.weight)) == place, taken.weight, 0).astype(taken.weight.dtype)
    nobody = {other: zero(cohort) for other, cohort in data.cohorts.items()}
    return data._replace(cohorts={**nobody, name: dataclasses.replace(taken, weight=weight)})
