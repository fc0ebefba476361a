"""Tasks: what each client is asked, in arrays of the same shapes for all clients of a cohort."""

import os
import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from fedjax_mm.data import arguments, wordpiece
from fedjax_mm.data.vqa import pictures
from fedjax_mm.data.vqa.annotations import Question
from fedjax_mm.data.vqa.answers import soft_scores, targets, vocabulary
from fedjax_mm.streamed import concatenated, is_streamed

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class Source(NamedTuple):
    """A client's questions as they come, and their pictures [I, h, w, 3] uint8 where these are in no files, or are
    decoded in another way: a Streamed, such as of data.streams.files, whose pictures have the size of the bucket."""

    train: Sequence[Question]
    test: Sequence[Question]
    pictures: Any = None


class Task(NamedTuple):
    """One client's questions.

    answers: the answers that the task knows, at most K, best first. The control always says answer 0.
    splits: train, valid, test -> `image_row` [E] int32 in `Tasks.image`, `question` [E, L] int32 word pieces (0 is
        padding), `target` [E, K] float32, the score of each answer (0 beyond its own `answers`).
    text: split -> [E] str.
    unknown: split -> how many questions have no known answer. They are left out of train; in valid and test they stay
        and score 0, unless the tasks were made with `drop_unknown`.
    """

    answers: tuple[str, ...]
    splits: Mapping[str, Mapping[str, np.ndarray]]
    text: Mapping[str, np.ndarray]
    unknown: Mapping[str, int]


class Tasks(NamedTuple):
    """The tasks of a cohort by client, and the pictures that their questions share.

    tasks: client name -> its task.
    image: [I, H, W, 3] uint8, zeros to the right of and below each picture; an array in memory, or a Streamed.
    size: [I, 2] int32, the height and width of each picture.
    """

    tasks: Mapping[str, Task]
    image: Any
    size: np.ndarray
    tokenizer: "Tokenizer"


def load(
    sources: Mapping[str, Source | Mapping[str, Sequence[Question]]],
    image: tuple[int, int] = (96, 96),
    patch: int = 16,
    length: int = 40,
    answers: int = 100,
    train: int | None = None,
    valid: int = 0,
    test: int | None = None,
    tokenizer: "Tokenizer | str | os.PathLike | None" = None,
    vocabulary_size: int = 4000,
    drop_unknown: bool = False,
    seed: int = 0,
    resize: pictures.Resize | None = None,
    stream: bool = False,
) -> Tasks:
    """Returns one task per source, all with the same shapes.

    sources: client name -> questions.
    image: the bucket (H, W) in pixels, multiples of `patch`; pictures keep their aspect ratio (see `pictures.fit`).
    length: how many word pieces a question has, L.
    answers: the most answers that a task knows; K is the longest list of any task.
    train, valid, test: at most so many questions of each task, drawn by the seed; None is all. valid is held out of
        train picture by picture, before answers are counted; a picture in both train and test is an error.
    tokenizer: one, or the path of its vocab.txt or tokenizer.json, or None: `vocabulary_size` word pieces are fitted to
        the train questions of all tasks.
    drop_unknown: whether questions without a known answer are left out of valid and test too, as in FedDAT's released
        code, which flatters. By default they stay, and nobody can score on them.
    resize: how large a picture is in the bucket. With `models.vilt.resized_size` it has as many patches as in ViLT's
        own batches; a bucket that holds all shapes is then (608, 608). `lambda *sides: image` fills it, as ALBEF takes
        pictures. None: it is scaled to touch the bucket.
    stream: whether pictures in files stay there, and are decoded as steps need them (see data.streams).

    What a task gets does not depend on which other tasks there are (except for the tokenizer and K).
    Raises ValueError or FileNotFoundError naming the task or the file.
    """
    arguments.check_whole(1, patch=patch, answers=answers)
    arguments.check_whole(0, valid=valid, seed=seed)
    arguments.check_limit(train=train, test=test)
    _check_bucket(image, patch)
    if not isinstance(sources, Mapping) or not sources:
        raise ValueError("sources is empty or no mapping; give at least one client's questions by its name")
    numbers = {"train": train, "valid": valid, "test": test}
    whole = {n: s if isinstance(s, Source) else Source(**cast(Mapping[str, Any], s)) for n, s in sources.items()}
    chosen = {name: _choose(name, s, numbers, answers, drop_unknown, seed) for name, s in whole.items()}
    asked = [question.text for _, splits, _ in chosen.values() for question in splits["train"]]
    tokenizer = wordpiece.choose(tokenizer, asked, vocabulary_size)
    width = max(len(known) for known, _, _ in chosen.values())
    tasks, images, sizes, start = {}, [], [], 0
    for name, (known, splits, unknown) in chosen.items():
        keys = list(dict.fromkeys(question.image for questions in splits.values() for question in questions))
        row = {key: start + place for place, key in enumerate(keys)}
        start += len(keys)
        fitted, fitted_sizes = _pictures(whole[name].pictures, keys, (image, patch, resize), stream)
        images, sizes = [*images, fitted], [*sizes, fitted_sizes]
        arrays = {split: _arrays(own, known, row, tokenizer, length, width) for split, own in splits.items()}
        text = {split: np.array([question.text for question in own], str) for split, own in splits.items()}
        tasks[name] = Task(known, arrays, text, unknown)
    everything = concatenated(images) if any(map(is_streamed, images)) else np.concatenate(images)
    return Tasks(tasks, everything, np.concatenate(sizes), tokenizer)


