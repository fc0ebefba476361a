"""Nested dicts of arrays as flat ones, by path: "layers/00/fc_1/kernel"."""

from collections.abc import Mapping
from typing import Any

import jax

from fedjax_mm.checks import say
from fedjax_mm.types import PyTree


def flatten(tree: PyTree, what: str = "params") -> dict[str, Any]:
    """{path: leaf}. Raises ValueError, which calls the tree `what`, for anything but nested dicts.

    >>> flatten({"trunk": {"kernel": 1, "bias": 2}})
    {'trunk/bias': 2, 'trunk/kernel': 1}
    """
    leaves = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not path or not all(isinstance(key, jax.tree_util.DictKey) for key in path):
            raise ValueError(f"{what} is {say(tree)}; give nested dicts of arrays")
        leaves["/".join(str(key.key) for key in path)] = leaf
    return leaves


def nest(leaves: Mapping[str, Any], separator: str = "/") -> dict[str, Any]:
    """The tree that `flatten` took.

    >>> nest({"trunk/bias": 2, "trunk/kernel": 1})
    {'trunk': {'bias': 2, 'kernel': 1}}
    """
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, last = path.split(separator)
        branch = tree
        for key in parents:
            branch = branch.setdefault(key, {})
        branch[last] = leaf
    return tree
