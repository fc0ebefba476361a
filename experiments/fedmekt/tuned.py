"""Every row with a number and a readout of its own choice: `python -m experiments.fedmekt tuned --data DATA`.

For each seed, with its own split: a row is trained once for each value of its one number, what each encoder gives is
read in each way of READOUTS, and linear classifiers learn from the labelled windows. The value and the readout with the
best mean macro F1 on the validation windows of that seed are scored on its test windows, so that no test window has a
part in a choice. All rows have as many values, rounds and readouts. `raw.py` has the rows that train no encoder.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.common import cli, data, jobs, tables
from experiments.common.data import Problem
from experiments.fedmekt import raw, study
from fedjax_mm import report, run
from fedjax_mm.federate import init_server
from fedjax_mm.methods import fedmekt
from fedjax_mm.methods.fedmekt import linear_evaluation, mmfl, readout
from fedjax_mm.methods.fedmekt.knowledge import distillation_share
from fedjax_mm.methods.fedmekt.linear_evaluation import Probe
from fedjax_mm.models.autoencoder import AutoEncoder
from fedjax_mm.report.runs import over_seeds
from fedjax_mm.run.json_files import Folder
from fedjax_mm.types import PyTree

READOUTS: Mapping[str, Probe] = {
    "z last, one classifier": Probe(unit="window"),
    "z last": Probe(unit="window", own=True),
    "z mean, std": Probe(unit="window", own=True, readout="mean_std"),
    "h mean, std": Probe(unit="window", own=True, readout="hidden_mean_std"),
}
"""What is read of an encoder; with a classifier for each modality, but for the first."""
SPLITS, LEADER = ("labelled", "valid", "test"), "FedMEKT"
Points = Sequence[Mapping[str, Any]]  # "value", "readout", "share" and the scores "valid" and "test" of each


class Row(NamedTuple):
    """A row of the table, of which one number is chosen."""

    module: Any
    """fedmekt or mmfl."""
    config: Any
    names: tuple[str, ...]
    """The fields of the configuration that have the number."""
    values: tuple[float, ...]
    fraction: float | None = None
    """Share of the clients that takes part; None: that of the settings."""
    central: bool = False
    """Whether one client owns all clients' windows, with every modality."""
    frozen: bool = False
    """Whether the encoders stay as FedMEKT starts with them."""


def rows(settings: study.Settings) -> dict[str, Row]:
    """The rows that train encoders. Of the first ones the rate is chosen; the others have the rates of the settings."""
    learn, share = settings.method, settings.baseline
    silent = dataclasses.replace(learn, eta=0.0, gamma=0.0, epochs=0)
    weighted = lambda **fields: Row(
        fedmekt, dataclasses.replace(learn, **fields), ("alpha", "beta", "eta", "gamma"), settings.weights
    )
    return {
        "random encoder": Row(fedmekt, silent, (), (0.0,), frozen=True),
        "server only": Row(fedmekt, silent, ("server_lr",), settings.rates, fraction=0.0),
        "central autoencoder": Row(
            mmfl, dataclasses.replace(share, epochs=1), ("client_lr",), settings.rates, fraction=1.0, central=True
        ),
        "FedAvg": Row(mmfl, share, ("client_lr",), settings.rates),
        "FedProx": Row(mmfl, share, ("prox",), (0.01, 0.1, 1.0, 10.0)),
        "MOON": Row(mmfl, share, ("moon",), (0.01, 0.1, 1.0, 10.0)),
        LEADER: weighted(),
        "FedMEKT, cosine": weighted(kd="cosine"),
        "FedMEKT, MSE": weighted(kd="mse"),
        "FedMEKT, h mean, std": weighted(knowledge="hidden_mean_std"),
    }


def train(settings: study.Settings, name: str, seed: int) -> Points:
    """The points of a row of one seed, from its file where it is there already.

    Raises ValueError where the file is that of other settings.
    """
    folder, file, about = tables.folder(settings.problem.common, name, seed), "points.json", _about(settings, name)
    kept = Folder(folder).read(file)
    if kept is None:
        problem = data.load_problem(settings.problem, seed)
        points = _raw(problem, name) if name in raw.ROWS else _trained(settings, problem, name, seed)
        folder.mkdir(parents=True, exist_ok=True)
        kept = {"settings": about, "points": points}
        Folder(folder).write(file, kept)
        print(f"{name}, seed {seed}: done", flush=True)
    if kept["settings"] != about:
        raise ValueError(f"{folder / file} is of a run with other settings; give another --out")
    return kept["points"]


