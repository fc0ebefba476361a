"""A cohort split over the devices of a mesh: the map over its clients where they lie, and the rows that move.

With D devices a split array has leaves [D n, ...], of which device d has rows d n to (d + 1) n. Participants of a split
cohort come in the same order, all of the first device first. Where "all" of a cohort is split (CohortRound.split), the
examples are too, and `rows` counts from the first of the device's own.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from fedjax_mm.clients import AXIS, One, on_every_device
from fedjax_mm.split_rows import specs_of
from fedjax_mm.types import CohortRound, OverClients, PyTree

NOWHERE = jnp.iinfo(jnp.int32).max  # the place of a padding client: beyond the end of any array
SPLIT, WHOLE = PartitionSpec(AXIS), PartitionSpec()


def fitted(over: OverClients, name: str, data: CohortRound, size: int) -> tuple[int, CohortRound]:
    """The chunk to use, and the participants with padding clients added, up to a multiple of it."""
    devices = over.mesh.size if over.mesh is not None else 1
    chunk = over.chunk[name] if isinstance(over.chunk, Mapping) else over.chunk
    places = data.index.shape[0]
    chunk = max(1, min(chunk, -(-places // devices)))
    more = -places % (chunk * devices)
    fill = lambda x, value: jnp.pad(x, [(0, more)] + [(0, 0)] * (x.ndim - 1), constant_values=value)
    if data.split is not None:  # every device has as many participants
        fill = lambda x, value: lengthened(x, more // devices, value, devices)
    return chunk, dataclasses.replace(
        data,
        index=fill(data.index, size),
        weight=fill(data.weight, 0),
        rows=fill(data.rows, 0),
        count=fill(data.count, 0),
        place=None if data.place is None else fill(data.place, NOWHERE),
        work=None if data.work is None else fill(data.work, 0),
    )


def map_split(
    one: One, shared: PyTree, states: PyTree, taken: CohortRound, chunk: int, mesh: Mesh
) -> tuple[PyTree, PyTree, PyTree]:
    """(the sum of totals, the uploads, the states with the participants' new ones) of `one` over a split cohort.

    one: ((shared, arrays), (index, place, weight, rows, count, work, state)) -> (total, (upload, place, new state)).
    states: leaves [D n, ...]. taken: participants [C], C a multiple of chunk x devices.
    """
    place, leaves, devices = taken.place, jax.tree.leaves(states), mesh.size
    more = 0  # padding clients of each device that make its chunks full
    if place is None and leaves:
        more = (len(taken.index) - len(leaves[0])) // devices
    old = states if place is None else take_rows(states, place, mesh)
    if more:
        old = jax.tree.map(lambda x: lengthened(x, more, 0, devices), old)
    clients = (taken.index, None, taken.weight, taken.rows, taken.count, taken.work)
    specs = (specs_of(shared), SPLIT if taken.split == "all" else WHOLE)

    def with_state(shared, client):
        given, own = client
        total, (each, _, new) = one(shared, (*given, *own))
        return total, (each, (new,))

    total, each, (new,) = on_every_device(with_state, (shared, taken.arrays), specs, clients, chunk, mesh, (old,))
    if more:
        new = jax.tree.map(lambda x: shortened(x, more, devices), new)
    return total, each, new if place is None else put_rows(states, place, new, mesh)


def take_rows(states: PyTree, place: jax.Array, mesh: Mesh) -> PyTree:
    """Rows `place` [C] of split arrays, as split arrays [C, ...]; some row, where a place is beyond the end.

    Only these rows travel, bit for bit: each device sends every other one what that one asked for.
    """
    here = lambda states, place: jax.tree.map(lambda x: _taken(x, place.reshape(mesh.size, -1)), states)
    return jax.shard_map(here, mesh=mesh, in_specs=(SPLIT, WHOLE), out_specs=SPLIT, check_vma=False)(states, place)


def _taken(x: jax.Array, place: jax.Array) -> jax.Array:
    """On a device with rows x [n, ...]: the rows that it asks for in its row of `place` [D, C / D]."""
    here, (devices, each) = jax.lax.axis_index(AXIS), place.shape
    mine = x.at[place.ravel() - here * len(x)].get(mode="clip")
    sent = jax.lax.all_to_all(mine.reshape(devices, each, *x.shape[1:]), AXIS, 0, 0)  # from every device
    return sent[jnp.minimum(place[here] // len(x), devices - 1), jnp.arange(each)]


def put_rows(states: PyTree, place: jax.Array, new: PyTree, mesh: Mesh) -> PyTree:
    """Split arrays with the rows `new`, split arrays [C, ...], at `place` [C]; those beyond the end are dropped."""
    here = lambda states, place, new: jax.tree.map(lambda x, some: _put(x, place, some), states, new)
    specs = (SPLIT, WHOLE, SPLIT)
    return jax.shard_map(here, mesh=mesh, in_specs=specs, out_specs=SPLIT, check_vma=False)(states, place, new)


def _put(x: jax.Array, place: jax.Array, new: jax.Array) -> jax.Array:
    """On a device with rows x [n, ...]: these, with those of all devices' new rows that are at a place [C] of it."""
    mine = place - jax.lax.axis_index(AXIS) * len(x)
    mine = jnp.where(mine < 0, len(x), mine)  # a negative one would count from the end
    return x.at[mine].set(jax.lax.all_gather(new, AXIS, tiled=True), mode="drop")


def lengthened(x: jax.Array, more: int, value: float, devices: int) -> jax.Array:
    """A split array [D n, ...] with `more` rows of a value behind those of each device."""
    apart = x.reshape(devices, -1, *x.shape[1:])
    longer = jnp.pad(apart, [(0, 0), (0, more)] + [(0, 0)] * (x.ndim - 1), constant_values=value)
    return longer.reshape(-1, *x.shape[1:])


def shortened(x: jax.Array, more: int, devices: int) -> jax.Array:
    """A split array without the last `more` rows of each device: what undoes `lengthened`."""
    return x.reshape(devices, -1, *x.shape[1:])[:, :-more].reshape(-1, *x.shape[1:])
