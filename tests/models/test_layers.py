"""The convolution equals XLA's, the group norm equals flax's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from fedjax_mm.models import layers


def random(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
@pytest.mark.parametrize("size", [(8, 6), (7, 9)])
def test_convolution_and_its_gradient_equal_xla(size, kernel, stride):
    x = random(0, 2, *size, 3)
    module = layers.Conv(4, kernel, stride)
    params = {"kernel": random(1, kernel, kernel, 3, 4), "bias": random(2, 4)}

    def native(params, x):
        y = jax.lax.conv_general_dilated(
            x, params["kernel"], (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return y + params["bias"].reshape(1, 1, 1, -1)

    def ours(params, x):
        return module.apply({"params": params}, x)

    expected = jax.jit(native)(params, x)
    np.testing.assert_allclose(jax.jit(ours)(params, x), expected, rtol=1e-5, atol=1e-5)
    cotangent = random(3, *expected.shape)
    gradients = [
        jax.jit(jax.grad(lambda p, x, f=f: (f(p, x) * cotangent).sum(), (0, 1)))(params, x) for f in (ours, native)
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), *gradients)


def test_a_patch_embedding_is_one_convolution_with_kernel_equal_to_stride():
    x = random(0, 2, 8, 12, 3)
    module = layers.Conv(5, kernel=4, stride=4)
    params = {"kernel": random(1, 4, 4, 3, 5), "bias": random(2, 5)}
    cut = np.stack([np.asarray(x)[:, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4] for i in range(2) for j in range(3)], 1)
    expected = np.einsum("bphwf,hwfo->bpo", cut, params["kernel"]).reshape(2, 2, 3, 5) + params["bias"].reshape(
        1, 1, 1, 5
    )
    np.testing.assert_allclose(module.apply({"params": params}, x), expected, rtol=1e-5, atol=1e-5)


def test_convolution_has_no_convolution_inside_even_mapped_over_weights():
    x = random(0, 2, 8, 8, 3)
    module = layers.Conv(4, 3, 2)
    params = {"params": {"kernel": random(1, 5, 3, 3, 3, 4), "bias": random(2, 5, 4)}}
    text = jax.jit(jax.vmap(module.apply, (0, None))).lower(params, x).as_text()
    assert "dot_general" in text and "convolution" not in text


@pytest.mark.parametrize("features, groups", [(16, 8), (12, 4), (3, 1)])
def test_group_norm_equals_flax(features, groups):
    x = 3.0 * random(0, 2, 5, 4, features) + 1.0
    params = {"params": {"scale": random(1, features), "bias": random(2, features)}}
    expected = jax.jit(nn.GroupNorm(num_groups=groups).apply)(params, x)
    np.testing.assert_allclose(jax.jit(layers.GroupNorm().apply)(params, x), expected, rtol=1e-4, atol=1e-4)


def test_uint8_images_are_scaled_and_others_are_not():
    images = jnp.array([[0, 255]], jnp.uint8)
    np.testing.assert_allclose(layers.pixels(images, jnp.float32), [[-1.0, 1.0]], atol=1e-6)
    np.testing.assert_allclose(layers.pixels(images.astype(jnp.int32), jnp.float32), [[0.0, 255.0]])


def test_an_image_without_channels_is_refused_in_words():
    with pytest.raises(ValueError, match=r"x\[\.\.\., None\]"):
        layers.Conv(4).init(jax.random.key(0), jnp.zeros((2, 8, 8)))


@pytest.mark.parametrize(
    "x, kernel, said",
    [
        ("images", jnp.ones((3, 3, 1, 2)), "x is 'images'"),
        (jnp.ones((4, 4, 1)), jnp.ones((3, 3, 1, 2)), "x has rank 3"),
        (jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 2)), "kernel has rank 3"),
        (jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 2, 2)), "kernel is .*with F 1"),
        (jnp.ones((1, 4, 4, 1)), jnp.ones((3, 1, 1, 2)), "kernel is "),
    ],
)
def test_a_convolution_of_what_does_not_fit_is_one_sentence(x, kernel, said):
    with pytest.raises(ValueError, match=said):
        layers.convolve(x, kernel)
