"""What every `build` asks of its settings: the type and the range of each field, read off the dataclass itself."""

import dataclasses
import math
import numbers
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from fedjax_mm.checks import say

AT_LEAST_ONE = (  # sizes and counts that mean nothing at 0
    *("batch_size", "single_batch", "server_batch", "public_batch", "proxy_batch", "test_batch", "block", "at_once"),
    *("side", "stream"),
    *("hidden", "projection_hidden", "projection_dim", "server_rounds", "inner_steps", "head_steps", "models"),
    *("centres", "candidates", "sent_modalities", "bases", "examples_per_class", "context", "made_batch"),
)
ABOVE_ZERO = (
    "temperature",
    "weighing_temperature",
    "moon_temperature",
    "horizon",
    "clip",
    "crop",
    "sent_share",
    "budget",
)
AT_MOST_ONE = ("crop", "sent_share", "budget", "need_weight", "cross")
BELOW_ONE = ("warmup", "head_dropout")


def check_settings(config: Any, kind: type) -> None:
    """Raises ValueError, naming the field, where `config` is no `kind` or a field is of a wrong type or out of range.

    kind: a dataclass whose fields are numbers, truth values, choices (Literal), tuples, mappings, dataclasses, or None.
    Numbers must be finite and at least 0; the tables above name those of a narrower range. A float that JAX traces is
    taken as it is: `run.sweep` has the method built with each of its values before.

    >>> @dataclasses.dataclass(frozen=True)
    ... class Settings:
    ...     batch_size: int = 20
    ...     optimizer: Literal["sgd", "adam"] = "sgd"
    >>> check_settings(Settings(), Settings)
    >>> check_settings(Settings(optimizer="sdg"), Settings)
    Traceback (most recent call last):
    ...
    ValueError: Settings.optimizer is 'sdg'; it must be one of 'sgd', 'adam'
    """
    if not isinstance(config, kind):
        raise ValueError(f"config is {say(config)}; it must be a {kind.__name__}")
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), f"{kind.__name__}.{field.name}"
        if isinstance(field.type, type) and dataclasses.is_dataclass(field.type):
            if not isinstance(value, field.type):
                raise ValueError(f"{name} is {say(value)}; it must be a {field.type.__name__}")
            check_settings(value, field.type)
        elif not _fits(field.type, value, field.name):
            raise ValueError(f"{name} is {say(value)}; it must be {_wanted(field.type, field.name)}")


def is_used(weight: Any) -> bool:
    """Whether a term of this weight is in the program: one of weight 0 is left out, one of a traced weight never is.

    >>> import jax
    >>> is_used(0.1), is_used(0.0), bool(jax.jit(is_used)(0.0))
    (True, False, True)
    """
    return isinstance(weight, Tracer) or bool(weight)


def _fits(kind: Any, value: Any, name: str) -> bool:
    """Whether `value` is what the annotation `kind` of the field `name` says."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return isinstance(value, str) and value in parts
    if origin in (types.UnionType, typing.Union):
        return any(_fits(part, value, name) for part in parts)
    if origin is tuple:
        return isinstance(value, tuple | list) and all(_fits(parts[0], x, name) for x in value)
    if origin is not None:  # a mapping
        return isinstance(value, Mapping) and all(_fits(parts[1], x, name) for x in value.values())
    if kind not in (int, float):
        return isinstance(value, bool | np.bool_ if kind is bool else kind)
    if isinstance(value, Tracer):
        return kind is float and value.shape == () and bool(jnp.issubdtype(value.dtype, jnp.floating))
    number: Any = numbers.Integral if kind is int else numbers.Real
    if isinstance(value, bool) or not isinstance(value, number) or not abs(value) < math.inf:
        return False
    low = value >= 1 if name in AT_LEAST_ONE else value > 0 if name in ABOVE_ZERO else value >= 0
    return low and (name not in AT_MOST_ONE or value <= 1) and (name not in BELOW_ONE or value < 1)


def _wanted(kind: Any, name: str) -> str:
    """What `_fits` asks for, in words."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return "one of " + ", ".join(map(repr, parts))
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_wanted(part, name) for part in parts)
    if origin is tuple:
        return f"a tuple, each entry {_wanted(parts[0], name)}"
    if origin is not None:
        return f"a mapping, each value {_wanted(parts[1], name)}"
    if kind not in (int, float):
        return {bool: "True or False", str: "a text", types.NoneType: "None"}[kind]
    low = "of at least 1" if name in AT_LEAST_ONE else "above 0" if name in ABOVE_ZERO else "of at least 0"
    high = " and at most 1" if name in AT_MOST_ONE else " and below 1" if name in BELOW_ONE else ""
    return f"{'an integer' if kind is int else 'a finite number'} {low}{high}"
