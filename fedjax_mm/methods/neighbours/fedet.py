"""FedET: clients' small models of different kinds teach the server's larger one, through unlabelled public examples.

Cho, Manoel, Joshi, Sim, Dimitriadis, IJCAI 2022, arXiv 2204.12703:

    w_k   client k's model, small and of its cohort's kind     s_k(x)  its logits        P  the public examples
    W     the server's model, of its own encoders              h       the head, the same in all models

One round:
  1. The server sends a cohort its small encoders, and h. Client k trains both as in FedAvg, and sends w_k
     (`server_download`, `client_update`).
  2. Small encoders <- their mean in each cohort. h <- the mean over all clients: so what they learned of
     representations reaches the server (`server_update`).
  3. The consensus of a public x is  y(x) = argmax sum_k alpha_k s_k(x),  with alpha_k in proportion to the variance of
     s_k(x) over the classes: who is sure counts more (`consensus`). Those who say another class than y(x) say together
     s_div(x) = sum_k beta_k s_k(x),  with beta_k in proportion to the same variance among them (`dissent`).
  4. The server trains W on  CE(W(x), y(x)) + lambda KL(s_div(x) | W(x))  over P (`distillation_loss`). Its new h is
     what the next round sends.

A client's model sees the modalities of the public examples that it has, the server's all that its encoders read.
Differences: the paper splits a model into layers of representation, which travel between models, and layers that do
not; here the former are the head, and encoders are all that may differ. Where the paper's text was not at hand: that
models of one kind are averaged, that no temperature softens the logits, and lambda = .05.
"""

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax

from fedjax_mm import aggregate, trees
from fedjax_mm.checks import check_mapping, population_of
from fedjax_mm.federate import Method
from fedjax_mm.local import Batch, masked_mean, whole
from fedjax_mm.methods import fedavg, fit
from fedjax_mm.methods.fedavg import FedAvgConfig
from fedjax_mm.methods.fedavg.network import Encoders, Parts, predict_logits
from fedjax_mm.methods.neighbours.training import check_plain_server, check_whole_model, fit_with_public, train
from fedjax_mm.methods.settings import check_settings
from fedjax_mm.models import Model, as_encoder, as_encoders
from fedjax_mm.types import Arrays, ClientData, Download, Each, HasPopulation, Key, Metrics, Population, PyTree, Upload


@dataclasses.dataclass(frozen=True)
class FedETConfig:
    """Settings of one run."""

    distill_lr: float = 0.1
    """The server's rate on the public examples, of the clients' optimiser, which starts afresh in every round."""
    distill_epochs: int = 1
    """Passes of the server over the public examples in a round."""
    diversity: float = 0.05
    """lambda, the weight of what those say who do not follow the consensus."""
    fedavg: FedAvgConfig = FedAvgConfig()
    """How clients train. The server takes means, so its optimiser stays as it is; its batches are as large."""


def build(
    config: FedETConfig, data: HasPopulation, encoders: Encoders, head: Model, clients: Mapping[str, Encoders]
) -> Method:
    """The method for the cohorts of `data`, whose public examples have all modalities; labels of theirs are not read.

    encoders: the server's, as of `fedavg.build`; clients: cohort -> its own encoders, modality -> Model. All of them
    give embeddings [B, D] of one D, and share the head. `evaluate` scores the server's model, and a client's own test
    rows the model that its cohort gets. Errors are those of `fedavg.build`, of the models of server and cohorts.
    Raises ValueError too where `clients` is of other cohorts, where a cohort's head would not fit the server's, where
    public examples lack a modality or do not fit, and where `config.fedavg` has `shared` parts or a server optimiser.
    """
    check_settings(config, FedETConfig)
    encoders, head, population = as_encoders("encoders", encoders), as_encoder(head, name="head"), population_of(data)
    large = fedavg.build(config.fedavg, data, encoders, head)
    check_whole_model("FedET", config.fedavg)
    check_plain_server("FedET", config.fedavg)
    if set(check_mapping("clients", clients, "cohort to its encoders")) != set(population.cohorts):
        raise ValueError(f"clients is of {sorted(clients)}; the cohorts are {sorted(population.cohorts)}")
    own = {name: as_encoders(f"clients[{name!r}]", clients[name]) for name in population.cohorts}
    small = {name: fedavg.build(config.fedavg, alone(population, name), own[name], head) for name in own}
    check_heads(large, small)
    fitted = functools.partial(fit_with_public, use="of which clients' models teach the server's")
    fits = {name: fitted(own[name], head, alone(population, name)) for name in own}
    check = functools.partial(check_population, fitted(encoders, head, population), fits)
    check(population)
    server = large.server._replace(
        init=functools.partial(init_server, large, small),
        download=server_download,
        update=functools.partial(server_update, config, encoders, head, own),
    )
    update = {name: functools.partial(client_update, config, own[name], head) for name in own}
    cohorts = {name: method.cohorts[name]._replace(update=update[name]) for name, method in small.items()}
    return large._replace(server=server, cohorts=cohorts, check=check)


