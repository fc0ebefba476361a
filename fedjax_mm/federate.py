"""The round: begin, download, update, upload, aggregate. The one verb is `federate(server, cohorts, evaluate)`."""

import inspect
import zlib
from collections.abc import Callable, Mapping
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from fedjax_mm import transforms, trees
from fedjax_mm.clients import One, map_reduce
from fedjax_mm.split import fitted, map_split
from fedjax_mm.split_rows import entered
from fedjax_mm.types import (
    Arrays,
    ClientData,
    Cohort,
    CohortRound,
    Download,
    Each,
    FedState,
    Key,
    Mean,
    Metrics,
    OverClients,
    Population,
    PyTree,
    RoundData,
    Server,
    Upload,
)


def no_scores(state: FedState, arrays: Arrays) -> dict[str, float]:
    """The scores of a method that names none."""
    return {}


def accept_any(population: Population) -> None:
    """The check of a method that any population fits."""


class Evaluation(NamedTuple):
    """A `Method.evaluate` whose arrays must pass `check`: a run asks it once, before the first round."""

    check: Callable[[Arrays], None]
    scores: Callable[[FedState, Arrays], Mapping[str, float]]

    def __call__(self, state: FedState, arrays: Arrays) -> Mapping[str, float]:
        self.check(arrays)
        return self.scores(state, arrays)


class Method(NamedTuple):
    """A federated method, as plain data: `method._replace(upload=..., over=...)` means what it says.

    `init` and `round` are pure functions of the fields: they can be jitted, scanned over rounds and vmapped over seeds.
    """

    server: Server
    cohorts: Mapping[str, Cohort]
    upload: transforms.AnyTransform = optax.identity()
    """What an upload passes between a client's update and its aggregation (see `federate` and `uploads`)."""
    over: OverClients = OverClients()
    """How a round maps over its clients. It never changes a result."""
    evaluate: Callable[[FedState, Arrays], Mapping[str, float]] = no_scores
    """`evaluate(state, arrays)` gives the scores that `run.train(test=arrays)` logs."""
    check: Callable[[Population], None] = accept_any
    """`check(population)` raises ValueError where a population does not fit what the method was built for."""
    public_by_rows: bool = False
    """Whether the public examples are read by `local.take` alone, so that `run.train(split_public=True)` may give each
    device a part of them. A client then reads them equally often wherever it runs (see split_rows)."""

    def init(self, key: Key) -> FedState:
        """The states of the server and of all clients before the first round."""
        server = init_server(self, key)
        return FedState(server, init_all_clients(self, key, server), jnp.int32(0))

    def round(self, state: FedState, data: RoundData, key: Key) -> tuple[FedState, Mapping[str, Metrics]]:
        """The states after one more round, and the round's metrics: of each cohort, and of the "server"."""
        if set(data.cohorts) != set(self.cohorts):
            found = f"the round's data has cohorts {sorted(data.cohorts)}"
            raise ValueError(f"{found}; the method has {sorted(self.cohorts)}")
        key = jax.random.fold_in(jax.random.fold_in(key, 1), state.round)
        at_server, before = state.server, {}
        if self.server.begin:
            at_server, before = self.server.begin(at_server, data.public, jax.random.fold_in(key, 1))
        downloads = self.server.download(at_server, data.public)
        uploads, clients, metrics = {}, {}, {}
        for name in self.cohorts:
            uploads[name], clients[name], metrics[name] = cohort_pass(
                self, name, downloads[name], state.clients[name], data, key
            )
        new, on_server = self.server.update(at_server, uploads, data.public, jax.random.fold_in(key, 0))
        return FedState(new, clients, state.round + 1), {**metrics, "server": {**before, **on_server}}


