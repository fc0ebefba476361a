"""Pretraining a trunk and tuning it, in small."""

import dataclasses
import json
import types

import jax
import numpy as np
import pytest
from PIL import Image

from experiments import pretrain_fusion, pretrain_vilt
from experiments.common import cli
from experiments.feddat import costs, curve, frozen, modes, study, table, trunks, tuned
from fedjax_mm import streamed
from fedjax_mm.data import vqa, wordpiece
from fedjax_mm.methods.feddat.vqa_tuning import Training
from fedjax_mm.models import adapters, albef, bert, pretrained, vilt

SIZE = pretrain_vilt.Size(dim=8, depth=2, heads=2, vocabulary=300)


@pytest.fixture(scope="module")
def trunk(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trunk")
    settings = pretrain_vilt.Settings(pictures=66, size=SIZE, steps=10, batch_size=8, out=str(folder))
    return folder, settings, pretrain_vilt.pretrain(settings, log=lambda line: None)


def test_a_pretrained_trunk_is_read_back(trunk):
    folder, settings, made = trunk
    again = pretrain_vilt.load(folder)
    assert again.size == SIZE and again.scores == made.scores
    jax.tree.map(np.testing.assert_array_equal, again.params, made.params)
    words = again.tokenizer.encode("is the red circle left of a crescent").tokens
    assert "circle" in words and "[UNK]" not in words
    assert 0.3 < made.scores["matches"] < 0.7 and 0 <= made.scores["words"] < 1
    assert json.loads((folder / "model.json").read_text())["settings"]["steps"] == settings.steps


def test_half_the_pictures_change_places_and_words_alone_are_masked(trunk):
    _, _, made = trunk
    seen = {}

    def tokens(params, batch):
        seen.update(batch)  # while it is traced: `score` returns what this holds
        return np.ones((8, SIZE.length + 17, SIZE.dim), np.float32)

    ids = made.tokenizer.encode("a small red circle on the left").ids
    text = np.zeros((8, SIZE.length), np.int32)
    text[:, : len(ids)] = ids
    batch = {"image": np.arange(8, dtype=np.int32)[:, None], "question": text}
    params = {"trunk": made.params} | jax.jit(lambda key: pretrain_vilt._heads(key, SIZE))(jax.random.key(0))
    model = made.model._replace(tokens=tokens, apply=lambda params, view: np.ones((8, SIZE.dim), np.float32))

    def score(params, batch, key):
        return pretrain_vilt.objective(model, params, batch, key, 0.5)[1], dict(seen)

    scores, seen = jax.jit(score)(params, batch, jax.random.key(1))
    assert seen["image"][:, 0].tolist() == [3, 0, 1, 2, 4, 5, 6, 7]
    changed = np.asarray(seen["question"]) != text
    assert (np.asarray(seen["question"])[changed] == pretrain_vilt.MASK).all() and 0.2 < changed[text >= 5].mean() < 0.8
    assert not changed[text < 5].any()
    masked = text[4:][changed[4:]]  # all tokens are alike here, so one word is guessed everywhere
    assert scores["words"] <= np.bincount(masked).max() / len(masked)
    assert scores["matches"] == 0.5


def test_compare_has_a_row_for_every_mode_and_the_control(trunk, tmp_path):
    few = {"train": 8, "test": 4, "valid": 2, "training": Training(lr=1e-3), "modes": ("adapter", "dat")}
    common = cli.Common(rounds=1, seed=0, out=str(tmp_path))
    settings = dataclasses.replace(study.PRESETS["scenes"], trunk=str(trunk[0]), common=common, **few)
    rows = {row["mode"]: row for row in table.compare(settings)}
    assert list(rows) == ["constant", "adapter", "dat", "dat, its own adapter", "dat, the shared adapter"]
    tasks = study.load(settings, 0).tasks.tasks
    for row in rows.values():
        assert row["score"] == pytest.approx(np.mean([row[client] for client in tasks]))
    adapter = 2 * (2 * 8 * 16 + 16 + 8)
    assert rows["dat"]["trained"] - rows["adapter"]["trained"] == adapter
    assert rows["adapter"]["MB up"] == rows["dat"]["MB up"] == 4 * adapter / 1e6
    said = [np.mean(task.splits["test"]["target"][:, 0]) for task in tasks.values()]
    assert rows["constant"]["score"] == pytest.approx(100 * np.mean(said))
    text = (tmp_path / "report.md").read_text()
    assert all(client in text for client in tasks) and "dat minus" in text
    kept = cli.read(tmp_path / "dat" / "seed0" / "settings.yaml")
    assert kept["mode"] == "dat" and kept["widths"] == study.PRESETS["scenes"].widths._asdict()


def test_a_benchmark_of_official_files_is_a_client_for_each_part(trunk, tmp_path):
    (tmp_path / "clove" / "vg").mkdir(parents=True)
    (tmp_path / "clove" / "function").mkdir()
    asked = {"image_source": "vg", "question": "What is it?", "answers": ["dog"] * 9 + ["cat"]}
    for i, part in enumerate(vqa.benchmarks.FUNCTIONS):
        for split in ("train", "val"):
            names = [f"{part}{split}{n}" for n in range(4)]
            entries = json.dumps([{**asked, "image_id": name} for name in names])
            (tmp_path / "clove" / "function" / f"functional_{part}_{split}.json").write_text(entries)
            for name in names:
                Image.fromarray(np.full((20, 30, 3), i, np.uint8)).save(tmp_path / "clove" / "vg" / f"{name}.jpg")
    common = cli.Common(data_dir=str(tmp_path), seed=0)
    settings = study.Settings("vqa", "function", trunk=str(trunk[0]), train=4, test=4, valid=1, common=common)
    problem = study.load(settings, 0)
    assert list(problem.tasks.tasks) == list(vqa.benchmarks.FUNCTIONS) and problem.data.sizes == {"all": 5}
    assert problem.tasks.tasks["object"].answers == ("dog", "cat")
    assert problem.examples("test")["target"][0].tolist() == pytest.approx([1.0, 0.3])


def sizes(model, names, answers=100):
    """What modes train and send over a trunk of which nothing but shapes is there."""
    trunk, head = jax.eval_shape(model.init, jax.random.key(0), model.example), adapters.answers(answers)
    data, every = costs.data(model, answers, 1, 1), modes.modes(Training())
    return {name: modes.size(every[name], modes.Widths(), data, model, trunk, head) for name in names}


def test_modes_train_and_send_what_the_spec_counts():
    sent = {"dat": 894_528, "adapter": 894_528, "lora": 589_824, "prompt": 599_424, "bias": 104_448, "norm": 38_400}
    sent |= {"classifier": 0, "standalone": 0}
    counted = sizes(vilt.base(), sent)
    assert counted["dat"].trained == 3_127_012 and counted["adapter"].trained == 894_528 + 1_337_956
    assert {name: round(1e6 * size.mb / 4) for name, size in counted.items()} == sent


def test_a_mode_with_another_loss_or_server_trains_and_sends_the_same():
    counted = sizes(pretrain_vilt.encoder(SIZE), modes.modes(Training()), answers=5)
    for name, size in counted.items():
        alike = "dat" if name == "mutual" else name.split(",")[0].split("+")[0]
        assert size == counted[alike] and size.trained > 0
    assert counted["full"].trained > counted["adapter"].trained == counted["standalone"].trained


def test_pictures_of_clients_questions_are_left_out_of_pretraining(tmp_path):
    for split, names in (("train", ("a.jpg", "b.jpg")), ("test", ("c.jpg",))):
        folder = tmp_path / "match" / split
        folder.mkdir(parents=True)
        asked = [{"file_name": f"../../photos/{name}", "question": "what?", "answer": "yes"} for name in names]
        (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, asked)))
    files = ["other/c.jpg", "d.jpg", "a.jpg", "e.jpg"]
    assert pretrain_vilt.unseen(files, str(tmp_path)).tolist() == [1, 3]
    assert pretrain_vilt.unseen(files, None).tolist() == [0, 1, 2, 3]


