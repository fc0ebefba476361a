"""Batch norms' running statistics of the averaged model, taken by the clients in one more round."""

import dataclasses
import functools

import jax
import numpy as np
from test_layerwise import IMAGE, KEY, PRETRAINED, SCALED, TEXT, encoders, paths, problem, varied
from tiny_transformer import tiny

from fedjax_mm import costs
from fedjax_mm.methods.layerwise import batch_moments, build, pool_statistics
from fedjax_mm.models import heads
from fedjax_mm.types import FedState

RECALIBRATED = dataclasses.replace(SCALED, statistics="recalibrated", head_dropout=0.5)
OWNED = [np.arange(4), np.arange(10, 14), np.arange(20, 22)]  # two clients have one batch each, the last has none


@functools.cache
def last():
    """(the last stage's method, its compiled round)."""
    method = build(RECALIBRATED, problem(OWNED), encoders(rate=0.5), None, PRETRAINED)[-1].method
    return method, jax.jit(method.round)


def start():
    return varied(jax.jit(last()[0].init)(KEY).server)


def taken_again(params, who=(0, 1, 2)):
    state = FedState(params, {"all": ()}, np.int32(4))
    return last()[1](state, problem(OWNED).round({"all": np.array(who)}), KEY)[0].server


def chain(part, x):
    """What examples x [B, ...] of one batch give before each norm, in NumPy and double precision."""
    part, found = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), part), []
    h = x @ part["encoder"]["embeddings"]["w"]
    for layer in part["encoder"]["layers"].values():
        h = h + np.tanh(h @ layer["w"])
    h = h * part["encoder"].get("norm", {"scale": 1.0})["scale"]
    for i in range(3):
        h = h @ part["head"][f"dense_{i}"]["kernel"]
        found.append(h)
        h = (h - h.mean(0)) / np.sqrt(h.var(0) + 1e-5)
        norm = part["head"][f"norm_{i}"]
        h = np.maximum(h * norm["scale"] + norm["bias"], 0) if "scale" in norm else h
    return found


def test_statistics_are_those_of_all_clients_examples_in_the_averaged_model():
    """Not means of clients' variances; without dropout, although the settings and the encoders have it."""
    params = start()
    new = taken_again(params)
    for m, x in (("image", IMAGE), ("text", TEXT)):
        clients = [chain(params[m], x[rows]) for rows in OWNED[:2]]
        for i in range(3):
            every = np.concatenate([client[i] for client in clients])
            norm = new[m]["head"][f"norm_{i}"]
            np.testing.assert_allclose(norm["running_mean"], every.mean(0), rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(norm["running_variance"], every.var(0), rtol=1e-4, atol=1e-5)
            if i == 0:  # later norms differ little: each client's batch was normalised before
                assert np.abs(every.var(0) - np.mean([client[i].var(0) for client in clients], 0)).max() > 0.1
    for path, leaf in paths(new).items():
        if not heads.is_statistic(path):
            np.testing.assert_array_equal(leaf, paths(params)[path])


def test_a_small_variance_beside_a_large_mean_keeps_its_digits():
    """The mean is 3,000 times the deviation: in single precision E[x^2] - E[x]^2 of x itself would be noise."""
    x = (30 + 0.01 * np.random.default_rng(0).normal(size=(8, 3))).astype(np.float32)
    params = {"encoder": {"embeddings": {"w": np.eye(3, dtype=np.float32)}, "layers": {}}}
    params["head"] = dict(heads.projection(6, 3).init(KEY, 3))
    params["head"]["dense_0"] = {"kernel": np.eye(3, 6, dtype=np.float32)}
    params["head"]["norm_0"]["running_mean"] = np.full(6, 29.9, np.float32)
    moments = batch_moments(RECALIBRATED, {"image": tiny(3, 3, 0)}, {"image": params}, {"image": x}, KEY)["image"]
    new = pool_statistics(params["head"], moments)["norm_0"]
    np.testing.assert_allclose(new["running_variance"][:3], x.astype(np.float64).var(0), rtol=0.02)


def test_nobody_with_a_full_batch_changes_nothing():
    params = start()
    jax.tree.map(np.testing.assert_array_equal, taken_again(params, (2, 3, 3)), params)  # 3 is nobody


def test_training_is_the_same_program_and_one_round_follows_it():
    data = problem().round({"all": np.arange(3)})
    of = lambda kind: build(dataclasses.replace(RECALIBRATED, statistics=kind), problem(), encoders())
    text = lambda method: jax.jit(method.round).lower(jax.eval_shape(method.init, KEY), data, KEY).as_text()
    averaged, (*recalibrated, after) = of("averaged"), of("recalibrated")
    assert (after.name, after.rounds) == ("statistics", 1)
    assert [stage[::2] for stage in recalibrated] == [stage[::2] for stage in averaged]
    assert text(averaged[-1].method) == text(recalibrated[-1].method)


def test_the_last_round_costs_a_download_and_a_forward_pass():
    stages = build(RECALIBRATED, problem(), encoders())
    trained, last = (costs.of(s.method, problem().round({"all": np.arange(3)}))["all"] for s in stages[-2:])
    assert last.bytes_down == trained.bytes_down and last.bytes_held == trained.bytes_held
    assert last.bytes_up == 2 * 2 * 4 * (6 + 6 + 3)  # two moments of three norms of two heads
    width, hidden, dim, batch = 4, 6, 3, 4
    macs = (3 + 5) * width + 2 * (2 * width**2 + width * hidden + hidden**2 + hidden * dim)
    assert last.flops == 2 * batch * macs < trained.flops
