"""Pictures from files: decoded to one size, and kept in a memory map where they are too many for the memory."""

import hashlib
import os
import pathlib
import shutil
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from fedjax_mm import _lazy
from fedjax_mm.data import arguments, pixels, prepared

DECODING = "v2"  # of what is kept in files: 1 left photos sideways and transparent parts in hidden colours


def decode(content: bytes, size: int, name: str | os.PathLike, centre: bool = False) -> np.ndarray:
    """Returns an encoded picture as uint8 [size, size, 3], squashed to a square (bilinear, antialiased).

    centre: it keeps its aspect instead: its shorter side becomes `size`, and of the longer one the middle is cut out.
    It is what a viewer shows: turned as its EXIF orientation says, transparent parts over white. A JPEG that is more
    than twice too large is decoded at a reduced scale. Raises ValueError, with the picture's name, where it is cut off
    or no picture, or would take more memory than `pixels.MOST_PIXELS` allows.
    """
    arguments.check_whole(1, size=size)
    bilinear = _lazy.require("PIL.Image", "text").Resampling.BILINEAR
    with pixels.opened(content, name) as picture:
        height, width = _around(pixels.size(picture), size) if centre else (size, size)
        shown = pixels.rgb(pixels.upright(picture, (height, width))).resize((width, height), bilinear)
        top, left = (height - size) // 2, (width - size) // 2
        return np.asarray(shown)[top : top + size, left : left + size]


def _around(sides: tuple[int, int], size: int) -> tuple[int, int]:
    """The (height, width) of a picture whose shorter side becomes `size`."""
    height, width = (max(size, round(side * size / min(sides))) for side in sides)
    return height, width


def read(path: str | os.PathLike, size: int, centre: bool = False) -> np.ndarray:
    """Returns the picture of a file as `decode` does. Raises FileNotFoundError too."""
    return decode(pathlib.Path(path).read_bytes(), size, path, centre)


def memory_map(path: str | os.PathLike, number: int, row: Callable[[int], np.ndarray]) -> np.ndarray:
    """Returns row(0) to row(number - 1), of one shape and type, as a read-only memory map [number, ...] of an npy file.

    If the file is not there, as many threads as there are processors write it; a run that breaks off leaves no file.
    Raises OSError where the disk has no room for it, and ValueError where the file is damaged.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        first = row(0)
        needed, free = number * first.nbytes, shutil.disk_usage(path.parent).free
        if needed > free:
            raise OSError(
                f"{path} needs {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free; choose smaller pictures, fewer "
                "of them, or another cache_dir"
            )
        unfinished = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            rows = np.lib.format.open_memmap(unfinished, "w+", first.dtype, (number, *first.shape))
            with ThreadPoolExecutor(os.cpu_count()) as threads:
                for _ in threads.map(lambda i: rows.__setitem__(i, row(i)), range(number)):
                    pass
            rows.flush()
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)
    try:
        rows = np.load(path, mmap_mode="r")
        if len(rows) != number:
            raise ValueError(f"{len(rows)} rows where {number} are expected")
    except (ValueError, OSError, EOFError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it, and it is written again") from error
    return rows


def cache_file(cache_dir: str | os.PathLike | None, *parts: object) -> pathlib.Path:
    """Returns the path of a memory map in `cache_dir` (None: the user's cache): its parts joined by "_", and .npy."""
    return pathlib.Path(cache_dir or prepared.cache_dir()) / ("_".join(map(str, (*parts, DECODING))) + ".npy")


def check_there(paths: Sequence[pathlib.Path]) -> None:
    """Raises FileNotFoundError, with the first picture that is missing and how many are."""
    if missing := [path for path in paths if not path.is_file()]:
        raise FileNotFoundError(
            f"there is no picture {missing[0]} ({len(missing)} of {len(paths)} are missing); copy or download them"
        )


def version(paths: Sequence[pathlib.Path], *how: object) -> str:
    """Returns a text that tells these pictures, in this order and decoded in this way, from others."""
    order = zlib.crc32("\n".join(map(str, (*paths, *how))).encode())
    return " ".join(map(str, (listing(paths), order, *how, DECODING)))


def listing(paths: Iterable[pathlib.Path]) -> str:
    """Returns 16 hexadecimal digits of the files' paths, sizes and times, which tell versions apart without reading."""
    total = hashlib.sha256()
    for path in sorted(paths):
        status = path.stat()
        total.update(f"{path.resolve()} {status.st_size} {status.st_mtime_ns}\n".encode())
    return total.hexdigest()[:16]
