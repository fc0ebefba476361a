"""What every way of tuning a vision-language trunk on questions shares, so that these ways can be compared: a client's
loss, its optimiser and learning rate, and the score.

A batch holds what the model reads, and `target` [B, K], the soft score of each answer to each question (1, or 0.3
where one annotator in ten gave it). Where clients know fewer than K answers, `answers` [B] int32 says how many: the
other answers have no probability and are never given.

Section numbers are those of docs/specs/feddat.md. Two differences from the released code lie here (section 5): the
first step of a round has a rate above 0, and a test question of which no answer is known stays in the test.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_mm import trees
from fedjax_mm.evaluate import vqa_score
from fedjax_mm.local import Batch, masked_mean
from fedjax_mm.models import Model
from fedjax_mm.types import Arrays, Download, FedState, Key, PyTree

Predict = Callable[[Download, PyTree, Batch], Mapping[str, jax.Array]]
"""(what a client gets, its state, a batch) -> {name of a model: scores of the answers [B, K]}."""


@dataclasses.dataclass(frozen=True)
class Training:
    """How a client trains in a round."""

    lr: float = 1e-4
    """The highest learning rate of AdamW (0.9, 0.98). Every client starts AdamW afresh in every round."""
    weight_decay: float = 0.01
    """AdamW's weight decay. It spares biases and the scale of the embeddings' norm; the authors' rule has the same
    effect."""
    batch_size: int = 2
    """Questions per batch."""
    epochs: int = 1
    """Passes over a client's own examples in a round."""
    horizon: float = 15.0
    """Epochs in which the learning rate rises linearly from 0 and falls back to 0."""
    warmup: float = 0.1
    """Share of the horizon in which the learning rate rises."""
    restart: bool = True
    """True: each round starts the schedule anew, so that with the defaults a round of one epoch ends at 2/3 of the
    highest rate. False: one schedule runs over all rounds in which a client takes part."""
    task: Literal["bce", "ce"] = "bce"
    """The task loss. bce: binary cross-entropy, summed over answers (ViLT). ce: softmax cross-entropy in which each
    answer weighs as much as its score."""
    test_batch: int = 64
    """Questions of one client that `evaluate` answers at a time."""


class TrainState(NamedTuple):
    """Parameters and the state of the AdamW that trains them."""

    params: PyTree
    opt: PyTree


