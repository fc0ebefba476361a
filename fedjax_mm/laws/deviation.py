"""How far two trees are apart, leaf by leaf, and rows of trees without a compilation."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_mm.types import PyTree

SMALLEST = np.finfo(np.float64).tiny  # a deviation of two numbers that differ, however little


class Deviation(NamedTuple):
    """How far a method is from a law."""

    size: float = 0.0
    """The largest |found - expected| / (1 + |expected|) of all numbers."""
    tolerance: float = 0.0
    """The largest size that the law allows. 0 asks for the same bits."""
    where: str = ""
    """What deviates most."""
    note: str = ""
    """What the law could not look at."""

    @property
    def within(self) -> bool:
        """Whether the law holds."""
        return self.size <= self.tolerance


def deviation(found: PyTree, expected: PyTree, tolerance: float = 0.0, of: str = "") -> Deviation:
    """The largest deviation of two trees, and the path of the leaf that has it, behind the words `of`.

    Trees, shapes or dtypes that differ are infinitely far. A leaf in half precision is measured in its own roundings.

    >>> found = deviation({"a": 1.0, "b": 7.0}, {"a": 1.0, "b": 9.0}, tolerance=1e-5, of="the state")
    >>> found.size, found.within, found.where
    (0.2, False, "the state['b']")
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(found)
    if structure != jax.tree.structure(expected):
        return Deviation(np.inf, tolerance, f"{of}: the tree is {structure}, not {jax.tree.structure(expected)}")
    largest = Deviation(0.0, tolerance)
    for (path, x), y in zip(leaves, jax.tree.leaves(expected), strict=True):
        size = _distance(_numbers(x), _numbers(y))
        if size > largest.size:
            largest = Deviation(size, tolerance, f"{of}{jax.tree_util.keystr(path)}")
    return largest


def worst(*found: Deviation) -> Deviation:
    """The deviation that breaks its tolerance, or else the largest."""
    return max(found, key=lambda d: (not d.within, d.size), default=Deviation())


def counted(found: Any, expected: float, of: str) -> Deviation:
    """The deviation of a number that must be exact."""
    return Deviation(abs(float(found) - expected), 0.0, f"{of} is {float(found):g}, not {expected:g}")


def finite(tree: PyTree, of: str) -> Deviation:
    """An infinite deviation where a number of the tree is not finite."""
    for path, x in jax.tree_util.tree_leaves_with_path(tree):
        if not np.isfinite(_wide(_numbers(x))).all():
            return Deviation(np.inf, 0.0, f"{of}{jax.tree_util.keystr(path)} is not finite")
    return Deviation()


def rows(tree: PyTree, index: Any) -> PyTree:
    """`leaf[index]` of every leaf, by NumPy, which compiles nothing; random keys stay such."""
    return jax.tree.map(lambda x: x[index] if _is_key(x) else np.asarray(x)[index], tree)


def _is_key(x: Any) -> bool:
    return isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _numbers(x: Any) -> np.ndarray:
    return np.asarray(jax.random.key_data(x) if _is_key(x) else x)


def _wide(x: np.ndarray) -> np.ndarray:
    return x.astype(np.complex128 if np.iscomplexobj(x) else np.float64)


def _distance(x: np.ndarray, y: np.ndarray) -> float:
    if x.shape != y.shape or x.dtype != y.dtype:
        return np.inf
    a, b = _wide(x), _wide(y)
    with np.errstate(invalid="ignore"):
        apart = np.abs(a - b) / (1 + np.abs(b))
    apart = np.where(np.isfinite(apart), np.maximum(apart, SMALLEST), np.inf)
    same = (x == y) | (np.isnan(a) & np.isnan(b))
    narrow = jnp.issubdtype(x.dtype, jnp.floating) and jnp.finfo(x.dtype).eps > jnp.finfo(jnp.float32).eps
    rounding = float(jnp.finfo(jnp.float32).eps / jnp.finfo(x.dtype).eps) if narrow else 1.0
    return float(np.where(same, 0.0, apart).max(initial=0.0)) * rounding
