"""What every compression needs: floats alone are compressed, each array on its own and with a key of its own."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_mm.types import Key, PyTree


def map_floats(function: Callable[..., Any], tree: PyTree, *, key: Key | None = None) -> PyTree:
    """`function(x)`, or `function(x, key)` with a key of its own, of each array of floats that is not empty; all other
    leaves stay as they are.

    >>> map_floats(lambda x: 2 * x, {"n": jnp.int32(3), "w": jnp.ones(2)})
    {'n': Array(3, dtype=int32), 'w': Array([2., 2.], dtype=float32)}
    """
    leaves, structure = jax.tree.flatten(tree)
    own = lambda i: () if key is None else (jax.random.fold_in(key, i),)
    done = [function(jnp.asarray(x), *own(i)) if is_float(x) else x for i, x in enumerate(leaves)]
    return jax.tree.unflatten(structure, done)


def is_float(x: Any) -> bool:
    """Whether a leaf is an array of floats with at least one number."""
    return jnp.issubdtype(jnp.result_type(x), jnp.floating) and np.size(x) > 0


def wide(x: jax.Array) -> jax.Array:
    """The array in float32 at least."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def norm(tree: PyTree) -> jax.Array:
    """[] the Euclidean norm of all floats of a tree, in float32 at least.

    >>> float(norm({"a": jnp.array([3.0]), "b": jnp.array([4.0]), "n": jnp.int32(9)}))
    5.0
    """
    squares = [jnp.vdot(wide(x), wide(x)) for x in map(jnp.asarray, jax.tree.leaves(tree)) if is_float(x)]
    return jnp.sqrt(sum(squares, jnp.float32(0)))


def decode_nodes(encoded: PyTree, kind: type, decode: Callable[[Any], jax.Array]) -> PyTree:
    """The tree with `decode(node)` in place of each node of a kind."""
    is_one = lambda node: isinstance(node, kind)
    return jax.tree.map(lambda node: decode(node) if is_one(node) else node, encoded, is_leaf=is_one)
