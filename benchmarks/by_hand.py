"""A round of FedAvg written by hand for the workload of engine.py alone, in plain JAX and optax's loss."""

import functools
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

COHORT = "all"  # the name FederatedData gives a cohort that is alone


class Hand(NamedTuple):
    """What a round by hand is made for."""

    apply: Callable[..., jax.Array]
    examples: int  # of each client
    batch_size: int
    rate: float
    chunk: int


def round_by_hand(apply: Callable[..., jax.Array], settings: Any, chunk: int) -> Callable:
    """(weights, round), participants [C], arrays, rows [N, M], key -> the next (weights, round): FedAvg and no more.

    Equal clients with whole batches, no padding, no check, no metrics. Its shuffles are ours, drawn from the same keys.

    apply: of the network. settings: those of benchmarks.engine.
    """
    return functools.partial(one_round, Hand(apply, settings.examples, settings.batch_size, settings.client_lr, chunk))


def one_round(hand: Hand, state, index, arrays, rows, key):
    """The next (weights, round)."""
    weights, number = state
    key = jax.random.fold_in(jax.random.fold_in(key, 1), number)
    key = jax.random.fold_in(key, zlib.crc32(COHORT.encode()))
    share = 1 / len(index)

    def add(total, index):
        if hand.chunk == 1:
            trained = client(hand, weights, index[0], arrays, rows, key)
            return jax.tree.map(lambda t, w: t + share * w, total, trained), None
        train = functools.partial(client, hand)
        trained = jax.vmap(train, (None, 0, None, None, None))(weights, index, arrays, rows, key)
        weighted = lambda t, w: t + jnp.tensordot(jnp.full(hand.chunk, share), w, 1, precision="highest")
        return jax.tree.map(weighted, total, trained), None

    zeros = jax.tree.map(jnp.zeros_like, weights)
    return jax.lax.scan(add, zeros, index.reshape(-1, hand.chunk))[0], number + 1


def client(hand: Hand, weights, index, arrays, rows, key):
    """A client's weights after one epoch of SGD."""
    key = jax.random.fold_in(key, index)
    for part in (0, 0, 0):  # local training, first epoch, shuffle
        key = jax.random.fold_in(key, part)
    order = rows[index][jnp.argsort(jax.random.uniform(key, (hand.examples,)))]

    def step(weights, batch):
        x, label = (jnp.take(arrays[name], batch, axis=0, mode="clip") for name in ("x", "label"))
        gradient = jax.grad(loss, argnums=1)(hand, weights, x, label)
        return jax.tree.map(lambda w, g: w - hand.rate * g, weights, gradient), None

    return jax.lax.scan(step, weights, order.reshape(-1, hand.batch_size))[0]


def loss(hand: Hand, weights, x, label):
    """The mean cross-entropy of a batch."""
    return optax.softmax_cross_entropy_with_integer_labels(hand.apply(weights, x), label).mean()
