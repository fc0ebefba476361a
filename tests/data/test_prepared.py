import io
import json
import shutil
import types
import zipfile

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


class Wide(tfds.core.GeneratorBasedBuilder):
    """Two examples of what 32 bits or a plain array cannot hold, and a photo that lies on its side."""

    name = "wide"
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        picture = lambda channels: tfds.features.Image(shape=(None, None, channels), encoding_format=None)
        features = {
            "small": np.int64,
            "signed": np.int64,
            "nanoseconds": np.int64,
            "unsigned": np.uint64,
            "unsigned_small": np.uint64,
            "double": np.float64,
            "photo": picture(3),
            "grey": picture(1),
            "photos": tfds.features.Sequence(picture(3)),
            "nested": {"photo": picture(3), "number": np.int32},
            "texts": tfds.features.Sequence(tfds.features.Text(), length=2),
            "bytes": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(2):
            numbers = {"small": 5, "signed": 2**31 - 1 + i, "nanoseconds": 10**18, "unsigned": 2**40}
            yield (
                i,
                {
                    **numbers,
                    "unsigned_small": 7,
                    "double": 1e300,
                    "photo": sideways(),
                    "grey": sideways(),
                    "photos": [sideways(), sideways()],
                    "nested": {"photo": sideways(), "number": 3},
                    "texts": ["a", "Grüße"],
                    "bytes": b"\xff\x00",
                },
            )


def sideways():
    """A photo 96 x 64, its upper half white, as a camera stores it that is held upright."""
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    upright = np.zeros((96, 64, 3), np.uint8)
    upright[:48] = 255
    Image.fromarray(np.rot90(upright)).save(file, "jpeg", exif=exif)
    file.seek(0)
    return file


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    Wide(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


def test_numbers_are_what_was_stored_or_are_refused(wide):
    held = prepared.load("wide", wide, "train", ["small", "unsigned_small", "texts"])
    assert held["small"].dtype == held["unsigned_small"].dtype == np.int32
    assert [held[name].tolist() for name in held] == [[5, 5], [7, 7], [["a", "Grüße"]] * 2]
    assert prepared.load("wide", wide, "train", ["signed"], limit=1)["signed"] in (2**31 - 1, [2**31 - 1])
    for column, number in {"signed": 2**31, "nanoseconds": 10**18, "unsigned": 2**40}.items():
        with pytest.raises(ValueError, match=f"the numbers of column '{column}' have {number}"):
            prepared.load("wide", wide, "train", [column])
        assert number in [int(row[column]) for row in prepared.examples("wide", wide, "train", [column])]
    with pytest.raises(ValueError, match="column 'double' has infinite numbers or such that 32 bits do not hold"):
        prepared.load("wide", wide, "train", ["double"])
    for column in ("nested", "bytes"):
        with pytest.raises(ValueError, match=f"column '{column}' .*read it with `examples`"):
            prepared.load("wide", wide, "train", [column])


def test_photos_are_upright_at_every_depth(wide):
    row = prepared.examples("wide", wide, "train", ["photo", "grey", "photos", "nested"])[0]
    for photo in (row["photo"], row["grey"], *row["photos"], row["nested"]["photo"]):
        assert photo.shape[:2] == (96, 64) and photo.shape[2] == (1 if photo is row["grey"] else 3)
        assert photo[:40].min() > 240 and photo[56:].max() < 15
    assert row["nested"]["number"] == 3


def test_a_limit_that_is_not_reached_is_said(data_dir, caplog):
    prepared.load("toy", data_dir, "test", ["label"], limit=3)
    assert not caplog.records
    prepared.load("toy", data_dir, "test", ["label"], limit=4)
    assert "split 'test' of toy has 3, fewer than limit=4 asks for" in caplog.text


EVIL = "evil_features.Feature"
TEXT = {"pythonClassName": "tensorflow_datasets.core.features.text_feature.Text", "text": {}}


def features_dict(**features):
    name = "tensorflow_datasets.core.features.features_dict.FeaturesDict"
    return {"pythonClassName": name, "featuresDict": {"features": features}}


def sequence_of(feature):
    name = "tensorflow_datasets.core.features.sequence_feature.Sequence"
    return {"pythonClassName": name, "sequence": {"feature": feature, "length": "-1"}}


@pytest.mark.parametrize("file", ["features.json", "dataset_info.json"])
@pytest.mark.parametrize(
    "features",
    [
        {"pythonClassName": EVIL, "text": {}},
        features_dict(label=TEXT, other={"python_class_name": EVIL, "text": {}}),
        features_dict(label=sequence_of(sequence_of({"pythonClassName": EVIL, "text": {}}))),
        features_dict(label={"pythonClassName": "tensorflow_datasets_evil.A", "text": {}}),
        features_dict(label={"pythonClassName": "tensorflow_datasets.A\nevil_features.A", "text": {}}),
        {"type": EVIL, "content": {}},
        {
            "type": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
            "content": {"label": {"type": EVIL, "content": {}}},
        },
        features_dict(
            label={
                "pythonClassName": "tensorflow_datasets.core.features.sequence_feature.Sequence",
                "jsonFeature": {"json": json.dumps({"feature": {"type": EVIL, "content": {}}, "length": None})},
            }
        ),
    ],
)
def test_a_prepared_folder_runs_no_code_of_its_own(copy, monkeypatch, features, file):
    ran = copy / "ran"
    (copy / "evil_features.py").write_text(f"open({str(ran)!r}, 'w')")
    (copy / "tensorflow_datasets_evil.py").write_text(f"open({str(ran)!r}, 'w')")
    monkeypatch.syspath_prepend(copy)
    path = copy / "toy" / "1.10.0" / file
    held = json.loads(path.read_text())
    path.write_text(json.dumps(features if file == "features.json" else {**held, "features": features}))
    with pytest.raises(ValueError, match=f"{file} names the class .* not of tensorflow_datasets"):
        prepared.load("toy", copy, "train")
    assert not ran.exists()


@pytest.mark.parametrize("content", ["", "{", "[]", "[" * 100_000, '{"featuresDict": 3}', json.dumps(TEXT)])
@pytest.mark.parametrize("name", ["features.json", "dataset_info.json"])
def test_a_damaged_description_is_named(copy, name, content):
    (copy / "toy" / "1.10.0" / name).write_text(content)
    with pytest.raises(ValueError, match="1.10.0.* (is cut off or no JSON|has a damaged description)"):
        prepared.load("toy", copy, "train")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"limit": True}, "limit is True"),
        ({"limit": 1.5}, "limit is 1.5"),
        ({"limit": "3"}, "limit is '3'"),
        ({"columns": "label"}, "columns is 'label'; give a tuple of names"),
        ({"columns": []}, r"columns is \[\]"),
        ({"columns": ["label", "label"]}, "names something twice"),
        ({"split": None}, "split None"),
        ({"name": 3}, "name is 3"),
        ({"data_dir": None}, "data_dir is None; give the path"),
    ],
)
def test_a_wrong_argument_is_named(data_dir, wrong, message):
    with pytest.raises(ValueError, match=message):
        prepared.load(**{"name": "toy", "data_dir": data_dir, "split": "train", **wrong})


