"""SCAFFOLD: control variates take the drift of clients out of their steps.

Karimireddy et al., ICML 2020, arXiv 1910.06378, algorithm 1 with option II. Equation by equation, for each part of the
model (an encoder or the head):

    x    the server's parameters          c    the server's control variate      eta_l   `client_lr`
    y_k  client k's parameters            c_k  client k's, 0 at first            eta_g   `server_lr`

One round:
  1. The server sends x and c (`server_download`).
  2. Client k takes K steps from y_k = x: y_k <- y_k - eta_l (g_k(y_k) - c_k + c)  (`corrected_loss`), then
     c_k+ = c_k - c + (x - y_k) / (K eta_l)  (`update_control`), and sends y_k and c_k+ - c_k (`client_update`).
  3. x <- x + eta_g mean_S (y_k - x)  and  c <- c + |S|/N mean_S (c_k+ - c_k)  (`server_update`, `move_control`).

Every client weighs the same, as in the paper, however many examples it owns (times `multimodal_weight` where it has
several modalities); N counts the clients that have the part. The settings are FedAvg's: with `prox` the corrected
gradient is that of FedProx's loss, with a server optimiser step 3 is that optimiser's, and parts that are not `shared`
are personal and have no control variate. A client sends and gets twice the bytes of FedAvg, and keeps c_k.
"""

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax

from fedjax_mm import aggregate
from fedjax_mm.federate import Method
from fedjax_mm.local import Batch
from fedjax_mm.methods import fedavg
from fedjax_mm.methods.fedavg import FedAvgConfig, kind_weight, local_loss
from fedjax_mm.methods.fedavg.network import Encoders, Parts
from fedjax_mm.methods.neighbours.training import (
    check_sgd,
    init_client,
    named,
    take_named,
    total_weights,
    train,
)
from fedjax_mm.methods.regularisers import pull_term
from fedjax_mm.methods.settings import is_used
from fedjax_mm.models import Model, as_encoder, as_encoders
from fedjax_mm.types import Arrays, ClientData, Download, HasPopulation, Key, Mean, Metrics, PyTree, Upload

ServerState = Mapping[str, Parts]  # {"params": x, "opt": the optimiser's state, "control": c}


def build(config: FedAvgConfig, data: HasPopulation, encoders: Encoders, head: Model) -> Method:
    """The method for the cohorts of `data`. Arguments, scores and errors are those of `fedavg.build`.

    Raises ValueError too where clients do not take plain steps of SGD with a rate above 0.
    """
    encoders, head = as_encoders("encoders", encoders), as_encoder(head, name="head")
    base = fedavg.build(config, data, encoders, head)
    check_sgd("SCAFFOLD", config)
    if not is_used(config.client_lr):
        raise ValueError("FedAvgConfig.client_lr is 0, and SCAFFOLD divides by it; give a rate above 0")
    server = base.server._replace(
        init=functools.partial(init_server, base.server.init),
        download=functools.partial(server_download, base.server.download),
        update=functools.partial(server_update, config, total_weights(config, base)),
    )
    update = functools.partial(client_update, config, encoders, head)
    cohorts = {
        name: cohort._replace(init=functools.partial(init_client, base, name, "control"), update=update)
        for name, cohort in base.cohorts.items()
    }
    return base._replace(server=server, cohorts=cohorts)


def init_server(init: Callable[[Key], ServerState], key: Key) -> dict[str, Parts]:
    """FedAvg's first state of the server, which `init` gives, and "control", c = 0 for each part.

    >>> init = lambda key: {"params": {"head": jnp.ones(2)}, "opt": {}}
    >>> init_server(init, jax.random.key(0))["control"]["head"].tolist()
    [0.0, 0.0]
    """
    state = init(key)
    return {**state, "control": optax.tree.zeros_like(state["params"])}


def server_download(
    download: Callable[[ServerState, Arrays | None], Mapping[str, Download]],
    state: ServerState,
    public: Arrays | None = None,
) -> dict[str, Download]:
    """Step 1: what each cohort gets of FedAvg, by `download`, and c as "control/<part>" of the same parts.

    >>> state = {"params": {"image": 1, "head": 2}, "control": {"image": 3, "head": 4}}
    >>> fedavg_download = lambda state, public: {"all": Download({"head": state["params"]["head"]})}
    >>> server_download(fedavg_download, state)["all"].sent
    {'head': 2, 'control/head': 4}
    """
    control = lambda parts: named("control", {part: state["control"][part] for part in parts})
    return {name: Download({**get.sent, **control(get.sent)}) for name, get in download(state, public).items()}


def corrected_loss(
    config: FedAvgConfig,
    encoders: Encoders,
    head: Model,
    start: Parts,
    control: Parts,
    own: Parts,
    params: Parts,
    batch: Batch,
) -> tuple[jax.Array, Metrics]:
    """(FedAvg's loss [] plus <c - c_k, y_k>, metrics): its gradient is g_k(y_k) - c_k + c.

    start: x; control: c; own: c_k, of the parts that travel; params: y_k, of all parts.

    >>> identity = Model(lambda key, x: {}, lambda params, x: x)
    >>> add = Model(lambda key, x: jnp.zeros(2), lambda bias, x: x + bias[None])
    >>> batch = {"x": jnp.zeros((1, 2)), "label": jnp.array([0]), "mask": jnp.ones(1)}
    >>> c, c_k = {"head": jnp.array([0.5, 0.0])}, {"head": jnp.array([0.0, 0.5])}
    >>> loss = lambda y: corrected_loss(FedAvgConfig(), {"x": identity}, add, y, c, c_k, y, batch)[0]
    >>> jax.grad(loss)({"x": {}, "head": jnp.zeros(2)})["head"].tolist()  # g_k is (-.5, .5)
    [0.0, 0.0]
    """
    value, metrics = local_loss(config, encoders, head, params, start, batch)
    return value - pull_term(optax.tree.sub(own, control), {part: params[part] for part in own}), metrics


