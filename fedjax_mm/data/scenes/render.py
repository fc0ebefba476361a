"""How it looks: the same world drawn in several styles, which are the rendering domains.

Every style is a function (distance [b, 4, s, s] in pixels, below 0 inside; rgb [b, 4, 3] in 0..1; generator) ->
pictures [b, s, s, 3] around 0..1.
"""

import numpy as np
from scipy.ndimage import gaussian_filter

from fedjax_mm.data.scenes.world import COLOURS, OBJECTS, RADII, SHAPES, TURN, Seed, World, stream

RGB = {
    "red": (214, 40, 44),
    "orange": (247, 137, 32),
    "yellow": (250, 212, 45),
    "green": (44, 160, 74),
    "blue": (38, 104, 214),
    "purple": (128, 62, 176),
    "pink": (246, 140, 188),
    "black": (40, 42, 52),
}
PALETTE = np.asarray([RGB[name] for name in COLOURS], np.float32) / 255
BLOCK = 128  # scenes drawn at once; part of what a seed means, since each block has its own random numbers


def draw(world: World, style: str, size: int, seed: Seed) -> np.ndarray:
    """Returns the scenes as pictures [M, size, size, 3] uint8."""
    if style not in STYLES:
        raise ValueError(f"style is {style!r}; the known styles are {', '.join(STYLES)}")
    if size < 16:
        raise ValueError(f"size is {size}; below 16 pixels the shapes cannot be told apart")
    pictures = np.empty((len(world.shape), size, size, 3), np.uint8)
    for start in range(0, len(pictures), BLOCK):
        part = World(*(field[start : start + BLOCK] for field in world))
        rgb = PALETTE[part.colour]
        drawn = STYLES[style](_distances(part, size), rgb, stream(seed, f"{style} {start}"))
        pictures[start : start + BLOCK] = np.clip(drawn * 255 + 0.5, 0, 255)
    return pictures


# ---- geometry: signed distances of shapes of radius 1 around the origin, u to the right, v upwards ----


def _circle(u, v):
    return np.hypot(u, v) - 0.96


def _square(u, v):
    return np.maximum(np.abs(u), np.abs(v)) - 0.78


def _triangle(u, v):
    return np.maximum(-v, np.abs(u) * 0.866 + v * 0.5) - 0.54


def _cross(u, v):
    u, v = np.abs(u), np.abs(v)
    return np.minimum(np.maximum(u - 1, v - 0.34), np.maximum(u - 0.34, v - 1))


def _star(u, v):
    # Fold the plane onto half of one of five spikes, then measure to the edge from the tip to the notch.
    angle, radius = np.arctan2(u, v), np.hypot(u, v)
    folded = np.abs(angle - np.round(angle / (0.4 * np.pi)) * (0.4 * np.pi))
    tip, notch = 1.08, 0.48
    edge = np.array([notch * np.sin(np.pi / 5), notch * np.cos(np.pi / 5) - tip])
    normal = np.array([-edge[1], edge[0]], np.float32) / np.float32(np.hypot(*edge))
    return radius * np.sin(folded) * normal[0] + (radius * np.cos(folded) - tip) * normal[1]


def _moon(u, v):
    return np.maximum(np.hypot(u, v) - 1, 0.78 - np.hypot(u - 0.46, v - 0.2))


_DISTANCE = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "cross": _cross,
    "star": _star,
    "moon": _moon,
}


def _distances(world: World, size: int) -> np.ndarray:
    """Returns every pixel's distance in pixels to every object's border [b, 4, size, size], far where there is none."""
    distance = np.full((*world.shape.shape, size, size), 4 * size, np.float32)
    pixel = (np.arange(size, dtype=np.float32) + 0.5) * 100 / size
    for number, name in enumerate(SHAPES):
        where = world.shape == number
        x, y, turn = world.x[where], world.y[where], world.turn[where]
        radius = np.asarray(RADII, np.float32)[world.size[where]][:, None, None]
        right = (pixel - x[:, None].astype(np.float32))[:, None, :] / radius
        up = -(pixel - y[:, None].astype(np.float32))[:, :, None] / radius
        angle = np.deg2rad(turn - TURN / 2).astype(np.float32)[:, None, None]
        u, v = np.cos(angle) * right + np.sin(angle) * up, np.cos(angle) * up - np.sin(angle) * right
        distance[where] = _DISTANCE[name](u, v) * (radius * size / 100)
    return distance


# ---- painting ----


def _cover(distance):
    return np.clip(0.5 - distance, 0, 1)


def _stroke(distance, width):
    """Coverage of a line of `width` pixels along the inside of a border."""
    return _cover(np.abs(distance + width / 2) - width / 2)


def _paint(picture, cover, rgb):
    """Lays rgb (broadcast against [b, s, s, 3]) over the picture where `cover` [b, s, s] is 1."""
    cover = cover[..., None]
    return picture * (1 - cover) + cover * rgb


def _objects(picture, cover, rgb):
    for k in range(OBJECTS):
        picture = _paint(picture, cover[:, k], rgb[:, k, None, None])
    return picture


def _paper(rng, shape, low, high, tint):
    """A plain ground of random lightness with a touch of colour, [b, s, s, 3]."""
    grey = rng.uniform(low, high, (shape[0], 1, 1, 1)) + rng.uniform(-tint, tint, (shape[0], 1, 1, 3))
    return np.broadcast_to(grey.astype(np.float32), (shape[0], *shape[-2:], 3))


