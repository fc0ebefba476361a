"""Scores of training in stages: of the server's model on a test set, and of one client's model on its own test rows."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_mm import evaluate, losses, trees
from fedjax_mm.methods.layerwise import network
from fedjax_mm.methods.layerwise.config import LayerwiseConfig
from fedjax_mm.methods.layerwise.network import PREDICTION, Encoders, Params
from fedjax_mm.models import Transformer
from fedjax_mm.streamed import blocks
from fedjax_mm.types import Arrays, Download, FedState

Project = Callable[[Params, str, jax.Array], jax.Array]  # parameters, modality, x [B, ...] -> z [B, D]
Predict = Callable[[Params, jax.Array], jax.Array]  # parameters, z [modalities, B, D] -> logits [B, K]


def scores(
    config: LayerwiseConfig,
    encoders: Encoders,
    state: FedState,
    arrays: Arrays,
    *,
    project: Project | None = None,
    predict: Predict | None = None,
) -> dict[str, float]:
    """`supervised_scores` where the server's model has a prediction head, else `contrastive_scores`.

    project, predict: network.project and network.predict_logits with what is static bound, compiled once to be used
    many times.

    >>> from fedjax_mm.methods.layerwise.network import init_network
    >>> init = lambda key, x: {"embeddings": jnp.eye(2), "layers": {}}
    >>> apply = lambda params, x: x @ params["embeddings"]
    >>> encoder = Transformer(0, 2, init, apply, apply, jax.ShapeDtypeStruct((1, 2), jnp.float32), None)
    >>> config = LayerwiseConfig(projection_hidden=4, projection_dim=3)
    >>> state = FedState(init_network(config, {"x": encoder}, 5, jax.random.key(0)), {}, jnp.int32(0))
    >>> arrays = {"x": np.ones((2, 2), np.float32), "label": np.array([0, 1])}
    >>> result = scores(config, {"x": encoder}, state, arrays)
    >>> result["accuracy"] in (0.0, 0.5), "batch16_macro_f1" in result
    (True, True)
    """
    project = project or functools.partial(network.project, config, encoders)
    if PREDICTION not in state.server:
        return contrastive_scores(encoders, project, state.server, arrays)
    predict = predict or functools.partial(network.predict_logits, config)
    return supervised_scores(encoders, project, predict, state.server, arrays)


def supervised_scores(
    encoders: Encoders, project: Project, predict: Predict, params: Params, arrays: Arrays
) -> dict[str, float]:
    """ "accuracy", "macro_f1", "weighted_f1", "macro_precision", "macro_recall" of a whole test set, and the means over
    batches of 16 that the released code reports, "batch16_accuracy", ... (2.4)

    arrays: every modality [E, ...] and `label` [E].

    >>> class_of = lambda params, z: jnp.stack([z.sum((0, 2)) < 3, z.sum((0, 2)) >= 3], axis=1)
    >>> arrays = {"x": np.array([[1.0], [5.0]], np.float32), "label": np.array([0, 1])}
    >>> supervised_scores({"x": None}, lambda params, m, x: x, class_of, {}, arrays)["accuracy"]
    1.0
    """
    z = np.stack([_in_batches(functools.partial(project, params, m), arrays[m]) for m in encoders])
    logits = np.asarray(predict(params, jnp.asarray(z)))
    labels, predictions, num_classes = np.asarray(arrays["label"]), logits.argmax(-1), logits.shape[-1]
    result = evaluate.classification(labels, predictions, num_classes)
    result |= evaluate.precision_recall(labels, predictions, num_classes)
    return result | evaluate.batch_means(labels, predictions)


def contrastive_scores(encoders: Encoders, project: Project, params: Params, arrays: Arrays) -> dict[str, float]:
    """Recalls at 1, 5, 10 and 50 in percent and median ranks from the second modality, "i2t_r1" to "t2i_medr", and
    "zero_shot_accuracy" from `prompts`, whichever there are (2.4).

    arrays: the first modality [I, ...]; the second [I, ...] or, several captions for each image, [I, Q, ...]; `prompts`
    [K, ...], one for each class, with `label` [I].

    >>> init = lambda key, x: {"embeddings": jnp.eye(2), "layers": {}}
    >>> apply = lambda params, x: x @ params["embeddings"]
    >>> encoder = Transformer(0, 2, init, apply, apply, jax.ShapeDtypeStruct((1, 2), jnp.float32), None)
    >>> embed = lambda params, m, x: jnp.asarray(x, jnp.float32)  # in place of a trained network
    >>> arrays = {"image": np.eye(2), "text": np.eye(2)}
    >>> contrastive_scores({"image": encoder, "text": encoder}, embed, {}, arrays)["i2t_r1"]
    100.0
    """
    (image, text), result = encoders, {}
    images = _in_batches(functools.partial(project, params, image), arrays[image])
    if text in arrays:
        captions = arrays[text]
        several = captions.shape[1] if captions.ndim > encoders[text].example.ndim else 1
        if several > 1:
            captions = captions[:].reshape(-1, *captions.shape[2:])
        image_of_caption = np.repeat(np.arange(len(captions) // several), several)
        texts = _in_batches(functools.partial(project, params, text), captions)
        result |= evaluate.retrieval_recall(images, texts, image_of_caption, (1, 5, 10, 50))
    if "prompts" in arrays:
        prompts = _in_batches(functools.partial(project, params, text), arrays["prompts"])
        result |= evaluate.zero_shot(images, prompts, np.asarray(arrays["label"]))
    return result


def client_score(
    config: LayerwiseConfig, encoders: Encoders, download: Download, state: tuple, arrays: Arrays, mask: jax.Array
) -> dict[str, jax.Array]:
    """How well the server's model, which is every client's, does on each of a client's own test rows.

    Supervised: {"accuracy": [B]}, 1 where the class is right, else 0. Contrastive: {"i2t_r1": [B]}, 100 (percent) where
    a row's own caption is the nearest to its image, by cosine, among the captions of all rows with mask [B] 1, else 0;
    of several captions of an example the first is used. The values at padding rows mean nothing. arrays: every modality
    [B, ...] and, supervised, `label` [B]. Running statistics are used and no unit is dropped.

    >>> from fedjax_mm.methods.layerwise.network import init_network
    >>> init = lambda key, x: {"embeddings": jnp.eye(2), "layers": {}}
    >>> apply = lambda params, x: x @ params["embeddings"]
    >>> encoder = Transformer(0, 2, init, apply, apply, jax.ShapeDtypeStruct((1, 2), jnp.float32), None)
    >>> encoders = {"image": encoder, "depth": encoder}
    >>> config = LayerwiseConfig(projection_hidden=16, projection_dim=3)
    >>> params = init_network(config, encoders, None, jax.random.key(0))
    >>> params["depth"] = params["image"]  # the same row then has the same embedding in both
    >>> nothing = jax.tree.map(lambda x: None, params)
    >>> arrays = {"image": jnp.eye(2), "depth": jnp.eye(2)}
    >>> client_score(config, encoders, Download(params, nothing), (), arrays, jnp.ones(2))["i2t_r1"].tolist()
    [100.0, 100.0]
    """
    params = trees.merge(download.sent, download.held)
    rows = {m: _first_of_several(arrays[m], encoder) for m, encoder in encoders.items()}
    z = [network.project(config, encoders, params, m, rows[m]) for m in encoders]
    if PREDICTION in params:
        right = network.predict_logits(config, params, jnp.stack(z)).argmax(-1) == arrays["label"]
        return {"accuracy": right.astype(jnp.float32)}
    image, text = (losses.unit(x) for x in z)
    cosine = jnp.matmul(image, text.T, precision="highest")
    cosine = jnp.where(mask[None] > 0, cosine, -jnp.inf)  # a padding row is no candidate
    return {"i2t_r1": 100.0 * (cosine.argmax(-1) == jnp.arange(len(cosine)))}


def _first_of_several(x: jax.Array, encoder: Transformer) -> jax.Array:
    return x[:, 0] if x.ndim > encoder.example.ndim else x


def _in_batches(embed: Callable[[jax.Array], jax.Array], x: np.ndarray | jax.Array, size: int = 256) -> np.ndarray:
    """`embed` of all rows, in batches of one shape; x may be a memory map or a Streamed."""
    return np.concatenate([np.asarray(embed(jnp.asarray(some["x"])))[:real] for some, real in blocks({"x": x}, size)])
