"""A world of coloured shapes from a seed: pictures in several styles, captions, and questions with answers.

It follows CLEVR (Johnson et al. 2017) and easy-VQA, and is small enough to be made on the spot. Everything is a pure
function of the seed; the style changes how a scene is drawn, not what there is to see or to say.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fedjax_mm.data import arguments
from fedjax_mm.data.dataset import Dataset
from fedjax_mm.data.scenes import language, render, vqa, world
from fedjax_mm.data.scenes.language import ANSWERS, LENGTH, VOCABULARY, tokenize
from fedjax_mm.data.scenes.vqa import TYPES, Questions
from fedjax_mm.data.scenes.world import COLOURS, SHAPES, SIZES, Seed

__all__ = [
    "ANSWERS",
    "COLOURS",
    "LENGTH",
    "SHAPES",
    "SIZES",
    "STYLES",
    "TYPES",
    "VOCABULARY",
    "Questions",
    "Scenes",
    "captions",
    "load",
    "make",
    "questions",
    "tokenize",
]

STYLES = tuple(render.STYLES)
OTHERS = {"valid": 500, "proxy": 500, "labelled": 500, "test": 1000}


class Scenes(NamedTuple):
    """M scenes: pictures, what is in them, and one caption each.

    image: [M, size, size, 3] uint8.  text: [M] str.  tokens: [M, LENGTH] int32, word numbers in VOCABULARY, 0 = pad.
    shape, colour, size: [M, 4] int32 in SHAPES, COLOURS, SIZES; x, y: the centre in hundredths of the picture, from
    the left and from the top; turn: 0..20 for -10..10 degrees. All -1 where there is no object.
    Object 0 is the largest of its scene.
    """

    image: np.ndarray
    text: np.ndarray
    tokens: np.ndarray
    shape: np.ndarray
    colour: np.ndarray
    size: np.ndarray
    x: np.ndarray
    y: np.ndarray
    turn: np.ndarray


def make(num: int, seed: Seed, style: str = "flat", size: int = 32) -> Scenes:
    """Returns `num` scenes drawn in one of STYLES as pictures of `size` x `size` pixels (16 or more).

    seed: a number of 0 or more, or several.

    >>> scenes = make(2, seed=0)
    >>> scenes.image.shape, scenes.text[0].item()
    ((2, 32, 32, 3), 'this image shows a mid-sized green plus')
    """
    arguments.check_whole(1, num=num, size=size)
    truth = world.populate(num, seed)
    text = language.captions(truth, 1, seed)[:, 0]
    return Scenes(render.draw(truth, style, size, seed), text, tokenize(text), *truth)


def captions(scenes: Scenes, per_scene: int = 5, seed: Seed = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns further captions for retrieval: text [Q] str, tokens [Q, LENGTH] int32, and picture row [Q] int32."""
    arguments.check_whole(1, per_scene=per_scene)
    text = language.captions(_truth(scenes), per_scene, seed).reshape(-1)
    return text, tokenize(text), np.repeat(np.arange(len(scenes.shape), dtype=np.int32), per_scene)


def questions(scenes: Scenes, types: Sequence[str] = TYPES, per_scene: int = 1, seed: Seed = 0) -> Questions:
    """Returns up to `per_scene` questions about each scene, their types drawn evenly from `types` (some of TYPES).

    The answers a scene offers are drawn evenly, so that neither type nor wording gives them away. A scene to which
    no question of these types applies (nothing can be compared in a scene of one object) has none.
    """
    arguments.check_whole(1, per_scene=per_scene)
    return vqa.ask(_truth(scenes), types, per_scene, seed)


def load(
    task: str = "classify",
    num_train: int = 4000,
    styles: Sequence[str] = ("flat",),
    size: int = 32,
    seed: int = 0,
    types: Sequence[str] = TYPES,
    others: Mapping[str, int] = OTHERS,
) -> Dataset:
    """Returns modalities `image` [M, size, size, 3] uint8 and `text` [M, LENGTH] int32, `label` [M] and `style` [M].

    task: with "classify" the text is a caption and the label the shape of the largest object; with "vqa" the text is a
        question (of one of `types`) and the label its answer in ANSWERS.
    num_train: how many scenes the split `train` has.
    styles: each split has equally many scenes of each style; `style` [M] int32 is the place in this list.
    size: pixels of a side.
    types: some of TYPES, for "vqa".
    others: how many scenes the other splits have. No scene is in two splits.
    """
    if task not in ("classify", "vqa"):
        raise ValueError(f'task is {task!r}; it can be "classify" or "vqa"')
    if isinstance(styles, str) or not styles or set(styles) - set(STYLES):
        raise ValueError(f"styles is {styles!r}; give a tuple of the known styles {', '.join(STYLES)}")
    if not isinstance(others, Mapping) or "train" in others:
        raise ValueError(f"others is {others!r}; give a mapping from the other splits to numbers of scenes")
    sizes = {"train": num_train, **others}
    arguments.check_whole(0, seed=seed)
    arguments.check_whole(len(styles), num_train=num_train, **{f"others[{name!r}]": n for name, n in others.items()})
    splits = {
        name: _interleave(
            [
                _examples(task, _share(total, len(styles), place), style, place, size, (seed, number, place), types)
                for place, style in enumerate(styles)
            ]
        )
        for number, (name, total) in enumerate(sizes.items())
    }
    return Dataset(
        name=f"scenes_{task}",
        splits=splits,
        modalities=("image", "text"),
        classes=SHAPES if task == "classify" else ANSWERS,
    )


def _truth(scenes: Scenes) -> world.World:
    return world.World(*(getattr(scenes, field) for field in world.World._fields))


def _share(total: int, parts: int, place: int) -> int:
    return total // parts + (place < total % parts)


def _examples(task: str, num: int, style: str, place: int, size: int, seed: Seed, types: Sequence[str]):
    if task == "classify":
        scenes = make(num, seed, style, size)
        image, text, label = scenes.image, scenes.tokens, scenes.shape[:, 0]
    else:
        truth = world.populate(2 * num + 50, seed)  # more than needed: some scenes do not offer such a question
        asked = Questions(*(field[:num] for field in vqa.ask(truth, types, 1, seed)))
        if len(asked.text) < num:
            raise ValueError(
                f"types is {tuple(types)}, and {len(asked.text)} of {num} scenes have such a question; add other types"
            )
        drawn = world.World(*(field[asked.image] for field in truth))
        image, text, label = render.draw(drawn, style, size, seed), asked.tokens, asked.answer
    return {"image": image, "text": text, "label": label, "style": np.full(num, place, np.int32)}


def _interleave(parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Puts the styles in turn, so that the first rows of a split hold all of them."""
    order = np.argsort(np.concatenate([np.arange(len(part["label"])) for part in parts]), kind="stable")
    return {name: np.concatenate([part[name] for part in parts])[order] for name in parts[0]}
