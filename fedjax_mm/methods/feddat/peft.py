"""Parameter-efficient tuning of one trunk by federated averaging: what FedDAT is compared with.

Personal heads in every mode, which never travel (Chen et al., AAAI 2024, after the authors' code). A mode is what is
tuned, w: trees beside the trunk (an adapter, LoRA, a prompt), leaves of the trunk (biases, norms, all), or nothing but
the head; with `travels=False` each client tunes its own w, and nothing is sent.

One round:
  1. The server sends w; the rest of the trunk every client has.
  2. Client k trains w and its head h_k, in E epochs, on task(f(x; w, h_k)) + mu/2 |w - w_0|^2, w_0 as it was received.
     (mu: FedProx, Li et al., MLSys 2020)
  3. It sends back w. The server takes the plain mean, or the one weighted by examples; w_0 minus it is the gradient of
     the server's optimiser. (FedAdam: Reddi et al., ICLR 2021)

FedDyn (Acar et al., ICLR 2021) on w, with N clients, P of them taking part, g_k and h 0 at the start:
     client   task - <g_k, w> + alpha/2 |w - w_0|^2,   then   g_k <- g_k - alpha (w_k - w_0)
     server   h <- h - alpha/N sum_P (w_k - w_0),             w <- mean_P w_k - h / alpha
Its local problem is solved by E epochs of AdamW, as in every mode, and not to the end.

All modes and FedDAT take one schedule and one step of w per batch. (FedDAT moves its head twice.)
"""

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import optax

from fedjax_mm import aggregate, trees
from fedjax_mm.federate import Method, federate
from fedjax_mm.local import local_steps, masked_mean
from fedjax_mm.methods.fedavg import SERVER_OPTIMIZERS
from fedjax_mm.methods.feddat.vqa_tuning import (
    Training,
    adamw,
    answer,
    check,
    descend,
    evaluator,
    points,
    schedule,
    task_loss,
)
from fedjax_mm.models import Model, adapters
from fedjax_mm.types import Cohort, Download, Key, Mean, PyTree, Server


@dataclasses.dataclass(frozen=True)
class PEFTConfig:
    """Settings of one run."""

    training: Training = Training()
    travels: bool = True
    """False: every client for itself."""
    weights: Literal["uniform", "size"] = "uniform"
    """Of clients in the mean: all alike, or by their examples."""
    prox: float = 0.0
    """mu of FedProx; 0 is without."""
    dyn: float = 0.0
    """alpha of FedDyn; 0 is without."""
    server_optimizer: Literal["sgd", "momentum", "adam", "yogi"] = "sgd"
    """sgd with rate 1 is FedAvg; the others FedAvgM, FedAdam and FedYogi."""
    server_lr: float = 1.0


