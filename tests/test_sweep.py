"""A sweep gives what its runs give alone; what cannot be traced is compiled apart; a diverging run stops no other."""

import functools
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_mm import run
from fedjax_mm.data.federated import FederatedData
from fedjax_mm.federate import federate
from fedjax_mm.run import sweeps
from fedjax_mm.run.sweep_files import read_sweep
from fedjax_mm.stages import Stage
from fedjax_mm.types import Cohort, Download, Mean, Server

X = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
DATA = FederatedData.from_arrays({"x": X}, [np.arange(i, i + 5) for i in range(0, 40, 5)])
TEST = {"x": X[:8]}
QUIET = {"log": lambda line: None}
ROUNDING = 1e-6  # XLA rounds two programs apart with the flags of conftest.py; with its own it does not (measured)


def build(rate=0.1, pull=0.0, width=3, kind="mean"):
    """Clients who go from w towards the mean of their own rows, and back towards 0 by `pull`; noise names the seed."""
    if isinstance(rate, float) and rate < 0:
        raise ValueError(f"rate is {rate}; give a number of at least 0")

    def update(download, state, data, key):
        w = download.sent
        own = jnp.where(jnp.arange(len(data.rows)) < data.count, 1.0, 0.0) @ data.arrays["x"][data.rows] / data.count
        step = rate * (own[:width] - w) - rate * pull * w + 0.01 * jax.random.normal(key, w.shape)
        return {"w": Mean(w + step, data.weight)}, state + 1, {"loss": (w**2).sum()}

    def update_server(w, uploads, public, key):
        value = uploads["all"]["w"].value
        return (value if kind == "mean" else 0.5 * (w + value)), {}

    server = Server(lambda key: jax.random.normal(key, (width,)), lambda w, public: {"all": Download(w)}, update_server)
    apart = lambda state, arrays: np.asarray(arrays["x"])[:, :width] - np.asarray(state.server, float)
    scores = lambda state, arrays: {"error": float((apart(state, arrays) ** 2).mean())}
    return federate(server, {"all": Cohort(8, lambda key: jnp.float32(0), update)}, scores)


def sweep(build=build, data=DATA, **given):
    fixed = {"rounds": 4, "per_round": 3, "valid": TEST, "evaluate_every": 2, **QUIET}
    return run.sweep(build, data, **fixed | given)


@functools.cache
def single(seed, settings):
    """(last state, the rows of the log at the evaluations) of `run.train`; settings: as items."""
    settings = dict(settings)
    rows, method = [], build(**settings)
    keep = lambda done, row: rows.append(dict(row))
    given = {"rounds": 4, "per_round": 3, "evaluate": {"valid": run.scores(method, TEST)}}
    state = run.train(method, DATA, seed=seed, evaluate_every=2, watch=[keep], progress=False, **given, **QUIET)
    return state, [row for row in rows if "valid/error" in row]


def assert_runs_are_single_runs(found, atol=ROUNDING):
    for p, settings in enumerate(found.settings):
        for s, seed in enumerate(found.seeds):
            state, rows = single(seed, tuple(settings.items()))
            chex.assert_trees_all_close(jax.tree.map(lambda x, s=s: x[s], found.states[p]), state, atol=atol)
            for name, values in found.scores.items():
                np.testing.assert_allclose(values[p, s], [row[name] for row in rows], atol=atol, err_msg=name)


GRID = {"rate": [0.1, 0.5], "pull": [0, 0.2]}


@pytest.mark.parametrize(
    "how", [{}, {"runs_at_once": 8}, {"runs_at_once": 3}, {"devices": 3, "runs_at_once": 2}, {"chunk": 3}], ids=str
)
def test_every_run_is_the_single_run_of_its_settings_and_seed(how):
    found = sweep(grid=GRID, seeds=(7, 2), **how)
    assert [tuple(point.values()) for point in found.settings] == [(0.1, 0), (0.1, 0.2), (0.5, 0), (0.5, 0.2)]
    assert found.seeds == (7, 2) and found.rounds == (2, 4) and found.axes == GRID
    assert {"valid/error", "all/loss", "all/clients"} <= set(found.scores) and not found.diverged.any()
    assert len({np.asarray(x).tobytes() for state in found.states for x in state.server}) == 8
    assert_runs_are_single_runs(found, 1e-5 if how else ROUNDING)


def test_the_whole_grid_is_one_program_and_one_call_has_all_rounds_between_evaluations(monkeypatch):
    lowered, lower = [], sweeps.Mapped.lower
    monkeypatch.setattr(sweeps.Mapped, "lower", lambda *given: lowered.append(given[3]) or lower(*given))
    sweep(grid=GRID, seeds=3)
    assert [data.cohorts["all"].index.shape for data in lowered] == [(3, 2, 3)]  # seeds, rounds in a call, participants


