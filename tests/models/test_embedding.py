"""The encoders against their formulas in NumPy, the law of padding, sizes, mapping over clients, and GloVe files."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_mm.models import bert, embedding

B, D, C, V, F = 3, 6, 8, 12, 5
IMAGES = np.random.default_rng(0).normal(size=(B, 2, 3, 4)).astype(np.float32)
TOKENS = np.array([[3, 4, 5, 4], [6, 2, 0, 0], [11, 0, 0, 0]], np.int32)


class Trunk(NamedTuple):
    """A stand-in for a network: one linear layer and tanh on every cell; no cells left with `flat`."""

    width: int = C
    flat: bool = False

    def init(self, key, images):
        return {"kernel": jax.random.normal(key, (images.shape[-1], self.width))}

    def apply(self, params, images):
        y = jnp.tanh(images @ params["kernel"])
        return y.mean((1, 2)) if self.flat else y


TEXT = lambda **k: embedding.pie_text(V, D, F, **k)


def size(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def params_of(model, batch, seed=1):
    """Random values in the shapes that init gives, so that no bias is 0 and no scale 1."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(model.init, jax.random.key(0), batch)
    return jax.tree.map(lambda leaf: rng.normal(0.2, 0.5, leaf.shape).astype(leaf.dtype), shapes)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def dense(p, x):
    return x @ p["kernel"] + p["bias"]


def pie(p, out, x):
    """One example: out [D], x [T, C]."""
    scores = [(np.tanh(cell @ p["w1"]["kernel"]) @ p["w2"]["kernel"]).item() for cell in x]
    weights = np.exp(scores) / np.exp(scores).sum()
    y = out + sigmoid(dense(p["fc"], sum(w * cell for w, cell in zip(weights, x, strict=True))))
    return (y - y.mean()) / np.sqrt(y.var() + 1e-5) * p["norm"]["scale"] + p["norm"]["bias"]


def gru(p, words):
    """The last state of one text's words [T, F]; gates in the order reset, update, new."""
    h = np.zeros(p["recurrent_kernel"].shape[0])
    for x in words:
        r, u, n = np.split(x @ p["input_kernel"] + p["bias"], 3)
        r_h, u_h, n_h = np.split(h @ p["recurrent_kernel"], 3)
        new = np.tanh(n + sigmoid(r + r_h) * (n_h + p["recurrent_bias"]))
        h = (1 - sigmoid(u + u_h)) * new + sigmoid(u + u_h) * h
    return h


def test_pie_image_is_its_formula():
    model = embedding.pie_image(Trunk(), D)
    p = params_of(model, IMAGES)
    cells = np.tanh(IMAGES.reshape(B, 6, 4) @ p["trunk"]["kernel"])
    expected = [pie(p["head"]["pie"], dense(p["head"]["fc"], x.mean(0)), x) for x in cells]
    np.testing.assert_allclose(jax.jit(model.apply)(p, IMAGES), expected, rtol=1e-4, atol=1e-5)


