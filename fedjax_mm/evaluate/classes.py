"""How good predicted classes and answers are: a linear probe, accuracy and F1, VQA scores, and a control."""

from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score, precision_recall_fscore_support
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fedjax_mm.checks import check_array, check_whole

CLASSES = (np.bool_, np.integer, np.str_, np.bytes_)
EMPTY: Any = 0  # the score of a class that is neither present nor predicted (a number, which sklearn's stubs leave out)


def linear_probe(train_x: np.ndarray, train_y: np.ndarray, test_x: np.ndarray, test_y: np.ndarray) -> dict[str, float]:
    """{"accuracy", "macro_f1", "weighted_f1"} on the test rows of a logistic regression on the standardised features.

    train_x [M, D], train_y [M] with two classes or more; test_x, test_y alike. The macro F1 is over the classes of
    train_y and test_y together.

    >>> x, y = np.array([[-2.0], [-1.0], [1.0], [2.0]]), np.array([0, 0, 1, 1])
    >>> linear_probe(x, y, x, y)
    {'accuracy': 1.0, 'macro_f1': 1.0, 'weighted_f1': 1.0}
    """
    train_x, test_x = check_array("train_x", train_x), check_array("test_x", test_x)
    train_y, test_y = (check_array(name, y, CLASSES) for name, y in (("train_y", train_y), ("test_y", test_y)))
    for name, x, y in (("train", train_x, train_y), ("test", test_x, test_y)):
        if x.ndim != 2 or y.shape != x.shape[:1] or not len(y):
            raise ValueError(f"{name}_x {x.shape} and {name}_y {y.shape} must be [M, D] and [M], M at least 1.")
        if not np.isfinite(x).all():
            raise ValueError(f"{name}_x holds NaN or infinity; the encoder has diverged, so there is nothing to probe.")
    if train_x.shape[1] != test_x.shape[1]:
        raise ValueError(f"train_x has {train_x.shape[1]} features and test_x {test_x.shape[1]}; use one encoder.")
    if (train_y.dtype.kind in "US") != (test_y.dtype.kind in "US"):
        raise ValueError(f"train_y is {train_y.dtype} and test_y {test_y.dtype}; name the classes alike in both.")
    if len(np.unique(train_y)) < 2:
        raise ValueError("train_y holds one class only; a probe needs examples of two or more.")
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000))
    return _scores(test_y, probe.fit(train_x, train_y).predict(test_x), np.union1d(train_y, test_y))


def classification(labels: np.ndarray, predictions: np.ndarray, num_classes: int) -> dict[str, float]:
    """{"accuracy", "macro_f1", "weighted_f1"} of predicted classes. labels, predictions [M] int in 0..K-1.

    The macro F1 is over all K classes; a class that is neither present nor predicted counts 0.

    >>> classification(np.array([0, 0, 1, 1]), np.array([0, 0, 1, 0]), num_classes=2)["accuracy"]
    0.75
    """
    labels, predictions = _check_pair(labels, predictions, check_whole("num_classes", num_classes, least=1))
    return _scores(labels, predictions, np.arange(num_classes))


def precision_recall(labels: np.ndarray, predictions: np.ndarray, num_classes: int) -> dict[str, float]:
    """{"macro_precision", "macro_recall"} over all K classes. The arguments are those of `classification`.

    >>> precision_recall(np.array([0, 0, 1, 1]), np.array([0, 0, 1, 0]), num_classes=2)["macro_recall"]
    0.75
    """
    labels, predictions = _check_pair(labels, predictions, check_whole("num_classes", num_classes, least=1))
    scores = precision_recall_fscore_support(
        labels, predictions, labels=np.arange(num_classes), average="macro", zero_division=EMPTY
    )
    return {"macro_precision": float(scores[0]), "macro_recall": float(scores[1])}


