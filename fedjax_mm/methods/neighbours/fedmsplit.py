"""FedMSplit: the server mixes a model for each client, block by block, of the blocks of clients that are like it.

Chen and Zhang, KDD 2022, doi 10.1145/3534678.3539384:

    W_k^m   client k's block m (the encoder of a modality, or the head), as it sent it last     U_k^m  what it gets
    s_kl^m  how like W_k^m is to W_l^m: the edge between k and l in the view m of the graph     tau  `temperature`
    n_l     the weight of client l, its number of examples

One round:
  1. The server sends client k its own U_k (`server_download`).
  2. Client k trains U_k as in FedAvg, with FedProx's term where `fedavg.prox` is above 0, and sends all its blocks
     (`client_update`).
  3. The server keeps them as W_k (`remember`), and finds  s_kl^m = exp(-|W_k^m - W_l^m|^2 / (tau (|W_k^m|^2 +
     |W_l^m|^2)))  for every client k and every l that sent in this round (`likeness`), and r_kl, the mean of s_kl^m
     over the blocks that both have.
  4. U_k^m <- sum_l n_l s_kl^m r_kl W_l^m / sum_l n_l s_kl^m r_kl  over those l that have the block (`mix`). Clients
     with other modalities are neighbours by the blocks that they share, one of which is the head. (fedmsplit_graph.py
     has the functions of steps 3 and 4.)

With a tau that is very large all are alike and this is FedAvg, and with one that is very small a client that takes part
keeps its own model. Client k predicts with U_k.

The paper's text was not at hand, of which its abstract has the graph of several views, in which blocks pass messages.
Choices: the likeness, that a message counts by its own view and by the mean of all views, that U_k is where a client
starts, and what the paper does not need where all clients take part: messages come from those who sent in this round,
and a client that was never heard is like all others.

What the engine lacks: a download with a row for each client. All clients of a cohort are given the cohort's U, from
which each takes its row, and `costs.of` counts them all: N + 1 times the bytes that a client needs, which are as many
as it sends. The server's state holds every client's W_k and U_k, and what clients send is kept until the round's end,
as the method asks.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from fedjax_mm import aggregate
from fedjax_mm.federate import Evaluation, Method
from fedjax_mm.methods import fedavg
from fedjax_mm.methods.fedavg import FedAvgConfig
from fedjax_mm.methods.fedavg.network import Encoders
from fedjax_mm.methods.neighbours.fedmsplit_graph import edges, mix, remember, rows_of
from fedjax_mm.methods.neighbours.fesem import alike
from fedjax_mm.methods.neighbours.ifca import pick, train_picked
from fedjax_mm.methods.neighbours.training import check_plain_server, check_whole_model
from fedjax_mm.methods.settings import check_settings
from fedjax_mm.models import Model, as_encoder, as_encoders
from fedjax_mm.types import (
    Arrays,
    ClientData,
    Cohort,
    Download,
    Each,
    FedState,
    HasPopulation,
    Key,
    Metrics,
    PyTree,
    Upload,
)


@dataclasses.dataclass(frozen=True)
class FedMSplitConfig:
    """Settings of one run."""

    temperature: float = 0.1
    """tau: the larger, the more the clients' models are alike."""
    fedavg: FedAvgConfig = FedAvgConfig()
    """How a client trains. The server mixes, so its optimiser stays as it is."""


def build(config: FedMSplitConfig, data: HasPopulation, encoders: Encoders, head: Model) -> Method:
    """The method for the cohorts of `data`. Arguments and errors are those of `fedavg.build`.

    `evaluate` gives the mean over the clients that hold exactly the tested modalities, each with its own U_k; a
    client's own test rows are scored with it too. Raises ValueError too where `config.fedavg` has parts that are
    `shared`, or a server optimiser other than the default.
    """
    check_settings(config, FedMSplitConfig)
    encoders, head = as_encoders("encoders", encoders), as_encoder(head, name="head")
    base = fedavg.build(config.fedavg, data, encoders, head)
    check_whole_model("FedMSplit", config.fedavg)
    check_plain_server("FedMSplit", config.fedavg)
    server = base.server._replace(
        init=functools.partial(init_server, base),
        download=server_download,
        update=functools.partial(server_update, config.temperature),
    )
    update = functools.partial(client_update, config.fedavg, encoders, head)
    score = functools.partial(client_score, encoders, head)
    cohorts = {
        name: Cohort(one.size, functools.partial(init_client, one.size), update, score)
        for name, one in base.cohorts.items()
    }
    assert isinstance(base.evaluate, Evaluation)
    evaluate = Evaluation(base.evaluate.check, functools.partial(scores, base.evaluate.scores))
    return base._replace(server=server, cohorts=cohorts, evaluate=evaluate)


def init_server(base: Method, key: Key) -> dict[str, dict[str, PyTree]]:
    """The server's first state: {cohort: {"sent": W, "mixed": U, "heard": [N + 1] bool}} with leaves [N + 1, ...].

    All begin with the first model of FedAvg's method `base`. The last row is that of a client of which nothing is
    known, not even its number.
    """
    first = base.server.download(base.server.init(key), None)
    rows = {name: one.size + 1 for name, one in base.cohorts.items()}
    models = {name: alike(rows[name], dict(first[name].sent)) for name in rows}
    return {name: {"sent": models[name], "mixed": models[name], "heard": jnp.zeros(rows[name], bool)} for name in rows}


