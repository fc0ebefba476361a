"""How a client answers from what the trunk gives: its head, its loss, its distillation and its score.

A head of classes is a `Model`, [B, D] -> a logit [B, K] for each answer, of which the likeliest is given. A trunk that
does not choose among classes takes an `Answers` in its place, such as `written_answers.rank`.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax

from fedjax_mm import losses
from fedjax_mm.local import Batch
from fedjax_mm.methods.feddat.vqa_tuning import Training, answer, points, task_loss
from fedjax_mm.models import Model
from fedjax_mm.types import Key, PyTree


class Answers(NamedTuple):
    """What `build` takes in the place of a head of classes, as pure functions.

    "features" is what the trunk gives of a batch, an array or a tree of arrays; z are the head's logits of them, of
    whatever shape.
    """

    init: Callable[[Key, jax.Array], PyTree]
    """(key, zeros [1, D]) -> h_k, the parameters of a client's head."""
    logits: Callable[[PyTree, PyTree, Batch], jax.Array]
    """(h_k, features, batch) -> z."""
    loss: Callable[[Training, jax.Array, Batch], jax.Array]
    """(training, z, batch) -> the task loss []."""
    distill: Callable[[jax.Array, jax.Array, jax.Array | float, Batch], jax.Array]
    """(z of the teacher, z, temperature, batch) -> the distillation loss []."""
    points: Callable[[jax.Array, Batch], jax.Array]
    """(z, batch) -> the score [B] of each question of a training batch, in 0..1."""
    scores: Callable[[PyTree, PyTree, Batch], jax.Array]
    """(h_k, features, batch) -> how good each of the answers in "target" is, [B, K]; the best one is given."""
    prepare: Callable[[Batch], Batch] = lambda batch: batch
    """A training batch as the model and the functions above take it. Tests use the batch as it is."""
    reads: tuple[str, ...] = ()
    """Arrays that the model reads besides those of its `example`."""


def answers_of(head: Model | Answers) -> Answers:
    """The `Answers` of a head of classes, or the Answers that it is.

    >>> import jax.numpy as jnp
    >>> head = answers_of(Model(init=lambda key, x: {}, apply=lambda params, x: 2 * x))
    >>> head.logits({}, jnp.ones((1, 3)), {"answers": jnp.array([2])}).tolist()
    [[2.0, 2.0, -1000000000.0]]
    """
    if isinstance(head, Answers):
        return head
    logits = partial(answer, head)
    return Answers(head.init, logits, task_loss, _distill, points, logits)


def _distill(z_teacher: jax.Array, z: jax.Array, temperature: jax.Array | float, batch: Batch) -> jax.Array:
    return losses.distill(z_teacher, z, temperature, mask=batch["mask"])
