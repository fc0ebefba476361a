"""Whether data and models fit a method: what every paper's `build` asks of them, and `Method.check` asks again.

A `Fit` is what a method was built for. `check_population` holds a population against it: `build` does so with its own,
and a run with that of its data. `check_rows` holds the arrays of a test set or of a labelled set against it.
"""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from fedjax_mm.checks import say
from fedjax_mm.types import Arrays, Population

Shapes = Mapping[str, Any]  # arrays, or jax.ShapeDtypeStructs in their place


class Limit(NamedTuple):
    """The values that an array may hold, and why; the array must be of integers where its ends are, else of floats."""

    least: float
    greatest: float
    why: str


Limits = Mapping[str, Limit]  # array -> what it may hold


class Fit(NamedTuple):
    """What a method was built for."""

    population: Population
    limits: Mapping[str, Limits]
    """Cohort -> the limits of its arrays."""
    public: Limits | None = None
    """The limits of the public arrays. None: the method reads none."""
    step: int = 1
    """How many examples a client needs to take a step."""


def classes(number: int, what: str = "the head") -> Limit:
    """The limit of labels of `number` classes.

    >>> classes(3)
    Limit(least=0, greatest=2, why='the head has 3 classes')
    """
    return Limit(0, number - 1, f"{what} has {number} classes")


def tokens(models: Mapping[str, Any], arrays: Collection[str]) -> dict[str, Limit]:
    """{array: limit} of the arrays that a model with a vocabulary reads.

    >>> from fedjax_mm.models import text
    >>> tokens({"text": text.encoder(10, 4, 4)}, ["text", "label"])["text"].greatest
    9
    """
    sizes = {name: getattr(model, "vocabulary", None) for name, model in models.items() if name in arrays}
    return {name: Limit(0, n - 1, f"the model's vocabulary has {n} ids") for name, n in sizes.items() if n is not None}


def check_population(fit: Fit, population: Population) -> None:
    """Raises ValueError where a population is not what the method was built for; the method was built for `fit`.

    It must have the same cohorts with as many clients, and the same arrays but for their lengths; values must lie
    within the limits, where their ranges are known; and somebody must own enough examples for a step.

    >>> from fedjax_mm.data import FederatedData
    >>> data = FederatedData.from_arrays({"label": np.array([0, 1, 3])}, [[0, 1], [2]])
    >>> check_population(Fit(data.population, {"all": {"label": classes(3)}}), data.population)
    Traceback (most recent call last):
    ...
    ValueError: array 'label' of cohort all holds 0..3, which must be within 0..2: the head has 3 classes
    """
    built = fit.population
    if population.sizes != built.sizes:
        found = f"the data has clients {population.sizes}; the method was built for {built.sizes}"
        raise ValueError(f"{found}: build it from this data")
    for name, cohort in population.cohorts.items():
        _check_same(f"cohort {name}", built.cohorts[name].arrays, cohort.arrays, 1)
        _check_limits(f"cohort {name}", cohort.arrays, fit.limits[name], cohort.ranges or {})
    if fit.public is not None:
        public = population.public or {}
        _check_same("the public examples", built.public or {}, public, 0)
        _check_limits("the public examples", public, fit.public, population.public_ranges or {})
    counts = [_counts(population, name) for name in population.cohorts]
    if fit.step > 1 and all(count is not None and count.max(initial=0) < fit.step for count in counts):
        most = max(int(count.max(initial=0)) for count in counts if count is not None)
        said = (
            f"no client owns the {fit.step} examples of one batch, the most being {most}, so that nothing would train"
        )
        raise ValueError(f"{said}: lower batch_size, or give clients more examples")


def check_rows(where: str, arrays: Arrays, needed: Collection[str], like: Shapes, limits: Limits) -> None:
    """Raises ValueError where the rows of a test set or a labelled set, which the message calls `where`, do not fit.

    needed: arrays that must be there. like: array -> an array or its shape, of which the rows' shape and kind of number
    must be those. All arrays must have one length, at least 1, and hold finite numbers within the limits.

    >>> check_rows("the test set", {"x": np.ones((2, 3)), "label": np.array([0, 5])}, ["x"], {}, {"label": classes(3)})
    Traceback (most recent call last):
    ...
    ValueError: array 'label' of the test set holds 0..5, which must be within 0..2: the head has 3 classes
    """
    check_mapping(where, arrays)
    if missing := [name for name in needed if name not in arrays]:
        raise ValueError(f"{where} has no {missing}; its arrays are {sorted(arrays)}")
    for name, array in arrays.items():
        if not hasattr(array, "dtype") or not np.ndim(array):
            raise ValueError(f"array {name!r} of {where} is {type(array).__name__}; give a NumPy or JAX array [M, ...]")
        if jnp.issubdtype(array.dtype, jnp.floating) and not bool(np.isfinite(np.asarray(array[:])).all()):
            raise ValueError(f"array {name!r} of {where} holds NaN or infinity; drop or fill these rows")
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        raise ValueError(f"the arrays of {where} must have one length, at least 1; they have {lengths}")
    for name in like:
        if name in arrays:
            check_kind(f"array {name!r} of {where}", arrays[name], like[name])
    ranges = {
        name: (np.min(arrays[name][:]).item(), np.max(arrays[name][:]).item())
        for name in limits
        if name in arrays and arrays[name].size
    }
    _check_limits(where, arrays, limits, ranges)


