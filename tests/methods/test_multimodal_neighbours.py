"""Neighbours that are about modalities against their papers' equations, written out in NumPy, and in their limits.

The world is that of test_neighbours: all examples of a client are one example, so that its mini-batches are alike
whatever their order.
"""

import dataclasses
import functools
import itertools
import math

import jax
import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from fedjax_mm.clients import fill_places
from fedjax_mm.data.federated import FederatedData
from fedjax_mm.methods import carmfl, fedavg, fedclip, fedmsplit, fedproto, fesem, flexmod, hafedformer, mfedmc
from fedjax_mm.methods.fedavg import FedAvgConfig
from tests.methods.test_neighbours import (
    CONFIG,
    ENCODERS,
    KEY,
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
    own,
    two_rounds,
    world,
)


def held(k):
    return [p for p in PARTS[k] if p != "head"]


def embedding(w, k, m):
    return X[m][ROW[k]].astype(np.float64) @ w[m]


def test_fedproto_is_its_equations():
    strength = 0.3
    first, last = two_rounds(fedproto.build(fedproto.FedProtoConfig(strength, CONFIG), world(), ENCODERS, LINEAR))
    w = {k: get({p: np.asarray(first.clients[k[0]][p][k[1]]) for p in PARTS[k]}, k) for k in SIZES}
    mean, known = {m: np.zeros((3, 3)) for m in "ab"}, {m: np.zeros(3) for m in "ab"}
    for taken in ROUNDS:
        for k in taken:
            j, x = LABEL[ROW[k]], {m: X[m][ROW[k]].astype(np.float64) for m in held(k)}
            pull = lambda v, k=k, j=j, x=x, mean=mean, known=known: {
                m: 2 * strength * known[m][j] * np.outer(x[m], x[m] @ v[m] - mean[m][j]) for m in held(k)
            }
            w[k] = descend(w[k], k, STEPS[k], more=pull)
        mean, known = {m: mean[m].copy() for m in mean}, {m: known[m].copy() for m in known}
        for m in "ab":
            for j in range(3):
                who = [k for k in taken if m in PARTS[k] and LABEL[ROW[k]] == j]
                if who:
                    total = sum(SIZES[k] * embedding(w[k], k, m) for k in who)
                    mean[m][j], known[m][j] = total / sum(SIZES[k] for k in who), 1
    close(own(last), w)
    close({m: last.server["prototypes"][m]["mean"] for m in "ab"}, mean)
    close({m: last.server["prototypes"][m]["known"] for m in "ab"}, known)
    assert known["a"].tolist() == [1, 1, 1] and known["b"].tolist() == [0, 1, 1]


def test_fedproto_of_lambda_0_trains_alone_and_sends_prototypes_alone():
    method = fedproto.build(fedproto.FedProtoConfig(0.0, CONFIG), world(), ENCODERS, LINEAR)
    first, last = two_rounds(method)
    times = {k: sum(k in taken for taken in ROUNDS) for k in SIZES}
    start = {k: get({p: np.asarray(first.clients[k[0]][p][k[1]]) for p in PARTS[k]}, k) for k in SIZES}
    close(own(last), {k: descend(start[k], k, times[k] * STEPS[k]) for k in SIZES})
    assert set(method.server.download(first.server, None)["A"].sent) == {"a"}


def adapter_loss(w, x, label, text, scale):
    """By hand, of one example."""
    shares = softmax(
        np.tanh(x @ w["first"]["kernel"] + w["first"]["bias"]) @ w["second"]["kernel"] + w["second"]["bias"]
    )
    z = len(x) * shares * x
    cosines = text @ z / np.linalg.norm(text, axis=1) / np.linalg.norm(z)
    return -log_softmax(scale * cosines)[label]


