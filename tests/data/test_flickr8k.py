import os
import shutil

import numpy as np
import pytest
from PIL import Image

from fedjax_mm.data import captions, flickr8k, wordpiece

SIZES = {"train": 8, "dev": 3, "test": 4}
NUMBERS = {"train": range(0, 8), "valid": range(8, 11), "test": range(11, 15)}
BROKEN = "Flicker8k_Dataset/12_a.jpg"
VOCABULARY = 60


def caption(i, nth):
    return f"Photo {i} in the words of person {nth} ."


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """The official folders: photo i has grey 15 i + 10; one more in no split; captions of each in disorder."""
    folder = tmp_path_factory.mktemp("raw")
    for name in ("Flicker8k_Dataset", "Flickr8k_text"):
        (folder / name).mkdir()
    lines, i = [], 0
    for split, number in SIZES.items():
        names = []
        for _ in range(number):
            names.append(f"{i}_{'abc'[i % 3]}.jpg")
            i += 1
        (folder / "Flickr8k_text" / f"Flickr_8k.{split}Images.txt").write_text("\n".join(names) + "\n")
        for name in names:
            n = int(name.split("_")[0])
            Image.new("RGB", (40, 30), (15 * n + 10,) * 3).save(folder / "Flicker8k_Dataset" / name)
            lines += [f"{name}#{nth}\t{caption(n, nth)}\n" for nth in (3, 0, 4, 1, 2)]
    lines.append("99_z.jpg.1#0\tThe one official line without a photo .\n")
    (folder / "Flickr8k_text" / "Flickr8k.token.txt").write_text("".join(lines))
    return folder


@pytest.fixture(scope="module")
def prepared_dir(raw, tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    flickr8k.load(raw, folder, vocabulary=VOCABULARY)
    return folder


@pytest.fixture
def copy(raw, tmp_path):
    return shutil.copytree(raw, tmp_path / "copy")


def load(prepared_dir, **arguments):
    return flickr8k.load(None, prepared_dir, **{"image": 8, "length": 50, "vocabulary": VOCABULARY, **arguments})


def number(arrays):
    return np.rint((arrays["image"].mean((1, 2, 3)) - 10) / 15).astype(int)


def test_photos_and_captions_in_the_official_splits_and_order(prepared_dir):
    data = load(prepared_dir)
    assert list(data.splits) == ["train", "valid", "test"] and data.modalities == ("image", "text")
    for split, expected in NUMBERS.items():
        arrays, i = data.splits[split], len(expected)
        assert {k: (a.shape, a.dtype) for k, a in arrays.items()} == {
            "image": ((i, 8, 8, 3), np.uint8),
            "text": ((i, 5, 50), np.int32),
        }
        np.testing.assert_array_equal(number(arrays), expected)
        assert data.captions[split].tolist() == [[caption(n, nth) for nth in range(5)] for n in expected]
        assert [int(name.split("_")[0]) for name in data.files[split]] == list(expected)
        for row, n in zip(arrays["text"], expected, strict=True):
            each = wordpiece.encode(data.tokenizer, [caption(n, nth) for nth in range(5)], 50)
            np.testing.assert_array_equal(row, each)


def test_queries_name_their_photo(prepared_dir):
    text = load(prepared_dir).splits["test"]["text"]
    tokens, text_to_image = captions.queries(text)
    assert tokens.shape == (20, 50) and text_to_image.dtype == np.int32
    for query, image in zip(tokens, text_to_image, strict=True):
        assert (query == text[image]).all(1).any()
    np.testing.assert_array_equal(np.bincount(text_to_image), [5] * 4)


def test_the_tokenizer_is_fitted_to_train_alone_whatever_is_public(prepared_dir, tmp_path):
    data = load(prepared_dir)
    official = [caption(n, nth) for n in NUMBERS["train"] for nth in range(5)]
    assert data.tokenizer.get_vocab() == wordpiece.train(official, VOCABULARY).get_vocab()
    assert load(prepared_dir, public=3).tokenizer.get_vocab() == data.tokenizer.get_vocab()
    data.tokenizer.save(str(tmp_path / "tokenizer.json"))
    again = load(prepared_dir, tokenizer=tmp_path / "tokenizer.json", vocabulary=0)
    np.testing.assert_array_equal(again.splits["test"]["text"], data.splits["test"]["text"])


def test_public_photos_are_drawn_from_train_and_missing_there(prepared_dir):
    draws = [load(prepared_dir, public=3, seed=seed) for seed in (0, 0, 1, 2)]
    for data in draws:
        public, train = (set(number(data.splits[split])) for split in ("public", "train"))
        assert len(public) == 3 and len(train) == 5 and public | train == set(NUMBERS["train"])
        for split in ("public", "train"):
            numbers = number(data.splits[split])
            assert data.captions[split][:, 2].tolist() == [caption(n, 2) for n in numbers]
            assert [int(name.split("_")[0]) for name in data.files[split]] == numbers.tolist()
    drawn = [number(data.splits["public"]).tolist() for data in draws]
    assert drawn[0] == drawn[1] and len({tuple(d) for d in drawn}) > 1
    for public in (8, -1):
        with pytest.raises(ValueError, match=f"public is {public}; (train has 8 photos|give a whole number)"):
            load(prepared_dir, public=public)


def cut_off_photo(folder):
    content = (folder / BROKEN).read_bytes()
    (folder / BROKEN).write_bytes(content[:-20])
    return "12_a.jpg is cut off or no picture .*; copy or download it again"


def empty_photo(folder):
    (folder / BROKEN).write_bytes(b"")
    return "12_a.jpg is cut off or no picture"


def cut_off_captions(folder):
    path = folder / "Flickr8k_text" / "Flickr8k.token.txt"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-4]))
    return r"Flickr8k.token.txt is cut off: it has 2 captions of 14_c.jpg, not 5; get it again from https"


