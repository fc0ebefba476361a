"""Folders in the layouts that scripts read at full size, with next to nothing in them."""

import io
import json

import jax
import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from fedjax_mm.models import pretrained


def save_model(folder, model, kind):
    """A Hugging Face folder of a model with random weights."""
    folder.mkdir(parents=True, exist_ok=True)
    shapes = jax.eval_shape(model.init, jax.random.key(0), model.example)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: 0.1 * rng.standard_normal(leaf.shape, np.float32), shapes)
    unit = lambda path, leaf: np.ones_like(leaf) if path[-1].key == "running_variance" else leaf
    params = jax.tree_util.tree_map_with_path(unit, params)
    pretrained.save(params, model, folder / "model.safetensors")
    about = {"model_type": kind, **model.checkpoint.config}
    (folder / "config.json").write_text(json.dumps(about))


def save_words(folder):
    """A vocab.txt of letters, alone and inside of words; the number of its pieces."""
    letters = [chr(ord("a") + i) for i in range(26)] + [str(i) for i in range(10)]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n")
    return len(pieces)


def prepare(folder, name, features, splits):
    """A dataset that TFDS has prepared. splits: name -> its examples."""

    def info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    members = {
        "name": name,
        "VERSION": tfds.core.Version("1.0.0"),
        "_info": info,
        "_split_generators": lambda self, manager: {
            split: self._generate_examples(rows) for split, rows in splits.items()
        },
        "_generate_examples": lambda self, rows: enumerate(rows),
    }
    kind = type(name, (tfds.core.GeneratorBasedBuilder,), members, skip_registration=True)
    kind(data_dir=folder, file_format="array_record").download_and_prepare()


def pictures(number, side, classes, seed=0):
    """Features and rows of labelled pictures, as of STL-10 and CIFAR."""
    rng = np.random.default_rng(seed)
    features = {
        "image": tfds.features.Image(shape=(side, side, 3)),
        "label": tfds.features.ClassLabel(names=list(classes)),
    }
    rows = [{"image": _png(rng, side), "label": i % len(classes)} for i in range(number)]
    return features, rows


def _png(rng, side):
    file = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)).save(file, "PNG")
    file.seek(0)
    return file


def make_flickr30k(folder, number, side=(40, 30)):
    """Grey photographs with five captions each, in Karpathy's list."""
    (folder / "flickr30k-images").mkdir(parents=True)
    listed = []
    for i in range(number):
        Image.new("RGB", side, (i, i, i)).save(folder / "flickr30k-images" / f"{i}.jpg")
        said = [{"raw": f"picture {i} way {nth}"} for nth in range(5)]
        listed.append({"filename": f"{i}.jpg", "split": "train", "sentences": said})
    (folder / "dataset_flickr30k.json").write_text(json.dumps({"images": listed}))


def make_vqa_v2(folder, number):
    """Two questions about each of so many photographs, in the official files of train2014 and val2014."""
    for split, first in (("train2014", 0), ("val2014", 100)):
        (folder / split).mkdir(parents=True)
        asked, given = [], []
        for i in range(first, first + number):
            Image.new("RGB", (24, 32), (i, 0, 0)).save(folder / split / f"COCO_{split}_{i:012d}.jpg")
            for nth in range(2):
                asked.append({"question_id": 2 * i + nth, "image_id": i, "question": "what is it"})
                answers = [{"answer": "yes" if nth else "no"}] * 10
                given.append({"question_id": 2 * i + nth, "answers": answers, "answer_type": "yes/no"})
        about = {"data_type": "mscoco", "data_subtype": split, "questions": asked}
        (folder / f"v2_OpenEnded_mscoco_{split}_questions.json").write_text(json.dumps(about))
        (folder / f"v2_mscoco_{split}_annotations.json").write_text(json.dumps({"annotations": given}))


def prepare_news(folder, number):
    """AG's News as TFDS prepares it."""
    features = {
        "title": tfds.features.Text(),
        "description": tfds.features.Text(),
        "label": tfds.features.ClassLabel(num_classes=4),
    }
    rows = [{"title": f"title {i}", "description": "word " * (i % 7), "label": i % 4} for i in range(number)]
    prepare(folder, "ag_news_subset", features, {"train": rows, "test": rows[:8]})
