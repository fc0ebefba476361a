"""What FlexMod (flexmod.py) measures of a set of modalities, and how it shares training steps out among encoders."""

import itertools
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from fedjax_mm.local import Batch
from fedjax_mm.models import Model
from fedjax_mm.types import PyTree


def demand(need_weight: float | jax.Array, quality: jax.Array, shapley: jax.Array) -> jax.Array:
    """(1 - beta) phi_m + beta (1 - q_m), [M], each as a share of its sum. Of a negative phi_m, 0 is taken.

    >>> demand(0.5, jnp.array([0.9, 0.7]), jnp.array([0.3, -0.1])).round(3).tolist()
    [0.625, 0.375...]
    """
    shares = lambda x: jnp.where(x.sum() > 0, x / jnp.where(x.sum() > 0, x.sum(), 1.0), 1 / len(x))
    return (1 - need_weight) * shares(jnp.maximum(shapley, 0)) + need_weight * shares(1 - quality)


def allocate(budget: float | jax.Array, wanted: jax.Array) -> jax.Array:
    """p [M]: proportional to `wanted` [M], at most 1, with the mean `budget`.

    >>> allocate(0.5, jnp.array([3.0, 1.0])).tolist()
    [0.75, 0.25]
    >>> allocate(0.75, jnp.array([3.0, 1.0, 0.5, 0.5])).tolist()  # what is above 1 goes to the others
    [1.0, 1.0, 0.5, 0.5]
    """
    wanted = jnp.maximum(wanted, 1e-3 * wanted.max())  # so that a budget of 1 is spent whatever is wanted
    share = jnp.zeros_like(wanted)
    for _ in wanted:
        full = share >= 1
        left = budget * len(wanted) - full.sum()
        share = jnp.where(full, 1.0, left * wanted / jnp.maximum(jnp.where(full, 0.0, wanted).sum(), 1e-9))
    return jnp.minimum(share, 1.0)


def works(share: jax.Array, step: jax.Array) -> jax.Array:
    """Whether an encoder is trained in step 0, 1, ... of a client: evenly, in the first one if its share is above 0.

    >>> [bool(works(jnp.float32(0.4), jnp.float32(s))) for s in range(5)]
    [True, False, True, False, False]
    """
    until = lambda steps: jnp.ceil(share * steps - 1e-4)
    return until(step + 1) > until(step)


def right_by_set(head: Model, params: PyTree, embedded: Mapping[str, tuple], batch: Batch) -> jax.Array:
    """[2^M]: in how many rows the head is right on the mean embedding of each set of modalities; of none it is 0.

    embedded: modality -> (embeddings [B, D], whether a row has it [B]). The sets are in `shapley_values`' order.

    >>> identity = Model(lambda key, x: {}, lambda params, x: x)
    >>> batch = {"label": jnp.array([0, 0]), "mask": jnp.ones(2)}
    >>> of_a, of_b = jnp.array([[9.0, 0.0], [1.0, 0.0]]), jnp.array([[0.0, 2.0], [0.0, 2.0]])
    >>> embedded = {"a": (of_a, jnp.ones(2)), "b": (of_b, jnp.ones(2))}
    >>> right_by_set(identity, {}, embedded, batch).tolist()  # of none, b, a, both
    [2.0, 0.0, 2.0, 1.0]
    """
    there = jnp.stack([has for _, has in embedded.values()])[..., None].astype(jnp.float32)
    seen = jnp.stack([h for h, _ in embedded.values()]) * there
    sets = jnp.array(list(itertools.product([0.0, 1.0], repeat=len(embedded))))

    def right(members: jax.Array) -> jax.Array:
        mean = jnp.tensordot(members, seen, 1) / jnp.maximum(jnp.tensordot(members, there, 1), 1.0)
        return ((head.apply(params, mean).argmax(-1) == batch["label"]) * batch["mask"]).sum()

    return jax.vmap(right)(sets)
