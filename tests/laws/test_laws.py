"""The laws of a round, over every registered method. Each was seen to fail once, with the engine broken on purpose."""

import dataclasses
import functools
import zlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_methods import SIZES, TINY

from fedjax_mm import clients, costs, run, trees
from fedjax_mm.methods import MODULES
from fedjax_mm.run import records
from fedjax_mm.types import ClientData, Each, Mean, OverClients

PER_ROUND = {"A": 4, "B": 3, "AB": 4}
KEY = jax.random.key(1)
every_method = pytest.mark.parametrize(  # one method's laws on one worker, which compiles its round once
    "name", [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in TINY]
)
close = functools.partial(chex.assert_trees_all_close, atol=1e-5, rtol=1e-5)


@functools.cache
def tiny(name):
    """(method, data, compiled round, first state); one compilation for all laws."""
    method, data = TINY[name]()
    return method, data, jax.jit(method.round), jax.jit(method.init)(jax.random.key(0))


def per_round(data):
    return {cohort: PER_ROUND[cohort] for cohort in data.sizes}


def round_data(data, r=0):
    return data.round(clients.choose(data.sizes, per_round(data), r, seed=0))


def test_every_registered_method_has_its_laws_tested():
    assert set(MODULES) <= set(TINY)


@every_method
def test_mapped_round_equals_a_python_loop_over_clients(name):
    method, data, round, state = tiny(name)
    taken = round_data(data)
    key = jax.random.fold_in(jax.random.fold_in(KEY, 1), 0)
    downloads = method.server.download(state.server, taken.public)
    uploads, states = {}, {k: jax.tree.map(np.array, v) for k, v in state.clients.items()}
    for cohort_name, cohort in method.cohorts.items():
        update, got = jax.jit(cohort.update), []
        part = taken.cohorts[cohort_name]
        for i, j in enumerate(part.index):
            if part.count[i] == 0:
                continue

            client_key = jax.random.fold_in(jax.random.fold_in(key, zlib.crc32(cohort_name.encode())), j)
            seen = ClientData(part.arrays, part.rows[i], part.count[i], part.weight[i], taken.public)
            mine = jax.tree.map(lambda x, j=j: x[j], state.clients[cohort_name])
            sent, new, _ = update(downloads[cohort_name], mine, seen, jax.random.fold_in(client_key, 0))
            got.append(sent)
            jax.tree.map(lambda all, x, j=j: all.__setitem__(j, x), states[cohort_name], new)
        uploads[cohort_name] = {slot: _reduced([g[slot] for g in got]) for slot in got[0]}
    server, _ = method.server.update(state.server, uploads, taken.public, jax.random.fold_in(key, 0))
    new, _ = round(state, taken, KEY)
    close(new.server, server)
    close(new.clients, states)


def _reduced(slots):
    weight = np.array([s.weight for s in slots], np.float32)
    values = jax.tree.map(lambda *x: np.stack(x), *[s.value for s in slots])
    if isinstance(slots[0], Each):
        return Each(values, weight)
    return Mean(jax.tree.map(lambda x: np.tensordot(weight / weight.sum(), x, 1), values), weight.sum())


@every_method
def test_chunks_and_devices_agree(name):
    method, data, round, state = tiny(name)
    expected = round(state, round_data(data), KEY)
    for chunk, devices in ((3, None), (2, 4)):  # 4 and 3 clients of a cohort: both pad
        mesh = clients.make_mesh(devices) if devices else None
        close(jax.jit(method._replace(over=OverClients(chunk, mesh)).round)(state, round_data(data), KEY), expected)


@every_method
def test_order_of_participants_does_not_matter(name):
    _, data, round, state = tiny(name)
    taken = round_data(data)
    back = {
        k: dataclasses.replace(c, index=c.index[::-1], weight=c.weight[::-1], rows=c.rows[::-1], count=c.count[::-1])
        for k, c in taken.cohorts.items()
    }
    close(round(state, taken._replace(cohorts=back), KEY)[0], round(state, taken, KEY)[0])


