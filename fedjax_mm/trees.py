"""Splitting, joining and growing parameter trees, and counting their bytes."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_mm.checks import check_callable, check_traced, say
from fedjax_mm.types import PyTree


def partition(tree: PyTree, mask: PyTree) -> tuple[PyTree, PyTree]:
    """Splits `tree` into (trainable, frozen) by a mask of booleans, a whole tree or a prefix of it as optax takes them.

    Both halves keep the structure; a leaf that belongs to the other half is None, which JAX skips. Differentiating
    the first half alone freezes the second: it has no gradient, no optimiser state and no upload. Raises ValueError for
    a mask of another structure, or whose leaves are no booleans.

    >>> trainable, frozen = partition({"trunk": 1.0, "head": 2.0}, {"trunk": False, "head": True})
    >>> trainable, frozen
    ({'head': 2.0, 'trunk': None}, {'head': None, 'trunk': 1.0})
    """
    _leaves(tree)
    wrong = [x for x in _leaves(mask) if not isinstance(x, bool | np.bool_)]  # None stands where a half has no leaf
    if wrong:
        raise ValueError(f"mask has a leaf {say(wrong[0])}; each must be True or False")
    try:
        mask = jax.tree.broadcast(mask, tree)
    except ValueError as error:
        if None in jax.tree.leaves(mask, is_leaf=lambda x: x is None):
            raise ValueError("mask has a leaf None where the tree has one; each must be True or False") from error
        raise ValueError(f"mask is neither the whole tree nor a prefix of it: {_line(error)}") from error
    pick = lambda wanted: jax.tree.map(lambda m, x: x if bool(m) == wanted else None, mask, tree)
    return pick(True), pick(False)


def merge(a: PyTree, b: PyTree) -> PyTree:
    """The tree that `partition` split: a leaf of `b` wherever `a` has None.

    Raises ValueError where both have a leaf at the same place, or one of them lacks a place of the other.

    >>> merge({"trunk": None, "head": 2.0}, {"trunk": 1.0, "head": None})
    {'head': 2.0, 'trunk': 1.0}
    """

    def pick(x, y):
        if x is not None and jax.tree.leaves(y):
            raise ValueError(f"both trees have a leaf at one place, {say(x)} and {say(y)}; one of them must be None")
        return y if x is None else x

    try:
        return jax.tree.map(pick, a, b, is_leaf=lambda x: x is None)
    except ValueError as error:
        raise ValueError(f"the trees are no halves of one tree: {_line(error)}") from error


def path_mask(tree: PyTree, trains: Callable[[str], bool]) -> PyTree:
    """A mask for `partition` from a predicate on leaf paths such as "image/layer_3/kernel".

    >>> path_mask({"trunk": {"bias": 1.0, "kernel": 2.0}}, lambda path: path.endswith("/bias"))
    {'trunk': {'bias': True, 'kernel': False}}
    """
    check_callable("trains", trains, "of a path such as 'image/layer_3/kernel'")
    _leaves(tree)
    name = lambda path: "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)
    return jax.tree_util.tree_map_with_path(lambda path, _: bool(trains(name(path))), tree)


def grow(old: PyTree, fresh: PyTree) -> PyTree:
    """`fresh`, with the leaves that `old` has too taken from `old`: what was learned stays, new layers are attached.

    A leaf of `old` that `fresh` lacks is dropped. Raises ValueError where a leaf changed its shape, and where a leaf
    became a dict or the reverse.

    >>> grow({"layer_0": 5.0}, {"layer_0": 0.0, "layer_1": 0.1})
    {'layer_0': 5.0, 'layer_1': 0.1}
    """
    return _grow(old, fresh, "the tree")


def _grow(old: PyTree, fresh: PyTree, place: str) -> PyTree:
    if isinstance(fresh, dict) and isinstance(old, dict):
        under = lambda key: f"{key}" if place == "the tree" else f"{place}/{key}"
        return {k: _grow(old[k], v, under(k)) if k in old else v for k, v in fresh.items()}
    if jax.tree.structure(old) != jax.tree.structure(fresh):
        raise ValueError(f"cannot grow {place} from {say(old)} into {say(fresh)}; only new keys of a dict may appear")
    for was, new in zip(jax.tree.leaves(old), jax.tree.leaves(fresh), strict=True):
        if np.shape(was) != np.shape(new):
            shapes = f"{np.shape(was)} into {np.shape(new)}"
            raise ValueError(f"cannot grow a leaf of shape {shapes}, at {place}; only new keys may appear")
    return old


def size_bytes(tree: PyTree) -> int:
    """The bytes of all leaves, which may be arrays or `jax.ShapeDtypeStruct`.

    >>> size_bytes({"w": jnp.zeros((3, 4)), "half": jax.ShapeDtypeStruct((5,), jnp.bfloat16)})  # 48 + 10
    58
    """
    return sum(x.size * jnp.dtype(x.dtype).itemsize for x in _arrays(tree))


def all_finite(tree: PyTree, weighted: Sequence[tuple[PyTree, jax.Array]] = ()) -> jax.Array:
    """[] bool: whether no floating leaf holds a NaN or an infinity, nor a row whose sum overflows.

    weighted: (tree, weight []) pairs whose leaves, integers too, are tested after they are multiplied by the weight.

    >>> bool(all_finite({"w": jnp.ones(3)})), bool(all_finite({"w": jnp.array([1.0, jnp.nan])}))
    (True, False)
    >>> bool(all_finite((), [({"w": jnp.array([1e38, -1e38])}, jnp.float32(10))]))
    False
    """
    floats = [(x, None) for x in _arrays(tree, whole=True) if jnp.issubdtype(x.dtype, jnp.floating)]
    both = floats + [(x, weight) for leaves, weight in weighted for x in _arrays(leaves, whole=True)]
    both = [(jnp.asarray(x), weight) for x, weight in both if x.size]
    if not both:
        return jnp.array(True)

    # Row sums as a matrix-vector product: XLA's reductions are not vectorised on CPU, measured 3.5 times slower. In
    # single precision at least, because a sum of finite float16 numbers soon overflows. One test of all the sums:
    # a reduction per leaf is a kernel to compile each, an eighth of the compile time of a round of many small leaves.
    # The weight is the vector, so that no weighted leaf is written: 3 % of a small round on a CPU.
    def row_sums(x, weight):
        rows, wide = x.reshape(-1, x.shape[-1] if x.ndim else 1), jnp.promote_types(x.dtype, jnp.float32)
        if weight is None:
            return jnp.matmul(rows, jnp.ones(rows.shape[1], x.dtype), preferred_element_type=wide)
        return jnp.matmul(rows.astype(wide), jnp.full(rows.shape[1], weight, wide))

    return jnp.isfinite(jnp.concatenate([row_sums(*one) for one in both])).all()


def where(condition: jax.Array, a: PyTree, b: PyTree) -> PyTree:
    """`a` where the condition [] holds, else `b`, leaf by leaf. Raises ValueError where they are different trees.

    >>> where(jnp.array(False), {"w": jnp.ones(2)}, {"w": jnp.zeros(2)})["w"].tolist()
    [0.0, 0.0]
    """
    check_traced("condition", condition, "[]", (np.bool_, np.integer))
    kinds = [[(np.shape(x), x.dtype) for x in _arrays(tree, whole=True)] for tree in (a, b)]
    if jax.tree.structure(a) != jax.tree.structure(b) or kinds[0] != kinds[1]:
        raise ValueError("a and b are different trees; they must agree in their structure, shapes and dtypes")
    return jax.tree.map(lambda x, y: jax.lax.select(condition, x, y), a, b)


def _arrays(tree: PyTree, whole: bool = False) -> list:
    """The leaves; ValueError where one is no array, which a shape is neither where they must be whole."""
    leaves = _leaves(tree)
    for leaf in leaves:
        if not hasattr(leaf, "dtype") or (whole and isinstance(leaf, jax.ShapeDtypeStruct)):
            raise ValueError(f"the tree has a leaf {say(leaf)}; each must be an array")
    return leaves


def _leaves(tree: PyTree) -> list:
    try:
        return jax.tree.leaves(tree)
    except ValueError as error:  # of keys that have no order
        raise ValueError(f"the tree has a dict whose keys are of several types: {_line(error)}") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
