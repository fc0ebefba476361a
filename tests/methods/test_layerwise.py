"""LW-FedMML, Prog-FedMML and end-to-end: what trains, what travels, what one stage hands to the next."""

import dataclasses
import functools
import pathlib
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.metrics import accuracy_score, f1_score, precision_score, recall_score
from tiny_transformer import tiny

from fedjax_mm import costs, losses, run, stages, trees
from fedjax_mm.data.federated import FederatedData
from fedjax_mm.methods import layerwise
from fedjax_mm.methods.layerwise import VARIANTS, LayerwiseConfig, build
from fedjax_mm.models import ast, bert, heads, vit
from fedjax_mm.types import CohortPopulation, CohortRound, FedState, Mean, Population, RoundData

RNG = np.random.default_rng(0)
KEY = jax.random.key(3)
CAUSE = RNG.normal(size=(40, 2)).astype(np.float32)
IMAGE = CAUSE @ RNG.normal(size=(2, 3)).astype(np.float32)
TEXT = CAUSE @ RNG.normal(size=(2, 5)).astype(np.float32)
LABEL = (CAUSE[:, 0] > 0).astype(np.int32) + (CAUSE[:, 1] > 0.5)
OWNED = [np.arange(8), np.arange(8, 12), np.arange(12, 14)]  # the last has less than a batch
BASE = LayerwiseConfig(
    rounds=(2, 2),
    encoder_lr={"image": (0.01, 0.02), "text": (0.03, 0.04)},
    head_lr=0.05,
    batch_size=4,
    epochs=1,
    projection_hidden=6,
    projection_dim=3,
    crop=None,
)
SCALED = dataclasses.replace(  # rates as they are used
    BASE, encoder_lr={m: tuple(64 * lr for lr in rates) for m, rates in BASE.encoder_lr.items()}, head_lr=64 * 0.05
)


def encoders(**settings):
    return {"image": tiny(3, norm=True, **settings), "text": tiny(5, **settings)}


def problem(owned=OWNED, text=TEXT):
    return FederatedData.from_arrays({"image": IMAGE, "text": text, "label": LABEL}, owned)


def made(config=SCALED, classes=None, pretrained=None, owned=OWNED, **settings):
    return build(config, problem(owned), encoders(**settings), classes, pretrained)


