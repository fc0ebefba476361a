"""Every public entry, called with arguments of a wrong type, shape, sign or name: it works, or says what is wrong.

The entries are what `fedjax_mm.__all__` leads to. Each stands in CALLS with a call that works, of which one argument at
a time is made wrong; or in EXEMPT with the reason. Right is a result, or a ValueError or FileNotFoundError of one
sentence that a `raise` of this project states: never an error out of the middle of a library.
"""

import inspect
import types

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies

import fedjax_mm
from experiments.common.cli import is_about_settings
from fedjax_mm import aggregate, clients, costs, data, evaluate, laws, losses, participation, stages, trees, uploads
from fedjax_mm.data import FederatedData, partition
from fedjax_mm.federate import federate
from fedjax_mm.local import local_steps, whole
from fedjax_mm.types import Cohort, Download, Each, FedState, Mean, Server

EXAMPLES = 10  # wrong calls of each entry

X, LABEL = np.arange(12, dtype=np.float32).reshape(6, 2), np.array([0, 1, 0, 1, 1, 0])
DATA = FederatedData.from_arrays({"x": X}, [[0, 1, 2], [3, 4, 5]])
LABELLED = FederatedData.from_arrays({"x": X, "label": LABEL}, [[0, 1, 2], [3, 4, 5]])
TESTED = FederatedData.from_arrays({"x": X}, [[0, 1], [3, 4]], test=[[2], [5]])
REPS, WEIGHT, ANCHORS = jnp.ones((3, 4, 2)), jnp.ones(3), jnp.ones((4, 2))
PAIR, LOGITS, KEY = jnp.eye(2), jnp.ones((2, 3)), jax.random.key(0)
TREE, MASK = {"a": jnp.ones(2), "b": {"c": jnp.zeros(3)}}, {"a": True, "b": False}
HALVES = ({"a": jnp.ones(2), "b": None}, {"a": None, "b": jnp.ones(3)})


def _send(download, state, data, key):
    return {"w": Mean(data.weight, data.weight)}, state, {}


SERVER = Server(lambda key: jnp.float32(0), lambda w, public: {"all": Download(w)}, lambda w, *_: (w, {}))
METHOD = federate(SERVER, {"all": Cohort(2, lambda key: (), _send)})
PERFECT = evaluate.retrieval_recall(np.eye(10), np.eye(10), np.arange(10))
PAIRS = {"image": np.eye(4), "text": np.eye(4), "text_to_image": np.arange(4)}
STAGES = [stages.Stage("one", METHOD, 2), stages.Stage("two", METHOD, 3)]
STATE = lambda n: FedState({f"{i}": jnp.zeros(2) for i in range(n)}, {}, jnp.int32(0))
STEP = lambda carry, batch, key: (carry, {})
UPLOADS = {"A": {"w": Mean(jnp.ones(2), jnp.float32(1))}, "B": {"w": Mean(jnp.ones(2), jnp.float32(1))}}
WEIGHED = {"reps": REPS, "weight": WEIGHT}
CLASSES = {"labels": LABEL, "predictions": LABEL, "num_classes": 2}

