"""What is tuned beside or in a ViLT: its numbers of parameters, its start, and that the trunk stays one for all."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

from fedjax_mm import trees
from fedjax_mm.models import adapters, vilt

KEY = jax.random.key(0)
# The trunk's kernels are [11, 11] and [11, 13]; nothing else is.
SIZES = {"image": 8, "patch": 4, "vocabulary": 12, "text_length": 3, "dim": 11, "depth": 2, "heads": 1, "mlp": 13}
MODEL = vilt.encoder(**SIZES)
RNG = np.random.default_rng(0)
BATCH = {
    "image": RNG.normal(size=(2, 8, 12, 3)).astype(np.float32),
    "size": np.array([[8, 12], [4, 8]], np.int32),
    "question": np.array([[3, 5, 0], [2, 0, 0]], np.int32),
}
TUNINGS = {
    "adapter": lambda key: {"adapter": adapters.adapter(key, 2, 11, hidden=5)},
    "lora": lambda key: {"lora": adapters.lora(key, 2, 11, rank=3)},
    "prompt": lambda key: {"prompt": adapters.prompt(key, 11, length=2, hidden=7)},
}
loss = lambda params, tuning, batch: (MODEL.apply(params, batch, tuning) ** 2).sum()


@functools.cache
def params():
    """The trunk's, none of which is 0."""
    moved = np.random.default_rng(0)
    start = jax.jit(MODEL.init)(KEY, BATCH)
    return jax.tree.map(lambda x: x + 0.1 * moved.normal(size=x.shape).astype(np.float32), start)


