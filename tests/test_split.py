"""What clients own and what all share, split over devices: the same bits, and nothing on a device that it needs not."""

import dataclasses
import functools
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

sys.path.insert(0, str(Path(__file__).parent / "methods"))
from tiny_joint_space import CLIENTS, NUM_CLASSES, SERVER, problem

from fedjax_mm import clients, local, run, split
from fedjax_mm.methods import creamfl
from fedjax_mm.methods.creamfl import CreamFLConfig, joint_space
from fedjax_mm.methods.creamfl.training import Training
from fedjax_mm.run import over_devices, placement, spread
from fedjax_mm.split_rows import entered
from fedjax_mm.stages import Stage
from fedjax_mm.types import OverClients

RNG = np.random.default_rng(0)
TRAINING = Training(client_lr=0.02, both_lr=0.01, server_lr=0.03, batch_size=3, epochs=2, server_batch=5, block=5)
EVERYONE, SOME = {"image": 3, "text": 2, "both": 2}, {"image": 2, "text": 1, "both": 2}


@functools.cache
def mesh(devices=4):
    return clients.make_mesh(devices)


def made(phases="joint"):
    config = CreamFLConfig(TRAINING, phases=phases, public_batch=4)
    return creamfl.build(config, problem(), SERVER, CLIENTS, NUM_CLASSES)


def trained(phases="joint", per_round=EVERYONE, off_device=False, **settings):
    data = problem()
    data = dataclasses.replace(data, on_device=not off_device)
    given = {"rounds": 2, "per_round": per_round, "log": lambda line: None, **settings}
    return jax.device_get(run.train(made(phases), data, **given))


def test_rows_of_split_states_are_exchanged_bit_for_bit():
    states = {"x": RNG.normal(size=(8, 3)).astype(np.float32), "on": RNG.random((8, 2)) > 0.5}
    states["half"] = states["x"].astype(jnp.bfloat16)
    states["x"][3] = -0.0
    place = np.array([3, 7, 1, split.NOWHERE, 0, 2, split.NOWHERE, 6])
    there = spread.put(states, mesh())
    some = jax.jit(lambda s: split.take_rows(s, place, mesh()))(there)
    real = place < 8
    bits = lambda tree: jax.tree.map(lambda x: np.asarray(x)[real].view(np.uint8), tree)
    chex.assert_trees_all_equal(bits(some), bits(jax.tree.map(lambda x: x[place.clip(0, 7)], states)))
    new = jax.tree.map(lambda x: x[::-1].copy(), states)
    back = jax.jit(lambda s, n: split.put_rows(s, place, n, mesh()))(there, spread.put(new, mesh()))
    for name, x in states.items():
        x = x.copy()
        x[place[real]] = new[name][real]
        chex.assert_trees_all_equal(np.asarray(back[name]), x)


@pytest.mark.parametrize("total", [8, 7])
def test_rows_of_a_split_array_are_those_of_the_whole(total):
    whole = {"x": RNG.integers(0, 256, (total, 3, 2), np.uint8), "y": np.arange(total, dtype=np.int32)}
    halves = {name: spread.split_rows(x, mesh()) for name, x in whole.items()}
    rows = RNG.integers(-1, total + 2, (4, 5)).astype(np.int32)  # each device asks for its own
    outside = jax.jit(local.take)(halves, rows[0])
    chex.assert_trees_all_equal(outside, local.take(whole, rows[0].clip(0)))

    def one(arrays, rows):
        return 0.0, local.take(entered(arrays), rows)

    spec = jax.tree.map(lambda x: split.SPLIT, whole)
    found = jax.jit(lambda a, r: clients.on_every_device(one, a, spec, r, 1, mesh())[1])(halves, rows)
    chex.assert_trees_all_equal(found, jax.vmap(local.take, (None, 0))(whole, rows.clip(0)))


