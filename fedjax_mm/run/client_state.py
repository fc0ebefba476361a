"""Clients' states kept off the device, in memory or in memory-mapped files; a round gets its participants' alone.

The states of all N clients are NumPy arrays, {cohort: leaves [N, ...]}, changed in place. A round takes and gives those
of its C participants, leaves [C, ...], and `CohortRound.place` says whose is which.
"""

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_mm import trees
from fedjax_mm.federate import Method, client_init, init_clients, init_server
from fedjax_mm.types import Cohort, PyTree, RoundData

BLOCK_BYTES = 1 << 24  # of states drawn on the device at once

States = Mapping[str, PyTree]


def init(method: Method, key: jax.Array, server: PyTree, folder: str | os.PathLike | None = None) -> States:
    """The states of all clients as `method.init(key)` draws them, bit for bit, a block of clients at a time.

    server: the server's state as the method or the stage begins. folder: of the files that hold the states, in place of
    those of an earlier run. None: they are in memory.

    Raises ValueError where a state holds random keys, OSError where the folder cannot hold the files.
    """
    return {name: _init_cohort(cohort, name, key, server, folder) for name, cohort in method.cohorts.items()}


def placed(data: RoundData) -> RoundData:
    """The round's data for the states that `read` gives: every participant has its own place."""
    place = lambda taken: np.arange(len(taken.index), dtype=np.int32)
    cohorts = {name: dataclasses.replace(taken, place=place(taken)) for name, taken in data.cohorts.items()}
    return data._replace(cohorts=cohorts)


def shapes(states: States, data: RoundData) -> States:
    """The shapes of what `read` gives."""
    struct = lambda x, taken: jax.ShapeDtypeStruct((len(taken.index), *x.shape[1:]), x.dtype)
    return {name: jax.tree.map(lambda x, t=taken: struct(x, t), states[name]) for name, taken in data.cohorts.items()}


def read(states: States, data: RoundData) -> States:
    """Copies of the participants' states, leaves [C, ...]; a padding client gets somebody's."""
    return {name: rows(states[name], np.asarray(taken.index)) for name, taken in data.cohorts.items()}


def write(states: States, data: RoundData, new: States) -> None:
    """Puts the new states of the round's participants, leaves [C, ...], in place of their old ones."""
    for name, taken in data.cohorts.items():
        _put(states[name], np.asarray(taken.index), new[name])


def read_again(states: States, data: RoundData, copies: States, changed: RoundData) -> None:
    """Brings what `read` gave up to date with what the round of `changed` wrote since."""
    for name, taken in data.cohorts.items():
        index = np.asarray(taken.index)
        (places,) = np.nonzero(np.isin(index, changed.cohorts[name].index))
        _put(copies[name], places, rows(states[name], index[places]))


def fill(states: States, whole: States) -> None:
    """Puts the states of all clients, as a checkpoint has them, in place of the old ones."""
    jax.tree.map(np.copyto, states, whole)


def holds_keys(method: Method) -> bool:
    """Whether a client's state holds random keys, which no NumPy array can."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    server = jax.eval_shape(lambda key: init_server(method, key), key)
    states = [jax.eval_shape(client_init(cohort), key, server) for cohort in method.cohorts.values()]
    return any(map(_keys_in, states))


def _keys_in(state: PyTree) -> list[str]:
    """Where a state, or its shapes, has random keys."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return [jax.tree_util.keystr(path) for path, x in leaves if jnp.issubdtype(x.dtype, jax.dtypes.prng_key)]


def rows(states: PyTree, index: np.ndarray) -> PyTree:
    """Copies of the states `index` of NumPy arrays [N, ...]; somebody's for a number that is no client's."""
    return jax.tree.map(lambda x: np.take(x, index, axis=0, mode="clip"), states)


def _put(states: PyTree, index: np.ndarray, new: PyTree) -> None:
    def put(x, mine):
        real = index < len(x)
        x[index[real]] = np.asarray(mine)[real]

    jax.tree.map(put, states, new)


def _init_cohort(cohort: Cohort, name: str, key: jax.Array, server: PyTree, folder: str | os.PathLike | None) -> PyTree:
    one = jax.eval_shape(client_init(cohort), key, server)
    for path in _keys_in(one):
        raise ValueError(
            f"a client's state of cohort {name} holds random keys at {path}, which cannot "
            "leave the device; put their jax.random.key_data there, or give client_state='device'"
        )
    leaves, structure = jax.tree.flatten(one)
    block = min(cohort.size, max(1, BLOCK_BYTES // max(1, trees.size_bytes(one))))
    draw = jax.jit(lambda first, server: init_clients(cohort, name, key, first + jnp.arange(block), server))
    cut = lambda first: [np.asarray(x)[: cohort.size - first] for x in jax.tree.leaves(draw(first, server))]
    blocks = map(cut, range(0, cohort.size, block))
    arrays = [jax.ShapeDtypeStruct((cohort.size, *x.shape), x.dtype) for x in leaves]
    states = _in_memory(arrays, blocks) if folder is None else _in_files(arrays, blocks, pathlib.Path(folder), name)
    return jax.tree.unflatten(structure, states)


def _in_memory(arrays: Sequence[jax.ShapeDtypeStruct], blocks: Iterable[Sequence[np.ndarray]]) -> list[np.ndarray]:
    states, first = [np.empty(x.shape, x.dtype) for x in arrays], 0
    for block in blocks:
        for x, some in zip(states, block, strict=True):
            x[first : first + len(some)] = some
        first += len(block[0]) if block else 0
    return states


def _in_files(
    arrays: Sequence[jax.ShapeDtypeStruct], blocks: Iterable[Sequence[np.ndarray]], folder: pathlib.Path, cohort: str
) -> list[np.ndarray]:
    """A file for each array, of this process's own, written and then mapped.

    A disk that is full shows while they are written; found full as a mapped page is written, it kills the process.
    """
    own = folder / f"process{jax.process_index()}" / cohort.replace(os.sep, "_")
    paths = [own / f"{i}.bin" for i in range(len(arrays))]
    try:
        own.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as files:
            for path in paths:  # not written over: what an earlier run returned may still be mapped to the old file
                path.unlink(missing_ok=True)
            opened = [files.enter_context(open(path, "wb")) for path in paths]
            for block in blocks:
                for file, some in zip(opened, block, strict=True):
                    file.write(some.tobytes())
            for file in opened:
                file.write(b"\0")  # an empty file cannot be mapped
        return [
            np.asarray(np.memmap(path, x.dtype, "r+", shape=x.shape)) for path, x in zip(paths, arrays, strict=True)
        ]
    except OSError as error:
        for path in paths:
            path.unlink(missing_ok=True)
        raise OSError(
            f"cannot hold the client states of {cohort} in {own}, {trees.size_bytes(arrays) / 1e6:.1f} MB "
            f"({error.strerror}); free some space, give another folder or keep them in memory (client_state='host')"
        ) from error
