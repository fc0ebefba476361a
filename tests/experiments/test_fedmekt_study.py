"""FedMEKT's study in small: its controls, what travels, and published numbers."""

import dataclasses

import jax
import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import f1_score

from experiments.common import cli, data
from experiments.fedmekt import raw, study, tuned
from fedjax_mm.data.mhealth import mhealth_dataset_builder
from fedjax_mm.models import autoencoder
from fedjax_mm.run import records


def settings(out="runs", **changed):
    common = cli.Common(rounds=2, seeds=1, out=str(out))
    problem = data.Settings(cohorts="AB3", fraction=0.7, proxy=16, common=common)
    return dataclasses.replace(study.PRESETS["digits"], problem=problem, autoencoder=study.Shape(6, 3), **changed)


def test_the_table_has_controls_and_real_bytes(tmp_path, monkeypatch):
    every, kept = study.variants, ("constant", "raw last frame, logistic regression", "server only", "FedMEKT")
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
    parts = {key: heard[0][f"server/{key}"] for key in ("distillation", "reconstruction")}
    assert heard[0]["server/distillation_share"] == parts["distillation"] / sum(parts.values())
    assert 0 < rows["raw last frame, logistic regression"]["test/left/weighted_f1"] < 1
    report = (tmp_path / "report.md").read_text()
    assert "weighted F1" in report and "Share of each class" in report and "official_f1" in report
    given = ["--config", str(tmp_path / "FedMEKT" / "seed0" / "settings.yaml")]  # of the whole study, with one seed
    again = cli.parse(study.PRESETS, given, None)
    assert again.problem.common.all_seeds == (0,) and again.autoencoder == study.Shape(6, 3)


def test_every_row_that_the_papers_table_needs_is_there():
    names = study.variants(settings())
    assert list(names) == [
        *("constant", *raw.ROWS, "random encoder", "server only", "clients only", "central autoencoder"),
        *("FedAvg", "FedProx", "MOON", "FedMEKT"),
    ]
    assert [name for name, v in names.items() if v.control] == list(names)[:7]
    assert "FedMEKT released" in study.variants(settings(released=True))


def test_mhealths_logs_give_any_modalities_and_are_scored_frame_by_frame_too(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rng, rows = np.random.default_rng(0), 24 * 3 + 5
    for subject in range(1, 11):
        table = np.c_[rng.normal(size=(rows, 23)), np.arange(rows) // 10 % 3]
        np.savetxt(tmp_path / f"mHealth_subject{subject}.log", table, fmt="%.5g", delimiter="\t")
    given = ["--data", "mhealth", "--data-dir", str(tmp_path), "--stateful", "--modalities"]
    settings_of = lambda modalities, *others: cli.parse(study.PRESETS, [*given, *modalities, *others], None)
    chosen = settings_of(["magnetometer", "gyroscope"], "--cohorts", "A2_B2_AB2", "--seed", "0")
    problem = data.load_problem(chosen.problem, 0)
    assert problem.dataset.modalities == ("magnetometer", "gyroscope") and problem.data.sizes["magnetometer"] == 2
    assert set(problem.dataset.splits["test"]) == {"magnetometer", "gyroscope", "labels", "label", "group"}
    stream = data.recordings(problem, "test")
    assert stream["gyroscope"].shape == (2 * 72, 6) and stream["labels"].shape == (2 * 72,)
    np.testing.assert_array_equal(stream["labels"][:72], np.arange(72) // 10 % 3)
    everything = settings_of(mhealth_dataset_builder.COLUMNS, "--cohorts", "ABC6").problem
    assert len(data.load_problem(everything, 0).dataset.modalities) == 3
    rows = study.variants(chosen)
    constant = rows["constant, of frames"].score(problem, "test")
    labels = stream["labels"]
    expected = f1_score(labels, np.zeros(144), average="weighted", zero_division=0)
    assert constant["stateful/gyroscope/official_f1"] == pytest.approx(expected)
    linear = lambda features, width, **shape: autoencoder.linear(features, width)
    monkeypatch.setattr(autoencoder, "split_lstm", linear)
    method, (score,) = rows["FedMEKT"].build(problem), rows["FedMEKT"].evaluate(problem, "test").values()
    scores = score(method.init(jax.random.key(0)))
    assert 0 <= scores["magnetometer+gyroscope/official_f1"] <= 1 and len(scores) == 12
    with pytest.raises(ValueError, match="--modalities has gps; .* has accelerometer, gyroscope, magnetometer"):
        data.load_problem(settings_of(["gps"]).problem, 0)
    with pytest.raises(ValueError, match="--stateful is for windows that follow one another"):
        data.recordings(data.load_problem(settings().problem, 0), "test")


def test_published_numbers_stand_with_their_setting_alone():
    about, table = study.published(data.Settings("ur_fall", cohorts="AB30"))
    assert "one seed" in about and "0.727" in table and "0.752" in table
    assert study.published(data.Settings("ur_fall", cohorts="A5_B5")) == []


def test_a_forest_learns_from_means_and_deviations_of_raw_windows():
    problem = data.load_problem(settings().problem, 0)
    labelled, test = (problem.dataset.splits[name] for name in ("labelled", "test"))
    rows = lambda split: np.hstack([f(split["left"], axis=1) for f in (np.mean, np.std)])
    model = RandomForestClassifier(300, random_state=0).fit(rows(labelled), labelled["label"])
    expected = f1_score(test["label"], model.predict(rows(test)), average="macro")
    assert raw.forest(problem, "test")["left/macro_f1"] == pytest.approx(expected)


def test_values_and_readouts_are_chosen_on_validation_windows_alone(tmp_path, monkeypatch):
    linear = lambda features, width, **shape: autoencoder.linear(features, width)
    monkeypatch.setattr(autoencoder, "split_lstm", linear)
    found = tuned.compare(settings(tmp_path, rows=("raw last frame, logistic regression", "FedMEKT")))
    (points,) = found["FedMEKT"]
    assert len(points) == len(study.Settings.weights) * len(tuned.READOUTS)
    (row,) = (row for row in tuned.scores_table(found) if row["method"] == "FedMEKT")
    mean = lambda scored: np.mean([scored[f"{m}/macro_f1"] for m in ("left", "right", "left+right")])
    chosen = max(points, key=lambda point: mean(point["valid"]))
    assert row["left macro F1"] == chosen["test"]["left/macro_f1"]
    assert all(0 < point["share"]["server/distillation_share"] < 1 for point in points)
    text = (tmp_path / "tuned.md").read_text()
    assert "Differences within a seed" in text and "| 300 |" in text and "h mean, std" in text
    changed = settings(tmp_path, rows=("FedMEKT",), baseline=study.MMFLConfig(prox=1.0))
    assert tuned.compare(changed)["FedMEKT"] == found["FedMEKT"]  # read again: nothing of this row has changed
    with pytest.raises(ValueError, match="is of a run with other settings; give another --out"):
        tuned.compare(dataclasses.replace(changed, method=study.FedMEKTConfig(epochs=1)))


def test_a_cut_that_the_dataset_does_not_know_is_an_error_in_words():
    with pytest.raises(ValueError, match="--stride says nothing with --data digits"):
        data.load("digits", None, "AB2", 0.3, 0, cutting=data.Cutting(stride=1))
