"""Random views of examples inside a client's step."""

import jax
import jax.numpy as jnp

from fedjax_mm.types import Key


def one_of_several(key: Key, x: jax.Array) -> jax.Array:
    """One of each example's captions: [B, Q, ...] -> [B, ...]."""
    choice = jax.random.randint(key, (len(x),), 0, x.shape[1])
    return jnp.take_along_axis(x, choice.reshape(-1, *[1] * (x.ndim - 1)), axis=1)[:, 0]


def random_resized_crop(key: Key, images: jax.Array, smallest: float = 0.08, ratio: float = 4 / 3) -> jax.Array:
    """A random part of each image, resized bilinearly to the image's own size: [B, H, W, C], same dtype.

    The part's area is a uniform share in [smallest, 1] of the image's, its aspect (width to height, in shares of the
    image's) log-uniform in [1/ratio, ratio]; a side longer than the image is cut to it. It lies anywhere in the image.
    As torchvision's RandomResizedCrop, which draws again where a part does not fit.
    """
    count, height, width, _ = images.shape
    keys = jax.random.split(key, 4)
    draw = lambda i, low, high: jax.random.uniform(keys[i], (count,), minval=low, maxval=high)
    area, aspect = draw(0, smallest, 1.0), jnp.exp(draw(1, -jnp.log(ratio), jnp.log(ratio)))
    tall, wide = (jnp.minimum(jnp.sqrt(area * a), 1.0) for a in (1 / aspect, aspect))
    return resized_parts(images, draw(2, 0.0, 1.0) * (1 - tall), tall, draw(3, 0.0, 1.0) * (1 - wide), wide)


def resized_parts(images: jax.Array, top: jax.Array, tall: jax.Array, left: jax.Array, wide: jax.Array) -> jax.Array:
    """The part of each image [B, H, W, C] that begins at `top`, `left` and is `tall` and `wide`, resized to H x W.

    All [B], as shares of the image's height and width, at most 1. Bilinear; integers are rounded.
    """
    # Two small matrix products an image, because gathers are slow under many clients.
    rows, columns = _interpolation(images.shape[1], top, tall), _interpolation(images.shape[2], left, wide)
    x = jnp.einsum("bih,bhwc->biwc", rows, images.astype(jnp.float32))
    x = jnp.einsum("bjw,biwc->bijc", columns, x)
    if jnp.issubdtype(images.dtype, jnp.integer):
        x = jnp.clip(jnp.round(x), 0, jnp.iinfo(images.dtype).max)
    return x.astype(images.dtype)


def _interpolation(size: int, start: jax.Array, share: jax.Array) -> jax.Array:
    """[B, size, size]: row i weighs the pixels around the i-th of `size` places in [start, start + share]."""
    places = (start[:, None] + (jnp.arange(size)[None] + 0.5) / size * share[:, None]) * size - 0.5
    places = jnp.clip(places, 0, size - 1)
    return jnp.maximum(0.0, 1 - jnp.abs(places[:, :, None] - jnp.arange(size)[None, None]))
