"""What a run's directory belongs to, in digests: the settings, the values of the data, the values of a state."""

import dataclasses
import enum
import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from fedjax_mm.data import FederatedData
from fedjax_mm.streamed import is_streamed
from fedjax_mm.types import Arrays, PyTree

LARGE_BYTES = 1 << 30
"""Of an array that is larger, rows that lie evenly over it and are so large together are looked at."""


def plain(value: Any, name: str) -> Any:
    """A setting as JSON has it, the same in every process of every day.

    Dataclasses and NamedTuples become mappings; types, dtypes, enumerations and functions become their names, paths
    text, arrays the digests of their values, and infinite numbers text. Raises ValueError, with the setting's name,
    where a value is none of these: an object that shows its address in memory would never be found the same again.

    >>> plain({"rate": np.float32(0.5), "widths": (8, 4), "dtype": np.dtype("float32")}, "config")
    {'rate': 0.5, 'widths': [8, 4], 'dtype': 'float32'}
    """
    if value is None or isinstance(value, str | bool | int):
        return value.name if isinstance(value, enum.Enum) else value
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else str(float(value))
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, np.dtype):
        return value.name
    if isinstance(value, type) or callable(value) and hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, np.ndarray | jax.Array):
        return f"{value.dtype}{list(value.shape)} {of_array(value)}"
    if dataclasses.is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    elif hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, Mapping):
        return {str(key): plain(one, f"{name}.{key}") for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one, f"{name}[{i}]") for i, one in enumerate(value)]
    if isinstance(value, set | frozenset):
        return sorted((plain(one, name) for one in value), key=repr)
    raise ValueError(
        f"{name} is {type(value).__name__}, which cannot be compared when the run goes on; give a number, a text, a "
        "list, a mapping or a dataclass of these"
    )


def of_data(data: FederatedData) -> dict[str, Any]:
    """The digests of all example arrays, by cohort and name, of who owns which rows, and of the public arrays."""
    known: dict[int, str] = {}  # cohorts may share arrays

    def of_arrays(arrays: Arrays) -> dict[str, str]:
        for array in arrays.values():
            if id(array) not in known:
                known[id(array)] = of_array(array)
        return {name: known[id(array)] for name, array in arrays.items()}

    digests = {}
    for name, cohort in data.cohorts.items():
        parts = (cohort.rows, cohort.offsets, cohort.test_rows, cohort.test_offsets)
        owners = _hashed(*(part.tobytes() for part in parts if part is not None))
        digests[name] = {**of_arrays(cohort.arrays), "who owns which rows": owners}
    return digests | ({} if data.public is None else {"public": of_arrays(data.public)})


def of_choice(rounds: Sequence[Mapping[str, Any]]) -> str:
    """The digest of the participants of several rounds, of which each is {cohort: numbers or Participants}."""
    fields = lambda who: who if hasattr(who, "_asdict") else (who,)
    parts = [(name, x) for chosen in rounds for name in sorted(chosen) for x in fields(chosen[name]) if x is not None]
    return _hashed(*(f"{name} {np.asarray(x).tolist()} ".encode() for name, x in parts))


def of_array(array: Any) -> str:
    """The digest of an array's type, shape and values; of a Streamed with a version, of that in place of its values.

    >>> of_array(np.arange(3)) == of_array(np.arange(3)), of_array(np.arange(3)) == of_array(np.arange(3.0))
    (True, False)
    """
    if is_streamed(array):
        if array.version:
            return _hashed(f"{array.dtype} {array.shape} {array.version}".encode(), array.index.tobytes())
        if array.nbytes <= LARGE_BYTES:
            array = array[:]
    rows: Any = slice(None)
    if np.ndim(array) and array.nbytes > LARGE_BYTES:
        number = max(1, LARGE_BYTES * len(array) // array.nbytes)
        rows = np.linspace(0, len(array) - 1, number).astype(np.int64)
        array, shape = array[rows], array.shape
    else:
        shape = np.shape(array)
    values = np.ascontiguousarray(array)
    return _hashed(f"{values.dtype} {shape}".encode(), _bytes(values))


def of_state(tree: PyTree) -> str:
    """The digest of the paths, types, shapes and values of all leaves. Leaves are whole on this process's devices."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return _of_leaves([(jax.tree_util.keystr(path), leaf) for path, leaf in leaves])


def of_parts(parts: Mapping[str, PyTree]) -> str:
    """A line "<digest>  <name>" for each part of a state. Leaves are whole on this process's devices.

    A leaf goes by its plain path, so that a part has the same digest as plain dicts, read without its method.

    >>> a, b = {"x": (np.zeros(2), np.ones(3))}, {"x": {"0": np.zeros(2), "1": np.ones(3)}}
    >>> of_parts({"server": a}) == of_parts({"server": b}), of_parts({"server": a}) == of_parts({"server": a["x"]})
    (True, False)
    """
    return "".join(f"{_of_leaves(_plain_paths(tree))}  {name}\n" for name, tree in parts.items())


def of_program(lowered: jax.stages.Lowered) -> str:
    """The digest of a lowered computation: its operations, shapes and constants, without names of files and lines."""
    module: Any = lowered.compiler_ir()
    text = _Text()
    module.operation.print(file=text, enable_debug_info=False)
    return text.total.hexdigest()


class _Text:
    """A file that keeps the digest of what is written to it, since a program's constants may be large."""

    def __init__(self) -> None:
        self.total = hashlib.sha256()

    def write(self, part: str | bytes) -> None:
        self.total.update(part.encode() if isinstance(part, str) else part)


def _plain_paths(tree: PyTree) -> list[tuple[str, Any]]:
    """("opt/0/mu", leaf) of every leaf, in the order of these paths."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return sorted(
        ((jax.tree_util.keystr(path, simple=True, separator="/"), x) for path, x in leaves), key=lambda x: x[0]
    )


def _of_leaves(leaves: Sequence[tuple[str, Any]]) -> str:
    total = hashlib.sha256()
    for path, leaf in leaves:
        if isinstance(leaf, jax.Array):
            if jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                leaf = jax.random.key_data(leaf)
            leaf = leaf.addressable_data(0)
        values = np.ascontiguousarray(leaf)
        total.update(f"{path} {values.dtype} {values.shape} ".encode())
        total.update(_bytes(values))
    return total.hexdigest()


def _bytes(values: np.ndarray) -> Any:
    """The bytes of a contiguous array, not copied; types that are none of NumPy's (bfloat16) have them too."""
    return values.reshape(-1).view(np.uint8)


def _hashed(*parts: Any) -> str:
    total = hashlib.sha256()
    for part in parts:
        total.update(part)
    return total.hexdigest()[:16]