def test_fedclip_descends_on_the_cosines_of_adapted_features_and_averages_the_adapter():
    """By a numerical gradient, of clients that own one example each."""
    rng = np.random.default_rng(1)
    text, x, label = rng.normal(size=(3, 4)), rng.normal(size=(2, 4)), np.array([2, 0])
    data = FederatedData.from_arrays({"x": x.astype("f"), "label": label}, [[0], [1, 1, 1]], num_classes=3)
    config = fedclip.FedCLIPConfig(5.0, FedAvgConfig(client_lr=RATE, batch_size=4, epochs=1))
    method = fedclip.build(config, data, ["x"], text)
    state = method.init(KEY)
    w = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), state.server["params"]["x"])
    flat, back = jax.flatten_util.ravel_pytree(w)
    flat = np.asarray(flat, np.float64)
    sent = []
    for i in range(2):
        loss = lambda v, i=i: adapter_loss(jax.tree.map(np.asarray, back(v)), x[i], label[i], text, 5.0)
        steps = 1e-2 * np.eye(len(flat))
        sent.append(flat - RATE * np.array([(loss(flat + h) - loss(flat - h)) / 2e-2 for h in steps]))
    state, _ = jax.jit(method.round)(state, data.round({"all": np.arange(2)}), KEY)
    close(jax.flatten_util.ravel_pytree(state.server["params"]["x"])[0], (sent[0] + 3 * sent[1]) / 4, atol=2e-3)
    assert set(state.server["params"]) == {"x", "head"} and not state.server["params"]["head"]


def test_fedclip_refuses_features_of_another_width():
    data = FederatedData.from_arrays({"x": np.ones((2, 4), "f"), "label": np.arange(2)}, [[0], [1]])
    with pytest.raises(ValueError, match=r"array 'x' of cohort all is \[2, 4\]; it must be \[E, 5\]"):
        fedclip.build(fedclip.FedCLIPConfig(), data, ["x"], np.ones((2, 5)))
    with pytest.raises(ValueError, match="text holds NaN"):
        fedclip.build(fedclip.FedCLIPConfig(), data, ["x"], np.full((2, 4), np.nan))


def public_world():
    """With public examples of both modalities, of which some have the clients' labels."""
    data, rng = world(), np.random.default_rng(2)
    rows = {m: rng.normal(size=(6, x.shape[1])).astype("f") for m, x in X.items()}
    return dataclasses.replace(data, public={**rows, "label": np.array([0, 1, 2, 0, 1, 2], np.int32)})


def step_on(w, x, label):
    """w after a step on one example by hand. x: modality -> its input."""
    z = sum(x[m] @ w[m] for m in x) / len(x)
    p = softmax(z @ w["head"]) - np.eye(3)[label]
    moved = {m: np.outer(x[m], w["head"] @ p) / len(x) for m in x} | {"head": np.outer(z, p)}
    return {p: w[p] - RATE * moved[p] if p in moved else w[p] for p in w}


def test_carmfl_is_its_equations():
    data, alpha, k_nearest = public_world(), 0.3, 3
    config = carmfl.CARMFLConfig(k_nearest, alpha, CONFIG)
    method = carmfl.build(config, data, ENCODERS, LINEAR)
    state = first = method.init(KEY)
    step = jax.jit(method.round)
    for taken in ROUNDS:
        who = {name: np.array([j for cohort, j in taken if cohort == name]) for name in data.sizes}
        state, _ = step(state, data.round({n: fill_places(j, 2, 2) for n, j in who.items()}), KEY)
    w, borrowed = {p: np.asarray(v, np.float64) for p, v in first.server["params"].items()}, set()
    for taken in ROUNDS:
        sent, weights = {}, {}
        for k in taken:
            x = {m: X[m][ROW[k]].astype(np.float64) for m in held(k)}
            if k[0] == "A":
                apart = np.square(data.public["a"] @ w["a"] - x["a"] @ w["a"]).sum(1)
                nearest = np.argsort(apart)[:k_nearest]
                same = [i for i in nearest if data.public["label"][i] == LABEL[ROW[k]]]
                borrowed.add(bool(same) and same[0] != nearest[0])
                x["b"] = data.public["b"][(same or list(nearest))[0]].astype(np.float64)
            sent[k] = w
            for _ in range(STEPS[k]):
                sent[k] = step_on(sent[k], x, LABEL[ROW[k]])
            weights[k] = {p: SIZES[k] * (alpha if p not in PARTS[k] else 1) for p in w}
        total = {p: sum(weights[k][p] for k in taken) for p in w}
        w = {p: sum(weights[k][p] * sent[k][p] for k in taken) / total[p] for p in w}
    assert True in borrowed  # a label changed what was borrowed
    close(state.server["params"], w)


