"""Questions about pictures, where each client has a task of its own.

Readers (`imagefolder`, `official`, `annotations`, `scenes.tasks`) give a `Source` per client: from anyone's folders or
from the official annotation files. `load` makes the `Tasks` of one cohort of them, all of one shape, and `federated`
makes a `FederatedData` in which each client owns its task.
"""

from fedjax_mm.data.vqa import annotations
from fedjax_mm.data.vqa.annotations import Question
from fedjax_mm.data.vqa.answers import normalise, soft_scores
from fedjax_mm.data.vqa.as_arrays import all_examples, examples, federated
from fedjax_mm.data.vqa.benchmarks import official
from fedjax_mm.data.vqa.folders import imagefolder
from fedjax_mm.data.vqa.tasks import Source, Task, Tasks, load

__all__ = [
    "Question",
    "Source",
    "Task",
    "Tasks",
    "all_examples",
    "annotations",
    "examples",
    "federated",
    "imagefolder",
    "load",
    "normalise",
    "official",
    "soft_scores",
]
