"""The graph of FedMSplit (fedmsplit.py): how alike clients are, block by block, and what they get of each other."""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax

from fedjax_mm import aggregate
from fedjax_mm.methods.fedavg.network import Parts
from fedjax_mm.types import Each, PyTree


def remember(kept: PyTree, sent: Each) -> PyTree:
    """W of one block with the rows of those who sent it. kept: leaves [N + 1, ...]; sent: {"params", "model"} [C].

    >>> sent = Each({"params": jnp.array([7.0, 0.0]), "model": jnp.array([1, 0])}, jnp.array([3.0, 0.0]))
    >>> remember(jnp.array([1.0, 2.0, 3.0]), sent).tolist()
    [1.0, 7.0, 3.0]
    """
    return jax.tree.map(
        lambda old, new: old.at[rows_of(sent, len(old))].set(new.astype(old.dtype), mode="drop"),
        kept,
        sent.value["params"],
    )


def rows_of(sent: Each, beyond: int) -> jax.Array:
    """[C]: the row of each one that sent, or one beyond all rows."""
    return jnp.where(sent.weight > 0, sent.value["model"], beyond)


def likeness(temperature: float, nodes: PyTree, senders: PyTree) -> jax.Array:
    """s [N, C] in 0..1, 1 where the blocks are the same. nodes: leaves [N, ...]; senders: leaves [C, ...].

    >>> one = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    >>> likeness(1.0, {"w": one}, {"w": one}).round(3).tolist()  # exp(-2 / 2) where they are at right angles
    [[1.0, 0.368...], [0.368..., 1.0]]
    """
    square = lambda block: optax.tree.norm(block, squared=True)

    def between(node: PyTree, sender: PyTree) -> jax.Array:
        apart, size = square(optax.tree.sub(node, sender)), square(node) + square(sender)
        return jnp.exp(-apart / (temperature * jnp.where(size > 0, size, 1.0)))

    return jax.lax.map(lambda node: jax.vmap(functools.partial(between, node))(senders), nodes)


def edges(temperature: float, nodes: Parts, heard: jax.Array, uploads: Mapping[str, Each]) -> dict[str, jax.Array]:
    """{block: n_l s_kl^m r_kl [N, C]} of the blocks that the cohort of the nodes and that of the senders both have.

    nodes: block -> W, leaves [N, ...]; heard: [N]; uploads: block -> Each of {"params": leaves [C, ...]}.

    >>> sent = {"head": Each({"params": jnp.array([[1.0, 0.0]])}, jnp.array([5.0]))}
    >>> nodes = {"head": jnp.array([[0.0, 1.0], [0.0, 1.0]])}
    >>> edges(1.0, nodes, jnp.array([True, False]), sent)["head"].round(3).tolist()  # of a client unheard: n_l
    [[0.677...], [5.0]]
    """
    views = {}
    for part in (part for part in uploads if part in nodes):
        view = jnp.ones((len(heard), len(uploads[part].weight)))
        if jax.tree.leaves(nodes[part]):
            like = likeness(temperature, nodes[part], uploads[part].value["params"])
            view = jnp.where(heard[:, None], like, view)
        views[part] = view
    of_all = jnp.stack(list(views.values())).mean(0)
    return {part: uploads[part].weight[None] * view * of_all for part, view in views.items()}


def mix(old: PyTree, weights: jax.Array, sent: PyTree) -> PyTree:
    """U of one block: for each client the mean of the blocks sent, or what it was where all its weights are 0.

    old: leaves [N, ...]; weights: [N, C]; sent: leaves [C, ...].

    >>> mix(jnp.array([9.0, 9.0]), jnp.array([[1.0, 3.0], [0.0, 0.0]]), jnp.array([2.0, 6.0])).tolist()
    [5.0, 9.0]
    """
    return jax.vmap(lambda was, weight: aggregate.weighted_mean(sent, weight, was))(old, weights)
