"""Layer-wise and progressive training of two encoders beside end-to-end training (LW-FedMML, Prog-FedMML).

python -m experiments.layerwise                                       one run, --plan and --data
python -m experiments.layerwise compare --data flickr8k --data-dir DIR  the three plans at equal rounds
python -m experiments.layerwise costs                                 bytes, FLOPs, memory of the full-size models
"""

import dataclasses
import functools
import pathlib
import sys
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import tyro

from experiments.common import tables as problems
from experiments.layerwise import costs as layerwise_costs
from experiments.layerwise.costs import PLANS
from fedjax_mm import report, stages
from fedjax_mm.data import FederatedData, advance, av_digits, flickr8k, partition, scenes
from fedjax_mm.methods import layerwise
from fedjax_mm.methods.layerwise import LayerwiseConfig
from fedjax_mm.models import Transformer, ast, bert, vit


@dataclasses.dataclass(frozen=True)
class Size:
    """Small encoders; every modality has the same width and depth."""

    dim: int = 64
    depth: int = 3
    heads: int = 4
    patch: int = 16
    """Of images, in pixels; of sound, in frames and in bands."""
    projection_hidden: int = 256
    projection_dim: int = 64


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is trained on, by whom and for how long."""

    data: Literal["scenes", "flickr8k", "av_digits", "advance"] = "scenes"
    """scenes are embedded; the others are read from --data-dir."""
    data_dir: str | None = None
    plan: Literal["end-to-end", "layer-wise", "progressive"] = "layer-wise"
    """Of a single run; compare has all three."""
    stages: int = 3
    rounds: int = 60
    """In all; spread evenly over the stages, as from scratch."""
    clients: int = 10
    per_round: int = 10
    alpha: float = 0.5
    """Dirichlet concentration of classes over clients, where there are classes."""
    size: Size = Size()
    encoder_lr: float = 4e-3
    """Rates are for batches of 256 and scaled to batch_size, in every stage the same."""
    head_lr: float = 4e-3
    batch_size: int = 64
    epochs: int = 2
    temperature: float = 0.1
    """The paper's 0.05 is for pretrained encoders; fresh ones on little data begin to learn sooner with 0.1."""
    dropout: float = 0.0
    """In text encoders and heads."""
    crop: float | None = None
    """The least share of an image's area a random crop keeps."""
    seeds: int = 3
    split: Literal["test", "valid"] = "test"
    chunk: Annotated[int | str, tyro.conf.arg(metavar="INT|auto")] = 1
    out: str = "runs/layerwise"


