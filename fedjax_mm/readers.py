"""Rows read by number in threads, with the batches that come next made ready.

They are threads, not processes, because Pillow decodes without Python's lock: on two cores, 640 x 480 photos come in at
1,217 a second in two threads and at 941 in two processes, whose rows have to be copied over (646 and 526 in one).
"""

import functools
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np

NOBODY = -1  # the number of a row of zeros, which is not read
AHEAD = 2  # batches that are made ready while a step computes
KEPT_BYTES = 1 << 28  # of rows that a reader keeps as they were decoded


class _Batch(NamedTuple):
    """Rows that threads are filling in."""

    rows: np.ndarray
    parts: Sequence[Future]


class Reader:
    """Reads rows by their number in threads, keeps some as they are, and has the batches that were announced ready.

    read: the row of a number, of shape `shape` and type `dtype`; several threads call it. threads: how many; None: as
    many as there are processors. kept_bytes: of rows that are kept once they are read, the first ones that were asked
    for; the others are read anew each time.

    >>> reader = Reader(lambda number: np.full(2, number), (2,), np.int32)
    >>> reader.batch(np.array([4, 1, -1]), size=2).tolist()  # the next batch is the row -1, a row of zeros
    [[4, 4], [1, 1]]
    """

    def __init__(
        self,
        read: Callable[[int], np.ndarray],
        shape: tuple[int, ...],
        dtype: Any,
        threads: int | None = None,
        kept_bytes: int = KEPT_BYTES,
    ):
        self.read, self.shape, self.dtype = read, shape, np.dtype(dtype)
        self.threads, self.kept_bytes = threads or os.cpu_count() or 1, kept_bytes
        self.waited = 0.0
        """Seconds that batches were waited for, over all devices."""
        self._kept: dict[int, np.ndarray] = {}
        self._ready: OrderedDict[bytes, _Batch] = OrderedDict()
        self._lock = threading.Lock()

    @functools.cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.threads, "fedjax_mm-rows")

    def batch(self, numbers: np.ndarray, size: int) -> np.ndarray:
        """The rows [..., size, *shape] of the first `size` of numbers [..., n size]; the others are to be read next."""
        now, *later = (numbers[..., at : at + size] for at in range(0, numbers.shape[-1], size))
        with self._lock:
            asked = self._asked(now)
            self._ready.pop(now.tobytes(), None)
            for one in later:
                if (one != NOBODY).any():
                    self._ready[one.tobytes()] = self._asked(one)
                    self._ready.move_to_end(one.tobytes())
            while len(self._ready) > 2 * AHEAD * jax.local_device_count():  # announced, and then not asked for
                self._ready.popitem(last=False)
        since = time.perf_counter()
        for part in asked.parts:
            part.result()
        self.waited += time.perf_counter() - since
        return asked.rows.reshape(*now.shape, *self.shape)

    def _asked(self, numbers: np.ndarray) -> _Batch:
        """The batch that was announced, or else one that threads begin to fill in now."""
        known = self._ready.get(numbers.tobytes())
        if known is not None:
            return known
        rows, flat = np.empty((numbers.size, *self.shape), self.dtype), numbers.ravel()
        order = np.argsort(flat, kind="stable")
        same = np.split(order, np.flatnonzero(np.diff(flat[order])) + 1)  # the places of each number: it is read once
        parts = [same[i :: self.threads] for i in range(min(self.threads, len(same)))]
        return _Batch(rows, [self._pool.submit(self._fill, rows, flat, part) for part in parts])

    def _fill(self, rows: np.ndarray, numbers: np.ndarray, part: Sequence[np.ndarray]) -> None:
        for places in part:
            rows[places] = self._row(int(numbers[places[0]]))

    def _row(self, number: int) -> np.ndarray | int:
        if number == NOBODY:
            return 0
        if (kept := self._kept.get(number)) is not None:
            return kept
        row = np.asarray(self.read(number), self.dtype)
        if row.shape != self.shape:
            raise ValueError(f"row {number} was read with the shape {row.shape}; all rows must have {self.shape}")
        if (len(self._kept) + 1) * row.nbytes <= self.kept_bytes:
            self._kept[number] = row if row.flags.owndata else row.copy()
        return row
