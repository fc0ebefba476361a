"""What goes wrong with a run from outside: damaged files, other programs and data, two starts, signals, divergence."""

import contextlib
import dataclasses
import functools
import json
import random
import re
import shutil
import signal
import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_run import LABEL, SMALL_BATCH, TEST, X, problem, rows_of, train

from fedjax_mm import report, run, stages
from fedjax_mm.data.federated import FederatedData
from fedjax_mm.federate import federate
from fedjax_mm.methods.fedavg import FedAvgConfig
from fedjax_mm.run import client_scores, digests, json_files, processes, records, signals
from fedjax_mm.run.checkpoints import Checkpoints
from fedjax_mm.types import Cohort, Download, FedState, Mean, Server


@functools.cache
def whole():
    return train(rounds=4)


def files_of(folder):
    return sorted(file for file in folder.rglob("*") if file.is_file() and file.stat().st_size)


# Checkpoints


def test_a_damaged_checkpoint_is_left_for_the_one_before_and_nothing_changes(tmp_path):
    train(tmp_path, rounds=3)
    for file in files_of(tmp_path / "checkpoints" / "3"):
        file.write_bytes(b"")
    lines = []
    chex.assert_trees_all_equal(train(tmp_path, log=lines.append), whole())
    (said,) = [line for line in lines if "is damaged" in line]
    assert "checkpoints/3 is damaged" in said and said.endswith("going on from the one before, of round 2")
    assert (tmp_path / "checkpoint-3.damaged").is_dir() and [row["round"] for row in rows_of(tmp_path)] == [1, 2, 3, 4]


def test_without_one_before_a_damaged_checkpoint_is_an_error_that_names_it(tmp_path):
    train(tmp_path, rounds=1)
    for file in files_of(tmp_path / "checkpoints" / "1"):
        file.write_bytes(b"")
    with pytest.raises(OSError, match="checkpoints/1 is damaged .*none before it; bring it back"):
        train(tmp_path)
    assert (tmp_path / "checkpoints" / "1").is_dir()


def with_trunk(trunk, w=0.0, round=0):
    server = {"trunk": np.full(1000, trunk, np.float32), "w": np.full(2, w, np.float32)}
    return FedState(server, {"all": np.ones((3, 2), np.float32)}, jnp.int32(round))


@contextlib.contextmanager
def checkpoints(folder, *frozen):
    opened = Checkpoints(folder, frozen=frozen)
    yield opened
    opened.close()


def test_what_no_round_changes_is_in_no_checkpoint_and_comes_from_the_method(tmp_path):
    like = lambda trunk: lambda round: with_trunk(trunk)
    with checkpoints(tmp_path, "trunk") as saving:
        saving.save(with_trunk(5, w=1, round=2))
    with checkpoints(tmp_path, "trunk") as reading:
        chex.assert_trees_all_equal(reading.restore(like(5), print), with_trunk(5, w=1, round=2))
        assert sorted(reading.read_plain(True, print)["server"]) == ["w"]
    with checkpoints(tmp_path, "trunk") as reading, pytest.raises(ValueError, match="another run: trunk differs"):
        reading.restore(like(4), print)
    assert (tmp_path / "checkpoints" / "2").is_dir()  # not taken for a damaged one
    text = (tmp_path / "checkpoints" / "2.sha256").read_text()
    (tmp_path / "checkpoints" / "2.sha256").write_text(text.replace("a", "b", 1))
    with checkpoints(tmp_path, "trunk") as reading, pytest.raises(OSError, match="is damaged"):
        reading.restore(like(5), print)


def test_a_checkpoint_of_before_that_has_what_no_round_changes_is_read(tmp_path):
    with checkpoints(tmp_path) as saving:
        saving.save(with_trunk(5, w=1, round=2))
    with checkpoints(tmp_path, "trunk") as reading:
        chex.assert_trees_all_equal(reading.restore(lambda _: with_trunk(4), print), with_trunk(5, w=1, round=2))
    with checkpoints(tmp_path, "tronk") as saving, pytest.raises(ValueError, match="names .'tronk'.; the server's"):
        saving.save(with_trunk(5, round=3))


