"""Peers: the line protocol, the table, and that the JAX peers of this environment do the same job as ours."""

import dataclasses
import importlib
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from benchmarks.peers import processes, protocol, workload
from benchmarks.peers.comparison import PEERS, Settings, peers, statistics
from benchmarks.peers.processes import Peer, PeerError, ask, environment, started

MLP = workload.Kind((6,), (), (5,), 3, 3, (1, 3), 2, 3, rounds=2, pool=12)
CNN = workload.Kind((8, 8, 1), (3, 4), (5,), 3, 3, (1, 3), 2, 3, rounds=1, pool=12)
FAKE = """
import json, sys, time
import pathlib
folder = pathlib.Path(sys.argv[1])
say = lambda message: print(json.dumps(message), flush=True)
say({"ready": True})
for line in sys.stdin:
    request, argument = line.split()
    if request == "save":
        pathlib.Path(argument).write_bytes((folder / "start.npz").read_bytes())
        say({"saved": argument})
    else:
        with open(folder / "order", "a") as order:
            print(NAME, argument, file=order)
        say({"rounds": int(argument), "cpu": SECONDS * int(argument), "wall": 2 * SECONDS * int(argument)})
"""


def fake(folder, name, seconds, code=FAKE):
    path = folder / f"{name}.py"
    path.write_text(code.replace("NAME", repr(name)).replace("SECONDS", str(seconds)))
    return Peer(path)


def settings(folder, **changes):
    return Settings(**{"workloads": ("mlp",), "repetitions": 2, "out": str(folder / "out")} | changes)


def test_two_fake_peers_are_timed_in_turn_and_compared(tmp_path):
    table = {"ours": fake(tmp_path, "ours", 0.5), "slow": fake(tmp_path, "slow", 2.0)}
    ours, slow = peers(settings(tmp_path, peers=("slow",)), table, {"mlp": MLP})
    assert (ours["peer"], slow["peer"]) == ("ours", "slow") and {ours["workload"], slow["workload"]} == {"mlp"}
    assert (ours["CPU ms"], ours["ms"], slow["CPU ms"]) == (500, 1000, 2000)
    assert (slow["CPU ratio"], slow["CPU ratio low"], slow["ratio high"], ours["ratio"]) == (4, 4, 4, 1)
    assert (slow["first round s"], slow["rounds"], slow["difference"]) == (4, 1 + 3 * 2, 0)
    order = (tmp_path / "out/mlp/order").read_text().split("\n")
    assert order[:2] == ["ours 1", "slow 1"]
    assert order[2:8] == ["ours 2", "slow 2", "slow 2", "ours 2", "ours 2", "slow 2"]


@pytest.mark.parametrize(
    "code, reason",
    [
        ("raise OSError('no such accelerator')", "OSError: no such accelerator"),
        (FAKE.replace("SECONDS * int(argument)", "1 / 0"), "ZeroDivisionError"),
    ],
)
def test_a_peer_that_fails_is_a_row_that_says_why(tmp_path, code, reason):
    table = {"ours": fake(tmp_path, "ours", 0.5), "bad": fake(tmp_path, "bad", 1, code)}
    ours, bad = peers(settings(tmp_path, peers=("bad",)), table, {"mlp": MLP})
    assert ours["CPU ms"] == 500 and set(bad) == {"workload", "peer", "skipped"}
    assert reason in bad["skipped"]


def test_a_peer_that_takes_too_long_is_ended(tmp_path):
    peer = fake(tmp_path, "late", 1, FAKE.replace('say({"rounds"', 'time.sleep(600); say({"rounds"'))
    with started(peer, sys.executable, tmp_path, "late", processes.Settings()) as running:
        with pytest.raises(PeerError, match="no answer in 0 s"):
            ask(running._replace(patience=0.1), "run 1")
        assert running.process.wait(9) < 0  # by a signal, before it is asked to end


