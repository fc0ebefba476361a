"""CreamFL's comparison in small, its models and its data."""

import dataclasses
import functools
import json
import pathlib
import shutil
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.common import cli, tuning
from experiments.creamfl import data as creamfl_data
from experiments.creamfl import models, paper, study, table, teachers, tuned
from experiments.creamfl.models import Models, Size, full, pretrained, small
from experiments.weights import upper as upper_layers
from fedjax_mm import evaluate
from fedjax_mm.data import wordpiece
from fedjax_mm.models import Model, bert, resnet, transformer
from fedjax_mm.models import pretrained as pretrained_files
from fedjax_mm.models.pretrained import Checkpoint
from fedjax_mm.models.transformer import Layer
from fedjax_mm.run import records
from fedjax_mm.run.sweep_files import read_sweep

NUMBERS = creamfl_data.Numbers(image=2, text=2, both=2, per_client=12, public=16, test=40, asked=80, pretraining=40)
SMALL = study.Settings(
    numbers=NUMBERS,
    size=Size(dim=8, client_channels=(4,), server_channels=(8,), client_width=8, server_width=8),
    epochs=1,
    per_round=3,
    alpha=10.0,
    common=cli.Common(rounds=2, seeds=1),
)


def _flat(params, x):
    x = x.reshape(len(x), -1).astype(np.float32)
    return x @ params["w"][: x.shape[1]]


FLAT = Model(lambda key, x: {"w": jax.random.normal(key, (32 * 32 * 3, 8)) / 50}, _flat)


def test_compare_writes_a_table_with_controls_and_pictures(tmp_path, monkeypatch, capsys):
    kept = ("CreamFL", "server only")
    both = {"image": FLAT, "text": FLAT}  # matrices, which compile in no time
    made = Models(both, {"image": {"image": FLAT}, "text": {"text": FLAT}, "both": both}, both)
    monkeypatch.setattr(study, "models", lambda *given: made)
    settings = dataclasses.replace(SMALL, common=dataclasses.replace(SMALL.common, out=str(tmp_path)))
    own = {"CreamFL": dataclasses.replace(settings, server_lr=0.5)}
    settings = dataclasses.replace(settings, rows=kept)
    study.load(settings, 0)
    train, held = study.train, []

    def cut_off(given, name, seed):  # between two rows, once
        held.append(sum(x.nbytes for x in jax.live_arrays()))
        if name == "server only" and len(held) == 2:
            raise KeyboardInterrupt
        return train(given, name, seed)

    monkeypatch.setattr(study, "train", cut_off)
    with pytest.raises(KeyboardInterrupt):
        table.compare(settings, own)
    log = (tmp_path / "CreamFL" / "seed0" / "metrics.jsonl").read_bytes()
    rows = {row["method"]: row for row in table.compare(settings, own, ["what was tried"])}
    assert (tmp_path / "CreamFL" / "seed0" / "metrics.jsonl").read_bytes() == log
    assert held[1] - held[0] < 4 * 32 * 32 * 3 * 8  # of the row before not even one encoder is held
    assert list(rows) == ["chance", *kept]
    for name, rate in (("server_only", 3e-3), ("CreamFL", 0.5)):
        config = json.loads((tmp_path / name / "seed0" / "config.json").read_text())["config"]
        assert config["method"]["training"]["server_lr"] == rate
    problem = study.load(settings, 0)
    assert rows["chance"]["test/i2t_r10"] == pytest.approx(100 * 10 / 40)
    counts = np.bincount(problem.test["text/label"])
    assert rows["chance"]["test/text/accuracy"] == pytest.approx(counts.max() / counts.sum())
    assert 0 <= rows["CreamFL"]["VQA"] <= 100 and rows["chance"]["VQA"] > 0
    # 16 public items of 8 numbers for each modality: both go down, a client with one sends one
    assert rows["CreamFL"]["MB down"] == pytest.approx(2 * 16 * 8 * 4e-6)
    assert rows["CreamFL"]["MB up"] == pytest.approx(2 * 16 * 8 * 4e-6)
    assert rows["server only"]["MB up"] == rows["server only"]["MB down"] == 0
    last = records.read_metrics(tmp_path / "CreamFL" / "seed0")[-1]
    assert rows["CreamFL"]["server/entropy_image"] == last["server/entropy_image"] <= 1
    report = (tmp_path / "report.md").read_text()
    assert "CreamFL minus" in report and "what was tried" in report and all(name in report for name in kept)
    pictures = ("bars", "curves", "representations_CreamFL")
    assert all((tmp_path / f"{name}.png").stat().st_size > 10_000 for name in pictures)
    assert json.loads((tmp_path / "table.json").read_text())["versions"]["jax"]
    assert "server only" in capsys.readouterr().out


