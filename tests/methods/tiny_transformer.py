"""Encoders in pieces as transformers are, a matrix a layer, for tests of methods: attention takes long to compile."""

import jax
import jax.numpy as jnp

from fedjax_mm.models.pretrained import Checkpoint
from fedjax_mm.models.transformer import Transformer, dropout


def tiny(features=3, width=4, depth=2, norm=False, rate=0.0, seen=None) -> Transformer:
    """h = x E, then h + tanh(h W_i) in each layer, times `norm`; vectors [B, features].

    seen: a list that gets every `dropout_from` that the encoder is called with.
    """

    def init(key, batch):
        draw = lambda i, shape: jax.random.normal(jax.random.fold_in(key, i), shape)
        layers = {f"{i:02d}": {"w": draw(i, (width, width)) / 2} for i in range(depth)}
        params = {"embeddings": {"w": draw(depth, (features, width))}, "layers": layers}
        if norm:
            params |= {"norm": {"scale": jnp.ones(width)}, "pooler": {"w": draw(depth + 1, (width, width))}}
        return params

    def hidden(params, x, key=None, dropout_from=0, below=None):
        h = x @ params["embeddings"]["w"] if below is None else below
        for name, layer in params["layers"].items():
            h = h + jnp.tanh(h @ layer["w"])
            if key is not None and int(name) >= dropout_from:
                h = dropout(h, rate, jax.random.fold_in(key, int(name)))
        return h

    def apply(params, x, key=None, dropout_from=0, below=None):
        if seen is not None and key is not None:
            seen.append(dropout_from)
        h = hidden(params, x, key, dropout_from, below)
        return h * params["norm"]["scale"][None] if norm else h

    example = jax.ShapeDtypeStruct((1, features), jnp.float32)
    return Transformer(depth, width, init, apply, apply, example, Checkpoint({}, "", ()), None, hidden)
