"""ALBEF against NumPy that reads the authors' tensors by the authors' names, one question and one answer at a time."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from scipy.special import erf

from fedjax_mm.models import adapters, albef, albef_names, pretrained

KEY, DIM, HEADS = jax.random.key(0), 8, 2
SIZES = {"image": 16, "patch": 4, "vocabulary": 20, "length": 6, "dim": DIM, "heads": HEADS, "mlp": 12}
MODEL = albef.encoder(**SIZES, depths=(2, 4, 2))
BATCH = {
    "image": np.random.default_rng(3).integers(0, 256, (2, 16, 16, 3)).astype(np.uint8),
    "question": np.array([[2, 7, 9, 3, 0], [2, 11, 3, 0, 0]], np.int32),
    "choices": np.array([[[2, 5, 3, 0], [2, 6, 8, 3]], [[2, 9, 3, 0], [2, 4, 3, 0]]], np.int32),
}
apply = jax.jit(MODEL.apply)


def published(grid=3, seed=1):
    """Random tensors by the names of the published file, whose pictures have grid x grid patches."""
    rng, tensors = np.random.default_rng(seed), {}

    def put(name, *shape):
        tensors[name] = rng.normal(0.1, 0.4, shape).astype(np.float32)

    def linear(name, out, into):
        put(f"{name}.weight", out, into), put(f"{name}.bias", out)

    def norm(name):
        put(f"{name}.weight", DIM), put(f"{name}.bias", DIM)

    put("visual_encoder.cls_token", 1, 1, DIM), put("visual_encoder.pos_embed", 1, 1 + grid**2, DIM)
    put("visual_encoder.patch_embed.proj.weight", DIM, 3, 4, 4), put("visual_encoder.patch_embed.proj.bias", DIM)
    norm("visual_encoder.norm")
    for i in range(2):
        block = f"visual_encoder.blocks.{i}"
        norm(f"{block}.norm1"), norm(f"{block}.norm2"), linear(f"{block}.attn.qkv", 3 * DIM, DIM)
        linear(f"{block}.attn.proj", DIM, DIM), linear(f"{block}.mlp.fc1", 12, DIM), linear(f"{block}.mlp.fc2", DIM, 12)
    embeddings = "text_encoder.bert.embeddings"
    for name, rows in (("word", 20), ("position", 6), ("token_type", 2)):
        put(f"{embeddings}.{name}_embeddings.weight", rows, DIM)
    norm(f"{embeddings}.LayerNorm")
    for i in range(4):
        layer = f"text_encoder.bert.encoder.layer.{i}"
        for attention in ("attention",) if i < 2 else ("attention", "crossattention"):
            for name in ("query", "key", "value"):
                linear(f"{layer}.{attention}.self.{name}", DIM, DIM)
            linear(f"{layer}.{attention}.output.dense", DIM, DIM), norm(f"{layer}.{attention}.output.LayerNorm")
        linear(f"{layer}.intermediate.dense", 12, DIM), linear(f"{layer}.output.dense", DIM, 12)
        norm(f"{layer}.output.LayerNorm")
    head = "text_encoder.cls.predictions"
    linear(f"{head}.transform.dense", DIM, DIM), norm(f"{head}.transform.LayerNorm"), put(f"{head}.bias", 20)
    others = (
        "temp",
        "image_queue",
        "itm_head.weight",
        "vision_proj.weight",
        "text_encoder_m.bert.x",
        f"{head}.decoder.bias",
    )
    return tensors | {name: np.ones(3, np.float32) for name in others} | {f"{embeddings}.position_ids": np.arange(6)}


class ByHand:
    """The model of the published tensors, in float64; sites: part -> list of layers of (down, up) pairs."""

    def __init__(self, tensors, trees=()):
        self.tensors = {name: np.asarray(x, np.float64) for name, x in tensors.items()}
        self.trees = jax.tree.map(lambda x: np.asarray(x, np.float64), trees)

    def linear(self, name, x):
        return x @ self.tensors[f"{name}.weight"].T + self.tensors[f"{name}.bias"]

    def norm(self, name, x, epsilon=1e-12):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + epsilon)
        return x * self.tensors[f"{name}.weight"] + self.tensors[f"{name}.bias"]

    def adapter(self, part, i, h):
        if not self.trees:
            return 0.0
        each = []
        for tree in self.trees:
            site = jax.tree.map(lambda x: x[i], tree[part])
            hidden = np.maximum(h @ site["down"]["kernel"] + site["down"]["bias"], 0)
            each.append(hidden @ site["up"]["kernel"] + site["up"]["bias"])
        return sum(each) / len(each)

    @staticmethod
    def attention(q, k, v, causal=False):
        out = []
        for head in np.split(np.arange(DIM), HEADS):
            logits = q[:, head] @ k[:, head].T / np.sqrt(DIM // HEADS)
            if causal:
                logits = np.where(np.tri(*logits.shape, dtype=bool), logits, -np.inf)
            weights = np.exp(logits - logits.max(-1, keepdims=True))
            out.append(weights / weights.sum(-1, keepdims=True) @ v[:, head])
        return np.concatenate(out, -1)

    @staticmethod
    def gelu(x):
        return x * (1 + erf(x / np.sqrt(2))) / 2

    def see(self, image, positions):
        pixels = (image / 255 - np.array([0.48145466, 0.4578275, 0.40821073])) / [0.26862954, 0.26130258, 0.27577711]
        kernel, rows = self.tensors["visual_encoder.patch_embed.proj.weight"], []
        for i in range(0, 16, 4):
            for j in range(0, 16, 4):
                rows.append(np.einsum("hwc,ochw->o", pixels[i : i + 4, j : j + 4], kernel))
        x = np.stack(rows) + self.tensors["visual_encoder.patch_embed.proj.bias"]
        x = np.concatenate([self.tensors["visual_encoder.cls_token"][0], x]) + positions
        for i in range(2):
            block = f"visual_encoder.blocks.{i}"
            q, k, v = np.split(self.linear(f"{block}.attn.qkv", self.norm(f"{block}.norm1", x, 1e-6)), 3, -1)
            x = x + self.linear(f"{block}.attn.proj", self.attention(q, k, v))
            y = self.gelu(self.linear(f"{block}.mlp.fc1", self.norm(f"{block}.norm2", x, 1e-6)))
            x = x + self.linear(f"{block}.mlp.fc2", y)
            x = x + self.adapter("image", i, x)
        return self.norm("visual_encoder.norm", x, 1e-6)

    def read(self, tokens, first, part, memory, causal=False):
        """BERT's layers from `first` on; those that are fused, numbers 2 and 3, attend to the memory too."""
        embeddings = "text_encoder.bert.embeddings"
        table = lambda name: self.tensors[f"{embeddings}.{name}_embeddings.weight"]
        x = table("word")[tokens] + table("position")[: len(tokens)] + table("token_type")[0]
        x = self.norm(f"{embeddings}.LayerNorm", x)
        for number in range(first, 4):
            layer = f"text_encoder.bert.encoder.layer.{number}"
            for attention, to in (("attention", None), ("crossattention", memory))[: 2 if number >= 2 else 1]:
                ask = f"{layer}.{attention}.self"
                given = (self.linear(f"{ask}.{name}", x if to is None else to) for name in ("key", "value"))
                y = self.attention(self.linear(f"{ask}.query", x), *given, causal and to is None)
                x = self.norm(
                    f"{layer}.{attention}.output.LayerNorm", x + self.linear(f"{layer}.{attention}.output.dense", y)
                )
            y = self.linear(f"{layer}.output.dense", self.gelu(self.linear(f"{layer}.intermediate.dense", x)))
            last = f"{layer}.output.LayerNorm"
            change = self.adapter(part, number - first, self.norm(last, x + y))
            x = self.norm(last, x + y + change)
        return x

    def logits(self, image, positions, question, answer):
        memory = self.read(question, 0, "text", self.see(image, positions))
        hidden = self.read(answer, 2, "decoder", memory, causal=True)
        head = "text_encoder.cls.predictions"
        x = self.norm(f"{head}.transform.LayerNorm", self.gelu(self.linear(f"{head}.transform.dense", hidden)))
        return x @ self.tensors["text_encoder.bert.embeddings.word_embeddings.weight"].T + self.tensors[f"{head}.bias"]


