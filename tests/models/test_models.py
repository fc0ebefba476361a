"""Laws of every model: sizes by formula, mapping over clients, gradients, devices, precision, one trace."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from fedjax_mm.models import cnn, heads, lstm, mlp, text

B, D = 4, 6


def floats(*shape):
    return np.random.default_rng(0).normal(size=(B, *shape)).astype(np.float32)


IMAGES = np.random.default_rng(0).integers(0, 256, (B, 8, 8, 3)).astype(np.uint8)
TOKENS = np.array([[3, 4, 5, 0, 0], [6, 2, 0, 0, 0], [1, 1, 2, 3, 9], [7, 0, 0, 0, 0]], np.int32)


def dense(inputs, outputs):
    return (inputs + 1) * outputs


def lstm_size(features, hidden):
    return 4 * hidden * (features + hidden + 1)


# name: (factory, batch, outputs, number of parameters)
MODELS = {
    "mlp": (lambda **k: mlp.encoder([5, 7], D, **k), IMAGES, D, dense(192, 5) + dense(5, 7) + dense(7, D)),
    "2nn": (lambda **k: mlp.classifier([200, 200], 10, **k), floats(28, 28), 10, 199_210),  # McMahan 2017
    "cnn": (lambda **k: cnn.encoder([8, 16], D, **k), IMAGES, D, 27 * 8 + 16 + 72 * 16 + 32 + dense(16, D)),
    "cnn_plain": (
        lambda **k: cnn.encoder([8, 16], D, norm=None, pool="flatten", **k),
        IMAGES,
        D,
        dense(27, 8) + dense(72, 16) + dense(2 * 2 * 16, D),
    ),
    "lstm": (lambda **k: lstm.encoder(5, D, **k), floats(7, 3), D, lstm_size(3, 5) + dense(5, D)),
    "lstm2": (
        lambda **k: lstm.encoder(5, D, layers=2, pool="mean", **k),
        floats(7, 3),
        D,
        lstm_size(3, 5) + lstm_size(5, 5) + dense(5, D),
    ),
    "bag": (lambda **k: text.encoder(10, D, 5, **k), TOKENS, D, 10 * 5 + dense(5, 5) + dense(5, D)),
    "gru": (
        lambda **k: text.encoder(10, D, 5, kind="gru", **k),
        TOKENS,
        D,
        10 * 5 + 3 * 5 * (5 + 5 + 1) + 5 + dense(5, D),
    ),
    "linear": (lambda **k: heads.linear(3, **k), floats(8), 3, dense(8, 3)),
    "head": (lambda **k: heads.mlp([5], 3, **k), floats(8), 3, dense(8, 5) + dense(5, 3)),
}
every_model = pytest.mark.parametrize("name", MODELS)


def size(params):
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def random_params(model, batch, clients=()):
    """Random values in the shapes that init gives, after leading axes `clients`; init itself compiles for seconds."""
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(model.init, jax.random.key(0), batch)
    return jax.tree.map(lambda leaf: rng.normal(0.3, 0.5, (*clients, *leaf.shape)).astype(leaf.dtype), shapes)


@every_model
def test_shapes_types_and_number_of_parameters(name):
    factory, batch, outputs, count = MODELS[name]
    model = factory()
    params = random_params(model, batch)
    assert size(params) == count
    assert all(type(leaf) is dict for leaf in params.values())
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    out = jax.eval_shape(model.apply, params, batch)
    assert out.shape == (B, outputs) and out.dtype == jnp.float32


def over_devices(one_client):
    spec = PartitionSpec("clients")
    mesh = jax.make_mesh((4,), ("clients",), axis_types=(AxisType.Auto,))
    return jax.shard_map(jax.vmap(one_client), mesh=mesh, in_specs=spec, out_specs=spec)


@pytest.mark.parametrize(
    "name, over_clients",
    [(name, jax.vmap) for name in MODELS] + [(name, over_devices) for name in ("cnn", "lstm2", "gru")],
)
def test_mapping_over_clients_equals_a_loop_and_gradients_are_finite(name, over_clients):
    factory, batch, _, _ = MODELS[name]
    model = factory()
    clients = random_params(model, batch, (4,))
    batches = np.stack([np.roll(batch, shift, axis=0) for shift in range(4)])
    step = jax.value_and_grad(lambda params, batch: jnp.square(model.apply(params, batch) - 1.0).mean())
    mapped = jax.jit(over_clients(step))(clients, batches)
    one = jax.jit(step)
    for client in range(4):
        alone = one(jax.tree.map(lambda leaf, c=client: leaf[c], clients), batches[client])
        jax.tree.map(lambda a, b, c=client: np.testing.assert_allclose(a[c], b, rtol=1e-4, atol=1e-5), mapped, alone)
        assert all(np.isfinite(leaf).all() and np.any(leaf != 0) for leaf in jax.tree.leaves(alone))


@every_model
def test_bfloat16_multiplies_in_bfloat16_comes_close_and_gives_float32(name):
    factory, batch, _, _ = MODELS[name]
    model, half = factory(), factory(dtype=jnp.bfloat16)
    params = random_params(half, batch)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    full, rounded = jax.jit(model.apply)(params, batch), jax.jit(half.apply)(params, batch)
    assert rounded.dtype == jnp.float32
    difference = np.abs(full - rounded).max()
    assert 0 < difference < 0.05 * max(1.0, np.abs(full).max())
    products = re.findall(r"dot_general.*: \((.*)\) ->", jax.jit(half.apply).lower(params, batch).as_text())
    assert products and not any("f32" in operands for operands in products)


@pytest.mark.parametrize("name", ["cnn", "lstm2", "gru"])
def test_one_trace_serves_all_clients_and_rounds(name):
    factory, batch, _, _ = MODELS[name]
    model = factory()
    traces = []

    @jax.jit
    def apply(params, batch):
        traces.append(None)
        return model.apply(params, batch)

    params = random_params(model, batch)
    for scale in range(3):
        apply(jax.tree.map(lambda leaf, s=scale: leaf * s, params), batch)
    assert len(traces) == 1


def test_uint8_and_their_scaled_floats_give_the_same_embedding():
    for name in ("cnn", "mlp"):
        model = MODELS[name][0]()
        params = random_params(model, IMAGES)
        whole, scaled = (jax.jit(model.apply)(params, x) for x in (IMAGES, IMAGES / np.float32(127.5) - 1))
        np.testing.assert_allclose(whole, scaled, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["bag", "gru"])
def test_padding_changes_nothing(kind):
    model = text.encoder(10, D, 5, kind)
    params = random_params(model, TOKENS)
    apply = jax.jit(model.apply)
    expected = apply(params, TOKENS)
    longer = np.pad(TOKENS, ((0, 0), (2, 4)))
    np.testing.assert_allclose(apply(params, longer), expected, atol=1e-6)
    other = jax.tree.map(jnp.copy, params)
    other["Embed_0"]["embedding"] = other["Embed_0"]["embedding"].at[0].set(jnp.nan)
    np.testing.assert_array_equal(apply(other, TOKENS), expected)
    gradient = jax.jit(jax.grad(lambda params: model.apply(params, TOKENS).sum()))(params)["Embed_0"]["embedding"]
    np.testing.assert_array_equal(gradient[0], 0.0)
    np.testing.assert_allclose(apply(params, TOKENS[:1, :3]), expected[:1], atol=1e-6)
    assert np.isfinite(apply(params, np.zeros((1, 4), np.int32))).all()


def test_only_the_gru_reads_in_order():
    for kind, differs in (("bag", False), ("gru", True)):
        model = text.encoder(10, D, 5, kind)
        params = random_params(model, TOKENS)
        forth, back = (jax.jit(model.apply)(params, np.array([tokens], np.int32)) for tokens in ([3, 4, 5], [5, 4, 3]))
        assert (np.abs(forth - back).max() > 1e-3) == differs


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda: cnn.encoder([8], D, norm="batch"), "norm must be one of"),
        (lambda: cnn.encoder([8], D, pool="max"), "pool must be one of"),
        (lambda: text.encoder(10, D, 5, kind="bert"), "kind must be one of"),
        (lambda: text.encoder(10, D, 5).init(jax.random.key(0), floats(3)), r"integers \[B, L\]"),
        (lambda: text.encoder(10, D, 5).init(jax.random.key(0), TOKENS[0]), r"integers \[B, L\]"),
    ],
)
def test_mistakes_are_refused_in_words(call, said):
    with pytest.raises(ValueError, match=said):
        call()
