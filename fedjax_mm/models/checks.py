"""What every maker of a model asks of its arguments: errors in the user's words, before flax sees them."""

from collections.abc import Sequence
from numbers import Real
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from fedjax_mm.checks import is_whole, say


def check_model(name: str, model: Any) -> None:
    """Raises a ValueError, which calls the model `name`, where it is no pair of functions `init` and `apply`."""
    if isinstance(model, nn.Module):
        raise ValueError(f"{name} is a flax module, {type(model).__name__}; give models.as_encoder of it")
    pair = (getattr(model, "init", None), getattr(model, "apply", None))
    if isinstance(model, type) or not all(callable(function) for function in pair):
        given = f"{name} is {type(model).__name__} {say(model)}"
        raise ValueError(f"{given}; it must be a models.Model, a pair (init, apply), a linen or an nnx module")


def one_of(name: str, value: object, allowed: tuple) -> None:
    """Raises a ValueError that names the argument, unless its value is among the allowed ones."""
    if not isinstance(value, str | None) or value not in allowed:
        raise ValueError(f"{name} must be one of {allowed}, got {say(value)}")


def check_sizes(least: int = 1, **sizes: Any) -> None:
    """Raises a ValueError that names the argument, unless every size is an integer of at least `least`.

    >>> check_sizes(dim=64.0)
    Traceback (most recent call last):
    ...
    ValueError: dim must be an integer of at least 1, got 64.0
    """
    for name, size in sizes.items():
        if not is_whole(size, least):
            raise ValueError(f"{name} must be an integer of at least {least}, got {say(size)}")


def check_widths(**sequences: Any) -> None:
    """Raises a ValueError that names the argument, unless every one is a sequence of integers of at least 1.

    >>> check_widths(widths=64)
    Traceback (most recent call last):
    ...
    ValueError: widths must be a sequence of integers, such as (64,), got 64
    """
    for name, widths in sequences.items():
        if not isinstance(widths, Sequence | np.ndarray) or isinstance(widths, str | bytes):
            raise ValueError(f"{name} must be a sequence of integers, such as (64,), got {say(widths)}")
        check_sizes(**{f"{name}[{i}]": width for i, width in enumerate(widths)})


def check_number(name: str, value: Any, least: float = 0.0, below: float = float("inf")) -> None:
    """Raises a ValueError that names the argument, unless it is a number from `least` to below `below`."""
    if isinstance(value, bool) or not isinstance(value, Real) or not least <= float(value) < below:
        upper = "" if below == float("inf") else f" to below {below}"
        raise ValueError(f"{name} must be a finite number from {least}{upper}, got {say(value)}")


def check_dtype(dtype: Any) -> None:
    """Raises a ValueError unless `dtype` is a type of floating-point numbers."""
    try:
        floating = dtype is not None and jnp.issubdtype(jnp.dtype(dtype), jnp.floating)
    except TypeError:
        floating = False
    if not floating:
        raise ValueError(f"dtype must be a floating type such as jax.numpy.float32, got {say(dtype)}")
