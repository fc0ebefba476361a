"""Stages of pretrained encoders beside heads on a frozen trunk: `python -m experiments.layerwise tuned`.

Fresh heads would spoil pretrained layers, so heads are trained alone before (linear probing and then fine-tuning, Kumar
2022, arXiv 2202.10054): for --warm rounds, on what the layers of a row's first stage give. Each row goes on from there.

Every row tries as many rates on the split `valid` of the first seed: where the trunk is frozen a rate of the heads, and
else, with the rate of the heads that the frozen trunk chose in as many rounds, a rate of the encoders. All seeds are
trained with what was chosen. Of each run the round is chosen on `valid` too, and the server of that round is scored on
the test. At equal FLOPs every row has those of layer-wise training, and rate and round are chosen within them.
"""

import dataclasses
import functools
import json
import pathlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from experiments.common import cli, jobs, tables
from experiments.layerwise import pretrained, table
from experiments.layerwise.pretrained import LAYERS, Problem, Settings
from experiments.layerwise.recalibrated import Best, recalibration
from experiments.layerwise.study import Plan
from fedjax_mm import costs, report, run
from fedjax_mm.federate import Method
from fedjax_mm.methods import layerwise
from fedjax_mm.methods.layerwise import LayerwiseConfig
from fedjax_mm.report.runs import over_seeds
from fedjax_mm.run.json_files import Folder
from fedjax_mm.stages import Stage
from fedjax_mm.types import FedState, Key, PyTree

RATES = (0.2, 0.6, 1.0)
"""Rates of the stages as shares of the last one's, about as in the released runs."""
LEADER, HEADS = "layer-wise", "frozen trunk"
Point = Mapping[str, Any]  # of a run: "until", label -> {"round", "valid", "test", what it costs}, and "curve"


class Row(NamedTuple):
    """Runs that rows of the table are read off."""

    plan: Plan
    rounds: tuple[int, ...]
    """Of each stage."""
    labels: Mapping[str, int]
    """Row of the table -> the last round that it may have."""
    trunk: bool = True
    """Whether layers are trained, or heads alone."""
    heads: int | None = LAYERS
    """Layers that the heads were trained on before; None: the heads are fresh."""
    who: Literal["all", "one", "pooled"] = "all"


class HeadRates(NamedTuple):
    """Rates of the heads."""

    before: float
    """In the rounds in which they are trained alone."""
    beside: float
    """Beside layers that are trained."""


