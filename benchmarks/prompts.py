"""A model of pictures and words that a server learns of its labelled pairs, in the place of CLIP for PromptFL.

Its encoder of texts is one layer of attention over the embeddings of words; each class has a name of one word.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from fedjax_mm.losses import unit
from fedjax_mm.models import Model

SCALE = 10.0
WIDTH = 16


def encode(params: Mapping[str, jax.Array], prompts: jax.Array) -> jax.Array:
    """Features [K, D] of prompts [K, T, W]: attention among the words, their mean, and a linear map of its tanh.

    >>> eye = jnp.eye(2)
    >>> params = {"query": 0 * eye, "key": eye, "value": eye, "out": eye}
    >>> encode(params, jnp.zeros((3, 4, 2))).shape
    (3, 2)
    """
    query, key, value = (prompts @ params[name] for name in ("query", "key", "value"))
    shares = jax.nn.softmax(query @ key.swapaxes(1, 2) / prompts.shape[-1] ** 0.5, axis=-1)
    return jnp.tanh((prompts + shares @ value).mean(1)) @ params["out"]


def head(classes: int) -> Model:
    """The head [B, D] -> [B, K] by which pictures and names learn one space: SCALE times the cosine of each name.

    Its parameters are those of `encode`, and "names" [K, 1, W].
    """

    def init(key: jax.Array, x: jax.Array) -> dict[str, jax.Array]:
        shapes = dict.fromkeys(("query", "key", "value"), (WIDTH, WIDTH))
        shapes |= {"out": (WIDTH, x.shape[-1]), "names": (classes, 1, WIDTH)}
        keys = jax.random.split(key, len(shapes))
        return {name: 0.5 * jax.random.normal(k, shape) for (name, shape), k in zip(shapes.items(), keys, strict=True)}

    def apply(params: Mapping[str, jax.Array], x: jax.Array) -> jax.Array:
        return SCALE * unit(x) @ unit(encode(params, params["names"])).T

    return Model(init, apply)


def text_encoder(params: Mapping[str, jax.Array]) -> Callable[[jax.Array], jax.Array]:
    """`encode` with these parameters, frozen."""
    known = {name: jnp.asarray(x) for name, x in params.items() if name != "names"}
    return lambda prompts: encode(known, prompts)
