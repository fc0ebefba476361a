"""FedMEKT, federated averaging of the same autoencoders, and their controls."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np

from experiments.common import cli, data, sweeps, tables
from experiments.common.data import Problem
from experiments.common.tables import Variant
from experiments.fedmekt import raw
from fedjax_mm import evaluate, report, run
from fedjax_mm.data import FederatedData
from fedjax_mm.federate import Method
from fedjax_mm.methods import fedmekt
from fedjax_mm.methods.fedmekt import FedMEKTConfig, mmfl
from fedjax_mm.methods.fedmekt.knowledge import distillation_share
from fedjax_mm.methods.fedmekt.linear_evaluation import Probe, chunked_f1
from fedjax_mm.methods.fedmekt.mmfl import MMFLConfig
from fedjax_mm.models import autoencoder
from fedjax_mm.models.autoencoder import AutoEncoder


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes of the autoencoder of every modality."""

    hidden: int = 32
    """Units of the first LSTM."""
    width: int = 4
    """Numbers in an embedding."""
    readout: bool = False
    """Let a linear layer make embeddings and reconstructions, instead of a second LSTM, whose outputs lie in -1..1."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """A problem, the autoencoder, and the settings of FedMEKT and of the methods that share weights."""

    problem: Annotated[data.Settings, cli.FLAT]
    method: FedMEKTConfig = FedMEKTConfig()
    baseline: MMFLConfig = MMFLConfig()
    autoencoder: Shape = Shape()
    released: bool = False
    """Add a row with the behaviour of the released code, which takes minutes: it sends 150 times as much."""
    stateful: bool = False
    """Score every frame of the test recordings too, read in chunks of 2000 with one state each and classified as in the
    released code: test/stateful/..., beside the scores of windows. For mhealth's logs and opportunity."""
    rows: tuple[str, ...] = ()
    """Rows of the command `tuned`, by their names; none given: all."""
    rates: tuple[float, ...] = (0.002, 0.008, 0.032, 0.128)
    """Learning rates that `tuned` tries for a server alone, a central autoencoder and FedAvg."""
    weights: tuple[float, ...] = (30.0, 300.0, 3000.0, 30000.0)
    """Weights of the distillation that `tuned` tries for the rows of FedMEKT."""


SWEPT = [*sweeps.fields(FedMEKTConfig, "method."), *sweeps.fields(Shape, "autoencoder.")]
WINDOW = Probe(unit="window")
STATEFUL = Probe(unit="frame", classifier="adam", stream=2000)
WIDE = Shape(width=16, readout=True)


def _preset(name: data.Name, weight: float, alpha: float = 0.3, rounds: int = 60, seeds: int = 5) -> Settings:
    common = cli.Common(rounds=rounds, seeds=seeds, out=f"runs/fedmekt_{name}")
    problem = data.Settings(data=name, alpha=alpha, fraction=0.3, common=common)
    learn = FedMEKTConfig(alpha=weight, eta=weight, probe=WINDOW)
    return Settings(problem, learn, MMFLConfig(probe=WINDOW), WIDE)


PRESETS = {  # ur_fall and utd_mhad: width and weight of the knowledge chosen on the validation split
    "digits": _preset("digits", 1.0, seeds=3),
    "ur_fall": _preset("ur_fall", 30.0),
    "mhealth": _preset("mhealth", 1.0, alpha=0.5, rounds=40),
    "utd_mhad": _preset("utd_mhad", 1.0, alpha=0.5, rounds=40),
    "opportunity": _preset("opportunity", 1.0),
}
PUBLISHED = {  # weighted F1, chunk mean, one seed, from the authors' result files; other splits and windows than ours
    ("ur_fall", "AB30"): {
        "FedMEKT": (0.7268, 0.7522),
        "FedAvg": (0.6724, 0.6076),
        "FedProx": (0.6879, 0.6707),
        "MOON": (0.6808, 0.6816),
        "constant": (0.5822, 0.5822),
    },
    ("ur_fall", "A10_B10_AB10"): {
        "FedMEKT": (0.7370, 0.7197),
        "FedAvg": (0.6218, 0.7138),
        "FedProx": (0.7345, 0.6883),
        "MOON": (0.7074, 0.7191),
        "constant": (0.5822, 0.5822),
    },
}


def variant(method: Any, config: Any, shape: Shape, **settings: Any) -> Variant:
    """A row of the table: `method` is a module, fedmekt or mmfl."""
    build = functools.partial(method_of, method, config, shape)
    return Variant(build, {"method": config, "autoencoder": shape}, **settings)


def method_of(method: Any, config: Any, shape: Shape, problem: Problem) -> Method:
    """The method of a row: `method` is a module, fedmekt or mmfl."""
    labelled, ae = problem.dataset.splits["labelled"], autoencoder_of(shape, problem)
    return method.build(config, problem.data, ae, labelled, len(problem.dataset.classes))


def autoencoder_of(shape: Shape, problem: Problem) -> AutoEncoder:
    """The autoencoder of a problem's modalities."""
    features = {m: problem.dataset.splits["train"][m].shape[-1] for m in problem.dataset.modalities}
    return autoencoder.split_lstm(features, **dataclasses.asdict(shape), dtype=problem.dtype)