def paths(tree):
    name = lambda path: "/".join(k.key for k in path)
    return {name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def shapes_of(families):
    """A population of which no more is known than the shapes that the encoders take, and of labels."""
    shapes = {m: jax.ShapeDtypeStruct((40, *x.example.shape[1:]), x.example.dtype) for m, x in families.items()}
    return Population({"all": CohortPopulation(3, {**shapes, "label": jax.ShapeDtypeStruct((40,), jnp.int32)})})


def sent_and_held(stage):
    state = jax.eval_shape(stage.method.init, KEY)
    return (paths(tree) for tree in stage.method.server.download(state.server, None)["all"])


@functools.cache
def compiled(classes=None, plan="layer-wise"):
    """(stages, the compiled round of each)."""
    plan = made(dataclasses.replace(SCALED, plan=plan), classes, PRETRAINED)
    return plan, [jax.jit(stage.method.round) for stage in plan]


PRETRAINED = {
    m: jax.tree.map(lambda x: x + 0.25, encoder.init(jax.random.key(9), None)) for m, encoder in encoders().items()
}


def rounds(step, state, number=2, who=(0, 1, 2), owned=OWNED):
    for _ in range(number):
        state, metrics = step(state, problem(owned).round({"all": np.array(who)}), KEY)
    return state, metrics


# What is trained


@pytest.mark.parametrize("plan", ["layer-wise", "progressive", "end-to-end"])
def test_each_stage_sends_what_it_trains_and_holds_the_rest(plan):
    """The table of section 1.7, on real families: ViT with norm and pooler, DistilBERT with neither."""
    sizes = dict(dim=8, depth=4, heads=2, mlp=12)
    families = {
        "image": vit.encoder(image=8, patch=4, pooler=True, **sizes),
        "text": bert.encoder(vocabulary=9, positions=6, **(sizes | {"depth": 2})),
    }
    config = dataclasses.replace(BASE, plan=plan)
    made = build(config, shapes_of(families), families, num_classes=3)
    blocks = {"image": [("00", "01"), ("02", "03")], "text": [("00",), ("01",)]}
    assert [stage.rounds for stage in made] == ([4] if plan == "end-to-end" else [2, 2])
    for s, stage in enumerate(made, 1 if plan == "end-to-end" else 0):
        sent, held = sent_and_held(stage)
        assert not sent.keys() & held.keys()
        there = {p.split("/")[3] for p in sent.keys() | held.keys() if p.startswith("image/encoder/layers")}
        assert there == set(sum(blocks["image"][: s + 1], ()))
        for m in families:
            layers = blocks[m][s] if plan == "layer-wise" else sum(blocks[m][: s + 1], ())
            trained = {p.split("/")[3] for p in sent if p.startswith(f"{m}/encoder/layers")}
            assert trained == set(layers)
            embeddings = {p in sent for p in sent.keys() | held.keys() if p.startswith(f"{m}/encoder/embeddings")}
            assert embeddings == {plan != "layer-wise" or s == 0}
            assert not any(p.startswith(f"{m}/head") for p in held)
        assert {"image/encoder/norm/scale", "image/encoder/norm/bias", "prediction/dense_1/bias"} <= sent.keys()
        assert {p for p in held if "pooler" in p} == {"image/encoder/pooler/kernel", "image/encoder/pooler/bias"}


def test_embeddings_can_stay_frozen_from_the_first_stage():
    frozen = made(dataclasses.replace(SCALED, train_embeddings=False))[0]
    assert {"image/encoder/embeddings/w", "text/encoder/embeddings/w"} <= set(list(sent_and_held(frozen))[1])


def test_a_stage_trains_what_it_sends_and_nothing_else_bit_for_bit():
    plan, steps = compiled()
    state = plan[0].method.init(KEY)
    for stage, step in zip(plan, steps, strict=True):
        before = stages.enter(state, stage.method.init(KEY)) if stage is plan[1] else state
        state, _ = rounds(step, before)
        old, new = paths(before.server), paths(state.server)
        sent, held = sent_and_held(stage)
        for path in held:
            np.testing.assert_array_equal(new[path], old[path])
        assert held and all((np.asarray(new[path]) != old[path]).any() for path in sent)


def test_the_loss_of_a_client_that_took_no_step_is_no_number_of_the_cohort():
    """Client 2 owns less than a batch: with client 0 the loss is client 0's own, alone there is none."""
    plan, steps = compiled()
    state = plan[0].method.init(KEY)
    row = lambda *who: {k: float(x) for k, x in rounds(steps[0], state, 1, who)[1]["all"].items()}
    both, first, second, nobody = row(0, 2, 3), row(0, 3, 3), row(2, 3, 3), row(3, 3, 3)
    assert [x["clients"] for x in (both, first, second, nobody)] == [2, 1, 1, 0]
    assert both["loss"] == pytest.approx(first["loss"], rel=1e-6) and both["loss"] > 0.1
    assert np.isnan(second["loss"]) and second["left_out"] == 0 and nobody["loss"] == 0


def test_the_next_stage_has_all_that_was_learned_and_the_pretrained_weights_of_its_new_layers():
    plan, steps = compiled()
    learned, _ = rounds(steps[0], plan[0].method.init(KEY))
    entered = paths(stages.enter(learned, plan[1].method.init(KEY)).server)
    old, given = paths(learned.server), paths({m: {"encoder": p} for m, p in PRETRAINED.items()})
    assert entered.keys() - old.keys() == {f"{m}/encoder/layers/01/w" for m in PRETRAINED}
    for path, leaf in entered.items():
        np.testing.assert_array_equal(leaf, old[path] if path in old else given[path])
    start = paths(plan[0].method.init(KEY).server)
    for path in ("image/encoder/layers/00/w", "text/encoder/embeddings/w", "image/encoder/pooler/w"):
        np.testing.assert_array_equal(start[path], given[path])
    np.testing.assert_array_equal(start["image/encoder/norm/scale"], 1.0)  # not the checkpoint's


def test_from_scratch_every_plan_starts_from_the_same_weights():
    whole = paths(made(dataclasses.replace(SCALED, plan="end-to-end"))[0].method.init(KEY).server)
    for stage in made():
        for path, leaf in paths(stage.method.init(KEY).server).items():
            np.testing.assert_array_equal(leaf, whole[path])
    first, second = (whole[f"image/encoder/layers/{i}/w"] for i in ("00", "01"))
    assert np.abs(first - second).max() > 0.1


# How it is trained


@pytest.mark.parametrize("classes", [None, 3])
def test_the_split_update_is_a_masked_optimiser_on_the_whole_tree(classes):
    """multi_transform({rates..., frozen: set_to_zero}) with gradients of every leaf, loss and all written out here."""
    config = dataclasses.replace(SCALED, epochs=3, batch_size=8, head_dropout=0.0)  # 3 steps, each on all rows
    config = dataclasses.replace(config, weight_decay=0.3, projection_decay=0.1)
    stage = made(config, classes, owned=[np.arange(8)])[1]
    state = jax.jit(stage.method.init)(KEY)
    new, _ = rounds(jax.jit(stage.method.round), state, 1, (0,), [np.arange(8)])
    held = list(sent_and_held(stage))[1]
    projection, prediction = heads.projection(6, 3, rate=0.0), heads.prediction(3, rate=0.0)
    apply = {m: encoder.apply for m, encoder in encoders().items()}

    def loss(params):
        z, after = {}, dict(params)
        for m, x in (("image", IMAGE[:8]), ("text", TEXT[:8])):
            feature = apply[m](params[m]["encoder"], x)
            z[m], head = projection.train(params[m]["head"], feature, KEY)
            after[m] = {**params[m], "head": head}
        if classes is None:
            return losses.info_nce(z["image"], z["text"], 0.05), after
        logits, _ = prediction.train(params["prediction"], jnp.stack([z["image"], z["text"]]), KEY)
        return optax.softmax_cross_entropy_with_integer_labels(logits, LABEL[:8]).mean(), after

    def label(path, _):
        name = "/".join(k.key for k in path)
        if name in held or heads.is_statistic(name):
            return "frozen"
        return "prediction" if name.startswith("prediction") else "head" if "/head/" in name else path[0].key

    scale = 8 / 256 * 64
    tx = optax.multi_transform(
        {
            "image": optax.adamw(0.02 * scale, weight_decay=0.3),
            "text": optax.adamw(0.04 * scale, weight_decay=0.3),
            "head": optax.adamw(0.05 * scale, weight_decay=0.1),
            "prediction": optax.adamw(0.05 * scale, weight_decay=0.3),
            "frozen": optax.set_to_zero(),
        },
        lambda params: jax.tree_util.tree_map_with_path(label, params),
    )
    params = state.server
    opt = jax.jit(tx.init)(params)

    @jax.jit
    def step(params, opt):
        grads, after = jax.grad(loss, has_aux=True)(params)
        updates, opt = tx.update(grads, opt, params)
        moved = optax.apply_updates(params, updates)
        is_statistic = trees.path_mask(params, heads.is_statistic)
        return jax.tree.map(lambda m, new, moved: new if m else moved, is_statistic, after, moved), opt

    for _ in range(3):
        params, opt = step(params, opt)
    chex.assert_trees_all_close(new.server, params, rtol=2e-3, atol=2e-4)
    assert (
        np.abs(
            new.server["image"]["encoder"]["layers"]["01"]["w"] - state.server["image"]["encoder"]["layers"]["01"]["w"]
        ).max()
        > 0.05
    )


def test_clients_count_by_examples_statistics_too_and_one_without_a_batch_counts():
    plan, steps = compiled()
    start = plan[0].method.init(KEY)
    alone = [rounds(steps[0], start, 1, (i, 3, 3))[0].server for i in range(3)]
    for path, leaf in paths(alone[2]).items():  # two examples, batches of four: no step
        np.testing.assert_array_equal(leaf, paths(start.server)[path])
    together = rounds(steps[0], start, 1)[0].server
    mean = jax.tree.map(lambda *x: np.average(x, axis=0, weights=[8, 4, 2]), *alone)
    chex.assert_trees_all_close(together, mean, rtol=1e-5, atol=1e-6)
    head = lambda params: params["image"]["head"]["norm_0"]["running_mean"]
    assert np.abs(head(alone[0]) - head(alone[1])).max() > 1e-3


@pytest.mark.parametrize("plan, frozen_dropout, first", [
    ("layer-wise", True, 0),
    ("layer-wise", False, 1),
    ("progressive", False, 0),
])  # fmt: skip
def test_frozen_layers_drop_units_if_asked_to(plan, frozen_dropout, first):
    seen = []
    config = dataclasses.replace(SCALED, plan=plan, frozen_dropout=frozen_dropout)
    stage = made(config, seen=seen)[1]
    state = jax.eval_shape(stage.method.init, KEY)
    jax.eval_shape(stage.method.round, state, problem().round({"all": np.array([0])}), KEY)
    assert seen and set(seen) == {first}


def test_a_step_sees_a_part_of_an_image_and_one_of_its_captions_and_scores_see_them_whole():
    seen = []

    def watching(encoder, shape):
        flat = lambda x: jnp.reshape(x, (len(x), -1))
        apply = lambda params, x, *more: (seen.append(x), encoder.apply(params, flat(x), *more))[1]
        example = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
        return encoder._replace(init=lambda key, x: encoder.init(key, flat(x)), apply=apply, example=example)

    images, captions = RNG.normal(size=(6, 2, 3, 1)).astype(np.float32), RNG.normal(size=(6, 4, 5)).astype(np.float32)
    both = {"image": watching(tiny(6), (2, 3, 1)), "text": watching(tiny(5), (5,))}
    params = layerwise.init_network(SCALED, both, None, KEY, {"image": 1, "text": 1})
    batch = {"image": images, "text": captions}
    for crop in (0.08, None):
        config = dataclasses.replace(SCALED, crop=crop)
        seen.clear()

        def step(params, batch, config=config):
            layerwise.local_loss(config, both, params, batch, KEY, {"image": 0, "text": 0})
            return list(seen)

        image, text = map(np.asarray, jax.jit(step)(params, batch))
        assert image.shape == images.shape and (image == images).all() == (crop is None)
        assert all((one == given).all(1).any() for one, given in zip(text, captions, strict=True))
        seen.clear()
        layerwise.scores(config, both, FedState(params, {}, 0), batch)
        np.testing.assert_array_equal(seen[0], images)
        np.testing.assert_array_equal(seen[1], captions.reshape(24, 5))


# Whole runs and scores


def test_pretrained_layers_of_a_stage_without_rounds_are_attached_and_frozen():
    config = dataclasses.replace(SCALED, rounds=(0, 1))
    given = jax.tree.map(jnp.asarray, PRETRAINED)
    state = run.train(made(config, None, given), problem(), per_round=2, log=lambda line: None)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(given))  # the round gives its input's memory away
    for m, given in PRETRAINED.items():
        for part in ("embeddings", "layers"):
            got = state.server[m]["encoder"][part]
            if part == "layers":
                assert (got["01"]["w"] != given["layers"]["01"]["w"]).any()
                got, given = got["00"], {**given, "layers": given["layers"]["00"]}
            chex.assert_trees_all_equal(got, given[part])


