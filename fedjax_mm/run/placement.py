"""Where a run's arrays are: on one device, on a mesh of devices, or, for the states of its clients, off the device."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from fedjax_mm import stages
from fedjax_mm.data import FederatedData
from fedjax_mm.federate import Method, init_clients, init_server
from fedjax_mm.run import client_state, spread
from fedjax_mm.run.spread import NOBODY, is_spread
from fedjax_mm.split import NOWHERE, SPLIT, WHOLE
from fedjax_mm.stages import Stage
from fedjax_mm.types import CohortRound, FedState, Key, PyTree, RoundData, Split


class States(Protocol):
    """Where the states of the clients are kept while a run goes on; no choice changes a bit of a result.

    `first` gives a method's first state, whole; `restored` a saved one, whose arrays were read where `first` has them;
    `enter` the one with which a stage goes on from the stage before. `load` takes a whole state and gives the one that
    the round of `data` takes; `exchange` does so for every further round, with what `prefetch` gave while the round
    before computed. `whole` has all clients again. A round's data goes through `placed`. `shapes` are those of the
    clients' states in the round of `data`, for shapes [N, ...] of all of them.
    """

    def first(self, method: Method, key: Key) -> FedState: ...

    def enter(self, state: FedState, method: Method, key: Key) -> FedState: ...

    def restored(self, first: FedState, saved: FedState) -> FedState: ...

    def placed(self, data: RoundData) -> RoundData: ...

    def load(self, state: FedState, data: RoundData) -> FedState: ...

    def prefetch(self, data: RoundData) -> Any: ...

    def exchange(self, state: FedState, done: RoundData, coming: RoundData | None, fetched: Any) -> FedState: ...

    def whole(self, state: FedState) -> FedState: ...

    def shapes(self, clients: PyTree, data: RoundData) -> PyTree: ...


class OnDevice:
    """The states of all clients are on the device, or on every device of the mesh."""

    def __init__(self, mesh: Mesh | None):
        self.mesh = mesh

    def first(self, method: Method, key: Key) -> FedState:
        return replicated(jax.jit(method.init)(key), self.mesh)

    def enter(self, state: FedState, method: Method, key: Key) -> FedState:
        entered = _entered(state, method, key, self.mesh)
        sizes = {name: cohort.size for name, cohort in method.cohorts.items()}
        draw = lambda key, server: {
            name: init_clients(cohort, name, key, jnp.arange(sizes[name]), server)
            for name, cohort in method.cohorts.items()
        }
        clients = replicated(jax.jit(draw)(key, local(entered.server, self.mesh)), self.mesh)
        return dataclasses.replace(entered, clients=clients)

    def restored(self, first: FedState, saved: FedState) -> FedState:
        return saved

    def placed(self, data: RoundData) -> RoundData:
        return replicated(data, self.mesh)

    def load(self, state: FedState, data: RoundData) -> FedState:
        return state

    def prefetch(self, data: RoundData) -> None:
        return None

    def exchange(self, state: FedState, done: RoundData, coming: RoundData | None, fetched: None) -> FedState:
        return state

    def whole(self, state: FedState) -> FedState:
        return state

    def shapes(self, clients: PyTree, data: RoundData) -> PyTree:
        return clients if self.mesh is None else _shaped(clients, NamedSharding(self.mesh, WHOLE))


class OffDevice:
    """The states of all clients are NumPy arrays in memory or in files; the device has those of the participants.

    Several devices of one process have a part of the participants each. on_device: whether the examples of all clients
    are on the devices; if not, each gets those of its participants.
    """

    def __init__(self, mesh: Mesh | None, folder: str | os.PathLike | None, on_device: bool = True):
        self.mesh, self.folder = mesh, folder
        self.split = Split(in_place=True, examples=not on_device) if is_spread(mesh) else None
        self.everybody: client_state.States = {}

    def first(self, method: Method, key: Key) -> FedState:
        server = jax.jit(lambda key: init_server(method, key))(key)
        clients = client_state.init(method, key, server, self.folder)
        return FedState(replicated(server, self.mesh), clients, replicated(jnp.int32(0), self.mesh))

    def enter(self, state: FedState, method: Method, key: Key) -> FedState:
        entered = _entered(state, method, key, self.mesh)
        clients = client_state.init(method, key, local(entered.server, self.mesh), self.folder)
        return dataclasses.replace(entered, clients=clients)

    def restored(self, first: FedState, saved: FedState) -> FedState:
        if saved is not first:
            client_state.fill(first.clients, saved.clients)
        return dataclasses.replace(saved, clients=first.clients)

    def placed(self, data: RoundData) -> RoundData:
        if self.mesh is None or self.split is None:
            return replicated(client_state.placed(data), self.mesh)
        cohorts = {name: self._laid_out(name, taken, self.mesh, self.split) for name, taken in data.cohorts.items()}
        return data._replace(cohorts=cohorts, public=replicated(data.public, self.mesh))

    def load(self, state: FedState, data: RoundData) -> FedState:
        self.everybody = state.clients
        return self._on_device(state, client_state.read(self.everybody, data))

    def prefetch(self, data: RoundData) -> client_state.States:
        return client_state.read(self.everybody, data)

    def exchange(
        self, state: FedState, done: RoundData, coming: RoundData | None, fetched: client_state.States
    ) -> FedState:
        client_state.write(self.everybody, done, jax.device_get(state.clients))
        if coming is None:
            return state
        client_state.read_again(self.everybody, coming, fetched, done)
        return self._on_device(state, fetched)

    def whole(self, state: FedState) -> FedState:
        return dataclasses.replace(state, clients=self.everybody)

    def shapes(self, clients: PyTree, data: RoundData) -> PyTree:
        taking_part = client_state.shapes(clients, data)
        if self.mesh is None:
            return taking_part
        return _shaped(taking_part, NamedSharding(self.mesh, WHOLE if self.split is None else SPLIT))

    def _on_device(self, state: FedState, clients: client_state.States) -> FedState:
        if self.mesh is None:
            return dataclasses.replace(state, clients=jax.device_put(clients))
        put = replicated if self.split is None else spread.put
        return dataclasses.replace(state, clients=put(clients, self.mesh))

    def _laid_out(self, name: str, taken: CohortRound, mesh: Mesh, split: Split) -> CohortRound:
        entries = spread.by_device(np.arange(len(taken.index)), mesh.size)
        return _replicated_fields(spread.laid_out(taken, entries, split, mesh, None), mesh)


class OverDevices(OffDevice):
    """The states of all clients are on the devices of one process, a part of them on each.

    Where a cohort has a place for all of its clients in every round, each is mapped where its state lies. If not, the
    participants' states go to the device that maps them, and back. counts: examples of each client, by which devices
    get as many long clients.
    """

    def __init__(self, mesh: Mesh, counts: Mapping[str, np.ndarray], on_device: bool):
        super().__init__(mesh, None, on_device)
        longest_first = {name: np.argsort(-n, kind="stable") for name, n in counts.items()}
        self.stored = {name: spread.by_device(who, mesh.size) for name, who in longest_first.items()}
        self.row = {name: np.argsort(who, kind="stable")[(who < 0).sum() :] for name, who in self.stored.items()}

    def load(self, state: FedState, data: RoundData) -> FedState:
        taken = {name: client_state.rows(states, self.stored[name]) for name, states in state.clients.items()}
        return self._on_device(state, taken)

    def prefetch(self, data: RoundData) -> client_state.States:
        return {}

    def exchange(self, state: FedState, done: RoundData, coming: RoundData | None, fetched: Any) -> FedState:
        return state

    def whole(self, state: FedState) -> FedState:
        clients = {name: client_state.rows(x, self.row[name]) for name, x in jax.device_get(state.clients).items()}
        return dataclasses.replace(state, clients=clients)

    def shapes(self, clients: PyTree, data: RoundData) -> PyTree:
        longer = lambda x, n: jax.ShapeDtypeStruct((n, *x.shape[1:]), x.dtype)
        stored = {k: jax.tree.map(lambda x, k=k: longer(x, len(self.stored[k])), of) for k, of in clients.items()}
        return _shaped(stored, NamedSharding(cast(Mesh, self.mesh), SPLIT))

    def _laid_out(self, name: str, taken: CohortRound, mesh: Mesh, split: Split) -> CohortRound:
        index, stored, row = np.asarray(taken.index), self.stored[name], self.row[name]
        places, total = index.shape[-1], len(row)
        row = np.append(row, NOWHERE)  # nobody's
        if places < total:
            entries = np.tile(spread.by_device(np.arange(places), mesh.size), (*index.shape[:-1], 1))
            laid = spread.laid_out(taken, entries, split._replace(in_place=False), mesh, row[index].astype(np.int32))
            return _replicated_fields(laid, mesh)
        entry = np.full((*index.shape[:-1], total + 1), NOBODY)
        np.put_along_axis(entry, index, np.broadcast_to(np.arange(places), index.shape), -1)
        entry[..., total] = NOBODY
        return _replicated_fields(spread.laid_out(taken, entry[..., stored], split, mesh, None), mesh)


def client_states(where: str | os.PathLike, mesh: Mesh | None, plan: Sequence[Stage], data: FederatedData) -> States:
    """Clients' states kept on the "device", in the memory of the "host", or in files of a folder.

    A mesh of one process has a part of them on each device, unless they hold random keys.
    """
    if where != "device":
        return OffDevice(mesh, None if where == "host" else where, data.on_device)
    if mesh is None or not is_spread(mesh) or any(client_state.holds_keys(stage.method) for stage in plan):
        return OnDevice(mesh)
    return OverDevices(mesh, {name: cohort.counts for name, cohort in data.cohorts.items()}, data.on_device)


def replicated(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """The tree on every device of the mesh, over all processes; as it is where there is no mesh."""
    if mesh is None:
        return tree
    sharding = NamedSharding(mesh, WHOLE)
    return jax.tree.map(lambda x: x if getattr(x, "sharding", None) == sharding else _put(x, sharding), tree)


def local(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """The tree on this process's own device; NumPy arrays stay as they are."""
    if mesh is None:
        return tree
    return jax.tree.map(lambda x: x.addressable_data(0) if isinstance(x, jax.Array) else x, tree)


