"""The laws of a round, over every method of the library. That each can fail is seen in test_laws_fail.py."""

import functools
import inspect
import pkgutil

import chex
import jax
import numpy as np
import pytest
from tiny_methods import TINY

from fedjax_mm import laws, methods

STATELESS = {
    "flexmod",
    "hafedformer",
    "carmfl",
    "fedclip",
    "feddm",
    "fednova",
    "layerwise",
    "peft",
    "promptfl",
    "splitmix",
    "staged",
    "fedftg",
    "fedet",
}  # whose clients keep nothing, so that no draw of theirs is seen
ROUNDING = 1e-6  # of two programs, which XLA rounds apart with the flags of conftest.py; with its own none (measured)
every_method = pytest.mark.parametrize(  # one method's laws on one worker, which compiles its round once
    "name", [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in TINY]
)


@functools.cache
def case_of(name):
    """One compilation for all laws."""
    return laws.make_case(*TINY[name](), rounding=ROUNDING)


def found_methods():
    """{build: name} of every module of fedjax_mm.methods that has a `build`."""
    found = {}
    for module in pkgutil.walk_packages(methods.__path__, f"{methods.__name__}."):
        build = getattr(pkgutil.resolve_name(module.name), "build", None)
        if inspect.isfunction(build) and build.__module__.startswith(methods.__name__):
            found.setdefault(build, module.name.rpartition(".")[2])  # a room comes before its modules
    return found


def test_every_method_has_its_laws_tested():
    found = set(found_methods().values())
    assert found <= set(TINY) and {"fedavg", "creamfl", "encoder_averaging", "mmfl", "peft"} <= found


@every_method
@pytest.mark.parametrize("law", laws.LAWS, ids=lambda law: law.__name__)
def test_law(name, law):
    try:
        found = law(case_of(name))
    except laws.DoesNotApply:
        assert name in STATELESS and law is laws.a_draw_does_not_depend_on_who_else_takes_part
    else:
        assert found.within and not found.note, found


@every_method
def test_a_part_that_nobody_sent_is_untouched(name):
    """What the law says of leaves that it finds itself, of the parts by name."""
    case, sizes = case_of(name), case_of(name).data.sizes
    state = case.after[0]
    joint_space = name in ("creamfl", "encoder_averaging")  # whose servers count rounds, and have moments that go on
    server = lambda state: state.server["params"] if joint_space else state.server
    chosen = {k: np.full_like(taken.index, sizes[k]) for k, taken in case.taken.cohorts.items()}
    nobody, _ = case.step(state, case.data.round(chosen), case.key)
    chex.assert_trees_all_equal(server(nobody), server(state))
    if "B" in sizes:
        chosen["B"] = case.taken.cohorts["B"].index
    new, _ = case.step(state, case.data.round(chosen), case.key)
    moved = _leaf_moves(server(state), server(new))
    touched = lambda part: any(change for path, change in moved.items() if f"'{part}'" in path)
    a, b = ("image", "text") if joint_space else ("upper", "upper_b") if name == "staged" else ("a", "b")
    others = ("carmfl", "fedet")  # whose clients borrow what they lack, or teach a server that has both
    assert touched(b) == ("B" in sizes) and touched(a) == (name in others)


def _leaf_moves(old, new):
    paths = jax.tree_util.tree_flatten_with_path(old)[0]
    return {
        jax.tree_util.keystr(path): bool(np.any(np.asarray(x) != np.asarray(y)))
        for (path, x), y in zip(paths, jax.tree.leaves(new), strict=True)
    }


def test_frozen_leaves_are_bit_identical_and_do_not_travel():
    case = case_of("staged")
    new = case.state
    for r in range(3):
        new, _ = case.step(new, case.round_data(r), case.key)
    chex.assert_trees_all_equal(new.server["lower"], case.state.server["lower"])
    assert _leaf_moves(case.state.server, new.server)["['upper']"]
    cost = case.costs["A"]
    assert cost.bytes_up == 4 * 15 and cost.bytes_down == 4 * 15 and cost.bytes_held == 4 * (20 + 15)


@every_method
def test_a_step_of_every_method_is_counted(name):
    for cost in case_of(name).costs.values():
        assert cost.flops > 0 and cost.xla_flops > 0 and cost.peak_bytes > 0
