"""Layer-wise and progressive training of two encoders, and end-to-end training (LW-FedMML, Prog-FedMML)."""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from experiments.common import sweeps, tables
from experiments.layerwise import paper
from experiments.layerwise.settings import PRESETS, SWEPT, Plan, Settings, Size
from fedjax_mm import run
from fedjax_mm.data import FederatedData, advance, av_digits, coco_captions, flickr8k, partition, scenes
from fedjax_mm.methods import layerwise
from fedjax_mm.methods.layerwise import LayerwiseConfig
from fedjax_mm.models import Transformer, ast, bert, transformer, vit
from fedjax_mm.stages import Stage
from fedjax_mm.streamed import is_streamed, of_array
from fedjax_mm.types import PyTree

__all__ = ["PRESETS", "SWEPT", "Plan", "Problem", "Settings", "Size", "config_of", "load", "subject", "train"]
PAPER = paper.presets(PRESETS)
"""The presets of a command with --checkpoints."""


class Problem(NamedTuple):
    """A dataset distributed over clients that hold both modalities."""

    data: FederatedData
    encoders: Mapping[str, Transformer]
    test: Mapping[str, np.ndarray]
    num_classes: int | None
    params: Mapping[str, PyTree] | None = None  # of pretrained encoders
    zero_shot: Mapping[str, Mapping[str, Any]] = {}  # dataset -> what a model of captions classifies there


@functools.lru_cache(4)
def load(settings: Settings, seed: int) -> Problem:
    """The problem of one seed; contrastive with captions, supervised with classes."""
    splits, num_classes, tokenizer = _dataset(settings, seed)
    train, test = splits["train"], splits[settings.common.split]
    keys = [k for k in train if k in ("image", "text", "audio")] + (["label"] if num_classes else [])
    total = len(train["image"])
    if num_classes:
        owned = partition.dirichlet(train["label"], settings.clients, settings.alpha, seed, min_size=2)
    else:
        owned = partition.iid(total, settings.clients, seed)
    held = lambda k: of_array(train[k]) if settings.stream and k in ("image", "audio") else train[k]
    arrays = {k: train[k] if is_streamed(train[k]) else held(k) for k in keys}
    data = FederatedData.from_arrays(arrays, owned, num_classes=num_classes)
    modalities = [k for k in keys if k != "label"]
    params = None
    if settings.checkpoints:
        found = {m: paper.encoder(settings, m) for m in modalities}
        encoders, params = {m: model for m, (model, _) in found.items()}, {m: own for m, (_, own) in found.items()}
    else:
        encoders = {m: _encoder(m, train[m], settings) for m in modalities}
    if settings.remat:
        encoders = {m: transformer.remat(model) for m, model in encoders.items()}
    tested = {k: test[k] for k in (*keys, *(["prompts", "label"] if "prompts" in test else []))}
    others = paper.zero_shot(settings, tokenizer) if settings.zero_shot else {}
    return Problem(data, encoders, tested, num_classes, params, others)


def _dataset(settings: Settings, seed: int) -> tuple[Mapping[str, Mapping[str, np.ndarray]], int | None, Any]:
    """(the splits, the number of classes or None where there are captions, the tokenizer of captions from files)."""
    folder = settings.common.data_dir or "."
    if settings.zero_shot and settings.data not in ("flickr8k", "coco"):
        raise ValueError(f"--zero-shot says nothing with --data {settings.data}; leave it out")
    if settings.data == "scenes":
        return _scenes(seed), None, None
    words = {"length": settings.length, "tokenizer": paper.vocabulary(settings)}
    photo = {"image": settings.photo} if settings.checkpoints else {}
    if settings.data == "flickr8k":
        read = flickr8k.load(settings.common.data_dir, vocabulary=4000, **words, **photo)
        return read.splits, None, read.tokenizer
    if settings.data == "coco":
        if settings.common.split == "test":
            raise ValueError("--split test: COCO's official files have train and valid; give --split valid")
        read = coco_captions.load(folder, image=settings.photo, stream=True, **words)
        return read.splits, None, read.tokenizer
    if settings.data == "av_digits":
        dataset = av_digits.load(folder, seed=seed)
    else:
        dataset = advance.load(folder, seed=seed, **photo, **paper.sounds(settings))
    colour = lambda x: np.repeat(x, 3, axis=-1) if x.shape[-1] == 1 else x
    splits = {name: {**arrays, "image": colour(arrays["image"])} for name, arrays in dataset.splits.items()}
    return splits, len(dataset.classes), None


