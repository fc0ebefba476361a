"""LW-FedMML at the size of the paper: its pretrained encoders, its schedules and rates, and zero-shot classification.

Numbers such as (2.3) are sections of docs/specs/layerwise.md.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.layerwise.settings import Settings, Size
from fedjax_mm.data import prepared, streams, wordpiece
from fedjax_mm.methods import layerwise
from fedjax_mm.models import Transformer, ast, bert, vit
from fedjax_mm.types import PyTree

FOLDERS = {"image": "vit-tiny-patch16-224", "text": "distilbert-base-uncased", "audio": "distil-ast-audioset"}
"""Modality -> the folder of its encoder, in that of --checkpoints."""
PROMPT = "a photo of a {}"


def preset(data: str, small: Settings, **changed: Any) -> Settings:
    """The released settings of a dataset (2.3), with clients, split and folder of its small preset."""
    variant = layerwise.VARIANTS["advance" if data == "advance" else "coco"]
    rates = {m: tuple(of_stages) for m, of_stages in variant.encoder_lr.items()}
    common = dataclasses.replace(small.common, out=f"{small.common.out}_paper")
    settings = dataclasses.replace(
        small,
        schedule="90_lh10",
        image_lr=rates.pop("image"),
        other_lr=rates.popitem()[1],
        head_lr=variant.head_lr,
        batch_size=variant.batch_size,
        epochs=variant.epochs,
        temperature=variant.temperature,
        dropout=variant.head_dropout,
        crop=variant.crop,
        photo=256,
        length=40,
        size=Size(projection_hidden=variant.projection_hidden, projection_dim=variant.projection_dim),
        common=common,
    )
    return dataclasses.replace(settings, **changed)


def presets(small: Mapping[str, Settings]) -> dict[str, Settings]:
    """The presets of a command with --checkpoints, from those of small encoders."""
    made = {
        "coco": preset("coco", small["coco"], photo=320, zero_shot=("stl10", "cifar10", "cifar100")),
        "advance": preset("advance", small["advance"]),
        "flickr8k": preset("flickr8k", small["flickr8k"], per_round=10),
    }
    return {name: made.get(name, one) for name, one in small.items()}


def vocabulary(settings: Settings) -> pathlib.Path | None:
    """The word pieces of the pretrained text encoder; None where there is none."""
    return pathlib.Path(settings.checkpoints) / FOLDERS["text"] / "vocab.txt" if settings.checkpoints else None


def encoder(settings: Settings, modality: str) -> tuple[Transformer, PyTree]:
    """(the pretrained encoder of a modality, its parameters); sizes are those of its config.json."""
    folder, dtype = pathlib.Path(settings.checkpoints or ".") / FOLDERS[modality], settings.common.dtype
    if modality == "image":
        return vit.from_pretrained(folder, dtype=dtype)
    if modality == "audio":
        return ast.from_pretrained(folder, dtype=dtype)
    return bert.from_pretrained(folder, dropout=settings.dropout, dtype=dtype)


def sounds(settings: Settings) -> dict[str, int]:
    """The frames and mels of a sound as the pretrained encoder takes them; empty where there is none."""
    if not settings.checkpoints:
        return {}
    _, frames, mels = encoder(settings, "audio")[0].example.shape
    return {"frames": frames, "mels": mels}


def zero_shot(settings: Settings, tokenizer: Any) -> dict[str, dict[str, Any]]:
    """Dataset of --zero-shot -> its test pictures, their `label`, and `prompts` of its classes, for `scores` (2.4).

    The released run classifies STL-10's training pictures; here all are test pictures.
    """
    found = {}
    for name in settings.zero_shot:
        folder = pathlib.Path(settings.common.data_dir or ".") / "tfds"
        classes = prepared.opened(name, folder, "test").info.features["label"].names
        said = [PROMPT.format(label.replace("_", " ")) for label in classes]
        found[name] = {
            "image": streams.records(name, folder, "test", settings.photo),
            "label": np.asarray(prepared.load(name, folder, "test", ("label",))["label"], np.int32),
            "prompts": wordpiece.encode(tokenizer, said, settings.length),
        }
    return found
