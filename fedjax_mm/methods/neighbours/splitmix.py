"""Split-Mix: narrow base networks are trained one by one, and as many as one can afford are mixed to predict.

Hong, Wang, Wang, Zhou, ICLR 2022, arXiv 2203.09747, customisation of width:

    theta_j  the base networks, j = 1..J, each of 1/J of the full width     J  `bases`
    b_k      how many of them client k's budget allows in a round           `budgets`, by cohort
    m        how many are mixed where one predicts                          `mixed`

One round:
  1. The server sends all J base networks.
  2. Client k draws b_k of them without replacement (`deal`), trains each as in FedAvg, independently of the others, and
     sends them (`client_update`).
  3. theta_j <- the mean over those who trained j, weighted as in FedAvg; one that nobody trained stays
     (`server_update`).

A model of m / J of the full width is the mean of the logits of the first m base networks (`mix`), with no training of
its own: `build` with another `mixed` takes the same state. Base networks start apart, from draws of their own.
Differences: clients draw their base networks themselves, where the paper's server deals from one pile, and get all J,
since a cohort's clients all get the same, so that a client's bytes down are J / b_k times the paper's. The paper's
rules for batch norms are not here, as models of this library have none, nor are its levels of robustness.
"""

import dataclasses
import functools
from collections.abc import Collection, Mapping

import jax
import jax.numpy as jnp

from fedjax_mm.checks import population_of
from fedjax_mm.federate import Method
from fedjax_mm.methods import fedavg
from fedjax_mm.methods.fedavg import FedAvgConfig
from fedjax_mm.methods.fedavg.network import Encoders, Parts
from fedjax_mm.methods.neighbours import ifca
from fedjax_mm.methods.neighbours.training import check_plain_server, check_whole_model
from fedjax_mm.methods.settings import check_settings
from fedjax_mm.models import Model, as_encoder, as_encoders
from fedjax_mm.types import Arrays, ClientData, Download, Each, HasPopulation, Key, Metrics, PyTree, Upload


@dataclasses.dataclass(frozen=True)
class SplitMixConfig:
    """Settings of one run."""

    bases: int = 4
    """J, how many base networks there are. With 1 this is FedAvg."""
    budgets: Mapping[str, int] | None = None
    """b_k of each cohort's clients, at least 1. None: all clients train all base networks."""
    mixed: int | None = None
    """m, how many base networks predict. None: all."""
    fedavg: FedAvgConfig = FedAvgConfig()
    """How a client trains a base network. The server takes means, so its optimiser stays as it is."""


def build(config: SplitMixConfig, data: HasPopulation, encoders: Encoders, head: Model) -> Method:
    """The method for the cohorts of `data`. Arguments, scores and errors are those of `fedavg.build`.

    encoders, head: of one base network. Raises ValueError too where `config.fedavg` has parts that are `shared` or a
    server optimiser other than the default, where budgets are not of the cohorts of `data`, and where a budget or
    `mixed` is not within 1..J.
    """
    check_settings(config, SplitMixConfig)
    encoders, head = as_encoders("encoders", encoders), as_encoder(head, name="head")
    mixed = config.bases if config.mixed is None else config.mixed
    budgets = budgets_of(config, population_of(data).sizes)
    wide = {m: mix_encoder(config.bases, mixed, encoder) for m, encoder in encoders.items()}
    base = fedavg.build(config.fedavg, data, wide, mix_head(config.bases, mixed, head))
    check_whole_model("Split-Mix", config.fedavg)
    check_plain_server("Split-Mix", config.fedavg)
    cohorts = {
        name: one._replace(update=functools.partial(client_update, config, budgets[name], encoders, head))
        for name, one in base.cohorts.items()
    }
    return base._replace(server=base.server._replace(update=server_update), cohorts=cohorts)


def budgets_of(config: SplitMixConfig, cohorts: Collection[str]) -> dict[str, int]:
    """{cohort: b_k of its clients}. Raises ValueError where they are of other cohorts, or a number is not within 1..J.

    >>> budgets_of(SplitMixConfig(bases=3), ["phones", "watches"])
    {'phones': 3, 'watches': 3}
    """
    budgets = dict.fromkeys(cohorts, config.bases) if config.budgets is None else dict(config.budgets)
    if set(budgets) != set(cohorts):
        raise ValueError(f"SplitMixConfig.budgets is of {sorted(budgets)}; the cohorts are {sorted(cohorts)}")
    numbers = {**budgets, "mixed": config.bases if config.mixed is None else config.mixed}
    if wrong := {name: number for name, number in numbers.items() if not 1 <= number <= config.bases}:
        raise ValueError(f"{wrong} of SplitMixConfig must be within 1..{config.bases}, as there are so many bases")
    return budgets


def init_bases(bases: int, model: Model, key: Key, batch: jax.Array) -> PyTree:
    """The first parameters of J models, leaves [J, ...], each from a draw of its own.

    >>> draw = Model(lambda key, x: jax.random.normal(key, (2,)), lambda params, x: x)
    >>> init_bases(3, draw, jax.random.key(0), jnp.ones((1, 2))).shape
    (3, 2)
    """
    return jax.vmap(lambda one: model.init(one, batch))(jax.random.split(key, bases))


