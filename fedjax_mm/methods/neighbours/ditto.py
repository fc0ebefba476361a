"""Ditto: each client keeps a model of its own, held near the one that all of them train.

Li, Hu, Beirami, Smith, ICML 2021, arXiv 2012.04221, algorithm 1:

    w    the server's parameters     v_k  client k's own, w at first     lambda  `prox`

One round:
  1. The server sends w, as in FedAvg.
  2. Client k trains w as in FedAvg, and v_k from where it was, on  F_k(v_k) + lambda/2 |v_k - w|^2  with w as it was
     received (`personal_loss`). It sends the trained w and keeps v_k (`client_update`).
  3. The server averages, as in FedAvg.

Client k predicts with v_k. With lambda = 0 it is trained alone; the larger lambda, the nearer v_k is to w. Both models
see the same batches, E epochs with the same rate, so that a client computes twice what FedAvg's does; it sends as much.
The settings of w are FedAvg's, with FedProx's term and the server's optimiser.
"""

import dataclasses
import functools

import jax

from fedjax_mm.federate import Method
from fedjax_mm.local import Batch
from fedjax_mm.methods import fedavg
from fedjax_mm.methods.fedavg import FedAvgConfig, local_loss
from fedjax_mm.methods.fedavg.network import Encoders, Parts
from fedjax_mm.methods.neighbours.training import check_whole_model, train
from fedjax_mm.methods.settings import check_settings
from fedjax_mm.models import Model, as_encoder, as_encoders
from fedjax_mm.types import ClientData, Download, HasPopulation, Key, Metrics, PyTree, Upload


@dataclasses.dataclass(frozen=True)
class DittoConfig:
    """Settings of one run."""

    prox: float = 1.0
    """lambda, the weight by which a client's own model is held near the server's."""
    fedavg: FedAvgConfig = FedAvgConfig()
    """How the server's model is trained. Clients' own models take its rate, optimiser, batches and epochs."""


def build(config: DittoConfig, data: HasPopulation, encoders: Encoders, head: Model) -> Method:
    """The method for the cohorts of `data`. Arguments, scores and errors are those of `fedavg.build`.

    `evaluate` tests the server's model w; a client's own test rows are scored with v_k. Raises ValueError too where
    `config.fedavg.shared` names parts: all travel.
    """
    check_settings(config, DittoConfig)
    encoders, head = as_encoders("encoders", encoders), as_encoder(head, name="head")
    base = fedavg.build(config.fedavg, data, encoders, head)
    check_whole_model("Ditto", config.fedavg)
    update = functools.partial(client_update, config, encoders, head)
    cohorts = {
        name: cohort._replace(init=functools.partial(init_client, base, name), update=update)
        for name, cohort in base.cohorts.items()
    }
    return base._replace(cohorts=cohorts)


def init_client(base: Method, name: str, key: Key, server: PyTree) -> dict[str, PyTree]:
    """The first v_k of a client of the cohort `name`: the parts that the server sends it. base: FedAvg's method."""
    return dict(base.server.download(server, None)[name].sent)


def personal_loss(
    config: DittoConfig, encoders: Encoders, head: Model, received: Parts, own: Parts, batch: Batch
) -> tuple[jax.Array, Metrics]:
    """(F_k(v_k) + lambda/2 |v_k - w|^2 [], metrics). received: w; own: v_k.

    >>> import jax.numpy as jnp
    >>> identity = Model(lambda key, x: {}, lambda params, x: x)
    >>> add = Model(lambda key, x: jnp.zeros(2), lambda bias, x: x + bias[None])
    >>> batch = {"x": jnp.zeros((1, 2)), "label": jnp.array([0]), "mask": jnp.ones(1)}
    >>> w, v = {"x": {}, "head": jnp.zeros(2)}, {"x": {}, "head": jnp.ones(2)}
    >>> value, _ = personal_loss(DittoConfig(prox=0.5), {"x": identity}, add, w, v, batch)
    >>> round(float(value - jnp.log(2)), 4)
    0.5
    """
    return local_loss(FedAvgConfig(prox=config.prox), encoders, head, own, received, batch)


def client_update(
    config: DittoConfig,
    encoders: Encoders,
    head: Model,
    download: Download,
    state: Parts,
    data: ClientData,
    key: Key,
) -> tuple[Upload, dict[str, PyTree], Metrics]:
    """Step 2: what one client sends, FedAvg's upload, its new v_k, and the metrics "loss" and "accuracy" of v_k.

    >>> import jax.numpy as jnp
    >>> from fedjax_mm.local import whole
    >>> identity = Model(lambda key, x: {}, lambda params, x: x)
    >>> add = Model(lambda key, x: jnp.zeros(2), lambda bias, x: x + bias[None])
    >>> data = whole({"x": jnp.zeros((1, 2)), "label": jnp.array([0])})
    >>> w, v = {"x": {}, "head": jnp.zeros(2)}, {"x": {}, "head": jnp.ones(2)}
    >>> config, key = DittoConfig(0.5, FedAvgConfig(client_lr=1.0)), jax.random.key(0)
    >>> upload, state, _ = client_update(config, {"x": identity}, add, Download(w), v, data, key)
    >>> upload["head"].value.tolist(), state["head"].tolist()
    ([0.5, -0.5], [1.0, 0.0])
    """
    upload, _, _ = fedavg.client_update(config.fedavg, encoders, head, download, {}, data, key)
    loss = functools.partial(personal_loss, config, encoders, head, download.sent)
    own, _, metrics = train(config.fedavg, lambda own, batch, key: loss(own, batch), dict(state), data, key)
    return upload, own, metrics