CALLS = {
    "FederatedData.from_arrays": (
        FederatedData.from_arrays,
        {"arrays": {"x": X, "label": LABEL}, "clients": LABEL, "public": {"x": X}, "num_classes": 2, "on_device": True}
        | {"test": None},
    ),
    "FederatedData.client": (DATA.client, {"cohort": "all", "number": 1}),
    "FederatedData.round": (DATA.round, {"chosen": {"all": np.array([0, 1])}}),
    "FederatedData.split": (DATA.split, {}),
    "FederatedData.test_rows": (TESTED.test_rows, {"cohort": "all"}),
    "aggregate.average": (aggregate.average, {"slot": Each(X, jnp.ones(6)), "default": jnp.zeros(2)}),
    "aggregate.collect": (aggregate.collect, {"uploads": UPLOADS, "slot": "w"}),
    "aggregate.combine": (aggregate.combine, {"weights": jnp.ones((3, 4)), "reps": REPS, "default": ANCHORS}),
    "aggregate.consensus_weights": (aggregate.consensus_weights, WEIGHED),
    "aggregate.contrastive_mean": (
        aggregate.contrastive_mean,
        {**WEIGHED, "anchors": ANCHORS, "temperature": 1.0, "exclude_match": False, "block": 4}
        | {"default": ANCHORS, "mesh": None},
    ),
    "aggregate.contrastive_weights": (
        aggregate.contrastive_weights,
        {**WEIGHED, "anchors": ANCHORS, "temperature": 1.0, "exclude_match": True, "block": 4, "mesh": None},
    ),
    "aggregate.entropy_weights": (aggregate.entropy_weights, WEIGHED),
    "aggregate.mean_weights": (aggregate.mean_weights, WEIGHED),
    "aggregate.similarity_weights": (aggregate.similarity_weights, {**WEIGHED, "anchors": ANCHORS}),
    "aggregate.size_weights": (aggregate.size_weights, WEIGHED),
    "aggregate.variance_weights": (aggregate.variance_weights, WEIGHED),
    "aggregate.weighted_mean": (aggregate.weighted_mean, {"stack": X, "weight": jnp.ones(6), "default": jnp.zeros(2)}),
    "clients.fill_places": (clients.fill_places, {"who": np.array([1, 4]), "places": 3, "nobody": 5}),
    "clients.choose": (clients.choose, {"sizes": {"A": 3, "B": 2}, "per_round": 2, "round": 1, "seed": 0}),
    "clients.make_mesh": (clients.make_mesh, {"devices": 1}),
    "clients.map_reduce": (
        clients.map_reduce,
        {"one": lambda s, c: (c, c), "shared": 0.0, "clients": jnp.ones(4), "chunk": 2, "mesh": None},
    ),
    "costs.matmul_flops": (lambda function: costs.matmul_flops(function, X), {"function": abs}),
    "costs.of": (
        costs.of,
        {"method": METHOD, "data": DATA.round({"all": np.arange(2)}), "state": None, "examples": {"all": 3.0}},
    ),
    "data.partition.by_group": (partition.by_group, {"groups": LABEL, "num_clients": 2, "seed": 0}),
    "data.partition.dirichlet": (
        partition.dirichlet,
        {"labels": LABEL, "num_clients": 2, "alpha": 1.0, "seed": 0, "min_size": 1, "balanced": True},
    ),
    "data.partition.erroneous_labels": (
        partition.erroneous_labels,
        {"labels": LABEL, "num_classes": 2, "rate": 0.5, "seed": 0, "transition": np.ones((2, 2))},
    ),
    "data.partition.missing_labels": (partition.missing_labels, {"num_examples": 6, "rate": 0.5, "seed": 0}),
    "data.partition.with_labels": (
        partition.with_labels,
        {"parts": [[0, 1, 2], [3]], "labelled": np.array([True, False, True, True])},
    ),
    "data.partition.within_groups": (
        partition.within_groups,
        {"groups": LABEL, "labels": LABEL, "per_group": 2, "alpha": 1.0, "seed": 0},
    ),
    "data.partition.hold_out": (partition.hold_out, {"parts": [[0, 1, 2], [3]], "fraction": 0.5, "seed": 0}),
    "data.partition.iid": (partition.iid, {"labels_or_num": 6, "num_clients": 2, "seed": 0}),
    "data.partition.missing_examples": (
        partition.missing_examples,
        {"num_examples": 6, "modalities": ("a", "b"), "rates": {"a": 0.5}, "seed": 0},
    ),
    "data.partition.missing_modality": (
        partition.missing_modality,
        {"num_clients": 3, "modalities": ("a", "b"), "holders": {("a",): 1, ("a", "b"): 2}, "seed": 0},
    ),
    "data.partition.shards": (
        partition.shards,
        {"labels": LABEL, "num_clients": 2, "shards_per_client": 1, "seed": 0},
    ),
    "data.partition.split_table": (
        partition.split_table,
        {"parts": [[0, 1, 2], [3]], "labels": LABEL, "num_classes": 2},
    ),
    "data.streams.array": (data.streams.array, {"values": X, "threads": 1}),
    "data.pooled": (data.pooled, {"data": DATA}),
    "evaluate.batch_means": (evaluate.batch_means, {"labels": LABEL, "predictions": LABEL, "batch": 2}),
    "evaluate.both_protocols": (
        evaluate.both_protocols,
        {"image": np.eye(10), "text": np.eye(10), "text_to_image": np.arange(10), "folds": 1},
    ),
    "evaluate.classification": (evaluate.classification, CLASSES),
    "evaluate.constant": (evaluate.constant, {"train_labels": LABEL, "test_labels": LABEL, "num_classes": 2}),
    "evaluate.linear_probe": (evaluate.linear_probe, {"train_x": X, "train_y": LABEL, "test_x": X, "test_y": LABEL}),
    "evaluate.precision_recall": (evaluate.precision_recall, CLASSES),
    "evaluate.recall_sums": (evaluate.recall_sums, {"whole": PERFECT, "folds": PERFECT}),
    "evaluate.retrieval_folds": (evaluate.retrieval_folds, {**PAIRS, "folds": 2}),
    "evaluate.retrieval_recall": (evaluate.retrieval_recall, {**PAIRS, "ks": (1, 5)}),
    "evaluate.vqa_score": (evaluate.vqa_score, {"predictions": LABEL, "target": np.ones((6, 2))}),
    "evaluate.zero_shot": (evaluate.zero_shot, {"image": np.eye(2), "prompts": np.eye(2), "labels": np.arange(2)}),
    "laws.check": (
        laws.check,
        {"method": METHOD, "data": DATA, "per_round": 1, "laws": (), "seed": 0, "tolerance": 1e-5, "rounding": 0.0}
        | {"strict": False},
    ),
    "laws.make_case": (
        laws.make_case,
        {"method": METHOD, "data": DATA, "per_round": 1, "seed": 0, "tolerance": 1e-5, "rounding": 0.0},
    ),
    "laws.try_law": (
        laws.try_law,
        {"law": lambda case: laws.Deviation(0.0, 0.0), "case": laws.make_case(METHOD, DATA)},
    ),
    "local_steps": (
        local_steps,
        {"step": STEP, "carry": 0.0, "data": whole({"x": jnp.ones((3, 2))}), "key": KEY, "batch_size": 2}
        | {"epochs": 1, "drop_last": False, "shuffle": True},
    ),
    "losses.distill": (losses.distill, {"teacher_logits": LOGITS, "student_logits": LOGITS, "temperature": 1.0}),
    "losses.info_nce": (losses.info_nce, {"a": PAIR, "b": PAIR, "temperature": 1.0, "mask": jnp.ones(2)}),
    "losses.inter_modal": (
        losses.inter_modal,
        {"reps": PAIR, "anchors": ANCHORS, "index": jnp.arange(2), "temperature": 1.0, "mask": jnp.ones(2)},
    ),
    "losses.intra_modal": (
        losses.intra_modal,
        {"reps": PAIR, "current": PAIR, "previous": PAIR, "temperature": 1.0, "mask": jnp.ones(2)},
    ),
    "losses.soft_contrastive": (
        losses.soft_contrastive,
        {"image": PAIR, "text": PAIR, "scale": 1.0, "shift": 1.0, "mask": jnp.ones(2)},
    ),
    "losses.unit": (losses.unit, {"x": PAIR}),
    "participation.by_size": (participation.by_size, {"data": DATA, "per_round": 1}),
    "participation.by_trace": (
        participation.by_trace,
        {"data": DATA, "available": {"all": [[True, False]]}, "per_round": 1, "repeat": True},
    ),
    "participation.independent": (participation.independent, {"data": DATA, "rate": 0.5, "places": None}),
    "participation.uniform": (participation.uniform, {"data": DATA, "per_round": {"all": 1}}),
    "participation.with_deadline": (
        lambda **changed: participation.with_deadline(**changed)(KEY, 0),
        {"choose": lambda key, round: {"all": np.arange(2)}, "seconds": {"all": [1.0, 2.0]}, "deadline": 1.0},
    ),
    "participation.with_dropout": (
        participation.with_dropout,
        {"choose": lambda key, round: {"all": np.arange(2)}, "rate": 0.5},
    ),
    "stages.blocks": (stages.blocks, {"depth": 6, "stages": 3}),
    "stages.enter": (stages.enter, {"before": STATE(1), "fresh": STATE(2)}),
    "stages.index": (stages.index, {"stages": STAGES, "round": 1}),
    "stages.plan": (stages.plan, {"method": STAGES, "rounds": 3}),
    "stages.uniform": (stages.uniform, {"stages": 3, "rounds": 7}),
    "trees.all_finite": (trees.all_finite, {"tree": TREE}),
    "trees.grow": (trees.grow, {"old": TREE, "fresh": {**TREE, "d": jnp.ones(1)}}),
    "trees.merge": (trees.merge, {"a": HALVES[0], "b": HALVES[1]}),
    "trees.partition": (trees.partition, {"tree": TREE, "mask": MASK}),
    "trees.path_mask": (trees.path_mask, {"tree": TREE, "trains": lambda path: path == "a"}),
    "trees.size_bytes": (trees.size_bytes, {"tree": TREE}),
    "trees.where": (trees.where, {"condition": jnp.array(True), "a": TREE, "b": TREE}),
    "uploads.add_noise": (uploads.add_noise, {"std": 1.0}),
    "uploads.attacks.flip_labels": (
        uploads.attacks.flip_labels,
        {"data": LABELLED, "clients": {"all": [1]}, "num_classes": 2},
    ),
    "uploads.attacks.flip_signs": (uploads.attacks.flip_signs, {"method": METHOD, "clients": {"all": [1]}}),
    "uploads.attacks.scale_updates": (
        uploads.attacks.scale_updates,
        {"method": METHOD, "clients": {"all": [1]}, "factor": 2.0},
    ),
    "uploads.bounded": (uploads.bounded, {"quantile": 0.5}),
    "uploads.central_noise": (
        uploads.central_noise,
        {"method": METHOD, "data": DATA, "clip": 1.0, "noise_multiplier": 1.0, "denominator": 2.0}
        | {"weight_cap": None, "adaptive": None},
    ),
    "uploads.krum": (uploads.krum, {"bad": 1, "keep": 2}),
    "uploads.median": (uploads.median, {}),
    "uploads.privacy.gaussian_epsilon": (uploads.privacy.gaussian_epsilon, {"sensitivity": 1.0, "delta": 0.1}),
    "uploads.privacy.noise_for": (
        uploads.privacy.noise_for,
        {"epsilon": 1.0, "delta": 0.1, "rounds": 3, "sampling": "local", "rate": 1.0},
    ),
    "uploads.robust": (uploads.robust, {"method": METHOD, "data": DATA, "rule": uploads.median()}),
    "uploads.secure_sum": (uploads.secure_sum, {"method": METHOD, "data": DATA, "resolution": 0.1}),
    "uploads.trimmed_mean": (uploads.trimmed_mean, {"fraction": 0.1}),
    "uploads.attach": (uploads.attach, {"method": METHOD, "transform": uploads.sign(), "data": DATA}),
    "uploads.clip_by_norm": (uploads.clip_by_norm, {"bound": 1.0}),
    "uploads.low_rank": (uploads.low_rank, {"rank": 2, "iterations": 1}),
    "uploads.quantise": (uploads.quantise, {"bits": 8}),
    "uploads.random_k": (uploads.random_k, {"fraction": 0.5, "unbiased": True}),
    "uploads.sign": (uploads.sign, {}),
    "uploads.top_k": (uploads.top_k, {"fraction": 0.5}),
    "uploads.error_feedback": (uploads.error_feedback, {"transform": uploads.sign()}),
}

