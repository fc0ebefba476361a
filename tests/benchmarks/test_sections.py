"""The sections of the benchmarks: what their file holds, and the numbers in it that are no times."""

import dataclasses
import gc
import json
import pickle
import re
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import __main__ as benchmark
from benchmarks import (
    engine,
    femnist,
    host,
    methods,
    one_by_one,
    peak,
    population,
    price,
    profile,
    steps,
    streaming,
    timing,
)
from benchmarks import processes as several
from benchmarks.engine import Settings
from benchmarks.one_by_one import by_batch, separate, serial
from benchmarks.peers import processes
from fedjax_mm.data import FederatedData
from fedjax_mm.federate import federate
from fedjax_mm.local import local_steps
from fedjax_mm.models import mlp
from fedjax_mm.types import ClientData, Cohort, Download, Each, Mean, OverClients, Server

SECTIONS = ("handwritten", "clients_per_round", "mapping", "skew")
TINY = Settings(
    clients=4,
    examples=4,
    per_round=2,
    batch_size=2,
    widths=(3,),
    rounds=2,
    repetitions=1,
    chunks=(1, 2),
    devices=(1, 2),
    populations=(4,),
    taking_part=(2,),
)


def test_a_file_has_a_row_with_times_for_every_variant(tmp_path):
    path = benchmark.measure(benchmark.Settings(only=SECTIONS, engine=TINY, out=str(tmp_path)))
    result = json.loads(path.read_text())
    assert set(result["versions"]) == {"jax", "jaxlib", "flax", "optax", "numpy"}
    assert result["cpus"] >= 1 and len(result["load_average"]) == 1 + len(SECTIONS)
    assert result["settings"]["engine"]["chunks"] == [1, 2] and "4 x" in result["device"]
    sections = result["sections"]
    assert list(sections) == list(SECTIONS)
    assert [(r["chunk"], r["rounds"]) for r in sections["handwritten"]] == [
        (c, how) for c in (1, 2) for how in ("separate", "scanned")
    ]
    assert [(r["taking part"], r["chunk"]) for r in sections["clients_per_round"]] == [(2, 1), (2, 2)]
    assert [(r["devices"], r["chunk"]) for r in sections["mapping"]] == [(1, 1), (1, 2), (2, 1)]
    assert [r["chunk"] for r in sections["skew"]] == [1, 2]
    for row in (row for rows in sections.values() for row in rows):
        numbers = [v for v in row.values() if not isinstance(v, str)]
        assert np.isfinite(numbers).all() and len(numbers) >= 5
    differences = [r["difference"] for section in ("handwritten", "mapping") for r in sections[section]]
    assert max(differences) <= 1e-5  # all ways give the same weights


def test_a_round_by_hand_that_differs_is_an_error(monkeypatch):
    by_hand = engine.round_by_hand
    other_rate = lambda apply, settings, chunk: by_hand(apply, dataclasses.replace(settings, client_lr=0.11), chunk)
    monkeypatch.setattr(engine, "round_by_hand", other_rate)
    with pytest.raises(ArithmeticError, match="chunk 1: our round and the one by hand differ by"):
        engine.handwritten(dataclasses.replace(TINY, chunks=(1,), rounds=1))


@pytest.mark.parametrize("chunk, share", [(1, 0), (2, 2 / 8), (3, 3 / 9), (4, 6 / 12)])
def test_a_step_is_wasted_when_a_client_waits_for_the_longest_of_its_chunk(chunk, share):
    assert engine.wasted([np.array([3, 2, 1])], chunk) == pytest.approx(share)


def test_the_hosts_share_is_what_a_run_takes_beyond_its_rounds():
    settings = host.Settings(networks=((),), calls=(2,), rounds=4, repetitions=1)
    rows = host.host(settings)
    assert [(r["network"], r["rounds in a call"], r["directory"]) for r in rows] == [
        ("784-10", 2, kept) for kept in (False, True)
    ]
    assert len({r["alone ms"] for r in rows}) == 1 and all(r["ms"] > 0 for r in rows)
    assert all(r["host ms"] == r["ms"] - r["alone ms"] for r in rows)


def test_timings_start_over_and_leave_the_first_run_out():
    calls = []
    step = lambda state, x: calls.append((int(state), x)) or state + x
    timed = timing.Timed(step, np.int32(5), [1, 2], rounds=2)
    times = timing.timings({"a": timed, "b": timed._replace(inputs=[7])}, repetitions=3)
    assert times["a"].shape == (3, 2) and (times["a"] >= 0).all()
    a, b = [(5, 1), (6, 2)], [(5, 7)]
    assert calls == b + a + a + b + b + a + a + b