def test_rows_choose_their_rates_on_valid_once_and_ablations_take_creamfls(tmp_path, monkeypatch):
    both = {"image": FLAT, "text": FLAT}
    made = Models(both, {"image": {"image": FLAT}, "text": {"text": FLAT}, "both": both}, both)
    monkeypatch.setattr(study, "models", lambda *given: made)
    monkeypatch.setattr(tuned, "LOWER", {"trained": {"server_lr": (1e-6, 0.01)}})
    monkeypatch.setattr(tuned, "GRIDS", {"shared": {"server_lr": ()}})
    rows = ("CreamFL", "CreamFL, no inter")
    common = dataclasses.replace(SMALL.common, rounds=1, out=str(tmp_path))
    settings = dataclasses.replace(SMALL, rows=rows, tuning_seeds=2, common=common)
    seen = []
    monkeypatch.setattr(tuned.table, "compare", lambda *given: seen.append(given))
    tuned.compare(settings)
    ((_, own, notes),) = seen
    folders = [tmp_path / "tuning" / "CreamFL" / f"seed{seed}" for seed in (0, 1)]
    means = np.mean([read_sweep(folder).scores["valid/rsum"][:, 0, -1] for folder in folders], axis=0)
    best = (1e-6, 0.01)[int(means.argmax())]
    assert own == {name: dataclasses.replace(settings, server_lr=best) for name in rows}
    assert notes[1] == "### CreamFL" and "lies at the edge of its values" in notes[2] and f"{means[0]:.1f}" in notes[3]

    monkeypatch.setattr(tuning.run, "sweep", lambda *given, **named: pytest.fail("tuned again"))
    with pytest.raises(ValueError, match="has a sweep of other settings; give another --out"):
        tuned.compare(dataclasses.replace(settings, alpha=9.0))
    with pytest.raises(ValueError, match="takes what is chosen for CreamFL; add CreamFL"):
        tuned.compare(dataclasses.replace(settings, rows=rows[1:]))
    tuned.compare(settings)
    assert seen[1][1:] == (own, notes)


def test_gains_stand_beside_the_recall_of_a_server_over_the_clients_pictures(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    test = {m: rng.normal(size=shape) for m, shape in (("image", (30, 6)), ("text", (30, 2, 6)))}
    params = {m: {"w": rng.normal(size=(6, 4))} for m in ("image", "text")}
    linear = dict.fromkeys(params, Model(lambda key, x: None, _flat))
    monkeypatch.setattr(teachers, "FEW", 20)
    monkeypatch.setattr(study, "models", lambda *given: Models(linear, {}, linear))
    monkeypatch.setattr(study, "load", lambda *given: types.SimpleNamespace(test=test))
    monkeypatch.setattr(teachers.run, "load", lambda *given, **named: types.SimpleNamespace(server={"params": params}))
    recall = teachers.server_recall(SMALL, 0, tmp_path)
    image, text = test["image"][:20] @ params["image"]["w"], test["text"][:20].reshape(40, 6) @ params["text"]["w"]
    image, text = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (image, text))
    nearest = np.argsort(-image @ text.T, axis=1)[:, :10] // 2
    assert recall == pytest.approx(100 * (nearest == np.arange(20)[:, None]).any(1).mean()) and 0 < recall < 100

    pick = lambda settings, names: ({name: dataclasses.replace(settings, server_lr=0.5) for name in names}, [])
    trained = []
    monkeypatch.setattr(teachers.tuned, "chosen", pick)
    monkeypatch.setattr(teachers.table, "compare", lambda level, own, notes: trained.append((level, own)))
    rsum = {"server_only": 80.0, "CreamFL": 100.0}
    last = lambda folder: {"test/rsum": rsum[folder.parent.name] + int(folder.name[-1]), "test/both/i2t_r10": 30.0}
    monkeypatch.setattr(teachers.report, "load", lambda folder: types.SimpleNamespace(rows=[last(folder)]))
    common = dataclasses.replace(SMALL.common, seeds=2, out=str(tmp_path))
    rows = teachers.compare(dataclasses.replace(SMALL, teachers=(7, 9), common=common))
    assert [(level.numbers.per_client, own["server only"].server_lr) for level, own in trained] == [(7, 0.5), (9, 0.5)]
    assert all(row["gain"].tolist() == [20, 20] and row["server"].tolist() == [recall, recall] for row in rows)
    assert "| 9 |" in (tmp_path / "teachers.md").read_text() and (tmp_path / "teachers.png").stat().st_size > 10_000
    with pytest.raises(ValueError, match="--seeds must be at least 2"):
        teachers.compare(SMALL)