def on_mesh(data: FederatedData, mesh: Mesh | None) -> FederatedData:
    """Data whose arrays are on the mesh already, so that no round moves them again."""
    if mesh is None:
        return data
    put = lambda arrays: None if arrays is None else replicated(dict(arrays), mesh)
    cohorts = data.cohorts
    if data.on_device:
        cohorts = {name: dataclasses.replace(c, arrays=put(c.arrays)) for name, c in cohorts.items()}
    return dataclasses.replace(data, cohorts=cohorts, public=put(data.public))


def _entered(state: FedState, method: Method, key: Key, mesh: Mesh | None) -> FedState:
    """The state with which a stage begins, its clients' states still to be drawn."""
    server = jax.jit(lambda key: init_server(method, key))(key)
    fresh = FedState(replicated(server, mesh), {}, state.round)
    return stages.enter(state, fresh)


def _replicated_fields(taken: CohortRound, mesh: Mesh) -> CohortRound:
    """A split cohort's round, whose examples are on every device too where they are not split."""
    return (
        replicated(taken, mesh)
        if not taken.split or not taken.split.examples
        else dataclasses.replace(replicated(dataclasses.replace(taken, arrays={}), mesh), arrays=taken.arrays)
    )


def _shaped(tree: PyTree, sharding: NamedSharding) -> PyTree:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def _put(x: jax.Array, sharding: NamedSharding) -> jax.Array:
    if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        data = jax.device_put(np.asarray(jax.random.key_data(x)), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
    return jax.device_put(np.asarray(x), sharding)
