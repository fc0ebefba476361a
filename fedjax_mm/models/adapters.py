"""Parameter-efficient tuning of a ViLT: what a client trains in place of the trunk, and its head.

`adapter` (Houlsby et al. 2019, placed as Pfeiffer et al. 2021), `lora` (Hu et al. 2022) and `prompt` (Li & Liang 2021)
draw small trees that `Vilt.apply` takes as {"adapter": tree}, {"lora": tree} or {"prompt": tree}. Leaves that belong to
layers have the layers on axis 0, [L, ...]. `bias`, `norm`, `every_norm`, `full` and `classifier` say of a leaf's path,
as trees.path_mask asks, whether a part of the trunk itself trains. `answers` is the head.

Numbers of parameters are given for ViLT-B/32 with the defaults, as FedDAT's released code counts them (Chen et al.
2024; sections 2 and 4 of docs/specs/feddat.md).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from fedjax_mm.models.checks import check_dtype, check_sizes
from fedjax_mm.models.layers import Model, as_model, gelu
from fedjax_mm.types import Key, PyTree

_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # PyTorch's, of a linear layer


def adapter(key: Key, depth: int, dim: int, hidden: int = 48) -> PyTree:
    """An adapter for each of `depth` layers: down [L, dim, hidden] and up [L, hidden, dim], with biases.

    It has 894,528 parameters. Kernels are drawn from N(0, 0.02^2), so that an adapter is not the identity at the start.
    (FedDAT; section 2)

    >>> jax.tree.map(jnp.shape, adapter(jax.random.key(0), depth=2, dim=6, hidden=3))["down"]
    {'bias': (2, 3), 'kernel': (2, 6, 3)}
    """
    check_sizes(depth=depth, dim=dim, hidden=hidden)
    down, up = jax.random.split(key)
    kernel = lambda key, *shape: {"kernel": 0.02 * jax.random.normal(key, (depth, *shape))}
    return {
        "down": kernel(down, dim, hidden) | {"bias": jnp.zeros((depth, hidden))},
        "up": kernel(up, hidden, dim) | {"bias": jnp.zeros((depth, dim))},
    }


def adapted(adapters: Sequence[PyTree], h: jax.Array) -> jax.Array:
    """h [B, T, D] plus the mean of what one layer's adapters make of it; h itself without adapters.

    adapters: trees whose leaves lack the layers' axis. Several are averaged here, in every layer, and not in their
    final answers: FedDAT's DAT. (section 1)

    >>> bare = lambda value: {"kernel": jnp.full((1, 1), value), "bias": jnp.zeros(1)}
    >>> times = lambda factor: {"down": bare(1.0), "up": bare(factor)}
    >>> adapted((times(1.0), times(3.0)), jnp.full((1, 1, 1), 5.0)).item()  # 5 + (5 + 15) / 2
    15.0
    """
    if not adapters:
        return h
    rows = h.reshape(-1, h.shape[-1])  # as a layer has them: a TPU would lay them out anew for [B, T, D]
    return (rows + change(adapters, rows)).reshape(h.shape)


def change(adapters: Sequence[PyTree], h: jax.Array) -> jax.Array:
    """The mean of what one layer's adapters make of h [..., D], which `adapted` adds to it.

    >>> bare = lambda value: {"kernel": jnp.full((1, 1), value), "bias": jnp.zeros(1)}
    >>> change([{"down": bare(1.0), "up": bare(3.0)}], jnp.full((1, 1), 5.0)).item()
    15.0
    """
    return jnp.asarray(sum(_bottleneck(tree, h, nn.relu) for tree in adapters) / len(adapters))


def lora(key: Key, depth: int, dim: int, rank: int = 16) -> PyTree:
    """Low-rank changes of each layer's query and value: a [L, dim, rank], and b [L, rank, dim] of zeros.

    They have 589,824 parameters. (section 4)

    >>> jax.tree.map(jnp.shape, lora(jax.random.key(0), depth=2, dim=6, rank=3))["query"]
    {'a': (2, 6, 3), 'b': (2, 3, 6)}
    """
    check_sizes(depth=depth, dim=dim, rank=rank)
    a = lambda key: jax.vmap(lambda key: _uniform(key, (dim, rank)))(jax.random.split(key, depth))
    keys = dict(zip(("query", "value"), jax.random.split(key), strict=True))
    return {name: {"a": a(key), "b": jnp.zeros((depth, rank, dim))} for name, key in keys.items()}


def low_rank(changes: Mapping[str, PyTree], alpha: float) -> Callable[..., Any]:
    """An interceptor for linen: the linear layers named in `changes` give x W + b + alpha / rank (x A) B.

    The change is made to activations, not to W: each client has its own A and B, all share W, and mapping over clients
    never makes a W for each.
    """

    def intercept(call: Callable, args: tuple, kwargs: Mapping, context: nn.module.InterceptorContext) -> Any:
        y, layer = call(*args, **kwargs), context.module.name
        if context.method_name != "__call__" or layer is None or layer not in changes:
            return y
        a, b = (changes[layer][name].astype(y.dtype) for name in ("a", "b"))
        return y + alpha / a.shape[-1] * (args[0] @ a @ b)

    return intercept


def prompt(key: Key, dim: int, length: int = 5, hidden: int = 192) -> PyTree:
    """Prompts for the text and for the image: vectors [length, dim] and an MLP of `hidden` units for each.

    They have 599,424 parameters. The released code sends the image's vectors through the text's MLP, and leaves the
    image's own MLP untrained. (section 1b, D6)

    >>> jax.tree.map(jnp.shape, prompt(jax.random.key(0), dim=6, length=2, hidden=3))["image"]["vectors"]
    (2, 6)
    """
    check_sizes(dim=dim, length=length, hidden=hidden)

    def one(key: Key) -> PyTree:
        vectors, down, up = jax.random.split(key, 3)
        return {
            "vectors": jax.random.normal(vectors, (length, dim)),
            "down": {"kernel": _uniform(down, (dim, hidden)), "bias": jnp.zeros(hidden)},
            "up": {"kernel": _uniform(up, (hidden, dim)), "bias": jnp.zeros(dim)},
        }

    return {name: one(key) for name, key in zip(("text", "image"), jax.random.split(key), strict=True)}


def prompts(tree: PyTree) -> dict[str, jax.Array]:
    """The tokens [length, D] that stand behind the first token of the text and of the image: {"text", "image"}.

    >>> jax.tree.map(jnp.shape, prompts(prompt(jax.random.key(0), dim=6, length=2, hidden=3)))
    {'image': (2, 6), 'text': (2, 6)}
    """
    return {name: _bottleneck(branch, branch["vectors"], jnp.tanh) for name, branch in tree.items()}


def bias(path: str) -> bool:
    """Whether a leaf is a bias, be it a norm's, and not of VAuLT's frozen BERT: 104,448 parameters train.

    (BitFit, Ben Zaken et al. 2022)

    >>> bias("layers/query/bias"), bias("layers/query/kernel")
    (True, False)
    """
    return path.endswith("/bias") and not path.startswith("language/")


def norm(path: str) -> bool:
    """Whether a leaf belongs to a layer's norm or to the last one: 38,400 parameters train.

    The norm of the text embeddings is not among them, and of ALBEF the norms of the ViT alone are, as in the released
    code. (section 4)

    >>> norm("layers/norm_1/scale"), norm("embeddings/text/norm/scale")
    (True, False)
    """
    of_image = path.startswith("image/") and ("/norm_" in path or path.startswith("image/norm/"))
    return path.startswith(("layers/norm_", "norm/")) or of_image


def every_norm(path: str) -> bool:
    """Whether a leaf belongs to any norm, be it that of the text embeddings: 39,936 parameters train.

    >>> every_norm("embeddings/text/norm/scale")
    True
    """
    return norm(path) or path.startswith("embeddings/text/norm/")


def full(path: str) -> bool:
    """True for every leaf but those of VAuLT's BERT, "language/...": 111,595,008 parameters train, the pooler's too.

    The released code counts 768 more: a third modality, for a second image, which visual questions do not need.
    (section 4)

    >>> full("pooler/bias"), full("language/embeddings/word")
    (True, False)
    """
    return not path.startswith("language/")


def classifier(path: str) -> bool:
    """False for every leaf: nothing of the trunk trains, the head alone does."""
    return False


class _AnswerHead(nn.Module):
    num_answers: int
    dtype: jax.typing.DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        dense = lambda features, name: nn.Dense(features, kernel_init=_uniform, dtype=self.dtype, name=name)
        norm = nn.LayerNorm(1e-5, use_fast_variance=False, dtype=self.dtype, name="norm")
        x = gelu(norm(dense(2 * x.shape[-1], "dense_0")(x)))
        return dense(self.num_answers, "dense_1")(x).astype(jnp.float32)


def answers(num_answers: int, dtype: jax.typing.DTypeLike = jnp.float32) -> Model:
    """ViLT's head for visual questions, [B, D] -> [B, num_answers] logits: linear to 2D, norm, exact gelu, linear.

    It has 1,337,956 parameters at 100 answers: dense_0, norm, dense_1. (section 2)

    >>> params = jax.eval_shape(answers(100).init, jax.random.key(0), jnp.zeros((1, 768)))
    >>> sum(leaf.size for leaf in jax.tree.leaves(params))
    1337956
    """
    check_sizes(num_answers=num_answers)
    check_dtype(dtype)
    return as_model(_AnswerHead(num_answers, dtype))


def _bottleneck(tree: PyTree, x: jax.Array, activation: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """activation(x down) up, in the precision of x: [..., D] -> [..., D]."""

    def linear(layer: PyTree, x: jax.Array) -> jax.Array:
        bias = layer["bias"].astype(x.dtype)
        return x @ layer["kernel"].astype(x.dtype) + bias.reshape((1,) * (x.ndim - 1) + bias.shape)

    return linear(tree["up"], activation(linear(tree["down"], x)))
