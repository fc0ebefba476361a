"""Multimodal FedAvg and its controls: constant prediction, local-only and centralised training."""

import dataclasses
import functools
from typing import Annotated, Any

from experiments.common import cli, data, sweeps, tables
from fedjax_mm.methods import fedavg
from fedjax_mm.methods.fedavg import FedAvgConfig


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings of the problem and of the method."""

    problem: Annotated[data.Settings, cli.FLAT]
    method: Annotated[FedAvgConfig, cli.FLAT]
    fusion: data.Fusion = "mean"
    """What the head reads of an example's embeddings: their mean, all side by side, or their means by attention."""


SWEPT = sweeps.fields(FedAvgConfig)
NAMES = {"sgd": "FedAvg", "momentum": "FedAvgM", "adam": "FedAdam", "yogi": "FedYogi"}


def _preset(name: data.Name, method: dict[str, Any], rounds: int = 100, seeds: int = 5, **problem: Any) -> Settings:
    common = cli.Common(rounds=rounds, seeds=seeds, out=f"runs/fedavg_{name}")
    config = FedAvgConfig(**{"batch_size": 20, "epochs": 2, "server_lr": 0.01, "server_optimizer": "adam"} | method)
    return Settings(data.Settings(data=name, common=common, **problem), config)


PRESETS = {  # ur_fall: chosen on the validation split; the others are untuned starting points
    "digits": _preset("digits", {"client_lr": 0.3, "batch_size": 10, "server_lr": 0.03}, rounds=60, seeds=3),
    "scenes": _preset("scenes", {"client_lr": 0.1}, seeds=3),
    "ur_fall": _preset("ur_fall", {"client_lr": 0.3, "batch_size": 8}, fraction=0.5),
    "mhealth": _preset("mhealth", {"client_lr": 0.1, "epochs": 1}, rounds=60, alpha=0.5),
    "utd_mhad": _preset("utd_mhad", {"client_lr": 0.1}, alpha=0.5),
    "opportunity": _preset("opportunity", {"client_lr": 0.1, "epochs": 1}),
    # FedMultimodal's UCI HAR (arXiv 2306.09486): 21 subjects shared out among five clients each, a tenth in a round.
    "hapt": dataclasses.replace(
        _preset(
            "hapt",
            {"client_lr": 0.05, "batch_size": 16, "epochs": 1},
            rounds=200,
            alpha=5.0,
            cohorts="AB105",
            fraction=0.1,
            cutting=data.Cutting(tuning_subjects=0),
        ),
        fusion="attention",
    ),
}


def variants(method: FedAvgConfig, fusion: data.Fusion = "mean") -> dict[str, tables.Variant]:
    """The rows of the table."""
    return {**tables.controls(method, fusion), NAMES[method.server_optimizer]: tables.fedavg_variant(method, fusion)}


def compare(settings: Settings) -> list[dict[str, Any]]:
    """Runs FedAvg and the controls, prints the table and writes the report."""
    problem = settings.problem
    cli.write(problem.common.out, settings)
    rows = tables.compare(problem, functools.partial(variants, settings.method, settings.fusion), settings)
    tables.write(problem, variants(settings.method, settings.fusion), rows, "Multimodal FedAvg", study=settings)
    return rows


def subject(settings: Settings) -> sweeps.Subject:
    """What a sweep trains."""
    problem = data.load_problem(settings.problem, settings.problem.common.all_seeds[0])
    # The same models for all runs, so that they are scored by one program.
    built, head = data.models(problem, settings.fusion)
    return sweeps.Subject(
        lambda changed: fedavg.build(changed.method, problem.data, built, head),
        problem.data,
        data.taking_part(problem, settings.problem.fraction),
        data.tested(problem, "valid"),
        settings.problem.common.rounds,
        f"valid/{'+'.join(problem.dataset.modalities)}/macro_f1",
    )
