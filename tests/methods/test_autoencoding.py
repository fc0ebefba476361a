"""Local objectives against NumPy and SciPy, gradients against finite differences, and the linear evaluation."""

import types
import typing

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.linalg
from linear_autoencoder import linear_ae, reconstruction_errors
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.preprocessing import StandardScaler

from fedjax_mm.methods.fedmekt import autoencoding, knowledge
from fedjax_mm.methods.fedmekt.linear_evaluation import Probe, chunked_f1, linear_evaluation
from fedjax_mm.methods.fedmekt.readout import Readout, read
from fedjax_mm.models import autoencoder

RNG = np.random.default_rng(0)
MASK = np.array([1, 1, 1, 1, 1, 0], np.float32)


AE = linear_ae()
PARAMS = jax.tree.map(np.asarray, jax.jit(AE.init)(jax.random.key(0)))
TELLS = np.array([[1, 0], [0, 1], [-1, -1], [0, 0]], np.float32)
READS_A = {**PARAMS, "encoder_a": {"U": np.eye(3, 4, dtype=np.float32), "V": TELLS}}
X = {"a": RNG.normal(size=(6, 4, 3)).astype(np.float32), "b": RNG.normal(size=(6, 5, 2)).astype(np.float32)}
CODES = jax.tree.map(np.asarray, jax.jit(lambda x: {m: AE.encode(PARAMS, m, x[m])[0][:, -1] for m in x})(X))


def rec(m, n):
    out = np.repeat(CODES[m][:5, None], X[n].shape[1], 1) @ np.asarray(PARAMS[f"decoder_{n}"]["W"])
    return np.mean((out - X[n][:5, ::-1]) ** 2)


def test_split_sums_reconstructions_within_and_across_over_real_rows():
    of = lambda x, sources: autoencoding.objective("split", AE, PARAMS, CODES, x, MASK, sources)
    everything = sum(rec(m, n) for m in "ab" for n in "ab")
    np.testing.assert_allclose(of(X, ("a", "b")), everything, rtol=1e-5)
    np.testing.assert_allclose(of(X, ("b",)), rec("b", "a") + rec("b", "b"), rtol=1e-5)
    np.testing.assert_allclose(of({"a": X["a"]}, ("a",)), rec("a", "a"), rtol=1e-5)


def test_the_target_is_reversed_in_time():
    ramp = types.SimpleNamespace(
        decode=lambda params, m, code, steps: jnp.ones((1, 1, 1)) * jnp.arange(3)[None, :, None]
    )
    falling = {"a": np.array([2.0, 1.0, 0.0], np.float32).reshape(1, 3, 1)}
    of = lambda x: autoencoding.objective("split", ramp, {}, {"a": np.ones((1, 2))}, x, np.ones(1), ("a",))
    assert float(of(falling)) == 0 and float(of({"a": falling["a"][:, ::-1]})) > 1


def test_the_error_of_a_window_is_that_of_its_own_modalities():
    got = autoencoding.reconstruction_error(AE, PARAMS, X)
    np.testing.assert_allclose(got, reconstruction_errors(PARAMS, X), rtol=1e-5)
    np.testing.assert_allclose(got[:5].mean(), (rec("a", "a") + rec("b", "b")) / 2, rtol=1e-5)


def reference_correlation(a, b, ridge=1e-3):
    a, b = (x.astype(np.float64) - x.mean(0, dtype=np.float64) for x in (a, b))
    m = len(a) - 1
    root = lambda s: np.linalg.inv(scipy.linalg.sqrtm(s / m + ridge * np.eye(len(s))).real)
    t = root(a.T @ a) @ (a.T @ b / m) @ root(b.T @ b)
    return np.sqrt(np.linalg.eigvalsh(t.T @ t + ridge * np.eye(len(t)))).sum()


