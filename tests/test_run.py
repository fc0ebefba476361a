"""Runs: written, killed, resumed, mapped over devices and processes, and refused where they cannot be right."""

import functools
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from types import SimpleNamespace

import chex
import jax
import numpy as np
import optax
import pytest
from orbax.checkpoint import CheckpointManager

from fedjax_mm import run, stages
from fedjax_mm.data.federated import FederatedData
from fedjax_mm.federate import federate
from fedjax_mm.local import gradient_step, local_steps
from fedjax_mm.methods.fedavg import FedAvgConfig, build
from fedjax_mm.models import Model
from fedjax_mm.run import compilation, json_files, records, tune
from fedjax_mm.stages import Stage
from fedjax_mm.types import Cohort, Download, Each, Mean, Server

ROOT = pathlib.Path(__file__).parents[1]
RNG = np.random.default_rng(0)
X, LABEL = RNG.normal(size=(60, 4)).astype(np.float32), RNG.integers(0, 3, 60).astype(np.int32)
TEST = {"x": X, "label": LABEL}


SMALL_BATCH = FedAvgConfig(batch_size=4)


def dense(width):
    """A linear layer, which is traced faster than one of Flax: every run below is traced anew."""

    def init(key, x):
        return {"kernel": jax.random.normal(key, (x.shape[-1], width)) / 2, "bias": jax.numpy.zeros(width)}

    return Model(init, lambda params, x: x @ params["kernel"] + params["bias"][None])


def problem(config=SMALL_BATCH):
    data = FederatedData.from_arrays({"x": X, "label": LABEL}, np.repeat(np.arange(6), [4, 20, 6, 16, 10, 4]))
    return build(config, data, {"x": dense(5)}, dense(3)), data


def train(directory=None, rounds=4, log=lambda line: None, **settings):
    method, data = problem()
    settings = {"per_round": 4, "checkpoint_every": 1, **settings}
    return run.train(method, data, rounds=rounds, directory=directory, log=log, **settings)


@functools.cache
def four_rounds():
    """What `train()` gives."""
    return train()


def refused(directory, why, rate=0.1, **settings):
    """For a process of several, of which not all are given the same: all refuse."""
    method, data = problem(FedAvgConfig(batch_size=4, client_lr=rate))
    settings = {"rounds": 4, "devices": 4, "directory": directory, "log": lambda line: None, **settings}
    with pytest.raises((ValueError, RuntimeError), match=why):
        run.train(method, data, per_round=4, **settings)


def test_a_run_leaves_its_settings_split_costs_and_log(tmp_path):
    train(tmp_path, test=TEST, evaluate_every=2, config=FedAvgConfig(), tensorboard=True)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["config"]["batch_size"] == 20 and config["seed"] == 0 and config["versions"]["jax"]
    split = json.loads((tmp_path / "split.json").read_text())["all"]
    assert split["examples"] == [4, 20, 6, 16, 10, 4] and np.sum(split["classes"]) == 60
    assert np.array(split["classes"])[1].tolist() == np.bincount(LABEL[4:24], minlength=3).tolist()
    assert json.loads((tmp_path / "costs.json").read_text())["all"]["bytes_up"] == 4 * (25 + 18)
    rows = records.read_metrics(tmp_path)
    assert [row["round"] for row in rows] == [1, 2, 3, 4]
    assert ["test/x/accuracy" in row for row in rows] == [False, True, False, True]
    assert all(row["all/clients"] == 4 and row["seconds"] > 0 for row in rows)
    assert list((tmp_path / "tensorboard").iterdir())


