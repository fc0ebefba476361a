"""Splitting trees: a split update is a masked update; growing keeps what was learned."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax_mm import trees

PARAMS = {"lower": {"w": jnp.arange(3.0)}, "upper": {"w": jnp.ones(3), "b": jnp.zeros(2)}}
MASK = {"lower": False, "upper": True}


def test_merge_undoes_partition_and_halves_are_disjoint():
    train, frozen = trees.partition(PARAMS, MASK)
    assert len(jax.tree.leaves(train)) == 2 and len(jax.tree.leaves(frozen)) == 1
    chex.assert_trees_all_equal(trees.merge(train, frozen), PARAMS)
    chex.assert_trees_all_equal(trees.merge(frozen, train), PARAMS)


def test_a_half_is_split_again():
    train, _ = trees.partition(PARAMS, MASK)
    mask = trees.path_mask(train, lambda path: path.endswith("/b"))
    first, second = trees.partition(train, mask)
    assert len(jax.tree.leaves(first)) == len(jax.tree.leaves(second)) == 1
    chex.assert_trees_all_equal(trees.merge(first, second), train)


def test_split_update_equals_multi_transform_leaf_for_leaf():
    loss = lambda p: sum((x**2).sum() + jnp.sin(x).sum() for x in jax.tree.leaves(p))
    tx = optax.adam(0.1)
    whole = optax.multi_transform({True: tx, False: optax.set_to_zero()}, trees.path_mask(PARAMS, _is_upper))
    params, state = PARAMS, whole.init(PARAMS)
    train, frozen = trees.partition(PARAMS, MASK)
    split_state = tx.init(train)
    for _ in range(3):
        updates, state = whole.update(jax.grad(loss)(params), state, params)
        params = optax.apply_updates(params, updates)
        grads = jax.grad(lambda t: loss(trees.merge(t, frozen)))(train)
        updates, split_state = tx.update(grads, split_state, train)
        train = optax.apply_updates(train, updates)
    chex.assert_trees_all_equal(trees.merge(train, frozen), params)


def _is_upper(path):
    return path.startswith("upper/")


def test_path_mask_names_leaves_by_path():
    assert trees.path_mask(PARAMS, _is_upper) == {"lower": {"w": False}, "upper": {"w": True, "b": True}}


def test_grow_keeps_old_leaves_and_adds_fresh_ones():
    fresh = {**jax.tree.map(lambda x: x + 7, PARAMS), "top": {"w": jnp.full(1, 5.0)}}
    grown = trees.grow(PARAMS, fresh)
    chex.assert_trees_all_equal(grown, {**PARAMS, "top": fresh["top"]})
    with pytest.raises(ValueError, match=r"cannot grow a leaf of shape \(3,\) into \(4,\)"):
        trees.grow({"w": jnp.zeros(3)}, {"w": jnp.zeros(4)})


def test_size_bytes_counts_each_dtype():
    tree = {"a": np.zeros((3, 2), np.float32), "b": jax.ShapeDtypeStruct((5,), jnp.bfloat16), "c": np.zeros(7, np.int8)}
    assert trees.size_bytes(tree) == 24 + 10 + 7


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int32])
@pytest.mark.parametrize("weight", [0.0, 3.0, 1e38, np.nan])
@pytest.mark.parametrize("bad", [5, np.inf, np.nan])
def test_weighted_leaves_are_tested_as_they_are_summed(dtype, weight, bad):
    """In a row that adds up to 0, and in one without a bad number before it."""
    if not np.isfinite(bad) and dtype == np.int32:
        pytest.skip("an integer is finite")
    x = np.array([[2, -2, bad, -bad], [1, 0, 0, 1]]).astype(dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        finite = np.isfinite(x.astype(np.float32) * np.float32(weight)).all()
    assert bool(trees.all_finite({"other": jnp.ones(2)}, [({"w": jnp.asarray(x)}, jnp.float32(weight))])) == finite


def test_all_finite_sees_one_bad_number_and_ignores_integers():
    assert trees.all_finite({"a": jnp.ones(3), "n": jnp.arange(3)})
    assert not trees.all_finite({"a": jnp.ones(3), "b": jnp.array([0.0, jnp.inf])})
    assert not trees.all_finite({"a": jnp.array(jnp.nan)})
    assert trees.all_finite(())
    assert trees.all_finite({"empty": jnp.zeros((3, 0)), "half": jnp.full((2, 100), 6e4, jnp.float16)})
    assert not trees.all_finite({"empty": jnp.zeros((3, 0)), "half": jnp.full((2, 100), jnp.inf, jnp.float16)})


@pytest.mark.parametrize(
    ("old", "fresh"),
    [
        ({"a": {}}, {"a": 0.0}),
        ({"a": 0.0}, {"a": {}}),
        ({"a": {"b": 1.0}}, {"a": 0.0}),
        ({"a": 0.0}, {"a": {"b": 1.0}}),
        ({"x": {"y": {"a": 0.0}}}, {"x": {"y": {"a": {"b": 1.0}}}}),
        ({"x": {"y": {"a": {"b": 0.0}}}}, {"x": {"y": {"a": 1.0}}}),
        (0.0, {"a": 0.0}),
        ({"a": 0.0}, 0.0),
        ({"a": (0.0, 1.0)}, {"a": (0.0, {"b": 1.0})}),
        ({"a": (0.0,)}, {"a": (0.0, 1.0)}),
        ({"a": None}, {"a": 0.0}),
    ],
)
def test_a_leaf_that_becomes_a_dict_or_the_reverse_is_refused_at_every_depth(old, fresh):
    with pytest.raises(ValueError, match="cannot grow .* from .* into"):
        trees.grow(old, fresh)


def test_grow_keeps_what_was_learned_in_other_containers_too():
    old, fresh = ({"a": (1.0, {"b": 2.0})}, {"a": (0.0, {"b": 0.0}), "c": 3.0})
    assert trees.grow(old, fresh) == {"a": (1.0, {"b": 2.0}), "c": 3.0}
    with pytest.raises(ValueError, match=r"shape \(3,\) into \(4,\), at a"):
        trees.grow({"a": (jnp.zeros(3),)}, {"a": (jnp.zeros(4),)})


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: trees.merge({"a": 1.0}, {"a": 2.0}), "both trees have a leaf at one place"),
        (lambda: trees.merge({"a": 1.0}, {"a": {"b": 2.0}}), "both trees have a leaf at one place"),
        (lambda: trees.merge({"a": None}, {"a": 1.0, "b": 2.0}), "no halves of one tree"),
        (lambda: trees.merge({"a": None, "b": 1.0}, {"a": 1.0}), "no halves of one tree"),
        (lambda: trees.partition(PARAMS, {"lower": True}), "neither the whole tree nor a prefix"),
        (lambda: trees.partition(PARAMS, {"lower": "False", "upper": True}), "a leaf 'False'; each must be True or"),
        (lambda: trees.partition(PARAMS, {"lower": 0, "upper": True}), "a leaf 0"),
        (lambda: trees.partition(PARAMS, {"lower": None, "upper": True}), "None where the tree has one"),
        (lambda: trees.path_mask(PARAMS, "upper"), "trains is 'upper'; give a function"),
        (lambda: trees.size_bytes({"a": 1.0}), "a leaf 1.0; each must be an array"),
        (lambda: trees.all_finite({"a": "x"}), "a leaf 'x'"),
        (lambda: trees.where(jnp.array(True), {"a": jnp.ones(2)}, {"b": jnp.ones(2)}), "different trees"),
        (lambda: trees.where(jnp.array(True), {"a": jnp.ones(2)}, {"a": jnp.ones(3)}), "different trees"),
    ],
)
def test_trees_that_do_not_fit_are_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call()


def test_a_half_of_a_tree_is_split_again():
    half = {"lower": None, "upper": {"w": 1.0, "mean": 2.0}}
    mask = trees.path_mask(half, lambda path: path.endswith("mean"))
    kept = ({"lower": None, "upper": {"w": None, "mean": 2.0}}, {"lower": None, "upper": {"w": 1.0, "mean": None}})
    assert trees.partition(half, mask) == kept