def fusion_step(omega, said, label):
    p = softmax(said @ omega["kernel"] + omega["bias"]) - np.eye(3)[label]
    return {"kernel": omega["kernel"] - RATE * np.outer(said, p), "bias": omega["bias"] - RATE * p}


def priority_by_hand(values, sizes, waited, alphas):
    """values: set of modalities -> accuracy. Shapley's value over the orders in which the modalities come."""
    names, phi = list(sizes), dict.fromkeys(sizes, 0.0)
    for order in itertools.permutations(names):
        for i, m in enumerate(order):
            gain = values[frozenset(order[: i + 1])] - values[frozenset(order[:i])]
            phi[m] += gain / math.factorial(len(names))
    part = lambda x: {m: abs(x[m]) / (max(map(abs, x.values())) or 1) for m in names}
    phi, size, wait = part(phi), part(sizes), part(waited)
    return {m: alphas[0] * phi[m] + alphas[1] * (1 - size[m]) + alphas[2] * wait[m] for m in names}


def test_mfedmc_is_its_equations():
    alphas, share = (0.2, 0.3, 0.6), 0.5
    config = mfedmc.MFedMCConfig(1, share, *alphas, CONFIG)
    first, last = two_rounds(mfedmc.build(config, world(), ENCODERS, LINEAR))
    double = lambda tree: jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)
    theta = double(first.server["params"])
    fusion = lambda state, k: jax.tree.map(lambda leaf: leaf[k[1]], state.clients[k[0]]["head"]["Dense_0"])
    omega = {k: double(fusion(first, k)) for k in SIZES}
    waited, sizes = {k: dict.fromkeys(held(k), 0.0) for k in SIZES}, {"a": 4 * 3 + 9, "b": 2 * 3 + 9}
    sent_by = []
    for taken in ROUNDS:
        offers = {"a": [], "b": []}
        for k in taken:
            label, own = LABEL[ROW[k]], {}
            for m in held(k):
                w = {m: theta[m]["encoder"], "head": theta[m]["head"]}
                for _ in range(STEPS[k]):
                    w = step_on(w, {m: X[m][ROW[k]].astype(np.float64)}, label)
                own[m] = w
            logits = {m: X[m][ROW[k]] @ own[m][m] @ own[m]["head"] for m in own}
            said = {m: softmax(logits[m]) * 2 / len(own) if m in own else np.zeros(3) for m in "ab"}
            for _ in range(STEPS[k]):
                omega[k] = fusion_step(omega[k], np.concatenate([said["a"], said["b"]]), label)
            values = {}
            for n in range(len(own) + 1):
                for of in itertools.combinations(own, n):
                    seen = np.concatenate([said[m] if m in of else np.zeros(3) for m in "ab"])
                    right = (seen @ omega[k]["kernel"] + omega[k]["bias"]).argmax() == label
                    values[frozenset(of)] = float(right)
            waited[k] = {m: waited[k][m] + 1 for m in own}
            ranked = priority_by_hand(values, {m: sizes[m] for m in own}, waited[k], alphas)
            best = max(ranked, key=ranked.get)
            waited[k][best] = 0.0
            sent_by.append((k[0], best))
            offers[best].append((-log_softmax(logits[best])[label], SIZES[k], own[best], best))
        for m, found in offers.items():
            best = sorted(found, key=lambda one: one[0])[: math.ceil(share * len(found))]
            if best:
                mean = lambda part, best=best: np.average([one[2][part] for one in best], 0, [one[1] for one in best])
                theta[m] = {"encoder": mean(m), "head": mean("head")}
    close(last.server["params"], theta)
    close({k: fusion(last, k) for k in SIZES}, omega)
    close({k: {m: last.clients[k[0]]["waited"][m][k[1]] for m in held(k)} for k in SIZES}, waited)
    assert len({m for cohort, m in sent_by if cohort == "AB"}) == 2  # it waited until it was sent


