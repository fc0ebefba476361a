"""FedDAT and every other way of tuning one frozen vision-language trunk: settings, problem, and a run of each mode."""

import dataclasses
import functools
import pathlib
from typing import Annotated, Literal, NamedTuple

from experiments import pretrain_vilt
from experiments.common import cli, sweeps, tables
from experiments.feddat import trunks
from experiments.feddat.modes import Widths, make, modes
from experiments.pretrain_vilt import Trunk
from fedjax_mm.data import FederatedData, vqa
from fedjax_mm.data.scenes import tasks as scene_tasks
from fedjax_mm.methods.feddat import Answers
from fedjax_mm.methods.feddat.vqa_tuning import Training
from fedjax_mm.models import Model


@dataclasses.dataclass(frozen=True)
class Settings:
    """Who is asked what, and how long they learn."""

    data: Literal["scenes", "vqa"] = "scenes"
    """Questions: scenes are embedded; vqa are folders DIR/<client>/{train,test}/metadata.jsonl under --data-dir."""
    benchmark: Literal["domain", "function", "scene"] = "domain"
    """What differs between clients of scenes: how pictures are drawn, what is asked, what there is to see."""
    mode: str = "dat"
    """Mode of a single run: classifier, standalone, bias, norm, prompt, lora, full, adapter, adapter+prox,
    adapter+adam, adapter+dyn, dat, "dat, T 1", "dat, no teacher", "dat, no distillation", mutual."""
    modes: tuple[str, ...] = ()
    """Modes that compare runs; by default all."""
    trunk: str | None = None
    """Folder of a pretrained trunk: of experiments.pretrain_vilt; ViLT-B/32's or ALBEF's model.safetensors and
    vocab.txt; or folders vilt and bert, whose VAuLT it is."""
    train: int = 400
    """Questions that a client learns from, at most."""
    test: int = 300
    """Questions that a client is tested on, at most."""
    valid: int = 100
    """Questions that are kept out of train for validation, picture by picture."""
    training: Training = Training(lr=1e-2, batch_size=16)
    widths: Widths = Widths(adapter=16, prompt=24, rank=4)
    common: Annotated[cli.Common, cli.FLAT] = cli.Common(rounds=12, out="runs/feddat_scenes")

    def __post_init__(self) -> None:
        cli.at_least(1, train=self.train, test=self.test, valid=self.valid)


SWEPT = ["mode", *sweeps.fields(Training, "training."), *sweeps.fields(Widths, "widths.")]
PRESETS = {
    "scenes": Settings(trunk="runs/vilt_scenes"),
    "vqa": Settings("vqa", trunk="runs/vilt_flickr8k", train=240, common=cli.Common(rounds=12, out="runs/feddat_vqa")),
}


class Problem(NamedTuple):
    """A client a task, and what they all tune."""

    tasks: vqa.Tasks
    data: FederatedData
    trunk: Trunk
    head: Model | Answers


@functools.lru_cache(4)
def load(settings: Settings, seed: int) -> Problem:
    """The problem of one seed, which draws scenes, and questions where there are more than wanted."""
    trunk = _trunk(settings.trunk, settings.common.dtype)
    side, size = trunk.size.image, trunk.size
    if settings.data == "scenes":
        draw = getattr(scene_tasks, settings.benchmark)
        sources = draw(settings.train + settings.valid, settings.test, side, seed=seed)
    else:
        sources = vqa.imagefolder(settings.common.data_dir or ".")
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
        resize=None if trunk.words is None else lambda *sides: (side, side),
    )
    data = vqa.federated(tasks, words=trunk.words)
    answers = data.cohorts["all"].arrays["target"].shape[1]
    return Problem(tasks, data, trunk, trunks.head(trunk.model, answers, settings.common.dtype, trunk.head))


@functools.lru_cache(1)
def _trunk(folder: str | None, dtype: str) -> Trunk:
    if folder and folder == PRESETS["scenes"].trunk and not pathlib.Path(folder).is_dir():
        print("There is no pretrained trunk yet; it takes a few minutes to make one.", flush=True)
        pretrain_vilt.pretrain(dataclasses.replace(pretrain_vilt.PRESETS["scenes"], out=folder))
    if folder is None or not pathlib.Path(folder).is_dir():
        raise FileNotFoundError(
            f"there is no trunk in {folder}; make one with `python -m experiments.pretrain_vilt --data flickr8k "
            f"--data-dir DIR`, or give --trunk {' '.join(trunks.KNOWN.split())}"
        )
    return trunks.load(folder, dtype)


def train(settings: Settings, name: str, seed: int) -> pathlib.Path:
    """The folder of a mode's run of one seed, trained to its end."""
    problem, mode, common = load(settings, seed), modes(settings.training)[name], settings.common
    about = {"settings": tables.of_a_run(settings), "mode": name, "method": mode.config, "trunk": problem.trunk.scores}
    directory, _ = tables.finish(
        make(mode, settings.widths, problem.data, problem.trunk.model, problem.trunk.params, problem.head),
        problem.data,
        common,
        dataclasses.replace(settings, mode=name),
        name,
        seed,
        rounds=common.rounds,
        per_round=problem.data.sizes,
        test=vqa.all_examples(problem.tasks, common.split, problem.trunk.words),
        evaluate_every=max(1, common.rounds // 5),
        checkpoint_every=common.rounds,
        config=about,
    )
    return directory


def subject(settings: Settings) -> sweeps.Subject:
    """What a sweep trains: one mode."""
    problem = load(settings, settings.common.all_seeds[0])
    trunk = (problem.trunk.model, problem.trunk.params, problem.head)
    return sweeps.Subject(
        lambda changed: make(modes(changed.training)[changed.mode], changed.widths, problem.data, *trunk),
        problem.data,
        problem.data.sizes,
        vqa.all_examples(problem.tasks, "valid", problem.trunk.words),
        settings.common.rounds,
        "valid/score",
    )
