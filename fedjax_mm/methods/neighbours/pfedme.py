"""pFedMe: the server trains what each client's own model is best held near.

Dinh, Tran, Nguyen, NeurIPS 2020, arXiv 2006.08848, algorithm 1:

    w        the server's parameters         lambda  `prox`             K     `inner_steps`
    w_k      client k's copy of them         eta     `client_lr`        beta  `server_lr`
    theta_k  client k's own parameters

One round:
  1. The server sends w, as in FedAvg.
  2. Client k starts from w_k = w and, for each batch,
     theta_k <- about the least of  F_k(theta) + lambda/2 |theta - w_k|^2  on this batch, by K steps of gradient descent
     from w_k with the rate `personal_lr`  (`personalise`), and  w_k <- w_k - eta lambda (w_k - theta_k)  (`follow`).
     It sends w_k and keeps theta_k (`client_update`).
  3. w <- (1 - beta) w + beta mean_k w_k: the server's SGD with the rate beta, as in FedAvg.

Client k predicts with theta_k, which is w at first. With K = 1, w is trained as by FedAvg with the rate eta lambda
personal_lr. Deviations: the released code starts the inner steps at the theta_k of the batch before. Only the clients
that take part train, and they weigh by examples, as in that code.
"""

import dataclasses
import functools

import jax
import optax

from fedjax_mm.federate import Method
from fedjax_mm.local import Batch, gradient_step, local_steps
from fedjax_mm.methods import fedavg
from fedjax_mm.methods.fedavg import FedAvgConfig, kind_weight, local_loss
from fedjax_mm.methods.fedavg.network import Encoders, Parts
from fedjax_mm.methods.neighbours.ditto import init_client
from fedjax_mm.methods.neighbours.training import check_sgd, check_whole_model
from fedjax_mm.methods.settings import check_settings
from fedjax_mm.models import Model, as_encoder, as_encoders
from fedjax_mm.types import ClientData, Download, HasPopulation, Key, Mean, Metrics, PyTree, Upload


@dataclasses.dataclass(frozen=True)
class PFedMeConfig:
    """Settings of one run. The defaults are those of the released code."""

    prox: float = 15.0
    """lambda, the weight by which a client's own model is held near the server's."""
    inner_steps: int = 5
    """K, steps of gradient descent that a client's own model takes on one batch."""
    personal_lr: float = 0.1
    """Rate of the inner steps."""
    fedavg: FedAvgConfig = FedAvgConfig(client_lr=0.005)
    """client_lr is eta, server_lr beta; the batches, epochs and weights are FedAvg's."""


def build(config: PFedMeConfig, data: HasPopulation, encoders: Encoders, head: Model) -> Method:
    """The method for the cohorts of `data`. Arguments, scores and errors are those of `fedavg.build`.

    `evaluate` tests the server's model w; a client's own test rows are scored with theta_k. Raises ValueError too where
    `config.fedavg` has a proximal term, parts that are `shared`, or clients with another optimiser than SGD.
    """
    check_settings(config, PFedMeConfig)
    encoders, head = as_encoders("encoders", encoders), as_encoder(head, name="head")
    base = fedavg.build(config.fedavg, data, encoders, head)
    check_whole_model("pFedMe", config.fedavg)
    check_sgd("pFedMe", config.fedavg)
    if config.fedavg.prox:
        raise ValueError(
            f"FedAvgConfig.prox is {config.fedavg.prox}; pFedMe's lambda is PFedMeConfig.prox, so leave it 0"
        )
    update = functools.partial(client_update, config, encoders, head)
    cohorts = {
        name: cohort._replace(init=functools.partial(init_client, base, name), update=update)
        for name, cohort in base.cohorts.items()
    }
    return base._replace(cohorts=cohorts)


def personalise(
    config: PFedMeConfig, encoders: Encoders, head: Model, w: Parts, batch: Batch, key: Key
) -> tuple[Parts, Metrics]:
    """(theta_k, metrics): K steps from w on F_k(theta) + lambda/2 |theta - w|^2, of a batch. Metrics are of the last.

    w: w_k.

    >>> import jax.numpy as jnp
    >>> identity = Model(lambda key, x: {}, lambda params, x: x)
    >>> add = Model(lambda key, x: jnp.zeros(2), lambda bias, x: x + bias[None])
    >>> batch = {"x": jnp.zeros((1, 2)), "label": jnp.array([0]), "mask": jnp.ones(1)}
    >>> w, config = {"x": {}, "head": jnp.zeros(2)}, PFedMeConfig(prox=2.0, inner_steps=1, personal_lr=1.0)
    >>> personalise(config, {"x": identity}, add, w, batch, jax.random.key(0))[0]["head"].tolist()
    [0.5, -0.5]
    """
    held = FedAvgConfig(prox=config.prox)
    tx = optax.sgd(config.personal_lr)
    descend = gradient_step(lambda theta, batch, key: local_loss(held, encoders, head, theta, w, batch), tx)
    inner = lambda carry, _: descend(carry, batch, key)
    (theta, _), metrics = jax.lax.scan(inner, (w, tx.init(w)), None, length=config.inner_steps)
    return theta, jax.tree.map(lambda x: x[-1], metrics)


def follow(w: PyTree, theta: PyTree, rate: float) -> PyTree:
    """w_k - eta lambda (w_k - theta_k). rate: eta lambda.

    >>> import jax.numpy as jnp
    >>> follow(jnp.array([1.0]), jnp.array([3.0]), 0.5).tolist()
    [2.0]
    """
    return optax.tree.cast_like(jax.tree.map(lambda w, theta: w - rate * (w - theta), w, theta), w)


def client_update(
    config: PFedMeConfig,
    encoders: Encoders,
    head: Model,
    download: Download,
    state: Parts,
    data: ClientData,
    key: Key,
) -> tuple[Upload, dict[str, PyTree], Metrics]:
    """Step 2: what one client sends, a Mean of w_k for each part, its new theta_k, and the metrics "loss" and
    "accuracy" of theta_k, means over batches.

    >>> import jax.numpy as jnp
    >>> from fedjax_mm.local import whole
    >>> identity = Model(lambda key, x: {}, lambda params, x: x)
    >>> add = Model(lambda key, x: jnp.zeros(2), lambda bias, x: x + bias[None])
    >>> data = whole({"x": jnp.zeros((1, 2)), "label": jnp.array([0])})
    >>> w = {"x": {}, "head": jnp.zeros(2)}
    >>> config = PFedMeConfig(prox=2.0, inner_steps=1, personal_lr=1.0, fedavg=FedAvgConfig(client_lr=0.25))
    >>> upload, state, _ = client_update(config, {"x": identity}, add, Download(w), w, data, jax.random.key(0))
    >>> upload["head"].value.tolist(), state["head"].tolist()
    ([0.25, -0.25], [0.5, -0.5])
    """
    of = config.fedavg

    def step(carry: tuple[Parts, Parts], batch: Batch, key: Key) -> tuple[tuple[Parts, Parts], Metrics]:
        w, _ = carry
        theta, metrics = personalise(config, encoders, head, w, batch, key)
        return (follow(w, theta, of.client_lr * config.prox), theta), metrics

    begin = dict(download.sent), dict(state)
    (w, theta), metrics = local_steps(step, begin, data, key, batch_size=of.batch_size, epochs=of.epochs)
    weight = kind_weight(of, w) * data.weight
    return {part: Mean(value, weight) for part, value in w.items()}, theta, metrics