def loaded(tensors, tmp_path, model=MODEL):
    save_file(tensors, tmp_path / "model.safetensors")
    return albef.load(model, tmp_path)


def keys_cubic(x, a=-0.75):
    x = abs(x)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def test_positions_are_stretched_by_keys_kernel():
    expected = np.zeros((4, 3))
    for place in range(4):
        source = (place + 0.5) * 3 / 4 - 0.5
        for at in range(-4, 8):  # beyond the edges the last value stands
            expected[place, min(max(at, 0), 2)] += keys_cubic(source - at)
    np.testing.assert_allclose(albef_names.bicubic(4, 3), expected, atol=1e-12)
    np.testing.assert_allclose(albef_names.bicubic(5, 3).sum(1), 1)


def test_answers_are_those_of_the_published_tensors_with_two_adapters(tmp_path):
    tensors = published()
    params = loaded(tensors, tmp_path)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, jax.eval_shape(MODEL.init, KEY, MODEL.example))
    draw = lambda i: jax.tree.map(lambda x: 20 * x, albef.adapter(jax.random.key(i), MODEL, 3))
    trees = (draw(1), draw(2))
    finish = jax.jit(lambda params, trees: MODEL.finish(params, MODEL.start(params, BATCH), trees))
    z = MODEL.word_logits(params["head"], finish(params, trees))
    one = MODEL.word_logits(params["head"], apply(params, BATCH, {"adapter": trees[0]}))
    positions = np.asarray(params["image"]["embeddings"]["positions"], np.float64)
    for given, hand in ((z, ByHand(tensors, trees)), (one, ByHand(tensors, trees[:1]))):
        for image, question, choices, logits in zip(*BATCH.values(), given, strict=True):
            for answer, found in zip(choices, logits, strict=True):
                real = answer[answer != 0]
                expected = hand.logits(image, positions, question[question != 0], real)
                np.testing.assert_allclose(found[: len(real)], expected, rtol=2e-4, atol=2e-4)
    table = tensors["visual_encoder.pos_embed"][0, 1:].reshape(3, 3, DIM)
    rows = albef_names.bicubic(4, 3)
    np.testing.assert_allclose(positions[0], tensors["visual_encoder.pos_embed"][0, 0])
    np.testing.assert_allclose(positions[6], np.einsum("g,h,ghd->d", rows[1], rows[1], table), atol=1e-6)


