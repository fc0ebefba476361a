"""FedNova: clients that take more steps do not pull the model further towards their own optimum.

Wang et al., NeurIPS 2020, arXiv 2007.07481, for clients that take plain steps of SGD, with or without FedProx's term:

    w     the server's parameters         eta   `client_lr`     a_k   the weights of client k's gradients in w_k - w
    w_k   client k's, after tau_k steps   mu    `prox`          p_k   its share of the participants' examples

One round:
  1. The server sends w, as in FedAvg.
  2. Client k trains as in FedAvg and sends d_k = (w_k - w) / |a_k|_1 and |a_k|_1 (`client_update`, `normalise`), where
     |a_k|_1 = tau_k, and with FedProx's term sum_{j < tau_k} (1 - eta mu)^j, since each step shrinks those before it.
  3. w <- w + tau_eff sum_k p_k d_k, with tau_eff = sum_k p_k |a_k|_1 (`server_update`, `normalised_mean`).

Where all clients take equally many steps this is FedAvg. The settings are FedAvg's: a server optimiser takes step 3's
change for its gradient, and parts that are not `shared` are personal. Deviation: with FedProx's term the released code
counts steps in tau_eff; here it is |a_k|_1 too, by which equal steps give FedProx. The clients' momentum is left out.
"""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax

from fedjax_mm import aggregate
from fedjax_mm.federate import Method
from fedjax_mm.methods import fedavg
from fedjax_mm.methods.fedavg import FedAvgConfig, kind_weight, local_loss
from fedjax_mm.methods.fedavg.network import Encoders, Parts
from fedjax_mm.methods.neighbours.training import check_sgd, named, train
from fedjax_mm.models import Model, as_encoder, as_encoders
from fedjax_mm.types import Arrays, ClientData, Download, HasPopulation, Key, Mean, Metrics, PyTree, Upload


def build(config: FedAvgConfig, data: HasPopulation, encoders: Encoders, head: Model) -> Method:
    """The method for the cohorts of `data`. Arguments, scores and errors are those of `fedavg.build`.

    Raises ValueError too where clients do not take plain steps of SGD.
    """
    encoders, head = as_encoders("encoders", encoders), as_encoder(head, name="head")
    base = fedavg.build(config, data, encoders, head)
    check_sgd("FedNova", config)
    update = functools.partial(client_update, config, encoders, head)
    cohorts = {name: cohort._replace(update=update) for name, cohort in base.cohorts.items()}
    return base._replace(server=base.server._replace(update=functools.partial(server_update, config)), cohorts=cohorts)


def normalise(start: PyTree, end: PyTree, steps: jax.Array) -> PyTree:
    """d_k = (w_k - w) / |a_k|_1. start: w; end: w_k; steps: |a_k|_1.

    >>> normalise(jnp.array([1.0]), jnp.array([3.0]), jnp.float32(4)).tolist()
    [0.5]
    """
    change = jax.tree.map(lambda w, w_k: (w_k - w) / jnp.maximum(steps, 1), start, end)
    return optax.tree.cast_like(change, start)


def client_update(
    config: FedAvgConfig,
    encoders: Encoders,
    head: Model,
    download: Download,
    state: Parts,
    data: ClientData,
    key: Key,
) -> tuple[Upload, dict[str, PyTree], Metrics]:
    """Step 2: what one client sends, its new personal parts, and the metrics "loss" and "accuracy".

    The upload has "normalised/<part>" for each part that was sent: a Mean of {"change": d_k, "steps": |a_k|_1}.

    >>> from fedjax_mm.local import whole
    >>> identity = Model(lambda key, x: {}, lambda params, x: x)
    >>> add = Model(lambda key, x: jnp.zeros(2), lambda bias, x: x + bias[None])
    >>> data = whole({"x": jnp.zeros((3, 2)), "label": jnp.array([0, 0, 0])})
    >>> download, config = Download({"x": {}, "head": jnp.zeros(2)}), FedAvgConfig(batch_size=1)
    >>> upload, _, _ = client_update(config, {"x": identity}, add, download, {}, data, jax.random.key(0))
    >>> float(upload["normalised/head"].value["steps"])
    3.0
    """
    start = {**download.sent, **state}
    decay = 1 - config.client_lr * config.prox
    loss = lambda params, batch, key: local_loss(config, encoders, head, params, start, batch)
    params, steps, metrics = train(config, loss, start, data, key, decay=decay)
    weight = kind_weight(config, start) * data.weight
    change = lambda part: {"change": normalise(start[part], params[part], steps), "steps": steps}
    upload = named("normalised", {part: Mean(change(part), weight) for part in download.sent})
    return upload, {part: params[part] for part in state}, metrics


def normalised_mean(old: PyTree, sent: Mean) -> Mean:
    """The mean w + tau_eff sum_k p_k d_k, with the weight of `sent`.

    old: w; sent: the weighted mean {"change": sum_k p_k d_k, "steps": tau_eff}.

    >>> sent = Mean({"change": jnp.array([0.5]), "steps": 4.0}, weight=jnp.float32(9))
    >>> normalised_mean(jnp.array([1.0]), sent).value.tolist()
    [3.0]
    """
    change, steps = sent.value["change"], sent.value["steps"]
    return Mean(jax.tree.map(lambda w, d: w + steps * d, old, change), sent.weight)


def server_update(
    config: FedAvgConfig,
    state: Mapping[str, Parts],
    uploads: Mapping[str, Upload],
    public: Arrays | None,
    key: Key,
) -> tuple[dict[str, dict[str, PyTree]], Metrics]:
    """Step 3: the server's new state, and no metrics. A part that nobody sent stays as it is.

    >>> state = {"params": {"head": jnp.array([1.0])}, "opt": {"head": optax.sgd(1.0).init(jnp.zeros(1))}}
    >>> sent = {"normalised/head": Mean({"change": jnp.array([0.5]), "steps": jnp.float32(4)}, jnp.float32(9))}
    >>> server_update(FedAvgConfig(), state, {"all": sent}, None, jax.random.key(0))[0]["params"]["head"].tolist()
    [3.0]
    """
    sent = {part: Mean(*aggregate.collect(uploads, f"normalised/{part}")) for part in state["params"]}
    means = {part: normalised_mean(old, sent[part]) for part, old in state["params"].items()}
    return fedavg.server_update(config, state, {"all": means}, public, key)
