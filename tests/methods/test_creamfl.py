"""CreamFL against its round written out client by client, its weights against theirs, and its limits."""

import dataclasses
import functools
import pathlib
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_joint_space import CLIENTS, KEY, NUM_CLASSES, PUBLIC, SERVER, counted, everyone, pairs, problem, sent

import fedjax_mm
from fedjax_mm import clients, costs, trees
from fedjax_mm.methods import creamfl
from fedjax_mm.methods.augment import random_resized_crop
from fedjax_mm.methods.creamfl import VARIANTS, CreamFLConfig, build, method
from fedjax_mm.methods.creamfl.server import distillation_loss
from fedjax_mm.methods.creamfl.training import Training
from fedjax_mm.models import Model

FULL = Training(client_lr=0.02, both_lr=0.01, server_lr=0.03, batch_size=8, epochs=2, server_batch=32, block=5)
QUIET = dataclasses.replace(FULL, server_epochs=0)
BASE = CreamFLConfig(QUIET, phases="alternate", public_batch=32)
OTHER = {"image": "text", "text": "image"}
replace = dataclasses.replace
close = functools.partial(chex.assert_trees_all_close, atol=2e-5, rtol=1e-4)


def made(config, data=None, mesh=None, server=SERVER):
    return build(config, data or problem(), server, CLIENTS, NUM_CLASSES, mesh)


@functools.cache
def compiled(config):
    """(its compiled round, first state)."""
    method = made(config)
    return jax.jit(method.round), jax.jit(method.init)(jax.random.key(0))


def one(states, j):
    return jax.tree.map(lambda x: np.asarray(x[j]), states)


def differ(a, b):
    return any((x != y).any() for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


# The round in the plainest way: no padding, no batches, one client after the other.


def z(params, m, x):
    out = x @ params[m]["w"]
    return out / (out**2).sum(-1, keepdims=True) ** 0.5


def own_loss(t, params, x):
    if "label" not in x:
        gap = z(params, "image", x["image"])[:, None] - z(params, "text", x["text"])[None]
        score = params["shift"] - params["scale"] * jnp.sqrt((gap**2).sum(-1) + 1e-6)
        sign = 2 * jnp.eye(len(score)) - 1
        return 2 * jnp.log(1 + jnp.exp(-2 * sign * score)).sum()
    (m,) = (m for m in OTHER if m in x)
    kernel = params["head"]["kernel"]
    logits = x[m] @ params[m]["w"] @ kernel + params["head"]["bias"][None]
    right = np.arange(len(logits)), x["label"]
    logits = logits.at[right].add(-t.margin)
    itself = jnp.exp(kernel.T @ kernel)
    loss = -jnp.log(jnp.exp(logits)[right] / jnp.exp(logits).sum(1)).mean()
    return loss - t.orthogonality * jnp.log(jnp.diag(itself) / itself.sum(1)).mean()


def contrasts(config, params, public, g, old):
    t, held, inter, intra = config.temperature, [m for m in g if m in params], 0.0, 0.0
    for m in held:
        here = z(params, m, public[m])
        match = jnp.exp(here @ g[OTHER[m]].T / t)
        inter -= jnp.log(jnp.diag(match) / match.sum(1)).mean()
        near, far = jnp.exp((here * g[m]).sum(1) / t), jnp.exp((here * old[m]).sum(1) / t)
        intra -= jnp.log(near / (near + far)).mean() / (len(held) if config.intra_mean else 1)
    return config.gamma * (config.inter * inter + config.intra * intra)


def shares(config, reps, weight, anchors):
    """[C, P]."""
    score = np.zeros(reps.shape[:2])
    for c, k in np.ndindex(*score.shape):
        e = np.exp(anchors @ reps[c, k] / config.weighing_temperature)
        score[c, k] = weight[c] if config.weighing == "size" else e[k] / (e.sum() - config.exclude_match * e[k])
    return score / score.sum(0)


def descend(kind, rate, clip, params, grads, state):
    grads = jax.tree.map(np.asarray, grads)
    if clip is not None:
        norm = np.sqrt(sum((g**2).sum() for g in jax.tree.leaves(grads)))
        grads = jax.tree.map(lambda g: g * min(1.0, clip / norm), grads)
    zeros = jax.tree.map(np.zeros_like, params)
    if kind == "sgd":
        state = jax.tree.map(lambda v, g, p: 0.9 * v + g + 5e-5 * p, state or zeros, grads, params)
        return jax.tree.map(lambda p, v: p - rate * v, params, state), state
    m, v, i = state or (zeros, zeros, 0)
    m, v = (
        jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, grads),
        jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g**2, v, grads),
    )
    move = lambda p, m, v: p - rate * m / (1 - 0.9 ** (i + 1)) / (np.sqrt(v / (1 - 0.999 ** (i + 1))) + 1e-8)
    return jax.tree.map(move, params, m, v), (m, v, i + 1)


