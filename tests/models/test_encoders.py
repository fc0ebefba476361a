"""Anyone's own encoders: each kind gives what its library gives, starts as told and freezes as told."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from fedjax_mm.models import Model, as_encoder, as_encoders, embedding, mlp, text
from fedjax_mm.models.paths import flatten

KEY, X = jax.random.key(0), np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)
TRUNK = {"trunk": {"kernel": np.full((3, 5), 0.5, np.float32), "bias": np.ones(5, np.float32)}}


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(4, name="head")(nn.relu(nn.Dense(5, name="trunk")(x)))


class Nnx(nnx.Module):
    def __init__(self, *, rngs):
        self.trunk, self.drop = nnx.Linear(3, 5, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)
        self.heads = nnx.List([nnx.Linear(5, 4, rngs=rngs)])

    def __call__(self, x):
        return self.heads[0](nnx.relu(self.drop(self.trunk(x))))


class Normed(nnx.Module):
    def __init__(self, *, rngs):
        self.norm = nnx.BatchNorm(3, rngs=rngs)

    def __call__(self, x):
        return self.norm(x)


def pair_init(key, batch):
    return Linen().init(key, batch)["params"]


PAIR = (pair_init, lambda params, batch: Linen().apply({"params": params}, batch))
KINDS = {
    "model": Model(*PAIR),
    "pair": PAIR,
    "list": list(PAIR),
    "linen": Linen(),
    "nnx": Nnx(rngs=nnx.Rngs(1)),
    "nnx function": lambda rngs: Nnx(rngs=rngs),
    "nnx class": Nnx,
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_a_model_of_nested_dicts(kind):
    model = as_encoder(KINDS[kind])
    params = jax.jit(model.init)(KEY, X)
    head = "heads/0" if "nnx" in kind else "head"
    assert sorted(flatten(params)) == [f"{head}/bias", f"{head}/kernel", "trunk/bias", "trunk/kernel"]
    leaf, trunk = jax.device_get((params["heads"]["0"] if "nnx" in kind else params["head"], params["trunk"]))
    expected = np.maximum(X @ trunk["kernel"] + trunk["bias"], 0) @ leaf["kernel"] + leaf["bias"]
    np.testing.assert_allclose(jax.jit(model.apply)(params, X), expected, rtol=1e-5, atol=1e-6)
    same = jax.tree.map(lambda x, y: bool((x == y).all()), params, jax.jit(model.init)(jax.random.key(7), X))
    assert same["trunk"]["kernel"] == (kind == "nnx")  # its own weights, whatever the key
    gradient = jax.grad(lambda params: model.apply(params, X).sum())(params)
    assert jax.tree.structure(gradient) == jax.tree.structure(params) and jnp.abs(gradient["trunk"]["bias"]).sum() > 0


def test_an_nnx_module_is_left_as_it_was_and_starts_from_its_own_weights():
    module = Nnx(rngs=nnx.Rngs(1))
    model = as_encoder(module)
    assert module.drop.deterministic is False
    module.eval()
    np.testing.assert_allclose(model.apply(model.init(KEY, X), X), module(X), rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("frozen", ["trunk", ("trunk/kernel", "trunk/bias"), lambda path: "trunk" in path])
def test_a_frozen_part_is_no_parameter_and_keeps_its_pretrained_values(kind, frozen):
    model = as_encoder(KINDS[kind], pretrained=TRUNK, frozen=frozen)
    params = jax.jit(model.init)(KEY, X)
    assert list(params) == (["heads"] if "nnx" in kind else ["head"])
    leaf = jax.device_get(params["heads"]["0"] if "nnx" in kind else params["head"])
    hidden = np.maximum(X @ TRUNK["trunk"]["kernel"] + 1, 0)
    np.testing.assert_allclose(model.apply(params, X), hidden @ leaf["kernel"] + leaf["bias"], rtol=1e-5, atol=1e-6)


def test_what_is_pretrained_is_where_training_starts_and_the_rest_starts_afresh():
    model = as_encoder(Linen(), pretrained={"trunk": {"kernel": TRUNK["trunk"]["kernel"]}})
    params, fresh = model.init(KEY, X), as_encoder(Linen()).init(KEY, X)
    np.testing.assert_array_equal(params["trunk"]["kernel"], 0.5)
    np.testing.assert_array_equal(params["head"]["kernel"], fresh["head"]["kernel"])
    assert jax.tree.structure(params) == jax.tree.structure(fresh)


def test_all_of_an_nnx_module_may_be_frozen_and_its_state_may_start_another():
    module = Nnx(rngs=nnx.Rngs(1))
    frozen = as_encoder(module, frozen=True)
    module.eval()
    assert frozen.init(KEY, X) == {}
    np.testing.assert_allclose(frozen.apply({}, X), module(X), rtol=1e-6)
    started = as_encoder(Nnx, pretrained=nnx.state(module, nnx.Param))
    np.testing.assert_allclose(started.apply(started.init(KEY, X), X), module(X), rtol=1e-6)


def test_running_statistics_of_a_pretrained_linen_module_stay_as_they_are():
    norm = nn.BatchNorm(use_running_average=True, epsilon=0.0)
    variables = {
        "params": {"scale": np.full(3, 2.0, np.float32), "bias": np.zeros(3, np.float32)},
        "batch_stats": {"mean": np.ones(3, np.float32), "var": np.full(3, 4.0, np.float32)},
    }
    model = as_encoder(norm, pretrained=variables)
    params = model.init(KEY, X)
    assert sorted(params) == ["bias", "scale"]
    np.testing.assert_allclose(model.apply(params, X), X - 1, rtol=1e-5, atol=1e-6)


def test_a_vocabulary_is_kept_or_given():
    assert as_encoder(text.encoder(9, 4, 4)).vocabulary == 9
    assert as_encoder(text.encoder(9, 4, 4), pretrained={}).vocabulary == 9
    assert as_encoder(PAIR, vocabulary=5).vocabulary == 5


def test_what_is_a_model_already_stays_what_it_is():
    model = mlp.encoder((), 4)
    assert as_encoder(model) is model and as_encoders("encoders", {"x": model})["x"] is model
    assert as_encoders("encoders", [model]) == [model]


@pytest.mark.parametrize(
    "encoder, settings, said",
    [
        (3, {}, r"encoder is int 3; it must be a models\.Model, a pair \(init, apply\), a linen or an nnx module"),
        ((PAIR[0],), {}, "encoder is tuple"),
        (nn.Dense, {}, "encoder is type"),
        (lambda x: x, {}, "encoder is function .* makes no nnx module"),
        (lambda rngs: 3, {}, "which called with rngs makes no nnx module, but"),
        (Normed, {}, "encoder has BatchStat besides its parameters"),
        (Normed(rngs=nnx.Rngs(0)), {}, "encoder has BatchStat besides its parameters"),
        (PAIR, {"frozen": True}, "frozen names no part of pretrained"),
        (PAIR, {"frozen": "trunk"}, "frozen names no part of pretrained"),
        (PAIR, {"pretrained": TRUNK, "frozen": "trunc"}, r"no part of pretrained, which has \['trunk/bias'"),
        (PAIR, {"pretrained": TRUNK, "frozen": 3}, "frozen of encoder is 3; give True, paths such as"),
        (PAIR, {"pretrained": TRUNK, "frozen": []}, r"frozen of encoder is \[\]; give"),
        (PAIR, {"pretrained": [1.0]}, r"pretrained of encoder is \[1.0\]; give nested dicts"),
    ],
)
def test_what_is_no_encoder_is_refused_in_one_sentence(encoder, settings, said):
    with pytest.raises(ValueError, match=said):
        as_encoder(encoder, **settings)


@pytest.mark.parametrize(
    "encoder, settings, said",
    [
        (PAIR, {"pretrained": {"trunk": {"kernel": np.ones((3, 6))}}}, r"'trunk/kernel' is \[3, 6\], not \[3, 5\]"),
        (PAIR, {"pretrained": {"body": np.ones(3)}}, "pretrained has 'body', which encoder has not"),
        (
            PAIR,
            {"pretrained": TRUNK, "frozen": ["trunk", "head"]},
            "frozen names 'head/bias', which pre",
        ),
        (nn.BatchNorm(False), {}, r"BatchNorm has \['batch_stats'\] besides its parameters"),
        ((lambda key, x: [x], PAIR[1]), {"pretrained": TRUNK}, "what encoder starts from is .*give nested dicts"),
    ],
)
def test_what_does_not_fit_is_refused_when_shapes_are_known(encoder, settings, said):
    model = as_encoder(encoder, **settings)
    with pytest.raises(ValueError, match=said):
        jax.eval_shape(model.init, KEY, X)


def test_a_trunk_that_is_a_flax_module_is_named():
    with pytest.raises(ValueError, match="trunk is a flax module, Linen; give models.as_encoder of it"):
        embedding.linear(Linen(), 4)
