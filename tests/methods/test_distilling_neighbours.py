"""Neighbours whose server learns from what clients' models say, against their equations, written out in NumPy.

The world is that of test_neighbours. Gradients are central differences in float64.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_mm.data.federated import FederatedData
from fedjax_mm.methods import fedftg
from fedjax_mm.methods.fedavg import FedAvgConfig
from fedjax_mm.models import mlp
from tests.methods.test_neighbours import (
    CONFIG,
    ENCODERS,
    LABEL,
    LINEAR,
    ROUNDS,
    ROW,
    SIZES,
    STEPS,
    average,
    close,
    descend,
    get,
    two_rounds,
    world,
)


def slope(loss, tree):
    """The gradient of a loss at a tree of arrays, by central differences."""
    found = {}
    for part, value in tree.items():
        found[part] = np.zeros_like(value)
        for i in np.ndindex(value.shape):
            move = np.zeros_like(value)
            move[i] = 1e-6
            found[part][i] = (loss({**tree, part: value + move}) - loss({**tree, part: value - move})) / 2e-6
    return found


def log_softmax(z):
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def say(w, x):
    """Log-probabilities of the linear model of the world, of the modalities that it has."""
    held = [m for m in x if m in w]
    return log_softmax(sum(x[m] @ w[m] for m in held) / len(held) @ w["head"])


def lengths(rows):
    return np.sqrt(np.square(rows[:, None] - rows[None]).sum(-1))


def adam(lr):
    """One step of Adam after the other, with its own moments."""
    mean, square, count = 0.0, 0.0, 0

    def step(value, g):
        nonlocal mean, square, count
        mean, square, count = 0.9 * mean + 0.1 * g, 0.999 * square + 0.001 * g**2, count + 1
        return value - lr * (mean / (1 - 0.9**count)) / (np.sqrt(square / (1 - 0.999**count)) + 1e-8)

    return step


Z = np.random.default_rng(2).normal(size=(4, 2))
Y = np.array([1, 2, 2, 1])  # classes of the made examples, such as somebody has in both rounds


def agreement(w, sent, x):
    """(L_md, L_cls) of made examples. sent: {client: its model}."""
    count = {k: SIZES[k] * (LABEL[ROW[k]] == Y) for k in sent}  # n_k^y
    hard = known = 0.0
    for k, w_k in sent.items():
        alpha, said = count[k] / sum(count.values()), say(w_k, x)
        hard += (alpha * (np.exp(said) * (said - say(get(w, k), x))).sum(1)).mean()
        known -= (alpha * said[np.arange(4), Y]).mean()
    return hard, known


def made(theta):
    return dict(zip("ab", np.split(np.hstack([Z, np.eye(3)[Y]]) @ theta["theta"], [4], axis=1), strict=True))


def loss_of_generator(theta, w, sent):
    x = made(theta)
    hard, known = agreement(w, sent, x)
    return -hard + 0.7 * known + 20 * np.exp(-(lengths(np.hstack([x["a"], x["b"]])) * lengths(Z)).mean())


def test_fedftg_is_its_equations(monkeypatch):
    """With a linear generator, and a batch that is known."""

    def draw_batch(config, counts, key):
        alpha = counts[:, Y] / counts[:, Y].sum(0, keepdims=True)
        return {"z": jnp.asarray(Z, jnp.float32), "y": jax.nn.one_hot(Y, 3), "alpha": alpha}

    monkeypatch.setattr(fedftg, "draw_batch", draw_batch)
    config = fedftg.FedFTGConfig(2, 2, 2, 4, 2, 0.2, 0.05, 0.7, 20.0, CONFIG)
    linear = LINEAR._replace(init=lambda key, x: jax.random.normal(key, (x.shape[-1], 6)) / 2)
    first, last = two_rounds(fedftg.build(config, world(), ENCODERS, LINEAR, linear))
    w = {p: np.asarray(v, np.float64) for p, v in first.server["params"].items()}
    theta, step = {"theta": np.asarray(first.server["generator"], np.float64)}, adam(0.05)
    for taken in ROUNDS:
        sent = {k: descend(get(w, k), k, STEPS[k]) for k in taken}
        w = average(w, sent, SIZES)
        for _ in range(config.steps):
            for _ in range(config.generator_steps):
                g = slope(lambda theta, w=w, sent=sent: loss_of_generator(theta, w, sent), theta)
                theta = {"theta": step(theta["theta"], g["theta"])}
            x = made(theta)
            for _ in range(config.model_steps):
                g = slope(lambda w, x=x, sent=sent: agreement(w, sent, x)[0], w)
                w = {p: w[p] - 0.2 * g[p] for p in w}
    close(last.server["generator"], theta["theta"], 2e-4)
    close(last.server["params"], w, 1e-4)


def test_fedftg_without_steps_of_the_server_is_fedavg():
    first, last = two_rounds(fedftg.build(fedftg.FedFTGConfig(steps=0, fedavg=CONFIG), world(), ENCODERS, LINEAR))
    w = {p: np.asarray(v, np.float64) for p, v in first.server["params"].items()}
    for taken in ROUNDS:
        w = average(w, {k: descend(get(w, k), k, STEPS[k]) for k in taken}, SIZES)
    close(last.server["params"], w)


def test_classes_are_drawn_as_often_as_clients_have_them():
    counts = jnp.array([[3.0, 0.0, 0.0], [3.0, 0.0, 2.0]])
    drawn = np.bincount(fedftg.sample_labels(counts, 4000, jax.random.key(0)), minlength=3) / 4000
    np.testing.assert_allclose(drawn, [0.75, 0, 0.25], atol=0.03)


def test_fedftg_refuses_what_it_cannot_make():
    whole = FederatedData.from_arrays({"a": np.ones((2, 4), np.uint8), "label": LABEL[:2]}, [[0], [1]], num_classes=3)
    with pytest.raises(ValueError, match="array 'a' is of uint8; FedFTG makes examples from noise"):
        fedftg.build(fedftg.FedFTGConfig(), whole, {"a": mlp.encoder((), 3)}, LINEAR)
    with pytest.raises(ValueError, match=r"generator gives \[2, 5\] of two draws; it must give \[2, 6\]"):
        fedftg.build(fedftg.FedFTGConfig(), world(), ENCODERS, LINEAR, mlp.encoder((), 5))
    with pytest.raises(ValueError, match="FedFTG says what is personal"):
        fedftg.build(fedftg.FedFTGConfig(fedavg=FedAvgConfig(shared=("a",))), world(), ENCODERS, LINEAR)
