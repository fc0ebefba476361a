"""FedAvg and its general neighbours in one world: scores, bytes, multiply-adds and seconds, with settings tuned alike.

python -m benchmarks neighbours --jobs 2

The world is that of experiments.compare (embedded digits, 30 clients of three kinds), where each client also holds out
a quarter of its rows. First every method's rate and its own strength are chosen by a grid of one program each, on data
that no score below sees: the validation split for the server's model, a quarter of what clients train on for clients'
own models. Then each method trains with its best settings over the seeds. Runs and grids that are found in --out are
not repeated. docs/neighbours.md has the table.
"""

import ast
import dataclasses
import functools
import inspect
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import jax
import numpy as np

from benchmarks import prompts
from experiments.common import cli, data, jobs, tables
from experiments.common.data import Problem
from fedjax_mm import evaluate, report, run
from fedjax_mm.data import FederatedData, partition, pooled
from fedjax_mm.federate import Method
from fedjax_mm.methods import (
    carmfl,
    ditto,
    fedavg,
    fedclip,
    feddm,
    feddyn,
    fedet,
    fedftg,
    fedmsplit,
    fednova,
    fedproto,
    fedrep,
    fesem,
    flexmod,
    hafedformer,
    ifca,
    mfedmc,
    pfedme,
    promptfl,
    scaffold,
    splitmix,
)
from fedjax_mm.methods.fedavg import FedAvgConfig
from fedjax_mm.models import Model, heads, mlp
from fedjax_mm.report.paired import difference_cells, interval
from fedjax_mm.report.runs import over_seeds
from fedjax_mm.run.sweep_files import Sweep

