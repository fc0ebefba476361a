"""How well images and texts find each other: recall, median ranks, and classes by their prompts."""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import hypergeom

from fedjax_mm.checks import check_array, check_mapping, check_number, check_whole, say
from fedjax_mm.evaluate.classes import check_classes

SAME = 1e-6  # cosines closer than this are a tie: it is what float32 rounding can put between equal pairs
BLOCK = 512  # queries ranked at a time


def retrieval_recall(
    image: np.ndarray, text: np.ndarray, text_to_image: np.ndarray, ks: Sequence[int] = (1, 5, 10)
) -> dict[str, float]:
    """{"i2t_r1", ..., "t2i_r10", "i2t_medr", "t2i_medr"}: recall at each k in percent, and the median rank from 1.

    image [I, D], text [Q, D], text_to_image [Q] the image that each text describes; each image needs a text. The
    candidates are ranked by cosine; image to text is right where ANY of the image's texts is among the first k. Ties
    count as if broken at random, in expectation, so that an encoder that maps everything to one point scores at chance;
    so does a row that is zero or not finite, which has cosine 0 with everything. (Karpathy & Fei-Fei 2015)

    >>> image, text = np.eye(3), np.eye(3)[[0, 2, 1]]  # the second and the third text lie at each other's image
    >>> scores = retrieval_recall(image, text, np.arange(3), ks=(1, 2))
    >>> round(scores["i2t_r1"], 1), round(scores["i2t_medr"], 1)
    (33.3, 2.5)
    """
    image, text, owner = _pairs(image, text, text_to_image)
    images = np.arange(len(image))
    if not isinstance(ks, Sequence | np.ndarray) or isinstance(ks, str) or getattr(ks, "ndim", 1) == 0:
        raise ValueError(f"ks is {say(ks)}; give one or more numbers of results")
    ks = [check_whole("a number of ks", k, least=None) for k in ks]
    if len(ks) == 0 or min(ks) < 1:
        raise ValueError(f"ks is {tuple(ks)}; give one or more numbers of results, each at least 1.")
    image, text = _unit(image), _unit(text)
    found = {"i2t": _ranks(image, text, images, owner), "t2i": _ranks(text, image, owner, images)}
    scores = {}
    for way, (ahead, level, right) in found.items():
        scores |= {f"{way}_r{k}": 100 * float(np.mean(_hit(ahead, level, right, k))) for k in ks}
    for way, (ahead, level, right) in found.items():
        scores[f"{way}_medr"] = float(np.median(1 + ahead + level / (right + 1)))
    return scores


def retrieval_folds(image: np.ndarray, text: np.ndarray, text_to_image: np.ndarray, folds: int = 5) -> dict[str, float]:
    """The mean over folds of `retrieval_recall`: COCO's 1K protocol on its 5,000 test images.

    A fold is I // folds consecutive images with their own texts; the images that remain are left out. The arguments and
    the keys are those of `retrieval_recall`. (Karpathy & Fei-Fei 2015)

    >>> retrieval_folds(np.eye(10), np.eye(10), np.arange(10), folds=2)["t2i_r1"]
    100.0
    """
    image, text, owner = _pairs(image, text, text_to_image)
    folds = check_whole("folds", folds, least=None)
    size = len(image) // folds if folds > 0 else 0
    if not size:
        raise ValueError(f"{len(image)} images do not make {folds} folds; give 1 fold or more, and an image for each.")
    scores = []
    for start in range(0, folds * size, size):
        inside = (start <= owner) & (owner < start + size)
        scores.append(retrieval_recall(image[start : start + size], text[inside], owner[inside] - start))
    return {key: float(np.mean([score[key] for score in scores])) for key in scores[0]}