def test_a_file_that_was_tuned_on_questions_has_a_decoder_of_its_own(tmp_path):
    params = loaded(published(), tmp_path)
    pretrained.save(params, MODEL, tmp_path / "tuned.safetensors")
    tuned = load_file(tmp_path / "tuned.safetensors")
    tuned["text_decoder.cls.predictions.bias"] += 1
    save_file(tuned, tmp_path / "tuned.safetensors")
    again = albef.load(MODEL, tmp_path / "tuned.safetensors")
    np.testing.assert_array_equal(again["head"].pop("bias"), params["head"].pop("bias") + 1)
    jax.tree.map(np.testing.assert_array_equal, again, params)
    del tuned["text_decoder.bert.encoder.layer.0.crossattention.self.query.bias"]
    save_file(tuned, tmp_path / "tuned.safetensors")
    with pytest.raises(ValueError, match=r"crossattention.self.query.bias \(8,\) is missing"):
        albef.load(MODEL, tmp_path / "tuned.safetensors")


def test_a_folder_says_its_sizes_or_is_of_the_published_ones(tmp_path):
    loaded(published(), tmp_path)
    with pytest.raises(ValueError, match="is not a checkpoint of this model"):
        albef.from_pretrained(tmp_path)
    told = {"model_type": "albef", "num_hidden_layers": [2, 4, 2]}
    told |= {albef_names.CONFIG.arguments[name]: size for name, size in SIZES.items()}
    (tmp_path / "config.json").write_text(json.dumps(told))
    model, params = albef.from_pretrained(tmp_path)
    assert model.depths == MODEL.depths and params["head"]["bias"].shape == (20,)
    with pytest.raises(FileNotFoundError, match="Salesforce/ALBEF"):
        albef.load(albef.base(), tmp_path / "nowhere" / "nothing.safetensors")


def test_the_published_size():
    model, count = albef.base(), lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
    params = jax.eval_shape(model.init, KEY, model.example)
    assert count(params["head"]) == 622_650  # section 2 of docs/specs/feddat.md
    assert params["image"]["embeddings"]["positions"].shape == (577, 768)
    assert count(jax.eval_shape(lambda key: albef.adapter(key, model), KEY)) == 2_236_320
    assert len(model.checkpoint.names) == len(jax.tree.leaves(params))


def test_padding_and_later_words_change_nothing_and_dropout_changes_with_its_key(tmp_path):
    params = loaded(published(), tmp_path)
    tuning = {"adapter": albef.adapter(KEY, MODEL, 3)}
    hidden = apply(params, BATCH, tuning)["hidden"]
    other = {**BATCH, "choices": BATCH["choices"].copy()}
    other["choices"][0, 1, 2:] = [17, 18]
    changed = apply(params, other, tuning)["hidden"]
    np.testing.assert_allclose(changed[0, 1, :2], hidden[0, 1, :2], atol=1e-6)
    assert np.abs(changed[0, 1, 2] - hidden[0, 1, 2]).max() > 1e-4
    np.testing.assert_allclose(changed[1], hidden[1], atol=1e-6)
    dropped = jax.jit(lambda key: MODEL.drop(key).apply(params, BATCH, tuning)["hidden"])
    a, b = dropped(KEY), dropped(jax.random.key(1))
    np.testing.assert_array_equal(a, dropped(KEY))
    assert MODEL.drop(KEY).dropout == 0 and not np.allclose(a, b, atol=1e-3) and not np.allclose(a, hidden, atol=1e-3)


def test_wrong_sizes_and_tunings_are_refused():
    for wrong in ({"depths": (2, 2)}, {"depths": (0, 2, 1)}, {"image": 15}, {"heads": 3}, {"dropout": 1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            albef.encoder(**{**SIZES, **wrong})
    params = jax.eval_shape(MODEL.init, KEY, MODEL.example)
    with pytest.raises(ValueError, match="neither LoRA nor prompts"):
        jax.eval_shape(lambda p: MODEL.apply(p, BATCH, {"lora": adapters.lora(KEY, 2, DIM)}), params)
    with pytest.raises(ValueError, match="choices must be integers"):
        jax.eval_shape(MODEL.start, params, {**BATCH, "choices": BATCH["question"]})
