"""Checks of single arguments: each returns the value, or raises a ValueError that names the argument and the cure."""

import numbers
import operator
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_mm.types import Population

WORDS = {np.integer: "integers", np.floating: "floats", np.bool_: "booleans", np.str_: "texts"}
MOST = 2**31 - 1  # what the int32 of a device holds
NUMBERS = (np.integer, np.floating)


def check_whole(name: str, value: Any, least: int | None = 0, most: int | None = MOST) -> int:
    """Returns a whole number in least..most as an int. No bool, float or text is one; a 0-d array of integers is.

    least, most: None is no bound.

    >>> check_whole("chunk", np.int64(3), least=1)
    3
    """
    try:
        number = None if isinstance(value, bool | np.bool_) else operator.index(value)
    except TypeError:  # what Python and its libraries say of anything that is no whole number
        number = None
    large = number is not None and most is not None and number > most
    if number is None or large or (least is not None and number < least):
        bounds = (
            "" if least is None else f" from {least} upwards" if most in (MOST, None) else f" from {least} to {most}"
        )
        width = " that 32 bits hold" if large and most == MOST else ""
        raise ValueError(f"{name} is {say(value)}; give a whole number{bounds}{width}")
    return number


def check_number(name: str, value: Any, least: float = -np.inf, most: float = np.inf, above: float = -np.inf) -> float:
    """Returns a finite number in least..most, and above `above`, as a float. No bool or text is one.

    >>> check_number("alpha", 1, above=0)
    1.0
    """
    is_scalar = isinstance(value, numbers.Real) or (hasattr(value, "dtype") and np.ndim(value) == 0)
    try:
        number = float(value) if is_scalar and is_numeric(value) else np.nan
    except OverflowError:  # an int beyond the floats
        number = np.nan
    if not (np.isfinite(number) and least <= number <= most and number > above):
        bounds = [f"above {above:g}"] * (above > -np.inf) + [f"at least {least:g}"] * (least > -np.inf)
        bounds += [f"at most {most:g}"] * (most < np.inf)
        raise ValueError(f"{name} is {say(value)}; give a finite number {' and '.join(bounds)}".rstrip())
    return number


