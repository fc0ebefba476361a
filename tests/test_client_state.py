"""Wherever clients' states are kept, a run gives the same numbers; kept off the device, few of them are on it."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_mm import clients, run
from fedjax_mm.data.federated import FederatedData
from fedjax_mm.federate import federate, init_server
from fedjax_mm.run import client_state, records
from fedjax_mm.stages import Stage
from fedjax_mm.types import Cohort, Download, Mean, Server

SIZES = {"A": 7, "B": 3}
PER_ROUND = 6  # so that clients take part in rounds that follow each other, and both cohorts have padding clients
ROUNDS = 4
BAD = 4  # this client of A never has a finite upload
PLACES = ("host", "folder")


def problem(sizes=SIZES, width=3):
    """A method whose clients remember: a running mean, its half in bfloat16, and how often they took part."""

    def update(download, state, data, key):
        x = data.arrays["x"][data.rows[0]]
        mean = 0.5 * state["mean"] + x + download.sent + 0.1 * jax.random.normal(key, (width,))
        sent = jnp.where(x[0] > 1e3, jnp.nan, mean)
        new = {"mean": mean, "half": (mean / 2).astype(jnp.bfloat16), "rounds": state["rounds"] + 1}
        return {"w": Mean(sent, data.weight)}, new, {"size": jnp.abs(mean).sum()}

    def init(key):
        half = jax.random.normal(key, (2, width)).astype(jnp.bfloat16)[0]
        return {"mean": jax.random.normal(key, (width,)), "half": half, "rounds": jnp.int32(0)}

    def server_update(params, uploads, public, key):
        return params + 0.1 * sum(uploads[name]["w"].value for name in sizes), {}

    server = Server(
        lambda key: jax.random.normal(key, (width,)), lambda w, _: {n: Download(w) for n in sizes}, server_update
    )
    seen = lambda state, test: {"rounds": float(np.sum(state.clients["A"]["rounds"]))}
    method = federate(server, {name: Cohort(n, init, update) for name, n in sizes.items()}, seen)
    x = np.random.default_rng(0).normal(size=(sum(sizes.values()), width)).astype(np.float32)
    x[BAD] = 1e4
    owned = {"A": np.arange(sizes["A"])[:, None], "B": np.arange(sizes["A"], len(x))[:, None]}
    return method, FederatedData.from_arrays({"x": x}, owned)


def train(where, folder=None, rounds=ROUNDS, method=None, **settings):
    own, data = problem()
    place = folder if where == "folder" else where
    settings = {"per_round": PER_ROUND, "checkpoint_every": 1, "log": lambda line: None, **settings}
    return run.train(method or own, data, rounds=rounds, client_state=place, **settings)


@functools.cache
def on_device(devices=None):
    return train("device", devices=devices)


def test_the_problem_has_what_could_go_wrong():
    who = [clients.choose(SIZES, PER_ROUND, r, 0) for r in range(ROUNDS)]
    for name, n in SIZES.items():
        assert any((w[name] == n).any() for w in who)
        both = zip(who, who[1:], strict=False)
        assert any(len(np.intersect1d(a[name][a[name] < n], b[name][b[name] < n])) for a, b in both)
    assert any(BAD in w["A"] for w in who)
    states = on_device().clients["A"]
    assert states["rounds"][BAD] == 0 and np.max(states["rounds"]) > 1


@pytest.mark.parametrize("where", PLACES)
def test_first_states_are_those_of_init_bit_for_bit(where, tmp_path, monkeypatch):
    method, _ = problem()
    expected, drawn = jax.jit(method.init)(jax.random.key(3)).clients, []
    draw = lambda *cohort_and_key, f=client_state.init_clients: (
        drawn.append(len(cohort_and_key[3])) or f(*cohort_and_key)
    )
    monkeypatch.setattr(client_state, "init_clients", draw)
    monkeypatch.setattr(client_state, "BLOCK_BYTES", 50)  # two clients' states
    got = client_state.init(
        method, jax.random.key(3), init_server(method, jax.random.key(3)), tmp_path if where == "folder" else None
    )
    assert all(type(x) is np.ndarray for x in jax.tree.leaves(got))
    chex.assert_trees_all_equal(got, jax.tree.map(np.asarray, expected))
    assert drawn == [2, 2]  # one trace a cohort
    assert len([file for file in tmp_path.rglob("*") if file.is_file()]) == (6 if where == "folder" else 0)


@pytest.mark.parametrize("where, devices", [("host", None), ("folder", 2)])
def test_a_run_is_the_same_bit_for_bit_wherever_states_are(where, devices, tmp_path):
    got = train(where, tmp_path, devices=devices)
    assert all(type(x) is np.ndarray for x in jax.tree.leaves(got.clients))
    chex.assert_trees_all_equal(*jax.device_get((got, on_device(devices))))


def test_a_run_in_parts_equals_the_uninterrupted_run_bit_for_bit(tmp_path):
    """Every part keeps its states elsewhere; so does a run that is done already."""
    settings = dict(folder=tmp_path / "states", directory=tmp_path / "run", test={}, evaluate_every=1)
    for rounds, place in ((1, "host"), (2, "device"), (3, "folder"), (4, "folder"), (ROUNDS, "host")):
        last = train(place, rounds=rounds, **settings)
        if rounds == ROUNDS:
            chex.assert_trees_all_equal(*jax.device_get((last, on_device())))
    rows = records.read_metrics(tmp_path / "run")
    took_part = np.cumsum([row["A/clients"] for row in rows]).tolist()
    assert [row["test/rounds"] for row in rows] == took_part and len(rows) == ROUNDS


def test_a_run_goes_on_on_other_devices(tmp_path):
    for rounds, place, devices in ((1, "device", 4), (2, "device", None), (3, "host", 2), (ROUNDS, "device", 2)):
        last = train(place, rounds=rounds, devices=devices, directory=tmp_path)
    chex.assert_trees_all_close(*jax.device_get((last, on_device())), rtol=1e-2)  # half of the numbers are bfloat16


@pytest.mark.parametrize("per_round", [PER_ROUND, {"A": 7, "B": 2}])
def test_rounds_in_one_call_exchange_states_as_single_rounds_do(per_round):
    settings = {"per_round": per_round, "devices": 2, "checkpoint_every": None}
    chex.assert_trees_all_equal(*(jax.device_get(train("device", rounds_per_call=n, **settings)) for n in (2, 1)))


def test_stages_start_with_fresh_states_of_their_own(tmp_path):
    plan = lambda: [Stage("one", problem()[0], 2), Stage("two", problem()[0], 2)]
    expected = train("device", rounds=None, method=plan(), devices=2)
    got = train("folder", tmp_path, rounds=None, method=plan(), devices=2)
    chex.assert_trees_all_equal(*jax.device_get((got, expected)))
    assert np.max(got.clients["A"]["rounds"]) <= 2


@pytest.mark.parametrize("where", PLACES)
def test_the_device_holds_the_states_of_participants_alone(where, tmp_path):
    size, shapes = 3001, []
    method, data = problem({"A": size, "B": 3}, width=5)

    def live(state, test):
        shapes.extend(x.shape for x in jax.live_arrays())
        return {}

    place = tmp_path if where == "folder" else where
    method = method._replace(evaluate=live)
    run.train(method, data, rounds=2, per_round={"A": 2, "B": 2}, test={}, client_state=place, log=lambda line: None)
    held = [s for s in shapes if s[1:] in ((5,), ()) and s[:1] == (size,)]
    assert shapes and not held


def test_states_of_an_earlier_run_are_not_written_over_by_one_in_the_same_folder(tmp_path):
    first = train("folder", tmp_path, rounds=2)
    before = jax.tree.map(np.array, first.clients)
    train("folder", tmp_path, rounds=2, seed=1)
    chex.assert_trees_all_equal(first.clients, before)


def test_a_folder_without_room_is_an_error_that_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(client_state, "open", lambda path, mode: path.touch() or open("/dev/full", mode), raising=False)
    with pytest.raises(OSError, match="cannot hold the client states of A in .*, 0.0 MB .No space left.*; free some"):
        train("folder", tmp_path)
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]


def test_random_keys_in_a_state_are_an_error_that_says_what_to_do():
    method, _ = problem()
    with_key = Cohort(3, lambda key: {"own": key}, method.cohorts["B"].update)
    with pytest.raises(ValueError, match=r"cohort B holds random keys at \['own'\].*key_data"):
        client_state.init(method._replace(cohorts={"B": with_key}), jax.random.key(0), jnp.zeros(3))


def test_clients_without_a_state_are_no_special_case():
    cohort = Cohort(3, lambda key: (), lambda download, state, data, key: ({"w": Mean(download.sent, 1.0)}, state, {}))
    server = Server(jax.random.normal, lambda w, _: {"all": Download(w)}, lambda w, uploads, *_: (w, {}))
    data = FederatedData.from_arrays({"x": np.ones((3, 1), np.float32)}, np.arange(3))
    method = federate(server, {"all": cohort})
    assert run.train(method, data, rounds=2, per_round=2, client_state="host", log=lambda line: None).clients == {
        "all": ()
    }
