"""What watches a run: the user's own watchers, scores by name, clients' own test rows, and the progress bar."""

import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_mm import report, run
from fedjax_mm.data.federated import FederatedData
from fedjax_mm.federate import Evaluation, federate
from fedjax_mm.run import client_scores, compilation, progress, records
from fedjax_mm.types import Cohort, Download, Mean, OverClients, Server

X = np.arange(24, dtype=np.float32).reshape(12, 2)
OWNED = [np.array([0, 1]), np.array([4, 5, 6]), np.array([8])]
TEST_ROWS = [np.array([2, 3]), np.array([], np.int64), np.array([9, 10, 11])]


def problem(**settings):
    """Clients send the mean of their rows and keep how often they took part; a score adds it to a row."""

    def update(download, state, data, key):
        mean = data.arrays["x"][data.rows].mean(0)
        return {"w": Mean(mean, data.weight)}, state + 1, {"loss": mean.sum()}

    def score(download, state, arrays, mask):
        return {"first": arrays["x"][:, 0] + state, "error": arrays["x"][:, 1] * mask}

    server = Server(
        lambda key: jnp.zeros(2),
        lambda w, public: {"all": Download(w)},
        lambda w, uploads, public, key: (uploads["all"]["w"].value, {}),
    )
    cohort = Cohort(3, lambda key: jnp.zeros(()), update, score)
    method = federate(server, {"all": cohort}, lambda state, arrays: {"sum": float(state.server.sum() + arrays["b"])})
    return method, FederatedData.from_arrays({"x": X}, OWNED, **settings)


def train(directory=None, rounds=4, data=None, **settings):
    method, own = problem()
    settings = {"per_round": 2, "log": lambda line: None, **settings}
    return run.train(method, own if data is None else data, rounds=rounds, directory=directory, **settings)


def test_a_watcher_sees_the_round_and_adds_to_the_row(tmp_path):
    seen = []

    def watch(done, row):
        seen.append((done.number, done.last, float(done.metrics["all"]["loss"]), np.asarray(done.state.server)))
        return {"mine/double": 2 * row["all/loss"]}

    state = train(tmp_path, watch=[watch])
    rows = records.read_metrics(tmp_path)
    assert [number for number, *_ in seen] == [1, 2, 3, 4] and [last for _, last, *_ in seen] == [False] * 3 + [True]
    assert [row["mine/double"] for row in rows] == [2 * loss for _, _, loss, _ in seen]
    np.testing.assert_array_equal(seen[-1][-1], state.server)


def test_a_watcher_may_end_the_run_which_is_saved_and_goes_on_later(tmp_path):
    def stop(done, row):
        if done.number == 2:
            raise run.StopRun("good enough")

    lines = []
    state = train(tmp_path / "run", watch=[stop], checkpoint_every=100, log=lines.append)
    assert int(state.round) == 2 and lines[-1] == "stopped after round 2: good enough"
    assert len(records.read_metrics(tmp_path / "run")) == 2
    chex.assert_trees_all_equal(train(tmp_path / "run"), train(tmp_path / "whole"))
    assert len(records.read_metrics(tmp_path / "run")) == 4


class Quiet:
    """A watcher that never reads a state, and may end the run."""

    def __init__(self, tell=lambda number: None, stop_after=None):
        self.tell, self.stop_after, self.states = tell, stop_after, []

    def reads_state(self, number):
        return False

    def __call__(self, done, row):
        self.tell(done.number)
        self.states.append(done.number if done.has_state else None)
        if done.number == self.stop_after:
            raise run.StopRun("enough")


def order_of_events(**watched):
    """(what a run with checkpoints behind every third of seven rounds does, in order; the rounds that have a state; the
    last one). "f3": the data of round 3 are made; "t3": its watchers are told."""
    events = []

    def choose(key, r):
        events.append(f"f{r + 1}")
        return {"all": np.array([r % 3])}

    quiet = Quiet(lambda number: events.append(f"t{number}"))
    watch = [quiet, *watched.pop("watch", [])]
    state = train(rounds=7, per_round=None, choose=choose, watch=watch, checkpoint_every=3, **watched)
    first = len(events) - events[::-1].index("f1") - 1  # what is checked before the run makes data too
    return " ".join(events[first:]), quiet.states, state


