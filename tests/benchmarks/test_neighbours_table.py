"""The benchmark of FedAvg's neighbours: settings chosen on rows that no score sees, and differences within a seed."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import neighbours
from experiments.common import data
from fedjax_mm import aggregate, report
from fedjax_mm.federate import federate
from fedjax_mm.methods.neighbours import scaffold
from fedjax_mm.models import Model
from fedjax_mm.types import Cohort, Download, Mean, Server


def toy(models, rate):
    """A method whose score is the rate, less 1 above 2, and whose clients are right about the classes below it."""
    given, _, _ = models
    update = lambda download, state, data, key: ({"w": Mean(download.sent, data.weight)}, state, {})
    score = lambda download, state, arrays, mask: {"accuracy": (arrays["label"] < 3 * download.sent).astype(float)}
    server = Server(
        lambda key: jnp.float32(rate),
        lambda w, public: dict.fromkeys(given.sizes, Download(w)),
        lambda w, uploads, public, key: (aggregate.average(aggregate.collect(uploads, "w"), w), {}),
    )
    scores = lambda state, arrays: {"left+right/macro_f1": float(jnp.where(state.server > 2, 0.5, state.server / 4))}
    return federate(server, {name: Cohort(n, lambda key: (), update, score) for name, n in given.sizes.items()}, scores)


@pytest.fixture
def rows(monkeypatch):
    monkeypatch.setattr(neighbours, "models_of", lambda problem, held: (held, None, None))
    made = {
        "FedAvg": neighbours.Row(toy, {"rate": [0.5, 2.0, 4.0]}, "McMahan 2017", neighbours.fedavg),
        "SCAFFOLD": neighbours.Row(toy, {"rate": [1.0]}, "1910.06378", scaffold, "control variate"),
        "local only": neighbours.Row(toy, {"rate": [1.0, 2.0]}, keeps="model", personal=True, world="alone"),
        "server only": neighbours.Row(toy, {"rate": [1.0]}, world="server"),
    }
    monkeypatch.setattr(neighbours, "ROWS", made)
    return made


def test_the_command_tunes_and_writes_a_row_for_each_method_and_control(rows, tmp_path):
    given = ["--rounds", "1", "--seeds", "2", "--cohorts", "A2_AB2", "--out", str(tmp_path)]
    assert neighbours.main(given) == tmp_path
    written = json.loads((tmp_path / "neighbours.json").read_text())
    found = {row["method"]: row for row in written["rows"]}
    assert list(found) == [*rows, "constant"]
    assert found["FedAvg"]["settings"] == "rate 2" and found["FedAvg"]["both halves"] == [0.5, 0.0]
    assert found["SCAFFOLD"]["both halves"] == [0.25, 0.0]
    ours, theirs = (found[name]["own rows, each seed"] for name in ("SCAFFOLD", "FedAvg"))
    said, _, ends = found["SCAFFOLD"]["own minus FedAvg"].partition(" (")
    assert float(said) == pytest.approx(np.mean(np.subtract(ours, theirs)), abs=0.006) and " to " in ends
    assert found["SCAFFOLD"]["file"] == "fedjax_mm/methods/neighbours/scaffold.py" and found["SCAFFOLD"]["lines"] > 50
    assert found["local only"]["settings"] == "rate 2"  # of which more own rows are right
    assert found["local only"]["own rows"][0] > found["SCAFFOLD"]["own rows"][0]
    assert found["FedAvg"]["kB up"] == 0.004 and "kB up" not in found["server only"]
    assert any("local only: rate 2 lies at the edge" in line for line in written["tuning"])
    assert not any("FedAvg: rate" in line for line in written["tuning"])
    assert "SCAFFOLD" in (tmp_path / "neighbours.md").read_text()
    assert report.read_sweep(tmp_path / "tuning" / "FedAvg").scores["valid/left+right/macro_f1"].shape == (3, 2, 1)
    rows["FedAvg"] = rows["FedAvg"]._replace(grid={"rate": [3.0]})
    with pytest.raises(ValueError, match="has another grid, .*; remove it"):
        neighbours.main(given)
    with pytest.raises(ValueError, match="the row FedSGD is not known; there are FedAvg"):
        neighbours.main(["--only", "FedSGD"])


def test_rows_that_tune_are_rows_that_train_later_and_rows_that_test_are_neither():
    settings = neighbours.Settings(data.Settings(cohorts="A3_B1_AB2"))
    tuned, final = (neighbours.world(settings, 0, tuned).data for tuned in (True, False))
    whole = data.load_problem(settings.problem, 0).data
    for name, cohort in final.cohorts.items():
        fit, valid = tuned.cohorts[name].rows, tuned.cohorts[name].test_rows
        np.testing.assert_array_equal(np.sort(np.concatenate([fit, valid])), np.sort(cohort.rows))
        everything = np.concatenate([cohort.rows, cohort.test_rows])
        np.testing.assert_array_equal(np.sort(everything), np.sort(whole.cohorts[name].rows))
        assert not set(cohort.test_rows) & set(cohort.rows) and len(valid) and len(cohort.test_rows)


def test_what_some_rows_see_besides_is_the_servers_labelled_pairs(monkeypatch):
    """CAR-MFL as public examples; FedCLIP and PromptFL as features of networks that were trained on them, which then
    classify by themselves. FedET sees other pairs, without labels."""
    flat = Model(
        lambda key, x: jax.random.normal(key, (x[0].size, 16)) / 8,
        lambda params, x: jnp.tanh(x.reshape(len(x), -1) @ params),
    )
    monkeypatch.setattr(neighbours.data, "encoders", lambda dataset: dict.fromkeys(dataset.modalities, flat))
    common = neighbours.cli.Common(rounds=20)
    settings = neighbours.Settings(data.Settings(cohorts="A3_B1_AB2", common=common))
    pairs = data.load_problem(settings.problem, 0).dataset.splits["labelled"]
    borrowing = neighbours.world_of(settings, neighbours.ROWS["CAR-MFL"], 0, False).data.public
    assert borrowing is not None and set(borrowing) == {"left", "right", "label"}
    np.testing.assert_array_equal(borrowing["label"], pairs["label"])
    public = neighbours.world_of(settings, neighbours.ROWS["FedET"], 0, False).data.public
    assert public is not None and set(public) == {"left", "right"} and len(public["left"]) == 128

    problem = neighbours.world_of(settings, neighbours.ROWS["FedCLIP"], 0, False)
    held, modalities, text = neighbours.models_of(problem, problem.data)
    assert text.shape == (10, 16) and held.cohorts["left+right"].arrays["left"].shape[1:] == (16,)
    method = neighbours.ROWS["frozen features"].build((held, modalities, text))
    score = method.evaluate(method.init(jax.random.key(0)), data.tested(problem, "test"))["left+right/accuracy"]
    assert score > 0.6  # of ten classes

    problem = neighbours.world_of(settings, neighbours.ROWS["PromptFL, on features"], 0, False)
    held, modalities, words = neighbours.models_of(problem, problem.data)
    method = neighbours.ROWS["PromptFL, on features"].build((held, modalities, words))
    names = neighbours.ROWS["names without context"].build((held, modalities, words))
    first, alone = (one.evaluate(one.init(jax.random.key(0)), data.tested(problem, "test")) for one in (method, names))
    assert first["left+right/accuracy"] > 0.6 and alone["left+right/accuracy"] > 0.6
