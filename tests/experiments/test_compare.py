"""The main job in small, and clients by code."""

import json

import numpy as np
import pytest
import yaml

from experiments import compare
from experiments.common import cli, data
from fedjax_mm.data import pooled
from fedjax_mm.methods import MODULES
from fedjax_mm.run import records


def test_compare_writes_a_table_with_controls_and_pictures(tmp_path, monkeypatch, capsys):
    all_variants = compare.variants("digits")
    kept = {name: all_variants[name] for name in ("constant", "local only", "centralised", "FedAdam")}
    monkeypatch.setattr(compare, "variants", lambda dataset: kept)
    common = cli.Common(rounds=2, seeds=2, out=str(tmp_path))
    found = compare.compare(data.Settings(cohorts="A2_AB2", fraction=0.5, common=common))
    rows = {row["method"]: row for row in found}
    assert list(rows) == list(kept)
    both = "test/left+right/macro_f1"
    for name in kept:
        assert 0 < rows[name][both][0] < 1
    constant = rows["constant"]["test/left/accuracy"][0]
    labels = data.load("digits", None, "A2_AB2", 0.3, 0).dataset.splits["test"]["label"]
    assert constant == pytest.approx(np.bincount(labels).max() / len(labels), abs=0.02)
    assert rows["local only"]["MB up"] == 0 and rows["centralised"]["MB up"] is None and rows["FedAdam"]["MB up"] > 0
    last = [records.read_metrics(tmp_path / "FedAdam" / f"seed{seed}")[-1][both] for seed in range(2)]
    assert rows["FedAdam"][both] == pytest.approx((np.mean(last), np.std(last, ddof=1)))
    report = (tmp_path / "report.md").read_text()
    assert all(name in report for name in kept) and "449 test" in report
    assert all((tmp_path / f"{name}.png").stat().st_size > 10_000 for name in ("bars", "split", "curves"))
    assert json.loads((tmp_path / "table.json").read_text())["versions"]["jax"]
    assert "FedAdam" in capsys.readouterr().out
    of = lambda folder: yaml.safe_load((folder / "settings.yaml").read_text())
    assert of(tmp_path)["seeds"] == 2 and of(tmp_path / "FedAdam" / "seed1")["seed"] == 1


def test_compare_has_every_method_for_clients_of_several_kinds_and_every_control():
    variants = compare.variants("digits")
    configs = [v.config["method"] if isinstance(v.config, dict) else v.config for v in variants.values() if v.build]
    papers = {type(config).__module__.split(".")[2] for config in configs}
    elsewhere = {"layerwise", "feddat", "creamfl"}  # clients with one model for all, own tasks or own models
    assert papers <= set(MODULES) - elsewhere and {"constant", "local only", "centralised"} < set(variants)


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
