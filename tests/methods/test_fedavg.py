"""FedAvg against centralised SGD in NumPy and against its own limits."""

import dataclasses
import functools
import zlib

import chex
import jax
import numpy as np
import optax
import pytest

from fedjax_mm import clients, run
from fedjax_mm.data.federated import FederatedData
from fedjax_mm.federate import federate
from fedjax_mm.methods import fedavg
from fedjax_mm.methods.fedavg import FedAvgConfig, build
from fedjax_mm.models import Model, heads, mlp
from fedjax_mm.transforms import on_change
from fedjax_mm.types import ClientData, Mean

RNG = np.random.default_rng(0)
LABEL = RNG.integers(0, 3, 90).astype(np.int32)
A = (RNG.normal(size=(90, 4)) + 2 * np.eye(4)[LABEL]).astype(np.float32)
B = (RNG.normal(size=(90, 5)) - 2 * np.eye(5)[LABEL]).astype(np.float32)
ENCODERS = {"a": mlp.encoder((8,), 6), "b": mlp.encoder((), 6)}
KEY = jax.random.key(2)
IDENTITY = Model(lambda key, x: {}, lambda params, x: x)


def two_modalities(parts=3):
    rows = np.array_split(np.random.default_rng(1).permutation(90), 3 * parts)
    arrays = {"A": {"a": A, "label": LABEL}, "B": {"b": B, "label": LABEL}, "AB": {"a": A, "b": B, "label": LABEL}}
    owned = {name: rows[i * parts : (i + 1) * parts] for i, name in enumerate(arrays)}
    return FederatedData.from_arrays(arrays, owned, num_classes=3)


def both_modalities(clients=3):
    """One cohort whose clients own both: a round of it compiles in a third of the time that three take."""
    arrays = {"AB": {"a": A, "b": B, "label": LABEL}}
    return FederatedData.from_arrays(arrays, {"AB": np.split(np.arange(30), clients)}, num_classes=3)


def one_round(config, data, encoders=ENCODERS, state=None, **settings):
    method = build(config, data, encoders, heads.linear(3), **settings)
    state = state or jax.jit(method.init)(jax.random.key(0))
    everyone = data.round(clients.choose(data.sizes, dict(data.sizes), 0, 0))
    return state, *jax.jit(method.round)(state, everyone, KEY)


def test_one_client_alone_is_plain_centralised_gradient_descent():
    data = FederatedData.from_arrays({"a": A, "label": LABEL}, [np.arange(90)])
    config = FedAvgConfig(client_lr=0.1, batch_size=90, epochs=4)
    state, new, _ = one_round(config, data, {"a": IDENTITY})
    dense = state.server["params"]["head"]["Dense_0"]
    w, b = np.array(dense["kernel"], np.float64), np.array(dense["bias"], np.float64)
    for _ in range(4):
        scores = A @ w + b
        p = np.exp(scores - scores.max(1, keepdims=True))
        p = (p / p.sum(1, keepdims=True) - np.eye(3)[LABEL]) / 90
        w, b = w - 0.1 * A.T @ p, b - 0.1 * p.sum(0)
    chex.assert_trees_all_close(new.server["params"]["head"]["Dense_0"], {"kernel": w, "bias": b}, atol=1e-5)


def test_full_batch_clients_of_equal_rate_average_to_the_weighted_gradient():
    """With one full-batch step each, FedAvg is one step on the union of all examples."""
    config = FedAvgConfig(client_lr=0.1, batch_size=90)
    parts = np.split(np.arange(90), [10, 35])
    _, split, _ = one_round(config, FederatedData.from_arrays({"a": A, "label": LABEL}, parts), {"a": IDENTITY})
    whole_data = FederatedData.from_arrays({"a": A, "label": LABEL}, [np.arange(90)])
    _, whole, _ = one_round(config, whole_data, {"a": IDENTITY})
    chex.assert_trees_all_close(split.server["params"], whole.server["params"], atol=1e-6)


def test_each_part_is_averaged_over_the_clients_that_have_it():
    data = two_modalities()
    config = FedAvgConfig(batch_size=10, multimodal_weight=3.0)
    state, new, _ = one_round(config, data)
    method = build(config, data, ENCODERS, heads.linear(3))
    everyone = data.round(clients.choose(data.sizes, dict(data.sizes), 0, 0))
    uploads = _uploads_one_by_one(method, state, everyone)
    for part, holders in (("a", ("A", "AB")), ("b", ("B", "AB")), ("head", ("A", "B", "AB"))):
        sent = [(u[part], 3.0 if name == "AB" else 1.0) for name in holders for u in uploads[name]]
        weight = np.array([float(u.weight) for u, _ in sent])
        assert weight.tolist() == [10.0 * boost for _, boost in sent]
        mean = jax.tree.map(lambda *x, w=weight: np.tensordot(w / w.sum(), np.stack(x), 1), *[u.value for u, _ in sent])
        chex.assert_trees_all_close(new.server["params"][part], mean, atol=1e-5)


def _update_key(cohort, number):
    """The key of a client's update in round 0."""
    key = jax.random.fold_in(jax.random.fold_in(KEY, 1), 0)
    return jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(key, zlib.crc32(cohort.encode())), number), 0)