def check_flag(name: str, value: Any) -> bool:
    """Returns True or False; nothing else is taken for one of them, "False" and 0 least of all."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} is {say(value)}; give True or False")
    return bool(value)


def check_array(name: str, value: Any, kinds: tuple[type, ...] = NUMBERS, shape: str | None = None) -> np.ndarray:
    """Returns an array on the host, of one of the NumPy `kinds`. shape: such as "[M, D]", of which the axes count.

    >>> check_array("labels", [0, 1], kinds=(np.integer,), shape="[M]").tolist()
    [0, 1]
    """
    try:
        array = np.asarray(value)
    except Exception as error:  # of any kind: it is the value's own `__array__` that fails
        raise ValueError(f"{name} is a {type(value).__name__} that makes no array; give {shape or 'one'}") from error
    if shape is not None and array.ndim != shape.count(",") + 1:
        raise ValueError(f"{name} has the shape {array.shape}; it must be {shape}")
    if array.size and not is_numeric(array, kinds):
        raise ValueError(f"{name} is {array.dtype} {array.shape}; it must hold {_words(kinds)}")
    return array


def check_traced(
    name: str, value: Any, shape: str | None = None, kinds: tuple[type, ...] = (*NUMBERS, np.bool_)
) -> None:
    """Checks the type and the axes of an array that may be traced by JAX; its values are not looked at."""
    is_array = hasattr(value, "dtype") and hasattr(value, "shape") and not isinstance(value, jax.ShapeDtypeStruct)
    if not is_array or not is_numeric(value, kinds):
        raise ValueError(f"{name} is {say(value)}; give an array of {_words(kinds)}{f' {shape}' if shape else ''}")
    if shape is not None and len(value.shape) != len(shape.strip("[]").split(",")) * (shape != "[]"):
        raise ValueError(f"{name} has rank {len(value.shape)}, with the shape {value.shape}; it must be {shape}")


def check_scalar(name: str, value: Any, above: float = -np.inf) -> None:
    """Checks a number that may be traced by JAX: its type, and where it is a Python number its value."""
    if hasattr(value, "dtype"):
        check_traced(name, value, "[]", NUMBERS)
    elif isinstance(value, int) and abs(value) > MOST:
        raise ValueError(f"{name} is {say(value)}; give a number that 32 bits hold")
    else:
        check_number(name, value, above=above)


def check_leaves(name: str, tree: Any) -> None:
    """Checks that the leaves of a tree are arrays, which may be traced, or Python numbers."""
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, int) and not isinstance(leaf, bool):
            check_whole(f"a leaf of {name}", leaf, least=-MOST)
        elif not isinstance(leaf, jax.Array | bool | float):
            check_traced(f"a leaf of {name}", leaf)


def check_key(name: str, value: Any) -> None:
    """Checks a random key of JAX, which may be traced."""
    dtype, shape = getattr(value, "dtype", None), getattr(value, "shape", None)
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key) and shape == ()
    if not typed and (dtype != np.uint32 or len(shape or ()) != 1):
        raise ValueError(f"{name} is {say(value)}; give a random key, as jax.random.key makes it")


def check_length(name: str, arrays: Iterable[Any], shape: str) -> int:
    """Returns the length that arrays, which may be traced, have in common. shape: such as "[M, ...]", for the error."""
    arrays = list(arrays)
    lengths = {x.shape[0] if getattr(x, "shape", ()) else None for x in arrays}
    length = lengths.pop() if len(lengths) == 1 else None
    if length is None:
        shapes = [getattr(x, "shape", say(x)) for x in arrays]
        raise ValueError(f"{name} has leaves {say(shapes)}; give arrays {shape} of one length")
    return length


def check_callable(name: str, value: Any, what: str) -> None:
    """Checks a function; `what` says from what to what."""
    if not callable(value):
        raise ValueError(f"{name} is {say(value)}; give a function {what}")


def check_names(name: str, value: Any) -> tuple[str, ...]:
    """Returns different names as a tuple, such as those of modalities; of a text each letter is one."""
    try:
        names = None if isinstance(value, Mapping) else tuple(value)
    except TypeError:  # what cannot be gone through
        names = None
    if not names or any(not isinstance(one, str) or not one for one in names) or len(set(names)) < len(names):
        raise ValueError(f"{name} is {say(value)}; give a list of one or more different names")
    return names


def check_mapping(name: str, value: Any, what: str) -> Mapping:
    """Returns a mapping; `what` says from what to what."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} is {say(value)}; give a mapping from {what}")
    return value


def population_of(data: Any) -> Population:
    """The population of a FederatedData, or a Population itself. Raises ValueError where `data` is neither."""
    population = getattr(data, "population", None)
    if not isinstance(population, Population):
        raise ValueError(f"data is {say(data)}; give a FederatedData or its Population")
    return population


def is_whole(value: Any, least: int) -> bool:
    """Whether a single number, which is no bool, is whole and at least `least`.

    >>> is_whole(3, 1), is_whole(3.0, 1), is_whole(True, 1)
    (True, False, False)
    """
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and int(value) >= least


def is_numeric(value: Any, kinds: tuple[type, ...] = NUMBERS) -> bool:
    """Whether a Python number or an array is of one of the NumPy `kinds`; those of bfloat16 are floats."""
    if not hasattr(value, "dtype"):
        return isinstance(value, numbers.Real) and not isinstance(value, bool)
    return any(jnp.issubdtype(value.dtype, kind) for kind in kinds)


def say(value: Any) -> str:
    """A value as an error names it: an array by its type and shape, anything long cut short.

    >>> say(np.zeros((2, 3))), say("three")
    ('a float64 array (2, 3)', "'three'")
    """
    if hasattr(value, "dtype") and np.ndim(value):
        return f"a {value.dtype} array {np.shape(value)}"
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def _words(kinds: tuple[type, ...]) -> str:
    return " or ".join(WORDS[kind] for kind in kinds if kind in WORDS)
