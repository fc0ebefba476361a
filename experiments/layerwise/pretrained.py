"""Stages of pretrained encoders: the examples are what their lower layers give, which stay frozen in every row.

These layers are run once for every example (see experiments.weights.features). Clients train the layers above them, one
a stage; every row of a table begins with the same pretrained layers and with fresh heads.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

import jax
import numpy as np

from experiments.common import cli
from experiments.weights import sources
from experiments.weights.upper import Upper, given, upper_encoder, uppers
from fedjax_mm._lazy import require
from fedjax_mm.data import FederatedData, arrays, audio, av_digits, flickr8k, partition
from fedjax_mm.methods.augment import random_resized_crop
from fedjax_mm.models import Transformer
from fedjax_mm.types import PyTree

LAYERS = 3
"""Layers of each encoder that are trained, one a stage."""
SPLITS = ("train", "valid", "test")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is trained on, by whom and for how long; the rates are tried and one is chosen."""

    data: Literal["flickr8k", "av_digits"] = "flickr8k"
    """Dataset: pictures with captions (ViT-S/14 and MiniLM), or written with spoken digits (ViT-S/14 and Whisper)."""
    train: int = 1000
    """Examples that clients share."""
    valid: int = 300
    """Examples that rates and the round are chosen on."""
    test: int = 600
    """Examples of the table."""
    side: int = 56
    """Pixels of a picture's side, a multiple of 14."""
    length: int = 16
    """Word pieces of a caption, or frames of a sound."""
    views: int = 4
    """Views of a training picture that a step draws from: the whole one and random crops. A test sees it whole."""
    crop: float = 0.5
    """Least share of a picture's area that a crop keeps."""
    clients: int = 10
    """Clients, who hold both modalities."""
    per_round: int = 2
    """Clients that take part in a round."""
    alpha: float = 0.5
    """Dirichlet concentration of classes over clients, where there are classes."""
    batch_size: int = 25
    """Examples in a batch."""
    epochs: int = 1
    """Passes of a client over its own examples in a round."""
    temperature: float = 0.1
    """Temperature of the contrastive loss."""
    dropout: float = 0.1
    """Dropout rate in heads and in the text encoder's trained layers."""
    projection_hidden: int = 512
    """Hidden units of the projection heads."""
    projection_dim: int = 128
    """Width of the space of the projection heads."""
    head_rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
    """Rates of the heads that are tried with a frozen trunk; the other rows take the one chosen there."""
    encoder_rates: tuple[float, ...] = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3)
    """Rates of the last stage's encoders that are tried. As all rates, for batches of 256."""
    warm: int = 40
    """Rounds in which heads are trained alone before."""
    every: int = 3
    """Rounds between two scores on valid, of which the best is chosen."""
    longer: int = 10
    """How many times as many rounds a frozen trunk may have in the comparison at equal FLOPs."""
    rows: tuple[str, ...] = ()
    """Rows of the table, by their names; none given: all."""
    common: Annotated[cli.Common, cli.FLAT] = cli.Common(rounds=6, seeds=5, out="runs/layerwise_flickr8k_pretrained")

    def __post_init__(self) -> None:
        cli.at_least(2, train=self.train, valid=self.valid, test=self.test, batch_size=self.batch_size)
        cli.at_least(1, views=self.views, clients=self.clients, per_round=self.per_round, epochs=self.epochs)
        cli.at_least(LAYERS, rounds=self.common.rounds)


PRESETS = {
    "flickr8k": Settings(),
    "av_digits": Settings(
        "av_digits",
        train=600,
        valid=150,
        test=400,
        side=42,
        length=48,
        views=1,
        clients=20,
        per_round=4,
        batch_size=15,
        common=cli.Common(rounds=6, seeds=5, out="runs/layerwise_av_digits_pretrained"),
    ),
}


class Trunk(NamedTuple):
    """Encoders with their first parameters, and the arrays [E, ...] of every split as they take them."""

    encoders: Mapping[str, Transformer]
    params: Mapping[str, PyTree]
    splits: Mapping[str, Mapping[str, np.ndarray]]


class Problem(NamedTuple):
    """A dataset as trained layers take it, and as heads alone take it."""

    trained: Trunk
    frozen: Mapping[int, Trunk]
    """By the number of upper layers that it has."""
    owned: list[np.ndarray]
    """The training examples of each client."""
    num_classes: int | None

    def federated(self, trunk: Trunk, who: Literal["all", "one", "pooled"] = "all") -> FederatedData:
        """The training examples of all clients, of the first alone, or of all as if one had them."""
        owned = {"all": self.owned, "one": self.owned[:1], "pooled": [np.concatenate(self.owned)]}[who]
        return FederatedData.from_arrays(trunk.splits["train"], owned, num_classes=self.num_classes)


def load(settings: Settings, seed: int) -> Problem:
    """The problem of one seed. It draws who owns what and, of digits, the pairs; the photographs are the same."""
    return _load(dataclasses.replace(settings, rows=(), common=cli.Common(data_dir=settings.common.data_dir)), seed)