def test_fesem_is_its_equations():
    first, last = two_rounds(fesem.build(fesem.FeSEMConfig(3, CONFIG), world(), ENCODERS, LINEAR))
    centres = [{p: np.asarray(v[j], np.float64) for p, v in first.server["params"].items()} for j in range(3)]
    number = {k: int(first.clients[k[0]]["model"][k[1]]) for k in SIZES}
    assert len(set(number.values())) > 1
    w = {}
    for taken in ROUNDS:
        for k in taken:
            if k in w:
                apart = [sum(np.square(w[k][p] - centre[p]).sum() for p in w[k]) for centre in centres]
                number[k] = int(np.argmin(apart))
            w[k] = descend(get(centres[number[k]], k), k, STEPS[k])
        centres = [average(c, {k: w[k] for k in taken if number[k] == j}, SIZES) for j, c in enumerate(centres)]
    close([{p: v[j] for p, v in last.server["params"].items()} for j in range(3)], centres)
    assert {k: int(last.clients[k[0]]["model"][k[1]]) for k in SIZES} == number


def test_fedmsplit_is_its_equations():
    tau = 0.4
    first, last = two_rounds(fedmsplit.build(fedmsplit.FedMSplitConfig(tau, CONFIG), world(), ENCODERS, LINEAR))
    mixed = {k: get({p: first.server[k[0]]["mixed"][p][k[1]] for p in PARTS[k]}, k) for k in SIZES}
    sent = {}
    for taken in ROUNDS:
        sent |= {k: descend(mixed[k], k, STEPS[k]) for k in taken}
        for k in SIZES:
            view = {}
            for i in taken:
                for p in {*PARTS[k]} & {*PARTS[i]}:
                    apart, size = np.square(sent.get(k, sent[i])[p] - sent[i][p]).sum(), np.square(sent[i][p]).sum()
                    view[p, i] = np.exp(-apart / tau / (size + np.square(sent.get(k, sent[i])[p]).sum()))
            count = {i: SIZES[i] * np.mean([s for (_, who), s in view.items() if who == i]) for i in taken}
            for p in PARTS[k]:
                who = [i for i in taken if (p, i) in view]
                if who:
                    weights = [count[i] * view[p, i] for i in who]
                    mixed[k] = {**mixed[k], p: np.average([sent[i][p] for i in who], 0, weights)}
    of = lambda kind: {k: {p: last.server[k[0]][kind][p][k[1]] for p in PARTS[k]} for k in SIZES}
    close(of("mixed"), mixed)
    close(of("sent"), sent)


@functools.cache
def of_fedavg():
    return two_rounds(fedavg.build(CONFIG, world(), ENCODERS, LINEAR))[1].server["params"]


def test_fedmsplit_of_clients_that_are_all_alike_is_fedavg():
    first, last = two_rounds(fedmsplit.build(fedmsplit.FedMSplitConfig(1e9, CONFIG), world(), ENCODERS, LINEAR))
    for cohort, parts in (("A", ("a", "head")), ("AB", ("a", "b", "head"))):
        for p in parts:
            everyone = last.server[cohort]["mixed"][p]
            close(everyone, np.broadcast_to(of_fedavg()[p], everyone.shape))


def shares_by_hand(budget, beta, quality, phi):
    """Of two modalities."""
    part = lambda x: x / x.sum() if x.sum() > 0 else np.full(2, 0.5)
    wanted = (1 - beta) * part(np.maximum(phi, 0)) + beta * part(1 - quality)
    share = 2 * budget * wanted / wanted.sum()
    return share if share.max() < 1 else np.where(share >= 1, 1.0, 2 * budget - 1)


def measured_by_hand(w, k, mean, known):
    """(whether each modality's nearest prototype is right, phi or None) of client k's example under the model w."""
    right, label = {}, LABEL[ROW[k]]
    h = {m: embedding(w, k, m) for m in held(k)}
    for m in h:
        apart = np.where(known[m] > 0, np.square(mean[m] - h[m]).sum(1), np.inf)
        right[m] = float(known[m].any() and apart.argmin() == label)
    if len(h) < 2:
        return right, None
    says = lambda z: float((z @ w["head"]).argmax() == label)
    none, a, b, both = says(np.zeros(3)), says(h["a"]), says(h["b"]), says((h["a"] + h["b"]) / 2)
    return right, np.array([(a - none + both - b) / 2, (b - none + both - a) / 2])


