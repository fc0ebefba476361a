"""Whether data, a trunk and a head fit the ways of tuning on questions."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_mm.methods import fit, outputs
from fedjax_mm.methods.feddat.answers import Answers
from fedjax_mm.methods.fit import Fit, Limit
from fedjax_mm.models import Model, Vilt
from fedjax_mm.types import Arrays, Population, PyTree

Features = Callable[[PyTree, Arrays], PyTree]  # trunk, batch -> what the head reads, [B, D] or what an Answers takes


def fit_of(model: Vilt, trunk: PyTree, features: Features, head: Model | Answers, population: Population) -> Fit:
    """What a method is built for. Raises ValueError where arrays, trunk and head do not fit each other."""
    limits = {}
    for name, cohort in population.cohorts.items():
        if "target" not in cohort.arrays:
            raise ValueError(f"clients of {name} have {sorted(cohort.arrays)} but no 'target' [E, K], answers' scores")
        fit.check_complete(f"cohort {name}", cohort.arrays, cohort.arrays)
        two = {k: jax.ShapeDtypeStruct((2, *x.shape[1:]), x.dtype) for k, x in cohort.arrays.items()}
        given = outputs.traced(
            "the model",
            f"the arrays of cohort {name}, {_shown(two)}",
            lambda two=two: jax.eval_shape(features, trunk, two),
        )
        target = cohort.arrays["target"]
        answers = _answers(model, head, given, two)
        if target.shape[1:] != (answers,):
            raise ValueError(
                f"target of {name} is {target.shape}; it must be [E, {answers}], as many as the head's answers"
            )
        limits[name] = _limits(model, answers, cohort.arrays)
    return Fit(population._replace(public=None), limits)


def _answers(model: Vilt, head: Model | Answers, features: PyTree, two: Mapping[str, Any]) -> int:
    """K, how many answers the head tells apart, from the features of two questions."""
    one = jax.ShapeDtypeStruct((1, model.width), jnp.float32)
    if not isinstance(head, Answers):
        if features.shape != (2, model.width):
            raise ValueError(f"the model gives {[*features.shape]} of two questions; it must give [2, {model.width}]")
        return outputs.output_shape("head", head, one)[-1]
    scores = lambda: jax.eval_shape(head.scores, jax.eval_shape(head.init, jax.random.key(0), one), features, two)
    shape = outputs.traced("the answers", "what the model gives", scores).shape
    if len(shape) != 2 or shape[0] != 2:
        raise ValueError(f"the answers' scores are {[*shape]} of two questions; they must be [2, K]")
    return shape[1]


def check_test(model: Vilt, head: Model | Answers, built: Fit, arrays: Arrays) -> None:
    """Raises ValueError where test questions do not fit: what a batch holds, leaves [E, ...], and `client` [E] int."""
    clients, like = sum(built.population.sizes.values()), next(iter(built.population.cohorts.values())).arrays
    fit.check_mapping("the test set", arrays)
    if missing := [name for name in ("client", "target") if name not in arrays]:
        raise ValueError(f"the test arrays {sorted(arrays)} lack {missing}: whose question it is, its answers")
    reads = [*getattr(model, "example", {}), *(head.reads if isinstance(head, Answers) else ())]
    needed = [name for name in reads if name in like]
    limits = _limits(model, like["target"].shape[1], arrays)
    limits["client"] = Limit(0, clients - 1, f"questions are of clients 0..{clients - 1}")
    fit.check_rows("the test set", arrays, needed, like, limits)


def _limits(model: Vilt, answers: int, arrays: Mapping[str, Any]) -> dict[str, Limit]:
    limits = fit.tokens({"question": model, "choices": model}, arrays) | {
        "target": Limit(0.0, 1.0, "it is the score of each answer")
    }
    if "answers" in arrays:
        limits["answers"] = Limit(1, answers, f"a question has one to {answers} known answers, those of the head")
    if "size" in arrays and "image" in arrays:
        side = max(arrays["image"].shape[1:3])
        limits["size"] = Limit(1, side, f"no side of the images is longer than {side}")
    return limits


def _shown(arrays: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {x.dtype} {[*x.shape]}" for name, x in sorted(arrays.items()))
