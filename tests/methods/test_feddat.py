"""FedDAT against its algorithm written out with three passes and NumPy's AdamW, and against its limits."""

import dataclasses
import functools
import pathlib
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_vilt import adamw, adapter_init, flat, questions, tiny, unflat

from fedjax_mm import costs, trees
from fedjax_mm.methods import feddat
from fedjax_mm.methods.feddat import VARIANTS, FedDATConfig, build, peft
from fedjax_mm.methods.feddat.vqa_tuning import Training
from fedjax_mm.models import Model, heads
from fedjax_mm.types import OverClients

FULL_BATCH = Training(lr=0.05, batch_size=8, epochs=3, horizon=6.0, warmup=0.25)  # 7 examples, so one is padding
WIDE = tiny(width=128)
KEY = jax.random.key(1)
close = lambda a, b, atol=1e-5: chex.assert_trees_all_close(a, b, atol=atol, rtol=1e-5)


def made(config, data, model=None, head=None):
    """(model, trunk, method, first state)."""
    model = model or tiny()
    trunk = model.init(jax.random.key(3), data.cohorts["all"].arrays)
    method = build(config, data, model, trunk, adapter_init(model), head or heads.linear(3))
    return model, trunk, method, jax.jit(method.init)(jax.random.key(0))


def everyone(data):
    return data.round({name: np.arange(n) for name, n in data.sizes.items()})


def one(state, j=0):
    return jax.tree.map(lambda x: x[j], state.clients["all"])


def softmax(z):
    e = jnp.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def by_the_book(config, model, trunk, head, batch, received, local, own, rounds):
    """(A_s, A_c, head) after one client's round of full batches: section 1 of the description, three passes a batch."""
    t, y, scale = config.training, batch["target"], config.temperature
    f = jax.jit(lambda own, *adapters: head.apply(own, model.finish(trunk, model.start(trunk, batch), adapters)))
    dat = (lambda own, local: f(own, local, received)) if config.dual else f

    def task(z):
        if t.task == "ce":
            return -(y * jnp.log(softmax(z))).sum(-1).mean()
        p = 1 / (1 + jnp.exp(-z))
        return -(y * jnp.log(p) + (1 - y) * jnp.log(1 - p)).sum(-1).mean()

    def loss(z, teacher, weight):
        p, q = softmax(teacher / scale), softmax(z / scale)
        return 0.5 * (task(z) + weight * scale**2 * (p * (jnp.log(p) - jnp.log(q))).sum(-1).mean())

    def rate(i):
        steps, rise = t.horizon, t.horizon * t.warmup
        return t.lr * min((i + 1) / rise if i < rise - 1 else 1.0, (steps - i) / (steps - rise))

    gradient = jax.jit(
        jax.grad(lambda x, own, teacher, weight, f: loss(f(own, x), teacher, weight), (0, 1)), static_argnums=4
    )
    shared, states = received, {"s": None, "c": None, "h": None}

    def descend(name, params, grads, i):
        new, states[name] = adamw(flat(params), flat(grads), states[name], rate(i))
        return unflat(new, params)

    for i in range(t.epochs):
        first, second = (2 * i, 2 * i + 1) if config.compat_double_schedule else (i, i)
        z_t = dat(own, local)
        z_s = f(own, shared)
        d_shared, d_own = gradient(shared, own, z_t, config.alpha, f)
        shared, own = descend("s", shared, d_shared, first), descend("h", own, d_own, first)
        d_local, d_own = gradient(local, own, z_s, config.beta, dat)
        own = descend("h", own, d_own, second)
        if not (config.compat_freeze_local and rounds > 0):
            local = descend("c", local, d_local, second)
    return shared, local, own


CASES = {
    "paper": FedDATConfig(training=FULL_BATCH),
    "released": dataclasses.replace(VARIANTS["released"], training=FULL_BATCH),
    "mutual": FedDATConfig(training=dataclasses.replace(FULL_BATCH, task="ce"), alpha=0.3, beta=2.0, dual=False),
}


