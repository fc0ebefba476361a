"""ViLT against Hugging Face's own and against NumPy, one example at a time and without padding."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from scipy.special import erf

from fedjax_mm.models import adapters, bert, pretrained, vault, vilt

KEY = jax.random.key(0)
FIXTURE = dict(np.load(pathlib.Path(__file__).parent / "fixtures" / "vilt.npz"))
TENSORS = {k.removeprefix("tensor/"): v.astype(np.float32) for k, v in FIXTURE.items() if k.startswith("tensor/")}
BATCH = {name: FIXTURE[name] for name in ("image", "size", "question")}
SIZES = {"image": 16, "patch": 4, "vocabulary": 30, "text_length": 8, "dim": 16, "depth": 2, "heads": 2, "mlp": 24}
MODEL = vilt.encoder(**SIZES)
DEEP = vilt.encoder(**{**SIZES, "depth": 3, "lora_alpha": 6.0})
KINDS = ("adapter", "lora", "prompt")
apply, deep = jax.jit(MODEL.apply), jax.jit(DEEP.apply)


def random_like(shapes, seed=1):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(0.1, 0.4, leaf.shape).astype(np.float32), shapes)


def random_params(model=DEEP):
    return random_like(jax.eval_shape(model.init, KEY, model.example))


def random_tuning(kind, seed=2):
    make = {
        "adapter": lambda key: adapters.adapter(key, 3, 16, hidden=4),
        "lora": lambda key: adapters.lora(key, 3, 16, rank=3),
        "prompt": lambda key: adapters.prompt(key, 16, length=2, hidden=5),
    }[kind]
    return random_like(jax.eval_shape(make, KEY), seed)


def dense(layer, x):
    return x @ layer["kernel"] + layer["bias"]


def normalised(norm, x):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12) * norm["scale"] + norm["bias"]


def stretched(positions, height, width):
    """positions [grid, grid, D] along rows, then along columns, from corner to corner."""
    grid = len(positions)

    def along(line, size):  # [grid, D]
        places = np.linspace(0, grid - 1, size) if size > 1 else [0]
        return np.stack([np.interp(places, np.arange(grid), column) for column in line.T], axis=-1)

    rows = np.stack([along(positions[:, j], height) for j in range(grid)], axis=1)
    return np.stack([along(row, width) for row in rows])


def by_hand(params, image, question, sites=(), lora=None, prompt=None, patch=4, heads=2, alpha=6.0):
    """All tokens behind the last norm [T, D], and the pooler's output [D], of one example without padding."""
    params, sites, lora, prompt = jax.tree.map(lambda x: np.asarray(x, np.float64), (params, sites, lora, prompt))
    embeddings = params["embeddings"]
    behind_first = lambda x, name: x
    if prompt is not None:
        more = {n: dense(p["up"], np.tanh(dense(p["down"], p["vectors"]))) for n, p in prompt.items()}
        behind_first = lambda x, name: np.concatenate([x[:1], more[name], x[1:]])
    text = embeddings["text"]["word"][question] + embeddings["text"]["positions"][: len(question)]
    text = normalised(embeddings["text"]["norm"], text + embeddings["text"]["types"][0])
    kernel, bias = embeddings["image"]["patch"]["kernel"], embeddings["image"]["patch"]["bias"]
    cut = lambda i, j: image[patch * i : patch * (i + 1), patch * j : patch * (j + 1)]
    height, width = image.shape[0] // patch, image.shape[1] // patch
    seen = np.array([[(cut(i, j)[..., None] * kernel).sum((0, 1, 2)) for j in range(width)] for i in range(height)])
    dim = kernel.shape[-1]
    grid = int(np.sqrt(len(embeddings["image"]["positions"]) - 1))
    table = embeddings["image"]["positions"][1:].reshape(grid, grid, dim)
    seen = (seen + bias + stretched(table, height, width)).reshape(-1, dim)
    seen = np.concatenate([embeddings["image"]["cls"] + embeddings["image"]["positions"][:1], seen])
    text = behind_first(text, "text") + embeddings["modality"][0]
    x = np.concatenate([text, behind_first(seen, "image") + embeddings["modality"][1]])
    for i in range(len(params["layers"]["norm_1"]["scale"])):
        at = lambda tree, i=i: jax.tree.map(lambda leaf: leaf[i], tree)
        layer = at(params["layers"])
        if lora is not None:  # merged into the weights
            for name, change in at(lora).items():
                layer[name]["kernel"] = (
                    layer[name]["kernel"] + alpha / change["a"].shape[-1] * change["a"] @ change["b"]
                )
        y = normalised(layer["norm_1"], x)
        q, k, v = (dense(layer[n], y).reshape(len(x), heads, -1) for n in ("query", "key", "value"))
        weights = np.exp(np.einsum("thd,shd->hts", q, k) / np.sqrt(dim // heads))
        weights /= weights.sum(-1, keepdims=True)
        x = x + dense(layer["out"], np.einsum("hts,shd->thd", weights, v).reshape(len(x), -1))
        y = dense(layer["fc_1"], normalised(layer["norm_2"], x))
        x = x + dense(layer["fc_2"], y * (1 + erf(y / np.sqrt(2))) / 2)
        outs = [dense(at(site)["up"], np.maximum(dense(at(site)["down"], x), 0)) for site in sites]
        x = x + np.mean(outs, axis=0) if sites else x
    x = normalised(params["norm"], x)
    return x, np.tanh(dense(params["pooler"], x[0]))


def examples(batch=BATCH):
    """Each example cut to its real size and words."""
    for image, (height, width), question in zip(batch["image"], batch["size"], batch["question"], strict=True):
        yield image[:height, :width], question[question != 0]


def by_hand_tuning(tuning):
    sites = (tuning["adapter"],) if "adapter" in tuning else ()
    return {"sites": sites, "lora": tuning.get("lora"), "prompt": tuning.get("prompt")}


def assert_close(a, b, tolerance=1e-5):
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def write(path, tensors):
    save_file(tensors, path)
    return path


def test_answers_are_hugging_faces(tmp_path):
    params = pretrained.load(MODEL, write(tmp_path / "a.safetensors", TENSORS))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, jax.eval_shape(MODEL.init, KEY, BATCH))
    pooled = apply(params, BATCH)
    assert_close(pooled, FIXTURE["pooled"])
    assert_close(jax.jit(MODEL.tokens)(params, BATCH)[:, :7], FIXTURE["tokens"])
    names = {"dense_0": ("0", "kernel"), "norm": ("1", "scale"), "dense_1": ("3", "kernel")}
    head = {
        ours: {weight: TENSORS[f"classifier.{n}.weight"].T, "bias": TENSORS[f"classifier.{n}.bias"]}
        for ours, (n, weight) in names.items()
    }
    assert_close(adapters.answers(5).apply(head, pooled), FIXTURE["logits"])


def test_checkpoints_keep_every_tensor_and_drop_other_heads(tmp_path):
    trunk = {k.removeprefix("vilt."): x for k, x in TENSORS.items() if k.startswith("vilt.")}
    old = {"vilt.embeddings.text_embeddings.position_ids", "mlm_score.bias", "mlm_score.transform.dense.weight"}
    file = write(tmp_path / "a.safetensors", TENSORS | {name: np.ones(3, np.float32) for name in old})
    params = pretrained.load(MODEL, file)
    pretrained.save(params, MODEL, tmp_path / "b.safetensors")
    written = load_file(tmp_path / "b.safetensors")
    assert written.keys() == trunk.keys()
    jax.tree.map(np.testing.assert_array_equal, written, trunk)
    jax.tree.map(np.testing.assert_array_equal, pretrained.load(MODEL, tmp_path / "b.safetensors"), params)
    pretrained.save({"norm": params["norm"]}, MODEL, tmp_path / "c.safetensors")
    assert load_file(tmp_path / "c.safetensors").keys() == {"layernorm.weight", "layernorm.bias"}
    with pytest.raises(ValueError, match="encoder.layer.2.attention.attention.query.weight .* is missing"):
        pretrained.load(DEEP, file)
    with pytest.raises(ValueError, match="encoder.layer.1.output.dense.bias .* has no place"):
        pretrained.load(vilt.encoder(**{**SIZES, "depth": 1}), file)


def test_base_has_hugging_faces_tensors_and_numbers():
    model = vilt.base()
    params = jax.eval_shape(model.init, KEY, model.example)
    size = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
    layer = 4 * (768**2 + 768) + 2 * 768 * 3072 + 3072 + 768 + 4 * 768
    words, image = (30522 + 40 + 2 + 2) * 768, 3 * 32**2 * 768 + 768 + 768 + 145 * 768
    expected = {"embeddings": words + image + 2 * 768, "layers": 12 * layer, "norm": 2 * 768, "pooler": 768**2 + 768}
    assert {part: size(tree) for part, tree in params.items()} == expected
    assert size(params) == 111_595_008 and (model.depth, model.width) == (12, 768)
    leaves = [leaf for leaf in jax.tree.leaves(params["layers"]) if leaf.shape[0] == 12]
    assert len(leaves) == 16 and len(jax.tree.leaves(params)) - 16 + 12 * 16 == 206
    assert len({theirs for theirs, _ in model.checkpoint.names.values()}) == len(model.checkpoint.names) == 206
    assert jax.eval_shape(model.apply, params, model.example).shape == (1, 768)
    with pytest.raises(FileNotFoundError, match="huggingface.co/dandelin/vilt-b32-mlm"):
        pretrained.load(model, "nowhere")


@pytest.mark.parametrize("kind", [None, *KINDS])
def test_tokens_are_numpys_with_whatever_is_tuned(kind):
    params, tuning = random_params(), {kind: random_tuning(kind)} if kind else {}
    extra = 2 if kind == "prompt" else 0
    tokens = jax.jit(DEEP.tokens)(params, BATCH, tuning)
    assert tokens.shape == (3, 6 + extra + 1 + extra + 5 * 6, 16)
    for i, (image, question) in enumerate(examples()):
        x, _ = by_hand(params, image, question, **by_hand_tuning(tuning))
        words = len(question) + extra
        assert_close(tokens[i, :words], x[:words], 1e-4)
        seen = tokens[i, 6 + extra :]
        assert_close(seen[: 1 + extra], x[words : words + 1 + extra], 1e-4)
        height, width = image.shape[0] // 4, image.shape[1] // 4
        real = seen[1 + extra :].reshape(5, 6, 16)[:height, :width].reshape(-1, 16)
        assert_close(real, x[words + 1 + extra :], 1e-4)


def test_answers_are_numpys_with_everything_tuned_at_once():
    params, tuning = random_params(), {kind: random_tuning(kind) for kind in KINDS}
    for out, example in zip(deep(params, BATCH, tuning), examples(), strict=True):
        assert_close(out, by_hand(params, *example, **by_hand_tuning(tuning))[1], 2e-5)


def test_start_and_finish_are_apply_and_average_in_every_layer():
    params, a, b = random_params(), random_tuning("adapter", 2), random_tuning("adapter", 3)
    started = jax.jit(DEEP.start)(params, BATCH)
    finish = jax.jit(DEEP.finish)
    h, mask = started
    assert h.shape == (3, 6 + 1 + 30, 16) and mask.shape == h.shape[:2]
    np.testing.assert_array_equal(mask.sum(1), [4 + 1 + 16, 6 + 1 + 6, 2 + 1 + 15])
    assert_close(finish(params, started, (a,)), deep(params, BATCH, {"adapter": a}))
    assert_close(finish(params, started, (a, a)), finish(params, started, (a,)))
    both = finish(params, started, (a, b))
    for out, example in zip(both, examples(), strict=True):
        assert_close(out, by_hand(params, *example, sites=(a, b))[1], 2e-5)
    assert np.abs(both - (finish(params, started, (a,)) + finish(params, started, (b,))) / 2).max() > 1e-2


def test_padding_changes_nothing_whatever_it_holds():
    params = random_params()
    more = {
        "image": np.pad(BATCH["image"], ((0, 0), (0, 8), (0, 4), (0, 0)), constant_values=7.0),
        "size": BATCH["size"],
        "question": np.pad(BATCH["question"], ((0, 0), (0, 2))),
    }
    tuning = {kind: random_tuning(kind) for kind in KINDS}
    assert_close(deep(params, more, tuning), deep(params, BATCH, tuning))


def test_images_without_sizes_are_whole_and_bytes_are_scaled():
    params = random_params()
    image = np.random.default_rng(0).integers(0, 256, (2, 8, 20, 3)).astype(np.uint8)
    scaled, question = ((image / 255 - 0.5) / 0.5).astype(np.float32), BATCH["question"][:2]
    whole = deep(params, {"image": scaled, "question": question})
    sized = lambda width: {"image": image, "question": question, "size": np.array([[8, width]] * 2)}
    assert_close(deep(params, sized(20)), whole)
    assert np.abs(deep(params, sized(16)) - whole).max() > 1e-3


@pytest.mark.parametrize("grid, size", [(4, 4), (4, 7), (12, 19), (3, 1), (1, 3)])
def test_interpolation_goes_from_corner_to_corner_and_no_further(grid, size):
    values = np.random.default_rng(0).normal(size=grid)
    weights = vilt.interpolation(jnp.array([size]), size + 2, grid)
    places = np.linspace(0, grid - 1, size) if size > 1 else [0]
    assert_close(weights[0] @ values, np.pad(np.interp(places, np.arange(grid), values), (0, 2)))
    if grid == size:
        np.testing.assert_array_equal(weights[0, :size], np.eye(grid))


def test_fresh_parameters_differ_between_layers_and_give_finite_answers():
    params = jax.device_get(jax.jit(DEEP.init)(KEY, BATCH))
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(params))
    kernels = params["layers"]["query"]["kernel"]
    assert kernels.shape == (3, 16, 16) and np.abs(kernels[0] - kernels[1]).max() > 0.01
    assert 0.015 < kernels.std() < 0.025
    out = deep(params, BATCH)
    assert np.isfinite(out).all() and np.abs(out[0] - out[1]).max() > 1e-4


