"""Stages of pretrained encoders: what is trained begins as what was cut off, and the round is chosen on validation."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.common import cli
from experiments.layerwise import pretrained, tuned
from experiments.layerwise.pretrained import Problem, Settings, Trunk
from experiments.layerwise.recalibrated import Best, recalibration
from experiments.weights import upper as upper_layers
from experiments.weights.upper import Upper
from fedjax_mm import run
from fedjax_mm.methods import layerwise
from fedjax_mm.models import bert, transformer, vit
from fedjax_mm.models.pretrained import Checkpoint
from fedjax_mm.models.transformer import Layer
from fedjax_mm.types import FedState


def vectors(examples, width, seed):
    return np.random.default_rng(seed).normal(size=(examples, 1, width)).astype(np.float32)


@pytest.mark.parametrize("family", ["text", "image"])
def test_upper_layers_go_on_where_the_lower_ones_end(family, monkeypatch):
    if family == "text":
        model = bert.encoder(vocabulary=9, dim=4, depth=3, heads=2, mlp=8, positions=4, types=2, pool="mean")
        batch = np.array([[1, 2, 0, 0], [3, 4, 5, 6]], np.int32)
        upper = Upper("", 3, 1, Layer(2, 8, pre_norm=False))
    else:
        model = vit.encoder(image=4, patch=2, dim=4, depth=3, heads=2, mlp=8)
        batch = np.arange(96, dtype=np.uint8).reshape(2, 4, 4, 3)
        upper = Upper("", 3, 3, Layer(2, 8))
    params = model.init(jax.random.key(0), batch)
    monkeypatch.setattr(upper_layers, "_weights", lambda name: params)
    keep = lambda name, layers, x: np.asarray(
        model.hidden({**params, "layers": {k: v for k, v in params["layers"].items() if int(k) < layers}}, x)
        * (np.ones((*x.shape[:1], 5, 1)) if x.ndim == 4 else (x != 0)[..., None])
    )
    monkeypatch.setattr(upper_layers, "hidden", keep)
    tokens = upper_layers.given(upper, batch[:, None], 2)[:, 0]  # [E, V, ...]: one view
    encoder, own = upper_layers.upper_encoder(upper, tokens, 2)
    if family == "image":
        own["norm"] = {"scale": jnp.ones(4), "bias": jnp.zeros(4)}
    assert sorted(own["layers"]) == ["00", "01"]
    frozen = pretrained.pooled(upper, upper_layers.given(upper, batch, 0))
    np.testing.assert_allclose(encoder.apply(own, tokens), frozen[:, 0], atol=1e-5)
    heads_alone, nothing = upper_layers.upper_encoder(upper, frozen, 0)
    np.testing.assert_allclose(heads_alone.apply(nothing, frozen), frozen[:, 0], rtol=1e-6)
    if family == "text":
        np.testing.assert_allclose(frozen[:, 0], model.apply(params, batch), atol=1e-5)


def test_equal_flops_are_counted_in_passes_of_a_layer():
    # Rounds x (three passes of a trained layer, one of those below it); nothing is trained in the first stage.
    layerwise_passes = 4 * (3 + 1) + 8 * (3 + 2)
    assert tuned.low_high(12) == (0, 4, 8)
    found = tuned.equal_rounds(12)
    assert found["end-to-end"] * 9 <= layerwise_passes < (found["end-to-end"] + 1) * 9
    progressive = lambda total: sum(r * 3 * s for s, r in enumerate(tuned.low_high(total), 1))
    assert progressive(found["progressive"]) <= layerwise_passes < progressive(found["progressive"] + 1)


def test_the_first_best_round_is_kept_and_later_ones_do_not_count():
    best = Best("valid/a", until=4)
    for number, value in ((1, 0.2), (2, None), (3, 0.5), (4, 0.5), (5, 0.9)):
        state = FedState({"w": jnp.float32(number)}, {}, jnp.int32(number))
        row = {} if value is None else {"valid/a": value}
        best(types.SimpleNamespace(number=number, state=state), row)  # pyright: ignore[reportArgumentType]
    assert (best.round, best.value) == (3, 0.5) and best.state.server["w"] == 3


def problem():
    """Two modalities of 24 vectors, whose encoders have three small layers on one token, and heads alone on another."""
    examples = {
        split: {m: vectors(24, 4, 10 * i + j) for i, m in enumerate(("image", "text"))}
        for j, split in enumerate(pretrained.SPLITS)
    }
    image = examples["train"]["image"]
    examples["train"]["image"] = np.stack([image, image + 0.1], axis=1)  # two views of each, of which a test has one
    of = lambda depth: Trunk(*encoders_of(depth), examples)
    return Problem(of(tuned.LAYERS), {2: of(0), 3: of(0)}, [np.arange(12), np.arange(12, 24)], None)


def encoders_of(depth):
    layer, example = Layer(1, 2, pre_norm=False), jax.ShapeDtypeStruct((1, 1, 4), jnp.float32)
    encoder = transformer.stack(upper_layers.Kept(), layer, depth, 4, example, Checkpoint({}, "", ()))
    first = encoder.init(jax.random.key(0), jnp.zeros((1, 1, 4)))
    return dict.fromkeys(("image", "text"), encoder), dict.fromkeys(("image", "text"), first)


@pytest.fixture
def study(tmp_path, monkeypatch):
    given = problem()
    monkeypatch.setattr(pretrained, "load", lambda settings, seed: given)
    return Settings(
        train=24,
        clients=2,
        per_round=1,
        batch_size=6,
        warm=2,
        every=1,
        longer=2,
        head_rates=(0.1, 1.0),
        encoder_rates=(0.1,),
        projection_hidden=4,
        projection_dim=3,
        rows=("frozen trunk",),
        common=cli.Common(rounds=3, seeds=1, out=str(tmp_path)),
    )


def test_rates_and_rounds_are_chosen_on_validation(tmp_path, study):
    found = tuned.compare(study)
    short, long = found["frozen trunk"][0], found["frozen trunk, 2 times the rounds"][0]
    assert short["round"] <= 3 and long["round"] <= 6 and long["valid"] >= short["valid"]
    assert long["paid"]["MB in all"] == pytest.approx(2 * short["paid"]["MB in all"])
    text = (tmp_path / "tuned.md").read_text()
    assert "| frozen trunk |" in text and "at the edge" in text and "Heads alone, 2 rounds" in text
    with pytest.raises(ValueError, match="is of a run with other settings|settings"):
        tuned.compare(dataclasses.replace(study, temperature=0.2))
    with pytest.raises(ValueError, match="the row of --rows head is not known"):
        tuned.compare(dataclasses.replace(study, rows=("head",)))


def test_beside_trained_layers_heads_have_the_rate_that_the_frozen_trunk_chose(monkeypatch, study):
    asked = []

    def train(settings, name, heads, rate, seed):
        asked.append((name, heads, rate))
        one = {"round": 1, "valid": rate, "test": {"accuracy": 0.5, "macro_f1": 0.5}, "paid": {}}
        return {"labels": dict.fromkeys(tuned.rows(settings)[name].labels, one)}

    monkeypatch.setattr(tuned, "train_heads", lambda settings, layers, rate, seed: -rate)
    monkeypatch.setattr(tuned, "train", train)
    tuned.compare(dataclasses.replace(study, rows=("end-to-end",)))
    assert [(heads, rate) for name, heads, rate in asked if name == "frozen trunk"] == [
        ((0.1, 0.1), 0.1),
        ((0.1, 0.1), 1),
    ]
    assert {heads for name, heads, _ in asked if name == "end-to-end"} == {(0.1, 1.0)}


def test_a_row_begins_with_the_heads_that_were_trained_before(tmp_path, study):
    given = problem()
    assert 0 < tuned.train_heads(study, 2, 0.1, 0) <= 100
    heads = run.load(tmp_path / "heads_of_2_0.1" / "seed0").server
    row = tuned.rows(study)["layer-wise"]
    config = tuned.config_of(study, row, 0.1, 0.1)
    data = given.federated(given.trained)
    stages = layerwise.build(config, data, given.trained.encoders, None, given.trained.params)
    assert [stage.rounds for stage in stages] == [0, 1, 2, 1] and row.heads == 2
    begun = tuned.with_heads(stages, tuned.warm_heads(study, 2, 0.1, 0))
    fresh, own = (jax.jit(plan[1].method.server.init)(jax.random.key(7)) for plan in (stages, begun))
    for m in ("image", "text"):
        jax.tree.map(np.testing.assert_array_equal, own[m]["head"], heads[m]["head"])
        jax.tree.map(np.testing.assert_array_equal, own[m]["encoder"], fresh[m]["encoder"])
        assert (own[m]["head"]["dense_0"]["kernel"] != fresh[m]["head"]["dense_0"]["kernel"]).any()


def test_statistics_taken_in_between_are_those_of_the_last_round():
    given = problem()
    row = tuned.rows(Settings())["frozen trunk"]
    config = tuned.config_of(Settings(batch_size=6, projection_hidden=4), row, 0.1, 0.0)
    config, trunk = dataclasses.replace(config, rounds=(2,)), given.frozen[3]
    data = given.federated(trunk)
    stages = layerwise.build(config, data, trunk.encoders, None, trunk.params)
    train = lambda plan: run.train(plan, data, per_round=1, seed=3, log=lambda line: None, progress=False)
    before, after = train(stages[:-1]), train(stages)
    own = recalibration(stages, data, 1, 3)(before)
    jax.tree.map(np.testing.assert_array_equal, own.server, after.server)
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), before.server, own.server)
    assert any(jax.tree.leaves(changed))
