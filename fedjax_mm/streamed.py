"""Arrays that stay on a disk or in the host's memory: the rows of a step are read when the step asks for them.

A round of streamed arrays is the same program as one of arrays on the device, but that a step gets its batch from the
host: `jax.pure_callback` sends it the row numbers of the batch and of the next ones, and gets the batch. Threads read
and decode the batches that come next while the device computes (see readers.py), so that a step waits only where
reading is slower than computing, and the host holds a few batches, however many examples there are. The order of the
examples is drawn on the device as always: a loader that iterates in an order of its own (grain, tf.data) does not fit.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_mm.checks import check_callable, check_whole
from fedjax_mm.readers import AHEAD, KEPT_BYTES, NOBODY, Reader
from fedjax_mm.types import Arrays


@jax.tree_util.register_static
class Streamed:
    """An array [E, ...] of which a step reads the rows that it needs; `local.take` does so, inside of a jitted round.

    It is an array of `FederatedData.from_arrays` and of test sets. Slices and arrays of row numbers give NumPy arrays:

    >>> x = of_array(np.arange(10).reshape(5, 2))
    >>> len(x), x.shape, x[1:3].tolist()
    (5, (5, 2), [[2, 3], [4, 5]])
    >>> jax.jit(lambda rows: x.rows(rows))(jnp.array([4, 0])).tolist()
    [[8, 9], [0, 1]]
    """

    def __init__(self, reader: Reader, index: np.ndarray, version: str = ""):
        """index [E]: the number by which the reader knows each row, or -1 for a row of zeros. version: tells these rows
        from others without reading them; "" where they are to be read for it."""
        self.reader, self.index, self.version = reader, np.asarray(index, np.int64), version
        self.shape, self.dtype = (len(self.index), *reader.shape), reader.dtype

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """The number of values."""
        return int(np.prod(self.shape))

    @property
    def nbytes(self) -> int:
        """The bytes that all rows would take."""
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, rows: Any) -> np.ndarray:
        numbers = self.index[rows]
        return self.reader.batch(numbers.ravel(), max(1, numbers.size)).reshape(*numbers.shape, *self.shape[1:])

    def view(self, rows: Any) -> "Streamed":
        """The same rows in another order, still not read. rows: what an index [E] takes."""
        return Streamed(self.reader, self.index[rows], self.version)

    def rows(self, rows: jax.Array, coming: jax.Array | None = None) -> jax.Array:
        """Rows [B] of the array: [B, ...], those beyond its ends being the last or first one, as of `local.take`.

        coming: [n B] int, the rows of the next n batches, which threads read meanwhile; -1 stands for none.
        """
        flat = jnp.clip(rows.ravel(), 0, len(self) - 1).astype(jnp.int32)
        asked = flat if coming is None else jnp.concatenate([flat, coming])
        shape = jax.ShapeDtypeStruct((len(flat), *self.shape[1:]), self.dtype)
        read = functools.partial(self._called, len(flat))
        return jax.pure_callback(read, shape, asked, vmap_method="expand_dims").reshape(*rows.shape, *self.shape[1:])

    def _called(self, size: int, rows: Any) -> np.ndarray:
        rows = np.asarray(rows)  # on the host; any other work of JAX inside of a callback may block it for ever
        return self.reader.batch(np.where(rows < 0, NOBODY, self.index[rows]), size)


def blocks(arrays: Mapping[str, Any], size: int = 256) -> Iterator[tuple[dict[str, Any], int]]:
    """(`size` rows of all arrays, how many of them count), from the first row to the last; some may be Streamed.

    Behind the last row it is repeated, so that all blocks have one shape. Where there are fewer rows than `size`, a
    block has as many as there are.

    >>> [(some["x"].tolist(), real) for some, real in blocks({"x": of_array(np.arange(3)[:, None])}, size=2)]
    [([[0], [1]], 2), ([[2], [2]], 1)]
    """
    total = len(next(iter(arrays.values())))
    size = min(size, total)
    for start in range(0, total, size):
        coming = min(-(-(total - start) // size), 1 + AHEAD) * size
        rows = np.minimum(np.arange(start, start + coming), total - 1)
        take = lambda x, rows=rows: x.reader.batch(x.index[rows], size) if is_streamed(x) else x[rows[:size]]
        yield {k: take(x) for k, x in arrays.items()}, min(size, total - start)


def is_streamed(x: Any) -> bool:
    """Whether this is a Streamed; as `is_leaf` it keeps one whole."""
    return isinstance(x, Streamed)


def streams(tree: Any) -> list[Streamed]:
    """Every Streamed of a tree of arrays."""
    return [x for x in jax.tree.leaves(tree, is_leaf=is_streamed) if is_streamed(x)]


def of_rows(
    read: Callable[[int], np.ndarray],
    number: int,
    shape: tuple[int, ...],
    dtype: Any,
    *,
    index: np.ndarray | None = None,
    version: str = "",
    threads: int | None = None,
    kept_bytes: int = KEPT_BYTES,
) -> Streamed:
    """The array of read(0) to read(number - 1), each of `shape` and `dtype`.

    index: [E] of these numbers, so that what several examples share is read and kept once; None: each is an example.
    version: text that changes where the rows do, such as `images.listing` of their files; by it a run's directory knows
    its data. threads, kept_bytes: of the Reader. Raises ValueError where an argument is not what it should be.

    >>> pictures = of_rows(lambda number: np.full((2, 2), number), 3, (2, 2), np.uint8, index=np.array([0, 0, 2]))
    >>> pictures.shape, pictures[:].max((1, 2)).tolist()
    ((3, 2, 2), [0, 0, 2])
    """
    check_callable("read", read, "(number) -> a row")
    number = check_whole("number", number, 1)
    threads = None if threads is None else check_whole("threads", threads, 1)
    index = np.arange(number) if index is None else np.asarray(index)
    if index.ndim != 1 or not len(index) or index.dtype.kind not in "iu" or index.min() < -1 or index.max() >= number:
        raise ValueError(f"index must be [E], whole numbers from -1 to {number - 1}")
    dtype = jax.dtypes.canonicalize_dtype(dtype)
    return Streamed(Reader(read, tuple(shape), dtype, threads, kept_bytes), index, version)


def of_array(array: np.ndarray, threads: int | None = None) -> Streamed:
    """An array in memory or a memory map [E, ...], whose rows stay there.

    >>> of_array(np.zeros((5, 2)))[[0, 4]].dtype  # as on the device
    dtype('float32')
    """
    return of_rows(array.__getitem__, len(array), array.shape[1:], array.dtype, threads=threads, kept_bytes=0)


def picked(array: Any, rows: np.ndarray) -> Any:
    """Rows of an array [E, ...]: a NumPy array, or of a Streamed another one."""
    return array.view(rows) if is_streamed(array) else np.asarray(array)[rows]


def concatenated(parts: Sequence[Any]) -> Streamed:
    """Arrays [E_i, ...] one after the other, none of which is read yet; some may be Streamed.

    >>> concatenated([of_array(np.ones((2, 1))), np.zeros((1, 1))])[:].tolist()
    [[1.0], [1.0], [0.0]]
    """
    starts, like = np.cumsum([0, *map(len, parts)]), next(x for x in parts if is_streamed(x))

    def read(number: int) -> np.ndarray:
        at = int(np.searchsorted(starts, number, "right")) - 1
        return parts[at][number - int(starts[at])]

    return of_rows(read, int(starts[-1]), like.shape[1:], like.dtype, kept_bytes=0)


def lengthened(arrays: Arrays, rows: jax.Array, size: int) -> jax.Array:
    """Rows [n] of the arrays, of which batches of `size` are read in this order; with what `coming` needs behind them.

    They stay as they are where no array is streamed.
    """
    return jnp.pad(rows, (0, AHEAD * size), constant_values=NOBODY) if streams(arrays) else rows


def coming(arrays: Arrays, rows: jax.Array, start: jax.Array, size: int) -> jax.Array | None:
    """[AHEAD size] int: the rows after the `size` that begin at `start` [], of rows that `lengthened` gave.

    None where no array is streamed.

    >>> arrays = {"x": of_array(np.zeros((9, 1)))}
    >>> coming(arrays, lengthened(arrays, jnp.array([5, 6, 7, 8]), 2), 0, size=2).tolist()
    [7, 8, -1, -1]
    """
    return jax.lax.dynamic_slice(rows, (start + size,), (AHEAD * size,)) if streams(arrays) else None


def following(x: Any, start: jax.Array, size: int) -> jax.Array | None:
    """[AHEAD size] int: the rows after the `size` that begin at `start` [], of an array that is read in blocks from its
    first row to its last, of which the last block overlaps the one before. None where the array is not streamed."""
    if not is_streamed(x):
        return None
    starts = start + size * jnp.arange(1, AHEAD + 1)
    rows = jnp.minimum(starts, len(x) - size)[:, None] + jnp.arange(size)[None]
    return jnp.where((starts < len(x))[:, None], rows, NOBODY).ravel()


def seconds_waited(arrays: Any) -> float:
    """Seconds that batches of these arrays were waited for since they were made."""
    readers: Mapping[int, Reader] = {id(x.reader): x.reader for x in streams(arrays)}
    return sum(reader.waited for reader in readers.values())
