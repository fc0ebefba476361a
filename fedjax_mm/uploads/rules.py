"""Aggregation that a few bad clients cannot lead anywhere: median, trimmed mean, Krum; norm bounding is a clip.

Median and trimmed mean: Yin et al., ICML 2018. Krum and multi-Krum: Blanchard et al., NeurIPS 2017. Norm bounding (Sun
et al., 2019) is `on_change(clip_by_norm(bound))`, and `bounded` finds the bound itself.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_mm.aggregate.slots import valid, weighted_mean
from fedjax_mm.checks import check_callable, check_number, check_whole
from fedjax_mm.federate import Method
from fedjax_mm.transforms import change_of, changed
from fedjax_mm.types import Each, HasPopulation, Mean, PyTree
from fedjax_mm.uploads.leaves import is_float, wide
from fedjax_mm.uploads.slots import gathered, mean_slots, reducing

Stacks = Mapping[str, Each]  # slot -> leaves [C, ...], weight [C]
Rule = Callable[[Stacks, PyTree], Mapping[str, PyTree]]
"""`rule(sent, received)` gives {slot: leaves [...]} of {slot: Each} with leaves [C, ...] and weights [C], 0 for a
client that sent nothing; `received` is what the server had sent."""


def robust(method: Method, data: HasPopulation, rule: Rule) -> Method:
    """The method whose server gets `rule` of all clients' values in place of each cohort's weighted mean.

    The rule is applied to a cohort's Mean slots together; slots that are Each stay as they are. A slot's weight is the
    sum of its clients' weights, as before. The memory holds the values of all participants. Where several cohorts send
    a slot, the server averages their results: the rule guards against bad clients that are few in each cohort.

    rule: `median()`, `trimmed_mean(0.1)`, `krum(2)`, `bounded()`, or one of your own (see `Rule`). Raises ValueError
    where the method sends no Mean.
    """
    slots = mean_slots(method, data, "robust")
    check_callable("rule", rule, "(sent, received) -> {slot: value}, such as uploads.median()")

    def reduce(uploads, received, key):
        reduced = {}
        for name, sent in uploads.items():
            own = {slot: sent[slot]._replace(weight=valid(sent[slot].weight)) for slot in slots[name]}
            value = rule(own, received[name]) if own else {}
            reduced[name] = {**sent, **{slot: Mean(value[slot], own[slot].weight.sum()) for slot in own}}
        return reduced, {}

    return reducing(method, gathered(method, slots), reduce)


def median() -> Rule:
    """The median of each number over the clients that sent it; the middle of two. (Yin 2018, def. 1)

    >>> sent = {"w": Each(jnp.array([1.0, 2.0, 900.0, 0.0]), jnp.array([1.0, 1.0, 1.0, 0.0]))}
    >>> float(median()(sent, {})["w"])
    2.0
    """
    return _of_sorted(lambda count: (jnp.maximum(count - 1, 0) // 2, count // 2 + 1))


def trimmed_mean(fraction: float) -> Rule:
    """The plain mean of each number without the largest and the smallest share `fraction` of the clients that sent it.

    fraction: 0 up to, but not, 1/2; the number that is cut on each side is rounded down. (Yin 2018, def. 2)

    >>> sent = {"w": Each(jnp.array([1.0, 2.0, 900.0, 3.0, -50.0]), jnp.ones(5))}
    >>> float(trimmed_mean(0.2)(sent, {})["w"])
    2.0
    """
    fraction = check_number("fraction", fraction, least=0, most=0.4999)

    def kept(count: jax.Array) -> tuple[jax.Array, jax.Array]:
        cut = jnp.floor(fraction * count + 1e-6).astype(jnp.int32)
        return cut, count - cut

    return _of_sorted(kept)


def krum(bad: int, keep: int = 1) -> Rule:
    """The mean of the `keep` clients whose whole uploads are nearest to those of n - bad - 2 others.

    bad: how many of the n clients may be bad; n > 2 bad + 2 for the paper's guarantee. keep: 1 is Krum, more
    multi-Krum, with equal weights. A client is one point: all slots count together, and a slot that it did not send
    counts as 0. (Blanchard 2017, sections 4 and 5)

    >>> sent = {"w": Each(jnp.array([[1.0], [1.1], [0.9], [1.0], [50.0]]), jnp.ones(5))}
    >>> round(float(krum(1, keep=2)(sent, {})["w"][0]), 2)
    1.0
    """
    bad, keep = check_whole("bad", bad), check_whole("keep", keep, least=1)

    def rule(sent: Stacks, received: PyTree) -> dict[str, PyTree]:
        present = jnp.stack([one.weight > 0 for one in sent.values()]).any(0)
        rows = jnp.concatenate([_rows(one) for one in sent.values()], axis=1)
        chosen = nearest(rows, present, bad, keep)
        of = lambda one: jnp.where(chosen & (one.weight > 0), 1.0, 0.0)
        zero = lambda one: jax.tree.map(lambda x: jnp.zeros_like(x[0]), one.value)
        return {slot: weighted_mean(one.value, of(one), zero(one)) for slot, one in sent.items()}

    return rule


def bounded(quantile: float = 0.5) -> Rule:
    """The weighted mean of changes, each cut to the norm that the share `quantile` of clients does not exceed.

    (Sun 2019, with a bound that follows the clients)

    >>> sent = {"w": Each(jnp.array([[1.0], [2.0], [900.0]]), jnp.ones(3))}
    >>> round(float(bounded()(sent, {})["w"][0]), 3)  # of 1, 2 and 2
    1.667
    """
    quantile = check_number("quantile", quantile, least=0, most=1)

    def rule(sent: Stacks, received: PyTree) -> Mapping[str, PyTree]:
        changes = jax.vmap(change_of, (0, None))({slot: one.value for slot, one in sent.items()}, received)
        present = jnp.stack([one.weight > 0 for one in sent.values()]).any(0)
        rows = jnp.concatenate([_rows(Each(changes[slot], one.weight)) for slot, one in sent.items()], axis=1)
        norms = jnp.sqrt((rows**2).sum(1))
        last = jnp.clip(jnp.ceil(quantile * present.sum()).astype(jnp.int32) - 1, 0, len(norms) - 1)
        bound = jnp.sort(jnp.where(present, norms, jnp.inf))[last]
        scale = jnp.where(present, jnp.minimum(1.0, bound / jnp.maximum(norms, 1e-30)), 0)
        cut = lambda x: (wide(x) * _against(scale, x)).astype(x.dtype) if is_float(x) else x
        zero = lambda slot: jax.tree.map(lambda x: jnp.zeros_like(x[0]), changes[slot])
        means = {
            slot: weighted_mean(jax.tree.map(cut, changes[slot]), one.weight, zero(slot)) for slot, one in sent.items()
        }
        return changed(means, received)

    return rule


def nearest(rows: jax.Array, present: jax.Array, bad: int, keep: int) -> jax.Array:
    """[C] bool: the `keep` of the clients present whose rows have the least sum of squared distances to their n - bad -
    2 nearest others, at least one. rows [C, D], present [C] bool.

    >>> nearest(jnp.array([[0.0], [0.1], [9.0], [0.2]]), jnp.array([True, True, True, False]), 0, 2).tolist()
    [True, True, False, False]
    """
    squares = (rows**2).sum(1)
    products = jnp.matmul(rows, rows.T, precision="highest")
    apart = jnp.maximum(squares[:, None] + squares[None, :] - 2 * products, 0)
    others = present[None, :] & ~jnp.eye(len(rows), dtype=bool)
    sorted_apart = jnp.sort(jnp.where(others, apart, jnp.inf), axis=1)
    near = jnp.maximum(present.sum() - bad - 2, 1)
    counted = (jnp.arange(len(rows)) < near)[None, :] & jnp.isfinite(sorted_apart)
    score = jnp.where(present, jnp.where(counted, sorted_apart, 0).sum(1), jnp.inf)
    rank = jnp.argsort(jnp.argsort(score))
    return present & (rank < keep)


def _of_sorted(kept: Callable[[jax.Array], tuple[Any, Any]]) -> Rule:
    """The mean of each number over the places `first <= place < end` of those that sent it, sorted."""

    def of_slot(one: Each) -> PyTree:
        there = one.weight > 0
        first, end = kept(there.sum())
        places = jnp.arange(len(there))
        share = jnp.where((places >= first) & (places < end), 1 / jnp.maximum(end - first, 1), 0)
        return jax.tree.map(lambda x: _mean_of_sorted(x, there, share), one.value)

    return lambda sent, received: {slot: of_slot(one) for slot, one in sent.items()}


def _mean_of_sorted(x: jax.Array, there: jax.Array, share: jax.Array) -> jax.Array:
    """x [C, ...], there [C] bool, share [C] of each place in order; those that are not there come last."""
    ordered = jnp.sort(jnp.where(_against(there, x), wide(x), jnp.inf), axis=0)
    inside = jnp.where(_against(share > 0, x), ordered, 0)
    return jnp.where(there.any(), jnp.tensordot(share, inside, 1, precision="highest"), 0).astype(x.dtype)


def _rows(one: Each) -> jax.Array:
    """[C, D] all floats of a slot, client by client; 0 where it was not sent."""
    leaves = [wide(x).reshape(len(x), -1) for x in jax.tree.leaves(one.value) if is_float(x)]
    rows = jnp.concatenate([*leaves, jnp.zeros((len(one.weight), 0))], axis=1)
    return jnp.where((one.weight > 0)[:, None], rows, 0)


def _against(per_client: jax.Array, x: jax.Array) -> jax.Array:
    """[C] with the axes of x [C, ...]."""
    return per_client.reshape(-1, *[1] * (x.ndim - 1))