BASE = FedAvgConfig(batch_size=10, epochs=2)
OWN = "own/all/accuracy"
COLUMNS = {
    **{key: key for key in ("method", "settings", "both halves", "minus FedAvg", "own rows", "own minus FedAvg")},
    **{key: key for key in ("keeps", "kB down", "kB up", "MFLOP", "s per round", "file", "lines", "paper")},
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """The world, and how much is tuned."""

    problem: Annotated[data.Settings, cli.FLAT] = data.Settings(
        common=cli.Common(rounds=60, seeds=5, out="runs/neighbours")
    )
    only: tuple[str, ...] = ()
    """Rows that are made, by their names; none is all."""
    held_out: float = 0.25
    """Share of its rows that a client holds out to be tested on, and once more to be tuned on."""
    tuning_seeds: int = 2
    """Runs of a setting in tuning, which differ in first weights, participants and batches."""


class Row(NamedTuple):
    """A method of the table, or a control."""

    build: Callable[..., Method]
    """`build(models, **settings)`, where models are (data, encoders, head)."""
    grid: Mapping[str, Sequence[Any]]
    """Setting -> the values that are tried."""
    paper: str = ""
    module: Any = None
    """Where it is read."""
    keeps: str = ""
    """What a client keeps from round to round."""
    personal: bool = False
    """Whether it is tuned for clients' own rows, and not for the server's model."""
    world: str = "clients"
    """Whose examples train: "clients", "alone" (all clients in every round), "pooled" (one client), "server",
    "borrowing" (clients that see the server's labelled pairs too), "public" (clients beside the pairs of the split
    "proxy", which have no labels), "features" (of a network of the server's) or "prompts" (of one that knows words
    too)."""


def of_fedavg(module: Any, **fixed: Any) -> Callable[..., Method]:
    """The build of a method whose settings are FedAvg's."""
    return lambda models, /, **chosen: module.build(dataclasses.replace(BASE, **fixed, **chosen), *models)


def of_own(module: Any, kind: Any, **fixed: Any) -> Callable[..., Method]:
    """The build of a method with settings of its own beside FedAvg's, of which `client_lr` is chosen."""

    def build(models: tuple, /, client_lr: float = 0.1, **chosen: Any) -> Method:
        return module.build(kind(fedavg=dataclasses.replace(BASE, client_lr=client_lr), **fixed, **chosen), *models)

    return build


def of_split(models: tuple, /, client_lr: float = 0.1, mixed: int | None = None) -> Method:
    """Split-Mix of four perceptrons, each a quarter of one of 64 and 32 units: with one half a client trains two.

    They stand in place of the other rows' LSTMs, so that `of_perceptron` is what to compare with.
    """
    held, encoders, head = models
    narrow = dict.fromkeys(encoders, mlp.encoder((16,), 8))
    budgets = {name: 4 if "+" in name else 2 for name in held.cohorts}
    config = splitmix.SplitMixConfig(4, budgets, mixed, dataclasses.replace(BASE, client_lr=client_lr))
    return splitmix.build(config, held, narrow, head)


def of_perceptron(models: tuple, /, client_lr: float = 0.1, units: int = 16) -> Method:
    """FedAvg with one of Split-Mix's networks, or with one of 64 units, as wide as its four together."""
    held, encoders, head = models
    perceptrons = dict.fromkeys(encoders, mlp.encoder((units,), units // 2))
    return fedavg.build(dataclasses.replace(BASE, client_lr=client_lr), held, perceptrons, head)


def of_matching(models: tuple, /, client_lr: float = 0.1, radius: float = 5.0) -> Method:
    """FedDM of two synthetic examples of each class, with five times the passes of the other rows."""
    of = dataclasses.replace(BASE, client_lr=client_lr, epochs=10, server_lr=0.3)
    return feddm.build(feddm.FedDMConfig(2, radius, 30, of), *models)


def of_fine_tuned(models: tuple, /, client_lr: float = 0.1, model_lr: float = 0.1) -> Method:
    """FedFTG with five made batches of 32 a round, on each of which the server's model takes five steps."""
    of = dataclasses.replace(BASE, client_lr=client_lr)
    return fedftg.build(fedftg.FedFTGConfig(5, made_batch=32, model_lr=model_lr, fedavg=of), *models)


def of_ensemble(models: tuple, /, client_lr: float = 0.1, distill_lr: float = 0.1, diversity: float = 0.05) -> Method:
    """FedET of perceptrons: 8, 12 and 16 units for the three kinds of clients, and 64 for the server.

    The server's is that of "FedAvg, full width".
    """
    held, encoders, head = models
    small = {
        name: {m: mlp.encoder((8 + 4 * i,), 32) for m in encoders if m in held.cohorts[name].arrays}
        for i, name in enumerate(held.cohorts)
    }
    config = fedet.FedETConfig(distill_lr, 2, diversity, dataclasses.replace(BASE, client_lr=client_lr))
    return fedet.build(config, held, dict.fromkeys(encoders, mlp.encoder((64,), 32)), head, small)


def of_features(models: tuple, /, client_lr: float = 0.1, scale: float = 10.0) -> Method:
    """FedCLIP on features. models: (data, modalities, features of the classes)."""
    fedavg_config = dataclasses.replace(BASE, client_lr=client_lr)
    return fedclip.build(fedclip.FedCLIPConfig(scale, fedavg_config), *models)


def of_prompts(models: tuple, /, client_lr: float = 0.1, scale: float = 10.0) -> Method:
    """PromptFL of four context vectors. models: (data, modalities, {"names", parameters of the encoder of texts})."""
    held, modalities, words = models
    config = promptfl.PromptFLConfig(4, scale, dataclasses.replace(BASE, client_lr=client_lr))
    return promptfl.build(config, held, modalities, words["names"], prompts.text_encoder(words))


def of_names(models: tuple, /, scale: float = 10.0) -> Method:
    """The names of the classes without a context: nothing is trained, and nothing travels."""
    held, modalities, words = models
    return of_frozen((held, modalities, prompts.encode(words, words["names"])), scale)


def of_frozen(models: tuple, /, scale: float = 10.0) -> Method:
    """The features themselves, without an adapter: nothing is trained, and nothing travels."""
    held, modalities, text = models
    same = Model(lambda key, x: {}, lambda params, x: x)
    return fedavg.build(BASE, held, dict.fromkeys(modalities, same), fedclip.text_head(text, scale))


RATES = {"client_lr": [0.1, 0.3, 1.0, 3.0]}
LOW = {"client_lr": [0.03, 0.1, 0.3, 1.0]}
ROWS = {
    "FedAvg": Row(of_fedavg(fedavg), RATES, "1602.05629", fedavg),
    "FedAvg, server rate": Row(of_fedavg(fedavg), LOW | {"server_lr": [2.0, 4.0, 8.0]}, "2003.00295", fedavg),
    "FedProx": Row(of_fedavg(fedavg), RATES | {"prox": [0.001, 0.01, 0.1]}, "1812.06127", fedavg),
    "SCAFFOLD": Row(
        of_fedavg(scaffold), RATES | {"server_lr": [1.0, 2.0, 4.0]}, "1910.06378", scaffold, "control variate"
    ),
    "FedNova": Row(of_fedavg(fednova), LOW | {"server_lr": [2.0, 4.0, 8.0]}, "2007.07481", fednova),
    "FedDyn": Row(
        of_own(feddyn, feddyn.FedDynConfig), RATES | {"alpha": [0.03, 0.1, 0.3]}, "2111.04263", feddyn, "gradient"
    ),
    "IFCA": Row(of_own(ifca, ifca.IFCAConfig), RATES | {"models": [2, 3, 4]}, "2006.04088", ifca, "its model's number"),
    "FedPer": Row(
        of_fedavg(fedavg, shared=("left", "right")),
        LOW | {"server_lr": [2.0, 4.0, 8.0]},
        "1912.00818",
        fedavg,
        "head",
        personal=True,
    ),
    "FedRep": Row(
        of_own(fedrep, fedrep.FedRepConfig), RATES | {"head_epochs": [5, 10, 20]}, "2102.07078", fedrep, "head", True
    ),
    "Ditto": Row(
        of_own(ditto, ditto.DittoConfig), RATES | {"prox": [0.03, 0.1, 0.3]}, "2012.04221", ditto, "model", True
    ),
    "pFedMe": Row(
        of_own(pfedme, pfedme.PFedMeConfig),
        {"personal_lr": [0.01, 0.03, 0.1], "prox": [10.0, 20.0, 40.0]},
        *("2006.08848", pfedme, "model", True),
    ),
    "FeSEM": Row(
        of_own(fesem, fesem.FeSEMConfig), RATES | {"centres": [2, 3, 4]}, "2005.01026", fesem, "model, its centre"
    ),
    "FedMSplit": Row(
        of_own(fedmsplit, fedmsplit.FedMSplitConfig),
        RATES | {"temperature": [0.01, 0.1, 1.0]},
        *("10.1145/3534678.3539384", fedmsplit, "its number", True),
    ),
    "FedProto": Row(
        of_own(fedproto, fedproto.FedProtoConfig),
        RATES | {"strength": [0.001, 0.01, 0.1]},
        *("2105.00243", fedproto, "model", True),
    ),
    "FlexMod": Row(of_own(flexmod, flexmod.FlexModConfig), RATES | {"budget": [0.4, 0.6, 0.8]}, "2408.06549", flexmod),
    "HA-Fedformer": Row(
        of_own(hafedformer, hafedformer.HAFedformerConfig),
        RATES | {"uncertainty": [0.0, 0.5, 1.0]},
        *("2303.15486", hafedformer),
    ),
    "MFedMC": Row(
        of_own(mfedmc, mfedmc.MFedMCConfig),
        RATES | {"sent_share": [0.2, 0.5, 1.0]},
        *("2401.16685", mfedmc, "fusion", True),
    ),
    "CAR-MFL": Row(
        of_own(carmfl, carmfl.CARMFLConfig),
        RATES | {"borrowed_weight": [0.1, 0.3, 1.0]},
        *("2407.08648", carmfl),
        world="borrowing",
    ),
    "FedCLIP": Row(of_features, LOW | {"scale": [1.0, 3.0, 10.0]}, "2302.13485", fedclip, world="features"),
    "Split-Mix": Row(of_split, RATES, "2203.09747", splitmix),
    "Split-Mix, one network": Row(functools.partial(of_split, mixed=1), LOW, "2203.09747", splitmix),
    "FedAvg, a quarter": Row(of_perceptron, LOW),
    "FedAvg, full width": Row(functools.partial(of_perceptron, units=64), LOW),
    "FedAvg, both twice": Row(of_fedavg(fedavg, multimodal_weight=2.0), RATES),
    "FedDM": Row(of_matching, RATES | {"radius": [3.0, 10.0, 30.0]}, "2207.09653", feddm),
    "FedFTG": Row(of_fine_tuned, RATES | {"model_lr": [0.01, 0.03, 0.1]}, "2203.09249", fedftg),
    "FedET": Row(of_ensemble, LOW | {"distill_lr": [0.03, 0.1, 0.3]}, "2204.12703", fedet, world="public"),
    "FedET without dissent": Row(
        functools.partial(of_ensemble, diversity=0.0), LOW | {"distill_lr": [0.03, 0.1, 0.3]}, world="public"
    ),
    "frozen features": Row(of_frozen, {"scale": [10.0]}, world="features"),
    "PromptFL, on features": Row(
        of_prompts, RATES | {"scale": [3.0, 10.0, 30.0]}, "2208.11625", promptfl, world="prompts"
    ),
    "names without context": Row(of_names, {"scale": [10.0]}, world="prompts"),
    "local only": Row(of_fedavg(fedavg, shared=()), RATES, keeps="model", personal=True, world="alone"),
    "server only": Row(of_fedavg(fedavg), RATES, world="server"),
    "centralised": Row(of_fedavg(fedavg), RATES, world="pooled"),
}
BASELINE = "FedAvg"


def rows_of(settings: Settings) -> dict[str, Row]:
    """The rows that are asked for. FedAvg, with which all are compared, comes first."""
    wanted = [cli.one_of("row", name, ROWS) for name in settings.only or ROWS]
    return {name: ROWS[name] for name in dict.fromkeys([BASELINE, *wanted])}


@functools.lru_cache(8)
def world(settings: Settings, seed: int, tuned: bool) -> Problem:
    """The problem of a seed, each client with test rows of its own. tuned: these are of what it trains on later."""
    problem = data.load_problem(settings.problem, seed)
    train, test, arrays = {}, {}, {}
    for number, (name, cohort) in enumerate(problem.data.cohorts.items()):
        owned = np.split(cohort.rows, cohort.offsets[1:-1])
        train[name], test[name] = partition.hold_out(owned, settings.held_out, 100 * seed + number)
        if tuned:
            train[name], test[name] = partition.hold_out(train[name], settings.held_out, 100 * seed + number)
        arrays[name] = {key: np.asarray(x) for key, x in cohort.arrays.items()}
    return problem._replace(data=FederatedData.from_arrays(arrays, train, test=test))


def world_of(settings: Settings, row: Row, seed: int, tuned: bool) -> Problem:
    """The problem of a row: that of all, or its features."""
    problem = world(settings, seed, tuned)
    if row.world in ("features", "prompts"):
        return featured(settings, problem, seed, row.world == "prompts")
    if row.world == "borrowing":
        return problem._replace(data=dataclasses.replace(problem.data, public=labelled(problem)))
    if row.world == "public":
        public = data.load_problem(settings.problem, seed).data.public
        return problem._replace(data=dataclasses.replace(problem.data, public=public))
    return problem


def labelled(problem: Problem) -> dict[str, np.ndarray]:
    """The pairs of which the server has labels."""
    arrays = problem.dataset.splits["labelled"]
    return {key: arrays[key] for key in (*problem.dataset.modalities, "label")}


def featured(settings: Settings, problem: Problem, seed: int, words: bool = False) -> Problem:
    """The problem with embeddings in place of examples, and the features of the classes as its split "text".

    words: this split is the names of the classes and the parameters of an encoder of texts (see `prompts`).

    In place of CLIP stands what the server alone learns of its labelled pairs, with the settings of "server only":
    encoders into one space, in which the rows of the linear head stand for the classes.
    """
    held, taken = given(settings, ROWS["server only"], problem)
    _, encoders, head = models_of(problem, held)
    head = prompts.head(len(problem.dataset.classes)) if words else head
    method = fedavg.build(dataclasses.replace(BASE, client_lr=1.0), held, encoders, head)
    rounds = settings.problem.common.rounds
    params = run.train(method, held, rounds=rounds, per_round=taken, seed=seed, progress=False).server["params"]
    embed = {m: jax.jit(functools.partial(encoders[m].apply, params[m])) for m in encoders}
    swap = lambda arrays: {k: np.asarray(embed[k](x)) if k in embed else np.asarray(x) for k, x in arrays.items()}
    cohorts = {
        name: dataclasses.replace(one, arrays=swap({k: np.asarray(x) for k, x in one.arrays.items()}))
        for name, one in problem.data.cohorts.items()
    }
    splits = {split: swap(arrays) for split, arrays in problem.dataset.splits.items()}
    learned = jax.tree.map(np.asarray, params["head"])
    text = dict(learned) if words else {"features": learned["Dense_0"]["kernel"].T}
    data = dataclasses.replace(problem.data, cohorts=cohorts, public=None)
    return Problem(data, problem.dataset._replace(splits={**splits, "text": text}))


def given(settings: Settings, row: Row, problem: Problem) -> tuple[FederatedData, dict[str, int]]:
    """(whose examples train, who takes part in a round)."""
    if row.world == "pooled":
        held = pooled(problem.data)
    elif row.world == "server":
        arrays = labelled(problem)
        held = FederatedData.from_arrays(arrays, [np.arange(len(arrays["label"]))])
    else:
        held = problem.data
    share = 1.0 if row.world in ("alone", "pooled", "server") else settings.problem.fraction
    return held, data.taking_part(problem._replace(data=held), share)


def models_of(problem: Problem, held: FederatedData) -> tuple:
    """What every method is built from: (data, encoders, head), or of features (data, modalities, classes' features
    or names with their encoder)."""
    if "text" in problem.dataset.splits:
        text = problem.dataset.splits["text"]
        return held, problem.dataset.modalities, text.get("features", text)
    return held, data.encoders(problem.dataset), heads.linear(len(problem.dataset.classes))


def score_of(row: Row, problem: Problem, split: str) -> str:
    """The score by which the settings of a row are chosen."""
    return OWN if row.personal else f"{split}/{'+'.join(problem.dataset.modalities)}/macro_f1"


def tune(settings: Settings, name: str) -> Sweep:
    """The grid of a row: read where --out has it, else trained and written there."""
    row, common = ROWS[name], settings.problem.common
    problem = world_of(settings, row, common.all_seeds[0], True)
    folder = pathlib.Path(common.out) / "tuning" / name.replace(" ", "_")
    if (folder / "sweep.json").exists():
        found = report.read_sweep(folder)
        if found.axes == dict(row.grid) and found.rounds == (common.rounds,):
            return found
        raise ValueError(f"{folder} has another grid, {found.axes}, of {found.rounds[-1]} rounds; remove it")
    held, taken = given(settings, row, problem)
    models = models_of(problem, held)
    first = row.build(models, **{key: values[0] for key, values in row.grid.items()})

    def build(**chosen: Any) -> Method:
        """With the first one's scores of own rows: settings do not change them, and one function is compiled once."""
        method = row.build(models, **chosen)
        own = {name: one._replace(score=first.cohorts[name].score) for name, one in method.cohorts.items()}
        return method._replace(cohorts=own)

    return run.sweep(
        build,
        held,
        grid=row.grid,
        seeds=settings.tuning_seeds,
        rounds=common.rounds,
        per_round=taken,
        valid=data.tested(problem, "valid"),
        directory=folder,
        log=lambda line: None,
    )


def choose(settings: Settings, name: str) -> tuple[dict[str, Any], list[str]]:
    """(the best settings of a row, what is to be said of them)."""
    row, sweep = ROWS[name], tune(settings, name)
    problem = world(settings, settings.problem.common.all_seeds[0], True)
    best, said = report.best_setting(sweep, score_of(row, problem, "valid"))
    # An own score is of rows that were held out for tuning: what `best_setting` says of the test is not so here.
    return dict(sweep.settings[best]), [line for line in said if "no score on validation data" not in line]


def train(settings: Settings, chosen: Mapping[str, Mapping[str, Any]], name: str, seed: int) -> pathlib.Path:
    """The folder of a row's run of one seed, trained to its end."""
    row, common = ROWS[name], settings.problem.common
    problem = world_of(settings, row, seed, False)
    held, taken = given(settings, row, problem)
    method = row.build(models_of(problem, held), **chosen[name])
    how = {"test": data.tested(problem, common.split), "evaluate_every": common.rounds, "per_round": taken}
    how |= {"rounds": common.rounds, "checkpoint_every": common.rounds, "config": {"row": name, **chosen[name]}}
    return tables.finish(method, held, common, settings, name, seed, **how)[0]


def code_lines(module: Any) -> int:
    """How many lines of a module, or of a package's modules, are code: no docstring, comment or empty line.

    >>> 0 < code_lines(ditto) < code_lines(scaffold) < code_lines(fedavg)
    True
    """
    file = pathlib.Path(inspect.getfile(module))
    files = file.parent.glob("*.py") if file.name == "__init__.py" else [file]
    return sum(map(_code_lines, files))


def _code_lines(file: pathlib.Path) -> int:
    text = file.read_text()
    alone = (node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Expr))
    strings = [value for value in alone if isinstance(value, ast.Constant)]
    inside = {n for string in strings for n in range(string.lineno, (string.end_lineno or string.lineno) + 1)}
    lines = enumerate(text.splitlines(), 1)
    return sum(bool(line.strip()) and not line.lstrip().startswith("#") and n not in inside for n, line in lines)


def result(
    settings: Settings, name: str, chosen: Mapping[str, Any], runs: Sequence[report.Run], base: Sequence[report.Run]
) -> dict[str, Any]:
    """A row of the table. base: FedAvg's runs, of the same seeds."""
    row, problem = ROWS[name], world(settings, settings.problem.common.all_seeds[0], False)
    both = f"test/{'+'.join(problem.dataset.modalities)}/macro_f1"
    shown: dict[str, Any] = {"method": name, "paper": row.paper, "keeps": row.keeps, "personal": row.personal}
    shown["settings"] = ", ".join(f"{key} {value:g}" for key, value in chosen.items())
    for key, heading, ahead in ((both, "both halves", "minus FedAvg"), (OWN, "own rows", "own minus FedAvg")):
        values, others = ([one.rows[-1].get(key) for one in of] for of in (runs, base))
        if None not in values:
            shown |= {heading: over_seeds(values), f"{heading}, each seed": values}
            if name != BASELINE and len(values) > 1:
                shown[ahead] = _cell(np.subtract(values, others))
    if row.world not in ("pooled", "server"):
        (about,) = report.summary(runs)
        costs = [cost for one in runs for cost in one.costs.values()]
        shown |= {f"kB {way}": max(cost[f"bytes_{way}"] for cost in costs) / 1e3 for way in ("down", "up")}
        shown |= {"MFLOP": max(cost["round_flops"] or 0 for cost in costs) / 1e6, "s per round": about["s per round"]}
    if row.module:
        file = pathlib.Path(inspect.getfile(row.module)).relative_to(cli.ROOT)
        shown |= {"file": str(file.parent if file.name == "__init__.py" else file), "lines": code_lines(row.module)}
    return shown


def _cell(differences: Sequence[float]) -> str:
    mean, ends = difference_cells(*interval(differences)).values()
    return f"{mean} ({ends})"


def constant(settings: Settings) -> dict[str, Any]:
    """The row of the control that always says the most frequent class."""
    scores = []
    for seed in settings.problem.common.all_seeds:
        dataset = world(settings, seed, False).dataset
        labels = (dataset.splits[split]["label"] for split in ("train", settings.problem.common.split))
        scores.append(evaluate.constant(*labels, len(dataset.classes))["macro_f1"])
    return {"method": "constant", "both halves": over_seeds(scores), "both halves, each seed": scores}


def main(arguments: Sequence[str]) -> pathlib.Path:
    """Tunes, trains, prints the table and writes neighbours.json and neighbours.md."""
    settings = cli.parse(Settings(), arguments, __doc__)
    cli.cache_compilations()
    common = settings.problem.common
    out = pathlib.Path(common.out)
    cli.write(out, settings)
    chosen, notes = {}, []
    for name in rows_of(settings):
        chosen[name], said = choose(settings, name)
        notes += [f"{name}: {line}" for line in said]
        print(notes[-len(said)], *said[1:], sep="\n", flush=True)
    runs = jobs.loaded(functools.partial(train, settings, chosen), list(chosen), common)
    rows = [result(settings, name, chosen[name], runs[name], runs[BASELINE]) for name in chosen]
    rows.append(constant(settings))
    about = runs[BASELINE][0].config
    kept = {"settings": dataclasses.asdict(settings), "versions": about["versions"], "device": about["device"]}
    (out / "neighbours.json").write_text(json.dumps({**kept, "tuning": notes, "rows": rows}, indent=1))
    report.show(rows, COLUMNS)
    (out / "neighbours.md").write_text(report.table(rows, COLUMNS))
    print(f"written to {out}")
    return out