def test_a_peer_that_does_another_job_is_not_compared(tmp_path):
    other = "import numpy as np" + FAKE.replace(
        'pathlib.Path(argument).write_bytes((folder / "start.npz").read_bytes())',
        'a = np.load(folder / "start.npz"); np.savez(argument, *(a[k] + 1e-3 for k in a.files))',
    )
    table = {"ours": fake(tmp_path, "ours", 0.5), "other": fake(tmp_path, "other", 1, other)}
    _, row = peers(settings(tmp_path, peers=("other",)), table, {"mlp": MLP})
    assert "differ by 1.0e-03" in row["skipped"]


def test_a_peer_may_leave_a_workload_out_and_is_timed_as_often_as_it_allows(tmp_path):
    slow, out = fake(tmp_path, "slow", 2.0)._replace(repetitions=1), fake(tmp_path, "out", 1.0)
    table = {
        "ours": fake(tmp_path, "ours", 0.5),
        "slow": slow,
        "out": out._replace(without={"mlp": "too many clients"}),
    }
    _, slow, out = peers(settings(tmp_path, peers=("slow", "out"), repetitions=4), table, {"mlp": MLP})
    assert slow["rounds"] == 1 + 2 * 2 and slow["CPU ratio"] == 4
    assert out["skipped"] == "too many clients"


def test_names_that_are_not_known_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"peers \['fedml'\] are not known"):
        peers(settings(tmp_path, peers=("fedml",)))


def test_ratios_are_of_one_turn_and_the_first_turn_does_not_count():
    ours = [(0, 9.0, 9.0), (1, 1.0, 1.0), (2, 10.0, 10.0), (3, 2.0, 2.0)]
    row = statistics([(0, 1.0, 1.0), (1, 3.0, 2.0), (2, 30.0, 20.0)], ours)
    assert (row["CPU ratio"], row["ratio"], row["CPU ms"]) == (3, 2, 16500)


def test_an_environment_is_kept_until_its_requirements_change(tmp_path):
    peer, options = Peer(tmp_path / "x.py", ("a==1", "b==2")), processes.Settings(cache=str(tmp_path))
    (tmp_path / "x").mkdir()
    (tmp_path / "x/requirements.txt").write_text("a==1\nb==2")
    assert environment("x", peer, options) == str(tmp_path / "x/bin/python")
    assert environment("x", Peer(tmp_path / "x.py"), options) == sys.executable


@pytest.mark.parametrize("status", [0, 1])
def test_an_environment_is_made_and_a_failure_says_why(tmp_path, monkeypatch, status):
    def create(folder, with_pip):
        (folder / "bin").mkdir(parents=True)
        python = folder / "bin/python"
        python.write_text(
            f"#!/bin/sh\necho $@ > {folder}/asked\necho WARNING: old >&2\necho ERROR: gone >&2\nexit {status}"
        )
        python.chmod(0o755)

    (tmp_path / "x/bin").mkdir(parents=True)
    (tmp_path / "x/requirements.txt").write_text("torch==0")
    monkeypatch.setattr(processes.venv, "create", create)
    peer, options = (
        Peer(tmp_path / "x.py", ("torch==1", "b==2")),
        processes.Settings(cache=str(tmp_path), torch_wheels="file:/w"),
    )
    if status:
        with pytest.raises(PeerError, match="cannot be installed: ERROR: gone"):
            environment("x", peer, options)
        assert not (tmp_path / "x/requirements.txt").exists()
    else:
        assert environment("x", peer, options) == str(tmp_path / "x/bin/python")
        assert (tmp_path / "x/requirements.txt").read_text() == "torch==1\nb==2"
    assert (tmp_path / "x/asked").read_text().split()[-4:] == ["--find-links", "file:/w", "torch==1", "b==2"]


