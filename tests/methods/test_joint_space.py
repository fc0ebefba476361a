"""Tasks, optimisers, representations and scores of image and text encoders, against NumPy; errors that speak."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_joint_space import CLIENTS, KEY, LINEAR, NUM_CLASSES, SERVER, counted, pairs, problem

from fedjax_mm.data.federated import FederatedData
from fedjax_mm.local import gradient_step, local_steps
from fedjax_mm.methods.augment import random_part, random_resized_crop, resized, rotated
from fedjax_mm.methods.creamfl import joint_space
from fedjax_mm.methods.creamfl.fitting import fit_of
from fedjax_mm.methods.creamfl.joint_space import init, represent, task
from fedjax_mm.methods.creamfl.joint_space_scores import own_accuracy, score_rows, scores
from fedjax_mm.methods.creamfl.training import RELEASED, Training, finish_step, optimizer
from fedjax_mm.methods.creamfl.views import views
from fedjax_mm.models import Model
from fedjax_mm.types import FedState

IMAGE = {"image": LINEAR}


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def batch_of(count, padding=0, **arrays):
    arrays = pairs(count) | arrays
    return {k: jnp.asarray(x) for k, x in arrays.items()} | {"mask": jnp.arange(count) < count - padding}


def classifier():
    params = jax.tree.map(np.asarray, init(KEY, IMAGE, pairs(1), 3))
    return {**params, "head": {**params["head"], "bias": np.array([0.3, -0.2, 0.1], np.float32)}}


def ce(logits, label):
    return -np.log(np.exp(logits)[np.arange(len(logits)), label] / np.exp(logits).sum(1))


def test_a_classifier_is_a_head_on_its_encoder_and_padding_does_not_count():
    params, batch = classifier(), batch_of(7, padding=2)
    logits = np.asarray(batch["image"]) @ params["image"]["w"] @ params["head"]["kernel"] + params["head"]["bias"]
    label = np.asarray(batch["label"])
    value, metrics = task(Training(), IMAGE)(params, batch, KEY)
    assert float(value) == pytest.approx(ce(logits, label)[:5].mean(), rel=1e-5)
    assert float(metrics["accuracy"]) == pytest.approx((logits.argmax(1) == label)[:5].mean(), abs=1e-6)
    lower = logits - 4.0 * np.eye(3)[label]
    value, metrics_of_margin = task(Training(margin=4.0), IMAGE)(params, batch, KEY)
    assert float(value) == pytest.approx(ce(lower, label)[:5].mean(), rel=1e-5)
    chex.assert_trees_all_equal(metrics_of_margin, metrics)  # only learning is made harder
    kernel = params["head"]["kernel"]
    more = float(task(Training(margin=4.0, orthogonality=0.5), IMAGE)(params, batch, KEY)[0]) - float(value)
    assert more == pytest.approx(0.5 * ce(kernel.T @ kernel, np.arange(3)).mean(), rel=1e-4)


def test_pairs_are_retrieved_with_a_scale_and_a_shift_that_learn():
    params = jax.tree.map(np.asarray, init(KEY, SERVER, pairs(1), None))
    assert float(params["scale"]) == float(params["shift"]) == 15
    params |= {"scale": np.float32(3), "shift": np.float32(2)}
    batch = batch_of(6, padding=1)
    z = {m: unit(np.asarray(batch[m]) @ params[m]["w"])[:5] for m in SERVER}
    distance = np.sqrt(((z["image"][:, None] - z["text"][None]) ** 2).sum(-1) + 1e-6)
    expected = 2 * np.log1p(np.exp(-2 * (2 * np.eye(5) - 1) * (2 - 3 * distance))).sum()
    loss = jax.jit(lambda p: task(Training(), SERVER)(p, batch, KEY)[0])
    value, slope = jax.value_and_grad(loss)(params)
    assert float(value) == pytest.approx(expected, rel=1e-5)
    for name in ("scale", "shift"):
        up, down = (float(loss({**params, name: params[name] + np.float32(h)})) for h in (1e-2, -1e-2))
        assert float(slope[name]) == pytest.approx((up - down) / 2e-2, rel=1e-2) and abs(slope[name]) > 0.1


def test_a_step_draws_one_of_several_captions():
    captions = np.stack([pairs(40, seed)["text"] for seed in (5, 6)], 1)  # [E, Q, L]
    batch = batch_of(40, text=captions)
    seen, draws = [], []

    def read(params, x):
        chex.assert_rank(x, 2)
        seen.append(x)
        return LINEAR.apply(params, x)

    text = {"text": Model(LINEAR.init, read)}
    params, loss = init(KEY, text, batch, 3), task(Training(), text)
    for seed in (0, 0, 1):
        loss(params, batch, jax.random.key(seed))
        which = (captions == np.asarray(seen[-1])[:, None]).all(-1)
        assert which.sum(1).tolist() == [1] * 40
        draws.append(which.argmax(1))
    assert (draws[0] == draws[1]).all() and (draws[0] != draws[2]).any() and 8 < draws[0].sum() < 32


def test_a_task_sees_crops_where_there_are_any():
    x = np.random.default_rng(0).uniform(size=(6, 8, 8, 3)).astype(np.float32)
    flat = Model(lambda key, x: {"w": jnp.ones((192, 4))}, lambda params, x: x.reshape(len(x), -1) @ params["w"])
    seen = []
    seeing = Model(flat.init, lambda params, x: seen.append(x) or flat.apply(params, x))
    params = init(KEY, {"image": flat}, {"image": x}, 3)
    for crop in (None, 0.08):
        loss = task(Training(crop=crop), {"image": seeing})
        loss(params, batch_of(6, image=x), KEY)
    assert (seen[0] == x).all() and (seen[1] != x).any() and seen[1].shape == x.shape


def test_views_are_mirrored_parts_of_the_side_that_encoders_see_and_of_ones_own_images_alone_turned_ones():
    x, key = np.random.default_rng(0).uniform(size=(6, 12, 12, 3)).astype(np.float32), jax.random.fold_in(KEY, 0)
    of = lambda held, **given: views(Training(crop=0.5, side=8, **given), {"image": x, "text": x[..., 0]}, held, KEY)
    crops = random_resized_crop(key, x, 0.5, size=(8, 8))
    for held in (("image",), ("image", "text")):
        np.testing.assert_array_equal(of(held)["image"], crops)
    flipped = np.asarray(of(("image",), flip=True)["image"])
    same, other = ((flipped == one).all((1, 2, 3)) for one in (crops, crops[:, :, ::-1]))
    assert (same ^ other).all() and 0 < other.sum() < 6
    np.testing.assert_array_equal(of(("image", "text"), alone="turn")["image"], crops)
    alone = of(("image",), alone="turn")["image"]
    keys = jax.random.split(key, 3)
    turned = rotated(keys[0], resized(x, (9, 9)), 10.0)  # 8 * 281 / 256 is 8.8
    np.testing.assert_array_equal(alone, random_part(keys[1], turned, 8 / 9, (8, 8)))


def test_class_vectors_that_may_not_be_negative_are_cut_after_every_step():
    data, params = problem().client("image", 0), classifier()
    ends = {}
    for nonnegative in (False, True):
        t = Training(client_lr=0.05, nonnegative=nonnegative)
        tx = optimizer(t, IMAGE, jnp.int32(0))
        step = finish_step(t, gradient_step(task(t, IMAGE), tx))
        (ends[nonnegative], _), _ = local_steps(step, (params, tx.init(params)), data, KEY, batch_size=8)
    free, cut = (ends[on]["head"]["kernel"] for on in (False, True))
    assert (free < 0).any() and (cut == np.maximum(free, 0)).all()
    chex.assert_trees_all_equal(ends[True]["image"], ends[False]["image"])


@pytest.mark.parametrize("who", ["server", "one", "both"])
def test_rates_fall_where_they_should(who):
    encoders = {"server": None, "one": IMAGE, "both": SERVER}[who]
    t = dataclasses.replace(RELEASED, clip=None)
    expected = {
        "server": lambda r: 1e-5 * (1 + np.cos(np.pi * min(r, 30) / 30)) / 2,
        "one": lambda r: 1e-4 * (1.0 if r < 15 else 0.1 if r < 24 else 0.01),
        "both": lambda r: 2e-4,
    }[who]

    @jax.jit
    def first_step(r):  # of Adam and of momentum: it is the rate
        p, tx = {"w": jnp.zeros(2)}, optimizer(t, encoders, r)
        return tx.update({"w": jnp.ones(2)}, tx.init(p), p)[0]["w"]

    for r in (0, 14, 15, 23, 24, 30, 31):
        np.testing.assert_allclose(first_step(jnp.int32(r)), -expected(r), rtol=1e-4, atol=1e-12)


def test_only_the_server_and_clients_with_both_clip():
    t, p = Training(clip=1.0, client_optimizer="sgd"), {"w": jnp.zeros(2)}
    for encoders in (None, SERVER):
        tx = optimizer(t, encoders, jnp.int32(0))
        states = [tx.update({"w": jnp.array(g)}, tx.init(p), p)[1] for g in ([30.0, 40.0], [0.6, 0.8])]
        chex.assert_trees_all_close(*states, rtol=1e-5)
    tx = optimizer(t, IMAGE, jnp.int32(0))
    moved, _ = tx.update({"w": jnp.array([30.0, 40.0])}, tx.init(p), p)
    np.testing.assert_allclose(moved["w"], [-0.03, -0.04], rtol=1e-5)


@pytest.mark.parametrize("block", [1, 5, 12, 256])
def test_representations_are_of_length_1_in_blocks_of_any_size(block):
    x, params = pairs(12)["image"], init(KEY, IMAGE, pairs(1), 3)["image"]
    got = jax.jit(lambda: represent(LINEAR, params, x, block))()
    np.testing.assert_allclose(got, unit(x @ np.asarray(params["w"])), rtol=1e-5, atol=1e-6)


def test_unwanted_representations_are_zeros_that_nobody_computes():
    calls, x = [], pairs(12)["image"]
    params = init(KEY, IMAGE, pairs(1), 3)["image"]
    of = jax.jit(lambda wanted: represent(counted(calls), params, x, 5, wanted))
    assert not np.asarray(jax.block_until_ready(of(jnp.array(False)))).any()
    jax.effects_barrier()
    assert calls == []
    assert np.asarray(jax.block_until_ready(of(jnp.array(True)))).all()
    jax.effects_barrier()
    assert len(calls) == 3


def test_a_row_of_zeros_stays_and_has_a_slope():
    value, slope = jax.value_and_grad(lambda x: joint_space.unit(x).sum())(jnp.zeros((2, 3)))
    assert float(value) == 0 and np.isfinite(slope).all()


def test_public_examples_know_their_rows():
    public = {"image": jnp.arange(4.0)}
    assert joint_space.over_public(public).uniform and int(joint_space.over_public(public, jnp.array(True)).count) == 4
    none = joint_space.over_public(public, jnp.array(False))
    assert int(none.count) == 0 and not none.uniform

    def step(carry, batch, key):
        return carry + ((batch["row"] == batch["image"]) * batch["mask"]).sum(), {}

    for wanted in (True, jnp.array(True)):
        data = joint_space.over_public(public, wanted)
        assert float(local_steps(step, jnp.float32(0), data, KEY, batch_size=3)[0]) == 4


# Scores.


def trained(clients=3):
    """(state, arrays to evaluate on)."""
    test = pairs(23, seed=9)
    captions = np.stack([test["text"], pairs(23, seed=10)["text"]], 1)
    draw = lambda i, shape: np.random.default_rng(i).normal(size=shape).astype(np.float32)
    several = lambda i, features: {"w": draw(i, (clients, features, 4))}
    head = lambda i: {"kernel": draw(i, (clients, 4, 3)), "bias": draw(i + 1, (clients, 3))}
    state = FedState(
        {"params": {"image": {"w": draw(0, (3, 4))}, "text": {"w": draw(1, (2, 4))}}},
        {
            "image": {"params": {"image": several(2, 3), "head": head(3)}},
            "text": {"params": {"text": several(5, 2), "head": head(6)}},
            "both": {"params": {"image": several(8, 3), "text": several(9, 2)}},
        },
        jnp.int32(0),
    )
    arrays = {"image": test["image"], "text": captions}
    for seed, m in enumerate(("image", "text")):
        own = pairs(300, seed)
        arrays |= {f"{m}/{m}": own[m], f"{m}/label": own["label"]}
    return state, arrays


def recalls(image, text, owner, ks=(1, 5, 10)):
    cosine, scores = unit(image).astype(np.float64) @ unit(text).T, {}
    i2t = [min(np.flatnonzero(owner[np.argsort(-row)] == i)) for i, row in enumerate(cosine)]
    t2i = [np.flatnonzero(np.argsort(-row) == i)[0] for i, row in zip(owner, cosine.T, strict=True)]
    for way, ranks in (("i2t", i2t), ("t2i", t2i)):
        scores |= {f"{way}_r{k}": 100 * np.mean(np.array(ranks) < k) for k in ks}
    return scores


def test_scores_are_those_of_the_server_and_of_the_mean_client():
    state, arrays = trained()
    labelled = {m: pairs(12, seed) for seed, m in enumerate(("image", "text"), 5)}
    data = FederatedData.from_arrays(labelled, {m: np.split(np.arange(12), (3, 7)) for m in labelled})
    classes = {name: cohort.classes for name, cohort in data.population.cohorts.items()}
    found = scores(Training(block=7), SERVER, CLIENTS, classes, state, arrays, few=10)
    flat, owner = arrays["text"].reshape(-1, 2), np.repeat(np.arange(23), 2)
    of = lambda params, count: (arrays["image"][:count] @ params["image"]["w"], flat[: 2 * count] @ params["text"]["w"])
    whole = recalls(*of(state.server["params"], 23), owner)
    image, text = of(state.server["params"], 23)
    folds = [recalls(image[i : i + 4], text[2 * i : 2 * i + 8], owner[:8]) for i in range(0, 20, 4)]
    for key, value in whole.items():
        assert found[key] == pytest.approx(value, abs=1e-3)
        assert found[f"fold/{key}"] == pytest.approx(np.mean([fold[key] for fold in folds]), abs=1e-3)
    assert found["r1_sum"] == pytest.approx(
        sum(found[key] for key in ("i2t_r1", "t2i_r1", "fold/i2t_r1", "fold/t2i_r1"))
    )
    mine = [jax.tree.map(lambda x, j=j: x[j], state.clients["both"]["params"]) for j in range(3)]
    every = [recalls(*of(params, 10), owner[:20]) for params in mine]
    for key in every[0]:
        assert found[f"both/{key}"] == pytest.approx(np.mean([one[key] for one in every]), abs=1e-3)
    for m in ("image", "text"):
        p, right, own = state.clients[m]["params"], [], []
        for j in range(3):
            logits = arrays[f"{m}/{m}"] @ p[m]["w"][j] @ p["head"]["kernel"][j] + p["head"]["bias"][j]
            label = arrays[f"{m}/label"]
            right.append((logits.argmax(1) == label).mean())
            mine = labelled[m]["label"][(0, 3, 7)[j] : (3, 7, 12)[j]]
            own.append(sum((mine == k).mean() * (logits.argmax(1) == label)[label == k].mean() for k in set(mine)))
        assert found[f"{m}/accuracy"] == pytest.approx(np.mean(right), abs=1e-6) and np.ptp(right) > 0.01
        assert found[f"{m}/own_accuracy"] == pytest.approx(np.mean(own), abs=1e-6) and np.mean(own) != np.mean(right)
    unlabelled = {k: x for k, x in arrays.items() if "label" not in k} | {"client": np.zeros(3), "image/other": 0}
    without = scores(Training(block=7), SERVER, CLIENTS, classes, state, unlabelled, few=10)
    assert without == {key: value for key, value in found.items() if not key.endswith("accuracy")}


def test_accuracy_on_own_classes_leaves_out_what_nobody_tests_or_holds():
    right = np.array([[1, 0, 1, 1], [1, 0, 1, 1], [1, 1, 1, 1]], bool)
    held = np.array([[3, 1, 5, 0], [0, 0, 5, 0], [0, 0, 0, 0]])  # the second's are not tested, the third has none
    labels = np.array([0, 0, 0, 1])
    assert own_accuracy(right, labels, held) == pytest.approx(3 / 4 * 2 / 3 + 1 / 4)
    assert own_accuracy(right, labels, held[:, :1]) == pytest.approx(2 / 3)  # nobody holds the class 1
    assert np.isnan(own_accuracy(right, labels, 0 * held))


def test_one_caption_a_picture_needs_no_axis_of_captions():
    state, arrays = trained()
    of = lambda text: scores(Training(), SERVER, {}, {}, state, arrays | {"text": text})
    one = of(arrays["text"][:, 0])
    assert one == of(arrays["text"][:, :1]) and "both/i2t_r1" not in one


@pytest.mark.parametrize("captions", [1, 3])
def test_a_clients_own_rows_are_scored_one_by_one_and_padding_is_no_candidate(captions):
    test, w = pairs(11, seed=4), np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)
    params = {"image": {"w": np.linalg.lstsq(test["image"], test["text"])[0] @ w}, "text": {"w": w}}  # good encoders
    first = text = test["text"]
    if captions > 1:
        text = np.stack([text, *(pairs(11, seed)["text"] for seed in (5, 6))], 1)
    mask = (np.arange(11) < 8).astype(np.float32)
    arrays = {"image": jnp.asarray(test["image"]), "text": jnp.asarray(text)}
    found = jax.jit(lambda mask: score_rows(Training(block=4), SERVER, params, arrays, mask))(mask)
    cosine = unit(test["image"] @ params["image"]["w"]) @ unit(first @ params["text"]["w"]).T
    expected = cosine[:8, :8].argmax(1) == np.arange(8)
    np.testing.assert_array_equal(found["i2t_r1"][:8], 100 * expected)
    others = score_rows(Training(block=4), SERVER, params, arrays, 1 - mask)  # the first eight are the padding
    np.testing.assert_array_equal(others["i2t_r1"][8:], 100 * (cosine[8:, 8:].argmax(1) == np.arange(3)))
    assert 0 < expected.mean() < 1 and (expected != (cosine.argmax(1) == np.arange(11))[:8]).any()


def test_a_classifiers_own_rows_are_right_or_wrong():
    params, test = classifier(), pairs(9, seed=2)
    logits = test["image"] @ params["image"]["w"] @ params["head"]["kernel"] + params["head"]["bias"]
    found = score_rows(Training(), IMAGE, params, {k: jnp.asarray(x) for k, x in test.items()}, jnp.ones(9))
    np.testing.assert_array_equal(found["accuracy"], logits.argmax(1) == test["label"])
    assert 0 < found["accuracy"].mean() < 1


# What does not fit.


def refused(match, data=None, server=SERVER, clients=CLIENTS, num_classes=NUM_CLASSES):
    with pytest.raises(ValueError, match=match):
        fit_of(data or problem(), server, clients, num_classes)


def test_settings_that_do_not_fit_are_named():
    fit_of(problem(), SERVER, CLIENTS, NUM_CLASSES)
    backwards = dict(reversed(SERVER.items()))
    fit_of(problem(), backwards, {**CLIENTS, "both": backwards}, NUM_CLASSES)
    refused(r"encoders \['image'\] need both image and text; \['text'\] is missing", server=IMAGE)
    data = problem()
    without = FederatedData(data.cohorts, {"text": data.public["text"]})
    refused(r"public arrays \['text'\].*\['image'\] is missing", without)
    refused(r"public arrays \[\]", FederatedData(data.cohorts, None))
    refused(r"cohorts \['image', 'text'\]; the data has \['both', ", clients={k: CLIENTS[k] for k in ("image", "text")})
    refused(
        r"clients of both hold \['image', 'text'\] and have encoders of \['image'\]", clients=CLIENTS | {"both": IMAGE}
    )
    refused(r"clients of text hold \['text'\].*\['image'\]", clients=CLIENTS | {"text": IMAGE})
    refused("clients of text have text alone: they need an array 'label' and num_classes", num_classes={"image": 3})
    del data.cohorts["image"].arrays["label"]
    refused("clients of image have image alone: they need an array 'label'", data)


def test_a_number_of_classes_for_clients_with_both_is_not_needed_and_does_no_harm():
    assert set(init(KEY, SERVER, pairs(1), 3)) == {"image", "text", "scale", "shift"}