@pytest.mark.parametrize(
    "phases, per_round, how",
    [
        ("joint", EVERYONE, {"devices": 4}),
        ("joint", SOME, {"devices": 2, "chunk": 2, "off_device": True}),
        ("alternate", 4, {"devices": 4, "off_device": True, "client_state": "host"}),
    ],
)
def test_a_run_is_the_same_however_it_is_split(phases, per_round, how):
    """Clients without examples, padding clients and clients of unequal length ask for public rows in step."""
    found, expected = trained(phases, per_round, split_public=True, **how), trained(phases, per_round)
    chex.assert_trees_all_close(found, expected, atol=2e-5, rtol=1e-4)


def program(per_round, on_device=True):
    """(the round as devices get it, its state, its data)."""
    method, data = made(), dataclasses.replace(problem(), on_device=on_device)
    states = over_devices.client_states("device", mesh(), [Stage("", method, 1)], data)
    on_mesh = placement.on_mesh(data, mesh(), split_public=True)
    taken = states.placed(on_mesh.round(clients.choose(data.sizes, per_round, 0, 0)))
    state = states.load(states.first(method, jax.random.key(0)), taken)
    return method._replace(over=OverClients(1, mesh())), state, taken


def collectives(per_round):
    """The operations that move the rows of states: those outside of loops, and none that sums."""
    method, state, taken = program(per_round)
    keep = lambda server, uploads, public, key: (server, {})
    alone = method._replace(server=method.server._replace(begin=None, update=keep))
    text = jax.jit(alone.round).lower(state, taken, jax.random.key(0)).compile().as_text()
    entry = text[text.index("ENTRY") :]
    return sum(entry.count(f" {name}(") for name in ("all-gather", "all-to-all"))


def test_no_state_moves_where_everyone_takes_part():
    assert collectives(EVERYONE) == 0
    assert collectives(SOME) > 0


@pytest.mark.parametrize("chunk", [1, 2])
def test_new_states_take_the_place_of_the_old_ones(chunk):
    each, shape = 4, jax.ShapeDtypeStruct((4 * 4, 2**16), np.float32, sharding=NamedSharding(mesh(), split.SPLIT))
    one = lambda shared, client: (client[0], (client[0], client[1] + client[0]))
    run = lambda states: clients.on_every_device(one, (), split.WHOLE, jnp.arange(16.0), chunk, mesh(), states)
    compiled = jax.jit(run, donate_argnums=0).lower(shape).compile()
    rows = compiled.memory_analysis().temp_size_in_bytes / (4 * 2**16)
    assert rows < each
    total, numbers, states = compiled(jax.device_put(np.ones(shape.shape, np.float32), shape.sharding))
    assert float(total) == sum(range(16)) and numbers.tolist() == list(range(16))
    np.testing.assert_array_equal(states, np.ones(shape.shape) + np.arange(16)[:, None])


def test_each_device_holds_its_own_part_alone():
    _, state, taken = program(SOME, on_device=False)
    held = lambda tree: {(x.shape[0], x.sharding.shard_shape(x.shape)[0]) for x in jax.tree.leaves(tree)}
    assert held(state.clients) == {(4, 1)} and held(taken.public) == {(12, 3)}
    for cohort in taken.cohorts.values():
        each = cohort.rows.shape[1]
        assert cohort.split == "all" and held(cohort.arrays) == {(4 * each, each)}
        assert int(jnp.max(cohort.rows)) < each


def test_long_clients_are_spread_over_the_devices():
    assert spread.by_device(np.arange(5), 2).tolist() == [0, 2, 4, 1, 3, -1]


def test_public_examples_stay_whole_for_a_method_that_may_read_them_otherwise():
    plain = made()._replace(public_by_rows=False)
    with pytest.raises(ValueError, match="split_public is True, but the method may read public examples otherwise"):
        run.train(plain, problem(), rounds=1, per_round=2, split_public=True)


def test_batches_encoded_a_few_at_a_time_give_the_same_gradient():
    x, model = RNG.normal(size=(5, 3)).astype(np.float32), SERVER["image"]
    params = model.init(jax.random.key(0), x)
    value = lambda params, at_once: (joint_space.encode(model, params, x, at_once) ** 3).sum()
    few, whole = (jax.value_and_grad(value)(params, at_once) for at_once in (2, None))
    chex.assert_trees_all_close(few, whole, rtol=1e-5)