def embedded(params, m, x):
    """z^m in NumPy."""
    part = jax.tree.map(np.asarray, params[m])
    h = x @ part["encoder"]["embeddings"]["w"]
    for layer in part["encoder"]["layers"].values():
        h = h + np.tanh(h @ layer["w"])
    h = h * part["encoder"].get("norm", {"scale": np.ones(4)})["scale"]
    for i in range(3):
        norm = part["head"][f"norm_{i}"]
        h = h @ part["head"][f"dense_{i}"]["kernel"]
        h = (h - norm["running_mean"]) / np.sqrt(norm["running_variance"] + 1e-5)
        h = np.maximum(h * norm["scale"] + norm["bias"], 0) if "scale" in norm else h
    return h


def test_contrastive_training_finds_the_pairs_and_scores_them_as_by_hand():
    rates = {"image": (0.3, 0.3), "text": (0.3, 0.3)}  # times 8 / 256
    config = LayerwiseConfig(rounds=(15, 15), encoder_lr=rates, head_lr=0.5, batch_size=8, temperature=0.1, epochs=5)
    config = dataclasses.replace(config, projection_hidden=16, projection_dim=4, head_dropout=0.0)
    owned = [np.arange(20), np.arange(20, 40)]
    captions = np.stack([TEXT, TEXT + 0.01 * RNG.normal(size=TEXT.shape).astype(np.float32)], 1)
    data = problem(owned, captions)
    plan = build(config, data, encoders())
    arrays = {"image": IMAGE, "text": captions}
    start = plan[0].method.evaluate(jax.jit(plan[0].method.init)(KEY), arrays)
    state = run.train(plan, data, per_round=2, log=lambda line: None)
    scores = plan[1].method.evaluate(state, arrays)
    assert scores["i2t_r5"] > max(60, 2 * start["i2t_r5"]) and scores["t2i_r5"] > 60
    assert set(scores) >= {f"{way}_r{k}" for way in ("i2t", "t2i") for k in (1, 5, 10, 50)}
    unit = lambda z: z / np.linalg.norm(z, axis=1, keepdims=True)
    image, text = (
        unit(embedded(state.server, "image", IMAGE)),
        unit(embedded(state.server, "text", captions.reshape(80, 5))),
    )
    cosine = image @ text.T
    top = np.argsort(-cosine, 1)[:, :5] // 2
    assert scores["i2t_r5"] == pytest.approx(100 * np.mean([i in top[i] for i in range(40)]), abs=2.6)
    prompts = {"image": IMAGE, "prompts": TEXT[:3], "label": LABEL}
    zero_shot = plan[1].method.evaluate(state, prompts)
    expected = np.mean((image @ text[:6:2].T).argmax(1) == LABEL)
    assert zero_shot == {"zero_shot_accuracy": pytest.approx(expected, abs=0.03)}
    assert plan[1].method.evaluate(state, {**arrays, **prompts}) == scores | zero_shot


