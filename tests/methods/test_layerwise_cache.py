"""What frozen layers give, computed once a stage: the same training, with fewer FLOPs."""

import dataclasses
import json
import re

import chex
import jax
import numpy as np
import pytest
from test_layerwise import KEY, SCALED, TEXT, encoders, problem

from fedjax_mm import costs, run, stages
from fedjax_mm.data import FederatedData
from fedjax_mm.methods.layerwise import build

KEPT = dataclasses.replace(SCALED, cache_frozen=True, frozen_dropout=False)
PLAIN = dataclasses.replace(KEPT, cache_frozen=False)


def trained(config, rounds=4, **settings):
    """The server's last state of a run whose second stage begins with the third round."""
    plan = build(config, problem(), encoders(rate=0.2))
    given = {"per_round": 2, "seed": 5, "log": lambda line: None}
    return run.train(plan, problem(), rounds=rounds, **given, **settings).server


def test_a_run_that_keeps_them_is_the_run_that_does_not(tmp_path):
    """On two devices, and then, within the second stage, resumed on one."""
    before = trained(KEPT, 3, directory=tmp_path, devices=2)
    after = trained(KEPT, directory=tmp_path)
    chex.assert_trees_all_close(after, trained(PLAIN), rtol=1e-5, atol=1e-6)
    for m in before:
        chex.assert_trees_all_equal(after[m]["encoder"]["layers"]["00"], before[m]["encoder"]["layers"]["00"])
    paid = json.loads((tmp_path / "costs.json").read_text())
    assert paid["stage 2/all"]["flops"] == cost_of_a_step(KEPT) < cost_of_a_step(PLAIN)


def cost_of_a_step(config):
    stage = build(config, problem(), encoders())[1]
    taken = problem().round({"all": np.arange(2)})
    return costs.of(stage.method, stages.with_shapes(stage, taken))["all"].flops


def test_a_step_no_longer_runs_frozen_layers():
    layer, embeddings = 2 * 4 * 4 * 4, 2 * 4 * (3 + 5) * 4  # multiply-adds twice, batches of 4, width 4
    assert cost_of_a_step(PLAIN) - cost_of_a_step(KEPT) == 2 * layer + embeddings


def test_clients_keep_what_the_frozen_layers_give_of_each_example():
    plan = build(KEPT, problem(), encoders())
    params, arrays = plan[1].method.init(KEY).server, problem().cohorts["all"].arrays
    assert plan[0].cache is None  # the embeddings are trained
    kept = jax.jit(plan[1].cache)(params, arrays)
    assert set(kept) == {"image/frozen", "text/frozen"}
    for m in ("image", "text"):
        encoder = params[m]["encoder"]
        h = arrays[m] @ encoder["embeddings"]["w"]
        expected = h + np.tanh(h @ encoder["layers"]["00"]["w"])
        np.testing.assert_allclose(kept[f"{m}/frozen"], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("change, said", [
    ({"plan": "progressive"}, "plan 'progressive' freezes no layers; take plan='layer-wise' or cache_frozen=False"),
    ({"frozen_dropout": True}, "frozen layers drop other units in every step; take frozen_dropout=False"),
    ({"crop": 0.5}, "every step draws another part of 'image'; take crop=None"),
])  # fmt: skip
def test_settings_under_which_nothing_can_be_kept_are_refused(change, said):
    families = encoders()
    square = families["image"]._replace(example=jax.ShapeDtypeStruct((1, 1, 1, 3), np.float32))
    with pytest.raises(ValueError, match=f"cache_frozen is True, and {re.escape(said)}"):
        data = FederatedData.from_arrays(
            {"image": np.zeros((4, 1, 1, 3), np.float32), "text": TEXT[:4]}, [np.arange(4)]
        )
        flat = lambda params, x, *more: families["image"].apply(params, x.reshape(len(x), -1), *more)
        build(dataclasses.replace(KEPT, **change), data, families | {"image": square._replace(apply=flat)})


def test_data_and_encoders_with_which_nothing_can_be_kept_are_refused():
    several = problem(text=np.stack([TEXT, TEXT], 1))
    with pytest.raises(ValueError, match=r"cohort all has several 'text' of an example, \[40, 2, 5\], of which"):
        build(KEPT, several, encoders())
    families = encoders()
    with pytest.raises(ValueError, match=r"encoders\['text'\] has no `hidden`"):
        build(KEPT, problem(), families | {"text": families["text"]._replace(hidden=None)})
    off = dataclasses.replace(problem(), on_device=False)
    with pytest.raises(ValueError, match="clients of 'stage 2' keep something of all their examples, and these"):
        run.train(build(KEPT, off, encoders()), off, per_round=2)
