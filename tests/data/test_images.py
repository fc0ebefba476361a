import io
import os
import types

import numpy as np
import pytest
from PIL import Image

from fedjax_mm.data import images


def jpeg(pixels, kind="JPEG"):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, quality=95)
    return buffer.getvalue()


def test_a_picture_is_squashed_to_a_square_and_kept_as_it_is_where_it_is_one():
    halves = np.zeros((300, 600, 3), np.uint8)
    halves[:, 300:] = (200, 100, 50)
    for kind in ("JPEG", "PNG"):
        small = images.decode(jpeg(halves, kind), 20, "a.jpg")
        assert small.shape == (20, 20, 3) and small.dtype == np.uint8
        np.testing.assert_allclose(small[:, :9].astype(int), 0, atol=6)
        np.testing.assert_allclose(small[:, 11:].astype(int), np.broadcast_to([200, 100, 50], (20, 9, 3)), atol=6)
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    np.testing.assert_array_equal(images.decode(jpeg(noise, "PNG"), 16, "a.png"), noise)
    grey = images.decode(jpeg(noise[..., 0], "PNG"), 16, "a.png")
    np.testing.assert_array_equal(grey, np.repeat(noise[..., :1], 3, 2))


def test_a_picture_whose_aspect_is_kept_is_its_middle_square():
    wide = np.random.default_rng(0).integers(0, 256, (30, 61, 3), np.uint8)
    for pixels in (wide, wide.swapaxes(0, 1)):
        content, long = jpeg(pixels, "PNG"), (15, 30) if pixels is wide else (30, 15)
        whole = np.asarray(Image.fromarray(pixels).resize(long[::-1], Image.Resampling.BILINEAR))
        middle = whole[:, 7:22] if pixels is wide else whole[7:22]
        np.testing.assert_array_equal(images.decode(content, 15, "a.png", centre=True), middle)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("keep", [0.0, 0.05, 0.5, 0.97])
def test_a_damaged_picture_is_named(tmp_path, kind, keep):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    content = jpeg(noise, kind)
    (tmp_path / "photo").write_bytes(content[: int(keep * len(content))])
    with pytest.raises(ValueError, match="photo is cut off or no picture .*; copy or download it again"):
        images.read(tmp_path / "photo", 8)


def test_a_memory_map_is_written_once_and_not_at_all_where_a_row_fails(tmp_path, monkeypatch):
    path = tmp_path / "folder" / "rows.npy"
    asked = []

    def row(i):
        asked.append(i)
        if i == 3 and len(asked) < 10:
            raise ValueError("photo 3 is cut off")
        return np.full((2, 2), i, np.uint8)

    with pytest.raises(ValueError, match="photo 3"):
        images.memory_map(path, 5, row)
    assert os.listdir(path.parent) == []
    asked.extend(range(10))
    rows = images.memory_map(path, 5, row)
    assert isinstance(rows, np.memmap) and not rows.flags.writeable and os.listdir(path.parent) == ["rows.npy"]
    np.testing.assert_array_equal(rows, np.arange(5)[:, None, None] * np.ones((2, 2)))
    again = images.memory_map(path, 5, None)
    np.testing.assert_array_equal(again, rows)
    monkeypatch.setattr(images.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=19))
    with pytest.raises(OSError, match=r"other.npy needs 0.0 GB and 0.0 GB are free; choose smaller pictures"):
        images.memory_map(tmp_path / "other.npy", 5, row)


def test_a_listing_tells_files_apart(tmp_path):
    files = [tmp_path / name for name in "ab"]
    for file in files:
        file.write_text("one")
    first = images.listing(files)
    assert images.listing(files[::-1]) == first != images.listing(files[:1])
    files[0].write_text("three")
    assert images.listing(files) != first
