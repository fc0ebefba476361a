"""Checkpoints of Hugging Face's own encoders give Hugging Face's own answers, and nothing goes astray unsaid."""

import json
import pathlib
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fedjax_mm import trees
from fedjax_mm.models import ast, bert, pretrained, transformer, vit, whisper

FIXTURES = pathlib.Path(__file__).parent / "fixtures"
SIZES = {"dim": 16, "depth": 2, "heads": 2, "mlp": 24}
# family: (our encoder of the fixture's sizes, prefix of its files, other heads' tensors in them)
FAMILIES = {
    "vit": (
        lambda **k: vit.encoder(image=8, patch=4, **{**SIZES, "pooler": True, **k}),
        "vit.",
        ["classifier.weight", "classifier.bias"],
    ),
    "distilbert": (
        lambda **k: bert.encoder(vocabulary=30, positions=8, **{**SIZES, **k}),
        "distilbert.",
        ["vocab_transform.weight", "vocab_layer_norm.bias", "vocab_projector.bias"],
    ),
    "bert": (
        lambda **k: bert.encoder(vocabulary=30, positions=8, **{**SIZES, "types": 2, "pooler": True, **k}),
        "bert.",
        ["cls.predictions.transform.LayerNorm.gamma", "cls.seq_relationship.weight", "bert.embeddings.position_ids"],
    ),
    "ast": (
        lambda **k: ast.encoder(mels=12, frames=15, patch=4, stride=3, **{**SIZES, **k}),
        "audio_spectrogram_transformer.",
        ["classifier.layernorm.weight", "classifier.dense.weight"],
    ),
    "whisper": (
        lambda **k: whisper.encoder(mels=8, positions=10, **{**SIZES, **k}),
        "model.",
        ["decoder.embed_tokens.weight", "proj_out.weight"],
    ),
}
every_family = pytest.mark.parametrize("family", FAMILIES)


def fixture(family):
    """Its arrays, and its tensors (names without prefix) in float32."""
    arrays = dict(np.load(FIXTURES / f"{family}.npz"))
    tensors = {k.removeprefix("tensor/"): v.astype(np.float32) for k, v in arrays.items() if k.startswith("tensor/")}
    return arrays, tensors


def write(path, tensors, prefix=""):
    save_file({prefix + name: x for name, x in tensors.items()}, path)
    return path


@every_family
def test_answers_are_hugging_faces(family, tmp_path):
    make, prefix, heads = FAMILIES[family]
    model = make()
    arrays, tensors = fixture(family)
    others = {name: np.ones(3, np.float32) for name in heads}
    save_file({prefix + name: x for name, x in tensors.items()} | others, tmp_path / "model.safetensors")
    params = pretrained.load(model, tmp_path)
    fresh = jax.eval_shape(model.init, jax.random.key(0), arrays["inputs"])
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, fresh)
    tokens = jax.jit(model.tokens)(params, arrays["inputs"])
    np.testing.assert_allclose(tokens, arrays["tokens"], atol=1e-5)
    expected = arrays["tokens"].mean(1) if family == "whisper" else arrays["tokens"][:, 0]
    np.testing.assert_allclose(jax.jit(model.apply)(params, arrays["inputs"]), expected, atol=1e-5)
    one = jax.jit(model.tokens)(transformer.first(params, 1), arrays["inputs"])
    np.testing.assert_allclose(one, arrays["tokens_1"], atol=1e-5)
    if family in ("vit", "bert"):
        np.testing.assert_allclose(transformer.pooled(params, tokens), arrays["pooled"], atol=1e-5)
    if family == "ast":
        np.testing.assert_allclose(tokens[:, :2].mean(1), arrays["pooled"], atol=1e-5)


@every_family
def test_what_is_saved_has_their_names_and_loads_again(family, tmp_path):
    model = FAMILIES[family][0]()
    _, tensors = fixture(family)
    params = pretrained.load(model, write(tmp_path / "a.safetensors", tensors))
    pretrained.save(params, model, tmp_path / "b.safetensors")
    written = load_file(tmp_path / "b.safetensors")
    assert written.keys() == tensors.keys()
    jax.tree.map(np.testing.assert_array_equal, written, tensors)
    jax.tree.map(np.testing.assert_array_equal, pretrained.load(model, tmp_path / "b.safetensors"), params)

    pretrained.save(transformer.first(params, 1), model, tmp_path / "c.safetensors")
    shallow = pretrained.load(FAMILIES[family][0](depth=1), tmp_path / "c.safetensors")
    jax.tree.map(np.testing.assert_array_equal, shallow, transformer.first(params, 1))


