"""Answers written word by word: their loss, ranks and three passes by hand, and FedDAT over all of its trunks."""

import dataclasses
import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_vilt import adamw, bottleneck, flat, unflat

from fedjax_mm.data.federated import FederatedData
from fedjax_mm.methods import feddat
from fedjax_mm.methods.feddat import FedDATConfig, peft, written_answers
from fedjax_mm.methods.feddat.vqa_tuning import Training
from fedjax_mm.models import adapters, albef, bert, vault, vilt
from fedjax_mm.types import Download

KEY, VOCABULARY, WIDTH = jax.random.key(1), 7, 4
TRAINING = Training(lr=0.05, batch_size=2, epochs=1, horizon=2.0)
close = lambda a, b, atol=2e-5: chex.assert_trees_all_close(a, b, atol=atol, rtol=1e-5)


class Writer(NamedTuple):
    """What `written` and `build` need of a model: words plus a picture through a layer, an adapter, and a head."""

    key: object = None
    dropout: float = 0.5
    width: int = WIDTH

    def drop(self, key):
        return self._replace(key=key, dropout=0.0)

    def start(self, trunk, batch):
        words = trunk["word"][batch["choices"]].cumsum(2)
        return words + (batch["image"] @ trunk["see"])[:, None, None]

    def finish(self, trunk, started, sites):
        h = jnp.tanh(started)
        rows = h.reshape(-1, WIDTH)
        h = h + sum(bottleneck(jax.tree.map(lambda x: x[0], tree), rows) for tree in sites).reshape(h.shape) / len(
            sites
        )
        kept = 1.0 if self.key is None else 2.0 * jax.random.bernoulli(self.key, 0.5, h.shape)
        return {"hidden": h * kept, "words": trunk["word"]}

    def init_head(self, key):
        return {"kernel": jax.random.normal(key, (WIDTH, WIDTH)), "bias": jnp.zeros(WIDTH)}

    def word_logits(self, head, features):
        hidden = features["hidden"]
        x = jnp.tanh(hidden.reshape(-1, WIDTH) @ head["kernel"] + head["bias"][None])
        return (x @ features["words"].T).reshape(*hidden.shape[:-1], VOCABULARY)


def drawn(total=4, answers=3, seed=0):
    """Questions of which each has answers of one or two words, the last of them unknown to odd clients."""
    rng = np.random.default_rng(seed)
    choices = rng.integers(3, VOCABULARY, (total, answers, 4))
    choices[:, :, 0], choices[:, :, 3], choices[:, ::2, 2] = 1, 0, 0
    choices[:, 2, 1] = 3 + (choices[:, 0, 1] - 2) % 4  # two answers of one word differ
    target = rng.permuted(np.tile(np.array([0.9, 0.3, 0.0], np.float32), (total, 1)), axis=1)
    image = rng.normal(size=(total, 3)).astype(np.float32)
    return {"image": image, "choices": choices.astype(np.int32), "target": target}


def writer():
    """(model, trunk, adapter_init)."""
    draw = lambda i, *shape: jax.random.normal(jax.random.fold_in(KEY, i), shape)
    trunk = {"word": draw(0, VOCABULARY, WIDTH), "see": draw(1, 3, WIDTH)}
    init = lambda key: jax.tree.map(lambda x: 20 * x, adapters.adapter(key, 1, WIDTH, 3))
    return Writer(), trunk, init


def log_softmax(z):
    return z - z.max(-1, keepdims=True) - np.log(np.exp(z - z.max(-1, keepdims=True)).sum(-1, keepdims=True))


