"""Pictures of any size in one bucket: the aspect ratio kept, zeros to the right and below, as ViLT pads a batch."""

import os
import pathlib
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from fedjax_mm import _lazy
from fedjax_mm.data import images, pixels
from fedjax_mm.streamed import Streamed, of_rows

if TYPE_CHECKING:
    from PIL import Image

Resize = Callable[[int, int], tuple[int, int]]  # (height, width) of a picture -> the size that it is given


def fit(
    picture: "Image.Image", image: tuple[int, int], patch: int, resize: Resize | None = None
) -> tuple[np.ndarray, tuple[int, int]]:
    """Returns a picture in the bucket `image` (H, W), uint8 [H, W, 3], and the size (h, w) that it has there.

    It is upright, as its EXIF orientation says, and lies over white where it is transparent. It is resized, bicubic, to
    the size that `fitted_size` says.
    """
    height, width = fitted_size(picture, image, patch, resize)
    shown = pixels.rgb(pixels.upright(picture, (height, width)))
    padded = np.zeros((*image, 3), np.uint8)
    bicubic = _lazy.require("PIL.Image", "text").Resampling.BICUBIC
    padded[:height, :width] = np.asarray(shown.resize((width, height), bicubic))
    return padded, (height, width)


def fitted_size(
    picture: "Image.Image", image: tuple[int, int], patch: int, resize: Resize | None = None
) -> tuple[int, int]:
    """Returns the (height, width) that an opened picture has in the bucket `image` (H, W).

    resize: the rule, such as models.vilt.resized_size, of ViLT's own processor. None: a picture is scaled to touch the
    bucket, and both sides are then floored to multiples of `patch` (one patch at least), so that no patch is half
    picture and half padding. Raises ValueError where the rule gives a size beyond the bucket.
    """
    sides = pixels.size(picture)
    if resize is not None:
        height, width = resize(*sides)
        if height > image[0] or width > image[1] or height % patch or width % patch:
            raise ValueError(
                f"a picture of {[*sides]} pixels is resized to {[height, width]}; give a larger bucket than "
                f"{[*image]}, and the rule the patch {patch}"
            )
        return height, width
    scale = min(image[0] / sides[0], image[1] / sides[1])
    # 1e-6: 100 * (96 / 100) may come out just below 96, and would lose a whole patch.
    height, width = (max(1, int(side * scale / patch + 1e-6)) * patch for side in sides)
    return height, width


def read(
    path: str | os.PathLike, image: tuple[int, int], patch: int, resize: Resize | None = None
) -> tuple[np.ndarray, tuple[int, int]]:
    """Returns the picture of a file as `fit` does.

    Raises FileNotFoundError, or ValueError, with the file's name, where it is cut off, no picture or too large.
    """
    with pixels.opened(pathlib.Path(path).read_bytes(), path) as picture:
        return fit(picture, image, patch, resize)


def read_all(
    paths: Sequence[str], image: tuple[int, int], patch: int, resize: Resize | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the pictures of all files, [I, H, W, 3] uint8, and their sizes [I, 2] int32.

    As many threads as there are processors read them. Raises FileNotFoundError, with the first file that is missing
    and how many are.
    """
    images.check_there([*map(pathlib.Path, paths)])
    pictures, sizes = np.empty((len(paths), *image, 3), np.uint8), np.empty((len(paths), 2), np.int32)
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for row, (picture, size) in enumerate(threads.map(lambda path: read(path, image, patch, resize), paths)):
            pictures[row], sizes[row] = picture, size
    return pictures, sizes


def stream(
    paths: list[str], image: tuple[int, int], patch: int, resize: Resize | None = None
) -> tuple[Streamed, np.ndarray]:
    """Returns what `read_all` does, but that pictures are decoded as steps need them; now their sizes alone are."""
    files = [*map(pathlib.Path, paths)]
    images.check_there(files)

    def size_of(path: str) -> tuple[int, int]:
        with pixels.opened(pathlib.Path(path).read_bytes(), path) as picture:
            return fitted_size(picture, image, patch, resize)

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        sizes = np.array(list(threads.map(size_of, paths)), np.int32)
    version = images.version(files, zlib.crc32(sizes.tobytes()), image, patch)
    decoded = lambda number: read(paths[number], image, patch, resize)[0]
    return of_rows(decoded, len(paths), (*image, 3), np.uint8, version=version), sizes


def fit_all(
    stack: np.ndarray, image: tuple[int, int], patch: int, resize: Resize | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns what `read_all` does for pictures [I, h, w, 3] uint8 that lie in no files."""
    Image = _lazy.require("PIL.Image", "text")
    fitted = [fit(Image.fromarray(picture), image, patch, resize) for picture in stack]
    return np.stack([picture for picture, _ in fitted]), np.array([size for _, size in fitted], np.int32)
