"""Tuning by federated averaging against NumPy and the published equations, and what each mode trains and sends."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_vilt import adamw, adapter_init, flat, questions, tiny, unflat

from fedjax_mm import costs, trees
from fedjax_mm.methods import peft
from fedjax_mm.methods.feddat.peft import PEFTConfig, build
from fedjax_mm.methods.feddat.vqa_tuning import Training, schedule
from fedjax_mm.models import adapters, heads
from fedjax_mm.types import Mean

FULL_BATCH = Training(lr=0.05, batch_size=8, epochs=3, horizon=6.0, warmup=0.25)  # 7 examples, so one is padding
MODEL, HEAD, KEY = tiny(), heads.linear(3), jax.random.key(1)
TUNINGS = {
    "adapter": adapter_init(MODEL),
    "lora": lambda key: adapters.lora(key, MODEL.depth, MODEL.width, rank=2),
    "prompt": lambda key: adapters.prompt(key, MODEL.width, length=2, hidden=3),
}
close = lambda a, b, atol=2e-5: chex.assert_trees_all_close(a, b, atol=atol, rtol=1e-5)


def made(config, data, mode="adapter", trunk=None):
    """(method, first state)."""
    if trunk is None:
        trunk = MODEL.init(jax.random.key(3), data.cohorts["all"].arrays)
    tuning = {"tuning_init": lambda key: {mode: TUNINGS[mode](key)}} if mode in TUNINGS else {}
    trains = {"bias": adapters.bias, "norm": adapters.norm, "full": adapters.full}.get(mode, adapters.classifier)
    method = build(config, data, MODEL, trunk, HEAD, trains=trains, **tuning)
    return method, jax.jit(method.init)(jax.random.key(0))


def everyone(data, who=None):
    return data.round({"all": np.arange(data.sizes["all"]) if who is None else np.array(who)})


def one(state, j=0):
    return jax.tree.map(lambda x: x[j], state.clients["all"])


def own(data, j):
    cohort = data.cohorts["all"]
    rows = cohort.rows[cohort.offsets[j] : cohort.offsets[j + 1]]
    return {k: v[rows] for k, v in cohort.arrays.items()}


def trained(config, frozen, batch, tuned, head, pull=None):
    """(tuned, head) after a round of full batches."""
    t, received = config.training, flat(tuned)

    @jax.jit
    @jax.grad
    def task(params):
        trunk = trees.merge(params[0]["trunk"], frozen)
        p = 1 / (1 + jnp.exp(-HEAD.apply(params[1], MODEL.apply(trunk, batch, params[0]["tuning"]))))
        return -(batch["target"] * jnp.log(p) + (1 - batch["target"]) * jnp.log(1 - p)).sum(-1).mean()

    params, states = (tuned, head), (None, None)
    for i in range(t.epochs):
        steps, rise = t.horizon, t.horizon * t.warmup
        rate = t.lr * min((i + 1) / rise if i < rise - 1 else 1.0, (steps - i) / (steps - rise))
        grads = [flat(g) for g in task(params)]
        w = flat(params[0])
        grads[0] = {k: g + (config.prox + config.dyn) * (w[k] - received[k]) for k, g in grads[0].items()}
        if pull is not None:
            grads[0] = {k: g - flat(pull)[k] for k, g in grads[0].items()}
        new = [adamw(flat(p), g, s, rate) for p, g, s in zip(params, grads, states, strict=True)]
        params, states = (unflat(n[0], p) for n, p in zip(new, params, strict=True)), tuple(n[1] for n in new)
        params = tuple(params)
    return params


def adam_step(w, mean):
    """Reddi et al.'s first step, in which the corrected moments are the change and its square."""
    return w + 0.01 * (mean - w) / (np.abs(mean - w) + 1e-3)


@pytest.mark.parametrize(
    "mode,prox,weights,server", [("full", 3.0, "size", "sgd"), ("adapter", 0.0, "uniform", "adam")]
)
def test_a_round_is_the_mean_of_what_clients_train(mode, prox, weights, server):
    data = questions((7, 4))
    config = PEFTConfig(training=FULL_BATCH, prox=prox, weights=weights)
    if server == "adam":
        config = dataclasses.replace(config, server_optimizer="adam", server_lr=0.01)
    method, state = made(config, data, mode)
    tuned, frozen = state.server["tuned"], state.server["frozen"]
    new, _ = jax.jit(method.round)(state, everyone(data), KEY)
    expected = [trained(config, frozen, own(data, j), tuned, one(state, j)["head"]) for j in range(2)]
    share = [7, 4] if weights == "size" else [1, 1]
    mean = jax.tree.map(lambda *x: np.average(x, 0, share), *[w for w, _ in expected])
    close(new.server["tuned"], mean if server == "sgd" else jax.tree.map(adam_step, tuned, mean), 1e-4)
    for j in range(2):
        close(one(new, j)["head"], expected[j][1])