def _raw(problem: Problem, name: str) -> list[dict[str, Any]]:
    """The one point of a row without an encoder: there is nothing to choose."""
    scored = {split: raw.ROWS[name](problem, split) for split in ("valid", "test")}
    return [{"value": 0.0, "readout": "raw", "share": {}, **scored}]


def _about(settings: study.Settings, name: str) -> dict[str, Any]:
    """The settings that decide what a row gives, as JSON keeps them."""
    about = {"problem": tables.of_a_run(settings.problem)}
    if name not in raw.ROWS:
        row = rows(settings)[name]
        config = {key: value for key, value in dataclasses.asdict(row.config).items() if key not in row.names}
        about |= {"autoencoder": dataclasses.asdict(settings.autoencoder)}
        about |= row._replace(module=row.module.__name__, config=config)._asdict()
    return json.loads(json.dumps(about))


def _trained(settings: study.Settings, problem: Problem, name: str, seed: int) -> list[dict[str, Any]]:
    """Trains a row with each of its values, and scores every encoder in every way."""
    row = rows(settings)[name]
    problem = problem._replace(data=study.central(problem)) if row.central else problem
    ae = study.autoencoder_of(settings.autoencoder, problem)

    def build(value: Any) -> Any:
        config = dataclasses.replace(row.config, **dict.fromkeys(row.names, value))
        return study.method_of(row.module, config, settings.autoencoder, problem)

    if row.frozen:
        first = jax.random.fold_in(jax.random.key(seed), 0)  # as run.sweep draws first states
        server = jax.jit(functools.partial(init_server, build(0.0)))(first)
        return [{"value": 0.0, "share": {}} | scored for scored in scores(ae, server["params"], problem)]
    common = settings.problem.common
    fraction = settings.problem.fraction if row.fraction is None else row.fraction
    sweep = run.sweep(
        build,
        problem.data,
        grid={"value": list(row.values)},
        seeds=(seed,),
        rounds=common.rounds,
        per_round=data.taking_part(problem, fraction),
        chunk=None if common.chunk in (1, "1", "auto") else int(common.chunk),
        devices=common.devices or 1,
        log=lambda line: None,
    )
    points = []
    for number, state in enumerate(sweep.states):
        server = jax.tree.map(lambda x: x[0], state.server)
        params = server["params"] if row.module is fedmekt else mmfl.by_part(server)
        last = {key: float(values[number, 0, -1]) for key, values in sweep.scores.items()}
        point = {"value": row.values[number], "share": distillation_share(None, last)}
        points += [point | scored for scored in scores(ae, params, problem)]
    return points


def scores(ae: AutoEncoder, params: PyTree, problem: Problem) -> list[dict[str, Any]]:
    """What an encoder scores in each way of READOUTS: "readout", and the scores "valid" and "test"."""
    splits, classes = problem.dataset.splits, len(problem.dataset.classes)
    read = {split: {m: _read(ae, params, m, splits[split][m]) for m in ae.modalities} for split in SPLITS}
    found = []
    for name, probe in READOUTS.items():
        of = {split: {m: read[split][m][probe.readout] for m in ae.modalities} for split in SPLITS}
        fit = functools.partial(linear_evaluation.fit_classifiers, probe, of["labelled"])
        classifiers = fit(splits["labelled"]["label"], ae.modalities, classes)
        score = lambda split, of=of, by=classifiers: linear_evaluation.score_rows(
            by, of[split], splits[split]["label"], classes
        )
        found.append({"readout": name, "valid": score("valid"), "test": score("test")})
    return found


def _read(ae: AutoEncoder, params: PyTree, m: str, x: np.ndarray) -> dict[str, np.ndarray]:
    """Readout -> the rows of windows, 256 at a time so that one program reads all splits."""
    padded = np.concatenate([x, np.zeros((-len(x) % 256, *x.shape[1:]), x.dtype)])
    blocks = [_block(ae.encode, m, params, padded[i : i + 256]) for i in range(0, len(padded), 256)]
    return {name: np.concatenate([block[name] for block in blocks])[: len(x)] for name in blocks[0]}


@functools.partial(jax.jit, static_argnums=(0, 1))
def _block(encode: Any, m: str, params: PyTree, x: jax.Array) -> dict[str, jax.Array]:
    z, h = encode(params, m, x)
    return {name: readout.read(name, z, h) for name in dict.fromkeys(probe.readout for probe in READOUTS.values())}


