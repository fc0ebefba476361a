"""Encoded pictures as a viewer shows them: upright, over white, in 8 bits, and never larger than memory should take."""

import contextlib
import io
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from fedjax_mm import _lazy

if TYPE_CHECKING:
    from PIL import Image

# Decoded at once, after a JPEG's reduced scale: some 300 MB. Photos have up to 50 million, and those that have more
# (phones with 108 or 200) are JPEGs, which need not be decoded whole.
MOST_PIXELS = 2**26
ORIENTATION = 0x0112  # the tag of EXIF
# What the tag says -> the name of Pillow's transposition that puts the picture upright; 1 is upright as it is.
TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
SIDEWAYS = (5, 6, 7, 8)
REDUCIBLE = ("JPEG", "MPO")
PROGRAMS = ("EPS", "WMF", "EMF")  # drawn by other programs from commands, not decoded


class PictureError(ValueError):
    """A picture is damaged or too large; the message names it."""


@contextlib.contextmanager
def opened(content: bytes, name: str | os.PathLike) -> Iterator["Image.Image"]:
    """Gives the picture of encoded bytes, not decoded yet.

    Raises PictureError, with the picture's name, where it is no picture or, anywhere in the block, turns out to be cut
    off or to claim too many pixels.
    """
    Image = _lazy.require("PIL.Image", "text")
    try:
        with Image.open(io.BytesIO(content)) as picture:
            if picture.format in PROGRAMS:
                raise ValueError(f"{picture.format} is a drawing")
            yield picture
    except (Image.DecompressionBombError, Image.DecompressionBombWarning, _TooLarge) as error:
        raise PictureError(f"{name} claims more pixels than may be decoded ({error}); scale it down") from error
    except Exception as error:  # each of Pillow's decoders has its own for damaged bytes
        raise PictureError(f"{name} is cut off or no picture ({error}); copy or download it again") from error


def size(picture: "Image.Image") -> tuple[int, int]:
    """Returns the (height, width) that an opened picture has when it is upright, in full scale."""
    sideways = _turn(picture) in SIDEWAYS
    width, height = picture.size
    return (width, height) if sideways else (height, width)


def upright(picture: "Image.Image", smallest: tuple[int, int] | None = None) -> "Image.Image":
    """Returns an opened picture turned as its EXIF orientation says, in the mode that the file has.

    smallest: (height, width), upright; a JPEG that is more than twice as large is decoded at a reduced scale.
    Raises an error, before memory is taken, where more than MOST_PIXELS would be decoded.
    """
    turn = _turn(picture)
    if smallest is not None:
        height, width = smallest
        picture.draft("RGB", (height, width) if turn in SIDEWAYS else (width, height))
    _check_pixels(picture)
    if turn not in TURNS:
        return picture
    return picture.transpose(getattr(_lazy.require("PIL.Image", "text").Transpose, TURNS[turn]))


def rgb(picture: "Image.Image") -> "Image.Image":
    """Returns a picture of any mode in RGB: 16 bits reduced to 8, and what is transparent laid over white.

    Raises ValueError for a mode whose black and white are not defined (32 bits or floats a pixel).
    """
    Image = _lazy.require("PIL.Image", "text")
    if picture.mode == "RGB" and "transparency" not in picture.info:
        return picture
    if picture.mode == "F" or (picture.mode == "I" and picture.format not in ("PNG", "PPM")):
        raise ValueError(f"its pixels are of mode {picture.mode}, whose white is not defined")
    if picture.mode.startswith("I"):  # 16 bits of grey; Pillow would clip them at 255
        grey, clear = np.asarray(picture).astype(np.uint32), picture.info.get("transparency")
        shown = (grey * 255 + 32767) // 65535
        shown = shown if clear is None else np.where(grey == clear, 255, shown)
        return Image.fromarray(shown.astype(np.uint8)).convert("RGB")
    if not (picture.mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in picture.info):
        return picture.convert("RGB")
    clear = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", clear.size, (255, 255, 255, 255)), clear).convert("RGB")


class _TooLarge(Exception):
    pass


def _check_pixels(picture: "Image.Image") -> None:
    if picture.width * picture.height > MOST_PIXELS:
        raise _TooLarge(f"{picture.width} x {picture.height}, and {MOST_PIXELS} are the most")


def _turn(picture: "Image.Image") -> int:
    if picture.format not in REDUCIBLE:  # the tag may stand behind the pixels; Pillow turns a TIFF as it decodes it
        _check_pixels(picture)
        picture.load()
    try:
        return picture.getexif().get(ORIENTATION, 1)
    except Exception:  # damaged EXIF, which viewers ignore: the pixels may well be whole
        return 1