def archive(path, *members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members:
            file.writestr(name, content)
    return path


def test_only_what_is_asked_for_leaves_an_archive(tmp_path):
    members = (("deep/a.log", "one"), ("../b.log", "two"), ("/etc/c.log", "three"), ("__MACOSX/._a.log", "no"))
    folder = prepared._unzip(archive(tmp_path / "a.zip", *members), ("a.log", "b.log"))
    assert {file.name: file.read_text() for file in folder.iterdir()} == {"a.log": "one", "b.log": "two"}
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.members", "a.zip"]


def test_an_archive_is_refused_before_it_fills_the_disk(tmp_path, monkeypatch):
    bomb = archive(tmp_path / "a.zip", ("a.log", bytes(10**6)))
    assert bomb.stat().st_size < 2000
    monkeypatch.setattr(prepared, "LARGEST_MEMBER", 10**6 - 1)
    with pytest.raises(ValueError, match="a.zip is .*a.log claims 1000000 bytes"):
        prepared._unzip(bomb, ("a.log",))
    monkeypatch.setattr(prepared, "LARGEST_MEMBER", 10**6)
    monkeypatch.setattr(prepared.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=10**6 - 1))
    with pytest.raises(ValueError, match="a.zip is .*need 0.0 GB and 0.0 GB are free"):
        prepared._unzip(bomb, ("a.log",))
    assert list((tmp_path / "a.members").iterdir()) == []
    two = archive(tmp_path / "b.zip", ("x/a.log", "one"), ("y/a.log", "two"))
    with pytest.raises(ValueError, match="b.zip is .*two different files a.log"):
        prepared._unzip(two, ("a.log",))


def test_downloads_are_encrypted_on_their_way():
    from fedjax_mm.data.mhealth import mhealth_dataset_builder as mhealth
    from fedjax_mm.data.opportunity import opportunity_dataset_builder as opportunity
    from fedjax_mm.data.ur_fall import ur_fall_dataset_builder as ur_fall

    assert all(builder.URL.startswith("https://") for builder in (mhealth, opportunity, ur_fall))


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
