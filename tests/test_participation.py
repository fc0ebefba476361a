"""Who takes part: draws of the key and the round alone, with the frequencies that they promise."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_mm import participation, run
from fedjax_mm.data import FederatedData
from fedjax_mm.data.participants import Participants
from fedjax_mm.federate import federate
from fedjax_mm.local import local_steps
from fedjax_mm.types import Cohort, Download, Mean, Server

KEY, N = jax.random.key(3), 6
OWNED = np.split(np.arange(63), [1, 3, 7, 15, 31])  # clients of 1, 2, 4, 8, 16 and 32 examples
DATA = FederatedData.from_arrays({"x": np.arange(63, dtype=np.float32)}, OWNED)
TRACE = {"all": np.arange(4)[:, None] != np.arange(N) % 4}
CHOOSERS = {
    "uniform": participation.uniform(DATA, 2),
    "by size": participation.by_size(DATA, {"all": 2}),
    "independent": participation.independent(DATA, 0.4),
    "by trace": participation.by_trace(DATA, TRACE, 3),
    "dropout": participation.with_dropout(participation.uniform(DATA, 3), 0.5),
    "deadline": participation.with_deadline(participation.uniform(DATA, 3), {"all": np.arange(N)}, 2.5),
}


def numbers(chosen):
    return np.asarray(chosen.index if isinstance(chosen, Participants) else chosen)


@pytest.mark.parametrize("choose", CHOOSERS.values(), ids=CHOOSERS)
def test_a_choice_is_a_function_of_key_and_round(choose):
    rounds = [choose(KEY, r)["all"] for r in range(6)]
    chex.assert_trees_all_equal(rounds[::-1], [choose(KEY, r)["all"] for r in reversed(range(6))])
    assert len({numbers(who).tobytes() for who in rounds}) > 1
    other = [numbers(choose(jax.random.key(4), r)["all"]) for r in range(6)]
    assert any((numbers(who) != them).any() for who, them in zip(rounds, other, strict=True))
    assert len({numbers(who).shape for who in rounds}) == 1


def frequencies(choose, rounds=3000):
    return (
        np.bincount(np.concatenate([numbers(choose(KEY, r)["all"]) for r in range(rounds)]), minlength=N + 1)[:N]
        / rounds
    )


def test_each_chooser_draws_as_often_as_it_says():
    np.testing.assert_allclose(frequencies(CHOOSERS["uniform"]), 2 / N, atol=0.04)
    np.testing.assert_allclose(frequencies(CHOOSERS["independent"]), 0.4, atol=0.04)
    one = participation.by_size(DATA, 1)
    np.testing.assert_allclose(frequencies(one), np.array([1, 2, 4, 8, 16, 32]) / 63, atol=0.04)
    assert set(one(KEY, 0)["all"].weight) == {1.0}
    available = TRACE["all"].mean(0)
    assert (frequencies(CHOOSERS["by trace"]) < available).all()
    for r in range(8):
        who = CHOOSERS["by trace"](KEY, r)["all"]
        assert TRACE["all"][r % 4][who[who < N]].all()


def test_who_drops_out_and_who_is_cut():
    dropped = np.concatenate([CHOOSERS["dropout"](KEY, r)["all"].work for r in range(500)])
    assert set(dropped) == {0.0, 1.0} and dropped.mean() == pytest.approx(0.5, abs=0.05)
    who = CHOOSERS["deadline"](KEY, 1)["all"]
    np.testing.assert_allclose(who.work, np.minimum(1, 2.5 / np.maximum(who.index, 1e-9)))
    both = participation.with_dropout(CHOOSERS["deadline"], 1.0)(KEY, 1)["all"]
    assert not both.work.any()
    never = participation.with_deadline(CHOOSERS["uniform"], {"all": [np.inf] * N}, 1.0)(KEY, 0)["all"]
    assert not never.work.any()


def counting():
    """Each client sends how many steps it took, weighed 1, and keeps the sum; batches of 2, for 2 epochs."""

    def update(download, state, data, key):
        step = lambda carry, batch, key: (carry + 1, {"rows": batch["mask"].sum()})
        steps, metrics = local_steps(step, jnp.float32(0), data, key, batch_size=2, epochs=2)
        return {"steps": Mean(steps, jnp.sign(data.weight))}, state + steps, metrics

    server = Server(
        lambda key: jnp.float32(0),
        lambda state, public: {"all": Download({})},
        lambda state, uploads, public, key: (uploads["all"]["steps"].value, {}),
    )
    return federate(server, {"all": Cohort(N, lambda key: jnp.float32(0), update)})


def test_a_straggler_takes_the_first_of_its_steps_and_a_dropout_is_not_heard():
    method = counting()
    who = Participants([5, 4, 3, 0], work=[1.0, 0.5, 0.0, 0.01])  # of 32, 16, 8 and 2 steps
    new, metrics = jax.jit(method.round)(method.init(KEY), DATA.round({"all": who}), KEY)
    assert new.clients["all"].tolist() == [1, 0, 0, 0, 8, 32]
    assert float(new.server) == pytest.approx((32 + 8 + 1) / 3)
    assert (int(metrics["all"]["clients"]), int(metrics["all"]["left_out"])) == (3, 0)
    assert float(metrics["all"]["rows"]) == pytest.approx((32 * 2 + 16 * 2 + 1) / 49)  # per step, weighed by examples
    chunked = method._replace(over=method.over._replace(chunk=3))
    chex.assert_trees_all_close(jax.jit(chunked.round)(method.init(KEY), DATA.round({"all": who}), KEY)[0], new)


def test_steps_of_one_who_has_time_are_those_of_one_who_is_not_timed():
    method = counting()
    plain = jax.jit(method.round)(method.init(KEY), DATA.round({"all": np.arange(N)}), KEY)
    timed = DATA.round({"all": Participants(np.arange(N), work=np.ones(N))})
    chex.assert_trees_all_equal(jax.jit(method.round)(method.init(KEY), timed, KEY), plain)


def test_weights_go_with_their_clients():
    taken = DATA.round({"all": Participants([0, N, 5], weight=[3.0, 9.0, 0.5], work=[0.1, 0.2, 0.3])}).cohorts["all"]
    assert taken.index.tolist() == [5, 0, N]  # by their numbers of examples
    np.testing.assert_allclose(taken.weight, [0.5, 3.0, 0.0])
    np.testing.assert_allclose(taken.work, [0.3, 0.1, 0.2])


@pytest.mark.parametrize("per_call", [1, 2])
def test_a_run_whose_participants_are_chosen_goes_on_bit_for_bit(tmp_path, per_call):
    choose, quiet = CHOOSERS["deadline"], {"log": lambda line: None, "rounds_per_call": per_call}
    whole = run.train(counting(), DATA, rounds=4, choose=choose, **quiet)
    run.train(counting(), DATA, rounds=2, choose=choose, directory=tmp_path, **quiet)
    again = run.train(counting(), DATA, rounds=4, choose=choose, directory=tmp_path, **quiet)
    chex.assert_trees_all_equal(again, whole)
    expected = np.zeros(N)
    key = jax.random.fold_in(jax.random.key(0), 2)
    for r in range(4):
        who = choose(key, r)["all"]
        steps = 2 * -(-DATA.cohorts["all"].counts[who.index] // 2)
        expected[who.index] += np.ceil(who.work * steps - 1e-3)
    np.testing.assert_array_equal(whole.clients["all"], expected)
    with pytest.raises(ValueError, match="participants"):
        run.train(counting(), DATA, rounds=4, choose=CHOOSERS["dropout"], directory=tmp_path, **quiet)


def test_a_choice_that_is_none_is_refused():
    train = lambda **settings: run.train(counting(), DATA, rounds=1, log=lambda line: None, **settings)
    asked = []
    for settings, said in (
        ({}, "per_round"),
        ({"per_round": 1, "choose": CHOOSERS["uniform"]}, "leave per_round out"),
        ({"choose": "uniform"}, "choose is 'uniform'"),
        ({"choose": lambda key, r: [0, 1]}, "what choose gives"),
        ({"choose": lambda key, r: {"all": np.arange(r + 1)}}, "other numbers of places"),
        ({"choose": lambda key, r: {"all": [asked.append(0) or len(asked) % N]}}, "asked again"),
        ({"choose": lambda key, r: {"all": [0, 0]}}, "takes part twice"),
        ({"choose": lambda key, r: {"all": Participants([0], work=[2.0])}}, "the work of participants of all is"),
        ({"choose": lambda key, r: {"all": Participants([0], weight=[1.0, 2.0])}}, "the weights of participants"),
    ):
        with pytest.raises(ValueError, match=said):
            train(**settings)