def book(config):
    """A round: (data, models {"server": .., (cohort, j): ..}, optimiser states, who takes part, r) -> the first two
    after it, and metrics."""
    t = config.training
    slope = lambda loss: jax.jit(jax.grad(loss))
    task = slope(lambda p, x: own_loss(t, p, x))
    far = slope(lambda p, public, g, old: contrasts(config, p, public, g, old))

    @slope
    def distil(p, public, targets):
        apart = [(z(p, m, public[m]) - targets[m]) ** 2 for m in targets]
        return config.kd_weight * sum((jnp.sqrt(d.sum(1)) if config.distance == "l2" else d).mean() for d in apart)

    def round(data, models, opts, present, r):
        models, opts, public = dict(models), dict(opts), {m: np.asarray(x) for m, x in data.public.items()}

        def step(who, how, grads, opt=None):
            opt = opt or who
            models[who], opts[opt] = descend(*how, models[who], grads, opts.get(opt))
            if t.nonnegative and "head" in models[who]:
                head = models[who]["head"]
                models[who] = {**models[who], "head": {**head, "kernel": np.maximum(head["kernel"], 0)}}

        cosine = 0.5 * (1 + np.cos(np.pi * r / t.server_rounds)) if t.server_rounds else 1.0
        at_server = "adam", t.server_lr * cosine, t.clip
        for _ in range(t.server_epochs):
            step("server", at_server, task(models["server"], public))
        g = {m: z(models["server"], m, public[m]) for m in public}

        uploads = {m: [] for m in public}
        for who in present:
            cohort, both = data.cohorts[who[0]], who[0] == "both"
            rows = cohort.rows[cohort.offsets[who[1]] : cohort.offsets[who[1] + 1]]
            mine = {k: np.asarray(x)[rows] for k, x in cohort.arrays.items()}
            old = {m: z(models[who], m, public[m]) for m in public if m in mine}
            how = ("adam", t.both_lr, t.clip)
            if not both:
                how = (t.client_optimizer, t.client_lr * 0.1 ** sum(r >= at for at in t.milestones), None)
            for _ in range(t.epochs):
                if config.phases == "alternate":
                    step(who, how, task(models[who], mine))
                    step(who, how, far(models[who], public, g, old))
                else:
                    share = 1 / len(rows) if both else 1.0  # pairs' loss is a sum
                    own = jax.tree.map(lambda x, share=share: share * x, task(models[who], mine))
                    step(who, how, jax.tree.map(np.add, own, far(models[who], public, g, old)))
            for m in old:
                uploads[m].append((z(models[who], m, public[m]), len(rows) * (config.both_weight if both else 1)))

        targets, metrics = {}, {}
        for m in public:
            reps, weight = (np.array(part) for part in zip(*uploads[m], strict=True))
            share = shares(config, reps, weight, g[OTHER[m]])
            targets[m] = np.einsum("ck,ckd->kd", share, reps)
            metrics[f"entropy_{m}"] = -(share * np.log(share)).sum(0).mean() / np.log(len(reps))
            metrics[f"drift_{m}"] = 1 - np.linalg.norm(reps.mean(0), axis=-1).mean()
        begun = models["server"]
        slower = "adam", config.kd_rate * t.server_lr * cosine, t.clip
        step("server", slower, distil(begun, public, targets), "kd" if config.kd_state == "own" else None)
        models["server"] |= {k: begun[k] for k in ("scale", "shift")}  # only encoders are distilled
        return models, opts, metrics

    return round