def test_supervised_scores_are_scikit_learns_on_the_whole_set_and_by_batches():
    plan, _ = compiled(3)
    state = plan[1].method.init(KEY)
    many = RNG.integers(0, 40, 300)
    arrays = {"image": IMAGE[many], "text": TEXT[many], "label": LABEL[many]}
    scores = plan[1].method.evaluate(state, arrays)
    z = np.concatenate([embedded(state.server, m, arrays[m]) for m in ("image", "text")], 1)
    p = jax.tree.map(np.asarray, state.server["prediction"])
    hidden = np.maximum(z @ p["dense_0"]["kernel"] + p["dense_0"]["bias"], 0)
    predicted = (hidden @ p["dense_1"]["kernel"] + p["dense_1"]["bias"]).argmax(1)
    assert len(np.unique(predicted)) > 1
    truth = arrays["label"]
    macro = dict(average="macro", labels=[0, 1, 2], zero_division=0)
    assert scores["accuracy"] == pytest.approx(accuracy_score(truth, predicted))
    for name, score in (("f1", f1_score), ("precision", precision_score), ("recall", recall_score)):
        assert scores[f"macro_{name}"] == pytest.approx(score(truth, predicted, **macro))
        batches = [
            score(truth[i : i + 16], predicted[i : i + 16], average="macro", zero_division=0) for i in range(0, 300, 16)
        ]
        assert scores[f"batch16_macro_{name}"] == pytest.approx(np.mean(batches))
    batches = [accuracy_score(truth[i : i + 16], predicted[i : i + 16]) for i in range(0, 300, 16)]
    assert scores["batch16_accuracy"] == pytest.approx(np.mean(batches)) != scores["accuracy"]