@pytest.mark.parametrize("name", CASES)
def test_two_passes_equal_three_for_two_rounds(name):
    config, data, head = CASES[name], questions((7,)), heads.linear(3)
    model, trunk, method, state = made(config, data)
    round = jax.jit(method.round)
    for r in range(2):
        mine, batch = one(state), data.cohorts["all"].arrays
        start = state.server["adapter"], mine["adapter"], mine["head"]
        state, _ = round(state, everyone(data), KEY)
        expected = by_the_book(config, model, trunk, head, batch, *start, r)
        close((state.server["adapter"], one(state)["adapter"], one(state)["head"]), expected, 2e-5)


def test_the_steps_of_a_batch_stand_alone_under_jit_and_vmap():
    """(0), (1) and (2) by hand are a batch, clients can be mapped, and a client's update by hand is the round's."""
    config = FedDATConfig(training=dataclasses.replace(FULL_BATCH, batch_size=7, epochs=1))
    data, head = questions((7,)), heads.linear(3)
    model, _, method, state = made(config, data)
    download = feddat.send(state.server)
    batch = {**data.cohorts["all"].arrays, "mask": jnp.ones(7)}
    rate, own = jnp.float32(0.01), one(state)

    def by_steps(own, download):
        parts = feddat.start(config, download, own)
        started = model.start(download.held, batch)
        teacher = jax.jit(functools.partial(feddat.forward_dual, config, model, head))(download, parts, started, batch)
        parts, z_s, _ = feddat.step_shared(
            config, model, head, download, parts, started, batch, teacher.logits, config.alpha, rate
        )
        return feddat.step_local(config, head, parts, batch, teacher, z_s, rate)[0]

    step = functools.partial(feddat.dual_adapter_step, config, model, head)
    whole = lambda own: step(
        download, feddat.start(config, download, own), batch, (rate, rate), config.alpha, jnp.int32(0)
    )[0]
    expected = jax.jit(whole)(own)
    close(jax.jit(by_steps)(own, download), expected)
    close(one_of_two(jax.jit(jax.vmap(whole))(jax.tree.map(lambda x: jnp.stack([x, x]), own))), expected)

    update = jax.jit(functools.partial(feddat.client_update, config, model, head))
    upload, new, _ = update(download, own, data.client("all", 0), KEY)
    after, _ = jax.jit(method.round)(state, everyone(data), KEY)
    close(upload["adapter"].value, after.server["adapter"])
    close(new, one(after))


def one_of_two(tree):
    return jax.tree.map(lambda x: x[1], tree)


def test_a_method_is_built_from_shapes_alone():
    config, data = FedDATConfig(training=FULL_BATCH), questions((7, 3))
    _, trunk, method, state = made(config, data)
    model = tiny()
    other = build(config, data.population, model, trunk, adapter_init(model), heads.linear(3))
    chex.assert_trees_all_equal(jax.jit(other.init)(jax.random.key(0)), state)
    assert other.cohorts.keys() == method.cohorts.keys() and other.cohorts["all"].size == 2


def test_a_batch_costs_one_start_and_two_passes():
    seen, data = [], questions((7,))
    _, _, method, state = made(FedDATConfig(training=FULL_BATCH), data, tiny(seen=seen))
    seen.clear()  # of what `build` asked of the shapes
    jax.eval_shape(method.round, state, everyone(data), KEY)
    assert seen.count("finish") == 2 * seen.count("start") > 0