@every_method
def test_who_does_not_take_part_does_not_change(name):
    _, data, round, state = tiny(name)
    taken = round_data(data)
    new = round(state, taken, KEY)[0]
    for cohort, n in data.sizes.items():
        part = taken.cohorts[cohort]
        idle = np.setdiff1d(np.arange(n), part.index[part.count > 0])
        assert len(idle)
        of_idle = lambda s, cohort=cohort, idle=idle: jax.tree.map(lambda x: x[idle], s.clients[cohort])
        chex.assert_trees_all_equal(of_idle(new), of_idle(state))


@every_method
def test_padding_clients_change_nothing_even_if_their_rows_are_nan(name):
    _, data, round, state = tiny(name)
    taken = round_data(data)
    padded = {}
    for cohort, c in taken.cohorts.items():
        arrays = {k: _with_nan_row(v) for k, v in c.arrays.items()}
        nan = len(c.arrays["label"])
        more = lambda x, value: np.concatenate([x, np.full((2, *x.shape[1:]), value, x.dtype)])
        padded[cohort] = dataclasses.replace(
            c,
            index=more(c.index, SIZES[cohort]),
            weight=more(c.weight, 0),
            rows=more(c.rows, nan),
            count=more(c.count, 3),
            arrays=arrays,
        )
    new, metrics = round(state, taken._replace(cohorts=padded), KEY)
    expected, expected_metrics = round(state, taken, KEY)
    close((new, metrics), (expected, expected_metrics))


def _with_nan_row(x):
    return jnp.concatenate([x, jnp.full((1, *x.shape[1:]), jnp.nan if x.dtype == jnp.float32 else 0, x.dtype)])


@every_method
def test_cohort_in_which_nobody_takes_part_leaves_its_parts_untouched(name):
    method, data, round, state = tiny(name)
    state = round(state, round_data(data), KEY)[0]  # so that server optimisers have moments that could move a part
    chosen = clients.choose(data.sizes, per_round(data), 0, seed=0)
    chosen = {k: i if k == "B" else np.full_like(i, SIZES[k]) for k, i in chosen.items()}
    new = round(state, data.round(chosen), KEY)[0]
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(new))
    moved = _leaf_moves(state.server, new.server)
    touched = lambda part: any(change for path, change in moved.items() if f"'{part}'" in path)
    assert touched("upper_b" if name == "staged" else "b") == ("B" in data.sizes)
    assert not touched("a") and not touched("upper")
    nobody = data.round({k: np.full_like(i, SIZES[k]) for k, i in chosen.items()})
    chex.assert_trees_all_equal(round(state, nobody, KEY)[0].server, state.server)
    chex.assert_trees_all_equal(round(state, nobody, KEY)[0].clients, state.clients)


def _leaf_moves(old, new):
    paths = jax.tree_util.tree_flatten_with_path(old)[0]
    return {
        jax.tree_util.keystr(path): bool(np.any(np.asarray(x) != np.asarray(y)))
        for (path, x), y in zip(paths, jax.tree.leaves(new), strict=True)
    }


@every_method
def test_one_trace_for_all_rounds(name):
    method, data, _, state = tiny(name)
    traces = []
    counted = jax.jit(lambda *args: (traces.append(1), method.round(*args))[1])
    for r in range(3):
        state, _ = counted(state, round_data(data, r), KEY)
    assert len(traces) == 1 and int(state.round) == 3


@every_method
def test_run_in_two_parts_equals_the_uninterrupted_run_bit_for_bit(name, tmp_path):
    method, data, _, _ = tiny(name)
    settings = dict(per_round=per_round(data), seed=3, checkpoint_every=1, log=lambda line: None)
    whole = run.train(method, data, rounds=4, directory=tmp_path / "whole", **settings)
    run.train(method, data, rounds=2, directory=tmp_path / "parts", **settings)
    parts = run.train(method, data, rounds=4, directory=tmp_path / "parts", **settings)
    chex.assert_trees_all_equal(parts, whole)
    rows = lambda d: [{k: v for k, v in row.items() if k != "seconds"} for row in records.read_metrics(tmp_path / d)]
    assert rows("parts") == rows("whole") and len(rows("parts")) == 4


def test_frozen_leaves_are_bit_identical_and_do_not_travel():
    method, data, round, state = tiny("staged")
    new = state
    for r in range(3):
        new, _ = round(new, round_data(data, r), KEY)
    chex.assert_trees_all_equal(new.server["lower"], state.server["lower"])
    assert _leaf_moves(state.server, new.server)["['upper']"]
    cost = costs.of(method, round_data(data))["A"]
    assert cost.bytes_up == 4 * 15 and cost.bytes_down == 4 * 15 and cost.bytes_held == 4 * (20 + 15)