def test_more_devices_than_there_are_are_measured_in_a_process_that_has_them(monkeypatch):
    ran = {}

    def fake(command, env, **settings):
        ran.update(code=command[-1], flags=env["XLA_FLAGS"])
        return type("Done", (), {"stdout": 'warning\n[{"devices": 8}]\n'})

    monkeypatch.setattr(timing.subprocess, "run", fake)
    assert engine.mapping(dataclasses.replace(TINY, devices=(1, 8))) == [{"devices": 8}]
    (given,) = pickle.loads(bytes.fromhex(re.search("'([0-9a-f]+)'", ran["code"])[1]))
    assert ran["flags"].endswith("device_count=8") and "import mapping;" in ran["code"] and given.devices == (1, 8)


def test_a_command_calls_a_function_of_a_module_and_prints_what_it_gives():
    given = processes.Settings(cores=2)
    line = timing.command(dataclasses.asdict, given)
    assert json.loads(subprocess.run(line, check=True, capture_output=True).stdout) == dataclasses.asdict(given)


def with_every_kind_of_slot():
    """A server that begins, clients that keep a state, a mean and what each sends: (method, data)."""
    data = FederatedData.from_arrays({"x": np.arange(12.0, dtype=np.float32)}, np.repeat(np.arange(3), [6, 4, 2]))
    step = lambda w, batch, key: (0.9 * w + (batch["x"] * batch["mask"]).mean(), {"w": w})

    def update(download, own, data, key):
        w, metrics = local_steps(step, download.sent + own, data, key, batch_size=2)
        return {"mean": Mean(w, data.weight), "each": Each({"w": w}, 1.0)}, own + w, metrics

    def combine(server, uploads, public, key):
        mean, each = uploads["all"]["mean"], uploads["all"]["each"]
        return server + mean.value + (each.value["w"] * each.weight).sum() * jax.random.uniform(key), {}

    server = Server(
        init=lambda key: jnp.float32(0),
        download=lambda server, public: {"all": Download(server)},
        update=combine,
        begin=lambda server, public, key: (server + jax.random.uniform(key), {}),
    )
    return federate(server, {"all": Cohort(3, lambda key: jax.random.uniform(key), update)}), data


def test_a_method_one_by_one_ends_where_its_round_ends():
    settings = methods.Settings(rounds=3, repetitions=1)
    workload = methods.Workload(*with_every_kind_of_slot(), {"all": 2})
    row = methods.compared(settings, workload)
    assert row["clients"] == 2
    assert all(row[f"{how} CPU ms"] > 0 and row[f"{how} difference"] < 1e-3 for how in methods.WAYS)


def test_by_batch_makes_a_call_for_every_batch(monkeypatch):
    made, called = one_by_one._straight, []
    counted = lambda call: lambda *values: called.append(1) or call(*values)
    monkeypatch.setattr(one_by_one, "_straight", lambda *given: counted(made(*given)))
    data = ClientData({"x": jnp.arange(8.0)}, jnp.arange(8), jnp.int32(7), jnp.float32(1), None)
    step = lambda total, batch, key: (total + (batch["x"] * batch["mask"]).sum(), {"loss": total})
    calls = {}
    for drop_last in (False, True):  # 4 batches in each of 5 epochs, or 3

        def train(start, data, key, drop_last=drop_last):
            settings = {"batch_size": 2, "epochs": 5, "shuffle": False, "drop_last": drop_last}
            return local_steps(step, 2 * start, data, key, **settings)

        given = (jnp.float32(1), data, jax.random.key(0))
        called.clear()
        chex.assert_trees_all_close(by_batch(train)(*given), jax.jit(train)(*given))
        calls[drop_last] = len(called)
    assert calls[False] - calls[True] == 5 and calls[True] > 15


def test_the_price_of_federation_is_of_the_same_steps():
    settings = price.Settings(clients=1, examples=4, batch_size=4, chunks=(1,), repetitions=1)
    timed, step = price.variants_of(settings, mlp.encoder((), 3))
    assert len(step.inputs) == 1
    chex.assert_trees_all_close(timing.after(timed[1]).server["params"], timing.after(step), atol=1e-6)
    (row,) = price.of_model(settings, mlp.encoder((), 3), "tiny")
    assert row["steps"] == 1 and row["CPU ratio"] > 0 and row["ratio"] > 0