def check_mapping(where: str, given: Any) -> None:
    """Raises ValueError where `given`, which the message calls `where`, is no mapping from names."""
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
        raise ValueError(f"{where} is {say(given)}; it must be a mapping from names")


def check_kind(what: str, given: Any, like: Any) -> None:
    """Raises ValueError where an array has another shape [any, ...] or other kind of number than `like` has.

    Kinds are bytes, which models scale, other integers, truth values and floating-point numbers.
    """
    kind = lambda x: (
        "bytes" if x.dtype == np.uint8 else "numbers" if jnp.issubdtype(x.dtype, jnp.floating) else "integers"
    )
    if tuple(given.shape[1:]) != tuple(like.shape[1:]) or kind(given) != kind(like):
        shape = lambda x: f"{x.dtype} [{', '.join(('M', *map(str, x.shape[1:])))}]"
        raise ValueError(f"{what} is {shape(given)}; the method was built for {shape(like)}")


def check_names(modalities: Collection[str], reserved: Collection[str]) -> None:
    """Raises ValueError for a modality that is called like something else, or where there is none.

    >>> check_names(["image", "head"], ["head", "label"])
    Traceback (most recent call last):
    ...
    ValueError: a modality may not be called 'head', nor ['head', 'label', 'mask'], nor has_..., nor hold a /; rename it
    """
    if not modalities:
        raise ValueError("the encoders are of no modality; give one or more, {modality: encoder}")
    names = sorted({*reserved, "mask"})
    for m in modalities:
        if not isinstance(m, str) or not m or m in names or m.startswith("has_") or "/" in m:
            raise ValueError(
                f"a modality may not be called {say(m)}, nor {names}, nor has_..., nor hold a /; rename it"
            )


def check_complete(where: str, arrays: Collection[str], used: Collection[str]) -> None:
    """Raises ValueError where some examples lack an array of `used`, which `has_<array>` [E] says."""
    for array in used:
        if f"has_{array}" in arrays:
            said = f"{where} has an array 'has_{array}', so that some of its examples lack {array!r}"
            raise ValueError(f"{said}, which is needed of each: leave these out, or keep them apart")


def _check_same(where: str, built: Shapes, given: Shapes, skip: int) -> None:
    """The same arrays, whose shapes may differ in their first `skip` axes."""
    if set(built) != set(given):
        raise ValueError(f"{where} has arrays {sorted(given)}; the method was built for {sorted(built)}")
    for name, like in built.items():
        found, wanted = (f"{x.dtype} {[*x.shape[skip:]]}" for x in (given[name], like))
        if found != wanted:
            each = "an example of " if skip else ""
            raise ValueError(f"array {name!r} of {where}: {each}it is {found}; the method was built for {wanted}")


def _check_limits(where: str, arrays: Shapes, limits: Limits, ranges: Mapping[str, tuple[float, float]]) -> None:
    for name, limit in limits.items():
        if name not in arrays:
            continue
        dtype, what = arrays[name].dtype, f"array {name!r} of {where}"
        kind, numbers = (jnp.integer, "integers") if isinstance(limit.least, int) else (jnp.floating, "floats")
        allowed = f"{limit.least}..{limit.greatest}"
        if not jnp.issubdtype(dtype, kind):
            raise ValueError(f"{what} is {dtype}; it must be {numbers} in {allowed}: {limit.why}")
        least, greatest = ranges.get(name, limit[:2])
        if least < limit.least or greatest > limit.greatest:
            raise ValueError(f"{what} holds {least}..{greatest}, which must be within {allowed}: {limit.why}")


def _counts(population: Population, name: str) -> np.ndarray | None:
    """[N] how many examples each client of a cohort owns, or None where it is not known."""
    cohort = population.cohorts[name]
    return cohort.classes.sum(1) if cohort.counts is None and cohort.classes is not None else cohort.counts
