"""The arrays of tasks: one client's questions with their pictures, all clients', and clients who own their task."""

from typing import Any

import numpy as np

from fedjax_mm.data import arguments, wordpiece
from fedjax_mm.data.federated import FederatedData
from fedjax_mm.data.vqa.tasks import Tasks
from fedjax_mm.streamed import is_streamed, of_array, picked


def examples(tasks: Tasks, client: str, split: str, words: int | None = None) -> dict[str, Any]:
    """Returns one client's split together with its pictures, leaves [E, ...].

    The arrays are `image` [E, H, W, 3] uint8, `size` [E, 2], `question` [E, L], `target` [E, K], and `answers` [E]
    int32, how many of the K answers are the client's own. For a model that writes answers, with `words`, there is
    `choices` [E, K, words] int32 too, the word pieces of the client's answers; 0 is padding.
    """
    arguments.check_limit(words=words)
    if client not in tasks.tasks:
        raise ValueError(f"client is {client!r}; the tasks are of {', '.join(tasks.tasks)}")
    task = tasks.tasks[client]
    if split not in task.splits:
        raise ValueError(f"split is {split!r}; a task has {', '.join(task.splits)}")
    arrays = task.splits[split]
    total, width = arrays["target"].shape
    given = {}
    if words is not None:
        known = np.zeros((width, words), np.int32)
        known[: len(task.answers)] = wordpiece.encode(tasks.tokenizer, task.answers, words)
        given["choices"] = np.repeat(known[None], total, 0)
    return given | {
        "image": picked(tasks.image, arrays["image_row"]),
        "size": tasks.size[arrays["image_row"]],
        "question": arrays["question"],
        "target": arrays["target"],
        "answers": np.full(total, len(task.answers), np.int32),
    }


def all_examples(tasks: Tasks, split: str, words: int | None = None) -> dict[str, Any]:
    """Returns all clients' examples of a split, one client after the other.

    The arrays are those of `examples`, and `client` [E] int32, the place of the client in `tasks.tasks`.
    """
    parts = [examples(tasks._replace(image=tasks.size), client, split, words) for client in tasks.tasks]
    owner = np.repeat(np.arange(len(parts), dtype=np.int32), [len(part["size"]) for part in parts])
    arrays = {key: np.concatenate([part[key] for part in parts]) for key in parts[0] if key != "image"}
    rows = np.concatenate([task.splits[split]["image_row"] for task in tasks.tasks.values()])
    return {"client": owner, "image": picked(tasks.image, rows)} | arrays


def federated(
    tasks: Tasks, split: str = "train", on_device: bool = True, words: int | None = None, stream: bool = False
) -> FederatedData:
    """Returns one client per task, in the order of `tasks.tasks`, in the cohort "all"; the arrays are as of `examples`.

    A picture is copied for each of its questions, because a step gathers all its arrays by one row number. stream: it
    lies in memory once, outside of the device, and a step reads it from there; so do pictures that are Streamed.
    """
    if stream and not is_streamed(tasks.image):
        tasks = tasks._replace(image=of_array(tasks.image))
    arrays = all_examples(tasks, split, words)
    owner = arrays.pop("client")
    return FederatedData.from_arrays(arrays, owner, on_device=on_device)
