"""How well each client's own model does on the client's own test rows, and how that is spread over clients."""

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_mm.data import FederatedData
from fedjax_mm.federate import Method
from fedjax_mm.local import take
from fedjax_mm.streamed import is_streamed, streams
from fedjax_mm.types import Arrays, Download, FedState, PyTree

BLOCK = 64  # clients scored in one call

OwnScores = Mapping[str, Mapping[str, np.ndarray]]  # cohort -> metric -> [N], NaN for a client without test rows


def own_scores(method: Method, state: FedState, data: FederatedData) -> OwnScores:
    """Each client's score on its own test rows: {cohort: {metric: [N]}}, NaN for a client that has none.

    A score that is not finite is infinite, so that it is not taken for that of a client without test rows. A client's
    model is what it would be sent now, with the state that it keeps: a personal model is scored on the data of the
    client it belongs to. A cohort without `score`, or without test rows, is left out.
    """
    given = {name: cohort.score for name, cohort in method.cohorts.items() if cohort.score is not None}
    given = {name: score for name, score in given.items() if data.cohorts[name].test_rows is not None}
    if not given:
        return {}
    downloads = jax.jit(method.server.download)(state.server, _on_one_device(data.public))
    scored = {}
    for name, score in given.items():
        arrays, (rows, mask) = _on_one_device(data.cohorts[name].arrays), data.test_rows(name)
        blocks = []
        for first in range(0, len(rows), BLOCK):
            clients = jax.tree.map(lambda x, first=first: x[first : first + BLOCK], state.clients[name])
            some = rows[first : first + BLOCK]
            read = some if streams(arrays) else None
            own = {
                key: x if is_streamed(x) else jnp.asarray(np.asarray(x)[some] if not data.on_device else x[some])
                for key, x in arrays.items()
            }
            real = mask[first : first + BLOCK]
            blocks.append(jax.device_get(_score(score, downloads[name], clients, own, read, real)))
        scored[name] = {key: np.concatenate([block[key] for block in blocks]) for key in blocks[0]}
    return scored


def _on_one_device(arrays: PyTree) -> PyTree:
    """Arrays that every device has, as those of this process's own device, where the state is."""
    whole = lambda x: isinstance(x, jax.Array) and x.is_fully_replicated
    return jax.tree.map(lambda x: x.addressable_data(0) if whole(x) else x, arrays)


def summary(scores: OwnScores) -> dict[str, float]:
    """The mean over clients, "own/<cohort>/<metric>", and "..._p10", "..._worst" and "..._spread".

    p10 is the 10th percentile from the bad end, spread the standard deviation over clients. Where several cohorts have
    a metric, "own/all/<metric>" is over the clients of them all.
    """
    row = {}
    metrics = dict.fromkeys(key for of in scores.values() for key in of)
    for metric in metrics:
        of = {name: values[metric] for name, values in scores.items() if metric in values}
        if len(of) > 1:
            of["all"] = np.concatenate([*of.values()])
        at_the_top = less_is_better(metric)  # where the bad end is
        for name, values in of.items():
            known = values[~np.isnan(values)]
            if not np.isfinite(known).all():  # then no number says how clients do
                known = np.full(1, np.nan)
            row[f"own/{name}/{metric}"] = float(known.mean())
            row[f"own/{name}/{metric}_p10"] = float(np.percentile(known, 90 if at_the_top else 10))
            row[f"own/{name}/{metric}_worst"] = float(known.max() if at_the_top else known.min())
            row[f"own/{name}/{metric}_spread"] = float(known.std())
    return row


def less_is_better(metric: str) -> bool:
    """Whether a score is better where it is less, by its name (see `Cohort.score`).

    >>> less_is_better("own/all/loss"), less_is_better("accuracy")
    (True, False)
    """
    return metric.endswith(("loss", "error", "medr"))


@functools.partial(jax.jit, static_argnums=0)
def _score(
    score: Callable, download: Download, clients: PyTree, arrays: Arrays, rows: np.ndarray | None, mask: np.ndarray
) -> Mapping[str, jax.Array]:
    """Means over each client's real rows: {metric: [n]}; leaves of clients and arrays [n, ...], mask [n, T].

    rows [n, T]: of the arrays that are streamed, which have leaves [E, ...]; None where none is.
    """
    outside = {key: x for key, x in arrays.items() if is_streamed(x)}
    inside = {key: x for key, x in arrays.items() if key not in outside}

    def one(client):
        own, seen, some, real = client
        seen = seen if some is None else {**seen, **take(outside, some)}
        values = score(download, own, seen, real)
        return {key: _mean(x.astype(jnp.float32), real) for key, x in values.items()}

    return jax.lax.map(one, (clients, inside, rows, mask))


def _mean(values: jax.Array, mask: jax.Array) -> jax.Array:
    """The mean [] of the rows whose mask is 1: infinite where it is not finite, NaN where there is no such row."""
    mean = jnp.where(mask > 0, values, 0).sum() / jnp.maximum(mask.sum(), 1)
    return jnp.where(mask.sum() > 0, jnp.where(jnp.isfinite(mean), mean, jnp.inf), jnp.nan)