# A client's own test rows


def test_a_clients_own_classes_are_scored_row_by_row_as_in_numpy():
    plan, _ = compiled(3)
    params = varied(plan[1].method.init(KEY).server)
    z = np.concatenate([embedded(params, m, x) for m, x in (("image", IMAGE), ("text", TEXT))], 1)
    p = params["prediction"]
    hidden = np.maximum(z @ p["dense_0"]["kernel"] + p["dense_0"]["bias"], 0)
    right = (hidden @ p["dense_1"]["kernel"] + p["dense_1"]["bias"]).argmax(1) == LABEL
    got = client_scores(plan[1], params, {"image": IMAGE, "text": TEXT, "label": LABEL}, np.ones(40))
    assert set(got) == {"accuracy"} and 0 < right.mean() < 1
    np.testing.assert_array_equal(got["accuracy"], right)


def test_a_clients_own_captions_are_found_among_its_real_rows_as_in_numpy():
    rng, both = np.random.default_rng(6), {"image": tiny(3), "text": tiny(3)}
    stage = build(SCALED, problem(text=IMAGE), both)[1]
    params = varied(stage.method.init(KEY).server)
    params["text"] = params["image"]
    mask = rng.random(40) < 0.6
    text = np.where(np.arange(40)[:, None] % 2, rng.permutation(IMAGE), IMAGE + 0.01)  # every other caption is right
    captions = np.stack([text, np.full_like(text, 9.0)], 1)  # of which only the first counts
    given = np.where(mask[:, None, None], captions, np.nan)  # NaN would be nearest, were it a candidate
    arrays = {"image": IMAGE, "text": given, "label": LABEL}
    got = np.asarray(client_scores(stage, params, arrays, mask.astype(np.float32))["i2t_r1"])
    unit = lambda z: z / np.linalg.norm(z, axis=1, keepdims=True)
    z = {m: unit(embedded(params, m, x[mask])) for m, x in (("image", IMAGE), ("text", text))}
    right = (z["image"] @ z["text"].T).argmax(1) == np.arange(mask.sum())
    assert 0 < right.mean() < 1
    np.testing.assert_array_equal(got[mask], 100 * right)