FILES = "what it reads are files, and tests/data tries damaged ones"
JITTED = "a step of a method, which runs under jit on what the method's build has checked"
BUILDS = "tests/methods/test_fit and test_settings try wrong data, models and settings of every build"
RUNS = "a step of the run, which has checked its stages and its data"
EXEMPT = {
    **{f"data.{room}.": FILES for room in ("advance", "arrays", "audio", "av_digits", "captions", "coco_captions")},
    **{
        f"data.{room}.": FILES
        for room in ("digits", "flickr8k", "flickr30k", "hapt", "images", "mhealth", "opportunity", "prepared")
    },
    **{f"data.{room}.": FILES for room in ("scenes", "tables", "ur_fall", "utd_mhad", "vqa", "windows", "wordpiece")},
    **{f"data.streams.{name}": FILES for name in ("files", "records")},
    "models.": "tests/models tries wrong sizes and names",
    "clients.on_every_device": "the engine's own: map_reduce checks what it is given",
    "methods.*.build": BUILDS,
    "methods.": JITTED,
    **{f"stages.{name}": RUNS for name in ("frozen", "kept", "joined", "check_caches", "with_shapes")},
    "federate": "it ties functions of the caller together, and runs none",
    "gradient_step": "it ties functions of the caller together, and runs none",
    "on_change": "it ties functions of the caller together, and runs none",
    "uploads.on_change": "it ties functions of the caller together, and runs none",
    "uploads.chain": "tests/uploads tries it without transforms and with what is none",
}


