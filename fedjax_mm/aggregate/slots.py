"""Slots of uploads gathered from all cohorts, and their weighted means."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_mm.checks import check_mapping, check_traced, say
from fedjax_mm.types import Each, Mean, PyTree, Upload


def collect(uploads: Mapping[str, Upload], slot: str) -> Mean | Each:
    """One slot, gathered from every cohort that sent it.

    uploads: {cohort: {slot: Mean | Each}}. An Each has leaves [sum of C, ...] and weight [sum of C], the cohorts in the
    order of `uploads`. A Mean is the weighted mean of the cohorts' means with their total weight; its value is 0 where
    this weight is 0. Raises ValueError where no cohort has the slot, and where cohorts disagree about its kind, tree or
    shapes.

    >>> sent = {"A": Mean(jnp.array([1.0]), jnp.float32(3)), "B": Mean(jnp.array([5.0]), jnp.float32(1))}
    >>> slot = collect({cohort: {"w": mean} for cohort, mean in sent.items()}, "w")
    >>> slot.value.tolist(), float(slot.weight)
    ([2.0], 4.0)
    """
    for cohort, upload in check_mapping("uploads", uploads, "cohort to {slot: Mean or Each}").items():
        check_mapping(f"the upload of {cohort}", upload, "slot to Mean or Each")
    if not isinstance(slot, str):
        raise ValueError(f"slot is {say(slot)}; give the name of a slot")
    sent = {cohort: upload[slot] for cohort, upload in uploads.items() if slot in upload}
    if not sent:
        known = sorted({name for upload in uploads.values() for name in upload})
        raise ValueError(f"no cohort sent a slot '{slot}'; the slots sent are {known}.")
    for cohort, found in sent.items():
        _check_slot(f"slot '{slot}' of '{cohort}'", found)
    kinds = {cohort: type(found) for cohort, found in sent.items()}
    if len(set(kinds.values())) != 1:
        found = ", ".join(f"{kind.__name__} from '{cohort}'" for cohort, kind in kinds.items())
        raise ValueError(f"slot '{slot}' is {found}; every cohort must send it as the same kind.")
    each = Each in kinds.values()
    shapes = {cohort: _shapes(found.value, skip=1 if each else 0) for cohort, found in sent.items()}
    if any(shape != shapes[next(iter(shapes))] for shape in shapes.values()):
        raise ValueError(
            f"slot '{slot}' has different trees or shapes: {shapes}; cohorts must agree, or rename the slot."
        )
    join = jnp.concatenate if each else jnp.stack
    value = jax.tree.map(lambda *leaves: join(leaves), *(found.value for found in sent.values()))
    weight = valid(join([found.weight for found in sent.values()]))
    if each:
        return Each(value, weight)
    zero = jax.tree.map(lambda leaf: jnp.zeros_like(leaf[0]), value)
    return Mean(weighted_mean(value, weight, zero), jnp.sum(weight))


def average(slot: Mean | Each, default: PyTree) -> PyTree:
    """The weighted mean of a collected slot of either kind; `default`, the same tree, where its weights sum to 0.
    A Mean's value gets the types of `default`.

    >>> slot = Each(jnp.array([[1.0], [5.0]]), jnp.array([3.0, 1.0]))
    >>> average(slot, default=jnp.array([9.0])).tolist()
    [2.0]
    >>> average(slot._replace(weight=jnp.zeros(2)), default=jnp.array([9.0])).tolist()
    [9.0]
    """
    _check_slot("slot", slot)
    if isinstance(slot, Each):
        return weighted_mean(slot.value, slot.weight, default)
    _check_default([np.shape(x) for x in jax.tree.leaves(slot.value)], slot.value, default)
    sent = valid(slot.weight) > 0
    # A mean is summed in float32 at least; what it replaces keeps its type, so that a state does.
    pick = lambda leaf, other: jnp.where(sent, leaf, other).astype(jnp.asarray(other).dtype)
    return jax.tree.map(pick, slot.value, default)


def weighted_mean(stack: PyTree, weight: jax.Array, default: PyTree) -> PyTree:
    """The weighted mean over clients; `default` where the weights sum to 0. (McMahan 2017, FedAvg)

    stack leaves [C, ...], weight [C] >= 0, default leaves [...]; -> leaves [...] in the stack's dtypes.

    >>> stack = jnp.array([[1.0, 2.0], [5.0, 6.0]])
    >>> print(weighted_mean(stack, jnp.array([3.0, 1.0]), default=jnp.zeros(2)))
    [2. 3.]
    """
    check_traced("weight", weight, "[C]")
    for leaf in jax.tree.leaves(stack):
        check_traced("a leaf of stack", leaf)
    shapes = [np.shape(x) for x in jax.tree.leaves(stack)]
    if any(shape[:1] != weight.shape for shape in shapes):
        raise ValueError(f"stack has leaves {shapes}; each must be [C, ...] for the {weight.shape[0]} weights")
    _check_default([shape[1:] for shape in shapes], stack, default)
    weight, stack = valid(weight), jax.tree.map(jnp.asarray, stack)
    total = jnp.sum(weight)
    share = weight / jnp.where(total > 0, total, 1)

    def mean(leaf, other):
        # A matmul, because XLA's sum over a leading axis is 30 times slower on CPU (measured); at the highest
        # precision, because accelerators otherwise round its inputs.
        sent = jnp.where((weight > 0).reshape(-1, *[1] * (leaf.ndim - 1)), leaf, 0)
        summed = jnp.tensordot(share, sent.astype(jnp.promote_types(leaf.dtype, share.dtype)), 1, precision="highest")
        return jnp.where(total > 0, summed, other).astype(leaf.dtype)

    return jax.tree.map(mean, stack, default)


def valid(weight: jax.Array) -> jax.Array:
    """The weights, 0 where one is below 0 or not finite.

    >>> valid(jnp.array([2.0, -1.0, jnp.nan, jnp.inf])).tolist()
    [2.0, 0.0, 0.0, 0.0]
    """
    return jnp.where((weight > 0) & jnp.isfinite(weight), weight, 0)


def _check_slot(name: str, found: Mean | Each) -> None:
    if not isinstance(found, Mean | Each):
        raise ValueError(f"{name} is {say(found)}; it must be a Mean or an Each")
    check_traced(f"the weight of {name}", found.weight, "[C]" if isinstance(found, Each) else "[]")
    for leaf in jax.tree.leaves(found.value):
        check_traced(f"a leaf of {name}", leaf)
        if isinstance(found, Each) and leaf.shape[:1] != found.weight.shape:
            raise ValueError(f"{name} has a leaf {leaf.shape} for {found.weight.shape[0]} weights; it must be [C, ...]")


def _check_default(shapes: list[tuple], tree: PyTree, default: PyTree) -> None:
    """default: the same tree as the mean, whose leaves have these shapes."""
    for leaf in jax.tree.leaves(default):
        check_traced("a leaf of default", leaf)
    found = [np.shape(x) for x in jax.tree.leaves(default)]
    if jax.tree.structure(tree) != jax.tree.structure(default) or found != shapes:
        raise ValueError(f"default is {say(default)} with leaves {found}; it must be the tree of the mean, {shapes}")


def _shapes(tree: PyTree, skip: int) -> PyTree:
    return jax.tree.map(lambda leaf: f"{leaf.dtype}{list(leaf.shape[skip:])}", tree)