def federate(
    server: Server,
    cohorts: Mapping[str, Cohort],
    evaluate: Callable[[FedState, Arrays], Mapping[str, float]] = no_scores,
    *,
    upload: transforms.AnyTransform | None = None,
    over: OverClients | None = None,
    public_by_rows: bool = False,
    check: Callable[[Population], None] = accept_any,
) -> Method:
    """Ties a server and its cohorts into a Method.

    upload: an uploads.Transform of {slot: value} (clip, quantise, noise, ...), which a client encodes and the server
        decodes before it sums; or one of optax, which starts afresh in each round and gets what the server sent as
        `params` and a random key as `key` (see `on_change`). One with a state is put on by `uploads.attach`.
    public_by_rows: see Method.
    check: raises ValueError for a population that does not fit; a run asks it before its first round.

    Raises ValueError where there is no cohort. Each client sends its weight in this example; the server keeps the mean:

    >>> from fedjax_mm.data import FederatedData
    >>> def update(download, state, data, key):
    ...     return {"w": Mean(data.weight, data.weight)}, state, {}
    >>> update_server = lambda w, uploads, public, key: (uploads["all"]["w"].value, {})
    >>> server = Server(lambda key: jnp.float32(0), lambda w, public: {"all": Download(w)}, update_server)
    >>> method = federate(server, {"all": Cohort(2, lambda key: (), update)})
    >>> data = FederatedData.from_arrays({"x": jnp.zeros(4)}, [[0], [1, 2, 3]])  # two clients, with 1 and 3 examples
    >>> both = data.round({"all": jnp.array([0, 1])})
    >>> state, metrics = jax.jit(method.round)(method.init(jax.random.key(0)), both, jax.random.key(1))
    >>> float(state.server), float(metrics["all"]["clients"])  # (1 * 1 + 3 * 3) / 4, of two clients
    (2.5, 2.0)
    """
    if not cohorts:
        raise ValueError("a method needs at least one cohort")
    over = over or OverClients()
    return Method(server, dict(cohorts), upload or optax.identity(), over, evaluate, check, public_by_rows)


def init_server(method: Method, key: Key) -> PyTree:
    """The server's state as `method.init(key)` draws it."""
    return method.server.init(jax.random.fold_in(_init_key(key), 0))


def init_clients(cohort: Cohort, name: str, key: Key, numbers: jax.Array, server: PyTree) -> PyTree:
    """The first states [n, ...] of clients `numbers` [n] as `Method.init(key)` draws them; `server` is the server's."""
    keys = jax.vmap(lambda number: _client_key(_init_key(key), name, number))(numbers)
    return jax.vmap(client_init(cohort), (0, None))(keys, server)


def init_all_clients(method: Method, key: Key, server: PyTree) -> dict[str, PyTree]:
    """{cohort: the first states [N, ...] of all its clients}, drawn as by `init_clients`."""
    return {name: init_clients(c, name, key, jnp.arange(c.size), server) for name, c in method.cohorts.items()}


def client_init(cohort: Cohort) -> Callable[[Key, PyTree], PyTree]:
    """`cohort.init` as a function of (key, server state), also where it takes the key alone.

    Parameters that have a default do not count: `lambda key, name=name: ...` takes the key alone.
    """
    parameters = inspect.signature(cohort.init).parameters.values()
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    required = [p for p in parameters if p.kind in positional and p.default is p.empty]
    if len(required) > 1 or any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return cast(Callable[[Key, PyTree], PyTree], cohort.init)
    of_key = cast(Callable[[Key], PyTree], cohort.init)
    return lambda key, server: of_key(key)


