import numpy as np
import pytest
from PIL import Image
from scipy.io import wavfile

from fedjax_mm.data import advance, audio, images

SIZES = {"airport": 6, "sparse shrub land": 9, "lake": 5}


@pytest.fixture
def raw(tmp_path):
    """The official layout: a photo of one grey, a tone of 200 Hz times its number."""
    number = 0
    for name, size in SIZES.items():
        for room in ("vision", "sound"):
            (tmp_path / "raw" / room / name).mkdir(parents=True)
        for i in range(size):
            number += 1
            stem = f"{i:05}_{name[0]}.{number}"
            Image.new("RGB", (40, 30), (10 * number,) * 3).save(tmp_path / "raw" / "vision" / name / f"{stem}.jpg")
            tone = 9000 * np.sin(2 * np.pi * 200 * number * np.arange(4410) / 22_050)
            wavfile.write(
                tmp_path / "raw" / "sound" / name / f"{stem}.wav", 22_050, np.stack([tone, tone], 1).astype(np.int16)
            )
    (tmp_path / "raw" / "vision" / "lake" / "._hidden.jpg").write_bytes(b"of another system")
    return tmp_path / "raw"


def load(raw, **arguments):
    return advance.load(raw, **{"image": 8, "mels": 32, "frames": 16, "cache_dir": raw.parent / "cache", **arguments})


def test_photo_and_sound_of_a_pair_belong_together(raw):
    data = load(raw)
    assert data.modalities == ("image", "audio") and data.classes == ("airport", "lake", "sparse shrub land")
    order = [0, 2, 1]  # of the classes as they were written
    ends = np.cumsum(list(SIZES.values()))
    centres = audio.mel_filters(16_000, 512, 32).argmax(0) * 16_000 / 512
    for arrays in data.splits.values():
        m = len(arrays["label"])
        assert arrays["image"].shape == (m, 8, 8, 3) and arrays["audio"].shape == (m, 16, 32)
        assert arrays["image"].dtype == np.uint8 and arrays["audio"].dtype == np.float32
        number = np.rint(arrays["image"].mean((1, 2, 3)) / 10)
        loudest = centres[arrays["audio"].mean(1).argmax(1)]
        np.testing.assert_allclose(loudest, 200 * number, rtol=0.12)
        np.testing.assert_array_equal(np.take(order, np.searchsorted(ends, number)), arrays["label"])


def test_four_fifths_of_each_class_are_train_drawn_by_the_seed(raw):
    counts = lambda data: {split: np.bincount(a["label"]).tolist() for split, a in data.splits.items()}
    assert counts(load(raw)) == {"train": [4, 4, 7], "test": [2, 1, 2]}
    held = load(raw, valid=0.3)
    assert counts(held) == {"train": [3, 3, 5], "valid": [1, 1, 2], "test": [2, 1, 2]}
    np.testing.assert_array_equal(held.splits["test"]["image"], load(raw).splits["test"]["image"])
    greys = np.concatenate([a["image"][:, 0, 0, 0] for a in held.splits.values()])
    assert len(np.unique(greys)) == 20
    assert (load(raw, seed=3).splits["test"]["image"] != load(raw).splits["test"]["image"]).any()
    with pytest.raises(ValueError, match="valid is 1.0; give the share of train"):
        load(raw, valid=1.0)


def test_files_are_decoded_once_unless_they_change(raw, monkeypatch):
    plain, read = images.read, []
    monkeypatch.setattr(images, "read", lambda path, size: read.append(path) or plain(path, size))
    load(raw)
    first = len(read)
    load(raw, seed=1)
    assert first >= 20 and len(read) == first
    Image.new("RGB", (50, 50)).save(next((raw / "vision" / "lake").glob("0*.jpg")))
    load(raw)
    assert len(read) == 2 * first


def test_a_missing_or_damaged_file_is_named(raw):
    sound = raw / "sound" / "lake" / "00001_l.17.wav"
    content = sound.read_bytes()
    sound.write_bytes(content[:200])
    with pytest.raises(ValueError, match="00001_l.17.wav is cut off"):
        load(raw)
    sound.unlink()
    with pytest.raises(FileNotFoundError, match=r"raw/sound has nothing to go with .*00001_l.17.jpg \(1 of 20 are mis"):
        load(raw)
    sound.write_bytes(content)
    photo = raw / "vision" / "lake" / "00001_l.17.jpg"
    picture = photo.read_bytes()
    photo.write_bytes(picture[:100])
    with pytest.raises(ValueError, match="00001_l.17.jpg is cut off"):
        load(raw)
    photo.unlink()
    with pytest.raises(FileNotFoundError, match="raw/vision has nothing to go with .*00001_l.17.wav"):
        load(raw)
    with pytest.raises(FileNotFoundError, match=r"vision has no <class>/\*.jpg; get it from https://zenodo"):
        load(raw.parent)