def alone(population: Population, name: str) -> Population:
    """The population of one cohort, with the public examples."""
    return population._replace(cohorts={name: population.cohorts[name]})


def check_heads(large: Method, small: Mapping[str, Method]) -> None:
    """Raises ValueError where the head's parameters are others after a cohort's encoders than after the server's.

    large: FedAvg's method of the server's model; small: cohort -> that of its own model.
    """
    shapes = lambda method: jax.eval_shape(method.server.init, jax.random.key(0))["params"]["head"]
    for name, method in small.items():
        if shapes(method) != shapes(large):
            said = f"the head has other parameters after the encoders of {name} than after the server's"
            raise ValueError(f"{said}, and all models share it: give embeddings [B, D] of the same D")


def check_population(large: fit.Fit, small: Mapping[str, fit.Fit], population: Population) -> None:
    """Raises ValueError where a population does not fit the server's model, or a cohort the model of its own."""
    fit.check_population(large, population)
    for name, one in small.items():
        fit.check_population(one, alone(population, name))


def init_server(large: Method, small: Mapping[str, Method], key: Key) -> dict[str, PyTree]:
    """The server's first state: {"params": W with the head h, "small": cohort -> its encoders}.

    large: FedAvg's method of the server's model; small: cohort -> that of its own model.
    """
    keys = dict(zip(small, jax.random.split(jax.random.fold_in(key, 1), len(small)), strict=True))
    drawn = {name: method.server.init(keys[name])["params"] for name, method in small.items()}
    encoders = {name: {m: value for m, value in params.items() if m != "head"} for name, params in drawn.items()}
    return {"params": large.server.init(key)["params"], "small": encoders}


def server_download(state: Mapping[str, PyTree], public: Arrays | None = None) -> dict[str, Download]:
    """Step 1: what each cohort gets, its own encoders and the server's head.

    >>> state = {"params": {"image": 1, "head": 2}, "small": {"phones": {"image": 3}}}
    >>> server_download(state)["phones"].sent
    {'image': 3, 'head': 2}
    """
    return {name: Download({**own, "head": state["params"]["head"]}) for name, own in state["small"].items()}


def client_update(
    config: FedETConfig,
    encoders: Encoders,
    head: Model,
    download: Download,
    state: Parts,
    data: ClientData,
    key: Key,
) -> tuple[Upload, Parts, Metrics]:
    """Step 1: what one client sends, an Each of every part of w_k, no state, and the metrics of FedAvg.

    >>> from fedjax_mm.local import whole
    >>> identity = Model(lambda key, x: {}, lambda params, x: x)
    >>> add = Model(lambda key, x: jnp.zeros(2), lambda bias, x: x + bias[None])
    >>> data = whole({"x": jnp.zeros((1, 2)), "label": jnp.array([1])})
    >>> config, download = FedETConfig(fedavg=FedAvgConfig(client_lr=1.0)), Download({"x": {}, "head": jnp.zeros(2)})
    >>> upload, _, _ = client_update(config, {"x": identity}, add, download, {}, data, jax.random.key(0))
    >>> upload["head"].value.tolist(), float(upload["head"].weight)
    ([-0.5, 0.5], 1.0)
    """
    sent, own, metrics = fedavg.client_update(config.fedavg, encoders, head, download, state, data, key)
    return {part: Each(*one) for part, one in sent.items()}, own, metrics


def ask(encoders: Encoders, head: Model, models: Parts, public: Arrays) -> jax.Array:
    """[C, P, K]: s_k(x), the logits of a cohort's models for the public examples. models: leaves [C, ...].

    >>> identity = Model(lambda key, x: {}, lambda params, x: x)
    >>> add = Model(lambda key, x: jnp.zeros(1), lambda bias, x: x + bias[None])
    >>> ask({"x": identity}, add, {"x": {}, "head": jnp.array([[0.0], [5.0]])}, {"x": jnp.array([[1.0]])}).tolist()
    [[[1.0]], [[6.0]]]
    """
    # One after the other, so that the memory holds one model's activations of all P.
    return jax.lax.map(lambda w: predict_logits(encoders, head, w, public), models)


def consensus(said: jax.Array, weight: jax.Array) -> jax.Array:
    """Step 3: y(x) [P], the classes that clients agree on. said: s_k(x) [C, P, K]; weight [C], 0 for who sent nothing.

    >>> said = jnp.array([[[1.0, 0.0]], [[1.0, 0.0]], [[0.0, 3.0]]])  # two that are unsure, and one that is sure
    >>> consensus(said, jnp.ones(3)).tolist(), consensus(said, jnp.array([1.0, 1.0, 0.0])).tolist()
    ([1], [0])
    """
    return aggregate.combine(aggregate.variance_weights(said, weight), said).argmax(-1)