@pytest.fixture
def encoders(monkeypatch):
    """Random projections in the place of the frozen encoders, whose weights are no part of the tests."""
    draw = np.random.default_rng(0).standard_normal

    def features(name, examples):
        flat = np.asarray(examples, np.float32).reshape(len(examples), -1)[:, :512]
        wide = draw((flat.shape[1], frozen.WIDTH * (2 if name == "vit_s14" else 1)))
        return np.asarray(flat @ wide / 100, np.float32)

    monkeypatch.setattr(frozen, "features", features)


@pytest.fixture
def fused(tmp_path, encoders):
    draw = np.random.default_rng(1).standard_normal
    pairs = {"seen": draw((20, 2, frozen.WIDTH)), "read": draw((20, 3, frozen.WIDTH))}
    pairs = {name: np.asarray(x, np.float32) for name, x in pairs.items()}
    settings = pretrain_fusion.Settings(
        size=pretrain_fusion.Size(8, 2, 2), steps=5, batch_size=4, out=str(tmp_path / "fusion")
    )
    held = {name: np.repeat(x, 4, axis=0) for name, x in pairs.items()}
    return pretrain_fusion.pretrain(settings, pairs, held, log=lambda line: None), settings.out


def source(kind, answers, number):
    """Questions of a client about grey pictures of which the brightness is the answer."""
    asked = [vqa.Question(i, f"how bright is {kind} {i % 3}", (answers[i % len(answers)],)) for i in range(number)]
    grey = np.arange(number, dtype=np.uint8)[:, None, None, None] * np.ones((1, frozen.SIDE, frozen.SIDE, 3), np.uint8)
    return vqa.Source(asked[: number - 6], asked[number - 6 :], grey)