def test_mean_image_and_linear_are_their_formulas():
    mean, linear = embedding.mean_image(Trunk(), D, scale=128.0), embedding.linear(Trunk(flat=True), D)
    p = params_of(mean, IMAGES)
    means = np.tanh(IMAGES @ p["trunk"]["kernel"]).mean((1, 2))
    np.testing.assert_allclose(jax.jit(mean.apply)(p, IMAGES), dense(p["head"], 128 * means), rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(jax.jit(linear.apply)(p, IMAGES), dense(p["head"], means), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("backward", "relu", "scale"), [("full", False, 1.0), ("last", True, 128.0)])
def test_pie_text_is_its_formula(backward, relu, scale):
    model = embedding.pie_text(V, D, F, relu, scale, backward)
    p = params_of(model, TOKENS)
    expected = []
    for tokens in TOKENS:
        words = p["words"]["embedding"][tokens[tokens != 0]]
        reverse = words[::-1] if backward == "full" else words[-1:]
        out = np.concatenate([gru(p["forward"], words), gru(p["backward"], reverse)])
        z = scale * pie(p["pie"], out, words)
        expected.append(np.maximum(z, 0) if relu else z)
    z = jax.jit(model.apply)(p, TOKENS)
    assert z.dtype == np.float32
    np.testing.assert_allclose(z, expected, rtol=1e-3, atol=1e-4 * scale)


@pytest.mark.parametrize("backward", ["full", "last"])
def test_padding_changes_nothing(backward):
    model = embedding.pie_text(V, D, F, backward=backward)
    p = params_of(model, TOKENS)
    apply = jax.jit(model.apply)
    z = apply(p, TOKENS)
    longer = np.pad(TOKENS, ((0, 0), (1, 2)))
    np.testing.assert_allclose(apply(p, longer), z, rtol=1e-5, atol=1e-6)
    p["words"]["embedding"][0] = 1e3
    np.testing.assert_allclose(apply(p, TOKENS), z, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backward", ["full", "last"])
def test_a_text_of_padding_alone_is_a_finite_constant_with_finite_gradients(backward):
    model = embedding.pie_text(V, D, F, backward=backward)
    p = params_of(model, TOKENS)
    p["pie"]["fc"]["bias"][:] = 0.0  # as init gives it: the text then has no variance under the norm
    tokens = np.zeros((2, 3), np.int32)
    loss = lambda p: (jnp.square(model.apply(p, tokens)).sum(), model.apply(p, tokens))
    grads, z = jax.jit(jax.grad(loss, has_aux=True))(p)
    np.testing.assert_allclose(z, np.tile(p["pie"]["norm"]["bias"], (2, 1)), atol=1e-5)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    assert np.abs(grads["pie"]["norm"]["bias"]).min() > 0


def test_sizes_are_those_of_creamfl():
    shapes = lambda model, batch: jax.eval_shape(model.init, jax.random.key(0), batch)
    text = shapes(embedding.pie_text(11_755, 256), TOKENS)
    gru_size = 3 * 128 * (300 + 128 + 1) + 128
    norm = 2 * 256
    assert size(text["words"]) == 3_526_500
    assert size(text) == 3_526_500 + 2 * gru_size + 300 * 150 + 150 + 301 * 256 + norm == 3_978_946
    image = shapes(embedding.pie_image(Trunk(512), 256), IMAGES)
    assert size(image["head"]) == 2 * 513 * 256 + 512 * 256 + 256 + norm == 394_496
    assert size(shapes(embedding.mean_image(Trunk(512), 256), IMAGES)["head"]) == 513 * 256


def test_linear_takes_a_transformer():
    model = embedding.linear(bert.encoder(V, 8, 1, 2, 16, 6), D)
    params = jax.eval_shape(model.init, jax.random.key(0), TOKENS)
    assert size(params["head"]) == 9 * D
    assert jax.eval_shape(model.apply, params, TOKENS).shape == (B, D)


CASES = {
    "pie_image": (lambda: embedding.pie_image(Trunk(), D), IMAGES),
    "mean_image": (lambda: embedding.mean_image(Trunk(), D, 2.0), IMAGES),
    "linear": (lambda: embedding.linear(Trunk(flat=True), D), IMAGES),
    "pie_text_full": (lambda: embedding.pie_text(V, D, F), TOKENS),
    "pie_text_last": (lambda: embedding.pie_text(V, D, F, backward="last"), TOKENS),
}


@pytest.mark.parametrize("name", CASES)
def test_clients_train_under_vmap_and_in_a_loop_as_alone(name):
    factory, batch = CASES[name]
    model = factory()

    def train(params):
        target = jnp.linspace(-1.0, 1.0, B * D).reshape(B, D)
        loss = lambda p: jnp.square(model.apply(p, batch) - target).mean()
        step = lambda _, p: jax.tree.map(lambda leaf, g: leaf - 0.1 * g, p, jax.grad(loss)(p))
        return jax.lax.fori_loop(0, 3, step, params)

    clients = [params_of(model, batch, seed) for seed in (1, 2)]
    together = jax.jit(jax.vmap(train))(jax.tree.map(lambda *leaves: np.stack(leaves), *clients))
    alone = jax.jit(train)
    for i, params in enumerate(clients):
        trained = alone(params)
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-4, atol=1e-5), together, trained)
        moved = jax.tree.map(lambda a, b: bool(np.isfinite(a).all() and (a != b).any()), trained, params)
        # From a zero state nothing is recurrent: the backward direction of "last" reads one word.
        if name == "pie_text_last":
            moved["backward"].pop("recurrent_kernel")
        assert all(jax.tree.leaves(moved)), moved


