"""Clients spread over the devices of a mesh, as one process lays them out: who lies where, and with which rows."""

import dataclasses
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from fedjax_mm.split import NOWHERE, SPLIT
from fedjax_mm.split_rows import SplitRows
from fedjax_mm.types import CohortRound, PyTree

NOBODY = -1


def is_spread(mesh: Mesh | None) -> bool:
    """Whether arrays are split over a mesh: of several devices, all of which this process reaches."""
    return mesh is not None and mesh.size > 1 and jax.process_count() == 1


def by_device(entries: np.ndarray, devices: int, nobody: int = NOBODY) -> np.ndarray:
    """Entries [C], the longest first, dealt to the devices in turn and then listed device by device.

    >>> by_device(np.arange(5), devices=2).tolist()
    [0, 2, 4, 1, 3, -1]
    """
    full = np.pad(entries, (0, -len(entries) % devices), constant_values=nobody)
    return full.reshape(-1, devices).T.ravel()


def put(tree: PyTree, mesh: Mesh) -> PyTree:
    """Arrays [D n, ...] split over the mesh."""
    return jax.device_put(tree, NamedSharding(mesh, SPLIT))


def split_rows(x: np.ndarray, mesh: Mesh) -> SplitRows:
    """An array [P, ...] of which each device has as many rows, those of the last one padded."""
    flat = x.reshape(len(x), -1)
    padding = np.zeros((-len(x) % mesh.size, flat.shape[1]), x.dtype)
    return SplitRows(put(np.concatenate([flat, padding]) if len(padding) else flat, mesh), len(x), x.shape[1:], mesh)


def laid_out(
    taken: CohortRound, entries: np.ndarray, mesh: Mesh, examples: bool, place: np.ndarray | None = None
) -> CohortRound:
    """The participants `entries` [..., C'] of a round, in this order; NOBODY is a padding client.

    examples: whether the arrays are split too; they are then those of the participants alone, one after the other, and
    are put on the mesh. place [..., C]: the rows of the participants' states, where these lie elsewhere.
    """
    real, at = entries >= 0, np.maximum(entries, 0)

    def given(x, value):
        x = np.asarray(x)
        return np.where(real, np.take_along_axis(x, at, -1), value).astype(x.dtype)

    nobody = np.iinfo(np.int32).max  # the number of no client
    rows = np.where(real[..., None], np.take_along_axis(np.asarray(taken.rows), at[..., None], -2), 0).astype(np.int32)
    laid: dict[str, Any] = {
        "index": given(taken.index, nobody),
        "weight": given(taken.weight, 0),
        "count": given(taken.count, 0),
        "rows": rows,
        "work": None if taken.work is None else given(taken.work, 0),
        "place": None if place is None else given(place, NOWHERE),
        "split": "all" if examples else "states",
    }
    if examples:
        each = rows.shape[-1]
        own = lambda x: np.asarray(x).reshape(-1, each, *x.shape[1:])[at].reshape(-1, *x.shape[1:])
        laid["arrays"] = {name: put(own(x), mesh) for name, x in taken.arrays.items()}
        laid["rows"] = np.arange(rows.size, dtype=np.int32).reshape(rows.shape) % (rows.size // mesh.size)
    return dataclasses.replace(taken, **laid)
