"""Layer-wise and progressive training of two encoders, and end-to-end training (LW-FedMML, Prog-FedMML)."""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np

from experiments.common import cli, sweeps, tables
from fedjax_mm import stages
from fedjax_mm.data import FederatedData, advance, av_digits, coco_captions, flickr8k, partition, scenes
from fedjax_mm.methods import layerwise
from fedjax_mm.methods.layerwise import LayerwiseConfig
from fedjax_mm.models import Transformer, ast, bert, vit

Plan = Literal["end-to-end", "layer-wise", "progressive"]


@dataclasses.dataclass(frozen=True)
class Size:
    """Small encoders; every modality has the same width and depth."""

    dim: int = 64
    """Width of the encoders."""
    depth: int = 3
    """Layers of each encoder."""
    heads: int = 4
    """Attention heads of a layer."""
    patch: int = 16
    """Side of a patch: pixels of an image, frames and bands of a sound."""
    image: int | None = None
    """Side of the images that the encoder takes, if it is less than that of the photos: crops are cut from these."""
    projection_hidden: int = 256
    """Hidden units of the projection heads."""
    projection_dim: int = 64
    """Width of the space in which modalities are contrasted."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is trained on, by whom and for how long."""

    data: Literal["scenes", "flickr8k", "av_digits", "advance", "coco"] = "scenes"
    """Dataset: scenes are embedded, and the others are read from --data-dir. COCO's photos stay there, and are decoded
    as steps need them."""
    plan: Plan = "layer-wise"
    """Plan of a single run; compare runs all three."""
    stages: int = 3
    """Stages that the rounds are spread over evenly, as for training from scratch."""
    clients: int = 10
    """Clients, who hold both modalities."""
    per_round: int = 10
    """Clients that take part in a round."""
    alpha: float = 0.5
    """Dirichlet concentration of classes over clients, where there are classes."""
    size: Size = Size()
    encoder_lr: float = 4e-3
    """Learning rate of the encoders in every stage, for batches of 256; it is scaled to batch_size."""
    head_lr: float = 4e-3
    """Learning rate of the heads, for batches of 256; it is scaled to batch_size."""
    batch_size: int = 64
    """Examples in a batch."""
    epochs: int = 2
    """Passes of a client over its own examples in a round."""
    temperature: float = 0.1
    """Temperature of the contrastive loss. The paper's 0.05 is for pretrained encoders; fresh ones on little data
    begin to learn sooner with 0.1."""
    dropout: float = 0.0
    """Dropout rate in text encoders and heads."""
    photo: int = 224
    """Side that COCO's photos are decoded at."""
    crop: float | None = None
    """Least share of an image's area that a random crop keeps; None takes no crops."""
    statistics: Literal["averaged", "recalibrated"] = "averaged"
    """Batch norms' running statistics: averages of the clients' own, as in the released code, or those of the averaged
    model, which clients take in one more round at the end."""
    cache_frozen: bool = False
    """Whether clients keep what frozen layers give of their examples. Of the plans, layer-wise training freezes layers;
    these then drop no units. It takes one caption a picture, and no crops."""
    common: Annotated[cli.Common, cli.FLAT] = cli.Common(out="runs/layerwise")

    def __post_init__(self) -> None:
        cli.at_least(1, stages=self.stages, clients=self.clients, per_round=self.per_round)
        cli.at_least(1, batch_size=self.batch_size, epochs=self.epochs)


SWEPT = ("plan", "stages", "encoder_lr", "head_lr", "batch_size", "epochs", "temperature", "crop")
PRESETS = {
    "scenes": Settings(per_round=5, size=Size(patch=8)),
    "flickr8k": Settings("flickr8k", per_round=4, epochs=1, crop=0.5, common=cli.Common(out="runs/layerwise_flickr8k")),
    "av_digits": Settings(
        "av_digits",
        clients=40,
        per_round=30,
        size=Size(patch=7),
        batch_size=16,
        epochs=1,
        encoder_lr=1.6e-2,
        head_lr=1.6e-2,
        common=cli.Common(rounds=30, out="runs/layerwise_av_digits"),
    ),
    "coco": Settings(
        "coco", size=Size(192, 12, 3), epochs=1, crop=0.08, common=cli.Common(split="valid", out="runs/layerwise_coco")
    ),
    "advance": Settings(
        "advance", clients=40, per_round=30, batch_size=16, common=cli.Common(out="runs/layerwise_advance")
    ),
}


class Problem(NamedTuple):
    """A dataset distributed over clients that hold both modalities."""

    data: FederatedData
    encoders: Mapping[str, Transformer]
    test: Mapping[str, np.ndarray]
    num_classes: int | None