def test_correlation_equals_scipy_and_ignores_padding():
    a = 0.1 * RNG.normal(size=(20, 3)).astype(np.float32)  # small, so that the ridge counts
    b = (a @ RNG.normal(size=(3, 3)) + 0.1 * RNG.normal(size=(20, 3))).astype(np.float32)
    np.testing.assert_allclose(autoencoding.correlation(a, b), reference_correlation(a, b), rtol=1e-4)
    padded = [np.concatenate([x, np.full((4, 3), 50, np.float32)]) for x in (a, b)]
    mask = np.repeat([1.0, 0.0], [20, 4]).astype(np.float32)
    np.testing.assert_allclose(autoencoding.correlation(*padded, mask), reference_correlation(a, b), rtol=1e-4)


@pytest.mark.parametrize("kind", ["random", "equal eigenvalues", "identical", "constant"])
def test_correlation_has_the_gradient_of_finite_differences(kind):
    a = RNG.normal(size=(12, 3))
    b = a[:, ::-1] + RNG.normal(size=(12, 3))
    if kind == "equal eigenvalues":  # orthonormal columns and b = -a/2: three equal canonical correlations
        a = np.linalg.qr(a - a.mean(0))[0]
        b = -a / 2
    elif kind == "identical":
        b = a.copy()
    elif kind == "constant":
        a = np.ones((12, 3))
    a, b = a.astype(np.float32), b.astype(np.float32)
    grad = np.asarray(jax.jit(jax.grad(autoencoding.correlation))(a, b))
    assert np.isfinite(grad).all()
    direction = RNG.normal(size=a.shape)
    eps = 1e-5
    far = [reference_correlation(a.astype(np.float64) + s * eps * direction, b.astype(np.float64)) for s in (1, -1)]
    np.testing.assert_allclose((grad * direction).sum(), (far[0] - far[1]) / (2 * eps), rtol=2e-2, atol=2e-3)


def test_dcc_is_small_own_reconstruction_less_the_correlation():
    got = autoencoding.objective("dcc", AE, PARAMS, CODES, X, MASK, ("a", "b"))
    expected = 0.01 * (rec("a", "a") + rec("b", "b")) - reference_correlation(CODES["a"][:5], CODES["b"][:5])
    np.testing.assert_allclose(got, expected, rtol=1e-3)
    alone = autoencoding.objective("dcc", AE, PARAMS, {"a": CODES["a"]}, {"a": X["a"]}, MASK, ("a",))
    np.testing.assert_allclose(alone, rec("a", "a"), rtol=1e-5)


@pytest.mark.parametrize("axis", ["feature", "time"])
def test_distillation_over_features_and_over_time_equals_numpy(axis):
    teacher, student = RNG.normal(size=(2, 6, 4, 3))
    softmax = lambda x: np.exp(x) / np.exp(x).sum({"feature": -1, "time": 1}[axis], keepdims=True)
    p, q = softmax(teacher[:5] / 3), softmax(student[:5] / 3)
    expected = 9 * (p * np.log(p / q)).sum() / (5 if axis == "time" else 5 * 4)
    got = autoencoding.distill(*(jnp.asarray(x, jnp.float32) for x in (teacher, student)), MASK, 3.0, axis)
    np.testing.assert_allclose(got, expected, rtol=1e-4)


@pytest.mark.parametrize("shape", [(6, 3), (6, 4, 3)], ids=["rows", "sequences"])
def test_cosine_and_squared_distance_equal_numpy_over_real_windows(shape):
    a, b = RNG.normal(size=(2, *shape)).astype(np.float32)
    cosine = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    expected = {"cosine": 1 - cosine[:5].mean(), "mse": ((a - b)[:5] ** 2).mean()}
    for kind, value in expected.items():
        np.testing.assert_allclose(knowledge.distance(kind, a, b, MASK), value, rtol=1e-5)


def test_every_readout_equals_numpy_and_has_a_gradient_where_nothing_changes():
    z, h = RNG.normal(size=(6, 4, 2)).astype(np.float32), RNG.normal(size=(6, 4, 3)).astype(np.float32)
    for name in typing.get_args(Readout):
        x = h if name.startswith("hidden") else z
        rows = {"last": x[:, -1], "mean": x.mean(1), "std": np.hstack([x.mean(1), np.sqrt(x.var(1) + 1e-6)])}
        np.testing.assert_allclose(read(name, z, h), rows[name.split("_")[-1]], rtol=1e-5, err_msg=name)
    still = jax.grad(lambda x: read("mean_std", x, x).sum())(jnp.ones((2, 4, 3)))
    assert np.isfinite(still).all()


