"""Means and weightings against the dense formulas in NumPy, and the laws of missing clients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, logsumexp, softmax
from scipy.stats import entropy

from fedjax_mm import aggregate
from fedjax_mm.clients import make_mesh
from fedjax_mm.types import Each, Mean

C, P, D = 4, 11, 6
VARIANTS = [(1.0, False), (0.3, False), (1.0, True), (0.3, True)]
WEIGHTINGS = {
    "contrastive": lambda r, w, a: aggregate.contrastive_weights(r, w, a),
    "contrastive without the match": lambda r, w, a: aggregate.contrastive_weights(r, w, a, 0.5, True),
    "mean": lambda r, w, a: aggregate.mean_weights(r, w),
    "size": lambda r, w, a: aggregate.size_weights(r, w),
    "variance": lambda r, w, a: aggregate.variance_weights(r, w),
    "consensus": lambda r, w, a: aggregate.consensus_weights(r, w),
    "entropy": lambda r, w, a: aggregate.entropy_weights(r, w),
    "similarity": aggregate.similarity_weights,
}
WEIGHTINGS = {name: jax.jit(weights) for name, weights in WEIGHTINGS.items()}
collect = jax.jit(aggregate.collect, static_argnames="slot")
average, weighted_mean = jax.jit(aggregate.average), jax.jit(aggregate.weighted_mean)
contrastive = {"static_argnames": ("exclude_match", "block")}
contrastive_mean = jax.jit(aggregate.contrastive_mean, **contrastive)
contrastive_weights = jax.jit(aggregate.contrastive_weights, **contrastive)


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


REPS, ANCHORS, WEIGHT = draw(C, P, D), draw(P, D, seed=1), np.array([3.0, 1.0, 2.0, 5.0], np.float32)


def dense_weights(reps, anchors, temperature, exclude_match):
    """The formula of the CreamFL specification, section 2, with every [P, P] matrix written out."""
    score = []
    for z in reps.astype(np.float64):
        logits = z @ anchors.T / temperature
        others = np.where(np.eye(len(anchors)) > 0, -np.inf, logits) if exclude_match else logits
        score.append(np.diag(logits) - logsumexp(others, axis=1))
    return softmax(score, axis=0)


def tree(*shape, seed=0):
    return {"w": draw(*shape, 3, seed=seed), "b": [draw(*shape, seed=seed + 1)]}


def test_weighted_mean_is_numpys():
    stack = tree(C, seed=3)
    found = weighted_mean(stack, WEIGHT, tree())
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, np.average(y, 0, WEIGHT), rtol=1e-5), found, stack)


def test_weighted_mean_ignores_what_a_client_without_weight_holds():
    stack, weight = tree(C), WEIGHT
    spoilt = jax.tree.map(lambda x: np.where(np.arange(C).reshape(C, *[1] * (x.ndim - 1)) == 1, np.nan, x), stack)
    found = weighted_mean(spoilt, np.where(np.arange(C) == 1, 0, weight), tree())
    kept = np.array([0, 2, 3])
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, np.average(y[kept], 0, WEIGHT[kept]), rtol=1e-5), found, stack
    )


def test_weighted_mean_of_nobody_is_the_default():
    default = tree(seed=9)
    spoilt = jax.tree.map(lambda x: x * np.nan, tree(C))
    for found in (
        weighted_mean(spoilt, np.zeros(C, np.float32), default),
        average(Each(spoilt, np.zeros(C, np.float32)), default),
        average(Mean(jax.tree.map(lambda x: x[0], spoilt), np.float32(0)), default),
    ):
        jax.tree.map(np.testing.assert_array_equal, found, default)


def test_weighted_mean_keeps_the_dtype_and_sums_in_float32():
    stack = jnp.asarray([1.0, 3.0, 258.0], jnp.bfloat16)  # in bfloat16 the sum would stop at 260
    found = weighted_mean(stack, jnp.ones(3), np.zeros((), jnp.bfloat16))
    assert found.dtype == jnp.bfloat16
    assert found == jnp.asarray(262 / 3, jnp.bfloat16)


def test_collect_joins_clients_of_every_cohort_that_has_the_slot():
    uploads = {
        "image": {"img": Each(tree(2, seed=1), jnp.array([1.0, 2.0]))},
        "text": {"txt": Each(tree(1, seed=5), jnp.ones(1))},
        "both": {"img": Each(tree(3, seed=7), jnp.array([3.0, 0.0, 4.0]))},
    }
    found = aggregate.collect(uploads, "img")  # jit would sort the cohorts by name
    assert isinstance(found, Each)
    np.testing.assert_array_equal(found.weight, [1, 2, 3, 0, 4])
    want = jax.tree.map(lambda x, y: np.concatenate([x, y]), tree(2, seed=1), tree(3, seed=7))
    jax.tree.map(np.testing.assert_array_equal, found.value, want)


def test_means_over_cohorts_are_the_mean_over_all_their_clients():
    stack, weight = tree(C), WEIGHT
    part = lambda s: jax.tree.map(lambda x: x[s], stack)
    one = lambda s: Mean(weighted_mean(part(s), weight[s], tree()), jnp.sum(weight[s]))
    found = collect({"a": {"w": one(slice(0, 1))}, "b": {"w": one(slice(1, C))}}, "w")
    assert isinstance(found, Mean)
    np.testing.assert_allclose(found.weight, WEIGHT.sum())
    want = average(Each(stack, weight), tree())
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), found.value, want)
    jax.tree.map(np.testing.assert_array_equal, average(found, tree(seed=9)), found.value)


def test_a_cohort_without_weight_leaves_the_mean_alone():
    spoilt = jax.tree.map(lambda x: x * np.nan, tree())
    empty = {"w": Mean(spoilt, np.float32(0))}
    found = collect({"a": empty, "b": {"w": Mean(tree(seed=4), np.float32(7))}}, "w")
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), found.value, tree(seed=4))
    nobody = collect({"a": empty, "b": empty}, "w")
    assert nobody.weight == 0
    jax.tree.map(lambda x: np.testing.assert_array_equal(x, 0), nobody.value)


def test_collect_names_what_is_wrong():
    mean, each = Mean(jnp.ones(2), jnp.ones(())), Each(jnp.ones((3, 2)), jnp.ones(3))
    with pytest.raises(ValueError, match="'audio'.*'img', 'txt'"):
        aggregate.collect({"a": {"img": mean}, "b": {"txt": mean}}, "audio")
    with pytest.raises(ValueError, match="Mean from 'a', Each from 'b'"):
        aggregate.collect({"a": {"img": mean}, "b": {"img": each}}, "img")
    with pytest.raises(ValueError, match="different trees or shapes"):
        aggregate.collect({"a": {"img": each}, "b": {"img": Each(jnp.ones((3, 4)), jnp.ones(3))}}, "img")
    with pytest.raises(ValueError, match="different trees or shapes"):
        aggregate.collect({"a": {"img": mean}, "b": {"img": Mean({"x": jnp.ones(2)}, jnp.ones(()))}}, "img")


@pytest.mark.parametrize("temperature, exclude_match", VARIANTS)
def test_contrastive_weights_are_the_dense_formula(temperature, exclude_match):
    found = contrastive_weights(REPS, WEIGHT, ANCHORS, temperature, exclude_match)
    want = dense_weights(REPS, ANCHORS, temperature, exclude_match)
    np.testing.assert_allclose(found, want, rtol=1e-4)
    mean = contrastive_mean(REPS, WEIGHT, ANCHORS, temperature, exclude_match)
    np.testing.assert_allclose(mean, np.einsum("cp,cpd->pd", want, REPS), rtol=1e-4, atol=1e-5)


def test_contrastive_weights_are_shares_of_match_probability():
    # "simpn_w" of the authors' older code: p_c / sum_c p_c with p the softmax probability of the match
    p = np.stack([np.exp(np.diag(log_softmax(z @ ANCHORS.T, axis=1))) for z in REPS])
    np.testing.assert_allclose(contrastive_weights(REPS, WEIGHT, ANCHORS), p / p.sum(0), rtol=1e-4)


@pytest.mark.parametrize("block", [1, 8, 1000])  # 44 rows in all
@pytest.mark.parametrize("exclude_match", [False, True])
def test_blocks_do_not_matter(block, exclude_match):
    found = contrastive_mean(REPS, WEIGHT, ANCHORS, 0.5, exclude_match, block=block)
    want = np.einsum("cp,cpd->pd", dense_weights(REPS, ANCHORS, 0.5, exclude_match), REPS)
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("exclude_match", [False, True])
def test_no_square_of_the_public_items_in_memory(exclude_match):
    items, clients, width, block = 4096, 2, 16, 64
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in [(clients, items, width), (clients,), (items, width)]]
    mean = jax.jit(lambda r, w, a: aggregate.contrastive_mean(r, w, a, 0.5, exclude_match, block=block))
    temp = mean.lower(*shapes).compile().memory_analysis().temp_size_in_bytes
    assert temp < 4 * items * items / 10


@pytest.mark.parametrize("exclude_match", [False, True])
def test_the_papers_size_fits_in_memory(exclude_match):
    # 50,000 public items of 512 numbers from 10 clients: with the reps themselves (1.02 GB), all under 1.5 GB
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in [(10, 50_000, 512), (10,), (50_000, 512)]]
    mean = jax.jit(lambda r, w, a: aggregate.contrastive_mean(r, w, a, 0.5, exclude_match))
    memory = mean.lower(*shapes).compile().memory_analysis()
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes
    assert held == pytest.approx(4 * 50_000 * 512 * (10 + 1 + 1), rel=1e-3)
    assert held + memory.temp_size_in_bytes < 1.5e9


@pytest.mark.parametrize("items", [P, 12, 2])  # 4 devices: padded, not padded, fewer items than devices
@pytest.mark.parametrize("exclude_match", [False, True])
def test_devices_do_not_matter(items, exclude_match):
    arrays = (REPS[:, :1].repeat(12, 1) + draw(C, 12, D, seed=4))[:, :items], WEIGHT, draw(12, D, seed=1)[:items]
    want = dense_weights(arrays[0], arrays[2], 0.3, exclude_match)
    mesh, default = make_mesh(4), np.zeros((items, D), np.float32)
    weigh = jax.jit(lambda t, *a: aggregate.contrastive_weights(*a, t, exclude_match, mesh=mesh))
    np.testing.assert_allclose(weigh(0.3, *arrays), want, rtol=1e-4)
    mean = jax.jit(lambda t, *a: aggregate.contrastive_mean(*a, t, exclude_match, default=default, mesh=mesh))
    found = [mean(0.3, *arrays)]
    if items == P and exclude_match:  # outside jit too, where every operation is compiled by itself
        found.append(aggregate.contrastive_mean(*arrays, 0.3, exclude_match, mesh=mesh))
    for mean in found:
        np.testing.assert_allclose(mean, np.einsum("cp,cpd->pd", want, arrays[0]), rtol=1e-4, atol=1e-5)


def test_devices_share_the_work():
    # Each device scores its own items only, and never holds another's reps.
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in [(8, 1024, 64), (8,), (1024, 64)]]
    mean = lambda mesh: jax.jit(lambda r, w, a: aggregate.contrastive_mean(r, w, a, block=8, mesh=mesh))
    alone, spread = (mean(mesh).lower(*shapes).compile().memory_analysis() for mesh in (None, make_mesh(4)))
    reps, anchors = 4 * 8 * 1024 * 64, 4 * 1024 * 64
    assert alone.argument_size_in_bytes == pytest.approx(reps + anchors, rel=1e-3)
    assert spread.argument_size_in_bytes == pytest.approx(reps / 4 + anchors, rel=1e-3)
    assert spread.temp_size_in_bytes < reps / 2


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_shares_sum_to_1_and_follow_the_clients(name):
    weights = WEIGHTINGS[name]
    found = np.asarray(weights(REPS, WEIGHT, ANCHORS))
    assert found.shape == (C, P)
    assert (found >= 0).all()
    np.testing.assert_allclose(found.sum(0), 1, rtol=1e-5)
    order = np.array([2, 0, 3, 1])
    np.testing.assert_allclose(weights(REPS[order], WEIGHT[order], ANCHORS), found[order], rtol=1e-5)


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_one_client_is_taken_as_it_is(name):
    found = aggregate.combine(WEIGHTINGS[name](REPS[:1], WEIGHT[:1], ANCHORS), REPS[:1])
    np.testing.assert_allclose(found, REPS[0], rtol=1e-6)


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_a_client_without_weight_counts_for_nothing(name):
    spoilt, weight = REPS.copy(), WEIGHT.copy()
    spoilt[1], weight[1] = np.nan, 0
    kept = np.array([0, 2, 3])
    found = WEIGHTINGS[name](spoilt, weight, ANCHORS)
    np.testing.assert_array_equal(found[1], 0)
    np.testing.assert_allclose(found[kept], WEIGHTINGS[name](REPS[kept], WEIGHT[kept], ANCHORS), rtol=1e-5)
    assert np.isfinite(aggregate.combine(found, spoilt)).all()


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_nobody_gives_weights_0_and_the_default(name):
    found = WEIGHTINGS[name](REPS * np.nan, np.zeros(C, np.float32), ANCHORS)
    np.testing.assert_array_equal(found, 0)
    np.testing.assert_array_equal(aggregate.combine(found, REPS * np.nan), 0)
    np.testing.assert_array_equal(aggregate.combine(found, REPS * np.nan, ANCHORS), ANCHORS)


def test_contrastive_mean_of_nobody_is_the_default():
    nobody = (REPS * np.nan, np.zeros(C, np.float32), ANCHORS)
    np.testing.assert_array_equal(contrastive_mean(*nobody), 0)
    np.testing.assert_array_equal(contrastive_mean(*nobody, default=ANCHORS), ANCHORS)
    np.testing.assert_array_less(0, np.abs(contrastive_mean(REPS, WEIGHT, ANCHORS, default=ANCHORS) - ANCHORS))


def test_contrastive_weights_do_not_depend_on_how_much_a_client_weighs():
    found = aggregate.contrastive_weights(REPS, WEIGHT, ANCHORS)  # eagerly, on NumPy arrays
    np.testing.assert_array_equal(found, aggregate.contrastive_weights(REPS, np.ones_like(WEIGHT), ANCHORS))


def test_the_other_weightings_are_their_formulas():
    np.testing.assert_allclose(WEIGHTINGS["mean"](REPS, WEIGHT, ANCHORS), np.full((C, P), 1 / C))
    shares = np.repeat(WEIGHT[:, None] / WEIGHT.sum(), P, axis=1)
    np.testing.assert_allclose(WEIGHTINGS["size"](REPS, WEIGHT, ANCHORS), shares, rtol=1e-6)
    variance = REPS.var(-1)
    np.testing.assert_allclose(WEIGHTINGS["variance"](REPS, WEIGHT, ANCHORS), variance / variance.sum(0), rtol=1e-5)
    certainty = 1 / entropy(softmax(REPS.astype(np.float64), -1), axis=-1)
    np.testing.assert_allclose(WEIGHTINGS["entropy"](REPS, WEIGHT, ANCHORS), softmax(certainty, 0), rtol=1e-4)
    similar = softmax(np.einsum("cpd,pd->cp", REPS, ANCHORS), 0)
    np.testing.assert_allclose(WEIGHTINGS["similarity"](REPS, WEIGHT, ANCHORS), similar, rtol=1e-4)


def test_consensus_is_the_mean_of_two_variance_means():
    # "var_2" of the authors' older code, client by client and item by item
    reps = REPS.astype(np.float64) + 2 * np.eye(D)[np.arange(P) % D][None] * (np.arange(C) < 2)[:, None, None]
    found = aggregate.combine(WEIGHTINGS["consensus"](reps, WEIGHT, ANCHORS), reps)
    partly = 0
    for k in range(P):
        z, variance = reps[:, k], reps[:, k].var(-1)
        mean = np.average(z, axis=0, weights=variance)
        agree = [c for c in range(C) if z[c].argmax() == mean.argmax()]
        again = np.average(z[agree], axis=0, weights=variance[agree]) if agree else mean
        np.testing.assert_allclose(found[k], (mean + again) / 2, rtol=1e-5, atol=1e-6)
        partly += 0 < len(agree) < C
    assert partly > P / 2


def test_consensus_of_clients_who_all_disagree_with_their_mean_is_the_variance_mean():
    # each is largest in a place of its own, the mean in the place where each is second
    reps = np.array([[3, 0, 0, 2.5], [0, 3, 0, 2.5], [0, 0, 3, 2.5]], np.float32)[:, None]
    found = WEIGHTINGS["consensus"](reps, np.ones(3, np.float32), ANCHORS)
    np.testing.assert_allclose(found, np.full((3, 1), 1 / 3), rtol=1e-6)
    # a client that sent nothing cannot agree, though it would
    reps = np.concatenate([reps, np.array([[[0, 0, 0, 9]]], np.float32)])
    found = WEIGHTINGS["consensus"](reps, np.array([1, 1, 1, 0], np.float32), ANCHORS)
    np.testing.assert_allclose(found[:, 0], [1 / 3, 1 / 3, 1 / 3, 0], rtol=1e-6)


def test_reps_without_spread_get_equal_shares():
    flat = np.ones((C, P, D), np.float32)
    for weights in (WEIGHTINGS["variance"], WEIGHTINGS["consensus"]):
        np.testing.assert_allclose(weights(flat, WEIGHT, ANCHORS), np.full((C, P), 1 / C), rtol=1e-6)
    peaked = np.zeros((C, P, D), np.float32)
    peaked[..., 0] = 1000  # entropy 0
    np.testing.assert_allclose(WEIGHTINGS["entropy"](peaked, WEIGHT, ANCHORS), np.full((C, P), 1 / C), rtol=1e-6)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"\[C, P, D\], \[C\] and \[P, D\]"):
        aggregate.contrastive_weights(REPS, WEIGHT, ANCHORS[:-1])
    with pytest.raises(ValueError, match=r"weight \(3,\)"):
        aggregate.contrastive_mean(REPS, WEIGHT[:3], ANCHORS)
    with pytest.raises(ValueError, match="temperature is 0"):
        aggregate.contrastive_weights(REPS, WEIGHT, ANCHORS, 0)
    with pytest.raises(ValueError, match="nothing to compare"):
        aggregate.contrastive_weights(REPS[:, :1], WEIGHT, ANCHORS[:1], exclude_match=True)
    grid = jax.make_mesh((2, 2), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    with pytest.raises(ValueError, match=r"axes \('a', 'b'\); give one with one axis"):
        aggregate.contrastive_mean(REPS, WEIGHT, ANCHORS, mesh=grid)


@pytest.mark.parametrize("bad", [-1.0, -1e9, np.nan, np.inf, -np.inf])
def test_a_weight_that_is_none_counts_as_nothing_sent_in_value_and_sum_alike(bad):
    values = np.array([[1.0, 2.0], [3.0, 5.0], [100.0, 100.0]], np.float32)
    weight = np.array([1.0, 3.0, bad], np.float32)
    expected = [(1 * 1 + 3 * 3) / 4, (1 * 2 + 3 * 5) / 4]
    assert weighted_mean(values, weight, np.zeros(2, np.float32)).tolist() == expected
    each = collect({"all": {"w": Each(values, weight)}}, "w")
    assert each.weight.tolist() == [1, 3, 0] and average(each, np.zeros(2, np.float32)).tolist() == expected
    means = {f"{i}": {"w": Mean(values[i], weight[i])} for i in range(3)}
    mean = collect(means, "w")
    assert mean.value.tolist() == expected and float(mean.weight) == 4
    alone = Mean(values[2], weight[2])
    assert average(alone, np.full(2, 7.0, np.float32)).tolist() == [7, 7]
    reps = np.array([[[1.0, 2.0]], [[3.0, 6.0]], [[9.0, 18.0]]], np.float32)
    assert WEIGHTINGS["size"](reps, weight, None)[:, 0].tolist() == [0.25, 0.75, 0]
    assert WEIGHTINGS["mean"](reps, weight, None)[:, 0].tolist() == [0.5, 0.5, 0]
    nothing = np.array([1.0, 3.0, 0.0], np.float32)
    for name in ("variance", "consensus", "entropy"):
        assert WEIGHTINGS[name](reps, weight, None).tolist() == WEIGHTINGS[name](reps, nothing, None).tolist()


@pytest.mark.parametrize(
    "call",
    [
        lambda: aggregate.weighted_mean(jnp.ones((3, 2)), jnp.ones(3), jnp.zeros(3)),
        lambda: aggregate.weighted_mean({"a": jnp.ones((3, 2))}, jnp.ones(3), {"b": jnp.zeros(2)}),
        lambda: aggregate.average(Mean(jnp.ones(2), jnp.ones(())), {"b": jnp.zeros(2)}),
        lambda: aggregate.average(Each(jnp.ones((2, 3)), jnp.ones(3)), jnp.ones(3)),
        lambda: aggregate.average(jnp.ones(2), jnp.ones(2)),
        lambda: aggregate.collect({"all": {"w": jnp.ones(2)}}, "w"),
        lambda: aggregate.combine(jnp.ones((3, 4)), jnp.ones((3, 4, 2)), jnp.ones((4, 3))),
        lambda: aggregate.weighted_mean(jnp.ones((3, 2)), jnp.ones(4), jnp.zeros(2)),
        lambda: aggregate.weighted_mean(jnp.ones((3, 2)), jnp.ones((3, 1)), jnp.zeros(2)),
        lambda: aggregate.combine(jnp.ones((3, 5)), jnp.ones((3, 4, 2))),
        lambda: aggregate.combine(jnp.ones(3), jnp.ones((3, 4, 2))),
        lambda: aggregate.mean_weights(jnp.ones((3, 4, 2)), jnp.ones(2)),
        lambda: aggregate.variance_weights(jnp.ones((3, 4)), jnp.ones(3)),
    ],
)
def test_shapes_that_do_not_fit_are_an_error(call):
    with pytest.raises(ValueError, match="must be|do not fit"):  # while tracing
        call()
