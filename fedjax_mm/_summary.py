"""How a FedState or a saved one prints: a line for each part of the server's state and each cohort, and no numbers."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np


def summary(state: Any) -> str:
    """The lines of a FedState, or of what has its fields.

    Leaves may be arrays, also those that were given away, shapes, or traced.

    >>> from fedjax_mm import FedState
    >>> server = {"params": {"w": np.zeros((1000, 3)), "b": np.zeros(3)}, "opt": ()}
    >>> FedState(server, {"all": jax.ShapeDtypeStruct((3, 2), "float32")}, np.int32(7))
    FedState after 7 rounds
      server/params  2 arrays, 3,003 values, 24.0 kB
      server/opt     nothing
      clients/all    3 clients, each 1 array, 2 values, 8 bytes
    """
    parts = _parts(state.server) if isinstance(state.server, Mapping) else {"server": _size(state.server)}
    clients = state.clients if isinstance(state.clients, Mapping) else {}
    parts |= {f"clients/{name}": _of_clients(states) for name, states in clients.items()}
    width = max(map(len, parts), default=0)
    title = f"{type(state).__name__}{_after(state.round)}"
    return "\n".join([title, *(f"  {name:{width}}  {text}" for name, text in parts.items())])


def _parts(server: Mapping) -> dict[str, str]:
    return {f"server/{name}": _size(tree) for name, tree in server.items()}


def _after(round: Any) -> str:
    try:
        number = int(round)
    except Exception:  # traced, a shape, or given away: printing never fails
        return ""
    return f" after {number} round{'s' * (number != 1)}"


def _of_clients(states: Any) -> str:
    sizes = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(states)}
    if len(sizes) != 1 or sizes == {()}:
        return _size(states)
    ((number,),) = sizes
    return f"{number:,} client{'s' * (number != 1)}, each {_size(states, of=1)}"


def _size(tree: Any, of: int = 0) -> str:
    """How many arrays, values and bytes. of: how many first axes count something else."""
    leaves = jax.tree.leaves(tree)
    if not leaves:
        return "nothing"
    values = [math.prod(np.shape(leaf)[of:]) for leaf in leaves]
    size = sum(n * getattr(getattr(leaf, "dtype", None), "itemsize", 0) for n, leaf in zip(values, leaves, strict=True))
    plural = lambda number, word: f"{number:,} {word}{'s' * (number != 1)}"
    return f"{plural(len(leaves), 'array')}, {plural(sum(values), 'value')}, {_bytes(size)}"


def _bytes(size: int) -> str:
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size} bytes"