def test_the_device_goes_on_behind_a_round_whose_state_nobody_reads(tmp_path):
    """The data of a round are made while the round before computes: where f4 stands before t2, round 3 has begun."""
    events, states, late = order_of_events(directory=tmp_path / "late")
    waited, all_states, state = order_of_events(directory=tmp_path / "all", watch=[lambda done, row: None])
    assert (waited, all_states) == ("f1 f2 t1 f3 t2 f4 t3 f5 t4 f6 t5 f7 t6 t7", [1, 2, 3, 4, 5, 6, 7])
    # Behind 3, 6 and 7 the state is saved.
    assert (events, states) == ("f1 f2 f3 t1 f4 t2 t3 f5 f6 t4 f7 t5 t6 t7", [None, None, 3, None, None, 6, 7])
    chex.assert_trees_all_equal(late, state)
    rows = [records.read_metrics(tmp_path / name) for name in ("late", "all")]
    kept = [[{k: v for k, v in row.items() if k != "seconds"} for row in of] for of in rows]
    assert kept[0] == kept[1] and all(row["seconds"] >= 0 for row in rows[0])


def test_a_run_that_a_quiet_watcher_ends_is_saved_behind_the_next_round(tmp_path):
    state = train(tmp_path / "run", rounds=6, watch=[Quiet(stop_after=2)], checkpoint_every=100)
    assert int(state.round) == 3 and len(records.read_metrics(tmp_path / "run")) == 3
    whole = train(tmp_path / "whole", rounds=6, watch=[lambda done, row: None])
    chex.assert_trees_all_equal(train(tmp_path / "run", rounds=6), whole)


def test_scores_go_by_their_names_and_have_their_own_periods(tmp_path):
    method, _ = problem()
    evaluate = {
        "valid": run.scores(method, {"b": 1.0}),
        "often": run.Every(1, lambda state: {"round": int(state.round)}),
    }
    train(tmp_path, test={"b": 0.0}, evaluate=evaluate, evaluate_every=2)
    rows = records.read_metrics(tmp_path)
    assert [row["often/round"] for row in rows] == [1, 2, 3, 4]
    assert ["test/sum" in row for row in rows] == ["valid/sum" in row for row in rows] == [False, True, False, True]
    assert all(row["valid/sum"] == row["test/sum"] + 1 for row in rows[1::2])


def test_test_arrays_are_checked_once_and_before_the_first_round(tmp_path):
    seen, rounds = [], []
    method, data = problem()

    def check(arrays):
        seen.append(arrays)
        if "b" not in arrays:
            raise ValueError("the test set has no 'b'")

    method = method._replace(evaluate=Evaluation(check, method.evaluate))
    settings = {"rounds": 2, "per_round": 2, "watch": [lambda done, row: rounds.append(1)]}
    train = lambda **given: run.train(method, data, **settings, **given, log=lambda line: None)
    score = lambda arrays: run.scores(method, arrays)
    for wrong in (lambda: train(test={}, directory=tmp_path / "run"), lambda: train(evaluate={"v": score({})})):
        with pytest.raises(ValueError, match="the test set has no 'b'"):
            wrong()
    assert not rounds and not (tmp_path / "run").exists()
    seen.clear()
    train(test={"b": 0.0}, evaluate={"valid": score({"b": 1.0})}, evaluate_every=1)
    assert sorted(arrays["b"] for arrays in seen) == [0, 1] and len(rounds) == 2
    with pytest.raises(ValueError, match="method is 3; give a Method"):
        run.scores(3, {})
    with pytest.raises(ValueError, match="the test set has no 'b'"):
        method.evaluate(None, {})


def test_the_method_says_how_clients_are_mapped_where_the_run_does_not(monkeypatch):
    used = []
    compile = compilation._compile
    kept = lambda stage, inputs, over, number: used.append(over.chunk) or compile(stage, inputs, over, number)
    monkeypatch.setattr(compilation, "_compile", kept)
    method, data = problem()
    two = method._replace(over=OverClients(2))
    for chunk in (None, 1):
        run.train(two, data, rounds=1, per_round=2, chunk=chunk, log=lambda line: None)
    assert used == [2, 1]


