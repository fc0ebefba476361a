"""The model that federated averaging trains: an encoder per modality, and a head on the mean of the embeddings.

Its parameters are a dict {part: parameters}, where a part is a modality or "head". A client has the parts of its own
modalities and the head.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_mm.local import masked_mean
from fedjax_mm.methods.fedavg.config import FedAvgConfig
from fedjax_mm.methods.settings import is_used
from fedjax_mm.models import Model
from fedjax_mm.types import Arrays, Key, Metrics, PyTree

Encoders = Mapping[str, Model]  # modality -> Model from a batch of it to embeddings [B, D], one D for all
Examples = Mapping[str, jax.Array] | Mapping[str, jax.ShapeDtypeStruct]  # modality -> a batch [1, ...], or its shape
Parts = Mapping[str, PyTree]  # part -> its parameters


def init_parts(
    encoders: Encoders, head: Model, examples: Examples, key: Key, names: tuple[str, ...] | None = None
) -> dict[str, PyTree]:
    """The first parameters of the parts `names`, or of all. A part's values do not depend on which parts are named.

    examples: modality -> a batch [1, ...] or its jax.ShapeDtypeStruct; only its shape and type are used.

    >>> from fedjax_mm.models import heads, mlp
    >>> encoders, head = {"x": mlp.encoder((), 4)}, heads.linear(3)
    >>> params = init_parts(encoders, head, {"x": jnp.zeros((1, 5))}, jax.random.key(0))
    >>> jax.tree.map(jnp.shape, params["head"])
    {'Dense_0': {'bias': (3,), 'kernel': (4, 3)}}
    """
    parts = (*encoders, "head")
    keys = {part: jax.random.fold_in(key, i) for i, part in enumerate(parts)}
    zeros = {m: jnp.asarray(np.zeros(examples[m].shape, examples[m].dtype)) for m in encoders}
    params = {m: encoders[m].init(keys[m], zeros[m]) for m in encoders}
    embedding = jax.eval_shape(encoders[parts[0]].apply, params[parts[0]], zeros[parts[0]])
    params["head"] = head.init(keys["head"], jnp.zeros(embedding.shape, embedding.dtype))
    return {part: params[part] for part in (parts if names is None else names)}


def predict_logits(encoders: Encoders, head: Model, params: Parts, batch: Arrays) -> jax.Array:
    """Logits [B, K] of a batch, from the modalities that both `params` and the batch have.

    The head sees the mean of an example's embeddings. Where the batch has an array `has_<modality>` [B], the mean is
    over the modalities that it marks; an example without any has the embedding 0.

    >>> identity = Model(lambda key, x: {}, lambda params, x: x)
    >>> params = {"a": {}, "b": {}, "head": {}}
    >>> batch = {"a": jnp.array([[2.0], [2.0]]), "b": jnp.array([[4.0], [4.0]]), "has_b": jnp.array([True, False])}
    >>> predict_logits({"a": identity, "b": identity}, identity, params, batch).tolist()
    [[3.0], [2.0]]
    """
    modalities = [m for m in encoders if m in params and m in batch]
    embeddings = jnp.stack([encoders[m].apply(params[m], batch[m]) for m in modalities])  # [modalities, B, D]
    ones = jnp.ones(embeddings.shape[1])
    present = jnp.stack([batch.get(f"has_{m}", ones).astype(jnp.float32) for m in modalities])[..., None]
    return head.apply(params["head"], (embeddings * present).sum(0) / jnp.maximum(present.sum(0), 1.0))


def local_loss(
    config: FedAvgConfig, encoders: Encoders, head: Model, params: Parts, start: Parts, batch: Arrays
) -> tuple[jax.Array, Metrics]:
    """(cross-entropy + prox/2 |params - start|^2 [], {"accuracy": []}), means over the rows with `mask` 1.

    start: the parameters that the client began the round with. batch: modalities [B, ...], `label` [B] int in 0..K-1
    and `mask` [B]. (Li 2020, FedProx)

    >>> identity = Model(lambda key, x: {}, lambda params, x: x)
    >>> add = Model(lambda key, x: jnp.zeros(2), lambda bias, x: x + bias[None])
    >>> batch = {"x": jnp.zeros((1, 2)), "label": jnp.array([0]), "mask": jnp.ones(1)}
    >>> start, params = {"x": {}, "head": jnp.zeros(2)}, {"x": {}, "head": jnp.array([1.0, 1.0])}
    >>> value, metrics = local_loss(FedAvgConfig(prox=0.1), {"x": identity}, add, params, start, batch)
    >>> round(float(value - jnp.log(2)), 4), float(metrics["accuracy"])
    (0.1, 1.0)
    """
    logits = predict_logits(encoders, head, params, batch)
    task = masked_mean(optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]), batch["mask"])
    drift = optax.tree.norm(optax.tree.sub(params, start), squared=True) if is_used(config.prox) else 0.0
    right = masked_mean((logits.argmax(-1) == batch["label"]).astype(jnp.float32), batch["mask"])
    return task + 0.5 * config.prox * drift, {"accuracy": right}


def kind_weight(config: FedAvgConfig, parts: Mapping[str, PyTree]) -> float:
    """The factor on a client's weight: `config.multimodal_weight` where it has several modalities, else 1.

    >>> config = FedAvgConfig(multimodal_weight=3.0)
    >>> kind_weight(config, {"image": {}, "head": {}}), kind_weight(config, {"image": {}, "text": {}, "head": {}})
    (1.0, 3.0)
    """
    return config.multimodal_weight if sum(part != "head" for part in parts) > 1 else 1.0
