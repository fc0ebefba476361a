"""The presets of the papers' own size: their numbers, and a walk over made files in the official layouts."""

import dataclasses

import jax
import made_files
import numpy as np
import pytest

from benchmarks import streaming
from experiments.common import cli
from experiments.creamfl import study as creamfl_study
from experiments.feddat import __main__ as feddat_main
from experiments.feddat import study as feddat_study
from experiments.layerwise import __main__ as layerwise
from experiments.layerwise import study as layerwise_study
from experiments.layerwise import table
from fedjax_mm import streamed
from fedjax_mm.methods import creamfl as creamfl_method
from fedjax_mm.methods import feddat
from fedjax_mm.methods import layerwise as layerwise_method
from fedjax_mm.methods.feddat.vqa_tuning import Training
from fedjax_mm.models import bert, resnet, vit


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
    assert table.chance(settings)["test/stl10/zero_shot_accuracy"] == 0.5


def test_feddat_preset_is_the_papers_with_one_schedule_over_all_rounds():
    settings = feddat_study.PAPER["vqa"]
    config = feddat_study.mode_of(settings, "dat").config
    training = Training(lr=1e-4, batch_size=2, epochs=1, restart=False, horizon=30.0)
    assert config == dataclasses.replace(feddat.VARIANTS["paper"], training=training) and settings.common.rounds == 30
    assert settings.widths._asdict() == {"adapter": 48, "prompt": 192, "rank": 16}
    with pytest.raises(ValueError, match="the --preset code is not known; there are paper"):
        feddat_main.main(["--preset", "code"])


def test_creamfl_presets_are_the_papers_and_the_released_settings():
    paper, code = creamfl_study.PRESETS["coco"], creamfl_study.CODE["coco"]
    assert (paper.size.dim, code.size.dim, paper.side, paper.epochs, paper.common.rounds) == (512, 256, 224, 5, 30)
    numbers = paper.numbers
    assert [numbers.image, numbers.text, numbers.both, numbers.public] == [10, 10, 15, 50_000]
    assert [numbers.per_image, numbers.per_text, numbers.per_both] == [5000, 12_000, 9660]
    for settings, variant in ((paper, "paper"), (code, "released")):
        config, released = creamfl_study.variants(settings)["CreamFL"], creamfl_method.VARIANTS[variant]
        training = dataclasses.replace(config.training, side=None, at_once=None)
        assert dataclasses.replace(config, training=training) == released and config.training.side == 224
        assert config.public_views and config.training.flip and config.training.alone == "turn"


def test_creamfl_reads_the_papers_data_and_its_round_takes_them(tmp_path):
    folder, weights = tmp_path / "data", tmp_path / "weights"
    features, rows = made_files.pictures(30, 32, [str(k) for k in range(3)])
    others = made_files.pictures(8, 32, [str(k) for k in range(3)])[1]
    made_files.prepare(folder / "tfds", "cifar100", features, {"train": rows, "test": others})
    made_files.prepare_news(folder / "tfds", 30)
    made_files.make_flickr30k(folder / "flickr30k", 8)
    made_files.make_vqa_v2(folder / "vqa_v2", 3)
    for split, number in (("train2017", 20), ("val2017", 4)):
        streaming.make_photos(folder / "coco", number, split)
    words = made_files.save_words(weights / "bert-base-uncased")
    for name, widths in (("resnet-101", (8,)), ("resnet-18", (4,))):
        trunk = resnet.encoder((1,), widths, norm="batch", normalise="imagenet", image=32)
        made_files.save_model(weights / name, trunk, "resnet")
    text = bert.encoder(words, types=2, pooler=True, dim=8, depth=1, heads=2, mlp=8, positions=20)
    made_files.save_model(weights / "bert-base-uncased", text, "bert")
    given = ["--data", "coco", "--data-dir", str(folder), "--checkpoints", str(weights), "--alpha", "100"]
    given += ["--numbers.image", "2", "--numbers.text", "2", "--numbers.both", "2", "--numbers.per-client", "10"]
    given += ["--numbers.public", "12", "--numbers.test", "4", "--side", "32", "--photo", "40", "--length", "16"]
    given += ["--size.dim", "8", "--per-round", "3"]
    settings = cli.parse(creamfl_study.PRESETS, given, None)
    problem, models = creamfl_study.load(settings, 0), creamfl_study.models(settings)
    cohorts, test = problem.data.cohorts, problem.test
    assert {name: int(cohort.counts.sum()) for name, cohort in cohorts.items()} == {"image": 30, "text": 30, "both": 40}
    assert cohorts["both"].arrays["image"].shape == (40, 40, 40, 3) and cohorts["both"].arrays["text"].shape == (40, 16)
    rows = np.asarray(cohorts["both"].rows)[:40].reshape(2, 10, 2)  # ten parts of two captions in their order
    assert (rows[..., 1] == rows[..., 0] + 1).all() and len(np.unique(rows)) == 40
    greys = cohorts["both"].arrays["image"][np.array([0, 7, 39])][:, 20, 20, 0]
    np.testing.assert_allclose(greys, [0, 1, 7], atol=2)
    assert test["image"].shape == (4, 40, 40, 3) and test["text"].shape == (4, 5, 16)
    train, asked = problem.questions
    assert train.image.shape == (6, 40, 40, 3) and train.row.tolist() == [0, 0, 1, 1, 2, 2]
    assert asked.row.tolist() == [3, 3, 4, 4, 5, 5] and asked.target.sum() == 6
    valid = creamfl_study.load(cli.parse(creamfl_study.PRESETS, [*given, "--split", "valid"], None), 0)
    assert int(valid.data.cohorts["image"].counts.sum()) == 26  # four are tested on
    method = creamfl_study.method_of(settings, "CreamFL", problem, models)
    state = jax.eval_shape(method.init, jax.random.key(0))
    taken = problem.data.round({name: np.arange(1) for name in problem.data.sizes})
    jax.eval_shape(method.round, state, taken, jax.random.key(0))