def client_scores(stage, params, arrays, mask):
    download = stage.method.server.download(params, None)["all"]
    return jax.jit(stage.method.cohorts["all"].score)(download, (), arrays, mask)


def varied(params):
    """With running statistics that a batch's own would not be, and embeddings of rows that differ."""
    rng = np.random.default_rng(5)
    change = lambda path, x: np.asarray(x) + rng.uniform(0.1, 0.5, np.shape(x)).astype(np.float32)
    return jax.tree_util.tree_map_with_path(change, params)


# The steps outside our loop


def test_the_steps_by_hand_are_a_round():
    """What a client and the server do, imported and bound without `build`."""
    config, data, both = SCALED, problem([np.arange(8)]), encoders()
    stage = layerwise.plan_stages(config, both)[1]
    layers = {m: numbers.stop for m, numbers in stage.layers.items()}
    state = layerwise.init_network(config, both, None, KEY, layers)
    download = layerwise.server_download(stage, ["all"], state)["all"]
    update = functools.partial(layerwise.client_update, config, both, stage, download, ())
    keys = jax.random.split(KEY, 3)
    uploads, _, metrics = jax.jit(jax.vmap(update, (None, 0)))(data.client("all", 0), keys)
    assert metrics["loss"].value.shape == (3,)
    one, _, _ = jax.jit(update)(data.client("all", 0), keys[1])
    got = {part: Mean(jax.tree.map(lambda x: x[1], sent.value), sent.weight[1]) for part, sent in uploads.items()}
    chex.assert_trees_all_close(got, one, atol=1e-4)
    new, _ = layerwise.server_update(stage, state, {"all": one}, None, KEY)
    assert paths(new).keys() == paths(state).keys()
    sent, old = paths({part: mean.value for part, mean in one.items()}), paths(state)
    assert sent.keys() == paths(download.sent).keys()
    for path, leaf in paths(new).items():
        np.testing.assert_array_equal(leaf, sent[path] if path in sent else old[path])


def test_stages_are_built_from_shapes_alone():
    from_data, from_shapes = (build(SCALED, data, encoders(), 3) for data in (problem(), problem().population))
    for one, other in zip(from_data, from_shapes, strict=True):
        chex.assert_trees_all_equal(one.method.init(KEY).server, other.method.init(KEY).server)


def test_the_page_has_every_section_that_the_code_names():
    root = pathlib.Path(layerwise.__file__).parent
    page = (root.parents[2] / "docs" / "specs" / "layerwise.md").read_text()
    sections = set(re.findall(r"^#+ (\d\.\d)", page, re.MULTILINE))
    named = set().union(*(re.findall(r"\(([12]\.[1-9])[),]", file.read_text()) for file in root.glob("*.py")))
    assert {"1.2", "1.4", "1.7"} <= named <= sections


# Sizes


FULL = {
    "coco": ({"image": vit.tiny(), "text": bert.distilbert()}, None, 111_540_864, 181.56, 273.19),
    "advance": ({"image": vit.tiny(), "audio": ast.distilled()}, 13, 88_972_685, 182.08, 187.10),
}