def test_variant_s_trains_one_encoder_at_a_time_and_c_all():
    (first, second) = autoencoding.phases("S", AE, ("a", "b"))
    assert first[0] == ("a",) and set(first[1]) == {"encoder_a", "decoder_a", "decoder_b"}
    assert second[0] == ("b",) and set(second[1]) == {"encoder_b", "decoder_a", "decoder_b"}
    ((sources, parts),) = autoencoding.phases("C", AE, ("a", "b"))
    assert sources == ("a", "b") and set(parts) == set(PARAMS)


def test_a_phased_step_is_one_descent_after_the_other():
    tx = optax.sgd(0.1)
    loss = lambda p, batch, key, sources: (sum((p[f"encoder_{m}"]["U"] ** 2).sum() for m in sources), {})
    step = autoencoding.phased_step(loss, tx, autoencoding.phases("S", AE, ("a", "b")))
    (new, _), metrics = step((PARAMS, autoencoding.init_opt(tx, PARAMS)), None, None)
    for m in "ab":
        np.testing.assert_allclose(new[f"encoder_{m}"]["U"], 0.8 * PARAMS[f"encoder_{m}"]["U"], rtol=1e-5)
        np.testing.assert_array_equal(new[f"decoder_{m}"]["W"], PARAMS[f"decoder_{m}"]["W"])
    squares = [float((PARAMS[f"encoder_{m}"]["U"] ** 2).sum()) for m in "ab"]
    np.testing.assert_allclose(metrics["loss"], np.mean(squares), rtol=1e-5)


def separable(rows, seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, (rows, 4))
    corner = np.array([[3, 0, 0], [0, 3, 0], [0, 0, 3]])[labels]
    return {
        "a": (corner + 0.1 * rng.normal(size=(rows, 4, 3))).astype(np.float32),
        "b": rng.normal(size=(rows, 4, 2)).astype(np.float32),
        "labels": labels.astype(np.int32),
        "label": labels[:, -1].astype(np.int32),
    }


@pytest.mark.parametrize("settings", [{}, {"unit": "window"}, {"classifier": "adam", "lr": 0.05}])
def test_linear_evaluation_reads_what_is_linear_and_nothing_from_noise(settings):
    probe = Probe(labelled=("a",), **settings)
    scores = linear_evaluation(probe, AE, separable(60, 1), 3)(READS_A, separable(90, 2))
    assert scores["a/macro_f1"] > 0.97 and scores["a/accuracy"] > 0.97
    assert scores["b/macro_f1"] < 0.6
    assert {key.split("/")[0] for key in scores} == {"a", "b", "a+b"}
    assert {key.split("/")[1] for key in scores} == {"accuracy", "macro_f1", "weighted_f1", "official_f1"}


def test_classifiers_of_their_own_are_those_learnt_from_one_modality():
    of = lambda probe: linear_evaluation(probe, AE, separable(60, 1), 3)(PARAMS, separable(90, 2))
    own, shared = of(Probe(own=True)), of(Probe())
    for m in "ab":
        alone = of(Probe(labelled=(m,)))
        assert own[f"{m}/accuracy"] == alone[f"{m}/accuracy"]
    assert own["a/accuracy"] > shared["a/accuracy"]


def test_a_misspelt_readout_or_distance_is_refused():
    with pytest.raises(ValueError, match="readout must be one of .*'hidden_mean_std'.*, got 'mena'"):
        read("mena", TELLS[None], TELLS[None])
    with pytest.raises(ValueError, match=r"kind must be one of \('cosine', 'mse'\), got 'cosin'"):
        knowledge.distance("cosin", TELLS, TELLS, np.ones(4))