def test_bfloat16_is_for_the_arithmetic_alone():
    half = vilt.encoder(**{**SIZES, "depth": 3, "lora_alpha": 6.0, "dtype": jnp.bfloat16})
    params = random_params()
    tuning = {kind: random_tuning(kind) for kind in KINDS}
    params = jax.tree.map(lambda x: x / 3, params)
    expected = deep(params, BATCH, tuning)
    run = jax.jit(half.apply)
    out = run(params, BATCH, tuning)
    assert out.dtype == jnp.float32 and 1e-6 < np.abs(out - expected).max() < 0.1
    frozen = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    cast = run(frozen, BATCH, tuning)
    assert cast.dtype == jnp.float32 and np.abs(cast - expected).max() < 0.1
    products = [
        line for line in str(jax.make_jaxpr(half.apply)(params, BATCH, tuning)).splitlines() if "dot_gen" in line
    ]
    assert len(products) >= 16 and sum("bf16[" in line for line in products) >= 14
    assert jax.eval_shape(half.start, params, BATCH)[0].dtype == jnp.bfloat16


def test_images_are_resized_to_whole_patches():
    # 384 x 512; portrait alike; 960 is cut to 639, and so 384 to 255.6 (19 and 7 patches); at least one patch
    assert vilt.resized_size(480, 640) == (384, 512)
    assert vilt.resized_size(640, 480) == (512, 384)
    assert vilt.resized_size(1000, 400) == (608, 256)
    assert vilt.resized_size(384, 384) == vilt.resized_size(7, 7) == (384, 384)
    assert vilt.resized_size(10, 1000) == (32, 608)
    # On the edge of rounding, Hugging Face's own answers: 319.5 becomes 10 patches or 9.
    assert vilt.resized_size(808, 404) == (608, 320) and vilt.resized_size(650, 325) == (608, 288)
    assert vilt.resized_size(20, 30, short=16, patch=4) == (16, 24)
    assert vilt.resized_size(20, 30, short=16, long=20, patch=4) == (12, 20)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"image": BATCH["image"][:, :18]}, r"H and W multiples of 4, got \(3, 18, 24, 3\)"),
        ({"size": BATCH["size"][:2]}, r"size must be integers \[3, 2\], got int32 \(2, 2\)"),
        ({"question": np.ones((3, 9), np.int32)}, r"T at most 8, got int32 \(3, 9\)"),
    ],
)
def test_batches_that_do_not_fit_are_refused(change, said):
    with pytest.raises(ValueError, match=said):
        jax.eval_shape(MODEL.init, KEY, BATCH | change)


