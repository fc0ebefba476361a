"""Neighbours that send other things than one model against their equations, written out in NumPy, and in their limits.

The world is that of test_neighbours: all examples of a client are one example, so that its mini-batches are alike
whatever their order.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_mm.data.federated import FederatedData
from fedjax_mm.methods import feddm, promptfl, splitmix
from fedjax_mm.methods.fedavg import FedAvgConfig
from fedjax_mm.models import mlp
from tests.methods.test_neighbours import (
    CONFIG,
    ENCODERS,
    LABEL,
    LINEAR,
    PARTS,
    RATE,
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

BUDGETS = {"A": 1, "AB": 2}


def test_splitmix_is_its_equations(monkeypatch):
    """Clients with modality a train the first of two base networks, the others both."""
    monkeypatch.setattr(splitmix, "deal", lambda bases, budget, key: jnp.arange(budget))
    config = splitmix.SplitMixConfig(2, BUDGETS, fedavg=CONFIG)
    first, last = two_rounds(splitmix.build(config, world(), ENCODERS, LINEAR))
    bases = [{p: np.asarray(v[j], np.float64) for p, v in first.server["params"].items()} for j in range(2)]
    assert all(np.abs(bases[0][p] - bases[1][p]).max() > 0.1 for p in bases[0])
    for taken in ROUNDS:
        trained = lambda j, taken=taken: [k for k in taken if j < BUDGETS[k[0]]]
        bases = [
            average(w, {k: descend(get(w, k), k, STEPS[k]) for k in trained(j)}, SIZES) for j, w in enumerate(bases)
        ]
    close([{p: v[j] for p, v in last.server["params"].items()} for j in range(2)], bases)


def test_splitmix_predicts_by_the_mean_of_its_first_base_networks_logits():
    state = {}
    for mixed in (1, 2):
        method = splitmix.build(splitmix.SplitMixConfig(3, None, mixed, CONFIG), world(), ENCODERS, LINEAR)
        state = state or method.init(jax.random.key(3))
        w = {p: np.asarray(v, np.float64) for p, v in state.server["params"].items()}
        logits = sum((X["a"] @ w["a"][j] + X["b"] @ w["b"][j]) / 2 @ w["head"][j] for j in range(mixed))
        found = method.evaluate(state, {**X, "label": LABEL})["a+b/accuracy"]
        assert found == pytest.approx(np.mean(np.argmax(logits, 1) == LABEL))


def test_splitmix_of_one_base_network_is_fedavg():
    first, last = two_rounds(splitmix.build(splitmix.SplitMixConfig(1, fedavg=CONFIG), world(), ENCODERS, LINEAR))
    w = {p: np.asarray(v[0], np.float64) for p, v in first.server["params"].items()}
    for taken in ROUNDS:
        w = average(w, {k: descend(get(w, k), k, STEPS[k]) for k in taken}, SIZES)
    close({p: v[0] for p, v in last.server["params"].items()}, w)


def test_a_deal_has_no_base_network_twice_and_leaves_none_out_for_long():
    dealt = np.stack([splitmix.deal(4, 2, jax.random.key(i)) for i in range(30)])
    assert (dealt[:, 0] != dealt[:, 1]).all() and set(dealt.ravel()) == set(range(4))


def synthesise(s, w, k, steps, rate):
    """A client's synthetic examples {modality: [K, n, ...]} after steps of SGD on the matching loss at w."""
    held, c = [p for p in PARTS[k] if p != "head"], LABEL[ROW[k]]
    h = sum(X[m][ROW[k]].astype(np.float64) @ w[m] for m in held) / len(held)
    for _ in range(steps):
        apart = h - sum((s[m][c] @ w[m]).mean(0) for m in held) / len(held)  # of embeddings; those of logits follow
        pull = 2 * (apart + w["head"] @ (w["head"].T @ apart)) / len(held)
        for m in held:
            s[m] = s[m] + rate * np.eye(3)[c][:, None, None] * (w[m] @ pull)[None, None] / s[m].shape[1]
    return s


