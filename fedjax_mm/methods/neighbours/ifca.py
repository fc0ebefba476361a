"""IFCA: several models, each trained by the clients whose examples it fits best.

Ghosh, Chung, Yin, Ramchandran, NeurIPS 2020, arXiv 2006.04088, algorithm 1 with model averaging:

    theta_j  the server's models, j = 1..J     J  `models`     F_k  client k's mean loss over its own examples

One round:
  1. The server sends all J models (`server_download`).
  2. Client k picks j_k = argmin_j F_k(theta_j)  (`losses_of_models`), trains theta_{j_k} as in FedAvg, sends the result
     with j_k, and keeps j_k (`client_update`).
  3. theta_j <- the mean over those who picked j, weighted as in FedAvg; one that nobody picked stays (`server_update`).

The models start apart, from draws of their own. Client k predicts with the model that it picked last, the first one
before its first round. A client gets J times the bytes of FedAvg and sends as many. The engine has no sum of uploads by
group, so that what clients send is kept until the round's end, C models and not one sum.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from fedjax_mm import aggregate
from fedjax_mm.federate import Evaluation, Method
from fedjax_mm.local import Batch, local_steps
from fedjax_mm.methods import fedavg
from fedjax_mm.methods.fedavg import FedAvgConfig, local_loss
from fedjax_mm.methods.fedavg.network import Encoders, Parts
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
class IFCAConfig:
    """Settings of one run."""

    models: int = 2
    """J, how many models the server has. With 1 this is FedAvg."""
    fedavg: FedAvgConfig = FedAvgConfig()
    """How a client trains the model that it picked. The server takes means, so its optimiser stays as it is."""


def build(config: IFCAConfig, data: HasPopulation, encoders: Encoders, head: Model) -> Method:
    """The method for the cohorts of `data`. Arguments and errors are those of `fedavg.build`.

    `evaluate` gives the mean over the clients that hold exactly the tested modalities, each with the model that it
    picked last; a client's own test rows are scored with it too. Raises ValueError too where `config.fedavg` has parts
    that are `shared`, or a server optimiser other than the default.
    """
    check_settings(config, IFCAConfig)
    encoders, head = as_encoders("encoders", encoders), as_encoder(head, name="head")
    base = fedavg.build(config.fedavg, data, encoders, head)
    check_whole_model("IFCA", config.fedavg)
    check_plain_server("IFCA", config.fedavg)
    server = base.server._replace(init=functools.partial(init_server, config, base.server.init), update=server_update)
    update = functools.partial(client_update, config, encoders, head)
    score = functools.partial(client_score, encoders, head)
    cohorts = {name: Cohort(cohort.size, init_client, update, score) for name, cohort in base.cohorts.items()}
    assert isinstance(base.evaluate, Evaluation)
    evaluate = Evaluation(base.evaluate.check, functools.partial(scores, base.server.download, base.evaluate.scores))
    return base._replace(server=server, cohorts=cohorts, evaluate=evaluate)


def init_server(config: IFCAConfig, init: Callable[[Key], Mapping[str, Parts]], key: Key) -> dict[str, Parts]:
    """The server's first state, {"params": the J models, leaves [J, ...]}, each drawn by FedAvg's `init`.

    >>> init = lambda key: {"params": {"head": jax.random.normal(key, (4,))}}
    >>> init_server(IFCAConfig(models=3), init, jax.random.key(0))["params"]["head"].shape
    (3, 4)
    """
    drawn = [init(one)["params"] for one in jax.random.split(key, config.models)]
    return {"params": jax.tree.map(lambda *leaves: jnp.stack(leaves), *drawn)}


def init_client(key: Key) -> dict[str, jax.Array]:
    """A client's state before its first round: {"model": [] int32}, the number of its model, 0.

    >>> int(init_client(jax.random.key(0))["model"])
    0
    """
    return {"model": jnp.int32(0)}


def pick(models: PyTree, number: jax.Array) -> PyTree:
    """The model of this number, or those of the numbers [N]. models: leaves [J, ...].

    >>> pick({"head": jnp.array([3.0, 5.0])}, jnp.array([1, 1, 0]))["head"].tolist()
    [5.0, 5.0, 3.0]
    """
    return jax.tree.map(lambda x: x[number], models)


def losses_of_models(
    config: IFCAConfig, encoders: Encoders, head: Model, models: Parts, data: ClientData, key: Key
) -> jax.Array:
    """[J]: F_k(theta_j), the mean loss of each model over a client's own examples. models: leaves [J, ...].

    >>> from fedjax_mm.local import whole
    >>> identity = Model(lambda key, x: {}, lambda params, x: x)
    >>> add = Model(lambda key, x: jnp.zeros(2), lambda bias, x: x + bias[None])
    >>> data = whole({"x": jnp.zeros((3, 2)), "label": jnp.array([0, 0, 1])})
    >>> models = {"x": {}, "head": jnp.array([[0.0, 0.0], [0.0, 9.0]])}
    >>> losses_of_models(IFCAConfig(), {"x": identity}, add, models, data, jax.random.key(0)).round(2).tolist()
    [0.6..., 6.0]
    """

    def step(total: jax.Array, batch: Batch, key: Key) -> tuple[jax.Array, Metrics]:
        loss = lambda params: local_loss(FedAvgConfig(), encoders, head, params, {}, batch)[0].astype(jnp.float32)
        return total + batch["mask"].sum() * jax.lax.map(loss, models), {}

    zeros = jnp.zeros(config.models)
    total, _ = local_steps(step, zeros, data, key, batch_size=config.fedavg.batch_size, shuffle=False)
    return total / jnp.maximum(data.count, 1)


def client_update(
    config: IFCAConfig,
    encoders: Encoders,
    head: Model,
    download: Download,
    state: Mapping[str, jax.Array],
    data: ClientData,
    key: Key,
) -> tuple[Upload, dict[str, jax.Array], Metrics]:
    """Step 2: what one client sends, {"model": j_k}, and the metrics of FedAvg.

    The upload has an Each of {"params": the trained part, "model": j_k} for each part.

    >>> from fedjax_mm.local import whole
    >>> identity = Model(lambda key, x: {}, lambda params, x: x)
    >>> add = Model(lambda key, x: jnp.zeros(2), lambda bias, x: x + bias[None])
    >>> data, key = whole({"x": jnp.zeros((1, 2)), "label": jnp.array([1])}), jax.random.key(0)
    >>> download = Download({"x": {}, "head": jnp.array([[9.0, 0.0], [0.0, 0.0]])})
    >>> config = IFCAConfig(fedavg=FedAvgConfig(client_lr=1.0))
    >>> upload, state, _ = client_update(config, {"x": identity}, add, download, init_client(key), data, key)
    >>> upload["head"].value["params"].tolist(), int(state["model"])
    ([-0.5, 0.5], 1)
    """
    number = jnp.argmin(losses_of_models(config, encoders, head, download.sent, data, key)).astype(jnp.int32)
    upload, metrics = train_picked(config.fedavg, encoders, head, download.sent, number, data, key)
    return upload, {"model": number}, metrics


def train_picked(
    config: FedAvgConfig,
    encoders: Encoders,
    head: Model,
    models: Parts,
    number: jax.Array,
    data: ClientData,
    key: Key,
) -> tuple[Upload, Metrics]:
    """A client's training, as in FedAvg, of the model of this number: (an Each of {"params", "model"} for each part,
    the metrics of FedAvg). models: leaves [J, ...].

    >>> from fedjax_mm.local import whole
    >>> identity = Model(lambda key, x: {}, lambda params, x: x)
    >>> add = Model(lambda key, x: jnp.zeros(2), lambda bias, x: x + bias[None])
    >>> data, models = whole({"x": jnp.zeros((1, 2)), "label": jnp.array([1])}), {"x": {}, "head": jnp.zeros((3, 2))}
    >>> config, key = FedAvgConfig(client_lr=1.0), jax.random.key(0)
    >>> upload, _ = train_picked(config, {"x": identity}, add, models, jnp.int32(2), data, key)
    >>> upload["head"].value["params"].tolist(), int(upload["head"].value["model"])
    ([-0.5, 0.5], 2)
    """
    picked = Download(pick(models, number))
    trained, _, metrics = fedavg.client_update(config, encoders, head, picked, {}, data, key)
    upload = {part: Each({"params": sent.value, "model": number}, sent.weight) for part, sent in trained.items()}
    return upload, metrics


def mean_by_model(models: PyTree, sent: Each) -> PyTree:
    """theta_j: the weighted mean over those who picked j, or what it was where nobody did; leaves [J, ...].

    models: leaves [J, ...]; sent: {"params": leaves [C, ...], "model": [C]}.

    >>> sent = Each({"params": jnp.array([3.0, 5.0]), "model": jnp.array([1, 1])}, jnp.array([3.0, 1.0]))
    >>> mean_by_model(jnp.zeros(2), sent).tolist()
    [0.0, 3.5]
    """

    def mean(number: jax.Array, old: PyTree) -> PyTree:
        return aggregate.weighted_mean(sent.value["params"], sent.weight * (sent.value["model"] == number), old)

    leaves = jax.tree.leaves(models)
    return jax.vmap(mean)(jnp.arange(len(leaves[0])), models) if leaves else models


def server_update(
    state: Mapping[str, Parts], uploads: Mapping[str, Upload], public: Arrays | None, key: Key
) -> tuple[dict[str, dict[str, PyTree]], Metrics]:
    """Step 3: the server's new state, and no metrics.

    >>> sent = {"params": jnp.array([3.0, 5.0]), "model": jnp.array([1, 1])}
    >>> uploads = {"all": {"head": Each(sent, jnp.array([3.0, 1.0]))}}
    >>> new, _ = server_update({"params": {"head": jnp.zeros(2)}}, uploads, None, jax.random.key(0))
    >>> new["params"]["head"].tolist()
    [0.0, 3.5]
    """
    sent = {part: Each(*aggregate.collect(uploads, part)) for part in state["params"]}
    return {"params": {part: mean_by_model(models, sent[part]) for part, models in state["params"].items()}}, {}


def client_score(
    encoders: Encoders, head: Model, download: Download, state: Mapping, arrays: Arrays, mask: jax.Array
) -> dict[str, jax.Array]:
    """FedAvg's score of a client's own test rows, {"accuracy": [B]}, with the model that it picked last."""
    picked = Download(pick(download.sent, state["model"]))
    return fedavg.client_score(encoders, head, picked, {}, arrays, mask)


def scores(
    download: Callable[..., Mapping[str, Download]],
    score_all: Callable[[FedState, Arrays], Mapping[str, float]],
    state: FedState,
    arrays: Arrays,
) -> Mapping[str, float]:
    """FedAvg's scores on test arrays, of every client's picked model as a personal one (see `fedavg.scores`).

    download, score_all: FedAvg's.
    """
    sent = {name: get.sent for name, get in download(state.server, None).items()}
    own = {name: pick(sent[name], of["model"]) for name, of in state.clients.items()}
    return score_all(FedState({"params": {}}, own, state.round), arrays)
