"""Arrays as they come in from outside: named, finite, and of numbers that the 32 bits of a device hold."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_mm.checks import check_array, check_mapping, say
from fedjax_mm.streamed import is_streamed
from fedjax_mm.types import Arrays

RESERVED = "mask"  # local_steps adds it to every batch
ACCEPTED = (np.bool_, np.integer, np.floating)
BLOCK = 1 << 22  # numbers looked at at a time, so that an array on disk never lies in memory as a whole


def check_arrays(owner: str, arrays: Any, num_classes: int | None, on_device: bool, seen: dict) -> dict[str, jax.Array]:
    """Returns the arrays of `owner` (a cohort, or "public") by name, each checked.

    seen: what was checked before, by name and identity, so that cohorts that are given one array share one copy.
    Raises ValueError where they are no mapping from name to array, or have no common length of at least 1.
    """
    arrays, found = check_mapping(f"arrays of {owner}", arrays, "name to array"), {}
    for key, value in arrays.items():
        if (key, id(value)) not in seen:
            seen[key, id(value)] = check_values(key, value, num_classes if key == "label" else None, on_device)
        found[key] = seen[key, id(value)]
    lengths = {key: len(array) for key, array in found.items()}
    if not lengths or len(set(lengths.values())) > 1:
        raise ValueError(f"the arrays of {owner} must have one common length, got {lengths}")
    if not 0 < max(lengths.values()) <= np.iinfo(np.int32).max:
        raise ValueError(f"the arrays of {owner} have {max(lengths.values())} examples; give from 1 to 2147483647")
    return found


def check_values(key: Any, value: Any, num_classes: int | None, on_device: bool) -> jax.Array:
    """Returns one array, on the device or where it lies. A nested list becomes an array; a Streamed stays as it is.

    Raises ValueError, naming the array and its first wrong row, for what is no number, not finite, or too large for
    the dtype that it has on the device, and for labels that are no classes.
    """
    _check_name(key)
    if is_streamed(value):
        return _check_streamed(key, value)
    if isinstance(value, Mapping):
        raise ValueError(f"array {key!r} is a mapping; to give each cohort its own, name the same cohorts in clients")
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        raise ValueError(f"array {key!r} has masked values; drop or fill them")
    array = value if isinstance(value, np.ndarray | jax.Array) else check_array(f"array {key!r}", value, (np.generic,))
    if np.ndim(array) == 0:
        raise ValueError(f"array {key!r} is a scalar; its first axis must count examples")
    _check_dtype(key, array.dtype)
    if len(array) and not array.size:
        raise ValueError(f"array {key!r} has the shape {array.shape}, without a value per example; leave it out")
    _check_range(key, array)
    if key == "label":
        _check_labels(array, num_classes)
    return jnp.asarray(array) if on_device else array  # pyright: ignore[reportReturnType] NumPy's, until it is gathered


def value_ranges(arrays: Arrays, rows: np.ndarray | slice) -> dict[str, tuple[float, float]]:
    """(least, greatest) of each array of integers, and of each [E] or [E, K] of floats, in these rows.

    What is left out is large, and any value is right: pictures in bytes [E, H, W, C], and floats of more axes.
    """
    found = {}
    for key, array in arrays.items():
        pictures = array.dtype == np.uint8 and array.ndim > 3
        few = jnp.issubdtype(array.dtype, jnp.floating) and array.ndim < 3
        if few or np.issubdtype(array.dtype, np.integer) and not pictures:
            host: Any = array if is_streamed(array) else np.asarray(array)
            ends = [(part.min(), part.max()) for part in _parts(host, rows)]
            if ends:
                found[key] = (min(least for least, _ in ends).item(), max(most for _, most in ends).item())
    return found


def _parts(host: np.ndarray, rows: np.ndarray | slice) -> Iterator[np.ndarray]:
    """These rows, of which BLOCK numbers at a time are copied."""
    picked = np.arange(len(host))[rows]
    step = max(1, BLOCK // max(1, host[:1].size))
    for start in range(0, len(picked), step):
        yield host[picked[start : start + step]]


def _check_name(key: Any) -> None:
    if key == RESERVED:
        raise ValueError(f"an array may not be called {RESERVED!r}: every batch has one of that name; rename yours")
    if not isinstance(key, str) or not key or "/" in key:
        raise ValueError(f"an array is called {say(key)}; give it a name of letters, without a slash")


def _check_streamed(key: str, value: Any) -> Any:
    """Rows of an array that is streamed are not looked at before they are used, and the host needs those it counts."""
    if key == "label" or key.startswith("has_") or value.ndim < 2:
        raise ValueError(f"array {key!r} is streamed, a number of each example; give it as an array in memory")
    _check_dtype(key, value.dtype)
    return value


def _check_dtype(key: str, dtype: np.dtype) -> None:
    if not any(jnp.issubdtype(dtype, kind) for kind in ACCEPTED):
        raise ValueError(
            f"array {key!r} has dtype {dtype}; give numbers (tokenise text, number the classes, pad what is ragged)"
        )
    if dtype.itemsize > 8:
        raise ValueError(f"array {key!r} has dtype {dtype}, which no device has; convert it to float32")


def _check_range(key: str, array: np.ndarray | jax.Array) -> None:
    """Floats must be finite where they lie and on the device; integers must keep their value there."""
    there = jax.dtypes.canonicalize_dtype(array.dtype)
    if array.dtype == there and not jnp.issubdtype(there, np.floating):
        return
    found = [
        start + np.flatnonzero(~_fits(block, there).reshape(len(block), -1).all(1)) for start, block in _blocks(array)
    ]
    unfit, host = np.concatenate([*found, np.zeros(0, np.int64)]), np.asarray(array)
    bad = [row for row in unfit if not np.isfinite(host[row]).all()]
    if bad:
        raise ValueError(
            f"array {key!r} has NaN or infinite values in {len(bad)} examples, first in row {bad[0]}; drop or fill them"
        )
    if len(unfit):
        raise ValueError(
            f"array {key!r} has {array.dtype} values in {len(unfit)} examples, first in row {unfit[0]}, that {there}, "
            "which a device computes with, does not hold; shift, scale or renumber them"
        )


def _fits(block: np.ndarray, there: np.dtype) -> np.ndarray:
    """Of each value whether it is finite, also as `there`, or keeps its value where it is an integer."""
    if jnp.issubdtype(there, np.floating):
        with np.errstate(over="ignore"):
            return np.isfinite(block.astype(there, copy=False))
    limits = jnp.iinfo(there)
    return (block >= limits.min) & (block <= limits.max)


def _blocks(array: np.ndarray | jax.Array) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, rows on the host), of BLOCK numbers or one row."""
    host = np.asarray(array)
    rows = max(1, BLOCK // max(1, host[:1].size))
    for start in range(0, len(host), rows):
        yield start, host[start : start + rows]


def _check_labels(labels: np.ndarray | jax.Array, num_classes: int | None) -> None:
    """Classes are counted where labels are [E]: these must be integers, in 0..num_classes-1 where that is given."""
    whole = jnp.issubdtype(labels.dtype, np.integer)
    if not whole and (num_classes is not None or labels.ndim == 1):
        raise ValueError(f"array 'label' has dtype {labels.dtype}; number the classes with integers from 0 upwards")
    if num_classes is not None and len(labels):
        host = np.asarray(labels)
        if host.min() < 0 or host.max() >= num_classes:
            raise ValueError(
                f"labels must lie in 0..{num_classes - 1}, got {host.min()}..{host.max()}; renumber the classes"
            )
