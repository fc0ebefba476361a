"""FedMEKT: its limits, its aggregate, and whether knowledge does what the paper says."""

import ast
import dataclasses
import functools
import pathlib
import re

import chex
import jax
import numpy as np
import pytest
from linear_autoencoder import linear_ae, reconstruction_errors

from fedjax_mm import clients, costs
from fedjax_mm.data.federated import FederatedData
from fedjax_mm.methods import fedmekt
from fedjax_mm.methods.fedmekt import VARIANTS, FedMEKTConfig, Probe, build
from fedjax_mm.models import autoencoder

RNG = np.random.default_rng(0)
AE = linear_ae()
P, T = 7, 5
KEY = jax.random.key(2)
BASE = FedMEKTConfig(batch_size=4, epochs=1, proxy_batch=4, server_epochs=1, probe=Probe(unit="window"))
DEAF = dataclasses.replace(BASE, eta=0.0, gamma=0.0)


def windows(rows, seed):
    """Sequences of two modalities with one hidden cause."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, rows).astype(np.int32)
    wave = np.sin(np.linspace(0, 6, T)[None] * (1 + label[:, None]) + rng.normal(0, 0.3, (rows, 1)))[..., None]
    noise = lambda f: 0.1 * rng.normal(size=(rows, T, f))
    a, b = wave * np.array([1, -1, 0.5]) + noise(3), wave * np.array([-1, 0.5]) + noise(2)
    return {"a": a.astype(np.float32), "b": b.astype(np.float32), "label": label}


def problem(shift=0.0):
    """Clients that hold both modalities, and others with one: a cohort for the other modality compiles a third more."""
    train, proxy = windows(18, 0), windows(P, 10)
    train = {k: v + shift if v.dtype == np.float32 else v for k, v in train.items()}
    has = {"A": "a", "AB": "ab"}
    owned = dict(zip(has, (np.split(r, [2]) for r in np.split(np.arange(12), 2)), strict=True))
    arrays = {name: {m: train[m] for m in held} for name, held in has.items()}
    return FederatedData.from_arrays(arrays, owned, public={m: proxy[m] for m in "ab"})


def made(config):
    return build(config, problem(), AE, windows(20, 5), 2)


WEIGHTS = ("alpha", "beta", "eta", "gamma")


@functools.cache
def compiled(config, labelled):
    """The round of this method and all that differ in WEIGHTS: one program, which is told them."""

    def step(weights, *given):
        method = build(dataclasses.replace(config, **weights), problem(), AE, windows(*labelled), 2)
        return method.round(*given)

    return jax.jit(step)


def step(config, *given, labelled=(20, 5)):
    weights = {name: getattr(config, name) for name in WEIGHTS}
    return compiled(dataclasses.replace(config, **dict.fromkeys(WEIGHTS, 1.0)), labelled)(weights, *given)


def one_round(config, shift=0.0, state=None, chosen=None):
    """(method, state before, state after, metrics)."""
    data, method = problem(shift), made(config)
    state = state or method.init(jax.random.key(0))
    taken = data.round(chosen or clients.choose(data.sizes, dict(data.sizes), 0, 0))
    return method, state, *step(config, state, taken, KEY)


def differ(a, b):
    return any((x != y).any() for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def global_z(params):
    public = problem().public
    return {m: np.asarray(AE.encode(params, m, public[m])[0][:, -1]) for m in "ab"}


def test_everyone_starts_from_one_autoencoder():
    method = made(BASE)
    state = jax.jit(method.init)(jax.random.key(0))
    for name, held in (("A", "a"), ("AB", "ab")):
        params = state.clients[name]["params"]
        assert set(params) == {part for m in held for part in AE.parts(m)}
        for part, value in params.items():
            for k in range(2):
                chex.assert_trees_all_equal(jax.tree.map(lambda x, k=k: x[k], value), state.server["params"][part])


def test_knowledge_is_the_plain_mean_of_the_owners_embeddings_after_training():
    _, _, new, _ = one_round(BASE)
    public = problem().public
    for m, holders in (("a", ("A", "AB")), ("b", ("AB",))):
        sent = []
        for name in holders:
            for k in range(2):
                params = jax.tree.map(lambda x, k=k: x[k], new.clients[name]["params"])
                sent.append(np.asarray(AE.encode(params, m, public[m])[0][:, -1]))
        np.testing.assert_allclose(new.server["knowledge"][m]["z"], np.mean(sent, 0), atol=1e-5)


def test_a_modality_nobody_sent_keeps_its_knowledge_and_none_teaches_before_it_was_sent():
    only_a = {"A": np.arange(2), "AB": np.array([2, 2])}
    _, _, new, _ = one_round(BASE, chosen=only_a)
    assert float(new.server["known"]["b"]) == 0 and float(new.server["known"]["a"]) == 1
    np.testing.assert_array_equal(new.server["knowledge"]["b"]["z"], 0)
    _, _, deaf, _ = one_round(DEAF, chosen=only_a)
    assert differ(new.server["params"]["encoder_a"], deaf.server["params"]["encoder_a"])
    _, _, later, _ = one_round(BASE)
    _, _, after, _ = one_round(BASE, state=later, chosen=only_a)
    chex.assert_trees_all_equal(after.server["knowledge"]["b"], later.server["knowledge"]["b"])
    assert (after.server["knowledge"]["a"]["z"] != later.server["knowledge"]["a"]["z"]).any()


def test_with_no_server_weight_no_client_is_heard():
    alone, other = one_round(DEAF)[2], one_round(DEAF, shift=1.0)[2]
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


ALONE = dataclasses.replace(BASE, alpha=0.0, eta=0.0, epochs=40, server_epochs=60, client_lr=0.02, server_lr=0.02)


def apart(z, teacher):
    """How far embeddings are from others, of which only the differences between features count."""
    centred = lambda z: np.asarray(z) - np.asarray(z).mean(-1, keepdims=True)
    return np.mean([np.abs(centred(z[m]) - centred(teacher[m])).mean() for m in "ab"])


def test_heavy_distillation_pulls_clients_to_the_servers_embeddings():
    start = made(BASE).init(jax.random.key(0))
    other = dataclasses.replace(start, server={**start.server, "params": AE.init(jax.random.key(7))})
    far = {}
    for weight in (0.0, 300.0):
        _, _, new, _ = one_round(dataclasses.replace(ALONE, alpha=weight), state=other)
        sent = {m: new.server["knowledge"][m]["z"] for m in "ab"}
        far[weight] = apart(sent, global_z(other.server["params"]))
    assert far[300.0] < 0.3 * far[0.0]


def test_heavy_distillation_pulls_the_server_to_the_knowledge():
    far = {}
    for weight in (0.0, 300.0):
        _, _, new, metrics = one_round(dataclasses.replace(ALONE, eta=weight), shift=1.0)
        far[weight] = apart(global_z(new.server["params"]), {m: new.server["knowledge"][m]["z"] for m in "ab"})
        assert set(metrics["server"]) == {"loss", "reconstruction", "distillation"}
    assert far[300.0] < 0.3 * far[0.0]


@pytest.mark.parametrize(
    "knowledge, floats", [("last", 2), ("hidden_mean_std", 2 * 4), ("seq", T * 2), ("seq+hidden", T * (2 + 4))]
)
def test_what_travels_is_what_the_setting_says(knowledge, floats):
    data = problem()
    method = made(dataclasses.replace(BASE, knowledge=knowledge))
    cost = costs.of(method, data.round(clients.choose(data.sizes, dict(data.sizes), 0, 0)))
    for name, modalities in (("A", 1), ("AB", 2)):
        assert cost[name].bytes_up == cost[name].bytes_down == 4 * P * floats * modalities


def test_labels_never_enter_a_round():
    """The same round, bit for bit, whatever the labelled set is."""
    data, method = problem(), build(BASE, problem(), AE, windows(30, 6), 2)
    taken = data.round(clients.choose(data.sizes, dict(data.sizes), 0, 0))
    new, _ = step(BASE, method.init(jax.random.key(0)), taken, KEY, labelled=(30, 6))
    chex.assert_trees_all_equal(new, one_round(BASE)[2])


@pytest.mark.parametrize(
    "config",
    [
        dataclasses.replace(VARIANTS["released"], batch_size=4, proxy_batch=4, probe=Probe(unit="window")),
        dataclasses.replace(BASE, variant="S", knowledge="seq+hidden"),
        dataclasses.replace(BASE, objective="dcc", knowledge="hidden_mean_std", kd="cosine"),
    ],
    ids=["released", "S", "dcc"],
)
def test_other_settings_train_and_evaluate(config):
    method, state, new, metrics = one_round(config)
    assert all(float(metrics[name]["left_out"]) == 0 for name in ("A", "AB"))
    for part, value in new.server["params"].items():
        assert any(
            (x != y).any() for x, y in zip(*map(jax.tree.leaves, (value, state.server["params"][part])), strict=True)
        )
    chex.assert_trees_all_equal(new.server["projection"], state.server["projection"])
    assert method.evaluate(new, windows(30, 9))["a+b/accuracy"] > 0


def test_released_knowledge_is_the_last_owners():
    config = dataclasses.replace(BASE, aggregate="last")
    _, _, new, _ = one_round(config)
    last = jax.tree.map(lambda x: x[1], new.clients["AB"]["params"])  # cohorts in order, AB after A
    np.testing.assert_allclose(new.server["knowledge"]["a"]["z"], global_z(last)["a"], atol=1e-5)


def test_a_clients_update_runs_outside_the_loop_jitted_and_vmapped():
    data = problem()
    server = fedmekt.init_server(BASE, AE, data.public, jax.random.key(0))
    sent = fedmekt.download(BASE, AE, {"AB": ("a", "b")}, server, data.public)["AB"]
    state = fedmekt.init_client(BASE, AE, ("a", "b"), KEY, server)
    update = functools.partial(fedmekt.client_update, BASE, AE, sent, state, data.client("AB", 1))
    keys = jax.random.split(KEY)
    both = jax.vmap(update)(keys)
    chex.assert_trees_all_close(jax.tree.map(lambda x: x[1], both), jax.jit(update)(keys[1]), atol=1e-6)
    assert differ(jax.tree.map(lambda x: x[0], both[1]), jax.tree.map(lambda x: x[1], both[1]))
    uploads = {"AB": jax.tree.map(lambda x: x[0], both[0])}
    new, metrics = jax.jit(functools.partial(fedmekt.server_update, BASE, AE))(server, uploads, data.public, KEY)
    assert differ(new["params"], server["params"]) and float(metrics["loss"]) > 0


@pytest.mark.parametrize("name, held", [("A", "a"), ("AB", "ab")])
def test_a_clients_score_is_the_error_of_its_own_autoencoder_on_each_window(name, held):
    method, _, new, _ = one_round(BASE)
    state, x = jax.tree.map(lambda x: x[1], new.clients[name]), {m: windows(6, 8)[m] for m in held}
    download = method.server.download(new.server, problem().public)[name]
    scores = method.cohorts[name].score(download, state, x, np.ones(6, np.float32))
    assert set(scores) == {"reconstruction_error"}
    np.testing.assert_allclose(scores["reconstruction_error"], reconstruction_errors(state["params"], x), rtol=1e-5)


def test_a_population_is_enough_to_build_from():
    data = problem()
    (one, other) = (build(BASE, given, AE, windows(20, 5), 2) for given in (data, data.population))
    chex.assert_trees_all_equal(one.init(KEY), other.init(KEY))
    assert {name: cohort.size for name, cohort in other.cohorts.items()} == data.sizes


def test_section_numbers_in_docstrings_are_sections_of_the_page():
    root = pathlib.Path(__file__).parents[2]
    page = (root / "docs/specs/fedmekt.md").read_text()
    sections, texts = set(re.findall(r"^#+ (\d\.\d)", page, re.MULTILINE)), []
    for file in (root / "fedjax_mm/methods/fedmekt").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):  # of modules, functions and fields
                texts += re.findall(r"\(([^()]*)\)", str(node.value.value).partition(">>>")[0])
    numbers = {number for text in texts for number in re.findall(r"\b[1-6]\.\d\b", text)}
    assert {"1.2", "1.3", "1.4", "1.5", "5.1"} <= numbers <= sections


def test_reconstruction_falls_and_the_embedding_tells_the_classes():
    """The one test with LSTMs, and so with one cohort."""
    train, proxy = windows(18, 0), windows(P, 10)
    data = FederatedData.from_arrays(
        {m: train[m] for m in "ab"}, np.split(np.arange(18), 3), public={m: proxy[m] for m in "ab"}
    )
    config = dataclasses.replace(BASE, client_lr=0.02, server_lr=0.02, epochs=2, server_epochs=4)
    ae = autoencoder.split_lstm({"a": 3, "b": 2}, hidden=8, width=3)
    method = build(config, data, ae, windows(20, 5), 2)
    state, step, rows = jax.jit(method.init)(jax.random.key(0)), jax.jit(method.round), []
    for r in range(40):
        state, metrics = step(state, data.round(clients.choose(data.sizes, 1, r, 0)), KEY)
        rows.append({k: float(v["reconstruction"]) for k, v in metrics.items()})
    assert all(rows[-1][k] < 0.8 * rows[0][k] for k in ("all", "server"))
    assert method.evaluate(state, windows(60, 9))["a+b/accuracy"] > 0.8


@pytest.mark.parametrize(
    ("config", "drop", "message"),
    [
        (dataclasses.replace(BASE, kd_axis="time", knowledge="mean"), (), "compares whole sequences"),
        (dataclasses.replace(BASE, kd_axis="time", knowledge="seq", kd="mse"), (), 'set kd to "kl"'),
        (dataclasses.replace(BASE, objective="dcc", variant="S"), (), 'use variant "C"'),
        (BASE, ("b",), r"public arrays have no \['b'\]"),
    ],
)
def test_bad_settings_are_errors_that_name_the_cure(config, drop, message):
    data = problem()
    data = dataclasses.replace(data, public={m: x for m, x in data.public.items() if m not in drop})
    with pytest.raises(ValueError, match=message):
        build(config, data, AE, windows(20, 5), 2)