def test_clients_are_scored_on_their_own_test_rows(tmp_path):
    method, data = problem(test=TEST_ROWS)
    state = run.train(method, data, rounds=3, per_round=2, directory=tmp_path, log=lambda line: None)
    took_part = np.asarray(state.clients["all"])
    expected = np.array([X[rows, 0].mean() if len(rows) else np.nan for rows in TEST_ROWS]) + took_part
    errors = np.array([X[rows, 1].mean() if len(rows) else np.nan for rows in TEST_ROWS])
    each = client_scores.own_scores(method, state, data)["all"]
    np.testing.assert_allclose(each["first"], expected, rtol=1e-6)
    np.testing.assert_allclose(each["error"], errors, rtol=1e-6)
    row = records.read_metrics(tmp_path)[-1]
    known = expected[[0, 2]]
    assert row["own/all/first"] == pytest.approx(known.mean())
    assert row["own/all/first_p10"] == pytest.approx(np.percentile(known, 10))
    assert row["own/all/first_worst"] == known.min() and row["own/all/error_worst"] == np.nanmax(errors)
    assert row["own/all/first_spread"] == pytest.approx(known.std())
    kept = json.loads((tmp_path / "own_scores.json").read_text())
    np.testing.assert_allclose(np.array(kept["cohorts"]["all"]["first"], float), expected, rtol=1e-6)
    content = (tmp_path / "own_scores.json").read_text()
    assert "NaN" not in content
    (tmp_path / "own_scores.json").write_text(content.replace("3", "4", 1))  # the round
    run.train(method, data, rounds=3, per_round=2, directory=tmp_path, log=lambda line: None)
    assert (tmp_path / "own_scores.json").read_text() == content
    page = report.write([tmp_path], tmp_path / "report").read_text()
    assert "## Clients on their own test rows" in page and (tmp_path / "report" / "own.png").stat().st_size > 10_000


@pytest.mark.parametrize("where", ["host", "folder"])
def test_own_scores_do_not_depend_on_where_states_and_examples_are(where, tmp_path):
    settings = dict(rounds=2, per_round=3, log=lambda line: None)
    method, data = problem(test=TEST_ROWS)
    expected = client_scores.own_scores(method, run.train(method, data, **settings), data)
    _, off_device = problem(test=TEST_ROWS, on_device=False)
    place = tmp_path / "states" if where == "folder" else where
    state = run.train(method, off_device, client_state=place, **settings)
    chex.assert_trees_all_equal(client_scores.own_scores(method, state, off_device), expected)


def test_a_score_over_all_cohorts_weighs_every_client_alike():
    scores = {"a": {"accuracy": np.array([0.2, np.nan])}, "b": {"accuracy": np.array([0.4, 0.9])}}
    row = client_scores.summary(scores)
    assert row["own/all/accuracy"] == pytest.approx(0.5) and row["own/all/accuracy_worst"] == 0.2


def test_no_bar_is_shown_where_nobody_looks(capsys):
    train()
    assert capsys.readouterr() == ("", "")


def test_a_bar_shows_rounds_speed_and_the_last_score(capsys):
    train(rounds=3, test={"b": 0.0}, evaluate_every=1, progress=True)
    shown = capsys.readouterr().out
    assert "3/3" in shown and "test/sum" in shown and "rounds" in shown


def test_the_line_of_a_notebook_says_what_is_left():
    line = progress._line(5, 20, progress._speed(0.5), "test/accuracy 0.9", 30.0)
    assert line == "[########......................] 5/20 rounds  2 s/round  test/accuracy 0.9  0:30 left"


def test_the_state_that_a_round_shows_is_the_state_of_all_clients():
    shapes = []
    watch = lambda done, row: shapes.append(jax.tree.map(np.shape, done.state.clients))
    for place in ("device", "host"):
        train(rounds=1, client_state=place, watch=[watch])
    assert shapes == [{"all": (3,)}] * 2