def mean_f1(scored: Mapping[str, float]) -> float:
    """The mean macro F1 over each modality alone and all together, by which settings are chosen."""
    return float(np.mean([value for key, value in scored.items() if key.endswith("/macro_f1")]))


def best(points: Points) -> Mapping[str, Any]:
    """The point with the best mean macro F1 on validation windows; of equals, the first."""
    return max(points, key=lambda point: mean_f1(point["valid"]))


def compare(settings: study.Settings) -> dict[str, list[Points]]:
    """Trains all rows with all seeds, prints the tables and writes tuned.md; row -> the points of each seed."""
    common = settings.problem.common
    cli.without_runs(common)
    cli.write(common.out, settings)
    names = [*raw.ROWS, *rows(settings)]
    for name in settings.rows:
        cli.one_of("row", name, names)
    found = jobs.trained(functools.partial(train, settings), settings.rows or names, common)
    report.show(scores_table(found))
    splits = data.load_problem(settings.problem, common.all_seeds[0]).dataset.splits
    sizes = ", ".join(f"{len(arrays['label'])} {split}" for split, arrays in splits.items())
    about = (
        f"{settings.problem.data}, clients {settings.problem.cohorts}, {common.rounds} rounds, {common.about_seeds}. "
        f"Windows at seed {common.all_seeds[0]}: {sizes}."
    )
    parts = [f"{above}\n\n{report.table(shown)}" for above, shown in sections(found) if shown]
    (pathlib.Path(common.out) / "tuned.md").write_text("\n\n".join(["# FedMEKT, tuned", about, *parts]))
    return found


def sections(found: Mapping[str, Sequence[Points]]) -> list[tuple[str, list[dict[str, Any]]]]:
    """The tables of the report, each with a line above it."""
    chosen = {name: [best(points)["test"] for points in seeds] for name, seeds in found.items()}
    keys = {key: report.heading(key) for key in next(iter(chosen.values()))[0] if key.endswith("/macro_f1")}
    ahead = tables.ahead(chosen, LEADER, keys) if LEADER in chosen else []
    return [
        ("Test scores with the values and readouts that each seed's validation windows chose:", scores_table(found)),
        ("Differences within a seed (mean and 95 % interval):", ahead),
        ("The grid: mean macro F1 on validation windows, over modalities and seeds:", grid_table(found)),
        ("Mean macro F1 on test windows for each readout, the value chosen on validation:", readout_table(found)),
    ]


def scores_table(found: Mapping[str, Sequence[Points]]) -> list[dict[str, Any]]:
    """A row for each method: its test scores as (mean, sample standard deviation) over the seeds."""
    shown = []
    for name, seeds in found.items():
        chosen = [best(points)["test"] for points in seeds]
        keys = [key for kind in ("macro_f1", "weighted_f1") for key in chosen[0] if key.endswith(f"/{kind}")]
        shown.append({"method": name} | {report.heading(key): over_seeds([one[key] for one in chosen]) for key in keys})
    return shown


def grid_table(found: Mapping[str, Sequence[Points]]) -> list[dict[str, Any]]:
    """A row for each value of each method: its validation score with the readout that is best there, how often seeds
    chose it, and the share of the loss that the server's distillation has."""
    shown = []
    for name, seeds in found.items():
        for value in dict.fromkeys(point["value"] for point in seeds[0]):
            of = [[point for point in points if point["value"] == value] for points in seeds]
            scored = over_seeds([mean_f1(best(points)["valid"]) for points in of])
            times = sum(best(points)["value"] == value for points in seeds)
            share = [points[0]["share"].get("server/distillation_share") for points in of]
            row = {"method": name, "value": f"{value:g}" if value else "–", "validation": scored, "seeds": times}
            shown.append(row | {"share of distillation": over_seeds(share)})
    return shown


def readout_table(found: Mapping[str, Sequence[Points]]) -> list[dict[str, Any]]:
    """A row for each method that trains encoders: its mean test score with each readout."""
    shown = []
    for name in (name for name in found if name not in raw.ROWS):
        row: dict[str, Any] = {"method": name}
        for kind in READOUTS:
            of = [[point for point in points if point["readout"] == kind] for points in found[name]]
            row[kind] = over_seeds([mean_f1(best(points)["test"]) for points in of])
        shown.append(row)
    return shown
