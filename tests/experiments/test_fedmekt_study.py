"""FedMEKT's script in small: its controls, what travels, and its command line."""

import dataclasses
import sys

import pytest

from experiments.common import tables as problems
from experiments.fedmekt import study as fedmekt
from fedjax_mm.run import records

SMALL = {"cohorts": "AB3", "rounds": 2, "seeds": 1, "fraction": 0.7, "proxy": 16}


def settings(**problem):
    preset = dataclasses.replace(fedmekt.PRESETS["digits"], autoencoder=fedmekt.Shape(6, 3))
    return dataclasses.replace(preset, problem=problems.Settings(**SMALL | problem))


def test_the_table_has_controls_and_real_bytes(tmp_path, monkeypatch):
    every, kept = fedmekt.variants, ("constant", "server only", "FedMEKT")
    monkeypatch.setattr(fedmekt, "variants", lambda s: {name: v for name, v in every(s).items() if name in kept})
    monkeypatch.setattr(problems, "cache_compilations", lambda: None)
    rows = {row["method"]: row for row in fedmekt.main(settings(out=str(tmp_path)))}
    assert list(rows) == list(kept) and 0 < rows["server only"]["test/left/weighted_f1"] < 1
    # The embeddings [16, 3] float32 of both halves, of the clients that own both; a control sends nothing.
    assert rows["FedMEKT"]["MB up"] == rows["FedMEKT"]["MB down"] == 2 * 16 * 3 * 4 / 1e6
    assert rows["server only"]["MB up"] is None
    heard, deaf = (records.read_metrics(tmp_path / name / "seed0") for name in ("FedMEKT", "server_only"))
    assert heard[0]["server/distillation"] > 0 == deaf[0]["server/distillation"]
    report = (tmp_path / "report.md").read_text()
    assert "weighted F1" in report and "Share of each class" in report and "official_f1" in report


def test_every_row_that_the_papers_table_needs_is_there():
    names = fedmekt.variants(settings())
    assert set(names) == {
        *("constant", "random encoder", "server only", "clients only"),
        *("FedAvg", "FedProx", "MOON", "FedMEKT"),
    }
    assert [name for name, v in names.items() if v.control] == list(names)[:4]
    assert "FedMEKT released" in fedmekt.variants(fedmekt.Settings(problems.Settings(), released=True))


def test_published_numbers_stand_beside_their_setting_alone():
    about, table = fedmekt.published(problems.Settings("ur_fall", cohorts="AB30"))
    assert "one seed" in about and "0.727" in table and "0.752" in table
    assert fedmekt.published(problems.Settings("ur_fall", cohorts="A5_B5")) == []


@pytest.mark.parametrize(("data", "alpha"), [("mhealth", 0.5), ("digits", 0.3)])
def test_the_dataset_chooses_the_preset_and_flags_change_it(data, alpha, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["fedmekt", "--data", data, "--cohorts", "AB30", "--method.eta", "7"])
    chosen = problems.settings_from(fedmekt.PRESETS, None)
    assert (chosen.problem.data, chosen.problem.cohorts, chosen.problem.alpha) == (data, "AB30", alpha)
    assert chosen.method.eta == 7 and chosen.method.probe == fedmekt.WINDOW