def mix_encoder(bases: int, mixed: int, encoder: Model) -> Model:
    """The encoder [B, ...] -> [B, m D] whose output is the embeddings [B, D] of m base encoders side by side.

    Its parameters are those of all J, leaves [J, ...]. encoder: of one base network.

    >>> scale = Model(lambda key, x: jnp.ones(()), lambda params, x: params * x)
    >>> mix_encoder(3, 2, scale).apply(jnp.array([1.0, 2.0, 3.0]), jnp.array([[1.0, 5.0]])).tolist()
    [[1.0, 5.0, 2.0, 10.0]]
    """

    def apply(params: PyTree, x: jax.Array) -> jax.Array:
        embeddings = jax.vmap(encoder.apply, (0, None))(jax.tree.map(lambda leaf: leaf[:mixed], params), x)
        return jnp.moveaxis(embeddings, 0, 1).reshape(len(x), -1)

    return encoder._replace(init=functools.partial(init_bases, bases, encoder), apply=apply)


def mix_head(bases: int, mixed: int, head: Model) -> Model:
    """The head [B, m D] -> [B, K] whose logits are the mean of those that m base heads give to their own embeddings.

    >>> scale = Model(lambda key, x: jnp.ones(()), lambda params, x: params * x)
    >>> mix_head(3, 2, scale).apply(jnp.array([1.0, 3.0, 9.0]), jnp.array([[1.0, 0.0, 5.0, 2.0]])).tolist()
    [[8.0, 3.0]]
    """
    split = lambda x: jnp.moveaxis(x.reshape(len(x), mixed, -1), 1, 0)  # [m, B, D]

    def apply(params: PyTree, x: jax.Array) -> jax.Array:
        return jax.vmap(head.apply)(jax.tree.map(lambda leaf: leaf[:mixed], params), split(x)).mean(0)

    return Model(lambda key, x: init_bases(bases, head, key, split(x)[0]), apply)


def deal(bases: int, budget: int, key: Key) -> jax.Array:
    """[b_k] int: the numbers of the base networks that a client trains in a round, all different.

    >>> sorted(deal(3, 3, jax.random.key(0)).tolist()), deal(3, 2, jax.random.key(0)).shape
    ([0, 1, 2], (2,))
    """
    return jax.random.permutation(key, bases)[:budget]


def client_update(
    config: SplitMixConfig,
    budget: int,
    encoders: Encoders,
    head: Model,
    download: Download,
    state: Parts,
    data: ClientData,
    key: Key,
) -> tuple[Upload, Parts, Metrics]:
    """Step 2: what one client sends, no state, and the metrics of FedAvg, means over its base networks.

    The upload has an Each of {"params": leaves [b_k, ...], "model": [b_k]} for each part.

    >>> from fedjax_mm.local import whole
    >>> identity = Model(lambda key, x: {}, lambda params, x: x)
    >>> add = Model(lambda key, x: jnp.zeros(2), lambda bias, x: x + bias[None])
    >>> data, config = whole({"x": jnp.zeros((1, 2)), "label": jnp.array([0])}), SplitMixConfig(2)
    >>> config = dataclasses.replace(config, fedavg=FedAvgConfig(client_lr=1.0))
    >>> download = Download({"x": {}, "head": jnp.zeros((2, 2))})
    >>> upload, _, _ = client_update(config, 1, {"x": identity}, add, download, {}, data, jax.random.key(0))
    >>> upload["head"].value["params"].tolist(), upload["head"].value["model"].shape
    ([[0.5, -0.5]], (1,))
    """
    deal_key, train_key = jax.random.split(key)
    train = functools.partial(ifca.train_picked, config.fedavg, encoders, head, download.sent)
    keys = jax.random.split(train_key, budget)
    sent, metrics = jax.vmap(lambda number, key: train(number, data, key))(deal(config.bases, budget, deal_key), keys)
    upload = {part: Each(one.value, one.weight[0]) for part, one in sent.items()}
    return upload, state, jax.tree.map(lambda x: x.mean(0), metrics)


def each_base(sent: Each) -> Each:
    """What clients sent, base network by base network: leaves [C, b, ...] -> [C b, ...].

    >>> sent = Each({"params": jnp.array([[3.0, 5.0]]), "model": jnp.array([[2, 0]])}, jnp.array([7.0]))
    >>> flat = each_base(sent)
    >>> flat.value["params"].tolist(), flat.value["model"].tolist(), flat.weight.tolist()
    ([3.0, 5.0], [2, 0], [7.0, 7.0])
    """
    budget = sent.value["model"].shape[1]
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), sent.value)
    return Each(flat, jnp.repeat(sent.weight, budget))


def server_update(
    state: Mapping[str, Parts], uploads: Mapping[str, Upload], public: Arrays | None, key: Key
) -> tuple[dict[str, Parts], Metrics]:
    """Step 3: the server's new state, and no metrics. This is IFCA's step for what `each_base` gives.

    >>> sent = {"params": jnp.array([[3.0], [5.0]]), "model": jnp.array([[1], [1]])}
    >>> uploads = {"all": {"head": Each(sent, jnp.array([3.0, 1.0]))}}
    >>> server_update({"params": {"head": jnp.zeros(2)}, "opt": {}}, uploads, None, jax.random.key(0))[0]["params"]
    {'head': Array([0. , 3.5], dtype=float32)}
    """
    flat = {name: {part: each_base(Each(*one)) for part, one in sent.items()} for name, sent in uploads.items()}
    new, metrics = ifca.server_update(state, flat, public, key)
    return {**state, **new}, metrics
