"""Questions as their authors publish them: VQA v2 and Abstract, VizWiz, GQA, COCO-QA, AQUA and CLOVE.

A reader returns the list of questions of one split; choose among them by `type` for clients with different questions.
"""

import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from fedjax_mm.data.text_files import parse_json, read_lines

VQA = "https://visualqa.org/download.html"
VIZWIZ = "https://vizwiz.org/tasks-and-datasets/vqa"
GQA = "https://cs.stanford.edu/people/dorarad/gqa/download.html"
COCO_QA = "https://www.cs.toronto.edu/~mren/research/imageqa/data/cocoqa"
AQUA = "https://github.com/noagarcia/ArtVQA"
CLOVE = "https://github.com/showlab/CLVQA"
COCO_QA_TYPES = ("object", "number", "color", "location")


class Question(NamedTuple):
    """A question about a picture (the path of its file, or its row in an array): one answer, or one per annotator.

    type: what its source calls its kind ("number"), empty where it does not say.
    """

    image: str | int
    text: str
    answers: tuple[str, ...]
    type: str = ""


def kind_of(given: Any) -> str:
    """The kind of a question as its source says it, "" where it is null or absent."""
    if given is not None and not isinstance(given, str):
        raise TypeError(f"type is {given!r}")
    return given or ""


def vqa(questions: str | os.PathLike, answers: str | os.PathLike, images: str | os.PathLike) -> list[Question]:
    """Returns the questions of VQA v2 or VQA Abstract Scenes: ten answers each, type "yes/no", "number" or "other".

    questions: v2_OpenEnded_mscoco_train2014_questions.json or the like; answers: v2_mscoco_train2014_annotations.json;
    images: the folder of COCO_train2014_000000000009.jpg or abstract_v002_train2015_000000000009.png.
    """

    def read(asked: Any, given: Any) -> list[Question]:
        given = {entry["question_id"]: entry for entry in given["annotations"]}
        family = "COCO" if asked["data_type"] == "mscoco" else asked["data_type"]
        prefix, suffix = f"{family}_{asked['data_subtype']}", "jpg" if family == "COCO" else "png"
        return [
            Question(
                os.path.join(images, f"{prefix}_{entry['image_id']:012d}.{suffix}"),
                entry["question"],
                tuple(answer["answer"] for answer in given[entry["question_id"]]["answers"]),
                kind_of(given[entry["question_id"]].get("answer_type")),
            )
            for entry in asked["questions"]
        ]

    return _official(read, (questions, answers), "VQA", VQA)


def vizwiz(path: str | os.PathLike, images: str | os.PathLike) -> list[Question]:
    """Returns the questions of VizWiz-VQA: ten answers each, type as in VQA or "unanswerable".

    path: train.json or val.json (test.json has no answers).
    """

    def read(entries: Any) -> list[Question]:
        return [
            Question(
                os.path.join(images, entry["image"]),
                entry["question"],
                tuple(answer["answer"] for answer in entry["answers"]),
                kind_of(entry.get("answer_type")),
            )
            for entry in entries
        ]

    return _official(read, (path,), "VizWiz", VIZWIZ)


def gqa(path: str | os.PathLike, images: str | os.PathLike) -> list[Question]:
    """Returns the questions of GQA: one answer each, type attribute, category, global, object or relation.

    path: train_balanced_questions.json or the like. images: the folder of <imageId>.jpg.
    """

    def read(entries: Any) -> list[Question]:
        return [
            Question(
                os.path.join(images, f"{entry['imageId']}.jpg"),
                entry["question"],
                (entry["answer"],),
                kind_of((entry.get("types") or {}).get("semantic")),
            )
            for entry in entries.values()
        ]

    return _official(read, (path,), "GQA", GQA)


