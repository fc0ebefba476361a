"""EfficientNet-Lite against a forward pass in NumPy, from a checkpoint under the published names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fedjax_mm import trees
from fedjax_mm.models import Model, as_encoder, efficientnet, embedding, heads, pretrained

KEY = jax.random.key(0)
STAGES = ((3, 1, 4, 1, 1), (5, 2, 6, 2, 2))
SMALL = efficientnet.encoder(STAGES, stem=4, head=8, image=16)
CONVOLUTIONS = {  # of SMALL as a file has them: name -> shape, norm
    "_conv_stem": ((4, 3, 3, 3), "_bn0"),
    "_blocks.0._depthwise_conv": ((4, 1, 3, 3), "_blocks.0._bn1"),
    "_blocks.0._project_conv": ((4, 4, 1, 1), "_blocks.0._bn2"),
    "_blocks.1._expand_conv": ((8, 4, 1, 1), "_blocks.1._bn0"),
    "_blocks.1._depthwise_conv": ((8, 1, 5, 5), "_blocks.1._bn1"),
    "_blocks.1._project_conv": ((6, 8, 1, 1), "_blocks.1._bn2"),
    "_blocks.2._expand_conv": ((12, 6, 1, 1), "_blocks.2._bn0"),
    "_blocks.2._depthwise_conv": ((12, 1, 5, 5), "_blocks.2._bn1"),
    "_blocks.2._project_conv": ((6, 12, 1, 1), "_blocks.2._bn2"),
    "_conv_head": ((8, 6, 1, 1), "_bn1"),
}


def random_file():
    rng, tensors = np.random.default_rng(0), {}
    for name, (shape, norm) in CONVOLUTIONS.items():
        tensors[f"{name}.weight"] = rng.normal(0, 2 / np.prod(shape[1:]) ** 0.5, shape)
        tensors[f"{norm}.weight"] = rng.uniform(0.5, 2.0, shape[0])
        tensors[f"{norm}.bias"] = rng.normal(0.5, 0.5, shape[0])
        tensors[f"{norm}.running_mean"] = rng.normal(0, 0.1, shape[0])
        tensors[f"{norm}.running_var"] = rng.uniform(0.001, 2.0, shape[0])  # some as small as the epsilon
        tensors[f"{norm}.num_batches_tracked"] = np.int64(3)
    return {name: np.asarray(x, np.float32 if np.ndim(x) else np.int64) for name, x in tensors.items()}


def by_hand(w, x):
    """The last feature map, and how many values each bound of ReLU6 has cut."""
    cut = np.zeros(2, int)

    def relu6(x):
        cut[:] += (x < 0).sum(), (x > 6).sum()
        return np.clip(x, 0, 6)

    def unit(name, x, stride=1):
        kernel, norm, (height, width) = w[f"{name}.weight"], CONVOLUTIONS[name][1], x.shape[1:3]
        k, groups = kernel.shape[-1], x.shape[-1] // kernel.shape[1]
        shape = [-(-n // stride) for n in (height, width)]
        total = [max((out - 1) * stride + k - n, 0) for out, n in zip(shape, (height, width), strict=True)]
        x = np.pad(x, ((0, 0), *[(n // 2, n - n // 2) for n in total], (0, 0)))
        y = np.zeros((len(x), *shape, len(kernel)))
        for i, j in np.ndindex(*shape):
            window = x[:, i * stride : i * stride + k, j * stride : j * stride + k]
            if groups == 1:
                y[:, i, j] = np.einsum("bhwc,ochw->bo", window, kernel)
            else:
                y[:, i, j] = np.einsum("bhwc,chw->bc", window, kernel[:, 0])
        y = (y - w[f"{norm}.running_mean"]) / np.sqrt(w[f"{norm}.running_var"] + 1e-3)
        return y * w[f"{norm}.weight"] + w[f"{norm}.bias"]

    x = relu6(unit("_conv_stem", x, 2))
    x = x + unit("_blocks.0._project_conv", relu6(unit("_blocks.0._depthwise_conv", x)))
    for i, stride in ((1, 2), (2, 1)):
        y = relu6(unit(f"_blocks.{i}._expand_conv", x))
        y = unit(f"_blocks.{i}._project_conv", relu6(unit(f"_blocks.{i}._depthwise_conv", y, stride)))
        x = y if i == 1 else x + y
    return relu6(unit("_conv_head", x)), cut


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The parameters as they are loaded, with the file, images, and all that is computed of them, in one program."""
    tensors, path = random_file(), tmp_path_factory.mktemp("files") / "model.safetensors"
    save_file(tensors | {"_fc.weight": np.ones((5, 8), np.float32), "_fc.bias": np.ones(5, np.float32)}, path)
    params = pretrained.load(SMALL, path)
    images = np.random.default_rng(1).integers(0, 256, (2, 19, 14, 3)).astype(np.uint8)
    floats = (images.astype(np.float32) - 127) / 128

    @jax.jit
    def compute(params, images, floats):
        square = lambda params: (SMALL.apply(params, floats) ** 2).mean()
        found = {"bytes": SMALL.apply(params, images), "floats": SMALL.apply(params, floats)}
        return {**found, "maps": SMALL.maps(params, floats), "gradient": jax.grad(square)(params)}

    return {"file": tensors, "params": params, "images": images, "x": floats, **compute(params, images, floats)}