def init_client(size: int, key: Key) -> dict[str, jax.Array]:
    """A client's state before its first round: {"number": [] int32}, N, which is the row of unknown clients.

    >>> int(init_client(5, jax.random.key(0))["number"])
    5
    """
    return {"number": jnp.int32(size)}


def server_download(state: Mapping[str, Mapping[str, PyTree]], public: Arrays | None = None) -> dict[str, Download]:
    """Step 1: the U of each cohort's clients, of which a client takes its own row. public: not used.

    >>> state = {"phones": {"sent": {"head": 1}, "mixed": {"head": 2}, "heard": 3}}
    >>> server_download(state)["phones"].sent
    {'head': 2}
    """
    return {name: Download(dict(one["mixed"])) for name, one in state.items()}


def client_update(
    config: FedAvgConfig,
    encoders: Encoders,
    head: Model,
    download: Download,
    state: Mapping[str, jax.Array],
    data: ClientData,
    key: Key,
) -> tuple[Upload, dict[str, jax.Array], Metrics]:
    """Step 2: what one client sends, {"number": its number, which it keeps}, and the metrics of FedAvg.

    The upload has an Each of {"params": the trained block, "model": its row []} for each block. data has the `number`.

    >>> from fedjax_mm.local import whole
    >>> identity = Model(lambda key, x: {}, lambda params, x: x)
    >>> add = Model(lambda key, x: jnp.zeros(2), lambda bias, x: x + bias[None])
    >>> data = whole({"x": jnp.zeros((1, 2)), "label": jnp.array([1])})
    >>> data = dataclasses.replace(data, number=jnp.int32(1))
    >>> download = Download({"x": {}, "head": jnp.array([[9.0, 0.0], [0.0, 0.0], [5.0, 5.0]])})
    >>> config, own = FedAvgConfig(client_lr=1.0), init_client(2, jax.random.key(0))
    >>> upload, own, _ = client_update(config, {"x": identity}, add, download, own, data, jax.random.key(0))
    >>> upload["head"].value["params"].tolist(), int(own["number"])
    ([-0.5, 0.5], 1)
    """
    if data.number is None:
        raise ValueError("FedMSplit's clients take their own row of what is sent; give the client's data its `number`")
    number = data.number.astype(jnp.int32)
    upload, metrics = train_picked(config, encoders, head, download.sent, number, data, key)
    return upload, {"number": number}, metrics


def server_update(
    temperature: float,
    state: Mapping[str, Mapping[str, PyTree]],
    uploads: Mapping[str, Mapping[str, Each]],
    public: Arrays | None,
    key: Key,
) -> tuple[dict[str, dict[str, PyTree]], Metrics]:
    """Steps 3 and 4: the server's new state, and no metrics. public, key: not used.

    >>> sent = {"params": jnp.array([[1.0, 0.0], [0.0, 1.0]]), "model": jnp.array([0, 1])}
    >>> old = {"sent": {"head": jnp.zeros((3, 2))}, "mixed": {"head": jnp.zeros((3, 2))}, "heard": jnp.zeros(3, bool)}
    >>> uploads = {"all": {"head": Each(sent, jnp.array([1.0, 3.0]))}}
    >>> new, _ = server_update(0.25, {"all": old}, uploads, None, jax.random.key(0))
    >>> new["all"]["mixed"]["head"].round(2).tolist()  # an unlike block counts e^-4 twice, by its view and by all views
    [[1.0, 0.0], [0.0, 1.0], [0.25, 0.75]]
    """
    new = {}
    for name, own in state.items():
        kept = {part: remember(old, uploads[name][part]) for part, old in own["sent"].items()}
        rows = rows_of(uploads[name]["head"], len(own["heard"]))
        heard = own["heard"].at[rows].set(True, mode="drop")
        weights = {other: edges(temperature, kept, heard, sent) for other, sent in uploads.items()}
        mixed = {}
        for part, old in own["mixed"].items():
            of_part = jnp.concatenate([weights[other][part] for other in uploads if part in uploads[other]], axis=1)
            sent = aggregate.collect(uploads, part).value["params"]
            mixed[part] = mix(old, of_part, sent)
        new[name] = {"sent": kept, "mixed": mixed, "heard": heard}
    return new, {}


def client_score(
    encoders: Encoders, head: Model, download: Download, state: Mapping, arrays: Arrays, mask: jax.Array
) -> dict[str, jax.Array]:
    """FedAvg's score of a client's own test rows, {"accuracy": [B]}, with its own U_k."""
    own = Download(pick(download.sent, state["number"]))
    return fedavg.client_score(encoders, head, own, {}, arrays, mask)


def scores(
    score_all: Callable[[FedState, Arrays], Mapping[str, float]], state: FedState, arrays: Arrays
) -> Mapping[str, float]:
    """FedAvg's scores on test arrays, of every client's U_k as a personal model (see `fedavg.scores`).

    score_all: FedAvg's.
    """
    own = {name: jax.tree.map(lambda x: x[:-1], one["mixed"]) for name, one in state.server.items()}
    return score_all(FedState({"params": {}}, own, state.round), arrays)
