"""How well image and text encoders retrieve and classify: the scores of CreamFL and its baselines."""

import functools
from collections.abc import Callable, Mapping

import jax
import numpy as np

from fedjax_mm import evaluate
from fedjax_mm.methods.creamfl.joint_space import classify, represent_all
from fedjax_mm.methods.creamfl.training import Encoders, Training
from fedjax_mm.types import Arrays, FedState


def evaluator(training: Training, server: Encoders, clients: Mapping[str, Encoders], data, few: int = 200) -> Callable:
    """evaluate(state, arrays) of states whose server and clients have `params` as `init` makes them.

    arrays: `image` [I, ...] and `text` [I, L] or [I, Q, L], pairs; for a cohort that classifies "<cohort>/image" or
    "<cohort>/text" and "<cohort>/label". Gives, of the server, retrieval_recall's scores of all pictures, "fold/..." of
    five folds and the sums of both (where there are 5,000 pictures, the 5K and the 1K protocol); of clients the mean
    over a cohort's of "<cohort>/accuracy" over all classes and "<cohort>/own_accuracy" over the classes a client of
    `data` holds, as often as it holds them; or, on the first `few` pictures, of "<cohort>/i2t_r1" and so on.
    """
    held = {name: np.array(table["classes"]) for name, table in data.split().items() if "classes" in table}

    embed = lambda encoders: functools.partial(represent_all, encoders, training.block)
    of_all = lambda one: lambda params, pairs: jax.lax.map(lambda p: one(p, pairs), params)

    def label(encoders):
        return lambda params, x: jax.lax.map(
            lambda row: classify(encoders, params, row[None])[0].argmax(-1), x, batch_size=256
        )

    on_server = jax.jit(embed(server))
    on_clients = {name: jax.jit(of_all(embed(of) if len(of) > 1 else label(of))) for name, of in clients.items()}

    def evaluate_state(state: FedState, arrays: Arrays) -> dict[str, float]:
        texts = np.asarray(arrays["text"])
        captions = texts.shape[1] if texts.ndim == 3 else 1
        pairs = {"image": np.asarray(arrays["image"]), "text": texts.reshape(-1, texts.shape[-1])}
        owner = np.repeat(np.arange(len(pairs["image"])), captions)
        scores = evaluate.both_protocols(*jax.device_get(on_server(state.server["params"], pairs)).values(), owner)
        for name, encoders in clients.items():
            params = state.clients[name]["params"]
            if len(encoders) > 1:
                some = {"image": pairs["image"][:few], "text": pairs["text"][: few * captions]}
                z = jax.device_get(on_clients[name](params, some))
                every = [
                    evaluate.retrieval_recall(image, text, owner[: len(text)])
                    for image, text in zip(z["image"], z["text"], strict=True)
                ]
                scores |= {f"{name}/{key}": float(np.mean([one[key] for one in every])) for key in every[0]}
            elif f"{name}/label" in arrays:
                (m,) = encoders
                found = np.asarray(on_clients[name](params, arrays[f"{name}/{m}"]))
                labels = np.asarray(arrays[f"{name}/label"])
                right = found == labels[None]
                scores[f"{name}/accuracy"] = float(right.mean())
                scores[f"{name}/own_accuracy"] = own_accuracy(right, labels, held[name])
        return scores

    return evaluate_state


def own_accuracy(right: np.ndarray, labels: np.ndarray, held: np.ndarray) -> float:
    """The mean over clients of accuracy on test examples weighted as a client's own classes are.

    right [N, E] bool; labels [E]; held [N, K], how many examples of each class a client has. A class that is not
    tested counts for nothing, and a client that has no other one neither; nan if that leaves none.
    """
    classes = max(held.shape[1], labels.max() + 1)
    tested = np.bincount(labels, minlength=classes)
    share = np.pad(held, ((0, 0), (0, classes - held.shape[1]))) / np.maximum(tested, 1)
    weight = share[:, labels]
    total = weight.sum(1)
    return float(np.mean((weight * right).sum(1)[total > 0] / total[total > 0])) if total.any() else float("nan")