def test_tuned_chooses_on_valid_over_frozen_features(fused, monkeypatch, tmp_path):
    trunk, folder = fused
    clients = {"a": source("a", ("low", "high"), 24), "b": source("b", ("yes", "no"), 24)}
    monkeypatch.setattr(frozen, "asked", lambda folder: clients)
    monkeypatch.setattr(frozen, "tokenizer", lambda: wordpiece.train(["how bright is a b 0 1 2"], 60))
    monkeypatch.setattr(tuned, "RATES", (1e-3, 3e-2))
    settings = study.Settings("vqa", trunk=folder, train=12, test=6, valid=4, training=Training(batch_size=6))
    common = cli.Common(rounds=2, seeds=2, out=str(tmp_path / "out"), data_dir="nowhere")
    settings = dataclasses.replace(settings, common=common)
    own, notes = tuned.chosen(settings, ["classifier"])
    assert own["classifier"]["lr"] in (1e-3, 3e-2) and "valid score" in notes[-1]
    assert tuned.chosen(settings, ["classifier"])[0] == own  # from its folder
    problem = study.load(settings, 0)
    valid, task = problem.examples("valid"), problem.tasks.tasks["b"]
    assert valid["seen"].shape[1:] == (2, frozen.WIDTH) and (valid["answers"] == 2).all()
    np.testing.assert_array_equal(valid["target"][valid["client"] == 1], task.splits["valid"]["target"])
    assert trunk.scores["matches"] <= 1


def test_a_mode_has_its_own_rate_and_an_ablation_keeps_what_it_leaves_out():
    settings = dataclasses.replace(study.PRESETS["scenes"], common=cli.Common(rounds=7, out="nowhere"))
    config = study.mode_of(settings, "dat", {"lr": 0.5, "distillation": 2.0}).config
    assert (config.alpha, config.beta, config.training.lr, config.training.horizon) == (2, 2, 0.5, 7)
    assert not config.training.restart
    ablation = study.mode_of(settings, "dat, no teacher", {"distillation": 2.0}).config
    assert (ablation.alpha, ablation.beta) == (0, 2)
    again = dataclasses.replace(settings, schedule="restart")
    assert study.mode_of(again, "adapter+dyn", {"dyn": 0.3}).config.training == again.training
    assert (
        len({np.prod([len(values) for values in tuned.grid_of(name).values()]) for name in modes.modes(Training())})
        == 1
    )


