"""FedDAT's three benchmarks of clients with different questions, from the files that the data's authors publish."""

import os
import pathlib
from collections.abc import Callable

from fedjax_mm.data.vqa import annotations
from fedjax_mm.data.vqa.annotations import Question

Client = dict[str, list[Question]]
FUNCTIONS = ("attribute", "knowledge", "logical", "object", "relation")
SCENES = ("a#ShopAndDining", "b#Workplace", "c#HomeOrHotel", "d#Transportation", "e#SportAndLeisure", "f#Outdoors")
BENCHMARKS = ("domain", "function", "scene")


def official(folder: str | os.PathLike, benchmark: str) -> dict[str, Client]:
    """Returns client -> {"train": questions, "test": questions} of one benchmark of FedDAT (arXiv 2308.12305).

    benchmark: what differs between clients. "domain": five datasets, a client each, in folders of `folder` that have
    the authors' files and all their pictures in `images`:
        aqua         train.json, test.json
        abstract     OpenEnded_abstract_v002_<split>_questions.json and abstract_v002_<split>_annotations.json, of
                     train2015 and val2015
        vizwiz       train.json, val.json
        coco_qa      train and test, folders of questions.txt, answers.txt, img_ids.txt and types.txt
        gqa          train_balanced_questions.json, val_balanced_questions.json
    "function" and "scene": parts of CLOVE, <folder>/clove/function/functional_<part>_<split>.json with five parts, or
    <folder>/clove/scene/scene_<part>_<split>.json with six, of train and val; pictures of Visual Genome are in
    <folder>/clove/vg. CLOVE's sixth function, texts in pictures, is no client in FedDAT.

    Where the answers of a test split are not published, clients are tested on val. Pictures are not read here.
    Raises FileNotFoundError or ValueError with the file that is missing or damaged, and where it comes from.
    """
    if benchmark not in BENCHMARKS:
        raise ValueError(f"benchmark is {benchmark!r}; there are {', '.join(BENCHMARKS)}")
    folder = pathlib.Path(folder)
    if benchmark == "domain":
        return {name: read(folder / name) for name, read in DOMAINS.items()}
    kind, parts = ("functional", FUNCTIONS) if benchmark == "function" else ("scene", SCENES)
    file = lambda part, split: folder / "clove" / benchmark / f"{kind}_{part}_{split}.json"
    read = lambda part, split: annotations.clove(file(part, split), folder / "clove")
    return {part.rpartition("#")[2]: {"train": read(part, "train"), "test": read(part, "val")} for part in parts}


def _aqua(folder: pathlib.Path) -> Client:
    return {split: annotations.aqua(folder / f"{split}.json", folder / "images") for split in ("train", "test")}


def _abstract(folder: pathlib.Path) -> Client:
    def read(split: str) -> list[Question]:
        asked = folder / f"OpenEnded_abstract_v002_{split}_questions.json"
        return annotations.vqa(asked, folder / f"abstract_v002_{split}_annotations.json", folder / "images")

    return {"train": read("train2015"), "test": read("val2015")}


def _vizwiz(folder: pathlib.Path) -> Client:
    read = lambda split: annotations.vizwiz(folder / f"{split}.json", folder / "images")
    return {"train": read("train"), "test": read("val")}


def _coco_qa(folder: pathlib.Path) -> Client:
    read = lambda split, name: annotations.coco_qa(folder / split, folder / "images", name)
    return {
        "train": read("train", "COCO_train2014_{:012d}.jpg"),
        "test": read("test", "COCO_val2014_{:012d}.jpg"),
    }


def _gqa(folder: pathlib.Path) -> Client:
    read = lambda split: annotations.gqa(folder / f"{split}_balanced_questions.json", folder / "images")
    return {"train": read("train"), "test": read("val")}


DOMAINS: dict[str, Callable[[pathlib.Path], Client]] = {
    "aqua": _aqua,
    "abstract": _abstract,
    "vizwiz": _vizwiz,
    "coco_qa": _coco_qa,
    "gqa": _gqa,
}
