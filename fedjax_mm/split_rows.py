"""An array that no device holds whole: rows are brought from the devices that have them when they are asked for.

Inside of a map over clients each device asks for rows of its own, and all of them must ask equally often: a loop whose
length differs between clients runs as often as the longest, which `in_step` says.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from fedjax_mm.clients import AXIS
from fedjax_mm.types import PyTree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SplitRows:
    """An array [P, ...] split over the devices of a mesh; `local.take` reads it.

    >>> rows = SplitRows(jnp.zeros((8, 6)), total=7, row=(3, 2), mesh=None)
    >>> len(rows), rows.shape
    (7, (7, 3, 2))
    """

    part: jax.Array
    """[D n, values of a row], n rows on each of the D devices; inside of a map over clients the device's own, [n, ...].
    Rows are flat: to gather pictures, a TPU first copies all of them into another layout."""
    total: int = dataclasses.field(metadata={"static": True})
    """P: the rows that count; those after them are padding."""
    row: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    """The shape of a row."""
    mesh: Mesh | None = dataclasses.field(metadata={"static": True})
    inside: bool = dataclasses.field(default=False, metadata={"static": True})
    """Whether this is inside of a map over clients."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(P, ...)."""
        return (self.total, *self.row)

    @property
    def dtype(self) -> Any:
        """Of the numbers."""
        return self.part.dtype

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    def __len__(self) -> int:
        return self.total


def is_split(x: Any) -> bool:
    """Whether this is a SplitRows; as `is_leaf` it keeps one whole."""
    return isinstance(x, SplitRows)


def entered(tree: PyTree) -> PyTree:
    """The tree inside of a map over clients, where every array that is split is the device's own part."""
    enter = lambda x: dataclasses.replace(x, inside=True) if is_split(x) else x
    return jax.tree.map(enter, tree, is_leaf=is_split)


def specs_of(tree: PyTree) -> PyTree:
    """How the tree lies on the mesh, as shard_map takes it."""
    return jax.tree.map(lambda x: PartitionSpec(AXIS) if is_split(x) else PartitionSpec(), tree, is_leaf=is_split)


def in_step(trips: jax.Array | int, arrays: PyTree) -> jax.Array | int:
    """How often a loop that reads these arrays must run where a client needs `trips` []: as often on all devices."""
    reads = any(is_split(x) and x.inside for x in jax.tree.leaves(arrays, is_leaf=is_split))
    return jax.lax.pmax(trips, AXIS) if reads and not isinstance(trips, int) else trips


def read_rows(x: SplitRows, rows: jax.Array, take: Callable[[jax.Array, jax.Array], jax.Array]) -> jax.Array:
    """Rows [B] of the array, bit for bit: [B, ...]. take(array, rows) reads rows of a device's own part."""

    def here(part: jax.Array, rows: jax.Array) -> jax.Array:
        each, asked = len(part), jax.lax.all_gather(rows, AXIS)  # [D, B]
        mine = take(part, jnp.clip(asked.ravel() - jax.lax.axis_index(AXIS) * each, 0, each - 1))
        sent = jax.lax.all_to_all(mine.reshape(*asked.shape, *part.shape[1:]), AXIS, 0, 0)  # from every device
        return sent[rows // each, jnp.arange(len(rows))]

    rows = jnp.clip(rows, 0, x.total - 1)
    specs = (PartitionSpec(AXIS), PartitionSpec())
    read = here
    if not x.inside:
        read = jax.shard_map(here, mesh=x.mesh, in_specs=specs, out_specs=PartitionSpec(), check_vma=False)
    return read(x.part, rows).reshape(len(rows), *x.row)
