"""Questions through frozen encoders: what ViT-S/14 says of pictures and MiniLM of questions, computed once and kept.

A picture is the class token and the mean of the patches, `seen` [E, 2, 384]; a question is one vector, `read` [E, 384].
experiments.pretrain_fusion makes the trunk that sees them together.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.weights import sources
from experiments.weights.features import PATCH, SIDE, WIDTH, features
from fedjax_mm.data import images, vqa, wordpiece

LENGTH = 24
"""Word pieces of a question."""
CLOSED = {"easy_vqa": ("yes", "no")}
"""Domains whose questions with these answers are one client's, and whose other questions are another one's."""


@functools.lru_cache(1)
def asked(folder: str) -> Mapping[str, vqa.Source]:
    """The clients of DIR/<domain>/{train,test}/metadata.jsonl, with their pictures squashed to what ViT-S/14 takes."""
    found = {}
    for name, splits in vqa.imagefolder(folder).items():
        found |= by_kind(name, _with_pictures(splits))
    return found


def _with_pictures(splits: Mapping[str, Sequence[vqa.Question]]) -> vqa.Source:
    files = list(dict.fromkeys(str(question.image) for questions in splits.values() for question in questions))
    row = {file: place for place, file in enumerate(files)}
    numbered = {split: [q._replace(image=row[str(q.image)]) for q in asked] for split, asked in splits.items()}
    return vqa.Source(numbered["train"], numbered["test"], np.stack([images.read(file, SIDE) for file in files]))


def by_kind(name: str, source: vqa.Source) -> dict[str, vqa.Source]:
    """The clients of a domain: one, or two where CLOSED tells kinds of its questions apart.

    >>> asked = [vqa.Question(0, "is it red?", ("no",)), vqa.Question(0, "which colour is it?", ("blue",))]
    >>> {name: [q.text for q in own.train] for name, own in by_kind("easy_vqa", vqa.Source(asked, asked)).items()}
    {'easy_vqa, yes or no': ['is it red?'], 'easy_vqa, naming': ['which colour is it?']}
    """
    if name not in CLOSED:
        return {name: source}
    of = lambda questions, closed: [q for q in questions if (q.answers[0] in CLOSED[name]) == closed]
    part = lambda closed: source._replace(train=of(source.train, closed), test=of(source.test, closed))
    return {f"{name}, yes or no": part(True), f"{name}, naming": part(False)}


def tokenizer():
    """MiniLM's word pieces."""
    return wordpiece.load(sources.find("minilm") / "vocab.txt")


def words(pieces, said: Sequence[str]) -> np.ndarray:
    """Texts as word pieces, [Q, L] int32."""
    return wordpiece.encode(pieces, said, LENGTH)


def pictures(stack: np.ndarray) -> np.ndarray:
    """[I, 98, 98, 3] uint8 -> what ViT-S/14 says of pictures, [I, 2, 384]: the class token, the mean of the patches."""
    return features("vit_s14", stack).reshape(len(stack), 2, WIDTH)


def texts(words: np.ndarray) -> np.ndarray:
    """Word pieces [Q, L] int32 -> what MiniLM says of texts, [Q, 384]."""
    return features("minilm", words)


def standardised(
    arrays: Mapping[str, np.ndarray], known: Mapping[str, tuple[np.ndarray, np.ndarray]]
) -> dict[str, np.ndarray]:
    """The arrays, those of `known` minus the mean and divided by the deviation that it has for them.

    >>> standardised({"read": np.array([[3.0]])}, {"read": (np.array([1.0]), np.array([2.0]))})["read"].round(3)
    array([[1.]])
    """
    scaled = lambda name, mean, deviation: (arrays[name] - mean) / (deviation + 1e-6)
    return {**arrays, **{name: scaled(name, *pair) for name, pair in known.items()}}


def load(
    folder: str, known: Mapping[str, tuple[np.ndarray, np.ndarray]], asked_for: Mapping[str, Any]
) -> tuple[vqa.Tasks, Callable[[str], dict[str, np.ndarray]]]:
    """(the tasks, without their pictures; from a split to all clients' questions through the frozen encoders).

    known: mean and deviation by which features are standardised. asked_for: train, valid, test and seed as `vqa.load`
    takes them. Of a split there are `read`, `seen`, `target`, `answers` and `client`, as of vqa.all_examples.
    """
    tasks = vqa.load(asked(folder), (SIDE, SIDE), PATCH, LENGTH, tokenizer=tokenizer(), **asked_for)
    seen, kept = pictures(tasks.image), tasks._replace(image=tasks.image[:0])
    parts = {(name, split): arrays for name, task in tasks.tasks.items() for split, arrays in task.splits.items()}
    said = texts(np.concatenate([arrays["question"] for arrays in parts.values()]))
    ends = np.cumsum([len(arrays["question"]) for arrays in parts.values()])[:-1]
    read = dict(zip(parts, np.split(said, ends), strict=True))
    of = functools.partial(examples, kept, seen, read)
    return kept, lambda split: standardised(of(split), known)


def examples(
    tasks: vqa.Tasks, seen: np.ndarray, read: Mapping[tuple[str, str], np.ndarray], split: str
) -> dict[str, np.ndarray]:
    """A split of all clients. seen: of every picture, [I, 2, 384]; read: (client, split) -> of its questions."""
    found = []
    for number, (name, task) in enumerate(tasks.tasks.items()):
        arrays = task.splits[split]
        own = {"seen": seen[arrays["image_row"]], "read": read[name, split], "target": arrays["target"]}
        numbers = {"answers": len(task.answers), "client": number}
        found.append(own | {key: np.full(len(own["read"]), one, np.int32) for key, one in numbers.items()})
    return {key: np.concatenate([own[key] for own in found]) for key in found[0]}
