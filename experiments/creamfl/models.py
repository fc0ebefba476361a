"""Encoders for CreamFL's experiments: small ones, and those of the paper from their checkpoints.

The small ones first learn to classify examples that nobody in the experiment holds, as the paper's come from ImageNet,
BERT and GloVe: with fresh ones clients have nothing to teach.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.weights.features import WIDTH, features
from experiments.weights.upper import given, upper_encoder, uppers
from fedjax_mm import trees
from fedjax_mm.data import wordpiece
from fedjax_mm.local import gradient_step
from fedjax_mm.methods.augment import resized
from fedjax_mm.methods.creamfl import joint_space
from fedjax_mm.methods.creamfl.joint_space import Encoders, Training
from fedjax_mm.models import Model, bert, cnn, embedding, mlp, resnet


@dataclasses.dataclass(frozen=True)
class Size:
    """Small models; the server's are larger."""

    dim: int = 64
    """Width of the joint space."""
    client_channels: tuple[int, ...] = (16, 32, 64)
    """Channels of the convolutions of the clients' image encoders."""
    server_channels: tuple[int, ...] = (32, 64, 128)
    """Channels of the convolutions of the server's image encoder."""
    client_width: int = 32
    """Width of the clients' word vectors."""
    server_width: int = 64
    """Width of the server's word vectors."""


class Models(NamedTuple):
    server: Encoders
    clients: Mapping[str, Encoders]
    equal: Encoders  # of all, where weights are averaged


def small(size: Size, vocabulary: int, released: bool, dtype: str = "float32") -> Models:
    """Encoders into one space; released: those of image-only and text-only clients have the released code's form."""
    trunk = cnn.trunk(size.client_channels, dtype=dtype)
    server = {
        "image": embedding.pie_image(cnn.trunk(size.server_channels, dtype=dtype), size.dim, dtype),
        "text": embedding.pie_text(vocabulary, size.dim, size.server_width, dtype=dtype),
    }
    return _with_clients(server, trunk, size.dim, vocabulary, size.client_width, None, released, dtype)


def on_features(size: Size, dtype: str = "float32") -> Models:
    """A linear map of each modality's features into the joint space, of the same form at the server and at clients."""
    return _same_everywhere({m: mlp.encoder((), size.dim, dtype) for m in ("image", "text")})


def _same_everywhere(both: Encoders) -> Models:
    return Models(both, {"image": {"image": both["image"]}, "text": {"text": both["text"]}, "both": both}, both)


def on_tokens(size: Size, examples: Mapping[str, np.ndarray], dtype: str = "float32") -> Models:
    """The last layer of both pretrained encoders, and a linear map of the mean of its tokens; the same everywhere.

    examples[m]: what `below_the_last` gives.
    """
    return _same_everywhere({m: _last_layer(m, examples[m], size.dim, dtype) for m in ("image", "text")})


def _last_layer(m: str, examples: np.ndarray, dim: int, dtype: str) -> Model:
    tokens = lambda x: x.reshape(len(x), -1, WIDTH)
    encoder, start = upper_encoder(uppers(0.0, dtype)[m], tokens(examples[:1]), 1)
    init = lambda key, x: trees.grow(start, encoder.init(key, tokens(x)))
    return embedding.linear(Model(init, lambda params, x: encoder.apply(params, tokens(x))), dim)


def below_the_last(m: str, examples: np.ndarray) -> np.ndarray:
    """What the layers below the last one say: images [..., S, S, 3] or word pieces [..., L] -> [..., T * D] float16.

    All tokens of an example are in one row, as CreamFL takes a text [L] for one and [Q, L] for several captions.
    """
    upper = uppers(0.0)[m]
    tokens = given(upper, examples, 1)
    return tokens.reshape(*examples.shape[: -upper.axes], -1)


def frozen(m: str, examples: np.ndarray) -> np.ndarray:
    """What the frozen encoder of a modality says: images [..., 98, 98, 3] or word pieces [..., L] -> [..., D]."""
    name, axes = ("vit_s14", 3) if m == "image" else ("minilm", 1)
    outer, own = examples.shape[:-axes], examples.shape[-axes:]
    return features(name, examples.reshape(-1, *own)).reshape(*outer, -1)


