"""FeSEM: several centres among the clients' models; a client belongs to the centre that its own model is nearest to.

Xie et al., "Multi-center federated learning", 2020, arXiv 2005.01026 (federated stochastic expectation maximisation):

    W~_j  the centres, j = 1..J     J  `centres`     W_k  client k's own model, as last trained     r_k  its centre

One round:
  1. The server sends all J centres.
  2. E: r_k = argmin_j |W_k - W~_j|^2  (`distances`). Client k trains W~_{r_k} as in FedAvg, which is its new W_k,
     keeps it, and sends it with r_k (`client_update`).
  3. M: W~_j <- the mean of the W_k with r_k = j, weighted as in FedAvg; one that nobody belongs to stays (IFCA's step
     of the server).

A client that has no W_k yet draws its centre at random, and all centres begin alike: what they become is what the
clients of the first rounds make of them. IFCA picks by the loss on a client's examples, which costs J passes over
them; here a distance is computed once. Client k predicts with W~_{r_k}. A client keeps a model; it gets J times the
bytes of FedAvg, and sends as many.
"""

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax

from fedjax_mm.federate import Evaluation, Method
from fedjax_mm.methods import fedavg
from fedjax_mm.methods.fedavg import FedAvgConfig
from fedjax_mm.methods.fedavg.network import Encoders, Parts
from fedjax_mm.methods.neighbours import ifca
from fedjax_mm.methods.neighbours.training import check_plain_server, check_whole_model
from fedjax_mm.methods.settings import check_settings
from fedjax_mm.models import Model, as_encoder, as_encoders
from fedjax_mm.types import ClientData, Cohort, Download, HasPopulation, Key, Metrics, PyTree, Upload


@dataclasses.dataclass(frozen=True)
class FeSEMConfig:
    """Settings of one run."""

    centres: int = 2
    """J, how many models the server has. With 1 this is FedAvg."""
    fedavg: FedAvgConfig = FedAvgConfig()
    """How a client trains its centre's model. The server takes means, so its optimiser stays as it is."""


def build(config: FeSEMConfig, data: HasPopulation, encoders: Encoders, head: Model) -> Method:
    """The method for the cohorts of `data`. Arguments, scores and errors are those of `ifca.build`."""
    check_settings(config, FeSEMConfig)
    encoders, head = as_encoders("encoders", encoders), as_encoder(head, name="head")
    base = fedavg.build(config.fedavg, data, encoders, head)
    check_whole_model("FeSEM", config.fedavg)
    check_plain_server("FeSEM", config.fedavg)
    init_server = lambda key: {"params": alike(config.centres, base.server.init(key)["params"])}
    server = base.server._replace(init=init_server, update=ifca.server_update)
    update = functools.partial(client_update, config, encoders, head)
    score = functools.partial(ifca.client_score, encoders, head)
    cohorts = {
        name: Cohort(one.size, functools.partial(init_client, config, base, name), update, score)
        for name, one in base.cohorts.items()
    }
    assert isinstance(base.evaluate, Evaluation)
    scores = functools.partial(ifca.scores, base.server.download, base.evaluate.scores)
    return base._replace(server=server, cohorts=cohorts, evaluate=Evaluation(base.evaluate.check, scores))


def alike(centres: int, params: PyTree) -> PyTree:
    """The parameters J times, leaves [J, ...].

    >>> alike(2, {"head": jnp.array([1.0])})["head"].tolist()
    [[1.0], [1.0]]
    """
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (centres, *x.shape)), params)


def init_client(
    config: FeSEMConfig, base: Method, name: str, key: Key, server: Mapping[str, Parts]
) -> dict[str, PyTree]:
    """A client's first state: {"own": zeros like its model, "model": r_k, drawn at random, "trained": False}.

    base: FedAvg's method; name: of the cohort; server: the first state of the server.
    """
    sent = base.server.download(server, None)[name].sent
    own = jax.tree.map(lambda x: jnp.zeros_like(x[0]), dict(sent))
    return {"own": own, "model": jax.random.randint(key, (), 0, config.centres), "trained": jnp.bool_(False)}


def distances(own: PyTree, centres: PyTree) -> jax.Array:
    """|W_k - W~_j|^2 [J]. own: W_k, leaves [...]; centres: leaves [J, ...].

    >>> distances({"head": jnp.array([1.0, 2.0])}, {"head": jnp.array([[1.0, 0.0], [1.0, 2.0]])}).tolist()
    [4.0, 0.0]
    """
    return jax.vmap(lambda centre: optax.tree.norm(optax.tree.sub(own, centre), squared=True))(centres)


def client_update(
    config: FeSEMConfig,
    encoders: Encoders,
    head: Model,
    download: Download,
    state: Mapping[str, PyTree],
    data: ClientData,
    key: Key,
) -> tuple[Upload, dict[str, PyTree], Metrics]:
    """Step 2: what one client sends, its new state, and the metrics of FedAvg.

    The upload has an Each of {"params": the trained part, "model": r_k} for each part.

    >>> from fedjax_mm.local import whole
    >>> identity = Model(lambda key, x: {}, lambda params, x: x)
    >>> add = Model(lambda key, x: jnp.zeros(2), lambda bias, x: x + bias[None])
    >>> data, key = whole({"x": jnp.zeros((1, 2)), "label": jnp.array([1])}), jax.random.key(0)
    >>> download = Download({"x": {}, "head": jnp.array([[9.0, 0.0], [0.0, 0.0]])})
    >>> own = {"own": {"x": {}, "head": jnp.ones(2)}, "model": jnp.int32(0), "trained": jnp.bool_(True)}
    >>> config = FeSEMConfig(fedavg=FedAvgConfig(client_lr=1.0))
    >>> upload, own, _ = client_update(config, {"x": identity}, add, download, own, data, key)
    >>> upload["head"].value["params"].tolist(), int(own["model"]), own["own"]["head"].tolist()
    ([-0.5, 0.5], 1, [-0.5, 0.5])
    """
    nearest = jnp.argmin(distances(state["own"], dict(download.sent))).astype(jnp.int32)
    number = jnp.where(state["trained"], nearest, state["model"])
    upload, metrics = ifca.train_picked(config.fedavg, encoders, head, download.sent, number, data, key)
    own = {part: sent.value["params"] for part, sent in upload.items()}
    return upload, {"own": own, "model": number, "trained": jnp.bool_(True)}, metrics