def test_no_flipped_bit_is_taken_for_a_value(tmp_path):
    noise = lambda round: jax.random.normal(jax.random.key(round), (3000,))
    state = lambda round: FedState({"w": noise(round)}, {"all": jnp.ones((3, 50))}, jnp.int32(round))
    saving = Checkpoints(tmp_path)
    for number in (1, 2):
        saving.save(state(number))
    saving.close()
    folder, draw, went_back = tmp_path / "checkpoints", random.Random(0), 0
    shutil.copytree(folder, tmp_path / "whole")
    values = [file for file in files_of(folder) if "/2/" in str(file) and "/d/" in str(file)]
    for file in [*draw.choices(values, k=4), *draw.sample(files_of(folder / "2"), 3), folder / "2.sha256"]:
        shutil.rmtree(folder)
        shutil.copytree(tmp_path / "whole", folder)
        content = bytearray(file.read_bytes())
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        file.write_bytes(content)
        checkpoints, lines = Checkpoints(tmp_path), []
        restored = checkpoints.restore(state, lines.append)
        checkpoints.close()
        went_back += len(lines)
        chex.assert_trees_all_equal(restored, state(1 if lines else 2))
    assert went_back >= 3  # the digest and values, at least; many bits of these files mean nothing


def test_what_is_not_finite_is_an_error_and_never_saved(tmp_path):
    """Finite uploads, whose weighted value or whose step at the server is not."""

    def method(value, server):
        update = lambda download, state, data, key: ({"w": Mean(jnp.float32(value), data.weight)}, state, {})
        server = Server(lambda key: jnp.float32(1), lambda w, _: {"all": Download(w)}, server)
        return federate(server, {"all": Cohort(2, lambda key: (), update)})

    data = FederatedData.from_arrays({"x": X}, np.repeat([0, 1], 30))
    settings = dict(rounds=3, per_round=2, checkpoint_every=1, log=lambda line: None)
    mean = lambda w, uploads, public, key: (uploads["all"]["w"].value, {})
    with pytest.raises(FloatingPointError, match=r"every participant \(2\) is not finite"):
        run.train(method(3e38, mean), data, directory=tmp_path / "weighted", **settings)
    grow = lambda w, uploads, public, key: (w * 1e30, {})
    with pytest.raises(FloatingPointError, match="round 2: the server's new state is not finite"):
        run.train(method(1.0, grow), data, directory=tmp_path / "server", **settings)
    saved = lambda name: sorted(f.name for f in (tmp_path / name / "checkpoints").glob("[0-9]") if f.is_dir())
    assert saved("weighted") == [] and saved("server") == ["1"]
    assert [row["round"] for row in records.read_metrics(tmp_path / "server")] == [1, 2]


def test_a_number_that_is_not_finite_is_null_said_and_counted(tmp_path):
    lines = []
    bad = {"valid": lambda state: {"a": float("nan"), "b": float("inf"), "c": 1.0}}
    train(tmp_path, rounds=1, evaluate=bad, log=lines.append)
    row = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=pytest.fail)
    assert row["valid/a"] is None and row["valid/b"] is None and (row["valid/c"], row["not_finite"]) == (1, 2)
    assert "round 1: not finite: valid/a, valid/b" in lines
    assert "valid/a" not in records.read_metrics(tmp_path)[0]


# What a directory belongs to


def go_on(directory, config=SMALL_BATCH, data=None, **settings):
    method, own = problem(config)
    settings = {"rounds": 2, "per_round": 4, "log": lambda line: None, **settings}
    return run.train(method, data or own, directory=directory, **settings)


@pytest.mark.parametrize("rounds", [1, 2])
def test_another_learning_rate_is_refused_whether_the_run_is_finished_or_not(tmp_path, rounds):
    go_on(tmp_path, rounds=rounds)
    with pytest.raises(ValueError, match="holds another run: the program of its rounds differs"):
        go_on(tmp_path, dataclasses.replace(SMALL_BATCH, client_lr=0.2))
    go_on(tmp_path, chunk=2)  # how clients are mapped, and where their states are, may change
    go_on(tmp_path, client_state="host")


