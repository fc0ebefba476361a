"""Pretraining a trunk and tuning it, in small."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from experiments import pretrain_vilt
from experiments.common import cli
from experiments.feddat import costs, modes, study, table, trunks
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
    with pytest.raises(FileNotFoundError, match="holds no trunk; give a folder of experiments.pretrain_vilt; of ViLT"):
        trunks.load(tmp_path)