def test_a_profile_counts_an_operations_own_time():
    event = lambda name, start, long, thread: {"name": name, "ts": start, "dur": long, "pid": 1, "tid": thread}
    events = [
        event("while.1", 0, 100, 1),
        event("dot.2", 10, 30, 1),
        event("dot.3.1", 50, 20, 1),
        event("dot", 0, 7, 2),
    ]
    first, dot, loop = profile.totals(events, rounds=2)
    assert (first["operation"], first["ms"]) == ("all", 107 / 2000)
    assert (dot["operation"], dot["ms"], dot["calls"]) == ("dot", 57 / 2000, 1.5)
    assert (loop["operation"], loop["ms"], loop["share"]) == ("while", 50 / 2000, 50 / 107)


def test_steps_without_torch_say_so():
    rows = steps.client_steps(steps.Settings(names=("FedDAT",), python="/nowhere/python"))
    assert rows == [{"step": "FedDAT", "skipped": rows[0]["skipped"]}] and "/nowhere/python" in rows[0]["skipped"]


@pytest.mark.parametrize("compiled", [jax.jit, by_batch])
def test_clients_one_after_another_end_where_the_round_ends(compiled):
    data, method = engine.workload(TINY, [np.arange(5), np.arange(5, 8), np.arange(8, 9), np.arange(9, 16)])
    key, rounds, state = jax.random.key(0), engine.chosen(data, TINY), timing.start_of(method, TINY.seed)
    alone = timing.Timed(serial(method, key, compiled), separate(method, state), rounds, len(rounds))
    ours = timing.ours(method, OverClients(1), state, rounds, key)[0]
    chex.assert_trees_all_close(timing.after(alone)[0], timing.after(ours).server, atol=1e-6)


def test_the_share_of_the_peak_is_of_a_products_flops_in_the_same_turn(monkeypatch):
    data, method = engine.workload(TINY)  # 784 to 3 to 10, batches of 2, 4 clients of 2 steps
    measured = peak.Workload(method, data, (1, 2), 8)
    took = {"product": [2.0, 4.0, 6.0], 1: [1.0, 1.0, 5.0], 2: [4.0, 4.0, 4.0]}
    fixed = lambda variants, n: {name: np.repeat(np.array(took[name])[:, None], 2, axis=1) for name in variants}
    monkeypatch.setattr(peak, "timings", fixed)
    rows = peak.of_workload(peak.Settings(), "tiny", measured, (None, 1e-9))
    forward = 2 * 2 * (784 * 3 + 3 * 10)
    flops = 8e-12 * (2 * forward + 2 * 2 * 3 * 10)  # backward: weights of both layers, and what comes into the second
    for row, ms, ratio in zip(rows, (1.0, 4.0), (2.0, 1.0), strict=True):  # 2/1, 4/1, 6/5 and 2/4, 4/4, 6/4
        assert row["TFLOP a round"] == pytest.approx(flops) and row["ms"] == ms
        assert row["TFLOP per s"] == pytest.approx(flops / (1e-3 * ms)) and row["product"] == pytest.approx(2.5e-7)
        assert row["share"] == pytest.approx(ratio * flops / 1e-9)


def test_a_product_counts_a_multiplication_and_an_addition_for_each_term():
    timed, flops = peak.product(100, jnp.dtype("float32"))
    assert flops == pytest.approx(2e-12 * 100**3) and timed.rounds == 4
    (a,) = timed.inputs
    np.testing.assert_allclose(timing.after(timed), np.linalg.multi_dot([a] * 5), rtol=1e-4, atol=1e-5)


def test_processes_are_run_in_turn_and_cost_what_they_cost_together(monkeypatch):
    ran = []

    def launched(settings, widths, number):
        ran.append(number)
        return (1.0 * len(ran), 10.0 * number), [np.full(3, number, np.float32)]

    monkeypatch.setattr(several, "launched", launched)
    one, two = several.processes(several.Settings(widths=((3,),), repetitions=3))
    assert ran == [1, 2, 2, 1, 1, 2]
    assert (one["CPU ms"], two["CPU ms"], two["ms"]) == (4, 3, 20)
    assert (one["difference"], two["difference"], two["processes"]) == (0, 1, 2)


def test_a_member_times_rounds_and_leaves_the_weights(tmp_path):
    settings = several.Settings(rounds=2)
    cpu, wall = several.member(settings, (3,), 1, 0, 0, str(tmp_path))
    with np.load(tmp_path / "end.npz") as end:
        assert cpu > 0 and wall > 0 and {end[name].shape for name in end.files} == {(784, 3), (3,), (3, 10), (10,)}


