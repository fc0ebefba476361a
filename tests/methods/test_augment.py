"""Random views of examples: independent interpolation, ranges, one draw each."""

import jax
import numpy as np
from PIL import Image
from scipy import ndimage

from fedjax_mm.methods.augment import (
    mirrored,
    one_of_several,
    random_part,
    random_resized_crop,
    resized,
    resized_parts,
    rotated,
)

RNG = np.random.default_rng(0)


def test_a_resized_part_is_numpys_bilinear_interpolation():
    image = RNG.normal(size=(6, 9, 2)).astype(np.float32)
    top, tall, left, wide = 0.25, 0.5, 0.1, 0.7
    at = lambda size, start, share: np.clip((start + (np.arange(size) + 0.5) / size * share) * size - 0.5, 0, size - 1)
    rows, columns = at(6, top, tall), at(9, left, wide)
    expected = np.empty_like(image)
    for channel in range(2):
        across = np.array([np.interp(columns, np.arange(9), line) for line in image[..., channel]])
        expected[..., channel] = np.array([np.interp(rows, np.arange(6), line) for line in across.T]).T
    places = (np.array([x], np.float32) for x in (top, tall, left, wide))
    np.testing.assert_allclose(resized_parts(image[None], *places)[0], expected, atol=1e-5)


def test_the_whole_image_is_itself_and_integers_stay_integers():
    images = RNG.integers(0, 256, (3, 5, 7, 3)).astype(np.uint8)
    whole = random_resized_crop(jax.random.key(0), images, 1.0, 1.0)
    assert whole.dtype == np.uint8
    np.testing.assert_array_equal(whole, images)
    white = np.full((3, 5, 7, 3), 255, np.uint8)
    np.testing.assert_array_equal(random_resized_crop(jax.random.key(0), white), white)


def test_photos_are_resized_as_pillow_does():
    """Parts of a photo that is larger, or smaller, than what is given of it."""
    photo = RNG.integers(0, 256, (40, 30, 3)).astype(np.uint8)
    for size in ((13, 11), (60, 50), (40, 9)):
        box = (6.0, 10.0, 27.0, 36.0)  # left, top, right, bottom
        expected = Image.fromarray(photo).resize(size[::-1], Image.Resampling.BILINEAR, box)
        shares = (10 / 40, 26 / 40, 6 / 30, 21 / 30)
        part = resized_parts(photo[None], *(np.array([x], np.float32) for x in shares), size)[0]
        inside = (slice(2, -2), slice(2, -2))  # Pillow weighs no pixel beyond the part, and this does
        np.testing.assert_allclose(part[inside].astype(int), np.asarray(expected)[inside], atol=2)
        whole = Image.fromarray(photo).resize(size[::-1], Image.Resampling.BILINEAR)
        np.testing.assert_allclose(resized(photo[None], size)[0].astype(int), np.asarray(whole), atol=2)
    crops = random_resized_crop(jax.random.key(0), np.full((3, 20, 30, 3), 255, np.uint8), size=(8, 6))
    assert crops.shape == (3, 8, 6, 3) and crops.dtype == np.uint8 and (np.asarray(crops) == 255).all()


def test_some_images_at_once_are_seen_as_all_are():
    """But for pixels between two integers, which may be rounded otherwise."""
    images = RNG.integers(0, 256, (5, 8, 6, 3)).astype(np.uint8)
    for view in (
        lambda key, x, n: random_resized_crop(key, x, size=(6, 5), at_once=n),
        lambda key, x, n: random_part(key, x, 0.6, (5, 5), n),
        lambda key, x, n: rotated(key, x, 30.0, n),
        lambda key, x, n: resized(x, (9, 7), n),
    ):
        all_of_them, some = (np.asarray(view(jax.random.key(0), images, n)).astype(int) for n in (None, 2))
        np.testing.assert_allclose(some, all_of_them, atol=1)
        assert len(np.unique(some.reshape(5, -1), axis=0)) == 5


def test_parts_have_the_areas_aspects_and_places_asked_for():
    """An image whose pixels are their own coordinates shows which part was cut."""
    size, count = 64, 400
    grid = np.stack(np.meshgrid(np.arange(size), np.arange(size), indexing="ij"), -1).astype(np.float32)
    parts = np.asarray(random_resized_crop(jax.random.key(1), np.broadcast_to(grid, (count, *grid.shape)), 0.25))
    middle = slice(size // 4, 3 * size // 4)  # away from what the border clips
    tall = (parts[:, 47, 0, 0] - parts[:, 16, 0, 0]) / 31
    wide = (parts[:, 0, 47, 1] - parts[:, 0, 16, 1]) / 31
    np.testing.assert_allclose(np.diff(parts[:, middle, 0, 0]), np.repeat(tall[:, None], size // 2 - 1, 1), atol=1e-3)
    area, aspect = tall * wide, wide / tall
    assert area.min() > 0.24 and area.max() <= 1.001 and 0.45 < area.mean() < 0.65
    fits = (tall < 0.999) & (wide < 0.999)
    assert aspect[fits].min() > 0.74 and aspect[fits].max() < 1.34 and np.std(np.log(aspect[fits])) > 0.1
    start = parts[:, 32, 0, 0] + 0.5 - tall * 32.5  # where row 0 begins, in pixels
    room = size * (1 - tall)
    assert (start > -0.1).all() and (start < room + 0.1).all()
    share = start[room > 10] / room[room > 10]
    assert share.min() < 0.1 and share.max() > 0.9


def test_one_caption_is_drawn_of_each_example():
    captions = np.arange(40).reshape(8, 5, 1) + np.zeros((1, 1, 3), int)
    draws = np.stack([one_of_several(jax.random.key(i), captions) for i in range(60)])
    assert draws.shape == (60, 8, 3) and (draws == draws[..., :1]).all()
    for example in range(8):
        assert set(draws[:, example, 0]) == set(range(5 * example, 5 * example + 5))
    assert len(set(draws[0, :, 0] % 5)) > 1  # each its own


def test_turned_images_are_scipys_rotation():
    images = RNG.normal(size=(3, 9, 8, 2)).astype(np.float32)
    key = jax.random.key(3)
    angles = jax.random.uniform(key, (3,), minval=-30.0, maxval=30.0)
    found = rotated(key, images, 30.0)
    for image, angle, turned in zip(images, angles, found, strict=True):
        expected = ndimage.rotate(image, -float(angle), reshape=False, order=1, mode="constant", cval=0.0)
        np.testing.assert_allclose(turned[2:-2, 2:-2], expected[2:-2, 2:-2], atol=1e-4)
    assert np.abs(angles).max() > 5


def test_each_image_is_mirrored_or_not_and_a_random_part_is_a_slice():
    images = RNG.normal(size=(40, 3, 4, 1)).astype(np.float32)
    found = np.asarray(mirrored(jax.random.key(0), images))
    same, turned = ((found == other).all((1, 2, 3)) for other in (images, images[:, :, ::-1]))
    assert (same ^ turned).all() and 8 < turned.sum() < 32
    places = np.broadcast_to(np.arange(12.0)[None, :, None, None], (50, 12, 12, 1)).astype(np.float32)
    parts = np.asarray(random_part(jax.random.key(1), places, 0.5, (6, 6)))
    np.testing.assert_allclose(np.diff(parts[..., 0], axis=1), 1, atol=1e-4)  # of the same size, not resized
    tops = parts[:, 0, 0, 0]
    assert tops.min() < 1 and tops.max() > 5 and tops.max() <= 6 + 1e-4
