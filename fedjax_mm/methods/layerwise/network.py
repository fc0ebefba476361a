"""What stage-wise training trains: an encoder F^m and a projection head H^m per modality, and a loss on z^m = H^m(F^m).

Contrastive, symmetric InfoNCE of two modalities' z; or supervised, a prediction head P on the fused z of them all.
Section numbers are those of layerwise.py.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_mm import evaluate, losses, trees
from fedjax_mm.methods.augment import one_of_several, random_resized_crop
from fedjax_mm.models import Transformer, heads, transformer
from fedjax_mm.types import Arrays, Key, Metrics, PyTree

PREDICTION = "prediction"  # beside the modalities, a part of the parameters


class Network(NamedTuple):
    """Pure functions over {m: {"encoder", "head"}, ...} and, supervised, "prediction".

    `init(key, layers)` gives encoders of layers[m] layers; a layer's weights depend on the key and its number alone.
    `loss(params, batch, key, dropout_from)` is (value [], params with new running statistics, metrics); encoders drop
    units from layer dropout_from[m] on. `evaluate(params, arrays)` gives scores.
    """

    init: Callable[[Key, Mapping[str, int]], PyTree]
    loss: Callable[[PyTree, Arrays, Key, Mapping[str, int]], tuple[jax.Array, PyTree, Metrics]]
    evaluate: Callable[[PyTree, Arrays], dict[str, float]]


def network(
    config, encoders: Mapping[str, Transformer], num_classes: int | None, pretrained: Mapping[str, PyTree] | None
) -> Network:
    """The network of these encoders; `config` is a LayerwiseConfig. Without num_classes it is contrastive."""
    projection = heads.projection(config.projection_hidden, config.projection_dim, rate=config.head_dropout)
    prediction = heads.prediction(num_classes or 1, config.fusion, rate=config.head_dropout)

    def init(key, layers):
        params = {}
        for i, (m, encoder) in enumerate(encoders.items()):
            of_encoder, of_head = jax.random.split(jax.random.fold_in(key, i))
            made = encoder.init(of_encoder, jnp.zeros(encoder.example.shape, encoder.example.dtype))
            if pretrained:  # 1.2: but for the last norm
                made = trees.grow({k: v for k, v in pretrained[m].items() if k != "norm"}, made)
            params[m] = {"encoder": transformer.first(made, layers[m]), "head": projection.init(of_head, encoder.width)}
        if num_classes:
            of_prediction = jax.random.fold_in(key, len(encoders))
            params[PREDICTION] = prediction.init(of_prediction, config.projection_dim, len(encoders))
        return params

    def project(params, m, x):
        """z^m [B, D] as `evaluate` takes it: no dropout, running statistics."""
        return projection.apply(params[m]["head"], encoders[m].apply(params[m]["encoder"], x))

    def loss(params, batch, key, dropout_from):
        z, new = {}, dict(params)
        for i, (m, encoder) in enumerate(encoders.items()):
            keys = jax.random.split(jax.random.fold_in(key, i), 3)
            x = _view(batch[m], encoder, config.crop, keys[0])
            feature = encoder.apply(params[m]["encoder"], x, keys[1], dropout_from[m])  # 1.3: token 0
            z[m], head = projection.train(params[m]["head"], feature, keys[2])
            new[m] = {**params[m], "head": head}
        if not num_classes:
            return losses.info_nce(*z.values(), config.temperature), new, {}
        stacked, key = jnp.stack([*z.values()]), jax.random.fold_in(key, len(encoders))
        logits, new[PREDICTION] = prediction.train(params[PREDICTION], stacked, key)
        value = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()
        return value, new, {"accuracy": (logits.argmax(-1) == batch["label"]).mean()}

    embed = jax.jit(project, static_argnums=1)
    predict = jax.jit(lambda params, z: prediction.apply(params[PREDICTION], z).argmax(-1))

    def score(params, arrays):
        of = lambda m, x: _in_batches(lambda rows: embed(params, m, rows), x)
        if num_classes:
            z = np.stack([of(m, arrays[m]) for m in encoders])
            labels, predictions = np.asarray(arrays["label"]), np.asarray(predict(params, z))
            scores = evaluate.classification(labels, predictions, num_classes)
            scores |= evaluate.precision_recall(labels, predictions, num_classes)
            return scores | evaluate.batch_means(labels, predictions)
        (image, text), scores = encoders, {}
        images = of(image, arrays[image])
        if text in arrays:
            captions = arrays[text]
            several = captions.shape[1] if captions.ndim > encoders[text].example.ndim else 1
            captions = captions.reshape(-1, *captions.shape[captions.ndim - encoders[text].example.ndim + 1 :])
            of_image = np.repeat(np.arange(len(captions) // several), several)
            scores |= evaluate.retrieval_recall(images, of(text, captions), of_image, (1, 5, 10, 50))
        if "prompts" in arrays:
            scores |= evaluate.zero_shot(images, of(text, arrays["prompts"]), np.asarray(arrays["label"]))
        return scores

    return Network(init, loss, score)


def _view(x: jax.Array, encoder: Transformer, crop: float | None, key: Key) -> jax.Array:
    """One of an example's several captions; a random part of an image, which is an array [B, H, W, C]."""
    if x.ndim > encoder.example.ndim:
        return one_of_several(key, x)
    return x if x.ndim != 4 or crop is None else random_resized_crop(key, x, crop)


def _in_batches(embed: Callable[[jax.Array], jax.Array], x: np.ndarray, size: int = 256) -> np.ndarray:
    """`embed` of all rows, in batches of one shape; x may be a memory map."""
    size, parts = min(size, len(x)), []
    for start in range(0, len(x), size):
        rows = np.minimum(np.arange(start, start + size), len(x) - 1)
        parts.append(np.asarray(embed(jnp.asarray(x[rows])))[: len(x) - start])
    return np.concatenate(parts)