def test_texts_whole_numbers_and_widths_are_compiled_apart():
    said = []
    found = sweep(grid={"kind": ["mean", "half"], "rate": [0.1, 0.3], "width": [3, 2]}, seeds=2, log=said.append)
    assert said[0] == "8 settings x 2 seeds are 16 runs in 4 programs"
    assert [state.server.shape for state in found.states] == [(2, 3), (2, 2)] * 4
    assert_runs_are_single_runs(found)


def test_floats_that_change_shapes_or_branch_in_python_are_found_and_compiled_apart():
    def branches(rate, pull, share):
        return build(rate=rate, pull=pull if share > 0.5 else 0.0, width=round(3 * share))

    said = []
    found = sweep(branches, grid={"share": [0.3, 0.4, 1.0], "rate": [0.1, 0.3], "pull": [0.1]}, log=said.append)
    assert said[:2] == ["share cannot be traced, so that every value is compiled apart"] + [
        "6 settings x 1 seeds are 6 runs in 3 programs"
    ]
    assert [state.server.shape for state in found.states] == [(1, 1)] * 4 + [(1, 3)] * 2
    chex.assert_trees_all_close(
        found.states[5].server[0], single(0, (("rate", 0.3), ("pull", 0.1)))[0].server, atol=ROUNDING
    )


def test_a_run_that_diverges_is_nan_from_there_on_and_stops_no_other():
    said, found = [], None
    found = sweep(grid={"rate": [0.1, 1e20]}, seeds=2, evaluate_every=1, log=said.append)
    with pytest.raises(FloatingPointError, match=f"round {found.diverged[1, 0]}: "):
        single(0, (("rate", 1e20),))
    errors = found.scores["valid/error"]
    assert np.isfinite(errors[0]).all() and not found.diverged[0].any()
    for s in range(2):
        at = found.diverged[1, s]
        assert 1 < at <= 4 and np.isfinite(errors[1, s, : at - 1]).all() and np.isnan(errors[1, s, at - 1 :]).all()
        assert f"rate 1e+20, seed {s}: diverged in round {at}" in said


def test_who_takes_part_can_be_a_function_of_key_and_round():
    choose = lambda key, r: {"all": np.sort(np.asarray(jax.random.permutation(jax.random.fold_in(key, r), 8)[:2]))}
    found = sweep(grid={"rate": [0.1, 0.3]}, seeds=2, per_round=None, choose=choose)
    alone = run.train(build(0.3), DATA, rounds=4, choose=choose, seed=1, progress=False, **QUIET)
    chex.assert_trees_all_close(jax.tree.map(lambda x: x[1], found.states[1]), alone, atol=ROUNDING)


def test_settings_with_other_numbers_of_rounds_are_refused():
    plan = lambda long: [Stage("one", build(), 4 if long else 2)]
    with pytest.raises(ValueError, match=r"have \[2, 4\] rounds; give all settings as many"):
        sweep(plan, grid={"long": [False, True]}, rounds=None)


def test_stages_are_entered_by_every_run():
    plan = lambda rate: [Stage("one", build(rate), 2), Stage("two", build(rate, kind="half"), 4)]
    found = sweep(plan, grid={"rate": [0.1, 0.3]}, seeds=2, rounds=None)
    alone = run.train(plan(0.3), DATA, per_round=3, seed=1, progress=False, **QUIET)
    chex.assert_trees_all_close(jax.tree.map(lambda x: x[1], found.states[1]), alone, atol=ROUNDING)
    assert found.rounds == (2, 4, 6)


def test_a_directory_has_a_line_for_every_run_and_is_written_once(tmp_path):
    found = sweep(grid=GRID | {"rate": [0.1, 1e20]}, seeds=2, directory=tmp_path / "a", config={"note": "x"})
    again = read_sweep(tmp_path / "a")
    assert again.states == () and again._replace(scores={}, diverged=0) == found._replace(
        scores={}, diverged=0, states=()
    )
    for name in found.scores:
        np.testing.assert_array_equal(again.scores[name], found.scores[name])
    np.testing.assert_array_equal(again.diverged, found.diverged)
    lines = repr(found).splitlines()
    assert lines[0].startswith("Sweep of 4 settings x 2 seeds") and "  rate: [0.1, 1e+20]" in lines
    assert lines[-1].endswith(f"; {np.count_nonzero(found.diverged)} runs diverged")
    lines = [json.loads(line) for line in (tmp_path / "a/sweep.jsonl").read_text().splitlines()]
    assert len(lines) == 8 and lines[-1]["settings"] == {"rate": 1e20, "pull": 0.2} and lines[-1]["seed"] == 1
    assert None in lines[-1]["scores"]["valid/error"]
    with pytest.raises(ValueError, match="holds a sweep already; give another one, or remove it"):
        sweep(grid=GRID, directory=tmp_path / "a")
    (tmp_path / "a/sweep.jsonl").write_text("".join((tmp_path / "a/sweep.jsonl").read_text().splitlines(True)[:-1]))
    with pytest.raises(ValueError, match=r"sweep\.jsonl is damaged"):
        read_sweep(tmp_path / "a")
    with pytest.raises(FileNotFoundError, match="holds no sweep"):
        read_sweep(tmp_path)


