"""Every mode with a rate and a strength of its own: `python -m experiments.feddat tuned --data vqa --data-dir DIR`.

A mode is trained with every combination of its grid's values, and the one with the best mean score on the split `valid`
of --tuning-seeds seeds, each with its own questions, is chosen; then all seeds are trained with it for the table of the
test. All grids have twelve points. Modes of ABLATIONS take what is chosen for FedDAT. With --sizes the leading modes
are trained again with fewer questions and what was chosen for them. report.md has the grids with all their scores.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.common import tables, tuning
from experiments.feddat import curve, study, table
from experiments.feddat.modes import make, modes

METRIC = "valid/score"
RATES = tuple(0.00025 * 2.0**i for i in range(12))
FOUR = (0.0005, 0.002, 0.008, 0.032)
STRENGTHS: Mapping[str, Mapping[str, Sequence[float]]] = {
    "adapter+prox": {"prox": (0.001, 0.01, 0.1)},
    "adapter+adam": {"server_lr": (0.001, 0.004, 0.016)},
    "adapter+dyn": {"dyn": (0.01, 0.1, 1.0)},
    "dat": {"distillation": (0.03, 0.1, 0.3)},
    "dat, T 1": {"distillation": (0.1, 0.3, 1.0)},
}
"""What is tuned besides the rate; of the other modes there is nothing but the rate, which has twelve values."""
ABLATIONS = ("dat, no teacher", "dat, no distillation", "mutual")


def compare(settings: study.Settings) -> list[dict[str, Any]]:
    """Tunes the modes, trains them with what was chosen, and writes the report; see `table.compare`."""
    names = settings.modes or tuple(modes(settings.training))
    searched = [name for name in names if name not in ABLATIONS]
    if len(searched) < len(names) and "dat" not in searched:
        raise ValueError("--modes has an ablation, which takes what is chosen for dat; add dat")
    own, notes = chosen(settings, searched)
    own |= {name: own["dat"] for name in names if name in ABLATIONS}
    notes += curve.parts(settings, own) if settings.sizes else []
    return table.compare(settings, own, notes)


def grid_of(name: str) -> dict[str, Sequence[float]]:
    """What is tuned of a mode: setting -> its values.

    >>> grid_of("adapter+adam")
    {'lr': (0.0005, 0.002, 0.008, 0.032), 'server_lr': (0.001, 0.004, 0.016)}
    """
    return {"lr": FOUR, **STRENGTHS[name]} if name in STRENGTHS else {"lr": RATES}


def chosen(settings: study.Settings, names: Sequence[str]) -> tuple[dict[str, Mapping[str, Any]], list[str]]:
    """({mode: the values that were best for it}, the parts of a report that say what was tried)."""
    valid = dataclasses.replace(settings.common, split="valid", seed=None, seeds=settings.tuning_seeds)
    tune = functools.partial(_tune, dataclasses.replace(settings, common=valid))
    return tuning.chosen(tune, names, valid, METRIC)


def _tune(settings: study.Settings, name: str, seed: int) -> pathlib.Path:
    """The folder of a mode's sweep on the questions of one seed, where it is there already or else after it."""
    problem, common = study.load(settings, seed), settings.common
    trunk = (problem.trunk.model, problem.trunk.params, problem.head)
    folder = tables.folder(dataclasses.replace(common, out=f"{common.out}/tuning"), name, seed)
    return tuning.swept(
        folder,
        lambda **values: make(study.mode_of(settings, name, values), settings.widths, problem.data, *trunk),
        problem.data,
        grid=grid_of(name),
        seed=seed,
        rounds=common.rounds,
        per_round=problem.data.sizes,
        valid=problem.examples("valid"),
        about=tables.of_a_run(settings),
        name=name,
    )
