"""MMFL: FedAvg, FedProx and MOON over split autoencoders, against their limits."""

import dataclasses
import functools

import chex
import jax
import numpy as np
import optax
import pytest
from linear_autoencoder import linear_ae, reconstruction_errors

from fedjax_mm import clients, losses
from fedjax_mm.data.federated import FederatedData
from fedjax_mm.methods.fedmekt import mmfl
from fedjax_mm.methods.fedmekt.mmfl import MMFLConfig, Probe, build

RNG = np.random.default_rng(0)
AE = linear_ae()
KEY = jax.random.key(2)
BASE = MMFLConfig(batch_size=4, epochs=2, probe=Probe(unit="window"))
X = {"a": RNG.normal(size=(18, 5, 3)).astype(np.float32), "b": RNG.normal(size=(18, 5, 2)).astype(np.float32)}
LABELLED = {**X, "label": (np.arange(18) % 2).astype(np.int32)}
HAS = {"A": "a", "AB": "ab"}


def problem():
    owned = dict(zip(HAS, (np.split(r, [2]) for r in np.split(np.arange(12), 2)), strict=True))
    return FederatedData.from_arrays({name: {m: X[m] for m in held} for name, held in HAS.items()}, owned)


@functools.cache
def compiled(config):
    method = build(config, problem(), AE, LABELLED, 2)
    return method, jax.jit(method.round)


def one_round(config, rounds=1):
    """(method, state before, state after, metrics)."""
    data, (method, step) = problem(), compiled(config)
    start = state = method.init(jax.random.key(0))
    for _ in range(rounds):
        state, metrics = step(state, data.round(clients.choose(data.sizes, dict(data.sizes), 0, 0)), KEY)
    return method, start, state, metrics


def test_each_modality_is_the_weighted_mean_of_its_owners():
    """The clients' own autoencoders after a round that starts alike, averaged by hand."""
    config = dataclasses.replace(BASE, multimodal_weight=3.0, persistent=True)
    _, _, alone, _ = one_round(dataclasses.replace(BASE, shared=False))
    _, _, new, _ = one_round(config)
    for m, holders in (("a", ("A", "AB")), ("b", ("AB",))):
        trees, weight = [], []
        for name in holders:
            for k in range(2):
                params = alone.clients[name]["params"]
                trees.append({part: jax.tree.map(lambda x, k=k: x[k], params[part]) for part in AE.parts(m)})
                weight.append((2, 4)[k] * (3 if name == "AB" else 1))
        share = np.array(weight) / sum(weight)
        expected = jax.tree.map(lambda *x, share=share: np.tensordot(share, np.stack(x), 1), *trees)
        chex.assert_trees_all_close(new.server[m], expected, atol=1e-5)


def test_clients_alone_send_nothing_and_are_each_evaluated():
    method, start, new, _ = one_round(dataclasses.replace(BASE, shared=False))
    chex.assert_trees_all_equal(new.server, start.server)
    codes = new.clients["A"]["params"]["encoder_a"]["V"]
    assert (codes[0] != codes[1]).any()
    assert "a+b/macro_f1" in method.evaluate(new, LABELLED)


def distance(config, rounds=1):
    """How far the server goes."""
    _, start, new, _ = one_round(config, rounds=rounds)
    return float(optax.tree.norm(optax.tree.sub(new.server, start.server)))


def test_prox_holds_clients_back_and_0_is_without():
    held_back = distance(dataclasses.replace(BASE, prox=100.0, epochs=20))
    assert 0 < held_back < 0.5 * distance(dataclasses.replace(BASE, epochs=20))


@pytest.mark.parametrize("axis", ["feature", "time"])
def test_moons_loss_equals_numpy(axis):
    z, current, previous = RNG.normal(size=(3, 4, 5, 2)).astype(np.float32)
    mask = np.array([1, 1, 0, 1], np.float32)
    along = {"feature": -1, "time": 1}[axis]
    cos = lambda a, b: (a * b).sum(along) / np.linalg.norm(a, axis=along) / np.linalg.norm(b, axis=along)
    plus, minus = np.exp(cos(z, current) / 0.5), np.exp(cos(z, previous) / 0.5)
    expected = -np.log(plus / (plus + minus))[mask > 0].mean()
    config = MMFLConfig(moon_axis=axis)
    np.testing.assert_allclose(mmfl.moon_term(config, z, current, previous, mask), expected, rtol=1e-5)
    assert losses.intra_modal(z[:, 0], z[:, 0], z[:, 0], 0.5) == pytest.approx(np.log(2), rel=1e-5)