def test_a_curve_sets_the_leading_modes_beside_each_other_at_each_size(monkeypatch, tmp_path):
    def loaded(train, names, common):
        base = train.args[0].train
        score = lambda name, seed: {"test/score": base + len(name) + seed}
        return {name: [types.SimpleNamespace(rows=[score(name, seed)]) for seed in range(2)] for name in names}

    monkeypatch.setattr(curve.jobs, "loaded", loaded)
    settings = study.Settings(sizes=(10, 20), train=40, common=cli.Common(seeds=2, out=str(tmp_path)))
    _, text, picture = curve.parts(settings, {})
    assert [line.split(" | ")[0].strip("| ") for line in text.splitlines()[2:]] == ["10", "20", "40"]
    assert "-4" in text and "-7" in text  # dat minus adapter, dat minus standalone
    assert picture == "![Scores against questions](questions.png)"
    assert (tmp_path / "questions.png").stat().st_size


def write(folder, model, vocabulary):
    """A folder of a model with random weights, as published models have one."""
    folder.mkdir(parents=True)
    shapes, rng = jax.eval_shape(model.init, jax.random.key(0), model.example), np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: 0.1 * rng.normal(size=leaf.shape).astype(np.float32), shapes)
    pretrained.save(params, model, folder / "model.safetensors")
    kind = {"Albef": "albef", "Vilt": "vilt", "Transformer": "bert"}[type(model).__name__]
    (folder / "config.json").write_text(json.dumps({"model_type": kind, **model.checkpoint.config}))
    (folder / "vocab.txt").write_text(vocabulary.read_text())
    return params


def test_a_trunk_is_what_its_folder_holds(trunk, tmp_path):
    vocabulary = trunk[0] / "vocab.txt"
    words = len(vocabulary.read_text().split())
    small = {"vocabulary": words, "dim": 8, "heads": 2, "mlp": 12}
    pictures = {"image": 32, "patch": 8, **small}
    given = write(tmp_path / "albef", albef.encoder(length=32, depths=(1, 2, 1), **pictures), vocabulary)
    write(tmp_path / "vault" / "vilt", vilt.encoder(text_length=24, depth=1, **pictures), vocabulary)
    write(tmp_path / "vault" / "bert", bert.encoder(depth=1, positions=24, types=2, **small), vocabulary)
    few = {"train": 8, "test": 4, "valid": 2, "training": Training()}
    seen = {}
    for name in ("albef", "vault"):
        settings = dataclasses.replace(study.PRESETS["scenes"], trunk=str(tmp_path / name), **few)
        problem = study.load(settings, 0)
        over = problem.data, problem.trunk.model, problem.trunk.params, problem.head
        counted = modes.size(modes.modes(settings.training)["dat"], settings.widths, *over)
        sites = {"albef": 4, "vault": 1}[name]
        assert counted.mb == pytest.approx(4e-6 * sites * (2 * 8 * 16 + 16 + 8))
        seen[name] = problem.data.cohorts["all"].arrays
    assert seen["albef"].keys() - seen["vault"].keys() == {"choices"}
    own = problem.head.init(jax.random.key(0), np.zeros((1, 8), np.float32))
    assert own["dense_1"]["bias"].shape == (seen["vault"]["target"].shape[1],)
    problem = study.load(dataclasses.replace(settings, trunk=str(tmp_path / "albef")), 0)
    jax.tree.map(np.testing.assert_array_equal, problem.head.init(jax.random.key(0), None), given["head"])
    with pytest.raises(ValueError, match="over ALBEF there is no lora"):
        over = problem.data, problem.trunk.model, problem.trunk.params, problem.head
        modes.make(modes.modes(settings.training)["lora"], settings.widths, *over)
    write(tmp_path / "vilt", vilt.encoder(text_length=24, depth=1, **pictures), vocabulary)
    told = dataclasses.replace(
        settings, trunk=str(tmp_path / "vilt"), stream=True, sides="processor", unknown="dropped"
    )
    problem = study.load(told, 0)
    image = problem.data.cohorts["all"].arrays["image"]
    assert streamed.is_streamed(image) and image.shape[1:] == (48, 48, 3)  # 32 * 1333 / 800 is 53, six patches of 8
    assert sum(task.unknown["test"] for task in problem.tasks.tasks.values()) == 0
    assert all((task.splits["test"]["target"].max(1) > 0).all() for task in problem.tasks.tasks.values())
    assert problem.trunk.model.checkpoint.config["num_attention_heads"] == 2  # which no tensor's shape tells
    with pytest.raises(FileNotFoundError, match="holds no trunk; give a folder of experiments.pretrain_vilt; of ViLT"):
        trunks.load(tmp_path)
