"""Where a run's arrays are: on one device, on a mesh of devices, or, for the states of its clients, off the device."""

import dataclasses
import os
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fedjax_mm import stages
from fedjax_mm.data import FederatedData
from fedjax_mm.federate import Method, init_all_clients, init_server
from fedjax_mm.run import client_state
from fedjax_mm.types import FedState, Key, PyTree, RoundData


class States(Protocol):
    """Where the states of the clients are kept while a run goes on; no choice changes a bit of a result.

    `first` gives a method's first state, whole; `restored` a saved one, whose arrays were read where `first` has them;
    `enter` the one with which a stage goes on from the stage before. `load` takes a whole state and gives the one that
    the round of `data` takes; `exchange` does so for every further round, with what `prefetch` gave while the round
    before computed. `whole` has all clients again. A round's data goes through `placed`.
    """

    def first(self, method: Method, key: Key) -> FedState: ...

    def enter(self, state: FedState, method: Method, key: Key) -> FedState: ...

    def restored(self, first: FedState, saved: FedState) -> FedState: ...

    def placed(self, data: RoundData) -> RoundData: ...

    def load(self, state: FedState, data: RoundData) -> FedState: ...

    def prefetch(self, data: RoundData) -> Any: ...

    def exchange(self, state: FedState, done: RoundData, coming: RoundData | None, fetched: Any) -> FedState: ...

    def whole(self, state: FedState) -> FedState: ...


class OnDevice:
    """The states of all clients are on the device, or on every device of the mesh."""

    def __init__(self, mesh: Mesh | None):
        self.mesh = mesh

    def first(self, method: Method, key: Key) -> FedState:
        return replicated(jax.jit(method.init)(key), self.mesh)

    def enter(self, state: FedState, method: Method, key: Key) -> FedState:
        entered = _entered(state, method, key, self.mesh)
        draw = jax.jit(lambda key, server: init_all_clients(method, key, server))
        clients = replicated(draw(key, local(entered.server, self.mesh)), self.mesh)
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


class OffDevice:
    """The states of all clients are NumPy arrays in memory or in files; the device has those of the participants."""

    def __init__(self, mesh: Mesh | None, folder: str | os.PathLike | None):
        self.mesh, self.folder = mesh, folder
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
        return replicated(client_state.placed(data), self.mesh)

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

    def _on_device(self, state: FedState, clients: client_state.States) -> FedState:
        put = jax.device_put if self.mesh is None else lambda tree: replicated(tree, self.mesh)
        return dataclasses.replace(state, clients=put(clients))


def client_states(where: str | os.PathLike, mesh: Mesh | None) -> States:
    """Clients' states kept on the "device", in the memory of the "host", or in files of a folder."""
    if where == "device":
        return OnDevice(mesh)
    return OffDevice(mesh, None if where == "host" else where)


def replicated(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """The tree on every device of the mesh, over all processes; as it is where there is no mesh."""
    if mesh is None:
        return tree
    sharding = NamedSharding(mesh, PartitionSpec())
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


def _put(x: jax.Array, sharding: NamedSharding) -> jax.Array:
    if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        data = jax.device_put(np.asarray(jax.random.key_data(x)), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
    return jax.device_put(np.asarray(x), sharding)