def test_a_sweep_that_fails_leaves_no_directory(tmp_path):
    def scores(state, arrays):
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError):
        sweep(lambda rate: build(rate)._replace(evaluate=scores), grid={"rate": [0.1, 0.2]}, directory=tmp_path / "a")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"grid": {"rate": [0.1, -1.0]}}, "rate is -1.0; give a number of at least 0"),
        ({"grid": {"speed": [0.1]}}, r"grid names the settings \['speed'\], and build does not take these"),
        ({"grid": {"rate": 0.1}}, r"grid\['rate'\] is 0.1; give a list of one or more values"),
        ({"grid": {"rate": []}}, r"grid\['rate'\] is \[\]; give a list"),
        ({"grid": {"rate": [0.1, 0.1]}}, r"grid\['rate'\] is \[0.1, 0.1\]; name each value once"),
        ({"grid": [0.1]}, "grid is .*; give a mapping"),
        ({"build": 3}, "build is 3; give a function from settings to a Method"),
        ({"build": lambda rate: rate}, "build gives 0.1 for .*; it must give a Method or a list of Stage"),
        ({"data": 3}, "data is 3; give a FederatedData"),
        ({"seeds": 0}, "seeds is 0; give a whole number from 1 upwards"),
        ({"seeds": [1, 1]}, r"seeds is \[1, 1\]; name one seed or more, each once"),
        ({"seeds": [-1]}, "a seed of seeds is -1"),
        ({"rounds": 0}, "rounds must be at least 1, got 0"),
        ({"per_round": 9}, "per_round asks for 9 clients"),
        ({"valid": [1]}, "valid is"),
        ({"evaluate_every": 0}, "evaluate_every is 0"),
        ({"chunk": "auto"}, "chunk is 'auto'; give a sweep a number of clients from 1 on, or None"),
        ({"runs_at_once": 0}, "runs_at_once is 0; give a whole number from 1 upwards"),
        ({"runs_at_once": "all"}, "runs_at_once is 'all'"),
        ({"devices": None}, "devices is None; give a sweep a whole number"),
        ({"devices": 99}, "devices is 99"),
        ({"directory": 3}, "directory is 3; give the path of a folder"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),  # without addresses, which differ by worker
)
def test_wrong_inputs_are_refused_in_one_sentence(given, said):
    with pytest.raises(ValueError, match=said) as error:
        sweep(**{"grid": {"rate": [0.1]}, **given})
    assert "\n" not in str(error.value)


def test_data_off_the_device_is_refused():
    data = FederatedData.from_arrays({"x": X}, [[0], *([i] for i in range(1, 8))], on_device=False)
    with pytest.raises(ValueError, match="data is off the device.*on_device=True"):
        sweep(data=data, grid={"rate": [0.1]})


@pytest.mark.parametrize(
    ("seeds", "free", "tried"),
    [
        (1, [500], [(4, 3)]),
        (8, [500], [(32, 1)]),
        (2, [100, 500], [(8, 3), (4, 1)]),
        (2, [None, 30, 500], [(8, 3), (8, 1), (1, 1)]),
    ],
)
def test_an_accelerator_vmaps_runs_and_then_clients_as_the_memory_holds_them(monkeypatch, seeds, free, tried):
    """free: the bytes at each try of a program that needs 400; None: its compiler says that they do not suffice."""
    found, compiled, free = [], sweeps._compiled, iter(free)

    def try_one(how, *given):
        found.append((how.at_once, how.chunk["all"]))
        if (bytes := next(free)) is None:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
        monkeypatch.setattr(sweeps, "free_bytes", lambda: bytes)
        return compiled(how, *given)

    monkeypatch.setattr(sweeps.jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(sweeps, "more_bytes", lambda step: 400.0)
    monkeypatch.setattr(sweeps, "_compiled", try_one)
    swept = sweep(grid=GRID, seeds=seeds)
    assert found == tried
    if seeds < 8:
        assert_runs_are_single_runs(swept, 1e-5)
