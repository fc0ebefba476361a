"""What is asked: questions of several types, each with one right answer from a closed list."""

import functools
import itertools
import random
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from fedjax_mm.data.scenes.language import (
    ANSWERS,
    EXTREMES,
    MARGIN,
    QUESTIONS,
    RELATIONS,
    Thing,
    ahead,
    article,
    plural,
    things,
    tokenize,
)
from fedjax_mm.data.scenes.world import COLOURS, SHAPES, SIZES, Seed, World, stream


class Questions(NamedTuple):
    """Q questions.

    image: [Q] int32, the row of the scene.  tokens: [Q, LENGTH] int32.  answer: [Q] int32 in ANSWERS.
    type: [Q] int32 in TYPES.  text: [Q] str.
    """

    image: np.ndarray
    tokens: np.ndarray
    answer: np.ndarray
    type: np.ndarray
    text: np.ndarray


# Each type lists, kind by kind, every (question, answer) that a scene offers.
Kind = list[tuple[str, str]]


def _ways(kind: str, *parts: str) -> list[str]:
    return [way.format(*parts) for way in QUESTIONS[kind]]


def _kind(kind: str, offers: Iterable[tuple[tuple[str, ...], str]]) -> Kind:
    return [(text, answer) for parts, answer in offers for text in _ways(kind, *parts)]


def _yes_no(kind: str, offers: Iterable[tuple[tuple[str, ...], bool]]) -> Kind:
    """A kind is asked only where the scene offers both answers; otherwise the kind would give the answer away."""
    asked = _kind(kind, ((parts, "yes" if true else "no") for parts, true in offers))
    return asked if len({answer for _, answer in asked}) == 2 else []


def _alone(scene: list[Thing], slot: str) -> list[Thing]:
    """The objects that their shape (colour, size) suffices to name."""
    values = [getattr(thing, slot) for thing in scene]
    return [thing for thing in scene if values.count(getattr(thing, slot)) == 1]


def _extremes(scene: list[Thing]) -> list[tuple[str, Thing]]:
    found = []
    for word, relation in zip(EXTREMES, RELATIONS, strict=False):
        first = max(scene, key=lambda thing: ahead(relation, thing, scene[0]))
        if all(ahead(relation, first, other) >= MARGIN for other in scene if other is not first):
            found.append((f"the {word} object", first))
    return [*found, ("the largest object", scene[0])] if len(scene) > 1 else []


def _the(thing: Thing) -> str:
    return f"the {thing.colour} {thing.shape}"


def _colour(scene):
    by_shape = [((f"the {thing.shape}",), thing.colour) for thing in _alone(scene, "shape")]
    return [_kind("colour", by_shape), _kind("colour", (((name,), thing.colour) for name, thing in _extremes(scene)))]


def _shape(scene):
    by_colour = [((f"the {thing.colour} object",), thing.shape) for thing in _alone(scene, "colour")]
    return [_kind("shape", by_colour), _kind("shape", (((name,), thing.shape) for name, thing in _extremes(scene)))]


def _count(scene):
    def by(slot, values, say):
        present = [getattr(thing, slot) for thing in scene]
        return _kind("count", (((say(value),), str(present.count(value))) for value in values))

    return [
        _kind("count", [(("objects",), str(len(scene)))]),
        by("shape", SHAPES, plural),
        by("colour", COLOURS, "{} objects".format),
        by("size", SIZES, "{} objects".format),
    ]


def _relation(scene):
    clear, where = [], []
    for a, b in itertools.permutations(scene, 2):
        lead = {name: ahead(name, a, b) for name in RELATIONS}
        clear += [((_the(a), RELATIONS[name][0], _the(b)), d > 0) for name, d in lead.items() if abs(d) >= MARGIN]
        second, first = sorted(lead, key=lead.__getitem__)[2:]
        if lead[first] >= lead[second] + MARGIN:  # plainly more to the left than above, say
            where.append(((_the(a), _the(b)), first))
    return [_yes_no("relation", clear), _kind("where", where)]


def _existence(scene):
    kinds = [("colour", "shape", COLOURS, SHAPES), ("size", "shape", SIZES, SHAPES), ("size", "colour", SIZES, COLOURS)]
    return [_yes_no("existence", _combinations(scene, *kind)) for kind in kinds]


