"""Programs compiled for accelerators: what is read off their text, the command, and the compiler's own estimate."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import jax
import pytest

from benchmarks import __main__ as benchmark
from benchmarks.accelerators import chips, command, compiling, hlo, kernels, measuring, papers
from fedjax_mm import costs
from fedjax_mm.models import mlp
from fedjax_mm.types import OverClients

# Two loops in one another, of 4 and 3 trips, a loop of unknown length, a conditional, and collectives.
TEXT = (pathlib.Path(__file__).parent / "fixtures" / "program.hlo").read_text()
EXAMPLES = [("f32", (64, 8)), ("s32", (64,))]


def read(trips=1.0):
    return hlo.operations(hlo.parse(TEXT), trips)


def test_an_operation_counts_the_trips_of_all_loops_around_it():
    times = {one.name: (one.times, one.depth) for one in read()}
    assert times["sum"] == (1, 0) and times["outer_product"] == (4, 1) and times["inner_product"] == (12, 2)
    loops = [(one.trips, one.times, one.known) for one in read(trips=5.0) if one.trips is not None]
    assert loops == [(4, 1, True), (3, 4, True), (5, 1, False)]
    assert hlo.cycles(read()) == 100 + 4 * 10 + 12 * 7 + 30 + 1 * 1000
    assert hlo.cycles(read(trips=5.0)) - hlo.cycles(read()) == 4 * 1000


def test_of_a_conditional_the_longer_branch_counts():
    names = {one.name for one in read()}
    assert "long" in names and "short" not in names


def test_collectives_are_found_in_loops_in_fusions_and_where_they_start():
    talks = {one.name: (one.op, one.times, hlo.moved(one)) for one in read() if hlo.is_collective(one)}
    assert talks == {
        "total": ("all-reduce", 1, 4 * 8),
        "begun": ("all-gather-start", 1, 4 * 64 * 8),
        "hidden": ("all-reduce", 12, 4 * 8 * 8),
    }


def test_copies_of_examples_are_found_in_any_layout_or_type():
    again = {one.name: (one.depth, one.times) for one in hlo.copies(read(), EXAMPLES)}
    assert again == {"copied": (1, 4), "rounded": (2, 12), "before": (0, 1), "begun": (0, 1)}


def test_what_has_no_estimate_is_named_and_the_largest_are_summed_by_source():
    left_out = {one.name: hlo.moved(one) * one.times for one in hlo.without_estimate(read())}
    assert left_out == dict(
        before=2048, begun=2048, copied=8192, hidden=3072, total=32, moved=32, fetched=4 * 8 * 8 + 4, kernel=32
    )  # a buffer that is allocated is not written
    custom = {one.op for one in read() if one.name in ("room", "kernel")}
    assert custom == {"custom-call AllocateBuffer", "custom-call tpu_custom_call"}
    (most, times, one), *rest = hlo.largest(read(), 3)
    assert (most, times, one.op_name) == (1000, 1, "jit(f)/sort") and rest[0][:2] == (100, 1)


def test_a_text_without_an_entry_is_refused():
    with pytest.raises(ValueError, match="no ENTRY computation"):
        hlo.parse("HloModule nothing")


def test_a_row_of_a_text_has_its_share_of_the_peak():
    chip = dataclasses.replace(chips.CHIPS["v5e"], ghz=1e-6, tflops=1e-9)  # a cycle is a ms; 1,000 FLOPs a s
    row = compiling.read(read(), chip, flops=100.0, examples=EXAMPLES, top=2)
    assert row["est ms"] == pytest.approx(1254) and row["share"] == pytest.approx(100 / 1254)
    assert (row["collectives"], row["in loops"], row["example copies"], row["unknown loops"]) == (2, 12, 16, 1)
    assert (row["copies once"], row["copies once GB"]) == (2, pytest.approx(2 * 2048e-9))
    assert row["collectives by kind"] == {"all-reduce": 13, "all-gather": 1} and len(row["largest"]) == 2
    untimed = compiling.read(read(), chips.CHIPS["h100"], flops=100.0, examples=EXAMPLES, top=2)
    assert "est ms" not in untimed and untimed["collectives"] == 2


@pytest.mark.parametrize(
    "name, devices, topology", [("v5e", 4, "2x2"), ("v5e", 8, "2x4"), ("v5e:2x4", 1, "2x4"), ("h100", 4, "1x1x4")]
)
def test_the_smallest_topology_that_has_the_devices_is_taken(name, devices, topology):
    assert chips.topology_for(name, devices) == topology


@pytest.mark.parametrize(
    "given, said",
    [
        (["--chip", "v9"], "the chip v9 is not known; there are v4, v5e"),
        (["--chip", "v5e:big"], "the topology big is not known"),
        (["--papers", "fedprox"], "the paper fedprox is not known; there are all, fedavg"),
        (["--only", "fedavg/rnn"], "the row fedavg/rnn is not known; there are fedavg/mlp"),
        (["--compare", "a.json"], "--compare has 1 files; give two"),
        (["--devices", "0"], "a number of devices is 0"),
        (["--chunks", "0"], "a number of chunks is 0"),
        (["--limit", "nan"], "limit is nan"),
        (["--effort", "-2"], "effort is -2"),
    ],
)
def test_a_wrong_setting_is_one_sentence(given, said, tmp_path, monkeypatch):
    monkeypatch.setattr(chips, "missing", lambda chip: None)
    with pytest.raises(ValueError, match=said):
        benchmark.main(["accelerators", "--out", str(tmp_path), *given])


ONE = {"row": "fedavg/mlp", "chip": "v5e", "dtype": "float32", "chunk": 8, "devices": 1}


def run(tmp_path, *given):
    settings = ["--chip", "v5e", "--only", "fedavg/mlp", "--chunks", "8", "--dtypes", "float32"]
    return command.main([*settings, "--out", str(tmp_path), *given])


def test_a_compiler_that_is_not_there_is_a_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(chips.importlib.util, "find_spec", lambda name: None)
    rows = run(tmp_path, "--devices", "1", "4")
    why = 'libtpu is not installed; pip install "fedjax_mm[tpu-compiler]" brings the compiler'
    assert rows == [ONE | {"skipped": why}, ONE | {"devices": 4, "skipped": why}]
    assert json.loads((tmp_path / "v5e.json").read_text())["rows"] == rows


def test_one_row_that_fails_is_no_end(tmp_path, monkeypatch):
    calls, answers = [], [{"HBM GB": 1.5}, subprocess.TimeoutExpired("x", 9.0), "RuntimeError: no room\nFor more"]

    def fake(line, timeout, env, **given):
        calls.append((line, env["JAX_PLATFORMS"], timeout))
        answer = answers[len(calls) - 1]
        if isinstance(answer, Exception):
            raise answer
        failed = isinstance(answer, str)
        return subprocess.CompletedProcess(line, int(failed), "" if failed else f"hello\n{json.dumps(answer)}", answer)

    monkeypatch.setattr(chips, "missing", lambda chip: None)
    monkeypatch.setattr(command.subprocess, "run", fake)
    rows = run(tmp_path, "--devices", "1", "4", "8", "16", "--limit", "9")
    assert [row.get("skipped") for row in rows] == [
        None,
        "not done in 9 s",
        "RuntimeError: no room",
        "v5e has 8 devices, not 16",
    ]
    assert rows[0]["HBM GB"] == 1.5 and [call[1:] for call in calls] == [("cpu", 9.0)] * 3


def test_two_files_are_compared_row_by_row(tmp_path):
    before = [{**ONE, "est ms": 4.0, "compile s": 9.0}, {**ONE, "chunk": 1, "est ms": 5.0}, {**ONE, "devices": 4}]
    after = [{**ONE, "est ms": 3.0, "compile s": 2.0}, {**ONE, "devices": 4, "est ms": 1.0}, {**ONE, "chunk": 2}]
    for name, rows in (("a", before), ("b", after)):
        (tmp_path / name).write_text(json.dumps({"rows": rows}))
    same, other = command.main(["--compare", str(tmp_path / "a"), str(tmp_path / "b")])
    assert (same["est ms"], same["est ms, after"], same["est ratio"], same["compile s, after"]) == (4, 3, 0.75, 2)
    (tmp_path / "c").write_text(json.dumps({"rows": [{**ONE, "chip": "v6e"}]}))
    with pytest.raises(ValueError, match="files without a common row"):
        command.main(["--compare", str(tmp_path / "a"), str(tmp_path / "c")])
    assert other["devices"] == 4 and "est ratio" not in other and other["est ms, after"] == 1
    (tmp_path / "d").write_text(json.dumps({"rows": [{**row, "effort": -1.0} for row in after]}))
    with pytest.raises(ValueError, match="files without a common row"):
        command.main(["--compare", str(tmp_path / "a"), str(tmp_path / "d")])


def test_the_estimate_is_that_of_a_known_product_and_a_loop_counts_its_trips():
    chip = chips.CHIPS["v5e"]
    if why := chips.missing(chip):
        pytest.skip(why)
    here = pathlib.Path(__file__)
    environment = {**os.environ, **chips.WITHOUT_A_TPU, "XLA_FLAGS": "", "PYTHONPATH": str(here.parents[2])}
    line = [sys.executable, str(here.parent / "fixtures" / "known_products.py")]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=True)
    (product, _), (few, trips), (many, more) = json.loads(done.stdout.splitlines()[-1])
    assert chip.ghz and product == pytest.approx(2 * 4096**3 / (1000 * chip.tflops / chip.ghz), rel=0.05)
    assert (trips, more) == ([5], [50]) and many == pytest.approx(10 * few, rel=0.05)


def test_our_kernels_have_the_cycles_of_their_bundles_for_every_step(monkeypatch):
    asked = []
    monkeypatch.setattr(kernels, "_bundles", lambda *given: asked.append(given) or 1000)
    (kernel,) = [one for one in read() if one.name == "kernel"]
    ours = kernel._replace(
        name="attention_backward_64_masked_dropped.3", type="(bf16[2,16,577,768], bf16[2,16,577,768])"
    )
    foreign, one_core, two_cores = [kernel], [ours], [ours]
    assert kernels.with_cycles(foreign, "v5e") == foreign
    steps = 2 * 16 * 768 // 256  # of two heads and two blocks of queries each
    assert hlo.cycles(kernels.with_cycles(one_core, "v5e")) == 1.15 * 1000 * steps
    assert hlo.cycles(kernels.with_cycles(two_cores, "v5p")) == 1.15 * 1000 * steps / 2
    assert asked == [("v5e", "backward", 577, 12, 64, True, True), ("v5p", "backward", 577, 12, 64, True, True)]


def test_a_kernel_is_compiled_alone_and_its_bundles_are_counted():
    if why := chips.missing(chips.CHIPS["v5e"]):
        pytest.skip(why)
    forward, backward = (kernels._bundles("v5e", way, 16, 2, 64, True, True) for way in ("forward", "backward"))
    assert 100 < forward < backward < 1000


def test_a_row_is_made_of_shapes_and_its_flops_are_those_of_all_steps():
    workload = compiling.made("fedavg/mlp", "bfloat16")
    round, given = workload.round(OverClients(8))
    assert {type(leaf) for leaf in jax.tree.leaves(given)} == {jax.ShapeDtypeStruct}
    forward, first = 784 * 200 + 200 * 200 + 200 * 10, 784 * 200
    steps = 128 * 3 * 2 * 20 * (3 * forward - first)  # no gradient with respect to the pictures
    assert costs.matmul_flops(round, *given) == pytest.approx(steps, rel=0.02)  # and the sums over clients


def test_a_row_is_compiled_for_four_devices(tmp_path):
    if why := chips.missing(chips.CHIPS["v5e"]):
        pytest.skip(why)
    given = ["--chip", "v5e:2x2", "--only", "fedavg/mlp", "--chunks", "1", "--dtypes", "float32", "--devices", "4"]
    given += ["--effort", "-1"]
    (row,) = command.main([*given, "--keep", "--out", str(tmp_path)])
    assert [trips for _, trips, *_ in row["loops"]] == [32, 3] and row["unknown loops"] == 0
    assert row["collectives"] >= 1 and row["in loops"] == 0 and row["example copies"] == 0
    data = 4 * 128 * 60 * 785
    assert 1e9 * row["arguments GB"] == pytest.approx(data, rel=0.1) and 1e9 * row["HBM GB"] > data
    flops = 1e12 * row["TFLOP a device"]
    assert flops == pytest.approx(6.8e9 / 4, rel=0.01) and row["least ms"] == pytest.approx(flops / 197e9)
    assert row["share"] == pytest.approx(row["least ms"] / row["est ms"]) and 0 < row["share"] < 1
    assert (tmp_path / "fedavg-mlp-v5e-2x2-float32-1-4.txt").read_text().startswith("HloModule")


def test_a_row_is_run_on_the_device_that_is_here(tmp_path, monkeypatch):
    tiny = papers.averaging(mlp.classifier((4,), 3), papers.IDENTITY, papers.Shape((5,), "float32"), 4, 6, 3)
    monkeypatch.setattr(measuring, "made", lambda name, dtype: tiny)
    monkeypatch.setattr(command, "command", lambda function, *args: [function, *args])
    monkeypatch.setattr(command, "_in_a_process", lambda line, settings, environment: line[0](*line[1:]))
    asked = ["--chip", "here", "--only", "fedavg/mlp", "--dtypes", "float32", "--chunks", "2", "--repetitions", "2"]
    (row,) = command.main([*asked, "--out", str(tmp_path)])
    assert row["device"] == "cpu" and row["ms"] > 0 and row["chunk"] == 2 and row["devices"] == 1
    steps = 4 * 2 * (2 * 3 * 5 * 4 * 2 + 2 * 3 * 4 * 3 * 3)  # the input needs no gradient
    assert steps < row["TFLOP"] * 1e12 < 1.5 * steps  # and the round tests and adds up what clients send
    assert json.loads((tmp_path / "here.json").read_text())["rows"] == [row]
