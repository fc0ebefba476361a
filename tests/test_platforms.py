"""What other platforms run is what a CPU runs: each branch of a choice by platform, by value and gradient."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_mm import costs, local
from fedjax_mm.models import attention, attention_kernel, layers, resnet, text

RNG = np.random.default_rng(0)
draw = lambda *shape: RNG.normal(size=shape).astype(np.float32)


@pytest.fixture(params=["cuda", "tpu"])
def elsewhere(request, monkeypatch):
    """As if the program were lowered for another platform; gives its name."""

    def chosen(*args, default=None, **by_platform):
        return by_platform.get(request.param, default)(*args)

    monkeypatch.setattr(jax.lax, "platform_dependent", chosen)
    return request.param


def convolutions(jaxpr):
    """The names of all primitives, of inner programs too."""
    names = [eqn.primitive.name for eqn in jaxpr.eqns]
    for eqn in jaxpr.eqns:
        for value in eqn.params.values():
            inner = getattr(value, "jaxpr", value)
            names += convolutions(inner) if hasattr(inner, "eqns") else []
    return names


def on_cpu(size, stride, padding, x, kernel):
    return layers.patches(x, size, stride, padding) @ kernel.reshape(-1, kernel.shape[-1])


@pytest.mark.parametrize("size, stride, padding", [(3, 2, None), (3, 1, None), (3, 2, 1), (7, 2, 3)])
def test_a_convolution_and_its_gradient_are_those_of_a_cpu(elsewhere, size, stride, padding):
    x, kernels = draw(2, 3, 9, 8, 2), draw(2, size, size, 2, 4)
    here = lambda x, kernel: layers.convolve(x, kernel, stride, padding)
    there = functools.partial(on_cpu, size, stride, padding)
    both = lambda f: jax.value_and_grad(lambda x, kernel: (f(x, kernel) ** 2).sum(), (0, 1))
    programs = [
        both(here),
        jax.vmap(both(here)),
        jax.vmap(both(here), (0, None)),
        jax.grad(lambda x, k: both(jax.vmap(here))(x, k)[0], (0, 1)),
    ]
    theirs = [
        both(there),
        jax.vmap(both(there)),
        jax.vmap(both(there), (0, None)),
        jax.grad(lambda x, k: both(jax.vmap(there))(x, k)[0], (0, 1)),
    ]
    given = [(x[0], kernels[0]), (x, kernels), (x, kernels[0]), (x, kernels)]
    for ours, other, args in zip(programs, theirs, given, strict=True):
        chex.assert_trees_all_close(jax.jit(ours)(*args), jax.jit(other)(*args), rtol=1e-4, atol=1e-4)


def test_clients_own_kernels_make_no_grouped_convolution_on_a_gpu(elsewhere):
    x, kernels = draw(2, 3, 8, 8, 2), draw(2, 3, 3, 2, 4)
    one = jax.grad(lambda kernel, x: (layers.convolve(x, kernel) ** 2).sum())
    native = lambda f, *args: "conv_general_dilated" in convolutions(jax.make_jaxpr(f)(*args).jaxpr)
    assert native(one, kernels[0], x[0])
    assert native(jax.vmap(one), kernels, x) == (elsewhere == "tpu")


@pytest.mark.parametrize("size, stride", [(3, 2), (5, 1)])
def test_a_depthwise_convolution_and_its_gradient_are_those_of_a_cpu(elsewhere, size, stride, monkeypatch):
    x, kernels = draw(2, 3, 9, 8, 4), draw(2, size, size, 1, 4)
    both = jax.value_and_grad(lambda x, kernel: (layers.convolve_depthwise(x, kernel, stride) ** 2).sum(), (0, 1))
    programs = {both: (x[0], kernels[0]), jax.vmap(both): (x, kernels)}
    there = [jax.jit(program)(*args) for program, args in programs.items()]
    native = ["conv_general_dilated" in convolutions(jax.make_jaxpr(f)(*args).jaxpr) for f, args in programs.items()]
    assert native == [True, elsewhere == "tpu"]
    monkeypatch.undo()
    here = [jax.jit(lambda *given, f=program: f(*given))(*args) for program, args in programs.items()]
    chex.assert_trees_all_close(here, there, rtol=1e-4, atol=1e-4)


def test_a_recurrent_net_is_the_one_of_a_cpu(elsewhere, monkeypatch):
    model = text.encoder(20, 4, 8, "gru")
    tokens = RNG.integers(0, 20, (3, 11))
    params = model.init(jax.random.key(0), tokens)
    value = lambda params: (model.apply(params, tokens) ** 2).sum()
    there = jax.jit(jax.value_and_grad(value))(params)
    monkeypatch.undo()
    chex.assert_trees_all_close(there, jax.jit(jax.value_and_grad(value))(params), rtol=1e-5, atol=1e-6)


def test_maxima_of_windows_are_those_of_a_cpu(elsewhere, monkeypatch):
    x = draw(2, 3, 9, 8, 4)
    both = jax.vmap(jax.value_and_grad(lambda x: (resnet.max_pool(x) ** 2).sum()))
    there = jax.jit(both)(x)
    assert ("reduce_window_max" in str(jax.make_jaxpr(both)(x))) == (elsewhere == "tpu")
    monkeypatch.undo()
    chex.assert_trees_all_close(jax.jit(lambda x: both(x))(x), there, rtol=1e-5, atol=1e-6)


def test_large_rows_are_the_same_rows(elsewhere, monkeypatch):
    monkeypatch.setattr(local, "LARGE", 5)
    monkeypatch.setattr(local, "FLAT", 5)
    draw = lambda *shape: RNG.integers(0, 256, shape, np.uint8)
    arrays = {"x": draw(7, 2, 3), "flat": draw(7, 6), "y": np.arange(7)}
    rows = jnp.array([3, 0, 6, 9, -2])
    for mapped in (False, True):
        take = jax.vmap(local.take, (None, 0)) if mapped else local.take
        found = jax.jit(take)(arrays, jnp.stack([rows, rows[::-1]]) if mapped else rows)
        places = np.clip([rows, rows[::-1]] if mapped else rows, 0, 6)
        chex.assert_trees_all_equal(found, {name: x[places] for name, x in arrays.items()})


@pytest.mark.parametrize("tokens", [5, 6])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_in_one_kernel_counts_the_keys_that_the_plain_one_counts(monkeypatch, tokens, masked):
    """cuDNN's own arithmetic needs a GPU; what surrounds it must not let an added key count, nor a padded one."""
    plain, lengths = jax.nn.dot_product_attention, []

    def cudnn(query, key, value, *, scale, implementation):
        assert implementation == "cudnn"
        lengths.append((query.shape[1], query.shape[-1] % 8))
        return plain(query, key, value, scale=scale)

    inputs = [draw(3, tokens, 2, 8) for _ in range(3)]
    mask = np.ones((3, tokens), bool)
    mask[1, 2:4], mask[2] = False, False  # the last row has no key that counts: all count alike
    value = lambda attend: lambda *qkv: (attend(*qkv, jnp.asarray(mask) if masked else None) ** 2).sum()
    expected = jax.value_and_grad(value(attention._attend), (0, 1, 2))(*inputs)
    monkeypatch.setattr(jax.nn, "dot_product_attention", cudnn)
    found = jax.value_and_grad(value(attention._fused), (0, 1, 2))(*inputs)
    chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-5)
    assert lengths == [(6, 0)]