def _uploads_one_by_one(method, state, taken):
    downloads, uploads = method.server.download(state.server, None), {}
    for name, cohort in method.cohorts.items():
        c, update = taken.cohorts[name], jax.jit(cohort.update)
        uploads[name] = []
        for i, j in enumerate(c.index):
            seen = ClientData(c.arrays, c.rows[i], c.count[i], c.weight[i], None, c.uniform)
            uploads[name].append(update(downloads[name], {}, seen, _update_key(name, j))[0])
    return uploads


def test_prox_of_zero_is_fedavg_and_a_large_one_holds_clients_back():
    data = both_modalities()
    moved = {}
    for mu in (0.0, 5.0):
        state, new, _ = one_round(FedAvgConfig(batch_size=10, epochs=3, prox=mu), data)
        moved[mu] = optax.tree.norm(optax.tree.sub(new.server["params"], state.server["params"]))
    assert 0 < float(moved[5.0]) < 0.7 * float(moved[0.0]) and FedAvgConfig(prox=0.0) == FedAvgConfig()


def test_server_optimisers_see_old_minus_mean_as_the_gradient():
    data = both_modalities()
    state, avg, _ = one_round(FedAvgConfig(batch_size=10), data)
    change = jax.tree.map(
        lambda old, mean: np.asarray(old) - np.asarray(mean), state.server["params"], avg.server["params"]
    )
    for name, tx in (("momentum", optax.sgd(0.5, momentum=0.9)), ("adam", optax.adam(0.5, b1=0.9, b2=0.99, eps=1e-3))):
        first_step = jax.jit(
            lambda params, tx=tx: optax.apply_updates(params, tx.update(change, tx.init(params), params)[0])
        )
        _, new, _ = one_round(FedAvgConfig(batch_size=10, server_optimizer=name, server_lr=0.5), data)
        _, given, _ = one_round(FedAvgConfig(batch_size=10), data, server_optimizer=tx)
        expected = first_step(state.server["params"])
        chex.assert_trees_all_close(new.server["params"], expected, atol=1e-5)
        chex.assert_trees_all_close(given.server["params"], expected, atol=1e-5)


def test_a_clipped_change_moves_the_server_no_further_than_the_clip():
    data = both_modalities()
    method = build(FedAvgConfig(batch_size=10, epochs=5), data, ENCODERS, heads.linear(3))
    everyone = data.round(clients.choose(data.sizes, dict(data.sizes), 0, 0))
    state = jax.jit(method.init)(jax.random.key(0))
    moved = {}

    @jax.jit
    def clipped(clip, state):
        transform = on_change(optax.clip_by_global_norm(clip))
        return federate(method.server, method.cohorts, upload=transform).round(state, everyone, KEY)

    for clip in (1e-2, 1e6):
        new, _ = clipped(clip, state)
        moved[clip] = float(optax.tree.norm(optax.tree.sub(new.server["params"], state.server["params"])))
    assert moved[1e-2] < 0.02 < moved[1e6]
    free, _ = jax.jit(method.round)(state, everyone, KEY)
    chex.assert_trees_all_close(new.server["params"], free.server["params"], atol=1e-6)


def test_local_only_training_sends_nothing_and_clients_differ():
    data = two_modalities()
    config = FedAvgConfig(batch_size=10, shared=())
    method = build(config, data, ENCODERS, heads.linear(3))
    everyone = data.round(clients.choose(data.sizes, dict(data.sizes), 0, 0))
    state = jax.jit(method.init)(jax.random.key(0))
    one, _ = jax.jit(method.round)(state, everyone, KEY)
    for name in data.sizes:
        kernels = one.clients[name]["head"]["Dense_0"]["kernel"]
        assert len({np.asarray(k).tobytes() for k in kernels}) == data.sizes[name]
        assert (np.asarray(kernels) != np.asarray(state.clients[name]["head"]["Dense_0"]["kernel"])).any((1, 2)).all()
    scores = method.evaluate(one, {"a": A, "b": B, "label": LABEL})
    assert set(scores) == {f"{m}/{k}" for m in ("a", "b", "a+b") for k in ("accuracy", "macro_f1", "weighted_f1")}


def test_an_example_that_lacks_a_modality_is_seen_through_the_other():
    lacking = {"a": np.full_like(A, 1e6), "b": B, "has_a": np.zeros(90, bool), "label": LABEL}
    arrays = {"AB": lacking}
    clients_of = {"AB": [np.arange(45), np.arange(45, 90)]}
    multimodal = FederatedData.from_arrays(arrays, clients_of)
    method = build(FedAvgConfig(batch_size=45), multimodal, ENCODERS, heads.linear(3))
    state = jax.jit(method.init)(jax.random.key(0))
    new, metrics = jax.jit(method.round)(state, multimodal.round({"AB": np.arange(2)}), KEY)
    assert float(metrics["AB"]["left_out"]) == 0
    chex.assert_trees_all_close(new.server["params"]["a"], state.server["params"]["a"], atol=1e-6)
    moved = optax.tree.norm(optax.tree.sub(new.server["params"]["b"], state.server["params"]["b"]))
    assert float(moved) > 0


