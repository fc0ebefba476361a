"""What is read of an encoder's outputs on a window: one row, from its last step or from all of its steps.

Shapes: B windows, T steps, D width of an embedding z, H width of a state h of the first layer.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_mm.models.checks import one_of

Readout = Literal["last", "mean", "mean_std", "hidden_last", "hidden_mean", "hidden_mean_std"]
"""Of the embeddings z, or with "hidden" of the states h of the first layer: the last step, the mean over time, or the
mean and the standard deviation over time, side by side."""
SMALL = 1e-6
"""What is added to a variance: a deviation of 0 has no finite gradient."""


def layer(readout: Readout) -> Literal["z", "h"]:
    """The output of the encoder that a readout reads.

    >>> layer("mean_std"), layer("hidden_mean_std")
    ('z', 'h')
    """
    return "h" if readout.startswith("hidden_") else "z"


def read(readout: Readout, z: jax.Array, h: jax.Array) -> jax.Array:
    """One row for each window: [B, D], or [B, H] with "hidden", and twice as wide with the deviation.

    z [B, T, D], h [B, T, H]. The deviation is the square root of the variance over the T steps plus 1e-6. Raises
    ValueError for another readout.

    >>> z, h = jnp.array([[[0.0], [1.0], [2.0]]]), jnp.array([[[4.0, 0.0], [6.0, 0.0], [8.0, 0.0]]])
    >>> read("last", z, h).tolist(), read("hidden_mean", z, h).tolist()
    ([[2.0]], [[6.0, 0.0]])
    >>> [round(x, 2) for x in read("mean_std", z, h)[0].tolist()]
    [1.0, 0.82]
    """
    one_of("readout", readout, get_args(Readout))
    x = h if layer(readout) == "h" else z
    over = readout.removeprefix("hidden_")
    if over == "last":
        return x[:, -1]
    mean = x.mean(1)
    return mean if over == "mean" else jnp.concatenate([mean, jnp.sqrt(x.var(1) + SMALL)], axis=-1)


def in_chunks(streams: Mapping[str, Any], names: Iterable[str], frames: int) -> dict[str, Any]:
    """Streams {m: [T, ...]} as windows of `frames` steps, {m: [C, frames, ...]}: the last one ends in zeros.

    Arrays that are not in `names` stay away. A recurrent encoder runs through a window with one state, which no later
    step changes: of the T steps that a stream has, the zeros change nothing. Raises ValueError where streams differ in
    length, or have another form than [T] or [T, F].

    >>> in_chunks({"a": np.arange(5), "b": 0}, ["a"], 3)["a"].tolist()
    [[0, 1, 2], [3, 4, 0]]
    """
    given = {name: np.asarray(streams[name]) for name in names if name in streams}
    shapes = {name: [*x.shape] for name, x in given.items()}
    if any(len(shape) not in (1, 2) for shape in shapes.values()) or len({shape[0] for shape in shapes.values()}) > 1:
        raise ValueError(f"there are {shapes}; streams are [T, F] and their labels [T], all of one length T")
    found = {}
    for name, x in given.items():
        chunks = -(-len(x) // frames)
        padded = np.concatenate([x, np.zeros((chunks * frames - len(x), *x.shape[1:]), x.dtype)])
        found[name] = padded.reshape(chunks, frames, *x.shape[1:])
    return found
