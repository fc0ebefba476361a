"""What FedProx and FedDyn add to federated averaging of w, any tree of parameters."""

import jax
import jax.numpy as jnp
import optax

from fedjax_mm.types import Mean, PyTree


def proximal_term(mu: float, tuned: PyTree, received: PyTree) -> jax.Array:
    """mu/2 |w - w_0|^2, a number []: FedProx's term, and with alpha as mu a term of FedDyn's.

    tuned: w. received: w_0, w as the client received it.

    >>> float(proximal_term(0.5, {"w": jnp.array([3.0, 1.0])}, {"w": jnp.array([1.0, 1.0])}))
    1.0
    """
    return 0.5 * mu * optax.tree.norm(optax.tree.sub(tuned, received), squared=True)


def pull_term(pull: PyTree, tuned: PyTree) -> jax.Array:
    """<g_k, w>, a number []: FedDyn's linear term, which a client subtracts from its loss. pull: g_k.

    >>> float(pull_term({"w": jnp.array([1.0, 2.0])}, {"w": jnp.array([3.0, 4.0])}))
    11.0
    """
    return jnp.asarray(optax.tree.vdot(pull, tuned))


def update_pull(alpha: float, pull: PyTree, tuned: PyTree, received: PyTree) -> PyTree:
    """g_k <- g_k - alpha (w_k - w_0), once a FedDyn client has trained.

    >>> update_pull(0.5, jnp.array([1.0]), jnp.array([5.0]), jnp.array([3.0])).tolist()
    [0.0]
    """
    return jax.tree.map(lambda g, w, w0: g - alpha * (w - w0), pull, tuned, received)


def dyn_server_step(alpha: float, clients: float, h: PyTree, old: PyTree, mean: Mean) -> tuple[PyTree, PyTree]:
    """FedDyn's step of the server: (h, w).

        h <- h - alpha/N sum_P (w_k - w_0),    w <- mean_P w_k - h / alpha

    clients: N, all there are. old: w_0. mean: the mean of w_k over those who took part, and their number P.

    >>> mean = Mean(jnp.array([3.0]), weight=jnp.float32(2))
    >>> h, w = dyn_server_step(0.5, clients=4, h=jnp.array([0.0]), old=jnp.array([1.0]), mean=mean)
    >>> h.tolist(), w.tolist()
    ([-0.5], [4.0])
    """
    share = alpha * mean.weight / clients
    h = jax.tree.map(lambda h, w, w0: h - share * (w - w0), h, mean.value, old)
    return h, jax.tree.map(lambda w, h: w - h / alpha, mean.value, h)
