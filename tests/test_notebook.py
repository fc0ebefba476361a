"""The notebooks are run, the tour as a reader runs it and the others in this process, and what they show is read."""

import ast
import importlib.util
import os
import pathlib
import shutil
import subprocess
import tempfile

import IPython.display
import jax
import jaxlib
import matplotlib.pyplot as plt
import nbformat
import pytest
from nbclient import NotebookClient

ROOT = pathlib.Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "notebooks"
TOUR, STEPS = NOTEBOOKS / "tour.ipynb", NOTEBOOKS / "client_updates.ipynb"
FEDMEKT, CREAMFL, LAYERWISE, FEDDAT = (
    NOTEBOOKS / f"{name}.ipynb" for name in ("fedmekt", "creamfl", "layerwise", "feddat")
)
ALL = [TOUR, STEPS, FEDMEKT, CREAMFL, LAYERWISE, FEDDAT]


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


@pytest.fixture
def ran(request, tmp_path, monkeypatch, capsys):
    """(the variables, the ids of the cells that showed a picture) of the notebook `request.param`; a paper's is tiny.

    A kernel takes as long to start as the notebook to run, so that the cells run in this process.
    """
    pictures, at = [], ""

    def show():
        for number in plt.get_fignums():
            figure = plt.figure(number)
            figure.canvas.draw()
            assert figure.axes and all(axes.has_data() for axes in figure.axes)
            pictures.append(at)
        plt.close("all")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("FEDJAX_MM_QUICK", "1")
    monkeypatch.setattr(plt, "show", show)
    monkeypatch.setattr(IPython.display, "Image", lambda path, width: path.stat() and pictures.append(at))
    names = {"__name__": "__main__"}
    for cell in nbformat.read(request.param, as_version=4).cells:
        at = cell.id
        if cell.cell_type == "code":
            exec(compile(cell.source, f"{request.param.name}, cell {cell.id}", "exec"), names)
    assert not plt.get_fignums()  # every picture was shown
    return names, pictures


def value(outputs):
    """What the last expression of a cell evaluated to, where that is a Python literal."""
    return ast.literal_eval(outputs[-1].data["text/plain"])


def text(outputs):
    """All that a cell printed or showed as a table."""
    return "".join(o.text if o.output_type == "stream" else o.data.get("text/markdown", "") for o in outputs)


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
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


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_the_first_cell_installs_what_is_missing_and_leaves_jax_alone(path, tmp_path, monkeypatch):
    first = next(cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code")
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


@pytest.mark.parametrize("ran", [STEPS], indirect=True, ids=["client_updates"])
def test_one_client_of_each_paper_is_updated_without_build(ran, capsys):
    said = capsys.readouterr().out
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


@pytest.mark.parametrize("path", [FEDMEKT, CREAMFL, LAYERWISE, FEDDAT], ids=lambda path: path.stem)
def test_the_notebook_of_a_paper_has_a_badge_and_a_page_in_the_docs_names_it(path):
    first, *_, last = nbformat.read(path, as_version=4).cells
    address = f"https://colab.research.google.com/github/fedjax-mm/fedjax_mm/blob/main/notebooks/{path.name}"
    assert f"({address})" in first.source and f"({address})" in (ROOT / "docs" / "notebooks.md").read_text()
    assert "What changes on a GPU or TPU" in last.source


@pytest.mark.parametrize("ran", [FEDMEKT], indirect=True, ids=["fedmekt"])
def test_fedmekt_sends_embeddings_of_proxy_windows_and_no_labels(ran):
    names, pictures = ran
    assert pictures == ["data", "split", "travel", "run", "heard"]
    assert names["heard"] == dict.fromkeys(("left", "right"), 180 * 16 * 4)  # windows, width, float32
    assert {size["embeddings"] for size in names["sizes"].values()} == {180 * 16 * 4}
    assert [sorted(cohort.arrays) for cohort in names["data"].cohorts.values()] == [["left"], ["right"]]
    assert set(names["scores"]) == {"FedMEKT", "server only", "random encoder"}
    assert all(0.1 < score <= 1 for score in names["scores"].values())


@pytest.mark.parametrize("ran", [CREAMFL], indirect=True, ids=["creamfl"])
def test_creamfl_sends_a_representation_of_each_public_pair(ran):
    names, pictures = ran
    assert pictures == ["data", "travel", "run", "score"]
    one = 359 * 32 * 4  # public pairs, dimensions, float32
    assert names["sent"] == {"image": one, "text": one, "both": 2 * one}
    assert {cost.bytes_down for cost in names["paid"].values()} == {2 * one}
    assert 0 < names["drift"]["CreamFL"] < 1
    assert all(0 < score < 100 for score in names["scores"]["CreamFL"].values())


@pytest.mark.parametrize("ran", [LAYERWISE], indirect=True, ids=["layerwise"])
def test_layer_wise_training_sends_less_than_end_to_end_by_what_is_frozen(ran):
    names, pictures = ran
    assert pictures == ["data", "plans", "run", "total"]
    sent = names["sent"]
    frozen = 2 * (32 * 16 + 16 * 16) * 4  # two encoders' embeddings and first layers, float32
    assert sent["layer-wise"][1] + frozen == sent["progressive"][1] == sent["end-to-end"][0]
    assert sent["layer-wise"][0] == sent["progressive"][0] < sent["end-to-end"][0]
    assert 0 < names["scores"]["layer-wise"] <= 1


@pytest.mark.parametrize("ran", [FEDDAT], indirect=True, ids=["feddat"])
def test_feddat_sends_one_adapter_and_holds_the_trunk(ran):
    names, pictures = ran
    assert pictures == ["data", "trunk", "travel", "run"]
    adapter = 2 * (32 * 8 + 8 + 8 * 32 + 32) * 4  # layers, down and up with biases, float32
    trunk = (64 * 32 + 2 * 32 * 32) * 4
    assert names["bytes_of"] == {"sent in a round": adapter, "held, sent once": trunk}
    assert names["losses"][-1] < names["losses"][0] / 2
    assert all(0 < score <= 100 for score in names["scores"].values())