def test_moon_remembers_the_encoders_of_the_clients_last_round():
    config = dataclasses.replace(BASE, moon=1.0)
    _, start, new, _ = one_round(config)
    _, _, alone, _ = one_round(dataclasses.replace(config, shared=False))
    for m in "ab":
        part = AE.parts(m)[0]
        chex.assert_trees_all_close(new.clients["AB"]["previous"][part], alone.clients["AB"]["params"][part], atol=1e-6)
    assert set(start.clients["A"]["previous"]) == {"encoder_a"}


def test_moon_changes_training_from_the_second_round_on():
    """In the first round global and previous are one, so the pull and the push cancel."""
    pulled = dataclasses.replace(BASE, moon=5.0)
    assert distance(pulled) == pytest.approx(distance(BASE), rel=1e-4)
    assert distance(pulled, 2) != pytest.approx(distance(BASE, 2), rel=1e-4)


def test_persistent_moments_change_the_second_round_only():
    kept = dataclasses.replace(BASE, persistent=True)
    assert distance(kept) == pytest.approx(distance(BASE), rel=1e-5)
    assert distance(kept, 2) != pytest.approx(distance(BASE, 2), rel=1e-4)


def test_a_clients_update_runs_outside_the_loop_jitted_and_vmapped():
    data, config = problem(), dataclasses.replace(BASE, moon=1.0)
    server = mmfl.init_server(AE, jax.random.key(0))
    sent = mmfl.download(config, {"AB": ("a", "b")}, server, None)["AB"]
    state = mmfl.init_client(config, AE, ("a", "b"), KEY, server)
    update = functools.partial(mmfl.client_update, config, AE, sent, state, data.client("AB", 1))
    keys = jax.random.split(KEY)
    both = jax.vmap(update)(keys)
    chex.assert_trees_all_close(jax.tree.map(lambda x: x[1], both), jax.jit(update)(keys[1]), atol=1e-6)
    upload = jax.tree.map(lambda x: x[1], both[0])
    new, _ = mmfl.server_update(config, server, {"AB": upload}, None, KEY)
    chex.assert_trees_all_close(new, {m: slot.value for m, slot in upload.items()})


def test_the_proximal_term_is_half_mu_times_the_squared_distance():
    draw = lambda shape: RNG.normal(size=shape).astype(np.float32)
    trees = [{"v": draw(4), "w": draw((2, 3))} for _ in range(2)]
    expected = 0.3 / 2 * sum(((trees[0][k] - trees[1][k]) ** 2).sum() for k in "vw")
    np.testing.assert_allclose(mmfl.proximal_term(0.3, *trees), expected, rtol=1e-5)


@pytest.mark.parametrize("shared", [True, False])
def test_a_clients_score_is_the_error_of_its_autoencoder_on_each_window(shared):
    method, _, new, _ = one_round(dataclasses.replace(BASE, shared=shared))
    state, download = jax.tree.map(lambda x: x[1], new.clients["AB"]), method.server.download(new.server, None)["AB"]
    scores = method.cohorts["AB"].score(download, state, X, np.ones(18, np.float32))
    params = {part: w for m in "ab" for part, w in new.server[m].items()} if shared else state["params"]
    assert set(scores) == {"reconstruction_error"}
    np.testing.assert_allclose(scores["reconstruction_error"], reconstruction_errors(params, X), rtol=1e-5)


def test_a_population_is_enough_to_build_from():
    data, config = problem(), dataclasses.replace(BASE, shared=False)
    (one, other) = (build(config, given, AE, LABELLED, 2) for given in (data, data.population))
    state = one.init(KEY)
    chex.assert_trees_all_equal(state, other.init(KEY))
    assert one.evaluate(state, LABELLED) == other.evaluate(state, LABELLED)


def test_reconstruction_falls():
    _, _, first, before = one_round(dataclasses.replace(BASE, client_lr=0.02))
    _, _, _, after = one_round(dataclasses.replace(BASE, client_lr=0.02), rounds=30)
    assert all(float(after[name]["reconstruction"]) < 0.97 * float(before[name]["reconstruction"]) for name in HAS)


def test_a_modality_without_holder_is_an_error_in_words():
    data = FederatedData.from_arrays({"a": X["a"]}, [np.arange(18)])
    with pytest.raises(ValueError, match="no client holds modality 'b'"):
        build(BASE, data, AE, LABELLED, 2)
