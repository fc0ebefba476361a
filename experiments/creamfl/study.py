"""CreamFL beside its baselines, its ablations, and the server alone.

python -m experiments.creamfl                                          one run, --method and --data
python -m experiments.creamfl compare --data flickr8k --data-dir DIR    all of them, at equal server steps
"""

import dataclasses
import functools
import pathlib
import sys
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import jax
import numpy as np
import tyro

from experiments.common import tables as problems
from experiments.creamfl.data import Numbers, Problem, photo_problem, scenes_problem
from experiments.creamfl.models import Models, Size, full, pretrained, small
from fedjax_mm import evaluate, report
from fedjax_mm.federate import Method
from fedjax_mm.methods import creamfl
from fedjax_mm.methods.creamfl import CreamFLConfig, encoder_averaging, vqa_evaluation
from fedjax_mm.methods.creamfl.encoder_averaging import AveragingConfig
from fedjax_mm.methods.creamfl.joint_space import MODALITIES, represent
from fedjax_mm.report import plots
from fedjax_mm.types import FedState

SHOWN = ("i2t_r10", "t2i_r10", "rsum", "r1_sum", "image/own_accuracy", "text/own_accuracy", "both/i2t_r10")
COLUMNS = {"method": "method"} | {f"test/{key}": key for key in SHOWN}
COLUMNS |= {key: key for key in ("VQA", "MB down", "MB up", "peak MB", "s per round")}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is trained on, by whom and for how long."""

    data: Literal["scenes", "flickr8k", "coco"] = "scenes"
    """scenes are embedded; the others, with CIFAR-100 and AG's News, are read from --data-dir."""
    data_dir: str | None = None
    checkpoints: str | None = None
    """Folder of resnet-101, resnet-18 and bert-base-uncased, the paper's models; None: small ones."""
    side: int = 32
    """Pixels of photographs; 224 for the paper's models."""
    preset: Literal["small", "paper", "code"] = "small"
    """Of the method: small, at rates for small fresh models; the paper's equations; the released code's behaviour."""
    method: str = "CreamFL"
    """Of a single run; compare has all, see --help's list in `variants`."""
    numbers: Numbers = Numbers()
    alpha: float = 0.1
    """Dirichlet concentration of classes over clients with one modality."""
    per_round: int = 10
    """Clients drawn from all of them."""
    rounds: int = 15
    epochs: int = 4
    """Passes of a client over its own examples."""
    server_lr: float | None = None
    client_lr: float | None = None
    weighing_temperature: float = 1.0
    size: Size = Size()
    pretraining: int = 8
    """Passes over other, labelled examples that all encoders have behind them; 0: fresh encoders."""
    seeds: int = 3
    split: Literal["test", "valid"] = "test"
    chunk: Annotated[int | str, tyro.conf.arg(metavar="INT|auto")] = 1
    out: str = "runs/creamfl_scenes"


PRESETS = {
    "scenes": Settings(),
    "flickr8k": Settings(
        "flickr8k",
        numbers=Numbers(public=800, pretraining=10_000),
        rounds=12,
        pretraining=12,
        out="runs/creamfl_flickr8k",
    ),
    "coco": Settings(
        "coco",
        preset="paper",
        numbers=Numbers(per_client=500, public=50_000, test=5000),
        side=224,
        size=Size(dim=512),
        rounds=30,
        epochs=5,
        out="runs/creamfl_coco",
    ),
}


def variants(settings: Settings) -> dict[str, CreamFLConfig | AveragingConfig]:
    """Every row by name. All servers take as many steps, a pass to learn and one to distil or two to learn, but one.

    The server that takes a single pass learns as much from the pairs as those that distil, which shows what only comes
    of learning less from few pairs.
    """
    config = creamfl.PRESETS[settings.preset]
    rates = {"server_lr": settings.server_lr, "client_lr": settings.client_lr, "both_lr": settings.client_lr}
    given = {key: rate for key, rate in rates.items() if rate is not None}
    training = dataclasses.replace(config.training, epochs=settings.epochs, **given)
    twice = dataclasses.replace(training, server_epochs=2 * training.server_epochs)
    config = dataclasses.replace(config, training=training, weighing_temperature=settings.weighing_temperature)
    cream = functools.partial(dataclasses.replace, config)
    plain = functools.partial(cream, inter=False, intra=False)
    return {
        "server only": cream(training=twice, kd_epochs=0),
        "server only, one pass": cream(kd_epochs=0),
        "FedAvg": AveragingConfig(twice),
        "FedIoT": AveragingConfig(twice, both_weight=100.0),
        "FedMD": plain(weighing="mean"),
        "FedGEMS": plain(weighing="entropy"),
        "FedET": plain(weighing="consensus"),
        "reamFL+Avg": plain(weighing="size"),
        "reamFL+IoT": plain(weighing="size", both_weight=100.0),
        "CreamFL": cream(),
        "CreamFL, temperature 0.1": cream(weighing_temperature=0.1),
        "CreamFL, temperature 0.02": cream(weighing_temperature=0.02),
        "CreamFL, plain mean": cream(weighing="mean"),
        "CreamFL, no inter": cream(inter=False),
        "CreamFL, no intra": cream(intra=False),
    }