@pytest.mark.parametrize("what", ["x", "label", "owners"])
def test_other_data_are_refused_and_named(tmp_path, what):
    go_on(tmp_path, rounds=1)
    x, label, owners = X.copy(), LABEL.copy(), np.repeat(np.arange(6), [4, 20, 6, 16, 10, 4])
    if what == "owners":
        owners[:4], owners[-4:] = 5, 0
    else:
        {"x": x, "label": label}[what][0] += 1 if what == "x" else 1 - 2 * (label[0] > 0)
    named = "who owns which rows" if what == "owners" else what
    with pytest.raises(ValueError, match=f"holds another run: data differ .data.all.{named} was"):
        go_on(tmp_path, data=FederatedData.from_arrays({"x": x, "label": label}, owners))


def test_a_directory_that_a_run_is_writing_to_is_refused(tmp_path):
    def start_again(done, row):
        with pytest.raises(ValueError, match=r"a run is writing to .* now \(process \d+ on .*\)"):
            train(tmp_path)

    train(tmp_path, rounds=1, watch=[start_again])
    train(tmp_path, rounds=2)
    assert [row["round"] for row in rows_of(tmp_path)] == [1, 2]


@pytest.mark.parametrize(("config", "same"), [
    ({"optimizer": optax.adam(0.1), "dtype": jnp.bfloat16, "path": "x", "limit": float("inf")}, True),
    ({"function": len, "array": np.arange(3)}, True),
    ({"function": object()}, False),
])  # fmt: skip
def test_a_setting_is_compared_by_what_it_is_or_refused(tmp_path, config, same):
    if same:
        train(tmp_path, rounds=1, config=config)
        assert " at 0x" not in (tmp_path / "config.json").read_text()
        train(tmp_path, rounds=2, config={**config})
    else:
        with pytest.raises(ValueError, match="config.function is object, which cannot be compared"):
            train(tmp_path, rounds=1, config=config)


# Small files


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'"x"', b"\xff\x00", b"[" * 100_000])
def test_a_damaged_file_is_named(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match="config.json is damaged"):
        records.RunDirectory(tmp_path, {})
    assert (tmp_path / "config.json").read_bytes() == content


def test_what_can_be_made_anew_is_and_checkpoints_without_settings_are_refused(tmp_path):
    train(tmp_path, rounds=1, chunk="auto")
    for name, content in {"costs.json": b"[1]", "chunk.json": b'{"all": {"one": 2}}', "split.json": b""}.items():
        (tmp_path / name).write_bytes(content)
    lines = []
    train(tmp_path, rounds=2, chunk="auto", log=lines.append)
    assert set(json_files.read_json(tmp_path / "costs.json")) == {"all"}
    assert set(json.loads((tmp_path / "chunk.json").read_text())["all"]) == {"1", "2", "4"}
    assert any("costs.json is damaged" in line and line.endswith("it is made anew") for line in lines)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match="has checkpoints and no config.json"):
        train(tmp_path, rounds=3)


def changed(file):
    """Another digit in the place of one of the file's, so that it is as good a file of JSON, and says something else.

    The last digits of a float may say the same: both are rounded to the number that is next.
    """
    was = file.read_bytes()
    digits = [i for i, byte in enumerate(was) if byte in b"2345678"]
    random.Random(0).shuffle(digits)
    others = (was[:i] + bytes([was[i] ^ 1]) + was[i + 1 :] for i in digits)
    file.write_bytes(next(other for other in others if json.loads(other) != json.loads(was)))


def test_a_changed_digit_of_a_small_file_is_named_and_what_can_be_is_made_anew(tmp_path):
    plan = [stages.Stage(name, problem()[0], 1) for name in ("one", "two")]
    names = ["split.json", "costs.json", "one/chunk.json"]
    settings = {"per_round": 4, "directory": tmp_path, "chunk": "auto"}
    start = lambda rounds, said=print: run.train(plan, problem()[1], rounds=rounds, log=said, **settings)
    start(1)
    was = {name: json_files.read_json(tmp_path / name) for name in names}
    for name in names:
        changed(tmp_path / name)
        with pytest.raises(ValueError, match=f"{name} is damaged .it was changed after it was written.; bring it back"):
            json_files.read_json(tmp_path / name)
    lines = []
    start(2, lines.append)
    for again in (False, True):  # the run goes on; then it has its rounds already
        assert all(any(f"{name} is damaged" in line and "made anew" in line for line in lines) for name in names[:2])
        assert json_files.read_json(tmp_path / "split.json") == was["split.json"]
        costs = json_files.read_json(tmp_path / "costs.json")
        assert set(costs) == {"one/all", "two/all"} and costs["one/all"] == was["costs.json"]["one/all"]
        if not again:
            [changed(tmp_path / name) for name in names[:2]]
            lines.clear()
            start(2, lines.append)
    changed(tmp_path / "config.json")
    with pytest.raises(ValueError, match="config.json is damaged .* give another directory"):
        start(2)
    with pytest.raises(ValueError, match="config.json is damaged"):
        report.runs.load(tmp_path)


