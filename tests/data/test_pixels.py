"""Pictures are read as they are shown: by EXIF's own definition of upright, and by the formula for lying over white."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from fedjax_mm.data import images, pixels
from fedjax_mm.data.vqa import pictures

BLOCKS = np.array([[[250, 20, 20], [20, 240, 20], [20, 20, 250]], [[240, 240, 30], [20, 20, 20], [230, 230, 230]]])
UPRIGHT = BLOCKS.repeat(32, 0).repeat(32, 1).astype(np.uint8)  # 64 x 96
# EXIF 2.3, tag Orientation: which side of the picture the stored row 0 and column 0 are.
STORED = {
    1: UPRIGHT,  # top, left
    2: UPRIGHT[:, ::-1],  # top, right
    3: UPRIGHT[::-1, ::-1],  # bottom, right
    4: UPRIGHT[::-1],  # bottom, left
    5: UPRIGHT.swapaxes(0, 1),  # left, top
    6: UPRIGHT.swapaxes(0, 1)[::-1],  # right, top
    7: UPRIGHT[::-1, ::-1].swapaxes(0, 1),  # right, bottom
    8: UPRIGHT[::-1].swapaxes(0, 1),  # left, bottom
}


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **options)
    return buffer.getvalue()


def turned(orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(np.ascontiguousarray(STORED[orientation]), kind, exif=exif)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", STORED)
def test_a_picture_is_upright_wherever_it_is_decoded(tmp_path, kind, orientation):
    content = turned(orientation, kind)
    centres = images.decode(content, 96, "a")[16::48][:2, 16::32]  # squashed from 64 x 96 to 96 x 96
    np.testing.assert_allclose(centres.astype(int), BLOCKS, atol=12)
    (tmp_path / "a").write_bytes(content)
    fitted, size = pictures.read(tmp_path / "a", (96, 96), 16)
    assert size == (64, 96) and not fitted[64:].any()
    np.testing.assert_allclose(fitted[16:64:32, 16::32].astype(int), BLOCKS, atol=12)
    small, size = pictures.read(tmp_path / "a", (20, 21), 7)  # a JPEG at a reduced scale
    assert size == (14, 21)
    np.testing.assert_allclose(small[3:14:7, 3::7].astype(int), BLOCKS, atol=25)


def test_damaged_exif_leaves_a_picture_as_it_is_stored():
    content = turned(6, "JPEG")
    start = content.index(b"Exif\0\0") + 6
    damaged = content[:start] + b"XX\xff\xff\xff\xff\xff\xff" + content[start + 8 :]
    stored = images.decode(encoded(np.ascontiguousarray(STORED[6]), "JPEG"), 96, "a")
    np.testing.assert_array_equal(images.decode(damaged, 96, "a"), stored)


def over_white(colour, alpha):
    return np.round(colour * (alpha / 255.0) + 255.0 * (1 - alpha / 255.0))


def test_transparent_parts_lie_over_white_and_opaque_ones_are_what_they_were():
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    rgba = np.stack([ramp, ramp[::-1], 255 - ramp, ramp.T], -1)
    shown = images.decode(encoded(rgba), 16, "a").astype(int)
    np.testing.assert_allclose(shown, over_white(rgba[..., :3].astype(float), rgba[..., 3:]), atol=1)
    opaque = rgba.copy()
    opaque[..., 3] = 255
    np.testing.assert_array_equal(images.decode(encoded(opaque), 16, "a"), rgba[..., :3])
    grey = np.stack([ramp, np.where(ramp > 99, 255, 0).astype(np.uint8)], -1)
    shown = images.decode(encoded(Image.fromarray(grey, "LA")), 16, "a")
    np.testing.assert_array_equal(shown, np.where(ramp > 99, ramp, 255)[..., None].repeat(3, -1))
    palette = Image.fromarray((ramp % 2).astype(np.uint8), "P")
    palette.putpalette([10, 20, 30, 200, 100, 50])
    expected = np.where(ramp[..., None] % 2, (200, 100, 50), (10, 20, 30))
    np.testing.assert_array_equal(images.decode(encoded(palette), 16, "a"), expected)
    expected = np.where(ramp[..., None] % 2, (200, 100, 50), (255, 255, 255))
    np.testing.assert_array_equal(images.decode(encoded(palette, transparency=0), 16, "a"), expected)
    keyed = images.decode(encoded(rgba[..., :3].copy(), transparency=(0, 240, 255)), 16, "a")
    assert keyed[0, 0].tolist() == [255, 255, 255]
    np.testing.assert_array_equal(keyed[0, 1:], rgba[0, 1:, :3])


def test_sixteen_bits_of_grey_are_scaled_and_not_cut_off():
    grey = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    expected = np.round(grey / 65535 * 255)[..., None].repeat(3, -1)
    np.testing.assert_array_equal(images.decode(encoded(grey), 8, "a"), expected)
    header = b"P5 8 8 65535\n"  # PGM, big-endian
    np.testing.assert_array_equal(images.decode(header + grey.astype(">u2").tobytes(), 8, "a"), expected)
    for undefined in (np.ones((8, 8), np.float32), np.ones((8, 8), np.int32)):
        with pytest.raises(ValueError, match="a.tif is .*white is not defined"):
            images.decode(encoded(undefined, "TIFF"), 8, "a.tif")


def claims(width, height):
    """A PNG of a hundred bytes that says it has so many pixels."""
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("sides", [(8193, 8192), (13_000, 13_000), (50_000, 50_000)])
def test_a_picture_that_claims_too_many_pixels_is_refused_before_it_is_decoded(tmp_path, monkeypatch, sides):
    monkeypatch.setattr(Image.core, "fill", None)
    monkeypatch.setattr(Image.core, "new", None)  # what takes the memory
    (tmp_path / "bomb.png").write_bytes(claims(*sides))
    for read in (lambda path: images.read(path, 8), lambda path: pictures.read(path, (32, 32), 8)):
        with pytest.raises(ValueError, match="bomb.png claims more pixels than may be decoded .*scale it down"):
            read(tmp_path / "bomb.png")


def test_a_photo_of_many_pixels_is_read_at_a_reduced_scale(monkeypatch):
    monkeypatch.setattr(pixels, "MOST_PIXELS", 64 * 96 // 4)
    centres = images.decode(turned(6, "JPEG"), 24, "a")[4::12][:2, 4::8]
    np.testing.assert_allclose(centres.astype(int), BLOCKS, atol=25)
    with pytest.raises(ValueError, match="a.png claims more pixels"):
        images.decode(turned(6, "PNG"), 24, "a.png")


def test_a_drawing_is_no_picture():
    with pytest.raises(ValueError, match="a.eps is .*EPS is a drawing"):
        images.decode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n%%EOF\n", 8, "a.eps")


def test_a_side_of_no_pixels_is_refused():
    for wrong in (0, -1, 2.5, "8", True, None):
        with pytest.raises(ValueError, match="size is .*; give a whole number of 1 or more"):
            images.decode(encoded(UPRIGHT), wrong, "a")