def test_chunk_auto_is_measured_once_remembered_and_said(tmp_path):
    lines = []
    state = train(tmp_path, rounds=2, chunk="auto", log=lines.append)
    remembered = json.loads((tmp_path / "chunk.json").read_text())["all"]
    assert set(remembered) == {"1", "2", "4"} and all(s > 0 for s in remembered.values())
    assert any("chunk of all is" in line for line in lines)
    (tmp_path / "chunk.json").write_text(json.dumps({"all": {"1": 9.0, "4": 0.5}}))
    lines.clear()
    again = train(tmp_path, rounds=3, chunk="auto", log=lines.append)
    assert any("chunk of all is 4 (ms per round at each chunk: 1: 9000.0, 4: 500.0)" in line for line in lines)
    assert int(again.round) == 3 and int(state.round) == 2


def test_a_chunk_for_which_there_is_no_memory_is_not_run(monkeypatch):
    lines = []
    monkeypatch.setattr(tune, "free_bytes", lambda: 1000)  # the round's own temporaries take more
    train(rounds=1, chunk="auto", log=lines.append)
    assert any("chunk of all is 1 (ms per round at each chunk: )" in line for line in lines)


def test_what_other_cohorts_have_sent_is_in_memory_too(monkeypatch):
    """There is room for each of two like cohorts, whose clients send 4 kB each, and none beside what the first sent."""

    def update(download, state, data, key):
        return {"w": Each(data.weight + jax.numpy.zeros(1000), 1.0)}, state, {}

    download = lambda w, public: dict.fromkeys("ab", Download(w))
    server = Server(lambda key: jax.numpy.zeros(2), download, lambda w, uploads, public, key: (w, {}))
    method = federate(server, {cohort: Cohort(3, lambda key: (), update) for cohort in "ab"})
    data = FederatedData.from_arrays({"x": X[:3]}, {cohort: np.arange(3) for cohort in "ab"})
    state, key, needs = method.init(jax.random.key(0)), jax.random.key(1), []
    taken = data.round({cohort: np.arange(3) for cohort in "ab"})
    more_bytes = tune.more_bytes
    monkeypatch.setattr(tune, "more_bytes", lambda compiled: needs.append(more_bytes(compiled)) or needs[-1])
    tried = lambda: {cohort: list(times) for cohort, times in tune.tune_chunks(method, state, taken, key).items()}
    assert tried() == {"a": ["1", "2", "3"], "b": ["1", "2", "3"]} and min(needs) >= 3 * 4000
    metrics = 200  # bytes, more than there are
    room = max(needs) + 3 * 4000 + metrics
    monkeypatch.setattr(tune, "free_bytes", lambda: room)
    assert tried() == {"a": ["1", "2", "3"], "b": ["1", "2", "3"]}
    room -= 2 * metrics
    assert tried()["a"] == ["1", "2", "3"] and tried()["b"] != ["1", "2", "3"]


def test_devices_give_the_single_device_numbers(tmp_path):
    chex.assert_trees_all_close(train(devices=4), four_rounds(), atol=1e-5)
    chex.assert_trees_all_close(train(devices=2, chunk=2), four_rounds(), atol=1e-5)


CHILD = """
    import sys
    sys.path[:0] = [{tests!r}, {root!r}]
    import jax
    import test_run
    {body}
"""


