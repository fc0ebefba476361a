"""Command lines of the studies: presets, files of settings, seeds, and wrong flags, each of which costs one line."""

import importlib
import json
import subprocess
import sys

import pytest
import yaml

from benchmarks import __main__ as benchmarks
from experiments import pretrain_vilt
from experiments.common import cli, data, tables
from experiments.compare import study as compare
from experiments.creamfl import __main__ as creamfl
from experiments.creamfl import study as creamfl_study
from experiments.fedavg import study as fedavg
from experiments.feddat import study as feddat
from experiments.fedmekt import study as fedmekt
from experiments.layerwise import study as layerwise

STUDIES = (fedavg, fedmekt, creamfl_study, layerwise, feddat, pretrain_vilt)
DEFAULTS = [(study.PRESETS, preset) for study in STUDIES for preset in study.PRESETS.values()]
DEFAULTS += [(study.Settings(), study.Settings()) for study in (compare, benchmarks)]


def run(main, flags, monkeypatch):
    monkeypatch.setattr(cli, "cache_compilations", lambda: None)
    monkeypatch.setattr(sys, "argv", ["script", *flags])
    return cli.run(main)


@pytest.mark.parametrize(
    ("script", "flags", "words"),
    [
        ("compare.__main__", "--rouns 3", ["--rouns", "--rounds"]),
        ("compare.__main__", "--rounds 0", ["--rounds is 0", "at least 1"]),
        ("compare.__main__", "--rounds 2", ["--rounds is 2", "at least 3"]),
        ("compare.__main__", "--dtype bfloat16", ["--dtype says nothing here"]),
        ("fedavg.__main__", "--dtype half", ["half", "bfloat16"]),
        ("compare.__main__", "--client-state host", ["--client-state says nothing of runs that are one program"]),
        ("fedmekt.__main__", "tuned --checkpoint-every 3", ["--checkpoint-every says nothing of runs"]),
        ("fedavg.__main__", "sweep --grid client_lr=.1 --client-state folder", ["--client-state says nothing of runs"]),
        ("compare.__main__", "--rounds six", ["--rounds", "six"]),
        ("fedavg.__main__", "--fraction -1", ["--fraction is -1", "at most 1"]),
        ("compare.__main__", "--chunk some", ["--chunk is some", "auto"]),
        ("fedavg.__main__", "--cohorts A10_C5", ["A10_C5", "write e.g. A10_B10_AB10 with A = left, B = right"]),
        ("fedavg.__main__", "--data mhealth --data-dir /nowhere", ["mhealth_chestacc_wristgyro_w100.npz"]),
        ("fedavg.__main__", "--data faces", ["faces", "digits, scenes, ur_fall, mhealth, utd_mhad, opportunity, hapt"]),
        ("compare.__main__", "--seed 3 --seeds 5", ["--seed", "--seeds", "not allowed together"]),
        ("compare.__main__", "--config /nowhere.yaml", ["/nowhere.yaml", "No such file"]),
        ("fedmekt.__main__", "--data scenes", ["scenes is not known", "digits, ur_fall"]),
        ("fedavg.__main__", "--server-optimizer sdg", ["sdg", "momentum"]),
        ("creamfl.__main__", "--method CreamFl", ["CreamFl is not known", "reamFL+IoT"]),
        ("creamfl.__main__", "compere", ["command compere", "compare"]),
        ("creamfl.__main__", "--variant small2", ["small2", "'ours', 'paper', 'released'"]),
        ("feddat.__main__", "--mode adaptor", ["adaptor is not known", "adapter+dyn"]),
        ("feddat.__main__", "compare --modes dat lorra", ["lorra is not known", "lora"]),
        ("feddat.__main__", "--trunk /nowhere --seeds 1", ["/nowhere", "experiments.pretrain_vilt"]),
        ("layerwise.__main__", "--plan progresive", ["progresive", "'progressive'"]),
    ],
)
def test_a_wrong_flag_costs_one_line(script, flags, words, monkeypatch, capsys, tmp_path):
    main = importlib.import_module(f"experiments.{script}").main
    with pytest.raises(SystemExit) as end:
        run(main, [*flags.split(), "--out", str(tmp_path)], monkeypatch)
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.startswith("error: ") and said.count("\n") == 1
    assert all(word in said for word in words)


