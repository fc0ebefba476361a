"""Pictures of any size in one bucket: the aspect ratio kept, zeros to the right and below, as ViLT pads a batch.

A model without a mask of patches takes pictures that are stretched over the bucket.
"""

import os
import pathlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from fedjax_mm import _lazy
from fedjax_mm.data import pixels

if TYPE_CHECKING:
    from PIL import Image


def fit(
    picture: "Image.Image", image: tuple[int, int], patch: int, stretch: bool = False
) -> tuple[np.ndarray, tuple[int, int]]:
    """Returns a picture in the bucket `image` (H, W), uint8 [H, W, 3], and the size (h, w) that it has there.

    It is upright, as its EXIF orientation says, and lies over white where it is transparent. It is scaled to touch the
    bucket; both sides are then floored to multiples of `patch` (one patch at least), and the picture is resized to
    exactly that, bicubic, so that no patch is half picture and half padding. With `stretch` it fills the bucket.
    """
    sides = image if stretch else pixels.size(picture)
    scale = min(image[0] / sides[0], image[1] / sides[1])
    # 1e-6: 100 * (96 / 100) may come out just below 96, and would lose a whole patch.
    height, width = (max(1, int(side * scale / patch + 1e-6)) * patch for side in sides)
    shown = pixels.rgb(pixels.upright(picture, (height, width)))
    padded = np.zeros((*image, 3), np.uint8)
    bicubic = _lazy.require("PIL.Image", "text").Resampling.BICUBIC
    padded[:height, :width] = np.asarray(shown.resize((width, height), bicubic))
    return padded, (height, width)


def read(
    path: str | os.PathLike, image: tuple[int, int], patch: int, stretch: bool = False
) -> tuple[np.ndarray, tuple[int, int]]:
    """Returns the picture of a file as `fit` does.

    Raises FileNotFoundError, or ValueError, with the file's name, where it is cut off, no picture or too large.
    """
    with pixels.opened(pathlib.Path(path).read_bytes(), path) as picture:
        return fit(picture, image, patch, stretch)


def read_all(
    paths: Sequence[str], image: tuple[int, int], patch: int, stretch: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the pictures of all files, [I, H, W, 3] uint8, and their sizes [I, 2] int32.

    As many threads as there are processors read them. Raises FileNotFoundError, with the first file that is missing
    and how many are.
    """
    if missing := [path for path in paths if not pathlib.Path(path).is_file()]:
        raise FileNotFoundError(
            f"there is no picture {missing[0]} ({len(missing)} of {len(paths)} are missing); copy or download them"
        )
    pictures, sizes = np.empty((len(paths), *image, 3), np.uint8), np.empty((len(paths), 2), np.int32)
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for row, (picture, size) in enumerate(threads.map(lambda path: read(path, image, patch, stretch), paths)):
            pictures[row], sizes[row] = picture, size
    return pictures, sizes


def fit_all(
    stack: np.ndarray, image: tuple[int, int], patch: int, stretch: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Returns what `read_all` does for pictures [I, h, w, 3] uint8 that lie in no files."""
    Image = _lazy.require("PIL.Image", "text")
    fitted = [fit(Image.fromarray(picture), image, patch, stretch) for picture in stack]
    return np.stack([picture for picture, _ in fitted]), np.array([size for _, size in fitted], np.int32)
