"""The runs of a sweep as one program: its rounds mapped over runs, so many at once, on every device.

A run differs from the others in the traced settings and in its seed: its first states, its participants and its keys.
The example arrays are shared and not copied. No run hears of another, so devices exchange nothing.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from fedjax_mm.run.compilation import over_clients
from fedjax_mm.run.grid import Build, Group, Point, build_traced, enter
from fedjax_mm.run.rounds import participants, scan_rounds, with_finite, with_participants
from fedjax_mm.types import FedState, Key, PyTree, RoundData

AXIS = "runs"


class Runs(NamedTuple):
    """What differs between runs; leaves [R, ...]."""

    values: Mapping[str, jax.Array]
    """The traced settings, of a weak type, as Python numbers are: they change the type of nothing."""
    seed: jax.Array
    """[R] int32: the place of the run's seed in the list of seeds."""
    init_key: Key
    """[R]: as a single run of this seed has it."""
    round_key: Key
    """[R]: as a single run of this seed has it."""


class Mapped(NamedTuple):
    """How the runs of a group are mapped. chunk: as in `run.train`, but for "auto"; at_once: runs on a device."""

    build: Build
    group: Group
    chunk: int | Mapping[str, int] | None
    at_once: int
    mesh: Mesh | None

    def init(self, runs: Runs) -> FedState:
        """The states [R, ...] of all runs before their first round."""

        def one(shared, run: Runs) -> FedState:
            return build_traced(self.build, self.group, run.values)[0].method.init(run.init_key)

        return jax.jit(functools.partial(self._map, one))((), runs)

    def enter(self, stage: int, states: FedState, runs: Runs) -> FedState:
        """The states with which all runs enter a later stage."""

        def one(shared, run: tuple[Runs, FedState]) -> FedState:
            runs, state = run
            return enter(build_traced(self.build, self.group, runs.values)[stage].method, state, runs.init_key)

        return jax.jit(functools.partial(self._map, one))((), (runs, states))

    def lower(self, stage: int, states: FedState, data: RoundData, runs: Runs) -> jax.stages.Lowered:
        """Rounds of a stage, (states, data, runs) -> (states, (metrics, whether the server is finite) [R, n]).

        data: participants are [seeds, n, ...], of n rounds.
        """

        def one(data: RoundData, run: tuple[Runs, FedState]) -> tuple[FedState, Any]:
            runs, state = run
            method = build_traced(self.build, self.group, runs.values)[stage].method
            round = with_finite(method._replace(over=over_clients(method, self.chunk, None)))
            own = jax.tree.map(lambda x: x[runs.seed], participants(data))
            state, *told = scan_rounds(round, state, with_participants(data, own), runs.round_key)
            return state, tuple(told)

        def rounds(states: FedState, data: RoundData, runs: Runs):
            return self._map(one, data, (runs, states))

        return jax.jit(rounds, donate_argnums=0).lower(states, data, runs)

    def _map(self, one: Callable[[Any, Any], Any], shared: PyTree, runs: PyTree) -> Any:
        """`one(shared, run)` of every run."""
        if self.mesh is None:
            return self._on_device(one, shared, runs)
        spread = jax.shard_map(
            functools.partial(self._on_device, one),
            mesh=self.mesh,
            in_specs=(PartitionSpec(), PartitionSpec(AXIS)),
            out_specs=PartitionSpec(AXIS),
            check_vma=False,
        )
        return spread(shared, runs)

    def _on_device(self, one: Callable[[Any, Any], Any], shared: PyTree, runs: PyTree) -> Any:
        call, here = functools.partial(one, shared), jax.tree.leaves(runs)[0].shape[0]
        if self.at_once == 1:  # no vmap: a batch dimension of 1 is not free
            return jax.lax.map(call, runs)
        if self.at_once >= here:
            return jax.vmap(call)(runs)
        return jax.lax.map(call, runs, batch_size=self.at_once)


def make_mesh(devices: int) -> Mesh | None:
    """A mesh of so many devices with the one axis "runs"; None for one."""
    if devices == 1:
        return None
    return jax.make_mesh((devices,), (AXIS,), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])


def pairs(group: Group, seeds: Sequence[int]) -> list[tuple[int, int]]:
    """(the number of the point, the place of the seed) of every run of a group."""
    return [(point, seed) for point in group.points for seed in range(len(seeds))]


def make_runs(points: Sequence[Point], group: Group, seeds: Sequence[int], multiple: int, mesh: Mesh | None) -> Runs:
    """The runs of a group as `pairs` has them; the last one is repeated up to a multiple of `multiple`."""
    each = pairs(group, seeds)
    each += [each[-1]] * (-len(each) % multiple)
    at = lambda name: jnp.stack([jnp.asarray(float(points[point].settings[name])) for point, _ in each])
    which = np.array([seed for _, seed in each], np.int32)
    keys = [jax.random.key(seed) for seed in seeds]
    folded = lambda number: jnp.stack([jax.random.fold_in(key, number) for key in keys])[which]
    runs = Runs({name: at(name) for name in group.traced}, jnp.asarray(which), folded(0), folded(1))
    return jax.device_put(runs, None if mesh is None else NamedSharding(mesh, PartitionSpec(AXIS)))


def feed(of: Callable[[int, int], RoundData], seeds: Sequence[int], rounds: range) -> RoundData:
    """The data of these rounds, with participants of each seed, [seeds, n, ...]. of: (seed, r) -> data of round r."""
    each = [[of(seed, r) for r in rounds] for seed in seeds]
    stack = lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves])
    by_seed = [jax.tree.map(stack, *map(participants, those)) for those in each]
    return with_participants(each[0][0], jax.tree.map(stack, *by_seed))
