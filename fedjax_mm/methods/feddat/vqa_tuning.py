"""What every way of tuning a vision-language trunk on questions shares, so that its ways can be compared: a client's
loss, optimiser and rate, and the score.

A batch holds what the model reads, and `target` [B, K], the soft score of each answer (1, or 0.3 where one annotator in
ten gave it). Where clients know fewer than K answers, `answers` [B] int32 says how many: the others have no
probability and are never given.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_mm import trees
from fedjax_mm.evaluate import vqa_score
from fedjax_mm.local import Batch, masked_mean
from fedjax_mm.models import Model
from fedjax_mm.types import Arrays, FedState, PyTree


@dataclasses.dataclass(frozen=True)
class Training:
    """How a client trains."""

    lr: float = 1e-4
    """The highest rate of AdamW (0.9, 0.98), which every client starts afresh in every round."""
    weight_decay: float = 0.01
    """On all but biases and the scale of the embeddings' norm, which is what the authors' rule comes to."""
    batch_size: int = 2
    epochs: int = 1
    """Passes over a client's own examples in a round."""
    horizon: float = 15.0
    """Epochs in which the rate rises from 0 and falls back to 0, linearly."""
    warmup: float = 0.1
    """The share of them in which it rises."""
    restart: bool = True
    """Each round starts the schedule anew, so that a round of one epoch ends at 2/3 of the highest rate; False: one
    schedule over all rounds that a client takes part in."""
    task: Literal["bce", "ce"] = "bce"
    """bce: binary cross-entropy, summed over answers (ViLT); ce: softmax cross-entropy, answers weighed by score."""
    test_batch: int = 64
    """Questions of one client that `evaluate` takes at a time."""


def schedule(training: Training, count: jax.Array, rounds: jax.Array) -> Callable[[jax.Array], jax.Array]:
    """rate(step) [] of the local steps 0, 1, ... of a client with `count` examples, after `rounds` rounds of its own.

    The first step has one step's worth of the rise, so that a client of few steps does not stand still.
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
    """AdamW but for the rate, which `descend` applies."""
    decays = lambda path: not path.endswith("bias") and not ("embeddings" in path and path.endswith("scale"))
    decay = optax.add_decayed_weights(training.weight_decay, lambda params: trees.path_mask(params, decays))
    return optax.chain(optax.scale_by_adam(0.9, 0.98, 1e-8), decay)


def descend(tx: optax.GradientTransformation, rate: jax.Array, grads: PyTree, carry: tuple) -> tuple:
    """(params, optimiser state) one step on."""
    params, opt = carry
    updates, opt = tx.update(grads, opt, params)
    return jax.tree.map(lambda p, u: p - rate * u, params, updates), opt


def answer(head: Model, params: PyTree, pooled: jax.Array, batch: Batch) -> jax.Array:
    """Logits [B, K] of pooled features [B, D]."""
    logits = head.apply(params, pooled)
    if "answers" not in batch:
        return logits
    known = jnp.arange(logits.shape[-1])[None] < batch["answers"][:, None]
    return jnp.where(known, logits, -1e9)  # not -inf, whose difference from itself is NaN


def task_loss(training: Training, logits: jax.Array, batch: Batch) -> jax.Array:
    """The mean over questions of the loss against `target`, []."""
    if training.task == "bce":
        each = optax.sigmoid_binary_cross_entropy(logits, batch["target"]).sum(-1)
    else:
        each = optax.softmax_cross_entropy(logits, batch["target"])
    return masked_mean(each, batch["mask"])


def points(logits: jax.Array, batch: Batch) -> jax.Array:
    """The score [B] of the likeliest answer."""
    return jnp.take_along_axis(batch["target"], logits.argmax(-1, keepdims=True), axis=-1)[:, 0]


def evaluator(training: Training, predict: Callable) -> Callable[[FedState, Arrays], dict[str, float]]:
    """evaluate(state, arrays), from predict(server state, a client's state, batch) -> {name: logits [B, K]}.

    arrays: what a batch holds, and `client` [E] int, whose question it is; clients of several cohorts are numbered one
    cohort after the other. Gives, in percent, "<name>", the mean over these clients of their mean score, and each
    client's own, "client 3/<name>".
    """

    @jax.jit
    def answers(server, clients, number, batch):
        mine = jax.tree.map(lambda x: x[number], clients)
        return {name: logits.argmax(-1) for name, logits in predict(server, mine, batch).items()}

    def evaluate(state: FedState, arrays: Arrays) -> dict[str, float]:
        if missing := [name for name in ("client", "target") if name not in arrays]:
            raise ValueError(f"the test arrays {sorted(arrays)} lack {missing}: whose question it is, its answers")
        questions = {k: v for k, v in arrays.items() if k != "client"}
        owner = np.asarray(arrays["client"])
        clients = jax.tree.map(lambda *x: x[0] if len(x) == 1 else jnp.concatenate(x), *state.clients.values())
        number = jax.tree.leaves(clients)[0].shape[0]
        if not len(owner) or owner.min() < 0 or owner.max() >= number:
            named = np.unique(owner).tolist()
            raise ValueError(f"`client` must name one of clients 0..{number - 1} for each question, got {named}")
        scores, size = {}, training.test_batch
        for j in np.unique(owner):
            rows, given = np.flatnonzero(owner == j), {}
            for start in range(0, len(rows), size):
                some = rows[start : start + size]
                batch = {k: v[np.resize(some, size)] for k, v in questions.items()}  # repeated: one shape for all
                for name, chosen in answers(state.server, clients, j, batch).items():
                    given.setdefault(name, []).append(chosen[: len(some)])
            for name, parts in given.items():
                score = vqa_score(np.concatenate(parts), questions["target"][rows])
                scores.setdefault(name, {})[j] = score["vqa_score"]
        means = {name: float(np.mean(list(of.values()))) for name, of in scores.items()}
        return means | {f"client {j}/{name}": score for name, of in scores.items() for j, score in of.items()}

    return evaluate


def check(training: Training, data, head: Model, width: int) -> None:
    """Raises a ValueError where the data, a FederatedData, or the settings do not fit."""
    if training.batch_size < 1 or training.horizon <= 0 or not 0 <= training.warmup < 1:
        raise ValueError(f"batch_size must be at least 1, horizon above 0, warmup from 0 to below 1; got {training}")
    example = jax.ShapeDtypeStruct((1, width), jnp.float32)
    params = jax.eval_shape(head.init, jax.random.key(0), example)
    answers = jax.eval_shape(head.apply, params, example).shape[-1]
    for name, cohort in data.cohorts.items():
        if "target" not in cohort.arrays:
            raise ValueError(f"clients of {name} have {sorted(cohort.arrays)} but no 'target' [E, K], answers' scores")
        if (shape := np.shape(cohort.arrays["target"]))[1:] != (answers,):
            raise ValueError(f"target of {name} is {shape}; it must be [E, {answers}], as many as the head's answers")
