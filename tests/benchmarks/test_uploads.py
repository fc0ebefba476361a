"""The benchmark of uploads: a row for each transform, epsilon and control, with differences within a seed."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "uploads"))
from small import DATA, toy

from benchmarks import uploads
from experiments.common import tables


def task(settings, name, seed, private):
    """A method of one slot, whose score is the sum of what the server has."""
    score = lambda state, arrays: {"rsum": float(state.server["w"].sum())}
    method, silent = (toy()._replace(evaluate=score) for _ in range(2))
    return uploads.Task(method, silent, DATA, {"x": np.zeros((1, 40), np.float32)}, "rsum", 4, 1, False, 1.0)


def test_the_command_writes_a_row_for_each_upload_and_its_control(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(uploads, "task_of", task)
    given = ["--transforms", "as it is", "8 bits", "--local-epsilons", "8", "--seeds", "2"]
    assert uploads.main([*given, "--out", str(tmp_path)]) == tmp_path
    assert "fedavg and fedmekt are skipped: --data-dir names no folder of UR Fall" in capsys.readouterr().out
    written = json.loads((tmp_path / "uploads.json").read_text())
    rows = {row["upload"]: row for row in written["rows"]}
    assert list(rows) == ["as it is", "8 bits", "server only", "clipped", "clipped, epsilon 8"]
    assert written["versions"]["jax"] and written["device"]
    assert rows["as it is"]["kB up"] == pytest.approx(0.16) and "difference" not in rows["as it is"]
    assert rows["8 bits"]["kB up"] < 0.05 and "kB up" not in rows["server only"]
    mean = np.mean(np.subtract(rows["8 bits"]["scores"], rows["as it is"]["scores"]))
    assert float(rows["8 bits"]["difference"]) == pytest.approx(mean, abs=0.05)
    assert rows["clipped, epsilon 8"]["epsilon"] == 8 and rows["clipped"]["epsilon"] is None
    assert (tmp_path / "uploads.md").read_text().count("\n") == 7 and (tmp_path / "uploads.png").stat().st_size > 10_000
    with pytest.raises(ValueError, match="the transform 3 bits is not known; there are as it is, 16 bits"):
        uploads.main(["--only", "creamfl", "--transforms", "3 bits", "--out", str(tmp_path)])


def test_every_row_has_a_folder_of_its_own_and_noise_its_own_clients():
    settings = uploads.Settings()
    names = uploads.all_rows(settings)
    assert len({tables.folder(settings.common, name, 0) for name in names}) == len(names) == 16 + 16 + 15
    assert all(name.startswith(f"{row.method}_private/") == row.private for name, row in names.items())
