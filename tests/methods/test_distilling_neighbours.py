"""Neighbours whose server learns from what clients' models say, against their equations, written out in NumPy.

The world is that of test_neighbours. Gradients are central differences in float64.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_mm.data.federated import FederatedData
from fedjax_mm.methods import fedet, fedftg
from fedjax_mm.methods.fedavg import FedAvgConfig
from fedjax_mm.methods.neighbours import fedftg_losses
from fedjax_mm.models import Model, mlp
from tests.methods.test_neighbours import (
    CONFIG,
    ENCODERS,
    LABEL,
    LINEAR,
    ROUNDS,
    ROW,
    SIZES,
    STEPS,
    X,
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

    def draw_batch(number, noise, counts, key):
        alpha = counts[:, Y] / counts[:, Y].sum(0, keepdims=True)
        return {"z": jnp.asarray(Z, jnp.float32), "y": jax.nn.one_hot(Y, 3), "alpha": alpha}

    monkeypatch.setattr(fedftg_losses, "draw_batch", draw_batch)
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
    drawn = np.bincount(fedftg_losses.sample_labels(counts, 4000, jax.random.key(0)), minlength=3) / 4000
    np.testing.assert_allclose(drawn, [0.75, 0, 0.25], atol=0.03)


def test_fedftg_refuses_what_it_cannot_make():
    whole = FederatedData.from_arrays({"a": np.ones((2, 4), np.uint8), "label": LABEL[:2]}, [[0], [1]], num_classes=3)
    with pytest.raises(ValueError, match="array 'a' is of uint8; FedFTG makes examples from noise"):
        fedftg.build(fedftg.FedFTGConfig(), whole, {"a": mlp.encoder((), 3)}, LINEAR)
    with pytest.raises(ValueError, match=r"generator gives \[2, 5\] of two draws; it must give \[2, 6\]"):
        fedftg.build(fedftg.FedFTGConfig(), world(), ENCODERS, LINEAR, mlp.encoder((), 5))
    with pytest.raises(ValueError, match="FedFTG says what is personal"):
        fedftg.build(fedftg.FedFTGConfig(fedavg=FedAvgConfig(shared=("a",))), world(), ENCODERS, LINEAR)


PUBLIC = {m: np.random.default_rng(8).normal(size=(2, x.shape[1])) for m, x in X.items()}  # one batch
GIVEN = {m: x.astype(np.float32) for m, x in PUBLIC.items()}
DEEP = Model(
    lambda key, x: {i: jax.random.normal(key, shape) / 2 for i, shape in (("in", (x.shape[-1], 5)), ("out", (5, 3)))},
    lambda params, x: x @ params["in"] @ params["out"],
)
SMALL = {"A": {"a": LINEAR}, "AB": ENCODERS}


def logits(w):
    """Of the server's model for the public examples."""
    return sum(PUBLIC[m] @ w[f"{m}/in"] @ w[f"{m}/out"] for m in "ab") / 2 @ w["head"]


def lessons(sent):
    """(y, s_div or None) of each public example, from the variances of what clients say. sent: {client: its model}."""
    for i in range(2):
        x = {m: PUBLIC[m][i : i + 1] for m in PUBLIC}
        said = [sum(x[m] @ w[m] for m in x if m in w)[0] / (len(w) - 1) @ w["head"] for w in sent.values()]
        mean = lambda those: np.average(those, axis=0, weights=[np.var(s) for s in those])
        y = np.argmax(mean(said))
        others = [s for s in said if np.argmax(s) != y]
        yield y, mean(others) if others else None


def distillation(w, taught):
    total = 0.0
    for (y, others), log_p in zip(taught, log_softmax(logits(w)), strict=True):
        total -= log_p[y]
        if others is not None:
            log_q = log_softmax(others)
            total += 0.5 * (np.exp(log_q) * (log_q - log_p)).sum()
    return total / 2


def flat(params):
    """The server's parameters, {"a/in": ..., "head": ...}."""
    layers = {f"{m}/{i}": params[m][i] for m in "ab" for i in ("in", "out")}
    return {p: np.asarray(v, np.float64) for p, v in (layers | {"head": params["head"]}).items()}


def test_fedet_is_its_equations():
    """With linear models of clients and deeper ones of the server."""
    config = fedet.FedETConfig(0.2, 3, 0.5, CONFIG)
    method = fedet.build(config, world(GIVEN), {"a": DEEP, "b": DEEP}, LINEAR, SMALL)
    first, last = two_rounds(method, GIVEN)
    w = flat(first.server["params"])
    small = {c: {p: np.asarray(v, np.float64) for p, v in own.items()} for c, own in first.server["small"].items()}
    differ = []
    for taken in ROUNDS:
        sent = {k: descend({**small[k[0]], "head": w["head"]}, k, STEPS[k]) for k in taken}
        of = lambda c, sent=sent: {k: v for k, v in sent.items() if k[0] == c}
        small = {c: average(small[c], of(c), SIZES) for c in small}
        w["head"] = average({"head": w["head"]}, sent, SIZES)["head"]
        taught = list(lessons(sent))
        differ += [others is not None for _, others in taught]
        for _ in range(config.distill_epochs):
            g = slope(lambda w, taught=taught: distillation(w, taught), w)
            w = {p: w[p] - 0.2 * g[p] for p in w}
    assert any(differ) and not all(differ)
    close(flat(last.server["params"]), w, 1e-4)
    close(last.server["small"], small, 1e-4)


def test_fedet_scores_the_servers_model_and_clients_small_ones():
    method = fedet.build(fedet.FedETConfig(), world(GIVEN), {"a": DEEP, "b": DEEP}, LINEAR, SMALL)
    state = method.init(jax.random.key(2))
    w, sent = flat(state.server["params"]), method.server.download(state.server, None)["A"]
    found = method.evaluate(state, {**GIVEN, "label": LABEL[:2]})["a+b/accuracy"]
    assert found == np.mean(logits(w).argmax(1) == LABEL[:2])
    arrays = {"a": jnp.asarray(X["a"]), "label": jnp.asarray(LABEL)}
    right = (X["a"] @ sent.sent["a"] @ sent.sent["head"]).argmax(1) == LABEL
    score = method.cohorts["A"].score
    assert score is not None and score(sent, {}, arrays, jnp.ones(4))["accuracy"].tolist() == right.tolist()


def test_fedet_refuses_models_and_public_examples_that_do_not_fit():
    build = lambda public, small, **of: fedet.build(
        fedet.FedETConfig(fedavg=FedAvgConfig(**of)), world(public), ENCODERS, LINEAR, small
    )
    with pytest.raises(ValueError, match=r"clients is of \['A'\]; the cohorts are \['A', 'AB'\]"):
        build(GIVEN, {"A": {"a": LINEAR}})
    with pytest.raises(ValueError, match="the head has other parameters after the encoders of A than"):
        build(GIVEN, {**SMALL, "A": {"a": mlp.encoder((), 5)}})
    with pytest.raises(ValueError, match=r"public examples have no \['b'\], of which clients' models teach"):
        build({"a": GIVEN["a"]}, SMALL)
    with pytest.raises(ValueError, match=r"the public array 'a' is float32 \[M, 3\]"):
        build({**GIVEN, "a": GIVEN["a"][:, :3]}, SMALL)
    with pytest.raises(ValueError, match="server_lr 0.5, which must be"):
        build(GIVEN, SMALL, server_lr=0.5)
    other = world({**GIVEN, "c": GIVEN["a"]}).population
    with pytest.raises(ValueError, match="the public examples has arrays"):
        build(GIVEN, SMALL).check(other)
