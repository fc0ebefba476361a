"""The split autoencoder against the LSTM layers it is made of, and its size against the authors'."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_mm.models import autoencoder
from fedjax_mm.models.lstm import LSTM

AE = autoencoder.split_lstm({"a": 3, "b": 5}, hidden=4, width=2)
X = np.random.default_rng(0).normal(size=(6, 7, 3)).astype(np.float32)


def count(tree):
    return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(tree))


def decoded(ae, params, m, code, steps):
    return jax.jit(ae.decode, static_argnums=(1, 3))(params, m, code, steps)


@pytest.mark.parametrize(
    ("features", "width", "authors"),  # docs/specs/fedmekt.md, 2.1
    [((9, 6), 4, 24_076), ((63, 15), 10, 60_856), ((3, 8), 2, 21_692), ((512, 8), 4, 1_205_760)],
)
def test_parameters_are_the_authors_less_one_bias_per_layer(features, width, authors):
    ae = autoencoder.split_lstm(dict(zip("ab", features, strict=True)), hidden=32, width=width)
    params = jax.eval_shape(ae.init, jax.random.key(0))
    second_biases = sum(4 * (32 + width + 32 + f) for f in features)
    assert count(params) == authors - second_biases
    assert {part.split("_")[0] for part in params} == {"encoder", "decoder"}


def test_halves_are_stacked_lstms_and_the_code_is_seen_at_every_step():
    params = jax.jit(AE.init)(jax.random.key(1))
    layer = lambda half, i, hidden, x: jax.jit(LSTM(hidden).apply)({"params": params[half][f"LSTM_{i}"]}, x)
    z, h = jax.jit(AE.encode, static_argnums=1)(params, "a", X)
    np.testing.assert_allclose(h, layer("encoder_a", 0, 4, X), atol=1e-6)
    np.testing.assert_allclose(z, layer("encoder_a", 1, 2, h), atol=1e-6)
    repeated = np.repeat(np.asarray(z)[:, -1:], 9, axis=1)
    expected = layer("decoder_b", 1, 5, layer("decoder_b", 0, 4, repeated))
    np.testing.assert_allclose(decoded(AE, params, "b", z[:, -1], 9), expected, atol=1e-6)


def test_the_linear_autoencoder_equals_numpy():
    ae = autoencoder.linear({"a": 3, "b": 5}, width=2)
    params = ae.init(jax.random.key(1))
    z, h = ae.encode(params, "a", X)
    states = X @ np.asarray(params["encoder_a"]["kernel"])
    np.testing.assert_allclose(h, states, atol=1e-5)
    np.testing.assert_allclose(z, np.stack([states[:, : t + 1].mean(1) for t in range(7)], 1), atol=1e-5)
    expected = np.asarray(z[:, -1]) @ np.asarray(params["decoder_b"]["kernel"])
    np.testing.assert_allclose(ae.decode(params, "b", z[:, -1], 9), np.repeat(expected[:, None], 9, 1), atol=1e-5)


def test_bfloat16_is_for_products_alone():
    x = np.random.default_rng(0).normal(size=(2, 4, 3)).astype(np.float32)
    full, half = (autoencoder.split_lstm({"a": 3}, 5, 2, True, dtype) for dtype in (jnp.float32, jnp.bfloat16))
    params = full.init(jax.random.key(0))
    for exact, rounded in zip(full.encode(params, "a", x), half.encode(params, "a", x), strict=True):
        assert rounded.dtype == jnp.float32 and 0 < np.abs(exact - rounded).max() < 0.02
    assert half.decode(params, "a", x[:, 0, :2], 4).dtype == jnp.float32
    with pytest.raises(ValueError, match="dtype must be a floating type"):
        autoencoder.split_lstm({"a": 3}, dtype=jnp.int32)


def test_a_readout_is_linear_and_not_bounded():
    ae = autoencoder.split_lstm({"a": 3}, hidden=4, width=2, readout=True)
    params = jax.jit(ae.init)(jax.random.key(0))
    code = np.ones((2, 2), np.float32)
    dense = params["decoder_a"]["Dense_0"]
    params["decoder_a"]["Dense_0"] = {"kernel": 100 * dense["kernel"], "bias": dense["bias"]}
    assert np.abs(decoded(ae, params, "a", code, 5)).max() > 1
    bounded = jax.tree.map(lambda x: 100 * x, jax.jit(AE.init)(jax.random.key(0)))
    assert np.abs(decoded(AE, bounded, "a", code, 5)).max() <= 1


def test_first_layers_start_orthogonal_and_the_rest_within_its_bound():
    ae = autoencoder.split_lstm({"a": 3}, hidden=16, width=2)
    half = jax.tree.map(np.asarray, jax.jit(ae.init)(jax.random.key(0))["encoder_a"])
    for name in ("input_kernel", "recurrent_kernel"):
        w = half["LSTM_0"][name]
        np.testing.assert_allclose(w @ w.T, np.eye(len(w)), atol=1e-5)
    for leaf in (*half["LSTM_1"].values(), 2**1.5 * half["LSTM_0"]["bias"]):
        assert 0.4 < np.abs(leaf).max() <= 2**-0.5


def test_a_client_with_one_modality_needs_its_parts_alone():
    params = jax.eval_shape(AE.init, jax.random.key(0))
    own = {part: params[part] for part in AE.parts("b")}
    back = lambda own, x: AE.decode(own, "b", AE.encode(own, "b", x)[0][:, -1], 4)
    assert jax.eval_shape(back, own, np.ones((2, 4, 5), np.float32)).shape == (2, 4, 5)


def test_wrong_shapes_are_refused_in_words():
    with pytest.raises(ValueError, match=r"a is \(2, 7, 5\); it must be \[B, T, 3\]"):
        AE.encode(AE.init(jax.random.key(0)), "a", np.zeros((2, 7, 5), np.float32))
    with pytest.raises(ValueError, match="features\\['a'\\] must be an integer of at least 1, got 0"):
        autoencoder.split_lstm({"a": 0})
