"""Random views of examples, drawn inside a client's step.

at_once: so many images are computed at a time, which draws the same and holds less in memory; None: all.
"""

import functools

import jax
import jax.numpy as jnp
import jax.scipy.ndimage

from fedjax_mm.local import in_blocks
from fedjax_mm.types import Key


def one_of_several(key: Key, x: jax.Array) -> jax.Array:
    """One of the captions of each example, drawn at random: [B, Q, ...] -> [B, ...].

    >>> captions = jnp.array([[[1, 1], [2, 2]], [[3, 3], [4, 4]]])
    >>> one = one_of_several(jax.random.key(0), captions)
    >>> one.shape, bool(((one == captions[:, 0]) | (one == captions[:, 1])).all())
    ((2, 2), True)
    """
    choice = jax.random.randint(key, (len(x),), 0, x.shape[1])
    return jnp.take_along_axis(x, choice.reshape(-1, *[1] * (x.ndim - 1)), axis=1)[:, 0]


def random_resized_crop(
    key: Key,
    images: jax.Array,
    smallest: float = 0.08,
    ratio: float = 4 / 3,
    size: tuple[int, int] | None = None,
    at_once: int | None = None,
) -> jax.Array:
    """A random part of each image, resized bilinearly to the image's own size or to `size`: [B, H, W, C], same dtype.

    The area of the part is a uniform share in [smallest, 1] of the image's area. Its aspect (width to height, in shares
    of the image's) is log-uniform in [1/ratio, ratio]. A side that is longer than the image is cut to the image. The
    part lies anywhere in the image. torchvision's RandomResizedCrop differs in one point: it draws again where a part
    does not fit.

    >>> images = jnp.arange(16.0).reshape(1, 4, 4, 1)
    >>> random_resized_crop(jax.random.key(0), images).shape
    (1, 4, 4, 1)
    >>> bool(jnp.allclose(random_resized_crop(jax.random.key(0), images, smallest=1.0, ratio=1.0), images))
    True
    """
    count = len(images)
    keys = jax.random.split(key, 4)
    draw = lambda i, low, high: jax.random.uniform(keys[i], (count,), minval=low, maxval=high)
    area, aspect = draw(0, smallest, 1.0), jnp.exp(draw(1, -jnp.log(ratio), jnp.log(ratio)))
    tall, wide = (jnp.minimum(jnp.sqrt(area * a), 1.0) for a in (1 / aspect, aspect))
    top, left = draw(2, 0.0, 1.0) * (1 - tall), draw(3, 0.0, 1.0) * (1 - wide)
    return resized_parts(images, top, tall, left, wide, size, at_once)


def mirrored(key: Key, images: jax.Array) -> jax.Array:
    """Images [B, H, W, C], each of them flipped from left to right with a chance of one half.

    >>> images = jnp.arange(2.0).reshape(1, 1, 2, 1)
    >>> sorted({tuple(mirrored(jax.random.key(i), images).ravel().tolist()) for i in range(9)})
    [(0.0, 1.0), (1.0, 0.0)]
    """
    turned = jax.random.bernoulli(key, 0.5, (len(images), 1, 1, 1))
    return jnp.where(turned, images[:, :, ::-1], images)


def rotated(key: Key, images: jax.Array, degrees: float, at_once: int | None = None) -> jax.Array:
    """Images [B, H, W, C], each turned around its centre by a uniform angle in [-degrees, degrees], in the same type.

    It is bilinear, and 0 where nothing of the image comes to lie. Integers are rounded.

    >>> white = jnp.full((1, 8, 8, 1), 255, jnp.uint8)
    >>> turned = rotated(jax.random.key(0), white, 45.0)[0, :, :, 0]
    >>> int(turned[4, 4]), turned.shape, turned.dtype.name
    (255, (8, 8), 'uint8')
    """
    angle = jax.random.uniform(key, (len(images),), minval=-degrees, maxval=degrees) * jnp.pi / 180
    middle = (jnp.array(images.shape[1:3], jnp.float32) - 1) / 2
    across = jnp.stack(jnp.meshgrid(*(jnp.arange(size) for size in images.shape[1:3]), indexing="ij"))
    y, x = across - middle[:, None, None]

    def one(image: jax.Array, angle: jax.Array) -> jax.Array:
        sine, cosine = jnp.sin(angle), jnp.cos(angle)
        places = [cosine * y - sine * x + middle[0], sine * y + cosine * x + middle[1]]
        of_channel = functools.partial(jax.scipy.ndimage.map_coordinates, coordinates=places, order=1)
        return jax.vmap(of_channel, in_axes=-1, out_axes=-1)(image)

    turn = lambda images, angle: _as(jax.vmap(one)(images.astype(jnp.float32), angle), images.dtype)
    return in_blocks(turn, at_once, images, angle)


