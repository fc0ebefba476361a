"""Where a run's arrays are: on one device, on a mesh of devices, or, for the states of its clients, off the device."""

import dataclasses
import os
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from fedjax_mm import stages
from fedjax_mm.data import FederatedData
from fedjax_mm.federate import Method, init_all_clients, init_server
from fedjax_mm.run import client_state, spread
from fedjax_mm.run.spread import is_spread
from fedjax_mm.split import SPLIT, WHOLE
from fedjax_mm.split_rows import is_split
from fedjax_mm.streamed import is_streamed
from fedjax_mm.types import CohortRound, FedState, Key, PyTree, RoundData


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

    def shapes(self, clients: PyTree, data: RoundData) -> PyTree:
        return clients if self.mesh is None else shaped(clients, NamedSharding(self.mesh, WHOLE))


class OffDevice:
    """The states of all clients are NumPy arrays in memory or in files; the device has those of the participants.

    Several devices of one process have a part of the participants each. on_device: whether the examples of all clients
    are on the devices; if not, each gets those of its participants.
    """

    def __init__(self, mesh: Mesh | None, folder: str | os.PathLike | None, on_device: bool = True):
        self.mesh, self.folder = mesh, folder
        self.split, self.on_device = is_spread(mesh), on_device
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
        if self.mesh is None or not self.split:
            return replicated(client_state.placed(data), self.mesh)
        cohorts = {name: self.laid_out(name, taken, self.mesh) for name, taken in data.cohorts.items()}
        if self.on_device:
            return replicated(data._replace(cohorts=cohorts), self.mesh)
        rest = {name: dataclasses.replace(taken, arrays={}) for name, taken in cohorts.items()}
        placed = replicated(data._replace(cohorts=rest), self.mesh)
        whole = {name: dataclasses.replace(x, arrays=cohorts[name].arrays) for name, x in placed.cohorts.items()}
        return placed._replace(cohorts=whole)

    def load(self, state: FedState, data: RoundData) -> FedState:
        self.everybody = state.clients
        return self.on_devices(state, client_state.read(self.everybody, data))

    def prefetch(self, data: RoundData) -> client_state.States:
        return client_state.read(self.everybody, data)

    def exchange(
        self, state: FedState, done: RoundData, coming: RoundData | None, fetched: client_state.States
    ) -> FedState:
        client_state.write(self.everybody, done, jax.device_get(state.clients))
        if coming is None:
            return state
        client_state.read_again(self.everybody, coming, fetched, done)
        return self.on_devices(state, fetched)

    def whole(self, state: FedState) -> FedState:
        return dataclasses.replace(state, clients=self.everybody)

    def shapes(self, clients: PyTree, data: RoundData) -> PyTree:
        taking_part = client_state.shapes(clients, data)
        if self.mesh is None:
            return taking_part
        return shaped(taking_part, NamedSharding(self.mesh, SPLIT if self.split else WHOLE))

    def on_devices(self, state: FedState, clients: client_state.States) -> FedState:
        """The state with these of the clients, which are put on the device or devices."""
        if self.mesh is None:
            return dataclasses.replace(state, clients=jax.device_put(clients))
        put = spread.put if self.split else replicated
        return dataclasses.replace(state, clients=put(clients, self.mesh))

    def laid_out(self, name: str, taken: CohortRound, mesh: Mesh) -> CohortRound:
        """The participants of a cohort device by device, as their states are read."""
        entries = spread.by_device(np.arange(len(taken.index)), mesh.size)
        return spread.laid_out(taken, entries, mesh, not self.on_device)


def replicated(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """The tree on every device of the mesh, over all processes; as it is where there is no mesh, or it is split."""
    if mesh is None:
        return tree
    sharding = NamedSharding(mesh, WHOLE)
    stays = lambda x: is_split(x) or getattr(x, "sharding", None) == sharding
    return jax.tree.map(lambda x: x if stays(x) else _put(x, sharding), tree, is_leaf=is_split)


def local(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """The tree on this process's own device; NumPy arrays stay as they are."""
    if mesh is None:
        return tree
    return jax.tree.map(lambda x: x.addressable_data(0) if isinstance(x, jax.Array) else x, tree)


def on_mesh(data: FederatedData, mesh: Mesh | None, split_public: bool = False) -> FederatedData:
    """Data whose arrays are on the mesh already, so that no round moves them again.

    split_public: whether each device has a part of the public examples, and not all of them.
    """
    if mesh is None:
        return data
    put = lambda arrays: None if arrays is None else replicated(dict(arrays), mesh)
    cohorts, public = data.cohorts, data.public
    if data.on_device:
        cohorts = {name: dataclasses.replace(c, arrays=put(c.arrays)) for name, c in cohorts.items()}
    if public is None or not (split_public and is_spread(mesh)):
        return dataclasses.replace(data, cohorts=cohorts, public=put(public))
    split: Any = {name: x if is_streamed(x) else spread.split_rows(np.asarray(x), mesh) for name, x in public.items()}
    return dataclasses.replace(data, cohorts=cohorts, public=split)


def _entered(state: FedState, method: Method, key: Key, mesh: Mesh | None) -> FedState:
    """The state with which a stage begins, its clients' states still to be drawn."""
    server = jax.jit(lambda key: init_server(method, key))(key)
    fresh = FedState(replicated(server, mesh), {}, state.round)
    return stages.enter(state, fresh)


def shaped(tree: PyTree, sharding: NamedSharding) -> PyTree:
    """The shapes of a tree, placed so."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def _put(x: jax.Array, sharding: NamedSharding) -> jax.Array:
    if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        data = jax.device_put(np.asarray(jax.random.key_data(x)), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
    return jax.device_put(np.asarray(x), sharding)
