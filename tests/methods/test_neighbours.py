"""FedAvg's neighbours against their papers' equations, written out in NumPy, and in the limits where they are FedAvg.

All examples of a client are one example, so that its mini-batches are alike whatever their order, while clients take 2,
4, 6 and 2 steps in a round.
"""

import dataclasses

import chex
import jax
import numpy as np
import pytest

from fedjax_mm.clients import fill_places
from fedjax_mm.data.federated import FederatedData
from fedjax_mm.methods import ditto, feddyn, fednova, fedrep, ifca, pfedme, scaffold
from fedjax_mm.methods.fedavg import FedAvgConfig
from fedjax_mm.models import Model

RNG = np.random.default_rng(0)
KEY = jax.random.key(0)
LINEAR = Model(lambda key, x: jax.random.normal(key, (x.shape[-1], 3)) / 2, lambda params, x: x @ params)
ENCODERS = {"a": LINEAR, "b": LINEAR}
RATE, BATCH, EPOCHS = 0.3, 2, 2
CONFIG = FedAvgConfig(client_lr=RATE, batch_size=BATCH, epochs=EPOCHS)
SIZES = {("A", 0): 2, ("A", 1): 4, ("AB", 0): 6, ("AB", 1): 2}  # client -> how many times it owns its example
STEPS = {k: EPOCHS * -(-n // BATCH) for k, n in SIZES.items()}
ROUNDS = [[("A", 0), ("A", 1), ("AB", 0)], [("A", 1), ("AB", 0), ("AB", 1)]]
X = {m: RNG.normal(size=(4, width)).astype(np.float32) for m, width in (("a", 4), ("b", 2))}
LABEL = np.array([0, 1, 2, 1], np.int32)
ROW = {k: i for i, k in enumerate(SIZES)}
PARTS = {k: ("a", "head") if k[0] == "A" else ("a", "b", "head") for k in SIZES}


def world(public=None):
    """Cohort A has modality a, cohort AB both."""
    repeated = {k: np.full(n, ROW[k]) for k, n in SIZES.items()}
    arrays = {"A": {"a": X["a"], "label": LABEL}, "AB": {**X, "label": LABEL}}
    owned = {name: [rows for k, rows in repeated.items() if k[0] == name] for name in arrays}
    return FederatedData.from_arrays(arrays, owned, public=public, num_classes=3)


def two_rounds(method, public=None):
    """(the first state, the last)."""
    data, step = world(public), jax.jit(method.round)
    first = state = method.init(KEY)
    for taken in ROUNDS:
        who = {name: [j for cohort, j in taken if cohort == name] for name in data.sizes}
        state, metrics = step(state, data.round({n: fill_places(np.array(j), 2, 2) for n, j in who.items()}), KEY)
        assert all(float(metrics[name]["left_out"]) == 0 for name in who)
    return first, state


def rounds_of_one_cohort(build, config, examples, rounds=2):
    """({part: its first value}, the state after rounds of all clients, who own their example so many times)."""
    rows = [np.full(n, i) for i, n in enumerate(examples)]
    data = FederatedData.from_arrays({"a": X["a"], "label": LABEL}, rows, num_classes=3)
    method = build(config, data, {"a": LINEAR}, LINEAR)
    step, state = jax.jit(method.round), method.init(KEY)
    first = {p: np.asarray(v, np.float64) for p, v in state.server["params"].items()}
    for _ in range(rounds):
        state, _ = step(state, data.round({"all": np.arange(len(examples))}), KEY)
    return first, state


def gradient(w, k):
    """Of the cross-entropy of client k's example, by hand."""
    x = {m: X[m][ROW[k]].astype(np.float64) for m in PARTS[k] if m != "head"}
    z = sum(x[m] @ w[m] for m in x) / len(x)
    p = np.exp(z @ w["head"])
    p = p / p.sum() - np.eye(3)[LABEL[ROW[k]]]
    return {**{m: np.outer(x[m], w["head"] @ p) / len(x) for m in x}, "head": np.outer(z, p)}


def descend(w, k, steps, rate=RATE, more=lambda w: {}, only=None):
    """w after steps of SGD. more: what is added to the gradient, by part; only: the parts that move."""
    for _ in range(steps):
        g, extra = gradient(w, k), more(w)
        w = {p: w[p] - rate * (g[p] + extra.get(p, 0)) if p in (only or w) else w[p] for p in w}
    return w


def get(w, k):
    return {p: np.asarray(w[p], np.float64) for p in PARTS[k]}


def average(old, sent, weights):
    """Part by part the mean over those who sent it."""
    new = {}
    for p in old:
        who = [k for k in sent if p in sent[k]]
        total = sum(weights[k] for k in who)
        new[p] = sum(weights[k] * sent[k][p] for k in who) / total if who else old[p]
    return new


def holders(part, who=SIZES):
    return sum(part in PARTS[k] for k in who)


ALIKE = dict.fromkeys(SIZES, 1)


def close(found, expected, atol=2e-5):
    chex.assert_trees_all_close(found, expected, atol=atol)


def own(state, prefix=""):
    """{client: its state, by part}."""
    return {k: {p: state.clients[k[0]][f"{prefix}{p}"][k[1]] for p in PARTS[k]} for k in SIZES}


def test_scaffold_is_its_equations():
    server_lr = 0.5
    config = FedAvgConfig(client_lr=RATE, batch_size=BATCH, epochs=EPOCHS, server_lr=server_lr)
    first, last = two_rounds(scaffold.build(config, world(), ENCODERS, LINEAR))
    x = {p: np.asarray(v, np.float64) for p, v in first.server["params"].items()}
    c, c_k = {p: 0 * x[p] for p in x}, {k: {p: 0 * x[p] for p in PARTS[k]} for k in SIZES}
    for taken in ROUNDS:
        y, change = {}, {}
        for k in taken:
            correction = {p: c[p] - c_k[k][p] for p in PARTS[k]}
            y[k] = descend(get(x, k), k, STEPS[k], more=lambda w, correction=correction: correction)
            change[k] = {p: -c[p] + (x[p] - y[k][p]) / (STEPS[k] * RATE) for p in PARTS[k]}
            c_k[k] = {p: c_k[k][p] + change[k][p] for p in PARTS[k]}
        mean, of_change = average(x, y, ALIKE), average({p: 0 * x[p] for p in x}, change, ALIKE)
        x = {p: x[p] + server_lr * (mean[p] - x[p]) for p in x}
        c = {p: c[p] + holders(p, taken) / holders(p) * of_change[p] for p in c}
    close(last.server["params"], x)
    close(last.server["control"], c)
    close(own(last, "control/"), c_k)


def test_fednova_is_its_equations():
    """With FedProx's term, by which a client's later gradients weigh more."""
    prox = 0.5
    config = FedAvgConfig(client_lr=RATE, batch_size=BATCH, epochs=EPOCHS, prox=prox)
    first, last = two_rounds(fednova.build(config, world(), ENCODERS, LINEAR))
    w = {p: np.asarray(v, np.float64) for p, v in first.server["params"].items()}
    for taken in ROUNDS:
        norm = {k: sum((1 - RATE * prox) ** j for j in range(STEPS[k])) for k in taken}
        d = {}
        for k in taken:
            pull = lambda v, start=w: {p: prox * (v[p] - start[p]) for p in v}
            end = descend(get(w, k), k, STEPS[k], more=pull)
            d[k] = {p: (end[p] - w[p]) / norm[k] for p in PARTS[k]}
        tau = average(dict.fromkeys(w, 0.0), {k: dict.fromkeys(PARTS[k], norm[k]) for k in taken}, SIZES)
        mean = average({p: 0 * w[p] for p in w}, d, SIZES)
        w = {p: w[p] + tau[p] * mean[p] for p in w}
    close(last.server["params"], w)


def test_feddyn_is_its_equations():
    alpha = 0.2
    first, last = two_rounds(feddyn.build(feddyn.FedDynConfig(alpha, CONFIG), world(), ENCODERS, LINEAR))
    w = {p: np.asarray(v, np.float64) for p, v in first.server["params"].items()}
    h, g = {p: 0 * w[p] for p in w}, {k: {p: 0 * w[p] for p in PARTS[k]} for k in SIZES}
    for taken in ROUNDS:
        end = {}
        for k in taken:
            bend = lambda v, k=k, start=w: {p: -g[k][p] + alpha * (v[p] - start[p]) for p in v}
            end[k] = descend(get(w, k), k, STEPS[k], more=bend)
            g[k] = {p: g[k][p] - alpha * (end[k][p] - w[p]) for p in PARTS[k]}
        for p in w:
            who = [k for k in taken if p in PARTS[k]]
            h[p] = h[p] - alpha / holders(p) * sum(end[k][p] - w[p] for k in who)
            w = {**w, p: sum(end[k][p] for k in who) / len(who) - h[p] / alpha}
    close(last.server["params"], w)
    close(last.server["h"], h)
    close(own(last, "pull/"), g)


def test_ditto_is_its_equations():
    strength = 0.4
    first, last = two_rounds(ditto.build(ditto.DittoConfig(strength, CONFIG), world(), ENCODERS, LINEAR))
    w = {p: np.asarray(v, np.float64) for p, v in first.server["params"].items()}
    v = {k: get(w, k) for k in SIZES}
    for taken in ROUNDS:
        pull = lambda v, w=w: {p: strength * (v[p] - w[p]) for p in v}
        v |= {k: descend(v[k], k, STEPS[k], more=pull) for k in taken}
        w = average(w, {k: descend(get(w, k), k, STEPS[k]) for k in taken}, SIZES)
    close(last.server["params"], w)
    close(own(last), v)


def test_fedrep_is_its_equations():
    config = fedrep.FedRepConfig(head_epochs=3, fedavg=CONFIG)
    first, last = two_rounds(fedrep.build(config, world(), ENCODERS, LINEAR))
    phi = {p: np.asarray(v, np.float64) for p, v in first.server["params"].items()}
    h = {k: np.asarray(first.clients[k[0]]["head"][k[1]], np.float64) for k in SIZES}
    assert set(phi) == {"a", "b"}
    for taken in ROUNDS:
        sent = {}
        for k in taken:
            encoders = PARTS[k][:-1]
            w = descend(get({**phi, "head": h[k]}, k), k, 3 * STEPS[k] // EPOCHS, only=("head",))
            h[k] = w["head"]
            sent[k] = {m: descend(w, k, STEPS[k], only=encoders)[m] for m in encoders}
        phi = average(phi, sent, SIZES)
    close(last.server["params"], phi)
    close({k: last.clients[k[0]]["head"][k[1]] for k in SIZES}, h)


def test_pfedme_is_its_equations():
    strength, rate, eta, beta = 2.0, 0.1, 0.2, 0.5
    of = FedAvgConfig(client_lr=eta, batch_size=BATCH, epochs=EPOCHS, server_lr=beta)
    config = pfedme.PFedMeConfig(strength, inner_steps=3, personal_lr=rate, fedavg=of)
    first, last = two_rounds(pfedme.build(config, world(), ENCODERS, LINEAR))
    w = {p: np.asarray(v, np.float64) for p, v in first.server["params"].items()}
    theta = {k: get(w, k) for k in SIZES}
    for taken in ROUNDS:
        sent = {}
        for k in taken:
            w_k = get(w, k)
            for _ in range(STEPS[k]):
                pull = lambda v, w_k=w_k: {p: strength * (v[p] - w_k[p]) for p in v}
                theta[k] = descend(w_k, k, 3, rate, more=pull)
                w_k = {p: w_k[p] - eta * strength * (w_k[p] - theta[k][p]) for p in w_k}
            sent[k] = w_k
        mean = average(w, sent, SIZES)
        w = {p: (1 - beta) * w[p] + beta * mean[p] for p in w}
    close(last.server["params"], w)
    close(own(last), theta)


def loss(w, k):
    x = {m: X[m][ROW[k]].astype(np.float64) for m in PARTS[k] if m != "head"}
    z = sum(x[m] @ w[m] for m in x) / len(x) @ w["head"]
    return np.log(np.exp(z).sum()) - z[LABEL[ROW[k]]]


def test_ifca_is_its_equations():
    first, last = two_rounds(ifca.build(ifca.IFCAConfig(3, CONFIG), world(), ENCODERS, LINEAR))
    models = [{p: np.asarray(v[j], np.float64) for p, v in first.server["params"].items()} for j in range(3)]
    picked = dict.fromkeys(SIZES, 0)
    for taken in ROUNDS:
        picked |= {k: int(np.argmin([loss(w, k) for w in models])) for k in taken}
        sent = {k: descend(get(models[picked[k]], k), k, STEPS[k]) for k in taken}
        models = [average(w, {k: sent[k] for k in taken if picked[k] == j}, SIZES) for j, w in enumerate(models)]
    assert len(set(picked.values())) > 1
    close([{p: v[j] for p, v in last.server["params"].items()} for j in range(3)], models)
    assert {k: int(last.clients[k[0]]["model"][k[1]]) for k in SIZES} == picked


def test_scaffold_of_one_client_is_sgd():
    w, last = rounds_of_one_cohort(scaffold.build, CONFIG, [4])
    close(last.server["params"], descend(w, ("A", 0), 2 * EPOCHS * 2))


def test_fednova_of_equal_steps_is_fedavg():
    w, last = rounds_of_one_cohort(fednova.build, dataclasses.replace(CONFIG, prox=0.5), [3, 4], rounds=1)
    ends = [descend(w, k, EPOCHS * 2, more=lambda v: {p: 0.5 * (v[p] - w[p]) for p in v}) for k in (("A", 0), ("A", 1))]
    close(last.server["params"], {p: (3 * ends[0][p] + 4 * ends[1][p]) / 7 for p in w})


def test_feddyn_of_a_small_alpha_has_fedavgs_clients_and_a_server_that_goes_twice_as_far():
    w, last = rounds_of_one_cohort(feddyn.build, feddyn.FedDynConfig(1e-4, CONFIG), [4, 4], rounds=1)
    ends = [descend(w, k, EPOCHS * 2) for k in (("A", 0), ("A", 1))]
    close(last.server["params"], {p: ends[0][p] + ends[1][p] - w[p] for p in w}, atol=2e-3)


def test_ditto_of_lambda_0_trains_alone_and_a_large_lambda_holds_clients_to_the_server():
    w, last = rounds_of_one_cohort(ditto.build, ditto.DittoConfig(0.0, CONFIG), [4, 4])
    for j in (0, 1):
        close({p: last.clients["all"][p][j] for p in w}, descend(w, ("A", j), 2 * EPOCHS * 2))
    _, held = rounds_of_one_cohort(ditto.build, ditto.DittoConfig(3.0, CONFIG), [4, 4])
    apart = lambda state: sum(
        np.square(np.subtract(state.clients["all"][p], state.server["params"][p])).sum() for p in w
    )
    assert apart(held) < 0.5 * apart(last)


def test_pfedme_of_one_inner_step_trains_the_server_as_fedavg_with_the_product_of_the_rates():
    of = dataclasses.replace(CONFIG, client_lr=0.2)
    config = pfedme.PFedMeConfig(prox=3.0, inner_steps=1, personal_lr=0.5, fedavg=of)
    w, last = rounds_of_one_cohort(pfedme.build, config, [4, 2], rounds=1)
    ends = [descend(w, ("A", j), EPOCHS * steps, rate=0.2 * 3.0 * 0.5) for j, steps in ((0, 2), (1, 1))]
    close(last.server["params"], {p: (4 * ends[0][p] + 2 * ends[1][p]) / 6 for p in w})


@pytest.mark.parametrize(
    ("build", "config", "said"),
    [
        (scaffold.build, FedAvgConfig(client_optimizer="adam"), "'adam'; SCAFFOLD is about"),
        (scaffold.build, FedAvgConfig(client_lr=0.0), "client_lr is 0, and SCAFFOLD divides by it"),
        (fednova.build, FedAvgConfig(client_optimizer="adam"), "'adam'; FedNova is about"),
        (feddyn.build, feddyn.FedDynConfig(0.0), "alpha is 0, and FedDyn divides by it"),
        (ifca.build, ifca.IFCAConfig(fedavg=FedAvgConfig(server_optimizer="adam")), "'adam' and server_lr 1.0, which"),
        (ifca.build, ifca.IFCAConfig(fedavg=FedAvgConfig(shared=("a",))), "IFCA says what is personal"),
        (feddyn.build, feddyn.FedDynConfig(fedavg=FedAvgConfig(server_lr=0.5)), "server_lr 0.5, which must be"),
        (ditto.build, ditto.DittoConfig(fedavg=FedAvgConfig(shared=("a",))), "Ditto says what is personal"),
        (fedrep.build, fedrep.FedRepConfig(fedavg=FedAvgConfig(shared=())), "FedRep says what is personal"),
        (pfedme.build, pfedme.PFedMeConfig(fedavg=FedAvgConfig(shared=("a",))), "pFedMe says what is personal"),
        (pfedme.build, pfedme.PFedMeConfig(fedavg=FedAvgConfig(prox=1.0)), "pFedMe's lambda is PFedMeConfig.prox"),
    ],
)
def test_settings_that_do_not_go_together_are_errors_that_name_the_cure(build, config, said):
    with pytest.raises(ValueError, match=said):
        build(config, world(), ENCODERS, LINEAR)
