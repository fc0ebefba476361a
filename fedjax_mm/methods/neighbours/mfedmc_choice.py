"""How MFedMC (mfedmc.py) chooses what is sent: a client among its modalities, and the server among clients."""

import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


def shapley_values(values: jax.Array) -> jax.Array:
    """phi [M] of M players. values: [2^M], of their sets in the order of itertools.product([0, 1], repeat=M).

    >>> shapley_values(jnp.array([0.0, 2.0, 4.0, 10.0])).tolist()  # of none, the second, the first, both
    [6.0, 4.0]
    """
    players = values.shape[0].bit_length() - 1
    sets = list(itertools.product([0, 1], repeat=players))
    share = np.zeros((players, len(sets)), np.float32)
    for i, (n, members) in itertools.product(range(players), enumerate(sets)):
        others = sum(members) - members[i]
        chance = math.factorial(others) * math.factorial(players - others - 1) / math.factorial(players)
        share[i, n] = chance if members[i] else -chance
    return jnp.matmul(jnp.asarray(share), values, precision="highest")


def priorities(
    weights: tuple[float, float, float], phi: jax.Array, sizes: Sequence[int], waited: jax.Array
) -> jax.Array:
    """[M]: how much each of a client's modalities deserves to be sent.

    weights: (alpha_s, alpha_c, alpha_r); phi, waited: [M]; sizes: |theta_m|.

    >>> priorities((1.0, 1.0, 0.5), jnp.array([0.2, -0.4]), [10, 40], jnp.array([2.0, 0.0])).tolist()
    [1.75, 1.0]
    """
    of_greatest = lambda x: x / jnp.where(x.max() > 0, x.max(), 1.0)
    small = 1 - of_greatest(jnp.asarray(sizes, jnp.float32))
    return weights[0] * of_greatest(jnp.abs(phi)) + weights[1] * small + weights[2] * of_greatest(waited)


def offered(priority: jax.Array, number: int) -> jax.Array:
    """[M] float: 1 for the `number` modalities of the highest priority, the first of equals.

    >>> offered(jnp.array([0.5, 2.0, 0.5]), 2).tolist()
    [1.0, 1.0, 0.0]
    """
    return (jnp.argsort(jnp.argsort(-priority)) < number).astype(jnp.float32)


def chosen(share: float, weight: jax.Array, loss: jax.Array) -> jax.Array:
    """The weights [C] of those who are taken: the share of the lowest loss among those of weight above 0, else 0.

    >>> chosen(0.5, jnp.array([7.0, 5.0, 0.0, 3.0]), jnp.array([0.3, 0.1, 0.0, 0.2])).tolist()
    [0.0, 5.0, 0.0, 3.0]
    """
    offer = weight > 0
    taken = jnp.ceil(share * offer.sum() - 1e-3)
    rank = jnp.argsort(jnp.argsort(jnp.where(offer, loss, jnp.inf)))
    return jnp.where(offer & (rank < taken), weight, 0.0)