def public_entries(module, prefix=""):
    """(name, function) of all functions that the module's `__all__` leads to; where it has none, its own."""
    own = [name for name, found in vars(module).items() if getattr(found, "__module__", None) == module.__name__]
    for name in getattr(module, "__all__", own):
        found = getattr(module, name)
        if isinstance(found, types.ModuleType) and name not in ("run", "report"):  # tests/run has those of a run
            yield from public_entries(found, f"{prefix}{name}.")
        elif inspect.isfunction(found) and not name.startswith("_"):
            yield f"{prefix}{name}", found


def is_exempt(name):
    if name.startswith("methods.") and name.endswith(".build"):
        return "methods.*.build" in EXEMPT
    return any(name == entry or (entry.endswith(".") and name.startswith(entry)) for entry in EXEMPT)


def test_every_public_entry_is_tried_or_exempt():
    methods = {n: f for n, f in inspect.getmembers(FederatedData, callable) if not n.startswith("_")}
    entries = {**dict(public_entries(fedjax_mm)), **{f"FederatedData.{n}": f for n, f in methods.items()}}
    forgotten = [name for name in entries if name not in CALLS and not is_exempt(name)]
    assert not forgotten, f"give these a call that works in CALLS, or a reason in EXEMPT: {forgotten}"
    assert set(CALLS) <= set(entries), sorted(set(CALLS) - set(entries))
    for name, (_, arguments) in CALLS.items():
        if name != "costs.matmul_flops":  # its args are positional
            missing = set(inspect.signature(entries[name]).parameters) - set(arguments) - {"self"}
            assert missing <= {"mask", "weighted"}, f"{name} is not tried with another {sorted(missing)}"


