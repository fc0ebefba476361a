"""How good representations and predictions are: recall, a linear probe, accuracy and F1, VQA scores, and a control.

These run on the host, on NumPy or JAX arrays. Recalls and VQA scores are in percent; accuracies and F1 scores are
fractions.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import hypergeom
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score, precision_recall_fscore_support
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

SAME = 1e-6  # cosines closer than this are a tie: it is what float32 rounding can put between equal pairs
BLOCK = 512  # queries ranked at a time


def retrieval_recall(
    image: np.ndarray, text: np.ndarray, text_to_image: np.ndarray, ks: Sequence[int] = (1, 5, 10)
) -> dict[str, float]:
    """{"i2t_r1", ..., "t2i_r10", "i2t_medr", "t2i_medr"}: recall at each k in percent, and the median rank from 1.

    image [I, D], text [Q, D], text_to_image [Q] the image each text describes; each image needs a text. Ranks by
    cosine; image to text is right where ANY of the image's texts is among the first k. Ties count as if broken at
    random, in expectation, so that an encoder that maps everything to one point scores at chance; so does a row that
    is zero or not finite, which has cosine 0 with everything. (Karpathy & Fei-Fei 2015)
    """
    image, text, owner = _pairs(image, text, text_to_image)
    images = np.arange(len(image))
    if len(ks) == 0 or min(ks) < 1:
        raise ValueError(f"ks is {tuple(ks)}; give one or more numbers of results, each at least 1.")
    image, text = _unit(image), _unit(text)
    found = {"i2t": _ranks(image, text, images, owner), "t2i": _ranks(text, image, owner, images)}
    scores = {f"{way}_r{k}": 100 * float(np.mean(_hit(*ranks, k))) for way, ranks in found.items() for k in ks}
    for way, (ahead, level, right) in found.items():
        scores[f"{way}_medr"] = float(np.median(1 + ahead + level / (right + 1)))
    return scores


def retrieval_folds(image: np.ndarray, text: np.ndarray, text_to_image: np.ndarray, folds: int = 5) -> dict[str, float]:
    """The mean over folds of `retrieval_recall`, each of consecutive images with their own texts: COCO's 1K protocol
    on its 5,000 test images.

    Arguments and keys as there. Every fold has I // folds images; what remains is left out. (Karpathy & Fei-Fei 2015)
    """
    image, text, owner = _pairs(image, text, text_to_image)
    size = len(image) // folds if folds > 0 else 0
    if not size:
        raise ValueError(f"{len(image)} images do not make {folds} folds; give 1 fold or more, and an image for each.")
    scores = []
    for start in range(0, folds * size, size):
        mine = (start <= owner) & (owner < start + size)
        scores.append(retrieval_recall(image[start : start + size], text[mine], owner[mine] - start))
    return {key: float(np.mean([score[key] for score in scores])) for key in scores[0]}


def recall_sums(whole: Mapping[str, float], folds: Mapping[str, float]) -> dict[str, float]:
    """{"rsum", "fold/rsum", "r1_sum"} of all images' recalls and of their folds'.

    rsum: R@1 + R@5 + R@10, both directions, of the one and of the other; r1_sum: R@1 of both directions and of both,
    up to 400. (Yu 2023, CreamFL: "R@1_sum")
    """
    rsum = lambda scores: sum(scores[f"{way}_r{k}"] for way in ("i2t", "t2i") for k in (1, 5, 10))
    r1_sum = sum(scores[f"{way}_r1"] for scores in (whole, folds) for way in ("i2t", "t2i"))
    return {"rsum": rsum(whole), "fold/rsum": rsum(folds), "r1_sum": r1_sum}


def both_protocols(image: np.ndarray, text: np.ndarray, text_to_image: np.ndarray, folds: int = 5) -> dict[str, float]:
    """`retrieval_recall`'s scores, `retrieval_folds`' as "fold/i2t_r1", ..., and `recall_sums`: on COCO's 5,000 test
    images the 5K protocol, the 1K protocol, and what CreamFL adds up. Arguments as there.
    """
    whole = retrieval_recall(image, text, text_to_image)
    parts = retrieval_folds(image, text, text_to_image, folds)
    return whole | {f"fold/{key}": value for key, value in parts.items()} | recall_sums(whole, parts)


def linear_probe(train_x: np.ndarray, train_y: np.ndarray, test_x: np.ndarray, test_y: np.ndarray) -> dict[str, float]:
    """{"accuracy", "macro_f1", "weighted_f1"} on the test rows of a logistic regression on the standardised features.

    train_x [M, D], train_y [M] with two classes or more, test_x, test_y alike. The macro F1 is over the classes of
    train_y and test_y together.
    """
    train_x, train_y, test_x, test_y = (np.asarray(x) for x in (train_x, train_y, test_x, test_y))
    for name, x, y in (("train", train_x, train_y), ("test", test_x, test_y)):
        if x.ndim != 2 or y.shape != x.shape[:1] or not len(y):
            raise ValueError(f"{name}_x {x.shape} and {name}_y {y.shape} must be [M, D] and [M], M at least 1.")
        if not np.isfinite(x).all():
            raise ValueError(f"{name}_x holds NaN or infinity; the encoder has diverged, so there is nothing to probe.")
    if train_x.shape[1] != test_x.shape[1]:
        raise ValueError(f"train_x has {train_x.shape[1]} features and test_x {test_x.shape[1]}; use one encoder.")
    if len(np.unique(train_y)) < 2:
        raise ValueError("train_y holds one class only; a probe needs examples of two or more.")
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000))
    return _scores(test_y, probe.fit(train_x, train_y).predict(test_x), np.union1d(train_y, test_y))


def classification(labels: np.ndarray, predictions: np.ndarray, num_classes: int) -> dict[str, float]:
    """{"accuracy", "macro_f1", "weighted_f1"} of predicted classes. labels, predictions [M] int in 0..K-1.

    The macro F1 is over all K classes; one that is neither present nor predicted counts 0.
    """
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    if labels.ndim != 1 or labels.shape != predictions.shape or not len(labels):
        raise ValueError(f"labels {labels.shape} and predictions {predictions.shape} must be [M] both, M at least 1.")
    _check_classes("labels", labels, num_classes)
    _check_classes("predictions", predictions, num_classes)
    return _scores(labels, predictions, np.arange(num_classes))


def precision_recall(labels: np.ndarray, predictions: np.ndarray, num_classes: int) -> dict[str, float]:
    """{"macro_precision", "macro_recall"} over all K classes, arguments as of `classification`."""
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    scores = precision_recall_fscore_support(
        labels, predictions, labels=np.arange(num_classes), average="macro", zero_division=0
    )
    return {"macro_precision": float(scores[0]), "macro_recall": float(scores[1])}


def batch_means(labels: np.ndarray, predictions: np.ndarray, batch: int = 16) -> dict[str, float]:
    """{"batch16_accuracy", "batch16_macro_precision", "batch16_macro_recall", "batch16_macro_f1"}: plain means over
    batches of rows in their order, each macro average over the classes present or predicted in its batch.

    What training code that scores batch by batch reports; it depends on the order of the rows and is no score of the
    whole set. labels, predictions [M] int.
    """
    cuts = [slice(start, start + batch) for start in range(0, len(labels), batch)]
    pairs = [(np.asarray(labels)[cut], np.asarray(predictions)[cut]) for cut in cuts]
    macro = [precision_recall_fscore_support(*pair, average="macro", zero_division=0)[:3] for pair in pairs]
    accuracy = [accuracy_score(*pair) for pair in pairs]
    names = ("accuracy", "macro_precision", "macro_recall", "macro_f1")
    means = (np.mean(accuracy), *np.mean(macro, axis=0))
    return {f"batch{batch}_{name}": float(mean) for name, mean in zip(names, means, strict=True)}


def zero_shot(image: np.ndarray, prompts: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """{"zero_shot_accuracy"}: how often an image is nearest, by cosine, to the prompt of its own class.

    image [I, D], prompts [K, D], one for each class, labels [I] int in 0..K-1. Prompts level with the best share the
    hit, so that an encoder that maps everything to one point scores at chance. (Radford 2021, CLIP)
    """
    image, prompts, labels = np.asarray(image), np.asarray(prompts), np.asarray(labels)
    if image.ndim != 2 or prompts.ndim != 2 or image.shape[1] != prompts.shape[1] or labels.shape != image.shape[:1]:
        raise ValueError(
            f"image {image.shape}, prompts {prompts.shape}, labels {labels.shape} do not fit; "
            "they must be [I, D], [K, D] and [I]."
        )
    _check_classes("labels", labels, len(prompts))
    ahead, level, right = _ranks(_unit(image), _unit(prompts), labels, np.arange(len(prompts)))
    return {"zero_shot_accuracy": float(np.mean(_hit(ahead, level, right, 1)))}


def vqa_score(predictions: np.ndarray, target: np.ndarray) -> dict[str, float]:
    """{"vqa_score"}: the mean score of the predicted answers, in percent.

    predictions [M] int, target [M, K] the score in 0..1 of each answer to each question. (Antol 2015, VQA accuracy)
    """
    predictions, target = np.asarray(predictions), np.asarray(target)
    if target.ndim != 2 or predictions.shape != target.shape[:1] or not len(target):
        raise ValueError(
            f"predictions {predictions.shape}, target {target.shape} must be [M] and [M, K], M at least 1."
        )
    _check_classes("predictions", predictions, target.shape[1])
    return {"vqa_score": 100 * float(target[np.arange(len(target)), predictions].mean(dtype=np.float64))}


def constant(train_labels: np.ndarray, test_labels: np.ndarray, num_classes: int) -> dict[str, float]:
    """The scores of always answering the commonest class of train_labels [M] (the first of several): a control.

    test_labels [M'], both int in 0..K-1; the keys of `classification`.
    """
    train_labels = np.asarray(train_labels)
    if train_labels.ndim != 1 or not len(train_labels):
        raise ValueError(f"train_labels is {train_labels.shape}; it must be [M] with M at least 1.")
    _check_classes("train_labels", train_labels, num_classes)
    commonest = np.bincount(train_labels, minlength=num_classes).argmax()
    return classification(test_labels, np.full(np.shape(test_labels), commonest), num_classes)


def _pairs(image: np.ndarray, text: np.ndarray, text_to_image: np.ndarray) -> tuple[np.ndarray, ...]:
    image, text, owner = np.asarray(image), np.asarray(text), np.asarray(text_to_image)
    if image.ndim != 2 or text.ndim != 2 or image.shape[1] != text.shape[1] or owner.shape != text.shape[:1]:
        raise ValueError(
            f"image {image.shape}, text {text.shape}, text_to_image {owner.shape} do not fit; "
            "they must be [I, D], [Q, D] and [Q]."
        )
    if not np.array_equal(np.unique(owner), np.arange(len(image))):
        raise ValueError(
            f"text_to_image must name every image 0..{len(image) - 1} at least once and nothing else; "
            "drop images without a text and renumber the rest."
        )
    return image, text, owner


def _ranks(queries, candidates, query_item, candidate_item) -> np.ndarray:
    """[3, queries]: wrong candidates above the best right one, wrong ones level with it, right ones level with it."""
    ranks = []
    for start in range(0, len(queries), BLOCK):
        cosine = queries[start : start + BLOCK] @ candidates.T
        right = query_item[start : start + BLOCK, None] == candidate_item[None]
        best = np.where(right, cosine, -np.inf).max(axis=1, keepdims=True)
        level = np.abs(cosine - best) <= SAME
        ranks.append([(cosine > best + SAME).sum(1), (level & ~right).sum(1), (level & right).sum(1)])
    return np.concatenate(ranks, axis=1)


def _hit(ahead: np.ndarray, level: np.ndarray, right: np.ndarray, k: int) -> np.ndarray:
    """Chance that one of `right` candidates is among the first k when they and `level` wrong ones come in any order."""
    places = np.clip(k - ahead, 0, level + right)
    return 1 - hypergeom.pmf(0, level + right, right, places)


def _unit(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)  # in which the square of any float32 is finite
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    good = (norm > 0) & np.isfinite(norm)
    return (np.where(good, x, 0) / np.where(good, norm, 1)).astype(np.float32)


def _scores(labels: np.ndarray, predictions: np.ndarray, classes: np.ndarray) -> dict[str, float]:
    f1 = lambda kind: float(f1_score(labels, predictions, labels=classes, average=kind, zero_division=0))
    return {
        "accuracy": float(accuracy_score(labels, predictions)),
        "macro_f1": f1("macro"),
        "weighted_f1": f1("weighted"),
    }


def _check_classes(name: str, values: np.ndarray, num_classes: int) -> None:
    if not np.issubdtype(values.dtype, np.integer) or values.min() < 0 or values.max() >= num_classes:
        raise ValueError(
            f"{name} holds {values.dtype} from {values.min()} to {values.max()}; it must hold integers in "
            f"0..{num_classes - 1}, num_classes being {num_classes}."
        )
