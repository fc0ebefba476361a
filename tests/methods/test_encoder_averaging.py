"""FedAvg and FedIoT of encoders against the round written out by hand."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_joint_space import CLIENTS, COUNTS, KEY, NUM_CLASSES, SERVER, everyone, pairs, problem

from fedjax_mm import costs, trees
from fedjax_mm.methods.creamfl import CreamFLConfig
from fedjax_mm.methods.creamfl import build as build_creamfl
from fedjax_mm.methods.creamfl.encoder_averaging import VARIANTS, build
from fedjax_mm.methods.creamfl.joint_space import task
from fedjax_mm.methods.creamfl.training import Training

TRAINING = Training(client_lr=0.05, both_lr=0.05, server_lr=0.05, batch_size=8, epochs=1, server_batch=32)
IOT = dataclasses.replace(VARIANTS["fediot"], training=TRAINING)
ROUND = {}


def compiled():
    """(method, compiled round, first state)."""
    if not ROUND:
        method = build(IOT, problem(), SERVER, NUM_CLASSES)
        ROUND["all"] = method, jax.jit(method.round), jax.jit(method.init)(jax.random.key(0))
    return ROUND["all"]


def first_adam_step(params, slope, rate):
    params, slope = jax.tree.map(np.asarray, (params, slope))
    return jax.tree.map(lambda p, g: p - rate * g / (np.abs(g) + 1e-8), params, slope)


def slope(encoders):
    return jax.jit(jax.grad(lambda params, batch: task(TRAINING, encoders)(params, batch, KEY)[0]))


def own(data, name, j):
    cohort = data.cohorts[name]
    rows = cohort.rows[cohort.offsets[j] : cohort.offsets[j + 1]]
    return {k: np.asarray(x)[rows] for k, x in cohort.arrays.items()} | {"mask": np.ones(len(rows), np.float32)}


def test_a_round_is_a_step_at_home_and_a_mean_of_what_came_back():
    method, round, state = compiled()
    data = problem()
    new, _ = round(state, everyone(data), KEY)
    slopes = {name: slope(encoders) for name, encoders in CLIENTS.items()}
    pairs = {**data.public, "mask": np.ones(len(data.public["image"]), np.float32)}
    begun = first_adam_step(state.server["params"], slopes["both"](state.server["params"], pairs), 0.05)
    sent = {"image": [], "text": []}
    for name, counts in COUNTS.items():
        for j, count in enumerate(counts):
            first = jax.tree.map(lambda x, j=j: np.asarray(x[j]), state.clients[name]["params"])
            last = jax.tree.map(lambda x, j=j: np.asarray(x[j]), new.clients[name]["params"])
            if count == 0:
                chex.assert_trees_all_equal(last, first)
                continue
            start = first | {m: begun[m] for m in CLIENTS[name]}  # its head, or scale and shift, are its own
            expected = first_adam_step(start, slopes[name](start, own(data, name, j)), 0.05)
            chex.assert_trees_all_close(last, expected, atol=1e-4)
            for m in CLIENTS[name]:
                sent[m].append((count * (100 if name == "both" else 1), expected[m]["w"]))
    for m, parts in sent.items():
        weight, value = zip(*parts, strict=True)
        np.testing.assert_allclose(new.server["params"][m]["w"], np.average(value, 0, weight), atol=1e-4)
    assert float(new.server["params"]["scale"]) == pytest.approx(float(begun["scale"]), abs=1e-5)
    assert int(new.server["round"]) == 1


def test_an_encoder_that_nobody_sent_stays():
    method, round, state = compiled()
    data = problem()
    new, _ = round(state, everyone(data, text=[2, 2], both=[2, 2]), KEY)
    nobody, _ = round(state, everyone(data, image=[3, 3, 3], text=[2, 2], both=[2, 2]), KEY)
    chex.assert_trees_all_equal(new.server["params"]["text"], nobody.server["params"]["text"])
    assert (new.server["params"]["image"]["w"] != nobody.server["params"]["image"]["w"]).any()
    begun, _ = jax.jit(method.server.begin)(state.server, data.public, KEY)
    chex.assert_trees_all_close(nobody.server["params"], begun["params"], atol=1e-6)
    assert trees.all_finite((new, nobody))


def test_the_server_learns_from_pairs_as_creamfls_does():
    data, (method, _, state) = problem(), compiled()
    other = build_creamfl(CreamFLConfig(TRAINING, kd_epochs=0), data, SERVER, CLIENTS, NUM_CLASSES)
    start = jax.jit(other.init)(jax.random.key(0)).server
    chex.assert_trees_all_equal(start["params"], state.server["params"])
    mine, theirs = (jax.jit(m.server.begin)(s, data.public, KEY) for m, s in ((method, state.server), (other, start)))
    chex.assert_trees_all_close(mine[1], theirs[1], rtol=1e-6)
    chex.assert_trees_all_close(mine[0]["params"], theirs[0]["params"], atol=1e-6)


def test_encoders_travel_and_heads_do_not():
    method, _, state = compiled()
    for name, cost in costs.of(method, everyone(problem()), state).items():
        held = {"image": 3, "text": 2, "both": 5}[name]
        assert cost.bytes_down == cost.bytes_up == 4 * held * 4
    assert VARIANTS["fedavg"].both_weight == 1 and VARIANTS["fediot"].both_weight == 100


def test_a_client_is_scored_with_the_servers_encoder_and_its_own_head():
    method, test = build(IOT, problem().population, SERVER, NUM_CLASSES), pairs(9, seed=4)
    server, cohort = method.server.init(KEY), method.cohorts["image"]
    own, sent = cohort.init(jax.random.key(2)), method.server.download(server, None)["image"]
    found = cohort.score(sent, own, {k: jnp.asarray(x) for k, x in test.items()}, jnp.ones(9))
    head = own["params"]["head"]
    logits = test["image"] @ server["params"]["image"]["w"] @ head["kernel"] + head["bias"][None]
    np.testing.assert_array_equal(found["accuracy"], np.asarray(logits).argmax(1) == test["label"])
    assert 0 < found["accuracy"].mean() < 1
    both = method.cohorts["both"]
    rows = {m: jnp.asarray(test[m]) for m in ("image", "text")}
    found = both.score(method.server.download(server, None)["both"], both.init(KEY), rows, jnp.ones(9))
    z = {m: x @ np.asarray(server["params"][m]["w"]) for m, x in rows.items()}
    cosine = z["image"] @ (z["text"] / np.linalg.norm(z["text"], axis=1, keepdims=True)).T
    np.testing.assert_array_equal(found["i2t_r1"], 100 * (cosine.argmax(1) == np.arange(9)))


def test_scores_and_errors_are_creamfls():
    method, _, state = compiled()
    data = problem()
    arrays = {**data.public, "image/image": data.public["image"], "image/label": np.zeros(12, int)}
    assert {"i2t_r1", "fold/t2i_r10", "r1_sum", "image/accuracy", "both/t2i_r5"} <= set(method.evaluate(state, arrays))
    with pytest.raises(ValueError, match=r"the server's encoders \['image'\] need both"):
        build(IOT, data, {"image": SERVER["image"]}, NUM_CLASSES)
