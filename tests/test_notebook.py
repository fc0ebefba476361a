"""The tour is run as a reader runs it, and what it shows is read back."""

import ast
import importlib.util
import os
import pathlib
import shutil
import subprocess

import jax
import jaxlib
import nbformat
import pytest
from nbclient import NotebookClient

ROOT = pathlib.Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "notebooks"
TOUR, STEPS = NOTEBOOKS / "tour.ipynb", NOTEBOOKS / "client_updates.ipynb"


@pytest.fixture
def shown(request, tmp_path, monkeypatch):
    """Cell id -> the cell's outputs, after a run of the notebook `request.param` in a copy of the checkout."""
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "fedjax_mm").symlink_to(ROOT / "fedjax_mm")
    notebook = nbformat.read(shutil.copy(request.param, tmp_path / "notebooks"), as_version=4)
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "TMPDIR"):
        (tmp_path / name.lower()).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"].replace("device_count=4", "device_count=2"))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", jax.config.jax_compilation_cache_dir)
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
    monkeypatch.setenv("PIP_NO_INDEX", "1")  # whatever is not found here must not come from elsewhere
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the kernel's own shows pictures in the page
    resources = {"metadata": {"path": str(tmp_path / "notebooks")}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()
    return {cell.id: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}


def value(outputs):
    """What the last expression of a cell evaluated to, where that is a Python literal."""
    return ast.literal_eval(outputs[-1].data["text/plain"])


def text(outputs):
    """All that a cell printed or showed as a table."""
    return "".join(o.text if o.output_type == "stream" else o.data.get("text/markdown", "") for o in outputs)


@pytest.mark.parametrize("path", [TOUR, STEPS], ids=lambda path: path.stem)
def test_the_committed_notebooks_are_small_clean_and_import_public_names(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(notebook.cells) < 30 and path.stat().st_size < 50_000
    assert notebook.metadata.kernelspec.name == "python3"
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    imports = [n for cell in code for n in ast.walk(ast.parse(cell.source)) if isinstance(n, ast.ImportFrom)]
    ours = [(n.module, name.name) for n in imports if n.module.startswith("fedjax_mm") for name in n.names]
    assert ours and not [name for name in ours if "._" in name[0] or name[1].startswith("_")]


def test_the_first_cell_installs_what_is_missing_and_leaves_jax_alone(tmp_path, monkeypatch):
    first = next(cell for cell in nbformat.read(TOUR, as_version=4).cells if cell.cell_type == "code")
    commands, find = [], importlib.util.find_spec
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(subprocess, "run", lambda command, check: commands.append(command))
    exec(first.source, {})  # the package is here
    assert not commands
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "fedjax_mm" else find(name))
    exec(first.source, {})
    assert [word for word in commands[0] if "==" in word] == [
        f"jax=={jax.__version__}",
        f"jaxlib=={jaxlib.__version__}",
    ]
    assert any(word.startswith("fedjax_mm[report] @ ") for word in commands[0])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    exec(first.source, {})
    assert not [word for word in commands[1] if "==" in word]


@pytest.mark.parametrize("shown", [STEPS], indirect=True, ids=["client_updates"])
def test_one_client_of_each_paper_is_updated_without_build(shown):
    said = "".join(text(outputs) for outputs in shown.values())
    for paper in ("FedMEKT", "MMFL", "CreamFL", "FedDAT", "PEFT"):
        assert f"{paper} sends" in said
    assert "weights of three clients: [2. 2. 2.]" in said
    assert "the second stage sends [\"['layers']['01']\"] ['loss']" in said  # and neither embeddings nor layer 00


@pytest.mark.parametrize("shown", [TOUR], indirect=True, ids=["tour"])
def test_the_tour_shows_what_it_says(shown):
    scores = value(shown["own-run"])
    accuracy = {name: row["test/left+right/accuracy"] for name, row in scores.items()}
    assert accuracy["FedAvg"] > accuracy["local only"] + 0.2 > 0.4
    assert accuracy["mean embeddings"] > 0.3
    head, encoder = 4 * (32 * 10 + 10), 4 * (32 * 64 + 64 + 64 * 32 + 32)
    assert scores["local only"]["MB up"] == 0
    assert scores["mean embeddings"]["MB up"] * 1e6 == pytest.approx(4 * (10 * 32 + 10))
    assert scores["FedAvg"]["MB up"] * 1e6 == pytest.approx(head + 2 * encoder)
    assert f"| left | {head + encoder} | {head + encoder} |" in text(shown["costs"])
    assert f"slot 'left': {encoder} bytes" in text(shown["method"]) and "'right'" not in text(shown["method"])

    assert 0 <= value(shown["mapping"]) < 1e-5
    assert float(text(shown["seeds"]).split()[-1]) < 1e-3
    losses = [float(line.split()[-1]) for line in text(shown["loop"]).splitlines()]
    assert losses[-1] < losses[0] / 2

    pictures = [id for id, outputs in shown.items() for o in outputs if "image/png" in o.get("data", {})]
    assert pictures == ["modalities", "split", "controls"]
    assert not [o.text for outputs in shown.values() for o in outputs if o.get("name") == "stderr"]