def union_gradient(w, sent):
    """Of the mean cross-entropy of synthetic examples; a client's weigh as its real ones do."""
    g, total = {p: 0 * w[p] for p in w}, sum(SIZES[k] for k in sent)
    for k, s in sent.items():
        for i in range(2):
            x = {m: s[m][LABEL[ROW[k]], i] for m in s}
            z = sum(x[m] @ w[m] for m in x) / len(x)
            p = np.exp(z @ w["head"])
            p = (p / p.sum() - np.eye(3)[LABEL[ROW[k]]]) * SIZES[k] / total / 2
            g["head"] += np.outer(z, p)
            for m in x:
                g[m] += np.outer(x[m], w["head"] @ p) / len(x)
    return g


def test_feddm_is_its_equations(monkeypatch):
    """At w_r itself in the place of a random w near it, and from known noise. The last round ends on the ball."""
    noise = {m: np.random.default_rng(1).normal(size=(3, 2, x.shape[1])) for m, x in X.items()}
    monkeypatch.setattr(feddm, "draw_near", lambda params, radius, key: params)
    monkeypatch.setattr(feddm, "init_synthetic", lambda kinds, *_: {m: jnp.asarray(noise[m], "f") for m in kinds})
    rate, radius = 0.05, 0.3
    of = FedAvgConfig(client_lr=rate, batch_size=2, epochs=2, server_lr=0.4)
    first, last = two_rounds(feddm.build(feddm.FedDMConfig(2, radius, 3, of), world(), ENCODERS, LINEAR))
    w = {p: np.asarray(v, np.float64) for p, v in first.server["params"].items()}
    for taken in ROUNDS:
        start = {k: {m: noise[m] for m in PARTS[k] if m != "head"} for k in taken}
        sent = {k: synthesise(start[k], w, k, STEPS[k], rate) for k in taken}
        old, reached = w, []
        for _ in range(3):
            g = union_gradient(w, sent)
            w = {p: w[p] - 0.4 * g[p] for p in w}
            reached.append(np.sqrt(sum(np.square(w[p] - old[p]).sum() for p in w)))
            shrink = min(1, radius / reached[-1])
            w = {p: old[p] + shrink * (w[p] - old[p]) for p in w}
    assert min(reached) < radius < max(reached)
    close(last.server["params"], w)


def test_feddm_draws_models_within_the_radius_and_each_step_another():
    w = {"head": jnp.ones((3, 3)), "a": {}}
    drawn = [feddm.draw_near(w, 0.5, jax.random.key(i))["head"] - 1 for i in range(2)]
    assert all(np.linalg.norm(d) == pytest.approx(0.5, abs=1e-5) for d in drawn)
    assert np.abs(drawn[0] - drawn[1]).max() > 0.1


def test_feddm_refuses_modalities_that_are_no_floats():
    whole = FederatedData.from_arrays({"a": np.ones((2, 4), np.uint8), "label": LABEL[:2]}, [[0], [1]], num_classes=3)
    with pytest.raises(ValueError, match="array 'a' is of uint8; FedDM makes examples from noise"):
        feddm.build(feddm.FedDMConfig(), whole, {"a": mlp.encoder((), 3)}, LINEAR)


def prompt_loss(v, names, text, x, label):
    """Cross-entropy of s cos(x, g(prompt)), where g is tanh of the mean over words, times `text`; s is 5."""
    g = np.stack([np.tanh(np.concatenate([v, name]).mean(0) @ text) for name in names])
    z = 5 * g @ x / np.linalg.norm(g, axis=1) / np.linalg.norm(x)
    return np.log(np.exp(z).sum()) - z[label]


