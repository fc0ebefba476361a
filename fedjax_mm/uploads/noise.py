"""Clipping and Gaussian noise, as a client applies them to its own upload.

Clipping and noise: Abadi et al., CCS 2016 (DP-SGD); McMahan et al., ICLR 2018 (client-level privacy). `privacy` says
what (epsilon, delta) they give, `central` has the noise that the server adds.
"""

import jax
import jax.numpy as jnp

from fedjax_mm.checks import check_number
from fedjax_mm.transforms import Transform, stateless
from fedjax_mm.types import PyTree
from fedjax_mm.uploads.leaves import map_floats, norm, wide


def clip_by_norm(bound: float) -> Transform:
    """Scales all slots of an upload together, so that their Euclidean norm is `bound` at most. (Abadi 2016, alg. 1)

    Where clients send weights, clip their change: on_change(clip_by_norm(1.0)). That is also the norm bounding of Sun
    et al., 2019 ("Can you really backdoor federated learning?"). bound: above 0; an upload within it is not changed.

    >>> value = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
    >>> encoded, _ = clip_by_norm(1.0).encode((), value, {}, jax.random.key(0))
    >>> [round(float(x[0]), 3) for x in encoded.values()]
    [0.6, 0.8]
    """
    check_number("bound", bound, above=0)
    return stateless(lambda value, received, key: clipped(value, bound))


def clipped(tree: PyTree, bound: jax.Array | float) -> PyTree:
    """The tree, scaled down to a norm of `bound` where it has a larger one. bound may be traced.

    >>> clipped({"w": jnp.array([3.0, 4.0])}, 10.0)["w"].tolist()
    [3.0, 4.0]
    """
    length = norm(tree)
    # Divided and not multiplied with an inverse: rounding must not carry an upload beyond the bound that noise covers.
    scale = jnp.maximum(length / bound, 1.0)
    return map_floats(lambda x: (wide(x) / scale).astype(x.dtype), tree)


def add_noise(std: float) -> Transform:
    """Adds Gaussian noise of this standard deviation to every number that a client sends (local privacy).

    After clip_by_norm(C), std = z C is the Gaussian mechanism with the noise multiplier z; the key is of the client and
    the round, so no two of them have the same noise. std: at least 0; 0 changes nothing. (Dwork and Roth, 2014, 3.5)

    >>> add_noise(0.0).encode((), {"w": jnp.ones(2)}, {}, jax.random.key(0))[0]["w"].tolist()
    [1.0, 1.0]
    """
    std = check_number("std", std, least=0)
    return stateless(lambda value, received, key: noisy(value, std, key))


def noisy(tree: PyTree, std: jax.Array | float, key: jax.Array) -> PyTree:
    """The tree with Gaussian noise on each of its floats. std may be traced."""
    draw = lambda x, key: (wide(x) + std * jax.random.normal(key, x.shape, wide(x).dtype)).astype(x.dtype)
    return map_floats(draw, tree, key=key)
