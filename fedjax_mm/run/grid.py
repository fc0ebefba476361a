"""The points of a sweep's grid, and the groups of points that are one program.

Every point is built with its own values first, so that a wrong one is refused in the method's own words. In a group the
numbers that differ are traced: they are inputs of the program. Settings of another kind, and numbers on which the
method's Python or its shapes depend, are fixed in a program; their values are groups of their own.
"""

import inspect
import itertools
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_mm import stages
from fedjax_mm.checks import check_callable, check_mapping, say
from fedjax_mm.federate import Method, init_all_clients, init_server
from fedjax_mm.stages import Stage
from fedjax_mm.types import FedState, Key, RoundData

Build = Callable[..., Method | Sequence[Stage]]


class Point(NamedTuple):
    """One combination of values."""

    place: tuple[int, ...]
    """Which value of each axis it has."""
    settings: Mapping[str, Any]
    plan: Sequence[Stage]
    """Its stages, built with these values."""


class Group(NamedTuple):
    """Points that are one program."""

    points: tuple[int, ...]
    """Their numbers."""
    traced: tuple[str, ...]
    """The settings that are inputs of the program."""
    settings: Mapping[str, Any]
    """The settings of the first point, which are those of all points but for the traced ones."""
    plan: Sequence[Stage]
    """The stages of the first point, whose names and rounds all share."""


def check_grid(build: Build, grid: Mapping[str, Any]) -> dict[str, list]:
    """The values of every axis as lists. Raises ValueError where `grid` or `build` is none, or they do not fit."""
    check_callable("build", build, "from settings to a Method, such as lambda client_lr: fedavg.build(...)")
    axes = {}
    for name, values in check_mapping("grid", grid, "the name of a setting to a list of its values").items():
        values = values.tolist() if isinstance(values, np.ndarray) and values.ndim == 1 else values
        if not isinstance(name, str) or isinstance(values, str) or not isinstance(values, Sequence) or not len(values):
            raise ValueError(f"grid[{name!r}] is {say(values)}; give a list of one or more values")
        if any(value in values[:i] for i, value in enumerate(values)):
            raise ValueError(f"grid[{name!r}] is {say(values)}; name each value once")
        axes[name] = list(values)
    try:
        inspect.signature(build).bind(**axes)
    except TypeError as error:
        raise ValueError(f"grid names the settings {list(axes)}, and build does not take these: {error}") from error
    return axes


def build_points(build: Build, grid: Mapping[str, list], rounds: int | None) -> list[Point]:
    """Every point of the grid, built; the last axis varies first. Raises what `build` raises for a wrong value."""
    points = []
    for place in itertools.product(*(range(len(values)) for values in grid.values())):
        settings = {name: values[i] for (name, values), i in zip(grid.items(), place, strict=True)}
        built = build(**settings)
        several = isinstance(built, Sequence) and all(isinstance(stage, Stage) for stage in built)
        if not isinstance(built, Method) and not several:
            raise ValueError(f"build gives {say(built)} for {settings}; it must give a Method or a list of Stage")
        points.append(Point(place, settings, stages.plan(built, rounds)))
    return points


def gather(points: Sequence[Point], grid: Mapping[str, Sequence], fixed: Sequence[str] = ()) -> list[Group]:
    """The groups of the points. fixed: settings that are not to be traced."""
    free = [name for name, values in grid.items() if name not in fixed and _are_floats(values)]
    together: dict[Any, list[int]] = {}
    for number, point in enumerate(points):
        apart = tuple(i for name, i in zip(grid, point.place, strict=True) if name not in free)
        together.setdefault((apart, _shapes(point.plan)), []).append(number)
    groups = []
    for numbered in together.values():
        first = points[numbered[0]]
        differ = lambda name, of=numbered: len({points[i].settings[name] for i in of}) > 1
        traced = tuple(name for name in free if differ(name))
        groups.append(Group(tuple(numbered), traced, first.settings, first.plan))
    return groups


def find_untraceable(build: Build, group: Group, data: RoundData, key: Key) -> tuple[str, ...]:
    """The settings of a group that cannot be traced: on them depend branches of the method's Python, or shapes."""
    if not group.traced or _traces(build, group, group.traced, data, key):
        return ()
    alone = tuple(name for name in group.traced if not _traces(build, group, (name,), data, key))
    return alone or group.traced


def build_traced(build: Build, group: Group, values: Mapping[str, jax.Array]) -> Sequence[Stage]:
    """The stages of a group, built with traced values of its traced settings."""
    built, names = build(**{**group.settings, **values}), group.plan
    if isinstance(built, Method):
        return [Stage(names[0].name, built, names[0].rounds)]
    return list(built)


def enter(method: Method, state: FedState, key: Key) -> FedState:
    """The state with which a run enters a stage of this method, as a single run does."""
    entered = stages.enter(state, FedState(init_server(method, key), {}, state.round))
    return FedState(entered.server, init_all_clients(method, key, entered.server), entered.round)


def _traces(build: Build, group: Group, names: Sequence[str], data: RoundData, key: Key) -> bool:
    """Whether all stages' rounds can be traced with these settings of the group traced, with no other shapes."""

    def all_rounds(values: Mapping[str, jax.Array]) -> list[FedState]:
        states = []
        for stage in build_traced(build, group, values):
            state = enter(stage.method, states[-1], key) if states else stage.method.init(key)
            states.append(stage.method.round(state, data, key)[0] if stage.rounds else state)
        return states

    try:
        # Of a weak type, as Python numbers are: they change the type of nothing.
        number = jax.ShapeDtypeStruct((), jnp.result_type(float), weak_type=True)
        jax.eval_shape(all_rounds, dict.fromkeys(names, number))
    except (TypeError, ValueError, IndexError):  # what JAX, and a check, say of a number that is not known yet
        return False
    return True


def _are_floats(values: Sequence) -> bool:
    """Whether the values are numbers, of which one at least is a float."""
    real = all(isinstance(value, numbers.Real) and not isinstance(value, bool) for value in values)
    return real and any(not isinstance(value, numbers.Integral) for value in values)


def _shapes(plan: Sequence[Stage]) -> Any:
    """The stages' names and rounds, and the shapes of their states."""
    found = []
    for stage in plan:
        state = jax.eval_shape(stage.method.init, jax.random.key(0))
        leaves = tuple((leaf.shape, str(leaf.dtype)) for leaf in jax.tree.leaves(state))
        found.append((stage.name, stage.rounds, jax.tree.structure(state), leaves))
    return tuple(found)
