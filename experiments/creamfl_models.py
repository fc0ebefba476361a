"""Encoders for CreamFL's experiments, small ones that have learnt to classify examples nobody in the experiment holds.

The paper's start from ImageNet, BERT and GloVe; with fresh ones clients have nothing to teach.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np

from fedjax_mm.local import gradient_step
from fedjax_mm.methods import joint_space
from fedjax_mm.methods.joint_space import Encoders, Training
from fedjax_mm.models import Model, cnn, embedding


@dataclasses.dataclass(frozen=True)
class Size:
    """Small models; the server's are larger."""

    dim: int = 64
    client_channels: tuple[int, ...] = (16, 32, 64)
    server_channels: tuple[int, ...] = (32, 64, 128)
    client_width: int = 32
    """Of word vectors."""
    server_width: int = 64


class Models(NamedTuple):
    server: Encoders
    clients: Mapping[str, Encoders]
    equal: Encoders  # of all, where weights are averaged


def small(size: Size, vocabulary: int, released: bool) -> Models:
    """Encoders into one space; released: those of image-only and text-only clients have the released code's form."""
    backward = "last" if released else "full"
    both = {
        "image": embedding.pie_image(cnn.trunk(size.client_channels), size.dim),
        "text": embedding.pie_text(vocabulary, size.dim, size.client_width, backward=backward),
    }
    form = {"scale": 128.0, "relu": True, "backward": "last"} if released else {}
    image = embedding.mean_image(cnn.trunk(size.client_channels), size.dim, 128.0 if released else 1.0)
    text = embedding.pie_text(vocabulary, size.dim, size.client_width, **form)
    server = {
        "image": embedding.pie_image(cnn.trunk(size.server_channels), size.dim),
        "text": embedding.pie_text(vocabulary, size.dim, size.server_width),
    }
    return Models(server, {"image": {"image": image}, "text": {"text": text}, "both": both}, both)


def pretrained(models: Models, examples: Mapping[str, Mapping[str, np.ndarray]], epochs: int) -> Models:
    """The same models, whose `init` gives parameters that have learnt to classify; with 0 epochs they stay fresh.

    examples[m]: arrays `m` and `label`.
    """
    if not epochs:
        return models
    learn = functools.lru_cache(None)(lambda m, model: learnt(model, m, examples[m], epochs))  # `equal` is `both`
    with_learnt = lambda encoders: {m: learn(m, model) for m, model in encoders.items()}
    clients = {name: with_learnt(encoders) for name, encoders in models.clients.items()}
    return Models(with_learnt(models.server), clients, with_learnt(models.equal))


def learnt(model: Model, m: str, examples: Mapping[str, np.ndarray], epochs: int, rate: float = 3e-3) -> Model:
    """The model with parameters that classify `examples`, arrays m and `label`, after that many passes of Adam."""
    encoders, key = {m: model}, jax.random.key(0)
    training = Training(client_lr=rate)
    arrays = {m: examples[m], "label": np.asarray(examples["label"], np.int32)}

    @jax.jit
    def train(arrays):
        params = joint_space.init(key, encoders, arrays, int(examples["label"].max()) + 1)
        tx = joint_space.optimizer(training, encoders, 0)
        step = gradient_step(joint_space.task(training, encoders), tx)
        return joint_space.passes(step, (params, tx.init(params)), arrays, key, 64, epochs)

    (params, _), metrics = train(arrays)
    print(f"pretrained a {m} encoder: accuracy over {epochs} passes {float(metrics['accuracy']):.2f}", flush=True)
    params = jax.device_get(params[m])
    return Model(lambda key, x: jax.tree.map(jax.numpy.asarray, params), model.apply)