def test_several_devices_share_the_public_pairs_and_their_weighing(monkeypatch):
    monkeypatch.setattr(study, "load", lambda *given: types.SimpleNamespace(data=None, test=None))
    monkeypatch.setattr(study, "method_of", lambda *given, mesh: mesh)
    monkeypatch.setattr(study.tables, "finish", lambda mesh, *given, split_public, **others: (mesh, split_public))
    mesh, split = study.train(
        dataclasses.replace(SMALL, common=dataclasses.replace(SMALL.common, devices=2)), "CreamFL", 0
    )
    assert split and mesh.size == 2
    assert study.train(SMALL, "CreamFL", 0) == (None, False)


def test_clients_contrast_with_as_many_public_pairs_as_they_are_told():
    batch = lambda **given: study.variants(dataclasses.replace(SMALL, **given))["CreamFL"].public_batch
    assert batch() == 64 and batch(public_batch=7) == 7
    with pytest.raises(ValueError, match="--public-batch is 0"):
        batch(public_batch=0)


def test_a_server_alone_takes_as_many_passes_as_it_is_told():
    passes = lambda row, **given: study.variants(dataclasses.replace(SMALL, **given))[row].training.server_epochs
    assert passes("server only") == 2 and passes("server only, one pass") == passes("CreamFL") == 1
    assert passes("server only", server_passes=4) == 4 and passes("CreamFL", server_passes=4) == 1


def test_all_rows_have_as_many_points_and_lower_rates_where_layers_are_trained():
    photos = functools.partial(dataclasses.replace, SMALL, data="flickr8k", side=28)
    upper = photos(encoders="last_layer", kd_rates=(0.5, 0.7, 0.9))
    for settings in (photos(encoders="frozen"), SMALL, upper):
        grids = {name: tuned.grid_of(settings, name) for name in study.variants(settings)}
        assert {np.prod([len(values) for values in grid.values()]) for grid in grids.values()} == {12}
    assert grids["CreamFL"] == {"server_lr": tuned.LOWER["last_layer"]["server_lr"], "kd_rate": (0.5, 0.7, 0.9)}
    with pytest.raises(ValueError, match="--side is 32; with --encoders last_layer it must be a multiple of 14"):
        dataclasses.replace(upper, side=32)
    with pytest.raises(ValueError, match="--encoders last_layer is for photographs"):
        dataclasses.replace(upper, data="scenes")


