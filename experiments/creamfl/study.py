"""CreamFL, its baselines, its ablations, and a server alone: settings, rows, and a run of each."""

import dataclasses
import functools
import pathlib
from typing import Annotated, Any, Literal

import tyro
from jax.sharding import Mesh

from experiments.common import cli, sweeps, tables
from experiments.creamfl.data import Numbers, Problem, photo_problem, scenes_problem
from experiments.creamfl.models import (
    Models,
    Size,
    below_the_last,
    frozen,
    full,
    on_features,
    on_tokens,
    pretrained,
    small,
)
from experiments.creamfl.paper import Sizes, paper_problem
from experiments.weights import sources
from experiments.weights.features import PATCH, SIDE
from fedjax_mm import clients
from fedjax_mm.federate import Method
from fedjax_mm.methods import creamfl
from fedjax_mm.methods.creamfl import CreamFLConfig, encoder_averaging
from fedjax_mm.methods.creamfl.encoder_averaging import AveragingConfig
from fedjax_mm.types import FedState


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is trained on, by whom and for how long."""

    data: Literal["scenes", "flickr8k", "coco"] = "scenes"
    """Dataset: scenes are embedded; the others, with CIFAR-100 and AG's News, are read from --data-dir."""
    checkpoints: str | None = None
    """Folder of resnet-101, resnet-18 and bert-base-uncased, the paper's models, which coco needs; None takes small
    models."""
    encoders: Literal["trained", "frozen", "last_layer"] = "trained"
    """Encoders of photographs and captions: trained ones, or linear maps of what pretrained ones say that stay as they
    are (ViT-S/14 at 98 pixels and MiniLM, which python -m experiments.weights fetches), or these with their last layer
    trained too, on what the layers below it say."""
    side: int = 32
    """Pixels of the side of photographs; 224 for the paper's models, and for last_layer a multiple of 14. Frozen
    encoders take 98, whatever this is."""
    photo: int | None = None
    """Pixels of the shorter side of stored photographs, whose aspect is kept and which views of --side are cut from;
    None: photographs are squashed to --side. coco needs it."""
    length: int = 24
    """Word pieces of a text."""
    variant: Annotated[Literal["ours", "paper", "released"], tyro.conf.arg(aliases=["--preset"])] = "ours"
    """Variant of the method: ours has rates for small fresh models, paper the paper's equations, released the
    behaviour of the released code."""
    method: str = "CreamFL"
    """Row of a single run; compare and tuned run all of them."""
    rows: tuple[str, ...] = ()
    """Rows of compare and tuned, by their names; none given: all."""
    numbers: Numbers = Numbers()
    teachers: tuple[int, ...] = (100, 500, 1000)
    """Examples of a client in the tables of the command teachers."""
    tuning_seeds: int = 1
    """Seeds on whose split valid the command tuned chooses."""
    alpha: float = 0.1
    """Dirichlet concentration of classes over clients with one modality."""
    per_round: int = 10
    """Clients that are drawn from all of them for a round."""
    epochs: int = 4
    """Passes of a client over its own examples in a round."""
    server_lr: float | None = None
    """Learning rate of the server; None takes the variant's."""
    client_lr: float | None = None
    """Learning rate of all clients; None takes the variant's."""
    kd_rate: float | None = None
    """Learning rate of distillation, as a share of the server's; None takes the variant's."""
    kd_state: Literal["shared", "own"] | None = None
    """State of Adam that distillation has: that of the pairs' loss, or one of its own; None takes the variant's, and on
    frozen encoders one of its own."""
    kd_rates: tuple[float, ...] = ()
    """Shares that the commands tuned and teachers try for CreamFL in place of those of their grid."""
    server_passes: int | None = None
    """Passes over the public pairs in a round of a server that does not distil; None: two, as many steps as one that
    does, or the one that its row says."""
    weighing_temperature: float = 1.0
    """Temperature of the contrastive weights."""
    public_batch: int | None = None
    """Public pairs in a step of a client, with which it contrasts; None takes the variant's."""
    at_once: int | None = None
    """Examples of a batch whose activations are in memory at once (see creamfl's Training); None: all."""
    size: Size = Size()
    pretraining: int = 8
    """Passes over other, labelled examples that all encoders have behind them; 0 takes fresh encoders."""
    common: Annotated[cli.Common, cli.FLAT] = cli.Common(rounds=15, out="runs/creamfl_scenes")

    def __post_init__(self) -> None:
        cli.at_least(1, side=self.side, per_round=self.per_round, epochs=self.epochs, at_once=self.at_once or 1)
        cli.at_least(1, server_passes=self.server_passes or 1, tuning_seeds=self.tuning_seeds)
        cli.at_least(1, public_batch=1 if self.public_batch is None else self.public_batch)
        cli.at_least(0, pretraining=self.pretraining)
        if not self.alpha > 0:
            raise ValueError(f"--alpha is {self.alpha}; it must be more than 0")
        cli.at_least(3, length=self.length)
        own = {name: getattr(self.numbers, name) for name in ("per_image", "per_text", "per_both")}
        if self.data == "scenes" and (given := [name for name, number in own.items() if number is not None]):
            raise ValueError(
                f"--numbers.{given[0].replace('_', '-')} says nothing of scenes; give --numbers.per-client"
            )
        if self.encoders != "trained" and (self.checkpoints or self.data != "flickr8k"):
            raise ValueError(f"--encoders {self.encoders} is for photographs of flickr8k, without --checkpoints")
        if self.encoders == "last_layer" and self.side % PATCH:
            raise ValueError(f"--side is {self.side}; with --encoders last_layer it must be a multiple of {PATCH}")
        if self.photo is not None and (self.data != "coco" or self.photo < self.side):
            raise ValueError(f"--photo is {self.photo}; it is for --data coco, and at least --side, {self.side}")


