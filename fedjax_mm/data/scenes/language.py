"""What is said: the closed vocabulary, and captions that leave things out."""

import itertools
import random
import re
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from fedjax_mm.data.scenes.world import COLOURS, SHAPES, SIZES, Seed, World, stream

LENGTH = 32  # tokens of a text; the longest caption and the longest question fit
MARGIN = 12  # hundredths of the picture by which something must be left of (above) something to be asked or said so
ANSWERS = (*COLOURS, *SHAPES, *"01234", "yes", "no", "left", "right", "above", "below")

# How captions may say it; questions use the plain word.
SYNONYMS = {
    **{word: (word,) for word in (*COLOURS, *SHAPES, *SIZES)},
    "circle": ("circle", "disc"),
    "square": ("square", "box"),
    "cross": ("cross", "plus"),
    "moon": ("moon", "crescent"),
    "red": ("red", "crimson"),
    "purple": ("purple", "violet"),
    "black": ("black", "dark"),
    "small": ("small", "little", "tiny"),
    "medium": ("medium", "mid-sized"),
    "large": ("large", "big", "huge"),
}
THINGS = ("shape", "thing", "object")
RELATIONS = {
    "left": ("left of", "to the left of"),
    "right": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
OPENINGS = ("", "", "there is ", "a picture of ", "here we see ", "this image shows ", "an image with ")
JOINTS = (" and ", " with ", " next to ", " together with ")
ROWS, COLUMNS = ("at the top", "", "at the bottom"), ("left", "", "right")
DROP = {"size": 0.5, "colour": 0.2, "shape": 0.25}  # how often a caption keeps an attribute to itself
DROP_PLACE = 0.5
PLACES = ("in the middle", "on the left", "on the right", *ROWS, *(f"{row} {side}" for row in ROWS for side in COLUMNS))

QUESTIONS = {
    "colour": ("what colour is {}?", "which colour does {} have?"),
    "shape": ("what shape is {}?", "which shape is {}?"),
    "count": ("how many {} are there?", "count the {}."),
    "relation": ("is {} {} {}?",),
    "where": ("where is {} as seen from {}?", "on which side of {1} is {0}?"),
    "existence": ("is there {}?", "do you see {}?"),
    "more": ("are there more {} than {}?",),
    "same": ("are {} and {} of the same {}?",),
    "larger": ("is {} {} than {}?",),
    "both": ("is there {} and {}?",),
    "either": ("is there {} or {}?",),
    "without": ("is there {} that is not {}?",),
}
EXTREMES = ("leftmost", "rightmost", "topmost", "lowest", "largest")


def words(text: str) -> list[str]:
    """Returns the lower-case words of a text, without punctuation."""
    return re.findall(r"[a-z0-9-]+", text.lower())


def plural(noun: str) -> str:
    """Returns the plural of a noun."""
    return f"{noun}es" if noun.endswith("s") else f"{noun}s"


_SAID = (
    *("a", "an", "the", "object", "objects", "larger", "smaller"),
    *itertools.chain(ANSWERS, THINGS, OPENINGS, JOINTS, PLACES, EXTREMES),
    *itertools.chain(*SYNONYMS.values(), *RELATIONS.values(), *QUESTIONS.values()),
    *(plural(shape) for shape in SHAPES),
)
VOCABULARY = ("<pad>", "<unknown>", *sorted({word for text in _SAID for word in words(text)}))
_NUMBER = {word: number for number, word in enumerate(VOCABULARY)}


class Thing(NamedTuple):
    """One object of a scene, in words, with its place in hundredths of the picture."""

    shape: str
    colour: str
    size: str
    x: int
    y: int


def things(world: World) -> list[list[Thing]]:
    """Returns the objects of each scene in words, in the order of the world's columns."""
    columns = (world.shape.tolist(), world.colour.tolist(), world.size.tolist(), world.x.tolist(), world.y.tolist())
    return [
        [Thing(SHAPES[s], COLOURS[c], SIZES[z], x, y) for s, c, z, x, y in zip(*scene, strict=True) if s >= 0]
        for scene in zip(*columns, strict=True)
    ]


def tokenize(texts: Iterable[str], length: int = LENGTH) -> np.ndarray:
    """Returns word numbers in VOCABULARY [M, length] int32: 0 after the end, 1 for unknown words, the rest cut off."""
    if isinstance(texts, str):
        raise ValueError(f"texts is the one string {texts!r}; give a list of texts")
    tokens = [[_NUMBER.get(word, 1) for word in words(text)[:length]] for text in texts]
    return np.asarray([row + [0] * (length - len(row)) for row in tokens], np.int32).reshape(-1, length)


def article(words: str) -> str:
    """Returns the words with "a" or "an" before them."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def ahead(relation: str, a: Thing, b: Thing) -> int:
    """Returns how far a is left of (right of, above, below) b, in hundredths; negative on the other side."""
    return {"left": b.x - a.x, "right": a.x - b.x, "above": b.y - a.y, "below": a.y - b.y}[relation]


# ---- captions ----


def captions(world: World, per_scene: int = 1, seed: Seed = 0) -> np.ndarray:
    """Returns `per_scene` captions of each scene, [M, per_scene] str.

    A caption mentions one to three of the objects, nearly always the largest, in random order. It leaves out some
    sizes, colours, shapes and places, so that a text tells less than its picture.
    """
    rng = random.Random(int(stream(seed, "captions").integers(2**62)))
    texts = [[_caption(scene, rng) for _ in range(per_scene)] for scene in things(world)]
    return np.asarray(texts, str).reshape(-1, per_scene)


def _caption(scene: list[Thing], rng: random.Random) -> str:
    most = min(2, len(scene) - 1)
    others = rng.sample(scene[1:], max(rng.randint(0, most), rng.randint(0, most)))
    mentioned = others if others and rng.random() < 0.1 else [scene[0], *others]
    rng.shuffle(mentioned)
    text = rng.choice(OPENINGS) + _mention(mentioned[0], rng)
    for before, thing in itertools.pairwise(mentioned):
        text += _joint(before, thing, rng) + _mention(thing, rng)
    return text if rng.random() < DROP_PLACE else f"{text} {_place(mentioned[-1])}"


def _mention(thing: Thing, rng: random.Random) -> str:
    kept = {slot: rng.random() >= drop for slot, drop in DROP.items()}
    adjectives = [rng.choice(SYNONYMS[getattr(thing, slot)]) for slot in ("size", "colour") if kept[slot]]
    noun = rng.choice(SYNONYMS[thing.shape] if kept["shape"] else THINGS)
    return article(" ".join([*adjectives, noun]))


def _joint(a: Thing, b: Thing, rng: random.Random) -> str:
    relations = [name for name in RELATIONS if ahead(name, a, b) >= MARGIN]
    if relations and rng.random() < 0.7:
        return f" {rng.choice(RELATIONS[rng.choice(relations)])} "
    return rng.choice(JOINTS)


def _place(thing: Thing) -> str:
    row, side = ROWS[thing.y * 3 // 100], COLUMNS[thing.x * 3 // 100]
    if row:
        return f"{row} {side}".strip()
    return f"on the {side}" if side else "in the middle"
