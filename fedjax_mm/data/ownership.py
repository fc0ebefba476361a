"""Which client owns which rows, in the forms that `FederatedData.from_arrays` takes and in the one that it keeps.

The form that it keeps is ragged: `rows` of all clients one after the other, and `offsets` [N + 1], so that client j
owns rows[offsets[j]:offsets[j + 1]].
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from fedjax_mm.checks import check_array, check_whole, say

Owners = np.ndarray | jax.Array | Sequence  # a client number per example [E], or a list of row numbers per client
MOST = 1 << 20  # clients, where there are fewer examples: beyond it a number is an identifier and no count
CURE = "give a whole client number per example, or a list of row numbers per client"


def name_cohorts(
    clients: Mapping[str, Owners] | Owners, test: Mapping[str, Owners] | Owners | None
) -> tuple[Mapping[str, Owners], Mapping[str, Owners]]:
    """Returns both as mappings from cohort to owners; a single cohort is called "all", and no `test` is no cohort.

    Raises ValueError for what cannot be the name of a cohort, and for a cohort in `test` that is not in `clients`.
    """
    names = list(clients) if isinstance(clients, Mapping) else ["all"]
    if not names:
        raise ValueError("clients names no cohort; give at least one")
    for name in names:
        if not isinstance(name, str) or not name.strip(". ") or "/" in name or name == "server":
            raise ValueError(
                f"clients names a cohort {name!r}; give a name of letters that is not 'server', without a slash, or, "
                "for a single cohort, a list of row numbers per client"
            )
    if isinstance(test, Mapping):
        if unknown := sorted(map(str, set(test) - set(names))):
            raise ValueError(f"test names cohorts {unknown}; the data has {sorted(names)}")
    elif test is not None:
        if isinstance(clients, Mapping):
            raise ValueError(f"clients names cohorts {sorted(names)}; give test as a mapping from cohort too")
        test = {"all": test}
    return clients if isinstance(clients, Mapping) else {"all": clients}, test or {}


def read_owners(name: str, owned: Owners, length: int, nobody: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Returns (rows, offsets) of a cohort with `length` examples.

    nobody: whether the client number -1 may stand for an example that nobody owns. Raises ValueError, naming the
    cohort, for a row or a client number out of range, and where nobody owns an example.
    """
    rows, counts = _count_rows(name, owned, length, nobody)
    if counts.sum() == 0:
        raise ValueError(f"no client of {name} owns an example; give it some, or leave the cohort out")
    return rows, np.concatenate([[0], np.cumsum(counts)])


def read_test_owners(
    name: str, owned: Owners, length: int, train_rows: np.ndarray, train_offsets: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (rows, offsets) of the clients' test rows, which no client of the cohort may train on.

    Raises ValueError, naming the cohort, for another number of clients than in training, a row or a client number out
    of range, a row that is also a training row, and where nobody has a test row.
    """
    clients = len(train_offsets) - 1
    rows, counts = _count_rows(name, owned, length, True, clients, "test rows")
    if len(counts) != clients:
        raise ValueError(
            f"test has {len(counts)} clients of {name}, and clients has {clients}; give each its test rows"
        )
    if counts.sum() == 0:
        raise ValueError(f"no client of {name} has a test row; give it some, or leave the cohort out of test")
    offsets = np.concatenate([[0], np.cumsum(counts)])
    shared = np.flatnonzero(np.isin(rows, train_rows))
    if len(shared):
        row = rows[shared[0]]
        owner = lambda bounds, place: int(np.searchsorted(bounds, place, side="right")) - 1
        trains = owner(train_offsets, np.flatnonzero(train_rows == row)[0])
        raise ValueError(
            f"row {row} of {name} is a test row of client {owner(offsets, shared[0])} and a training row of client "
            f"{trains}; take it out of one of the two"
        )
    return rows, offsets


def _count_rows(
    name: str, owned: Any, length: int, nobody: bool, clients: int = 0, kind: str = "rows"
) -> tuple[np.ndarray, np.ndarray]:
    """(rows, [N] how many of them each client owns); N is at least `clients` where the form leaves it open."""
    owner, parts = _read_form(name, owned)
    if owner is not None:
        if len(owner) != length:
            raise ValueError(f"{len(owner)} client numbers for {length} examples of {name}; give one for each")
        if length and owner.min() < (-1 if nobody else 0):
            least = "be below -1 (nobody's)" if nobody else "be negative"
            raise ValueError(f"client numbers of {name} must not {least}, got {owner.min()}")
        if length and owner.max() >= max(MOST, length):
            raise ValueError(
                f"client numbers of {name} go up to {owner.max()} for {length} examples; number its clients 0, 1, ..., "
                "with np.unique(numbers, return_inverse=True)[1]"
            )
        owner = owner.astype(np.int64)
        rows = np.argsort(owner, kind="stable")
        rows = rows[np.count_nonzero(owner < 0) :]
        return rows.astype(np.int32), np.bincount(owner[owner >= 0], minlength=clients)
    parts = [_read_rows(kind, j, name, part) for j, part in enumerate(parts)]
    counts = np.array([len(part) for part in parts], np.int64)
    rows = np.concatenate(parts) if parts else np.zeros(0, np.int64)
    if len(rows) and (rows.min() < 0 or rows.max() >= length):
        raise ValueError(f"clients of {name} own {kind} {rows.min()}..{rows.max()}, but it has rows 0..{length - 1}")
    return rows.astype(np.int32), counts


def _read_form(name: str, owned: Any) -> tuple[np.ndarray | None, list]:
    """(client numbers [E], []) or (None, a list of row numbers per client): the form in which owners are given."""
    if isinstance(owned, Mapping | str | bytes) or not (isinstance(owned, Iterable) or hasattr(owned, "__array__")):
        raise ValueError(f"clients of {name} is {say(owned)}; {CURE}")
    if hasattr(owned, "__array__"):  # of NumPy, JAX, pandas, ...
        array = np.asarray(owned)
        if array.ndim in (1, 2) and array.dtype.kind in "iu":
            return (array, []) if array.ndim == 1 else (None, list(array))
        if array.ndim != 1 or array.dtype.kind != "O":
            raise ValueError(
                f"clients of {name} is {say(array)}; {CURE}, which np.unique(names, return_inverse=True)[1] makes of "
                "other names"
            )
        owned = array
    items = list(owned)
    if items and all(isinstance(one, str) or (not isinstance(one, Sequence) and np.ndim(one) == 0) for one in items):
        return np.array([check_whole(f"a client number of {name}", one, -1, most=None) for one in items]), []
    return None, items


def _read_rows(kind: str, client: int, name: str, part: Any) -> np.ndarray:
    if not (isinstance(part, np.ndarray) and part.ndim == 1 and part.dtype.kind in "iu"):  # as most are, of a million
        part = check_array(f"{kind} of client {client} of {name}", part, (np.integer,), "[M]")
    return part.astype(np.int64)
