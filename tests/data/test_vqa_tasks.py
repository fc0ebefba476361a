"""The clients of the experiments: four real domains, and three benchmarks of drawn scenes."""

import chex
import numpy as np
import pytest

from fedjax_mm.data import scenes, vqa
from fedjax_mm.data.scenes import tasks as benchmarks


def test_the_real_domains_fit_one_cohort(shared_data):
    sources = vqa.imagefolder(shared_data / "vqa")
    assert {name: len(splits["train"]) for name, splits in sources.items()} == {
        "daquar": 6795,
        "easy_vqa": 2629,
        "flickr8k_match": 6000,
        "nlvr1": 989,
    }
    tasks = vqa.load(sources, image=(64, 64), train=50, valid=10, test=50)
    known = {name: len(task.answers) for name, task in tasks.tasks.items()}
    assert known == {"daquar": 100, "easy_vqa": 13, "flickr8k_match": 2, "nlvr1": 2}
    size = {"daquar": (48, 64), "easy_vqa": (64, 64), "flickr8k_match": (64, 64), "nlvr1": (16, 64)}
    for name in tasks.tasks:
        held = vqa.examples(tasks, name, "test")
        chex.assert_shape(list(held.values()), [(50, 64, 64, 3), (50, 2), (50, 40), (50, 100), (50,)])
        assert (held["size"] == size[name]).all()
        assert 50 - (held["target"].max(1) == 1).sum() == tasks.tasks[name].unknown["test"]
        assert 20 < held["image"][:, : size[name][0]].mean() < 230
        assert not held["image"][:, size[name][0] :].any()
    assert tasks.tasks["daquar"].unknown["test"] > 0  # a quarter of the answers are none of the hundred
    np.testing.assert_array_equal(np.bincount(vqa.federated(tasks).cohorts["all"].counts), [0] * 50 + [4])


@pytest.fixture(scope="module", params=["domain", "function", "scene"])
def benchmark(request):
    return request.param, getattr(benchmarks, request.param)(train=30, test=10, size=16)


def test_every_client_has_its_numbers_and_scenes_of_its_own(benchmark):
    _, sources = benchmark
    for source in sources.values():
        assert (len(source.train), len(source.test)) == (30, 10)
        assert source.pictures.shape == (40, 16, 16, 3)
        assert [question.image for question in (*source.train, *source.test)] == list(range(40))
    drawn = np.concatenate([source.pictures for source in sources.values()])
    assert len(np.unique(drawn, axis=0)) == len(drawn)
    asked = {tuple(question.text for question in source.train) for source in sources.values()}
    assert len(asked) == len(sources)  # one scene drawn in two styles would be asked the same


def test_what_differs_between_the_clients(benchmark):
    name, sources = benchmark
    kinds = {client: {q.type for q in (*s.train, *s.test)} for client, s in sources.items()}
    if name == "function":
        assert kinds == {kind: {kind} for kind in scenes.TYPES}
    else:
        assert all(len(asked) >= 5 for asked in kinds.values())
    if name == "domain":
        assert tuple(sources) == scenes.STYLES
        corner = {client: s.pictures[:, 0, 0].astype(float).mean() for client, s in sources.items()}
        assert corner["inverted"] < 100 < corner["flat"]
    if name == "scene":
        assert len(sources) == 6
        for client, source in sources.items():
            shown = {q.answers[0] for q in source.train if q.type == "shape"}
            assert shown and shown <= set(client.split("-"))


def test_the_right_answer_is_the_one_the_scene_has():
    """A scene's pictures are those of its questions: a lone object's colour is the commonest but the background."""
    source = benchmarks.function(train=60, test=1, size=48, types=("colour",))["colour"]
    palette = np.array(list(scenes.render.RGB.values()))
    hits = 0
    for question in source.train:
        pixels = source.pictures[question.image].reshape(-1, 1, 3).astype(int)
        near = np.abs(pixels - palette[None]).sum(-1) < 12
        hits += near[:, list(scenes.render.RGB).index(question.answers[0])].sum() > 5
    assert hits >= 0.95 * len(source.train)


def test_they_make_tasks(benchmark):
    _, sources = benchmark
    first, again = (vqa.load(sources, image=(16, 16), patch=8, valid=5) for _ in range(2))
    chex.assert_trees_all_equal(first._replace(tokenizer=0), again._replace(tokenizer=0))
    for task in first.tasks.values():
        assert len(task.text["valid"]) == 5
        assert set(task.answers) <= set(scenes.ANSWERS)
    assert (first.size == 16).all()


def test_another_seed_is_another_benchmark_and_the_same_seed_the_same():
    one, same, other = (benchmarks.domain(5, 5, 16, ("flat",), seed=seed)["flat"] for seed in (0, 0, 1))
    assert one.train == same.train
    np.testing.assert_array_equal(one.pictures, same.pictures)
    assert not np.array_equal(one.pictures, other.pictures)


def test_errors():
    with pytest.raises(ValueError, match="train is 0 and test 5"):
        benchmarks.domain(0, 5)
    with pytest.raises(ValueError, match="places is 7"):
        benchmarks.scene(places=7)
    with pytest.raises(ValueError, match="known styles"):
        benchmarks.domain(5, 5, 16, ("oil",))
