"""Fusions of modalities other than the mean of their embeddings, for every method on FedAvg's encoders and head.

FedAvg's head reads the mean of an example's embeddings. Here each encoder puts its embedding in places of its own of a
longer vector, with a 1 that says that it is there, so that this mean still has all of them and the head can take them
apart again (`side_by_side`, `taken_apart`). Rounds, checks, costs and scores stay as they are, and so do examples and
clients that lack modalities: an embedding that is not there is 0.
"""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from fedjax_mm.models import heads
from fedjax_mm.models.checks import check_sizes
from fedjax_mm.models.encoders import as_encoders
from fedjax_mm.models.layers import Model
from fedjax_mm.types import Key, PyTree

Fused = tuple[dict[str, Model], Model]  # (encoders, head) to give to a method's `build` in place of one's own


def concatenation(encoders: Mapping[str, Model], num_classes: int, hidden: int = 64) -> Fused:
    """(encoders, head): the head has a relu layer of `hidden` units on the embeddings side by side, [B, M D], and a
    linear layer. (Feng et al. 2023, FedMultimodal, arXiv 2306.09486, concatenation fusion)

    encoders: modality -> Model to embeddings [B, D], one D for all, or whatever models.as_encoder makes one of. Raises
    ValueError for sizes below 1.

    >>> identity = Model(lambda key, x: {}, lambda params, x: x)
    >>> encoders, head = concatenation({"image": identity, "text": identity}, 3, hidden=4)
    >>> mean = (encoders["image"].apply({}, jnp.ones((1, 2))) + encoders["text"].apply({}, jnp.ones((1, 2)))) / 2
    >>> jax.tree.map(jnp.shape, head.init(jax.random.key(0), mean))["Dense_0"]["kernel"]  # M D = 4
    (4, 4)
    """
    check_sizes(num_classes=num_classes, hidden=hidden)
    classify = heads.mlp((hidden,), num_classes)

    def flat(x: jax.Array) -> jax.Array:
        return jnp.concatenate([*taken_apart(len(encoders), x)[0]], axis=-1)

    head = Model(lambda key, x: classify.init(key, flat(x)), lambda params, x: classify.apply(params, flat(x)))
    return side_by_side(encoders), head


def attention(encoders: Mapping[str, Model], num_classes: int, hidden: int = 64, attention_heads: int = 4) -> Fused:
    """(encoders, head): `attention_heads` weighted means of an example's embeddings side by side, each with weights of
    its own that a relu layer of `hidden` units and a linear layer give every embedding, in a softmax over the
    modalities that are there; then a head as that of `concatenation`. (Feng et al. 2023, FedMultimodal, arXiv
    2306.09486, attention fusion, which attends to all steps in time of all modalities; here an embedding is one step)

    Arguments and errors are those of `concatenation`. Parameters: "score" and "classify".

    >>> identity = Model(lambda key, x: {}, lambda params, x: x)
    >>> encoders, head = attention({"image": identity, "text": identity}, 3, hidden=4, attention_heads=2)
    >>> image = encoders["image"].apply({}, jnp.ones((5, 2)))
    >>> params = head.init(jax.random.key(0), image)
    >>> sorted(params), head.apply(params, image).shape
    (['classify', 'score'], (5, 3))
    """
    check_sizes(num_classes=num_classes, hidden=hidden, attention_heads=attention_heads)
    score, classify = heads.mlp((hidden,), attention_heads), heads.mlp((hidden,), num_classes)

    def seen(params: PyTree, x: jax.Array) -> jax.Array:
        h, there = taken_apart(len(encoders), x)
        scores = score.apply(params, h.reshape(-1, h.shape[-1]))
        return attended(h, there, scores.reshape(*h.shape[:2], attention_heads))

    def init(key: Key, x: jax.Array) -> PyTree:
        keys = jax.random.split(key)
        scoring = score.init(keys[0], taken_apart(len(encoders), x)[0][0])
        return {"score": scoring, "classify": classify.init(keys[1], seen(scoring, x))}

    def apply(params: PyTree, x: jax.Array) -> jax.Array:
        return classify.apply(params["classify"], seen(params["score"], x))

    return side_by_side(encoders), Model(init, apply)


FUSIONS = {"concatenation": concatenation, "attention": attention}


def side_by_side(encoders: Mapping[str, Model]) -> dict[str, Model]:
    """The encoders with embeddings [B, M (D + 1)]: 0 but for the place of the modality, where it is with a 1 after it.

    >>> identity = Model(lambda key, x: {}, lambda params, x: x)
    >>> side_by_side({"image": identity, "text": identity})["text"].apply({}, jnp.array([[3.0, 4.0]])).tolist()
    [[0.0, 0.0, 0.0, 3.0, 4.0, 1.0]]
    """

    def apply(place: int, encoder: Model, params: PyTree, x: jax.Array) -> jax.Array:
        h = encoder.apply(params, x)
        h = jnp.pad(h, ((0, 0), (0, 1)), constant_values=1)
        return jnp.pad(h, ((0, 0), (place * h.shape[1], (len(encoders) - 1 - place) * h.shape[1])))

    models = as_encoders("encoders", encoders)
    return {m: one._replace(apply=functools.partial(apply, i, one)) for i, (m, one) in enumerate(models.items())}


def taken_apart(modalities: int, mean: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(embeddings [M, B, D], whether each one is there [M, B]) of the mean of those that are there, [B, M (D + 1)].

    >>> h, there = taken_apart(2, jnp.array([[1.5, 2.0, 0.5, 2.5, 3.0, 0.5], [0.0, 0.0, 0.0, 5.0, 6.0, 1.0]]))
    >>> h[:, 0].tolist(), there.tolist()
    ([[3.0, 4.0], [5.0, 6.0]], [[True, False], [True, True]])
    """
    places = jnp.stack(jnp.split(mean, modalities, axis=-1))
    there = places[..., -1] > 0
    return places[..., :-1] * jnp.maximum(there.sum(0), 1)[None, :, None], there


def attended(h: jax.Array, there: jax.Array, scores: jax.Array) -> jax.Array:
    """[B, A D]: the means of the embeddings, weighted by the softmax of their scores over those that are there.

    h: [M, B, D]; there: [M, B]; scores: [M, B, A]. Of an example without any it is 0.

    >>> h, there = jnp.array([[[3.0]], [[5.0]]]), jnp.array([[True], [True]])
    >>> attended(h, there, jnp.zeros((2, 1, 2))).tolist(), attended(h, jnp.array([[True], [False]]), h).tolist()
    ([[4.0, 4.0]], [[3.0]])
    """
    greatest = jax.lax.stop_gradient(jnp.where(there[..., None], scores, -jnp.inf).max(0))[None]
    # Of what is not there nothing is left, whatever its score; no softmax over nothing, whose gradient is NaN.
    weight = jnp.exp(jnp.minimum(scores - greatest, 0.0)) * there[..., None]
    means = jnp.einsum("mba,mbd->bad", weight / jnp.maximum(weight.sum(0), 1e-9)[None], h)
    return means.reshape(len(means), -1)
