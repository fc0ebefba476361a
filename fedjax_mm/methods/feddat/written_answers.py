"""Answers that a trunk writes word by word, such as ALBEF: trained by their likelihood, given by rank in a list.

Li et al. 2021 (arXiv 2107.07651), and FedDAT's distillation over words; sections 1 and 7 of docs/specs/feddat.md. A
batch holds "choices" [B, K, L] int32 beside "target" [B, K]: the words of each answer that the client knows, [CLS]
words [SEP], where 0 is padding.

    task(z)    sum over a question's answers of w -log p(answer), w its share of the question's scores; the mean
               over questions
    KL(t, z)   T^2 KL of the words' softened distributions, summed over the words of an answer, mean over the answers

Differences from the authors' code: w is a share of the scores and not of the annotators, and padding is left out of
KL. All K answers are written at once, and those outside the likeliest first words are then never given, where the
authors' code writes the others alone; the answers that are given are the same.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fedjax_mm import losses
from fedjax_mm.local import Batch, masked_mean
from fedjax_mm.methods.feddat.answers import Answers
from fedjax_mm.methods.feddat.vqa_tuning import Training
from fedjax_mm.models.checks import check_sizes
from fedjax_mm.types import Key, PyTree


def written(model: Any, head: PyTree | None = None, most: int = 10, first: int = 64) -> Answers:
    """The Answers of a model that writes them: its loss, its distillation and its ranks.

    model: a models.albef.Albef, or whatever has its `init_head` and `word_logits`.
    head: what every client's head starts from, "head" of a checkpoint's parameters. None: it is drawn.
    most: of a question's answers, at most so many are learned from, the best first.
    first: only answers whose first word is among the likeliest so many of the K can be given.

    Raises ValueError where `most` or `first` is below 1.
    """
    check_sizes(most=most, first=first)

    def init(key: Key, features: jax.Array) -> PyTree:
        return model.init_head(key) if head is None else jax.tree.map(jnp.asarray, head)

    logits = lambda params, features, batch: model.word_logits(params, features)
    scores = partial(rank, model, first)
    return Answers(init, logits, written_loss, distill_words, points, scores, partial(best, most), ("choices",))


def best(most: int, batch: Batch) -> Batch:
    """The batch with the `most` best answers [B, most] of each question in the place of all K.

    >>> batch = {"target": jnp.array([[0.3, 0.0, 1.0]]), "choices": jnp.array([[[1, 5], [1, 6], [1, 7]]])}
    >>> {name: x.tolist() for name, x in best(1, batch).items()}
    {'target': [[1.0]], 'choices': [[[1, 7]]]}
    """
    target, which = jax.lax.top_k(batch["target"], min(most, batch["target"].shape[1]))
    return {**batch, "target": target, "choices": jnp.take_along_axis(batch["choices"], which[..., None], axis=1)}


def written_loss(training: Training, z: jax.Array, batch: Batch) -> jax.Array:
    """The mean over real questions of sum_i w_i -log p(answer i), of logits z [B, K, L, V] of each next word.

    training: not read; there is one such loss. A question of which no answer is known counts 0.

    >>> batch = {"target": jnp.array([[0.5, 0.0]]), "choices": jnp.array([[[1, 2, 0], [1, 3, 3]]]), "mask": jnp.ones(1)}
    >>> round(float(written_loss(Training(), jnp.zeros((1, 2, 3, 4)), batch)), 4)  # log 4: a word, and padding
    1.3863
    """
    return masked_mean((_shares(batch) * -likelihood(z, batch["choices"])).sum(-1), batch["mask"])


def likelihood(z: jax.Array, choices: jax.Array) -> jax.Array:
    """log p(answer) [...] of logits z [..., L, V] of each next word; choices [..., L], the answers' words.

    >>> round(float(likelihood(jnp.zeros((3, 4)), jnp.array([1, 2, 3]))), 4)  # -2 log 4
    -2.7726
    """
    following = choices[..., 1:]
    each = optax.softmax_cross_entropy_with_integer_labels(z[..., :-1, :], following)
    return -jnp.where(following != 0, each, 0).sum(-1)


def distill_words(z_teacher: jax.Array, z: jax.Array, temperature: jax.Array | float, batch: Batch) -> jax.Array:
    """The mean over a batch's real answers of T^2 KL, summed over an answer's words; logits [B, K, L, V] of each.

    >>> batch = {"target": jnp.ones((1, 1)), "choices": jnp.array([[[1, 2, 3, 0]]]), "mask": jnp.ones(1)}
    >>> teacher, z = jnp.zeros((1, 1, 4, 2)), jnp.zeros((1, 1, 4, 2)).at[..., 0].set(2.0)
    >>> one = losses.distill(teacher[0, 0, 0], z[0, 0, 0], 2.0)
    >>> round(float(distill_words(teacher, z, 2.0, batch) / one), 4)  # two words
    2.0
    """
    answers = (batch["target"] > 0) & (batch["mask"] > 0)[:, None]
    words = (batch["choices"][..., 1:] != 0) & answers[..., None]
    each = losses.distill(z_teacher[..., :-1, :], z[..., :-1, :], temperature, mask=words.astype(jnp.float32))
    return each * words.sum() / jnp.maximum(answers.sum(), 1)


def points(z: jax.Array, batch: Batch) -> jax.Array:
    """The share [B] of a question's answers all of whose next words are the likeliest by z [B, K, L, V].

    >>> batch = {"target": jnp.array([[1.0, 0.25]]), "choices": jnp.array([[[1, 2, 0], [1, 3, 0]]])}
    >>> points(jax.nn.one_hot(jnp.array([[[2, 0, 0], [2, 0, 0]]]), 4), batch).tolist()
    [0.800000011920929]
    """
    following = batch["choices"][..., 1:]
    right = (z[..., :-1, :].argmax(-1) == following) | (following == 0)
    return (_shares(batch) * right.all(-1)).sum(-1)


def rank(model: Any, first: int, params: PyTree, features: PyTree, batch: Batch) -> jax.Array:
    """The scores [B, K] of all answers: log p(first word) + log p(answer), as in the authors' code.

    They are -1e9 for answers that a question's client does not know, and for those whose first word is not among the
    likeliest `first` of the answers'. The first word counts twice in their code, and so it does here.

    params: h_k. features: of the model on the batch, with all K answers.
    """
    choices = batch["choices"]

    def of_one(hidden: jax.Array, answer: jax.Array) -> tuple[jax.Array, jax.Array]:
        z = model.word_logits(params, {**features, "hidden": hidden})  # [B, L, V]: those of all K would not fit
        start = jax.nn.log_softmax(z[:, 0])
        return jnp.take_along_axis(start, answer[:, 1:2], axis=1)[:, 0], likelihood(z, answer)

    by_answer = (jnp.swapaxes(x, 0, 1) for x in (features["hidden"], choices))
    start, whole = (x.T for x in jax.lax.map(lambda one: of_one(*one), tuple(by_answer)))
    known = choices[:, :, 1] != 0
    if "answers" in batch:
        known = jnp.arange(choices.shape[1])[None] < batch["answers"][:, None]
    start = jnp.where(known, start, -1e9)
    least = jax.lax.top_k(start, min(first, start.shape[1]))[0][:, -1:]
    return jnp.where(known & (start >= least), start + whole, -1e9)


def _shares(batch: Batch) -> jax.Array:
    total = batch["target"].sum(-1, keepdims=True)
    return batch["target"] / jnp.where(total > 0, total, 1)