@functools.lru_cache(2)
def _load(settings: Settings, seed: int) -> Problem:
    examples, labels = (_flickr8k if settings.data == "flickr8k" else _av_digits)(settings, seed)
    own = uppers(settings.dropout, settings.common.dtype)
    trunk = functools.partial(_trunk, {m: own[m] for m in examples}, examples, labels)
    rng = np.random.default_rng((seed, 1))
    if labels:
        owned = partition.dirichlet(
            labels["train"]["label"], settings.clients, settings.alpha, rng, settings.batch_size
        )
    else:
        owned = partition.iid(settings.train, settings.clients, rng)
    frozen = {layers: trunk(LAYERS - layers, True) for layers in (LAYERS - 1, LAYERS)}
    return Problem(trunk(LAYERS, False), frozen, owned, 10 if labels else None)


def _trunk(own: Mapping[str, Upper], examples: Mapping, labels: Mapping, above: int, heads_alone: bool) -> Trunk:
    """The encoders above all layers but the last `above` ones, or with heads_alone what heads take in their place."""
    encoders, params, splits = {}, {}, {split: dict(labels.get(split, {})) for split in SPLITS}
    for m, of in examples.items():
        for split in SPLITS:
            tokens = given(own[m], of[split], above)
            splits[split][m] = pooled(own[m], tokens) if heads_alone else tokens
        encoders[m], params[m] = upper_encoder(own[m], splits["test"][m], 0 if heads_alone else above)
    return Trunk(encoders, params, splits)


def _flickr8k(settings: Settings, seed: int) -> tuple[Mapping[str, Mapping[str, np.ndarray]], Mapping[str, Any]]:
    """({modality: {split: [E, ...]}}, no labels); tests have one caption a picture, the first."""
    vocabulary = sources.find("minilm") / "vocab.txt"
    photos = flickr8k.load(settings.common.data_dir, image=98, length=settings.length, tokenizer=vocabulary).splits
    chosen = np.sort(np.random.default_rng(0).permutation(len(photos["train"]["image"]))[: settings.train])
    image = {"train": crops(photos["train"]["image"][chosen], settings.views, settings.crop, settings.side)}
    text = {"train": photos["train"]["text"][chosen]}
    for split, number in (("valid", settings.valid), ("test", settings.test)):
        image[split] = resized(photos[split]["image"][:number], settings.side)
        text[split] = photos[split]["text"][:number, 0]
    return {"image": image, "text": text}, {}


def _av_digits(settings: Settings, seed: int) -> tuple[Mapping[str, Mapping[str, np.ndarray]], Mapping[str, Any]]:
    """({modality: {split: [E, ...]}}, {split: {"label": [E]}}): sounds as Whisper takes them."""
    folder, pairs = settings.common.data_dir or ".", {split: getattr(settings, split) for split in SPLITS}
    splits = av_digits.load(folder, seed, pairs).splits
    spoken = arrays.load_npz(f"{folder}/{av_digits.SPOKEN}", ("audio", "offsets", "sample_rate"))
    image, sound = {}, {}
    for split, of in splits.items():
        image[split] = resized(of["image"].repeat(3, axis=-1), settings.side)
        recordings, place = np.unique(of["group"], return_inverse=True)
        ends = (spoken["offsets"][recordings + i] for i in (0, 1))
        waves = (spoken["audio"][start:end].astype(np.float32) / 32768 for start, end in zip(*ends, strict=True))
        waves = (audio.resample(wave, int(spoken["sample_rate"]), 16_000) for wave in waves)
        sound[split] = np.stack([audio.whisper_log_mel(wave, settings.length) for wave in waves])[place]
    return {"image": image, "audio": sound}, {split: {"label": of["label"]} for split, of in splits.items()}


def pooled(upper: Upper, tokens: np.ndarray) -> np.ndarray:
    """The features [..., 1, D] float32 of a frozen trunk: the mean of the real tokens [..., T, D] after all layers."""
    x, real = tokens.astype(np.float32), (tokens != 0).any(-1, keepdims=True).astype(np.float32)
    if upper.layer.pre_norm:  # as an encoder whose last norm is fresh
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + upper.layer.epsilon)
    return (x * real).sum(-2, keepdims=True) / real.sum(-2, keepdims=True)


def crops(images: np.ndarray, views: int, least: float, side: int) -> np.ndarray:
    """Views [I, views, side, side, 3] of pictures [I, H, W, 3] uint8: each whole, then random parts of it.

    least: the least share of a picture's area that a part has.
    """
    crop = jax.jit(functools.partial(random_resized_crop, smallest=least))
    parts = [images, *(np.asarray(crop(jax.random.key(i), images)) for i in range(1, views))]
    return np.stack([resized(part, side) for part in parts], axis=1)


def resized(images: np.ndarray, side: int) -> np.ndarray:
    """Pictures [I, H, W, 3] uint8 at another size, [I, side, side, 3] (bilinear, antialiased)."""
    Image = require("PIL.Image", "text")
    resize = lambda image: np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR))
    return np.stack([resize(image) for image in images])