def test_every_flipped_bit_of_a_small_file_is_found(tmp_path):
    file, content = tmp_path / "costs.json", {"all": {"bytes_up": 172, "flops": None, "xla_flops": 1.5}}
    json_files.Folder(tmp_path).write(file.name, content)
    whole = file.read_bytes()
    for bit in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        file.write_bytes(flipped)
        with pytest.raises(ValueError, match="costs.json is damaged"):
            json_files.read_json(file)
    file.write_text(json.dumps(content))  # as an earlier version wrote it
    assert json_files.read_json(file) == content


def test_whole_lines_of_a_damaged_log_are_kept_and_gaps_are_said(tmp_path):
    train(tmp_path, rounds=3)
    log = tmp_path / "metrics.jsonl"
    lines = log.read_bytes().splitlines()
    other = re.sub(rb'"all/loss": \d', b'"all/loss": 9', lines[2])  # a number that was changed
    log.write_bytes(b"\n".join([b"\x00garbage", lines[1], other]) + b"\n")
    said = []
    train(tmp_path, rounds=4, log=said.append)
    assert other != lines[2] and [row["round"] for row in rows_of(tmp_path)] == [2, 4]
    assert (tmp_path / "metrics.jsonl.damaged").read_bytes().startswith(b"\x00garbage")
    assert any("2 damaged lines" in line for line in said)
    assert any("no line for 2 of the 3 rounds before (1, 3)" in line for line in said)


# Signals


@pytest.mark.parametrize("number", signals.SIGNALS)
def test_a_signal_has_its_effect_after_the_round_is_saved(tmp_path, number):
    caught, lines = [], []
    before = signal.signal(number, lambda *given: caught.append(given[0]))
    try:
        watch = lambda done, row: signal.raise_signal(number) if done.number == 2 else None
        settings = dict(checkpoint_every=100, log=lines.append)
        state = train(tmp_path, rounds=4, watch=[watch], **settings)
        assert int(state.round) == 2 and caught == [number] and signal.getsignal(number) is not signal.SIG_DFL
    finally:
        signal.signal(number, before)
    assert f"{signal.Signals(number).name} after round 2, which is saved; run again to go on" in lines
    chex.assert_trees_all_equal(train(tmp_path, **settings), whole())


