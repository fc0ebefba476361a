"""Multimodal FedAvg beside its controls: constant prediction, local-only and centralised training.

python -m experiments.fedavg
python -m experiments.fedavg --data ur_fall --data-dir DIR
python -m experiments.fedavg --help
"""

import dataclasses
from typing import Annotated

import tyro

from experiments.common import tables as problems
from fedjax_mm.methods.fedavg import FedAvgConfig


@dataclasses.dataclass(frozen=True)
class Settings:
    """A problem and the method's settings."""

    problem: Annotated[problems.Settings, tyro.conf.arg(name="")]
    method: Annotated[FedAvgConfig, tyro.conf.arg(name="")]


NAMES = {"sgd": "FedAvg", "momentum": "FedAvgM", "adam": "FedAdam", "yogi": "FedYogi"}
ADAM = {"server_optimizer": "adam"}
PRESETS = {  # ur_fall: chosen on the validation split; the others are untuned starting points
    "digits": Settings(
        problems.Settings("digits", out="runs/fedavg_digits"),
        FedAvgConfig(client_lr=0.3, batch_size=10, epochs=2, server_lr=0.03, **ADAM),
    ),
    "scenes": Settings(
        problems.Settings("scenes", rounds=100, out="runs/fedavg_scenes"),
        FedAvgConfig(client_lr=0.1, batch_size=20, epochs=2, server_lr=0.01, **ADAM),
    ),
    "ur_fall": Settings(
        problems.Settings("ur_fall", rounds=100, seeds=5, fraction=0.5, out="runs/fedavg_ur_fall"),
        FedAvgConfig(client_lr=0.3, batch_size=8, epochs=2, server_lr=0.01, **ADAM),
    ),
    "mhealth": Settings(
        problems.Settings("mhealth", rounds=60, seeds=5, alpha=0.5, out="runs/fedavg_mhealth"),
        FedAvgConfig(client_lr=0.1, batch_size=20, epochs=1, server_lr=0.01, **ADAM),
    ),
    "utd_mhad": Settings(
        problems.Settings("utd_mhad", rounds=100, seeds=5, alpha=0.5, out="runs/fedavg_utd_mhad"),
        FedAvgConfig(client_lr=0.1, batch_size=20, epochs=2, server_lr=0.01, **ADAM),
    ),
    "opportunity": Settings(
        problems.Settings("opportunity", rounds=100, seeds=5, out="runs/fedavg_opportunity"),
        FedAvgConfig(client_lr=0.1, batch_size=20, epochs=1, server_lr=0.01, **ADAM),
    ),
}


def main(settings: Settings) -> list[dict]:
    """Runs FedAvg and the controls, prints the table and writes the report."""
    problems.cache_compilations()
    name = NAMES[settings.method.server_optimizer]
    variants = {**problems.controls(settings.method), name: problems.fedavg_variant(settings.method)}
    rows = problems.compare(settings.problem, variants)
    problems.write(settings.problem, variants, rows, "Multimodal FedAvg")
    return rows
