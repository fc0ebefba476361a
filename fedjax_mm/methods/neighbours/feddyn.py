"""FedDyn: each client's loss is bent so that all clients' optima come to be the optimum of their mean.

Acar et al., ICLR 2021, arXiv 2111.04263, algorithm 1. For each part of the model (an encoder or the head):

    w    the server's parameters     g_k  client k's gradient at its last solution, 0 at first     alpha  `alpha`
    w_k  client k's                  h    the server's state, 0 at first

One round, of P of N clients:
  1. The server sends w, as in FedAvg.
  2. Client k trains, from w, on  F_k(w_k) - <g_k, w_k> + alpha/2 |w_k - w|^2  (`dynamic_loss`), then
     g_k <- g_k - alpha (w_k - w)  (`update_pull`), and sends w_k (`client_update`).
  3. h <- h - alpha/N sum_P (w_k - w)  and  w <- mean_P w_k - h / alpha  (`server_update`, `dyn_server_step`).

Every client weighs the same, as in the paper (times `multimodal_weight` where it has several modalities); N counts the
clients that have the part. The local problem is solved by E epochs of the clients' optimiser. As alpha goes to 0 the
clients become FedAvg's, but step 3 does not: in the first round of all clients it goes twice as far.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax

from fedjax_mm import aggregate, trees
from fedjax_mm.federate import Method
from fedjax_mm.local import Batch
from fedjax_mm.methods import fedavg
from fedjax_mm.methods.fedavg import FedAvgConfig, kind_weight, local_loss
from fedjax_mm.methods.fedavg.network import Encoders, Parts
from fedjax_mm.methods.neighbours.training import (
    check_plain_server,
    init_client,
    named,
    take_named,
    total_weights,
    train,
)
from fedjax_mm.methods.regularisers import dyn_server_step, pull_term, update_pull
from fedjax_mm.methods.settings import check_settings, is_used
from fedjax_mm.models import Model, as_encoder, as_encoders
from fedjax_mm.types import Arrays, ClientData, Download, HasPopulation, Key, Mean, Metrics, PyTree, Upload


@dataclasses.dataclass(frozen=True)
class FedDynConfig:
    """Settings of one run."""

    alpha: float = 0.01
    """alpha, the weight of the bend. It must be above 0."""
    fedavg: FedAvgConfig = FedAvgConfig()
    """What clients share with FedAvg. The server has a step of its own, so the server's optimiser stays as it is."""


def build(config: FedDynConfig, data: HasPopulation, encoders: Encoders, head: Model) -> Method:
    """The method for the cohorts of `data`. Arguments, scores and errors are those of `fedavg.build`.

    Raises ValueError too for an alpha of 0, and for a server optimiser other than the default.
    """
    check_settings(config, FedDynConfig)
    encoders, head = as_encoders("encoders", encoders), as_encoder(head, name="head")
    base = fedavg.build(config.fedavg, data, encoders, head)
    check_plain_server("FedDyn", config.fedavg)
    if not is_used(config.alpha):
        raise ValueError("FedDynConfig.alpha is 0, and FedDyn divides by it; give a number above 0, or use FedAvg")
    server = base.server._replace(
        init=functools.partial(init_server, base.server.init),
        update=functools.partial(server_update, config, total_weights(config.fedavg, base)),
    )
    update = functools.partial(client_update, config, encoders, head)
    cohorts = {
        name: cohort._replace(init=functools.partial(init_client, base, name, "pull"), update=update)
        for name, cohort in base.cohorts.items()
    }
    return base._replace(server=server, cohorts=cohorts)


def init_server(init: Callable[[Key], Mapping[str, Parts]], key: Key) -> dict[str, Parts]:
    """The server's first state, {"params": w, "h": h = 0}. init: FedAvg's.

    >>> init_server(lambda key: {"params": {"head": jnp.ones(2)}}, jax.random.key(0))["h"]["head"].tolist()
    [0.0, 0.0]
    """
    params = init(key)["params"]
    return {"params": params, "h": optax.tree.zeros_like(params)}