def cohort_pass(
    method: Method, name: str, download: Download, states: PyTree, data: RoundData, key: Key
) -> tuple[Upload, PyTree, Metrics]:
    """Runs the participants of one cohort: (uploads reduced over clients, the states with theirs updated, metrics).

    A participant whose upload, as it is summed, or new state is not finite, or has a negative weight, is left out: its
    state stays, its upload has weight 0, and the metric `left_out` counts it. `clients` counts the others; all further
    metrics are means over them, or over those that give a metric as a Mean of weight above 0; else NaN.
    """
    cohort, public = method.cohorts[name], data.public
    chunk, taken = fitted(method.over, name, data.cohorts[name], cohort.size)
    split = taken.split

    def one(shared, client):
        (download, states, public, key), arrays = shared
        index, place, weight, rows, count, work, old = client
        place = index if place is None else place
        key = _client_key(jax.random.wrap_key_data(key, impl=impl), name, index)
        if split is None:
            old = jax.tree.map(lambda x: x.at[place].get(mode="clip"), states)
        public = public if split is None else entered(public)
        seen = ClientData(arrays, rows, count, weight, public, taken.uniform, index, work)
        update = cohort.update(download, old, seen, jax.random.fold_in(key, 0))
        sent, new, metrics = jax.tree.map(jnp.asarray, update)  # a weight may be a plain 1.0
        sent = transforms.encode(method.upload, sent, download.sent, jax.random.fold_in(key, 1))
        sent = transforms.decode(method.upload, sent, download.sent)
        present = (index < cohort.size) & (weight > 0)
        weights = {slot: one.weight for slot, one in sent.items()}
        summed = [one for one in sent.values() if isinstance(one, Mean)]
        apart = [one.value for one in sent.values() if not isinstance(one, Mean)]
        counts = present & trees.all_finite((apart, weights, new), summed)
        for slot_weight in weights.values():
            counts &= slot_weight >= 0
        w = jnp.where(counts, weight, 0.0)
        means, each = {}, {}
        for slot, (value, slot_weight) in sent.items():
            slot_weight = jnp.where(counts, slot_weight, 0.0)
            value = jax.tree.map(lambda x: jnp.where(counts, x, 0), value)
            if isinstance(sent[slot], Mean):
                means[slot] = Mean(_scaled(value, slot_weight), slot_weight)
            else:
                each[slot] = Each(value, slot_weight)
        metrics = {metric: _weighted(value, w, counts) for metric, value in metrics.items()}
        tally = {"clients": counts, "left_out": present & ~counts}
        total = (means, metrics, jax.tree.map(lambda x: x.astype(jnp.float32), tally))
        return total, (each, place, trees.where(counts, new, old))

    impl = jax.random.key_impl(key)
    shared = (download, states if split is None else (), public, jax.random.key_data(key))
    (means, metrics, tally), each, states = _mapped(one, shared, states, taken, chunk, method.over.mesh)
    uploads = {**{slot: _as_mean(total) for slot, total in means.items()}, **each}
    # A metric that no client who counts has a number for has none; where no client counts at all, `clients` says so.
    known = {metric: (total.weight > 0) | (tally["clients"] == 0) for metric, total in metrics.items()}
    metrics = {metric: jnp.where(known[metric], _as_mean(total).value, jnp.nan) for metric, total in metrics.items()}
    return uploads, states, {**metrics, **tally}


def _mapped(
    one: One, shared: PyTree, states: PyTree, taken: CohortRound, chunk: int, mesh: Mesh | None
) -> tuple[PyTree, PyTree, PyTree]:
    """(the sum of totals, the other uploads, the states with the participants' new ones) of `one` over a cohort."""
    if mesh is not None and taken.split is not None:
        return map_split(one, shared, states, taken, chunk, mesh)
    clients = (taken.index, taken.place, taken.weight, taken.rows, taken.count, taken.work, None)
    total, (each, place, new) = map_reduce(one, (shared, taken.arrays), clients, chunk=chunk, mesh=mesh)
    return total, each, jax.tree.map(lambda everyone, some: everyone.at[place].set(some, mode="drop"), states, new)


def _init_key(key: Key) -> Key:
    return jax.random.fold_in(key, 0)  # a round folds in 1


def _client_key(key: Key, cohort: str, index: jax.Array) -> Key:
    """The client's own key, by cohort and number: neither the other cohorts nor the other participants change it."""
    return jax.random.fold_in(jax.random.fold_in(key, zlib.crc32(cohort.encode())), index)


def _scaled(tree: PyTree, weight: jax.Array) -> PyTree:
    """weight x tree in at least float32, so that a sum over clients of half-precision uploads keeps its digits."""
    return jax.tree.map(lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32)) * weight, tree)


def _weighted(metric: jax.Array | Mean, weight: jax.Array, counts: jax.Array) -> Mean:
    """A client's metric times its own weight, where it has one, or else times the client's, with this weight."""
    value, own = metric if isinstance(metric, Mean) else (metric, weight)
    own = jnp.where(counts, own, 0.0)
    return Mean(_scaled(jnp.where(own > 0, value, 0.0), own), own)


def _as_mean(total: Mean) -> Mean:
    scale = jnp.where(total.weight > 0, 1 / jnp.where(total.weight > 0, total.weight, 1.0), 0.0)
    return Mean(jax.tree.map(lambda x: x * scale, total.value), total.weight)
