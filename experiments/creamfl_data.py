"""Who holds what in CreamFL's experiments: clients with images, with texts and with pairs, and public pairs."""

import pathlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from fedjax_mm.data import FederatedData, flickr8k, partition, prepared, scenes, vqa, wordpiece

NEWS = "ag_news_subset"


class Questions(NamedTuple):
    """Questions about pictures: image [E, H, W, 3] uint8, question [E, L] int32, target [E, K] the answers' scores."""

    image: np.ndarray
    question: np.ndarray
    target: np.ndarray


class Problem(NamedTuple):
    """Clients, the public pairs, and what models are tested on."""

    data: FederatedData  # cohorts image, text, both
    test: Mapping[str, np.ndarray]  # as methods.joint_space_scores takes it
    num_classes: Mapping[str, int]
    vocabulary: int
    questions: tuple[Questions, Questions] | None  # (train, test) about pictures; None where there are none


class Numbers(NamedTuple):
    """How many clients, and examples of each."""

    image: int = 10
    text: int = 10
    both: int = 15
    per_client: int = 100
    public: int = 1000
    test: int = 500
    asked: int = 4000
    """Questions about scenes to learn from; a quarter as many to test."""


def scenes_problem(numbers: Numbers, split: str, alpha: float, seed: int) -> Problem:
    """Scenes: images and captions are classified by the largest object's shape, both are retrieved."""
    total = (numbers.image + numbers.text + numbers.both) * numbers.per_client
    others = {"public": numbers.public, "valid": numbers.test, "test": numbers.test}
    splits = scenes.load(num_train=total, seed=seed, others=others).splits
    used = max(int((arrays["text"] > 0).sum(-1).max()) for arrays in splits.values())
    cut = lambda arrays: {**arrays, "text": arrays["text"][:, :used]}
    splits = {name: cut(arrays) for name, arrays in splits.items()}
    train, tested = splits["train"], splits[split]
    at = np.cumsum([numbers.image * numbers.per_client, numbers.text * numbers.per_client])
    parts = dict(zip(("image", "text", "both"), np.split(np.arange(total), at), strict=True))
    holds = {"image": ("image", "label"), "text": ("text", "label"), "both": ("image", "text")}
    arrays = {name: {k: train[k][parts[name]] for k in keys} for name, keys in holds.items()}
    test = {m: tested[m] for m in ("image", "text")}
    for name in ("image", "text"):
        test |= {f"{name}/{name}": tested[name], f"{name}/label": tested["label"]}
    public = {m: splits["public"][m] for m in ("image", "text")}
    drawn = [
        scenes.load("vqa", n, seed=seed + 1000 + i, others={}).splits["train"]
        for i, n in enumerate((numbers.asked, numbers.asked // 4))
    ]
    answers = lambda labels: np.eye(len(scenes.ANSWERS), dtype=np.float32)[labels]
    asked = tuple(Questions(arrays["image"], arrays["text"], answers(arrays["label"])) for arrays in drawn)
    classes = {"image": len(scenes.SHAPES), "text": len(scenes.SHAPES)}
    return Problem(_shared_out(numbers, arrays, public, alpha, seed), test, classes, len(scenes.VOCABULARY), asked)


def flickr8k_problem(
    numbers: Numbers, split: str, alpha: float, seed: int, data_dir: str, side: int = 64, vocabulary: int = 4000
) -> Problem:
    """CIFAR-100 at clients with images, AG's News at those with texts, Flickr8k at those with pairs and in public.

    data_dir: a folder with flickr8k (its raw files), tfds (cifar100 and ag_news_subset, prepared) and, for questions,
    vqa/easy_vqa. All images have `side` pixels, a multiple of 32.
    """
    if side % 32:
        raise ValueError(f"side is {side}; it must be a multiple of 32, the side of CIFAR's images")
    folder, length, rng = pathlib.Path(data_dir), 32, np.random.default_rng(seed)
    photos = flickr8k.load(folder / "flickr8k", image=side, length=length, public=numbers.public, seed=seed)
    cifar, news = _labelled(folder / "tfds", split, rng, numbers)
    captions = photos.captions
    tokenizer = wordpiece.train([*captions["train"].reshape(-1).tolist(), *news["train"]["text"].tolist()], vocabulary)
    tokens = lambda text: wordpiece.encode(tokenizer, text.reshape(-1).tolist(), length).reshape(*text.shape, length)
    wide = lambda image: image.repeat(side // 32, axis=1).repeat(side // 32, axis=2)
    image = {k: {"image": wide(a["image"]), "label": a["label"]} for k, a in cifar.items()}
    text = {k: {"text": tokens(a["text"]), "label": a["label"]} for k, a in news.items()}
    pairs = rng.permutation(len(captions["train"]))[: numbers.both * numbers.per_client]
    both = {"image": photos.splits["train"]["image"][pairs], "text": tokens(captions["train"][pairs])}
    public = {"image": photos.splits["public"]["image"], "text": tokens(captions["public"][:, 0])}
    some = slice(numbers.test)
    test = {"image": photos.splits[split]["image"][some], "text": tokens(captions[split][some])}
    test |= {"image/image": image["test"]["image"], "image/label": image["test"]["label"]}
    test |= {"text/text": text["test"]["text"], "text/label": text["test"]["label"]}
    asked = None
    if (folder / "vqa" / "easy_vqa").is_dir():
        source = {"easy_vqa": vqa.imagefolder(folder / "vqa")["easy_vqa"]}
        tasks = vqa.load(source, (side, side), 32, length, tokenizer=tokenizer, seed=seed)
        drawn = [vqa.examples(tasks, "easy_vqa", part) for part in ("train", "test")]
        asked = tuple(Questions(a["image"], a["question"], a["target"]) for a in drawn)
    arrays = {"image": image["train"], "text": text["train"], "both": both}
    data = _shared_out(numbers, arrays, public, alpha, seed)
    return Problem(data, test, {"image": 100, "text": 4}, vocabulary, asked)


def _labelled(folder: pathlib.Path, split: str, rng: np.random.Generator, numbers: Numbers):
    """({split: arrays} of CIFAR-100, of the news): as many as clients have; tuning tests on training examples."""
    made = []
    for name, clients in (("cifar100", numbers.image), (NEWS, numbers.text)):
        columns = ("image", "label") if name == "cifar100" else ("title", "description", "label")
        whole = prepared.load(name, folder, "train", columns)
        tested = prepared.load(name, folder, "test", columns) if split == "test" else whole
        if name == NEWS:
            whole, tested = _read(whole), _read(tested)
        order, train = rng.permutation(len(whole["label"])), clients * numbers.per_client
        rows = order[train : train + numbers.test] if split != "test" else rng.permutation(len(tested["label"]))
        take = lambda arrays, rows: {k: v[rows] for k, v in arrays.items()}
        made.append({"train": take(whole, order[:train]), "test": take(tested, rows[: numbers.test])})
    return made


def _read(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    pairs = zip(arrays["title"].tolist(), arrays["description"].tolist(), strict=True)
    return {"text": np.array([f"{title} {text}".strip().lower() for title, text in pairs]), "label": arrays["label"]}


def _shared_out(numbers: Numbers, arrays, public, alpha: float, seed: int) -> FederatedData:
    """Labelled examples by Dirichlet(alpha), with no client much larger than others (1.1), pairs evenly."""
    owned = {}
    for i, (name, mine) in enumerate(arrays.items()):
        clients = getattr(numbers, name)
        if "label" in mine:
            least = max(2, numbers.per_client // 10)
            owned[name] = partition.dirichlet(mine["label"], clients, alpha, (seed, i), least, balanced=True)
        else:
            owned[name] = partition.iid(len(mine["image"]), clients, (seed, i))
    return FederatedData.from_arrays(arrays, owned, public=public)