SWEPT = ("method", "epochs", "server_lr", "client_lr", "weighing_temperature", "kd_rate")
PRESETS = {
    "scenes": Settings(),
    "flickr8k": Settings(
        "flickr8k",
        numbers=Numbers(public=800, pretraining=10_000),
        pretraining=12,
        common=cli.Common(rounds=12, out="runs/creamfl_flickr8k"),
    ),
    "coco": Settings(
        "coco",
        variant="paper",
        numbers=Numbers(
            per_client=500,
            per_image=5000,
            per_text=12_000,
            per_both=9660,
            public=50_000,
            test=5000,
            pretraining=0,
        ),
        side=224,
        photo=256,
        length=64,
        size=Size(dim=512),
        epochs=5,
        at_once=32,
        common=cli.Common(rounds=30, out="runs/creamfl_coco"),
    ),
}


CODE = PRESETS | {
    "coco": dataclasses.replace(PRESETS["coco"], variant="released", size=Size(dim=256)),
}
"""The presets of a command with --preset code: the released code has half of the paper's width."""


def variants(settings: Settings) -> dict[str, CreamFLConfig | AveragingConfig]:
    """Every row by name. All servers take as many steps, a pass to learn and one to distil or two to learn, but one.

    The server that takes a single pass learns as much from the pairs as those that distil, which shows what only comes
    of learning less from few pairs.
    """
    config = creamfl.VARIANTS[settings.variant]
    rates = {"server_lr": settings.server_lr, "client_lr": settings.client_lr, "both_lr": settings.client_lr}
    given: dict[str, Any] = {key: rate for key, rate in rates.items() if rate is not None}
    given["side"] = None if settings.photo is None else settings.side
    training = dataclasses.replace(config.training, epochs=settings.epochs, at_once=settings.at_once, **given)
    alone = lambda passes: dataclasses.replace(
        training, server_epochs=(settings.server_passes or passes) * training.server_epochs
    )
    config = dataclasses.replace(config, training=training, weighing_temperature=settings.weighing_temperature)
    state = settings.kd_state or ("own" if settings.encoders != "trained" else None)
    chosen = {"kd_rate": settings.kd_rate, "kd_state": state, "public_batch": settings.public_batch}
    config = dataclasses.replace(config, **{key: value for key, value in chosen.items() if value is not None})
    cream = functools.partial(dataclasses.replace, config)
    plain = functools.partial(cream, inter=False, intra=False)
    shared = {"CreamFL, shared state": cream(kd_state="shared")} if config.kd_state == "own" else {}
    return {
        "server only": cream(training=alone(2), kd_epochs=0),
        "server only, one pass": cream(training=alone(1), kd_epochs=0),
        "FedAvg": AveragingConfig(alone(2)),
        "FedIoT": AveragingConfig(alone(2), both_weight=100.0),
        "FedMD": plain(weighing="mean"),
        "FedGEMS": plain(weighing="entropy"),
        "FedET": plain(weighing="consensus"),
        "reamFL+Avg": plain(weighing="size"),
        "reamFL+IoT": plain(weighing="size", both_weight=100.0),
        "CreamFL": cream(),
        **shared,
        "CreamFL, temperature 0.1": cream(weighing_temperature=0.1),
        "CreamFL, temperature 0.02": cream(weighing_temperature=0.02),
        "CreamFL, plain mean": cream(weighing="mean"),
        "CreamFL, no inter": cream(inter=False),
        "CreamFL, no intra": cream(intra=False),
    }


