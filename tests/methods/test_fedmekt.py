"""FedMEKT: its limits, its aggregate, and whether knowledge does what the paper says."""

import dataclasses
import functools

import chex
import jax
import numpy as np
import pytest
from linear_autoencoder import linear_ae

from fedjax_mm import clients, costs
from fedjax_mm.data.federated import FederatedData
from fedjax_mm.methods.fedmekt import VARIANTS, FedMEKTConfig, Probe, build
from fedjax_mm.models import autoencoder

RNG = np.random.default_rng(0)
AE = linear_ae()
P, T = 7, 5
KEY = jax.random.key(2)
BASE = FedMEKTConfig(batch_size=4, epochs=1, proxy_batch=4, server_epochs=1, probe=Probe(unit="window"))


def windows(rows, seed):
    """Sequences of two modalities with one hidden cause."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, rows).astype(np.int32)
    wave = np.sin(np.linspace(0, 6, T)[None] * (1 + label[:, None]) + rng.normal(0, 0.3, (rows, 1)))[..., None]
    noise = lambda f: 0.1 * rng.normal(size=(rows, T, f))
    a, b = wave * np.array([1, -1, 0.5]) + noise(3), wave * np.array([-1, 0.5]) + noise(2)
    return {"a": a.astype(np.float32), "b": b.astype(np.float32), "label": label}


def problem(shift=0.0):
    train, proxy = windows(18, 0), windows(P, 10)
    train = {k: v + shift if v.dtype == np.float32 else v for k, v in train.items()}
    has = {"A": "a", "B": "b", "AB": "ab"}
    owned = dict(zip(has, (np.split(r, [2]) for r in np.split(np.arange(18), 3)), strict=True))
    arrays = {name: {m: train[m] for m in held} for name, held in has.items()}
    return FederatedData.from_arrays(arrays, owned, public={m: proxy[m] for m in "ab"})


def made(config):
    return build(config, problem(), AE, windows(20, 5), 2)


@functools.cache
def compiled(config):
    return jax.jit(made(config).round)


def one_round(config, shift=0.0, state=None, chosen=None):
    """(method, state before, state after, metrics)."""
    data, method = problem(shift), made(config)
    state = state or method.init(jax.random.key(0))
    taken = data.round(chosen or clients.choose(data.sizes, dict(data.sizes), 0, 0))
    return method, state, *compiled(config)(state, taken, KEY)


def differ(a, b):
    return any((x != y).any() for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def global_z(params):
    public = problem().public
    return {m: np.asarray(AE.encode(params, m, public[m])[0][:, -1]) for m in "ab"}


def test_everyone_starts_from_one_autoencoder():
    method = made(BASE)
    state = jax.jit(method.init)(jax.random.key(0))
    for name, held in (("A", "a"), ("B", "b"), ("AB", "ab")):
        params = state.clients[name]["params"]
        assert set(params) == {part for m in held for part in AE.parts(m)}
        for part, value in params.items():
            for k in range(2):
                chex.assert_trees_all_equal(jax.tree.map(lambda x, k=k: x[k], value), state.server["params"][part])


def test_knowledge_is_the_plain_mean_of_the_owners_embeddings_after_training():
    _, _, new, _ = one_round(BASE)
    public = problem().public
    for m, holders in (("a", ("A", "AB")), ("b", ("B", "AB"))):
        sent = []
        for name in holders:
            for k in range(2):
                params = jax.tree.map(lambda x, k=k: x[k], new.clients[name]["params"])
                sent.append(np.asarray(AE.encode(params, m, public[m])[0][:, -1]))
        np.testing.assert_allclose(new.server["knowledge"][m]["z"], np.mean(sent, 0), atol=1e-5)


def test_a_modality_nobody_sent_keeps_its_knowledge_and_none_teaches_before_it_was_sent():
    only_b = {"A": np.array([2, 2]), "B": np.arange(2), "AB": np.array([2, 2])}
    _, first, new, _ = one_round(BASE, chosen=only_b)
    assert float(new.server["known"]["a"]) == 0 and float(new.server["known"]["b"]) == 1
    np.testing.assert_array_equal(new.server["knowledge"]["a"]["z"], 0)
    heavy = dataclasses.replace(BASE, eta=100.0)
    deaf = dataclasses.replace(BASE, eta=0.0)
    of = lambda config: one_round(config, chosen=only_b)[2].server["params"]
    assert differ(of(heavy)["encoder_b"], of(deaf)["encoder_b"])
    _, _, later, _ = one_round(BASE)
    _, _, after, _ = one_round(BASE, state=later, chosen=only_b)
    chex.assert_trees_all_equal(after.server["knowledge"]["a"], later.server["knowledge"]["a"])
    assert (after.server["knowledge"]["b"]["z"] != later.server["knowledge"]["b"]["z"]).any()


def test_with_no_server_weight_no_client_is_heard():
    config = dataclasses.replace(BASE, eta=0.0, gamma=0.0)
    alone, other = one_round(config)[2], one_round(config, shift=1.0)[2]
    chex.assert_trees_all_equal(alone.server["params"], other.server["params"])
    heard, other = one_round(BASE)[2], one_round(BASE, shift=1.0)[2]
    assert differ(heard.server["params"], other.server["params"])


def test_with_no_client_weight_clients_do_not_listen():
    silent = dataclasses.replace(BASE, alpha=0.0)
    start = made(BASE).init(jax.random.key(0))
    moved = dataclasses.replace(start, server={**start.server, "params": AE.init(jax.random.key(7))})
    ends = lambda config: [one_round(config, state=s)[2].clients for s in (start, moved)]
    chex.assert_trees_all_equal(*ends(silent))
    assert differ(*ends(BASE))


def test_heavy_distillation_pulls_the_students_to_their_teachers():
    """Clients to the server's embeddings, the server to the clients'; with a weight of 0 neither comes as near."""
    start = made(BASE).init(jax.random.key(0))
    other = dataclasses.replace(start, server={**start.server, "params": AE.init(jax.random.key(7))})
    centred = lambda z: z - z.mean(-1, keepdims=True)
    far = {}
    for weight in (0.0, 300.0):
        config = dataclasses.replace(BASE, alpha=weight, epochs=40, client_lr=0.02, eta=weight, server_epochs=0)
        _, _, new, _ = one_round(config, state=other)
        teacher = global_z(other.server["params"])
        far[weight] = np.mean(
            [np.abs(centred(new.server["knowledge"][m]["z"]) - centred(teacher[m])).mean() for m in "ab"]
        )
    assert far[300.0] < 0.3 * far[0.0]


def test_server_learns_to_reconstruct_and_moves_to_the_knowledge():
    far = {}
    for weight in (0.0, 300.0):
        config = dataclasses.replace(
            BASE, eta=weight, server_epochs=60, server_lr=0.02, alpha=0.0, epochs=20, client_lr=0.02
        )
        _, _, new, metrics = one_round(config, shift=1.0)
        centred = lambda z: z - z.mean(-1, keepdims=True)
        z = global_z(new.server["params"])
        far[weight] = np.mean(
            [np.abs(centred(np.asarray(new.server["knowledge"][m]["z"])) - centred(z[m])).mean() for m in "ab"]
        )
        assert set(metrics["server"]) == {"loss", "reconstruction", "distillation"}
    assert far[300.0] < 0.3 * far[0.0]


@pytest.mark.parametrize("knowledge, floats", [("last", 2), ("seq", T * 2), ("seq+hidden", T * (2 + 4))])
def test_what_travels_is_what_the_setting_says(knowledge, floats):
    data = problem()
    method = made(dataclasses.replace(BASE, knowledge=knowledge))
    cost = costs.of(method, data.round(clients.choose(data.sizes, dict(data.sizes), 0, 0)))
    for name, modalities in (("A", 1), ("B", 1), ("AB", 2)):
        assert cost[name].bytes_up == cost[name].bytes_down == 4 * P * floats * modalities


def test_labels_never_enter_a_round():
    """The same rounds, bit for bit, whatever the labelled set is."""
    data, states = problem(), []
    for labelled in (windows(20, 5), windows(30, 6)):
        method = build(BASE, data, AE, labelled, 2)
        taken = data.round(clients.choose(data.sizes, dict(data.sizes), 0, 0))
        states.append(jax.jit(method.round)(method.init(jax.random.key(0)), taken, KEY)[0])
    chex.assert_trees_all_equal(*states)


@pytest.mark.parametrize(
    "config",
    [
        dataclasses.replace(VARIANTS["released"], batch_size=4, proxy_batch=4, probe=Probe(unit="window")),
        dataclasses.replace(BASE, variant="S", knowledge="seq+hidden"),
        dataclasses.replace(BASE, objective="dcc"),
    ],
    ids=["released", "S", "dcc"],
)
def test_other_settings_train_and_evaluate(config):
    method, state, new, metrics = one_round(config)
    assert all(float(metrics[name]["left_out"]) == 0 for name in ("A", "B", "AB"))
    for part, value in new.server["params"].items():
        assert any(
            (x != y).any() for x, y in zip(*map(jax.tree.leaves, (value, state.server["params"][part])), strict=True)
        )
    chex.assert_trees_all_equal(new.server["projection"], state.server["projection"])
    assert method.evaluate(new, windows(30, 9))["a+b/accuracy"] > 0


def test_released_knowledge_is_the_last_owners():
    config = dataclasses.replace(BASE, aggregate="last")
    _, _, new, _ = one_round(config)
    last = jax.tree.map(lambda x: x[1], new.clients["AB"]["params"])  # cohorts in order, AB after A and B
    np.testing.assert_allclose(new.server["knowledge"]["a"]["z"], global_z(last)["a"], atol=1e-5)


def test_reconstruction_falls_and_the_embedding_tells_the_classes():
    """The one test with LSTMs, and so with one cohort."""
    train, proxy = windows(18, 0), windows(P, 10)
    data = FederatedData.from_arrays(
        {m: train[m] for m in "ab"}, np.split(np.arange(18), 3), public={m: proxy[m] for m in "ab"}
    )
    config = dataclasses.replace(BASE, client_lr=0.02, server_lr=0.02, epochs=2, server_epochs=4)
    ae = autoencoder.split_lstm({"a": 3, "b": 2}, hidden=8, width=3)
    method = build(config, data, ae, windows(20, 5), 2)
    state, step, rows = method.init(jax.random.key(0)), jax.jit(method.round), []
    for r in range(40):
        state, metrics = step(state, data.round(clients.choose(data.sizes, 1, r, 0)), KEY)
        rows.append({k: float(v["reconstruction"]) for k, v in metrics.items()})
    assert all(rows[-1][k] < 0.8 * rows[0][k] for k in ("all", "server"))
    assert method.evaluate(state, windows(60, 9))["a+b/accuracy"] > 0.8


@pytest.mark.parametrize(
    ("config", "drop", "message"),
    [
        (dataclasses.replace(BASE, kd_axis="time"), (), "compares whole sequences"),
        (dataclasses.replace(BASE, objective="dcc", variant="S"), (), 'use variant "C"'),
        (BASE, ("b",), r"public arrays have no \['b'\]"),
    ],
)
def test_bad_settings_are_errors_that_name_the_cure(config, drop, message):
    data = problem()
    data = dataclasses.replace(data, public={m: x for m, x in data.public.items() if m not in drop})
    with pytest.raises(ValueError, match=message):
        build(config, data, AE, windows(20, 5), 2)
