"""Arrays that are streamed change no bit of any method: of its rounds, of a run that was killed, of its scores."""

import dataclasses
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_laws import case_of, every_method
from tiny_methods import ENCODERS, HOLDS, TRAINING

from fedjax_mm import federate, run, streamed
from fedjax_mm.data import FederatedData, pooled
from fedjax_mm.local import local_steps
from fedjax_mm.methods import creamfl
from fedjax_mm.run import records
from fedjax_mm.types import Cohort, Download, Mean, Server
from fedjax_mm.uploads import attacks


def outside(arrays, made):
    """The arrays with all those streamed that may be; cohorts that share one share it still."""
    stream = lambda k, x: made.setdefault((k, id(x)), streamed.of_array(np.asarray(x)))
    return {k: x if k == "label" or np.ndim(x) < 2 else stream(k, x) for k, x in arrays.items()}


def streaming(data, public=False):
    made = {}
    cohorts = {k: dataclasses.replace(c, arrays=outside(c.arrays, made)) for k, c in data.cohorts.items()}
    return dataclasses.replace(data, cohorts=cohorts, public=outside(data.public, made) if public else data.public)


def first_rounds(name):
    """The first round of arrays on the device, as the method's laws have compiled it, and of streamed ones."""
    case = case_of(name)
    data = streaming(case.data)
    assert streamed.streams([data.public, *(c.arrays for c in data.cohorts.values())])
    taken = data.round({k: taken.index for k, taken in case.taken.cohorts.items()})
    return jax.device_get((case.after, case.step(case.state, taken, case.key)))


@every_method
def test_a_round_is_the_same_bit_for_bit(name):
    chex.assert_trees_all_equal(*first_rounds(name))


@pytest.mark.xdist_group("creamfl")
def test_public_examples_are_the_same_bit_for_bit():
    """In blocks of 32: with blocks of 4 a CPU rounds lengths otherwise, where no callback is (docs/streaming.md)."""
    data = case_of("creamfl").data
    data = dataclasses.replace(data, public={m: np.tile(x, (8, 1)) for m, x in data.public.items()})
    config = creamfl.CreamFLConfig(dataclasses.replace(TRAINING, block=32), public_batch=6)
    method = creamfl.build(config, data, ENCODERS, HOLDS, {"B": 3})
    state, who = jax.jit(method.init)(jax.random.key(0)), {k: np.arange(2) for k in data.sizes}
    step = jax.jit(method.round)
    both = [step(state, held.round(who), jax.random.key(1)) for held in (data, streaming(data, public=True))]
    chex.assert_trees_all_equal(*jax.device_get(both))


def made_test_set(name):
    """Test arrays of a method, of more rows than are read at once."""
    rng, total = np.random.default_rng(1), 300
    a, b = (rng.normal(size=(total, *shape)).astype(np.float32) for shape in ((4,), (3, 2)))
    label = rng.integers(0, 3, total).astype(np.int32)
    if name == "creamfl":
        return {"image": a, "text": b[:, 0], "B/text": b[:, 0], "B/label": label}
    if name == "feddat":
        arrays = {k: np.asarray(x)[:40] for k, x in case_of(name).data.cohorts["AB"].arrays.items()}
        return {**arrays, "client": np.arange(40, dtype=np.int32) % 2}
    return {"a": a, "b": b} if name == "layerwise" else {"a": a, "b": b, "label": label}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.xdist_group(n)) for n in ("fedavg", "layerwise", "creamfl", "feddat")]
)
def test_scores_are_the_same(name):
    case, arrays = case_of(name), made_test_set(name)
    scores = case.method.evaluate(case.state, arrays)
    assert scores and case.method.evaluate(case.state, {**arrays, **_in_part(arrays)}) == scores


def _in_part(arrays):
    """The arrays of models' inputs, streamed."""
    return outside({k: x for k, x in arrays.items() if k not in ("label", "B/label", "client", "target")}, {})


RNG = np.random.default_rng(0)
ARRAYS = {"x": RNG.integers(0, 256, (60, 5, 4, 3), np.uint8), "label": RNG.integers(0, 3, 60).astype(np.int32)}
OWNERS = [np.arange(0, 9), np.arange(9, 30), np.arange(30, 31), np.arange(28, 50)]
TESTED = [np.arange(50, 53), [], np.arange(53, 55), np.arange(55, 60)]