def recall_sums(whole: Mapping[str, float], folds: Mapping[str, float]) -> dict[str, float]:
    """{"rsum", "fold/rsum", "r1_sum"} from the scores of `retrieval_recall` and of `retrieval_folds`.

    rsum and fold/rsum are R@1 + R@5 + R@10 of both directions; r1_sum is R@1 of both directions and both protocols, up
    to 400. (Yu 2023, CreamFL: "R@1_sum")

    >>> perfect = retrieval_recall(np.eye(10), np.eye(10), np.arange(10))
    >>> recall_sums(perfect, perfect)
    {'rsum': 600.0, 'fold/rsum': 600.0, 'r1_sum': 400.0}
    """
    keys = [f"{way}_r{k}" for way in ("i2t", "t2i") for k in (1, 5, 10)]
    for name, scores in (("whole", whole), ("folds", folds)):
        if missing := sorted(set(keys) - set(check_mapping(name, scores, "the names of recalls to percents"))):
            raise ValueError(f"{name} has no {missing}; give the scores of retrieval_recall with ks=(1, 5, 10)")
        for key in keys:
            check_number(f"{key} of {name}", scores[key])
    rsum = lambda scores: sum(scores[f"{way}_r{k}"] for way in ("i2t", "t2i") for k in (1, 5, 10))
    r1_sum = sum(scores[f"{way}_r1"] for scores in (whole, folds) for way in ("i2t", "t2i"))
    return {"rsum": rsum(whole), "fold/rsum": rsum(folds), "r1_sum": r1_sum}


def both_protocols(image: np.ndarray, text: np.ndarray, text_to_image: np.ndarray, folds: int = 5) -> dict[str, float]:
    """The scores of `retrieval_recall`, those of `retrieval_folds` as "fold/i2t_r1", ..., and `recall_sums`.

    On COCO's 5,000 test images these are the 5K protocol, the 1K protocol, and what CreamFL adds up. The arguments are
    those of `retrieval_folds`.

    >>> both_protocols(np.eye(10), np.eye(10), np.arange(10), folds=2)["fold/i2t_medr"]
    1.0
    """
    whole = retrieval_recall(image, text, text_to_image)
    parts = retrieval_folds(image, text, text_to_image, folds)
    return whole | {f"fold/{key}": value for key, value in parts.items()} | recall_sums(whole, parts)


def zero_shot(image: np.ndarray, prompts: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """{"zero_shot_accuracy"}: how often an image is nearest, by cosine, to the prompt of its own class.

    image [I, D], prompts [K, D], one for each class, labels [I] int in 0..K-1. Prompts that tie with the best share the
    hit, so that an encoder that maps everything to one point scores at chance. (Radford 2021, CLIP)

    >>> zero_shot(np.eye(2)[[0, 1, 1, 1]], prompts=np.eye(2), labels=np.array([0, 1, 1, 0]))
    {'zero_shot_accuracy': 0.75}
    """
    image, prompts, labels = check_array("image", image), check_array("prompts", prompts), check_array("labels", labels)
    fit = image.ndim == prompts.ndim == 2 and image.shape[1] == prompts.shape[1] and labels.shape == image.shape[:1]
    if not fit or not len(labels) or not len(prompts):
        raise ValueError(
            f"image {image.shape}, prompts {prompts.shape}, labels {labels.shape} do not fit; "
            "they must be [I, D], [K, D] and [I]."
        )
    check_classes("labels", labels, len(prompts))
    ahead, level, right = _ranks(_unit(image), _unit(prompts), labels, np.arange(len(prompts)))
    return {"zero_shot_accuracy": float(np.mean(_hit(ahead, level, right, 1)))}


def _pairs(image: np.ndarray, text: np.ndarray, text_to_image: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    image, text = check_array("image", image), check_array("text", text)
    owner = check_array("text_to_image", text_to_image, (np.integer,))
    if image.ndim != 2 or text.ndim != 2 or image.shape[1] != text.shape[1] or owner.shape != text.shape[:1]:
        raise ValueError(
            f"image {image.shape}, text {text.shape}, text_to_image {owner.shape} do not fit; "
            "they must be [I, D], [Q, D] and [Q]."
        )
    if not len(image):
        raise ValueError("image and text have no rows; give at least one of each.")
    if not np.array_equal(np.unique(owner), np.arange(len(image))):
        raise ValueError(
            f"text_to_image must name every image 0..{len(image) - 1} at least once and nothing else; "
            "drop images without a text and renumber the rest."
        )
    return image, text, owner


def _ranks(
    queries: np.ndarray, candidates: np.ndarray, query_item: np.ndarray, candidate_item: np.ndarray
) -> np.ndarray:
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
    """The chance that one of `right` candidates is in the first k, where these and `level` wrong ones are shuffled."""
    places = np.clip(k - ahead, 0, level + right)
    return 1 - hypergeom.pmf(0, level + right, right, places)


def _unit(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)  # in which the square of any float32 is finite
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    good = (norm > 0) & np.isfinite(norm)
    return (np.where(good, x, 0) / np.where(good, norm, 1)).astype(np.float32)
