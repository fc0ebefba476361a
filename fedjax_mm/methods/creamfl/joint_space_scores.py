"""How well image and text encoders retrieve and classify: the scores of CreamFL and its baselines."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_mm import evaluate
from fedjax_mm.methods.creamfl.joint_space import classify, represent_all
from fedjax_mm.methods.creamfl.training import Encoders, Training
from fedjax_mm.models import Model
from fedjax_mm.streamed import blocks, is_streamed
from fedjax_mm.types import Arrays, FedState, PyTree

Functions = tuple[tuple[str, Callable], ...]  # (modality, the encoder's `apply`), hashable where an Encoders is not


def scores(
    training: Training,
    server: Encoders,
    clients: Mapping[str, Encoders],
    classes: Mapping[str, np.ndarray],
    state: FedState,
    arrays: Arrays,
    few: int = 200,
) -> dict[str, float]:
    """Scores of a state whose server and clients have `params` as `joint_space.init` makes them.

    classes: {cohort: [N, K]}, how many examples of each class each client of a cohort that classifies has.
    arrays: `image` [I, ...] and `text` [I, L] or [I, Q, L], pairs; for a cohort that classifies "<cohort>/image" or
    "<cohort>/text", and "<cohort>/label".

    The server's scores are retrieval_recall's of all pictures, "fold/..." of five folds, and the sums of both (with
    5,000 pictures the 5K and the 1K protocol; section 3 of docs/specs/creamfl.md). The clients' scores are means over a
    cohort: "<cohort>/accuracy" over all classes and "<cohort>/own_accuracy" over the classes that a client holds, as
    often as it holds them; or, on the first `few` pictures, "<cohort>/i2t_r1" and so on.

    The `apply` of every encoder must be hashable, as functions are: encoders are compiled once for all methods.

    >>> from fedjax_mm.models import Model
    >>> encoders = dict.fromkeys(("image", "text"), Model(lambda key, x: 1.0, lambda params, x: params * x))
    >>> state = FedState({"params": {"image": 1.0, "text": 1.0}}, {}, jnp.int32(0))
    >>> found = scores(Training(), encoders, {}, {}, state, {"image": np.eye(5), "text": np.eye(5)})
    >>> found["i2t_r1"], found["r1_sum"]
    (100.0, 400.0)
    """
    texts = np.asarray(arrays["text"])
    captions = texts.shape[1] if texts.ndim == 3 else 1
    pictures = arrays["image"] if is_streamed(arrays["image"]) else np.asarray(arrays["image"])
    pairs = {"image": pictures, "text": texts.reshape(-1, texts.shape[-1])}
    owner = np.repeat(np.arange(len(pairs["image"])), captions)
    reps = jax.device_get(_represent(_functions(server), training.block, state.server["params"], pairs))
    found = evaluate.both_protocols(reps["image"], reps["text"], owner)
    for name, encoders in clients.items():
        params, functions = state.clients[name]["params"], _functions(encoders)
        if len(encoders) > 1:
            some = {"image": pairs["image"][:few], "text": pairs["text"][: few * captions]}
            every = _client_recalls(functions, training.block, params, some, owner[: few * captions])
            found |= {f"{name}/{key}": float(np.mean([one[key] for one in every])) for key in every[0]}
        elif f"{name}/label" in arrays:
            (m,) = encoders
            labels = np.asarray(arrays[f"{name}/label"])
            right = _classes(functions, params, arrays[f"{name}/{m}"]) == labels[None]
            found[f"{name}/accuracy"] = float(right.mean())
            found[f"{name}/own_accuracy"] = own_accuracy(right, labels, classes[name])
    return found


def score_rows(
    training: Training, encoders: Encoders, params: PyTree, arrays: Arrays, mask: jax.Array
) -> dict[str, jax.Array]:
    """How well ONE client's model does on each of its own test rows: {"accuracy": [B]} or {"i2t_r1": [B]}.

    With one modality: 1 where the class is right, else 0; arrays: the modality [B, ...] and `label` [B]. With both: 100
    (percent) where an image's own text is the nearest by cosine among the texts of the client's real rows, else 0;
    arrays: `image` [B, ...] and `text` [B, L] or, of several captions of which the first counts, [B, Q, L]. mask [B]:
    0 where a row is padding.

    >>> from fedjax_mm.models import Model
    >>> point = Model(lambda key, x: 1.0, lambda params, x: params * x)
    >>> arrays = {"image": jnp.array([[1, 0], [0, 1], [1, 2]]), "text": jnp.array([[1, 0], [1, 1], [0, 1]])}
    >>> encoders, params = {"image": point, "text": point}, {"image": 1.0, "text": 1.0}
    >>> score_rows(Training(), encoders, params, arrays, jnp.ones(3))["i2t_r1"].tolist()
    [100.0, 0.0, 0.0]
    >>> score_rows(Training(), encoders, params, arrays, jnp.array([1, 1, 0]))["i2t_r1"].tolist()[:2]
    [100.0, 100.0]
    """
    first = {m: arrays[m][:, 0] if m == "text" and arrays[m].ndim == 3 else arrays[m] for m in encoders}
    if len(encoders) == 1:
        ((_, x),) = first.items()
        return {"accuracy": (predict(encoders, params, x) == arrays["label"]).astype(jnp.float32)}
    z = represent_all(encoders, training.block, params, first)
    cosine = jnp.matmul(z["image"], z["text"].T, precision="highest")  # accelerators otherwise round away differences
    nearest = jnp.where(mask[None] > 0, cosine, -jnp.inf).argmax(-1)
    return {"i2t_r1": 100.0 * (nearest == jnp.arange(len(nearest)))}


def predict(encoders: Encoders, params: PyTree, x: jax.Array) -> jax.Array:
    """The likeliest class [B] of examples [B, ...], by a client with one modality; 256 examples at a time."""
    return jax.lax.map(lambda row: classify(encoders, params, row[None])[0].argmax(-1), x, batch_size=256)


def own_accuracy(right: np.ndarray, labels: np.ndarray, classes: np.ndarray) -> float:
    """The mean over clients of accuracy on test examples weighted as a client's own classes are.

    right [N, E] bool; labels [E]; classes [N, K], how many examples of each class a client has. A class that is not
    tested counts for nothing, and neither does a client that has no other class; nan if that leaves no client.

    >>> right, labels = np.array([[True, True, False]]), np.array([0, 0, 1])
    >>> own_accuracy(right, labels, np.array([[3, 1]]))  # right on class 0, of which it has 3 of 4
    0.75
    """
    count = max(classes.shape[1], labels.max() + 1)
    tested = np.bincount(labels, minlength=count)
    share = np.pad(classes, ((0, 0), (0, count - classes.shape[1]))) / np.maximum(tested, 1)
    weight = share[:, labels]
    total = weight.sum(1)
    return float(np.mean((weight * right).sum(1)[total > 0] / total[total > 0])) if total.any() else float("nan")


def _functions(encoders: Encoders) -> Functions:
    return tuple((m, model.apply) for m, model in encoders.items())


def _encoders(functions: Functions) -> Encoders:
    return {m: Model(lambda key, x: None, apply) for m, apply in functions}


@functools.partial(jax.jit, static_argnums=(0, 1))
def _represent(functions: Functions, block: int, params: PyTree, pairs: Arrays) -> dict[str, jax.Array]:
    return represent_all(_encoders(functions), block, params, pairs)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _represent_each(functions: Functions, block: int, params: PyTree, pairs: Arrays) -> dict[str, jax.Array]:
    """{m: [N, n, D]} of clients with params [N, ...]."""
    return jax.lax.map(lambda one: represent_all(_encoders(functions), block, one, pairs), params)


@functools.partial(jax.jit, static_argnums=0)
def _predict_each(functions: Functions, params: PyTree, x: jax.Array) -> jax.Array:
    """Classes [N, E] by clients with params [N, ...]."""
    return jax.lax.map(lambda one: predict(_encoders(functions), one, x), params)


def _classes(functions: Functions, params: PyTree, x: Any) -> np.ndarray:
    """`_predict_each` of all rows; of an array that is streamed, some rows at a time."""
    if not is_streamed(x):
        return np.asarray(_predict_each(functions, params, x))
    parts = [np.asarray(_predict_each(functions, params, some["x"]))[:, :real] for some, real in blocks({"x": x})]
    return np.concatenate(parts, axis=1)


def _client_recalls(
    functions: Functions, block: int, params: PyTree, pairs: Arrays, owner: np.ndarray
) -> list[dict[str, float]]:
    z = jax.device_get(_represent_each(functions, block, params, pairs))
    return [
        evaluate.retrieval_recall(image, text, owner[: len(text)])
        for image, text in zip(z["image"], z["text"], strict=True)
    ]
