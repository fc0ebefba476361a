"""Clients' states on the devices of one process, a part of them on each, and the choice of where states are kept."""

import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any, cast

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from fedjax_mm.data import FederatedData
from fedjax_mm.run import client_state, spread
from fedjax_mm.run.placement import OffDevice, OnDevice, States, shaped
from fedjax_mm.run.spread import NOBODY, is_spread
from fedjax_mm.split import NOWHERE, SPLIT
from fedjax_mm.stages import Stage
from fedjax_mm.types import CohortRound, FedState, PyTree, RoundData


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
        return self.on_devices(state, taken)

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
        return shaped(stored, NamedSharding(cast(Mesh, self.mesh), SPLIT))

    def laid_out(self, name: str, taken: CohortRound, mesh: Mesh) -> CohortRound:
        index, stored, row = np.asarray(taken.index), self.stored[name], self.row[name]
        (*calls, places), total = index.shape, len(row)
        lay = functools.partial(spread.laid_out, taken, mesh=mesh, examples=not self.on_device)
        if places < total:
            row = np.append(row, NOWHERE).astype(np.int32)  # that of nobody
            return lay(np.tile(spread.by_device(np.arange(places), mesh.size), (*calls, 1)), place=row[index])
        entry = np.full((*calls, total + 1), NOBODY)
        np.put_along_axis(entry, index, np.broadcast_to(np.arange(places), index.shape), -1)
        entry[..., total] = NOBODY
        return lay(entry[..., stored])


def client_states(where: str | os.PathLike, mesh: Mesh | None, plan: Sequence[Stage], data: FederatedData) -> States:
    """Clients' states kept on the "device", in the memory of the "host", or in files of a folder.

    A mesh of one process has a part of them on each device, unless they hold random keys.
    """
    if where != "device":
        return OffDevice(mesh, None if where == "host" else where, data.on_device)
    if mesh is None or not is_spread(mesh) or any(client_state.holds_keys(stage.method) for stage in plan):
        return OnDevice(mesh)
    return OverDevices(mesh, {name: cohort.counts for name, cohort in data.cohorts.items()}, data.on_device)
