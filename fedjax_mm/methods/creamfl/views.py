"""What a model sees of an example while it learns: a random part of an image, one of several captions.

Section numbers refer to docs/specs/creamfl.md.
"""

import jax

from fedjax_mm.local import Batch
from fedjax_mm.methods.augment import mirrored, one_of_several, random_part, random_resized_crop, resized, rotated
from fedjax_mm.methods.creamfl.training import Training
from fedjax_mm.types import Key

MODALITIES = ("image", "text")
DEGREES, MARGIN = 10.0, 281 / 256
"""Of CIFAR-100's views (section 6): the largest angle, and the side that a part is cut from over that of the part."""


def views(training: Training, batch: Batch, modalities: tuple[str, ...], key: Key) -> dict[str, jax.Array]:
    """{m: [B, ...]}: a view of each example, as encoders of these modalities see it while they learn their own task.

    >>> import jax.numpy as jnp
    >>> batch = {"image": jnp.ones((2, 8, 8, 3)), "text": jnp.ones((2, 5, 4), jnp.int32)}
    >>> seen = views(Training(crop=0.5, side=6), batch, ("image", "text"), jax.random.key(0))
    >>> {m: x.shape for m, x in seen.items()}
    {'image': (2, 6, 6, 3), 'text': (2, 4)}
    """
    alone = modalities == ("image",) and training.alone == "turn" and training.side is not None
    found = {}
    for m in modalities:
        x, subkey = batch[m], jax.random.fold_in(key, MODALITIES.index(m))
        if m == "text" and x.ndim == 3:
            x = one_of_several(subkey, x)
        if m == "image" and training.crop is not None:
            x = turned(training, x, subkey) if alone else cropped(training, x, subkey)
        found[m] = x
    return found


def cropped(training: Training, images: jax.Array, key: Key) -> jax.Array:
    """A random part of each image [B, H, W, C], mirrored where the settings say so, at the side that encoders see."""
    size = None if training.side is None else (training.side, training.side)
    x = random_resized_crop(key, images, training.crop or 1.0, size=size, at_once=training.at_once)
    return mirrored(jax.random.fold_in(key, 1), x) if training.flip else x


def turned(training: Training, images: jax.Array, key: Key) -> jax.Array:
    """Each image as the released code shows CIFAR-100's: larger, turned, a part of it, mirrored."""
    side = training.side or images.shape[1]
    keys, larger = jax.random.split(key, 3), round(side * MARGIN)
    x = resized(images, (larger, larger), training.at_once)
    x = rotated(keys[0], x, DEGREES, training.at_once)
    x = random_part(keys[1], x, side / larger, (side, side), training.at_once)
    return mirrored(keys[2], x) if training.flip else x