def test_a_process_that_fails_is_an_error(monkeypatch):
    failing = [sys.executable, "-c", "raise SystemExit(3)"]
    monkeypatch.setattr(several, "command", lambda *given: failing)
    settings = several.Settings(devices=4)
    with pytest.raises(RuntimeError, match=r"of 2 processes some failed: exits \[3, 3\]"):
        several.launched(settings, (3,), 2)
    with pytest.raises(ValueError, match="4 devices cannot be spread evenly over 3 processes"):
        several.launched(settings, (3,), 3)


SMALL = population.Settings(
    populations=(3, 40), per_round=2, pool=20, examples=4, features=6, width=30, batch_size=2, rounds=2
)
HEAD_MB = 4 * (30 * 10 + 10) / 1e6  # a client's head


@pytest.fixture
def in_this_process(monkeypatch):
    gc.collect()  # what other tests left behind would be counted until then
    monkeypatch.setattr(population, "in_own_process", lambda section, settings, devices: section(settings))


def test_states_off_the_device_take_room_there_for_participants_alone(in_this_process, tmp_path):
    found = population.population(dataclasses.replace(SMALL, folder=str(tmp_path)))
    rows = {(row["clients"], row["client states"]): row for row in found}
    assert list(rows) == [(n, place) for n in (3, 40) for place in ("device", "host", "disk")]
    for (clients, _), row in rows.items():
        assert row["states MB"] == pytest.approx(clients * HEAD_MB)
        assert row["CPU ms"] > 0 and row["ms"] > 0 and row["peak RSS MB"] > 0
    grown = {place: rows[40, place]["device MB"] - rows[3, place]["device MB"] for place in ("device", "host", "disk")}
    assert grown["device"] == pytest.approx(37 * HEAD_MB, rel=0.05)
    assert abs(grown["host"]) < HEAD_MB and abs(grown["disk"]) < HEAD_MB


def test_places_that_give_other_weights_are_an_error(monkeypatch, tmp_path):
    other = lambda section, settings, devices: [{"clients": 3, "checksum": settings.client_states}]
    monkeypatch.setattr(population, "in_own_process", other)
    with pytest.raises(ArithmeticError, match="3 clients do not end with the same weights"):
        population.population(dataclasses.replace(SMALL, folder=str(tmp_path)))


def test_photos_that_are_streamed_are_on_the_device_a_batch_at_a_time(in_this_process, monkeypatch, tmp_path):
    """The device is looked at after a round: then it has none of them, or all that were laid out."""
    step = lambda w, batch, key: (w + batch["image"].mean(), {})

    def small(settings, data):
        update = lambda download, state, data, key: (
            {"w": Mean(local_steps(step, download.sent, data, key, batch_size=4)[0], data.weight)},
            state,
            {},
        )
        combine = lambda w, uploads, public, key: (uploads["all"]["w"].value, {})
        server = Server(lambda key: jnp.float32(0), lambda w, public: {"all": Download(w)}, combine)
        return federate(server, {"all": Cohort(settings.clients, lambda key: (), update)})

    monkeypatch.setattr(streaming, "in_own_process", lambda section, given, devices: section(given))
    monkeypatch.setattr(streaming, "small", small)
    monkeypatch.setattr(streaming, "times", lambda settings: [])
    tiny = streaming.Settings(photos=8, scales=(1, 2), laid_out=(1,), side=64, clients=2, folder=str(tmp_path / "made"))
    rows = {row["examples"]: row for row in streaming.streaming(tiny)}
    assert [row["photos"] for row in rows.values()] == [8, 8, 16] and not (tmp_path / "made").exists()
    held = {name: row["device MB"] for name, row in rows.items()}
    assert held["1x, laid out"] - held["1x, streamed"] == pytest.approx(rows["1x, laid out"]["photos MB"], rel=0.1)
    assert held["2x, streamed"] - held["1x, streamed"] < rows["1x, streamed"]["photos MB"] / 10


def test_the_experiment_of_flute_stands_beside_what_is_published():
    tiny = femnist.Settings(
        clients=4, examples=24, test=6, per_round=2, batch_size=4, rounds=2, evaluate_every=2, calls=(2,)
    )
    ours, flute, fedml = femnist.femnist(tiny)
    assert ours["rounds in a call"] == 2 and ours["s"] == pytest.approx(2e-3 * ours["ms a round"]) and ours["s"] > 0
    assert (flute["s"], fedml["s"]) == (502, 20_992)