def test_two_head_steps_are_one_with_w_and_one_on_its_features():
    data, t = questions((7,)), dataclasses.replace(FULL_BATCH, epochs=2)
    method, state = made(PEFTConfig(training=t, head_steps=2), data)
    new, _ = jax.jit(method.round)(state, everyone(data), KEY)
    tuned, head, batch = state.server["tuned"], one(state)["head"], own(data, 0)
    frozen, states = trees.merge(tuned["trunk"], state.server["frozen"]), [None, None]

    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1))
    def task(w, head):
        z = HEAD.apply(head, MODEL.apply(frozen, batch, w))
        return (jnp.logaddexp(0, z) - batch["target"] * z).sum(-1).mean()

    w = tuned["tuning"]
    for i in range(t.epochs):
        rate = t.lr * min((i + 1) / 1.5, (t.horizon - i) / (t.horizon - 1.5), 1.0)
        stepped, states[0] = adamw(flat(w), flat(task(w, head)[0]), states[0], rate)
        for _ in range(2):
            moved, states[1] = adamw(flat(head), flat(task(w, head)[1]), states[1], rate)
            head = unflat(moved, head)
        w = unflat(stepped, w)
    close(new.server["tuned"]["tuning"], w, 1e-4)
    close(one(new)["head"], head, 1e-4)


def test_feddyn_is_acars_equations_for_two_rounds():
    """Three clients, of whom two take part at a time."""
    data, alpha = questions((7, 4, 5)), 0.5
    config = PEFTConfig(training=FULL_BATCH, dyn=alpha)
    method, state = made(config, data)
    round = jax.jit(method.round)
    h, pulls = jax.tree.map(jnp.zeros_like, state.server["tuned"]), [one(state, j)["pull"] for j in range(3)]
    assert not any(np.any(x) for x in jax.tree.leaves(pulls))
    w0 = state.server["tuned"]
    for who in ((0, 2), (1, 2)):
        made_by = {}
        for j in who:
            made_by[j], _ = trained(config, state.server["frozen"], own(data, j), w0, one(state, j)["head"], pulls[j])
            pulls[j] = jax.tree.map(lambda g, w, w0: g - alpha * (w - w0), pulls[j], made_by[j], w0)
        change = jax.tree.map(lambda a, b, w0: (a - w0) + (b - w0), *made_by.values(), w0)
        h = jax.tree.map(lambda h, c: h - alpha / 3 * c, h, change)
        w0 = jax.tree.map(lambda a, b, h: (a + b) / 2 - h / alpha, *made_by.values(), h)
        state, _ = round(state, everyone(data, who), KEY)
        close(state.server["tuned"], w0, 1e-4)
        for j in range(3):
            close(one(state, j)["pull"], pulls[j], 1e-4)


SENDS = {  # full and adapter are tested above
    "lora": lambda path: "['lora']" in path,
    "prompt": lambda path: "['prompt']" in path,
    "bias": lambda path: path.endswith("['bias']"),
    "norm": lambda path: "norm" in path and "embeddings" not in path,
    "classifier": lambda path: False,
}


@pytest.mark.parametrize("mode", SENDS)
def test_a_mode_trains_and_sends_its_own_leaves_and_no_head(mode):
    data = questions((7, 4))
    method, state = made(PEFTConfig(training=FULL_BATCH), data, mode)
    new, _ = jax.jit(method.round)(state, everyone(data), KEY)
    trunk = MODEL.init(jax.random.key(3), data.cohorts["all"].arrays)
    there = flat({"trunk": trunk, "tuning": {mode: TUNINGS[mode](KEY)} if mode in TUNINGS else {}})
    before, after = flat(state.server.get("tuned", {})), flat(new.server.get("tuned", {}))
    assert after.keys() == {path for path in there if SENDS[mode](path)}
    assert all(np.any(after[path] != before[path]) for path in after)
    chex.assert_trees_all_equal(new.server["frozen"], state.server["frozen"])
    download = method.server.download(state.server, None)["all"]
    upload, _, _ = jax.eval_shape(method.cohorts["all"].update, download, one(state), data.client("all", 0), KEY)
    size = 4 * sum(x.size for x in after.values())
    assert trees.size_bytes([s.value for s in upload.values()]) == trees.size_bytes(download.sent) == size
    assert trees.size_bytes(download) == 4 * sum(x.size for x in there.values())
    kernels = new.clients["all"]["head"]["Dense_0"]["kernel"]
    assert np.all(np.any(kernels != state.clients["all"]["head"]["Dense_0"]["kernel"], (1, 2)))
    assert np.any(kernels[0] != kernels[1])