@every_method
def test_bytes_reported_are_the_bytes_of_the_trees_that_travel(name):
    method, data, _, state = tiny(name)
    taken = round_data(data)
    reported = costs.of(method, taken)
    downloads = method.server.download(state.server, taken.public)
    for cohort_name, cohort in method.cohorts.items():
        c = taken.cohorts[cohort_name]
        seen = ClientData(c.arrays, c.rows[0], c.count[0], c.weight[0], taken.public)
        mine = jax.tree.map(lambda x: x[0], state.clients[cohort_name])
        upload, _, _ = jax.jit(cohort.update)(downloads[cohort_name], mine, seen, KEY)
        nbytes = lambda tree: sum(np.asarray(x).nbytes for x in jax.tree.leaves(tree))
        assert reported[cohort_name].bytes_up == sum(nbytes(slot.value) for slot in upload.values())
        assert reported[cohort_name].bytes_down == nbytes(downloads[cohort_name].sent)
        assert reported[cohort_name].flops > 0 and reported[cohort_name].peak_bytes > 0


@every_method
def test_client_whose_update_is_not_finite_is_left_out_and_counted(name):
    _, data, round, state = tiny(name)
    taken = round_data(data)
    c = taken.cohorts["AB"]
    poisoned = {**c.arrays, "a": c.arrays["a"].at[c.rows[1, 0]].set(jnp.inf)}
    bad = {**taken.cohorts, "AB": dataclasses.replace(c, arrays=poisoned)}
    without = {**taken.cohorts, "AB": dataclasses.replace(c, weight=np.where(np.arange(4) == 1, 0, c.weight))}
    new, metrics = round(state, taken._replace(cohorts=bad), KEY)
    expected, _ = round(state, taken._replace(cohorts=without), KEY)
    assert float(metrics["AB"]["left_out"]) == 1 and float(metrics["AB"]["clients"]) == 3
    close(new, expected)
    assert trees.all_finite((new.server, new.clients, metrics))


@every_method
def test_scan_over_rounds_equals_a_loop(name):
    method, data, round, state = tiny(name)
    rounds = [round_data(data, r) for r in range(3)]
    stack = lambda *parts: np.stack(parts)
    fields = ("index", "weight", "rows", "count")
    who = {k: {f: stack(*[getattr(r.cohorts[k], f) for r in rounds]) for f in fields} for k in data.sizes}

    def one(state, who):
        cohorts = {k: dataclasses.replace(rounds[0].cohorts[k], **who[k]) for k in data.sizes}
        return method.round(state, rounds[0]._replace(cohorts=cohorts), KEY)

    scanned, _ = jax.jit(lambda s: jax.lax.scan(one, s, who))(state)
    looped = state
    for r in rounds:
        looped, _ = round(looped, r, KEY)
    close(scanned, looped)


@every_method
def test_vmap_over_seeds_equals_one_seed_at_a_time(name):
    method, data, round, _ = tiny(name)
    keys = jax.random.split(jax.random.key(5), 2)
    states = jax.jit(jax.vmap(method.init))(keys)
    many, _ = jax.jit(jax.vmap(method.round, (0, None, 0)))(states, round_data(data), keys)
    for i in range(2):
        alone, _ = round(jax.jit(method.init)(keys[i]), round_data(data), keys[i])
        close(jax.tree.map(lambda x, i=i: x[i], many), alone)


@every_method
def test_a_draw_does_not_depend_on_who_else_takes_part(name):
    _, data, round, state = tiny(name)
    taken = round_data(data)
    c = taken.cohorts["AB"]
    alone = dataclasses.replace(c, weight=np.where(np.arange(4) == 2, c.weight, 0))
    others = {k: dataclasses.replace(v, weight=np.zeros_like(v.weight)) for k, v in taken.cohorts.items()}
    lone, _ = round(state, taken._replace(cohorts={**others, "AB": alone}), KEY)
    together, _ = round(state, taken, KEY)
    pick = lambda s: jax.tree.map(lambda x: x[c.index[2]], s.clients["AB"])
    close(pick(lone), pick(together))