def broken_line(folder):
    path = folder / "Flickr8k_text" / "Flickr8k.token.txt"
    path.write_text(path.read_text() + "14_c.j")
    return r"Flickr8k.token.txt has a line that is no `name.jpg#0`, tab, caption: '14_c.j'"


def cut_off_list(folder):
    path = folder / "Flickr8k_text" / "Flickr_8k.testImages.txt"
    path.write_text(path.read_text()[:-3])
    return "testImages.txt is cut off or no list of .jpg files"


def overlap(folder):
    path = folder / "Flickr8k_text" / "Flickr_8k.testImages.txt"
    path.write_text(path.read_text() + "0_a.jpg\n")
    return "names 0_a.jpg twice in"


@pytest.mark.parametrize("damage", [cut_off_photo, empty_photo, cut_off_captions, broken_line, cut_off_list, overlap])
def test_a_damaged_file_is_named_with_its_cure(copy, tmp_path, damage):
    message = damage(copy)
    with pytest.raises(ValueError, match=message):
        flickr8k.load(copy, tmp_path / "prepared", vocabulary=VOCABULARY)
    assert not list((tmp_path / "prepared").rglob("*.array_record*"))


def test_a_missing_file_is_named_with_its_cure(copy, tmp_path):
    (copy / BROKEN).unlink()
    with pytest.raises(FileNotFoundError, match=rf"has no {BROKEN} \(1 of 15 files are missing\); get it from https"):
        flickr8k.load(copy, tmp_path)
    (copy / "Flickr8k_text" / "Flickr_8k.devImages.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no Flickr8k_text/Flickr_8k.devImages.txt \(1 of 4 files"):
        flickr8k.load(copy, tmp_path)
    with pytest.raises(FileNotFoundError, match="Flickr8k is not prepared in .*; get it from https.* as data_dir"):
        flickr8k.load(None, tmp_path / "nowhere")


def test_other_raw_files_than_the_prepared_ones_are_noticed(copy, prepared_dir):
    assert flickr8k.load(copy, prepared_dir, vocabulary=VOCABULARY)
    Image.new("RGB", (9, 9)).save(copy / BROKEN)
    with pytest.raises(ValueError, match="prepared from other raw files than those in"):
        flickr8k.load(copy, prepared_dir, vocabulary=VOCABULARY)


def test_the_real_photos(shared_data, tmp_path):
    """A part of them, so that it takes a second: every 40th photo of each list."""
    real, part = shared_data / "flickr8k", tmp_path / "part"
    (part / "Flickr8k_text").mkdir(parents=True)
    os.symlink(real / "Flicker8k_Dataset", part / "Flicker8k_Dataset")
    os.symlink(real / "Flickr8k_text" / "Flickr8k.token.txt", part / "Flickr8k_text" / "Flickr8k.token.txt")
    lists = {split: f"Flickr8k_text/Flickr_8k.{split}Images.txt" for split in ("train", "dev", "test")}
    members = {split: (real / path).read_text().split() for split, path in lists.items()}
    assert {split: len(names) for split, names in members.items()} == {"train": 6000, "dev": 1000, "test": 1000}
    for split, path in lists.items():
        (part / path).write_text("\n".join(members[split][::40]))
    data = flickr8k.load(part, tmp_path / "prepared", vocabulary=1000)
    assert data.files["test"].tolist() == members["test"][::40]
    assert data.captions["train"].shape == (150, 5) and data.splits["train"]["image"].shape == (150, 96, 96, 3)
    name, image = data.files["valid"][7], data.splits["valid"]["image"][7]
    np.testing.assert_array_equal(image, np.asarray(Image.open(real / "Flicker8k_Dataset" / name).convert("RGB")))
    lines = (real / "Flickr8k_text" / "Flickr8k.token.txt").read_text().splitlines()
    assert [f"{name}#{n}\t{text}" for n, text in enumerate(data.captions["valid"][7])] == [
        line for line in lines if line.startswith(f"{name}#")
    ]
    known = data.splits["test"]["text"][data.splits["test"]["text"] > 0]
    assert (known == 1).mean() < 0.001  # unknown characters