def build(
    config: PEFTConfig,
    data,
    model,
    trunk: PyTree,
    head: Model,
    *,
    tuning_init: Callable[[Key], PyTree] = lambda key: {},
    trains: Callable[[str], bool] = adapters.classifier,
) -> Method:
    """The method for the cohorts of `data`, a FederatedData, whose arrays are the model's own and `target` [E, K].

    model: width D and `apply(trunk, batch, tuning)` -> [B, D], pure (models.vilt); head: Model [B, D] -> [B, K].
    tuning_init: key -> what is tuned beside the trunk, {"adapter": ...}, {"lora": ...}, {"prompt": ...} or several.
    trains: which leaves of the trunk are tuned, by path: adapters.bias, adapters.norm, adapters.full. With neither, the
        head alone.

    `evaluate` gives, in percent, the mean over clients and each client's score: "score", "client 3/score" (see
    evaluator).
    """
    training = config.training
    check(training, data, head, model.width)
    tuned_leaves, frozen = trees.partition(trunk, trees.path_mask(trunk, trains))
    tuned_leaves = jax.tree.map(lambda x: x.astype(jnp.float32), tuned_leaves)  # a frozen leaf may be half precision
    init = lambda key: {"tuning": tuning_init(key), "trunk": tuned_leaves}
    travels = config.travels and bool(jax.tree.leaves(jax.eval_shape(init, jax.random.key(0))))
    _check(config, travels)
    tx, server_tx = adamw(training), SERVER_OPTIMIZERS[config.server_optimizer](config.server_lr)
    clients = sum(data.sizes.values())

    def logits(tuned, frozen, own, batch):
        pooled = model.apply(trees.merge(tuned["trunk"], frozen), batch, tuned["tuning"])
        return answer(head, own, pooled, batch)

    def update(download, state, data, key):
        received = download.sent["tuned"] if travels else state["tuned"]
        rate = schedule(training, data.count, state["rounds"])

        def loss(params, batch):
            tuned, own = params
            z = logits(tuned, download.held, own, batch)
            value = task_loss(training, z, batch)
            if mu := config.prox + config.dyn:
                value += 0.5 * mu * optax.tree.norm(optax.tree.sub(tuned, received), squared=True)
            if config.dyn:
                value -= optax.tree.vdot(state["pull"], tuned)
            return value, {"score": masked_mean(points(z, batch), batch["mask"])}

        def step(carry, batch, key):
            params, i = carry
            (value, metrics), grads = jax.value_and_grad(loss, has_aux=True)(params[0], batch)
            return (descend(tx, rate(i), grads, params), i + 1), {"loss": value, **metrics}

        params = received, state["head"]
        (((tuned, own), _), _), metrics = local_steps(
            step,
            ((params, tx.init(params)), jnp.int32(0)),
            data,
            key,
            batch_size=training.batch_size,
            epochs=training.epochs,
        )
        new = {**state, "head": own, "rounds": state["rounds"] + 1}
        if config.dyn:
            new["pull"] = jax.tree.map(lambda g, w, w0: g - config.dyn * (w - w0), state["pull"], tuned, received)
        if travels:
            upload = {"tuned": Mean(tuned, data.weight if config.weights == "size" else 1.0)}
            return upload, new, metrics
        return {}, {**new, "tuned": tuned}, metrics

    def client_init(key):
        keys = jax.random.split(key)
        state = {"head": head.init(keys[1], jnp.zeros((1, model.width))), "rounds": jnp.int32(0)}
        if config.dyn:
            state["pull"] = optax.tree.zeros_like(init(keys[0]))
        return state if travels else {**state, "tuned": init(keys[0])}

    def server_init(key):
        if not travels:
            return {"frozen": frozen}
        tuned = init(key)
        state = {"frozen": frozen, "tuned": tuned, "opt": server_tx.init(tuned)}
        return {**state, "h": optax.tree.zeros_like(tuned)} if config.dyn else state

    def download(state, public):
        sent = {"tuned": state["tuned"]} if travels else {}
        return {name: Download(sent, state["frozen"]) for name in data.cohorts}

    def server_update(state, uploads, public, key):
        if not travels:
            return state, {}
        old, mean = state["tuned"], aggregate.collect(uploads, "tuned")
        new = dict(state)
        if config.dyn:
            share = config.dyn * mean.weight / clients
            new["h"] = jax.tree.map(lambda h, w, w0: h - share * (w - w0), state["h"], mean.value, old)
            new["tuned"] = jax.tree.map(lambda w, h: w - h / config.dyn, mean.value, new["h"])
        else:
            updates, new["opt"] = server_tx.update(optax.tree.sub(old, mean.value), state["opt"], old)
            new["tuned"] = optax.apply_updates(old, updates)
        moved = {part: trees.where(mean.weight > 0, new[part], state[part]) for part in new if part != "frozen"}
        return {**state, **moved}, {}

    def predict(server, mine, batch):
        tuned = server["tuned"] if travels else mine["tuned"]
        return {"score": logits(tuned, server["frozen"], mine["head"], batch)}

    cohorts = {name: Cohort(size, client_init, update) for name, size in data.sizes.items()}
    return federate(Server(server_init, download, server_update), cohorts, evaluator(training, predict))


def _check(config: PEFTConfig, travels: bool) -> None:
    if not travels and (config.prox or config.dyn or config.server_optimizer != "sgd" or config.server_lr != 1.0):
        raise ValueError(f"nothing travels to the server, so neither prox, dyn nor a server optimiser works: {config}")
    if config.dyn and (config.weights != "uniform" or config.server_optimizer != "sgd" or config.server_lr != 1.0):
        raise ValueError(f"FedDyn has its own server step and takes clients alike; it got {config}")
    if config.prox < 0 or config.dyn < 0:
        raise ValueError(f"prox and dyn must be at least 0, got {config.prox} and {config.dyn}")