def stateful(module: Any, config: Any, shape: Shape, problem: Problem, split: str) -> dict[str, Any]:
    """{name: score} of a row's encoders on every frame of the recordings of a split (1.6)."""
    method = method_of(module, dataclasses.replace(config, probe=STATEFUL), shape, problem)
    return {"test/stateful": run.scores(method, data.recordings(problem, split))}


def constant_frames(problem: Problem, split: str) -> dict[str, float]:
    """What the commonest class of the training frames scores on every frame of the recordings of a split."""
    train, classes = problem.dataset.splits["train"]["labels"], len(problem.dataset.classes)
    labels = data.recordings(problem, split)["labels"]
    commonest = np.full(len(labels), np.bincount(train.ravel()).argmax())
    scores = evaluate.classification(labels, commonest, classes) | {"official_f1": chunked_f1(labels, commonest)}
    both = "+".join(problem.dataset.modalities)
    return {f"stateful/{m}/{key}": x for m in (*problem.dataset.modalities, both) for key, x in scores.items()}


def controls(settings: Settings) -> dict[str, Variant]:
    """Constant prediction; raw windows; a random frozen encoder; the server without knowledge of any client; clients
    alone; one autoencoder on all clients' windows."""
    silent = dataclasses.replace(settings.method, eta=0.0, gamma=0.0, epochs=0)
    random = dataclasses.replace(silent, server_epochs=0)
    alone = dataclasses.replace(settings.baseline, shared=False)
    return {
        "constant": tables.CONSTANT,
        **{name: Variant(None, score=score, control=True) for name, score in raw.ROWS.items()},
        "random encoder": variant(fedmekt, random, settings.autoencoder, control=True, travels=False),
        "server only": variant(fedmekt, silent, settings.autoencoder, control=True, travels=False),
        "clients only": variant(mmfl, alone, settings.autoencoder, control=True),
        "central autoencoder": variant(
            mmfl, dataclasses.replace(settings.baseline, epochs=1), settings.autoencoder, control=True, pool=central
        ),
    }


def central(problem: Problem) -> FederatedData:
    """All training windows, every one with all modalities, as those of one client."""
    train = problem.dataset.splits["train"]
    arrays = {m: train[m] for m in problem.dataset.modalities}
    return FederatedData.from_arrays(arrays, [np.arange(len(train["label"]))], public=problem.data.public)


def variants(settings: Settings) -> dict[str, Variant]:
    """The rows of the table."""
    change = lambda **changed: variant(mmfl, dataclasses.replace(settings.baseline, **changed), settings.autoencoder)
    rows = {
        **controls(settings),
        "FedAvg": change(),
        "FedProx": change(prox=0.001),
        "MOON": change(moon=0.1),
        "FedMEKT": variant(fedmekt, settings.method, settings.autoencoder, watch=(distillation_share,)),
    }
    if settings.released:
        released = dataclasses.replace(fedmekt.VARIANTS["released"], probe=settings.method.probe)
        rows["FedMEKT released"] = variant(fedmekt, released, Shape())
    if not settings.stateful:
        return rows
    of = lambda row: functools.partial(stateful, *row.build.args) if row.build else None
    rows = {name: row._replace(evaluate=of(row)) for name, row in rows.items()}
    return {"constant, of frames": Variant(None, score=constant_frames, control=True), **rows}


def compare(settings: Settings) -> list[dict[str, Any]]:
    """Runs FedMEKT, the baselines and the controls, prints the table and writes the report."""
    problem, chosen = settings.problem, variants(settings)
    cli.write(problem.common.out, settings)
    rows = tables.compare(problem, functools.partial(variants, settings), settings)
    trained = [name for name, one in chosen.items() if one.build]
    notes = paired(problem.common, trained) + published(problem)
    tables.write(problem, chosen, rows, "FedMEKT", ("weighted_f1", "macro_f1"), notes, settings)
    return rows


def subject(settings: Settings) -> sweeps.Subject:
    """What a sweep trains: FedMEKT."""
    problem = data.load_problem(settings.problem, settings.problem.common.all_seeds[0])
    return sweeps.Subject(
        lambda changed: method_of(fedmekt, changed.method, changed.autoencoder, problem),
        problem.data,
        data.taking_part(problem, settings.problem.fraction),
        data.tested(problem, "valid"),
        settings.problem.common.rounds,
        f"valid/{'+'.join(problem.dataset.modalities)}/weighted_f1",
    )


def paired(common: cli.Common, names: Sequence[str]) -> list[str]:
    """A table of how far FedMEKT is ahead of the other rows `names`, seed by seed on the same split and clients."""
    if len(common.all_seeds) < 2:
        return []
    last = lambda name, seed: report.load(tables.folder(common, name, seed)).rows[-1]
    scores = {name: [last(name, seed) for seed in common.all_seeds] for name in names}
    keys = [key for key in scores["FedMEKT"][0] if key.endswith(("/weighted_f1", "/macro_f1"))]
    rows = tables.ahead(scores, "FedMEKT", {key: key for key in keys})
    return ["Differences within a seed (mean and 95 % interval):", report.table(rows)]


def published(problem: data.Settings) -> list[str]:
    """The numbers of the authors' result files for this setting, if there are any."""
    scores = PUBLISHED.get((problem.data, problem.cohorts), {})
    rows = [{"method": name, "accelerometer": a, "depth": d} for name, (a, d) in scores.items()]
    if not rows:
        return []
    about = (
        "Weighted F1 in the authors' result files (one seed, mean over chunks; other splits, normalisation, windows):"
    )
    return [about, report.table(rows)]
