"""Linear evaluation of embeddings: a generalised classifier on a frozen encoder, tested on every modality.

Numbers in parentheses are sections of docs/specs/fedmekt.md.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fedjax_mm import evaluate
from fedjax_mm.checks import check_whole
from fedjax_mm.federate import Evaluation
from fedjax_mm.methods.fedmekt.fitting import check_windows
from fedjax_mm.methods.fedmekt.readout import Readout, in_chunks, read
from fedjax_mm.methods.fit import check_complete, check_mapping, check_rows, classes
from fedjax_mm.methods.settings import check_settings
from fedjax_mm.models.autoencoder import AutoEncoder
from fedjax_mm.types import Arrays, PyTree

Encode = Callable[[PyTree, str, jax.Array], jax.Array]  # params, modality, x [M, T, F] -> rows [M, D] or [M * T, D]
LABELS = {"frame": "labels", "window": "label"}  # unit -> the array that holds its labels
Classifier = Callable[[np.ndarray], np.ndarray]  # rows [M, D] -> logits [M, K]


@dataclasses.dataclass(frozen=True)
class Probe:
    """The generalised classifier (1.5): one linear layer on the embeddings of all modalities, the encoder frozen."""

    labelled: tuple[str, ...] = ()
    """Modalities of the labelled set from which the classifier learns; (): all. Every modality is tested."""
    own: bool = False
    """Whether each modality has a classifier of its own, learnt from that modality, in place of one for all."""
    unit: Literal["frame", "window"] = "frame"
    """What is classified: the embedding at every step, with a label each (array `labels` [M, T]), or a window, of which
    `readout` makes one row (`label` [M])."""
    stream: int | None = None
    """Frames through which the encoder of a test stream runs with one state, as in the released code (2000); test
    arrays are then recordings one after the other, {m: [T, F]} with `labels` [T]. None: windows [M, T, F], each from a
    zero state. It needs the unit "frame"; the labelled set has windows in either case."""
    readout: Readout = "last"
    """What is read of a window: its last step, the mean over its steps, or mean and standard deviation; of the
    embeddings or, with "hidden", of the states of the encoder's first layer."""
    classifier: Literal["logistic", "adam"] = "logistic"
    """How the classifier is fitted: the optimum of a regularised logistic regression on standardised embeddings, or
    full-batch steps of Adam from zero on the embeddings as they are."""
    lr: float = 0.006
    """Learning rate of the classifier "adam"."""
    steps: int = 500
    """Steps of the classifier "adam"; the released code takes 5 epochs in each of 100 rounds."""


def linear_evaluation(probe: Probe, ae: AutoEncoder, labelled: Arrays, num_classes: int) -> Evaluation:
    """score(params, arrays) -> {"a/macro_f1": ..., "a+b/accuracy": ...} for the modalities in `arrays`.

    params: parts of the modalities that are tested and labelled; labelled: {m: [Q, T, F]} and its labels (see Probe);
    arrays alike. Several modalities together have the mean of their logits. The score `official_f1` is the mean over
    chunks of 2000 rows of the weighted F1 in each, as the released code reports it (1.6). There a row is a frame of one
    stream, as with probe.stream 2000; else a row is a frame of a window (unit "frame"), or a window, and then a test
    set of at most 2000 windows is one chunk, whose `official_f1` equals its weighted F1.

    The labelled set is seen here only, never by a client or in a round. Raises ValueError where a labelled modality is
    unknown, arrays are missing, or windows and labels do not fit.

    >>> from fedjax_mm.models import autoencoder
    >>> ae, label = autoencoder.linear({"a": 2}, width=2), np.array([0, 1] * 4)
    >>> windows = {"a": np.eye(2, dtype=np.float32)[label][:, None] * np.ones((1, 3, 1), np.float32), "label": label}
    >>> score = linear_evaluation(Probe(unit="window"), ae, windows, num_classes=2)
    >>> score(ae.init(jax.random.key(0)), windows)["a/accuracy"]
    1.0
    """
    check_settings(probe, Probe)
    check_whole("num_classes", num_classes, least=1)
    if probe.unit == "frame" and probe.readout != "last":
        raise ValueError(f'probe.readout {probe.readout!r} makes one row of a window; set probe.unit to "window"')
    if probe.stream is not None and probe.unit != "frame":
        raise ValueError(f'probe.stream {probe.stream} is of frames; set probe.unit to "frame"')
    for where, modality in [("labelled", m) for m in probe.labelled if m not in ae.modalities]:
        raise ValueError(f"probe.{where} names {modality!r}; the modalities are {list(ae.modalities)}")
    _check_set(probe, ae, num_classes, "labelled", probe.labelled or ae.modalities, labelled)
    labels = _labels(probe, labelled)
    if probe.classifier == "logistic" and len(np.unique(labels)) < 2:
        raise ValueError(f"the labelled set holds class {labels[0]} only; a classifier needs examples of two or more")
    encode = jax.jit(functools.partial(_rows, probe, ae), static_argnums=1)
    check = functools.partial(_check_test, probe, ae, num_classes)
    return Evaluation(check, functools.partial(_score, probe, ae, encode, labelled, num_classes))


