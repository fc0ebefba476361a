"""Who holds what of the digits: for CreamFL pairs or one half, and for FedDAT whole digits and a question."""

from collections.abc import Mapping

import numpy as np

from fedjax_mm.data import FederatedData, partition

Arrays = Mapping[str, np.ndarray]
KINDS = {"image": ("image", "label"), "text": ("text", "label"), "both": ("image", "text")}
QUESTIONS = {
    "odd?": (1, 3, 5, 7, 9),
    "5 or more?": (5, 6, 7, 8, 9),
    "has a loop?": (0, 6, 8, 9),
    "prime?": (2, 3, 5, 7),
}
"""Question -> the digits that are answered by yes."""


def as_pairs(arrays: Arrays) -> dict[str, np.ndarray]:
    """A split as CreamFL has it: the left half stands for an image, and the right half, as a list, for a text."""
    right = np.asarray(arrays["right"])
    return {"image": arrays["left"], "text": right.reshape(len(right), -1), "label": arrays["label"]}


def clients_of_pairs(train: Arrays, public: Arrays, seed: int, each: int = 10) -> FederatedData:
    """`each` clients of every kind: left or right halves by Dirichlet(0.5) over classes, and pairs evenly."""
    order = np.random.default_rng(seed).permutation(len(train["label"]))
    parts = dict(zip(KINDS, np.array_split(order, len(KINDS)), strict=True))
    arrays = {kind: {name: train[name][parts[kind]] for name in names} for kind, names in KINDS.items()}
    skewed = lambda kind: partition.dirichlet(arrays[kind]["label"], each, 0.5, seed, min_size=8)
    owned = {
        kind: skewed(kind) if "label" in names else partition.iid(len(parts[kind]), each, seed)
        for kind, names in KINDS.items()
    }
    return FederatedData.from_arrays(arrays, owned, public={name: public[name] for name in ("image", "text")})


def tests_of_pairs(tested: Arrays) -> dict[str, np.ndarray]:
    """Pairs to retrieve, and halves to classify, as creamfl.scores takes them."""
    single = {f"{kind}/{name}": tested[name] for kind in ("image", "text") for name in KINDS[kind]}
    return {"image": tested["image"], "text": tested["text"], **single}


def whole(arrays: Arrays) -> np.ndarray:
    """Whole digits [M, 8, 8]."""
    return np.concatenate([arrays["left"], arrays["right"]], axis=2)


def answers(label: np.ndarray, question: str) -> np.ndarray:
    """The score [M, 2] of "no" and of "yes" for each digit."""
    return np.eye(2, dtype=np.float32)[np.isin(label, QUESTIONS[question]).astype(int)]


def asked(
    splits: Mapping[str, Arrays], split: str, seed: int, each: int = 80
) -> tuple[FederatedData, dict[str, np.ndarray]]:
    """Clients with `each` digits and a question of their own, and the tests: every question about every digit."""
    train, tested = splits["train"], splits[split]
    own = np.random.default_rng(seed).permutation(len(train["label"]))[: len(QUESTIONS) * each].reshape(-1, each)
    target = np.zeros((len(train["label"]), 2), np.float32)
    for rows, question in zip(own, QUESTIONS, strict=True):
        target[rows] = answers(train["label"][rows], question)
    test = {
        "image": np.tile(whole(tested), (len(QUESTIONS), 1, 1)),
        "target": np.concatenate([answers(tested["label"], question) for question in QUESTIONS]),
        "client": np.repeat(np.arange(len(QUESTIONS)), len(tested["label"])),
    }
    return FederatedData.from_arrays({"image": whole(train), "target": target}, list(own)), test