def test_flexmod_is_its_equations():
    budget, beta = 0.6, 0.3
    method = flexmod.build(flexmod.FlexModConfig(budget, beta, CONFIG), world(), ENCODERS, LINEAR)
    first, last = two_rounds(method)
    w = {p: np.asarray(v, np.float64) for p, v in first.server["params"].items()}
    mean, known = {m: np.zeros((3, 3)) for m in "ab"}, {m: np.zeros(3) for m in "ab"}
    quality, phi, seen = np.zeros(2), np.zeros(2), []
    for taken in ROUNDS:
        share, sent, right = dict(zip("ab", shares_by_hand(budget, beta, quality, phi), strict=True)), {}, {}
        seen.append(tuple(share.values()))
        for k in taken:
            right[k], v = measured_by_hand(w, k, mean, known), get(w, k)
            for step in range(STEPS[k]):
                until = lambda n, m, share=share: np.ceil(share[m] * n - 1e-4)
                rests = {m for m in held(k) if until(step + 1, m) == until(step, m)}
                v = descend(v, k, 1, only={*PARTS[k]} - rests)
            sent[k] = v
        of = lambda m, taken=taken: [k for k in taken if m in PARTS[k]]
        weights = lambda who: [SIZES[k] for k in who]
        quality = np.array([np.average([right[k][0][m] for k in of(m)], weights=weights(of(m))) for m in "ab"])
        phi = np.average([right[k][1] for k in of("b")], 0, weights(of("b")))
        mean, known = {m: mean[m].copy() for m in mean}, {m: known[m].copy() for m in known}
        for m, j in itertools.product("ab", range(3)):
            who = [k for k in of(m) if LABEL[ROW[k]] == j]
            if who:
                mean[m][j] = np.average([embedding(w, k, m) for k in who], 0, weights(who))
                known[m][j] = 1
        w = average(w, sent, SIZES)
    close(last.server["params"], w)
    close({m: last.server["prototypes"][m]["mean"] for m in "ab"}, mean)
    close((last.server["quality"], last.server["shapley"]), (quality, phi))
    sent = method.server.download(last.server, None)["AB"].sent
    expected = shares_by_hand(budget, beta, quality, phi)
    close((sent["share/a"], sent["share/b"]), tuple(expected))
    assert seen[0] == (budget, budget) and abs(expected[0] - expected[1]) > 0.05


def test_flexmod_with_a_budget_of_1_is_fedavg():
    last = two_rounds(flexmod.build(flexmod.FlexModConfig(1.0, 0.3, CONFIG), world(), ENCODERS, LINEAR))[1]
    close(last.server["params"], of_fedavg())


def hafedformer_by_hand(first, rho, cross):
    """The server's parameters after the rounds: unimodal training, and means by certainty."""
    w = {m: {"encoder": first[m]["encoder"], "head": first["a"]["head"]} for m in "ab"}
    w = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), w)
    for taken in ROUNDS:
        sent = {m: {} for m in "ab"}
        for k, m in [(who, m) for who in taken for m in held(who)]:
            v = {m: w[m]["encoder"], "head": w[m]["head"]}
            mean, variance = v[m], 0 * v[m]
            for _ in range(STEPS[k]):
                v = step_on(v, {m: X[m][ROW[k]].astype(np.float64)}, LABEL[ROW[k]])
                apart = v[m] - mean
                mean, variance = mean + 0.1 * apart, 0.9 * (variance + 0.1 * apart**2)
            sent[m][k] = v[m], v["head"], SIZES[k] * (variance.mean() + 1e-6) ** -rho
        for m, of in sent.items():
            encoders, decoders, sure = zip(*of.values(), strict=True)
            w[m] = {
                "encoder": np.average(encoders, 0, sure),
                "head": np.average(decoders, 0, [SIZES[k] for k in of]),
            }
        both = (w["a"]["head"] + w["b"]["head"]) / 2
        w = {m: {**w[m], "head": (1 - cross) * w[m]["head"] + cross * both} for m in w}
    return w


