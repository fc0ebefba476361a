"""One layer of a transformer, with its norms before or behind attention and the MLP."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from fedjax_mm.models.attention import attention, dropout
from fedjax_mm.models.layers import gelu
from fedjax_mm.types import Key


class Layer(nn.Module):
    """One encoder layer [B, T, D] -> [B, T, D] in `dtype`; mask [B, T] is True at real tokens; `key` turns dropout on.

    With `pre_norm` it is x + attention(norm(x)), then x + mlp(norm(x)); without, norm(x + attention(x)), then
    norm(x + mlp(x)). `dropout` holds the rates on attention weights, on attention's output and on the MLP's output.
    GELU is the exact one. Kernels start as N(0, std^2). BERT's and ViT's std of 0.02 is meant for a width of 768, and
    much narrower layers learn slowly from it. With `causal`, a token attends to none behind it.

    A layer without `pre_norm` that gets `memory` [M, S, D], and its real tokens `memory_mask` [M, S], attends to it
    between the two: norm(x + attention(x, memory)). Where B is n M, n rows of x after one another share a row of it.
    Its adapters are a `change` [B T, D] -> [B T, D] of what the last norm gives, which is added to what that norm gets,
    and goes through the same norm again. (Pfeiffer et al. 2021; FedDAT, section 2)

    Parameters: norm_1, norm_2 (scale, bias); query, key, value, out, fc_1, fc_2 (kernel [in, out], bias), of which
    `key` has no bias where `key_bias` is False; with memory also cross_norm and cross_query, cross_key, cross_value,
    cross_out.
    """

    heads: int
    mlp: int
    pre_norm: bool = True
    epsilon: float = 1e-12
    dropout: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: float = 0.02
    dtype: jax.typing.DTypeLike = jnp.float32
    key_bias: bool = True
    causal: bool = False

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        mask: jax.Array | None = None,
        key: Key | None = None,
        memory: jax.Array | None = None,
        memory_mask: jax.Array | None = None,
        change: Callable[[jax.Array], jax.Array] | None = None,
    ) -> jax.Array:
        shape, width = x.shape, x.shape[-1]
        keys = (None, None, None) if key is None else jax.random.split(key, 3)
        drops = {"": keys, "cross_": keys}
        if key is not None and memory is not None:
            drops["cross_"] = jax.random.split(jax.random.fold_in(key, 3))
        normal = nn.initializers.normal(self.std)
        dense = lambda name, features: nn.Dense(
            features, self.key_bias or name != "key", kernel_init=normal, dtype=self.dtype, name=name
        )
        # Two passes: a single one loses a variance that is small compared with the mean.
        norm = lambda name: nn.LayerNorm(self.epsilon, use_fast_variance=False, dtype=self.dtype, name=name)

        def attend(
            x: jax.Array, to: jax.Array, rows: int, mask: jax.Array | None, name: str, causal: bool
        ) -> jax.Array:
            split = lambda part, x: dense(name + part, width)(x).reshape(rows, -1, self.heads, width // self.heads)
            query, key, value = split("query", x), split("key", to), split("value", to)
            y = attention(query, key, value, mask, self.dropout[0], drops[name][0], causal)
            return dropout(dense(f"{name}out", width)(y.reshape(x.shape)), self.dropout[1], drops[name][1])

        def mlp(x: jax.Array) -> jax.Array:
            hidden = gelu(dense("fc_1", self.mlp)(x))
            return dropout(dense("fc_2", width)(hidden), self.dropout[2], keys[2])

        # One row a token: contracting over two axes at once, a kernel's gradient takes twice as long on CPUs.
        x = x.astype(self.dtype).reshape(-1, width)
        attend_itself = lambda x: attend(x, x, shape[0], mask, "", self.causal)
        if self.pre_norm:
            x = x + attend_itself(norm("norm_1")(x))
            x = x + mlp(norm("norm_2")(x))
        else:
            x = norm("norm_1")(x + attend_itself(x))
            if memory is not None:
                told = memory.astype(self.dtype).reshape(-1, width)
                x = norm("cross_norm")(x + attend(x, told, len(memory), memory_mask, "cross_", False))
            last, x = norm("norm_2"), x + mlp(x)
            x = last(x) if change is None else last(x + change(last(x)))
        return x.reshape(shape)
