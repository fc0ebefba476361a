"""Linear evaluation of embeddings: a generalised classifier on a frozen encoder, tested on every modality."""

import dataclasses
from collections.abc import Callable
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
from fedjax_mm.models.autoencoder import AutoEncoder
from fedjax_mm.types import Arrays, PyTree


@dataclasses.dataclass(frozen=True)
class Probe:
    """The generalised classifier: one linear layer on the embeddings of all modalities, the encoder frozen."""

    labelled: tuple[str, ...] = ()
    """Modalities of the labelled set that the classifier learns from; (): all. Every modality is tested."""
    own: bool = False
    """A classifier for each modality, learnt from itself, in place of one for all."""
    unit: Literal["frame", "window"] = "frame"
    """frame: an embedding and a label (array `labels` [M, T]) at every step; window: the last step's (`label` [M])."""
    classifier: Literal["logistic", "adam"] = "logistic"
    """logistic: the optimum, regularised, on standardised embeddings; adam: full-batch steps from zero as they are."""
    lr: float = 0.006
    """Rate of adam."""
    steps: int = 500
    """Steps of adam; the authors' 5 epochs in each of 100 rounds."""


def linear_evaluation(probe: Probe, ae: AutoEncoder, labelled: Arrays, num_classes: int) -> Callable:
    """score(params, arrays) -> {"a/macro_f1": ..., "a+b/accuracy": ...} for the modalities in `arrays`.

    params: parts of the tested and labelled modalities; labelled: {m: [Q, T, F]} and its labels (see Probe); arrays
    alike. Several modalities together: the mean of their logits. Also `official_f1`, the mean weighted F1 of chunks of
    2000 frames, as the authors' code reports. The labelled set is seen here only, never by a client or in a round.
    """
    key = {"frame": "labels", "window": "label"}[probe.unit]
    for where, modality in [("labelled", m) for m in probe.labelled if m not in ae.modalities]:
        raise ValueError(f"probe.{where} names {modality!r}; the modalities are {list(ae.modalities)}")
    learn = probe.labelled or ae.modalities
    encode = jax.jit(lambda params, m, x: ae.encode(params, m, x)[0], static_argnums=1)

    def embed(params, m, arrays):
        z = np.asarray(encode({ae.parts(m)[0]: params[ae.parts(m)[0]]}, m, jnp.asarray(arrays[m])))
        return z.reshape(-1, z.shape[-1]) if probe.unit == "frame" else z[:, -1]

    def targets(name, arrays):
        if missing := [k for k in (key, *(learn if name == "labelled" else ())) if k not in arrays]:
            raise ValueError(f"the {name} set has no {missing}; probe.unit {probe.unit!r} needs labels {key!r}")
        return np.asarray(arrays[key]).reshape(-1)

    known = targets("labelled", labelled)

    def score(params: PyTree, arrays: Arrays) -> dict[str, float]:
        labels, results = targets("test", arrays), {}
        mine = [m for m in learn if ae.parts(m)[0] in params]
        given = [m for m in ae.modalities if m in arrays and ae.parts(m)[0] in params]
        rows = {m: embed(params, m, labelled) for m in mine}
        if probe.own:
            classifiers = {m: _fit(probe, rows[m], known, num_classes) for m in mine}
            given = [m for m in given if m in mine]
        else:
            one = _fit(probe, np.concatenate([*rows.values()]), np.tile(known, len(mine)), num_classes)
            classifiers = dict.fromkeys(given, one)
        logits = {m: classifiers[m](embed(params, m, arrays)) for m in given}
        for tested in dict.fromkeys([(m,) for m in given] + [tuple(given)]):
            predictions = sum(logits[m] for m in tested).argmax(-1)
            scores = evaluate.classification(labels, predictions, num_classes)
            scores["official_f1"] = chunked_f1(labels, predictions)
            results |= {f"{'+'.join(tested)}/{k}": v for k, v in scores.items()}
        return results

    return score


def chunked_f1(labels: np.ndarray, predictions: np.ndarray, chunk: int = 2000) -> float:
    """The plain mean over chunks of `chunk` frames of the weighted F1 in each: the released code's score."""
    cuts = range(0, len(labels), chunk)
    f1 = lambda at: f1_score(labels[at : at + chunk], predictions[at : at + chunk], average="weighted", zero_division=0)
    return float(np.mean([f1(at) for at in cuts]))


def _fit(probe: Probe, x: np.ndarray, y: np.ndarray, num_classes: int) -> Callable[[np.ndarray], np.ndarray]:
    """rows -> logits [M, K]; a class that was not in the labelled set is never predicted."""
    if not np.isfinite(x).all():
        raise ValueError("the labelled set's embeddings hold NaN or infinity; the encoder has diverged")
    if probe.classifier == "logistic":
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000)).fit(x, y)

        def logits(rows):
            full = np.full((len(rows), num_classes), -np.inf)
            full[:, model.classes_] = np.log(np.maximum(model.predict_proba(rows), 1e-30))  # one may underflow to 0
            return full

        return logits
    w, b = jax.device_get(_adam_fit(jnp.asarray(x), jnp.asarray(y), num_classes, probe.lr, probe.steps))
    return lambda rows: rows @ w + b


def _adam_fit(x: jax.Array, y: jax.Array, num_classes: int, lr: float, steps: int) -> tuple[jax.Array, jax.Array]:
    tx = optax.adam(lr)
    ce = optax.softmax_cross_entropy_with_integer_labels
    params = (jnp.zeros((x.shape[1], num_classes)), jnp.zeros(num_classes))

    @jax.jit
    def run(x, y, params):
        def step(carry, _):
            params, opt = carry
            grads = jax.grad(lambda p: ce(x @ p[0] + p[1][None], y).mean())(params)
            updates, opt = tx.update(grads, opt)
            return (optax.apply_updates(params, updates), opt), None

        return jax.lax.scan(step, (params, tx.init(params)), length=steps)[0][0]

    return run(x, y, params)