def _scenes(seed: int) -> dict[str, dict[str, np.ndarray]]:
    dataset = scenes.load(seed=seed)
    used = max(int((arrays["text"] > 0).sum(-1).max()) for arrays in dataset.splits.values())
    prompts = scenes.tokenize([f"a picture of a {shape}" for shape in dataset.classes])[:, :used]
    cut = lambda arrays: {**arrays, "text": arrays["text"][:, :used], "prompts": prompts}
    return {name: cut(arrays) for name, arrays in dataset.splits.items()}


def _encoder(modality: str, array: np.ndarray, settings: Settings) -> Transformer:
    size = settings.size
    shape: dict[str, Any] = {"dim": size.dim, "depth": size.depth, "heads": size.heads, "mlp": 4 * size.dim}
    shape |= {"std": size.std, "dtype": settings.common.dtype}
    if modality == "image":
        return vit.encoder(size.image or array.shape[1], size.patch, **shape)
    if modality == "audio":
        return ast.encoder(array.shape[2], array.shape[1], 16, 16, **shape)
    return bert.encoder(int(array.max()) + 1, positions=array.shape[-1], dropout=settings.dropout, **shape)


def config_of(settings: Settings, plan: Plan) -> LayerwiseConfig:
    """The method's settings for one plan."""
    rounds = settings.rounds_of_stages
    if settings.schedule and 0 in rounds and not settings.checkpoints:
        raise ValueError(f"--schedule {settings.schedule} has a stage without rounds, whose layers need --checkpoints")
    same = (settings.encoder_lr,) * len(rounds)
    image, other = settings.image_lr or same, settings.other_lr or same
    return LayerwiseConfig(
        plan=plan,
        rounds=rounds,
        encoder_lr={"image": image, "text": other, "audio": other},
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


def stages_of(settings: Settings, plan: Plan, problem: Problem) -> list[Stage]:
    """The stages of one plan."""
    return layerwise.build(
        config_of(settings, plan), problem.data, problem.encoders, problem.num_classes, problem.params
    )


def train(settings: Settings, plan: Plan, seed: int) -> pathlib.Path:
    """The directory of a run that is finished."""
    problem, rounds = load(settings, seed), settings.rounds_of_stages
    stages = stages_of(settings, plan, problem)
    directory, _ = tables.finish(
        stages,
        problem.data,
        settings.common,
        dataclasses.replace(settings, plan=plan),
        plan,
        seed,
        per_round=settings.per_round,
        test=problem.test,
        evaluate={f"test/{name}": run.scores(stages[0].method, arrays) for name, arrays in problem.zero_shot.items()},
        evaluate_every=max(1, sum(rounds) // (3 * len(rounds))),
        config={"settings": tables.of_a_run(settings), "method": config_of(settings, plan)},
    )
    return directory


def subject(settings: Settings) -> sweeps.Subject:
    """What a sweep trains: one plan."""
    settings = dataclasses.replace(settings, common=dataclasses.replace(settings.common, split="valid"))
    problem = load(settings, settings.common.all_seeds[0])
    return sweeps.Subject(
        lambda changed: stages_of(changed, changed.plan, problem),
        problem.data,
        settings.per_round,
        problem.test,
        None,
        "valid/accuracy" if problem.num_classes else "valid/i2t_r10",
    )