def dynamic_loss(
    config: FedDynConfig, encoders: Encoders, head: Model, start: Parts, pull: Parts, params: Parts, batch: Batch
) -> tuple[jax.Array, Metrics]:
    """(FedAvg's loss [] - <g_k, w_k> + alpha/2 |w_k - w|^2, metrics).

    start: w, with personal parts as they were, which are held to them too; pull: g_k; params: w_k.

    >>> identity = Model(lambda key, x: {}, lambda params, x: x)
    >>> add = Model(lambda key, x: jnp.zeros(2), lambda bias, x: x + bias[None])
    >>> batch = {"x": jnp.zeros((1, 2)), "label": jnp.array([0]), "mask": jnp.ones(1)}
    >>> w, pull, params = {"head": jnp.zeros(2)}, {"head": jnp.array([0.5, 0.0])}, {"x": {}, "head": jnp.ones(2)}
    >>> config = FedDynConfig(alpha=0.1)
    >>> value, _ = dynamic_loss(config, {"x": identity}, add, {"x": {}, **w}, pull, params, batch)
    >>> round(float(value - jnp.log(2)), 4)  # -.5 + .05 * 2
    -0.4
    """
    bent = dataclasses.replace(config.fedavg, prox=config.fedavg.prox + config.alpha)
    value, metrics = local_loss(bent, encoders, head, params, start, batch)
    return value - pull_term(pull, {part: params[part] for part in pull}), metrics


def client_update(
    config: FedDynConfig,
    encoders: Encoders,
    head: Model,
    download: Download,
    state: Parts,
    data: ClientData,
    key: Key,
) -> tuple[Upload, dict[str, PyTree], Metrics]:
    """Step 2: what one client sends, its new state and the metrics "loss" and "accuracy".

    state: personal parts, and g_k as "pull/<part>". The upload has a Mean of w_k for each part that was sent.

    >>> from fedjax_mm.local import whole
    >>> identity = Model(lambda key, x: {}, lambda params, x: x)
    >>> add = Model(lambda key, x: jnp.zeros(2), lambda bias, x: x + bias[None])
    >>> data = whole({"x": jnp.zeros((1, 2)), "label": jnp.array([0])})
    >>> download, state = Download({"x": {}, "head": jnp.zeros(2)}), {"pull/x": {}, "pull/head": jnp.zeros(2)}
    >>> config, key = FedDynConfig(0.5, FedAvgConfig(client_lr=1.0)), jax.random.key(0)
    >>> upload, state, _ = client_update(config, {"x": identity}, add, download, state, data, key)
    >>> upload["head"].value.tolist(), state["pull/head"].tolist()
    ([0.5, -0.5], [-0.25, 0.25])
    """
    pull, start = take_named("pull", state), {**download.sent, **take_named("", state)}
    loss = functools.partial(dynamic_loss, config, encoders, head, start, pull)
    params, _, metrics = train(config.fedavg, lambda params, batch, key: loss(params, batch), start, data, key)
    solution = {part: params[part] for part in pull}
    new = optax.tree.cast_like(update_pull(config.alpha, pull, solution, download.sent), pull)
    weight = jnp.float32(kind_weight(config.fedavg, start))
    personal = {part: params[part] for part in take_named("", state)}
    return {p: Mean(value, weight) for p, value in solution.items()}, {**personal, **named("pull", new)}, metrics


def server_update(
    config: FedDynConfig,
    clients: Mapping[str, float],
    state: Mapping[str, Parts],
    uploads: Mapping[str, Upload],
    public: Arrays | None,
    key: Key,
) -> tuple[dict[str, dict[str, PyTree]], Metrics]:
    """Step 3: the server's new state, and no metrics. A part that nobody sent stays as it is. clients: part -> N.

    >>> state = {"params": {"head": jnp.array([1.0])}, "h": {"head": jnp.array([0.0])}}
    >>> uploads = {"all": {"head": Mean(jnp.array([3.0]), jnp.float32(2))}}
    >>> new, _ = server_update(FedDynConfig(alpha=0.5), {"head": 4}, state, uploads, None, jax.random.key(0))
    >>> new["params"]["head"].tolist(), new["h"]["head"].tolist()
    ([4.0], [-0.5])
    """
    new: dict[str, dict[str, PyTree]] = {"params": {}, "h": {}}
    for part, old in state["params"].items():
        mean, h = Mean(*aggregate.collect(uploads, part)), state["h"][part]
        after = optax.tree.cast_like(dyn_server_step(config.alpha, clients[part], h, old, mean), (h, old))
        new["h"][part], new["params"][part] = trees.where(mean.weight > 0, after, (h, old))
    return new, {}
