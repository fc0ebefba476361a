"""Transforms on methods: a round obeys its laws with them, their state lasts, and their bytes are counted."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import DATA, KEY, PARAMS, toy

from fedjax_mm import costs, laws, participation, run, uploads
from fedjax_mm.data import FederatedData

TRANSFORMS = {
    "packed": uploads.on_change(uploads.quantise(4)),
    "feedback": uploads.on_change(uploads.error_feedback(uploads.chain(uploads.top_k(0.3), uploads.quantise(8)))),
    "low rank": uploads.on_change(uploads.error_feedback(uploads.low_rank(1))),
    "random": uploads.random_k(0.5),
}


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("law", laws.LAWS, ids=lambda law: law.__name__)
def test_law(name, law):
    try:
        found = law(case_of(name))
    except laws.DoesNotApply:
        pytest.fail("every law has something to say about this method")
    assert found.within, found


CASES = {}


def case_of(name):
    if name not in CASES:
        CASES[name] = laws.make_case(uploads.attach(toy(), TRANSFORMS[name], DATA), DATA, rounding=1e-6)
    return CASES[name]


@pytest.mark.parametrize(
    "attached",
    [
        lambda: uploads.attach(toy(), uploads.on_change(uploads.error_feedback(uploads.random_k(0.5))), DATA),
        lambda: uploads.secure_sum(toy(), DATA),
        lambda: uploads.robust(toy(), DATA, uploads.krum(bad=0)),
    ],
    ids=["feedback", "secure", "krum"],
)
def test_devices_that_hold_a_part_of_the_states_each_change_nothing(attached):
    """Some clients drop out, and others take a part of their steps."""
    some = participation.with_dropout(participation.uniform(DATA, 3), 0.3)
    choose = participation.with_deadline(some, {"all": np.arange(4) + 1.0}, 3.0)
    runs = [run.train(attached(), DATA, rounds=2, choose=choose, devices=devices) for devices in (None, 4)]
    chex.assert_trees_all_close(*map(jax.device_get, runs), atol=1e-6)


def test_a_transform_without_a_state_changes_no_state():
    plain, transform = toy(), uploads.quantise(8)
    assert uploads.attach(plain, transform, DATA) == plain._replace(upload=transform)


def test_what_is_owed_lasts_and_others_see_their_own_state():
    method = uploads.attach(toy(), TRANSFORMS["feedback"], DATA)
    state = method.init(KEY)
    taken = DATA.round({"all": np.array([0, 2])})
    new, _ = jax.jit(method.round)(state, taken, KEY)
    owed = new.clients["all"].upload["lost"]["w"]
    assert np.abs(owed[0]).max() > 0 and np.abs(owed[2]).max() > 0
    assert not np.any(owed[1]) and not np.any(owed[3])
    plain, _ = jax.jit(toy().round)(toy().init(KEY), taken, KEY)
    chex.assert_trees_all_equal(new.clients["all"].own, plain.clients["all"])
    assert method.evaluate(new, {}) == toy().evaluate(plain, {}) != {}


def test_the_sum_of_what_arrives_is_the_sum_of_what_was_sent_but_for_what_is_owed():
    """The server's w is the mean of w + change; with error feedback it runs after the run without."""
    method = uploads.attach(toy(), uploads.on_change(uploads.error_feedback(uploads.top_k(0.1))), DATA)
    everyone = DATA.round({"all": np.arange(4)})
    step, state = jax.jit(method.round), method.init(KEY)
    plain_step, plain = jax.jit(toy().round), toy().init(KEY)
    for _ in range(5):
        state, _ = step(state, everyone, KEY)
        plain, _ = plain_step(plain, everyone, KEY)
    weight = jnp.array([3.0, 4.0, 2.0, 1.0])
    owed = jnp.tensordot(weight / weight.sum(), state.clients["all"].upload["lost"]["w"], 1)
    np.testing.assert_allclose(state.server["w"] + owed, plain.server["w"], atol=1e-4)
    assert np.abs(owed).max() > 0.1


def test_costs_count_what_is_encoded():
    bytes_up = lambda transform: (
        costs.of(uploads.attach(toy(), transform, DATA), DATA.round({"all": np.arange(4)}))["all"].bytes_up
    )
    assert bytes_up(uploads.add_noise(1.0)) == 4 * PARAMS
    assert bytes_up(uploads.quantise(4)) == PARAMS // 2 + 4
    assert bytes_up(uploads.error_feedback(uploads.top_k(0.1))) == 8 * PARAMS // 10
    assert bytes_up(uploads.error_feedback(uploads.sign())) == -(-PARAMS // 8) + 4


def test_a_client_whose_upload_is_not_finite_is_left_out_though_its_encoding_hides_it():
    arrays = {"x": np.ones((10, PARAMS), np.float32)}
    arrays["x"][3, 5] = np.inf  # one number of one client, which random_k does not draw
    taken = DATA.round({"all": np.arange(4)})
    bad = taken._replace(cohorts={"all": _with_arrays(taken.cohorts["all"], arrays)})
    for transform in (uploads.quantise(8), uploads.random_k(0.01), uploads.error_feedback(uploads.sign())):
        method = uploads.attach(toy(), transform, DATA)
        new, metrics = jax.jit(method.round)(method.init(KEY), bad, KEY)
        assert (int(metrics["all"]["left_out"]), int(metrics["all"]["clients"])) == (1, 3)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(new))


def _with_arrays(cohort, arrays):
    return dataclasses.replace(cohort, arrays={name: jnp.asarray(x) for name, x in arrays.items()})


@pytest.mark.parametrize("where", ["device", "host"])
def test_a_run_with_error_feedback_goes_on_bit_for_bit(tmp_path, where):
    method = uploads.attach(toy(), TRANSFORMS["feedback"], DATA)
    settings = {"per_round": 2, "seed": 4, "log": lambda line: None, "client_state": where}
    whole = run.train(method, DATA, rounds=4, **settings)
    run.train(method, DATA, rounds=2, directory=tmp_path, **settings)
    again = run.train(method, DATA, rounds=4, directory=tmp_path, **settings)
    chex.assert_trees_all_equal(jax.tree.map(np.asarray, again), jax.tree.map(np.asarray, whole))
    assert np.abs(np.asarray(whole.clients["all"].upload["lost"]["w"])).max() > 0


def test_wrong_uses_are_named():
    stateful = uploads.error_feedback(uploads.sign())
    method = toy()._replace(upload=stateful)
    with pytest.raises(ValueError, match="uploads.attach"):
        method.round(method.init(KEY), DATA.round({"all": np.arange(4)}), KEY)
    once = uploads.attach(toy(), stateful, DATA)
    with pytest.raises(ValueError, match="a transform with a state already"):
        uploads.attach(once, stateful, DATA)
    with pytest.raises(ValueError, match="data is None; give a FederatedData"):
        uploads.attach(toy(), stateful, None)
    with pytest.raises(ValueError, match="upload is 3"):
        uploads.attach(toy(), 3, DATA)
    other = FederatedData.from_arrays({"x": np.ones((2, PARAMS), np.float32)}, {"B": [[0], [1]]})
    with pytest.raises(ValueError, match=r"data has cohorts \['B'\]; the method has \['all'\]"):
        uploads.attach(toy(), stateful, other)
