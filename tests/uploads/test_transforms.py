"""What each transform of uploads promises: its limit, its mean, its bytes, and a draw for every client and round."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax_mm import trees, uploads
from fedjax_mm.uploads.leaves import norm

KEY = jax.random.key(3)
RNG = np.random.default_rng(0)
VALUE = {  # 7 x 5 has no whole number of bytes at 4 bits, nor at 1
    "w": {"kernel": RNG.normal(size=(7, 5)).astype(np.float32), "bias": np.zeros(3, np.float32)},
    "z": RNG.normal(size=(2, 3, 4)).astype(np.float32),
    "n": np.int32(5),
}
VALUE = jax.tree.map(jnp.asarray, VALUE)
NUMBERS = 35 + 3 + 24


def through(transform, value=VALUE, key=KEY, received=None):
    """(what arrives, what travels) of one upload of a client that begins."""
    received = received or {}
    encoded, _ = transform.encode(transform.init(value, received), value, received, key)
    return transform.decode(encoded, received), encoded


TRANSFORMS = {
    "clip": uploads.clip_by_norm(0.5),
    "noise": uploads.add_noise(0.1),
    "8 bits": uploads.quantise(8),
    "4 bits": uploads.quantise(4),
    "top-k": uploads.top_k(0.2),
    "random-k": uploads.random_k(0.2),
    "low rank": uploads.low_rank(1),
    "sign": uploads.sign(),
    "sparse levels": uploads.chain(uploads.top_k(0.2), uploads.quantise(8)),
    "feedback": uploads.error_feedback(uploads.sign()),
    "change": uploads.on_change(uploads.quantise(8)),
    "optax": uploads.chain(
        optax.stateless(lambda updates, params: jax.tree.map(jnp.abs, updates)), uploads.quantise(16)
    ),
}
FILLED = {**VALUE, "empty": jnp.zeros((0, 3))}


@functools.cache
def compiled(name):
    """`through` of one client of TRANSFORMS[name], as one program: of tests that send the same shapes."""
    return jax.jit(lambda value, key: through(TRANSFORMS[name], value, key))


def shapes(transform, value=VALUE):
    return jax.eval_shape(lambda value: through(transform, value), value)


every_transform = pytest.mark.parametrize("name", TRANSFORMS)


@every_transform
def test_what_arrives_has_the_shapes_and_types_of_what_was_sent(name):
    arrives, travels = compiled(name)(FILLED, KEY)
    chex.assert_trees_all_equal_shapes_and_dtypes(arrives, FILLED)
    assert int(arrives["n"]) == 5 and set(travels) == set(FILLED)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16) if x.dtype == jnp.float32 else x, VALUE)
    chex.assert_trees_all_equal_shapes_and_dtypes(shapes(TRANSFORMS[name], half)[0], half)


@every_transform
def test_nothing_arrives_as_nothing_and_empty_arrays_pass(name):
    zeros = jax.tree.map(np.zeros_like, FILLED)
    arrives, _ = compiled(name)(zeros, KEY)
    if name != "noise":
        chex.assert_trees_all_equal(arrives, zeros)
    assert arrives["empty"].shape == (0, 3)


@every_transform
def test_a_mapped_client_is_the_client_alone(name):
    many = jax.tree.map(lambda x: np.stack([x, 2 * x, -x]), FILLED)
    keys = jax.random.split(KEY, 3)
    together = jax.jit(jax.vmap(compiled(name)))(many, keys)
    alone = [compiled(name)(jax.tree.map(lambda x, i=i: x[i], many), keys[i]) for i in range(3)]
    chex.assert_trees_all_close(
        together[0], jax.tree.map(lambda *x: np.stack(x), *[one[0] for one in alone]), atol=1e-5
    )


LIMITS = {
    "clip beyond the norm": (uploads.clip_by_norm(1e3), 0),
    "no noise": (uploads.add_noise(0.0), 0),
    "16 bits": (uploads.quantise(16), 3 / 2**15),
    "all are largest": (uploads.top_k(1.0), 0),
    "all are drawn": (uploads.random_k(1.0), 0),
    "a rank that saves nothing": (uploads.low_rank(5), 0),
    "a chain of those": (uploads.chain(uploads.top_k(1.0), uploads.random_k(1.0)), 0),
    "the change of those": (uploads.on_change(uploads.top_k(1.0)), 1e-6),
}


@pytest.mark.parametrize(("transform", "error"), LIMITS.values(), ids=LIMITS)
def test_at_its_limit_a_transform_changes_nothing(transform, error):
    arrives, _ = jax.jit(lambda received: through(transform, received=received))({"z": VALUE["z"] + 1})
    chex.assert_trees_all_close(arrives, VALUE, atol=error)


@pytest.mark.parametrize("name", ["noise", "8 bits", "4 bits", "random-k"])
def test_the_mean_over_draws_is_the_upload(name):
    draws = 4000
    arrives = jax.jit(jax.vmap(lambda key: through(TRANSFORMS[name], key=key)[0]))(jax.random.split(KEY, draws))
    for got, sent in zip(*(map(np.asarray, jax.tree.leaves(x)) for x in (arrives, VALUE)), strict=True):
        spread = np.std(np.asarray(got, np.float64), axis=0) / np.sqrt(draws)
        assert (np.abs(np.mean(got, axis=0, dtype=np.float64) - sent) <= 5 * spread + 1e-5).all()


@pytest.mark.parametrize("name", ["noise", "4 bits", "random-k"])
def test_another_key_is_another_draw_and_arrays_draw_apart(name):
    one, other = (compiled(name)(FILLED, jax.random.key(k))[1] for k in (0, 1))
    assert any((np.asarray(a) != np.asarray(b)).any() for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True))
    some = np.array([1.0, *[0.3] * 49], np.float32)
    same = {"a": some, "b": some, "c": np.ones(50, np.float32)}
    arrives, _ = compiled(name)(same, KEY)
    assert (arrives["a"] != arrives["b"]).any()


BYTES = {  # of NUMBERS floats in arrays of 35, 3 and 24, and an int32
    "8 bits": NUMBERS + 3 * 4 + 4,
    "4 bits": 18 + 2 + 12 + 3 * 4 + 4,
    "top-k": 8 * (7 + 1 + 5) + 4,
    "random-k": 4 * (7 + 1 + 5) + 3 * 8 + 4,
    "sign": 5 + 1 + 3 + 3 * 4 + 4,
    "sparse levels": 5 * (7 + 1 + 5) + 3 * 4 + 4,
    "low rank": 4 * (7 + 5 + 3 + 6 + 4) + 4,
}


@pytest.mark.parametrize("name", BYTES)
def test_bytes_are_those_that_the_encoding_needs(name):
    assert trees.size_bytes(shapes(TRANSFORMS[name])[1]) == BYTES[name]


def test_the_largest_are_kept_and_their_places():
    arrives, travels = compiled("top-k")(FILLED, KEY)
    kernel = np.asarray(VALUE["w"]["kernel"])
    largest = np.argsort(-np.abs(kernel).ravel())[:7]
    expected = np.zeros(35, np.float32)
    expected[largest] = kernel.ravel()[largest]
    np.testing.assert_array_equal(arrives["w"]["kernel"], expected.reshape(7, 5))
    assert travels["w"]["kernel"].indices.dtype == jnp.int32 and set(travels["w"]["kernel"].indices.tolist()) == set(
        largest
    )


def test_levels_lie_beside_the_number_and_the_largest_is_exact():
    x = np.asarray(VALUE["w"]["kernel"])
    for bits in (2, 4, 8, 16):
        step = float(np.abs(x).max()) / (2 ** (bits - 1) - 1)
        got = np.asarray(jax.jit(lambda x, bits=bits: through(uploads.quantise(bits), {"x": x})[0]["x"])(x))
        assert np.abs(got - x).max() < step * 1.001
        top = np.unravel_index(np.abs(x).argmax(), x.shape)
        np.testing.assert_allclose(got[top], x[top], rtol=1e-6)
        assert len(np.unique(np.round(got / step))) <= 2**bits - 1


def test_a_clip_scales_all_slots_together():
    arrives, _ = through(uploads.clip_by_norm(0.5))
    assert float(norm(arrives)) == pytest.approx(0.5, rel=1e-5)
    ratio = float(norm(VALUE)) / 0.5
    np.testing.assert_allclose(arrives["z"] * ratio, VALUE["z"], rtol=1e-5)


def test_a_matrix_of_the_rank_arrives_whole_and_factors_are_warm():
    left, right = RNG.normal(size=(20, 2)), RNG.normal(size=(2, 12))
    value = {"w": jnp.asarray(left @ right, jnp.float32)}
    arrives, _ = jax.jit(lambda value: through(uploads.low_rank(2), value))(value)
    np.testing.assert_allclose(arrives["w"], value["w"], atol=1e-4)
    noisy = {"w": value["w"] + 0.3 * RNG.normal(size=(20, 12)).astype(np.float32)}
    transform, errors = uploads.low_rank(2), []
    state, encode = transform.init(noisy, {}), jax.jit(transform.encode)
    for _ in range(6):
        encoded, state = encode(state, noisy, {}, KEY)
        errors.append(float(norm(optax.tree.sub(transform.decode(encoded, {}), noisy))))
    best = np.linalg.svd(noisy["w"])[1][2:]
    assert errors[0] > errors[-1] == pytest.approx(float(np.sqrt((best**2).sum())), rel=1e-3)


@pytest.mark.parametrize("inner", [uploads.sign(), uploads.top_k(0.1), uploads.random_k(0.1, unbiased=False)])
def test_with_error_feedback_all_of_it_arrives_in_the_end(inner):
    """What arrived in T rounds is what was sent but for what is still owed, which does not grow with T."""
    transform, rounds = uploads.error_feedback(inner), 200

    def send(carry, r):
        state, total = carry
        encoded, state = transform.encode(state, VALUE, {}, jax.random.fold_in(KEY, r))
        return (state, total + transform.decode(encoded, {})["z"]), None

    start = transform.init(VALUE, {}), jnp.zeros_like(VALUE["z"])
    (state, total), _ = jax.jit(lambda carry: jax.lax.scan(send, carry, jnp.arange(rounds)))(start)
    z, total = np.asarray(VALUE["z"]), np.asarray(total)
    np.testing.assert_allclose(total + state["lost"]["z"], rounds * z, rtol=1e-3, atol=1e-2)
    assert np.linalg.norm(total / rounds - z) < 0.2 * np.linalg.norm(z)
    alone = jax.jit(lambda value: inner.decode(inner.encode((), value, {}, KEY)[0], {})["z"])(VALUE)
    assert np.linalg.norm(alone - z) > 0.5 * np.linalg.norm(z)  # what the bound above would miss


def test_of_a_change_the_rest_stays_with_the_server():
    received = {"w": {"kernel": jnp.full((7, 5), 9.0), "bias": jnp.ones(3)}, "z": jnp.ones(4)}  # z of another shape
    arrives, travels = through(uploads.on_change(uploads.top_k(0.2)), received=received)
    change = np.asarray(VALUE["w"]["kernel"]) - 9
    np.testing.assert_allclose(
        travels["w"]["kernel"].values, -np.sort(np.abs(change).ravel())[: -7 - 1 : -1], rtol=1e-6
    )
    assert ((np.asarray(arrives["w"]["kernel"]) == 9).sum(), (np.asarray(arrives["z"]) == 0).sum()) == (28, 19)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: uploads.clip_by_norm(0), "bound"),
        (lambda: uploads.add_noise(-1), "std"),
        (lambda: uploads.quantise(3), "bits is 3; give 2, 4, 8 or 16"),
        (lambda: uploads.quantise(True), "bits"),
        (lambda: uploads.top_k(0), "fraction"),
        (lambda: uploads.random_k(1.5), "fraction"),
        (lambda: uploads.random_k(0.5, unbiased=1), "unbiased"),
        (lambda: uploads.low_rank(0), "rank"),
        (lambda: uploads.chain(), "chain has no transforms"),
        (lambda: uploads.chain("clip"), "upload is 'clip'"),
        (lambda: uploads.error_feedback(None), "upload is None"),
    ],
)
def test_a_wrong_argument_is_named(make, named):
    with pytest.raises(ValueError, match=named) as error:
        make()
    assert "\n" not in str(error.value)