def _combinations(scene, slot, other, values, others):
    """Pairs of attributes of which the scene has at least one, so that seeing one of them does not settle it."""
    held = {(getattr(thing, slot), getattr(thing, other)) for thing in scene}
    seen, seen_other = {a for a, _ in held}, {b for _, b in held}
    noun = "" if other == "shape" else " object"
    for a, b in itertools.product(values, others):
        if a in seen or b in seen_other:
            yield (article(f"{a} {b}{noun}"),), (a, b) in held


def _comparison(scene):
    shapes, colours = [t.shape for t in scene], [t.colour for t in scene]
    more = [
        ((plural(a), plural(b)), shapes.count(a) > shapes.count(b))
        for a, b in itertools.permutations(dict.fromkeys(shapes), 2)
    ] + [
        ((f"{a} objects", f"{b} objects"), colours.count(a) > colours.count(b))
        for a, b in itertools.permutations(dict.fromkeys(colours), 2)
    ]
    larger = [
        ((_the(a), word, _the(b)), (SIZES.index(a.size) > SIZES.index(b.size)) == (word == "larger"))
        for a, b in itertools.permutations(scene, 2)
        for word in ("larger", "smaller")
        if a.size != b.size
    ]
    by_shape, by_colour = _alone(scene, "shape"), _alone(scene, "colour")
    same_colour = [
        ((f"the {a.shape}", f"the {b.shape}", "colour"), a.colour == b.colour)
        for a, b in itertools.permutations(by_shape, 2)
    ]
    same_shape = [
        ((f"the {a.colour} object", f"the {b.colour} object", "shape"), a.shape == b.shape)
        for a, b in itertools.permutations(by_colour, 2)
    ]
    return [_yes_no("more", more), _yes_no("larger", larger), _yes_no("same", same_colour), _yes_no("same", same_shape)]


def _logic(scene):
    both, either = [], []
    for colour, shape in itertools.product(COLOURS, SHAPES):
        parts = (article(f"{colour} object"), article(shape))
        held = [any(thing.colour == colour for thing in scene), any(thing.shape == shape for thing in scene)]
        # Half of each question is settled by one glance: what matters is the other half.
        both += [(parts, all(held))] if any(held) else []
        either += [] if all(held) else [(parts, any(held))]
    without = [
        ((article(shape), colour), any(thing.shape == shape and thing.colour != colour for thing in scene))
        for shape in dict.fromkeys(thing.shape for thing in scene)
        for colour in dict.fromkeys(thing.colour for thing in scene)
    ]
    return [_yes_no("both", both), _yes_no("either", either), _yes_no("without", without)]


_OFFERS = {
    "colour": _colour,
    "shape": _shape,
    "count": _count,
    "relation": _relation,
    "existence": _existence,
    "comparison": _comparison,
    "logic": _logic,
}
TYPES = tuple(_OFFERS)


def ask(world: World, types: Sequence[str] = TYPES, per_scene: int = 1, seed: Seed = 0) -> Questions:
    """Returns up to `per_scene` different questions about each scene, their types drawn evenly from `types`.

    The kind of question is drawn first, then the answer evenly among those the scene offers, then the wording: so
    neither the type nor the wording gives the answer away. A scene that offers no question of these types (nothing
    can be compared in a scene of one object) has none.
    """
    if isinstance(types, str) or not types or not all(isinstance(name, str) and name in _OFFERS for name in types):
        raise ValueError(f"types is {types!r}; choose a tuple from the known types {', '.join(TYPES)}")
    rng = random.Random(int(stream(seed, "questions").integers(2**62)))
    asked = [
        (row, *question)
        for row, scene in enumerate(things(world))
        for question in _interview(scene, types, per_scene, rng)
    ]
    row, kind, text, answer = zip(*asked, strict=True) if asked else ((), (), (), ())
    return Questions(
        image=np.asarray(row, np.int32),
        tokens=tokenize(text),
        answer=np.asarray([ANSWERS.index(word) for word in answer], np.int32),
        type=np.asarray([TYPES.index(name) for name in kind], np.int32),
        text=np.asarray(text, str),
    )


def _interview(scene: list[Thing], types: Sequence[str], per_scene: int, rng: random.Random):
    offers = functools.cache(lambda name: _OFFERS[name](scene))
    for _ in range(per_scene):
        for name in rng.sample(types, len(types)):  # the first that applies
            kinds = [kind for kind in offers(name) if kind]
            if kinds:
                kind = rng.choice(kinds)
                answer = rng.choice(list(dict.fromkeys(answer for _, answer in kind)))
                text = rng.choice([text for text, right in kind if right == answer])
                kind.remove((text, answer))
                yield name, text, answer
                break
