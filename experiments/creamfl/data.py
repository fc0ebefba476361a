"""Who holds what in CreamFL's experiments: clients with images, with texts and with pairs, and public pairs."""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from fedjax_mm._lazy import require
from fedjax_mm.data import FederatedData, flickr8k, partition, prepared, scenes, vqa, wordpiece

NEWS = "ag_news_subset"


class Questions(NamedTuple):
    """Questions about pictures: image [I, H, W, 3] uint8, and of each question its picture's row [E], its word pieces
    question [E, L] int32, and target [E, K], the answers' scores."""

    image: Any
    row: np.ndarray
    question: np.ndarray
    target: np.ndarray


class Problem(NamedTuple):
    """Clients, the public pairs, and what models are tested on."""

    data: FederatedData  # cohorts image, text, both
    test: Mapping[str, np.ndarray]  # as creamfl.scores takes it
    num_classes: Mapping[str, int]
    vocabulary: int
    questions: tuple[Questions, Questions] | None  # (train, test) about pictures; None where there are none
    pretraining: Mapping[str, Mapping[str, np.ndarray]]  # [m]: m and label of examples nobody else has; of any seed


class Numbers(NamedTuple):
    """How many clients, and examples of each."""

    image: int = 10
    """Clients with images and labels."""
    text: int = 10
    """Clients with texts and labels."""
    both: int = 15
    """Clients with pairs of an image and a text."""
    per_client: int = 100
    """Examples of a client, on average."""
    per_image: int | None = None
    """Images of a client with images alone, at most; None: per_client, and no fewer."""
    per_text: int | None = None
    """Texts of a client with texts alone, at most; None: per_client, and no fewer."""
    per_both: int | None = None
    """Pairs of a client, of COCO's study at most; None: per_client."""
    public: int = 1000
    """Public pairs."""
    test: int = 500
    """Examples that models are tested on."""
    asked: int = 4000
    """Questions about scenes to learn from; there are a quarter as many to test."""
    pretraining: int = 4000
    """Other labelled examples of a modality, which the encoders have learnt from before."""


