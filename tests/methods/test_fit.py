"""Data, models and test sets that do not fit a method are refused in one sentence; those that fit are not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_vilt
from flax import linen as nn
from linear_autoencoder import linear_ae
from tiny_joint_space import CLIENTS, LINEAR, NUM_CLASSES, SERVER
from tiny_joint_space import problem as pairs_problem
from tiny_transformer import tiny

from fedjax_mm import run
from fedjax_mm.data import incoming
from fedjax_mm.data.federated import FederatedData, pooled
from fedjax_mm.methods import creamfl, fedavg, feddat, fedmekt, fit, layerwise
from fedjax_mm.methods.creamfl import encoder_averaging
from fedjax_mm.methods.feddat import peft
from fedjax_mm.methods.fedmekt import mmfl
from fedjax_mm.models import Model, embedding, heads, mlp, text
from fedjax_mm.types import CohortPopulation, Mean, Population

X, WORDS = np.linspace(0, 1, 24, dtype=np.float32).reshape(8, 3), (np.arange(16).reshape(8, 2) % 5).astype(np.int32)
WINDOWS = {"a": np.ones((8, 4, 3), np.float32), "b": np.ones((8, 4, 2), np.float32)}
LABEL = np.arange(8) % 3
OWNED = [np.arange(5), np.arange(5, 8)]


def of(arrays, public=None, owned=OWNED):
    return FederatedData.from_arrays(arrays, owned, public=public)


def averaging(data, encoders=None, head=None, **settings):
    encoders = {"x": mlp.encoder((), 4)} if encoders is None else encoders
    return fedavg.build(fedavg.FedAvgConfig(**settings), data, encoders, head or heads.linear(3))


def windowed(paper, data, num_classes=3, labelled=None, ae=None):
    probe = fedmekt.Probe(unit="window")
    config = fedmekt.FedMEKTConfig(probe=probe) if paper is fedmekt else mmfl.MMFLConfig(probe=probe)
    labelled = {**WINDOWS, "label": LABEL} if labelled is None else labelled
    return paper.build(config, data, ae or linear_ae(), labelled, num_classes)


def staged(data, num_classes=3, batch_size=2, names=("image", "text"), **settings):
    config = layerwise.LayerwiseConfig(
        rounds=(1,), encoder_lr={m: (0.1,) for m in names}, batch_size=batch_size, projection_hidden=4, **settings
    )
    return layerwise.build(config, data, {m: tiny(3) for m in names}, num_classes)[0].method


def tuned(paper, data, classes=3):
    model = tiny_vilt.tiny()
    trunk = model.init(jax.random.key(0), {"image": X[:1, :1].repeat(4, 1), "question": X[:1, :2]})
    if paper is peft:
        return peft.build(peft.PEFTConfig(), data, model, trunk, heads.linear(classes))
    return feddat.build(feddat.FedDATConfig(), data, model, trunk, tiny_vilt.adapter_init(model), heads.linear(classes))


TWO = {"image": X, "text": X, "label": LABEL}
IN_SPACE = {
    "creamfl": lambda data, classes=NUM_CLASSES: creamfl.build(creamfl.CreamFLConfig(), data, SERVER, CLIENTS, classes),
    "averaging": lambda data, classes=NUM_CLASSES: encoder_averaging.build(
        encoder_averaging.AveragingConfig(), data, SERVER, classes
    ),
}
BUILT = {
    "fedavg": lambda: (averaging, of({"x": X, "label": LABEL})),
    "fedmekt": lambda: (functools.partial(windowed, fedmekt), of(WINDOWS, WINDOWS)),
    "mmfl": lambda: (functools.partial(windowed, mmfl), of(WINDOWS)),
    "layerwise": lambda: (staged, of(TWO)),
    "feddat": lambda: (functools.partial(tuned, feddat), tiny_vilt.questions((4, 3))),
    "peft": lambda: (functools.partial(tuned, peft), tiny_vilt.questions((4, 3))),
    "creamfl": lambda: (IN_SPACE["creamfl"], pairs_problem()),
    "averaging": lambda: (IN_SPACE["averaging"], pairs_problem()),
}


@pytest.mark.parametrize("name", BUILT)
def test_a_method_fits_its_own_data_and_refuses_other_clients_arrays_shapes_and_types(name):
    build, data = BUILT[name]()
    population = data.population
    method = build(data)
    method.check(population)
    with pytest.raises(ValueError, match="test"):
        run.train(method, data, rounds=2, per_round=1, test={}, watch=[pytest.fail])
    first, cohort = next(iter(population.cohorts.items()))
    key = next(iter(cohort.arrays))
    instead = lambda cohort: population._replace(cohorts={**population.cohorts, first: cohort})
    array = lambda x: instead(cohort._replace(arrays={**cohort.arrays, key: x}))
    old = cohort.arrays[key]
    method.check(array(jax.ShapeDtypeStruct((99, *old.shape[1:]), old.dtype)))  # as many examples as there are
    with pytest.raises(ValueError, match="the data has clients .*; the method was built for .*: build it from this"):
        method.check(instead(cohort._replace(size=cohort.size + 1)))
    with pytest.raises(ValueError, match="the data has clients"):
        method.check(population._replace(cohorts={**population.cohorts, "more": cohort}))
    with pytest.raises(ValueError, match=f"cohort {first} has arrays .*; the method was built for"):
        method.check(instead(cohort._replace(arrays={k: x for k, x in cohort.arrays.items() if k != key})))
    for other in (jax.ShapeDtypeStruct((*old.shape, 7), old.dtype), jax.ShapeDtypeStruct(old.shape, jnp.float16)):
        with pytest.raises(ValueError, match=f"array '{key}' of cohort {first}: an example of it is"):
            method.check(array(other))


@pytest.mark.parametrize("label", [LABEL - 1, LABEL + 1])
@pytest.mark.parametrize("name", ["fedavg", "layerwise", "creamfl", "averaging"])
def test_labels_that_the_head_does_not_know_are_refused_at_build_and_by_check(name, label):
    build, data = BUILT[name]()
    method, cohort = build(data), next(iter(data.population.cohorts))
    ranges = {"label": (int(label.min()), int(label.max()))}
    population = data.population
    bad = population._replace(cohorts={k: c._replace(ranges=ranges) for k, c in population.cohorts.items()})
    for refuse in (build, method.check):
        with pytest.raises(ValueError, match=rf"'label' of cohort {cohort} holds .*must be within 0\.\.2: "):
            refuse(bad)


def test_a_head_of_fewer_classes_than_the_labels_is_refused():
    with pytest.raises(ValueError, match=r"holds 0\.\.2, which must be within 0\.\.1: the head has 2 classes"):
        averaging(of({"x": X, "label": LABEL}), head=heads.linear(2))


@pytest.mark.parametrize(
    "label, said",
    [(LABEL.astype(np.float32), "integers"), (LABEL[:, None], r"is \[8, 1\]; it must be \[E\]")],
)
@pytest.mark.parametrize("build", [averaging, staged])
def test_labels_of_another_shape_or_type_are_refused(build, label, said):
    arrays = {"x": X, "image": X, "text": X, "label": label}
    with pytest.raises(ValueError, match=said):
        build(of(arrays))


@pytest.mark.parametrize("words", [WORDS - 1, WORDS + 1])
@pytest.mark.parametrize("reader", [text.encoder(5, 4, 4), embedding.pie_text(5, 4, 4)])
def test_tokens_outside_the_vocabulary_are_refused(reader, words):
    averaging(of({"x": WORDS, "label": LABEL}), {"x": reader})
    with pytest.raises(ValueError, match=r"must be within 0\.\.4: the model's vocabulary has 5 ids"):
        averaging(of({"x": words, "label": LABEL}), {"x": reader})


def test_public_tokens_and_test_tokens_are_checked_too():
    reader = embedding.linear(text.encoder(5, 4, 4), 4)
    assert reader.vocabulary == 5
    server, owned = {"image": LINEAR, "text": reader}, {"both": OWNED}
    build = lambda words: creamfl.build(
        creamfl.CreamFLConfig(),
        FederatedData.from_arrays({"both": {"image": X, "text": WORDS}}, owned, public={"image": X, "text": words}),
        server,
        {"both": server},
        {},
    )
    method = build(WORDS)
    with pytest.raises(ValueError, match=r"'text' of the public examples holds 1\.\.5"):
        build(WORDS + 1)
    with pytest.raises(ValueError, match=r"'text' of the test set holds 1\.\.5"):
        method.evaluate(None, {"image": X, "text": WORDS + 1})


IDENTITY = Model(lambda key, x: {}, lambda params, x: x)
BOTH = {"x": X, "y": X[:, :2].copy(), "label": LABEL}


@pytest.mark.parametrize(
    "encoders, head, said",
    [
        ({"x": IDENTITY, "y": IDENTITY}, None, r"give x \[B, 3\], y \[B, 2\]; all must give \[B, D\] with one D"),
        ({"x": Model(lambda key, x: {}, lambda params, x: x.sum(1))}, None, r"x \[B\]; all must give \[B, D\]"),
        ({"x": Model(lambda key, x: {}, lambda params, x: x.sum(0)[None])}, None, "all must give"),
        ({"x": (IDENTITY.init, IDENTITY.apply, None)}, None, r"encoders\['x'\] is tuple.*it must be a models.Model"),
        ({"x": lambda x: x}, None, r"encoders\['x'\] is function"),
        (
            {"x": nn.BatchNorm(False)},
            None,
            r"'x'\] cannot take .*BatchNorm has \['batch_stats'\] besides its parameters",
        ),
        ({"x": IDENTITY}, nn.Dense, "head is type"),
        ({"x": IDENTITY}, Model(lambda key, x: {}, lambda params, x: x.sum(-1)), r"head gives \[2\]"),
        ({"x": Model(lambda key, x: {}, lambda params, x: x @ jnp.ones((9, 2)))}, None, r"'x'\] cannot take float32"),
        ({}, None, "no modality"),
        ([IDENTITY], None, "encoders is .Model.*it must be a mapping"),
    ],
)
def test_models_that_do_not_fit_are_refused(encoders, head, said):
    with pytest.raises(ValueError, match=said):
        averaging(of(BOTH), encoders, head)


@pytest.mark.parametrize("name", ["head", "label", "has_x"])
def test_a_modality_called_like_a_part_or_an_array_is_refused(name):
    with pytest.raises(ValueError, match=f"a modality may not be called '{name}'"):
        averaging(of({name: X, "label": LABEL}), {name: IDENTITY})


@pytest.mark.parametrize("name", ["label", "knowledge"])
def test_an_autoencoders_modality_called_like_an_array_is_refused(name):
    arrays = {name: WINDOWS["a"]}
    with pytest.raises(ValueError, match=f"a modality may not be called '{name}'"):
        windowed(fedmekt, of(arrays, arrays), ae=linear_ae({name: 3}.items()))


@pytest.mark.parametrize(
    "has, said",
    [
        (np.ones(8, np.float32), "must be integers in 0..1"),
        (np.full(8, 2), r"holds 2\.\.2, which must be within 0\.\.1"),
        (np.ones((8, 1), bool), r"is \[8, 1\]; it must be \[E\]"),
    ],
)
def test_what_says_that_a_modality_is_there_is_true_or_false(has, said):
    averaging(of({"x": X, "has_x": LABEL > 0, "label": LABEL}))
    with pytest.raises(ValueError, match=said):
        averaging(of({"x": X, "has_x": has, "label": LABEL}))


def test_a_method_that_needs_every_array_of_each_example_refuses_pooled_ones_that_lack_some():
    arrays = {"A": {"image": X, "label": LABEL}, "B": {"image": X, "text": X}}
    together = pooled(FederatedData.from_arrays(arrays, {"A": OWNED, "B": OWNED}))
    with pytest.raises(ValueError, match="lack 'text', which is needed"):
        staged(together)
    with pytest.raises(ValueError, match="lack 'label', which is needed"):
        averaging(together, {"image": IDENTITY})


# Test sets and labelled sets.

GOOD = {"x": X, "label": LABEL}
BAD = [
    ({"x": X}, r"has no \['label'\]"),
    ({"label": LABEL}, "none of the modalities"),
    ({"x": X[:0], "label": LABEL[:0]}, "one length, at least 1"),
    ({"x": X, "label": LABEL[:7]}, "one length"),
    ({"x": X, "label": LABEL - 1}, r"holds -1\.\.1"),
    ({"x": X, "label": LABEL + 1}, r"holds 1\.\.3"),
    ({"x": X, "label": LABEL / 1.0}, "built for int32"),
    ({"x": X * np.nan, "label": LABEL}, "NaN or infinity"),
    ({"x": X[:, :2], "label": LABEL}, "built for float32"),
    ({"x": (X * 255).astype(np.uint8), "label": LABEL}, "built for float32"),
    ({"x": X.tolist(), "label": LABEL}, "give a NumPy or JAX array"),
    ({"x": X, "has_x": LABEL > 0, "label": LABEL}, "lack 'x'"),
    ([X, LABEL], "must be a mapping"),
]


@pytest.mark.parametrize("arrays, said", BAD)
def test_test_arrays_that_do_not_fit_are_refused(arrays, said):
    with pytest.raises(ValueError, match=said):
        _averaging().evaluate(None, arrays)
    if isinstance(arrays, dict):
        with pytest.raises(ValueError, match=said):
            run.train(_averaging(), of(GOOD), rounds=2, per_round=1, test=arrays, watch=[pytest.fail])


@functools.cache
def _averaging():
    return averaging(of(GOOD))


@pytest.mark.parametrize(
    "change, said",
    [
        ({"label": LABEL + 1}, r"holds 1\.\.3"),
        ({"label": -LABEL}, "holds -2"),
        ({"label": LABEL / 1.0}, "must be integers"),
        ({"label": np.zeros(8, int)}, "holds class 0 only"),
        ({"label": LABEL[:, None]}, "one label for each window"),
        ({"a": np.ones((8, 4, 9), np.float32)}, "the autoencoder of 'a'"),
        ({"a": np.full((8, 4, 3), np.inf, np.float32)}, "NaN or infinity"),
        ({"a": np.ones((7, 4, 3), np.float32)}, "one length"),
    ],
)
@pytest.mark.parametrize("paper", [fedmekt, mmfl], ids=["fedmekt", "mmfl"])
def test_a_labelled_set_that_does_not_fit_is_refused(paper, change, said):
    with pytest.raises(ValueError, match=said):
        windowed(paper, of(WINDOWS, WINDOWS), labelled={**WINDOWS, "label": LABEL, **change})


def test_test_windows_that_do_not_fit_are_refused():
    method = windowed(fedmekt, of(WINDOWS, WINDOWS))
    state = jax.eval_shape(method.init, jax.random.key(0))
    for arrays, said in (
        ({**WINDOWS, "label": LABEL + 1}, r"holds 1\.\.3"),
        ({"label": LABEL}, "none of the modalities"),
        ({"a": WINDOWS["a"]}, r"no \['label'\]"),
    ):
        with pytest.raises(ValueError, match=said):
            method.evaluate(state, arrays)


@pytest.mark.parametrize(
    "arrays, said",
    [
        ({"text": X, "image": X}, r"no \['label'\]"),
        ({"text": X, "label": LABEL}, r"no \['image'\]"),
        ({**TWO, "label": LABEL + 1}, r"holds 1\.\.3"),
        ({**TWO, "text": X[:, :2]}, r"encoders\['text'\] cannot take"),
    ],
)
def test_test_sets_of_supervised_stages_that_do_not_fit_are_refused(arrays, said):
    with pytest.raises(ValueError, match=said):
        staged(of(TWO)).evaluate(None, arrays)


@pytest.mark.parametrize(
    "arrays, said",
    [
        ({"image": X}, "needs 'text' or 'prompts'"),
        ({"image": X, "prompts": X[:3]}, r"no \['label'\]"),
        ({"image": X, "prompts": X[:2], "label": LABEL}, "the set of prompts has 2 classes"),
        ({"image": X, "prompts": X[:3, :2], "label": LABEL}, "the prompts"),
        ({"image": X, "text": X[:7]}, "one length"),
    ],
)
def test_test_sets_of_contrastive_stages_that_do_not_fit_are_refused(arrays, said):
    with pytest.raises(ValueError, match=said):
        staged(of(TWO), None).evaluate(None, arrays)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"image/label": np.full(8, 3)}, r"num_classes\['image'\] has 3 classes"),
        ({"imgae/label": LABEL}, "is of no cohort"),
        ({"image/image": X[:7]}, "one length"),
        ({"image": X[:0], "text": X[:0, :2]}, "one length, at least 1"),
        ({"text": X}, "the server's encoder of text cannot take"),
    ],
)
@pytest.mark.parametrize("name", IN_SPACE)
def test_test_sets_of_a_joint_space_that_do_not_fit_are_refused(name, change, said):
    arrays = {"image": X, "text": X[:, :2], "image/image": X, "image/label": LABEL, **change}
    method = IN_SPACE[name](pairs_problem())
    with pytest.raises(ValueError, match=said):
        method.evaluate(None, arrays)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"client": np.full(7, 2)}, r"clients 0\.\.1"),
        ({"client": np.zeros(7)}, "must be integers"),
        ({"client": np.zeros(6, int)}, "one length"),
        (
            {"target": np.full((7, 3), 1.5, np.float32)},
            r"holds 1\.5\.\.1\.5, which must be within 0\.0\.\.1\.0",
        ),
        ({"target": np.ones((7, 2), np.float32)}, "built for float32"),
        ({"answers": np.full(7, 4)}, r"holds 4\.\.4, which must be within 1\.\.3"),
    ],
)
@pytest.mark.parametrize("name", ["feddat", "peft"])
def test_test_questions_that_do_not_fit_are_refused(name, change, said):
    build, data = BUILT[name]()
    arrays = {**data.cohorts["all"].arrays, "client": np.zeros(7, int), **change}
    with pytest.raises(ValueError, match=said):
        build(data).evaluate(None, arrays)


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda x: x - 0.1, r"'target' of cohort all holds -0\.1.*within 0\.0\.\.1\.0: it is the score of each answer"),
        (lambda x: 100 * x, r"holds 0\.0\.\.100\.0, which"),
        (lambda x: x.astype(np.int32), "is int32; it must be floats in"),
    ],
)
@pytest.mark.parametrize("paper", [feddat, peft])
def test_scores_of_answers_outside_their_range_are_refused(paper, change, said):
    arrays = tiny_vilt.questions((4, 3)).cohorts["all"].arrays
    with pytest.raises(ValueError, match=said):
        tuned(paper, of({**arrays, "target": change(np.asarray(arrays["target"]))}, owned=[[0, 1, 2, 3], [4, 5, 6]]))


@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
@pytest.mark.parametrize("block", [1, 1 << 22])  # numbers looked at at a time
def test_captions_in_bytes_have_a_range_that_a_vocabulary_is_held_against(dtype, block, monkeypatch):
    monkeypatch.setattr(incoming, "BLOCK", block)
    captions = np.arange(1, 49).reshape(8, 3, 2).astype(dtype)
    data = of({"text": captions, "image": np.zeros((8, 2, 2, 3), np.uint8), "sound": X}, owned=[[0, 6], [2]])
    ranges = data.population.cohorts["all"].ranges
    assert ranges == {"text": (1, 42), "sound": (X[0, 0], X[6, 2])}
    reader = fit.tokens({"text": text.encoder(42, 4, 4)}, ["text"])
    with pytest.raises(ValueError, match=r"holds 1\.\.42, which must be within 0\.\.41"):
        fit.check_population(fit.Fit(data.population, {"all": reader}), data.population)


def test_how_many_answers_a_client_knows_lies_within_the_head():
    data = tiny_vilt.questions((4, 3))
    for answers in (0, 4):
        arrays = {**data.cohorts["all"].arrays, "answers": np.full(7, answers)}
        with pytest.raises(ValueError, match="'answers' of cohort all"):
            tuned(feddat, of(arrays, owned=[np.arange(4), np.arange(4, 7)]))


# Clients too small for a step.


def test_stages_in_which_no_client_can_take_a_step_are_refused():
    with pytest.raises(ValueError, match="no client owns the 6 examples of one batch, the most being 5"):
        staged(of(TWO), batch_size=6)
    shapes = of(TWO).population
    unknown = {k: CohortPopulation(c.size, c.arrays) for k, c in shapes.cohorts.items()}
    staged(Population(unknown), batch_size=6)  # nobody knows
    staged(of(TWO), batch_size=5)


# Half precision.


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam", "yogi"])
def test_server_optimisers_keep_half_precision_and_move_as_in_float32(optimizer, dtype):
    config = fedavg.FedAvgConfig(server_optimizer=optimizer, server_lr=0.5, shared=("head",))
    old, mean = jnp.array([1.0, -2.0]), jnp.array([3.0, 2.0])
    uploads = {"all": {"head": Mean(mean, jnp.float32(2))}}
    moved = {}
    for kind in (dtype, "float32"):
        start = Model(lambda key, x, kind=kind: old.astype(kind), lambda params, x: x)
        state = fedavg.init_server(config, {"x": IDENTITY}, start, {"x": X[:1]}, jax.random.key(0))
        for _ in range(2):
            new, _ = fedavg.server_update(config, state, uploads, None, jax.random.key(1))
            assert jax.tree.map(lambda x: x.dtype, new) == jax.tree.map(lambda x: x.dtype, state)
            state = new
        moved[kind] = np.asarray(state["params"]["head"], np.float32)
    np.testing.assert_allclose(moved[dtype], moved["float32"], rtol=0.02)


def test_averages_of_half_precision_keep_its_types():
    old, sent = {"a": jnp.zeros(2, "bfloat16")}, {"all": {"a": Mean(jnp.ones(2), jnp.float32(2))}}
    new = [
        mmfl.server_update(mmfl.MMFLConfig(), old, sent, None, jax.random.key(0))[0]["a"],
        feddat.server_update({"adapter": old["a"], "trunk": ()}, {"all": {"adapter": sent["all"]["a"]}}, None, None)[0][
            "adapter"
        ],
        encoder_averaging.server_update(
            {"params": {"image": old["a"]}, "round": 0}, {"all": {"image": sent["all"]["a"]}}
        )[0]["params"]["image"],
    ]
    assert [(str(x.dtype), x.tolist()) for x in new] == [("bfloat16", [1.0, 1.0])] * 3


@pytest.mark.parametrize("settings", [dict(server_optimizer=o) for o in ("momentum", "adam", "yogi")] + [dict(dyn=0.5)])
def test_tuning_in_half_precision_keeps_its_types_in_a_whole_round(settings):
    data, model = tiny_vilt.questions((4, 3)), tiny_vilt.tiny()
    trunk = model.init(jax.random.key(0), {"image": X[:1, :1].repeat(4, 1), "question": X[:1, :2]})
    half = lambda key: {"adapter": jax.tree.map(lambda x: x.astype("bfloat16"), tiny_vilt.adapter_init(model)(key))}
    method = peft.build(peft.PEFTConfig(**settings), data, model, trunk, heads.linear(3), tuning_init=half)
    state = jax.eval_shape(method.init, jax.random.key(0))
    taken = data.round({"all": np.arange(2)})
    new = jax.eval_shape(method.round, state, taken, jax.random.key(1))[0]
    assert jax.tree.map(lambda x: (x.shape, x.dtype), new) == jax.tree.map(lambda x: (x.shape, x.dtype), state)


@pytest.mark.parametrize("name", BUILT)
def test_what_is_no_data_is_refused(name):
    build, _ = BUILT[name]()
    for data in (None, {"x": X}, [X], X, Population):
        with pytest.raises(ValueError, match="^data is .*; give a FederatedData or its Population"):
            build(data)


def test_a_mapping_of_models_has_names_and_models():
    data, population = pairs_problem(), pairs_problem().population
    for wrong in (None, [LINEAR], {1: LINEAR, "text": LINEAR}, 3):
        for build in (
            lambda x: creamfl.build(creamfl.CreamFLConfig(), data, x, CLIENTS, NUM_CLASSES),
            lambda x: creamfl.build(creamfl.CreamFLConfig(), data, SERVER, x, NUM_CLASSES),
            lambda x: creamfl.build(creamfl.CreamFLConfig(), data, SERVER, {**CLIENTS, "text": x}, NUM_CLASSES),
            lambda x: encoder_averaging.build(encoder_averaging.AveragingConfig(), population, x, NUM_CLASSES),
        ):
            with pytest.raises(ValueError, match="it must be a mapping from names"):
                build(wrong)