def test_a_gpu_without_cudnn_takes_the_plain_attention(monkeypatch):
    """As on a card of another maker: JAX names it a GPU too."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    x = jnp.asarray(draw(1, attention.LONG, 1, 8), jnp.bfloat16)
    chex.assert_trees_all_equal(attention.attention(x, x, x, None, 0.0, None), attention._attend(x, x, x, None))


@pytest.mark.parametrize("heads, features", [(2, 64), (3, 64), (4, 32), (1, 128)])
@pytest.mark.parametrize("tokens, masked, rate", [(9, False, 0.0), (9, True, 0.3), (257, True, 0.0), (300, True, 0.1)])
def test_a_tpus_attention_in_one_kernel_is_the_plain_one(heads, features, tokens, masked, rate):
    """Its steps, run by XLA, to what half precision gives of the largest value, compared with float32."""
    inputs = [jnp.asarray(draw(3, tokens, heads, features), jnp.bfloat16) for _ in range(4)]
    mask = np.ones((3, tokens), bool)
    mask[1, 4:], mask[2] = False, False  # no key of the last row counts: all count alike
    given = jnp.asarray(mask) if masked else None
    keep = jnp.asarray(RNG.random((3, heads, tokens, tokens)) > rate) if rate else None

    def both(attend, *arrays):
        y, pull_back = jax.vjp(attend, *arrays[:3])
        return jax.tree.map(lambda x: x.astype(jnp.float32), [y, *pull_back(arrays[3])])

    plain = lambda *arrays: attention._attend(*arrays, given, keep, rate)
    exact = both(plain, *(x.astype(jnp.float32) for x in inputs))
    kernel = both(lambda *arrays: attention_kernel.attend(*arrays, given, keep, rate, True), *inputs)
    for found, right in zip(kernel, exact, strict=True):
        assert float(jnp.abs(found - right).max()) < 0.02 * float(jnp.abs(right).max())


ALONE = ["one device", "mapped", "dropout", "remat"]


@pytest.mark.parametrize("kind", [*ALONE, "shard_map", "several devices", "checked shard_map", "float32", "off"])
def test_a_tpu_has_its_kernel_where_no_compiler_has_to_split_it(kind, monkeypatch):
    """Lowered for a TPU: a kernel that XLA would have to split over devices does not lower at all."""
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    monkeypatch.setattr(jax, "device_count", lambda: 1 if kind in (*ALONE, "float32", "off") else 2)
    monkeypatch.setattr(attention, "KERNELS", kind != "off")
    mesh = jax.sharding.AbstractMesh((2,), ("clients",), axis_types=(jax.sharding.AxisType.Auto,))
    attend = lambda x: attention.attention(x, x, x, None, 0.1, jax.random.key(0) if kind == "dropout" else None)
    value = lambda x: (attend(x).astype(jnp.float32) ** 2).sum()
    program, shape = jax.grad(value), (2, 16, 2, 64)
    if kind == "remat":
        program = jax.grad(jax.checkpoint(value))
    elif kind == "mapped":
        program, shape = jax.vmap(program), (3, *shape)
    elif "shard_map" in kind:
        spec = jax.sharding.PartitionSpec("clients")
        program = jax.shard_map(program, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=kind != "shard_map")
    x = jax.ShapeDtypeStruct(shape, jnp.float32 if kind == "float32" else jnp.bfloat16)
    text = jax.jit(program).trace(x).lower(lowering_platforms=("tpu",)).as_text()
    assert ("tpu_custom_call" in text) == (kind in (*ALONE, "shard_map"))


def test_products_in_a_kernel_count_once_for_each_of_its_steps(monkeypatch):
    """And of a choice by platform the least, so that lanes that a kernel fills with zeros are no work."""
    x = jax.ShapeDtypeStruct((3, 16, 2, 64), jnp.bfloat16)
    attend = lambda x: attention.attention(x, x, x, None, 0.0, None)
    plain = costs.matmul_flops(attend, x)
    assert plain == 2 * 2 * 3 * 2 * 16 * 16 * 64
    assert costs.matmul_flops(lambda x: attention_kernel.attend(x, x, x, None, None), x) == 2 * plain
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert costs.matmul_flops(lambda x: attend(x), x) == plain