def test_loss_and_distillation_and_points_are_sums_over_words():
    batch = {**drawn(), "mask": np.array([1, 1, 0, 1], np.float32)}
    rng = np.random.default_rng(1)
    z, teacher = (3 * rng.normal(size=(4, 3, 4, VOCABULARY)).astype(np.float32) for _ in range(2))
    z[0, 0, 0, batch["choices"][0, 0, 1]] = 99.0  # an answer of one word that is written right
    task, kl, answers, points = 0.0, 0.0, 0, np.zeros(4)
    for i in range(4):
        for j in range(3):
            share, right = batch["target"][i, j] / batch["target"][i].sum(), True
            answers += bool(batch["mask"][i] and share)
            for place, word in enumerate(batch["choices"][i, j][1:]):
                if word == 0:
                    continue
                log_p, t, s = (
                    log_softmax(z[i, j, place]),
                    log_softmax(teacher[i, j, place] / 3),
                    log_softmax(z[i, j, place] / 3),
                )
                task += batch["mask"][i] * share * -log_p[word] / 3
                kl += 9 * (np.exp(t) * (t - s)).sum() * bool(batch["mask"][i] and share)
                right &= log_p.argmax() == word
            points[i] += share * right
    np.testing.assert_allclose(written_answers.written_loss(TRAINING, z, batch), task, rtol=1e-5)
    np.testing.assert_allclose(written_answers.distill_words(teacher, z, 3.0, batch), kl / answers, rtol=1e-5)
    np.testing.assert_allclose(written_answers.points(z, batch), points, rtol=1e-5)


@pytest.mark.parametrize("first", [1, 64])
def test_ranks_are_of_the_first_word_and_then_of_the_whole_answer(first):
    model, trunk, init = writer()
    batch = {**drawn(), "answers": np.array([3, 2, 3, 2], np.int32)}
    head, adapter = model.init_head(KEY), init(KEY)
    features = model.finish(trunk, model.start(trunk, batch), (adapter,))
    found = np.asarray(written_answers.rank(model, first, head, features, batch))
    z = log_softmax(np.asarray(model.word_logits(head, features), np.float64))
    for i in range(4):
        known, words = batch["answers"][i], batch["choices"][i]
        start = [z[i, 0, 0, words[j, 1]] for j in range(known)]
        for j in range(3):
            if j >= known or start[j] < sorted(start)[-min(first, known)]:
                assert found[i, j] == np.float32(-1e9)
                continue
            whole = sum(z[i, j, place, word] for place, word in enumerate(words[j, 1:]) if word)
            np.testing.assert_allclose(found[i, j], start[j] + whole, rtol=1e-4)


def test_a_batch_with_dropout_is_three_passes_by_hand():
    config = FedDATConfig(training=TRAINING, alpha=0.7, beta=1.3)
    model, trunk, init = writer()
    head, batch = written_answers.written(model, most=2), {**drawn(2), "mask": np.ones(2, np.float32)}
    received, local, own = init(jax.random.key(3)), init(jax.random.key(4)), model.init_head(jax.random.key(5))
    download = Download({"adapter": received}, trunk)
    parts = feddat.start(config, download, {"adapter": local, "head": own})
    step = jax.jit(functools.partial(feddat.dual_adapter_step, config, model, head))
    new, _ = step(download, parts, batch, (0.05, 0.02), 0.7, jnp.int32(0), KEY)

    order = np.argsort(-batch["target"], 1)[:, :2]
    learned = {**batch, "target": np.take_along_axis(batch["target"], order, 1)}
    learned["choices"] = np.take_along_axis(batch["choices"], order[..., None], 1)
    keys = jax.random.split(KEY, 3)

    def f(i, own, *sites):
        one = model.drop(keys[i])
        return model.word_logits(own, one.finish(trunk, one.start(trunk, learned), sites))

    def loss(z, teacher, weight):
        kl = written_answers.distill_words(teacher, z, 3.0, learned)
        return 0.5 * (written_answers.written_loss(TRAINING, z, learned) + weight * kl)

    z_t, z_s = f(0, own, local, received), f(1, own, received)
    d_shared, d_own = jax.grad(lambda x, own: loss(f(1, own, x), z_t, 0.7), (0, 1))(received, own)
    shared, _ = adamw(flat(received), flat(d_shared), None, 0.05)
    own_1, state = adamw(flat(own), flat(d_own), None, 0.05)
    own_1 = unflat(own_1, own)
    d_local, d_own = jax.grad(lambda x, own: loss(f(2, own, x, received), z_s, 1.3), (0, 1))(local, own_1)
    close(new.shared.params, unflat(shared, received))
    close(new.local.params, unflat(adamw(flat(local), flat(d_local), None, 0.02)[0], local))
    close(new.head.params, unflat(adamw(flat(own_1), flat(d_own), state, 0.02)[0], own))