@functools.lru_cache(4)
def load(settings: Settings, seed: int) -> Problem:
    """The problem of one seed."""
    given = (settings.numbers, settings.split, settings.alpha, seed)
    if settings.data == "scenes":
        return scenes_problem(*given)
    vocabulary = 4000
    if settings.checkpoints:
        vocabulary = pathlib.Path(settings.checkpoints) / "bert-base-uncased" / "vocab.txt"
    return photo_problem(
        *given, settings.data_dir or ".", public=settings.data, side=settings.side, vocabulary=vocabulary
    )


@functools.lru_cache(4)
def models(settings: Settings) -> Models:
    """What clients and server start from; the same for all seeds, as a published checkpoint is."""
    released = settings.preset == "code"
    if settings.checkpoints:
        return full(settings.checkpoints, settings.size.dim, settings.side, released)
    problem = load(settings, 0)
    made = small(settings.size, problem.vocabulary, released)
    return pretrained(made, problem.pretraining, settings.pretraining)


def method_of(settings: Settings, name: str, problem: Problem) -> Method:
    """The method of a row."""
    config, made = variants(settings)[name], models(settings)
    if isinstance(config, AveragingConfig):
        return encoder_averaging.build(config, problem.data, made.equal, problem.num_classes)
    return creamfl.build(config, problem.data, made.server, made.clients, problem.num_classes)