def _check_bucket(image: Any, patch: int) -> None:
    sides = tuple(image) if isinstance(image, Sequence) and not isinstance(image, str) else ()
    if len(sides) != 2 or not all(isinstance(side, int) and side >= patch and side % patch == 0 for side in sides):
        raise ValueError(f"image is {image!r}; give (height, width), multiples of patch, {patch}")


def _pictures(
    stack: Any,
    keys: Sequence[str | int],
    how: tuple[tuple[int, int], int, pictures.Resize | None],
    stream: bool,
) -> tuple[Any, np.ndarray]:
    """The pictures of one task, and their sizes. how: the bucket, the patch and the rule."""
    if is_streamed(stack):
        if stack.shape[1:3] != tuple(how[0]):
            raise ValueError(f"pictures are {[*stack.shape[1:3]]}, and the bucket {[*how[0]]}; give them its size")
        return stack.view(np.array(keys)), np.tile(np.array(how[0], np.int32), (len(keys), 1))
    if stack is not None:
        return pictures.fit_all(stack[cast(list[int], keys)], *how)
    return (pictures.stream if stream else pictures.read_all)(cast(list[str], keys), *how)


def _arrays(
    asked: Sequence[Question],
    known: Sequence[str],
    row: Mapping[str | int, int],
    tokenizer: "Tokenizer",
    length: int,
    width: int,
) -> dict[str, np.ndarray]:
    return {
        "image_row": np.array([row[question.image] for question in asked], np.int32),
        "question": wordpiece.encode(tokenizer, [question.text for question in asked], length),
        "target": targets([soft_scores(question.answers) for question in asked], known, width),
    }


def _choose(
    name: str, source: Source, numbers: Mapping[str, int | None], answers: int, drop_unknown: bool, seed: int
) -> tuple[tuple[str, ...], dict[str, list[Question]], dict[str, int]]:
    """The known answers, the questions of each split, and how many have no known answer (in train: before these go)."""
    for split in ("train", "test"):
        if not getattr(source, split):
            raise ValueError(f"{name} has no {split} questions")
    if both := {q.image for q in source.train} & {q.image for q in source.test}:
        raise ValueError(
            f"{name} has {len(both)} pictures in both train and test, one of them {min(both)}; keep a picture in one"
        )
    # A stream of its own, so that a client's data do not depend on its place among the others.
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    train, valid = _hold_out(name, source.train, numbers["valid"] or 0, rng)
    splits = {"train": train, "valid": valid, "test": list(source.test)}
    scores = {split: [soft_scores(question.answers) for question in qs] for split, qs in splits.items()}
    known = vocabulary(scores["train"], answers)
    unknown = {}
    for split in splits:
        answerable = [not score.keys().isdisjoint(known) for score in scores[split]]
        pairs = list(zip(splits[split], answerable, strict=True))
        if split == "train":
            unknown[split] = answerable.count(False)
        if split == "train" or drop_unknown:
            pairs = [pair for pair in pairs if pair[1]]
        arguments.say_fewer(f"{split} of {name}", len(pairs), **{split: numbers[split]})
        pairs = _draw(pairs, numbers[split], rng)
        if split != "train":
            unknown[split] = sum(not ok for _, ok in pairs)
        splits[split] = [question for question, _ in pairs]
    return known, splits, unknown


def _hold_out(
    name: str, questions: Sequence[Question], number: int, rng: np.random.Generator
) -> tuple[list[Question], list[Question]]:
    """(train, valid): random pictures until their questions are at least `number`."""
    keys = list(dict.fromkeys(question.image for question in questions))
    place = {key: p for p, key in enumerate(keys)}
    picture = np.array([place[question.image] for question in questions])
    order = rng.permutation(len(keys))
    asked = np.cumsum(np.bincount(picture)[order])
    out = np.isin(picture, order[: np.searchsorted(asked, number) + 1]) if number else np.zeros(len(picture), bool)
    if out.all():
        raise ValueError(f"valid is {number}, and {name} has {len(questions)} train questions; train must keep some")
    valid = [question for question, goes in zip(questions, out, strict=True) if goes]
    return [question for question, goes in zip(questions, out, strict=True) if not goes], valid


def _draw(pairs: list, number: int | None, rng: np.random.Generator) -> list:
    """At most so many of them, drawn at random, in their order."""
    if number is None or number >= len(pairs):
        return pairs
    return [pairs[place] for place in np.sort(rng.choice(len(pairs), number, replace=False))]