def test_presets_name_where_their_weights_are(tmp_path):
    for preset, repository in {
        vit.tiny: "WinKawaks/vit-tiny-patch16-224",
        bert.distilbert: "distilbert-base-uncased",
        bert.base: "bert-base-uncased",
        bert.minilm: "sentence-transformers/all-MiniLM-L6-v2",
        ast.distilled: "bookbot/distil-ast-audioset",
        whisper.base: "openai/whisper-base",
    }.items():
        for path in (tmp_path, tmp_path / "model.safetensors"):
            with pytest.raises(FileNotFoundError, match=f"huggingface.co/{repository} and pass its local path"):
                pretrained.load(preset(), path)


def test_shards_old_names_and_half_precision(tmp_path):
    model = FAMILIES["bert"][0]()
    arrays, tensors = fixture("bert")
    expected = pretrained.load(model, write(tmp_path / "whole.safetensors", tensors))
    old = {
        k.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): v
        for k, v in tensors.items()
    }
    names = sorted(old)
    halves = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
    for shard, part in halves.items():
        half = {"one.safetensors": np.float16, "two.safetensors": ml_dtypes.bfloat16}[shard]
        write(tmp_path / shard, {name: old[name].astype(half) for name in part}, "bert.")
    index = {"weight_map": {f"bert.{name}": shard for shard, part in halves.items() for name in part}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    params = pretrained.load(model, tmp_path)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2**-8), params, expected)
    (tmp_path / "two.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="two.safetensors"):
        pretrained.load(model, tmp_path)


def test_a_pooler_the_file_lacks_is_left_out_and_half_of_one_is_missed(tmp_path):
    model = FAMILIES["vit"][0]()
    _, tensors = fixture("vit")
    without = {name: x for name, x in tensors.items() if not name.startswith("pooler")}
    params = pretrained.load(model, write(tmp_path / "a.safetensors", without))
    assert params.keys() == {"embeddings", "layers", "norm"}
    fresh = jax.eval_shape(model.init, jax.random.key(0), model.example)
    assert jax.tree.map(jnp.shape, trees.grow(params, fresh)) == jax.tree.map(jnp.shape, fresh)
    with pytest.raises(ValueError, match=r"pooler.dense.bias \(16,\) is missing"):
        half = without | {"pooler.dense.weight": tensors["pooler.dense.weight"]}
        pretrained.load(model, write(tmp_path / "b.safetensors", half))
    plain = pretrained.load(FAMILIES["vit"][0](pooler=False), write(tmp_path / "c.safetensors", tensors))
    jax.tree.map(np.testing.assert_array_equal, plain, params)


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda t: t.pop("layernorm.weight"), r"layernorm.weight \(16,\) is missing"),
        (
            lambda t: t.update({"embeddings.position_embeddings": np.zeros((1, 7, 16), np.float32)}),
            r"embeddings.position_embeddings must be \(1, 5, 16\), found \(1, 7, 16\)",
        ),
        (
            lambda t: t.update({"encoder.layer.2.output.dense.bias": np.zeros(16, np.float32)}),
            r"encoder.layer.2.output.dense.bias \(16,\) has no place",
        ),
        (lambda t: t.update({"vit.layernorm.weight": np.zeros(16, np.float32)}), "layernorm.weight twice"),
        (lambda t: t.clear(), "and 18 more"),  # of 4 + 2 * 16 + 2; the pooler may be missing
    ],
    ids=["missing", "shape", "no place", "twice", "empty"],
)
def test_tensors_that_do_not_fit_are_listed(change, said, tmp_path):
    _, tensors = fixture("vit")
    change(tensors)
    with pytest.raises(ValueError, match=said):
        pretrained.load(FAMILIES["vit"][0](), write(tmp_path / "a.safetensors", tensors))


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_file_is_named(share, tmp_path):
    file = write(tmp_path / "a.safetensors", fixture("vit")[1])
    data = file.read_bytes()
    file.write_bytes(data[: int(share * len(data))])
    with pytest.raises(ValueError, match="a.safetensors is damaged or incomplete"):
        pretrained.load(FAMILIES["vit"][0](), file)


def test_pytorch_files_need_torch_and_are_read_as_weights_only(tmp_path, monkeypatch):
    model = FAMILIES["ast"][0]()
    _, tensors = fixture("ast")
    file = tmp_path / "pytorch_model.bin"
    file.touch()
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match="install torch, or convert it to safetensors"):
        pretrained.load(model, tmp_path)

    def load(path, map_location, weights_only):
        assert (path, map_location, weights_only) == (file, "cpu", True)
        wrap = lambda x: types.SimpleNamespace(
            float=lambda: types.SimpleNamespace(numpy=lambda: x), is_floating_point=lambda: True
        )
        return {f"audio_spectrogram_transformer.{name}": wrap(x) for name, x in tensors.items()}

    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(load=load))
    expected = pretrained.load(model, write(tmp_path / "a.safetensors", tensors))
    jax.tree.map(np.testing.assert_array_equal, pretrained.load(model, tmp_path), expected)

    def refuse(path, **_):
        raise RuntimeError("failed finding central directory")

    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(load=refuse))
    with pytest.raises(ValueError, match="pytorch_model.bin is damaged.*central directory"):
        pretrained.load(model, file)