def scenes_problem(numbers: Numbers, split: str, alpha: float, seed: int) -> Problem:
    """Scenes: images and captions are classified by the largest object's shape, both are retrieved."""
    total = (numbers.image + numbers.text + numbers.both) * numbers.per_client
    others = {"public": numbers.public, "valid": numbers.test, "test": numbers.test}
    splits = scenes.load(num_train=total, seed=seed, others=others).splits
    used = max(int((arrays["text"] > 0).sum(-1).max()) for arrays in splits.values())
    cut = lambda arrays: {**arrays, "text": arrays["text"][:, :used]}
    splits = {name: cut(arrays) for name, arrays in splits.items()}
    train, tested = splits["train"], splits[split]
    ends = np.cumsum([numbers.image * numbers.per_client, numbers.text * numbers.per_client])
    parts: dict[str, np.ndarray] = dict(zip(("image", "text", "both"), np.split(np.arange(total), ends), strict=True))
    columns = {"image": ("image", "label"), "text": ("text", "label"), "both": ("image", "text")}
    arrays = {name: {k: train[k][parts[name]] for k in keys} for name, keys in columns.items()}
    test = {m: tested[m] for m in ("image", "text")}
    for name in ("image", "text"):
        test |= {f"{name}/{name}": tested[name], f"{name}/label": tested["label"]}
    public = {m: splits["public"][m] for m in ("image", "text")}
    questions = lambda n, seed: scenes.load("vqa", n, seed=seed, others={}).splits["train"]
    answers = lambda labels: np.eye(len(scenes.ANSWERS), dtype=np.float32)[labels]
    of = lambda asked: Questions(asked["image"], np.arange(len(asked["image"])), asked["text"], answers(asked["label"]))
    asked = of(questions(numbers.asked, seed + 1000)), of(questions(numbers.asked // 4, seed + 1001))
    classes = {"image": len(scenes.SHAPES), "text": len(scenes.SHAPES)}
    other = scenes.make(numbers.pretraining, 1_000_000)  # to tell the largest object's shape and colour
    label = other.shape[:, 0] * len(scenes.COLOURS) + other.colour[:, 0]
    before = {"image": other.image, "text": other.tokens}
    before = {m: {m: x, "label": label} for m, x in before.items()}
    data = shared_out(numbers, arrays, public, alpha, seed)
    return Problem(data, test, classes, len(scenes.VOCABULARY), asked, before)


def photo_problem(
    numbers: Numbers,
    split: str,
    alpha: float,
    seed: int,
    data_dir: str,
    side: int = 32,
    length: int = 24,
    vocabulary: int | str | pathlib.Path = 4000,
    encode: Callable[[str, np.ndarray], np.ndarray] | None = None,
    standardised: bool = True,
) -> Problem:
    """CIFAR-100 at clients with images, AG's News at those with texts, Flickr8k at those with pairs.

    data_dir: a folder with flickr8k (its raw files), tfds (cifar100 and ag_news_subset, prepared), for questions
        vqa/easy_vqa.
    side: pixels of all images. length: tokens of a text. vocabulary: so many word pieces, fitted to captions and news,
        or a BERT vocab.txt.
    encode: a frozen encoder, ("image", [E, H, W, 3] uint8) or ("text", [E, L] int32) -> [E, D], whose features then
        stand in place of images and texts; there are no questions then.
    standardised: whether features are standardised by those of the public pairs.
    """
    folder, rng = pathlib.Path(data_dir), np.random.default_rng(seed)
    numbers = numbers._replace(pretraining=0) if encode else numbers  # a frozen encoder learns no more
    photos = flickr8k.load(folder / "flickr8k", image=side, length=length, public=numbers.public, seed=seed)
    images, named = {name: arrays["image"] for name, arrays in photos.splits.items()}, photos.captions
    cifar, news = labelled(folder / "tfds", split, rng, numbers)
    captions = photos.captions["train"]
    if isinstance(vocabulary, int):  # one for all seeds, which differ in what of Flickr8k is public
        known = sorted([*captions.reshape(-1).tolist(), *named["public"].reshape(-1).tolist()])
        tokenizer = wordpiece.train([*known, *news["all"]["text"].tolist()], vocabulary)
    else:
        tokenizer = wordpiece.load(vocabulary)
    tokens = lambda text: wordpiece.encode(tokenizer, text.reshape(-1).tolist(), length).reshape(*text.shape, length)
    parts = ("pretraining", "train", "test")
    image = {k: {"image": _wide(cifar[k]["image"], side), "label": cifar[k]["label"]} for k in parts}
    text = {k: {"text": tokens(news[k]["text"]), "label": news[k]["label"]} for k in parts}
    taken = numbers.both * (numbers.per_both or numbers.per_client)
    check_enough("Flickr8k's train", len(captions), "--numbers.both times --numbers.per-client", taken)
    check_enough(f"Flickr8k's {split}", len(images[split]), "--numbers.test", numbers.test)
    pairs = rng.permutation(len(captions))[:taken]
    both = {"image": photos.splits["train"]["image"][pairs], "text": tokens(captions[pairs])}
    shared = {"image": images["public"], "text": tokens(named["public"][:, 0])}
    test = {"image": images[split][: numbers.test], "text": tokens(named[split][: numbers.test])}
    test |= {"image/image": image["test"]["image"], "image/label": image["test"]["label"]}
    test |= {"text/text": text["test"]["text"], "text/label": text["test"]["label"]}
    asked = None
    arrays = {"image": image["train"], "text": text["train"], "both": both}
    before = {"image": image["pretraining"], "text": text["pretraining"]}
    if encode is not None:
        shared = {m: encode(m, x) for m, x in shared.items()}
        centre, spread = ({m: f(x, 0) for m, x in shared.items()} for f in (np.mean, np.std))  # all know these
        scaled = lambda m, x: (x - centre[m]) / (spread[m] + 1e-6) if standardised else x
        seen = lambda m, x: x if m == "label" else scaled(m, encode(m, x))
        of = lambda arrays: {key: seen(key.rpartition("/")[2], x) for key, x in arrays.items()}
        shared = {m: scaled(m, x) for m, x in shared.items()}
        arrays, test, before = {name: of(x) for name, x in arrays.items()}, of(test), {}
    elif (folder / "vqa" / "easy_vqa").is_dir():
        source = {"easy_vqa": vqa.imagefolder(folder / "vqa")["easy_vqa"]}
        tasks = vqa.load(source, (side, side), 32, length, tokenizer=tokenizer, seed=seed)
        asked = questions(tasks, "easy_vqa", "train"), questions(tasks, "easy_vqa", "test")
    data = shared_out(numbers, arrays, shared, alpha, seed)
    return Problem(data, test, {"image": 100, "text": 4}, tokenizer.get_vocab_size(), asked, before)


def questions(tasks: vqa.Tasks, name: str, split: str) -> Questions:
    """The questions of a client's split."""
    arrays = tasks.tasks[name].splits[split]
    return Questions(tasks.image, arrays["image_row"], arrays["question"], arrays["target"])


def _wide(images: np.ndarray, side: int) -> np.ndarray:
    """CIFAR's images [E, 32, 32, 3] uint8 with another side: each pixel a square where that fits, else bicubic."""
    if side % 32 == 0:
        return images.repeat(side // 32, axis=1).repeat(side // 32, axis=2)
    Image = require("PIL.Image", "text")
    resize = lambda image: np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC))
    return np.stack([resize(image) for image in images]) if len(images) else np.zeros((0, side, side, 3), np.uint8)


def check_enough(what: str, there: int, argument: str, asked: int) -> None:
    if asked > there:
        raise ValueError(f"{argument} asks for {asked} examples, and {what} has {there}; ask for fewer")


def labelled(folder: pathlib.Path, split: str, rng: np.random.Generator, numbers: Numbers):
    """({split: arrays} of CIFAR-100, of the news): as many as clients have; tuning tests on training examples.

    Of the training examples, those in "pretraining" are the same for all seeds.
    """
    found = []
    kinds = (("cifar100", numbers.image, numbers.per_image), (NEWS, numbers.text, numbers.per_text))
    for name, clients, most in kinds:
        columns = ("image", "label") if name == "cifar100" else ("title", "description", "label")
        whole = prepared.load(name, folder, "train", columns)
        tested = prepared.load(name, folder, "test", columns) if split == "test" else whole
        if name == NEWS:
            whole, tested = _read(whole), _read(tested)
        total, train = len(whole["label"]), clients * (most or numbers.per_client)
        check_enough(f"half of {name}", total // 2, "--numbers.pretraining", numbers.pretraining)
        before, order = np.split(np.random.default_rng(0).permutation(total), [numbers.pretraining])
        order = rng.permutation(order)
        if most:
            train = min(train, len(order) - (0 if split == "test" else numbers.test))
        rows = order[train : train + numbers.test] if split != "test" else rng.permutation(len(tested["label"]))
        asked = train if split == "test" else train + numbers.test
        check_enough(f"{name}, besides {len(before)} to pretrain on,", len(order), "--numbers", asked)
        check_enough(f"the test of {name}", len(rows), "--numbers.test", numbers.test)
        take = lambda arrays, rows: {k: v[rows] for k, v in arrays.items()}
        parts = {"pretraining": take(whole, before), "train": take(whole, order[:train])}
        found.append({**parts, "test": take(tested, rows[: numbers.test]), "all": whole})
    return found


def _read(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    pairs = zip(arrays["title"].tolist(), arrays["description"].tolist(), strict=True)
    return {"text": np.array([f"{title} {text}".strip().lower() for title, text in pairs]), "label": arrays["label"]}


def shared_out(numbers: Numbers, arrays, public, alpha: float, seed: int, pairs: Any = None) -> FederatedData:
    """Labelled examples by Dirichlet(alpha), with no client much larger than others, and pairs evenly.

    As in section 1.1 of docs/specs/creamfl.md. pairs: the rows of each client with pairs, in place of an even draw.
    """
    owned = {}
    for i, (name, columns) in enumerate(arrays.items()):
        clients, rng = getattr(numbers, name), np.random.default_rng((seed, i))
        if "label" in columns:
            least = max(2, numbers.per_client // 10)
            owned[name] = partition.dirichlet(columns["label"], clients, alpha, rng, least, balanced=True)
        elif pairs is not None:
            owned[name] = pairs
        else:
            owned[name] = partition.iid(len(columns["image"]), clients, rng)
    return FederatedData.from_arrays(arrays, owned, public=public)
