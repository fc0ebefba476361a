"""Robust aggregation against NumPy, the attacks that it stands, and sums under masks."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import DATA, KEY, X, toy
from test_private import CHANGES, EVERYONE, ROUNDS, TOY, moved

from fedjax_mm import laws, uploads
from fedjax_mm.data import FederatedData
from fedjax_mm.types import Each
from fedjax_mm.uploads import attacks, masks
from fedjax_mm.uploads.rules import nearest

RULES = {
    "median": uploads.median(),
    "trimmed": uploads.trimmed_mean(0.25),
    "krum": uploads.krum(1, keep=2),
    "bounded": uploads.bounded(),
}


@pytest.mark.parametrize("name", [*RULES, "secure"])
def test_laws_of_a_round_hold(name):
    method = uploads.secure_sum(toy(), DATA) if name == "secure" else uploads.robust(toy(), DATA, RULES[name])
    # A stub sends the method's own slots, which are Each here, and no Mean to take the law's word of.
    report = laws.check(method, DATA, rounding=1e-6)
    report.raise_if_failed()


def test_each_rule_is_that_of_numpy():
    few = DATA.round({"all": np.array([0, 1, 3, 4])})  # 4 is nobody: the round of all has the same shapes
    median = uploads.robust(toy(), DATA, RULES["median"])
    np.testing.assert_allclose(moved(median)[0], np.median(CHANGES, 0), atol=1e-5)
    got = moved(median, few)[0]
    np.testing.assert_allclose(got, np.median(CHANGES[[0, 1, 3]], 0), atol=1e-5)
    trimmed = np.sort(CHANGES, axis=0)[1:3].mean(0)
    np.testing.assert_allclose(moved(uploads.robust(toy(), DATA, RULES["trimmed"]))[0], trimmed, atol=1e-5)
    untrimmed = uploads.robust(toy(), DATA, uploads.trimmed_mean(0.0))
    np.testing.assert_allclose(moved(untrimmed)[0], CHANGES.mean(0), atol=1e-5)
    norms = np.linalg.norm(CHANGES, axis=1)
    cut = CHANGES * np.minimum(1, np.sort(norms)[1] / norms)[:, None]
    weight = np.array([3, 4, 2, 1]) / 10
    np.testing.assert_allclose(moved(uploads.robust(toy(), DATA, RULES["bounded"]))[0], weight @ cut, atol=1e-5)
    whole = uploads.robust(toy(), DATA, uploads.bounded(1.0))
    np.testing.assert_allclose(moved(whole)[0], moved(TOY)[0], atol=1e-5)


def test_krum_scores_are_those_of_the_paper():
    rows = np.random.default_rng(0).normal(size=(9, 5)).astype(np.float32)
    rows[4] += 5
    apart = ((rows[:, None] - rows[None]) ** 2).sum(-1)
    chosen = jax.jit(nearest, static_argnums=(2, 3))
    for bad, keep in ((2, 1), (2, 3), (1, 9)):
        score = np.array([np.sort(np.delete(apart[i], i))[: 9 - bad - 2].sum() for i in range(9)])
        expected = np.isin(np.arange(9), np.argsort(score)[:keep])
        np.testing.assert_array_equal(chosen(rows, np.ones(9, bool), bad, keep), expected)
    more = np.concatenate([rows, np.zeros((3, 5), np.float32)])  # who is not there counts for nothing
    some = np.asarray(chosen(more, np.arange(12) < 9, 2, 3))[:9]
    np.testing.assert_array_equal(some, chosen(rows, np.ones(9, bool), 2, 3))


@pytest.mark.parametrize("name", RULES)
def test_what_nobody_sent_is_0_and_one_alone_is_heard(name):
    sent = {"w": Each(jnp.array([[1.0, 2.0], [7.0, 7.0]]), jnp.array([2.0, 0.0])), "v": Each(jnp.ones(2), jnp.zeros(2))}
    got = jax.jit(lambda sent: RULES[name](sent, {}))(sent)
    np.testing.assert_allclose(got["w"], [1.0, 2.0])
    assert float(got["v"]) == 0


N = 10
MANY = FederatedData.from_arrays(
    {"x": np.random.default_rng(2).normal(1.0, 0.3, size=(40, 40)).astype(np.float32)}, np.arange(40) // 4
)


def many_clients():
    cohort = toy().cohorts["all"]
    return toy()._replace(cohorts={"all": cohort._replace(size=N)})


BAD = attacks.scale_updates(many_clients(), {"all": [2, 5]}, -30.0)


@pytest.mark.parametrize("name", RULES)
def test_two_bad_of_ten_do_little_harm(name):
    """Good changes are near 1; the bad ones' are at -30, which carries the plain mean below -5."""
    everyone = MANY.round({"all": np.arange(N)})
    plain = moved(BAD, everyone)[0]
    assert plain.mean() < -4
    kept = moved(uploads.robust(BAD, MANY, uploads.krum(2, 5) if name == "krum" else RULES[name]), everyone)[0]
    assert abs(kept.mean() - 1) < (0.5 if name == "bounded" else 0.15)