def test_hafedformer_is_its_equations_and_predicts_with_the_mean_of_logits():
    rho, cross = 0.7, 0.4
    method = hafedformer.build(hafedformer.HAFedformerConfig(rho, cross, CONFIG), world(), ENCODERS, LINEAR)
    first, last = two_rounds(method)
    w = hafedformer_by_hand(first.server["params"], rho, cross)
    close({m: last.server["params"][m] for m in "ab"}, w)
    logits = sum(X[m] @ w[m]["encoder"] @ w[m]["head"] for m in "ab")
    found = method.evaluate(last, {**X, "label": LABEL})["a+b/accuracy"]
    assert found == pytest.approx(np.mean(logits.argmax(1) == LABEL))


def test_carmfl_says_what_public_examples_it_needs():
    with pytest.raises(ValueError, match=r"public examples have no \['a', 'b'\], which clients borrow"):
        carmfl.build(carmfl.CARMFLConfig(fedavg=CONFIG), world(), ENCODERS, LINEAR)
    with pytest.raises(ValueError, match="candidates is 7; there are 6 public examples"):
        carmfl.build(carmfl.CARMFLConfig(7, fedavg=CONFIG), public_world(), ENCODERS, LINEAR)


@pytest.mark.parametrize(
    ("build", "config", "said"),
    [
        (fedproto.build, fedproto.FedProtoConfig(fedavg=FedAvgConfig(shared=("a",))), "FedProto says what is personal"),
        (fedproto.build, fedproto.FedProtoConfig(fedavg=FedAvgConfig(server_lr=0.5)), "server_lr 0.5, which must be"),
        (mfedmc.build, mfedmc.MFedMCConfig(sent_share=0.0), "sent_share is 0.0; .* above 0 and at most 1"),
        (mfedmc.build, mfedmc.MFedMCConfig(fedavg=FedAvgConfig(server_lr=0.5)), "server_lr 0.5, which must be"),
        (mfedmc.build, mfedmc.MFedMCConfig(fedavg=FedAvgConfig(shared=())), "MFedMC says what is personal"),
        (fesem.build, fesem.FeSEMConfig(fedavg=FedAvgConfig(shared=())), "FeSEM says what is personal"),
        (fesem.build, fesem.FeSEMConfig(fedavg=FedAvgConfig(server_lr=0.5)), "server_lr 0.5, which must be"),
        (fedmsplit.build, fedmsplit.FedMSplitConfig(fedavg=FedAvgConfig(shared=())), "FedMSplit says what is personal"),
        (
            fedmsplit.build,
            fedmsplit.FedMSplitConfig(fedavg=FedAvgConfig(server_lr=0.5)),
            "server_lr 0.5, which must be",
        ),
        (flexmod.build, flexmod.FlexModConfig(fedavg=FedAvgConfig(shared=())), "FlexMod says what is personal"),
        (flexmod.build, flexmod.FlexModConfig(fedavg=FedAvgConfig(client_optimizer="adam")), 'FlexMod is about "sgd"'),
        (flexmod.build, flexmod.FlexModConfig(budget=1.5), "budget is 1.5; .* above 0 and at most 1"),
        (hafedformer.build, hafedformer.HAFedformerConfig(fedavg=FedAvgConfig(shared=())), "HA-Fedformer says what is"),
        (hafedformer.build, hafedformer.HAFedformerConfig(fedavg=FedAvgConfig(server_lr=0.5)), "which must be"),
        (hafedformer.build, hafedformer.HAFedformerConfig(cross=1.5), "cross is 1.5; .* at least 0 and at most 1"),
        (carmfl.build, carmfl.CARMFLConfig(fedavg=FedAvgConfig(shared=())), "CAR-MFL says what is personal"),
    ],
)
def test_settings_that_do_not_go_together_are_errors_that_name_the_cure(build, config, said):
    with pytest.raises(ValueError, match=said):
        build(config, world(), ENCODERS, LINEAR)
