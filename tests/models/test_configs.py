"""Sizes that config.json states and no tensor does: models are built by them, and weights are not read against them."""

import json

import jax
import numpy as np
import pytest

from fedjax_mm.models import ast, bert, pretrained, resnet, vilt, vit, whisper

BLOCKS = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
TEXT = {"vocab_size": 30, "max_position_embeddings": 8}
# family: (our reader, a model of these sizes, its config.json as Hugging Face writes it, without what has no part here)
FAMILIES = {
    "vit": (
        vit.from_pretrained,
        vit.encoder(image=8, patch=4, dim=16, depth=2, heads=2, mlp=24),
        {
            **BLOCKS,
            "model_type": "vit",
            "image_size": 8,
            "patch_size": 4,
            "layer_norm_eps": 1e-12,
            "hidden_act": "gelu",
        },
    ),
    "bert": (
        bert.from_pretrained,
        bert.encoder(vocabulary=30, positions=8, dim=16, depth=2, heads=2, mlp=24, types=2),
        {**BLOCKS, **TEXT, "model_type": "bert", "type_vocab_size": 2, "layer_norm_eps": 1e-12, "hidden_act": "gelu"},
    ),
    "distilbert": (
        bert.from_pretrained,
        bert.encoder(vocabulary=30, positions=8, dim=16, depth=2, heads=2, mlp=24),
        {**TEXT, "model_type": "distilbert", "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24},
    ),
    "ast": (
        ast.from_pretrained,
        ast.encoder(mels=12, frames=15, patch=4, stride=3, dim=16, depth=2, heads=2, mlp=24),
        {**BLOCKS, "model_type": "audio-spectrogram-transformer", "num_mel_bins": 12, "max_length": 15, "patch_size": 4}
        | {"frequency_stride": 3, "time_stride": 3, "layer_norm_eps": 1e-12},
    ),
    "whisper": (
        whisper.from_pretrained,
        whisper.encoder(mels=8, positions=10, dim=16, depth=2, heads=2, mlp=24),
        {"model_type": "whisper", "num_mel_bins": 8, "max_source_positions": 10, "d_model": 16, "encoder_layers": 2}
        | {"encoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_layers": 7, "scale_embedding": False},
    ),
    "vilt": (
        vilt.from_pretrained,
        vilt.encoder(image=8, patch=4, vocabulary=30, text_length=8, dim=16, depth=2, heads=2, mlp=24),
        {**BLOCKS, **TEXT, "model_type": "vilt", "image_size": 8, "patch_size": 4},
    ),
    "resnet": (
        resnet.from_pretrained,
        resnet.encoder((1, 1), (4, 8), "basic", "batch", "imagenet", "imagenet"),
        {"model_type": "resnet", "depths": [1, 1], "hidden_sizes": [4, 8], "layer_type": "basic", "hidden_act": "relu"},
    ),
}
OTHER = {
    "vit": {"num_attention_heads": 4},
    "bert": {"layer_norm_eps": 1e-5},
    "distilbert": {"activation": "relu"},
    "ast": {"frequency_stride": 2},
    "whisper": {"encoder_attention_heads": 8},
    "vilt": {"hidden_act": "gelu_new"},
    "resnet": {"downsample_in_first_stage": True},
}


def write(folder, family, **changed):
    """(the folder of a model with its config.json, the model's parameters)."""
    model, content = FAMILIES[family][1:]
    shapes = jax.eval_shape(model.init, jax.random.key(0), model.example)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)
    pretrained.save(params, model, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**content, **changed}))
    return params


@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_that_a_folder_describes_is_built_and_another_is_refused(family, tmp_path):
    read, model, _ = FAMILIES[family]
    params = write(tmp_path, family)
    found, loaded = read(tmp_path)
    assert found.checkpoint.config == model.checkpoint.config and found.width == model.width
    jax.tree.map(np.testing.assert_array_equal, loaded, params)

    write(tmp_path, family, **OTHER[family])
    ((key, value),) = OTHER[family].items()
    for path in (tmp_path, tmp_path / "model.safetensors"):
        with pytest.raises(ValueError, match=f"config.json describes another model: {key} is {value!r} there and "):
            pretrained.load(model, path)


def test_a_config_that_is_missing_damaged_foreign_or_short_is_named(tmp_path):
    params = write(tmp_path, "vit")
    file, (_, model, content) = tmp_path / "config.json", FAMILIES["vit"]
    with pytest.raises(ValueError, match="of type 'vit'; this function reads 'bert' or 'distilbert'"):
        bert.from_pretrained(tmp_path)
    file.write_text(json.dumps({key: value for key, value in content.items() if key != "num_attention_heads"}))
    with pytest.raises(ValueError, match="config.json lacks num_attention_heads; give the sizes to encoder"):
        vit.from_pretrained(tmp_path)
    for damaged in ("{", "[]", "{}", "[" * 100_000, '{"rounds": 3}'):
        file.write_text(damaged)
        with pytest.raises(ValueError, match="config.json is damaged or states no model_type"):
            vit.from_pretrained(tmp_path)
        jax.tree.map(np.testing.assert_array_equal, pretrained.load(model, tmp_path), params)  # it says nothing
    file.unlink()
    with pytest.raises(FileNotFoundError, match="there is no .*config.json; download it with model.safetensors"):
        vit.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="folder is 3; give the path of a folder"):
        vit.from_pretrained(3)
