"""Anyone's own encoders and heads as a `Model`: functions, linen and nnx modules, pretrained, some parts frozen."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from fedjax_mm.checks import say
from fedjax_mm.models import nnx_modules
from fedjax_mm.models.checks import check_model
from fedjax_mm.models.layers import Model
from fedjax_mm.models.paths import flatten, nest
from fedjax_mm.types import Key, PyTree

Frozen = bool | str | Sequence[str] | Callable[[str], bool]


def as_encoder(
    encoder: Any,
    *,
    pretrained: PyTree | None = None,
    frozen: Frozen = False,
    vocabulary: int | None = None,
    name: str = "encoder",
) -> Model:
    """Anyone's own encoder, or head, as every `build` takes it; every `build` calls this for what it is given.

    encoder: maps a batch [B, ...] to embeddings [B, D], or to logits [B, K]. A `Model`, or whatever has its `init` and
        `apply`; a pair (init, apply); a linen module; an nnx module, whose weights every run starts from; or a function
        or an nnx class that makes one, `lambda rngs: Net(rngs=rngs)`, whose weights a run draws by its seed. An nnx
        module runs in evaluation mode, without dropout.
    pretrained: nested dicts of arrays to start from, or an nnx State. What it lacks starts afresh. Of a linen module it
        may be {"params": ..., "batch_stats": ...}: collections other than the parameters stay as they are.
    frozen: parts of `pretrained`, or of an nnx module's own weights, that neither train nor travel: True for all, a
        path or several such as "trunk/layers", or a function of a leaf's path, "trunk/layers/00/kernel" -> bool. They
        are no part of the model's parameters, but constants of the compiled round.
    vocabulary: how many token ids a model of texts knows. None: what the encoder says.
    name: what messages call it.

    Raises ValueError for what is none of these, and for a frozen part without pretrained weights. Other shapes and
    unknown parts of `pretrained` are a ValueError when the method is built.

    >>> pair = (lambda key, batch: {"w": jnp.ones((batch.shape[1], 4))}, lambda params, batch: batch @ params["w"])
    >>> as_encoder(pair).apply({"w": jnp.ones((3, 4))}, jnp.ones((2, 3))).shape
    (2, 4)
    >>> trunk = {"Dense_0": {"kernel": jnp.ones((3, 5)), "bias": jnp.zeros(5)}}
    >>> from fedjax_mm.models import mlp
    >>> model = as_encoder(mlp.encoder([5], 4), pretrained=trunk, frozen="Dense_0")
    >>> list(model.init(jax.random.key(0), jnp.ones((2, 3))))  # what trains and travels
    ['Dense_1']
    """
    pretrained, constants = nnx_modules.plain(pretrained), {}
    if isinstance(encoder, nn.Module):
        if isinstance(pretrained, Mapping) and "params" in pretrained:
            constants = {key: value for key, value in pretrained.items() if key != "params"}
            pretrained = pretrained["params"]
        model = _of_linen(encoder, constants)
    elif nnx_modules.is_one(encoder):
        model, own = nnx_modules.as_model(encoder, name)
        pretrained = own if pretrained is None else pretrained
    elif type(encoder) in (tuple, list) and len(encoder) == 2 and all(map(callable, encoder)):
        model = Model(*encoder)
    else:
        check_model(name, encoder)
        model = encoder
    if vocabulary is not None:
        model = Model(model.init, model.apply, vocabulary)
    if pretrained is None and frozen is False:
        return model
    leaves = flatten({} if pretrained is None else pretrained, f"pretrained of {name}")
    return _started(model, leaves, _predicate(name, frozen), name)


def as_encoders(name: str, encoders: Any) -> Any:
    """{modality: `as_encoder` of what is given for it}; what is no mapping is left to the checks of the method."""
    if not isinstance(encoders, Mapping):
        return encoders
    return {m: as_encoder(encoder, name=f"{name}[{m!r}]") for m, encoder in encoders.items()}


def _of_linen(module: nn.Module, constants: Mapping[str, PyTree]) -> Model:
    """The Model of a linen module, with its other collections as they are given."""

    def init(key: Key, batch: jax.Array) -> PyTree:
        variables = module.init(key, batch)
        if missing := sorted(set(variables) - {"params", *constants}):
            raise ValueError(
                f"{type(module).__name__} has {missing} besides its parameters, which no round would update; take "
                "LayerNorm or GroupNorm, or give pretrained={'params': ..., " + f"'{missing[0]}': ..." + "}"
            )
        return variables.get("params", {})

    def apply(params: PyTree, batch: jax.Array) -> Any:
        return module.apply({"params": params, **constants}, batch)

    return Model(init, apply)


def _started(model: Model, pretrained: dict[str, Any], frozen: Callable[[str], bool], name: str) -> Model:
    """The model that starts from the pretrained leaves, of which the frozen ones are constants."""
    constants = {path: jnp.asarray(leaf) for path, leaf in pretrained.items() if frozen(path)}

    def init(key: Key, batch: jax.Array) -> PyTree:
        fresh = flatten(model.init(key, batch), f"what {name} starts from")
        if unknown := sorted(pretrained.keys() - fresh.keys()):
            raise ValueError(f"pretrained has {unknown[0]!r}, which {name} has not; its parameters are {sorted(fresh)}")
        for path, leaf in fresh.items():
            if path not in pretrained and frozen(path):
                raise ValueError(f"frozen names {path!r}, which pretrained has not; give its weights too")
            if path in pretrained and np.shape(pretrained[path]) != leaf.shape:
                raise ValueError(f"pretrained {path!r} is {[*np.shape(pretrained[path])]}, not {[*leaf.shape]}")
        trained = {path: leaf for path, leaf in fresh.items() if path not in constants}
        return nest({p: jnp.asarray(pretrained[p], x.dtype) if p in pretrained else x for p, x in trained.items()})

    def apply(params: PyTree, batch: jax.Array) -> jax.Array:
        return model.apply(nest({**flatten(params), **constants}), batch)

    if not constants and frozen is not _nothing:
        raise ValueError(f"frozen names no part of pretrained, which has {sorted(pretrained)}; give its weights too")
    return Model(init, apply, getattr(model, "vocabulary", None))


def _nothing(path: str) -> bool:
    return False


def _predicate(name: str, frozen: Any) -> Callable[[str], bool]:
    """`frozen` as a function of a path."""
    if isinstance(frozen, bool):
        return (lambda path: True) if frozen else _nothing
    if callable(frozen):
        return lambda path: bool(frozen(path))
    parts = [frozen] if isinstance(frozen, str) else frozen
    if not isinstance(parts, Sequence) or not parts or not all(isinstance(part, str) and part for part in parts):
        raise ValueError(f"frozen of {name} is {say(frozen)}; give True, paths such as 'trunk/layers', or a function")
    return lambda path: any(path == part or path.startswith(f"{part}/") for part in parts)