def _score(
    probe: Probe,
    ae: AutoEncoder,
    encode: Encode,
    labelled: Arrays,
    num_classes: int,
    params: PyTree,
    arrays: Arrays,
) -> dict[str, float]:
    learn = probe.labelled or ae.modalities
    learn = [m for m in learn if ae.parts(m)[0] in params]
    given = [m for m in ae.modalities if m in arrays and ae.parts(m)[0] in params]
    if not given:
        raise ValueError(f"the test set has {sorted(arrays)}, none of the modalities that the encoder has")
    rows = {m: _embed(ae, encode, params, m, labelled) for m in learn}
    labels = _labels(probe, arrays)
    if probe.stream is not None:
        arrays = in_chunks(arrays, given, probe.stream)
    tested = {m: _embed(ae, encode, params, m, arrays)[: len(labels)] for m in given if m in learn or not probe.own}
    classifiers = fit_classifiers(probe, rows, _labels(probe, labelled), tested, num_classes)
    return score_rows(classifiers, tested, labels, num_classes)


def fit_classifiers(
    probe: Probe, rows: Mapping[str, np.ndarray], labels: np.ndarray, tested: Iterable[str], num_classes: int
) -> dict[str, Classifier]:
    """The classifier of each tested modality, fitted to rows {m: [M, D]} with labels [M]: one for all, or its own.

    Rows may come from an encoder or from anything else. With `probe.own` the tested modalities are among those of
    `rows`, and D may differ between them.

    >>> label = np.array([0, 1] * 4)
    >>> classifiers = fit_classifiers(Probe(own=True), {"a": np.eye(2)[label], "b": label[:, None]}, label, "ab", 2)
    >>> classifiers["b"](np.array([[0], [1]])).argmax(-1).tolist()
    [0, 1]
    """
    if probe.own:
        return {m: _fit(probe, rows[m], labels, num_classes) for m in tested}
    one = _fit(probe, np.concatenate([*rows.values()]), np.tile(labels, len(rows)), num_classes)
    return dict.fromkeys(tested, one)


def score_rows(
    classifiers: Mapping[str, Classifier], rows: Mapping[str, np.ndarray], labels: np.ndarray, num_classes: int
) -> dict[str, float]:
    """{"a/macro_f1": ..., "a+b/accuracy": ...}: the scores of `linear_evaluation` on rows {m: [M, D]}, labels [M].

    classifiers {m: a function from rows to logits [M, K]}, such as `fit_classifiers` gives.

    >>> sure = lambda rows: 10 * np.eye(2)[rows[:, 0]]
    >>> score_rows({"a": sure}, {"a": np.array([[0], [1]])}, np.array([0, 0]), 2)["a/accuracy"]
    0.5
    """
    logits, results = {m: classifiers[m](x) for m, x in rows.items()}, {}
    for tested in dict.fromkeys([(m,) for m in logits] + [tuple(logits)]):
        predictions = np.asarray(sum(logits[m] for m in tested)).argmax(-1)
        scores = evaluate.classification(labels, predictions, num_classes)
        scores["official_f1"] = chunked_f1(labels, predictions)
        results |= {f"{'+'.join(tested)}/{k}": v for k, v in scores.items()}
    return results


def _embed(ae: AutoEncoder, encode: Encode, params: PyTree, m: str, arrays: Arrays) -> np.ndarray:
    """The rows that are classified, on the host."""
    encoder = ae.parts(m)[0]
    return np.asarray(encode({encoder: params[encoder]}, m, jnp.asarray(arrays[m])))


def _rows(probe: Probe, ae: AutoEncoder, params: PyTree, m: str, x: jax.Array) -> jax.Array:
    """The rows that are classified of windows [M, T, F]: an embedding for each step, or one row for each window."""
    z, h = ae.encode(params, m, x)
    return z.reshape(-1, z.shape[-1]) if probe.unit == "frame" else read(probe.readout, z, h)


def _labels(probe: Probe, arrays: Arrays) -> np.ndarray:
    """The labels [M] of the rows that are classified."""
    return np.asarray(arrays[LABELS[probe.unit]]).reshape(-1)


