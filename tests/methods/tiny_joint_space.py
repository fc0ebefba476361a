"""A problem of pairs small enough to write out: pictures of three numbers, texts of two, encoders that are matrices."""

import jax
import numpy as np

from fedjax_mm.data.federated import FederatedData
from fedjax_mm.models import Model
from fedjax_mm.types import Each

PUBLIC, CLASSES = 12, 3
LINEAR = Model(
    lambda key, x: {"w": jax.random.normal(key, (x.shape[-1], 4))},
    lambda params, x: x @ params["w"],
)
SERVER = {"image": LINEAR, "text": LINEAR}
CLIENTS = {"image": {"image": LINEAR}, "text": {"text": LINEAR}, "both": SERVER}
NUM_CLASSES = {"image": CLASSES, "text": CLASSES}
COUNTS = {"image": (5, 3, 0), "text": (4, 6), "both": (7, 2)}  # examples of each client
KEY = jax.random.key(1)


def pairs(count, seed=0):
    """Pictures and texts with one hidden cause, and its class."""
    rng = np.random.default_rng(seed)
    cause = rng.normal(size=(count, 2))
    noisy = lambda x: (x + 0.3 * rng.normal(size=x.shape)).astype(np.float32)
    image = noisy(cause @ np.array([[1.0, -0.5, 0.3], [0.2, 1.0, -1.0]]))
    return {"image": image, "text": noisy(cause), "label": (np.arctan2(*cause.T) // 2.1 % CLASSES).astype(np.int32)}


def problem(shift=0.0, same=False) -> FederatedData:
    """shift: of what clients own. same: every public pair is the first one."""
    holds = {"image": ("image", "label"), "text": ("text", "label"), "both": ("image", "text")}
    arrays, owned = {}, {}
    for seed, (name, counts) in enumerate(COUNTS.items()):
        own = pairs(sum(counts), seed + 1)
        arrays[name] = {k: own[k] if k == "label" else own[k] + np.float32(shift) for k in holds[name]}
        owned[name] = np.split(np.arange(sum(counts)), np.cumsum(counts)[:-1])
    public = {m: x[np.zeros(PUBLIC, int)] if same else x for m, x in pairs(PUBLIC).items() if m != "label"}
    return FederatedData.from_arrays(arrays, owned, public=public)


def everyone(data, **instead):
    """The data of a round; `instead` names who takes part from a cohort, the size of which is nobody's number."""
    return data.round({name: np.array(instead.get(name, np.arange(n))) for name, n in data.sizes.items()})


def sent(reps, weight):
    """What the server gets from clients with representations {m: [C, P, D]}, weights {m: [C]}; the first has both."""
    each = lambda m, part: Each(np.asarray(reps[m][part], np.float32), np.asarray(weight[m][part], np.float32))
    first, rest = slice(0, 1), slice(1, None)
    return {
        "image": {"image": each("image", rest)},
        "text": {"text": each("text", rest)},
        "both": {m: each(m, first) for m in ("image", "text")},
    }


def counted(calls) -> Model:
    """LINEAR; the list gets an entry whenever it runs."""

    def apply(params, x):
        jax.debug.callback(lambda: calls.append(1))
        return LINEAR.apply(params, x)

    return Model(LINEAR.init, apply)