def low_high(total: int) -> tuple[int, ...]:
    """The rounds of three stages, `total` in all: none in the first and most in the last, as in the paper's "lh".

    >>> low_high(6), low_high(4)
    ((0, 2, 4), (0, 1, 3))
    """
    return (0, total // LAYERS, total - total // LAYERS)


def equal_rounds(total: int) -> dict[str, int]:
    """The rounds in which the other plans need the FLOPs of `total` layer-wise rounds, by the passes of a layer.

    A trained layer counts three passes, a frozen one below it one.

    >>> equal_rounds(6)  # layer-wise training has 2 x 4 + 4 x 5 = 28 passes, end-to-end training 9 a round
    {'end-to-end': 3, 'progressive': 3}
    """
    passes = lambda rounds, of: sum(r * of(s) for s, r in enumerate(rounds, 1))
    budget = passes(low_high(total), lambda s: s + 2)
    progressive = max(t for t in range(total + 1) if passes(low_high(t), lambda s: 3 * s) <= budget)
    return {"end-to-end": budget // (3 * LAYERS), "progressive": progressive}


def rows(settings: Settings) -> dict[str, Row]:
    """The runs by name."""
    total, warm = settings.common.rounds, settings.warm
    fewer, more = equal_rounds(total), settings.longer * total
    heads = functools.partial(Row, "end-to-end", trunk=False)
    own = functools.partial(heads, (warm + total,), heads=None)
    one, pooled, shorter = f"one client alone, {HEADS}", f"all data in one place, {HEADS}", "progressive, equal FLOPs"
    block = functools.partial(Row, heads=LAYERS - 1)  # the first stage that has rounds lacks the last layer
    return {
        one: own({one: warm + total}, who="one"),
        pooled: own({pooled: warm + total}, who="pooled"),
        HEADS: heads((more,), {HEADS: total, f"{HEADS}, {settings.longer} times the rounds": more}),
        "end-to-end": Row(
            "end-to-end",
            (0,) * (LAYERS - 1) + (total,),
            {"end-to-end": total, "end-to-end, equal FLOPs": fewer["end-to-end"]},
        ),
        LEADER: block("layer-wise", low_high(total), {LEADER: total}),
        "progressive": block("progressive", low_high(total), {"progressive": total}),
        shorter: block("progressive", low_high(fewer["progressive"]), {shorter: fewer["progressive"]}),
    }


def config_of(settings: Settings, row: Row, head_rate: float, encoder_rate: float) -> LayerwiseConfig:
    """The method's settings for a row."""
    shares = RATES if len(row.rounds) == len(RATES) else (1.0,)
    return LayerwiseConfig(
        plan=row.plan,
        rounds=row.rounds,
        encoder_lr={m: tuple(share * encoder_rate for share in shares) for m in ("image", "text", "audio")},
        head_lr=head_rate,
        batch_size=settings.batch_size,
        epochs=settings.epochs,
        temperature=settings.temperature,
        projection_hidden=settings.projection_hidden,
        projection_dim=settings.projection_dim,
        head_dropout=settings.dropout,
        crop=None,
        frozen_dropout=False,
        statistics="recalibrated",
    )


def train(settings: Settings, name: str, heads: HeadRates, rate: float, seed: int) -> Point:
    """What a run gives, from its file where it is there already. Raises ValueError where that is of other settings.

    rate: the one that is tried, of the encoders or, where the trunk is frozen, of the heads.
    """
    row, common = rows(settings)[name], settings.common
    config = config_of(settings, row, heads.beside, rate) if row.trunk else config_of(settings, row, rate, 0.0)
    before = None if row.heads is None else (row.heads, heads.before)
    folder = tables.folder(common, f"{name} {rate:g}", seed)
    about = {"data": tables.of_a_run(settings), "row": row._asdict(), "method": dataclasses.asdict(config)}
    about = json.loads(json.dumps(about | {"before": before}))
    kept = Folder(folder).read("point.json")
    if kept is None:
        point = _trained(settings, row, config, before, f"{name} {rate:g}", seed)
        kept = {"settings": about, "point": point}
        Folder(folder).write("point.json", kept)
    if kept["settings"] != about:
        raise ValueError(f"{folder / 'point.json'} is of a run with other settings; give another --out")
    return kept["point"]


def _trained(
    settings: Settings, row: Row, config: LayerwiseConfig, before: tuple[int, float] | None, name: str, seed: int
) -> Point:
    """Trains a row, and scores the server of its best round on the test.

    before: (layers, rate) of the rounds in which the heads were trained alone; None: the heads are fresh.
    """
    problem = pretrained.load(settings, seed)
    trunk = problem.trained if row.trunk else problem.frozen[LAYERS]
    data = problem.federated(trunk, row.who)
    stages = layerwise.build(config, data, trunk.encoders, problem.num_classes, trunk.params)
    if before is not None:
        stages = with_heads(stages, warm_heads(settings, *before, seed))
    per_round = settings.per_round if row.who == "all" else 1
    own = recalibration(stages, data, per_round, seed)
    score = lambda state, split: _scores(stages, own(state), trunk.splits[split])
    # The best servers are in memory alone: a run that was cut off begins anew.
    shutil.rmtree(tables.folder(settings.common, name, seed), ignore_errors=True)
    kept = {label: Best("valid/chosen_by", until) for label, until in row.labels.items()}
    folder, _ = tables.finish(
        stages[:-1],
        data,
        settings.common,
        settings,
        name,
        seed,
        per_round=per_round,
        evaluate={"valid": lambda state: score(state, "valid")},
        evaluate_every=settings.every,
        checkpoint_every=sum(row.rounds),
        watch=list(kept.values()),
        config={"settings": tables.of_a_run(settings), "method": config},
    )
    done, labels = report.load(folder), {}
    for label, best in kept.items():
        assert best.state is not None
        labels[label] = {"round": best.round, "valid": best.value, "test": score(best.state, "test")}
        labels[label]["paid"] = _paid(settings, row, done, best.until, _once(settings, problem, row))
    curve = [[r["round"], r["valid/chosen_by"]] for r in done.rows if "valid/chosen_by" in r]
    return {"labels": labels, "curve": curve, "loss": done.rows[-1]["all/loss"]}


def train_heads(settings: Settings, layers: int, rate: float, seed: int) -> float:
    """Trains heads alone on what so many upper layers give, if that is not done; the score of the last on valid."""
    problem = pretrained.load(settings, seed)
    trunk, row = problem.frozen[layers], Row("end-to-end", (settings.warm,), {}, False)
    data, config = problem.federated(trunk), config_of(settings, row, rate, 0.0)
    stages = layerwise.build(config, data, trunk.encoders, problem.num_classes, trunk.params)
    _, state = tables.finish(
        stages[:-1],
        data,
        settings.common,
        settings,
        _heads_name(layers, rate),
        seed,
        per_round=settings.per_round,
        checkpoint_every=settings.warm,
        config={"settings": tables.of_a_run(settings), "method": config},
    )
    state = recalibration(stages, data, settings.per_round, seed)(state)
    return _scores(stages, state, trunk.splits["valid"])["chosen_by"]


def warm_heads(settings: Settings, layers: int, rate: float, seed: int) -> dict[str, PyTree]:
    """{part: the head that it begins with}, as `train_heads` left it."""
    server = run.load(tables.folder(settings.common, _heads_name(layers, rate), seed), clients=False).server
    return {part: own["head"] if "head" in own else own for part, own in server.items()}


def _heads_name(layers: int, rate: float) -> str:
    return f"heads of {layers} {rate:g}"


def with_heads(stages: Sequence[Stage], heads: Mapping[str, PyTree]) -> list[Stage]:
    """The stages, of which the first begins with these heads in place of fresh ones."""

    def begun(init: Callable[[Key], PyTree], key: Key) -> PyTree:
        of = lambda part, own: {**own, "head": heads[part]} if "head" in own else heads[part]
        return {part: of(part, own) for part, own in init(key).items()}

    def changed(method: Method) -> Method:
        return method._replace(server=method.server._replace(init=functools.partial(begun, method.server.init)))

    return [stage._replace(method=changed(stage.method)) for stage in stages]


def _scores(stages: Sequence[Stage], state: FedState, arrays: Any) -> dict[str, float]:
    """The method's scores, and "chosen_by": the accuracy, or the mean of both recalls at 10."""
    scored = dict(run.scores(stages[0].method, arrays)(state))
    by = scored.get("accuracy", (scored.get("i2t_r10", 0.0) + scored.get("t2i_r10", 0.0)) / 2)
    return {**scored, "chosen_by": by}


def _once(settings: Settings, problem: Problem, row: Row) -> float:
    """FLOPs that a client pays once: heads on a frozen trunk need what its upper layers give of every view."""
    if row.trunk:
        return 0.0
    own = problem.trained
    of = lambda m: costs.matmul_flops(own.encoders[m].apply, own.params[m] | _fresh(own, m), own.splits["test"][m][:1])
    views = lambda m: own.splits["train"][m].shape[1] if own.splits["train"][m].ndim == 4 else 1
    return settings.train / settings.clients * sum(views(m) * of(m) for m in own.encoders)


def _fresh(trunk: pretrained.Trunk, m: str) -> Mapping[str, Any]:
    width = trunk.encoders[m].width
    return {"norm": {"scale": np.ones(width, np.float32), "bias": np.zeros(width, np.float32)}}


def _paid(settings: Settings, row: Row, done: report.Run, until: int, once: float) -> dict[str, float]:
    """What a client pays that takes part in every round up to `until`; where nobody else does, nothing travels."""
    paid = table.paid(done, settings.batch_size, settings.epochs, until)
    if row.who != "all":
        paid["MB in all"] = paid["MB in all, late"] = 0.0
    used = [cost["peak_bytes"] / 1e6 for cost in done.costs.values()]
    return paid | {"TFLOP in all": paid["TFLOP in all"] + once / 1e12, "peak MB": max(used)}


def compare(settings: Settings) -> dict[str, list[dict[str, Any]]]:
    """Tunes and trains all rows, prints the tables and writes tuned.md; row of the table -> its points of all seeds."""
    common, known = settings.common, rows(settings)
    cli.write(common.out, settings)
    names = [cli.one_of("row of --rows", name, known) for name in settings.rows] or list(known)
    first, head_rates = common.all_seeds[0], settings.head_rates
    warm = jobs.done_all(train_heads, [(settings, LAYERS, rate, first) for rate in head_rates], common.jobs)
    before = dict(zip(head_rates, warm, strict=True))
    head_rate = max(before, key=lambda rate: before[rate])
    depths = {known[name].heads for name in names} - {None}
    given = [(settings, layers, head_rate, seed) for seed in common.all_seeds for layers in depths]
    jobs.done_all(train_heads, given, common.jobs)
    heads = HeadRates(head_rate, head_rate)
    tried = _tune(settings, [name for name in known if not known[name].trunk and name in {HEADS, *names}], heads)
    heads = heads._replace(beside=chosen(tried[HEADS], HEADS))
    tried |= _tune(settings, [name for name in names if known[name].trunk], heads)
    labels = {label: name for name in names for label in known[name].labels}
    picked = {label: chosen(tried[name], label) for label, name in labels.items()}
    runs = [(label, seed) for seed in common.all_seeds for label in labels]
    given = [(settings, labels[label], heads, picked[label], seed) for label, seed in runs]
    found: dict[str, list[dict[str, Any]]] = {label: [] for label in labels}
    for (label, _), point in zip(runs, jobs.done_all(train, given, common.jobs), strict=True):
        found[label].append(point["labels"][label])
    _write(settings, found, tried, picked, labels, before)
    return found


def _tune(settings: Settings, names: Sequence[str], heads: HeadRates) -> dict[str, dict[float, Point]]:
    """Row -> rate -> its point at the first seed."""
    known, tried = rows(settings), {}
    rates = lambda name: settings.encoder_rates if known[name].trunk else settings.head_rates
    runs = [(name, rate) for name in names for rate in rates(name)]
    given = [(settings, name, heads, rate, settings.common.all_seeds[0]) for name, rate in runs]
    for (name, rate), point in zip(runs, jobs.done_all(train, given, settings.common.jobs), strict=True):
        tried.setdefault(name, {})[rate] = point
    return tried


def chosen(points: Mapping[float, Point], label: str) -> float:
    """The rate with the best score on validation, within the rounds of a row of the table."""
    return max(points, key=lambda rate: points[rate]["labels"][label]["valid"])


def _write(settings: Settings, found, tried, picked, labels, before) -> None:
    """Prints the table and writes tuned.md: scores and what they cost, differences, and what was tried."""
    keys = score_keys(found)
    shown = scores_table(found, keys)
    report.show(shown)
    ahead = {label: [one["test"] for one in seeds] for label, seeds in found.items()}
    common = settings.common
    about = (
        f"{settings.data}, {settings.train} examples of {settings.clients} clients, {settings.per_round} a round, "
        f"{common.rounds} rounds in stages of {low_high(common.rounds)}; {settings.valid} examples to choose on, "
        f"{settings.test} of the test; {common.about_seeds}."
    )
    parts = ["# Stages of pretrained encoders", about, report.table(shown)]
    if LEADER in found and len(found) > 1:
        parts += ["## Differences within a seed (mean and 95 % interval)"]
        parts += [report.table(tables.ahead(ahead, LEADER, keys)), report.table(tables.ahead(ahead, HEADS, keys))]
    said = ", ".join(f"{rate:g}: {value:.3g}" for rate, value in before.items())
    parts += ["## What was tried on the split valid of the first seed", f"Heads alone, {settings.warm} rounds: {said}."]
    parts += [report.table(tried_table(tried, picked, labels))]
    (pathlib.Path(common.out) / "tuned.md").write_text("\n\n".join(parts) + "\n")


def score_keys(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, str]:
    """Metric of the test -> its heading, of those that a table has."""
    known = next(iter(found.values()))[0]["test"]
    wanted = ("accuracy", "macro_f1") if "accuracy" in known else ("i2t_r1", "i2t_r10", "t2i_r1", "t2i_r10")
    return {key: report.heading(key) for key in wanted}


def scores_table(found: Mapping[str, Sequence[Mapping[str, Any]]], keys: Mapping[str, str]) -> list[dict[str, Any]]:
    """A row for each label: test scores as (mean, sample standard deviation) over seeds, and what a client pays."""
    shown = []
    for label, seeds in found.items():
        row: dict[str, Any] = {"row": label}
        row |= {heading: over_seeds([one["test"][key] for one in seeds]) for key, heading in keys.items()}
        row["round"] = over_seeds([float(one["round"]) for one in seeds])
        shown.append(row | seeds[0]["paid"])
    return shown


def tried_table(tried, picked, labels) -> list[dict[str, Any]]:
    """A row for each row of the table: its validation score with every rate, the chosen one, and whether it is last."""
    shown = []
    for label, name in labels.items():
        points = tried[name]
        row: dict[str, Any] = {"row": label} | {
            f"rate {i}": f"{rate:g}: {point['labels'][label]['valid']:.3g}"
            for i, (rate, point) in enumerate(points.items(), 1)
        }
        edge = picked[label] in (min(points), max(points))
        shown.append(row | {"chosen": f"{picked[label]:g}" + (", at the edge" if edge else "")})
    return shown
