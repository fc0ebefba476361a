"""Sums of which the server sees nothing but the sum, simulated: pairwise masks that cancel exactly.

Bonawitz et al., CCS 2017. Every two clients of a round agree on a random mask, which one of them adds to its upload and
the other subtracts, in whole numbers modulo 2^32. Of a client that drops out the others' masks with it do not cancel;
the server learns these masks (in the protocol from shares of their seeds) and takes them away. The simulation has the
arithmetic, and none of the key agreement, shares and self-masks, which protect against servers that lie.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from fedjax_mm.aggregate.slots import valid
from fedjax_mm.checks import check_number
from fedjax_mm.federate import Method
from fedjax_mm.types import Each, HasPopulation, Key, Mean
from fedjax_mm.uploads.leaves import is_float, wide
from fedjax_mm.uploads.slots import gathered, mean_slots, reducing

BITS = 32


def secure_sum(method: Method, data: HasPopulation, resolution: float = 2.0**-16) -> Method:
    """The method whose Mean slots are summed under pairwise masks, in whole multiples of `resolution`.

    A client sends round(weight x value / resolution) and its weight likewise, each cut to what C of them may hold
    together without passing 2^31: then the sum is exact, and the mean is off by no more than resolution x C / (2 x the
    sum of weights) from the plain one. The server's metric "secure_sum_cut" is the share of numbers that were cut:
    above 0, take a larger resolution, or smaller weights. A participant that is left out, or that drops out in the
    round, counts as dropped. Where a slot holds numbers that are no floats, these are summed as they are.

    Raises ValueError where the method sends no Mean. The memory holds the values of all participants.
    """
    slots = mean_slots(method, data, "secure_sum")
    resolution = check_number("resolution", resolution, above=0)

    def reduce(uploads, received, key):
        reduced, cut = {}, []
        for i, (name, sent) in enumerate(uploads.items()):
            own = {slot: sent[slot] for slot in slots[name]}
            means, share = _secure_means(own, resolution, jax.random.fold_in(key, i)) if own else ({}, jnp.float32(0))
            reduced[name] = {**sent, **means}
            cut.append(share)
        return reduced, {"secure_sum_cut": jnp.stack(cut).max()}

    return reducing(method, gathered(method, slots), reduce)


def masked(whole: jax.Array, key: Key) -> jax.Array:
    """What each client sends: its row of `whole` [C, D] uint32 with the masks of all others, modulo 2^32; -> [C, D].

    >>> whole = jnp.array([[1], [2], [3]], jnp.uint32)
    >>> sent = masked(whole, jax.random.key(0))
    >>> bool((sent != whole).all()), int(sent.sum(dtype=jnp.uint32))
    (True, 6)
    """
    clients = len(whole)
    one = lambda i: whole[i] + _sum_of_masks(i, jnp.ones(clients, bool), whole.shape[1], key)
    return jax.lax.map(one, jnp.arange(clients))


def unmasked_sum(sent: jax.Array, there: jax.Array, key: Key) -> jax.Array:
    """The sum of the rows of those that are `there` [C], without the masks that they share with those that are not.

    sent [C, D] uint32 as `masked` gives it; of those that dropped out it is not looked at; -> [D] uint32.

    >>> sent = masked(jnp.array([[1], [2], [3]], jnp.uint32), jax.random.key(0))
    >>> int(unmasked_sum(sent, jnp.array([True, False, True]), jax.random.key(0))[0])
    4
    """
    arrived = jnp.where(there[:, None], sent, jnp.uint32(0)).sum(0, dtype=jnp.uint32)

    def left_over(total, i):
        masks = _sum_of_masks(i, ~there, sent.shape[1], key)
        return total + jnp.where(there[i], masks, jnp.uint32(0)), None

    masks, _ = jax.lax.scan(left_over, jnp.zeros(sent.shape[1], jnp.uint32), jnp.arange(len(sent)))
    return arrived - masks


def _secure_means(sent: Mapping[str, Each], resolution: float, key: Key) -> tuple[dict[str, Mean], jax.Array]:
    """({slot: Mean}, the share of numbers that did not fit)."""
    weights = {slot: valid(one.weight) for slot, one in sent.items()}
    there = jnp.stack(list(weights.values())).any(0)
    clients = len(there)
    rows = [weights[slot][:, None] for slot in sent]
    for slot, one in sent.items():
        for x in filter(is_float, jax.tree.leaves(one.value)):
            flat = wide(x).reshape(clients, -1)
            rows.append(jnp.where(weights[slot][:, None] > 0, flat * weights[slot][:, None], 0))
    stacked = jnp.concatenate(rows, axis=1) / resolution
    # A float32 knows no more than 24 bits of a large number, so the largest that fits is taken a little lower.
    most = jnp.float32((2**31 - 1) // clients * (1 - 2.0**-20))
    whole = jnp.round(jnp.clip(stacked, -most, most)).astype(jnp.int32)
    total = unmasked_sum(masked(whole.astype(jnp.uint32), key), there, key)
    summed = jax.lax.bitcast_convert_type(total, jnp.int32).astype(jnp.float32) * resolution
    cut = (jnp.abs(stacked) > most).mean()
    return _means(sent, weights, summed), cut


def _means(sent: Mapping[str, Each], weights: Mapping[str, jax.Array], summed: jax.Array) -> dict[str, Mean]:
    """The means of the sums [D]: first every slot's weights, then its floats."""
    means, start = {}, len(sent)
    for i, (slot, one) in enumerate(sent.items()):
        weight, leaves = summed[i], []
        scale = jnp.where(weight > 0, 1 / jnp.where(weight > 0, weight, 1), 0)
        structure = jax.tree.structure(one.value)
        for x in jax.tree.leaves(one.value):
            size = x.size // len(x)
            if is_float(x):
                leaves.append((summed[start : start + size] * scale).reshape(x.shape[1:]))
                start += size
            else:
                leaves.append(jnp.tensordot(weights[slot], x.astype(jnp.float32), 1) * scale)
        means[slot] = Mean(jax.tree.unflatten(structure, leaves), weight)
    return means


def _sum_of_masks(i: jax.Array, those: jax.Array, size: int, key: Key) -> jax.Array:
    """[D] the masks of client i with `those` [C] others: added with later ones, subtracted with earlier ones."""

    def add(total, j):
        low, high = jnp.minimum(i, j), jnp.maximum(i, j)
        mask = jax.random.bits(jax.random.fold_in(jax.random.fold_in(key, low), high), (size,))
        signed = jnp.where(i < j, mask, jnp.uint32(0) - mask)
        return total + jnp.where(those[j] & (i != j), signed, jnp.uint32(0)), None

    return jax.lax.scan(add, jnp.zeros(size, jnp.uint32), jnp.arange(len(those)))[0]
