"""A run's directory read back without its method: states, settings and metrics, also of damaged runs."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax_mm import run
from fedjax_mm.data.federated import FederatedData
from fedjax_mm.federate import federate
from fedjax_mm.run import digests
from fedjax_mm.stages import Stage
from fedjax_mm.types import Cohort, Download, Mean, Server

X = np.arange(12, dtype=np.float32).reshape(6, 2)
ADAM = optax.adam(0.1)


def method(**more):
    """The server keeps a NamedTuple, a tuple, an empty tuple, half precision and random keys; clients their turns."""

    def update(download, state, data, key):
        mean = data.arrays["x"][data.rows].mean(0)
        return {"w": Mean(download.sent["w"] + mean, data.weight)}, {**state, "turns": state["turns"] + 1}, {}

    def init(key):
        w = jnp.ones(2)
        half = jnp.full(2, 1.5, jnp.bfloat16)
        return {"w": w, "opt": ADAM.init(w), "none": (), "key": jax.random.key(3), "half": (half, half + 1), **more}

    def server_update(state, uploads, public, key):
        return {**state, "w": uploads["all"]["w"].value}, {}

    server = Server(init, lambda state, public: {"all": Download({"w": state["w"]})}, server_update)
    return federate(server, {"all": Cohort(3, lambda key: {"turns": jnp.int32(0), "empty": {}}, update)})


def train(directory, plan=None, **settings):
    data = FederatedData.from_arrays({"x": X}, np.repeat([0, 1, 2], 2))
    settings = {"rounds": 3, "per_round": 2, "checkpoint_every": 1, "log": lambda line: None, **settings}
    settings |= {"config": {"lr": 0.5}, "evaluate": {"valid": lambda state: {"a": 1.0}}, "evaluate_every": 2}
    return run.train(method() if plan is None else plan, data, directory=directory, **settings)


def quiet(line):
    raise AssertionError(line)


@pytest.mark.parametrize("where", ["device", "host"])
def test_what_was_kept_is_read_without_the_method(tmp_path, where):
    state = train(tmp_path, client_state=where)
    saved = run.load(tmp_path, log=quiet)
    assert saved.round == 3 and set(saved.server) == {"w", "opt", "none", "key", "half"} and saved.server["none"] == {}
    np.testing.assert_array_equal(saved.server["w"], state.server["w"])
    np.testing.assert_array_equal(saved.server["opt"]["0"]["mu"], state.server["opt"][0].mu)
    np.testing.assert_array_equal(saved.server["key"], jax.random.key_data(jax.random.key(3)))
    assert saved.server["half"]["1"].dtype == jnp.bfloat16 and saved.server["half"]["1"].tolist() == [2.5, 2.5]
    np.testing.assert_array_equal(saved.clients["all"]["turns"], state.clients["all"]["turns"])
    assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves((saved.server, saved.clients)))
    assert saved.settings["config"] == {"lr": 0.5} and saved.settings["per_round"] == 2 and "jax" in saved.versions
    assert set(saved.costs) == set(saved.split) == set(saved.settings["sizes"]) == {"all"} and "cpu" in saved.device
    assert [row["round"] for row in saved.rows] == [1, 2, 3]
    np.testing.assert_array_equal(saved.columns["valid/a"], [np.nan, 1.0, 1.0])
    title, *parts, rows = repr(saved).splitlines()
    assert title == "SavedRun after 3 rounds" and rows.startswith("  3 rows, the last with round, ")
    assert [part.split()[0] for part in parts] == [f"server/{name}" for name in saved.server] + ["clients/all"]


def test_clients_may_stay_on_the_disk_and_the_server_is_still_verified(tmp_path):
    state = train(tmp_path)
    saved = run.load(tmp_path, clients=False, log=quiet)
    assert saved.clients == {}
    np.testing.assert_array_equal(saved.server["w"], state.server["w"])
    file = tmp_path / "checkpoints" / "3.sha256"
    server, *others = file.read_text().splitlines(keepends=True)
    file.write_text("".join([server, others[0].replace(others[0][:8], "00000000"), *others[1:]]))
    assert run.load(tmp_path, clients=False, log=quiet).round == 3
    lines = []
    assert run.load(tmp_path, log=lines.append).round == 2 and "are not those that were saved" in lines[0]
    file.write_text(server.replace(server[:8], "00000000") + "".join(others))
    assert run.load(tmp_path, clients=False, log=lines.append).round == 2


def test_a_damaged_checkpoint_is_left_for_the_one_before_and_stays_where_it_is(tmp_path):
    train(tmp_path)
    for file in (tmp_path / "checkpoints" / "3").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    before, lines = sorted(tmp_path.rglob("*")), []
    saved = run.load(tmp_path, log=lines.append)
    assert saved.round == 2 and len(saved.rows) == 3 and "going on from the one before, of round 2" in lines[0]
    assert sorted(tmp_path.rglob("*")) == before


def test_the_last_of_several_stages_is_read(tmp_path):
    plan = [Stage("first", method(), 1), Stage("second", method(added=jnp.ones(4)), 2)]
    train(tmp_path, plan)
    saved = run.load(tmp_path, log=quiet)
    assert saved.round == 3 and saved.server["added"].tolist() == [1.0] * 4
    assert saved.settings["stages"] == {"first": 1, "second": 2} and set(saved.costs) == {"first/all", "second/all"}
    assert saved.columns["stage"].tolist() == [1, 2, 2]


def test_a_checkpoint_of_an_earlier_version_has_one_digest(tmp_path):
    state = train(tmp_path, rounds=2)
    (tmp_path / "checkpoints" / "2.sha256").write_text(digests.of_state(state))
    lines = []
    assert run.load(tmp_path, log=lines.append).round == 2 and "values are not verified" in lines[0]
    train(tmp_path, log=lines.append)
    assert not any("damaged" in line for line in lines) and not (tmp_path / "checkpoint-2.damaged").exists()


def test_a_damaged_small_file_is_left_out(tmp_path):
    train(tmp_path, rounds=1)
    (tmp_path / "costs.json").write_text("{")
    lines = []
    saved = run.load(tmp_path, log=lines.append)
    assert saved.costs == {} and saved.round == 1 and lines[0].endswith("it is left out")


def test_what_is_no_run_is_refused_in_one_sentence(tmp_path):
    for wrong in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ValueError, match=r"is no run; give a directory that run\.train wrote"):
            run.load(wrong)
    with pytest.raises(ValueError, match="directory is 3; give the path"):
        run.load(3)
    with pytest.raises(ValueError, match="clients is 'all'; give True or False"):
        run.load(tmp_path, clients="all")
    (tmp_path / "config.json").write_text(json.dumps({"seed": 0}))
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ValueError, match="has no checkpoint yet"):
        run.load(tmp_path)