@pytest.mark.parametrize("name", ["pie_image", "mean_image", "pie_text_full"])
def test_inits_tell_inputs_and_keys_apart(name):
    factory, batch = CASES[name]
    model = factory()
    params = jax.jit(jax.vmap(lambda key: model.init(key, batch)))(jax.random.split(jax.random.key(0)))
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if leaf.ndim == 3:
            assert leaf.std((1, 2)).min() > 0 and (leaf[0] != leaf[1]).all(), path
    z = np.array(jax.jit(jax.vmap(model.apply, (0, None)))(params, batch))
    unit = z / np.linalg.norm(z, axis=-1, keepdims=True)
    flat = unit.reshape(-1, D)
    assert (flat @ flat.T)[~np.eye(2 * B, dtype=bool)].max() < 0.995
    assert z.std(-1).min() > 1e-2


@pytest.mark.parametrize("name", ["pie_image", "pie_text"])
def test_bfloat16_is_for_products_alone(name):
    make = (lambda **k: embedding.pie_image(Trunk(), D, **k)) if name == "pie_image" else TEXT
    batch = IMAGES if name == "pie_image" else TOKENS
    model, half = make(), make(dtype=jnp.bfloat16)
    params = params_of(half, batch)
    full, rounded = model.apply(params, batch), half.apply(params, batch)
    assert rounded.dtype == jnp.float32 and {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    assert 0 < np.abs(full - rounded).max() < 0.05 * np.abs(full).max()


def test_a_table_is_the_first_embedding():
    table = np.random.default_rng(0).normal(size=(V, F))
    model = embedding.pie_text(V, D, F, table=table)
    words = jax.jit(lambda key: model.init(key, TOKENS)["words"])(jax.random.key(0))
    np.testing.assert_array_equal(words["embedding"], table.astype(np.float32))
    with pytest.raises(ValueError, match=r"table must be \[vocabulary, width\], \(13, 5\), got \(12, 5\)"):
        embedding.pie_text(V + 1, D, F, table=table)


def test_what_cannot_be_is_said():
    with pytest.raises(ValueError, match="dim must be even"):
        embedding.pie_text(V, 7)
    with pytest.raises(ValueError, match="backward must be one of"):
        embedding.pie_text(V, D, backward="first")
    with pytest.raises(ValueError, match="integers"):
        embedding.pie_text(V, D).init(jax.random.key(0), jnp.ones((2, 3)))
    for factory in (embedding.pie_image, embedding.mean_image):
        with pytest.raises(ValueError, match="feature maps"):
            factory(Trunk(flat=True), D).init(jax.random.key(0), IMAGES)


def test_glove_reads_the_words_in_their_order(tmp_path):
    path = tmp_path / "glove.txt"
    path.write_bytes("a 1 2 3\n. . . 7 7 7\nköln 4 -5e-1 6\n\x85 0 0 0\nunread x y z\n7 8 8 8\n".encode())
    table = embedding.glove(path, ["<pad>", "köln", "a", "missing", "7", ". . .", "a"])
    assert table.dtype == np.float32
    np.testing.assert_array_equal(table[[1, 2, 4, 5, 6]], [[4, -0.5, 6], [1, 2, 3], [8, 8, 8], [7, 7, 7], [1, 2, 3]])
    np.testing.assert_array_equal(table, embedding.glove(path, ["<pad>", "köln", "a", "missing", "7", ". . .", "a"]))
    assert (table[0] != table[3]).all()
    missing = embedding.glove(path, ["a", *(f"missing{i}" for i in range(2000))])[1:]
    assert abs(missing.mean()) < 0.01 and abs(missing.std() - 0.1) < 0.01


@pytest.mark.parametrize("line", ["the 4 5", "the 4 5 6 7", "the 4 five 6", "the 4 nan 6", "the", ""])
def test_a_damaged_line_is_named(tmp_path, line):
    path = tmp_path / "glove.txt"
    path.write_text(f"a 1 2 3\n{line}\nb 1 2 3\n")
    with pytest.raises(ValueError, match=r"glove\.txt, line 2: expected a word and 3 numbers"):
        embedding.glove(path, ["a", "the"])


def test_glove_says_where_to_get_it_and_that_nothing_was_found(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no GloVe vectors at .*https://nlp\.stanford\.edu/projects/glove/"):
        embedding.glove(tmp_path / "absent.txt", ["a"])
    (tmp_path / "glove.txt").write_text("a 1 2\n")
    with pytest.raises(ValueError, match="none of the 2 words"):
        embedding.glove(tmp_path / "glove.txt", ["A", "B"])
