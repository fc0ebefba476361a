"""Parameter-efficient tuning of a ViLT: what a client trains in place of the trunk, and its head.

`adapter` (Houlsby et al. 2019, placed as Pfeiffer et al. 2021), `lora` (Hu et al. 2022) and `prompt` (Li & Liang 2021)
start small trees that `Vilt.apply` takes as {"adapter": tree}, {"lora": tree} or {"prompt": tree}; leaves that belong
to layers have them on axis 0, [L, ...]. `bias`, `norm`, `every_norm`, `full` and `classifier` say of a leaf's path, as
trees.path_mask asks, whether a part of the trunk itself trains. `answers` is the head. The numbers of parameters are
those of ViLT-B/32 with the defaults, as FedDAT's released code counts them (Chen et al. 2024).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from fedjax_mm.models.layers import Model, as_model
from fedjax_mm.types import Key, PyTree

_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # PyTorch's, of a linear layer


def adapter(key: Key, depth: int, dim: int, hidden: int = 48) -> PyTree:
    """An adapter for each of `depth` layers: down [L, dim, hidden], up [L, hidden, dim], with biases; 894,528.

    Kernels are N(0, 0.02^2), so it is not the identity at the start. (FedDAT)
    """
    down, up = jax.random.split(key)
    kernel = lambda key, *shape: {"kernel": 0.02 * jax.random.normal(key, (depth, *shape))}
    return {
        "down": kernel(down, dim, hidden) | {"bias": jnp.zeros((depth, hidden))},
        "up": kernel(up, hidden, dim) | {"bias": jnp.zeros((depth, dim))},
    }


def adapted(adapters: Sequence[PyTree], h: jax.Array) -> jax.Array:
    """h plus the mean of what one layer's adapters, leaves without the layers' axis, make of it: h [B, T, D] -> same.

    Several are averaged here, at every layer, not in their final answers; without any it is h. (FedDAT, DAT)
    """
    return h + sum(_bottleneck(tree, h, nn.relu) for tree in adapters) / len(adapters) if adapters else h


def lora(key: Key, depth: int, dim: int, rank: int = 16) -> PyTree:
    """Low-rank changes of each layer's query and value: a [L, dim, rank], and b [L, rank, dim] of zeros; 589,824."""
    a = lambda key: jax.vmap(lambda key: _uniform(key, (dim, rank)))(jax.random.split(key, depth))
    keys = dict(zip(("query", "value"), jax.random.split(key), strict=True))
    return {name: {"a": a(key), "b": jnp.zeros((depth, rank, dim))} for name, key in keys.items()}


def low_rank(changes: Mapping[str, PyTree], alpha: float) -> Callable[..., Any]:
    """An interceptor for linen: the linear layers named in `changes` give x W + b + alpha / rank (x A) B.

    The change is made to activations: with A and B of each client and W of all of them, mapping over clients never
    makes a W for each.
    """

    def intercept(call: Callable, args: tuple, kwargs: Mapping, context: nn.module.InterceptorContext) -> Any:
        y = call(*args, **kwargs)
        if context.method_name != "__call__" or context.module.name not in changes:
            return y
        a, b = (changes[context.module.name][name].astype(y.dtype) for name in ("a", "b"))
        return y + alpha / a.shape[-1] * (args[0] @ a @ b)

    return intercept


def prompt(key: Key, dim: int, length: int = 5, hidden: int = 192) -> PyTree:
    """Prompts for the text and for the image: vectors [length, dim] and an MLP of `hidden` units for each; 599,424.

    The released code sends the image's vectors through the text's MLP too, and leaves its own untrained.
    """

    def one(key: Key) -> PyTree:
        vectors, down, up = jax.random.split(key, 3)
        return {
            "vectors": jax.random.normal(vectors, (length, dim)),
            "down": {"kernel": _uniform(down, (dim, hidden)), "bias": jnp.zeros(hidden)},
            "up": {"kernel": _uniform(up, (hidden, dim)), "bias": jnp.zeros(dim)},
        }

    return {name: one(key) for name, key in zip(("text", "image"), jax.random.split(key), strict=True)}


def prompts(tree: PyTree) -> dict[str, jax.Array]:
    """The tokens [length, D] that stand behind the first one of the text and of the image."""
    return {name: _bottleneck(branch, branch["vectors"], jnp.tanh) for name, branch in tree.items()}


def bias(path: str) -> bool:
    """All biases, those of norms too; 104,448. (BitFit, Ben Zaken et al. 2022)"""
    return path.endswith("/bias")


def norm(path: str) -> bool:
    """The layers' norms and the last one; 38,400. The text embeddings' is not among them, as in the released code."""
    return path.startswith(("layers/norm_", "norm/"))


def every_norm(path: str) -> bool:
    """All norms, the text embeddings' too; 39,936."""
    return norm(path) or path.startswith("embeddings/text/norm/")


def full(path: str) -> bool:
    """Everything, the pooler too; 111,595,008.

    The released code counts 768 more: a third modality, for a second image, that visual questions have no use for.
    """
    return True


def classifier(path: str) -> bool:
    """Nothing of the trunk: the head alone trains."""
    return False


class _AnswerHead(nn.Module):
    num_answers: int
    dtype: jax.typing.DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        dense = lambda features, name: nn.Dense(features, kernel_init=_uniform, dtype=self.dtype, name=name)
        norm = nn.LayerNorm(1e-5, use_fast_variance=False, dtype=self.dtype, name="norm")
        x = nn.gelu(norm(dense(2 * x.shape[-1], "dense_0")(x)), approximate=False)
        return dense(self.num_answers, "dense_1")(x).astype(jnp.float32)


def answers(num_answers: int, dtype: jax.typing.DTypeLike = jnp.float32) -> Model:
    """ViLT's head for visual questions, [B, D] -> [B, num_answers] logits: linear to 2D, norm, exact gelu, linear.

    1,337,956 parameters at 100 answers. Parameters: dense_0, norm, dense_1.
    """
    return as_model(_AnswerHead(num_answers, dtype))


def _bottleneck(tree: PyTree, x: jax.Array, activation: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """activation(x down) up, in the precision of x: [..., D] -> [..., D]."""

    def linear(layer: PyTree, x: jax.Array) -> jax.Array:
        bias = layer["bias"].astype(x.dtype)
        return x @ layer["kernel"].astype(x.dtype) + bias.reshape((1,) * (x.ndim - 1) + bias.shape)

    return linear(tree["up"], activation(linear(tree["down"], x)))