def full(folder: str | pathlib.Path, dim: int, side: int, released: bool, dtype: str = "float32") -> Models:
    """The paper's: ResNet-101 and BERT at the server, ResNet-18 and a bi-GRU on vectors 300 wide at clients.

    folder: resnet-101, resnet-18 and bert-base-uncased as Hugging Face has them, the last with its vocab.txt, and, if
    word vectors are not to start at random, glove.840B.300d.txt. All texts are in BERT's word pieces, of which GloVe
    knows those that are words; the paper's GRU reads words. Sizes are those of each config.json. Images have another
    side than `side` where they are stored so, and are then seen as `at_side` says.
    """
    folder = pathlib.Path(folder)
    words = wordpiece.load(folder / "bert-base-uncased" / "vocab.txt").get_vocab()
    words, vectors = sorted(words, key=words.__getitem__), folder / "glove.840B.300d.txt"
    table = embedding.glove(vectors, words) if vectors.is_file() else None
    trunks = {name: resnet.from_pretrained(folder / name, side, dtype) for name in ("resnet-101", "resnet-18")}
    trunks["bert-base-uncased"] = bert.from_pretrained(folder / "bert-base-uncased", True, dropout=0.0, dtype=dtype)
    started = {name: _started(model, jax.device_get(params)) for name, (model, params) in trunks.items()}
    made = _of_trunks(started, dim, released, len(words), table, dtype)
    seen = lambda encoders: {m: at_side(model, side) if m == "image" else model for m, model in encoders.items()}
    clients = {name: seen(encoders) for name, encoders in made.clients.items()}
    return Models(seen(made.server), clients, clients["both"])


def at_side(model: Model, side: int) -> Model:
    """The same encoder, which sees of larger images [B, H, W, C] the middle square of this side, and smaller ones in
    this size.

    >>> model = at_side(Model(lambda key, x: x.shape, lambda params, x: x.shape), 4)
    >>> model.init(None, np.zeros((1, 6, 6, 3))), model.apply((), np.zeros((1, 2, 2, 3)))
    ((1, 4, 4, 3), (1, 4, 4, 3))
    """

    def seen(x: jax.Array) -> jax.Array:
        if min(x.shape[1:3]) < side:
            return resized(x, (side, side))
        top, left = ((size - side) // 2 for size in x.shape[1:3])
        return x[:, top : top + side, left : left + side]

    return model._replace(
        init=lambda key, x: model.init(key, seen(x)), apply=lambda params, x: model.apply(params, seen(x))
    )


def fresh(
    dim: int,
    side: int,
    released: bool,
    vocabulary: int = 30522,
    table: np.ndarray | None = None,
    dtype: jax.typing.DTypeLike = np.float32,
) -> Models:
    """The paper's, which start at random."""
    trunks: dict[str, Any] = {
        "resnet-101": resnet.resnet101(side, dtype=dtype),
        "resnet-18": resnet.resnet18(side, dtype),
    }
    trunks["bert-base-uncased"] = bert.base(dropout=0.0, dtype=dtype)
    started = {name: _started(model, {}) for name, model in trunks.items()}
    return _of_trunks(started, dim, released, vocabulary, table, dtype)


def _started(model: Any, params: Any) -> Model:
    """The model whose `init` gives these parameters, and fresh values to what they lack."""
    init = lambda key, x: trees.grow(params, model.init(key, x)) if params else model.init(key, x)
    return Model(init, model.apply, getattr(model, "vocabulary", None))


def _of_trunks(trunks: Mapping[str, Model], dim: int, released: bool, vocabulary: int, table, dtype) -> Models:
    server = {
        "image": embedding.pie_image(trunks["resnet-101"], dim, dtype),
        "text": embedding.linear(trunks["bert-base-uncased"], dim),
    }
    return _with_clients(server, trunks["resnet-18"], dim, vocabulary, 300, table, released, dtype)


def _with_clients(server: Encoders, trunk: Model, dim: int, vocabulary: int, width: int, table, released: bool, dtype):
    backward = "last" if released else "full"
    text = functools.partial(embedding.pie_text, vocabulary, dim, width, table=table, dtype=dtype)
    both = {"image": embedding.pie_image(trunk, dim, dtype), "text": text(backward=backward)}
    image = embedding.mean_image(trunk, dim, 128.0 if released else 1.0)
    form = {"scale": 128.0, "relu": True} if released else {}
    return Models(
        server, {"image": {"image": image}, "text": {"text": text(backward=backward, **form)}, "both": both}, both
    )


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
    return model._replace(init=lambda key, x: jax.tree.map(jax.numpy.asarray, params))
