import io
import json

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from fedjax_mm.data import FederatedData, coco_captions, images, wordpiece

NUMBER = {"train": 7, "val": 3}


def grey(split, i):
    return 20 * i + 10 + 60 * (split == "val")


def caption(split, i, nth):
    return f"{split} picture {i} said in way {nth}"


@pytest.fixture
def official(tmp_path):
    """The official layout: a picture's grey and its captions say its number; ids descend in the file."""
    folder = tmp_path / "official"
    (folder / "annotations").mkdir(parents=True)
    for split, number in NUMBER.items():
        (folder / f"{split}2017").mkdir()
        listed = {"images": [], "annotations": []}
        for i in reversed(range(number)):
            name = f"{i:012}.jpg"
            Image.new("RGB", (30, 20), (grey(split, i),) * 3).save(folder / f"{split}2017" / name)
            listed["images"].append({"id": 100 + i, "file_name": name})
        for nth in range(6):  # the captions of a picture do not stand together
            listed["annotations"] += [
                {"image_id": 100 + i, "id": 10 * i + nth, "caption": f"{caption(split, i, nth)}\n"}
                for i in range(number)
            ]
        (folder / "annotations" / f"captions_{split}2017.json").write_text(json.dumps(listed))
    return folder


class CocoCaptions(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """The features of TFDS's own builder, that downloads 25 GB."""

    name = "coco_captions"
    VERSION = tfds.core.Version("1.1.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="2014", description="as TFDS's own")]

    def _info(self):
        captions = {"id": np.int64, "text": tfds.features.Text()}
        features = {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "image/filename": tfds.features.Text(),
            "image/id": np.int64,
            "captions": tfds.features.Sequence(captions),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in NUMBER}

    def _generate_examples(self, split):
        for i in range(NUMBER[split]):
            image = io.BytesIO()
            Image.new("RGB", (30, 20), (grey(split, i),) * 3).save(image, "JPEG")
            image.seek(0)
            captions = [{"id": 10 * i + nth, "text": caption(split, i, nth) + "\n"} for nth in range(6)]
            yield i, {"image": image, "image/filename": f"{i}.jpg", "image/id": 100 + i, "captions": captions}


@pytest.fixture
def prepared_folder(tmp_path):
    builder = CocoCaptions(config="2014", data_dir=tmp_path / "tfds", file_format="array_record")
    builder.download_and_prepare()
    return tmp_path / "tfds"


def load(folder, tmp_path, **arguments):
    return coco_captions.load(
        folder, **{"image": 8, "length": 60, "vocabulary": 70, "cache_dir": tmp_path / "cache", **arguments}
    )


@pytest.mark.parametrize("source", ["official", "prepared_folder"])
def test_pictures_and_their_first_five_captions_in_the_order_of_ids(source, request, tmp_path):
    data = load(request.getfixturevalue(source), tmp_path)
    assert data.modalities == ("image", "text")
    for split, name in (("train", "train"), ("valid", "val")):
        arrays, number = data.splits[split], NUMBER[name]
        assert isinstance(arrays["image"], np.memmap) and arrays["image"].shape == (number, 8, 8, 3)
        np.testing.assert_allclose(arrays["image"].mean((1, 2, 3)), [grey(name, i) for i in range(number)], atol=2)
        assert data.captions[split].tolist() == [[caption(name, i, nth) for nth in range(5)] for i in range(number)]
        assert [int(file.removesuffix(".jpg")) for file in data.files[split]] == list(range(number))
        assert arrays["text"].shape == (number, 5, 60) and arrays["text"].dtype == np.int32
        expected = wordpiece.encode(data.tokenizer, [caption(name, 1, 2)], 60)[0]
        np.testing.assert_array_equal(arrays["text"][1, 2], expected)
    fitted = wordpiece.train(data.captions["train"].reshape(-1).tolist(), 70)
    assert data.tokenizer.get_vocab() == fitted.get_vocab()


def test_a_round_gathers_from_the_memory_map(official, tmp_path):
    arrays = load(official, tmp_path).splits["train"]
    federated = FederatedData.from_arrays(arrays, [[0, 6], [1, 2]], on_device=False)
    cohort = federated.round({"all": np.array([1])}).cohorts["all"]
    assert isinstance(cohort.arrays["image"], jax.Array) and cohort.arrays["image"].shape == (2, 8, 8, 3)
    np.testing.assert_array_equal(cohort.arrays["image"], arrays["image"][[1, 2]])
    np.testing.assert_array_equal(cohort.arrays["text"], arrays["text"][[1, 2]])


@pytest.mark.parametrize("source", ["official", "prepared_folder"])
def test_photos_are_decoded_once(source, request, tmp_path, monkeypatch):
    folder = request.getfixturevalue(source)
    first = load(folder, tmp_path)
    decode = images.decode
    monkeypatch.setattr(images, "decode", None)
    np.testing.assert_array_equal(load(folder, tmp_path).splits["valid"]["image"], first.splits["valid"]["image"])
    monkeypatch.setattr(images, "decode", decode)
    few = load(folder, tmp_path, limit=2, splits=("valid",), tokenizer=first.tokenizer)
    np.testing.assert_array_equal(few.splits["valid"]["image"], first.splits["valid"]["image"][:2])
    np.testing.assert_array_equal(few.splits["valid"]["text"], first.splits["valid"]["text"][:2])
    assert load(folder, tmp_path, image=4).splits["train"]["image"].shape == (7, 4, 4, 3)


def test_what_is_missing_or_damaged_is_named(official, prepared_folder, tmp_path):
    photo = official / "train2017" / "000000000003.jpg"
    content = photo.read_bytes()
    photo.write_bytes(content[:-9])
    with pytest.raises(ValueError, match="000000000003.jpg is cut off"):
        load(official, tmp_path)
    photo.unlink()
    with pytest.raises(
        FileNotFoundError, match=r"train2017 has no 000000000003.jpg \(1 of 7 photos are missing\); get"
    ):
        load(official, tmp_path)
    photo.write_bytes(content)
    with pytest.raises(
        FileNotFoundError, match="has neither coco_captions prepared by TFDS nor .*captions_test2017.json"
    ):
        load(official, tmp_path, splits=("test",))
    with pytest.raises(KeyError, match=r"has no split 'test'; it has \['train', 'val'\]"):
        load(prepared_folder, tmp_path, splits=("test",))
    with pytest.raises(ValueError, match="splits is 'train'; give a tuple"):
        load(official, tmp_path, splits="train")
    with pytest.raises(ValueError, match="limit is 0"):
        load(official, tmp_path, limit=0)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        load(tmp_path / "nowhere", tmp_path)
    listed = official / "annotations" / "captions_train2017.json"
    text = listed.read_text()
    listed.write_text(text[:-200])
    with pytest.raises(ValueError, match="captions_train2017.json is cut off or no JSON"):
        load(official, tmp_path)
    few = json.loads(text)
    few["annotations"] = few["annotations"][:-10]
    listed.write_text(json.dumps(few))
    with pytest.raises(ValueError, match="000000000004.jpg has 4 captions where 5 are expected"):
        load(official, tmp_path)
