"""Pictures of any size in one bucket: the aspect ratio kept, zeros to the right and below, as ViLT pads a batch."""

import os
import pathlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image


def fit(picture: Image.Image, image: tuple[int, int], patch: int) -> tuple[np.ndarray, tuple[int, int]]:
    """A picture in the bucket `image` (H, W), uint8 [H, W, 3], and the size (h, w) it has there.

    It is scaled to touch the bucket, both sides then floored to multiples of `patch` (one patch at least) and resized
    to exactly that, bicubic: no patch is half picture and half padding.
    """
    scale = min(image[0] / picture.height, image[1] / picture.width)
    # 1e-6: 100 * (96 / 100) may come out just below 96, and would lose a whole patch.
    floored = [max(1, int(side * scale / patch + 1e-6)) * patch for side in (picture.height, picture.width)]
    height, width = floored
    picture.draft("RGB", (width, height))
    padded = np.zeros((*image, 3), np.uint8)
    padded[:height, :width] = np.asarray(picture.convert("RGB").resize((width, height), Image.Resampling.BICUBIC))
    return padded, (height, width)


def read(path: str | os.PathLike, image: tuple[int, int], patch: int) -> tuple[np.ndarray, tuple[int, int]]:
    """The picture of a file, as `fit` has it. Raises ValueError with its name where it is cut off or no picture."""
    try:
        with Image.open(path) as picture:
            return fit(picture, image, patch)
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{path} is cut off or no picture ({error}); copy or download it again") from error


def read_all(paths: list[str], image: tuple[int, int], patch: int) -> tuple[np.ndarray, np.ndarray]:
    """All files: pictures [I, H, W, 3] uint8 and their sizes [I, 2] int32; read by as many threads as processors.

    Raises FileNotFoundError, with the first file that is missing and how many are.
    """
    if missing := [path for path in paths if not pathlib.Path(path).is_file()]:
        raise FileNotFoundError(
            f"there is no picture {missing[0]} ({len(missing)} of {len(paths)} are missing); copy or download them"
        )
    pictures, sizes = np.empty((len(paths), *image, 3), np.uint8), np.empty((len(paths), 2), np.int32)
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for row, (picture, size) in enumerate(threads.map(lambda path: read(path, image, patch), paths)):
            pictures[row], sizes[row] = picture, size
    return pictures, sizes


def fit_all(stack: np.ndarray, image: tuple[int, int], patch: int) -> tuple[np.ndarray, np.ndarray]:
    """As `read_all`, of pictures [I, h, w, 3] uint8 that lie in no files."""
    fitted = [fit(Image.fromarray(picture), image, patch) for picture in stack]
    return np.stack([picture for picture, _ in fitted]), np.array([size for _, size in fitted], np.int32)