RELEASED = replace(FULL, client_optimizer="sgd", margin=4.0, orthogonality=0.5, nonnegative=True)
CASES = {
    "code": replace(VARIANTS["released"], training=replace(RELEASED, clip=0.5, milestones=(1,))),
    "inter alone, as the paper": replace(
        VARIANTS["paper"], training=replace(FULL, server_rounds=4), phases="alternate", intra=False, gamma=2.0
    ),
    "joint": CreamFLConfig(
        QUIET, weighing="size", both_weight=100.0, gamma=2.0, kd_weight=3.0, kd_rate=0.5, kd_state="own"
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_two_rounds_equal_the_round_written_out(name):
    config = CASES[name]
    data = problem(same=name == "joint")  # equal public pairs, so that it does not matter which a step draws
    round, state = compiled(config)
    models, opts, by_the_book = {"server": jax.tree.map(np.asarray, state.server["params"])}, {}, book(config)
    models |= {(c, j): one(state.clients[c]["params"], j) for c, n in data.sizes.items() for j in range(n)}
    everybody = [who for who in models if who not in ("server", ("image", 2))]  # one has no examples
    some = [who for who in everybody if who not in (("image", 0), ("both", 0))]
    rounds = [(everyone(data), everybody), (everyone(data, image=[1, 3, 3], both=[1, 2]), some)]
    public = {m: np.asarray(x) for m, x in data.public.items()}
    for r, (taken, present) in enumerate(rounds):
        loss = own_loss(config.training, models["server"], public)
        state, metrics = round(state, taken, KEY)
        models, opts, expected = by_the_book(data, models, opts, present, r)
        close(state.server["params"], models["server"])
        for c, j in (who for who in models if who != "server"):
            close(one(state.clients[c]["params"], j), models[c, j])
        for key, value in (expected | ({"loss": loss} if config.training.server_epochs else {})).items():
            assert float(metrics["server"][key]) == pytest.approx(float(value), rel=1e-4, abs=1e-5), key


# What the server does with what it gets.


def hand_weights(reps, weight, anchors):
    """{name: [C, P]} of clients that all sent something."""
    variance = reps.var(-1)
    p = np.exp(reps) / np.exp(reps).sum(-1, keepdims=True)
    soft = lambda score: np.exp(score) / np.exp(score).sum(0)
    first = variance / variance.sum(0)
    agree = variance * (reps.argmax(-1) == (first[..., None] * reps).sum(0).argmax(-1))
    second = np.where(agree.sum(0) > 0, agree / np.maximum(agree.sum(0), 1e-9), first)
    match = np.exp(np.einsum("ckd,jd->ckj", reps, anchors))
    return {
        "mean": np.full(variance.shape, 1 / len(reps)),
        "size": np.tile(weight[:, None] / weight.sum(), variance.shape[1]),
        "variance": first,
        "consensus": (first + second) / 2,
        "entropy": soft(-1 / (p * np.log(p)).sum(-1)),
        "similarity": soft(np.einsum("ckd,kd->ck", reps, anchors)),
        "contrastive": soft(np.log(np.einsum("ckk->ck", match) / match.sum(-1))),
    }


def random_reps(count, seed=0):
    reps = np.random.default_rng(seed).normal(size=(count, PUBLIC, 4))
    return reps / np.linalg.norm(reps, axis=-1, keepdims=True)


def after_uploads(method, reps, weight):
    """(server's state before, after, metrics)."""
    public = problem().public
    state, _ = jax.jit(method.server.begin)(method.server.init(jax.random.key(0)), public, KEY)
    return state, *jax.jit(method.server.update)(state, sent(reps, weight), public, KEY)


REPS = {"image": random_reps(4), "text": random_reps(4, seed=1)}
WEIGHT = {"image": np.array([5.0, 1, 2, 0]), "text": np.array([2.0, 0, 7, 1])}


@pytest.mark.parametrize("name", hand_weights(REPS["image"], WEIGHT["image"], REPS["text"][0]))
def test_every_weighing_makes_its_targets_of_those_who_sent(name):
    state, new, metrics = after_uploads(made(replace(BASE, weighing=name)), REPS, WEIGHT)
    here = {m: np.asarray(z(state["params"], m, x)) for m, x in problem().public.items()}
    for m, other in OTHER.items():
        heard = WEIGHT[m] > 0
        share = hand_weights(REPS[m][heard], WEIGHT[m][heard], here[other])[name]
        apart = here[m] - np.einsum("ck,ckd->kd", share, REPS[m][heard])
        assert float(metrics[f"kd_{m}"]) == pytest.approx(np.linalg.norm(apart, axis=-1).mean(), abs=1e-5)
        entropy = -(share * np.log(share)).sum(0).mean() / np.log(3)
        assert float(metrics[f"entropy_{m}"]) == pytest.approx(entropy, abs=1e-5)
        length = np.linalg.norm(REPS[m][heard].mean(0), axis=-1).mean()
        assert float(metrics[f"drift_{m}"]) == pytest.approx(1 - length, abs=1e-5)


def test_clients_that_agree_have_even_weights_and_no_drift():
    same = {m: np.repeat(random_reps(1, seed), 4, axis=0) for seed, m in enumerate(OTHER)}
    _, _, metrics = after_uploads(made(BASE), same, WEIGHT)
    for m in OTHER:
        assert float(metrics[f"entropy_{m}"]) == pytest.approx(1, abs=1e-5)
        assert float(metrics[f"drift_{m}"]) == pytest.approx(0, abs=1e-5)


def test_devices_weigh_as_one_does():
    results = [after_uploads(made(BASE, mesh=mesh), REPS, WEIGHT) for mesh in (None, clients.make_mesh(4))]
    close(results[1], results[0])


# The paper's steps on their own, outside a round.


@pytest.mark.parametrize("intra_mean", [False, True])
def test_contrasts_are_those_of_the_book_and_padding_does_not_count(intra_mean):
    config = replace(BASE, intra_mean=intra_mean, gamma=2.0, temperature=0.7)
    params = jax.tree.map(np.asarray, made(config).server.init(KEY)["params"])
    public = {m: np.asarray(x) for m, x in problem().public.items()}
    anchors = creamfl.Anchors(*({m: random_reps(1, seed)[0] for m in OTHER} for seed in (2, 3)))
    batch = {m: np.concatenate([x, x[:3]]) for m, x in public.items()} | {"row": np.r_[np.arange(PUBLIC), 0, 1, 2]}
    real = np.arange(PUBLIC + 3) < PUBLIC
    value, _ = creamfl.contrasts(config, SERVER, params, batch, anchors, real)
    assert float(value) == pytest.approx(float(contrasts(config, params, public, *anchors)), rel=1e-5)


def test_contrasts_and_distillation_see_views_where_they_are_told_to():
    plain = replace(BASE, training=replace(BASE.training, crop=0.5))
    config, seen = replace(plain, public_views=True), []
    image = np.random.default_rng(0).uniform(size=(PUBLIC, 4, 4, 3)).astype(np.float32)
    model = Model(lambda key, x: 0.0, lambda params, x: seen.append(x) or x.reshape(len(x), -1))
    batch = {"image": image, "row": np.arange(PUBLIC), "mask": np.ones(PUBLIC), "target_image": np.zeros((PUBLIC, 48))}
    reps = dict.fromkeys(OTHER, np.ones((PUBLIC, 48), np.float32))
    expected = random_resized_crop(jax.random.fold_in(KEY, 0), image, 0.5)
    for one in (config, plain):
        creamfl.contrasts(one, {"image": model}, {"image": 0.0}, batch, creamfl.Anchors(reps, reps), key=KEY)
        distillation_loss(one, {"image": model}, {"image": 1.0}, {"image": 0.0}, batch | {"text": image}, KEY)
    for x, wanted in zip(seen, (expected, expected, image, image), strict=True):
        np.testing.assert_array_equal(x, wanted)


def test_steps_can_be_mapped_over_clients_and_over_servers():
    data, config = problem(), replace(BASE, phases="joint")
    held = functools.partial(creamfl.client_update, config, SERVER)
    first = functools.partial(creamfl.init_client, config, SERVER, data.cohorts["both"].arrays, data.public, None)
    keys = jax.random.split(KEY, 3)
    server = jax.eval_shape(functools.partial(creamfl.init_server, config, SERVER, data.public), KEY)
    server, _ = jax.eval_shape(functools.partial(creamfl.train_server, config, SERVER), server, data.public, KEY)
    download = creamfl.download(config, ["both"], server)["both"]
    own = data.client("both", 0)
    several = jax.vmap(lambda key, download: held(download, first(key), own, key), (0, None))
    upload, states, _ = jax.eval_shape(several, keys, download)
    assert {m: each.value.shape for m, each in upload.items()} == {m: (3, PUBLIC, 4) for m in OTHER}
    assert states["params"]["image"]["w"].shape == (3, 3, 4)
    servers = jax.tree.map(lambda x: jax.ShapeDtypeStruct((2, *x.shape), x.dtype), server)
    update = functools.partial(creamfl.server_update, config, SERVER)
    new, metrics = jax.eval_shape(jax.vmap(update, (0, None, None, None)), servers, {"both": upload}, data.public, KEY)
    chex.assert_trees_all_equal_shapes_and_dtypes(new, servers)
    assert set(metrics) == {f"{name}_{m}" for name in ("entropy", "drift", "kd") for m in OTHER}


def test_weights_that_need_the_server_say_so():
    with pytest.raises(ValueError, match=r"similarity weights need anchors \[P, D\]"):
        creamfl.weigh(replace(BASE, weighing="similarity"), jnp.asarray(REPS["image"]), jnp.ones(4))


def test_a_population_is_enough_to_build_from():
    data = problem()
    method, other = made(BASE, data), made(BASE, data.population)
    chex.assert_trees_all_equal(jax.eval_shape(other.init, KEY), jax.eval_shape(method.init, KEY))
    assert {name: cohort.size for name, cohort in other.cohorts.items()} == data.sizes


def test_a_client_is_scored_with_its_own_model():
    method, test = made(BASE), pairs(9, seed=4)
    states = {name: cohort.init(jax.random.key(3)) for name, cohort in method.cohorts.items()}
    for name, cohort in method.cohorts.items():
        params, rows = states[name]["params"], {m: jnp.asarray(x) for m, x in test.items()}
        found = cohort.score(None, states[name], rows, jnp.ones(9))
        if name == "both":
            cosine = z(params, "image", test["image"]) @ z(params, "text", test["text"]).T
            expected = {"i2t_r1": 100 * (np.asarray(cosine).argmax(1) == np.arange(9))}
        else:
            logits = test[name] @ params[name]["w"] @ params["head"]["kernel"] + params["head"]["bias"][None]
            expected = {"accuracy": np.asarray(logits).argmax(1) == test["label"]}
        chex.assert_trees_all_equal(found, {key: hit.astype(np.float32) for key, hit in expected.items()})
        assert 0 < np.mean(list(found.values())) < max(map(np.max, found.values()))


# Limits.


def test_a_modality_that_nobody_sent_leaves_its_encoder_and_who_has_nothing_counts_for_nothing():
    round, state = compiled(CASES["joint"])
    data = problem()
    first, metrics = round(state, everyone(data), KEY)  # so that the server's optimiser has moments
    chex.assert_trees_all_equal(one(first.clients["image"], 2), one(state.clients["image"], 2))
    assert float(metrics["image"]["clients"]) == 2
    chex.assert_trees_all_equal(round(state, everyone(data, image=[0, 1, 3]), KEY), (first, metrics))
    new, metrics = round(first, everyone(data, text=[2, 2], both=[2, 2]), KEY)
    chex.assert_trees_all_equal(new.server["params"]["text"], first.server["params"]["text"])
    assert differ(new.server["params"]["image"], first.server["params"]["image"])
    assert differ(new.clients["image"], first.clients["image"]) and float(metrics["server"]["kd_text"]) == 0
    chex.assert_trees_all_equal(
        [new.clients[c] for c in ("text", "both")], [first.clients[c] for c in ("text", "both")]
    )
    nobody, more = round(first, everyone(data, image=[3, 3, 3], text=[2, 2], both=[2, 2]), KEY)
    chex.assert_trees_all_equal(nobody.server["params"], first.server["params"])
    assert trees.all_finite((new, metrics, nobody, more))


def test_nobody_pays_for_a_padding_client():
    calls = []
    server = {"image": counted(calls), "text": SERVER["text"]}
    data = problem()
    method = build(BASE, data, SERVER, {**CLIENTS, "image": {"image": server["image"]}}, NUM_CLASSES)
    state = jax.eval_shape(method.init, KEY)
    state = jax.tree.map(lambda x: jnp.ones(x.shape[1:], x.dtype), state.clients["image"])
    download = method.server.download(method.server.init(KEY), data.public)["image"]
    update = jax.jit(method.cohorts["image"].update)
    seen = data.client("image", 0)
    for weight, count in ((5.0, 5), (0.0, 0)):
        calls.clear()
        alone = dataclasses.replace(seen, weight=jnp.float32(weight), count=jnp.int32(count))
        upload, new, _ = jax.block_until_ready(update(download, state, alone, KEY))
        jax.effects_barrier()
        assert bool(calls) == bool(count)
        assert np.asarray(upload["image"].value).any() == bool(count)
        assert differ(new["params"], state["params"]) == bool(count)


def test_what_a_client_sent_is_not_represented_again():
    calls, data = [], problem()
    method = build(BASE, data, SERVER, {**CLIENTS, "image": {"image": counted(calls)}}, NUM_CLASSES)
    fresh = jax.jit(method.cohorts["image"].init)(KEY)
    download = method.server.download(jax.jit(method.server.init)(KEY), data.public)["image"]
    update, times = jax.jit(method.cohorts["image"].update), []
    for state in (fresh, {**fresh, "has_reps": jnp.bool_(True)}):
        calls.clear()
        upload, new, _ = jax.block_until_ready(update(download, state, data.client("image", 0), KEY))
        jax.effects_barrier()
        times.append(len(calls))
        chex.assert_trees_all_equal(new["reps"]["image"], upload["image"].value)
    assert times[0] - times[1] == -(-PUBLIC // FULL.block) and new["has_reps"]


def test_without_distillation_nothing_is_exchanged():
    data, method = problem(), made(replace(BASE, training=FULL, kd_epochs=0))
    for cost in costs.of(method, everyone(data)).values():
        assert (cost.bytes_down, cost.bytes_up) == (0, 0)
    state = jax.jit(method.init)(KEY)
    jax.eval_shape(method.round, state, everyone(data), KEY)
    for download in method.server.download(state.server, data.public).values():
        assert int(download.held) == 0 and download.sent == {}  # the round, on which rates depend, and no more
    begun, _ = jax.jit(method.server.begin)(state.server, data.public, KEY)
    new, metrics = method.server.update(begun, {name: {} for name in data.cohorts}, data.public, KEY)
    assert differ(begun["params"], state.server["params"]) and metrics == {}
    chex.assert_trees_all_equal(new, begun | {"round": jnp.int32(1)})


def test_bytes_are_those_of_the_representations_and_plain_weighings_send_nothing_down():
    data, reps = problem(), 4 * PUBLIC * 4
    held = {"image": 1, "text": 1, "both": 2}
    for name, cost in costs.of(made(BASE), everyone(data)).items():
        assert (cost.bytes_down, cost.bytes_up) == (2 * reps, held[name] * reps)
    for name, cost in costs.of(made(replace(BASE, inter=False, intra=False, weighing="mean")), everyone(data)).items():
        assert (cost.bytes_down, cost.bytes_up) == (0, held[name] * reps)
    for weighing in ("size", "variance", "consensus", "entropy", "contrastive", "similarity"):
        method = made(replace(BASE, inter=False, intra=False, weighing=weighing))
        state = jax.eval_shape(method.server.init, KEY)
        download = jax.eval_shape(method.server.download, state, data.public)
        assert all(trees.size_bytes(down.sent) == 0 for down in download.values())
        assert bool(state["reps"]) == (weighing in ("contrastive", "similarity"))


def test_joint_contrasts_of_weight_0_are_as_if_left_out_and_those_of_another_are_not():
    data, ends, cohort = problem(), {}, "image"
    first = made(BASE)
    state = jax.jit(first.cohorts[cohort].init)(jax.random.key(2))
    server, _ = jax.jit(first.server.begin)(jax.jit(first.server.init)(KEY), data.public, KEY)
    for gamma, on in ((0.0, True), (0.5, True), (0.5, False)):
        method = made(replace(BASE, phases="joint", public_batch=5, gamma=gamma, inter=on, intra=on))
        download = method.server.download(server, data.public)[cohort]
        upload, new, _ = jax.jit(method.cohorts[cohort].update)(download, state, data.client(cohort, 0), KEY)
        ends[gamma, on] = new["params"], upload
    close(ends[0.0, True], ends[0.5, False])
    apart = [np.asarray(end["image"]["w"]) for end, _ in (ends[0.5, True], ends[0.5, False])]
    assert np.abs(np.subtract(*apart)).max() > 1e-3


def test_variants_carry_what_differs_between_paper_and_code():
    paper, code = VARIANTS["paper"], VARIANTS["released"]
    for config in (paper, code):
        t = config.training
        assert (t.client_lr, t.both_lr, t.server_lr, t.client_optimizer) == (1e-4, 2e-4, 1e-5, "sgd")
        assert (t.milestones, t.server_rounds, t.clip, t.epochs, t.batch_size) == ((15, 24), 30, 2.0, 5, 128)
        assert (config.gamma, config.weighing, config.kd_epochs, t.server_epochs) == (0.5, "contrastive", 1, 1)
        assert (config.inter, config.intra, config.weighing_temperature) == (True, True, 1.0)
    assert (paper.temperature, paper.exclude_match, paper.phases, paper.distance) == (1.0, True, "joint", "l2")
    assert (code.temperature, code.exclude_match, code.phases, code.distance) == (0.5, False, "alternate", "mse")
    assert (paper.kd_weight, paper.intra_mean, code.kd_weight, code.intra_mean) == (1.0, False, 0.6, True)
    t = paper.training
    assert (t.margin, t.orthogonality, t.nonnegative) == (0.0, 0.0, False)
    t = code.training
    assert (t.margin, t.orthogonality, t.nonnegative) == (4.0, 0.5, True)


def test_every_section_that_a_docstring_names_is_in_the_page():
    package = pathlib.Path(fedjax_mm.__file__).parent
    page = (package.parent / "docs" / "specs" / "creamfl.md").read_text()
    there = set(re.findall(r"^##+ (\d(?:\.\d)?)", page, re.MULTILINE))
    room = [file.read_text() for file in (package / "methods" / "creamfl").glob("*.py")]
    named = re.findall(r"[Ss]ections? (\d(?:\.\d)?)(?: and (\d(?:\.\d)?))?", "\n".join(room))
    everywhere = "\n".join(file.read_text() for file in package.rglob("*.py"))
    named += re.findall(r"specs/creamfl(?:\.md)? (\d(?:\.\d)?)()", everywhere)
    named = {number for numbers in named for number in numbers if number}
    assert {"1.3", "1.4", "1.5", "2", "4", "7.2"} <= named <= there
    assert "docs/specs/creamfl.md" in method.__doc__
