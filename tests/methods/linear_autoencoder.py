"""An autoencoder of maps, step by step, for tests of methods: LSTMs take half a minute to compile in every round."""

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_mm.models.autoencoder import AutoEncoder


def linear_ae(features=(("a", 3), ("b", 2)), width=2, hidden=4) -> AutoEncoder:
    """h_t = tanh(x_t U), z_t = (h_t + mean of h) V: with as many embeddings and states as the LSTMs give."""
    features = dict(features)

    def init(key):
        draw = lambda i, shape: jax.random.normal(jax.random.fold_in(key, i), shape) / 2
        params = {}
        for i, (m, f) in enumerate(features.items()):
            params[f"encoder_{m}"] = {"U": draw(3 * i, (f, hidden)), "V": draw(3 * i + 1, (hidden, width))}
            params[f"decoder_{m}"] = {"W": draw(3 * i + 2, (width, f))}
        return params

    def encode(params, m, x):
        h = jnp.tanh(x @ params[f"encoder_{m}"]["U"])
        return (h + h.mean(1, keepdims=True)) @ params[f"encoder_{m}"]["V"], h

    def decode(params, m, code, steps):
        return jnp.repeat(code[:, None], steps, 1) @ params[f"decoder_{m}"]["W"]

    return AutoEncoder(tuple(features), init, encode, decode)


def reconstruction_errors(params, x) -> np.ndarray:
    """The error [B] of each window of x {m: [B, T, F]} decoded from its own code by a `linear_ae`, in NumPy."""
    errors = []
    for m, windows in x.items():
        encoder, decoder = (jax.tree.map(np.asarray, params[f"{half}_{m}"]) for half in ("encoder", "decoder"))
        h = np.tanh(windows @ encoder["U"])
        code = (h[:, -1] + h.mean(1)) @ encoder["V"]
        decoded = np.repeat((code @ decoder["W"])[:, None], windows.shape[1], axis=1)
        errors.append(((decoded - windows[:, ::-1]) ** 2).mean((1, 2)))
    return np.mean(errors, 0)
