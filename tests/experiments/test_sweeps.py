"""`sweep` of the scripts: the grid is read as flags are, and every study has a method for each of its points."""

import dataclasses

import pytest

from experiments.common import cli, sweeps
from experiments.common import data as problems
from experiments.creamfl import study as creamfl
from experiments.fedavg import __main__ as fedavg_script
from experiments.fedavg import study as fedavg
from experiments.feddat import study as feddat
from experiments.fedmekt import study as fedmekt
from experiments.layerwise import study as layerwise
from fedjax_mm import report

STUDIES = {"fedavg": fedavg, "fedmekt": fedmekt, "feddat": feddat, "layerwise": layerwise, "creamfl": creamfl}


@pytest.mark.parametrize("name", STUDIES)
def test_every_setting_that_can_be_swept_is_a_flag_and_has_a_place_in_the_settings(name):
    study = STUDIES[name]
    settings = next(iter(study.PRESETS.values()))
    for setting in study.SWEPT:
        value = sweeps.value_of(settings, setting)
        marked = sweeps.replace(settings, setting, value + 1 if isinstance(value, int | float) else "another")
        assert sweeps.value_of(sweeps.replace(marked, setting, value), setting) == value
        assert sweeps.replace(marked, setting, value) == settings
    with pytest.raises(ValueError, match="there is no setting nonsense"):
        sweeps.replace(settings, "nonsense", 1)


def test_a_value_is_read_as_its_flag_reads_it():
    read = lambda name, text: sweeps._value(fedavg.PRESETS, ["--data", "ur_fall"], None, name, text)
    assert read("client_lr", ".1") == 0.1 and read("epochs", "3") == 3 and read("server_optimizer", "adam") == "adam"
    assert isinstance(read("prox", "0"), float)
    with pytest.raises(ValueError, match="server-optimizer"):
        read("server_optimizer", "sdg")
    assert sweeps._value(fedmekt.PRESETS, [], None, "method.released", "true") is True


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("", "there is no --grid"),
        ("--grid client_lr", "--grid has 'client_lr'; write a setting and its values"),
        ("--grid client_lr=.1,", "--grid has 'client_lr=.1,'"),
        ("--grid rounds=1,2", "the setting of --grid rounds is not known; there are client_lr, "),
        ("--grid speed=1", "--speed"),
        ("--grid client_lr=fast", "client-lr"),
    ],
)
def test_a_wrong_grid_costs_one_line(arguments, said, tmp_path):
    with pytest.raises(ValueError, match=said) as error:
        fedavg_script.main(["sweep", *arguments.split(), "--out", str(tmp_path / "out")])
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_the_command_sweeps_scores_on_valid_and_writes_the_report(tmp_path, monkeypatch, capsys):
    small = problems.Settings(cohorts="AB2", common=cli.Common(rounds=2, seeds=2, out=str(tmp_path / "out")))
    digits = dataclasses.replace(fedavg.PRESETS["digits"], problem=small)
    monkeypatch.setattr(fedavg, "PRESETS", {"digits": digits})
    swept = fedavg_script.main(["sweep", "--grid", "client-lr=.01,.1", "--epochs", "1"])
    assert [point["client_lr"] for point in swept.settings] == [0.01, 0.1] and swept.seeds == (0, 1)
    assert all(name.startswith(("valid/", "left+right/", "server/")) for name in swept.scores)
    assert report.read_sweep(tmp_path / "out/sweep").settings == swept.settings
    said = capsys.readouterr().out
    assert "Best by valid/left" in said and "--client-lr=" in said and (tmp_path / "out/sweep.png").is_file()
    with pytest.raises(ValueError, match="holds a sweep already"):
        fedavg_script.main(["sweep", "--grid", "client-lr=.01,.1", "--epochs", "1"])