def train(settings: Settings, name: str, seed: int) -> tuple[pathlib.Path, FedState]:
    """A run that is finished: its directory and where it ended."""
    problem = load(settings, seed)
    return problems.finish(
        method_of(settings, name, problem),
        problem.data,
        settings,
        name,
        seed,
        rounds=settings.rounds,
        per_round=settings.per_round,
        test=problem.test,
        evaluate_every=max(1, settings.rounds // 4),
        checkpoint_every=settings.rounds,
        config={"settings": problems.of_a_run(settings), "method": variants(settings)[name]},
    )


def compare(settings: Settings) -> list[dict]:
    """A row per method: the server's retrieval and questions, what clients can do, bytes, time, evenness of weights."""
    out, names, seeds = pathlib.Path(settings.out), list(variants(settings)), range(settings.seeds)
    runs, asked, ends = {}, {}, {}
    for name in names:
        done = [train(settings, name, seed) for seed in seeds]
        runs[name] = [report.load(folder) for folder, _ in done]
        asked[name] = [answered(settings, name, seed, state) for seed, (_, state) in enumerate(done)]
        ends[name] = done[0][1]
    rows = [chance(settings), *(_row(name, runs[name], asked[name]) for name in names)]
    bars = {"quality": "test/rsum", "quality_axis": "sum of recalls, %", "cost": ("MB down", "MB up")}
    report.plot_bars(
        rows,
        out / "bars.png",
        label="method",
        controls=("chance", *(name for name in names if "server" in name)),
        **bars,
    )
    shown = ("server only", "server only, one pass", "FedAvg", "FedMD", "reamFL+Avg", "CreamFL")
    curves = {name: [run.rows for run in runs[name]] for name in shown if name in runs}
    plots.plot_curves(curves, ["test/rsum", "test/both/i2t_r10"], out / "curves.png")
    problem, drawn = load(settings, 0), [name for name in ("FedMD", "CreamFL") if name in runs]
    for name in drawn:
        made = {m: represented(settings, problem, ends[name], m) for m in MODALITIES}
        plots.plot_representations(made, out / f"representations_{name}.png", name)
    sizes = ", ".join(f"{n} with {name}" for name, n in problem.data.sizes.items())
    about = (
        f"{settings.data}, clients: {sizes}, {settings.numbers.per_client} examples each on average, "
        f"{settings.per_round} of them a round, {settings.rounds} rounds, {settings.numbers.public} public pairs, "
        f"{len(problem.test['image'])} test pictures; {settings.seeds} seeds (mean ± sample standard deviation), "
        f"{settings.split} split, preset {settings.preset}."
    )
    weights = [key for key in rows[-1] if key.startswith("server/")]
    parts = ["![scores and bytes](bars.png)", "## Differences within a seed", report.table(paired(runs))]
    parts += ["## Weights and drift, last round", report.table(rows[1:], ["method", *weights])]
    parts += [f"![{name}](representations_{name}.png)" for name in drawn]
    parts += ["## Over rounds", "![curves](curves.png)", "## All metrics"]
    parts += [report.table(rows, ["method", *(key for key in rows[1] if key.startswith("test/"))])]
    problems.save(settings, "CreamFL", about, rows, COLUMNS, parts, runs["CreamFL"][0])
    return rows


def chance(settings: Settings) -> dict[str, Any]:
    """The row of models that know nothing: any order of the candidates, the commonest class, the commonest answer."""
    problem, row = load(settings, 0), {"method": "chance"}
    images, texts = len(problem.test["image"]), problem.test["text"]
    owner = np.repeat(np.arange(images), texts.shape[1] if texts.ndim == 3 else 1)
    one_point = evaluate.both_protocols(np.zeros((images, 1)), np.zeros((len(owner), 1)), owner)
    row |= {f"test/{key}": value for key, value in one_point.items()}
    for name in ("image", "text"):
        labels = problem.test[f"{name}/label"]
        row[f"test/{name}/accuracy"] = float(np.bincount(labels).max() / len(labels))
        held = np.array(problem.data.split()[name]["classes"])
        row[f"test/{name}/own_accuracy"] = float((held.max(1) / held.sum(1)).mean())
    if problem.questions:
        row["VQA"] = 100 * float(problem.questions[1].target.mean(0).max())
    return row


def answered(settings: Settings, name: str, seed: int, state: FedState) -> dict[str, float] | None:
    """Scores of questions answered from the server's representations of picture and question."""
    problem = load(settings, seed)
    if problem.questions is None:
        return None
    made = models(settings)
    encoders = made.equal if isinstance(variants(settings)[name], AveragingConfig) else made.server
    of = jax.jit(lambda params, m, x: represent(encoders[m], params[m], x), static_argnums=1)
    params = state.server["params"]
    reps = [
        vqa_evaluation.Questions(of(params, "image", q.image), of(params, "text", q.question), q.target)
        for q in problem.questions
    ]
    return vqa_evaluation.vqa(vqa_evaluation.VQAProbe(), *reps, jax.random.key(seed))


def represented(settings: Settings, problem: Problem, state: FedState, m: str, few: int = 200) -> dict[str, np.ndarray]:
    """Representations [few, D] of the first public examples by the server and by three clients of each kind."""
    made, some = models(settings), problem.data.public[m][:few]
    of = lambda encoders, params: np.asarray(represent(encoders[m], params[m], some))
    found = {"server": of(made.server, state.server["params"])}
    for name, encoders in made.clients.items():
        for k in range(min(3, problem.data.sizes[name]) if m in encoders else 0):
            params = jax.tree.map(lambda x, k=k: x[k], state.clients[name]["params"])
            found[f"{name} {k}"] = of(encoders, params)
    return found


def _row(name: str, same: list[report.Run], asked: list[dict[str, float] | None]) -> dict[str, Any]:
    (row,) = report.summary(same)
    last = [run.rows[-1] for run in same]
    about = [key for key in last[0] if key.startswith(("server/entropy", "server/drift"))]
    row |= {key: problems.spread([one[key] for one in last]) for key in about}
    if asked[0]:
        row["VQA"] = problems.spread([one["vqa_score"] for one in asked])
    return {**row, "method": name}


def paired(runs: Mapping[str, list[report.Run]]) -> list[dict[str, Any]]:
    """How far CreamFL is ahead of every other method, seed by seed, on the same split and clients."""
    rows, keys = [], ("rsum", "r1_sum", "image/own_accuracy", "text/own_accuracy", "both/i2t_r10")
    for name in (name for name in runs if name != "CreamFL"):
        row = {"CreamFL minus": name}
        for key in (f"test/{key}" for key in keys):
            pairs = zip(runs["CreamFL"], runs[name], strict=True)
            if key in runs[name][0].rows[-1]:
                row[key.removeprefix("test/")] = problems.spread([a.rows[-1][key] - b.rows[-1][key] for a, b in pairs])
        rows.append(row)
    return rows


def main() -> None:
    command = sys.argv.pop(1) if sys.argv[1:2] == ["compare"] else "train"
    problems.cache_compilations()
    settings = problems.settings_from(PRESETS, __doc__)
    if settings.method not in (known := variants(settings)):
        raise SystemExit(f"--method {settings.method} is not known; it can be {', '.join(known)}")
    if command == "compare":
        compare(settings)
        return None
    done = [train(settings, settings.method, seed) for seed in range(settings.seeds)]
    asked = [answered(settings, settings.method, seed, state) for seed, (_, state) in enumerate(done)]
    row = _row(settings.method, [report.load(folder) for folder, _ in done], asked)
    return report.show([chance(settings), row], COLUMNS)