def test_a_client_on_its_own_is_a_federation_of_one():
    data = questions((7, 4))
    method, state = made(PEFTConfig(training=FULL_BATCH, travels=False), data, "bias")
    new, _ = jax.jit(method.round)(state, everyone(data), KEY)
    federated, other = made(PEFTConfig(training=FULL_BATCH), data, "bias")
    start = dataclasses.replace(other, clients={"all": {k: state.clients["all"][k] for k in ("head", "rounds")}})
    round = jax.jit(federated.round)
    for j in range(2):
        alone, _ = round(start, everyone(data, [j, 2]), KEY)
        close(one(new, j)["tuned"], alone.server["tuned"], 1e-6)
        close(one(new, j)["head"], one(alone, j)["head"], 1e-6)
    assert costs.of(method, everyone(data))["all"].bytes_up == 0
    arrays = {**data.cohorts["all"].arrays, "client": np.arange(11) % 2}
    results = method.evaluate(new, arrays)
    download, score = method.server.download(new.server, None)["all"], method.cohorts["all"].score
    for j in range(2):
        rows = {k: jnp.asarray(v)[j::2] for k, v in arrays.items() if k != "client"}
        each = score(download, one(new, j), rows, jnp.ones(len(rows["target"])))["score"]
        assert np.mean(each) == pytest.approx(results[f"client {j}/score"], abs=1e-4)
    trunk = trees.merge(one(new, 1)["tuned"]["trunk"], new.server["frozen"])
    chosen = np.argmax(HEAD.apply(one(new, 1)["head"], MODEL.apply(trunk, arrays)), 1)
    score = np.asarray(arrays["target"])[np.arange(11), chosen][1::2].mean()
    assert results["client 1/score"] == pytest.approx(100 * score, abs=1e-4)
    assert results["score"] == pytest.approx((results["client 0/score"] + results["client 1/score"]) / 2)


def test_what_trains_is_single_precision_over_a_trunk_of_half():
    data = questions((7,))
    trunk = MODEL.init(jax.random.key(3), data.cohorts["all"].arrays)
    _, state = made(PEFTConfig(training=FULL_BATCH), data, "bias", optax.tree.cast(trunk, jnp.bfloat16))
    assert {x.dtype for x in jax.tree.leaves(state.server["tuned"])} == {jnp.dtype("float32")}
    assert {x.dtype for x in jax.tree.leaves(state.server["frozen"])} == {jnp.dtype("bfloat16")}


def test_a_clients_update_stands_alone_and_its_scores_are_evaluates():
    data, config = questions((7, 4)), PEFTConfig(training=FULL_BATCH, dyn=0.5)
    method, state = made(config, data)
    new, _ = jax.jit(method.round)(state, everyone(data), KEY)
    update = functools.partial(peft.client_update, config, MODEL, HEAD)
    download = peft.send(state.server)
    uploads = [update(download, one(state, j), data.client("all", j), KEY)[0]["tuned"] for j in range(2)]
    mean = jax.tree.map(lambda *x: sum(x) / 2, *[upload.value for upload in uploads])
    sent = {"all": {"tuned": Mean(mean, jnp.float32(2))}}
    assert jax.tree.structure(uploads[0].value) == jax.tree.structure(mean)
    after, _ = jax.jit(functools.partial(peft.server_update, config, 2))(state.server, sent, None, KEY)
    chex.assert_trees_all_equal_shapes(after, new.server)
    close(after["h"], jax.tree.map(lambda w, w0: -0.5 * (w - w0), mean, state.server["tuned"]))
    arrays = {**data.cohorts["all"].arrays, "client": np.arange(11) % 2}
    results, download = method.evaluate(new, arrays), peft.send(new.server)
    for j in range(2):
        rows = {k: jnp.asarray(v)[j::2] for k, v in arrays.items() if k != "client"}
        each = method.cohorts["all"].score(download, one(new, j), rows, jnp.ones(len(rows["target"])))["score"]
        assert np.mean(each) == pytest.approx(results[f"client {j}/score"], abs=1e-4)


def test_the_schedule_rises_and_falls_linearly_and_restarts_or_goes_on():
    training = Training(lr=1e-4, batch_size=2, epochs=1)
    rate = lambda training, rounds: schedule(training, jnp.int32(2500), rounds)(np.arange(1250.0))
    released = np.asarray(rate(training, 3))
    # 1250 steps of the 1875 in which it rises: at most 6.7e-5, 3.3e-5 on average (section 1b, D3).
    np.testing.assert_allclose(released, 1e-4 * np.arange(1, 1251) / 1875, rtol=1e-5)
    np.testing.assert_allclose(rate(training, 0), released)
    on = dataclasses.replace(training, restart=False)
    whole = np.concatenate([rate(on, r) for r in range(15)])
    np.testing.assert_allclose(whole[1875:], 1e-4 * np.arange(16875, 0, -1) / 16875, rtol=1e-4)
    np.testing.assert_allclose(whole[:1875], 1e-4 * np.arange(1, 1876) / 1875, rtol=1e-4)
    assert not np.any(rate(on, 15)) and np.isfinite(schedule(training, jnp.int32(0), 0)(0))


def test_settings_that_do_not_fit_are_named():
    data = questions((7,))
    with pytest.raises(ValueError, match="nothing travels"):
        made(PEFTConfig(travels=False, prox=0.1), data)
    with pytest.raises(ValueError, match="nothing travels"):
        made(PEFTConfig(dyn=0.1), data, "classifier")
    with pytest.raises(ValueError, match="FedDyn"):
        made(PEFTConfig(dyn=0.1, weights="size"), data)
    with pytest.raises(ValueError, match="at least 0"):
        made(PEFTConfig(prox=-1.0), data)
