"""Who holds what in CreamFL's paper: CIFAR-100, AG's News and Flickr30k at clients, COCO at the server, VQA v2 to test.

Numbers such as (1.1) are sections of docs/specs/creamfl.md. Photographs stay on the disk.
"""

import pathlib
from typing import Any, NamedTuple

import numpy as np

from experiments.creamfl.data import Numbers, Problem, Questions, check_enough, labelled, questions, shared_out
from fedjax_mm.data import coco_captions, flickr30k, streams, vqa, wordpiece
from fedjax_mm.streamed import concatenated, picked

ANSWERS = 3000
PARTS = 10
"""Parts of the captions, in the order of their file, that a client with pairs has (1.1)."""


class Sizes(NamedTuple):
    """How examples are stored."""

    photo: int
    """Side of photographs: their shorter side has it, and the middle is cut out."""
    length: int
    """Word pieces of a text."""


def paper_problem(
    numbers: Numbers, split: str, alpha: float, seed: int, data_dir: str, vocabulary: pathlib.Path, sizes: Sizes
) -> Problem:
    """The data of the paper, shared out as there (1.1).

    data_dir: a folder with tfds (cifar100 and ag_news_subset, prepared), flickr30k and coco as data.flickr30k and
        data.coco_captions take them, and for questions vqa_v2: the four official files of train2014 and val2014, and
        the photographs in folders of these names.
    A pair is one caption and its photograph. `test` takes COCO's test as TFDS has it, or val2017 of the official files;
    `valid` takes TFDS's val, or of the official files photographs of train2017 that no public pair has.
    """
    folder, rng = pathlib.Path(data_dir), np.random.default_rng(seed)
    tokenizer = wordpiece.load(vocabulary)
    given = {"image": sizes.photo, "length": sizes.length, "tokenizer": tokenizer, "centre": True}
    cifar, news = labelled(folder / "tfds", split, rng, numbers)
    tokens = lambda text: wordpiece.encode(tokenizer, text.tolist(), sizes.length)
    image = {k: {"image": cifar[k]["image"], "label": cifar[k]["label"]} for k in ("train", "test")}
    text = {k: {"text": tokens(news[k]["text"]), "label": news[k]["label"]} for k in ("train", "test")}
    pairs, owned = _pairs(flickr30k.load(folder / "flickr30k", ("train",), **given).splits["train"], numbers, rng)
    public, test = _coco(folder / "coco", split, numbers, given, rng)
    test |= {"image/image": image["test"]["image"], "image/label": image["test"]["label"]}
    test |= {"text/text": text["test"]["text"], "text/label": text["test"]["label"]}
    arrays = {"image": image["train"], "text": text["train"], "both": pairs}
    data = shared_out(numbers, arrays, public, alpha, seed, owned)
    asked = _asked(folder / "vqa_v2", tokenizer, sizes) if (folder / "vqa_v2").is_dir() else None
    return Problem(data, test, {"image": 100, "text": 4}, tokenizer.get_vocab_size(), asked, {})


def _pairs(train: Any, numbers: Numbers, rng: np.random.Generator) -> tuple[dict[str, Any], list[np.ndarray]]:
    """(all captions with their photographs, the rows of each client: PARTS parts of the file, drawn at random)."""
    captions = train["text"].shape[1]
    total, parts = len(train["text"]) * captions, PARTS * numbers.both
    size = min(total // parts, (numbers.per_both or numbers.per_client) // PARTS)
    check_enough("Flickr30k's train", total, "--numbers.both", parts)
    starts = (total // parts) * rng.permutation(parts)
    rows = np.arange(total)
    arrays = {"image": picked(train["image"], rows // captions), "text": train["text"].reshape(total, -1)}
    one_client = lambda own: np.concatenate([np.arange(start, start + size) for start in own])
    return arrays, [one_client(own) for own in np.split(starts, numbers.both)]


def _coco(
    folder: pathlib.Path, split: str, numbers: Numbers, given: dict[str, Any], rng: np.random.Generator
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(public pairs drawn from the captions of train, the photographs of a test with all of their captions)."""
    of_tfds = (folder / "coco_captions").is_dir()
    taught, tested = ("train", "restval") if of_tfds else ("train",), "test" if split == "test" else "valid"
    tested = tested if of_tfds else "valid"
    inside = split != "test" and not of_tfds  # tested on photographs of train
    splits = coco_captions.load(folder, taught if inside else (*taught, tested), stream=True, **given).splits
    images = splits["train"]["image"] if len(taught) == 1 else concatenated([splits[s]["image"] for s in taught])
    texts = np.concatenate([splits[name]["text"] for name in taught])
    photos, captions = texts.shape[:2]
    check_enough("COCO's train", photos * captions, "--numbers.public", numbers.public)
    rows = rng.permutation(photos * captions)[: numbers.public]
    public = {"image": picked(images, rows // captions), "text": texts.reshape(photos * captions, -1)[rows]}
    there = np.setdiff1d(np.arange(photos), rows // captions) if inside else np.arange(len(splits[tested]["text"]))
    check_enough(f"COCO's {split}", len(there), "--numbers.test", numbers.test)
    from_images, from_texts = (images, texts) if inside else (splits[tested]["image"], splits[tested]["text"])
    kept = there[: numbers.test]
    return public, {"image": picked(from_images, kept), "text": from_texts[kept]}


def _asked(folder: pathlib.Path, tokenizer: Any, sizes: Sizes) -> tuple[Questions, Questions]:
    """(train, test): VQA v2's questions about train2014 and val2014, with the ANSWERS most frequent answers."""

    def read(split: str) -> list[vqa.Question]:
        asked = folder / f"v2_OpenEnded_mscoco_{split}_questions.json"
        return vqa.annotations.vqa(asked, folder / f"v2_mscoco_{split}_annotations.json", folder / split)

    train, test = read("train2014"), read("val2014")
    files = list(dict.fromkeys(str(question.image) for question in (*train, *test)))
    place = {file: number for number, file in enumerate(files)}
    numbered = [[one._replace(image=place[str(one.image)]) for one in part] for part in (train, test)]
    source = {"vqa_v2": vqa.Source(*numbered, streams.files(files, sizes.photo, centre=True))}
    bucket = (sizes.photo, sizes.photo)
    tasks = vqa.load(source, bucket, 1, length=sizes.length, tokenizer=tokenizer, answers=ANSWERS)
    return questions(tasks, "vqa_v2", "train"), questions(tasks, "vqa_v2", "test")