def test_maps_and_embeddings_are_those_of_numpy(made):
    maps, cut = by_hand({name: x.astype(np.float64) for name, x in made["file"].items()}, made["x"])
    assert made["maps"].shape == maps.shape == (2, 5, 4, SMALL.width) and (cut > 20).all() and maps.std() > 0.5
    np.testing.assert_allclose(made["maps"], maps, atol=1e-4)
    np.testing.assert_allclose(made["floats"], maps.mean((1, 2)), atol=1e-4)


def test_bytes_are_scaled_and_floats_are_not(made):
    assert made["images"].dtype == np.uint8 and made["bytes"].dtype == jnp.float32
    np.testing.assert_allclose(made["bytes"], made["floats"], atol=1e-5)


def test_statistics_get_no_gradient_and_the_rest_does(made):
    assert jax.tree.map(jnp.shape, made["params"]) == jax.tree.map(
        jnp.shape, jax.eval_shape(SMALL.init, KEY, SMALL.example)
    )
    running, trained = trees.partition(made["gradient"], trees.path_mask(made["params"], heads.is_statistic))
    assert len(jax.tree.leaves(running)) == 2 * 10 and all((leaf == 0).all() for leaf in jax.tree.leaves(running))
    assert all(np.abs(leaf).max() > 1e-5 for leaf in jax.tree.leaves(trained))


def test_what_is_saved_has_the_files_names(made, tmp_path):
    pretrained.save(made["params"], SMALL, tmp_path / "b.safetensors")
    written = load_file(tmp_path / "b.safetensors")
    theirs = {name: x for name, x in made["file"].items() if not name.endswith("num_batches_tracked")}
    assert written.keys() == theirs.keys()
    jax.tree.map(np.testing.assert_array_equal, written, theirs)


def test_lite0_has_the_published_size():
    model = efficientnet.lite0(dtype=jnp.bfloat16)
    params = jax.eval_shape(model.init, KEY, model.example)
    running, trained = trees.partition(params, trees.path_mask(params, heads.is_statistic))
    size = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
    assert (size(trained), size(running)) == (3_371_008, 42_016)
    assert size(trained) + (1280 + 1) * 1000 == 4_652_008  # with the head of ImageNet's classes
    paths = []
    trees.path_mask(params, lambda path: paths.append(path) or True)
    theirs = {name for name, _ in model.checkpoint.names.values()}
    assert set(paths) == set(model.checkpoint.names) and len(theirs) == len(paths) == 49 * 5
    assert {name.split(".")[1] for name in theirs if name.startswith("_blocks.")} == {str(i) for i in range(16)}
    assert "_blocks.0._expand_conv.weight" not in theirs and "_blocks.0._bn0.weight" not in theirs
    out = jax.eval_shape(model.maps, params, model.example)
    assert (out.shape, out.dtype, model.width) == ((1, 7, 7, 1280), jnp.float32, 1280)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))


def test_it_stands_where_encoders_and_trunks_do(made):
    frozen = as_encoder(SMALL, pretrained=made["params"], frozen=True)
    assert jax.eval_shape(frozen.init, KEY, made["images"]) == {}
    trunk = Model(SMALL.init, SMALL.maps)
    for model in (embedding.linear(SMALL, 3), embedding.pie_image(trunk, 3), embedding.mean_image(trunk, 3)):
        params = jax.eval_shape(model.init, KEY, SMALL.example)
        assert jax.eval_shape(model.apply, params, SMALL.example).shape == (1, 3)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"stages": 3}, r"stages must be a sequence of \('kernel', 'repeats', 'channels', .*; got 3"),
        ({"stages": ()}, r"stages must be a sequence of .*, one or more; got \(\)"),
        ({"stages": "x"}, r"stages\[0\] must be \('kernel', .*, got 'x'"),
        ({"stages": [STAGES[0], (3, 1, 4, 1)]}, r"stages\[1\] must be .*, got \(3, 1, 4, 1\)"),
        ({"stages": [(3, 0, 4, 1, 1)]}, r"stages\[0\].repeats must be an integer of at least 1, got 0"),
        ({"stages": [(3, 1, 4, 1, 1.5)]}, r"stages\[0\].stride must be an integer of at least 1, got 1.5"),
        ({"stem": 0}, "stem must be an integer of at least 1, got 0"),
        ({"head": "8"}, "head must be an integer of at least 1, got '8'"),
        ({"image": -1}, "image must be an integer of at least 1, got -1"),
        ({"dtype": int}, "dtype must be a floating type"),
    ],
)
def test_sizes_that_are_none_are_refused(changes, said):
    with pytest.raises(ValueError, match=f"^{said}"):
        efficientnet.encoder(**{"stages": STAGES, "stem": 4, "head": 8, **changes})


@pytest.mark.parametrize("shape", [(8, 8, 3), (2, 8, 8, 1), (2, 3, 8, 8)])
def test_images_that_do_not_fit_are_refused(shape):
    with pytest.raises(ValueError, match=r"images must be \[B, H, W, 3\], got \(" + str(shape[0])):
        SMALL.init(KEY, jnp.zeros(shape))


def test_a_checkpoint_of_another_depth_is_refused(made, tmp_path):
    save_file(made["file"], tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"_blocks.2._depthwise_conv.weight \(12, 1, 5, 5\) has no place"):
        pretrained.load(efficientnet.encoder([STAGES[0], (5, 1, 6, 2, 2)], stem=4, head=8), tmp_path)