def test_ctrl_c_is_a_keyboard_interrupt_and_a_second_one_comes_at_once(tmp_path):
    def impatient(done, row):
        for _ in range(2 if done.number == 3 else done.number == 2):
            signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a worker of pytest-xdist ignores it
    try:
        for _ in range(2):  # in round 2, and twice in round 3, which is dropped
            with pytest.raises(KeyboardInterrupt):
                train(tmp_path, watch=[impatient])
            assert [row["round"] for row in rows_of(tmp_path)] == [1, 2]
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_ignored_signal_stays_ignored(tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        train(tmp_path, watch=[lambda done, row: signal.raise_signal(signal.SIGHUP)])
    finally:
        signal.signal(signal.SIGHUP, before)
    assert len(rows_of(tmp_path)) == 4


# Processes


def test_a_peer_is_gone_when_it_says_so_or_nothing_new():
    peer = lambda said, age: processes._Peer(said, time.monotonic() - age)
    gone = lambda said, age=0.0: processes._is_gone(peer(said, age), timeout=5)
    assert gone("7 pid 3 on host\nbeat 4") == "" and gone("7 pid 3 on host\ndone", 99) == ""
    assert gone("7 pid 3 on host\nbeat 4", 6) == "(pid 3 on host) is dead or silent since 5 s"
    assert gone("", 6) == "is dead or silent since 5 s"
    assert gone("7 pid 3 on host\nstopped KeyError: 'x'") == "(pid 3 on host) stopped with KeyError: 'x'"


# Arguments


@pytest.mark.parametrize(("settings", "said"), [
    ({"rounds": 1.5}, "rounds is 1.5; give a whole number from 1 upwards"),
    ({"rounds": "3"}, "rounds is '3'"),
    ({"seed": -1}, "seed is -1"),
    ({"seed": 0.5}, "seed is 0.5"),
    ({"per_round": 0}, "per_round"),
    ({"per_round": {"all": 0}}, "per_round"),
    ({"per_round": True}, "per_round"),
    ({"per_round": 2.5}, "per_round"),
    ({"per_round": "3"}, "per_round"),
    ({"chunk": 0}, "chunk is 0"),
    ({"chunk": "Auto"}, "chunk is 'Auto'; give a number of clients from 1 on, or 'auto'"),
    ({"chunk": {"al": 1}}, "chunk names cohorts"),
    ({"checkpoint_every": 0}, "checkpoint_every is 0"),
    ({"evaluate_every": -1}, "evaluate_every is -1"),
    ({"devices": 99}, "devices is 99"),
    ({"devices": True}, "devices is True"),
    ({"client_state": "Host"}, "client_state is 'Host'; give 'device', 'host', or a folder as a path"),
    ({"client_state": 3}, "client_state is 3"),
    ({"test": [1]}, "test is"),
    ({"evaluate": {"valid": 3}}, "evaluate..valid.. is 3"),
    ({"evaluate": {"valid": run.Every(0, len)}}, "the period of evaluate..valid.. is 0"),
    ({"watch": len}, "watch is"),
    ({"log": None}, "log is None"),
    ({"progress": "yes"}, "progress is 'yes'"),
    ({"peer_timeout": 0}, "peer_timeout is 0"),
    ({"directory": 3}, "directory is 3"),
    ({"directory": "runs/lr[0.1]"}, "directory is .*lr.0.1.* without any of the characters"),
    ({"directory": "gs://bucket/run"}, "directory is 'gs://bucket/run'"),
])  # fmt: skip
def test_a_wrong_argument_is_refused_in_one_sentence(settings, said):
    with pytest.raises(ValueError, match=said) as refused:
        train(**settings)
    assert "\n" not in str(refused.value)


def test_a_method_and_data_that_do_not_fit_are_refused():
    method, data = problem()
    other = FederatedData.from_arrays({"x": X, "label": LABEL}, np.repeat(np.arange(5), 12))
    with pytest.raises(ValueError, match="built for {'all': 6} clients, and the data has {'all': 5}"):
        run.train(method, other, rounds=1, per_round=2)
    with pytest.raises(ValueError, match="data is {.*; give a FederatedData"):
        run.train(method, {"x": X, "label": LABEL}, rounds=1, per_round=2)
    with pytest.raises(ValueError, match="method is .*; give a Method"):
        run.train(FedAvgConfig(), data, rounds=1, per_round=2)


def test_a_name_that_leaves_its_folder_is_refused():
    method, data = problem()
    for name in ("..", "a[0]", "", "a\nb"):
        odd = FederatedData({name: data.cohorts["all"]}, None)
        with pytest.raises(ValueError, match="the name of a cohort is"):
            run.train(method._replace(cohorts={name: method.cohorts["all"]}), odd, rounds=1, per_round=2, test=TEST)


def test_a_client_without_a_finite_score_is_not_taken_for_one_without_test_rows():
    summary = client_scores.summary({"all": {"accuracy": np.array([0.5, np.inf, np.nan])}})
    assert len(summary) == 4 and np.isnan(list(summary.values())).all()


def test_digests_tell_leaves_apart():
    a = {"w": jnp.zeros((2, 3)), "k": jax.random.key(0)}
    same = lambda b: digests.of_state(a) == digests.of_state(b)
    assert same({"k": jax.random.key(0), "w": jnp.zeros((2, 3))})
    assert not same({**a, "w": jnp.zeros((3, 2))}) and not same({**a, "w": jnp.zeros((2, 3), jnp.int32)})
    assert not same({**a, "k": jax.random.key(1)})