def _check_set(
    probe: Probe, ae: AutoEncoder, num_classes: int, name: str, modalities: tuple[str, ...], arrays: Arrays
) -> None:
    """Raises ValueError where labels or the `modalities` are missing, or all modalities are, and where labels and
    windows do not fit each other, the autoencoder or the number of classes."""
    key = LABELS[probe.unit]
    check_mapping(f"the {name} set", arrays)
    if missing := [k for k in (key, *modalities) if k not in arrays]:
        raise ValueError(f"the {name} set has no {missing}; probe.unit {probe.unit!r} needs labels {key!r}")
    check_complete(f"the {name} set", arrays, ae.modalities)
    check_rows(f"the {name} set", arrays, (), {}, {key: classes(num_classes, "num_classes")})
    check_windows(f"the {name} set", ae, arrays)
    axes = 2 if probe.unit == "frame" else 1
    for m in (m for m in ae.modalities if m in arrays):
        if np.shape(arrays[key]) != np.shape(arrays[m])[:axes]:
            found = f"{key!r} of the {name} set is {[*np.shape(arrays[key])]} and {m!r} {[*np.shape(arrays[m])]}"
            raise ValueError(f"{found}; there must be one label for each {probe.unit}")
    if not any(m in arrays for m in ae.modalities):
        raise ValueError(f"the {name} set has {sorted(arrays)}, none of the modalities {list(ae.modalities)}")


def _check_test(probe: Probe, ae: AutoEncoder, num_classes: int, arrays: Arrays) -> None:
    """`_check_set` of the test; of streams, once they are cut into windows."""
    if probe.stream is not None:
        check_mapping("the test set", arrays)
        arrays = in_chunks(arrays, (*ae.modalities, LABELS["frame"]), probe.stream)
    _check_set(probe, ae, num_classes, "test", (), arrays)


def chunked_f1(labels: np.ndarray, predictions: np.ndarray, chunk: int = 2000) -> float:
    """The plain mean over chunks of `chunk` rows of the weighted F1 in each: the released code's score (1.6).

    >>> chunked_f1(np.array([0, 0, 0, 1]), np.array([0, 0, 1, 0]), chunk=2)
    0.5
    """
    starts = range(0, len(labels), chunk)
    part = lambda x, start: x[start : start + chunk]
    weighted = lambda y, p: f1_score(y, p, average="weighted", zero_division=0)  # pyright: ignore[reportArgumentType]
    return float(np.mean([weighted(part(labels, start), part(predictions, start)) for start in starts]))


def _fit(probe: Probe, x: np.ndarray, y: np.ndarray, num_classes: int) -> Classifier:
    """The classifier fitted to rows x [M, D] with labels y [M]; "logistic" never predicts a class that y lacks."""
    if not np.isfinite(x).all():
        raise ValueError("the labelled set's embeddings hold NaN or infinity; the encoder has diverged")
    if probe.classifier == "logistic":
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000)).fit(x, y)

        def logits(rows):
            full = np.full((len(rows), num_classes), -np.inf)
            full[:, model.classes_] = np.log(np.maximum(model.predict_proba(rows), 1e-30))  # one may underflow to 0
            return full

        return logits
    start = (jnp.zeros((x.shape[1], num_classes)), jnp.zeros(num_classes))
    w, b = jax.device_get(fit_linear(jnp.asarray(x), jnp.asarray(y), start, lr=probe.lr, steps=probe.steps))
    return lambda rows: rows @ w + b


@functools.partial(jax.jit, static_argnames=("lr", "steps"))
def fit_linear(x: jax.Array, y: jax.Array, params: PyTree, *, lr: float, steps: int) -> PyTree:
    """A linear classifier, (kernel [D, K], bias [K]), after `steps` full-batch steps of Adam from `params`.

    x [M, D], y [M] int, params (kernel, bias). The loss is the mean cross-entropy.

    >>> x, y = jnp.array([[1.0], [-1.0]]), jnp.array([0, 1])
    >>> kernel, bias = fit_linear(x, y, (jnp.zeros((1, 2)), jnp.zeros(2)), lr=0.1, steps=20)
    >>> (x @ kernel + bias[None]).argmax(-1).tolist()
    [0, 1]
    """
    tx = optax.adam(lr)
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels

    def step(carry, _):
        params, opt = carry
        grads = jax.grad(lambda p: cross_entropy(x @ p[0] + p[1][None], y).mean())(params)
        updates, opt = tx.update(grads, opt)
        return (optax.apply_updates(params, updates), opt), None

    return jax.lax.scan(step, (params, tx.init(params)), length=steps)[0][0]
