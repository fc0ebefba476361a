"""ResNets against Hugging Face's own, and against XLA's convolutions and flax's norms."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from safetensors.numpy import load_file, save_file

from fedjax_mm import trees
from fedjax_mm.models import heads, layers, pretrained, resnet

KEY = jax.random.key(0)
FIXTURES = pathlib.Path(__file__).parent / "fixtures"
MODELS = {
    "resnet18": resnet.encoder((1, 2), (8, 16), "basic", "batch"),
    "resnet_bottleneck": resnet.encoder((2, 1), (16, 32), "bottleneck", "batch"),
}
SMALL = resnet.encoder((1, 1), (16, 24), stem="small")
every_model = pytest.mark.parametrize("name", MODELS)


def fixture(name):
    """Its arrays, and its tensors in float32."""
    arrays = dict(np.load(FIXTURES / f"{name}.npz"))
    tensors = {k.removeprefix("tensor/"): v.astype(np.float32) for k, v in arrays.items() if k.startswith("tensor/")}
    return arrays, tensors


def loaded(name, path):
    arrays, tensors = fixture(name)
    save_file(tensors, path / "model.safetensors")
    return pretrained.load(MODELS[name], path), arrays


def random_like(shapes, seed=1):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(0.2, 0.4, leaf.shape).astype(np.float32), shapes)


def random_params(model, seed=1):
    return random_like(jax.eval_shape(model.init, KEY, model.example), seed)


def random_images(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def size(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def convolved(x, kernel, stride=1):
    sides = [(kernel.shape[0] // 2,) * 2] * 2
    return jax.lax.conv_general_dilated(x, kernel, (stride,) * 2, sides, dimension_numbers=("NHWC", "HWIO", "NHWC"))


@every_model
def test_maps_are_hugging_faces(name, tmp_path):
    arrays, tensors = fixture(name)
    head = {"classifier.1.weight": np.ones((5, 16), np.float32), "classifier.1.bias": np.ones(5, np.float32)}
    save_file({f"resnet.{k}": x for k, x in tensors.items()} | head, tmp_path / "model.safetensors")
    params = pretrained.load(MODELS[name], tmp_path)
    fresh = jax.eval_shape(MODELS[name].init, KEY, arrays["inputs"])
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, fresh)
    out = jax.jit(MODELS[name].apply)(params, arrays["inputs"])
    assert out.shape == arrays["map"].shape == (2, 5, 5, MODELS[name].width) and np.abs(out).max() > 1
    np.testing.assert_allclose(out, arrays["map"], atol=1e-5)


@every_model
def test_what_is_saved_has_their_names_and_loads_again(name, tmp_path):
    _, tensors = fixture(name)
    params, _ = loaded(name, tmp_path)
    pretrained.save(params, MODELS[name], tmp_path / "b.safetensors")
    written = load_file(tmp_path / "b.safetensors")
    theirs = {k: x for k, x in tensors.items() if not k.endswith("num_batches_tracked")}
    assert len(theirs) < len(tensors) and written.keys() == theirs.keys()
    jax.tree.map(np.testing.assert_array_equal, written, theirs)
    jax.tree.map(np.testing.assert_array_equal, pretrained.load(MODELS[name], tmp_path / "b.safetensors"), params)


def test_a_checkpoint_with_statistics_is_not_one_of_group_norms(tmp_path):
    save_file(fixture("resnet18")[1], tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"embedder.normalization.running_mean \(8,\) has no place"):
        pretrained.load(resnet.encoder((1, 2), (8, 16)), tmp_path)


@pytest.mark.parametrize(
    "make, width, weights, statistics",
    # transformers 4.57.6: ResNetModel's parameters, and its buffers without num_batches_tracked.
    [
        (resnet.resnet18, 512, 11_176_512, 9_600),
        (resnet.resnet50, 2048, 23_508_032, 53_120),
        (resnet.resnet101, 2048, 42_500_160, 105_344),
    ],
)
def test_published_sizes_are_hugging_faces(make, width, weights, statistics):
    model = make()
    params = jax.eval_shape(model.init, KEY, model.example)
    running, trained = trees.partition(params, trees.path_mask(params, heads.is_statistic))
    assert (size(trained), size(running)) == (weights, statistics)
    paths = []
    trees.path_mask(params, lambda path: paths.append(path) or True)
    assert set(paths) == set(model.checkpoint.names)
    assert len({theirs for theirs, _ in model.checkpoint.names.values()}) == len(paths)
    out = jax.eval_shape(model.apply, params, model.example)
    assert (model.example.shape, out.shape, model.width) == ((1, 224, 224, 3), (1, 7, 7, width), width)
    with pytest.raises(FileNotFoundError, match=f"huggingface.co/microsoft/resnet-{make.__name__[6:]} "):
        pretrained.load(model, "nowhere")


def test_statistics_get_no_gradient_and_the_rest_does(tmp_path):
    params, arrays = loaded("resnet18", tmp_path)
    gradient = jax.jit(jax.grad(lambda p, x: (MODELS["resnet18"].apply(p, x) ** 2).mean()))(params, arrays["inputs"])
    running, trained = trees.partition(gradient, trees.path_mask(params, heads.is_statistic))
    assert len(jax.tree.leaves(running)) == 2 * 8 and all((leaf == 0).all() for leaf in jax.tree.leaves(running))
    assert all(np.abs(leaf).max() > 1e-4 for leaf in jax.tree.leaves(trained))


def test_an_example_changes_nothing_in_another(tmp_path):
    params, arrays = loaded("resnet18", tmp_path)
    apply = jax.jit(MODELS["resnet18"].apply)
    np.testing.assert_allclose(apply(params, arrays["inputs"][:1]), arrays["map"][:1], atol=1e-5)


def test_group_norms_and_the_small_stem_are_xlas_and_flaxs():
    params, images = random_params(SMALL), random_images(2, 7, 10, 3)

    def unit(name, x, stride=1):
        x = convolved(x, params[name]["conv"]["kernel"], stride)
        return nn.GroupNorm(8).apply({"params": params[name]["norm"]}, x)

    def by_hand(x):
        x = nn.relu(unit("stem", x))
        x = nn.relu(x + unit("stage_0_block_00_unit_1", nn.relu(unit("stage_0_block_00_unit_0", x))))
        y = unit("stage_1_block_00_unit_1", nn.relu(unit("stage_1_block_00_unit_0", x, 2)))
        return nn.relu(y + unit("stage_1_block_00_shortcut", x, 2))

    assert len(params) == 6
    out = jax.jit(SMALL.apply)(params, images)
    assert out.shape == (2, 4, 5, 24)
    np.testing.assert_allclose(out, jax.jit(by_hand)(images), rtol=1e-4, atol=1e-4)


def test_clients_with_their_own_weights_are_mapped_like_one_by_one():
    clients, images = [random_params(SMALL, seed) for seed in (1, 2)], random_images(2, 2, 8, 8, 3)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *clients)
    mapped = jax.jit(jax.vmap(jax.value_and_grad(lambda p, x: (SMALL.apply(p, x) ** 2).mean())))
    assert "convolution" not in mapped.lower(stacked, images).as_text()
    one = jax.jit(jax.value_and_grad(lambda p, x: (SMALL.apply(p, x) ** 2).mean()))
    for i, (params, x) in enumerate(zip(clients, images, strict=True)):
        at = jax.tree.map(lambda leaf, i=i: leaf[i], mapped(stacked, images))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), at, one(params, x))


@pytest.mark.parametrize("size", [(8, 6), (7, 9), (1, 2)])
def test_padding_on_every_side_and_the_pool_equal_xlas(size):
    x = random_images(2, *size, 3)
    for width in (2, 3):
        kernel = random_images(width, width, 3, 4)
        ours = jax.jit(layers.Conv(4, width, 2, use_bias=False, padding=1).apply)({"params": {"kernel": kernel}}, x)
        np.testing.assert_allclose(ours, jax.jit(convolved, static_argnums=2)(x, kernel, 2), atol=1e-4)
    native = lambda x: nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
    np.testing.assert_array_equal(jax.jit(resnet.max_pool)(x), jax.jit(native)(x))
    square = lambda pool: jax.jit(jax.grad(lambda x: (pool(x) ** 2).sum()))(x)
    np.testing.assert_allclose(square(resnet.max_pool), square(native), rtol=1e-6)


@pytest.mark.parametrize("normalise", ["signed", "imagenet"])
def test_bytes_are_normalised_and_floats_are_not(normalise):
    model = resnet.encoder((1,), (8,), norm="batch", normalise=normalise)
    params = random_params(model)
    images = np.random.default_rng(0).integers(0, 256, (2, 9, 8, 3)).astype(np.uint8)
    colours = {"signed": (0.5, 0.5), "imagenet": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])}[normalise]
    mean, deviation = (np.broadcast_to(np.float32(c), images.shape) for c in colours)
    out = jax.jit(model.apply)(jax.tree.map(jnp.abs, params), images)
    by_hand = jax.jit(model.apply)(jax.tree.map(jnp.abs, params), (images / np.float32(255) - mean) / deviation)
    assert np.abs(out).max() > 1e-2
    np.testing.assert_allclose(out, by_hand, rtol=1e-4, atol=1e-4)


def test_bfloat16_is_for_the_arithmetic_alone(tmp_path):
    params, arrays = loaded("resnet_bottleneck", tmp_path)
    half = resnet.encoder((2, 1), (16, 32), "bottleneck", "batch", dtype=jnp.bfloat16)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(jax.eval_shape(half.init, KEY, half.example)))
    out = jax.jit(half.apply)(params, arrays["inputs"])
    error = np.abs(out - arrays["map"]).mean() / np.abs(arrays["map"]).mean()
    assert out.dtype == jnp.float32 and 1e-4 < error < 0.05
    products = [line for line in str(jax.make_jaxpr(half.apply)(params, arrays["inputs"])).splitlines()]
    products = [line for line in products if "dot_general" in line]
    assert len(products) == 12 and all("bf16[" in line for line in products)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"block": "wide"}, r"block must be one of \('basic', 'bottleneck'\), got 'wide'"),
        ({"norm": "layer"}, r"norm must be one of \('group', 'batch'\), got 'layer'"),
        ({"stem": "patch"}, r"stem must be one of \('imagenet', 'small'\), got 'patch'"),
        ({"normalise": None}, r"normalise must be one of \('signed', 'imagenet'\), got None"),
        ({"depths": (1, 1, 1)}, r"same stages, one block or more; got \(1, 1, 1\) and \(4, 8\)"),
        ({"depths": (1, 0)}, r"depths\[1\] must be an integer of at least 1, got 0"),
        ({"depths": (), "widths": ()}, r"same stages, one block or more; got \(\) and \(\)"),
        ({"widths": (4, 6), "block": "bottleneck"}, r"multiples of 4, got \(4, 6\)"),
    ],
)
def test_models_that_do_not_exist_are_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        resnet.encoder(**{"depths": (1, 1), "widths": (4, 8), **changes})


@pytest.mark.parametrize("shape", [(8, 8, 3), (2, 8, 8, 1), (2, 3, 8, 8)])
def test_images_that_do_not_fit_are_refused(shape):
    with pytest.raises(ValueError, match=r"images must be \[B, H, W, 3\], got \(" + str(shape[0])):
        SMALL.init(KEY, jnp.zeros(shape))
