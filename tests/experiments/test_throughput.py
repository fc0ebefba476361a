"""The throughput script: what its file holds, and the numbers in it that are no times."""

import dataclasses
import json

import chex
import jax
import numpy as np
import pytest

from experiments import throughput
from experiments.throughput import Settings
from fedjax_mm.types import OverClients

TINY = Settings(
    only=("handwritten", "clients_per_round", "mapping", "skew"),
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


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    path = throughput.main(dataclasses.replace(TINY, out=str(tmp_path_factory.mktemp("throughput"))))
    return json.loads(path.read_text())


def test_the_file_says_where_and_how_it_was_measured(result):
    assert set(result["versions"]) == {"jax", "jaxlib", "flax", "optax", "numpy"}
    assert result["cpus"] >= 1 and len(result["load_average"]) == 1 + len(TINY.only)
    assert result["settings"]["chunks"] == [1, 2] and "4 x" in result["device"]
    assert list(result["sections"]) == list(TINY.only)


def test_every_variant_has_a_row_with_times(result):
    sections = result["sections"]
    assert [(r["chunk"], r["rounds"]) for r in sections["handwritten"]] == [
        (c, how) for c in (1, 2) for how in ("separate", "scanned")
    ]
    assert [(r["taking part"], r["chunk"]) for r in sections["clients_per_round"]] == [(2, 1), (2, 2)]
    assert [(r["devices"], r["chunk"]) for r in sections["mapping"]] == [(1, 1), (1, 2), (2, 1)]
    assert [r["chunk"] for r in sections["skew"]] == [1, 2]
    for row in (row for rows in sections.values() for row in rows):
        numbers = [v for v in row.values() if not isinstance(v, str)]
        assert np.isfinite(numbers).all() and len(numbers) >= 5


def test_all_ways_give_the_same_weights(result):
    differences = [r["difference"] for s in ("handwritten", "mapping") for r in result["sections"][s]]
    assert max(differences) <= 1e-5


def test_a_round_by_hand_that_differs_is_an_error(monkeypatch):
    by_hand = throughput.round_by_hand
    other_rate = lambda settings, chunk: by_hand(dataclasses.replace(settings, client_lr=0.11), chunk)
    monkeypatch.setattr(throughput, "round_by_hand", other_rate)
    with pytest.raises(ArithmeticError, match="chunk 1: our round and the one by hand differ by"):
        throughput.handwritten(dataclasses.replace(TINY, chunks=(1,), rounds=1))


@pytest.mark.parametrize("chunk, share", [(1, 0), (2, 2 / 8), (3, 3 / 9), (4, 6 / 12)])
def test_a_step_is_wasted_when_a_client_waits_for_the_longest_of_its_chunk(chunk, share):
    assert throughput.wasted([np.array([3, 2, 1])], chunk) == pytest.approx(share)


def test_timings_start_over_and_leave_the_first_run_out():
    calls = []
    step = lambda state, x: calls.append((int(state), x)) or state + x
    timed = throughput.Timed(step, np.int32(5), [1, 2], rounds=2)
    times = throughput.timings({"a": timed, "b": timed._replace(inputs=[7])}, repetitions=3)
    assert times["a"].shape == (3, 2) and (times["a"] >= 0).all()
    a, b = [(5, 1), (6, 2)], [(5, 7)]
    assert calls == b + a + a + b + b + a + a + b


def test_more_devices_than_there_are_are_measured_in_a_process_that_has_them(monkeypatch):
    ran = {}

    def fake(command, env, **settings):
        ran.update(code=command[-1], flags=env["XLA_FLAGS"])
        return type("Done", (), {"stdout": 'warning\n[{"devices": 8}]\n'})

    monkeypatch.setattr(throughput.subprocess, "run", fake)
    assert throughput.mapping(dataclasses.replace(TINY, devices=(1, 8))) == [{"devices": 8}]
    assert ran["flags"].endswith("device_count=8") and "devices=(1, 8)" in ran["code"]


def test_clients_one_after_another_end_where_the_round_ends():
    data, method = throughput.workload(TINY, [np.arange(5), np.arange(5, 8), np.arange(8, 9), np.arange(9, 16)])
    key, rounds, state = jax.random.key(0), throughput.rounds_of(data, TINY), throughput.start_of(method, TINY)
    serial = throughput.Timed(throughput.serial(method, key), state, rounds, len(rounds))
    ours = throughput.ours(method, OverClients(1), state, rounds, key)[0]
    chex.assert_trees_all_close(throughput.after(serial), throughput.after(ours), atol=1e-6)
