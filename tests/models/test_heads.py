"""Projection and prediction heads against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_mm import trees
from fedjax_mm.models import heads

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
X = RNG.normal(1, 2, size=(5, 3)).astype(np.float32)


def random_params(head, *shape):
    """As `init` makes them, with random norms and statistics (positive variances)."""
    shapes, rng = head.init(KEY, *shape), np.random.default_rng(1)  # of its own: no test depends on those before it
    draw = lambda x: jnp.asarray(rng.uniform(0.5, 1.5, x.shape) * rng.choice([-1, 1], x.shape), jnp.float32)
    params = jax.tree.map(draw, shapes)
    positive = trees.path_mask(params, lambda path: path.endswith("running_variance"))
    return jax.tree.map(lambda x, positive: abs(x) if positive else x, params, positive)


def by_hand(params, x, statistics):
    """Output of a projection head without dropout, and mean and unbiased variance before each norm."""
    found = {}
    for i in range(len(params) // 2):
        norm = {k: np.asarray(v) for k, v in params[f"norm_{i}"].items()}
        x = x @ np.asarray(params[f"dense_{i}"]["kernel"])
        found[f"norm_{i}"] = (x.mean(0), x.var(0, ddof=1))
        mean, variance = (
            (x.mean(0), x.var(0))
            if statistics == "batch"
            else (
                norm["running_mean"],
                norm["running_variance"],
            )
        )
        x = (x - mean) / np.sqrt(variance + 1e-5)
        if "scale" in norm:
            x = np.maximum(x * norm["scale"] + norm["bias"], 0)
    return x, found


def test_projection_normalises_by_its_batch_in_training_and_by_running_statistics_else():
    head = heads.projection(hidden=4, dim=2, rate=0.0)
    params = random_params(head, 3)
    np.testing.assert_allclose(head.apply(params, X), by_hand(params, X, "running")[0], rtol=1e-4, atol=1e-5)
    z, new = head.train(params, X, KEY)
    expected, found = by_hand(params, X, "batch")
    np.testing.assert_allclose(z, expected, rtol=1e-4, atol=1e-4)
    for name, (mean, variance) in found.items():
        for key, now in (("running_mean", mean), ("running_variance", variance)):
            kept = 0.9 * np.asarray(params[name][key]) + 0.1 * now
            np.testing.assert_allclose(new[name][key], kept, rtol=1e-4, atol=1e-5)
    others = lambda params: trees.partition(params, trees.path_mask(params, lambda p: not heads.is_statistic(p)))[0]
    jax.tree.map(np.testing.assert_array_equal, others(new), others(params))
    assert len(jax.tree.leaves(params)) - len(jax.tree.leaves(others(params))) == 6


def test_projection_has_the_papers_layers():
    shapes = jax.eval_shape(lambda: heads.projection().init(KEY, 192))
    trained, running = trees.partition(shapes, trees.path_mask(shapes, lambda p: not heads.is_statistic(p)))
    assert trees.size_bytes(trained) == 4 * 18_628_608
    assert trees.size_bytes(running) == 4 * 2 * (4096 + 4096 + 256)
    assert set(shapes["norm_2"]) == {"running_mean", "running_variance"}
    fresh = heads.projection(hidden=4, dim=2, layers=1).init(KEY, 3)
    assert set(fresh) == {"dense_0", "norm_0"} and fresh["dense_0"]["kernel"].shape == (3, 2)


def test_statistics_have_no_gradient():
    head = heads.projection(hidden=4, dim=2, rate=0.0)
    params = random_params(head, 3)
    grads = jax.jit(jax.grad(lambda p: (head.train(p, X, KEY)[0][:, 0] ** 3).sum()))(params)
    for name in ("norm_0", "norm_1", "norm_2"):
        for key in ("running_mean", "running_variance"):
            np.testing.assert_array_equal(grads[name][key], 0)
    through = jax.jit(jax.grad(lambda p: head.train(p, X, KEY)[1]["norm_0"]["running_mean"].sum()))(params)
    np.testing.assert_array_equal(through["dense_0"]["kernel"], 0)
    assert np.abs(grads["dense_0"]["kernel"]).max() > 0


def test_dropout_acts_before_each_norm_but_the_last_and_only_in_training():
    head = heads.projection(hidden=64, dim=2, rate=0.5)
    params = head.init(KEY, 3)
    means = jax.jit(lambda key: head.train(params, X, key)[1])
    a, b = means(jax.random.key(1)), means(jax.random.key(2))
    assert np.abs(a["norm_0"]["running_mean"] - b["norm_0"]["running_mean"]).max() > 1e-3
    one = heads.projection(dim=2, layers=1, rate=0.5)
    params = one.init(KEY, 3)
    train = jax.jit(one.train)
    np.testing.assert_array_equal(train(params, X, jax.random.key(1))[0], train(params, X, KEY)[0])
    assert heads.is_statistic("image/head/norm_0/running_mean") and not heads.is_statistic("running_mean/scale")


@pytest.mark.parametrize("fusion", heads.FUSIONS)
def test_prediction_fuses_by_hand(fusion):
    head = heads.prediction(4, fusion, hidden=6, rate=0.0)
    z = np.random.default_rng(2).normal(size=(2, 5, 3)).astype(np.float32)
    params = random_params(head, 3)
    p = jax.tree.map(np.asarray, params)
    dense = lambda name, x: x @ p[name]["kernel"] + p[name]["bias"]
    vectors = [z[0], z[1]]
    if fusion == "add":
        vectors.append(z[0] + z[1])
    if fusion == "attention":
        mapped = [dense("map_0", z[0]), dense("map_1", z[1])]
        weight = np.exp([dense("score", m)[:, 0] for m in mapped])
        weight /= weight.sum(0)
        vectors.append(sum(w[:, None] * m for w, m in zip(weight, mapped, strict=True)))
    if fusion == "co-attention":
        share = [np.exp(dense(f"map_{i}", z[i])) for i in range(2)]
        share = [s / s.sum(1, keepdims=True) for s in share]
        vectors += [share[1] * z[0], share[0] * z[1]]
    expected = dense("dense_1", np.maximum(dense("dense_0", np.concatenate(vectors, 1)), 0))
    np.testing.assert_allclose(head.apply(params, z), expected, rtol=1e-4, atol=1e-4)
    logits, same = head.train(params, z, KEY)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
    assert same is params
    dropped = heads.prediction(4, fusion, hidden=6, rate=0.5).train(params, z, KEY)[0]
    assert np.abs(dropped - expected).max() > 1e-2


def test_prediction_has_the_papers_size_and_takes_three_modalities():
    shapes = jax.eval_shape(lambda: heads.prediction(13).init(KEY, 256))
    assert trees.size_bytes(shapes) == 4 * 134_669
    z = np.random.default_rng(2).normal(size=(3, 5, 2)).astype(np.float32)
    for fusion in ("concat", "add", "attention"):
        head = heads.prediction(4, fusion)
        assert jax.eval_shape(lambda head=head: head.apply(head.init(KEY, 2, 3), z)).shape == (5, 4)


def test_mistakes_are_refused_in_words():
    with pytest.raises(ValueError, match="layers must be an integer of at least 1"):
        heads.projection(layers=0)
    with pytest.raises(ValueError, match="fusion must be one of"):
        heads.prediction(4, "gate")
    with pytest.raises(ValueError, match="co-attention is of two modalities, not 3"):
        heads.prediction(4, "co-attention").init(KEY, 2, 3)
