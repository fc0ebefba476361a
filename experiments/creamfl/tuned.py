"""Every row with rates of its own: `python -m experiments.creamfl tuned --data flickr8k --encoders frozen`.

A row is trained with every combination of its grid's values, and the one with the best mean sum of recalls on the split
`valid` of --tuning-seeds seeds, each with its own data and clients, is chosen; then all seeds are trained with it for
the table of the test. All grids have 12 points. Rows of ABLATIONS take what is chosen for CreamFL. report.md has the
grids with all their scores, and says where one ends too early.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.common import sweeps, tables, tuning
from experiments.creamfl import study, table
from fedjax_mm.methods.creamfl.encoder_averaging import AveragingConfig

METRIC = "valid/rsum"
GRIDS: Mapping[str, dict[str, Sequence[float]]] = {
    "alone": {"server_passes": (1, 2, 4), "server_lr": (0.016, 0.064, 0.256, 1.024)},
    "FedAvg": {"client_lr": (0.01, 0.03, 0.1), "server_lr": (0.001, 0.004, 0.016, 0.064)},
    "FedIoT": {"client_lr": (0.1, 0.3, 1.0), "server_lr": (0.004, 0.016, 0.064, 0.256)},
    "contrasts": {"server_lr": (0.001, 0.004, 0.016, 0.064), "kd_rate": (0.1, 0.3, 1.0)},
    "distils": {"server_lr": (0.004, 0.016, 0.064, 0.256), "kd_rate": (0.03, 0.1, 0.3)},
    "shared": {"server_lr": (0.004, 0.016, 0.064, 0.256), "kd_rate": (0.1, 0.3, 1.0)},
}
"""Of a server that distils nothing, of averaged weights by row, of distillation with a state of its own from clients
that contrast and from others, and of distillation in a shared state. Each was moved until it held its best inside, but
that of a server alone, which is best with the fewest passes there are."""
LOWER: Mapping[str, dict[str, Sequence[float]]] = {
    "frozen": {},
    "last_layer": {
        "server_lr": (3e-5, 1e-4, 3e-4, 1e-3),
        "client_lr": (1e-4, 3e-4, 1e-3),
        "kd_rate": (0.01, 0.03, 0.1),
    },
    "trained": {"server_lr": (2.5e-4, 1e-3, 4e-3, 0.016), "client_lr": (1e-3, 3e-3, 0.01), "kd_rate": (0.03, 0.1, 0.3)},
}
"""By encoders, the values in place of those of GRIDS, which are for linear maps of frozen features: a rate of 1e-3 and
more destroys the last layer of pretrained encoders, and one of 0.064 and more encoders that are trained whole."""
ABLATIONS = ("CreamFL, temperature 0.1", "CreamFL, temperature 0.02", "CreamFL, plain mean")
ABLATIONS += ("CreamFL, no inter", "CreamFL, no intra")


def compare(settings: study.Settings) -> list[dict[str, Any]]:
    """Tunes the rows, trains them with what was chosen, and writes the report; see `table.compare`."""
    names = study.named(settings)
    searched = [name for name in names if name not in ABLATIONS]
    if len(searched) < len(names) and "CreamFL" not in searched:
        raise ValueError(f"--rows has {names[-1]}, which takes what is chosen for CreamFL; add CreamFL")
    own, notes = chosen(settings, searched)
    own |= {name: own["CreamFL"] for name in names if name in ABLATIONS}
    return table.compare(settings, own, notes)


def chosen(settings: study.Settings, names: Sequence[str]) -> tuple[dict[str, study.Settings], list[str]]:
    """({row: the settings with what was best for it}, the parts of a report that say what was tried)."""
    valid = dataclasses.replace(settings.common, split="valid", seed=None, seeds=settings.tuning_seeds)
    tune = functools.partial(_tune, dataclasses.replace(settings, common=valid))
    best, notes = tuning.chosen(tune, names, valid, METRIC)
    return {name: _with(settings, values) for name, values in best.items()}, notes


def grid_of(settings: study.Settings, name: str) -> dict[str, Sequence[float]]:
    """What is tuned of a row: setting -> its values."""
    usual = _grid(settings, name)
    lower = LOWER[settings.encoders]
    given = {"kd_rate": settings.kd_rates} if settings.kd_rates and usual is GRIDS["contrasts"] else {}
    return {key: lower.get(key, values) for key, values in usual.items()} | given


def _grid(settings: study.Settings, name: str) -> Mapping[str, Sequence[float]]:
    config = study.variants(settings)[name]
    if isinstance(config, AveragingConfig):
        return GRIDS[name]
    if not config.exchanges:
        return GRIDS["alone"]
    if config.kd_state == "shared" or not config.contrasts:
        return GRIDS["shared" if config.kd_state == "shared" else "distils"]
    return GRIDS["contrasts"]


def _tune(settings: study.Settings, name: str, seed: int) -> pathlib.Path:
    """The folder of a row's sweep on the data of one seed, where it is there already or else after it.

    Raises ValueError where it is that of other settings.
    """
    problem, encoders = study.load(settings, seed), study.models(settings)
    out = pathlib.Path(settings.common.out)
    return tuning.swept(
        tables.folder(dataclasses.replace(settings.common, out=str(out / "tuning")), name, seed),
        lambda **values: study.method_of(_with(settings, values), name, problem, encoders),
        problem.data,
        grid=grid_of(settings, name),
        seed=seed,
        rounds=settings.common.rounds,
        per_round=settings.per_round,
        valid=problem.test,
        about=tables.of_a_run(settings),
        name=name,
    )


def _with(settings: study.Settings, values: Mapping[str, Any]) -> study.Settings:
    """The settings with the values of a point of a grid."""
    return functools.reduce(lambda changed, one: sweeps.replace(changed, *one), values.items(), settings)