def test_promptfl_descends_on_the_cosines_of_prompts_and_averages_the_context():
    """By a numerical gradient, of clients that own one example each."""
    rng = np.random.default_rng(1)
    names, text, x = rng.normal(size=(3, 2, 2)), rng.normal(size=(2, 4)), rng.normal(size=(2, 4))
    label = np.array([2, 0])
    data = FederatedData.from_arrays({"x": x.astype("f"), "label": label}, [[0], [1, 1, 1]], num_classes=3)
    config = promptfl.PromptFLConfig(2, 5.0, FedAvgConfig(client_lr=RATE, batch_size=4, epochs=1))
    given = jnp.asarray(text, jnp.float32)
    encode = lambda prompts: jnp.tanh(prompts.mean(1) @ given)
    method = promptfl.build(config, data, ["x"], names.astype("f"), encode)
    state = method.init(jax.random.key(0))
    assert state.server["params"]["x"] == {}
    v = np.asarray(state.server["params"]["head"], np.float64)
    sent = []
    for i in range(2):
        moves = 1e-4 * np.eye(4).reshape(4, 2, 2)
        loss = lambda v, i=i: prompt_loss(v, names, text, x[i], label[i])
        slope = np.array([(loss(v + h) - loss(v - h)) / 2e-4 for h in moves]).reshape(2, 2)
        sent.append(v - RATE * slope)
    state, _ = jax.jit(method.round)(state, data.round({"all": np.arange(2)}), jax.random.key(0))
    close(state.server["params"]["head"], (sent[0] + 3 * sent[1]) / 4)


def test_promptfl_refuses_what_is_no_encoder_of_prompts_and_features_of_another_width():
    data = FederatedData.from_arrays({"x": np.ones((2, 4), "f"), "label": np.arange(2)}, [[0], [1]])
    build = lambda names, text: promptfl.build(promptfl.PromptFLConfig(), data, ["x"], names, text)
    names = np.ones((2, 1, 5), np.float32)
    with pytest.raises(ValueError, match=r"array 'x' of cohort all is \[2, 4\]; it must be \[E, 5\]"):
        build(names, lambda prompts: prompts.mean(1))
    with pytest.raises(ValueError, match=r"of prompts \[2, 17, 5\]; it must give features \[2, D\]"):
        build(names, lambda prompts: prompts)
    with pytest.raises(ValueError, match=r"text cannot take prompts \[2, 17, 5\]"):
        build(names, lambda prompts: prompts @ jnp.ones((3, 3)))
    with pytest.raises(ValueError, match="names holds NaN"):
        build(np.full((2, 1, 5), np.nan, "f"), lambda prompts: prompts.mean(1))


@pytest.mark.parametrize(
    ("build", "config", "said"),
    [
        (feddm.build, feddm.FedDMConfig(fedavg=FedAvgConfig(shared=("a",))), "FedDM says what is personal"),
        (feddm.build, feddm.FedDMConfig(fedavg=FedAvgConfig(prox=1.0)), "FedDM's clients train no parameters"),
        (splitmix.build, splitmix.SplitMixConfig(2, {"A": 1}), r"budgets is of \['A'\]; the cohorts are"),
        (splitmix.build, splitmix.SplitMixConfig(2, {"A": 0, "AB": 3}), r"\{'A': 0, 'AB': 3\} of .* within 1..2"),
        (splitmix.build, splitmix.SplitMixConfig(2, None, 3), r"\{'mixed': 3\} of SplitMixConfig must be within"),
        (splitmix.build, splitmix.SplitMixConfig(fedavg=FedAvgConfig(shared=("a",))), "Split-Mix says what is"),
        (splitmix.build, splitmix.SplitMixConfig(fedavg=FedAvgConfig(server_lr=0.5)), "server_lr 0.5, which must be"),
    ],
)
def test_settings_that_do_not_go_together_are_errors_that_name_the_cure(build, config, said):
    with pytest.raises(ValueError, match=said):
        build(config, world(), ENCODERS, LINEAR)