def test_a_readout_is_classified_as_scikit_learn_classifies_it():
    labelled, tested = separable(60, 1), separable(90, 2)
    logits, rows = 0.0, {}
    for m in "ab":
        for name, arrays in (("labelled", labelled), ("tested", tested)):
            h = np.tanh(arrays[m] @ PARAMS[f"encoder_{m}"]["U"])
            rows[name] = np.hstack([h.mean(1), np.sqrt(h.var(1) + 1e-6)])
        scale = StandardScaler().fit(rows["labelled"])
        model = LogisticRegression(max_iter=5000).fit(scale.transform(rows["labelled"]), labelled["label"])
        logits = logits + model.predict_log_proba(scale.transform(rows["tested"]))
    probe = Probe(unit="window", own=True, readout="hidden_mean_std")
    scores = linear_evaluation(probe, AE, labelled, 3)(PARAMS, tested)
    assert scores["a+b/accuracy"] == pytest.approx(np.mean(np.argmax(logits, 1) == tested["label"]))


def test_of_a_stream_every_frame_is_classified_with_the_state_of_its_chunk():
    rng, ae = np.random.default_rng(0), autoencoder.linear({"a": 2}, width=3)
    params = jax.tree.map(np.asarray, jax.jit(ae.init)(jax.random.key(0)))
    draw = lambda *shape: (rng.normal(size=(*shape, 2)).astype(np.float32), rng.integers(0, 3, shape))
    (windows, labels), (stream, truth) = draw(30, 5), draw(11)
    means = lambda x: np.cumsum(x @ params["encoder_a"]["kernel"], 0) / np.arange(1, len(x) + 1)[:, None]
    learnt = np.concatenate([means(x) for x in windows])
    rows = np.concatenate([means(stream[start : start + 4]) for start in (0, 4, 8)])  # the last chunk has three frames
    scale = StandardScaler().fit(learnt)
    model = LogisticRegression(max_iter=5000).fit(scale.transform(learnt), labels.ravel())
    found = model.predict(scale.transform(rows))
    evaluation = linear_evaluation(Probe(stream=4), ae, {"a": windows, "labels": labels}, 3)
    evaluation.check({"a": stream, "labels": truth})
    scores = evaluation(params, {"a": stream, "labels": truth})
    assert scores["a/accuracy"] == pytest.approx((found == truth).mean()) and len(set(found)) > 1
    assert scores["a/official_f1"] == pytest.approx(f1_score(truth, found, average="weighted", zero_division=0))
    with pytest.raises(ValueError, match=r"streams are \[T, F\] and their labels \[T\], all of one length T"):
        evaluation.check({"a": windows, "labels": labels})
    with pytest.raises(ValueError, match="all of one length T"):
        evaluation.check({"a": stream, "labels": truth[:5]})
    with pytest.raises(ValueError, match='probe.stream 4 is of frames; set probe.unit to "frame"'):
        linear_evaluation(Probe(unit="window", stream=4), ae, {"a": windows, "label": labels[:, 0]}, 3)


def test_a_class_that_was_never_labelled_is_never_predicted():
    labelled = separable(60, 1)
    keep = labelled["label"] != 2
    labelled = {k: v[keep] for k, v in labelled.items()}
    probe = Probe(unit="window", labelled=("a",))
    scores = linear_evaluation(probe, AE, labelled, 3)(READS_A, separable(90, 2))
    assert scores["a/macro_f1"] <= 2 / 3 and scores["a/accuracy"] > 0.5


def test_chunked_f1_is_the_plain_mean_over_chunks():
    labels, predictions = RNG.integers(0, 3, (2, 25))
    f1 = lambda cut: f1_score(labels[cut], predictions[cut], average="weighted", zero_division=0)
    expected = np.mean([f1(slice(0, 10)), f1(slice(10, 20)), f1(slice(20, 25))])
    assert chunked_f1(labels, predictions, 10) == pytest.approx(expected)


def test_missing_labels_and_unknown_modalities_are_errors_in_words():
    with pytest.raises(ValueError, match="labelled set has no \\['labels'\\]"):
        linear_evaluation(Probe(), AE, {"a": X["a"], "b": X["b"]}, 3)
    with pytest.raises(ValueError, match="probe.labelled names 'c'"):
        linear_evaluation(Probe(labelled=("c",)), AE, separable(5, 0), 3)
    with pytest.raises(ValueError, match="'mean' makes one row of a window; set probe.unit to"):
        linear_evaluation(Probe(readout="mean"), AE, separable(5, 0), 3)