def _grain(rng, shape, blur):
    """Smooth noise of deviation 1, [b, s, s]."""
    noise = rng.standard_normal(shape, np.float32)
    smooth = gaussian_filter(noise, (0, blur, blur), mode="wrap")
    return smooth / smooth.std()


def _waves(rng, shape, period):
    """Stripes of random direction in -1..1, `period` pixels apart, [b, s, s]."""
    count, size = shape[0], shape[-1]
    angle, phase = rng.uniform(0, np.pi, (count, 1, 1)), rng.uniform(0, 2 * np.pi, (count, 1, 1))
    down, along = np.mgrid[:size, :size]
    wave = np.sin((np.cos(angle) * along + np.sin(angle) * down) * (2 * np.pi / period) + phase)
    return wave.astype(np.float32)


def _flat(distance, rgb, rng):
    ground = _paper(rng, distance.shape, 0.86, 0.96, 0.04)
    return _objects(ground, _cover(distance), rgb)


def _outlined(distance, rgb, rng):
    ground = _paper(rng, distance.shape, 0.93, 1.0, 0.02)
    width = max(1.5, distance.shape[-1] * 0.04)
    return _objects(ground, _stroke(distance, width), rgb)


def _inverted(distance, rgb, rng):
    """A photographic negative: colour names mean what the print would show."""
    return 1 - _flat(distance, rgb, rng)


def _textured(distance, rgb, rng):
    size = distance.shape[-1]
    plane = (len(distance), size, size)
    weave = _waves(rng, plane, size / 6) * _waves(rng, plane, size / 6)
    ground = _paper(rng, distance.shape, 0.72, 0.86, 0.06) + 0.11 * weave[..., None]
    stripes = 0.16 * np.sign(_waves(rng, plane, max(4, size / 9)))
    cloth = np.clip(rgb[:, :, None, None] + stripes[:, None, ..., None], 0, 1)
    for k in range(OBJECTS):
        ground = _paint(ground, _cover(distance[:, k]), cloth[:, k])
    return ground


def _sketch(distance, rgb, rng):
    """Coloured pencil: an unsteady outline and hatching."""
    size = distance.shape[-1]
    plane = (len(distance), size, size)
    shaken = distance + 0.008 * size * _grain(rng, plane, size / 16)[:, None]
    paper = _paper(rng, distance.shape, 0.93, 0.98, 0.01) + 0.012 * _grain(rng, plane, 0.6)[..., None]
    hatching = 0.35 + 0.45 * (_waves(rng, plane, max(3, size / 14)) > 0.1)
    paper = _objects(paper, _cover(shaken) * hatching[:, None], rgb)
    return _objects(paper, _stroke(shaken, max(1.0, size * 0.028)), rgb * 0.75)


def _noisy(distance, rgb, rng):
    """A poor photograph: objects on a cluttered table, light from one side, shadows, blur and sensor noise."""
    count, size = len(distance), distance.shape[-1]
    plane = (count, size, size)
    table = _paper(rng, distance.shape, 0.52, 0.78, 0.08) + 0.035 * _grain(rng, plane, size / 12)[..., None]
    for _ in range(5):  # crumbs and scratches, smaller and fainter than any object
        dash = _dashes(rng, count, size)
        table = _paint(table, 0.7 * _cover(dash), rng.uniform(0.2, 1, (count, 1, 1, 3)).astype(np.float32))
    nearest = distance.min(axis=1)
    offset = max(1, size // 24)
    shadow = np.roll(nearest, (offset, offset), (1, 2))
    table = table * (1 - 0.4 * np.clip(0.5 - shadow / (0.06 * size), 0, 1))[..., None]
    domed = np.clip(0.9 - 0.08 * distance / (0.06 * size), 0.9, 1.15)  # brighter towards the middle
    for k in range(OBJECTS):
        table = _paint(table, _cover(distance[:, k]), rgb[:, k, None, None] * domed[:, k, ..., None])
    lit = table * (1 + 0.3 * _slope(rng, count, size))[..., None]
    seen = gaussian_filter(lit, (0, size / 70, size / 70, 0))
    return seen + 0.035 * rng.standard_normal(seen.shape, np.float32)


def _slope(rng, count, size):
    """A plane through 0 rising to 1 in a random direction, [b, s, s]."""
    angle = rng.uniform(0, 2 * np.pi, (count, 1, 1)).astype(np.float32)
    along = np.linspace(-1, 1, size, dtype=np.float32)
    return np.cos(angle) * along[None, None, :] + np.sin(angle) * along[None, :, None]


def _dashes(rng, count, size):
    """Distance to one short dash per picture, [b, s, s] in pixels."""
    pixel = np.arange(size, dtype=np.float32)
    x, y, angle, half = rng.uniform(0, 1, (4, count, 1, 1)).astype(np.float32)
    x, y, angle, half = x * size, y * size, angle * np.pi, (0.01 + 0.06 * half) * size
    along = np.cos(angle) * (pixel[None, None, :] - x) + np.sin(angle) * (pixel[None, :, None] - y)
    across = np.cos(angle) * (pixel[None, :, None] - y) - np.sin(angle) * (pixel[None, None, :] - x)
    return np.maximum(np.abs(along) - half, np.abs(across) - 0.012 * size)


STYLES = {
    "flat": _flat,
    "outlined": _outlined,
    "noisy": _noisy,
    "inverted": _inverted,
    "textured": _textured,
    "sketch": _sketch,
}