@pytest.mark.parametrize("name", CALLS)
def test_the_call_that_is_made_wrong_works(name):
    call, arguments = CALLS[name]
    call(**arguments)


PLAIN = [None, True, False, 0, -1, 2.5, -0.5, float("nan"), float("inf"), 10**30, "", "3", "all", b"x", (), [], {}]
PLAIN += [[None], ["a", "b"], [[0, 1], 2], {"x": None}, {"": 1}, {0: 1}, {"all": -1}, {"A": "1", "B": 2}, object()]
PLAIN += [np.zeros((0,)), np.zeros((0, 2)), np.array("x"), np.array(["a", "b"]), np.array([None, 1]), np.float64("nan")]
PLAIN += [np.array([0.5, np.nan]), np.array([1 + 2j]), np.zeros(3, "M8[s]"), np.zeros((2, 2, 2, 2)), np.int64(-3)]
PLAIN += [jnp.zeros(()), jnp.array([True, False]), jnp.array([jnp.nan, 1.0]), jax.ShapeDtypeStruct((2,), np.float32)]


def made_wrong(right):
    """Values that are near to the right one: of another sign, shape, dtype, length or spelling."""
    if hasattr(right, "shape") and not jnp.issubdtype(right.dtype, jax.dtypes.prng_key):
        host = np.asarray(right) if not isinstance(right, jax.ShapeDtypeStruct) else np.zeros(right.shape)
        number = host.dtype.kind in "iuf"
        yield from (host[None], host.reshape(-1), host.astype(str), host.astype(object), host.tolist(), host > 0)
        yield from (host[:-1], host[:0]) if host.ndim else ()
        yield from (-host - 1, host.astype(float) + np.nan, host + 10**6, host.astype(complex)) if number else ()
    elif isinstance(right, dict):
        yield from ({f"{key}_": value for key, value in right.items()}, list(right), list(right.values()))
        yield from (dict(list(right.items())[1:]), {**right, "more": 1}, {0: 1, **right})
        yield from ({**right, key: value} for key in right for value in (None, -1, "x", np.nan, {}, [1], np.zeros(2)))
        yield from ({**right, key: value} for key in right for value in made_wrong(right[key]))
    elif isinstance(right, list | tuple) and not hasattr(right, "_fields"):
        yield from (right[:-1], [right], dict(enumerate(right)), [str(one) for one in right], *right[:1])
        yield from ([value, *right[1:]] for value in (None, -1, 0.5, "x", True, 10**6))
    elif isinstance(right, int | float) and not isinstance(right, bool):
        yield from (-right - 1, right + 100, float(right), str(right), [right], np.full(2, right), right + 0.5)
    elif isinstance(right, str):
        yield from (right.upper(), right + " ", [right], right.encode())


def is_one_sentence(error):
    said = " ".join(str(error).split())
    return isinstance(error, ValueError | FileNotFoundError) and is_about_settings(error) and len(said) > 10


@pytest.mark.parametrize("name", [name for name, (_, arguments) in CALLS.items() if arguments])
def test_a_wrong_argument_works_or_is_refused_in_one_sentence(name):
    call, right = CALLS[name]
    wrong = [(key, value) for key in right for value in [*PLAIN, *made_wrong(right[key])]]

    @hypothesis.settings(max_examples=EXAMPLES, derandomize=True, database=None, deadline=None)
    @hypothesis.given(strategies.sampled_from(wrong))
    def tried(one):
        try:
            call(**{**right, one[0]: one[1]})
        except Exception as error:
            assert is_one_sentence(error), f"{name}({one[0]}={one[1]!r}): {type(error).__name__}: {error}"

    tried()