def random_part(
    key: Key, images: jax.Array, share: float, size: tuple[int, int], at_once: int | None = None
) -> jax.Array:
    """A part of each image [B, H, W, C] at a random place, `share` of its height and width, resized to `size`.

    >>> random_part(jax.random.key(0), jnp.ones((2, 9, 9, 3)), 2 / 3, (6, 6)).shape
    (2, 6, 6, 3)
    """
    top, left = jax.random.uniform(key, (2, len(images)), maxval=1 - share)
    all_of_it = jnp.full(len(images), share)
    return resized_parts(images, top, all_of_it, left, all_of_it, size, at_once)


def resized(images: jax.Array, size: tuple[int, int], at_once: int | None = None) -> jax.Array:
    """Whole images [B, H, W, C] resized to `size`; as they are where they have it.

    >>> halves = resized(jnp.arange(4.0).reshape(1, 1, 4, 1), (1, 2)).ravel()
    >>> [round(x, 3) for x in halves.tolist()]  # a pixel is a mean of those around it
    [0.714, 2.286]
    """
    if images.shape[1:3] == tuple(size):
        return images
    none, all_of_it = jnp.zeros(len(images)), jnp.ones(len(images))
    return resized_parts(images, none, all_of_it, none, all_of_it, size, at_once)


def resized_parts(
    images: jax.Array,
    top: jax.Array,
    tall: jax.Array,
    left: jax.Array,
    wide: jax.Array,
    size: tuple[int, int] | None = None,
    at_once: int | None = None,
) -> jax.Array:
    """The part of each image [B, H, W, C] that begins at `top`, `left` and is `tall` and `wide`, resized to H x W.

    The four arrays are [B], shares of the image's height or width, at most 1. The resizing is bilinear; integers are
    rounded. size: another (height, width) of what is given; where a part has more pixels, they are averaged over, as
    Pillow does, with weights that fall to 0 at a distance of one pixel of the result.

    >>> images = jnp.arange(4.0).reshape(1, 1, 4, 1)
    >>> whole, right_half = (jnp.array([0.0]), jnp.array([1.0])), (jnp.array([0.5]), jnp.array([0.5]))
    >>> resized_parts(images, *whole, *right_half).ravel().tolist()
    [1.75, 2.25, 2.75, 3.0]
    """
    return in_blocks(functools.partial(_resized_parts, size=size), at_once, images, top, tall, left, wide)


def _resized_parts(
    images: jax.Array, top: jax.Array, tall: jax.Array, left: jax.Array, wide: jax.Array, size: tuple[int, int] | None
) -> jax.Array:
    # Two small matrix products an image, because gathers are slow under many clients.
    if size is None:
        rows, columns = _interpolation(images.shape[1], top, tall), _interpolation(images.shape[2], left, wide)
    else:
        rows, columns = _scaling(images.shape[1], size[0], top, tall), _scaling(images.shape[2], size[1], left, wide)
    x = jnp.einsum("bih,bhwc->biwc", rows, images.astype(jnp.float32))
    x = jnp.einsum("bjw,biwc->bijc", columns, x)
    return _as(x, images.dtype)


def _as(x: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
    """Pixels in a type; integers are rounded."""
    if jnp.issubdtype(dtype, jnp.integer):
        x = jnp.clip(jnp.round(x), 0, jnp.iinfo(dtype).max)
    return x.astype(dtype)


def _interpolation(size: int, start: jax.Array, share: jax.Array) -> jax.Array:
    """[B, size, size]: row i weighs the pixels around the i-th of `size` places in [start, start + share]."""
    places = (start[:, None] + (jnp.arange(size)[None] + 0.5) / size * share[:, None]) * size - 0.5
    places = jnp.clip(places, 0, size - 1)
    return jnp.maximum(0.0, 1 - jnp.abs(places[:, :, None] - jnp.arange(size)[None, None]))


def _scaling(size: int, given: int, start: jax.Array, share: jax.Array) -> jax.Array:
    """[B, given, size]: row i weighs the pixels around the i-th of `given` places in [start, start + share]."""
    pixels = size / given * share[:, None]  # that one place covers
    places = start[:, None] * size + (jnp.arange(given)[None] + 0.5) * pixels - 0.5
    apart = jnp.abs(jnp.clip(places, 0, size - 1)[:, :, None] - jnp.arange(size)[None, None])
    weight = jnp.maximum(0.0, 1 - apart / jnp.maximum(pixels, 1.0)[:, :, None])
    return weight / weight.sum(-1, keepdims=True)
