"""Questions about pictures, a client a task: anyone's folders, the official annotation files, and what they become.

Readers (`imagefolder`, `annotations`, `scenes.tasks`) give a `Source` per client; `load` makes of all of them the
`Tasks` of one cohort, of one shape; `federated` puts these in their clients' hands.
"""

from fedjax_mm.data.vqa import annotations
from fedjax_mm.data.vqa.annotations import Question, imagefolder
from fedjax_mm.data.vqa.answers import normalise, soft_scores
from fedjax_mm.data.vqa.tasks import Source, Task, Tasks, all_examples, examples, federated, load

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
    "soft_scores",
]
