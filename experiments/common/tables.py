"""What the scripts share: datasets by name, clients by code, a model for each modality, several seeds in one table."""

import argparse
import dataclasses
import functools
import json
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import jax
import numpy as np
import tyro

from fedjax_mm import evaluate, report, run
from fedjax_mm.data import (
    Dataset,
    FederatedData,
    digits,
    mhealth,
    opportunity,
    partition,
    pooled,
    scenes,
    ur_fall,
    utd_mhad,
)
from fedjax_mm.federate import Method
from fedjax_mm.methods import fedavg
from fedjax_mm.models import Model, cnn, heads, lstm, mlp, text
from fedjax_mm.types import FedState

SIZES = {"test": 0.2, "proxy": 0.1, "labelled": 0.1, "valid": 0.1}  # of recordings; clients have the rest
DATASETS: Mapping[str, Callable[[Any, int], Dataset]] = {
    "digits": lambda data_dir, seed: digits.load("sequence", seed),
    "scenes": lambda data_dir, seed: scenes.load(seed=seed),
    "ur_fall": lambda data_dir, seed: ur_fall.load(data_dir, seed=seed, sizes=SIZES, stride=6, lead_in=True),
    "mhealth": lambda data_dir, seed: mhealth.load_windows(
        pathlib.Path(data_dir or ".") / "mhealth_chestacc_wristgyro_w100.npz",
        seed,
        {"test": 2, "proxy": 1, "labelled": 1, "valid": 1},
        steps=25,
    ),
    "utd_mhad": lambda data_dir, seed: utd_mhad.load(data_dir or ".", seed=seed),
    "opportunity": lambda data_dir, seed: opportunity.load(data_dir, seed=seed),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is trained on, by whom and for how long: the same flags in every script."""

    data: Literal["digits", "scenes", "ur_fall", "mhealth", "utd_mhad", "opportunity"] = "digits"
    """digits and scenes are embedded; the others are read from --data-dir."""
    data_dir: str | None = None
    """Folder of the dataset's files."""
    cohorts: str = "A10_B10_AB10"
    """How many clients hold which modalities; A and B are the dataset's first and second."""
    alpha: float = 0.3
    """Dirichlet concentration of classes over clients where examples come in no groups; smaller is more skewed."""
    proxy: int = 128
    """Examples that the server and all clients share, evenly spaced over the split `proxy`."""
    rounds: int = 60
    fraction: float = 0.34
    """Share of each cohort's clients that takes part in a round."""
    seeds: int = 3
    """Each seed draws the split, the clients, the weights and the batches."""
    split: Literal["test", "valid"] = "test"
    """Split that is evaluated: tune on valid, report test."""
    chunk: Annotated[int | str, tyro.conf.arg(metavar="INT|auto")] = 1
    """Clients vmapped at a time, or auto."""
    devices: int | None = None
    """Devices to spread clients over."""
    out: str = "runs"
    """Directory the runs, the table and the pictures are written to; runs found there are not repeated."""


class Problem(NamedTuple):
    """A dataset distributed over clients."""

    data: FederatedData
    dataset: Dataset


def load_problem(settings: Settings, seed: int) -> "Problem":
    """The problem of one seed."""
    return load(settings.data, settings.data_dir, settings.cohorts, settings.alpha, seed, settings.proxy)


@functools.lru_cache(8)
def load(name: str, data_dir: str | None, cohorts: str, alpha: float, seed: int, proxy: int = 128) -> Problem:
    """The named dataset with its training examples in the hands of the clients that `cohorts` describes.

    cohorts: "A10_B10_AB10", the letters standing for the dataset's modalities in order. Where examples come in groups
    (subjects, recordings) a client owns whole groups, if there are enough; else the split is Dirichlet(alpha) by
    class. `proxy` examples of the split of that name, where there is one, are what the server and all clients share.
    """
    dataset = DATASETS[name](data_dir, seed)
    train = dataset.splits["train"]
    holders = parse_cohorts(cohorts, dataset.modalities)
    total = sum(holders.values())
    if "group" in train and len(np.unique(train["group"])) >= total:
        parts = partition.by_group(train["group"], total, seed)
    else:
        parts = partition.dirichlet(train["label"], total, alpha, seed, min_size=2)
    who = partition.missing_modality(total, dataset.modalities, holders, seed)
    kept = {key: _padded(train[key]) for key in (*dataset.modalities, "label")}
    arrays = {cohort: {k: kept[k] for k in (*cohort.split("+"), "label")} for cohort in who}
    owned = {cohort: [parts[j] for j in ids] for cohort, ids in who.items()}
    public = None
    if "proxy" in dataset.splits:
        windows = len(dataset.splits["proxy"]["label"])
        rows = np.linspace(0, windows - 1, min(proxy, windows)).astype(int)
        public = {m: dataset.splits["proxy"][m][rows] for m in dataset.modalities}
    data = FederatedData.from_arrays(arrays, owned, public=public, num_classes=len(dataset.classes))
    return Problem(data, dataset)


def _padded(array: np.ndarray, multiple: int = 256) -> np.ndarray:
    """The array with rows that nobody owns, so that splits of nearly the same size compile to one program."""
    return np.concatenate([array, np.zeros((-len(array) % multiple, *array.shape[1:]), array.dtype)])


def parse_cohorts(code: str, modalities: Sequence[str]) -> dict[tuple[str, ...], int]:
    """ "A10_B10_AB10" -> {("left",): 10, ("right",): 10, ("left", "right"): 10}."""
    holders = {}
    for piece in code.split("_"):
        match = re.fullmatch(r"([A-Z]+)(\d+)", piece)
        letters = [ord(c) - ord("A") for c in match[1]] if match else [len(modalities)]
        if max(letters) >= len(modalities):
            known = ", ".join(f"{chr(ord('A') + i)} = {m}" for i, m in enumerate(modalities))
            raise ValueError(f"--cohorts {code} is not understood at {piece!r}; write e.g. A10_B10_AB10 with {known}")
        holders[tuple(modalities[i] for i in letters)] = int(match[2])
    return holders


def encoders(dataset: Dataset, dim: int = 32) -> dict[str, Model]:
    """A small encoder for each modality, by its shape: tokens [L], sequences [T, F], images [H, W, C]."""
    made = {}
    for name in dataset.modalities:
        array = dataset.splits["train"][name]
        if array.dtype.kind == "i":
            made[name] = text.encoder(int(array.max()) + 1, dim, 64)
        elif array.ndim == 3:
            made[name] = lstm.encoder(32, dim)
        elif array.shape[1] >= 16:
            made[name] = cnn.encoder((16, 32, 64), dim)
        else:
            made[name] = mlp.encoder((64,), dim)
    return made


class Variant(NamedTuple):
    """One line of a table: a method (or None: the constant prediction), on the federated or the pooled data."""

    build: Callable[[Problem], Method] | None
    config: Any = None
    pool: bool = False  # all examples in one place
    everyone: bool = False  # all clients in every round, where a round stands for an epoch and nothing travels
    control: bool = False  # shown beside the methods
    travels: bool = True  # False: what clients send is not used, and not counted


CONSTANT = Variant(None, control=True)


def fedavg_variant(config: fedavg.FedAvgConfig, **settings) -> Variant:
    def build(problem: Problem) -> Method:
        head = heads.linear(len(problem.dataset.classes))
        return fedavg.build(config, problem.data, encoders(problem.dataset), head)

    return Variant(build, config, **settings)


def controls(config: fedavg.FedAvgConfig) -> dict[str, Variant]:
    """The controls of every table, with the same model, rate, batch size and epochs."""
    plain = dataclasses.replace(config, prox=0.0, server_optimizer="sgd", server_lr=1.0, multimodal_weight=1.0)
    return {
        "constant": CONSTANT,
        "local only": fedavg_variant(dataclasses.replace(plain, shared=()), everyone=True, control=True),
        "centralised": fedavg_variant(plain, pool=True, control=True),
    }


def compare(settings: Settings, variants: Mapping[str, Variant]) -> list[dict]:
    """A row per variant (see report.summary), scores as (mean, sample std) over the seeds.

    Each run is written to out/variant/seed<k>.
    """
    problems = [load_problem(settings, seed) for seed in range(settings.seeds)]
    return _with_constant([_row(name, variant, problems, settings) for name, variant in variants.items()])


def folder(settings: Settings, name: str, seed: int) -> pathlib.Path:
    """Where the run of a row and a seed is."""
    return pathlib.Path(settings.out) / name.replace(" ", "_") / f"seed{seed}"


def finish(method, data: FederatedData, settings: Any, name: str, seed: int, **given) -> tuple[pathlib.Path, FedState]:
    """The directory of a row's run of one seed, finished, and where it ended; `given` goes to run.train."""
    directory = folder(settings, name, seed)
    chunk = settings.chunk if settings.chunk == "auto" else int(settings.chunk)
    state = run.train(method, data, seed=seed, directory=directory, chunk=chunk, log=lambda line: None, **given)
    print(f"{name}, seed {seed}: done", flush=True)
    return directory, state


def of_a_run(settings: Any) -> dict[str, Any]:
    """The settings that decide what a run gives, for its config.json: more seeds or a moved folder change no run."""
    about = ("data_dir", "mode", "modes", "plan", "method", "trunk", "seeds", "chunk", "out")
    return {key: value for key, value in dataclasses.asdict(settings).items() if key not in about}


def spread(values: Sequence[float]) -> float | tuple[float, float]:
    """(mean, sample standard deviation) over seeds, or the value of the only one."""
    return (float(np.mean(values)), float(np.std(values, ddof=1))) if len(values) > 1 else float(values[0])


def _row(name: str, variant: Variant, problems: Sequence[Problem], settings: Settings) -> dict:
    if variant.build is None:
        scores = []
        for _, dataset in problems:
            labels = [dataset.splits[split]["label"] for split in ("train", settings.split)]
            scores.append(evaluate.constant(*labels, len(dataset.classes)))
        return {"method": name, "constant": {key: [score[key] for score in scores] for key in scores[0]}}
    folders = []
    for seed, problem in enumerate(problems):
        tested = problem.dataset.splits[settings.split]
        if variant.pool:
            problem = problem._replace(data=pooled(problem.data))
        share = 1.0 if variant.pool or variant.everyone else settings.fraction if variant.travels else 0.0
        done, _ = finish(
            variant.build(problem),
            problem.data,
            settings,
            name,
            seed,
            rounds=settings.rounds,
            per_round={cohort: max(1, round(share * n)) for cohort, n in problem.data.sizes.items()},
            test={key: tested[key] for key in (*problem.dataset.modalities, "label", "labels") if key in tested},
            evaluate_every=max(1, settings.rounds // 6),
            checkpoint_every=max(1, settings.rounds // 3),
            devices=settings.devices,
            config=variant.config,
        )
        folders.append(done)
    (row,) = report.summary([report.load(folder) for folder in folders])
    alone = variant.pool or not variant.travels
    return {**row, "method": name} | ({"MB down": None, "MB up": None} if alone else {})


def write(
    settings: Settings,
    variants: Mapping[str, Variant],
    rows: list[dict],
    title: str,
    metrics: Sequence[str] = ("macro_f1",),
    notes: Sequence[str] = (),
) -> None:
    """Prints the table of `metrics` and writes report.md (with all metrics), table.json and the pictures to `out`."""
    out = pathlib.Path(settings.out)
    problem = load_problem(settings, 0)
    tested = list(dict.fromkeys(key for row in rows for key in row if key.startswith("test/")))
    costs = {key: key for key in ("MB down", "MB up", "GFLOP per step", "peak MB", "s per round")}
    columns = {"method": "method"}
    columns |= {key: report.heading(key) for metric in metrics for key in tested if key.endswith(f"/{metric}")} | costs
    shown = f"test/{'+'.join(problem.dataset.modalities)}/{metrics[0]}"
    controls = [name for name, variant in variants.items() if variant.control]
    report.plot_bars(rows, out / "bars.png", quality=shown, label="method", controls=controls)
    federated = next(name for name in variants if name not in controls)
    run_of = report.load(folder(settings, federated, 0))
    report.plot_split(run_of.split, out / "split.png", problem.dataset.classes)
    methods = [name for name in variants if name not in controls]
    runs = [report.load(folder(settings, name, seed)) for name in methods for seed in range(settings.seeds)]
    report.plot_curves(runs, [shown], out / "curves.png")
    sizes = ", ".join(f"{len(arrays['label'])} {name}" for name, arrays in problem.dataset.splits.items())
    about = (
        f"{settings.data}, clients {settings.cohorts}, {settings.rounds} rounds, {settings.seeds} seeds (mean ± sample "
        f"standard deviation), {settings.split} split. Examples at seed 0: {sizes}."
    )
    parts = ["![scores and bytes](bars.png)", *notes, "## Over rounds", "![curves](curves.png)"]
    parts += ["## Who holds what (seed 0)", report.table(report.split_table(run_of.split)), "![split](split.png)"]
    parts += ["Share of each class in each split:", report.table(_class_shares(problem.dataset))]
    others = {key: report.heading(key) for key in tested if key not in columns}
    parts += ["## Other metrics", report.table(rows, {"method": "method"} | others)] if others else []
    save(settings, title, about, rows, columns, parts, run_of)


def save(
    settings: Any,
    title: str,
    about: str,
    rows: list[dict],
    columns: Mapping[str, str],
    parts: Sequence[str],
    run_of: report.Run,
) -> None:
    """Prints a table and writes report.md, `parts` behind the table, and table.json to settings.out."""
    out = pathlib.Path(settings.out)
    report.show(rows, columns)
    device = f"Run on {run_of.config['device']}, {run_of.config['versions']}."
    text = [f"# {title}", about, report.table(rows, columns), *parts, device]
    (out / "report.md").write_text("\n\n".join(text) + "\n")
    kept = {"settings": dataclasses.asdict(settings), "versions": run_of.config["versions"]}
    kept |= {"device": run_of.config["device"], "rows": rows}
    (out / "table.json").write_text(json.dumps(kept, indent=1))
    print(f"{about}\nWrote {out}/report.md and its pictures.")


def _class_shares(dataset: Dataset) -> list[dict]:
    shares = lambda labels: np.bincount(labels, minlength=len(dataset.classes)) / len(labels)
    by_split = {split: shares(arrays["label"]) for split, arrays in dataset.splits.items()}
    return [{"split": split, **dict(zip(dataset.classes, map(float, s), strict=True))} for split, s in by_split.items()]


def _with_constant(rows: list[dict]) -> list[dict]:
    """The constant prediction scores the same whatever is tested."""
    tested = [key for row in rows for key in row if key.startswith("test/")]
    for row in rows:
        if "constant" in row:
            values = row.pop("constant")
            known = {key: key.rpartition("/")[2] for key in tested}
            row |= {key: spread(values[metric]) for key, metric in known.items() if metric in values}
    return rows


def settings_from(presets: Mapping[str, Any], description: str | None) -> Any:
    """The command line's settings: the preset of its --data, changed by the other flags."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--data", default=next(iter(presets)))
    default = presets.get(parser.parse_known_args()[0].data, next(iter(presets.values())))
    return tyro.cli(type(default), default=default, description=description)


def cache_compilations() -> None:
    """Keeps compiled programs in the user's cache, so that a second run starts at once."""
    folder = pathlib.Path.home() / ".cache" / "fedjax_mm" / "compiled"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
