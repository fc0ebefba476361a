"""Mapping one client's function over the clients that take part, and choosing who does."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, PartitionSpec

from fedjax_mm.types import PyTree

AXIS = "clients"


def make_mesh(devices: int | None = None) -> Mesh:
    """A mesh of `devices` devices (all of them by default) with the one axis "clients"."""
    available = jax.devices()
    devices = len(available) if devices is None else devices
    if not 1 <= devices <= len(available):
        raise ValueError(f"asked for {devices} devices, but JAX sees {len(available)}")
    return jax.make_mesh((devices,), (AXIS,), axis_types=(AxisType.Auto,), devices=available[:devices])


def map_reduce(
    one: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]],
    shared: PyTree,
    clients: PyTree,
    *,
    chunk: int,
    mesh: Mesh | None = None,
) -> tuple[PyTree, PyTree]:
    """Maps `one(shared, client) -> (total, each)` over `clients` (leaves [C, ...]): (sum of totals, stacked eaches).

    `chunk` clients run in one vmap, the chunks in a scan that carries the running sum, the scan on every device of
    the mesh. C must be a multiple of chunk x devices. With several devices client i goes to device i modulo their
    number (clients come sorted by length, so each gets its share of the long ones): the stacked outputs follow
    that order, so carry in them whatever must stay together.
    """
    total_clients = jax.tree.leaves(clients)[0].shape[0]
    devices = mesh.size if mesh is not None else 1
    if total_clients % (chunk * devices):
        raise ValueError(f"{total_clients} clients do not divide into chunks of {chunk} on {devices} devices")

    def scan(shared, clients):
        here = jax.tree.leaves(clients)[0].shape[0]
        if chunk == 1:  # no vmap: a batch dimension of 1 is not free
            body = lambda client: one(shared, client)
        else:
            clients = jax.tree.map(lambda x: x.reshape(here // chunk, chunk, *x.shape[1:]), clients)

            def body(clients):
                totals, each = jax.vmap(one, (None, 0))(shared, clients)
                # A matrix product, because XLA's sum over a leading axis is 30 times slower on CPU (measured).
                add_up = lambda x: jnp.tensordot(jnp.ones(chunk, x.dtype), x, 1, precision="highest")
                return jax.tree.map(add_up, totals), each

        first = jax.tree.map(lambda x: x[0], clients)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(body, first)[0])

        def step(total, clients):
            more, each = body(clients)
            return jax.tree.map(jnp.add, total, more), each

        total, each = jax.lax.scan(step, zeros, clients)
        if chunk > 1:
            each = jax.tree.map(lambda x: x.reshape(here, *x.shape[2:]), each)
        return total, each

    if mesh is None:
        return scan(shared, clients)

    # check_vma=False: with it on, JAX sums the gradient with respect to a replicated tree over devices behind one's
    # back, so local training would become data-parallel training; and a method's own loops would have to mark
    # their initial values as varying over an axis no method should know of.
    def on_device(shared, clients):
        total, each = scan(shared, clients)
        return jax.lax.psum(total, AXIS), each

    order = np.arange(total_clients).reshape(-1, devices).T.ravel()
    spread = jax.shard_map(
        on_device,
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec(AXIS)),
        out_specs=(PartitionSpec(), PartitionSpec(AXIS)),
        check_vma=False,
    )
    return spread(shared, jax.tree.map(lambda x: x[order], clients))


def choose(
    sizes: Mapping[str, int], per_round: int | Mapping[str, int], round: int, seed: int
) -> dict[str, np.ndarray]:
    """Who takes part in a round: per cohort the client numbers [C], sorted, the rest of the places filled with N.

    per_round: a number draws that many from all clients at once (how many come from one cohort then varies, so
        each cohort keeps min(number, N) places); a mapping draws its number from each cohort. A function of
        (seed, round) alone, without replacement. A cohort always keeps one place, if only for nobody.
    """
    rng = np.random.default_rng([seed, round, 0x636C69])
    if isinstance(per_round, Mapping):
        if set(per_round) != set(sizes):
            raise ValueError(f"per_round names cohorts {sorted(per_round)}; the data has {sorted(sizes)}")
        _check_number(sizes, per_round)
        drawn = {name: np.sort(rng.permutation(n)[: per_round[name]]) for name, n in sizes.items()}
        return {name: _filled(who, max(1, per_round[name]), sizes[name]) for name, who in drawn.items()}
    _check_number({"all cohorts": sum(sizes.values())}, {"all cohorts": per_round})
    drawn = rng.permutation(sum(sizes.values()))[:per_round]
    chosen, start = {}, 0
    for name, n in sizes.items():
        mine = np.sort(drawn[(start <= drawn) & (drawn < start + n)]) - start
        chosen[name] = _filled(mine, max(1, min(per_round, n)), n)
        start += n
    return chosen


def _filled(who: np.ndarray, places: int, nobody: int) -> np.ndarray:
    return np.pad(who, (0, places - len(who)), constant_values=nobody).astype(np.int32)


def _check_number(sizes: Mapping[str, Any], per_round: Mapping[str, int]) -> None:
    for name, number in per_round.items():
        if not 0 <= number <= sizes[name]:
            raise ValueError(
                f"per_round asks for {number} clients of {name}, which has {sizes[name]}; ask for at most {sizes[name]}"
            )