def test_the_last_layer_of_a_pretrained_encoder_is_trained_on_what_the_others_say(monkeypatch):
    wide = transformer.stack(
        upper_layers.Kept(), Layer(6, 8), 2, 384, jax.ShapeDtypeStruct((1, 3, 384), np.float32), Checkpoint({}, "", ())
    )
    start = jax.device_get(wide.init(jax.random.key(1), np.ones((1, 3, 384), np.float32)))
    own = {m: upper_layers.Upper("", 2, axes, Layer(6, 8)) for m, axes in (("image", 3), ("text", 1))}
    monkeypatch.setattr(models, "uppers", lambda dropout, *dtype: own)
    monkeypatch.setattr(upper_layers, "_weights", lambda name: start)
    tokens = np.random.default_rng(0).normal(size=(4, 3, 384)).astype(np.float32)
    monkeypatch.setattr(upper_layers, "hidden", lambda name, layers, x: tokens[: len(x)] * layers)
    examples = {"image": np.zeros((2, 2, 14, 14, 3), np.uint8), "text": np.zeros((4, 5), np.int32)}
    examples = {m: models.below_the_last(m, x) for m, x in examples.items()}
    assert examples["image"].shape == (2, 2, 3 * 384) and examples["text"].shape == (4, 3 * 384)

    made = models.on_tokens(models.Size(dim=6), {"image": examples["image"][0], "text": examples["text"]})
    params = made.server["text"].init(jax.random.key(0), examples["text"])
    chex.assert_trees_all_equal(params["trunk"]["layers"], {"00": start["layers"]["01"]})
    above = {**start, "layers": {"01": start["layers"]["01"]}}
    said = wide.tokens({**above, "norm": params["trunk"]["norm"]}, None, below=tokens).mean(1)
    head = params["head"]
    np.testing.assert_allclose(
        made.server["text"].apply(params, examples["text"]),
        said @ head["kernel"] + head["bias"][None],
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize("released", [False, True])
def test_models_fit_the_data_and_one_space(released):
    made = small(SMALL.size, 50, released)
    examples = {"image": jax.ShapeDtypeStruct((2, 32, 32, 3), np.uint8), "text": jax.ShapeDtypeStruct((2, 9), np.int32)}
    for encoders in (made.server, made.equal, *made.clients.values()):
        for m, model in encoders.items():
            shape = jax.eval_shape(lambda x, model=model: model.apply(model.init(jax.random.key(0), x), x), examples[m])
            assert shape.shape == (2, 8)


def test_every_server_takes_as_many_steps_but_the_one_that_shows_what_they_do():
    for name, config in study.variants(study.PRESETS["scenes"]).items():
        passes = config.training.server_epochs + getattr(config, "kd_epochs", 0)
        assert passes == (1 if "one pass" in name else 2)


def test_full_models_start_from_their_checkpoints(tmp_path):
    tiny = {
        "resnet-101": resnet.encoder((1,), (8,), norm="batch", normalise="imagenet", image=32),
        "resnet-18": resnet.encoder((1,), (4,), norm="batch", normalise="imagenet", image=32),
        "bert-base-uncased": bert.encoder(7, types=2, pooler=True, dim=8, depth=1, heads=2, mlp=8, positions=9),
    }
    held = {}
    for i, (name, model) in enumerate(tiny.items()):
        (tmp_path / name).mkdir()
        given = jnp.zeros(model.example.shape, model.example.dtype)
        held[name] = jax.jit(model.init)(jax.random.key(i), given)
        pretrained_files.save(held[name], model, tmp_path / name / "model.safetensors")
        about = {"model_type": name.partition("-")[0], **model.checkpoint.config}
        (tmp_path / name / "config.json").write_text(json.dumps(about))
    (tmp_path / "bert-base-uncased" / "vocab.txt").write_text("\n".join([*wordpiece.SPECIAL, "a", "b"]))
    made = full(tmp_path, 8, 32, released=False)
    examples = {"image": jnp.zeros((1, 32, 32, 3), jnp.uint8), "text": jnp.array([[2, 5, 6, 3, 0]])}
    start = lambda encoders, m: jax.jit(encoders[m].init)(jax.random.key(9), examples[m])
    chex.assert_trees_all_equal(start(made.server, "image")["trunk"], held["resnet-101"])
    chex.assert_trees_all_equal(start(made.server, "text")["trunk"], held["bert-base-uncased"])
    for name in ("image", "both"):
        chex.assert_trees_all_equal(start(made.clients[name], "image")["trunk"], held["resnet-18"])
    assert start(made.clients["text"], "text")["words"]["embedding"].shape == (7, 300)
    for encoders in (made.server, *made.clients.values()):
        for m, encoder in encoders.items():
            mapped = lambda x, encoder=encoder: encoder.apply(encoder.init(jax.random.key(9), x), x)
            assert jax.eval_shape(mapped, examples[m]).shape == (1, 8)


def test_pretrained_encoders_start_with_what_they_learnt_and_fresh_ones_do_not(monkeypatch):
    label = np.arange(64, dtype=np.int32) % 2
    image = np.broadcast_to((200 * label).astype(np.uint8)[:, None, None, None], (64, 2, 2, 1))
    examples = {"image": {"image": image, "label": label}, "text": {"text": label[:, None] + 1, "label": label}}
    both = {m: FLAT for m in ("image", "text")}
    fresh = Models(both, {"image": {"image": FLAT}}, both)
    assert pretrained(fresh, examples, 0) is fresh
    model = pretrained(fresh, examples, 40).clients["image"]["image"]
    params = [model.init(jax.random.key(seed), image[:1]) for seed in (0, 1)]
    chex.assert_trees_all_equal(*params)
    z = model.apply(params[0], image)
    apart = lambda z: np.linalg.norm(z[0] - z[1])
    assert apart(z) > 2 * apart(FLAT.apply(FLAT.init(jax.random.key(0), image[:1]), image))


def test_variants_are_the_baselines_and_ablations_of_the_paper():
    configs = study.variants(study.PRESETS["scenes"])
    plain = [name for name, config in configs.items() if getattr(config, "inter", None) is False and not config.intra]
    assert plain == ["FedMD", "FedGEMS", "FedET", "reamFL+Avg", "reamFL+IoT"]
    assert configs["reamFL+IoT"].both_weight == configs["FedIoT"].both_weight == 100
    assert configs["CreamFL, no inter"].intra and not configs["CreamFL, no inter"].inter


def test_scenes_are_shared_out_without_a_scene_in_two_hands():
    problem = creamfl_data.scenes_problem(NUMBERS, "test", 0.1, 0)
    cohorts = problem.data.cohorts
    assert problem.data.sizes == {"image": 2, "text": 2, "both": 2}
    assert set(cohorts["image"].arrays) == {"image", "label"} and set(cohorts["text"].arrays) == {"text", "label"}
    assert all(cohort.counts.sum() == 24 for cohort in cohorts.values())
    pools = [problem.data.public["image"], problem.test["image"]] + [
        cohorts[n].arrays["image"] for n in ("image", "both")
    ]
    pictures = np.concatenate([np.asarray(pool) for pool in pools])
    assert len(np.unique(pictures.reshape(len(pictures), -1), axis=0)) == len(pictures) == 16 + 40 + 24 + 24
    other = creamfl_data.scenes_problem(NUMBERS, "valid", 0.1, 0)
    assert not np.array_equal(other.test["image"], problem.test["image"])


def test_flickr8k_with_cifar_and_news(shared_data, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # where it is prepared
    texts = tmp_path / "flickr8k" / "Flickr8k_text"
    shutil.copytree(shared_data / "flickr8k" / "Flickr8k_text", texts)
    for path in texts.glob("*Images.txt"):  # fewer photos, which take less long
        path.write_text("\n".join(path.read_text().split()[:60]))
    (texts.parent / "Flicker8k_Dataset").symlink_to(shared_data / "flickr8k" / "Flicker8k_Dataset")
    for name in ("tfds", "vqa"):
        (tmp_path / name).symlink_to(shared_data / name)
    few = functools.partial(creamfl_data.prepared.load, limit=500)  # of CIFAR-100 and of the news
    monkeypatch.setattr(creamfl_data.prepared, "load", few)
    problem = creamfl_data.photo_problem(NUMBERS, "test", 0.1, 0, str(tmp_path), vocabulary=600)
    data, test = problem.data, problem.test
    assert data.public["image"].shape == (16, 32, 32, 3) and data.public["text"].shape == (16, 24)
    assert data.cohorts["both"].arrays["text"].shape == (24, 5, 24) and test["text"].shape == (40, 5, 24)
    assert data.cohorts["image"].arrays["label"].max() > 3 and set(np.unique(test["text/label"])) <= {0, 1, 2, 3}
    assert all((tokens > 0).any(-1).all() for tokens in (test["text"], test["text/text"], data.public["text"]))
    assert problem.questions[0].target.shape[1] == 13

    seen = creamfl_data.photo_problem(
        NUMBERS, "test", 0.1, 0, str(tmp_path), side=8, vocabulary=600, encode=_mean_and_one
    )
    for m in ("image", "text"):  # in units of the public ones
        assert seen.data.public[m].shape == (16, 2) and seen.test[f"{m}/{m}"].shape == (40, 2)
        np.testing.assert_allclose(seen.data.public[m].mean(0), 0, atol=1e-4)
        np.testing.assert_allclose(seen.data.public[m].std(0), [1, 0], atol=1e-3)
    assert seen.test["text"].shape == (40, 5, 2) and seen.questions is None and not seen.pretraining
    assert set(np.unique(seen.test["text/label"])) <= {0, 1, 2, 3}


def _mean_and_one(m, x):
    """An encoder of two features: the mean of an image or of its word pieces' numbers, and 1."""
    mean = x.astype(np.float32).mean(axis=(-3, -2, -1) if m == "image" else -1)
    return np.stack([mean, np.ones_like(mean)], axis=-1)


def test_the_public_pairs_of_coco_are_a_random_draw_of_captions(monkeypatch):
    image = np.arange(100)
    splits = {"train": {"image": image, "text": np.arange(200).reshape(100, 2, 1)}}
    splits["valid"] = {"image": 900 + image[:5], "text": np.zeros((5, 2, 1), int)}
    load = lambda folder, names, **given: types.SimpleNamespace(splits={name: splits[name] for name in names})
    monkeypatch.setattr(paper.coco_captions, "load", load)
    numbers, draws = NUMBERS._replace(public=50, test=4), []
    of = lambda seed, split="test", numbers=numbers: paper._coco(
        pathlib.Path("coco"), split, numbers, {}, np.random.default_rng(seed)
    )
    for seed in (0, 1, 2):
        public, test = of(seed)
        draws.append(public["text"][:, 0])
        assert len(np.unique(draws[-1])) == 50 and np.array_equal(public["image"], draws[-1] // 2)
        assert test["image"].tolist() == [900, 901, 902, 903]
    assert len({tuple(draw) for draw in draws}) == 3
    # Each caption is as likely as any other: 50 numbers of 0..199 have a mean of 99.5, with a deviation of 7.1.
    assert all(abs(draw.mean() - 99.5) < 4 * 7.1 and draw.max() > 150 for draw in draws)
    public, test = of(0, "valid")  # of the official files, photographs of train that no public pair has
    assert not set(test["image"]) & set(public["image"]) and test["image"].max() < 100
    with pytest.raises(ValueError, match="--numbers.public asks for 201 examples, and COCO's train has 200"):
        of(0, numbers=numbers._replace(public=201))


@pytest.mark.parametrize("field", ["per_client", "test", "pretraining"])
def test_more_examples_than_there_are_are_refused(monkeypatch, field):
    held = {"image": np.zeros((100, 2, 2, 3), np.uint8), "label": np.arange(100) % 100}
    monkeypatch.setattr(creamfl_data.prepared, "load", lambda *given: held)
    few = creamfl_data.Numbers(image=2, text=2, per_client=10, test=20, pretraining=30)
    with pytest.raises(ValueError, match="asks for .* examples, and .* has .*; ask for fewer"):
        creamfl_data.labelled("tfds", "valid", np.random.default_rng(0), few._replace(**{field: 60}))


def test_news_keep_their_labels(shared_data, monkeypatch):
    """The original sorts the sentences by length but not their labels (7.2): a classifier on words must learn them."""
    read, pictures = (
        creamfl_data.prepared.load,
        {"image": np.zeros((2000, 32, 32, 3), np.uint8), "label": np.arange(2000)},
    )
    only_news = lambda name, *given: read(name, *given) if name == creamfl_data.NEWS else pictures
    monkeypatch.setattr(creamfl_data.prepared, "load", only_news)  # to decode no pictures
    numbers = NUMBERS._replace(text=4, per_client=300, test=400)
    _, news = creamfl_data.labelled(shared_data / "tfds", "test", np.random.default_rng(0), numbers)
    words = {w: i for i, w in enumerate({w for t in news["train"]["text"] for w in t.split()})}
    bag = lambda texts: np.array(
        [np.bincount([words[w] for w in t.split() if w in words], minlength=len(words)) for t in texts]
    )
    counts = np.stack([bag(news["train"]["text"])[news["train"]["label"] == k].sum(0) for k in range(4)]) + 1.0
    log = np.log(counts / counts.sum(1, keepdims=True))
    found = (bag(news["test"]["text"]) @ log.T).argmax(1)
    assert evaluate.classification(news["test"]["label"], found, 4)["accuracy"] > 0.6