def problem(per_round=2):
    """A method whose server keeps a sum that depends on the order of the rows, and its data in memory and streamed."""
    step = lambda w, batch, key: (0.9 * w + jnp.tensordot(batch["mask"], batch["x"] / 255, 1), {})
    update = lambda download, state, data, key: (
        {"w": Mean(local_steps(step, download.sent, data, key, batch_size=4, epochs=2)[0], data.weight)},
        state,
        {},
    )
    score = lambda download, state, arrays, mask: {"score": jnp.tensordot(arrays["x"], download.sent, 3)}
    combine = lambda w, uploads, public, key: (uploads["all"]["w"].value, {})
    server = Server(lambda key: jnp.zeros((5, 4, 3)), lambda w, public: {"all": Download(w)}, combine)
    evaluate = lambda state, arrays: {"sum": sum(int(some["x"][:n].sum()) for some, n in streamed.blocks(arrays, 8))}
    data = FederatedData.from_arrays(ARRAYS, OWNERS, test=TESTED)
    return federate(server, {"all": Cohort(4, lambda key: (), update, score)}, evaluate), data, streaming(data)


def train(method, data, rows=lambda arrays: arrays, **settings):
    fixed = {"rounds": 3, "per_round": 3, "evaluate_every": 3, "log": lambda line: None}
    return run.train(method, data, test=rows(ARRAYS), **{**fixed, **settings})


def test_a_run_is_the_same_wherever_its_arrays_are_and_goes_on_with_either(tmp_path):
    method, data, away = problem()
    plain = train(method, data, directory=tmp_path / "a")
    test = lambda arrays: outside(arrays, {})
    chex.assert_trees_all_equal(plain, train(method, away, test, directory=tmp_path / "b", checkpoint_every=1))
    rows = [records.read_metrics(tmp_path / name) for name in "ab"]
    assert all(row.pop("seconds_waited") >= 0 for row in rows[1])
    same = lambda row: {k: v for k, v in row.items() if k != "seconds"}
    assert [same(row) for row in rows[0]] == [same(row) for row in rows[1]]
    assert rows[0][2]["test/sum"] == ARRAYS["x"].sum() and rows[0][2]["own/all/score"] > 0
    shutil.rmtree(tmp_path / "b" / "checkpoints" / "3")
    chex.assert_trees_all_equal(plain, train(method, data, directory=tmp_path / "b"))


@pytest.mark.parametrize(
    "how", [{"chunk": 3, "rounds_per_call": 3}, {"devices": 2}, {"devices": 2, "client_state": "host"}]
)
def test_chunks_devices_and_calls_read_the_same_rows(how):
    method, data, away = problem()
    chex.assert_trees_all_equal(*jax.device_get((train(method, data, **how), train(method, away, **how))))


def test_pooled_and_poisoned_examples_stay_where_they_are():
    _, data, away = problem()
    for changed in (pooled, lambda data: attacks.flip_labels(data, {"all": [1, 3]}, 3)):
        (plain,), (kept,) = changed(data).cohorts.values(), changed(away).cohorts.values()
        assert streamed.is_streamed(kept.arrays["x"])
        np.testing.assert_array_equal(kept.arrays["x"][:], plain.arrays["x"])
        np.testing.assert_array_equal(kept.arrays["label"], plain.arrays["label"])


def test_public_rows_are_streamed_where_they_are_read_as_rows_alone():
    method, _, away = problem()
    away = dataclasses.replace(away, public=outside({"x": ARRAYS["x"]}, {}))
    with pytest.raises(ValueError, match="public arrays are streamed, but the method may read .*; give them in memory"):
        train(method, away)


def test_what_the_host_counts_stays_in_memory():
    for key, x in {"label": np.zeros((4, 2), np.int32), "x": np.zeros(4), "has_x": np.zeros((4, 1), bool)}.items():
        with pytest.raises(ValueError, match=f"array '{key}' is streamed"):
            FederatedData.from_arrays({key: streamed.of_array(x)}, [[0, 1], [2, 3]])


def test_the_log_says_once_that_reading_is_the_limit():
    method, data, away = problem()
    x, lines = away.cohorts["all"].arrays["x"], []
    x.reader.batch = _slow(x.reader.batch, x.reader)
    train(method, away, log=lines.append)
    assert [line.split(":")[0] for line in lines if "were waited for rows" in line] == [
        "round 3"
    ]  # whose state is read


def _slow(batch, reader):
    def waited(numbers, size):
        reader.waited += 1e6  # as if a batch had been waited for so long
        return batch(numbers, size)

    return waited
