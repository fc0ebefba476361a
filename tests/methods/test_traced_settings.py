"""Every method is built with traced numbers, as a sweep builds it, and then does what it does with these numbers."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import pytest

from fedjax_mm import clients
from fedjax_mm.methods import (
    carmfl,
    creamfl,
    ditto,
    fedavg,
    fedclip,
    feddat,
    feddm,
    feddyn,
    fedet,
    fedftg,
    fedmekt,
    fedmsplit,
    fednova,
    fedproto,
    fedrep,
    fesem,
    flexmod,
    hafedformer,
    ifca,
    layerwise,
    mfedmc,
    pfedme,
    promptfl,
    scaffold,
    splitmix,
)
from fedjax_mm.methods.creamfl import encoder_averaging
from fedjax_mm.methods.feddat import peft
from fedjax_mm.methods.fedmekt import mmfl
from fedjax_mm.run.grid import Group, build_points, find_untraceable, gather
from fedjax_mm.stages import plan
from tests.laws.tiny_methods import TINY

MODULES = {
    **{"fedavg": fedavg, "fedmekt": fedmekt, "mmfl": mmfl, "layerwise": layerwise, "feddat": feddat, "peft": peft},
    **{"creamfl": creamfl, "encoder_averaging": encoder_averaging, "scaffold": scaffold, "fednova": fednova},
    **{"feddyn": feddyn, "ditto": ditto, "fedrep": fedrep, "pfedme": pfedme, "ifca": ifca},
    **{"fedproto": fedproto, "fedclip": fedclip, "carmfl": carmfl, "mfedmc": mfedmc, "fesem": fesem},
    **{"fedmsplit": fedmsplit, "flexmod": flexmod, "hafedformer": hafedformer},
    "splitmix": splitmix,
    "feddm": feddm,
    "promptfl": promptfl,
    "fedftg": fedftg,
    "fedet": fedet,
}
FIXED = {
    "layerwise": {"head_dropout"},  # on which the layers of its heads depend
    "feddyn": {"fedavg.server_lr"},  # of which each of these takes one value alone
    "ifca": {"fedavg.server_lr"},
    **dict.fromkeys(("fedproto", "mfedmc", "fesem", "fedmsplit", "hafedformer"), {"fedavg.server_lr"}),
    "splitmix": {"fedavg.server_lr"},
    "fedet": {"fedavg.server_lr"},
    "feddm": {"fedavg.prox"},
    "pfedme": {"fedavg.prox"},
    "peft": {"dyn"},  # which the tiny instance's server optimiser does not go with, unless it is 0
}


def floats(config, prefix=""):
    """The paths of all float fields of a dataclass, and of those in it, that have a number."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from floats(value, f"{prefix}{field.name}.")
        elif isinstance(value, float):
            yield f"{prefix}{field.name}"


def changed(config, values):
    """The dataclass with other values at these paths."""
    for path, value in values.items():
        first, _, rest = path.partition(".")
        inner = changed(getattr(config, first), {rest: value}) if rest else value
        config = dataclasses.replace(config, **{first: inner})
    return config


@functools.cache
def tiny(name):
    """(from values to the method or the stages, the config, the data) of a tiny instance."""
    module, seen, build = MODULES[name], [], MODULES[name].build
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            module,
            "build",
            lambda config, *given, **named: seen.append((config, given, named)) or build(config, *given, **named),
        )
        data = TINY[name]().data
    config, given, named = seen[-1]
    return lambda **values: build(changed(config, values), *given, **named), config, data


@pytest.mark.parametrize("name", MODULES)
def test_all_numbers_of_every_method_can_be_traced_but_those_named(name):
    build, config, data = tiny(name)
    paths = tuple(floats(config))
    assert paths
    built = build()
    stages = plan(built, 1 if name != "layerwise" else None)
    per_round = {cohort: min(2, size) for cohort, size in data.sizes.items()}
    taken, key = data.round(clients.choose(data.sizes, per_round, 0, 0)), jax.random.key(0)
    fixed = tuple(path for path in paths if path in FIXED.get(name, ()))
    free = Group((0,), tuple(path for path in paths if path not in fixed), {}, stages)
    assert find_untraceable(build, free, taken, key) == ()
    for path in fixed:
        assert find_untraceable(build, free._replace(traced=(path,)), taken, key) == (path,)


@pytest.mark.parametrize(
    ("name", "values"),
    [("fedavg", {"client_lr": 0.2, "prox": 0.0, "server_lr": 0.2}), ("mmfl", {"moon": 0.3, "prox": 0.0})],
)
def test_a_round_with_traced_numbers_is_the_round_with_these_numbers(name, values):
    build, _, data = tiny(name)
    per_round = {cohort: min(2, size) for cohort, size in data.sizes.items()}
    taken, key = data.round(clients.choose(data.sizes, per_round, 0, 0)), jax.random.key(0)

    def round(values):
        method = build(**values)
        return method.round(method.init(key), taken, key)

    traced = jax.jit(round)({path: jnp.asarray(value) for path, value in values.items()})
    chex.assert_trees_all_close(traced, jax.jit(lambda: round(values))(), atol=1e-5)


def test_a_weight_of_zero_that_changes_the_state_is_compiled_apart():
    build, _, _ = tiny("mmfl")
    grid = {"moon": [0.0, 0.1, 0.2], "prox": [0.0, 0.1]}
    groups = gather(build_points(lambda moon, prox: build(moon=moon, prox=prox), grid, 1), grid)
    assert [(group.points, group.traced) for group in groups] == [((0, 1), ("prox",)), ((2, 3, 4, 5), ("moon", "prox"))]
