"""Bad clients, to try an aggregation with: labels flipped in their data, and uploads turned round or blown up.

Label flip: Tolpegin et al., ESORICS 2020; Fang et al., USENIX Security 2020. Sign flip: Karimireddy et al., ICML 2021.
Scaled updates: Bagdasaryan et al., AISTATS 2020 (model replacement).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_mm.checks import check_array, check_mapping, check_number, check_whole, say
from fedjax_mm.data import FederatedData
from fedjax_mm.federate import Method
from fedjax_mm.streamed import is_streamed, picked
from fedjax_mm.transforms import change_of, changed
from fedjax_mm.types import Cohort, Upload
from fedjax_mm.uploads.slots import changing

Bad = Mapping[str, Sequence[int] | np.ndarray]  # cohort -> the numbers of its bad clients


def flip_labels(data: FederatedData, clients: Bad, num_classes: int) -> FederatedData:
    """The data in which bad clients train on the label num_classes - 1 - y in place of y.

    Their rows are copied, so that what other clients and the test rows see stays. Raises ValueError for a cohort
    without `label`, and for numbers that are no clients'.

    >>> data = FederatedData.from_arrays({"x": np.arange(4.0), "label": np.array([0, 1, 2, 2])}, [[0, 1], [2, 3]])
    >>> bad = flip_labels(data, {"all": [1]}, num_classes=3)
    >>> [bad.cohorts["all"].arrays["label"][bad.client("all", j).rows].tolist() for j in (0, 1)]
    [[0, 1], [0, 0]]
    """
    if not isinstance(data, FederatedData):
        raise ValueError(f"data is {say(data)}; give a FederatedData")
    num_classes = check_whole("num_classes", num_classes, least=1)
    cohorts = dict(data.cohorts)
    for name, numbers in _checked(clients, data.sizes).items():
        cohort = cohorts[name]
        if "label" not in cohort.arrays:
            raise ValueError(f"cohort {name} has no array 'label' to flip; leave it out of clients")
        owner = np.repeat(np.arange(len(cohort.counts)), cohort.counts)
        places = np.flatnonzero(np.isin(owner, numbers))
        copied, total = cohort.rows[places], len(next(iter(cohort.arrays.values())))
        longer: dict[str, Any] = {key: picked(x, np.r_[:total, copied]) for key, x in cohort.arrays.items()}
        longer["label"][total:] = num_classes - 1 - longer["label"][total:]
        if data.on_device:
            longer = {key: x if is_streamed(x) else jnp.asarray(x) for key, x in longer.items()}
        rows = cohort.rows.copy()
        rows[places] = total + np.arange(len(places))
        cohorts[name] = dataclasses.replace(cohort, arrays=longer, rows=rows)
    return dataclasses.replace(data, cohorts=cohorts)


def scale_updates(method: Method, clients: Bad, factor: float) -> Method:
    """The method whose bad clients send `factor` times their change (see `on_change`), or their value where the server
    had sent nothing under the slot's name: above 1 a scaled update, below 0 a sign flip.

    It comes before a transform of the uploads and before `robust`: the bad clients do what the server asks of all.
    Raises ValueError for numbers that are no clients'.
    """
    if not isinstance(method, Method):
        raise ValueError(f"method is {say(method)}; give a Method, as `build` makes it")
    factor = check_number("factor", factor)
    sizes = {name: cohort.size for name, cohort in method.cohorts.items()}
    numbers = _checked(clients, sizes)
    cohorts = {
        name: _scaled(cohort, numbers[name], factor) for name, cohort in method.cohorts.items() if name in numbers
    }
    return method._replace(cohorts={**method.cohorts, **cohorts})


def flip_signs(method: Method, clients: Bad) -> Method:
    """The method whose bad clients send the opposite of their change: scale_updates(method, clients, -1.0)."""
    return scale_updates(method, clients, -1.0)


def _scaled(cohort: Cohort, numbers: np.ndarray, factor: float) -> Cohort:
    def change(sent: Upload, received: Any, data: Any, key: Any) -> Upload:
        if data.number is None:
            raise ValueError("data.number is None, so that nobody knows who is bad; give the client's number")
        values = {slot: one.value for slot, one in sent.items()}
        bad = changed(optax.tree.scale(factor, change_of(values, received)), received)
        is_bad = jnp.isin(data.number, jnp.asarray(numbers))
        pick = lambda x, y: jnp.where(is_bad, y.astype(x.dtype), x)
        return {slot: one._replace(value=jax.tree.map(pick, one.value, bad[slot])) for slot, one in sent.items()}

    return changing(cohort, change)


def _checked(clients: Any, sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
    checked = {}
    for name, numbers in check_mapping("clients", clients, "cohort to the numbers of its bad clients").items():
        if name not in sizes:
            raise ValueError(f"clients names the cohort {name!r}; there are {sorted(sizes)}")
        array = check_array(f"clients of {name}", numbers, (np.integer,), "[n]").astype(np.int32)
        if len(array) and not 0 <= array.min() <= array.max() < sizes[name]:
            raise ValueError(f"clients of {name} are {array.tolist()}; give numbers from 0 to {sizes[name] - 1}")
        checked[name] = array
    return checked