def test_the_mean_is_plain_or_by_examples_and_only_the_adapter_travels():
    data = questions((9, 3, 4))
    for weights, share in (("uniform", [1, 1, 1]), ("size", [9, 3, 4])):
        config = FedDATConfig(training=dataclasses.replace(FULL_BATCH, batch_size=4), weights=weights)
        _, trunk, method, state = made(config, data)
        round, sent = jax.jit(method.round), []
        new, _ = round(state, everyone(data), KEY)
        for j in range(3):  # alone, a client's upload is the mean
            alone, _ = round(state, data.round({"all": np.array([j, 3, 3])}), KEY)
            sent.append(alone.server["adapter"])
            close(one(alone, j), one(new, j))
        close(new.server["adapter"], jax.tree.map(lambda *x, w=share: np.average(x, 0, w), *sent))
        chex.assert_trees_all_equal(new.server["trunk"], trunk)
    cost = costs.of(method, everyone(data))["all"]
    assert cost.bytes_up == cost.bytes_down == trees.size_bytes(state.server["adapter"])
    assert cost.bytes_held == trees.size_bytes(trunk)


def test_a_warm_up_round_is_fedavg_of_an_adapter():
    """Half the loss is the same step to AdamW, but for its epsilon."""
    data, training = questions((9, 3)), dataclasses.replace(FULL_BATCH, batch_size=4)
    model, trunk, method, state = made(FedDATConfig(training=training, warmup_rounds=1), data)
    tuning = lambda key: {"adapter": adapter_init(model)(key)}
    other = peft.build(peft.PEFTConfig(training=training), data, model, trunk, heads.linear(3), tuning_init=tuning)
    start = jax.jit(other.init)(jax.random.key(0))
    round = jax.jit(method.round)
    new, _ = round(state, everyone(data), KEY)
    expected, _ = jax.jit(other.round)(start, everyone(data), KEY)
    close(new.server["adapter"], expected.server["tuned"]["tuning"]["adapter"])
    close(new.clients["all"]["head"], expected.clients["all"]["head"])
    chex.assert_trees_all_equal(new.clients["all"]["adapter"], state.clients["all"]["adapter"])
    after, _ = round(new, everyone(data), KEY)
    assert np.abs(flat(after.clients["all"]["adapter"])["['up']['bias']"]).max() > 0.01


def test_answers_a_client_does_not_know_are_as_if_the_head_had_none():
    data, wide = questions((6, 5)), questions((6, 5))
    arrays = wide.cohorts["all"].arrays
    arrays["target"] = jnp.pad(arrays["target"], [(0, 0), (0, 2)])
    arrays["answers"] = jnp.full(11, 3, jnp.int32)
    config = FedDATConfig(training=dataclasses.replace(FULL_BATCH, batch_size=4))
    head = lambda k: Model(lambda key, x: {"kernel": jnp.ones((6, k))}, lambda p, x: x @ p["kernel"])
    _, _, method, state = made(config, data, head=head(3))
    _, _, padded, padded_state = made(config, wide, head=head(5))
    new, metrics = jax.jit(method.round)(state, everyone(data), KEY)
    padded_new, padded_metrics = jax.jit(padded.round)(padded_state, everyone(wide), KEY)
    close(padded_new.server, new.server)
    close(padded_new.clients["all"]["head"]["kernel"][..., :3], new.clients["all"]["head"]["kernel"])
    close(padded_metrics, metrics)
    who = {"client": np.arange(11) % 2}
    results = padded.evaluate(padded_new, {**arrays, **who})
    assert results == pytest.approx(method.evaluate(new, {**data.cohorts["all"].arrays, **who}), abs=1e-3)


