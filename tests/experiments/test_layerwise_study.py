"""The layer-wise script: what is counted without compiling, and what chance is."""

import dataclasses

import jax
import numpy as np
import pytest

from benchmarks import streaming
from experiments.common import cli
from experiments.layerwise import costs, study, table
from fedjax_mm import report, streamed
from fedjax_mm.data import FederatedData
from fedjax_mm.methods import layerwise


@pytest.mark.parametrize(("plan", "s"), [("layer-wise", 0), ("layer-wise", 5), ("end-to-end", 0)])
def test_macs_counted_on_the_traced_coco_model_are_the_published_ones(plan, s):
    full = costs.full_size("coco")
    config = dataclasses.replace(full.config, plan=plan)
    data = FederatedData.from_arrays(full.arrays, [np.arange(config.batch_size)])
    stage = layerwise.build(config, data, full.encoders)[s]
    assert costs.counted(full, config, stage) / 1e9 == pytest.approx(costs.PUBLISHED["coco"][plan][s], rel=1e-3)


def test_schedules_weigh_the_stages_by_their_rounds():
    row = lambda plan, stage, size: {
        "model": "m",
        "plan": plan,
        "stage": stage,
        **dict.fromkeys(("MiB up", "MiB down", "MiB down, late", "GMAC per sample", "peak GB"), size),
        "GMAC, forward x 1 or 3": size,
    }
    rows = [row(plan, s + 1, s + 1.0) for plan in ("layer-wise", "progressive") for s in range(6)]
    rows = costs.schedules([*rows, row("end-to-end", 1, 6.0)], "m")
    low_high = next(r for r in rows if r["schedule"] == "90_lh10" and r["plan"] == "layer-wise")
    assert low_high["GiB in all"] == pytest.approx(2 * (10 * 4 + 30 * 5 + 50 * 6) / 1024)
    assert low_high["times less FLOPs"] == pytest.approx(90 * 6 / (10 * 4 + 30 * 5 + 50 * 6))
    assert low_high["times less memory, last stage"] == 1


def test_chance_is_that_of_a_random_order():
    settings = dataclasses.replace(study.PRESETS["scenes"], clients=3)
    row = table.chance(settings)
    images = len(study.load(settings, 0).test["image"])
    assert row["test/t2i_r10"] == pytest.approx(1000 / images)
    assert row["test/i2t_r10"] == pytest.approx(1000 / images)  # one caption a picture


def test_a_plan_has_the_rounds_of_its_settings():
    settings = dataclasses.replace(study.PRESETS["scenes"], common=cli.Common(rounds=7), stages=3)
    config = study.config_of(settings, "progressive")
    assert config.rounds == (2, 2, 3) and len(config.encoder_lr["image"]) == 3 and config.plan == "progressive"


def test_statistics_and_the_cache_are_flags_of_the_study():
    flags = {"statistics": "recalibrated", "cache_frozen": True}
    settings = dataclasses.replace(study.PRESETS["scenes"], **flags)
    kept, whole = (study.config_of(settings, plan) for plan in ("layer-wise", "end-to-end"))
    assert kept.statistics == whole.statistics == "recalibrated"
    assert kept.cache_frozen and not kept.frozen_dropout and not whole.cache_frozen


def test_the_round_of_statistics_counts_one_pass():
    cost = dict(bytes_down=4e6, bytes_up=3e6, bytes_held=0, flops=1e12, peak_bytes=1, xla_flops=1)
    last = cost | {"bytes_up": 0, "flops": 0.25e12}
    row = lambda number, stage: {"round": number, "stage": stage, "seconds": 1.0, "test/i2t_r1": 1.0}
    one = report.Run(
        "run",
        {"seed": 0, "device": "cpu", "stages": {"stage 1": 2, "statistics": 1}},
        {"all": {"examples": [128, 192], "arrays": []}},
        {"stage 1/all": cost, "statistics/all": last},
        [row(1, 1), row(2, 1), row(3, 2)],
    )
    paid = table._row(study.PRESETS["scenes"], "layer-wise", [one])  # two epochs of 2 and 3 batches of 64
    assert paid["TFLOP in all"] == pytest.approx(2.5 * (2 * 2 * 1 + 0.25))
    assert paid["MB in all"] == pytest.approx(2 * 7 + 4)


def test_photos_of_coco_stay_on_the_disk_and_crops_are_cut_from_them(tmp_path):
    for split, number in (("train2017", 12), ("val2017", 3)):
        streaming.make_photos(tmp_path, number, split)
    common = dataclasses.replace(study.PRESETS["coco"].common, data_dir=str(tmp_path), rounds=3)
    size = study.Size(16, 3, 2, image=32)
    settings = dataclasses.replace(study.PRESETS["coco"], common=common, photo=48, size=size, clients=2, batch_size=4)
    problem = study.load(settings, 0)
    photos = problem.data.cohorts["all"].arrays["image"]
    assert streamed.is_streamed(photos) and photos.shape == (12, 48, 48, 3)
    assert streamed.is_streamed(problem.test["image"]) and problem.encoders["image"].example.shape == (1, 32, 32, 3)
    method = layerwise.build(study.config_of(settings, "layer-wise"), problem.data, problem.encoders)[0].method
    taken = problem.data.round({"all": np.arange(2)})
    jax.eval_shape(method.round, jax.eval_shape(method.init, jax.random.key(0)), taken, jax.random.key(0))
    smaller = dataclasses.replace(settings, photo=16)
    with pytest.raises(ValueError, match=r"has images of \[16, 16\] pixels, and the encoder takes \[32, 32\]"):
        problem = study.load(smaller, 0)
        layerwise.build(study.config_of(smaller, "layer-wise"), problem.data, problem.encoders)
    with pytest.raises(ValueError, match="--split test: COCO's official files have train and valid"):
        study.load(dataclasses.replace(settings, common=dataclasses.replace(common, split="test")), 0)
