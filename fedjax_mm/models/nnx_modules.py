"""nnx modules as a `Model`. `flax.nnx` is imported by whoever makes such a module, and never by this library."""

import sys
from types import ModuleType
from typing import Any

import jax

from fedjax_mm.checks import say
from fedjax_mm.models.layers import Model
from fedjax_mm.models.paths import flatten, nest
from fedjax_mm.types import Key, PyTree


def _nnx() -> ModuleType | None:
    return sys.modules.get("flax.nnx")


def is_one(value: Any) -> bool:
    """Whether this is an nnx module, or a function or class that may make one."""
    nnx = _nnx()
    if nnx is None:
        return False
    pair = all(callable(getattr(value, name, None)) for name in ("init", "apply"))
    makes_one = callable(value) and not pair and (not isinstance(value, type) or issubclass(value, nnx.Module))
    return isinstance(value, nnx.Module) or makes_one


def plain(tree: PyTree) -> PyTree:
    """An nnx State as nested dicts of arrays; what lies in a list goes by "0", "1", ... Other trees as they are."""
    nnx = _nnx()
    if nnx is None or not any(isinstance(x, nnx.Variable) for x in jax.tree.leaves(tree, is_leaf=_is_variable)):
        return tree
    return nest({_text(path): variable[...] for path, variable in nnx.to_flat_state(tree)})


def as_model(given: Any, name: str) -> tuple[Model, PyTree | None]:
    """(the Model of an nnx module, its own weights) or, of a function that makes one, (its Model, None).

    The module runs in evaluation mode. Raises ValueError for a function that makes none, and for a module that has
    running statistics.
    """
    nnx = _nnx()
    assert nnx is not None
    is_module = isinstance(given, nnx.Module)
    refused = f"{name} is {type(given).__name__} {say(given)}, which called with rngs makes no nnx module"
    try:
        module = nnx.clone(given) if is_module else nnx.eval_shape(lambda: given(rngs=nnx.Rngs(0)))
    except Exception as error:
        raise ValueError(f"{refused} ({_line(error)})") from error
    if not isinstance(module, nnx.Module):
        raise ValueError(f"{refused}, but {say(module)}")
    module.eval()
    graph, like, others = nnx.split(module, nnx.Param, ...)
    unfit = [kind for kind in _kinds(nnx, others) if issubclass(kind, nnx.BatchStat)]
    unfit += [kind for kind in _kinds(nnx, others) if not is_module and not issubclass(kind, nnx.RngState)]
    if unfit:
        raise ValueError(
            f"{name} has {unfit[0].__name__} besides its parameters, which no round would update; take LayerNorm or "
            "GroupNorm"
        )
    variables = {_text(path): (path, variable) for path, variable in nnx.to_flat_state(like)}
    weights = plain(like) if is_module else None

    def init(key: Key, batch: jax.Array) -> PyTree:
        return weights if is_module else plain(nnx.state(given(rngs=nnx.Rngs(key)), nnx.Param))

    def apply(params: PyTree, batch: jax.Array) -> jax.Array:
        leaves = flatten(params)
        state = nnx.from_flat_state([(path, old.replace(leaves[text])) for text, (path, old) in variables.items()])
        return nnx.merge(graph, state, others)(batch)

    return Model(init, apply), weights


def _is_variable(value: Any) -> bool:
    nnx = _nnx()
    return nnx is not None and isinstance(value, nnx.Variable)


def _kinds(nnx: ModuleType, state: Any) -> list[type]:
    return [type(variable) for _, variable in nnx.to_flat_state(state)]


def _text(path: tuple) -> str:
    return "/".join(map(str, path))


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