def test_mistakes_are_refused_in_words():
    with pytest.raises(ValueError, match="patch must divide image.*image 384, patch 30"):
        vilt.encoder(patch=30)
    with pytest.raises(ValueError, match=r"tuning may hold adapter, lora and prompt, got \['adapters'\]"):
        DEEP.apply(random_params(), BATCH, {"adapters": random_tuning("adapter")})


def test_vault_is_a_vilt_whose_words_are_bert_s_outputs(tmp_path):
    read = bert.encoder(vocabulary=30, dim=16, depth=1, heads=2, mlp=24, positions=8, types=2)
    model = vault.encoder(read, DEEP)
    params, adapter = random_params(model), random_tuning("adapter")
    assert "word" not in params["embeddings"]["text"]
    pooled = jax.jit(model.apply)(params, BATCH, {"adapter": adapter})
    sites = (adapter, random_tuning("adapter", 5))
    both = jax.jit(lambda params, sites: model.finish(params, model.start(params, BATCH), sites))(params, sites)
    words = jax.jit(read.tokens)(params["language"], BATCH["question"])
    text, place = params["embeddings"]["text"], 0
    for image, question in examples():  # the table of a question's words is what BERT gave of each
        table = {**text, "word": words[place][: len(question)]}
        seen = {**params, "embeddings": {**params["embeddings"], "text": table}}
        for given, trees in ((pooled, sites[:1]), (both, sites)):
            assert_close(given[place], by_hand(seen, image, np.arange(len(question)), trees)[1], 1e-4)
        place += 1
    pretrained.save(params, model, tmp_path / "vault.safetensors")
    jax.tree.map(np.testing.assert_array_equal, pretrained.load(model, tmp_path / "vault.safetensors"), params)
    with pytest.raises(ValueError, match="width 8 and 30 words, the trunk width 16"):
        vault.encoder(bert.encoder(vocabulary=30, dim=8, depth=1, heads=2, mlp=8, types=2), DEEP)


def test_vault_is_read_from_a_vilt_and_a_bert(tmp_path):
    read = bert.encoder(vocabulary=30, dim=16, depth=1, heads=2, mlp=24, positions=8, types=2)
    parts = {
        "vilt": (MODEL, random_params(MODEL)),
        "bert": (read, random_like(jax.eval_shape(read.init, KEY, read.example))),
    }
    for name, (model, params) in parts.items():
        (tmp_path / name).mkdir()
        pretrained.save(params, model, tmp_path / name / "model.safetensors")
        told = {"model_type": name, **model.checkpoint.config}
        (tmp_path / name / "config.json").write_text(json.dumps(told))
    model, params = vault.from_pretrained(tmp_path / "vilt", tmp_path / "bert")
    jax.tree.map(np.testing.assert_array_equal, params["language"], parts["bert"][1])
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, jax.eval_shape(model.init, KEY, model.example))
