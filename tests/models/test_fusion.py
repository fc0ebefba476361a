"""Fusions of modalities in FedAvg's model against NumPy, where examples and clients lack modalities too."""

import jax
import numpy as np
import pytest
from scipy.special import softmax

from fedjax_mm.methods.fedavg import init_parts, predict_logits
from fedjax_mm.models import Model, fusion

RNG = np.random.default_rng(0)
SAME = Model(lambda key, x: {}, lambda params, x: x)
X = {m: RNG.normal(size=(4, 3)).astype(np.float32) for m in "abc"}
HAS = {"has_b": np.array([True, False, True, False]), "has_c": np.array([True, True, False, False])}


def mlp(params, x):
    """By hand."""
    first, second = ({k: np.asarray(v) for k, v in params[f"Dense_{i}"].items()} for i in range(2))
    return np.maximum(x @ first["kernel"] + first["bias"], 0) @ second["kernel"] + second["bias"]


def fused(name, **given):
    """(encoders, head, parameters) for three modalities."""
    encoders, head = fusion.FUSIONS[name](dict.fromkeys("abc", SAME), 5, hidden=6, **given)
    return encoders, head, init_parts(encoders, head, X, jax.random.key(0))


@pytest.mark.parametrize("own", ["abc", "ab", "b"])
def test_concatenation_puts_embeddings_side_by_side_and_0_where_one_is_not_there(own):
    encoders, head, params = fused("concatenation")
    batch = {m: X[m] for m in own} | {f"has_{m}": HAS[f"has_{m}"] for m in own if m != "a"}
    there = {m: HAS.get(f"has_{m}", np.ones(4))[:, None] * (m in own) for m in "abc"}
    side = np.concatenate([X[m] * there[m] for m in "abc"], axis=1)
    found = predict_logits(encoders, head, params, jax.tree.map(jax.numpy.asarray, batch))
    np.testing.assert_allclose(found, mlp(params["head"], side), atol=1e-5)


def test_attention_weighs_the_embeddings_that_are_there_and_no_gradient_is_nan():
    encoders, head, params = fused("attention", attention_heads=2)
    expected = []
    for e in range(4):
        seen = [X[m][e] for m in "abc" if HAS.get(f"has_{m}", np.ones(4))[e]]
        share = softmax(mlp(params["head"]["score"], np.array(seen)), axis=0)  # [seen, heads]
        expected.append(mlp(params["head"]["classify"], (share.T @ np.array(seen)).ravel()))
    batch = jax.tree.map(jax.numpy.asarray, {**X, **HAS})
    np.testing.assert_allclose(predict_logits(encoders, head, params, batch), expected, atol=1e-5)
    nothing = batch | {f"has_{m}": jax.numpy.zeros(4) for m in "abc"}
    gradient = jax.grad(lambda w: predict_logits(encoders, head, w, nothing).sum())(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