def named(settings: Settings) -> list[str]:
    """The rows that a table has. Raises ValueError where one is not known."""
    known = variants(settings)
    return [cli.one_of("row of --rows", name, known) for name in settings.rows] or list(known)


def load(settings: Settings, seed: int) -> Problem:
    """The problem of one seed."""
    return _load(_about_all_rows(settings), seed)


def models(settings: Settings) -> Models:
    """What clients and server start from; the same for all seeds, as a published checkpoint is."""
    return _models(_about_all_rows(settings))


def _about_all_rows(settings: Settings) -> Settings:
    """The settings with None for those that rows may have of their own, so that all rows find one problem in memory."""
    rates = dict.fromkeys(("server_lr", "client_lr", "kd_rate", "kd_state", "server_passes", "public_batch"))
    same = {"method": "", "tuning_seeds": 1, "weighing_temperature": 1.0, "epochs": 1}
    same |= dict.fromkeys(("rows", "teachers", "kd_rates"), ())
    return dataclasses.replace(settings, **same, **rates)


@functools.lru_cache(4)
def _load(settings: Settings, seed: int) -> Problem:
    given = (settings.numbers, settings.common.split, settings.alpha, seed)
    if settings.data == "scenes":
        return scenes_problem(*given)
    vocabulary, side, encode, folder = 4000, settings.side, None, settings.common.data_dir or "."
    if settings.checkpoints:
        vocabulary = pathlib.Path(settings.checkpoints) / "bert-base-uncased" / "vocab.txt"
    if settings.data == "coco":
        if not settings.checkpoints or settings.photo is None:
            raise ValueError("--data coco takes the paper's models; give --checkpoints and --photo")
        return paper_problem(*given, folder, vocabulary, Sizes(settings.photo, settings.length))
    if settings.encoders != "trained":
        vocabulary, encode = sources.find("minilm") / "vocab.txt", below_the_last
    if settings.encoders == "frozen":
        side, encode = SIDE, frozen
    how = {"side": side, "length": settings.length, "vocabulary": vocabulary, "encode": encode}
    return photo_problem(*given, folder, **how, standardised=settings.encoders == "frozen")


@functools.lru_cache(4)
def _models(settings: Settings) -> Models:
    released = settings.variant == "released"
    if settings.checkpoints:
        return full(settings.checkpoints, settings.size.dim, settings.side, released, settings.common.dtype)
    problem = _load(settings, settings.common.all_seeds[0])
    if settings.encoders == "frozen":
        return on_features(settings.size, settings.common.dtype)
    if settings.encoders == "last_layer":
        return on_tokens(settings.size, problem.test, settings.common.dtype)
    fresh = small(settings.size, problem.vocabulary, released, settings.common.dtype)
    return pretrained(fresh, problem.pretraining, settings.pretraining)


def method_of(
    settings: Settings, name: str, problem: Problem, encoders: Models | None = None, mesh: Mesh | None = None
) -> Method:
    """The method of a row. encoders: what clients and server start from; None: that of the settings.

    mesh: spreads the weighing of public pairs over its devices.
    """
    config, encoders = variants(settings)[name], encoders or models(settings)
    if isinstance(config, AveragingConfig):
        return encoder_averaging.build(config, problem.data, encoders.equal, problem.num_classes)
    return creamfl.build(config, problem.data, encoders.server, encoders.clients, problem.num_classes, mesh)


def train(settings: Settings, name: str, seed: int) -> tuple[pathlib.Path, FedState]:
    """(folder, last state) of a row's run of one seed, trained to its end. Several devices share the public pairs."""
    problem, common = load(settings, seed), settings.common
    several = (common.devices or 1) > 1
    return tables.finish(
        method_of(settings, name, problem, mesh=clients.make_mesh(common.devices) if several else None),
        problem.data,
        common,
        dataclasses.replace(settings, method=name),
        name,
        seed,
        rounds=common.rounds,
        per_round=settings.per_round,
        test=problem.test,
        split_public=several,
        evaluate_every=max(1, common.rounds // 4),
        checkpoint_every=common.rounds,
        config={"settings": tables.of_a_run(settings), "method": variants(settings)[name]},
    )


def subject(settings: Settings) -> sweeps.Subject:
    """What a sweep trains: one row."""
    settings = dataclasses.replace(settings, common=dataclasses.replace(settings.common, split="valid"))
    problem, encoders = load(settings, settings.common.all_seeds[0]), models(settings)
    return sweeps.Subject(
        lambda changed: method_of(changed, changed.method, problem, encoders),
        problem.data,
        settings.per_round,
        problem.test,
        settings.common.rounds,
        "valid/rsum",
    )
