"""FedCLIP: of a frozen pretrained model of pictures and texts, clients train and send a small adapter alone.

Lu, Hu, Wang, Xie, 2023, arXiv 2302.13485:

    I    frozen features of a picture [D], such as CLIP's      T_j  frozen features of the text of class j
    g    the attention adapter: linear, tanh, linear, softmax  s    `scale`, by which a cosine is multiplied

One round:
  1. The server sends g.
  2. Client k trains g on the cross-entropy of  s cos(g(I) * I, T_j)  over the classes j (`attention`, `text_head`), and
     sends it.
  3. The server averages g.

This is FedAvg, whose encoder is the adapter and whose head has no parameters, so that all of its settings, weights
and scores are the same. Features are arrays [E, D] that were computed once: the frozen model is neither sent nor run.
Where clients have several modalities in the space of T, each has an adapter, and an example's feature is the mean of
its adapted ones. Choices: the adapted features are multiplied by D, since a softmax over D has the mean 1/D, which a
cosine does not see. Where the paper's text was not at hand: the loss is over all classes, and s is CLIP's 100.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_mm.checks import check_array, check_names
from fedjax_mm.federate import Method
from fedjax_mm.losses import unit
from fedjax_mm.methods import fedavg
from fedjax_mm.methods.fedavg import FedAvgConfig
from fedjax_mm.methods.settings import check_settings
from fedjax_mm.models import Model
from fedjax_mm.types import HasPopulation, Key, PyTree


@dataclasses.dataclass(frozen=True)
class FedCLIPConfig:
    """Settings of one run."""

    scale: float = 100.0
    """s, by which the cosine of a picture and a text is multiplied."""
    fedavg: FedAvgConfig = FedAvgConfig()
    """How the adapters are trained and averaged."""


def build(config: FedCLIPConfig, data: HasPopulation, modalities: Sequence[str], text: jax.typing.ArrayLike) -> Method:
    """The method for the cohorts of `data`, whose arrays of these modalities are features [E, D].

    text: [K, D], the features of each class's text. Scores and errors are those of `fedavg.build`. Raises ValueError
    too where `text` is no such array, and where features have another width.
    """
    check_settings(config, FedCLIPConfig)
    given = check_array("text", text, kinds=(np.floating,), shape="[K, D]")
    if not np.isfinite(given).all():
        raise ValueError("text holds NaN or infinity; give the finite features of every class's text")
    for name, cohort in data.population.cohorts.items():
        for m in check_names("modalities", modalities):
            if m in cohort.arrays and cohort.arrays[m].shape[1:] != given.shape[1:]:
                found = f"array {m!r} of cohort {name} is {[*cohort.arrays[m].shape]}"
                raise ValueError(f"{found}; it must be [E, {given.shape[1]}], as text has features of this width")
    return fedavg.build(config.fedavg, data, {m: ADAPTER for m in modalities}, text_head(given, config.scale))


def init_adapter(key: Key, features: jax.Array) -> dict[str, PyTree]:
    """g's first parameters, for features [B, D]: two linear layers, drawn as those of PyTorch.

    >>> sorted(init_adapter(jax.random.key(0), jnp.ones((1, 4)))["first"])
    ['bias', 'kernel']
    """
    width = features.shape[-1]
    draw = lambda i, shape: jax.random.uniform(jax.random.fold_in(key, i), shape, minval=-1, maxval=1) * width**-0.5
    layer = lambda i: {"kernel": draw(i, (width, width)), "bias": draw(i + 2, (width,))}
    return {"first": layer(0), "second": layer(1)}


def attention(adapter: PyTree, features: jax.Array) -> jax.Array:
    """g(I) [B, D]: the share of attention of each of the D features; a row sums to 1.

    >>> attention(jax.tree.map(jnp.zeros_like, init_adapter(jax.random.key(0), jnp.ones((1, 4)))), jnp.ones((1, 4)))
    Array([[0.25, 0.25, 0.25, 0.25]], dtype=float32)
    """
    linear = lambda layer, x: x @ layer["kernel"] + layer["bias"][None]
    return jax.nn.softmax(linear(adapter["second"], jnp.tanh(linear(adapter["first"], features))), axis=-1)


def adapt(adapter: PyTree, features: jax.Array) -> jax.Array:
    """D g(I) * I [B, D], the adapted features. With equal attention to all they are the features themselves.

    >>> zeros = jax.tree.map(jnp.zeros_like, init_adapter(jax.random.key(0), jnp.ones((1, 2))))
    >>> adapt(zeros, jnp.array([[3.0, 4.0]])).tolist()
    [[3.0, 4.0]]
    """
    return features.shape[-1] * attention(adapter, features) * features


ADAPTER = Model(init_adapter, adapt)


def text_head(text: jax.typing.ArrayLike, scale: float) -> Model:
    """A head without parameters: s cos(x, T_j), logits [B, K] of features [B, D]. text: T [K, D].

    >>> head = text_head(jnp.array([[2.0, 0.0], [0.0, 5.0]]), scale=10.0)
    >>> [round(x, 4) for x in head.apply({}, jnp.array([[3.0, 4.0]]))[0].tolist()]
    [6.0, 8.0]
    """
    return Model(lambda key, x: {}, lambda params, x: scale * unit(x) @ unit(jnp.asarray(text)).T)