def test_learns_and_beats_its_start_on_every_modality():
    data = two_modalities()
    method = build(FedAvgConfig(client_lr=0.2, batch_size=10, epochs=2), data, ENCODERS, heads.linear(3))
    test = {"a": A, "b": B, "label": LABEL}
    state = run.train(method, data, rounds=15, per_round={"A": 2, "B": 2, "AB": 2}, log=lambda line: None)
    before, after = method.evaluate(jax.jit(method.init)(jax.random.key(0)), test), method.evaluate(state, test)
    for tested in ("a", "b", "a+b"):
        assert after[f"{tested}/accuracy"] > 0.75 > before[f"{tested}/accuracy"] + 0.1


def test_the_steps_by_hand_outside_the_loop_are_a_round():
    """client_update vmapped over two clients and server_update, imported and bound without `build`."""
    data = FederatedData.from_arrays({"a": A, "label": LABEL}, [np.arange(10), np.arange(10, 20)])
    config, encoders = FedAvgConfig(batch_size=5, server_optimizer="momentum"), {"a": ENCODERS["a"]}
    state, new, _ = one_round(config, data, encoders)
    download = fedavg.server_download({"all": ("a",)}, state.server)["all"]
    keys = jax.vmap(lambda j: _update_key("all", j))(np.arange(2))
    seen = jax.tree.map(
        lambda *x: np.stack(x), *[dataclasses.replace(data.client("all", j), arrays={}) for j in (0, 1)]
    )
    seen = dataclasses.replace(seen, arrays=data.cohorts["all"].arrays)
    axes = dataclasses.replace(jax.tree.map(lambda _: 0, seen), arrays=dict.fromkeys(seen.arrays))
    update = jax.vmap(functools.partial(fedavg.client_update, config, encoders, heads.linear(3)), (None, None, axes, 0))
    uploads, _, _ = jax.jit(update)(download, {}, seen, keys)
    uploads = jax.tree.map(np.asarray, uploads)
    mean = lambda part: Mean(jax.tree.map(lambda x: x.mean(0), uploads[part].value), uploads[part].weight.sum())
    update = jax.jit(functools.partial(fedavg.server_update, config))
    server, _ = update(state.server, {"all": {p: mean(p) for p in uploads}}, None, KEY)
    chex.assert_trees_all_close(server, new.server, atol=1e-6)


def test_a_method_is_built_from_shapes_alone():
    data = two_modalities()
    config = FedAvgConfig(batch_size=10, shared=("a", "b"))
    from_data, from_shapes = (build(config, d, ENCODERS, heads.linear(3)) for d in (data, data.population))
    states = [jax.jit(method.init)(jax.random.key(0)) for method in (from_data, from_shapes)]
    chex.assert_trees_all_equal(*states)


@pytest.mark.parametrize("shared", [None, ("a", "b")])
def test_a_client_is_scored_row_by_row_with_its_own_model_as_in_numpy(shared):
    method = build(FedAvgConfig(shared=shared), two_modalities(), ENCODERS, heads.linear(3))
    state = jax.jit(method.init)(jax.random.key(0))
    download = method.server.download(state.server, None)["AB"]
    own = jax.tree.map(lambda x: x[1], state.clients["AB"])
    assert set(own) == (set() if shared is None else {"head"})
    has_a, mask = RNG.random(90) < 0.6, RNG.random(90) < 0.8
    broken = np.where(mask[:, None], A, np.nan)  # padding rows may hold anything
    score = jax.jit(method.cohorts["AB"].score)
    got = score(download, own, {"a": broken, "b": B, "has_a": has_a, "label": LABEL}, mask)
    params = jax.tree.map(np.asarray, {**download.sent, **own})
    embedding = {m: np.asarray(ENCODERS[m].apply(params[m], x)) for m, x in (("a", A), ("b", B))}
    mean = np.where(has_a[:, None], (embedding["a"] + embedding["b"]) / 2, embedding["b"])
    dense = params["head"]["Dense_0"]
    right = (mean @ dense["kernel"] + dense["bias"]).argmax(1) == LABEL
    assert set(got) == {"accuracy"} and 0 < right[mask].mean() < 1
    np.testing.assert_array_equal(np.asarray(got["accuracy"])[mask], right[mask])


@pytest.mark.parametrize(
    ("arrays", "encoders", "config", "message"),
    [
        ({"a": A, "label": LABEL}, ENCODERS, FedAvgConfig(), "no client holds modality 'b'"),
        ({"x": A, "label": LABEL, "a": A}, {"a": ENCODERS["a"]}, FedAvgConfig(shared=("trunk",)), "shared names parts"),
        ({"a": A}, {"a": ENCODERS["a"]}, FedAvgConfig(), "cohort all has no array 'label'"),
    ],
)
def test_bad_settings_are_errors_that_name_the_cure(arrays, encoders, config, message):
    data = FederatedData.from_arrays(arrays, [np.arange(90)])
    with pytest.raises(ValueError, match=message):
        build(config, data, encoders, heads.linear(3))
