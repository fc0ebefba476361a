"""FedDAT and every other way of tuning one frozen vision-language trunk: settings, problem, and a run of each mode."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, NamedTuple

from experiments import pretrain_fusion, pretrain_vilt
from experiments.common import cli, sweeps, tables
from experiments.feddat import frozen, trunks
from experiments.feddat.modes import Mode, Widths, make, modes
from fedjax_mm.data import FederatedData, vqa
from fedjax_mm.data.scenes import tasks as scene_tasks
from fedjax_mm.data.vqa.pictures import Resize
from fedjax_mm.methods.feddat import Answers
from fedjax_mm.methods.feddat.vqa_tuning import Training
from fedjax_mm.models import Model, vilt
from fedjax_mm.streamed import is_streamed, of_array


@dataclasses.dataclass(frozen=True)
class Settings:
    """Who is asked what, and how long they learn."""

    data: Literal["scenes", "vqa"] = "scenes"
    """Questions: scenes are embedded; vqa are folders DIR/<client>/{train,test}/metadata.jsonl under --data-dir, or,
    with --benchmark, the files that the data's authors publish (see fedjax_mm.data.vqa.official)."""
    benchmark: Literal["domain", "function", "scene"] | None = None
    """What differs between clients: how pictures look, what is asked, what there is to see. None: of scenes, domain."""
    mode: str = "dat"
    """Mode of a single run: classifier, standalone, bias, norm, prompt, lora, full, adapter, adapter+prox,
    adapter+adam, adapter+dyn, dat, "dat, T 1", "dat, no teacher", "dat, no distillation", mutual."""
    modes: tuple[str, ...] = ()
    """Modes that compare runs; by default all."""
    trunk: str | None = None
    """Folder of a pretrained trunk: of experiments.pretrain_vilt; of experiments.pretrain_fusion (questions of vqa then
    go through frozen encoders); ViLT-B/32's or ALBEF's model.safetensors and vocab.txt; or folders vilt and bert, whose
    VAuLT it is."""
    train: int = 400
    """Questions that a client learns from, at most."""
    test: int = 300
    """Questions that a client is tested on, at most."""
    valid: int = 100
    """Questions that are kept out of train for validation, picture by picture."""
    unknown: Literal["kept", "dropped"] = "kept"
    """Questions to which a client knows no answer: they stay in valid and test, where nobody scores on them, or are
    dropped, as in the released code."""
    sides: Literal["bucket", "processor"] = "bucket"
    """Sizes of pictures before a ViLT: to touch a square of the trunk's side, or those of ViLT's own processor, in a
    bucket for wide and tall ones. ALBEF takes squares."""
    stream: bool = False
    """Whether pictures stay on the disk, or in memory, and come to the device batch by batch (docs/streaming.md)."""
    schedule: Literal["whole", "restart"] = "whole"
    """whole: the rate rises and falls once over all rounds, whatever --training.horizon and restart say; restart: as
    these say, by default anew in each round, which never comes to its end."""
    training: Training = Training(lr=1e-2, batch_size=16)
    widths: Widths = Widths(adapter=16, prompt=24, rank=4)
    tuning_seeds: int = 1
    """Seeds whose split valid chooses a mode's settings in `tuned`."""
    sizes: tuple[int, ...] = ()
    """Questions of a client at which `tuned` trains FedDAT, one adapter and clients alone again."""
    common: Annotated[cli.Common, cli.FLAT] = cli.Common(rounds=12, out="runs/feddat_scenes")

    def __post_init__(self) -> None:
        cli.at_least(1, train=self.train, test=self.test, valid=self.valid, tuning_seeds=self.tuning_seeds)
        for size in self.sizes:
            cli.at_least(1, sizes=size)


SWEPT = ["mode", "schedule", *sweeps.fields(Training, "training."), *sweeps.fields(Widths, "widths.")]
PRESETS = {
    "scenes": Settings(trunk="runs/vilt_scenes"),
    "vqa": Settings("vqa", trunk="runs/vilt_flickr8k", train=240, common=cli.Common(rounds=12, out="runs/feddat_vqa")),
}


PAPER = {
    "vqa": dataclasses.replace(
        PRESETS["vqa"],
        benchmark="domain",
        trunk=None,
        train=2500,
        test=500,
        unknown="dropped",
        sides="processor",
        training=Training(),
        widths=Widths(),
        common=cli.Common(rounds=30, out="runs/feddat_paper"),
    )
}
"""The presets of a command with --preset paper, as sections 2 and 3 of docs/specs/feddat.md say, but for the schedule
of the learning rate, which runs over all rounds: in the released code it never comes to its end."""


class Problem(NamedTuple):
    """A client a task, and what they all tune."""

    tasks: vqa.Tasks
    data: FederatedData
    examples: Callable[[str], Mapping[str, Any]]
    """From a split to all clients' questions in it."""
    trunk: pretrain_vilt.Trunk | pretrain_fusion.Trunk
    head: Model | Answers


