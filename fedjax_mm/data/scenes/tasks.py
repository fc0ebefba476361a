"""FedDAT's three kinds of heterogeneity in small: clients whose pictures, questions or things differ, from a seed.

Each function returns client name -> `vqa.Source`, for `vqa.load`; no two clients have a scene in common.
"""

from collections.abc import Callable, Sequence

import numpy as np

from fedjax_mm.data import arguments
from fedjax_mm.data.scenes import STYLES, TYPES, render, vqa, world
from fedjax_mm.data.scenes.language import ANSWERS
from fedjax_mm.data.scenes.world import SHAPES, World
from fedjax_mm.data.vqa import Question, Source

PLACE = 3  # shapes that occur in a client's scenes


def domain(
    train: int = 300, test: int = 200, size: int = 32, styles: Sequence[str] = STYLES, seed: int = 0
) -> dict[str, Source]:
    """Returns a client per style of drawing, all with the same types of questions.

    train, test: how many questions each client has of each. size: pixels of a side.
    """
    return {
        style: _source(train, test, size, style, TYPES, seed, place, _everywhere) for place, style in enumerate(styles)
    }


def function(
    train: int = 300, test: int = 200, size: int = 32, types: Sequence[str] = TYPES, style: str = "flat", seed: int = 0
) -> dict[str, Source]:
    """Returns a client per type of question, all about scenes in one style."""
    return {
        kind: _source(train, test, size, style, (kind,), seed, place, _everywhere) for place, kind in enumerate(types)
    }


def scene(
    train: int = 300, test: int = 200, size: int = 32, places: int = 6, style: str = "flat", seed: int = 0
) -> dict[str, Source]:
    """Returns up to six clients, each a place where three of the six shapes occur; no two have the same three.

    Questions are of all types. Client "circle-square-triangle" sees these alone, its neighbour squares, triangles and
    crosses. Questions may be asked about a shape that does not occur.
    """
    arguments.check_whole(1, places=places)
    if places > len(SHAPES):
        raise ValueError(f"places is {places!r}; it can be 1 to {len(SHAPES)}")
    sources = {}
    for place in range(places):
        shapes = [(place + k) % len(SHAPES) for k in range(PLACE)]
        here = lambda truth, shapes=shapes: (np.isin(truth.shape, shapes) | (truth.shape < 0)).all(axis=1)
        name = "-".join(SHAPES[shape] for shape in shapes)
        sources[name] = _source(train, test, size, style, TYPES, seed, place, here)
    return sources


def _everywhere(truth: World) -> np.ndarray:
    return np.ones(len(truth.shape), bool)


def _source(
    train: int,
    test: int,
    size: int,
    style: str,
    types: Sequence[str],
    seed: int,
    place: int,
    belongs: Callable[[World], np.ndarray],
) -> Source:
    """One question about each of train + test scenes that belong to the client."""
    arguments.check_whole(0, train=train, test=test, seed=seed)
    arguments.check_whole(16, size=size)
    if train < 1 or test < 1:
        raise ValueError(f"train is {train} and test {test}; a client needs at least one question of each")
    total, numbers = train + test, (seed, place)
    truth = world.populate(12 * total + 200, numbers)  # three shapes suffice in a quarter of the scenes
    rows = np.flatnonzero(belongs(truth))[: 2 * total + 50]  # some scenes do not offer such a question
    truth = World(*(field[rows] for field in truth))
    asked = vqa.Questions(*(field[:total] for field in vqa.ask(truth, types, 1, numbers)))
    if len(asked.text) < total:
        raise ValueError(
            f"{len(asked.text)} questions of {types} came up where train and test ask for {total}; ask for fewer"
        )
    drawn = render.draw(World(*(field[asked.image] for field in truth)), style, size, numbers)
    questions = [
        Question(row, text, (ANSWERS[answer],), TYPES[kind])
        for row, (text, answer, kind) in enumerate(
            zip(asked.text.tolist(), asked.answer.tolist(), asked.type.tolist(), strict=True)
        )
    ]
    return Source(questions[:train], questions[train:], drawn)
