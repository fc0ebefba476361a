"""Questions about pictures, answered from a frozen server's representations: a classifier is trained on
representations of pictures and questions, and tested.

CreamFL names the task, "VQA v2.0, accuracy on the 3,000 most frequent answers", and gives no protocol beyond that
(section 3 of docs/specs/creamfl.md); the classifier is ours. It takes the questions of `data.vqa`:

    tasks = vqa.load({"vqa": Source(train, test)}, answers=3000, tokenizer=..., length=...)
    split = tasks.tasks["vqa"].splits["train"]
    seen = image reps of tasks.image [I, D], each picture once
    Questions(seen[split["image_row"]], text reps of split["question"], split["target"])

`load` takes the K answers of the greatest total soft score over the training questions. It leaves out training
questions that have none of these answers, and keeps such test questions as rows of zeros, on which nobody scores. The
server's text encoder must read the word pieces of the tokenizer given to `load`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.preprocessing import StandardScaler

from fedjax_mm import evaluate
from fedjax_mm.local import gradient_step, local_steps, whole
from fedjax_mm.methods.feddat.vqa_tuning import Training, task_loss
from fedjax_mm.methods.settings import check_settings
from fedjax_mm.models import Model, heads
from fedjax_mm.types import Arrays, ClientData, Key, PyTree

Predict = Callable[[np.ndarray, np.ndarray], np.ndarray]  # image, question [M, D] -> [M] int
BLOCK = 1024  # questions answered at a time


class Questions(NamedTuple):
    """Pictures and questions about them, row by row, as representations, and how good each answer is."""

    image: np.ndarray
    """Representations of the pictures, [M, D]."""
    question: np.ndarray
    """Representations of the questions, [M, D]."""
    target: np.ndarray
    """Score in 0..1 of each answer, [M, K], of any float type (float16 halves its memory)."""


@dataclasses.dataclass(frozen=True)
class VQAProbe:
    """One hidden layer (relu) on [image, question, image * question], standardised, and how it is trained."""

    hidden: int = 256
    """Width of the hidden layer."""
    lr: float = 1e-3
    """Learning rate of AdamW."""
    epochs: int = 20
    """Passes over the training questions."""
    batch_size: int = 256
    """Training questions in a step."""
    weight_decay: float = 1e-4
    """Weight decay of AdamW."""
    loss: Literal["ce", "bce"] = "ce"
    """ce: softmax cross-entropy in which an answer counts by its score, so that a question without a known answer
    teaches nothing; bce: binary cross-entropy, summed over answers, so that such a question teaches to expect none."""


def vqa(probe: VQAProbe, train: Questions, test: Questions, key: Key) -> dict[str, float]:
    """{"vqa_score", "question_only", "constant"}: the mean score of the test answers in percent, of the
    classifier and of two controls.

    question_only: the same classifier, trained and tested with zeros for image representations. constant: always the
    answer with the greatest total score in training. Raises ValueError where shapes do not fit, where a representation
    is NaN or infinite, and where training diverges.

    >>> answers = np.arange(12) % 3  # of which only the picture tells
    >>> asked = Questions(np.eye(3)[answers], np.ones((12, 3)), np.eye(3)[answers])
    >>> probe = VQAProbe(hidden=8, lr=0.05, batch_size=12, epochs=40)
    >>> {name: round(value, 1) for name, value in vqa(probe, asked, asked, jax.random.key(0)).items()}
    {'vqa_score': 100.0, 'question_only': 33.3, 'constant': 33.3}
    """
    _check("test", *test)
    if np.shape(train.target)[1:] != np.shape(test.target)[1:]:
        answers = f"{np.shape(train.target)} and {np.shape(test.target)}"
        raise ValueError(f"the targets of train and test are {answers}; they must have the same K answers.")
    blind = [rows._replace(image=np.zeros_like(np.asarray(rows.image))) for rows in (train, test)]
    scores = score(fit(probe, *train, key), *test)
    commonest = np.sum(train.target, axis=0, dtype=np.float64).argmax()
    return scores | {
        "question_only": score(fit(probe, *blind[0], key), *blind[1])["vqa_score"],
        "constant": evaluate.vqa_score(np.full(len(test.target), commonest), test.target)["vqa_score"],
    }


def fit(probe: VQAProbe, image: np.ndarray, question: np.ndarray, target: np.ndarray, key: Key) -> Predict:
    """predict(image, question) -> [M] int, the likeliest answer, of a classifier trained on these rows.

    image, question [M, D], target [M, K]. Raises ValueError as `vqa` does.
    """
    check_settings(probe, VQAProbe)
    _check("train", image, question, target)
    image, question = np.asarray(image, np.float32), np.asarray(question, np.float32)
    scalers = [StandardScaler().fit(x) for x in (image, question, image * question)]
    shift = jnp.asarray(np.concatenate([np.asarray(s.mean_) for s in scalers]), jnp.float32)
    scale = jnp.asarray(np.concatenate([np.asarray(s.scale_) for s in scalers]), jnp.float32)
    arrays = {"image": jnp.asarray(image), "question": jnp.asarray(question), "target": jnp.asarray(target)}
    params = _train(probe, whole(arrays), (shift, scale), key)
    if not all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(params)):
        raise ValueError(f"the classifier diverged; lower probe.lr, which is {probe.lr}.")

    def predict(image: np.ndarray, question: np.ndarray) -> np.ndarray:
        _check("test", image, question)
        if np.shape(image)[1] != arrays["image"].shape[1]:
            raise ValueError(
                f"test image is {np.shape(image)} and train image {arrays['image'].shape}; use one server."
            )
        rows = {"image": jnp.asarray(image), "question": jnp.asarray(question)}
        return np.asarray(_answers(probe, arrays["target"].shape[1], params, (shift, scale), rows))

    return predict


def score(predict: Predict, image: np.ndarray, question: np.ndarray, target: np.ndarray) -> dict[str, float]:
    """{"vqa_score"}: the mean score of the predicted answers, in percent. image, question [M, D], target [M, K].

    >>> always_first = lambda image, question: np.zeros(len(image), int)
    >>> score(always_first, np.zeros((2, 4)), np.zeros((2, 4)), np.array([[1.0, 0.0], [0.3, 1.0]]))
    {'vqa_score': 65.0}
    """
    return evaluate.vqa_score(predict(image, question), target)


def _classifier(probe: VQAProbe, num_answers: int) -> Model:
    return heads.mlp((probe.hidden,), num_answers)


def _features(rows: Arrays, standard: tuple[jax.Array, jax.Array]) -> jax.Array:
    image, question = rows["image"], rows["question"]
    shift, scale = standard
    return (jnp.concatenate([image, question, image * question], -1) - shift[None]) / scale[None]


@functools.partial(jax.jit, static_argnums=0)
def _train(probe: VQAProbe, data: ClientData, standard: tuple[jax.Array, jax.Array], key: Key) -> PyTree:
    total, answers = data.arrays["target"].shape
    model, tx = _classifier(probe, answers), optax.adamw(probe.lr, weight_decay=probe.weight_decay)

    def loss(params, batch, key):
        logits = model.apply(params, _features(batch, standard))
        return task_loss(Training(task=probe.loss), logits, batch), {}

    keys = jax.random.split(key)
    params = model.init(keys[0], jnp.zeros((1, len(standard[0]))))
    step, size = gradient_step(loss, tx), min(probe.batch_size, total)
    carry = (params, tx.init(params))
    return local_steps(step, carry, data, keys[1], batch_size=size, epochs=probe.epochs)[0][0]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _answers(
    probe: VQAProbe, num_answers: int, params: PyTree, standard: tuple[jax.Array, jax.Array], rows: Arrays
) -> jax.Array:
    model = _classifier(probe, num_answers)
    one = lambda row: model.apply(params, _features(jax.tree.map(lambda x: x[None], row), standard))[0].argmax(-1)
    return jax.lax.map(one, rows, batch_size=min(BLOCK, len(rows["image"])))


def _check(name: str, image: np.ndarray, question: np.ndarray, target: np.ndarray | None = None) -> None:
    shape = np.shape(image)
    if len(shape) != 2 or not all(shape) or np.shape(question) != shape:
        raise ValueError(
            f"{name} image {shape} and question {np.shape(question)} must be [M, D] both, M and D at least 1."
        )
    for what, x in (("image", image), ("question", question)):
        if not np.isfinite(x).all():
            raise ValueError(f"{name} {what} representations hold NaN or infinity; the server has diverged.")
    if target is None:
        return
    target = np.asarray(target)
    if target.ndim != 2 or len(target) != shape[0] or not target.shape[1]:
        raise ValueError(f"{name} target is {target.shape}; it must be [{shape[0]}, K], one row a question.")
    if not (target.min() >= 0 and target.max() <= 1):
        raise ValueError(f"{name} target goes from {target.min()} to {target.max()}; scores of answers are in 0..1.")