def coco_qa(
    folder: str | os.PathLike, images: str | os.PathLike, image_name: str = "COCO_train2014_{:012d}.jpg"
) -> list[Question]:
    """Returns the questions of COCO-QA: one answer each, type one of COCO_QA_TYPES.

    folder: holds questions.txt, answers.txt, img_ids.txt and types.txt. images: the folder of the pictures. image_name:
    the file name of an image number ("COCO_val2014_{:012d}.jpg" for the test folder, "{:012d}.jpg" for COCO's files of
    2017).
    """
    try:
        numbered = len({image_name.format(number) for number in (1, 2)}) == 2
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        numbered = False
    if not numbered:
        raise ValueError(f"image_name is {image_name!r}; give a name with one place for the number, as '{{:012d}}.jpg'")
    columns = {}
    for name in ("questions", "answers", "img_ids", "types"):
        path = pathlib.Path(folder) / f"{name}.txt"
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {path}; get it from {COCO_QA}")
        columns[name] = read_lines(path, f"get it again from {COCO_QA}")
    lines = {name: len(column) for name, column in columns.items()}
    if len(set(lines.values())) > 1 or not lines["questions"]:
        raise ValueError(f"the files of {folder} must have as many lines each, got {lines}; get them from {COCO_QA}")
    questions = []
    for number, (text, answer, image, kind) in enumerate(zip(*columns.values(), strict=True), 1):
        try:
            row, place = int(image), range(len(COCO_QA_TYPES)).index(int(kind))
            path = os.path.join(images, image_name.format(row))
            questions.append(Question(path, text, (answer,), COCO_QA_TYPES[place]))
        except ValueError as error:
            raise ValueError(
                f"line {number} of img_ids.txt or types.txt in {folder} is {image!r}, {kind!r}; "
                f"it must be a number, and one in 0..{len(COCO_QA_TYPES) - 1}"
            ) from error
    return questions


def aqua(path: str | os.PathLike, images: str | os.PathLike) -> list[Question]:
    """Returns the questions of AQUA about paintings: one answer each, type "knowledge" or "visual".

    path: train.json, val.json or test.json. images: the folder of SemArt's paintings. A question of type "knowledge"
    cannot be answered from the painting alone.
    """

    def read(entries: Any) -> list[Question]:
        return [
            Question(
                os.path.join(images, entry["image"]),
                entry["question"],
                (entry["answer"],),
                "knowledge" if entry["need_external_knowledge"] else "visual",
            )
            for entry in entries
        ]

    return _official(read, (path,), "AQUA", AQUA)


def clove(path: str | os.PathLike, images: str | os.PathLike) -> list[Question]:
    """Returns the questions of one stage of CLOVE: ten answers each, type the source of the picture, "vg" or "textvqa".

    path: scene_a#ShopAndDining_train.json, functional_attribute_val.json or the like. images: the folder that has a
    folder of <image_id>.jpg for each source.
    """

    def read(entries: Any) -> list[Question]:
        return [
            Question(
                os.path.join(images, entry["image_source"], f"{entry['image_id']}.jpg"),
                entry["question"],
                _listed(entry["answers"]),
                kind_of(entry["image_source"]),
            )
            for entry in entries
        ]

    return _official(read, (path,), "CLOVE", CLOVE)


def _listed(answers: Any) -> tuple[str, ...]:
    """The answers, one from each annotator; a text alone would fall into its letters."""
    if not isinstance(answers, list):
        raise TypeError(f"answers is {answers!r}")
    return tuple(answers)


def _official(
    read: Callable[..., list[Question]], paths: Sequence[str | os.PathLike], name: str, source: str
) -> list[Question]:
    contents = []
    for path in map(pathlib.Path, paths):
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {path}; get it from {source}")
        contents.append(parse_json(path.read_bytes(), path, f"get it again from {source}"))
    files = " and ".join(map(str, paths))
    try:
        questions = read(*contents)
        for question in questions:
            if not all(isinstance(text, str) for text in (question.image, question.text, *question.answers)):
                raise TypeError(f"{question.text!r}, {question.answers!r}")
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{files}: not {name}'s questions with answers ({error!r}; official test files have no answers); "
            f"get them again from {source}"
        ) from error
    if not questions or not all(question.answers for question in questions):
        raise ValueError(f"{files}: no questions, or questions without answers; get them again from {source}")
    return questions