@functools.lru_cache(4)
def load(settings: Settings, seed: int) -> Problem:
    """The problem of one seed; contrastive with captions, supervised with classes."""
    splits, num_classes = _dataset(settings, seed)
    train, test = splits["train"], splits[settings.common.split]
    keys = [k for k in train if k in ("image", "text", "audio")] + (["label"] if num_classes else [])
    total = len(train["image"])
    if num_classes:
        owned = partition.dirichlet(train["label"], settings.clients, settings.alpha, seed, min_size=2)
    else:
        owned = partition.iid(total, settings.clients, seed)
    data = FederatedData.from_arrays({k: train[k] for k in keys}, owned, num_classes=num_classes)
    encoders = {k: _encoder(k, train[k], settings) for k in keys if k != "label"}
    tested = {k: test[k] for k in (*keys, *(["prompts", "label"] if "prompts" in test else []))}
    return Problem(data, encoders, tested, num_classes)


def _dataset(settings: Settings, seed: int) -> tuple[Mapping[str, Mapping[str, np.ndarray]], int | None]:
    if settings.data == "scenes":
        dataset = scenes.load(seed=seed)
        used = max(int((arrays["text"] > 0).sum(-1).max()) for arrays in dataset.splits.values())
        prompts = scenes.tokenize([f"a picture of a {shape}" for shape in dataset.classes])[:, :used]
        cut = lambda arrays: {**arrays, "text": arrays["text"][:, :used], "prompts": prompts}
        return {name: cut(arrays) for name, arrays in dataset.splits.items()}, None
    if settings.data == "flickr8k":
        return flickr8k.load(settings.common.data_dir, length=24, vocabulary=4000).splits, None
    if settings.data == "coco":
        folder = settings.common.data_dir or "."
        if settings.common.split == "test":
            raise ValueError("--split test: COCO's official files have train and valid; give --split valid")
        return coco_captions.load(folder, image=settings.photo, length=24, stream=True).splits, None
    dataset = (av_digits if settings.data == "av_digits" else advance).load(settings.common.data_dir or ".", seed=seed)
    colour = lambda x: np.repeat(x, 3, axis=-1) if x.shape[-1] == 1 else x
    splits = {name: {**arrays, "image": colour(arrays["image"])} for name, arrays in dataset.splits.items()}
    return splits, len(dataset.classes)


def _encoder(modality: str, array: np.ndarray, settings: Settings) -> Transformer:
    size = settings.size
    shape: dict[str, Any] = {"dim": size.dim, "depth": size.depth, "heads": size.heads, "mlp": 4 * size.dim}
    shape["dtype"] = settings.common.dtype
    if modality == "image":
        return vit.encoder(size.image or array.shape[1], size.patch, **shape)
    if modality == "audio":
        return ast.encoder(array.shape[2], array.shape[1], 16, 16, **shape)
    return bert.encoder(int(array.max()) + 1, positions=array.shape[-1], dropout=settings.dropout, **shape)


def config_of(settings: Settings, plan: Plan) -> LayerwiseConfig:
    """The method's settings for one plan; from scratch, so every stage has rounds."""
    same = (settings.encoder_lr,) * settings.stages
    return LayerwiseConfig(
        plan=plan,
        rounds=stages.uniform(settings.stages, settings.common.rounds),
        encoder_lr={m: same for m in ("image", "text", "audio")},
        head_lr=settings.head_lr,
        batch_size=settings.batch_size,
        epochs=settings.epochs,
        temperature=settings.temperature,
        head_dropout=settings.dropout,
        crop=settings.crop,
        frozen_dropout=not settings.cache_frozen,
        cache_frozen=settings.cache_frozen and plan == "layer-wise",
        statistics=settings.statistics,
        projection_hidden=settings.size.projection_hidden,
        projection_dim=settings.size.projection_dim,
    )


def train(settings: Settings, plan: Plan, seed: int) -> pathlib.Path:
    """The directory of a run that is finished."""
    problem, config = load(settings, seed), config_of(settings, plan)
    directory, _ = tables.finish(
        layerwise.build(config, problem.data, problem.encoders, problem.num_classes),
        problem.data,
        settings.common,
        dataclasses.replace(settings, plan=plan),
        plan,
        seed,
        per_round=settings.per_round,
        test=problem.test,
        evaluate_every=max(1, settings.common.rounds // (3 * settings.stages)),
        config={"settings": tables.of_a_run(settings), "method": config},
    )
    return directory


def subject(settings: Settings) -> sweeps.Subject:
    """What a sweep trains: one plan."""
    settings = dataclasses.replace(settings, common=dataclasses.replace(settings.common, split="valid"))
    problem = load(settings, settings.common.all_seeds[0])
    fixed = (problem.data, problem.encoders, problem.num_classes)
    return sweeps.Subject(
        lambda changed: layerwise.build(config_of(changed, changed.plan), *fixed),
        problem.data,
        settings.per_round,
        problem.test,
        None,
        "valid/accuracy" if problem.num_classes else "valid/i2t_r10",
    )