def test_attacks_are_those_of_the_bad_clients_alone():
    plain, flipped = moved(TOY)[0], moved(attacks.flip_signs(toy(), {"all": [1]}))[0]
    np.testing.assert_allclose(plain - flipped, 2 * 0.4 * CHANGES[1], atol=1e-5)
    scaled = moved(attacks.scale_updates(toy(), {"all": [0, 3]}, 5.0))[0]
    np.testing.assert_allclose(scaled - plain, 4 * (0.3 * CHANGES[0] + 0.1 * CHANGES[3]), atol=1e-4)
    packed = uploads.attach(attacks.flip_signs(toy(), {"all": [1]}), uploads.on_change(uploads.quantise(16)), DATA)
    np.testing.assert_allclose(moved(packed)[0], flipped, atol=1e-3)


@pytest.mark.parametrize("on_device", [True, False])
def test_labels_are_flipped_for_the_bad_alone(on_device):
    arrays = {"x": np.arange(6.0), "label": np.array([0, 1, 2, 0, 1, 2])}
    owned, test = [[0, 1], [2, 3], [1, 2]], [[4], [5], []]  # rows 1 and 2 are shared
    data = FederatedData.from_arrays(arrays, owned, on_device=on_device, test=test)
    bad = attacks.flip_labels(data, {"all": [1]}, 3)
    seen = [bad.client("all", j) for j in range(3)]
    labels = [np.asarray(s.arrays["label"])[np.asarray(s.rows)[: int(s.count)]].tolist() for s in seen]
    assert labels == [[0, 1], [0, 2], [1, 2]]
    assert [np.asarray(s.arrays["x"])[np.asarray(s.rows)[: int(s.count)]].tolist() for s in seen][1] == [2.0, 3.0]
    rows, mask = bad.test_rows("all")
    assert np.asarray(bad.cohorts["all"].arrays["label"])[rows[mask > 0]].tolist() == [1, 2]


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: attacks.flip_signs(toy(), {"B": [0]}), "clients names the cohort 'B'"),
        (lambda: attacks.flip_signs(toy(), {"all": [4]}), "numbers from 0 to 3"),
        (lambda: attacks.scale_updates(toy(), {"all": [0]}, np.nan), "factor"),
        (lambda: attacks.flip_labels(DATA, {"all": [0]}, 3), "no array 'label'"),
        (lambda: uploads.robust(toy(), DATA, "median"), "rule is 'median'"),
        (lambda: uploads.trimmed_mean(0.5), "fraction"),
        (lambda: uploads.krum(-1), "bad"),
        (lambda: uploads.secure_sum(toy(), DATA, 0.0), "resolution"),
        (lambda: uploads.secure_sum(None, DATA), "method is None"),
    ],
)
def test_a_wrong_argument_is_named(call, named):
    with pytest.raises(ValueError, match=named):
        call()


def test_masks_cancel_exactly_and_hide_each_client():
    rng = np.random.default_rng(0)
    whole = jnp.asarray(rng.integers(-(2**20), 2**20, (5, 2000)), jnp.int32).astype(jnp.uint32)
    sent = jax.jit(masks.masked)(whole, KEY)
    there = jnp.array([True, False, True, True, False])
    plain = np.asarray(whole)[np.asarray(there)].sum(0, dtype=np.uint32)
    np.testing.assert_array_equal(jax.jit(masks.unmasked_sum)(sent, there, KEY), plain)
    everyone = np.asarray(whole).sum(0, dtype=np.uint32)
    np.testing.assert_array_equal(np.asarray(sent).sum(0, dtype=np.uint32), everyone)
    for row in np.asarray(sent):  # uniform over all 32 bits, whatever the client sent
        share = np.histogram(row, 8, (0, 2**32))[0] / len(row)
        assert np.abs(share - 1 / 8).max() < 0.04
    assert np.abs(np.corrcoef(np.asarray(sent).astype(float))[0, 1:]).max() < 0.1
    zero = jax.jit(masks.masked)(jnp.zeros((1, 3), jnp.uint32), KEY)
    assert not np.any(zero)  # one client has nobody to share a mask with


def test_a_secure_mean_is_the_mean():
    method = uploads.secure_sum(toy(), DATA)
    np.testing.assert_allclose(moved(method)[0], moved(TOY)[0], atol=2.0**-16)
    two = DATA.round({"all": np.array([1, 3, 4, 4])})
    np.testing.assert_allclose(moved(method, two)[0], moved(TOY, two)[0], atol=2.0**-16)
    nobody = DATA.round({"all": np.array([4, 4, 4, 4])})
    assert not np.any(moved(method, nobody)[0])
    _, metrics = ROUNDS[id(method)][1](method.init(KEY), EVERYONE, KEY)
    assert float(metrics["server"]["secure_sum_cut"]) == 0
    fine = uploads.secure_sum(toy(), DATA, resolution=1e-9)
    _, metrics = jax.jit(fine.round)(fine.init(KEY), EVERYONE, KEY)
    assert 0 < float(metrics["server"]["secure_sum_cut"]) <= 1
    chex.assert_trees_all_equal_shapes(fine.init(KEY), toy().init(KEY))
    assert X.shape == (10, 40)