def test_scores_are_those_of_each_clients_own_head_and_adapters():
    seen, data = [], questions((9, 3, 4))
    config = FedDATConfig(training=dataclasses.replace(FULL_BATCH, test_batch=4))
    model, trunk, method, state = made(config, data, tiny(seen=seen))
    state, _ = jax.jit(method.round)(state, everyone(data), KEY)
    owner = np.repeat([2, 0, 2], [5, 21, 14])  # batches of 4, of which neither client fills its last
    arrays = {**questions((40,), seed=5).cohorts["all"].arrays, "client": owner}
    seen.clear()
    results = method.evaluate(state, arrays)
    assert method.evaluate(state, arrays) == results and seen.count("finish") == 3 * seen.count("start") == 3
    target = np.asarray(arrays["target"])
    features_of = jax.jit(lambda used: model.finish(trunk, model.start(trunk, arrays), used))
    for name in ("score", "local", "shared"):
        for j in (0, 2):
            mine, shared = one(state, j), state.server["adapter"]
            used = {"score": (mine["adapter"], shared), "local": (mine["adapter"],), "shared": (shared,)}[name]
            dense = jax.tree.map(np.asarray, mine["head"]["Dense_0"])
            z = np.asarray(features_of(used)) @ dense["kernel"] + dense["bias"][None]
            score = target[np.arange(40), np.argmax(z, 1)][owner == j].mean()
            assert results[f"client {j}/{name}"] == pytest.approx(100 * score, abs=1e-4)
        assert results[name] == pytest.approx((results[f"client 0/{name}"] + results[f"client 2/{name}"]) / 2)
    assert len(results) == 9
    download, score = method.server.download(state.server, None)["all"], jax.jit(method.cohorts["all"].score)
    for j in (0, 2):
        rows = {k: np.asarray(v)[owner == j] for k, v in arrays.items() if k != "client"}
        for name, each in score(download, one(state, j), rows, np.ones((owner == j).sum(), np.float32)).items():
            assert each.shape == ((owner == j).sum(),)
            assert np.mean(each) == pytest.approx(results[f"client {j}/{name}"], abs=1e-4)
    with pytest.raises(ValueError, match="clients 0..2"):
        method.evaluate(state, {**arrays, "client": owner + 1})
    with pytest.raises(ValueError, match="lack \\['client'\\]"):
        method.evaluate(state, data.cohorts["all"].arrays)


def test_many_clients_over_one_trunk_hold_it_once():
    data = questions([4] * 32)
    _, trunk, method, state = made(FedDATConfig(training=dataclasses.replace(FULL_BATCH, batch_size=2)), data, WIDE)
    method = method._replace(over=OverClients(chunk=1))
    m = jax.jit(method.round, donate_argnums=0).lower(state, everyone(data), KEY).compile().memory_analysis()
    held = m.argument_size_in_bytes + m.temp_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes
    step, adapters = costs.of(method, everyone(data))["all"].peak_bytes, trees.size_bytes(state.clients)
    assert held < 2 * step + 2 * adapters < 8 * trees.size_bytes(trunk)  # what they were and what they become


def test_settings_that_do_not_fit_are_named():
    data = questions((7,))
    with pytest.raises(ValueError, match="it must be \\[E, 5\\]"):
        made(FedDATConfig(), data, head=heads.linear(5))
    without = questions((7,))
    del without.cohorts["all"].arrays["target"]
    with pytest.raises(ValueError, match="no 'target'"):
        made(FedDATConfig(), without)
    with pytest.raises(ValueError, match="temperature"):
        made(FedDATConfig(temperature=0.0), data)
    with pytest.raises(ValueError, match="batch_size"):
        made(FedDATConfig(training=Training(batch_size=0)), data)


def test_every_section_that_a_docstring_names_is_in_the_specification():
    root = pathlib.Path(__file__).parents[2]
    page = (root / "docs" / "specs" / "feddat.md").read_text()
    headings = set(re.findall(r"^## (\w+)\. ", page, re.M))
    defects = set(re.findall(r"^\| (D\d) \|", page, re.M))
    room, models = root / "fedjax_mm" / "methods" / "feddat", root / "fedjax_mm" / "models"
    files = [*room.glob("*.py"), models / "adapters.py", models / "vilt.py", models / "vilt_embeddings.py"]
    found = 0
    for file in files:
        text = file.read_text()
        sections = re.findall(r"\bsections? (\d\w?)(?: and (\d\w?))?(?:, (D\d))?", text)
        found += len(sections)
        assert not sections or "docs/specs/feddat.md" in text, file
        for first, second, defect in sections:
            assert {first, second} - {""} <= headings and (not defect or defect in defects), (
                file,
                first,
                second,
                defect,
            )
    assert found > 10
