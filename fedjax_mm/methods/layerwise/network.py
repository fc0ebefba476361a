"""What training in stages trains: an encoder F^m and a projection head H^m per modality, and a loss on z^m = H^m(F^m).

The loss is contrastive, the symmetric InfoNCE of two modalities' z, or supervised, the cross-entropy of a prediction
head P on the fused z of all modalities. The parameters are {m: {"encoder", "head"}, ...} and, where the training is
supervised, "prediction". Numbers such as (1.4) are sections of docs/specs/layerwise.md.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax

from fedjax_mm import losses, trees
from fedjax_mm.methods.augment import one_of_several, random_resized_crop, resized
from fedjax_mm.methods.layerwise.config import LayerwiseConfig
from fedjax_mm.models import Transformer, heads, transformer
from fedjax_mm.types import Arrays, Key, Metrics, PyTree

PREDICTION = "prediction"  # a part of the parameters, next to the modalities

Encoders = Mapping[str, Transformer]  # modality -> its encoder; the order is that of the embeddings everywhere
Params = Mapping[str, PyTree]
Embeddings = tuple[jax.Array, ...]  # z^m [B, D] of each modality, in the order of the encoders


def init_network(
    config: LayerwiseConfig,
    encoders: Encoders,
    num_classes: int | None,
    key: Key,
    layers: Mapping[str, int] | None = None,
    pretrained: Mapping[str, PyTree] | None = None,
) -> dict[str, PyTree]:
    """The first parameters, with a prediction head for `num_classes` or, for None, without one (1.2).

    layers: modality -> how many of its encoder's layers there are; None: all of all. A layer's values depend on the
    key and its number alone. pretrained: modality -> parameters that take the place of the random ones, but for the
    last norm.

    >>> init = lambda key, x: {"embeddings": jnp.eye(2), "layers": {"00": jnp.eye(2), "01": jnp.eye(2)}}
    >>> encoder = Transformer(2, 2, init, None, None, jax.ShapeDtypeStruct((1, 2), jnp.float32), None)
    >>> config = LayerwiseConfig(projection_hidden=4, projection_dim=3)
    >>> encoders = {"image": encoder, "depth": encoder}
    >>> params = init_network(config, encoders, 5, jax.random.key(0), {"image": 1, "depth": 2})
    >>> list(params), list(params["image"]["encoder"]["layers"])
    (['image', 'depth', 'prediction'], ['00'])
    """
    projection, prediction = projection_head(config), prediction_head(config, num_classes or 1)
    params = {}
    for i, (m, encoder) in enumerate(encoders.items()):
        encoder_key, head_key = jax.random.split(jax.random.fold_in(key, i))
        weights = encoder.init(encoder_key, jnp.zeros(encoder.example.shape, encoder.example.dtype))
        if pretrained:
            weights = trees.grow({k: v for k, v in pretrained[m].items() if k != "norm"}, weights)
        weights = transformer.first(weights, encoder.depth if layers is None else layers[m])
        params[m] = {"encoder": weights, "head": projection.init(head_key, encoder.width)}
    if num_classes:
        prediction_key = jax.random.fold_in(key, len(encoders))
        params[PREDICTION] = prediction.init(prediction_key, config.projection_dim, len(encoders))
    return params


def projection_head(config: LayerwiseConfig) -> heads.Head:
    """H^m of every modality, [B, width of the encoder] -> [B, D] (1.3).

    >>> head = projection_head(LayerwiseConfig(projection_hidden=4, projection_dim=3))
    >>> head.apply(head.init(jax.random.key(0), 8), jnp.ones((2, 8))).shape
    (2, 3)
    """
    return heads.projection(config.projection_hidden, config.projection_dim, rate=config.head_dropout)


def prediction_head(config: LayerwiseConfig, num_classes: int = 1) -> heads.Head:
    """P, [modalities, B, D] -> logits [B, num_classes] (1.3). Its `apply` and `train` read K off the parameters.

    >>> head = prediction_head(LayerwiseConfig(), num_classes=5)
    >>> head.apply(head.init(jax.random.key(0), 3), jnp.ones((2, 7, 3))).shape
    (7, 5)
    """
    return heads.prediction(num_classes, config.fusion, rate=config.head_dropout)


def project(config: LayerwiseConfig, encoders: Encoders, params: Params, m: str, x: jax.Array) -> jax.Array:
    """z^m [B, D] of examples x [B, ...] of modality m as they are scored: running statistics, no dropout (1.3).

    >>> init = lambda key, x: {"embeddings": jnp.eye(2), "layers": {}}
    >>> apply = lambda params, x, key=None, dropout_from=0: x @ params["embeddings"]
    >>> encoder = Transformer(0, 2, init, apply, apply, jax.ShapeDtypeStruct((1, 2), jnp.float32), None)
    >>> config = LayerwiseConfig(projection_hidden=4, projection_dim=3)
    >>> params = init_network(config, {"image": encoder}, None, jax.random.key(0))
    >>> project(config, {"image": encoder}, params, "image", jnp.ones((7, 2))).shape
    (7, 3)
    """
    feature = encoders[m].apply(params[m]["encoder"], seen_whole(x, encoders[m]))
    return projection_head(config).apply(params[m]["head"], feature)


def embed_views(
    config: LayerwiseConfig,
    encoders: Encoders,
    params: Params,
    batch: Arrays,
    key: Key,
    dropout_from: Mapping[str, int],
) -> tuple[Embeddings, dict[str, PyTree]]:
    """(z^m [B, D] of each modality as a step trains on them, the parameters with new running statistics) (1.3).

    A view of an example is a random part of its image or one of its captions. Heads normalise by the batch, and units
    are dropped, in encoders from layer dropout_from[m] on. batch: every modality [B, ...]; where the client keeps what
    the layers before dropout_from[m] give, `frozen_name(m)` [B, T, D] too, and these layers are not run.

    >>> init = lambda key, x: {"embeddings": jnp.eye(2), "layers": {}}
    >>> apply = lambda params, x, key=None, dropout_from=0: x @ params["embeddings"]
    >>> encoder = Transformer(0, 2, init, apply, apply, jax.ShapeDtypeStruct((1, 2), jnp.float32), None)
    >>> config = LayerwiseConfig(projection_hidden=4, projection_dim=3)
    >>> params = init_network(config, {"image": encoder}, None, jax.random.key(0))
    >>> import functools
    >>> embed = functools.partial(embed_views, config, {"image": encoder}, dropout_from={"image": 0})
    >>> (z,), new = jax.jit(embed)(params, {"image": jnp.eye(2)}, jax.random.key(2))
    >>> mean = lambda params: params["image"]["head"]["norm_0"]["running_mean"]
    >>> z.shape, bool((mean(new) != mean(params)).any())
    ((2, 3), True)
    """
    projection, z, new = projection_head(config), [], dict(params)
    for i, (m, encoder) in enumerate(encoders.items()):
        keys = jax.random.split(jax.random.fold_in(key, i), 3)
        x = draw_view(batch[m], encoder, config.crop, keys[0])
        weights, below = params[m]["encoder"], ()
        if frozen_name(m) in batch:  # what is kept drops no units: the layers from which on units are dropped are left
            weights, below = transformer.above(weights, dropout_from[m]), (batch[frozen_name(m)],)
        feature = encoder.apply(weights, x, keys[1], dropout_from[m], *below)  # 1.3: token 0
        embedding, head = projection.train(params[m]["head"], feature, keys[2])
        z.append(embedding)
        new[m] = {**params[m], "head": head}
    return tuple(z), new


def contrastive_loss(config: LayerwiseConfig, z: Embeddings) -> jax.Array:
    """The symmetric InfoNCE [] of two modalities' embeddings z, each [B, D] (1.4).

    >>> z = jnp.eye(3)
    >>> bool(contrastive_loss(LayerwiseConfig(), (z, z)) < contrastive_loss(LayerwiseConfig(), (z, z[::-1])))
    True
    """
    image, text = z
    return losses.info_nce(image, text, config.temperature)


def supervised_loss(
    config: LayerwiseConfig, prediction: PyTree, z: Embeddings, label: jax.Array, key: Key
) -> tuple[jax.Array, PyTree, Metrics]:
    """(the mean cross-entropy [] of P on the fused z, P's parameters, {"accuracy": []}) (1.4).

    prediction: P's parameters. z: each [B, D]. label [B] int in 0..K-1.

    >>> prediction = prediction_head(LayerwiseConfig(), num_classes=2).init(jax.random.key(0), 3)
    >>> prediction = jax.tree.map(jnp.zeros_like, prediction)
    >>> z, label = (jnp.ones((4, 3)), jnp.ones((4, 3))), jnp.array([0, 0, 0, 1])
    >>> value, _, metrics = supervised_loss(LayerwiseConfig(), prediction, z, label, jax.random.key(1))
    >>> round(float(value), 4), float(metrics["accuracy"])
    (0.6931, 0.75)
    """
    logits, prediction = prediction_head(config).train(prediction, jnp.stack(z), key)
    value = optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()
    return value, prediction, {"accuracy": (logits.argmax(-1) == label).mean()}


def local_loss(
    config: LayerwiseConfig,
    encoders: Encoders,
    params: Params,
    batch: Arrays,
    key: Key,
    dropout_from: Mapping[str, int],
) -> tuple[jax.Array, dict[str, PyTree], Metrics]:
    """(the loss [] of a client's step, the parameters with new running statistics, metrics) (1.4).

    It is supervised where the parameters have a prediction head, else contrastive. batch: every modality [B, ...] and,
    supervised, `label` [B]. dropout_from: modality -> the first layer that drops units.

    >>> init = lambda key, x: {"embeddings": jnp.eye(2), "layers": {}}
    >>> apply = lambda params, x, key=None, dropout_from=0: x @ params["embeddings"]
    >>> encoder = Transformer(0, 2, init, apply, apply, jax.ShapeDtypeStruct((1, 2), jnp.float32), None)
    >>> encoders = {"image": encoder, "depth": encoder}
    >>> config = LayerwiseConfig(projection_hidden=4, projection_dim=3)
    >>> params = init_network(config, encoders, None, jax.random.key(0))
    >>> import functools
    >>> loss = functools.partial(local_loss, config, encoders, dropout_from={"image": 0, "depth": 0})
    >>> value, new, metrics = jax.jit(loss)(params, {"image": jnp.eye(2), "depth": jnp.eye(2)}, jax.random.key(2))
    >>> value.shape, sorted(new), metrics
    ((), ['depth', 'image'], {})
    """
    z, new = embed_views(config, encoders, params, batch, key, dropout_from)
    if PREDICTION not in params:
        return contrastive_loss(config, z), new, {}
    prediction_key = jax.random.fold_in(key, len(encoders))
    value, prediction, metrics = supervised_loss(config, params[PREDICTION], z, batch["label"], prediction_key)
    return value, {**new, PREDICTION: prediction}, metrics


def predict_logits(config: LayerwiseConfig, params: Params, z: jax.Array) -> jax.Array:
    """P's logits [B, K] for embeddings z [modalities, B, D], without dropout (1.3).

    >>> params = {"prediction": prediction_head(LayerwiseConfig(), num_classes=5).init(jax.random.key(0), 3)}
    >>> predict_logits(LayerwiseConfig(), params, jnp.ones((2, 7, 3))).shape
    (7, 5)
    """
    return prediction_head(config).apply(params[PREDICTION], z)


def frozen_name(m: str) -> str:
    """The name of the array of what frozen layers give of modality m, which no modality can have.

    >>> frozen_name("image")
    'image/frozen'
    """
    return f"{m}/frozen"


def draw_view(x: jax.Array, encoder: Transformer, crop: float | None, key: Key) -> jax.Array:
    """One of an example's several captions; a random part of an image, which is an array [B, H, W, C] (1.3).

    crop: the least share of an image's area that the part has. None: images are seen whole. Images that are larger than
    the encoder's are photos that parts are cut from; what is seen has the encoder's size.

    >>> encoder = Transformer(0, 2, None, None, None, jax.ShapeDtypeStruct((1, 5), jnp.int32), None)
    >>> draw_view(jnp.ones((3, 4, 5), jnp.int32), encoder, None, jax.random.key(0)).shape  # four captions of 5 tokens
    (3, 5)
    """
    if x.ndim > encoder.example.ndim:
        return one_of_several(key, x)
    if x.ndim != 4 or crop is None:
        return seen_whole(x, encoder)
    size = encoder.example.shape[1:3]
    return random_resized_crop(key, x, crop, size=None if x.shape[1:3] == size else size)


def seen_whole(x: jax.Array, encoder: Transformer) -> jax.Array:
    """Examples [B, ...] as they are; images [B, H, W, C] in the size that the encoder takes.

    >>> encoder = Transformer(0, 2, None, None, None, jax.ShapeDtypeStruct((1, 2, 2, 3), jnp.uint8), None)
    >>> seen_whole(jnp.ones((5, 3, 4, 3)), encoder).shape
    (5, 2, 2, 3)
    """
    images = x.ndim == 4 and encoder.example.ndim == 4
    return resized(x, encoder.example.shape[1:3]) if images else x
