"""FedDAT beside every other way of tuning one frozen vision-language trunk for clients with different questions.

python -m experiments.feddat                                          one run, --mode and --data
python -m experiments.feddat compare --data vqa --data-dir DIR          all modes, the same steps and rates
python -m experiments.feddat costs                                    what each mode trains and sends of ViLT-B/32
"""

import dataclasses
import functools
import pathlib
import sys
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import tyro

from experiments import pretrain_vilt
from experiments.common import tables as problems
from experiments.feddat import costs as feddat_costs
from experiments.feddat.modes import Widths, make, modes, size
from experiments.pretrain_vilt import Trunk
from fedjax_mm import report
from fedjax_mm.data import FederatedData, vqa
from fedjax_mm.data.scenes import tasks as scene_tasks
from fedjax_mm.methods.feddat.vqa_tuning import Training
from fedjax_mm.models import Model, adapters
from fedjax_mm.report import plots


@dataclasses.dataclass(frozen=True)
class Settings:
    """Who is asked what, and how long they learn."""

    data: Literal["scenes", "vqa"] = "scenes"
    """scenes are embedded; vqa are folders DIR/<client>/{train,test}/metadata.jsonl under --data-dir."""
    data_dir: str | None = None
    benchmark: Literal["domain", "function", "scene"] = "domain"
    """What differs between clients of scenes: how pictures are drawn, what is asked, what there is to see."""
    mode: str = "dat"
    """Of a single run: classifier, standalone, bias, norm, prompt, lora, full, adapter, adapter+prox, adapter+adam,
    adapter+dyn, dat, "dat, T 1", "dat, no teacher", "dat, no distillation", mutual."""
    modes: tuple[str, ...] = ()
    """Of compare; by default all."""
    trunk: str | None = None
    """Folder of a pretrained trunk: of experiments.pretrain_vilt, or ViLT-B/32's model.safetensors and vocab.txt."""
    train: int = 400
    """Questions of a client, at most."""
    test: int = 300
    valid: int = 100
    """Questions held out of train, picture by picture."""
    rounds: int = 12
    training: Training = Training(lr=1e-2, batch_size=16)
    widths: Widths = Widths(adapter=16, prompt=24, rank=4)
    seeds: int = 3
    split: Literal["test", "valid"] = "test"
    """Split that is evaluated: tune on valid, report test."""
    chunk: Annotated[int | str, tyro.conf.arg(metavar="INT|auto")] = 1
    out: str = "runs/feddat_scenes"


PRESETS = {
    "scenes": Settings(trunk="runs/vilt_scenes"),
    "vqa": Settings("vqa", trunk="runs/vilt_flickr8k", train=240, out="runs/feddat_vqa"),
}


class Problem(NamedTuple):
    """A client a task, and what they all tune."""

    tasks: vqa.Tasks
    data: FederatedData
    trunk: Trunk
    head: Model


@functools.lru_cache(4)
def load(settings: Settings, seed: int) -> Problem:
    """The problem of one seed, which draws scenes, and questions where there are more than wanted."""
    trunk = _trunk(settings.trunk)
    side, size = trunk.size.image, trunk.size
    if settings.data == "scenes":
        drawn = getattr(scene_tasks, settings.benchmark)
        sources = drawn(settings.train + settings.valid, settings.test, side, seed=seed)
    else:
        sources = vqa.imagefolder(settings.data_dir or ".")
    tasks = vqa.load(
        sources,
        (side, side),
        size.patch,
        size.length,
        train=settings.train,
        valid=settings.valid,
        test=settings.test,
        tokenizer=trunk.tokenizer,
        seed=seed,
    )
    data = vqa.federated(tasks)
    return Problem(tasks, data, trunk, adapters.answers(data.cohorts["all"].arrays["target"].shape[1]))


@functools.lru_cache(1)
def _trunk(folder: str | None) -> Trunk:
    if folder == PRESETS["scenes"].trunk and not pathlib.Path(folder).is_dir():
        print("There is no pretrained trunk yet; it takes a few minutes to make one.", flush=True)
        return pretrain_vilt.pretrain(dataclasses.replace(pretrain_vilt.PRESETS["scenes"], out=folder))
    if folder is None or not pathlib.Path(folder).is_dir():
        raise FileNotFoundError(
            f"there is no trunk in {folder}; make one with `python -m experiments.pretrain_vilt --data flickr8k "
            "--data-dir DIR`, or give --trunk a folder with ViLT-B/32's model.safetensors and vocab.txt"
        )
    return pretrain_vilt.load(folder)