def test_the_time_is_that_of_the_process_and_its_children():
    before = os.times()
    answer = protocol.timed(lambda rounds: subprocess.run([sys.executable, "-c", "sum(range(10**7))"], check=True))(1)
    after, tick = os.times(), 0.03
    children = after.children_user + after.children_system - before.children_user - before.children_system
    own = after.user + after.system - before.user - before.system
    assert children > tick and children - tick <= answer["cpu"] <= children + own + tick


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not pin")
def test_a_started_peer_is_pinned_and_we_are_not(tmp_path):
    peer, ours = fake(tmp_path, "pinned", 1), len(os.sched_getaffinity(0))
    with started(peer, sys.executable, tmp_path, "pinned", processes.Settings()) as running:
        affinity = os.sched_getaffinity(running.process.pid)
    assert len(affinity) == 1 and len(os.sched_getaffinity(0)) == ours


def test_a_workload_comes_back_from_its_files_and_its_check_forgets_order(tmp_path):
    task = workload.make(CNN, seed=1)
    workload.write(task, tmp_path)
    back = workload.read(tmp_path)
    for field in dataclasses.fields(task):
        np.testing.assert_equal(getattr(back, field.name), getattr(task, field.name))
    assert set(np.diff(task.offsets) // 2) <= {1, 2, 3} and task.participants.shape[1] == 3
    check = workload.check(task)
    assert [set(check.rows_of(j)) for j in range(3)] == [{0}, {1}, {2}]
    assert [len(check.rows_of(j)) for j in range(3)] == [2, 4, 6]


@pytest.fixture
def trained(monkeypatch, tmp_path):
    """(script, workload, rounds) -> the weights of that peer, in this process."""
    monkeypatch.syspath_prepend(str(PEERS["ours"].script.parent))

    def train(name, task, rounds=1):
        workload.write(task, tmp_path)
        run, save = importlib.import_module(name).make(tmp_path)
        answer = run(rounds)
        assert answer["rounds"] == rounds and answer["wall"] > 0
        save(tmp_path / "end.npz")
        return workload.read_layers(tmp_path / "end.npz")

    return train


@pytest.mark.parametrize("name", ["our_round", "hand_round"])
def test_the_check_after_one_round_by_arithmetic(trained, name):
    """A linear model: each client's steps are on one example, softmax(scores) - onehot times it is the gradient."""
    task = workload.check(workload.make(dataclasses.replace(MLP, hidden=()), seed=2))
    (start_w, start_b), total_w, total_b = task.layers[0], 0, 0
    for client, steps in enumerate((1, 2, 3)):
        w, b, x = start_w, start_b, task.x[client]
        for _ in range(steps):
            scores = np.exp(x @ w + b)
            error = scores / scores.sum() - np.eye(3)[task.label[client]]
            w, b = w - 0.1 * np.outer(x, error), b - 0.1 * error
        total_w, total_b = total_w + steps / 6 * w, total_b + steps / 6 * b
    assert workload.max_difference(trained(name, task), [(total_w, total_b)]) < 1e-6


@pytest.mark.parametrize("kind", [MLP, CNN], ids=["mlp", "cnn"])
def test_our_round_and_the_one_by_hand_do_the_same_job(trained, kind):
    task = workload.make(kind, seed=4)
    check = workload.check(task)
    assert workload.max_difference(trained("our_round", check), trained("hand_round", check)) < 1e-6
    ours, hand = (trained(name, task, rounds=20) for name in ("our_round", "hand_round"))
    before, *after = (workload.loss(layers, task.x, task.label) for layers in (task.layers, ours, hand))
    assert max(after) < before and np.isclose(*after, atol=0.1 * before)


def test_the_loss_is_that_of_jax(tmp_path):
    task = workload.make(CNN, seed=3)
    x = task.x
    for weight, bias in task.layers[:2]:
        conv = jax.lax.conv_general_dilated(x, weight, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        x = jax.nn.relu(conv + bias[None, None, None])
    x = jax.lax.reduce_window(x, -np.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID").reshape(len(x), -1)
    x = jax.nn.relu(x @ task.layers[2][0]) @ task.layers[3][0]
    expected = -np.asarray(jax.nn.log_softmax(x))[np.arange(len(x)), task.label].mean()
    assert np.isclose(workload.loss(task.layers, task.x, task.label), expected, rtol=1e-5)
