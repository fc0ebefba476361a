"""Mapping one client's function over the clients that take part, and choosing who does."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, PartitionSpec

from fedjax_mm.checks import check_array, check_callable, check_leaves, check_length, check_mapping, check_whole, say
from fedjax_mm.types import PyTree

AXIS = "clients"
One = Callable[[PyTree, PyTree], tuple[PyTree, PyTree]]  # (shared, client) -> (total, each)


def make_mesh(devices: int | None = None) -> Mesh:
    """A mesh of `devices` devices (all of them by default) with the one axis "clients".

    Raises ValueError where JAX sees fewer.

    >>> make_mesh(1).axis_names
    ('clients',)
    """
    available = jax.devices()
    devices = len(available) if devices is None else check_whole("devices", devices, least=1)
    if not 1 <= devices <= len(available):
        raise ValueError(f"asked for {devices} devices, but JAX sees {len(available)}")
    return jax.make_mesh((devices,), (AXIS,), axis_types=(AxisType.Auto,), devices=available[:devices])


def map_reduce(
    one: One,
    shared: PyTree,
    clients: PyTree,
    *,
    chunk: int,
    mesh: Mesh | None = None,
) -> tuple[PyTree, PyTree]:
    """Maps `one(shared, client) -> (total, each)` over `clients` (leaves [C, ...]): (sum of totals, stacked eaches).

    `chunk` clients run in one vmap, the chunks run in a scan that carries the running sum, and the scan runs on every
    device of the mesh. C must be a multiple of chunk x devices. With several devices client i goes to device i modulo
    their number (clients come sorted by length, so each gets its share of the long ones): the stacked outputs follow
    that order, so carry in them whatever must stay together. Raises ValueError for other numbers, and for leaves of
    different lengths.

    >>> one = lambda shared, client: (shared * client, client**2)
    >>> total, each = map_reduce(one, 10.0, jnp.array([1.0, 2.0, 3.0, 4.0]), chunk=2)
    >>> float(total), each.tolist()
    (100.0, [1.0, 4.0, 9.0, 16.0])
    """
    check_callable("one", one, "(shared, client) -> (total, each)")
    leaves = jax.tree.leaves(clients)
    check_leaves("clients", leaves)
    chunk, total_clients = check_whole("chunk", chunk, least=1), check_length("clients", leaves, "[C, ...]")
    if not total_clients:
        raise ValueError("clients has leaves of length 0; give at least one client")
    if mesh is not None and not isinstance(mesh, Mesh):
        raise ValueError(f"mesh is {say(mesh)}; give what make_mesh returns, or None")
    devices = mesh.size if mesh is not None else 1
    if total_clients % (chunk * devices):
        raise ValueError(f"{total_clients} clients do not divide into chunks of {chunk} on {devices} devices")

    if mesh is None:
        return _scan_chunks(one, chunk, shared, clients)[:2]

    order = np.arange(total_clients).reshape(-1, devices).T.ravel()
    return on_every_device(one, shared, PartitionSpec(), jax.tree.map(lambda x: x[order], clients), chunk, mesh)[:2]


def on_every_device(
    one: One, shared: PyTree, specs: PyTree, clients: PyTree, chunk: int, mesh: Mesh, held: PyTree = None
) -> tuple[PyTree, PyTree, PyTree]:
    """`map_reduce` over clients that come device by device: (sum of totals, stacked eaches, held).

    specs: how `shared` lies on the mesh, as of shard_map. held: leaves [C, ...], of each client's own. `one` then gets
    (client, own) as its client and gives (each, new own), which takes the place of the old one in memory.
    """

    # check_vma=False: with it on, JAX sums the gradient with respect to a replicated tree over devices behind one's
    # back, so local training would become data-parallel training; and a method's own loops would have to mark
    # their initial values as varying over an axis no method should know of.
    def on_device(shared, clients, held):
        total, each, held = _scan_chunks(one, chunk, shared, clients, held)
        return jax.lax.psum(total, AXIS), each, held

    spread = jax.shard_map(
        on_device,
        mesh=mesh,
        in_specs=(specs, PartitionSpec(AXIS), PartitionSpec(AXIS)),
        out_specs=(PartitionSpec(), PartitionSpec(AXIS), PartitionSpec(AXIS)),
        check_vma=False,
    )
    return spread(shared, clients, held)


def _scan_chunks(
    one: One, chunk: int, shared: PyTree, clients: PyTree, held: PyTree = None
) -> tuple[PyTree, PyTree, PyTree]:
    """`on_every_device` on one device."""
    here = jax.tree.leaves(clients)[0].shape[0]
    if chunk == 1:  # no vmap: a batch dimension of 1 is not free
        run = functools.partial(one, shared)
    else:
        run = functools.partial(_vmap_chunk, one, chunk, shared)
        clients, held = jax.tree.map(lambda x: x.reshape(here // chunk, chunk, *x.shape[1:]), (clients, held))
    run = jax.jit(run, inline=True)  # traced once for the shapes and the scan, and no other program
    given = clients if held is None else (clients, held)
    first = jax.tree.map(lambda x: x[0], given)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(run, first)[0])

    def step(carry, given):
        total, held = carry
        if held is None:
            more, each = run(given)
        else:
            i, some = given
            more, (each, new) = run((some, jax.tree.map(lambda x: x[i], held)))
            held = jax.tree.map(lambda x, own: x.at[i].set(own), held, new)
        return (jax.tree.map(jnp.add, total, more), held), each

    given = clients if held is None else (jnp.arange(here // chunk), clients)
    (total, held), each = jax.lax.scan(step, (zeros, held), given)
    if chunk > 1:
        each, held = jax.tree.map(lambda x: x.reshape(here, *x.shape[2:]), (each, held))
    return total, each, held


def _vmap_chunk(one: One, chunk: int, shared: PyTree, clients: PyTree) -> tuple[PyTree, PyTree]:
    totals, each = jax.vmap(one, (None, 0))(shared, clients)
    # A matrix product, because XLA's sum over a leading axis is 30 times slower on CPU; elsewhere both take as long.
    add_up = lambda x: jnp.tensordot(jnp.ones(chunk, x.dtype), x, 1, precision="highest")
    return jax.tree.map(add_up, totals), each


def choose(
    sizes: Mapping[str, int], per_round: int | Mapping[str, int], round: int, seed: int
) -> dict[str, np.ndarray]:
    """The clients that take part in a round: per cohort their numbers [C], sorted; empty places are filled with N.

    per_round: a number draws that many from all clients at once (how many come from one cohort then varies, so
        each cohort keeps min(number, N) places). A mapping draws its number from each cohort.

    The draw is without replacement and a function of (seed, round) alone. A cohort always keeps at least one place,
    which may be empty. Raises ValueError where `per_round` is no whole number, asks for more clients than there are,
    or for none of all cohorts: nothing would train.

    >>> chosen = choose({"image": 10, "text": 5}, {"image": 3, "text": 0}, round=0, seed=0)
    >>> chosen["image"].shape, chosen["text"].tolist()  # nobody of the 5 is number 5
    ((3,), [5])
    """
    check_mapping("sizes", sizes, "cohort to its number of clients")
    sizes = {name: check_whole(f"the number of clients of {name}", size) for name, size in sizes.items()}
    rng = np.random.default_rng(
        [check_whole("seed", seed, most=None), check_whole("round", round, most=None), 0x636C69]
    )
    if isinstance(per_round, Mapping):
        if set(per_round) != set(sizes):
            named = sorted(map(str, per_round))
            raise ValueError(f"per_round names cohorts {named}; the data has {sorted(sizes)}")
        per_round = _check_number(sizes, per_round)
        chosen = {name: np.sort(rng.permutation(n)[: per_round[name]]) for name, n in sizes.items()}
        return {name: fill_places(who, max(1, per_round[name]), sizes[name]) for name, who in chosen.items()}
    per_round = _check_number({"all cohorts": sum(sizes.values())}, {"all cohorts": per_round})["all cohorts"]
    among_all = rng.permutation(sum(sizes.values()))[:per_round]
    chosen, start = {}, 0
    for name, n in sizes.items():
        who = np.sort(among_all[(start <= among_all) & (among_all < start + n)]) - start
        chosen[name] = fill_places(who, max(1, min(per_round, n)), n)
        start += n
    return chosen


def fill_places(who: np.ndarray, places: int, nobody: int) -> np.ndarray:
    """[places] int32: the clients `who` [C], and in the empty places the number of nobody, which is N.

    Raises ValueError where `who` is no array of whole numbers from 0 to N, and where it has more clients than places.

    >>> fill_places(np.array([1, 4]), 3, nobody=5).tolist()
    [1, 4, 5]
    """
    places, nobody = check_whole("places", places), check_whole("nobody", nobody)
    who = check_array("who", who, (np.integer,), "[C]")
    if len(who) > places or (len(who) and not 0 <= who.min() <= who.max() <= nobody):
        raise ValueError(f"who has {len(who)} clients; give at most {places}, with numbers from 0 to {nobody}")
    return np.pad(who, (0, places - len(who)), constant_values=nobody).astype(np.int32)


def _check_number(sizes: Mapping[str, int], per_round: Mapping[str, Any]) -> dict[str, int]:
    numbers = {name: check_whole(f"per_round of {name}", number) for name, number in per_round.items()}
    for name, number in numbers.items():
        if number > sizes[name]:
            raise ValueError(
                f"per_round asks for {number} clients of {name}, which has {sizes[name]}; ask for at most {sizes[name]}"
            )
    if not any(numbers.values()):
        raise ValueError(f"per_round asks for no client of {' and '.join(numbers)}; ask for at least one")
    return numbers
