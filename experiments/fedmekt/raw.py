"""Controls without an encoder: classifiers that learn from the raw labelled windows."""

from collections.abc import Callable, Mapping

import numpy as np
from sklearn.ensemble import RandomForestClassifier

from experiments.common.data import Problem
from fedjax_mm import evaluate
from fedjax_mm.methods.fedmekt.linear_evaluation import Probe, fit_classifiers, score_rows

PROBE = Probe(unit="window", own=True)


def mean_and_std(x: np.ndarray) -> np.ndarray:
    """The mean and the standard deviation over time of windows [M, T, F], [M, 2 F].

    >>> mean_and_std(np.array([[[1.0], [3.0]]])).tolist()
    [[2.0, 1.0]]
    """
    return np.concatenate([x.mean(1), x.std(1)], axis=1)


def last_frame(problem: Problem, split: str) -> dict[str, float]:
    """The scores of a logistic regression of each modality on the last step of a window; logits are added."""
    _, splits, modalities, classes = problem.dataset
    labelled, tested = ({m: splits[name][m][:, -1] for m in modalities} for name in ("labelled", split))
    classifiers = fit_classifiers(PROBE, labelled, splits["labelled"]["label"], modalities, len(classes))
    return score_rows(classifiers, tested, splits[split]["label"], len(classes))


def forest(problem: Problem, split: str) -> dict[str, float]:
    """The scores of a random forest of 300 trees on mean and deviation over time; all modalities' are put together."""
    _, splits, modalities, classes = problem.dataset
    scores = {}
    for some in dict.fromkeys([*((m,) for m in modalities), tuple(modalities)]):
        rows = lambda name, some=some: np.concatenate([mean_and_std(splits[name][m]) for m in some], axis=1)
        model = RandomForestClassifier(300, random_state=0).fit(rows("labelled"), splits["labelled"]["label"])
        found = evaluate.classification(splits[split]["label"], model.predict(rows(split)), len(classes))
        scores |= {f"{'+'.join(some)}/{key}": value for key, value in found.items()}
    return scores


ROWS: Mapping[str, Callable[[Problem, str], dict[str, float]]] = {
    "raw last frame, logistic regression": last_frame,
    "raw mean and std, random forest": forest,
}
"""Row of a table -> the scores of a split, {"a/macro_f1": ...}."""
