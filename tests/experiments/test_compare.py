"""The main job in small, and clients by code."""

import json
import os

import numpy as np
import pytest
import yaml
from scipy import stats

from experiments.common import cli, data
from experiments.compare import papers, study, table
from fedjax_mm import run
from fedjax_mm.data import pooled


@pytest.fixture(scope="module")
def small_job(tmp_path_factory):
    """(settings, table, folder) of the comparison with two papers, of which one has rows of one program."""
    folder = tmp_path_factory.mktemp("compare")
    settings = study.Settings(cli.Common(rounds=3, seeds=2, out=str(folder)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(papers, "PAPERS", {"FedAvg": few_rows, "LW-FedMML": one_stage})
        rows = table.compare(settings)
    return settings, rows, folder


def few_rows(split, seed):
    """FedAvg without its costly controls."""
    paper = papers.of_fedavg(split, seed)
    return paper._replace(programs={"FedAvg": paper.programs["FedAvg"]}, ceiling="")


def one_stage(split, seed):
    """End-to-end training and its control, the former in the place of the paper's row."""
    paper = papers.of_layerwise(split, seed, blocks=1, depth=1, width=8)
    return paper._replace(row="end-to-end", programs={"end-to-end": paper.programs["end-to-end"]})


def test_compare_writes_a_table_with_controls_and_a_picture(small_job):
    settings, rows, folder = small_job
    named = {row["row"]: row for row in rows if row["paper"] == "LW-FedMML"}
    assert list(named) == ["constant", "heads on random encoders", "end-to-end"]
    kept = json.loads((folder / "LW-FedMML" / "end-to-end" / study.FILE).read_text())["rows"]
    ours, theirs = (np.array(kept[row]["score"]) for row in ("end-to-end", "heads on random encoders"))
    assert named["end-to-end"]["score"] == pytest.approx((ours.mean(), ours.std(ddof=1)))
    half = stats.t.ppf(0.975, 1) * (ours - theirs).std(ddof=1) / 2**0.5
    mean = (ours - theirs).mean()
    found = [float(x) for x in named["heads on random encoders"]["ahead"].strip(")").replace("(", "to ").split(" to ")]
    assert found == pytest.approx([mean, mean - half, mean + half], abs=0.51) and named["end-to-end"]["ahead"] is None
    labels = data.load("digits", None, "AB10", 1.0, 0).dataset.splits["test"]["label"]
    assert named["constant"]["score"] == pytest.approx((100 * np.bincount(labels).max() / len(labels), 0))
    weights = 2 * (32 * 8 + 8 * 8)  # two encoders' numbers, with heads' besides
    assert named["end-to-end"]["MB up"] == named["end-to-end"]["MB down"] > 4 * weights / 1e6
    report = (folder / "report.md").read_text()
    assert all(row["row"] in report for row in rows) and "its best control" in report and "bars.png" in report
    assert (folder / "bars.png").stat().st_size > 10_000
    assert json.loads((folder / "table.json").read_text())["versions"]["jax"]
    assert yaml.safe_load((folder / "settings.yaml").read_text())["seeds"] == 2


def test_rows_that_are_there_are_not_trained_again_unless_something_changed(small_job, monkeypatch):
    settings, rows, _ = small_job
    monkeypatch.setattr(run, "sweep", lambda *given, **named: pytest.fail("it trains"))
    monkeypatch.setattr(papers, "PAPERS", {"FedAvg": few_rows, "LW-FedMML": one_stage})
    assert table.compare(settings) == rows
    monkeypatch.setattr(study, "source", lambda: "another")
    with pytest.raises(pytest.fail.Exception, match="it trains"):
        study.train(settings, "FedAvg", "FedAvg")


def test_a_row_that_is_not_ahead_is_said_to_be():
    paper = papers.Paper("ours", "", "", 1.0, {"chance": 1.0}, {}, ceiling="all data")
    said = lambda ours: table.verdict(paper, {name: {"score": x} for name, x in (scores | {"ours": ours}).items()})
    scores = {"chance": [1.0] * 3, "alone": [4.0, 5.0, 6.0], "all data": [9.0] * 3}
    assert said([7.0, 8.0, 9.1]).startswith("ours is ahead of its best control, alone")
    assert said([4.1, 4.9, 6.0]).startswith("ours is not clearly apart from its best control, alone")
    assert said([1.0, 2.0, 3.1]).startswith("ours is behind its best control, alone")
    assert "diverged" in said([1.0, None, 3.0])


def test_every_paper_and_fedavg_has_a_row_of_its_own_beside_controls():
    made = {name: make("valid", 0) for name, make in papers.PAPERS.items()}
    assert set(made) == {"FedAvg", "LW-FedMML", "CreamFL", "FedDAT", "FedMEKT"}
    for name, paper in made.items():
        rows = [row for program in paper.programs.values() for row in program(3).rows]
        assert name == paper.row and rows.count(name) == 1 and len(rows) + len(paper.chance) > 1
        assert all(1 < score < 60 for score in paper.chance.values())


def test_clients_of_creamfl_share_no_example_and_questions_of_feddat_have_their_answers():
    splits = data.load("digits", None, papers.CLIENTS, 0.3, 0).dataset.splits
    pairs = papers.clients_of_pairs(papers.as_pairs(splits["train"]), papers.as_pairs(splits["proxy"]), 0)
    total = sum(int(cohort.counts.sum()) for cohort in pairs.cohorts.values())
    assert total == len(splits["train"]["label"]) and set(pairs.sizes.values()) == {10}
    asked, test = papers.asked(splits, "valid", 0)
    assert asked.sizes == {"all": 4} and asked.cohorts["all"].counts.tolist() == [80] * 4
    odd = test["target"][test["client"] == 0]
    np.testing.assert_array_equal(odd.argmax(1), splits["valid"]["label"] % 2)


def test_compilation_is_made_cheap_before_anything_is_computed(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--given")
    cli.compile_fast()
    assert os.environ["XLA_FLAGS"].startswith("--given --xla_backend_optimization_level=0")


def test_clients_hold_what_the_code_says_and_pooled_data_keeps_it_all():
    problem = data.load("digits", None, "A3_B1_AB2", 0.3, 0)
    assert problem.data.sizes == {"left": 3, "right": 1, "left+right": 2}
    assert set(problem.data.cohorts["left"].arrays) == {"left", "label"}
    counts = {name: int(cohort.counts.sum()) for name, cohort in problem.data.cohorts.items()}
    assert sum(counts.values()) == len(problem.dataset.splits["train"]["label"])
    (one,) = pooled(problem.data).cohorts.values()
    assert one.counts.tolist() == [sum(counts.values())]
    assert int(one.arrays["has_left"].sum()) == counts["left"] + counts["left+right"]
    assert not np.asarray(one.arrays["left"])[~np.asarray(one.arrays["has_left"])].any()
    kept = np.sort(np.asarray(one.arrays["left"])[np.asarray(one.arrays["has_left"])].sum((1, 2)))
    given = [np.asarray(c.arrays["left"])[c.rows] for c in problem.data.cohorts.values() if "left" in c.arrays]
    np.testing.assert_allclose(kept, np.sort(np.concatenate(given).sum((1, 2))), rtol=1e-6)


@pytest.mark.parametrize("code", ["A10_C5", "10", "a3", "", "A0_B3"])
def test_cohorts_that_are_not_understood_are_explained(code):
    with pytest.raises(ValueError, match="write e.g. A10_B10_AB10 with A = left, B = right"):
        data.parse_cohorts(code, ("left", "right"))