@functools.lru_cache(4)
def load(settings: Settings, seed: int) -> Problem:
    """The problem of one seed, which draws scenes, and questions where there are more than wanted."""
    trunk = _trunk(settings.trunk, settings.common.dtype)
    numbers = {"train": settings.train, "valid": settings.valid, "test": settings.test}
    asked: dict[str, Any] = {**numbers, "seed": seed}
    if isinstance(trunk, pretrain_fusion.Trunk):
        if settings.data != "vqa":
            raise ValueError(f"the trunk {settings.trunk} reads frozen features, and {settings.data} has none")
        if settings.benchmark:
            raise ValueError(f"the trunk {settings.trunk} reads folders of questions; leave --benchmark out")
        if settings.stream:
            raise ValueError(f"--stream says nothing: the trunk {settings.trunk} reads features, and no pictures")
        tasks, examples = frozen.load(settings.common.data_dir or ".", trunk.known, asked)
        return _problem(tasks, examples, trunk, settings.common.dtype)
    side, size = trunk.size.image, trunk.size
    bucket, resize = _bucket(settings, trunk)
    tasks = vqa.load(
        _sources(settings, side, seed),
        bucket,
        size.patch,
        size.length,
        tokenizer=trunk.tokenizer,
        resize=resize,
        drop_unknown=settings.unknown == "dropped",
        stream=settings.stream,
        **asked,
    )
    if settings.stream and not is_streamed(tasks.image):
        tasks = tasks._replace(image=of_array(tasks.image))
    examples = lambda split: vqa.all_examples(tasks, split, trunk.words)
    return _problem(tasks, examples, trunk, settings.common.dtype, trunk.head)


def _bucket(settings: Settings, trunk: pretrain_vilt.Trunk) -> tuple[tuple[int, int], Resize | None]:
    """(the bucket of all pictures, the rule for the size of each) before a trunk."""
    side, patch = trunk.size.image, trunk.size.patch
    if trunk.words is not None:
        return (side, side), lambda *sides: (side, side)
    if settings.sides == "bucket":
        return (side, side), None
    long = 1333 * side // 800 // patch * patch
    return (long, long), lambda *sides: vilt.resized_size(*sides, short=side, patch=patch)


def _sources(settings: Settings, side: int, seed: int) -> Mapping[str, Any]:
    """Who is asked what, before anything is left out."""
    folder = settings.common.data_dir or "."
    if settings.data == "vqa":
        return vqa.official(folder, settings.benchmark) if settings.benchmark else vqa.imagefolder(folder)
    draw = getattr(scene_tasks, settings.benchmark or "domain")
    return draw(settings.train + settings.valid, settings.test, side, seed=seed)


def _problem(tasks: vqa.Tasks, examples: Callable, trunk: Any, dtype: str, start: Any = None) -> Problem:
    arrays = dict(examples("train"))
    owner, answers = arrays.pop("client"), arrays["target"].shape[1]
    data = FederatedData.from_arrays(arrays, owner)
    return Problem(tasks, data, examples, trunk, trunks.head(trunk.model, answers, dtype, start))


@functools.lru_cache(1)
def _trunk(folder: str | None, dtype: str) -> pretrain_vilt.Trunk | pretrain_fusion.Trunk:
    if folder and folder == PRESETS["scenes"].trunk and not pathlib.Path(folder).is_dir():
        print("There is no pretrained trunk yet; it takes a few minutes to make one.", flush=True)
        pretrain_vilt.pretrain(dataclasses.replace(pretrain_vilt.PRESETS["scenes"], out=folder))
    if folder is None or not pathlib.Path(folder).is_dir():
        raise FileNotFoundError(
            f"there is no trunk in {folder}; make one with `python -m experiments.pretrain_vilt --data flickr8k "
            f"--data-dir DIR`, or give --trunk {' '.join(trunks.KNOWN.split())}"
        )
    if (pathlib.Path(folder) / pretrain_fusion.ABOUT).is_file():
        return pretrain_fusion.load(folder, dtype)
    return trunks.load(folder, dtype)


def mode_of(settings: Settings, name: str, values: Mapping[str, Any] = {}) -> Mode:
    """A mode of the study, with values of its own: "lr", "distillation" (FedDAT's alpha and beta), or its settings.

    >>> mode_of(Settings(), "dat", {"distillation": 3.0}).config.alpha
    3.0
    """
    rounds, training = settings.common.rounds, settings.training
    if settings.schedule == "whole":
        training = dataclasses.replace(training, restart=False, horizon=float(rounds * training.epochs))
    own = dict(values)
    mode = modes(dataclasses.replace(training, lr=own.pop("lr", training.lr)))[name]
    if "distillation" in own:
        weight = own.pop("distillation")
        own |= {key: weight for key in ("alpha", "beta") if getattr(mode.config, key)}  # an ablation keeps its 0
    return mode._replace(config=dataclasses.replace(mode.config, **own))


def train(settings: Settings, own: Mapping[str, Mapping[str, Any]], name: str, seed: int) -> pathlib.Path:
    """The folder of a mode's run of one seed, trained to its end. own: mode -> values of its own, see `mode_of`."""
    problem, mode, common = load(settings, seed), mode_of(settings, name, own.get(name, {})), settings.common
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
        test=problem.examples(common.split),
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
        lambda changed: make(mode_of(changed, changed.mode), changed.widths, problem.data, *trunk),
        problem.data,
        problem.data.sizes,
        problem.examples("valid"),
        settings.common.rounds,
        "valid/score",
    )
