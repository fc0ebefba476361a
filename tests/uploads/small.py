"""A method of one slot for tests of uploads: each client adds the mean of its examples to what it got."""

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_mm.data import FederatedData
from fedjax_mm.federate import federate
from fedjax_mm.types import Cohort, Download, Mean, Server

KEY = jax.random.key(7)
PARAMS = 40
OWNED = [[0, 1, 2], [3, 4, 5, 6], [7, 8], [9]]
X = np.random.default_rng(1).normal(size=(10, PARAMS)).astype(np.float32)
DATA = FederatedData.from_arrays({"x": X}, OWNED)


def update(download, state, data, key):
    """Sends w + the mean of the client's own rows, as a matrix [8, 5], and keeps how often it took part."""
    own = (jnp.arange(data.rows.shape[0]) < data.count).astype(jnp.float32)
    rows = jnp.where(own[:, None] > 0, data.arrays["x"].at[data.rows].get(mode="clip"), 0)
    change = (own @ rows / jnp.maximum(own.sum(), 1)).reshape(8, 5)
    state = {"times": state["times"] + 1, "drawn": jax.random.normal(key)}
    return {"w": Mean(download.sent["w"] + change, data.weight)}, state, {"size": jnp.abs(change).mean()}


def server_update(state, uploads, public, key):
    mean = uploads["all"]["w"]
    return {"w": jnp.where(mean.weight > 0, mean.value, state["w"])}, {}


def toy():
    """The method; `evaluate` reads the clients' own states."""
    server = Server(
        lambda key: {"w": jax.random.normal(key, (8, 5))}, lambda state, public: {"all": Download(state)}, server_update
    )
    cohort = Cohort(4, lambda key: {"times": jnp.int32(0), "drawn": jnp.float32(0)}, update)
    return federate(
        server, {"all": cohort}, lambda state, arrays: {"times": float(state.clients["all"]["times"].sum())}
    )
