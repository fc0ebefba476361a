"""What is there: one to four objects with shape, colour, size and place, never overlapping."""

import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

SHAPES = ("circle", "square", "triangle", "cross", "star", "moon")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "black")
SIZES = ("small", "medium", "large")
RADII = (9, 13, 18)  # of each size, in hundredths of the picture
OBJECTS = 4
TURN = 20  # an object is turned by -10..10 degrees, stored as 0..20
GAP = 4  # least space between the circles around two objects, and to the border; corners stick out by 10 % of a radius

Seed = int | Sequence[int]


class World(NamedTuple):
    """M scenes of up to four objects. Every field is [M, 4] int32, -1 where there is no object.

    Object 0 is the only one of the largest size, and no two objects of a scene share both shape and colour. `x` (to
    the right) and `y` (downwards) are the centre in hundredths of the picture.
    """

    shape: np.ndarray
    colour: np.ndarray
    size: np.ndarray
    x: np.ndarray
    y: np.ndarray
    turn: np.ndarray


def stream(seed: Seed, name: str) -> np.random.Generator:
    """Returns the random numbers kept for one purpose, so that e.g. the style does not change what is drawn."""
    numbers = np.atleast_1d(np.asarray(seed))
    if numbers.dtype.kind not in "iu" or numbers.ndim > 1 or not numbers.size or (numbers < 0).any():
        raise ValueError(f"seed is {seed!r}; give a whole number of 0 or more, or several")
    return np.random.default_rng([*numbers.tolist(), zlib.crc32(name.encode())])


def populate(num: int, seed: Seed) -> World:
    """Returns `num` random scenes."""
    rng = stream(seed, "world")
    count = rng.choice(OBJECTS, size=num, p=(0.15, 0.3, 0.3, 0.25)) + 1
    present = np.arange(OBJECTS) < count[:, None]
    size = _sizes(rng, count)
    shape, colour = _kinds(rng, num)
    x, y = _places(rng, size, present)
    turn = rng.integers(TURN + 1, size=(num, OBJECTS))
    return World(*(np.where(present, field, -1).astype(np.int32) for field in (shape, colour, size, x, y, turn)))


def _sizes(rng: np.random.Generator, count: np.ndarray) -> np.ndarray:
    """A lone object may have any size; among several the first is larger than the others."""
    alone, first = rng.integers(3, size=count.shape), rng.choice((1, 2), size=count.shape, p=(0.3, 0.7))
    largest = np.where(count == 1, alone, first)
    others = rng.integers(np.maximum(largest, 1)[:, None], size=(len(count), OBJECTS - 1))
    return np.concatenate([largest[:, None], others], axis=1)


def _kinds(rng: np.random.Generator, num: int) -> tuple[np.ndarray, np.ndarray]:
    """Shapes and colours that often repeat inside a scene (else there is nothing to count), but never both."""
    shape, colour = np.empty((num, OBJECTS), int), np.empty((num, OBJECTS), int)
    redo = np.arange(num)
    while redo.size:
        shape[redo] = _repeating(rng, len(redo), len(SHAPES))
        colour[redo] = _repeating(rng, len(redo), len(COLOURS))
        kind = np.sort(shape[redo] * len(COLOURS) + colour[redo], axis=1)
        redo = redo[(kind[:, 1:] == kind[:, :-1]).any(axis=1)]
    return shape, colour


def _repeating(rng: np.random.Generator, num: int, values: int) -> np.ndarray:
    drawn = rng.integers(values, size=(num, OBJECTS))
    for k in range(1, OBJECTS):
        earlier = drawn[np.arange(num), rng.integers(k, size=num)]
        drawn[:, k] = np.where(rng.random(num) < 0.3, earlier, drawn[:, k])
    return drawn


def _places(rng: np.random.Generator, size: np.ndarray, present: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    radius = np.asarray(RADII)[size]
    place = np.empty((2, *size.shape), int)
    pair = np.triu_indices(OBJECTS, 1)
    apart = (radius[:, :, None] + radius[:, None, :] + GAP)[:, *pair]
    both = (present[:, :, None] & present[:, None, :])[:, *pair]
    redo = np.arange(len(size))
    while redo.size:
        low = radius[redo] + GAP
        drawn = rng.integers(low, 101 - low, size=(2, *low.shape))
        place[:, redo] = drawn
        distance = np.hypot(*(drawn[:, :, pair[0]] - drawn[:, :, pair[1]]))
        redo = redo[(both[redo] & (distance < apart[redo])).any(axis=1)]
    return place[0], place[1]