def schedule(training: Training, count: jax.Array, rounds: jax.Array) -> Callable[[jax.Array], jax.Array]:
    """The learning rate of a client with `count` [] examples after `rounds` [] rounds of its own.

    Returns rate(step) [] for the local steps 0, 1, ... The first step has one step's worth of the rise, so that a
    client of few steps does not stand still.

    >>> rate = schedule(Training(lr=1.0, batch_size=2, horizon=2.0, warmup=0.5), jnp.int32(4), jnp.int32(0))
    >>> [float(rate(step)) for step in range(4)]
    [0.5, 1.0, 1.0, 0.5]
    """
    epoch = jnp.maximum(-(-count // training.batch_size), 1)
    before = 0 if training.restart else rounds * training.epochs * epoch
    steps = training.horizon * epoch
    rise = training.warmup * steps

    def rate(step):
        up = (before + step + 1) / jnp.maximum(rise, 1.0)
        down = (steps - before - step) / jnp.maximum(steps - rise, 1.0)
        return training.lr * jnp.clip(jnp.minimum(up, down), 0.0, 1.0)

    return rate


def adamw(training: Training) -> optax.GradientTransformation:
    """AdamW without its learning rate, which `descend` applies.

    >>> tx = adamw(Training(weight_decay=0.5))
    >>> params = {"kernel": jnp.array([2.0]), "bias": jnp.array([2.0])}
    >>> updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    >>> {name: x.tolist() for name, x in updates.items()}  # without a gradient, the decay alone
    {'bias': [0.0], 'kernel': [1.0]}
    """
    decays = lambda path: not path.endswith("bias") and not ("embeddings" in path and path.endswith("scale"))
    decay = optax.add_decayed_weights(training.weight_decay, lambda params: trees.path_mask(params, decays))
    return optax.chain(optax.scale_by_adam(0.9, 0.98, 1e-8), decay)


def descend(tx: optax.GradientTransformation, rate: jax.Array | float, grads: PyTree, state: TrainState) -> TrainState:
    """One step of `tx` down the gradients, at the learning rate `rate` [].

    >>> tx, params = optax.identity(), {"w": jnp.array([1.0, 2.0])}
    >>> descend(tx, 0.5, {"w": jnp.array([2.0, 0.0])}, TrainState(params, tx.init(params))).params["w"]
    Array([0., 2.], dtype=float32)
    """
    updates, opt = tx.update(grads, state.opt, state.params)
    return TrainState(jax.tree.map(lambda p, u: (p - rate * u).astype(p.dtype), state.params, updates), opt)


def has_dropout(model: Any) -> bool:
    """Whether a model drops values where `drop(key)` gives one that does: its `dropout`, a rate, is above 0.

    >>> has_dropout(object())
    False
    """
    return getattr(model, "dropout", 0.0) > 0


def dropping(model: Any, key: Key | None) -> Any:
    """The model with the dropout that `key` draws, or the model itself where it has none or there is no key.

    >>> model = object()
    >>> dropping(model, jax.random.key(0)) is model
    True
    """
    return model.drop(key) if key is not None and has_dropout(model) else model


def answer(head: Model, params: PyTree, pooled: jax.Array, batch: Batch) -> jax.Array:
    """The head's logits [B, K] of pooled features [B, D]; -1e9 for answers that a question's client does not know.

    >>> head = Model(init=lambda key, x: {}, apply=lambda params, x: 2 * x)
    >>> answer(head, {}, jnp.ones((2, 3)), {"answers": jnp.array([3, 1])}).tolist()
    [[2.0, 2.0, 2.0], [2.0, -1000000000.0, -1000000000.0]]
    """
    logits = head.apply(params, pooled)
    if "answers" not in batch:
        return logits
    known = jnp.arange(logits.shape[-1])[None] < batch["answers"][:, None]
    return jnp.where(known, logits, -1e9)  # not -inf, whose difference from itself is NaN


def task_loss(training: Training, logits: jax.Array, batch: Batch) -> jax.Array:
    """The mean over real questions of the loss of logits [B, K] against `target` [B, K]; a number [].

    >>> batch = {"target": jnp.array([[1.0, 0.0], [0.0, 1.0]]), "mask": jnp.array([1.0, 0.0])}
    >>> round(float(task_loss(Training(task="ce"), jnp.zeros((2, 2)), batch)), 4)  # log 2
    0.6931
    """
    if training.task == "bce":
        each = optax.sigmoid_binary_cross_entropy(logits, batch["target"]).sum(-1)
    else:
        each = optax.softmax_cross_entropy(logits, batch["target"])
    return masked_mean(each, batch["mask"])


def points(logits: jax.Array, batch: Batch) -> jax.Array:
    """The score [B] in `target` [B, K] of the likeliest answer by logits [B, K].

    >>> points(jnp.array([[0.0, 9.0], [5.0, 1.0]]), {"target": jnp.array([[1.0, 0.5], [0.25, 0.0]])}).tolist()
    [0.5, 0.25]
    """
    return jnp.take_along_axis(batch["target"], logits.argmax(-1, keepdims=True), axis=-1)[:, 0]


def score_questions(
    predict: Predict, download: Download, state: PyTree, arrays: Arrays, mask: jax.Array
) -> dict[str, jax.Array]:
    """The VQA score [B], in percent, of each of a client's own test questions, by each of its models: a `Cohort.score`.

    arrays: leaves [B, ...], what a batch holds. mask [B] is not needed, because each question is scored by itself.

    >>> predict = lambda download, state, batch: {"score": state * batch["image"]}
    >>> rows = {"image": jnp.array([[0.0, 9.0]]), "target": jnp.array([[1.0, 0.5]])}
    >>> score_questions(predict, Download(()), jnp.float32(2.0), rows, jnp.ones(1))["score"].tolist()
    [50.0]
    """
    return {name: 100 * points(logits, arrays) for name, logits in predict(download, state, arrays).items()}


@functools.partial(jax.jit, static_argnums=0)
def _likeliest(
    predict: Predict, download: Download, clients: PyTree, number: jax.Array, batch: Batch
) -> dict[str, jax.Array]:
    """The likeliest answers [B] by each model of client `number` [], whose state is a row of `clients`."""
    client = jax.tree.map(lambda x: x[number], clients)
    return {name: logits.argmax(-1) for name, logits in predict(download, client, batch).items()}


def scores(
    predict: Predict, send: Callable[[PyTree], Download], training: Training, state: FedState, arrays: Arrays
) -> dict[str, float]:
    """The VQA scores in percent of all clients' models on their own test questions: a `Method.evaluate`.

    send: server state -> what every client gets.
    arrays: what a batch holds, leaves [E, ...], and `client` [E] int, whose question it is; clients of several cohorts
        are numbered one cohort after the other.

    Returns "<name>", the mean over these clients of their mean score, and each client's own, "client 3/<name>".
    Raises ValueError where `client` or `target` is missing, or names a client that there is not.
    """
    if missing := [name for name in ("client", "target") if name not in arrays]:
        raise ValueError(f"the test arrays {sorted(arrays)} lack {missing}: whose question it is, its answers")
    questions = {k: v for k, v in arrays.items() if k != "client"}
    owner = np.asarray(arrays["client"])
    clients = jax.tree.map(lambda *x: x[0] if len(x) == 1 else jnp.concatenate(x), *state.clients.values())
    total = jax.tree.leaves(clients)[0].shape[0]
    if not len(owner) or owner.min() < 0 or owner.max() >= total:
        numbers = np.unique(owner).tolist()
        raise ValueError(f"`client` must name one of clients 0..{total - 1} for each question, got {numbers}")
    download, by_name, size = send(state.server), {}, training.test_batch
    for j in np.unique(owner):
        rows, answers = np.flatnonzero(owner == j), {}
        for start in range(0, len(rows), size):
            some = rows[start : start + size]
            batch = {k: v[np.resize(some, size)] for k, v in questions.items()}  # repeated: one shape for all
            for name, likeliest in _likeliest(predict, download, clients, j, batch).items():
                answers.setdefault(name, []).append(likeliest[: len(some)])
        for name, parts in answers.items():
            score = vqa_score(np.concatenate(parts), np.asarray(questions["target"][rows]))
            by_name.setdefault(name, {})[j] = score["vqa_score"]
    means = {name: float(np.mean(list(by_client.values()))) for name, by_client in by_name.items()}
    each = {f"client {j}/{name}": score for name, by_client in by_name.items() for j, score in by_client.items()}
    return means | each