def child(body, env=None):
    code = textwrap.dedent(CHILD.format(tests=str(ROOT / "tests"), root=str(ROOT), body=body))
    env = {**os.environ, "JAX_PLATFORMS": "cpu", **(env or {})}
    return subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def test_a_run_killed_in_the_middle_resumes_bit_for_bit(tmp_path):
    """SIGKILL comes inside the write of a log line and, in a second child, inside the write of a checkpoint."""
    compiled_above = {"JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir}
    flags = {"XLA_FLAGS": os.environ["XLA_FLAGS"], **compiled_above}
    whole = train(tmp_path / "whole", rounds=6)
    in_log = "; ".join(
        [
            "import os, signal",
            "append = test_run.records.RunDirectory.append",
            "half = lambda self, row: open(self.path / 'metrics.jsonl', 'a').write('{\"round\": 3, \"al')",
            "die = lambda: os.kill(os.getpid(), signal.SIGKILL)",
            "last = lambda self, row: (half(self, row), die()) if row['round'] == 3 else append(self, row)",
            "test_run.records.RunDirectory.append = last",
            f"test_run.train({str(tmp_path / 'parts')!r}, rounds=6)",
        ]
    )
    process = child(in_log, flags)
    output = process.communicate(timeout=120)[0].decode()
    assert process.returncode == -signal.SIGKILL, output
    in_save = "; ".join(
        [
            "import os, signal, pathlib",
            "replace = os.rename",
            "test_run.CheckpointManager.wait_until_finished = lambda self: None",
            "die = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)",
            "pathlib.Path.rename = lambda self, to: die() if str(to).endswith('/5') else replace(self, to)",
            "os.rename = lambda a, b, **k: die() if str(b).endswith('/5') else replace(a, b)",
            f"test_run.train({str(tmp_path / 'parts')!r}, rounds=6)",
        ]
    )
    process = child(in_save, flags)
    output = process.communicate(timeout=120)[0].decode()
    assert process.returncode == -signal.SIGKILL, output
    assert len(records.read_metrics(tmp_path / "parts")) == 5  # round 5's line came before its checkpoint
    lines = []
    resumed = train(tmp_path / "parts", rounds=6, log=lines.append)
    assert any("resuming parts after round 4" in line for line in lines)
    chex.assert_trees_all_equal(resumed, whole)
    rows = lambda name: [{k: v for k, v in r.items() if k != "seconds"} for r in records.read_metrics(tmp_path / name)]
    assert rows("parts") == rows("whole")


def test_two_processes_give_the_single_process_numbers(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    body = "; ".join(
        [
            "jax.distributed.initialize('127.0.0.1:{port}', 2, {i})",
            "test_run.refused({directory!r}, 'give a whole number', rounds=4 - 4 * {i})",
            "test_run.refused({directory!r}, 'another settings than process 0', config={{'rate': {i}}})",
            "test_run.refused({directory!r}, 'another method than process 0', config=None, rate=0.1 + {i})",
            "state = test_run.train({directory!r} + '/right', devices=4, checkpoint_every=2)",
            "import numpy as np",
            "leaves = [np.asarray(x.addressable_data(0)) for x in jax.tree.leaves(state.server)]",
            "np.savez({out!r}, *leaves)",
        ]
    )
    flags = {"XLA_FLAGS": os.environ["XLA_FLAGS"].replace("device_count=4", "device_count=2")}
    outs = [str(tmp_path / f"out{i}.npz") for i in range(2)]
    make = lambda i: body.format(port=port, i=i, directory=str(tmp_path / "run"), out=outs[i])
    processes = [child(make(i), flags) for i in range(2)]
    try:
        logs = [p.communicate(timeout=240)[0].decode() for p in processes]
    finally:
        for process in processes:  # one that waits for a peer that died
            process.kill()
    assert [p.returncode for p in processes] == [0, 0], "\n".join(logs)
    expected = jax.tree.leaves(four_rounds().server)
    for out in outs:
        with np.load(out) as held:
            got = [held[f"arr_{i}"] for i in range(len(expected))]
        chex.assert_trees_all_close(got, expected, atol=1e-5)
    assert len(records.read_metrics(tmp_path / "run" / "right")) == 4  # one process writes the log


def test_a_full_disk_ends_the_run_with_what_was_saved_and_how_to_go_on(tmp_path, monkeypatch):
    save = CheckpointManager.save

    def full(self, step, *args, **kwargs):
        if step == 3:
            raise OSError(28, "No space left on device")
        return save(self, step, *args, **kwargs)

    monkeypatch.setattr(CheckpointManager, "save", full)
    with pytest.raises(OSError, match="checkpoint of round 3 .*No space left.* last complete one is of round 2"):
        train(tmp_path)
    monkeypatch.undo()
    chex.assert_trees_all_equal(train(tmp_path), four_rounds())


def test_an_unwritable_directory_is_an_error_before_anything_runs(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot write to .*file/run"):
        train(tmp_path / "file" / "run")


def test_a_directory_of_another_run_is_refused(tmp_path):
    train(tmp_path, rounds=1)
    with pytest.raises(
        ValueError, match="holds another run: settings differ .seed was 0, now 7.; give another directory"
    ):
        train(tmp_path, seed=7)


def test_a_log_that_cannot_be_written_says_how_to_go_on(tmp_path):
    train(tmp_path, rounds=1)
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    files = records.RunDirectory.__new__(records.RunDirectory)
    files.path = tmp_path
    with pytest.raises(OSError, match="could not write round 2 .*No space left on device.*; free some space"):
        files.append({"round": 2})


def test_a_finished_run_is_not_run_again(tmp_path):
    state, lines = train(tmp_path, rounds=2), []
    chex.assert_trees_all_equal(train(tmp_path, rounds=2, log=lines.append), state)
    assert any("has its 2 rounds already" in line for line in lines)


def test_seeds_change_the_run():
    same = lambda a, b: jax.tree.all(jax.tree.map(lambda x, y: bool((x == y).all()), a.server, b.server))
    assert same(four_rounds(), train()) and not same(four_rounds(), train(seed=1))


def test_more_participants_than_clients_is_an_error():
    with pytest.raises(ValueError, match="asks for 7 clients of all cohorts, which has 6"):
        train(per_round=7)


def test_a_cohort_nobody_is_drawn_from_is_a_normal_run():
    arrays = {"A": {"x": X, "label": LABEL}, "B": {"x": X, "label": LABEL}}
    data = FederatedData.from_arrays(arrays, {"A": np.split(np.arange(40), 4), "B": [np.arange(40, 60)]})
    method = build(SMALL_BATCH, data, {"x": dense(5)}, dense(3))
    rows = []
    state = run.train(method, data, rounds=1, per_round={"A": 2, "B": 0}, log=rows.append)
    assert int(state.round) == 1 and all(np.isfinite(x).all() for x in jax.tree.leaves(state.server))


def test_zero_rounds_is_an_error():
    with pytest.raises(ValueError, match="rounds is 0; give a whole number from 1 upwards"):
        train(rounds=0)


def test_a_run_in_which_everybody_diverges_stops(tmp_path):
    method, data = problem(config=FedAvgConfig(client_lr=1e30, batch_size=4, epochs=5))
    lines = []
    with pytest.raises(FloatingPointError, match="every participant .* is not finite; lower the learning rate"):
        run.train(method, data, rounds=3, per_round=4, directory=tmp_path, log=lines.append)
    assert any("left out" in line for line in lines)


# Stages


def staged(rounds=(2, 0, 2, 1), traces=None):
    """A linear map per stage, x W_1 ... W_s, of which stage s trains the last; a count of clients' past rounds."""

    def method(s):
        names, tx = [f"w{i}" for i in range(1, s + 1)], optax.adam(0.05)

        def update(download, state, data, key):
            def loss(w, batch, key):
                h = batch["x"]
                for name in names[:-1]:
                    h = jax.numpy.tanh(h @ download.held[name])
                return ((h @ w) ** 2 + (h @ w)).mean(), {}

            carry = (download.sent["w"], tx.init(download.sent["w"]))
            (w, _), metrics = local_steps(gradient_step(loss, tx), carry, data, key, batch_size=4)
            return {"w": Mean(w, data.weight)}, state + 1, metrics

        def init(key):
            return {n: jax.random.normal(jax.random.fold_in(key, i), (4, 4)) / 2 for i, n in enumerate(names)}

        def download(params, public):
            return {"all": Download({"w": params[names[-1]]}, {n: params[n] for n in names[:-1]})}

        def server_update(params, uploads, public, key):
            if traces is not None:
                traces.append(s)
            return {**params, names[-1]: uploads["all"]["w"].value}, {}

        cohort = Cohort(6, lambda key: jax.numpy.zeros(()), update)
        return federate(Server(init, download, server_update), {"all": cohort}, lambda state, test: {"stage": float(s)})

    return [Stage(f"stage {s}", method(s), n) for s, n in enumerate(rounds, 1)]


def train_stages(directory=None, log=lambda line: None, plan=None, **settings):
    settings = {"per_round": 4, "checkpoint_every": 1, **settings}
    return run.train(plan or staged(), problem()[1], directory=directory, log=log, **settings)


def rows_of(directory):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in records.read_metrics(directory)]


def test_stages_follow_each_other_and_say_which_they_are(tmp_path):
    lines, traces = [], []
    state = train_stages(tmp_path, lines.append, staged(traces=traces), test=TEST, evaluate_every=2)
    rows = rows_of(tmp_path)
    assert [row["round"] for row in rows] == [1, 2, 3, 4, 5] and int(state.round) == 5
    assert [row["stage"] for row in rows] == [1, 1, 3, 3, 4]
    assert [row.get("test/stage") for row in rows] == [None, 1, None, 3, 4]
    assert [line.split(" in ")[0] for line in lines if "compiled" in line] == [
        f"compiled the round of stage {s}" for s in (1, 3, 4)
    ]
    assert traces == [1, 3, 4]  # one trace for each stage that has rounds
    costs = json_files.read_json(tmp_path / "costs.json")
    assert {name: (c["bytes_up"], c["bytes_held"]) for name, c in costs.items()} == {
        f"stage {s}/all": (4 * 16, (s - 1) * 4 * 16) for s in (1, 3, 4)
    }
    assert json.loads((tmp_path / "config.json").read_text())["stages"] == {
        "stage 1": 2, "stage 2": 0, "stage 3": 2, "stage 4": 1
    }  # fmt: skip


@pytest.mark.parametrize("devices", [None, 2])
def test_rounds_in_one_call_are_the_single_rounds_bit_for_bit(tmp_path, devices):
    """Eight rounds as 3 + 3 + 1 + 1, then resumed behind the sixth; another chunk of calls reads the same directory."""
    settings = {"checkpoint_every": 3, "test": TEST, "evaluate_every": 3, "devices": devices}
    whole, lines = train(tmp_path / "one", rounds=8, **settings), []
    several = train(tmp_path / "three", rounds=8, rounds_per_call=3, log=lines.append, **settings)
    chex.assert_trees_all_equal(several, whole)
    assert rows_of(tmp_path / "three") == rows_of(tmp_path / "one")
    assert ["compiled 3 rounds" in lines[0], sum("compiled the round" in line for line in lines)] == [True, 1]
    train(tmp_path / "parts", rounds=6, rounds_per_call=3, **settings)
    chex.assert_trees_all_equal(
        train(tmp_path / "parts", rounds=8, rounds_per_call=2, devices=devices, checkpoint_every=2), whole
    )


def test_rounds_in_one_call_stay_within_a_stage(tmp_path):
    plan = staged((3, 0, 4, 2))
    whole = train_stages(tmp_path / "one", plan=plan)
    several = train_stages(tmp_path / "two", plan=plan, rounds_per_call=2, checkpoint_every=None)
    chex.assert_trees_all_equal(several, whole)
    assert rows_of(tmp_path / "two") == rows_of(tmp_path / "one")


def test_a_watcher_finds_the_state_behind_a_call_alone_and_a_run_stops_there(tmp_path):
    def watch(done, row):
        if done.number == 3:
            with pytest.raises(ValueError, match="the state after round 3 never leaves the device"):
                done.state  # noqa: B018
            raise run.StopRun("enough")
        return {"server": float(jax.tree.leaves(done.state.server)[0].sum())} if done.number % 2 == 0 else {}

    state = train(tmp_path, rounds=8, rounds_per_call=2, checkpoint_every=None, watch=[watch])
    assert int(state.round) == 4 and [r["round"] for r in rows_of(tmp_path) if "server" in r] == [2, 4]
    assert int(train(tmp_path, rounds=4, log=print).round) == 4


def test_a_round_within_a_call_that_diverges_is_named(tmp_path):
    method, data = problem(FedAvgConfig(batch_size=4, client_lr=1e30))
    with pytest.raises(FloatingPointError, match=r"round [12]:"):
        run.train(method, data, rounds=4, per_round=4, rounds_per_call=4, directory=tmp_path, log=lambda line: None)
    assert not list((tmp_path / "checkpoints").glob("[0-9]*"))


@pytest.mark.parametrize(
    "settings, why",
    [
        ({"rounds_per_call": 0}, "rounds_per_call"),
        ({"rounds_per_call": 1.5}, "rounds_per_call"),
        (
            {"rounds_per_call": 3, "evaluate_every": 4},
            "evaluate_every is 4; with rounds_per_call 3 it must be a multiple",
        ),
        ({"rounds_per_call": 3, "checkpoint_every": 1}, "checkpoint_every is 1"),
        (
            {"rounds_per_call": 2, "checkpoint_every": 2, "evaluate": {"a": run.Every(3, len)}},
            r"period of evaluate\['a'\] is 3",
        ),
        ({"rounds_per_call": 2, "checkpoint_every": None, "client_state": "host"}, "states are off the device"),
    ],
)
def test_rounds_per_call_that_do_not_fit_are_refused(settings, why):
    with pytest.raises(ValueError, match=why):
        train(**settings)


def test_a_stage_keeps_what_came_before_and_attaches_layers_of_skipped_ones():
    plan, init_key = staged(), jax.random.fold_in(jax.random.key(0), 0)
    first, whole = (train_stages(rounds=r).server for r in (2, None))
    fresh = jax.jit(plan[-1].method.init)(init_key).server
    assert set(first) == {"w1"} and set(whole) == {"w1", "w2", "w3", "w4"}
    np.testing.assert_array_equal(whole["w1"], first["w1"])
    np.testing.assert_array_equal(whole["w2"], fresh["w2"])
    for name in ("w1", "w3", "w4"):
        assert (whole[name] != fresh[name]).any()


@pytest.mark.parametrize(("checkpoint_every", "kills"), [(1, (2, 3)), (3, (2, 3, 4))])
def test_a_run_killed_in_any_stage_resumes_bit_for_bit(tmp_path, monkeypatch, checkpoint_every, kills):
    """Killed before a line of the log or as a stage begins; the last checkpoint is of any round, a stage's last too."""
    settings = dict(checkpoint_every=checkpoint_every, test=TEST, plan=staged((2, 0, 2)))
    whole = train_stages(tmp_path / "whole", **settings)
    append = records.RunDirectory.append
    for kill in kills:
        parts = tmp_path / f"killed {kill}"

        def die(self, row, kill=kill):
            if row["round"] == kill:
                raise KeyboardInterrupt
            append(self, row)

        def die_between(before, fresh):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(records.RunDirectory, "append", die)
            train_stages(parts, **settings)
        if kill == 2:
            with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
                patch.setattr(stages, "enter", die_between)
                train_stages(parts, **settings)
        chex.assert_trees_all_equal(train_stages(parts, **settings), whole)
        assert rows_of(parts) == rows_of(tmp_path / "whole")
        costs = lambda name: json.loads((tmp_path / name / "costs.json").read_text())
        assert costs(parts.name) == costs("whole")


def test_stages_can_be_left_early_and_taken_up_again(tmp_path):
    whole = train_stages(tmp_path / "whole")
    for rounds in (1, 2, 3, 4, None):  # 2 and 4 end with a stage
        state = train_stages(tmp_path / "parts", rounds=rounds, checkpoint_every=10)
        assert int(state.round) == (rounds or 5)
    chex.assert_trees_all_equal(state, whole)
    lines = []
    chex.assert_trees_all_equal(train_stages(tmp_path / "parts", lines.append), whole)
    assert any("has its 5 rounds already" in line for line in lines)
    with pytest.raises(ValueError, match="holds another run: settings differ .stages.stage 3 was 2, now 1"):
        train_stages(tmp_path / "parts", plan=staged((2, 0, 1, 2)))


def test_auto_measures_and_remembers_the_chunks_of_every_stage(tmp_path):
    train_stages(tmp_path, chunk="auto", plan=staged((1, 1)))
    for stage in ("stage 1", "stage 2"):
        assert set(json.loads((tmp_path / stage / "chunk.json").read_text())["all"]) == {"1", "2", "4"}
    (tmp_path / "stage 2" / "chunk.json").write_text(json.dumps({"all": {"1": 9.0, "4": 0.5}}))
    lines, again = [], tmp_path / "again"
    (tmp_path / "stage 2").rename(again.parent / "kept")
    again.mkdir()
    (tmp_path / "kept").rename(again / "stage 2")
    train_stages(again, lines.append, chunk="auto", plan=staged((1, 1)))
    assert any("chunk of all is 4 (ms per round at each chunk: 1: 9000.0, 4: 500.0)" in line for line in lines)


def test_stages_on_several_devices_give_the_single_device_numbers():
    chex.assert_trees_all_close(train_stages(devices=4), train_stages(), atol=1e-5)


def test_one_stage_is_logged_as_a_plain_method_is(tmp_path):
    train_stages(tmp_path, plan=staged((2,)))
    assert all("stage" not in row for row in rows_of(tmp_path))
    assert set(json_files.read_json(tmp_path / "costs.json")) == {"all"}


def test_the_next_stage_is_compiled_while_one_trains(tmp_path):
    traced, lines = threading.Event(), []
    plan = staged((1, 1), traces=SimpleNamespace(append=lambda s: traced.set() if s == 2 else None))
    waits = plan[0].method._replace(evaluate=lambda state, test: {"traced": float(traced.wait(60))})
    train_stages(tmp_path, lines.append, [plan[0]._replace(method=waits), plan[1]], test=TEST, evaluate_every=1)
    assert rows_of(tmp_path)[0]["test/traced"] == 1
    said = [line for line in lines if "compiled" in line]
    assert "beside" not in said[0]
    assert re.fullmatch(
        r"compiled the round of stage 2 in [\d.]+ s beside the stage before, waited [\d.]+ s for it", said[1]
    )


@pytest.mark.parametrize(("settings", "number"), [({}, 1), ({"chunk": 2}, 2)])
def test_a_run_that_goes_on_lowers_its_round_once_where_the_round_is_the_one_that_is_compared(
    tmp_path, monkeypatch, settings, number
):
    train(tmp_path, rounds=1)
    lower, calls = compilation._lower, []
    monkeypatch.setattr(compilation, "_lower", lambda *args: calls.append(1) or lower(*args))
    state = train(tmp_path, rounds=2, **settings)
    assert len(calls) == number
    chex.assert_trees_all_close(state, train(rounds=2, **settings), rtol=1e-5 * (number - 1), atol=0)


def test_stages_that_a_run_does_not_reach_are_not_compiled(monkeypatch):
    begun = []
    monkeypatch.setattr(compilation, "ahead", lambda stage, *others: begun.append(stage.name))
    for rounds, settings, expected in (
        (None, {}, ["stage 3", "stage 4"]),
        (2, {}, []),
        (3, {}, ["stage 3"]),
        (3, {"chunk": "auto"}, []),
    ):
        begun.clear()
        train_stages(rounds=rounds, **settings)
        assert begun == expected


def test_an_error_in_a_later_stage_is_raised_when_it_is_entered(tmp_path):
    def update(download, state, data, key):
        raise ValueError("no such layer")

    first, second = staged((2, 1))
    broken = federate(second.method.server, {"all": second.method.cohorts["all"]._replace(update=update)})
    with pytest.raises(ValueError, match="no such layer"):
        train_stages(tmp_path, plan=[first, second._replace(method=broken)])
    assert [row["round"] for row in rows_of(tmp_path)] == [1, 2]