def dissent(said: jax.Array, weight: jax.Array, label: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Step 3: (s_div(x) [P, K], 1 where somebody says another class than y(x) [P]). label: y(x) [P].

    >>> said = jnp.array([[[1.0, 0.0]], [[3.0, 0.0]], [[0.0, 3.0]]])
    >>> others, there = dissent(said, jnp.ones(3), jnp.array([1]))
    >>> others.round(2).tolist(), there.tolist()  # in proportion to the variances .25 and 2.25
    ([[2.79..., 0.0]], [1.0])
    """
    differs = weight[:, None] * (said.argmax(-1) != label[None])  # [C, P]
    shares = jax.vmap(lambda of, who: aggregate.variance_weights(of[:, None], who)[:, 0], 1, 1)(said, differs)
    return aggregate.combine(shares, said), (differs > 0).any(0).astype(jnp.float32)


def distillation_loss(
    config: FedETConfig, encoders: Encoders, head: Model, params: Parts, batch: Batch
) -> tuple[jax.Array, Metrics]:
    """Step 4: (the mean of CE(W(x), y(x)) + lambda KL(s_div(x) | W(x)) [], {"dissent": the mean of the KL []}).

    batch: public examples with y(x) as "label", and what `dissent` gives as "others" [B, K] and "there" [B].

    >>> identity = Model(lambda key, x: {}, lambda params, x: x)
    >>> batch = {"x": jnp.zeros((2, 2)), "label": jnp.array([0, 0]), "mask": jnp.ones(2)}
    >>> batch |= {"others": jnp.array([[99.0, 0.0], [99.0, 0.0]]), "there": jnp.array([1.0, 0.0])}
    >>> params = {"x": {}, "head": {}}
    >>> value, metrics = distillation_loss(FedETConfig(diversity=2.0), {"x": identity}, identity, params, batch)
    >>> round(float(value / jnp.log(2)), 3), round(float(metrics["dissent"] / jnp.log(2)), 3)
    (2.0, 0.5)
    """
    logits = predict_logits(encoders, head, params, batch)
    follow = masked_mean(optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]), batch["mask"])
    log_p, others = jax.nn.log_softmax(logits), jax.nn.log_softmax(batch["others"])
    apart = optax.losses.kl_divergence_with_log_targets(log_p, others)
    differ = masked_mean(apart * batch["there"], batch["mask"])
    return follow + config.diversity * differ, {"dissent": differ}


def server_update(
    config: FedETConfig,
    encoders: Encoders,
    head: Model,
    own: Mapping[str, Encoders],
    state: Mapping[str, PyTree],
    uploads: Mapping[str, Upload],
    public: Arrays | None,
    key: Key,
) -> tuple[dict[str, PyTree], Metrics]:
    """Steps 2 to 4: the server's new state, and the metrics "loss" and "dissent", means over its steps.

    own: cohort -> its encoders. Where nobody sent anything, the state stays as it is.

    >>> identity = Model(lambda key, x: {}, lambda params, x: x)
    >>> add = Model(lambda key, x: jnp.zeros(2), lambda bias, x: x + bias[None])
    >>> encoders, none = {"x": identity}, {"x": {}}
    >>> sent = {part: Each(value, jnp.ones(1)) for part, value in (("x", {}), ("head", jnp.array([[2.0, 0.0]])))}
    >>> state = {"params": {"x": {}, "head": jnp.zeros(2)}, "small": {"all": none}}
    >>> update = functools.partial(server_update, FedETConfig(distill_lr=1.0), encoders, add, {"all": encoders}, state)
    >>> update({"all": sent}, {"x": jnp.zeros((1, 2))}, jax.random.key(0))[0]["params"]["head"].round(2).tolist()
    [2.11..., -0.11...]
    """
    if public is None:
        raise ValueError("FedET teaches its server through public examples, and there are none")
    heads, small = aggregate.collect(uploads, "head"), {}
    for name, old in state["small"].items():
        small[name] = {m: aggregate.average(uploads[name][m], value) for m, value in old.items()}
    start = {**state["params"], "head": aggregate.average(heads, state["params"]["head"])}
    models = {name: {part: one.value for part, one in sent.items()} for name, sent in uploads.items()}
    said = jnp.concatenate([ask(own[name], head, models[name], public) for name in models])
    label = consensus(said, heads.weight)
    others, there = dissent(said, heads.weight, label)
    lessons = {**{m: public[m] for m in encoders}, "label": label, "others": others, "there": there}
    how = dataclasses.replace(config.fedavg, client_lr=config.distill_lr, epochs=config.distill_epochs)
    loss = lambda params, batch, key: distillation_loss(config, encoders, head, params, batch)
    taught, _, metrics = train(how, loss, start, whole(lessons), key)
    return {"params": trees.where(heads.weight.sum() > 0, taught, start), "small": small}, metrics