def size(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def random_tuning(kind, clients=()):
    shapes = jax.eval_shape(TUNINGS[kind], KEY)
    return jax.tree.map(lambda x: RNG.normal(0, 0.5, (*clients, *x.shape)).astype(np.float32), shapes)


def test_numbers_of_parameters_are_the_released_codes():
    shape = lambda make, *arguments: jax.eval_shape(lambda key: make(key, *arguments), KEY)
    assert size(shape(adapters.adapter, 12, 768)) == 12 * 74_544 == 894_528
    assert size(shape(adapters.lora, 12, 768)) == 589_824
    assert size(shape(adapters.prompt, 768)) == 599_424
    head = adapters.answers(100)
    assert size(jax.eval_shape(head.init, KEY, jnp.zeros((1, 768)))) == 1_337_956
    model = vilt.base()
    params = jax.eval_shape(model.init, KEY, model.example)
    trained = lambda trains: trees.partition(params, trees.path_mask(params, trains))[0]
    assert size(trained(adapters.bias)) == 104_448
    assert size(trained(adapters.norm)) == 38_400
    assert size(trained(adapters.every_norm)) == 38_400 + 2 * 768
    assert size(trained(adapters.full)) == 111_595_776 - 768
    assert size(trained(adapters.classifier)) == 0


def test_what_trains_of_the_trunk_is_what_its_name_says():
    # Biases and norms are the vectors: all others are kernels and tables.
    picked = lambda trains: trees.partition(params(), trees.path_mask(params(), trains))[0]
    norms = {"scale": None, "bias": None}
    leaves = jax.tree.structure(picked(adapters.every_norm))
    expected = jax.tree.structure(
        {
            "embeddings": {"text": {"norm": norms}},
            "layers": {"norm_1": norms, "norm_2": norms},
            "norm": norms,
        },
        is_leaf=lambda x: x is None,
    )
    assert leaves.num_leaves == expected.num_leaves == 8
    stacked = lambda path: path.startswith("layers/")
    vectors = trees.path_mask(params(), lambda path: True)
    vectors = jax.tree.map(lambda _, x, s: x.ndim == 1 + s, vectors, params(), trees.path_mask(params(), stacked))
    scales = trees.path_mask(params(), lambda path: path.endswith("scale"))
    biases = jax.tree.map(lambda vector, scale: vector and not scale, vectors, scales)
    assert trees.path_mask(params(), adapters.bias) == biases


def test_starts_are_feddats():
    start = lambda make, *arguments: jax.device_get(jax.jit(lambda key: make(key, *arguments))(KEY))
    adapter = start(adapters.adapter, 12, 64)
    for kernel in (adapter["down"]["kernel"], adapter["up"]["kernel"]):
        assert 0.019 < kernel.std() < 0.021 and abs(kernel.mean()) < 1e-3
        assert np.abs(kernel[0] - kernel[1]).max() > 0.01
    assert not adapter["down"]["bias"].any() and not adapter["up"]["bias"].any()
    lora = start(adapters.lora, 12, 64)
    assert not lora["query"]["b"].any() and np.abs(lora["query"]["a"] - lora["value"]["a"]).max() > 0.01
    assert np.abs(lora["query"]["a"][0] - lora["query"]["a"][1]).max() > 0.01
    prompt = start(adapters.prompt, 64)
    assert np.abs(prompt["text"]["vectors"] - prompt["image"]["vectors"]).max() > 0.1
    head = start(adapters.answers(7).init, np.zeros((1, 64), np.float32))
    for kernel in (lora["value"]["a"], prompt["text"]["down"]["kernel"], head["dense_0"]["kernel"]):
        assert 0.12 < np.abs(kernel).max() <= 0.125 and abs(kernel.std() - 0.125 / np.sqrt(3)) < 5e-3  # U(-1/8, 1/8)


def test_an_adapter_is_added_and_several_are_averaged():
    a, b = ({k: jax.tree.map(lambda x: x[0], v) for k, v in random_tuning("adapter")["adapter"].items()} for _ in "ab")
    h = RNG.normal(size=(2, 3, 11)).astype(np.float32)
    out = lambda t: np.maximum(h @ t["down"]["kernel"] + t["down"]["bias"], 0) @ t["up"]["kernel"] + t["up"]["bias"]
    np.testing.assert_allclose(adapters.adapted((a,), h), h + out(a), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(adapters.adapted((a, b), h), h + out(a) / 2 + out(b) / 2, rtol=1e-5, atol=1e-5)
    assert adapters.adapted((), h) is h


def test_fresh_lora_is_the_identity_and_alpha_is_over_the_rank():
    apply = jax.jit(MODEL.apply)
    plain = apply(params(), BATCH)
    np.testing.assert_allclose(apply(params(), BATCH, jax.jit(TUNINGS["lora"])(KEY)), plain, rtol=1e-6, atol=1e-6)
    tuning = random_tuning("lora")
    twice = lambda t: {"a": np.concatenate([t["a"]] * 2, -1), "b": np.concatenate([t["b"]] * 2, 1)}
    wider = {"lora": {name: twice(t) for name, t in tuning["lora"].items()}}
    out = apply(params(), BATCH, tuning)
    np.testing.assert_allclose(apply(params(), BATCH, wider), out, rtol=1e-5, atol=1e-5)
    assert np.abs(out - plain).max() > 1e-2


@pytest.mark.parametrize("kind", TUNINGS)
def test_every_leaf_that_is_tuned_gets_a_gradient(kind):
    gradients = jax.jit(jax.grad(loss, argnums=1))(params(), random_tuning(kind), BATCH)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.abs(leaf).max() > 1e-8, path  # the image's prompts too


def shapes(jaxpr):
    """Of all that is computed, in inner programs too."""
    for equation in jaxpr.eqns:
        yield from (v.aval.shape for v in equation.outvars)
        for x in jax.tree.leaves(list(equation.params.values())):
            if isinstance(x, (core.ClosedJaxpr, core.Jaxpr)):
                yield from shapes(getattr(x, "jaxpr", x))


def copies(function, *arguments):
    """Shapes of what is computed with a client axis, 17, before a kernel of the trunk."""
    kernels = {(11, 11), (11, 13), (13, 11)}
    found = set(shapes(jax.make_jaxpr(function)(*arguments).jaxpr))
    return {shape for shape in found if 17 in shape and kernels & {shape[-2:]}}


def clients_step(kind):
    batches = jax.tree.map(lambda x: np.stack([x, x[::-1]] * 8 + [x]), BATCH)
    return jax.grad(loss, argnums=1), random_tuning(kind, (17,)), batches


@pytest.mark.parametrize("kind", TUNINGS)
def test_clients_map_over_one_trunk(kind):
    step, tuning, batches = clients_step(kind)
    assert not copies(jax.vmap(step, in_axes=(None, 0, 0)), params(), tuning, batches)
    everyone = jax.tree.map(lambda x: np.broadcast_to(x, (17, *x.shape)), params())
    assert copies(jax.vmap(step), everyone, tuning, batches)  # it sees one where there is one


def test_clients_mapped_equal_a_loop():
    step, tuning, batches = clients_step("adapter")
    out = jax.jit(jax.vmap(step, in_axes=(None, 0, 0)))(params(), tuning, batches)
    one = jax.jit(step)
    for i in (0, 9, 16):
        at = lambda tree, i=i: jax.tree.map(lambda x: x[i], tree)
        close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * (1 + np.abs(b).max()))
        jax.tree.map(close, at(out), one(params(), at(tuning), at(batches)))


def test_clients_with_their_own_biases_and_two_adapters_share_the_kernels():
    mask = trees.path_mask(params(), adapters.bias)
    own, shared = trees.partition(params(), mask)
    biases = jax.tree.map(lambda x: np.stack([x] * 17), own)
    step = lambda own, shared: jax.grad(lambda own: loss(trees.merge(own, shared), {}, BATCH))(own)
    assert not copies(jax.vmap(step, in_axes=(0, None)), biases, shared)

    started = jax.eval_shape(jax.vmap(MODEL.start, in_axes=(None, 0)), params(), jax.tree.map(lambda x: x[None], BATCH))
    started = jax.tree.map(lambda x: jnp.ones((17, *x.shape[1:]), x.dtype), started)
    two = tuple(random_tuning("adapter", (17,))["adapter"] for _ in "ab")
    finish = jax.grad(lambda two, started, params: MODEL.finish(params, started, two).sum())
    assert not copies(jax.vmap(finish, in_axes=(0, 0, None)), two, started, params())
