"""Laws of the transformer encoders. That they equal Hugging Face's is in test_pretrained.py."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_mm import trees
from fedjax_mm.models import ast, attention, bert, transformer, vit

SIZES = {"dim": 8, "depth": 2, "heads": 2, "mlp": 12}
TOKENS = np.array([[2, 7, 9, 3, 0, 0], [5, 1, 4, 8, 6, 3]], np.int32)
IMAGES = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3)).astype(np.uint8)
SPECTROGRAMS = np.random.default_rng(0).normal(size=(2, 15, 12)).astype(np.float32)
MODELS = {
    "vit": (lambda **k: vit.encoder(image=8, patch=4, **{**SIZES, **k}), IMAGES),
    "distilbert": (lambda **k: bert.encoder(vocabulary=10, positions=8, **{**SIZES, **k}), TOKENS),
    "bert": (
        lambda **k: bert.encoder(vocabulary=10, positions=8, **{**SIZES, "types": 2, "pooler": True, **k}),
        TOKENS,
    ),
    "ast": (lambda **k: ast.encoder(mels=12, frames=15, patch=4, stride=3, **{**SIZES, **k}), SPECTROGRAMS),
}
every_model = pytest.mark.parametrize("name", MODELS)
KEY = jax.random.key(3)


def random_params(model, clients=()):
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(model.init, KEY, model.example)
    return jax.tree.map(lambda leaf: rng.normal(0.1, 0.5, (*clients, *leaf.shape)).astype(leaf.dtype), shapes)


def size(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    "preset, depth, width, sizes",
    [
        (vit.tiny, 12, 192, {"embeddings": 185_664, "layers": 12 * 444_864, "norm": 384, "pooler": 37_056}),
        (bert.distilbert, 6, 768, {"embeddings": 23_835_648, "layers": 6 * 7_087_872}),
        (bert.base, 12, 768, {"embeddings": 23_837_184, "layers": 12 * 7_087_872, "pooler": 590_592}),
        (ast.distilled, 6, 768, {"embeddings": 1_131_264, "layers": 6 * 7_087_872, "norm": 1_536}),
    ],
)
def test_presets_have_the_papers_numbers_of_parameters(preset, depth, width, sizes):
    model = preset()
    params = jax.eval_shape(model.init, KEY, model.example)
    assert {part: size(tree) for part, tree in params.items()} == sizes
    assert (model.depth, model.width, len(params["layers"])) == (depth, width, depth)
    assert jax.eval_shape(model.apply, params, model.example).shape == (1, width)
    # All of them are in checkpoints, and under names of their own.
    leaves = [leaf for leaf in model.checkpoint.names if leaf.startswith(tuple(sizes))]
    assert len({model.checkpoint.names[leaf][0] for leaf in leaves}) == len(leaves) >= len(jax.tree.leaves(params))


@every_model
def test_first_kernels_of_layers_have_the_std_that_is_asked_for(name):
    make, x = MODELS[name]
    for std in (0.02, 0.5):
        layers = make(std=std).init(KEY, jnp.asarray(x[:1]))["layers"]
        drawn = jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(layers) if leaf.ndim == 2])
        assert 0.9 * std < float(drawn.std()) < 1.1 * std


@pytest.mark.parametrize("name", ["vit", "bert"])
def test_fresh_parameters_give_finite_outputs_of_their_own(name):
    make, batch = MODELS[name]
    model = make()
    params = jax.jit(model.init)(KEY, batch)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    first, second = (params["layers"][n]["query"]["kernel"] for n in ("00", "01"))
    assert np.abs(first - second).max() > 0.01
    out = jax.jit(model.apply)(params, batch)
    assert out.shape == (2, 8) and np.isfinite(out).all() and np.abs(out[0] - out[1]).max() > 1e-5


@pytest.mark.parametrize("name", ["vit", "distilbert", "ast"])
def test_mapping_over_clients_equals_a_loop_without_convolutions(name):
    make, batch = MODELS[name]
    model = make(depth=1)
    params = random_params(model, (2,))
    batches = np.stack([batch, batch[::-1]])

    def step(params, batch, key):
        return jax.value_and_grad(lambda p: (model.apply(p, batch, key) ** 2).sum())(params)

    keys = jax.random.split(KEY, 2)
    mapped = jax.jit(jax.vmap(step)).lower(params, batches, keys)
    assert "convolution" not in mapped.as_text()
    one = jax.jit(step)
    pick = lambda i: (jax.tree.map(lambda leaf: leaf[i], params), batches[i], keys[i])
    loop = jax.tree.map(lambda *leaves: jnp.stack(leaves), one(*pick(0)), one(*pick(1)))
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * (1 + np.abs(b).max()))
    jax.tree.map(close, mapped.compile()(params, batches, keys), loop)


@pytest.mark.parametrize("name", ["vit", "bert"])
def test_the_gradient_of_the_last_layers_is_the_whole_ones_and_asks_less(name):
    make, batch = MODELS[name]
    model = make()
    params = random_params(model)
    loss = lambda params: (model.apply(params, batch) ** 2).sum()
    mask = trees.path_mask(params, lambda path: path.startswith(("layers/01", "norm")))
    trained, frozen = trees.partition(params, mask)
    part = lambda trained: loss(trees.merge(trained, frozen))
    expected = trees.partition(jax.jit(jax.grad(loss))(params), mask)[0]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), jax.jit(jax.grad(part))(trained), expected
    )
    forward, of_part, of_all = (
        str(jax.make_jaxpr(f)(p)) for f, p in ((loss, params), (jax.grad(part), trained), (jax.grad(loss), params))
    )
    products = lambda text: text.count("dot_general[")
    # Backwards every product becomes two, but those of query, key and value hand nothing down, unless to a norm that
    # trains; below the last layer there is nothing at all.
    last = {"vit": 2 * 8, "bert": 2 * 8 - 3}[name]
    assert products(of_part) == products(forward) + last
    assert products(of_all) >= products(of_part) + 2 * 8
    if name == "bert":  # the embeddings' gradient is a scatter
        assert "scatter" in of_all and "scatter" not in of_part


def test_layers_run_in_order_of_their_numbers():
    model = vit.encoder(image=8, patch=4, **{**SIZES, "depth": 3})
    params = random_params(model)
    params["layers"] = dict(zip(("11", "2", "10"), params["layers"].values(), strict=True))
    x = jax.jit(vit.Embeddings(8, 4, 8).apply)({"params": params["embeddings"]}, IMAGES)
    layer = jax.jit(transformer.Layer(2, 12).apply)
    for number in ("2", "10", "11"):
        x = layer({"params": params["layers"][number]}, x)
    x = np.asarray(x)
    mean, deviation = x[:, 0].mean(-1, keepdims=True), x[:, 0].std(-1, keepdims=True)
    expected = (x[:, 0] - mean) / deviation * params["norm"]["scale"][None] + params["norm"]["bias"][None]
    np.testing.assert_allclose(jax.jit(model.apply)(params, IMAGES), expected, rtol=1e-4, atol=1e-4)
    below = jax.jit(model.hidden)(transformer.first(params, 2), IMAGES)
    cut = jax.jit(model.apply)(transformer.above(params, 11), IMAGES, below=below)
    np.testing.assert_allclose(cut, expected, rtol=1e-4, atol=1e-4)
    fewer = transformer.first(params, 2)
    assert fewer["layers"].keys() == {"2", "10"} and fewer["norm"] is params["norm"]
    with pytest.raises(ValueError, match="layers is 4; there are 3"):
        transformer.first(params, 4)


@pytest.mark.parametrize("name", ["distilbert", "bert"])
def test_dropout_needs_a_key_and_starts_where_it_is_told(name):
    make, batch = MODELS[name]
    model = make(dropout=0.3)
    params = random_params(model)
    tokens = jax.jit(model.tokens, static_argnums=3)
    without = tokens(params, batch)
    np.testing.assert_array_equal(jax.jit(make(dropout=0.0).tokens)(params, batch, KEY), without)
    np.testing.assert_array_equal(tokens(params, batch, KEY, 2), without)
    every, last = tokens(params, batch, KEY, 0), tokens(params, batch, KEY, 1)
    np.testing.assert_array_equal(tokens(params, batch, KEY), every)
    differ = lambda a, b: np.abs(a - b).max() > 1e-2
    assert differ(every, without) and differ(last, without) and differ(every, last)
    assert differ(every, tokens(params, batch, jax.random.key(4), 0))
    # The layer below is as it is without a key, and the last one draws as it does alone.
    below = tokens(transformer.first(params, 1), batch)
    rates = (0.3, 0.3 if name == "bert" else 0.0, 0.3)
    layer = transformer.Layer(2, 12, pre_norm=False, dropout=rates)
    alone = jax.jit(layer.apply)({"params": params["layers"]["01"]}, below, batch != 0, jax.random.fold_in(KEY, 2))
    np.testing.assert_allclose(last, alone, rtol=1e-4, atol=1e-4)
    cut = jax.jit(model.tokens, static_argnums=3)(transformer.above(params, 1), batch, KEY, 1, below)
    np.testing.assert_allclose(cut, last, rtol=1e-5, atol=1e-5)
    # No layers: the embeddings' own.
    empty = transformer.first(params, 0)
    bare, dropped = np.asarray(tokens(empty, batch)), np.asarray(tokens(empty, batch, KEY))
    kept = dropped != 0
    assert 0.5 < kept.mean() < 0.9
    np.testing.assert_allclose(np.where(kept, dropped, 0), np.where(kept, bare / 0.7, 0), rtol=1e-5)
    np.testing.assert_array_equal(tokens(empty, batch, KEY, 1), bare)


@pytest.mark.parametrize("place", range(3))
def test_each_of_a_layers_rates_acts(place):
    rates = tuple(0.5 * (i == place) for i in range(3))
    layer, plain = transformer.Layer(2, 12, dropout=rates), transformer.Layer(2, 12)
    x = np.random.default_rng(0).normal(size=(2, 5, 8)).astype(np.float32)
    params = random_params(vit.encoder(image=8, patch=4, **SIZES))["layers"]["00"]
    silent = {0: ("value", "out"), 1: ("out",), 2: ("fc_2",)}[place]  # nothing passes through the place
    quiet = {**params, **{name: jax.tree.map(np.zeros_like, params[name]) for name in silent}}
    dropped, whole = jax.jit(lambda p: layer.apply({"params": p}, x, key=KEY)), jax.jit(plain.apply)
    for p, acts in ((params, True), (quiet, False)):
        a, b = dropped(p), whole({"params": p}, x)
        assert (np.abs(a - b).max() > 1e-2) == acts


def test_dropout_keeps_the_mean_and_drops_its_share():
    x = jnp.full((100, 100), 2.0)
    y = transformer.dropout(x, 0.2, KEY)
    np.testing.assert_allclose(np.unique(y), [0.0, 2.5])
    np.testing.assert_allclose((y == 0).mean(), 0.2, atol=0.02)
    assert transformer.dropout(x, 0.2, None) is x


def test_attention_equals_numpy_and_its_dropout_leaves_the_mean():
    q, k, v = (np.random.default_rng(i).normal(size=(2, 5, 2, 4)).astype(np.float32) for i in range(3))
    mask = np.array([[1, 1, 1, 0, 0], [1, 0, 1, 1, 1]], bool)
    logits = np.einsum("bthd,bshd->bhts", q, k) / 2.0
    weights = np.exp(logits) * mask[:, None, None]
    expected = np.einsum("bhts,bshd->bthd", weights / weights.sum(-1, keepdims=True), v)
    attend = jax.jit(attention.attention, static_argnums=4)
    np.testing.assert_allclose(attend(q, k, v, mask, 0.5, None), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(attend(q, k, v, mask, 1e-7, KEY), expected, rtol=1e-5, atol=1e-6)
    for key in (None, KEY):
        assert np.isfinite(attend(q, k, v, np.zeros_like(mask), 0.5, key)).all()
    many = jax.jit(jax.vmap(lambda key: attention.attention(q, k, v, mask, 0.25, key)))(jax.random.split(KEY, 4000))
    np.testing.assert_allclose(many.mean(0), expected, atol=0.06)
    assert many.std(0).min() > 0.05


def test_padding_takes_part_in_nothing_and_nothing_but_padding_is_finite():
    model = MODELS["distilbert"][0](depth=1)
    params = random_params(model)
    apply = jax.jit(model.apply)
    np.testing.assert_allclose(apply(params, np.pad(TOKENS, ((0, 0), (0, 2)))), apply(params, TOKENS), atol=1e-5)
    value, gradient = jax.jit(jax.value_and_grad(lambda p: model.apply(p, np.zeros_like(TOKENS)).sum()))(params)
    assert np.isfinite(value) and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    outside = TOKENS.copy()
    outside[0, 1] = 10
    assert np.isnan(apply(params, outside)[0]).all() and np.isfinite(apply(params, outside)[1]).all()


def test_uint8_images_and_their_scaled_floats_are_the_same():
    model = MODELS["vit"][0]()
    params = random_params(model)
    scaled = IMAGES / np.float32(127.5) - 1
    apply = jax.jit(model.apply)
    np.testing.assert_allclose(apply(params, IMAGES), apply(params, scaled), rtol=1e-5, atol=1e-5)


@every_model
def test_bfloat16_is_for_the_arithmetic_alone(name):
    make, batch = MODELS[name]
    model, half = make(), make(dtype=jnp.bfloat16)
    params = random_params(model)
    out = jax.jit(half.apply)(params, batch)
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, jax.jit(model.apply)(params, batch), atol=0.15)
    products = [line for line in str(jax.make_jaxpr(half.apply)(params, batch)).splitlines() if "dot_general[" in line]
    assert len(products) >= 16 and sum("bf16[" in line for line in products) >= 14
    shapes = jax.eval_shape(half.init, KEY, half.example)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda: vit.encoder(image=10, patch=4), "image 10 must be a multiple of patch 4"),
        (lambda: vit.encoder(dim=8, heads=3), "heads 3 must divide the width 8"),
        (lambda: MODELS["vit"][0]().init(KEY, IMAGES[:, :4]), r"images must be \[B, 8, 8, 3\], got \(2, 4, 8, 3\)"),
        (lambda: bert.encoder(pooler=True), "has no pooler"),
        (lambda: MODELS["bert"][0]().init(KEY, TOKENS.astype(np.float32)), r"integers \[B, T\] with T at most 8"),
        (lambda: MODELS["bert"][0]().init(KEY, np.ones((1, 9), np.int32)), r"T at most 8, got int32 \(1, 9\)"),
        (lambda: ast.encoder(mels=12), "must be at least a patch, 16"),
        (lambda: MODELS["ast"][0]().init(KEY, SPECTROGRAMS.swapaxes(1, 2)), r"\[B, 15, 12\], got \(2, 12, 15\)"),
    ],
)
def test_mistakes_are_refused_in_words(call, said):
    with pytest.raises(ValueError, match=said):
        call()


def test_a_remat_encoder_has_the_same_gradients_with_dropout_too():
    model = bert.encoder(vocabulary=9, dim=4, depth=2, heads=2, mlp=6, positions=3, dropout=0.5)
    words, key = np.array([[1, 5, 0], [2, 3, 8]]), jax.random.key(1)
    slope = lambda one: jax.grad(lambda params: (one.apply(params, words, key, 1) ** 2).sum())
    both = lambda params: (slope(model)(params), slope(transformer.remat(model))(params))
    params = jax.jit(model.init)(jax.random.key(0), words)
    plain, again = jax.jit(both)(params)
    chex.assert_trees_all_close(plain, again, rtol=1e-5, atol=1e-6)
    layers = lambda one: str(jax.make_jaxpr(one.apply)(params, words)).count("remat")
    assert layers(model) == 0 and layers(transformer.remat(model)) == 2
    with pytest.raises(ValueError, match="give an encoder as vit.encoder and its siblings make it"):
        transformer.remat(model._replace(apply=lambda params, x: x))