def update_control(
    own: PyTree, control: PyTree, start: PyTree, end: PyTree, steps: jax.Array, client_lr: float
) -> PyTree:
    """c_k+ = c_k - c + (x - y_k) / (K eta_l), the mean gradient that the client saw, after its K steps. (Option II)

    own: c_k; control: c; start: x; end: y_k.

    >>> one = lambda value: jnp.array([value])
    >>> update_control(one(1.0), one(0.5), one(3.0), one(2.0), jnp.float32(4), client_lr=0.5).tolist()
    [1.0]
    """
    scale = 1 / (jnp.maximum(steps, 1) * client_lr)
    new = jax.tree.map(lambda c_k, c, x, y: c_k - c + scale * (x - y), own, control, start, end)
    return optax.tree.cast_like(new, own)


def client_update(
    config: FedAvgConfig,
    encoders: Encoders,
    head: Model,
    download: Download,
    state: Parts,
    data: ClientData,
    key: Key,
) -> tuple[Upload, dict[str, PyTree], Metrics]:
    """Step 2: what one client sends, its new state and the metrics "loss" and "accuracy".

    state: personal parts, and c_k as "control/<part>". The upload has a Mean of y_k for each part, and one
    of c_k+ - c_k as "control_change/<part>".

    >>> from fedjax_mm.local import whole
    >>> identity = Model(lambda key, x: {}, lambda params, x: x)
    >>> add = Model(lambda key, x: jnp.zeros(2), lambda bias, x: x + bias[None])
    >>> data = whole({"x": jnp.zeros((1, 2)), "label": jnp.array([0])})
    >>> zero = {"control/x": {}, "control/head": jnp.zeros(2)}
    >>> download = Download({"x": {}, "head": jnp.zeros(2), **zero})
    >>> config, key = FedAvgConfig(client_lr=1.0), jax.random.key(0)
    >>> upload, state, _ = client_update(config, {"x": identity}, add, download, zero, data, key)
    >>> upload["head"].value.tolist(), state["control/head"].tolist()
    ([0.5, -0.5], [-0.5, 0.5])
    """
    x, control = take_named("", download.sent), take_named("control", download.sent)
    own, start = take_named("control", state), {**x, **take_named("", state)}
    loss = functools.partial(corrected_loss, config, encoders, head, start, control, own)
    params, steps, metrics = train(config, lambda params, batch, key: loss(params, batch), start, data, key)
    y = {part: params[part] for part in x}
    new = update_control(own, control, x, y, steps, config.client_lr)
    weight = jnp.float32(kind_weight(config, start))
    sent = {**y, **named("control_change", optax.tree.sub(new, own))}
    personal = {part: params[part] for part in take_named("", state)}
    return {slot: Mean(value, weight) for slot, value in sent.items()}, {**personal, **named("control", new)}, metrics


def move_control(control: PyTree, clients: float, change: Mean) -> PyTree:
    """c + |S|/N mean_S (c_k+ - c_k). clients: N; change: the mean over those who took part, and their number |S|.

    >>> move_control(jnp.array([1.0]), 4, Mean(jnp.array([2.0]), jnp.float32(2))).tolist()
    [2.0]
    """
    share = change.weight / clients
    return optax.tree.cast_like(jax.tree.map(lambda c, dc: c + share * dc, control, change.value), control)


def server_update(
    config: FedAvgConfig,
    clients: Mapping[str, float],
    state: ServerState,
    uploads: Mapping[str, Upload],
    public: Arrays | None,
    key: Key,
) -> tuple[dict[str, Parts], Metrics]:
    """Step 3: the server's new state, and no metrics. A part that nobody sent stays, and so does its control variate.

    clients: part -> N.

    >>> mean = lambda value: Mean(jnp.array([value]), weight=jnp.float32(1))
    >>> sent = {"head": mean(3.0), "control_change/head": mean(2.0)}
    >>> state = {"params": {"head": jnp.array([1.0])}, "opt": {"head": optax.sgd(1.0).init(jnp.zeros(1))}}
    >>> state["control"] = {"head": jnp.array([0.5])}
    >>> new, _ = server_update(FedAvgConfig(), {"head": 4}, state, {"all": sent}, None, jax.random.key(0))
    >>> new["params"]["head"].tolist(), new["control"]["head"].tolist()
    ([3.0], [1.0])
    """
    new, metrics = fedavg.server_update(config, state, uploads, public, key)
    change = {part: Mean(*aggregate.collect(uploads, f"control_change/{part}")) for part in state["control"]}
    control = {part: move_control(c, clients[part], change[part]) for part, c in state["control"].items()}
    return {**new, "control": control}, metrics
