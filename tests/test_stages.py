"""Plans of stages, and what one stage hands to the next."""

import jax
import numpy as np
import pytest

from fedjax_mm import stages
from fedjax_mm.federate import federate
from fedjax_mm.stages import Stage
from fedjax_mm.types import Cohort, Download, FedState, Server

SERVER = Server(lambda key: {}, lambda s, public: {"all": Download({})}, lambda s, u, public, key: (s, {}))
METHOD = federate(SERVER, {"all": Cohort(1, lambda key: (), lambda *args: ({}, (), {}))})


def staged(*rounds):
    return [Stage(f"stage {s}", METHOD, n) for s, n in enumerate(rounds, 1)]


def test_blocks_are_equal_and_cover_the_depth():
    assert [list(b) for b in stages.blocks(6, 3)] == [[0, 1], [2, 3], [4, 5]]
    assert [list(b) for b in stages.blocks(4, 1)] == [[0, 1, 2, 3]]
    for depth, number in ((5, 2), (4, 0)):
        with pytest.raises(ValueError, match=f"{depth} layers cannot be cut into {number} equal blocks"):
            stages.blocks(depth, number)


@pytest.mark.parametrize("number, rounds", [(6, 90), (4, 10), (3, 2)])
def test_uniform_rounds_sum_up_and_differ_by_one_at_most(number, rounds):
    spread = stages.uniform(number, rounds)
    assert len(spread) == number and sum(spread) == rounds and max(spread) - min(spread) <= 1


def test_a_stage_begins_with_what_was_learned_and_with_new_layers_as_they_are_made():
    learned = {"head": np.float32(7), "layers": {"00": np.ones(3)}}
    fresh = {"head": np.float32(0), "layers": {"00": np.zeros(3), "01": np.full(2, 5.0)}}
    before = FedState(learned, {"all": {"moments": np.ones(4)}}, np.int32(9))
    after = stages.enter(before, FedState(fresh, {"all": {"moments": np.zeros(2)}}, np.int32(0)))
    assert after.round == 9 and after.server["head"] == 7
    np.testing.assert_array_equal(after.server["layers"]["00"], np.ones(3))
    np.testing.assert_array_equal(after.server["layers"]["01"], [5, 5])
    np.testing.assert_array_equal(after.clients["all"]["moments"], [0, 0])


def test_a_round_lies_in_the_stage_that_runs_it():
    plan = staged(0, 2, 0, 3)
    assert [stages.index(plan, r) for r in range(7)] == [1, 1, 3, 3, 3, 3, 3]


def test_a_plan_is_the_stages_or_the_one_that_a_method_is():
    assert stages.plan(METHOD, 4) == [Stage("", METHOD, 4)]
    assert stages.plan(tuple(staged(0, 2)), None) == stages.plan(staged(0, 2), 1) == staged(0, 2)


@pytest.mark.parametrize(
    "method, rounds, said",
    [
        (METHOD, None, "rounds must be at least 1, got None"),
        (METHOD, 0, "rounds must be at least 1, got 0"),
        (staged(1, 2), 4, r"rounds is 4, the stages have \[1, 2\]; leave it out or give 1 to 3"),
        (staged(1, 2), 0, "rounds is 0, the stages have"),
        (staged(0, 0), None, "rounds is None, the stages have"),
        (staged(3, -1), None, "rounds is None, the stages have"),
        ([], None, "rounds is None, the stages have"),
        (staged(1) + staged(1), None, "stages need names of their own"),
        ([staged(1)[0]._replace(cache={})], None, "have a cache that is no function; give cache"),
    ],
)
def test_mistakes_are_refused_in_words(method, rounds, said):
    with pytest.raises(ValueError, match=said):
        stages.plan(method, rounds)


def test_a_leaf_that_changed_its_shape_is_refused():
    state = lambda n: FedState({"w": jax.numpy.zeros(n)}, {}, 0)
    with pytest.raises(ValueError, match="cannot grow a leaf of shape"):
        stages.enter(state(2), state(3))