SIZES = {"image": 4, "patch": 2, "vocabulary": VOCABULARY, "dim": WIDTH, "heads": 2, "mlp": 4}
VILT = vilt.encoder(**SIZES, text_length=3, depth=1)
TRUNKS = {
    "vault": vault.encoder(bert.encoder(vocabulary=VOCABULARY, dim=WIDTH, depth=1, heads=2, mlp=4, types=2), VILT),
    "albef": albef.encoder(**SIZES, length=4, depths=(1, 2, 1), dropout=0.0),
}


@pytest.mark.parametrize("name", TRUNKS)
def test_a_round_over_each_trunk_tunes_adapters_alone(name):
    model, arrays, rng = TRUNKS[name], drawn(6), np.random.default_rng(2)
    arrays["image"] = rng.integers(0, 256, (6, 4, 4, 3)).astype(np.uint8)
    arrays["question"] = rng.integers(1, VOCABULARY, (6, 3)).astype(np.int32)
    if name == "albef":
        head, adapter = written_answers.written(model), lambda key: albef.adapter(key, model, 3)
    else:
        del arrays["choices"]
        head, adapter = adapters.answers(3), lambda key: adapters.adapter(key, model.depth, WIDTH, 3)
    data = FederatedData.from_arrays(arrays, np.repeat([0, 1], 3))
    shapes = jax.eval_shape(model.init, KEY, {key: x[:1] for key, x in arrays.items()})
    params = jax.tree.map(lambda x: jnp.asarray(0.3 * rng.normal(size=x.shape), x.dtype), shapes)
    trunk = {part: leaves for part, leaves in params.items() if part != "head"}
    method = feddat.build(FedDATConfig(training=TRAINING), data, model, trunk, adapter, head)
    state = jax.jit(method.init)(jax.random.key(0))
    new, metrics = jax.jit(method.round)(state, data.round({"all": np.arange(2)}), KEY)
    chex.assert_trees_all_equal(new.server["trunk"], trunk)
    moved = jax.tree.map(
        lambda a, b: np.any(np.asarray(a != b)),
        (new.server["adapter"], new.clients),
        (state.server["adapter"], state.clients),
    )
    assert all(jax.tree.leaves(moved)) and all(np.isfinite(x).all() for x in jax.tree.leaves((new, metrics)))
    assert jax.tree.map(jnp.shape, feddat.send(state.server).sent) == {"adapter": jax.tree.map(jnp.shape, adapter(KEY))}
    predict = functools.partial(feddat.predict, model, head)
    own, shapes = jax.tree.map(lambda x: x[0], new.clients["all"]), {"score": (6, 3), "local": (6, 3), "shared": (6, 3)}
    assert jax.tree.map(jnp.shape, jax.eval_shape(predict, feddat.send(new.server), own, arrays)) == shapes


def test_peft_learns_to_write_and_what_does_not_fit_is_refused():
    model, trunk, init = writer()
    model = model._replace(dropout=0.0)
    arrays, head = drawn(3), written_answers.written(Writer(dropout=0.0))
    data = FederatedData.from_arrays(arrays, np.zeros(3, int))

    class Applied(NamedTuple):
        width: int = WIDTH

        def apply(self, trunk, batch, tuning):
            return model.finish(trunk, model.start(trunk, batch), (tuning["adapter"],))

    config = peft.PEFTConfig(training=dataclasses.replace(TRAINING, lr=0.03, epochs=60, horizon=90.0))
    method = peft.build(config, data, Applied(), trunk, head, tuning_init=lambda key: {"adapter": init(key)})
    state = jax.jit(method.init)(KEY)
    test = {**arrays, "client": np.zeros(3, int)}
    new, _ = jax.jit(method.round)(state, data.round({"all": np.arange(1)}), KEY)
    assert method.evaluate(new, test)["score"] > 75 > method.evaluate(state, test)["score"]
    with pytest.raises(ValueError, match=r"lack|has no \['choices'\]"):
        method.evaluate(new, {key: x for key, x in test.items() if key != "choices"})
    with pytest.raises(ValueError, match=r"target of all is .*must be \[E, 2\]"):
        wrong = FederatedData.from_arrays({**arrays, "choices": arrays["choices"][:, :2]}, np.zeros(3, int))
        peft.build(config, wrong, Applied(), trunk, head, tuning_init=lambda key: {"adapter": init(key)})
    for wrong in ({"most": 0}, {"first": 0.5}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            written_answers.written(model, **wrong)