def test_a_script_that_is_started_says_it_in_one_line_too(tmp_path):
    command = [sys.executable, "-m", "experiments.fedavg", "--cohorts", "10", "--seeds", "1", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and "--cohorts 10 is not understood" in done.stderr


def test_a_fault_of_the_program_keeps_its_traceback(monkeypatch):
    for fault in (lambda given: int("x"), lambda given: list(zip([1], [], strict=True)), lambda given: {}["x"]):
        with pytest.raises((ValueError, KeyError)):
            run(fault, [], monkeypatch)


@pytest.mark.parametrize(("presets", "preset"), DEFAULTS)
def test_a_file_of_settings_gives_the_same_settings_back(presets, preset, tmp_path):
    cli.write(tmp_path, preset)
    assert cli.parse(presets, ["--config", str(tmp_path / "settings.yaml")], None) == preset


def test_flags_override_a_file_and_a_file_its_preset(tmp_path):
    (tmp_path / "run.yaml").write_text("data: mhealth\nrounds: 7\nseeds: 5\nmethod:\n  eta: 2\n  client_lr: 1e-4\n")
    given = ["--config", str(tmp_path / "run.yaml"), "--method.eta", "3", "--seed", "4", "--cohorts", "AB30"]
    settings = cli.parse(fedmekt.PRESETS, given, None)
    problem, preset = settings.problem, fedmekt.PRESETS["mhealth"]
    assert (problem.data, problem.cohorts, problem.alpha, problem.common.rounds) == ("mhealth", "AB30", 0.5, 7)
    assert (settings.method.eta, settings.method.client_lr, problem.common.all_seeds) == (3, 1e-4, (4,))
    assert settings.method.probe == preset.method.probe == fedmekt.WINDOW
    assert cli.parse(fedmekt.PRESETS, [], None) == fedmekt.PRESETS["digits"]


@pytest.mark.parametrize(("content", "said"), [("- 1", "must map"), ("a: [", "is not YAML"), ("rouns: 1", "--rouns")])
def test_a_file_that_is_not_understood_is_explained(content, said, tmp_path):
    (tmp_path / "run.yaml").write_text(content)
    with pytest.raises(ValueError, match=said):
        cli.parse(compare.Settings(), ["--config", str(tmp_path / "run.yaml")], None)


def test_seeds_are_counted_or_one_is_named(tmp_path):
    common = lambda *flags: cli.parse(compare.Settings(), flags, None).common
    assert common("--seeds", "5").all_seeds == (0, 1, 2, 3, 4) and "5 seeds" in common("--seeds", "5").about_seeds
    assert common("--seed", "0").all_seeds == (0,) and common("--seed", "3").about_seeds == "seed 3"
    cli.write(tmp_path, fedmekt.PRESETS["digits"], seed=2)
    kept = yaml.safe_load((tmp_path / "settings.yaml").read_text())
    assert kept["seed"] == 2 and "seeds" not in kept and kept["method"]["probe"]["unit"] == "window"


@pytest.mark.parametrize("flags", ["--preset code", "--preset=code", "--variant released"])
def test_former_names_of_variants_are_understood(flags, monkeypatch):
    seen = []
    monkeypatch.setattr(creamfl.table, "single", seen.append)
    creamfl.main(flags.split())
    assert seen[0].variant == "released"


def test_a_runs_config_holds_what_decides_its_result():
    kept = tables.of_a_run(creamfl_study.PRESETS["coco"])
    assert kept.keys().isdisjoint({"method", "out", "seed", "seeds", "chunk", "devices", "client_state", "data_dir"})
    assert kept["rounds"] == 30 and json.loads(json.dumps(kept))["size"]["dim"] == 512


def test_where_states_are_and_how_often_they_are_written_is_said_to_the_run(tmp_path, monkeypatch):
    given = {}
    monkeypatch.setattr(tables.run, "train", lambda method, data, **named: given.update(named))
    for flags, states, every in (([], "device", 5), (["--client-state=host"], "host", 5)):
        settings = cli.parse(fedavg.PRESETS, [*flags, "--out", str(tmp_path)], None)
        tables.finish(None, None, settings.problem.common, settings, "FedAvg", 3, checkpoint_every=5)
        assert (given["client_state"], given["checkpoint_every"]) == (states, every)
    flags = ["--client-state=folder", "--checkpoint-every=2", "--out", str(tmp_path)]
    settings = cli.parse(fedavg.PRESETS, flags, None)
    tables.finish(None, None, settings.problem.common, settings, "FedAvg", 3, checkpoint_every=5)
    assert given["client_state"] == tmp_path / "FedAvg" / "seed3" / "client_states" and given["checkpoint_every"] == 2
    with pytest.raises(ValueError, match="--checkpoint-every is 0; it must be at least 1"):
        cli.parse(fedavg.PRESETS, ["--checkpoint-every=0"], None)


def test_every_preset_is_for_its_dataset():
    names = {name: name for name in data.DATASETS}
    of = lambda study: {name: preset.problem.data for name, preset in study.PRESETS.items()}
    assert of(fedavg) == names and of(fedmekt).items() <= names.items()