def batch_means(labels: np.ndarray, predictions: np.ndarray, batch: int = 16) -> dict[str, float]:
    """{"batch16_accuracy", "batch16_macro_precision", "batch16_macro_recall", "batch16_macro_f1"}: means over batches.

    A batch is `batch` consecutive rows; each macro average is over the classes that are present or predicted in the
    batch. Training code that scores batch by batch reports such numbers. They depend on the order of the rows and are
    no score of the whole set. labels, predictions [M] int.

    >>> batch_means(np.array([0, 1, 1]), np.array([0, 1, 0]), batch=2)["batch2_accuracy"]  # the mean of 1 and 0
    0.5
    """
    labels, predictions = _check_pair(labels, predictions, None)
    batch = check_whole("batch", batch, least=1)
    cuts = [slice(start, start + batch) for start in range(0, len(labels), batch)]
    pairs = [(np.asarray(labels)[cut], np.asarray(predictions)[cut]) for cut in cuts]
    macro = [precision_recall_fscore_support(*pair, average="macro", zero_division=EMPTY)[:3] for pair in pairs]
    accuracy = [accuracy_score(*pair) for pair in pairs]
    names = ("accuracy", "macro_precision", "macro_recall", "macro_f1")
    means = (np.mean(accuracy), *np.mean(macro, axis=0))
    return {f"batch{batch}_{name}": float(mean) for name, mean in zip(names, means, strict=True)}


def vqa_score(predictions: np.ndarray, target: np.ndarray) -> dict[str, float]:
    """{"vqa_score"}: the mean score of the predicted answers, in percent.

    predictions [M] int, target [M, K] the score in 0..1 of each answer to each question. (Antol 2015, VQA accuracy)

    >>> vqa_score(np.array([0, 1]), np.array([[1.0, 0.0], [1.0, 0.5]]))
    {'vqa_score': 75.0}
    """
    predictions, target = check_array("predictions", predictions), check_array("target", target)
    if target.ndim != 2 or predictions.shape != target.shape[:1] or not len(target):
        raise ValueError(
            f"predictions {predictions.shape}, target {target.shape} must be [M] and [M, K], M at least 1."
        )
    check_classes("predictions", predictions, target.shape[1])
    if not (target.min() >= 0 and target.max() <= 1):  # NaN is neither
        raise ValueError(f"target goes from {target.min()} to {target.max()}; give scores in 0..1.")
    return {"vqa_score": 100 * float(target[np.arange(len(target)), predictions].mean(dtype=np.float64))}


def constant(train_labels: np.ndarray, test_labels: np.ndarray, num_classes: int) -> dict[str, float]:
    """A control: the scores of a model that always answers the commonest class of train_labels [M].

    test_labels [M'], both int in 0..K-1. Of several commonest classes the first counts. The keys are those of
    `classification`.

    >>> constant(np.array([1, 1, 0]), np.array([1, 0, 0, 0]), num_classes=2)["accuracy"]
    0.25
    """
    train_labels = check_array("train_labels", train_labels)
    check_whole("num_classes", num_classes, least=1)
    if train_labels.ndim != 1 or not len(train_labels):
        raise ValueError(f"train_labels is {train_labels.shape}; it must be [M] with M at least 1.")
    check_classes("train_labels", train_labels, num_classes)
    commonest = np.bincount(train_labels, minlength=num_classes).argmax()
    return classification(test_labels, np.full_like(check_array("test_labels", test_labels), commonest), num_classes)


def _scores(labels: np.ndarray, predictions: np.ndarray, classes: np.ndarray) -> dict[str, float]:
    f1 = lambda kind: float(f1_score(labels, predictions, labels=classes, average=kind, zero_division=EMPTY))
    return {
        "accuracy": float(accuracy_score(labels, predictions)),
        "macro_f1": f1("macro"),
        "weighted_f1": f1("weighted"),
    }


def _check_pair(labels: Any, predictions: Any, num_classes: int | None) -> tuple[np.ndarray, np.ndarray]:
    labels, predictions = check_array("labels", labels, CLASSES), check_array("predictions", predictions, CLASSES)
    if labels.ndim != 1 or labels.shape != predictions.shape or not len(labels):
        raise ValueError(f"labels {labels.shape} and predictions {predictions.shape} must be [M] both, M at least 1.")
    check_classes("labels", labels, num_classes)
    check_classes("predictions", predictions, num_classes)
    return labels, predictions


def check_classes(name: str, values: np.ndarray, num_classes: int | None) -> None:
    """Checks that an array, which is not empty, holds classes: integers in 0..num_classes-1, or from 0 upwards."""
    wanted = "from 0 upwards" if num_classes is None else ""
    if num_classes is not None:
        wanted = f"in 0..{num_classes - 1}, num_classes being {num_classes}"
    if not np.issubdtype(values.dtype, np.integer):
        raise ValueError(f"{name} holds {values.dtype}; it must hold integers {wanted}.")
    if values.min() < 0 or (num_classes is not None and values.max() >= num_classes):
        raise ValueError(
            f"{name} holds {values.dtype} from {values.min()} to {values.max()}; it must hold integers {wanted}."
        )