@pytest.mark.parametrize("name", FULL)
def test_full_size_models_have_the_papers_parameters_and_payloads(name):
    families, classes, parameters, payload, first = FULL[name]
    config = VARIANTS[name]
    count = lambda tree: sum(leaf.size for path, leaf in tree.items() if not heads.is_statistic(path))
    plan = build(config, shapes_of(families), families, classes)
    for s in (0, 1, 5):  # those between are as the second
        sent, held = sent_and_held(plan[s])
        assert count(sent) * 4 / 2**20 == pytest.approx(first if s == 0 else payload, abs=0.005)
        running = {path: leaf for path, leaf in sent.items() if heads.is_statistic(path)}
        assert sum(leaf.size for leaf in running.values()) == 2 * 2 * (4096 + 4096 + 256)
    assert count(sent) + count(held) == parameters
    (whole,) = build(dataclasses.replace(config, plan="end-to-end"), shapes_of(families), families, classes)
    sent, held = sent_and_held(whole)
    assert count(sent) == parameters - 37_056 and count(held) == 37_056  # ViT's pooler
    assert [stage.rounds for stage in plan] == [0, 0, 0, 10, 30, 50]


def test_costs_need_shapes_only_and_frozen_layers_cost_a_forward_pass():
    plan, data = made(classes=3), problem()
    struct = lambda *shape, dtype=jnp.int32: jax.ShapeDtypeStruct(shape, dtype)
    arrays = {k: struct(*v.shape, dtype=v.dtype) for k, v in data.cohorts["all"].arrays.items()}
    taken = CohortRound(struct(3), struct(3, dtype=jnp.float32), struct(3, 8), struct(3), arrays)
    batch = {"all": 4}  # the examples of a client, which shapes alone do not tell
    shapes = [costs.of(stage.method, RoundData({"all": taken}), examples=batch)["all"] for stage in plan]
    real = costs.of(plan[1].method, data.round({"all": np.arange(3)}), examples=batch)["all"]
    assert shapes[1] == real
    layer, embeddings = 2 * 4 * 4 * 4, 2 * 4 * (3 + 5) * 4  # multiply-adds twice, batches of 4, width 4
    # A trained layer's own product becomes three, of which the lowest trained one's needs two; embeddings hand nothing
    # down, and with them a first layer has all three.
    first = 2 * (3 * layer) + 2 * embeddings
    second = 2 * (layer + 2 * layer) + embeddings
    assert shapes[0].flops - shapes[1].flops == first - second


@pytest.mark.parametrize(
    "change, settings, said",
    [
        (dict(fusion="mean"), {}, "fusion is 'mean'; it must be one of 'concat', "),
        (dict(batch_size=1), {}, "batch_size must be at least 2"),
        (dict(rounds=(1, 1, 1)), {}, r"encoder_lr\['image'\] is .*; it must have one rate for each of 3 stages"),
        (dict(encoder_lr={"image": (1.0, 1.0)}), {}, r"encoder_lr\['text'\] is None"),
        ({}, dict(pretrained={"text": {}}), r"pretrained has \['text'\], but not 'image'"),
        ({}, dict(depth=3), "3 layers cannot be cut into 2 equal blocks"),
    ],
)
def test_mistakes_are_refused_in_words(change, settings, said):
    with pytest.raises(ValueError, match=said):
        made(dataclasses.replace(SCALED, **change), **settings)


def test_data_that_do_not_fit_are_refused_in_words():
    data, two = problem(), encoders()
    with pytest.raises(ValueError, match=r"clients of all have no \['audio'\]"):
        rates = {m: (1.0, 1.0) for m in ("image", "audio")}
        build(dataclasses.replace(SCALED, encoder_lr=rates), data, {"image": two["image"], "audio": tiny()})
    with pytest.raises(ValueError, match=r"takes two modalities, not \['image'\]"):
        build(SCALED, data, {"image": two["image"]})
    with pytest.raises(ValueError, match="may not be called 'prediction'"):
        data = FederatedData.from_arrays({"image": IMAGE, "prediction": TEXT}, OWNED)
        build(SCALED, data, {"image": two["image"], "prediction": two["text"]})