def train(settings: Settings, name: str, seed: int) -> pathlib.Path:
    """The directory of a run that is finished."""
    problem, mode, given = load(settings, seed), modes(settings.training)[name], problems.of_a_run(settings)
    directory, _ = problems.finish(
        make(mode, settings.widths, problem.data, problem.trunk.model, problem.trunk.params, problem.head),
        problem.data,
        settings,
        name,
        seed,
        rounds=settings.rounds,
        per_round=problem.data.sizes,
        test=vqa.all_examples(problem.tasks, settings.split),
        evaluate_every=max(1, settings.rounds // 5),
        checkpoint_every=settings.rounds,
        config={"settings": given, "mode": name, "method": mode.config, "trunk": problem.trunk.scores},
    )
    return directory


def compare(settings: Settings) -> list[dict]:
    """A row per mode: scores of all clients and of each, what is trained, what travels."""
    names, seeds = settings.modes or modes(settings.training), range(settings.seeds)
    runs = {name: [report.load(train(settings, name, seed)) for seed in seeds] for name in names}
    rows = [constant(settings)]
    for name, same in runs.items():
        rows += _rows(settings, name, same)
    clients = list(load(settings, 0).tasks.tasks)
    columns = {"mode": "mode", "score": "score"} | {name: name for name in clients}
    columns |= {key: key for key in ("trained", "MB up", "peak MB", "s per round")}
    out = pathlib.Path(settings.out)
    whole = [row for row in rows if "MB up" in row]
    controls = ("constant", "classifier", "standalone")
    bars = {"quality": "score", "quality_axis": "mean VQA score of the clients", "cost": ("MB down", "MB up")}
    report.plot_bars([rows[0], *whole], out / "bars.png", label="mode", controls=controls, **bars)
    scored = lambda row: {"test/score": row["test/dat"], **row} if "test/dat" in row else row
    shown = [name for name in ("standalone", "lora", "full", "adapter", "dat", "dat, no distillation") if name in runs]
    curves = {name: [[scored(row) for row in run.rows] for run in runs[name]] for name in shown}
    if curves:
        plots.plot_curves(curves, ["test/score"], out / "curves.png")
    about = (
        f"{settings.data}{f', {settings.benchmark}' if settings.data == 'scenes' else ''}, {len(clients)} clients, "
        f"all in each of {settings.rounds} rounds, {settings.seeds} seeds (mean ± sample standard deviation), "
        f"{settings.split} split; VQA scores in percent."
    )
    parts = ["![scores and bytes](bars.png)"]
    if "dat" in runs:
        parts += ["## Differences within a seed", report.table(paired(runs, clients))]
    parts += ["## Over rounds", "![curves](curves.png)"] if curves else []
    parts += ["## Who is asked what (seed 0)"]
    parts += [report.table(_asked(load(settings, 0).tasks)), f"Trunk: {load(settings, 0).trunk.scores}."]
    problems.save(settings, "FedDAT", about, rows, columns, parts, next(iter(runs.values()))[0])
    return rows


def constant(settings: Settings) -> dict[str, Any]:
    """The row of each client's commonest answer."""
    said = []
    for seed in range(settings.seeds):
        tasks = load(settings, seed).tasks.tasks
        said.append(
            {name: 100 * float(task.splits[settings.split]["target"][:, 0].mean()) for name, task in tasks.items()}
        )
    by_client = {name: problems.spread([one[name] for one in said]) for name in said[0]}
    return {"mode": "constant", "score": problems.spread([np.mean(list(one.values())) for one in said]), **by_client}


def _rows(settings: Settings, name: str, same: list[report.Run]) -> list[dict[str, Any]]:
    """One row, and of a run with two adapters one more for each of them alone."""
    (row,) = report.summary(same)
    problem, rows = load(settings, 0), []
    mode = modes(settings.training)[name]
    counted = size(mode, settings.widths, problem.data, problem.trunk.model, problem.trunk.params, problem.head)
    kinds = {"dat": "", "local": ", its own adapter", "shared": ", the shared adapter"}
    for kind, addition in kinds.items() if "test/dat" in row else {"score": ""}.items():
        scores = {"score": row[f"test/{kind}"]}
        scores |= {client: row[f"test/client {i}/{kind}"] for i, client in enumerate(problem.tasks.tasks)}
        costs = {"trained": counted.trained} | {key: row[key] for key in ("MB down", "MB up", "peak MB", "s per round")}
        rows.append({"mode": name + addition, **scores, **({} if addition else costs)})
    return rows


def paired(runs: Mapping[str, list[report.Run]], clients: list[str]) -> list[dict[str, Any]]:
    """How far FedDAT is ahead of every other mode, seed by seed, on the same questions."""
    rows = []
    for name in (name for name in runs if name != "dat"):
        row, kind = {"dat minus": name}, "dat" if "test/dat" in runs[name][0].rows[-1] else "score"
        ends = {"score": ""} | {client: f"client {i}/" for i, client in enumerate(clients)}
        for key, which in ends.items():
            pairs = zip(runs["dat"], runs[name], strict=True)
            row[key] = problems.spread(
                [a.rows[-1][f"test/{which}dat"] - b.rows[-1][f"test/{which}{kind}"] for a, b in pairs]
            )
        rows.append(row)
    return rows


def _asked(tasks: vqa.Tasks) -> list[dict[str, Any]]:
    rows = []
    for name, task in tasks.tasks.items():
        row = {"client": name, "answers": len(task.answers)}
        row |= {split: len(arrays["target"]) for split, arrays in task.splits.items()}
        rows.append(row | {"unknown in test": task.unknown["test"], "commonest": task.answers[0]})
    return rows


def main() -> None:
    command = sys.argv.pop(1) if sys.argv[1:2] in (["compare"], ["costs"]) else "train"
    problems.cache_compilations()
    if command == "costs":
        return tyro.cli(feddat_costs.main)
    settings = problems.settings_from(PRESETS, __doc__)
    known = modes(settings.training)
    if unknown := [name for name in (settings.mode, *settings.modes) if name not in known]:
        raise SystemExit(f"the mode {unknown[0]} is not known; it can be {', '.join(known)}")
    if command == "compare":
        compare(settings)
        return None
    same = [report.load(train(settings, settings.mode, seed)) for seed in range(settings.seeds)]
    return report.show([constant(settings), *_rows(settings, settings.mode, same)])
