"""The recurrences equal NumPy loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_mm.models import lstm, text


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def random_params(init, *inputs):
    """Random values in the shapes that init gives."""
    rng = np.random.default_rng(5)
    shapes = jax.eval_shape(init, jax.random.key(0), *inputs)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)


def test_lstm_equals_numpy():
    batch, steps, features, hidden = 3, 7, 5, 4
    x = np.random.default_rng(0).normal(size=(batch, steps, features)).astype(np.float32)
    module = lstm.LSTM(hidden)
    params = random_params(module.init, x)["params"]
    expected = np.zeros((batch, steps, hidden))
    for b in range(batch):
        h, c = np.zeros(hidden), np.zeros(hidden)
        for t in range(steps):
            gates = x[b, t] @ params["input_kernel"] + h @ params["recurrent_kernel"] + params["bias"]
            i, f, g, o = (gates[n * hidden : (n + 1) * hidden] for n in range(4))
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
            expected[b, t] = h
    np.testing.assert_allclose(jax.jit(module.apply)({"params": params}, x), expected, atol=1e-5)


def test_gru_equals_numpy_and_skips_invalid_steps():
    batch, steps, features, hidden = 3, 6, 5, 4
    rng = np.random.default_rng(1)
    x = rng.normal(size=(batch, steps, features)).astype(np.float32)
    valid = np.array([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [0, 1, 0, 1, 1, 0]], bool)
    module = text.GRU(hidden)
    params = random_params(module.init, x, valid)["params"]
    cut = lambda a, n: a[..., n * hidden : (n + 1) * hidden]
    expected = np.zeros((batch, steps, hidden))
    for b in range(batch):
        h = np.zeros(hidden)
        for t in range(steps):
            if valid[b, t]:
                from_x, from_h = x[b, t] @ params["input_kernel"] + params["bias"], h @ params["recurrent_kernel"]
                reset, update = (sigmoid(cut(from_x, n) + cut(from_h, n)) for n in (0, 1))
                new = np.tanh(cut(from_x, 2) + reset * (cut(from_h, 2) + params["recurrent_bias"]))
                h = (1 - update) * new + update * h
            expected[b, t] = h
    np.testing.assert_allclose(jax.jit(module.apply)({"params": params}, x, valid), expected, atol=1e-5)


def test_fresh_lstm_is_orthogonal_glorot_and_remembers():
    params = jax.jit(lstm.LSTM(8).init)(jax.random.key(0), jnp.zeros((1, 2, 24)))["params"]
    recurrent = params["recurrent_kernel"]
    np.testing.assert_allclose(recurrent @ recurrent.T, np.eye(8), atol=1e-5)
    limit = np.sqrt(6 / (24 + 32))
    assert 0.9 * limit < jnp.abs(params["input_kernel"]).max() <= limit
    np.testing.assert_array_equal(params["bias"], [0] * 8 + [1] * 8 + [0] * 16)


def test_layers_stack_and_the_pools_read_what_they_say():
    x = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)
    params = random_params(lstm.encoder(4, 6, layers=2).init, x)
    sequence = x
    for name in ("LSTM_0", "LSTM_1"):
        sequence = jax.jit(lstm.LSTM(4).apply)({"params": params[name]}, sequence)
    for pool, read in (("last", sequence[:, -1]), ("mean", sequence.mean(1))):
        expected = np.asarray(read) @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"][None]
        np.testing.assert_allclose(jax.jit(lstm.encoder(4, 6, 2, pool).apply)(params, x), expected, atol=1e-5)


def test_the_scan_is_not_unrolled_and_multiplies_inputs_once():
    x = jnp.zeros((2, 50, 3))
    model = lstm.encoder(4, 6)
    params = random_params(model.init, x)
    text = jax.jit(model.apply).lower(params, x).as_text()
    assert text.count("stablehlo.while") == 1
    assert text.count("stablehlo.dot_general") == 3  # all inputs, one recurrent step, the last layer


@pytest.mark.parametrize(
    "arguments, said",
    [({"pool": "max"}, "pool must be one of"), ({"layers": 0}, "layers must be an integer of at least 1")],
)
def test_unknown_choices_are_refused_in_words(arguments, said):
    with pytest.raises(ValueError, match=said):
        lstm.encoder(4, 6, **arguments)


def test_flat_input_is_refused_in_words():
    with pytest.raises(ValueError, match=r"\[B, T, features\]"):
        lstm.encoder(4, 6).init(jax.random.key(0), jnp.zeros((2, 3)))


def test_the_gradient_by_hand_equals_automatic_differentiation():
    rng = np.random.default_rng(2)
    projected, kernel, weigh = (rng.normal(size=s).astype(np.float32) for s in ((6, 3, 16), (4, 16), (6, 3, 4)))

    def outputs(projected, kernel):
        h, c, seen = jnp.zeros((3, 4)), jnp.zeros((3, 4)), []
        for x in projected:
            i, f, g, o = jnp.split(x + h @ kernel, 4, axis=-1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            seen.append(h)
        return jnp.stack(seen)

    loss = lambda f: lambda *a: (jnp.sin(f(*a)) * weigh).sum()
    for got, expected in zip(
        jax.jit(jax.grad(loss(lstm.recurrence), (0, 1)))(projected, kernel),
        jax.jit(jax.grad(loss(outputs), (0, 1)))(projected, kernel),
        strict=True,
    ):
        np.testing.assert_allclose(got, expected, atol=1e-5)
