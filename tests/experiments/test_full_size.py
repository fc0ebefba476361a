"""The presets of the papers' own size: their numbers, and a walk over made files in the official layouts."""

import dataclasses

import jax
import made_files
import numpy as np
import pytest

from benchmarks import streaming
from experiments.common import cli
from experiments.layerwise import __main__ as layerwise
from experiments.layerwise import study as layerwise_study
from experiments.layerwise import table
from fedjax_mm import streamed
from fedjax_mm.methods import layerwise as layerwise_method
from fedjax_mm.models import bert, vit


@pytest.mark.parametrize(("data", "variant"), [("coco", "coco"), ("advance", "advance"), ("flickr8k", "coco")])
def test_layerwise_presets_are_the_released_settings(data, variant):
    settings = dataclasses.replace(layerwise_study.PAPER[data], checkpoints="somewhere")
    config, released = layerwise_study.config_of(settings, "layer-wise"), layerwise_method.VARIANTS[variant]
    rates = {m: config.encoder_lr[m] for m in released.encoder_lr}
    assert dataclasses.replace(config, encoder_lr=rates) == released


def test_layerwise_reads_pretrained_encoders_of_any_width_schedules_and_zero_shot_sets(tmp_path):
    for split, number in (("train2017", 12), ("val2017", 3)):
        streaming.make_photos(tmp_path / "data", number, split)
    features, rows = made_files.pictures(4, 24, ("cat", "dog"))
    made_files.prepare(tmp_path / "data/tfds", "stl10", features, {"test": rows})
    weights = tmp_path / "weights"
    words = made_files.save_words(weights / "distilbert-base-uncased")
    shape = {"heads": 2, "mlp": 8}
    made_files.save_model(weights / "vit-tiny-patch16-224", vit.encoder(32, 16, dim=4, depth=2, **shape), "vit")
    text = bert.encoder(words, dim=6, depth=2, positions=40, **shape)
    made_files.save_model(weights / "distilbert-base-uncased", text, "distilbert")
    given = ["--data", "coco", "--data-dir", str(tmp_path / "data"), "--checkpoints", str(weights), "--remat"]
    given += ["--schedule", "0_1", "--image-lr", "0", "1e-3", "--other-lr", "0", "1e-3", "--zero-shot", "stl10"]
    given += ["--photo", "40", "--clients", "2", "--per-round", "2", "--batch-size", "3"]
    with pytest.raises(ValueError, match="--rounds says nothing beside --schedule"):
        layerwise.main([*given, "--rounds", "3"])
    settings = cli.parse(layerwise_study.PAPER, given, None)
    problem = layerwise_study.load(settings, 0)
    widths = {m: encoder.width for m, encoder in problem.encoders.items()}
    assert widths == {"image": 4, "text": 6} and streamed.is_streamed(problem.data.cohorts["all"].arrays["image"])
    first, last = layerwise_study.stages_of(settings, "layer-wise", problem)
    assert (first.rounds, last.rounds) == (0, 1)
    state = jax.eval_shape(last.method.init, jax.random.key(0))
    taken = problem.data.round({"all": np.arange(2)})
    lowered = jax.jit(last.method.round).trace(state, taken, jax.random.key(0))
    assert "remat" in str(lowered.jaxpr)
    begun = last.method.init(jax.random.key(0)).server["image"]["encoder"]["layers"]["01"]["fc_1"]["kernel"]
    np.testing.assert_array_equal(begun, problem.params["image"]["layers"]["01"]["fc_1"]["kernel"])
    asked = problem.zero_shot["stl10"]
    assert asked["image"].shape == (4, 40, 40, 3) and asked["prompts"].shape == (2, 40)
    assert sorted(asked["label"].tolist()) == [0, 0, 1, 1]
    assert table.chance(settings)["stl10/zero_shot_accuracy"] == 0.5
