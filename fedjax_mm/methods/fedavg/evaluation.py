"""Scores of federated averaging: of the server's or of all clients' models on a test set, and of one client's model."""

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_mm import evaluate
from fedjax_mm.methods.fedavg.network import Encoders, Parts, predict_logits
from fedjax_mm.models import Model
from fedjax_mm.streamed import blocks, streams
from fedjax_mm.types import Arrays, Download, FedState, PyTree


def predict_classes(encoders: Encoders, head: Model, shared: Parts, personal: Parts, batch: Arrays) -> jax.Array:
    """Classes [N, B] that the models of N clients predict, or [1, B] where there are no personal parts.

    shared: the parts that all models have. personal: the parts that each client has for itself, leaves [N, ...].

    >>> identity = Model(lambda key, x: {}, lambda params, x: x)
    >>> add = Model(lambda key, x: jnp.zeros(2), lambda bias, x: x + bias[None])
    >>> heads = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    >>> predict_classes({"x": identity}, add, {"x": {}}, {"head": heads}, {"x": jnp.zeros((3, 2))}).tolist()
    [[0, 0, 0], [1, 1, 1]]
    """
    predict = lambda own: predict_logits(encoders, head, {**shared, **own}, batch).argmax(-1)
    return jax.lax.map(predict, personal) if personal else predict({})[None]


def compile_predict(encoders: Encoders, head: Model) -> Callable[[Parts, PyTree, Arrays], jax.Array]:
    """`predict_classes` with its models bound, jitted; methods that are built with the same models share one program.

    >>> identity = Model(lambda key, x: {}, lambda params, x: x)
    >>> compile_predict({"x": identity}, identity)({"x": {}, "head": {}}, {}, {"x": jnp.eye(2)}).tolist()
    [[0, 1]]
    """
    models = (tuple(encoders.items()), head)
    try:
        hash(models)
    except TypeError:  # a model of one's own
        return jax.jit(functools.partial(predict_classes, encoders, head))
    return functools.partial(_predict, *models)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _predict(
    encoders: tuple[tuple[str, Model], ...], head: Model, shared: Parts, personal: Parts, batch: Arrays
) -> jax.Array:
    return predict_classes(dict(encoders), head, shared, personal, batch)


def scores(
    encoders: Encoders,
    head: Model,
    modalities: Mapping[str, tuple[str, ...]],
    state: FedState,
    arrays: Arrays,
    *,
    predict: Callable[[Parts, PyTree, Arrays], jax.Array] | None = None,
) -> dict[str, float]:
    """Scores on test arrays: each modality on its own, and all that are given together.

    Keys are "image/accuracy", "image+text/macro_f1", ... (see evaluate.classification). With personal parts a score is
    the mean over the clients that hold exactly these modalities; it is left out where there is none.

    modalities: cohort -> the modalities of its clients. arrays: modalities [E, ...] and `label` [E]. predict:
    `predict_classes` with its models bound, compiled once to be used many times.

    >>> identity = Model(lambda key, x: {}, lambda params, x: x)
    >>> state = FedState({"params": {"x": {}, "head": {}}}, {"all": {}}, 0)
    >>> arrays = {"x": jnp.eye(2), "label": jnp.array([0, 0])}
    >>> scores({"x": identity}, identity, {"all": ("x",)}, state, arrays)["x/accuracy"]
    0.5
    """
    predict = predict or functools.partial(predict_classes, encoders, head)
    shared, given = state.server["params"], tuple(m for m in encoders if m in arrays)
    labels, results = np.asarray(arrays["label"]), {}
    for tested in dict.fromkeys([(m,) for m in given] + [given]):
        those = {m: arrays[m] for m in tested}
        holders = [state.clients[name] for name in modalities if modalities[name] == tested]
        owners = [{}] if set(shared) == {*encoders, "head"} else holders
        predictions = [classes for personal in owners for classes in _all_classes(predict, shared, personal, those)]
        if not predictions:
            continue
        num_classes = _count_classes(encoders, head, shared, owners[0], those)
        each = [evaluate.classification(labels, classes, num_classes) for classes in predictions]
        results |= {f"{'+'.join(tested)}/{k}": float(np.mean([model[k] for model in each])) for k in each[0]}
    return results


def _all_classes(
    predict: Callable[[Parts, PyTree, Arrays], jax.Array], shared: Parts, personal: Parts, arrays: Arrays
) -> np.ndarray:
    """Classes [N, E] of all rows; of arrays that are streamed, some rows at a time."""
    if not streams(arrays):
        return np.asarray(predict(shared, personal, {m: jnp.asarray(x) for m, x in arrays.items()}))
    parts = [np.asarray(predict(shared, personal, some))[:, :real] for some, real in blocks(arrays)]
    return np.concatenate(parts, axis=1)


def _count_classes(encoders: Encoders, head: Model, shared: Parts, personal: Parts, arrays: Arrays) -> int:
    """K, from shapes alone. personal: leaves [N, ...]."""
    batch = {m: jax.ShapeDtypeStruct(np.shape(x), x.dtype) for m, x in arrays.items()}

    def predict(shared, personal, batch):
        return predict_logits(encoders, head, {**shared, **jax.tree.map(lambda x: x[0], personal)}, batch)

    return jax.eval_shape(predict, shared, personal, batch).shape[-1]


def client_score(
    encoders: Encoders, head: Model, download: Download, state: Parts, arrays: Arrays, mask: jax.Array
) -> dict[str, jax.Array]:
    """{"accuracy": [B]}: 1 where a client's own model is right about its own test row, else 0.

    The model is the server's parts in `download.sent` with the client's personal parts, `state`. arrays: leaves
    [B, ...] with `label` [B] and, where rows lack a modality, `has_<modality>` [B]. The values at padding rows, where
    mask [B] is 0, mean nothing.

    >>> identity = Model(lambda key, x: {}, lambda params, x: x)
    >>> arrays = {"x": jnp.eye(2), "label": jnp.array([0, 0])}
    >>> client_score({"x": identity}, identity, Download({"x": {}}), {"head": {}}, arrays, jnp.ones(2))
    {'accuracy': Array([1., 0.], dtype=float32)}
    """
    logits = predict_logits(encoders, head, {**download.sent, **state}, arrays)
    return {"accuracy": (logits.argmax(-1) == arrays["label"]).astype(jnp.float32)}
