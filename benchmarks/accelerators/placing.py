"""How `run.train` lays the arguments of a round on the devices of a mesh, in shapes."""

import dataclasses
import math
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from benchmarks.accelerators.rows import Shape, Workload
from fedjax_mm.split import SPLIT, WHOLE
from fedjax_mm.split_rows import SplitRows
from fedjax_mm.types import CohortRound, FedState, Key, PyTree, RoundData


def placed(workload: Workload, key: Key, mesh: Mesh, off_device: bool) -> tuple[FedState, RoundData, Key]:
    """The arguments of the workload's round on the mesh: clients' states split, all else on every device.

    off_device: whether the examples and the public ones are split too, as of data with on_device=False and of
    split_public=True.
    """
    everywhere = lambda tree: _at(tree, mesh, whole=True)
    state, data = workload.state, workload.data
    if mesh.size == 1:
        return everywhere((state, data, key))
    cohorts, clients = {}, {}
    for name, taken in data.cohorts.items():
        size = workload.method.cohorts[name].size
        clients[name] = jax.tree.map(lambda x, n=size: _rows(x, _full(n, mesh)), state.clients[name])
        cohorts[name] = _split(taken, size, mesh, off_device)
    public: Any = everywhere(data.public)
    if off_device and data.public is not None:
        flat = lambda x: Shape((_full(x.shape[0], mesh), math.prod(x.shape[1:])), x.dtype)
        part = lambda x: _at(flat(x), mesh, whole=False)
        public = {name: SplitRows(part(x), x.shape[0], x.shape[1:], mesh) for name, x in data.public.items()}
    state = dataclasses.replace(everywhere(state), clients=_at(clients, mesh, whole=False))
    return state, RoundData(cohorts, public), everywhere(key)


def _split(taken: CohortRound, size: int, mesh: Mesh, examples: bool) -> CohortRound:
    """A cohort's round as the devices get it."""
    places = taken.index.shape[0]
    fields: Any = ("index", "weight", "rows", "count")
    given: dict[str, Any] = {field: _rows(getattr(taken, field), _full(places, mesh)) for field in fields}
    if places < size:
        given["place"] = given["index"]
    given, arrays = _at(given, mesh, whole=True), taken.arrays
    if examples:
        arrays = {name: _rows(x, _full(places, mesh) * taken.rows.shape[1]) for name, x in arrays.items()}
    given["arrays"] = _at(arrays, mesh, whole=not examples)
    return dataclasses.replace(taken, **given, split="all" if examples else "states")


def _full(number: int, mesh: Mesh) -> int:
    return -(-number // mesh.size) * mesh.size


def _rows(x: Any, number: int) -> Shape:
    return Shape((number, *x.shape[1:]), x.dtype)


def _at(tree: PyTree, mesh: Mesh, whole: bool) -> PyTree:
    sharding = NamedSharding(mesh, WHOLE if whole else SPLIT)
    return jax.tree.map(lambda x: Shape(np.shape(x), x.dtype, sharding=sharding), tree)
