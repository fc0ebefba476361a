"""Trackers write every finite number of a round and are closed with the run; stubs stand for their packages."""

import sys
import types

import numpy as np
import pytest

from fedjax_mm import run
from fedjax_mm.data.federated import FederatedData
from fedjax_mm.federate import federate
from fedjax_mm.run import track
from fedjax_mm.types import Cohort, Download, Mean, Server

DATA = FederatedData.from_arrays({"x": np.arange(6.0, dtype=np.float32)}, np.repeat([0, 1, 2], 2))


def train(rounds=3, watch=(), **settings):
    update = lambda download, state, data, key: (
        {"w": Mean(download.sent + 1, data.weight)},
        state,
        {"loss": data.weight},
    )
    mean = lambda w, uploads, public, key: (uploads["all"]["w"].value, {})
    server = Server(lambda key: np.float32(0), lambda w, public: {"all": Download(w)}, mean)
    scores = {"test": lambda state: {"a+b/score": float(state.server), "none": float("nan")}}
    settings = {"per_round": 2, "evaluate": scores, "evaluate_every": 2, "log": lambda line: None, **settings}
    return run.train(
        federate(server, {"all": Cohort(3, lambda key: (), update)}), DATA, rounds=rounds, watch=watch, **settings
    )


class Stub(types.ModuleType):
    """tensorboardX, wandb and mlflow in one: it keeps what it is told, in order."""

    def __init__(self):
        super().__init__("stub")
        self.told, self.info = [], types.SimpleNamespace(run_id="id")

    def SummaryWriter(self, directory, purge_step):
        self.told.append(("open", directory, purge_step))
        return self

    def add_scalar(self, name, value, number):
        self.told.append(("number", name, value, number))

    def init(self, project=None):
        self.told.append(("open", project))
        return self

    def define_metric(self, name, step_metric=None):
        self.told.append(("metric", name, step_metric))

    def log(self, row):
        self.told += [("number", name, value, row["round"]) for name, value in row.items()]

    def set_tracking_uri(self, uri):
        self.told.append(("uri", uri))

    def set_experiment(self, name):
        self.told.append(("experiment", name))

    def start_run(self, run_name=None):
        self.told.append(("open", run_name))
        return self

    def log_metrics(self, row, step, run_id):
        self.told += [("number", name, value, step) for name, value in row.items()]

    def close(self):
        self.told.append(("close",))

    finish = end_run = close


@pytest.fixture
def stub(monkeypatch):
    made = Stub()
    for name in ("tensorboardX", "wandb", "mlflow"):
        monkeypatch.setitem(sys.modules, name, made)
    return made


MAKERS = {
    "tensorboard": (lambda: track.tensorboard("logs"), [("open", "logs", 1)], "test/a+b/score"),
    "wandb": (
        lambda: track.wandb(project="p"),
        [("open", "p"), ("metric", "round", None), ("metric", "*", "round")],
        "test/a+b/score",
    ),
    "mlflow": (
        lambda: track.mlflow("e", tracking_uri="u", run_name="r"),
        [("uri", "u"), ("experiment", "e"), ("open", "r")],
        "test/a_b/score",
    ),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_every_finite_number_is_written_at_its_round_and_the_end_closes(stub, kind):
    make, opened, score = MAKERS[kind]
    tracker = make()
    assert stub.told == []
    train(watch=[tracker])
    assert stub.told[: len(opened)] == opened and stub.told[-1] == ("close",)
    assert stub.told.count(("close",)) == 1
    numbers = {(name, number): value for kind, name, value, number in (t for t in stub.told if t[0] == "number")}
    assert [numbers["all/loss", r] for r in (1, 2, 3)] == [2.0] * 3
    assert {r: numbers[score, r] for r in (2, 3)} == {2: 2.0, 3: 3.0} and (score, 1) not in numbers
    assert not any("none" in name for name, _ in numbers)
    train(rounds=1, watch=[tracker])  # another run opens it again
    assert [told for told in stub.told if told[0] == "open"] == [opened[-1] if kind != "wandb" else opened[0]] * 2


def test_a_run_that_fails_closes_its_trackers(stub):
    def fail(done, row):
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        train(watch=[track.tensorboard("logs"), fail])
    assert stub.told[-1] == ("close",)


def test_the_runs_own_board_begins_where_a_run_goes_on(stub, tmp_path):
    train(rounds=1, directory=tmp_path, tensorboard=True)
    train(rounds=3, directory=tmp_path, tensorboard=True)
    where = str(tmp_path / "tensorboard")
    assert [told for told in stub.told if told[0] in ("open", "close")] == [
        ("open", where, 1),
        ("close",),
        ("open", where, 2),
        ("close",),
    ]


@pytest.mark.parametrize("name, make", [("wandb", track.wandb), ("mlflow", track.mlflow)])
def test_a_package_that_is_not_installed_is_named_before_a_run(monkeypatch, name, make):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=rf"{name} is not installed; run: pip install 'fedjax_mm\[{name}\]'"):
        make()


def test_wrong_settings_are_refused(stub):
    for wrong in (3, ""):
        with pytest.raises(ValueError, match="directory is .*; give the path of a directory"):
            track.tensorboard(wrong)
    with pytest.raises(ValueError, match="experiment is 3; give a text, or None"):
        track.mlflow(3)
    with pytest.raises(ValueError, match=r"wandb\.init does not take the settings \['projekt'\]"):
        train(watch=[track.wandb(projekt="p")])
