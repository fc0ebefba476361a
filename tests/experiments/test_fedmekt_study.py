"""FedMEKT's study in small: its controls, what travels, and published numbers."""

import dataclasses

from experiments.common import cli, data
from experiments.fedmekt import study
from fedjax_mm.models import autoencoder
from fedjax_mm.run import records


def settings(out="runs", **changed):
    common = cli.Common(rounds=2, seeds=1, out=str(out))
    problem = data.Settings(cohorts="AB3", fraction=0.7, proxy=16, common=common)
    return dataclasses.replace(study.PRESETS["digits"], problem=problem, autoencoder=study.Shape(6, 3), **changed)


def test_the_table_has_controls_and_real_bytes(tmp_path, monkeypatch):
    every, kept = study.variants, ("constant", "server only", "FedMEKT")
    monkeypatch.setattr(study, "variants", lambda s: {name: v for name, v in every(s).items() if name in kept})
    linear = lambda features, width, **shape: autoencoder.linear(features, width)
    monkeypatch.setattr(autoencoder, "split_lstm", linear)  # LSTMs take long to compile
    rows = {row["method"]: row for row in study.compare(settings(tmp_path))}
    assert list(rows) == list(kept) and 0 < rows["server only"]["test/left/weighted_f1"] < 1
    # The embeddings [16, 3] float32 of both halves, of the clients that own both; a control sends nothing.
    assert rows["FedMEKT"]["MB up"] == rows["FedMEKT"]["MB down"] == 2 * 16 * 3 * 4 / 1e6
    assert rows["server only"]["MB up"] is None
    heard, deaf = (records.read_metrics(tmp_path / name / "seed0") for name in ("FedMEKT", "server_only"))
    assert heard[0]["server/distillation"] > 0 == deaf[0]["server/distillation"]
    report = (tmp_path / "report.md").read_text()
    assert "weighted F1" in report and "Share of each class" in report and "official_f1" in report
    given = ["--config", str(tmp_path / "FedMEKT" / "seed0" / "settings.yaml")]  # of the whole study, with one seed
    again = cli.parse(study.PRESETS, given, None)
    assert again.problem.common.all_seeds == (0,) and again.autoencoder == study.Shape(6, 3)


def test_every_row_that_the_papers_table_needs_is_there():
    names = study.variants(settings())
    assert list(names) == [
        *("constant", "random encoder", "server only", "clients only"),
        *("FedAvg", "FedProx", "MOON", "FedMEKT"),
    ]
    assert [name for name, v in names.items() if v.control] == list(names)[:4]
    assert "FedMEKT released" in study.variants(settings(released=True))


def test_published_numbers_stand_with_their_setting_alone():
    about, table = study.published(data.Settings("ur_fall", cohorts="AB30"))
    assert "one seed" in about and "0.727" in table and "0.752" in table
    assert study.published(data.Settings("ur_fall", cohorts="A5_B5")) == []
