"""Runs: written, killed, resumed, mapped over devices and processes, and refused where they cannot be right."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import textwrap

import chex
import jax
import numpy as np
import pytest
from orbax.checkpoint import CheckpointManager

from fedjax_mm import records, run
from fedjax_mm.data.federated import FederatedData
from fedjax_mm.methods.fedavg import FedAvgConfig, build
from fedjax_mm.models import heads, mlp

ROOT = pathlib.Path(__file__).parents[1]
RNG = np.random.default_rng(0)
X, LABEL = RNG.normal(size=(60, 4)).astype(np.float32), RNG.integers(0, 3, 60).astype(np.int32)
TEST = {"x": X, "label": LABEL}


SMALL_BATCH = FedAvgConfig(batch_size=4)


def problem(config=SMALL_BATCH):
    data = FederatedData.from_arrays({"x": X, "label": LABEL}, np.repeat(np.arange(6), [4, 20, 6, 16, 10, 4]))
    return build(config, data, {"x": mlp.encoder((), 5)}, heads.linear(3)), data


def train(directory=None, rounds=4, log=lambda line: None, **settings):
    method, data = problem()
    settings = {"per_round": 4, "checkpoint_every": 1, **settings}
    return run.train(method, data, rounds=rounds, directory=directory, log=log, **settings)


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
    assert set(remembered) == {"1", "4"} and all(s > 0 for s in remembered.values())
    assert any("chunk of all is" in line for line in lines)
    (tmp_path / "chunk.json").write_text(json.dumps({"all": {"1": 9.0, "4": 0.5}}))
    lines.clear()
    again = train(tmp_path, rounds=3, chunk="auto", log=lines.append)
    assert any("chunk of all is 4 (ms per round at each chunk: 1: 9000.0, 4: 500.0)" in line for line in lines)
    assert int(again.round) == 3 and int(state.round) == 2


def test_devices_give_the_single_device_numbers(tmp_path):
    chex.assert_trees_all_close(train(devices=4), train(), atol=1e-5)
    chex.assert_trees_all_close(train(devices=2, chunk=2), train(), atol=1e-5)


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
    flags = {"XLA_FLAGS": os.environ["XLA_FLAGS"]}
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
            "state = test_run.train({directory!r}, devices=4, checkpoint_every=2)",
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
    expected = jax.tree.leaves(train().server)
    for out in outs:
        with np.load(out) as held:
            got = [held[f"arr_{i}"] for i in range(len(expected))]
        chex.assert_trees_all_close(got, expected, atol=1e-5)
    assert len(records.read_metrics(tmp_path / "run")) == 4  # one process writes the log


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
    chex.assert_trees_all_equal(train(tmp_path), train())


def test_an_unreadable_checkpoint_is_named(tmp_path):
    train(tmp_path, rounds=2)
    for file in (tmp_path / "checkpoints" / "2").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    with pytest.raises(OSError, match=r"checkpoints/2 cannot be read.*remove that folder"):
        train(tmp_path)


def test_an_unwritable_directory_is_an_error_before_anything_runs(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot write to .*file/run"):
        train(tmp_path / "file" / "run")


def test_a_directory_of_another_run_is_refused(tmp_path):
    train(tmp_path, rounds=1)
    with pytest.raises(ValueError, match="holds another run .seed was 0, now 7.; give another directory"):
        train(tmp_path, seed=7)


def test_a_directory_of_the_same_settings_but_another_split_is_refused(tmp_path):
    method, data = problem()
    settings = dict(per_round=4, directory=tmp_path, log=lambda line: None)
    run.train(method, data, rounds=1, **settings)
    moved = np.roll(np.repeat(np.arange(6), [4, 20, 6, 16, 10, 4]), 1)
    other = FederatedData.from_arrays({"x": X, "label": LABEL}, moved)
    with pytest.raises(ValueError, match="holds another run .owners was"):
        run.train(method, other, rounds=2, **settings)


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
    assert same(train(), train()) and not same(train(), train(seed=1))


def test_more_participants_than_clients_is_an_error():
    with pytest.raises(ValueError, match="asks for 7 clients of all cohorts, which has 6"):
        train(per_round=7)


def test_a_cohort_nobody_is_drawn_from_is_a_normal_run():
    arrays = {"A": {"x": X, "label": LABEL}, "B": {"x": X, "label": LABEL}}
    data = FederatedData.from_arrays(arrays, {"A": np.split(np.arange(40), 4), "B": [np.arange(40, 60)]})
    method = build(SMALL_BATCH, data, {"x": mlp.encoder((), 5)}, heads.linear(3))
    rows = []
    state = run.train(method, data, rounds=1, per_round={"A": 2, "B": 0}, log=rows.append)
    assert int(state.round) == 1 and all(np.isfinite(x).all() for x in jax.tree.leaves(state.server))


def test_zero_rounds_is_an_error():
    with pytest.raises(ValueError, match="rounds must be at least 1"):
        train(rounds=0)


def test_a_run_in_which_everybody_diverges_stops(tmp_path):
    method, data = problem(config=FedAvgConfig(client_lr=1e30, batch_size=4, epochs=5))
    lines = []
    with pytest.raises(FloatingPointError, match="every participant .* is not finite; lower the learning rate"):
        run.train(method, data, rounds=3, per_round=4, directory=tmp_path, log=lines.append)
    assert any("left out" in line for line in lines)