PRESETS = {
    "scenes": Settings(per_round=5, size=Size(patch=8)),
    "flickr8k": Settings("flickr8k", per_round=4, epochs=1, crop=0.5, out="runs/layerwise_flickr8k"),
    "av_digits": Settings(
        "av_digits",
        clients=40,
        per_round=30,
        size=Size(patch=7),
        rounds=30,
        batch_size=16,
        epochs=1,
        encoder_lr=1.6e-2,
        head_lr=1.6e-2,
        out="runs/layerwise_av_digits",
    ),
    "advance": Settings("advance", clients=40, per_round=30, batch_size=16, out="runs/layerwise_advance"),
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
    train, test = splits["train"], splits[settings.split]
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
        return flickr8k.load(settings.data_dir, length=24, vocabulary=4000).splits, None
    dataset = (av_digits if settings.data == "av_digits" else advance).load(settings.data_dir or ".", seed=seed)
    colour = lambda x: np.repeat(x, 3, axis=-1) if x.shape[-1] == 1 else x
    splits = {name: {**arrays, "image": colour(arrays["image"])} for name, arrays in dataset.splits.items()}
    return splits, len(dataset.classes)


def _encoder(modality: str, array: np.ndarray, settings: Settings) -> Transformer:
    size = settings.size
    shape = {"dim": size.dim, "depth": size.depth, "heads": size.heads, "mlp": 4 * size.dim}
    if modality == "image":
        return vit.encoder(array.shape[1], size.patch, **shape)
    if modality == "audio":
        return ast.encoder(array.shape[2], array.shape[1], 16, 16, **shape)
    return bert.encoder(int(array.max()) + 1, positions=array.shape[-1], dropout=settings.dropout, **shape)


def config_of(settings: Settings, plan: str) -> LayerwiseConfig:
    """The method's settings for one plan; from scratch, so every stage has rounds."""
    same = (settings.encoder_lr,) * settings.stages
    return LayerwiseConfig(
        plan=plan,
        rounds=stages.uniform(settings.stages, settings.rounds),
        encoder_lr={m: same for m in ("image", "text", "audio")},
        head_lr=settings.head_lr,
        batch_size=settings.batch_size,
        epochs=settings.epochs,
        temperature=settings.temperature,
        head_dropout=settings.dropout,
        crop=settings.crop,
        projection_hidden=settings.size.projection_hidden,
        projection_dim=settings.size.projection_dim,
    )


def train(settings: Settings, plan: str, seed: int) -> pathlib.Path:
    """The directory of a run that is finished."""
    problem, config = load(settings, seed), config_of(settings, plan)
    directory, _ = problems.finish(
        layerwise.build(config, problem.data, problem.encoders, problem.num_classes),
        problem.data,
        settings,
        plan,
        seed,
        per_round=settings.per_round,
        test=problem.test,
        evaluate_every=max(1, settings.rounds // (3 * settings.stages)),
        config={"settings": problems.of_a_run(settings), "method": config},
    )
    return directory


def compare(settings: Settings) -> list[dict]:
    """All plans at equal rounds: a row each with scores, what a client pays over the whole schedule, and pictures."""
    out = pathlib.Path(settings.out)
    runs = {plan: [report.load(train(settings, plan, seed)) for seed in range(settings.seeds)] for plan in PLANS}
    rows = [chance(settings)] + [_row(settings, plan, same) for plan, same in runs.items()]
    columns = _columns(rows[1])
    quality = "test/accuracy" if "test/accuracy" in columns else "test/i2t_r10"
    report.plot_curves([r for same in runs.values() for r in same], ["all/loss", quality], out / "curves.png")
    paid_axis = {"cost": ("MB in all",), "cost_axis": "MB of a client, in all rounds"}
    report.plot_bars(rows, out / "bars.png", quality=quality, label="plan", controls=(rows[0]["plan"],), **paid_axis)
    skewed = f" (Dirichlet {settings.alpha:g})" if load(settings, 0).num_classes else ""
    about = (
        f"{settings.data}, {settings.clients} clients{skewed}, {settings.per_round} a round, {settings.rounds} rounds "
        f"in {settings.stages} stages, {settings.seeds} seeds (mean ± sample standard deviation), {settings.split} "
        f"split, {len(next(iter(load(settings, 0).test.values())))} examples."
    )
    parts = ["![scores and bytes](bars.png)", "![curves](curves.png)", "## All metrics"]
    parts += [report.table(rows, ["plan", *(key for key in rows[1] if key.startswith("test/"))])]
    problems.save(settings, "Stage by stage", about, rows, columns, parts, runs[PLANS[0]][0])
    return rows


def _columns(row: Mapping[str, Any]) -> dict[str, str]:
    scores = ("_r1", "_r10", "/accuracy", "/zero_shot_accuracy", "/macro_f1")
    shown = [key for key in row if key.startswith("test/") and key.endswith(scores)]
    paid = ("MB in all", "MB in all, late", "TFLOP in all", "peak MB", "s per round")
    return {"plan": "plan"} | {key: report.heading(key) for key in shown} | {key: key for key in paid}


def chance(settings: Settings) -> dict[str, Any]:
    """The row of an encoder that knows nothing: any order of the candidates, or the commonest class."""
    problem, scores = load(settings, 0), {}
    if "label" in problem.test:
        share = float(np.bincount(problem.test["label"]).max() / len(problem.test["label"]))
        scores = {"test/accuracy" if problem.num_classes else "test/zero_shot_accuracy": share}
    if problem.num_classes:
        return {"plan": "constant", **scores}
    images = len(problem.test["image"])
    captions = problem.test["text"].size // problem.test["text"].shape[-1]
    each = captions // images
    for k in (1, 5, 10, 50):
        missed = np.prod([(captions - each - i) / (captions - i) for i in range(k)])
        scores |= {f"test/i2t_r{k}": 100 * float(1 - missed), f"test/t2i_r{k}": 100 * k / images}
    return {"plan": "chance", **scores}


def _row(settings: Settings, plan: str, same: list[report.Run]) -> dict[str, Any]:
    """Scores, and what a client pays that takes part in every round."""
    (row,) = report.summary(same)
    first = same[0]
    batches = float(np.mean([count // settings.batch_size for count in first.split["all"]["examples"]]))
    paid = dict.fromkeys(("MB in all", "MB in all, late", "TFLOP in all"), 0.0)
    for r in first.rows:
        prefix = f"stage {r['stage']}/" if "stage" in r else ""
        cost = first.costs[f"{prefix}all"]
        travels = (cost["bytes_down"] + cost["bytes_up"]) / 1e6
        paid["MB in all"] += travels
        paid["MB in all, late"] += travels + cost["bytes_held"] / 1e6
        paid["TFLOP in all"] += cost["flops"] * batches * settings.epochs / 1e12
    return {**row, **paid, "plan": plan}


def main() -> None:
    command = sys.argv.pop(1) if sys.argv[1:2] in (["compare"], ["costs"]) else "train"
    if command == "costs":
        return tyro.cli(layerwise_costs.main)
    problems.cache_compilations()
    settings = problems.settings_from(PRESETS, __doc__)
    if command == "compare":
        compare(settings)
        return None
    runs = [report.load(train(settings, settings.plan, seed)) for seed in range(settings.seeds)]
    row = _row(settings, settings.plan, runs)
    return report.show([chance(settings), row], _columns(row))
