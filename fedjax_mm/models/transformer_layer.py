"""One layer of a transformer, with its norms before or behind attention and the MLP."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from fedjax_mm.models.attention import attention, dropout
from fedjax_mm.types import Key


class Layer(nn.Module):
    """One encoder layer [B, T, D] -> [B, T, D] in `dtype`; mask [B, T] is True at real tokens; `key` turns dropout on.

    With `pre_norm` it is x + attention(norm(x)), then x + mlp(norm(x)); without, norm(x + attention(x)), then
    norm(x + mlp(x)). `dropout` holds the rates on attention weights, on attention's output and on the MLP's output.
    GELU is the exact one. Kernels start as N(0, std^2). BERT's and ViT's std of 0.02 is meant for a width of 768, and
    much narrower layers learn slowly from it. Parameters: norm_1, norm_2 (scale, bias); query, key, value, out, fc_1,
    fc_2 (kernel [in, out], bias), of which `key` has no bias where `key_bias` is False.
    """

    heads: int
    mlp: int
    pre_norm: bool = True
    epsilon: float = 1e-12
    dropout: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: float = 0.02
    dtype: jax.typing.DTypeLike = jnp.float32
    key_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None = None, key: Key | None = None) -> jax.Array:
        shape, width = x.shape, x.shape[-1]
        keys = (None, None, None) if key is None else jax.random.split(key, 3)
        normal = nn.initializers.normal(self.std)
        dense = lambda name, features: nn.Dense(
            features, self.key_bias or name != "key", kernel_init=normal, dtype=self.dtype, name=name
        )
        # Two passes: a single one loses a variance that is small compared with the mean.
        norm = lambda name: nn.LayerNorm(self.epsilon, use_fast_variance=False, dtype=self.dtype, name=name)

        def attend(x: jax.Array) -> jax.Array:
            split = lambda name: dense(name, width)(x).reshape(*shape[:2], self.heads, -1)
            y = attention(split("query"), split("key"), split("value"), mask, self.dropout[0], keys[0])
            return dropout(dense("out", width)(y.reshape(x.shape)), self.dropout[1], keys[1])

        def mlp(x: jax.Array) -> jax.Array:
            hidden = nn.gelu(dense("fc_1", self.mlp)(x), approximate=False)
            return dropout(dense("fc_2", width)(hidden), self.dropout[2], keys[2])

        # One row a token: contracting over two axes at once, a kernel's gradient takes twice as long on CPUs.
        x = x.astype(self.dtype).reshape(-1, width)
        if self.pre_norm:
            x = x + attend(norm("norm_1")(x))
            x = x + mlp(norm("norm_2")(x))
        else:
            x = norm("norm_1")(x + attend(x))
            x = norm("norm_2")(x + mlp(x))
        return x.reshape(shape)
