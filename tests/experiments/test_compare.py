"""The main job in small, and what the scripts refuse."""

import json
import subprocess
import sys

import numpy as np
import pytest

from experiments import compare
from experiments.common import tables as problems
from experiments.fedavg import study as fedavg
from experiments.fedmekt import study as fedmekt
from fedjax_mm.data import pooled
from fedjax_mm.methods import MODULES
from fedjax_mm.run import records

SMALL = {"cohorts": "A2_B2_AB2", "rounds": 2, "seeds": 2, "fraction": 0.5}


def test_compare_writes_a_table_with_controls_and_pictures(tmp_path, monkeypatch, capsys):
    all_variants = compare.variants("digits")
    kept = {name: all_variants[name] for name in ("constant", "local only", "centralised", "FedAdam")}
    monkeypatch.setattr(compare, "variants", lambda data: kept)
    monkeypatch.setattr(problems, "cache_compilations", lambda: None)
    rows = {row["method"]: row for row in compare.main(problems.Settings(out=str(tmp_path), **SMALL))}
    assert list(rows) == list(kept)
    both = "test/left+right/macro_f1"
    for name in kept:
        assert 0 < rows[name][both][0] < 1
    constant = rows["constant"]["test/left/accuracy"][0]
    labels = problems.load("digits", None, "A2_B2_AB2", 0.3, 0).dataset.splits["test"]["label"]
    assert constant == pytest.approx(np.bincount(labels).max() / len(labels), abs=0.02)
    assert rows["local only"]["MB up"] == 0 and rows["centralised"]["MB up"] is None and rows["FedAdam"]["MB up"] > 0
    last = [records.read_metrics(tmp_path / "FedAdam" / f"seed{seed}")[-1][both] for seed in range(2)]
    assert rows["FedAdam"][both] == pytest.approx((np.mean(last), np.std(last, ddof=1)))
    report = (tmp_path / "report.md").read_text()
    assert all(name in report for name in kept) and "449 test" in report
    assert all((tmp_path / f"{name}.png").stat().st_size > 10_000 for name in ("bars", "split", "curves"))
    assert json.loads((tmp_path / "table.json").read_text())["versions"]["jax"]
    assert "FedAdam" in capsys.readouterr().out


def test_compare_has_every_method_for_clients_of_several_kinds_and_every_control():
    variants = compare.variants("digits")
    configs = [v.config["method"] if isinstance(v.config, dict) else v.config for v in variants.values() if v.build]
    papers = {type(config).__module__.rpartition(".")[2] for config in configs}
    elsewhere = {"layerwise", "feddat", "creamfl"}  # clients with one model for all, own tasks or own models
    assert papers <= set(MODULES) - elsewhere and {"constant", "local only", "centralised"} < set(variants)


def test_every_preset_is_for_its_dataset():
    datasets = {name: name for name in problems.DATASETS}
    assert {name: preset.problem.data for name, preset in fedavg.PRESETS.items()} == datasets
    assert {name: preset.problem.data for name, preset in fedmekt.PRESETS.items()}.items() <= datasets.items()


def test_clients_hold_what_the_code_says():
    problem = problems.load("digits", None, "A3_B1_AB2", 0.3, 0)
    assert problem.data.sizes == {"left": 3, "right": 1, "left+right": 2}
    assert set(problem.data.cohorts["left"].arrays) == {"left", "label"}
    total = sum(cohort.counts.sum() for cohort in problem.data.cohorts.values())
    assert total == len(problem.dataset.splits["train"]["label"])


def test_pooled_data_keeps_every_example_and_what_it_lacks():
    problem = problems.load("digits", None, "A3_B1_AB2", 0.3, 0)
    (one,) = pooled(problem.data).cohorts.values()
    counts = {name: int(cohort.counts.sum()) for name, cohort in problem.data.cohorts.items()}
    assert one.counts.tolist() == [sum(counts.values())]
    assert int(one.arrays["has_left"].sum()) == counts["left"] + counts["left+right"]
    assert not np.asarray(one.arrays["left"])[~np.asarray(one.arrays["has_left"])].any()
    held = np.sort(np.asarray(one.arrays["left"])[np.asarray(one.arrays["has_left"])].sum((1, 2)))
    given = [np.asarray(c.arrays["left"])[c.rows] for c in problem.data.cohorts.values() if "left" in c.arrays]
    np.testing.assert_allclose(held, np.sort(np.concatenate(given).sum((1, 2))), rtol=1e-6)


@pytest.mark.parametrize("code", ["A10_C5", "10", "a3", ""])
def test_cohorts_that_are_not_understood_are_explained(code):
    with pytest.raises(ValueError, match="write e.g. A10_B10_AB10 with A = left, B = right"):
        problems.parse_cohorts(code, ("left", "right"))


def test_an_unknown_flag_is_refused_before_anything_runs():
    done = subprocess.run(
        [sys.executable, "-m", "experiments.compare", "--rouns", "3"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2 and "--rounds" in done.stderr


def test_a_missing_data_folder_is_named():
    with pytest.raises(FileNotFoundError, match="mhealth_chestacc_wristgyro_w100.npz"):
        problems.load("mhealth", "/nowhere", "A1_B1", 0.5, 0)
