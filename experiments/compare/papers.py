"""Each paper in small on the handwritten digits that ship with scikit-learn, whose halves are two modalities.

A function gives a `Paper`: its row and its controls, in programs. The rows of a program differ in the value of one
number, so that they and all seeds are compiled once. A seed draws weights, participants and batches; the split and the
clients are those of the first seed. Sizes and rates were chosen by hand on the validation split, three seeds, so that
programs are small and trained encoders are worth something: wider random ones score what trained ones do.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.common import data as world
from experiments.compare.data import QUESTIONS, as_pairs, asked, clients_of_pairs, tests_of_pairs
from experiments.compare.models import autoencoder, pretrained, residual, trunk
from fedjax_mm import evaluate, stages
from fedjax_mm.data import FederatedData, pooled
from fedjax_mm.federate import Method
from fedjax_mm.methods import creamfl, fedavg, feddat, fedmekt, layerwise, peft
from fedjax_mm.methods.creamfl import CreamFLConfig
from fedjax_mm.methods.feddat.vqa_tuning import Training
from fedjax_mm.methods.fedmekt import FedMEKTConfig
from fedjax_mm.methods.fedmekt.linear_evaluation import Probe
from fedjax_mm.models import adapters, heads, mlp
from fedjax_mm.stages import Stage

CLIENTS = "A10_B10_AB10"  # 10 hold left halves, 10 right halves, 10 both


class Program(NamedTuple):
    """Rows that are compiled and trained together."""

    rows: Sequence[str]
    build: Callable[..., Method | Sequence[Stage]]
    """From the number in which the rows differ, if there is one, to what is trained."""
    data: FederatedData
    per_round: int | Mapping[str, int]
    test: Mapping[str, Any]
    grid: Mapping[str, Sequence[float]] = {}
    """The name of this number -> its value in each row."""
    uncounted: Sequence[str] = ()
    """Rows whose clients are not those of a federation, or not heard, so that their costs are not shown."""
    untrained: str | None = None
    """One more row: the first states, scored before any training."""


class Paper(NamedTuple):
    """What one paper is compared with, and by which score."""

    row: str
    """Its own row. All others are controls."""
    about: str
    """Who takes part, and the score in words."""
    score: str
    """Its name in the log of test scores."""
    scale: float
    """What makes percent of it."""
    chance: Mapping[str, float]
    """A row that learns nothing -> its score in percent."""
    programs: Mapping[str, Callable[[int], Program]]
    """Name -> from the number of rounds to the program."""
    ceiling: str = ""
    """A control that breaks the terms of the federation, and is there for orientation."""


def of_fedavg(split: str, seed: int) -> Paper:
    """FedAvg of one classifier over clients with either half or both."""
    problem = world.load("digits", None, CLIENTS, 0.3, seed)
    tested, classes = world.tested(problem, split), len(problem.dataset.classes)
    encoders, head = dict.fromkeys(problem.dataset.modalities, mlp.encoder((64,), 32)), heads.linear(classes)
    config = fedavg.FedAvgConfig(client_lr=0.1, batch_size=10, epochs=2)
    always = evaluate.constant(problem.dataset.splits["train"]["label"], tested["label"], classes)

    def program(name: str, data: FederatedData, share: float, uncounted: Sequence[str] = (), **changed: Any) -> Program:
        method = fedavg.build(dataclasses.replace(config, **changed), data, encoders, head)
        taking = world.taking_part(problem._replace(data=data), share)
        return Program([name], lambda: method, data, taking, tested, uncounted=uncounted)

    return Paper(
        "FedAvg",
        "clients with either half or both, macro F1 of both halves",
        "left+right/macro_f1",
        100.0,
        {"constant": 100 * always["macro_f1"]},
        {
            "local only": lambda rounds: program("local only", problem.data, 1.0, shared=()),
            "centralised": lambda rounds: program("centralised", pooled(problem.data), 1.0, ["centralised"]),
            "FedAvg": lambda rounds: program("FedAvg", problem.data, 0.34),
        },
        "centralised",
    )


def of_layerwise(split: str, seed: int, blocks: int = 3, depth: int = 6, width: int = 32) -> Paper:
    """LW-FedMML of two encoders of residual layers, with clients who hold both halves."""
    problem = world.load("digits", None, "AB10", 1.0, seed)
    tested, classes = world.tested(problem, split), len(problem.dataset.classes)
    encoders = {m: residual(problem.dataset.splits["train"][m][0], depth, width) for m in problem.dataset.modalities}
    fast: dict[str, Any] = {"batch_size": 16, "epochs": 1, "head_dropout": 0.0, "crop": None}
    small: dict[str, Any] = {"projection_hidden": 16, "projection_dim": 16}

    def build(plan: Any, rounds: int, encoder_lr: float = 2e-2) -> Sequence[Stage]:
        rates = {m: (encoder_lr,) * blocks for m in encoders}
        when = stages.uniform(blocks, rounds)
        config = layerwise.LayerwiseConfig(plan, when, rates, head_lr=2e-2, **fast, **small)
        return layerwise.build(config, problem.data, encoders, classes)

    def program(plan: str, rounds: int, rows: Sequence[str], **grid: Sequence[float]) -> Program:
        return Program(rows, functools.partial(build, plan, rounds), problem.data, 5, tested, grid, rows[1:])

    whole = ["end-to-end", "heads on random encoders"]  # with rate 0 an encoder stays as it was drawn
    return Paper(
        "LW-FedMML",
        "clients with both halves, accuracy",
        "accuracy",
        100.0,
        {"constant": 100 * float(np.bincount(tested["label"]).max() / len(tested["label"]))},
        {
            "end-to-end": lambda rounds: program("end-to-end", rounds, whole, encoder_lr=[2e-2, 0.0]),
            "LW-FedMML": lambda rounds: program("layer-wise", rounds, ["LW-FedMML"]),
        },
    )


def of_creamfl(split: str, seed: int, dim: int = 32) -> Paper:
    """CreamFL: clients with left halves, right halves or pairs, and a larger server that learns from public pairs."""
    splits = world.load("digits", None, CLIENTS, 0.3, seed).dataset.splits
    arrays = {name: as_pairs(x) for name, x in splits.items()}
    public = {name: array[:64] for name, array in arrays["proxy"].items()}  # few: the clients know what it lacks
    data, test = clients_of_pairs(arrays["train"], public, seed), tests_of_pairs(arrays[split])
    wide, small, smaller = (mlp.encoder((width,), dim) for width in (128, 48, 24))
    server = {"image": wide, "text": wide}
    clients = {"image": {"image": small}, "text": {"text": smaller}, "both": {"image": smaller, "text": small}}
    config = dataclasses.replace(creamfl.VARIANTS["ours"], gamma=0.3, kd_state="own")
    passes = lambda number: dataclasses.replace(config.training, epochs=2, server_epochs=number)

    def program(name: str, config: CreamFLConfig, uncounted: Sequence[str] = ()) -> Program:
        method = creamfl.build(config, data, server, clients, {"image": 10, "text": 10})
        return Program([name], lambda: method, data, dict.fromkeys(data.sizes, 3), test, uncounted=uncounted)

    alone = dataclasses.replace(config, training=passes(5), kd_epochs=0)  # as many passes as distillation makes it
    return Paper(
        "CreamFL",
        "clients with one half or pairs, R@10 of the server, left to right",
        "i2t_r10",
        1.0,
        {"chance": 1000 / len(test["image"])},
        {
            "server only": lambda rounds: program("server only", alone, ["server only"]),
            "CreamFL": lambda rounds: program("CreamFL", dataclasses.replace(config, training=passes(4))),
        },
    )


def of_feddat(split: str, seed: int) -> Paper:
    """FedDAT: each of four clients has a question of its own about whole digits, and all tune one frozen trunk."""
    splits = world.load("digits", None, CLIENTS, 0.3, seed).dataset.splits
    data, test = asked(splits, split, seed)
    adapter = functools.partial(adapters.adapter, depth=2, dim=32, hidden=8)
    model, head, training = trunk(width=32, depth=2), adapters.answers(2), Training(lr=1e-2, batch_size=16)

    def program(name: str, config: Any) -> Program:
        weights = pretrained(model, splits["proxy"], width=32, depth=2)
        if isinstance(config, peft.PEFTConfig):
            start = lambda key: {"adapter": adapter(key)}
            method = peft.build(config, data, model, weights, head, tuning_init=start)
        else:
            method = feddat.build(config, data, model, weights, adapter, head)
        return Program([name], lambda: method, data, data.sizes, test)

    often = [test["target"][test["client"] == client].mean(0).max() for client in range(len(QUESTIONS))]
    modes = {
        "each alone": peft.PEFTConfig(training, travels=False),
        "FedAvg of one adapter": peft.PEFTConfig(training),
        "FedDAT": feddat.FedDATConfig(training),
    }
    return Paper(
        "FedDAT",
        "clients with a question each, VQA score",
        "score",
        1.0,
        {"constant": 100 * float(np.mean(often))},
        {name: lambda rounds, name=name, config=config: program(name, config) for name, config in modes.items()},
    )


def of_fedmekt(split: str, seed: int) -> Paper:
    """FedMEKT: clients without labels, a server with some, and embeddings of proxy windows that travel."""
    problem, config = world.load("digits", None, CLIENTS, 0.3, seed), FedMEKTConfig(probe=Probe(unit="window"))
    splits, modalities = problem.dataset.splits, problem.dataset.modalities
    ae = autoencoder({m: splits["train"][m][0] for m in modalities}, hidden=64, width=16)

    def build(heard: float) -> Method:  # with 0, the server's knowledge of its clients has no weight
        chosen = dataclasses.replace(config, eta=heard * config.eta, gamma=heard * config.gamma)
        return fedmekt.build(chosen, problem.data, ae, splits["labelled"], len(problem.dataset.classes))

    def program(rounds: int) -> Program:
        taking, tested = world.taking_part(problem, 0.34), world.tested(problem, split)
        rows, grid = ["FedMEKT", "server only"], {"heard": [1.0, 0.0]}
        return Program(rows, build, problem.data, taking, tested, grid, ["server only"], "random encoder")

    about = "clients without labels, macro F1 of both halves"
    return Paper("FedMEKT", about, "left+right/macro_f1", 100.0, {}, {"FedMEKT": program})


PAPERS: Mapping[str, Callable[[str, int], Paper]] = {
    "FedAvg": of_fedavg,
    "LW-FedMML": of_layerwise,
    "CreamFL": of_creamfl,
    "FedDAT": of_feddat,
    "FedMEKT": of_fedmekt,
}