def test_without_safetensors_the_cure_is_named(tmp_path, monkeypatch):
    model = FAMILIES["vit"][0]()
    file = write(tmp_path / "a.safetensors", fixture("vit")[1])
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    for call in (lambda: pretrained.load(model, file), lambda: pretrained.save({}, model, file)):
        with pytest.raises(ImportError, match=r"is not installed; run: pip install 'fedjax_mm\[text\]'$"):
            call()


def test_models_import_without_optional_packages():
    """A package that is None in sys.modules raises ImportError, as one that is not installed does."""
    blocked = ("safetensors", "tokenizers", "torch", "PIL", "sklearn", "matplotlib", "tyro", "tensorflow_datasets")
    code = f"import sys; sys.modules.update(dict.fromkeys({blocked})); import fedjax_mm.models"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=pathlib.Path(__file__).parents[2])


def test_other_files_and_parameters_are_refused(tmp_path):
    model = FAMILIES["vit"][0]()
    (tmp_path / "tf_model.h5").touch()
    with pytest.raises(ValueError, match="must be a .safetensors, .bin or .index.json file"):
        pretrained.load(model, tmp_path / "tf_model.h5")
    with pytest.raises(ValueError, match="must end in .safetensors"):
        pretrained.save({}, model, tmp_path / "a.npz")
    with pytest.raises(ValueError, match="no parameters.*layers/07/out/bias"):
        pretrained.save({"layers": {"07": {"out": {"bias": np.zeros(16)}}}}, model, tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    "dtype", [ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, np.int8, np.uint8, np.int32, np.complex64, bool]
)
def test_weights_that_are_no_floats_are_refused_by_name(tmp_path, dtype):
    _, tensors = fixture("vit")
    tensors["layernorm.weight"] = tensors["layernorm.weight"].astype(dtype)
    file = write_raw(tmp_path / "a.safetensors", tensors)
    with pytest.raises(ValueError, match="(?s)a.safetensors.*layernorm.weight (is of type|holds) .*quantised"):
        pretrained.load(FAMILIES["vit"][0](), file)


def write_raw(path, tensors):
    """A safetensors file by its published format, with types that the library does not write from NumPy."""
    names = {"float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float32": "F32", "int8": "I8", "uint8": "U8"}
    names |= {"int32": "I32", "complex64": "C64", "bool": "BOOL"}
    header, data = {}, b""
    for name, x in tensors.items():
        content = np.ascontiguousarray(x).tobytes()
        header[name] = {
            "dtype": names[x.dtype.name],
            "shape": x.shape,
            "data_offsets": [len(data), len(data + content)],
        }
        data += content
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


@pytest.mark.parametrize(("value", "dtype"), [(np.nan, np.float32), (np.inf, np.float16), (1e300, np.float64)])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path, value, dtype):
    _, tensors = fixture("vit")
    tensors["layernorm.weight"] = np.full(16, value, dtype)
    with pytest.raises(ValueError, match="layernorm.weight has NaN or numbers that float32 does not hold"):
        pretrained.load(FAMILIES["vit"][0](), write(tmp_path / "a.safetensors", tensors))


@pytest.mark.parametrize(
    "header",
    [b"", b"{", b"[" * 100_000, b"[]", b'{"a": 3}', b'{"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}']
    + [b'{"a": {"dtype": "F32", "shape": [1000000000000000], "data_offsets": [0, 4]}}', b"\xff\xfe"],
)
def test_a_damaged_header_is_named(tmp_path, header):
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(ValueError, match="a.safetensors is damaged or incomplete"):
        pretrained.load(FAMILIES["vit"][0](), tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{", "is damaged or no index"),
        ("[]", "is damaged or no index"),
        ("{}", "is damaged or no index"),
        ("[" * 100_000, "is damaged or no index"),
        ('{"weight_map": {"a": 3}}', "names 3 as a shard"),
        ('{"weight_map": {"a": "../a.safetensors"}}', "names '../a.safetensors' as a shard"),
        ('{"weight_map": {"a": "model.safetensors.index.json"}}', "names 'model.safetensors.index.json' as a shard"),
        (
            '{"weight_map": {"a": "a.safetensors", "b": "b.safetensors"}}',
            "b.safetensors has .*, which another shard",
        ),
    ],
)
def test_a_damaged_index_of_shards_is_named(tmp_path, index, message):
    _, tensors = fixture("vit")
    for name in ("a", "b"):
        write(tmp_path / f"{name}.safetensors", tensors)
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ValueError, match=message):
        pretrained.load(FAMILIES["vit"][0](), tmp_path)


@pytest.mark.parametrize("path", [None, 3, ""])
def test_a_path_that_is_none_is_named(path):
    with pytest.raises(ValueError, match="path is .*; give the path of a checkpoint"):
        pretrained.load(FAMILIES["vit"][0](), path)
