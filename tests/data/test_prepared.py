import io
import json
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from fedjax_mm.data import prepared

NUMBER = 20
IMAGES = np.random.default_rng(0).integers(0, 256, (NUMBER, 5, 4, 3), dtype=np.uint8)
TEXTS = [f"text {i}, Grüße" for i in range(NUMBER)]


def png(image):
    """The image as a file; TFDS encodes arrays with TensorFlow only."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "png")
    file.seek(0)
    return file


class Toy(tfds.core.GeneratorBasedBuilder):
    name = "toy"
    VERSION = tfds.core.Version("1.10.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(5, 4, 3), encoding_format="png"),
            "label": tfds.features.ClassLabel(num_classes=7),
            "text": tfds.features.Text(),
            "ragged": tfds.features.Tensor(shape=(None,), dtype=np.float32),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(NUMBER), "test": self._generate_examples(3)}

    def _generate_examples(self, number):
        for i in range(number):
            ragged = np.full(i, 0.5, np.float32)
            yield i, {"image": png(IMAGES[i]), "label": i % 7, "text": TEXTS[i], "ragged": ragged}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """The dataset `toy` prepared, and in an older version, with the splits' names exchanged."""
    folder = tmp_path_factory.mktemp("tfds")
    Toy(data_dir=folder, file_format="array_record").download_and_prepare()
    new, old = folder / "toy" / "1.10.0", folder / "toy" / "1.9.0"
    shutil.copytree(new, old)
    info = json.loads((old / "dataset_info.json").read_text())
    info["version"] = "1.9.0"
    train, test = info["splits"]
    train["shardLengths"], test["shardLengths"] = test["shardLengths"], train["shardLengths"]
    (old / "dataset_info.json").write_text(json.dumps(info))
    (record,) = old.glob("toy-train*")
    (old / "toy-test.array_record-00000-of-00001").rename(old / "spare")
    record.rename(old / "toy-test.array_record-00000-of-00001")
    (old / "spare").rename(record)
    return folder


@pytest.fixture
def copy(data_dir, tmp_path):
    return shutil.copytree(data_dir, tmp_path / "copy")


COLUMNS = ("image", "label", "text")


def test_load_gives_back_what_was_stored(data_dir):
    arrays = prepared.load("toy", data_dir, "train", COLUMNS)
    assert arrays["image"].shape == (NUMBER, 5, 4, 3) and arrays["image"].dtype == np.uint8
    assert arrays["label"].dtype == np.int32 and arrays["text"].dtype.kind == "U"
    place = np.array([TEXTS.index(text) for text in arrays["text"]])
    np.testing.assert_array_equal(np.sort(place), np.arange(NUMBER))
    np.testing.assert_array_equal(arrays["image"], IMAGES[place])
    np.testing.assert_array_equal(arrays["label"], place % 7)


def test_limit_columns_split_and_version(data_dir):
    whole = prepared.load("toy", data_dir, "train", COLUMNS)
    few = prepared.load("toy", data_dir, "train", ["label"], limit=4)
    assert list(few) == ["label"]
    np.testing.assert_array_equal(few["label"], whole["label"][:4])
    assert len(prepared.load("toy", data_dir, "test", ["label"])["label"]) == 3
    assert len(prepared.load("toy/1.9.0", data_dir, "train", ["label"])["label"]) == 3
    assert len(prepared.load("toy", data_dir, "train", ["label"], limit=999)["label"]) == NUMBER


def test_examples_of_different_shapes_come_one_by_one(data_dir):
    with pytest.raises(ValueError, match="differ in the shape of 'ragged'.*`examples`"):
        prepared.load("toy", data_dir, "train")
    rows = prepared.examples("toy", data_dir, "train", ["text", "ragged"])
    assert all(len(row["ragged"]) == TEXTS.index(row["text"].decode()) for row in rows)


@pytest.mark.parametrize(
    ("name", "split", "columns", "error", "message"),
    [
        ("toi", "train", None, FileNotFoundError, r"no prepared dataset 'toi'; it has \['toy'\]"),
        ("toy/2.0.0", "train", None, FileNotFoundError, r"no prepared dataset 'toy/2.0.0'; it has \['toy'\]"),
        ("toy", "valid", None, KeyError, r"no split 'valid'; it has \['test', 'train'\]"),
        (
            "toy",
            "train",
            ["pixels"],
            KeyError,
            r"no column \['pixels'\]; it has \['image', 'label', 'ragged', 'text'\]",
        ),
    ],
)
def test_a_wrong_name_is_answered_with_what_is_there(data_dir, name, split, columns, error, message):
    with pytest.raises(error, match=message):
        prepared.load(name, data_dir, split, columns)


def test_a_wrong_folder_or_limit_is_refused(data_dir, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder .*nowhere"):
        prepared.load("toy", tmp_path / "nowhere", "train")
    with pytest.raises(ValueError, match="limit is 0"):
        prepared.load("toy", data_dir, "train", limit=0)


@pytest.mark.parametrize("keep", [0, 1000, 65536, -1000])
def test_a_cut_off_record_file_is_named(copy, keep):
    (record,) = (copy / "toy" / "1.10.0").glob("toy-train.array_record*")
    record.write_bytes(record.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"toy-train.array_record.* is cut off: .* where 20 are expected"):
        prepared.load("toy", copy, "train", ["label"])
    assert prepared.load("toy", copy, "test", ["label"])


def test_damage_within_and_loss_of_a_record_file_are_named(copy):
    (record,) = (copy / "toy" / "1.10.0").glob("toy-train.array_record*")
    content = bytearray(record.read_bytes())
    content[300:600] = bytes(300)
    record.write_bytes(content)
    with pytest.raises(ValueError, match="record of toy in .*1.10.0 is damaged .*copy or prepare it again"):
        prepared.load("toy", copy, "train", ["label"])
    record.unlink()
    with pytest.raises(FileNotFoundError, match="no record file .*toy-train.array_record"):
        prepared.load("toy", copy, "train", ["label"])


def test_the_real_sets(shared_data):
    folder = shared_data / "tfds"
    for split, number in (("train", 20_000), ("test", 5_000)):
        label = prepared.load("cifar100", folder, split, ["label"])["label"]
        np.testing.assert_array_equal(np.bincount(label), np.full(100, number // 100))
    images = prepared.load("cifar100", folder, "test", limit=50)
    assert images["image"].shape == (50, 32, 32, 3) and images["image"].std() > 30
    digits = prepared.load("mnist", folder, "test", limit=50)
    assert digits["image"].shape == (50, 28, 28, 1) and set(digits["label"]) <= set(range(10))
    news = prepared.load("ag_news_subset", folder, "test")
    assert len(news["label"]) == 7_600 and set(news["label"]) == set(range(4))
    assert all(text.strip() for text in news["description"])
