"""MFedMC: a model for each modality, of which a client sends the few that matter, and a fusion that stays with it.

Yuan, Han, Wang, Upadhyay, Brinton, arXiv 2401.16685 (mmFedMC in its first version):

    theta_m   the model of modality m, from inputs to logits    omega_k   client k's fusion of their predictions
    phi_m     the Shapley value of m in client k's fusion      |theta_m| its number of parameters
    r_m       the rounds since client k sent theta_m            gamma     `sent_modalities`      delta   `sent_share`

One round:
  1. The server sends the theta_m of a client's modalities.
  2. Client k trains each theta_m on the cross-entropy of its own predictions, and omega_k on theirs together, with
     the theta_m as they now are (`modality_loss`, `client_update`).
  3. It ranks its modalities by  alpha_s |phi_m| + alpha_c (1 - |theta_m|) + alpha_r r_m  (`shapley_values`,
     `priorities`) and offers the first gamma of them, each with the loss of theta_m (`offered`).
  4. Of those who offer theta_m the server takes the share delta that has the lowest loss, and averages (`chosen`,
     `server_update`).

Client k predicts with its fusion of the server's models. The value of a set of modalities, of which Shapley's are
made, is the accuracy of omega_k on the client's own examples where the other modalities say nothing (probabilities
0). Each of the three terms is divided by its greatest, so that it lies in 0..1. Choices where the paper's text was
not at hand: this value and these quotients, and omega_k as a linear layer on the modalities' probabilities. The
engine knows an upload before it knows what others sent: who is not chosen has its model in the round's memory and in
`costs.of` all the same. The metric "sent" says how many models were taken; theirs are the bytes that the paper
counts.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax

from fedjax_mm import aggregate
from fedjax_mm.federate import Method
from fedjax_mm.local import Batch, local_steps, masked_mean
from fedjax_mm.methods import fedavg
from fedjax_mm.methods.fedavg import FedAvgConfig, fitting, local_loss
from fedjax_mm.methods.fedavg.network import Encoders, Parts
from fedjax_mm.methods.neighbours.mfedmc_choice import chosen, offered, priorities, shapley_values
from fedjax_mm.methods.neighbours.training import check_plain_server, check_whole_model, train
from fedjax_mm.methods.settings import check_settings
from fedjax_mm.models import Model, as_encoder, as_encoders, heads
from fedjax_mm.types import Arrays, ClientData, Download, Each, HasPopulation, Key, Metrics, PyTree, Upload


@dataclasses.dataclass(frozen=True)
class MFedMCConfig:
    """Settings of one run."""

    sent_modalities: int = 1
    """gamma, how many of its modalities' models a client offers in a round."""
    sent_share: float = 0.2
    """delta, the share of the offers of a modality that the server takes, one at least; at most 1."""
    shapley_weight: float = 1 / 3
    """alpha_s, the weight of a modality's part in the client's predictions."""
    size_weight: float = 1 / 3
    """alpha_c, the weight of how small a modality's model is."""
    recency_weight: float = 1 / 3
    """alpha_r, the weight of the rounds since the client sent it."""
    fedavg: FedAvgConfig = FedAvgConfig()
    """How clients train models and fusion. The server takes means, so its optimiser stays as it is."""


def build(config: MFedMCConfig, data: HasPopulation, encoders: Encoders, head: Model) -> Method:
    """The method for the cohorts of `data`. head: the classifier of each modality's model. Else as `fedavg.build`.

    Scores and errors are those of `fedavg.build` with personal heads, the fusions. Raises ValueError too where
    `config.fedavg` has parts that are `shared`, or a server optimiser other than the default.
    """
    check_settings(config, MFedMCConfig)
    encoders, head = as_encoders("encoders", encoders), as_encoder(head, name="head")
    check_whole_model("MFedMC", config.fedavg)
    check_plain_server("MFedMC", config.fedavg)
    modalities, examples = fitting.find_modalities(encoders, data.population)
    fusion = heads.linear(fitting.count_classes(encoders, head, examples))
    models = fused_models(encoders, head)
    base = fedavg.build(dataclasses.replace(config.fedavg, shared=tuple(encoders)), data, models, fusion)
    update = functools.partial(client_update, config, encoders, head, fusion)
    cohorts = {
        name: one._replace(init=functools.partial(init_client, one.init, modalities[name]), update=update)
        for name, one in base.cohorts.items()
    }
    server = base.server._replace(update=functools.partial(server_update, config.sent_share))
    return base._replace(server=server, cohorts=cohorts)


def modality_logits(encoder: Model, head: Model, theta: PyTree, x: jax.Array) -> jax.Array:
    """The logits [B, K] of one modality's model. theta: {"encoder", "head"}.

    >>> double = Model(lambda key, x: {}, lambda params, x: 2 * x)
    >>> modality_logits(double, double, {"encoder": {}, "head": {}}, jnp.ones((1, 2))).tolist()
    [[4.0, 4.0]]
    """
    return head.apply(theta["head"], encoder.apply(theta["encoder"], x))


def fused_models(encoders: Encoders, head: Model) -> dict[str, Model]:
    """Every theta_m as an encoder of FedAvg's, whose embeddings are M times its class probabilities in the m-th place.

    The mean of the embeddings of all M modalities is then their probabilities side by side, [B, M K], which the fusion
    reads; where an example lacks some, theirs are 0.

    >>> identity = Model(lambda key, x: {}, lambda params, x: x)
    >>> models = fused_models({"image": identity, "text": identity}, identity)
    >>> models["text"].apply({"encoder": {}, "head": {}}, jnp.zeros((1, 2))).tolist()
    [[0.0, 0.0, 1.0, 1.0]]
    """

    def init(encoder: Model, key: Key, x: jax.Array) -> PyTree:
        keys = jax.random.split(key)
        params = encoder.init(keys[0], x)
        return {"encoder": params, "head": head.init(keys[1], encoder.apply(params, x))}

    def apply(place: int, encoder: Model, theta: PyTree, x: jax.Array) -> jax.Array:
        said = jax.nn.softmax(modality_logits(encoder, head, theta, x), -1)
        around = place * said.shape[1], (len(encoders) - 1 - place) * said.shape[1]
        return len(encoders) * jnp.pad(said, ((0, 0), around))

    bind = lambda i, one: {"init": functools.partial(init, one), "apply": functools.partial(apply, i, one)}
    return {m: one._replace(**bind(i, one)) for i, (m, one) in enumerate(encoders.items())}


def init_client(init: Callable[..., PyTree], modalities: tuple[str, ...], key: Key) -> dict[str, PyTree]:
    """A client's first state: {"head": omega_k, which `init` gives, "waited": {m: r_m}}, r_m of its modalities being 0.

    >>> init_client(lambda key: {"head": 1.0}, ("image",), jax.random.key(0))
    {'head': 1.0, 'waited': {'image': Array(0., dtype=float32)}}
    """
    return {**init(key), "waited": {m: jnp.float32(0) for m in modalities}}


def modality_loss(
    encoders: Encoders, head: Model, thetas: Parts, batch: Batch
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """(the sum of all modalities' losses [], {modality: its mean cross-entropy []} over the rows that have it).

    >>> identity = Model(lambda key, x: {}, lambda params, x: x)
    >>> batch = {"x": jnp.zeros((2, 2)), "label": jnp.array([0, 1]), "mask": jnp.ones(2)}
    >>> value, each = modality_loss({"x": identity}, identity, {"x": {"encoder": {}, "head": {}}}, batch)
    >>> round(float(value), 3), round(float(each["x"]), 3)
    (0.693, 0.693)
    """
    each = {}
    for m in thetas:
        logits = modality_logits(encoders[m], head, thetas[m], batch[m])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        each[m] = masked_mean(losses, batch["mask"] * batch.get(f"has_{m}", batch["mask"]).astype(jnp.float32))
    return jnp.stack(list(each.values())).sum(), each


def right_by_set(
    encoders: Encoders, head: Model, fusion: Model, thetas: Parts, omega: PyTree, batch: Batch
) -> jax.Array:
    """[2^M]: in how many rows the fusion is right for each set of the client's modalities, the others saying nothing.

    The sets stand in the order of `shapley_values`.

    >>> identity = Model(lambda key, x: {}, lambda params, x: x)
    >>> batch = {"x": jnp.array([[0.0, 9.0]]), "label": jnp.array([1]), "mask": jnp.ones(1)}
    >>> theta = {"encoder": {}, "head": {}}
    >>> right_by_set({"x": identity}, identity, identity, {"x": theta}, {}, batch).tolist()
    [0.0, 1.0]
    """
    models = fused_models(encoders, head)
    there = jnp.stack([batch.get(f"has_{m}", batch["mask"]).astype(jnp.float32) for m in thetas])[..., None]
    said = (
        jnp.stack([models[m].apply(thetas[m], batch[m]) for m in thetas]) * there / jnp.maximum(there.sum(0), 1)[None]
    )
    sets = jnp.array(list(itertools.product([0.0, 1.0], repeat=len(thetas))))
    logits = jax.vmap(lambda members: fusion.apply(omega, jnp.tensordot(members, said, 1)))(sets)
    return ((logits.argmax(-1) == batch["label"][None]) * batch["mask"][None]).sum(1)


def client_update(
    config: MFedMCConfig,
    encoders: Encoders,
    head: Model,
    fusion: Model,
    download: Download,
    state: Mapping[str, PyTree],
    data: ClientData,
    key: Key,
) -> tuple[Upload, dict[str, PyTree], Metrics]:
    """Steps 2 and 3: what one client offers, its new fusion and waiting times, and the metrics "loss" and "accuracy".

    The upload has an Each of {"params": theta_m, "loss": its loss []} for each modality; weight 0: not offered.

    >>> from fedjax_mm.local import whole
    >>> identity = Model(lambda key, x: {}, lambda params, x: x)
    >>> add = Model(lambda key, x: jnp.zeros(2), lambda bias, x: x + bias[None])
    >>> data, key = whole({"x": jnp.zeros((1, 2)), "label": jnp.array([0])}), jax.random.key(0)
    >>> download = Download({"x": {"encoder": {}, "head": jnp.zeros(2)}})
    >>> config, own = MFedMCConfig(fedavg=FedAvgConfig(client_lr=1.0)), {"head": {}, "waited": {"x": jnp.float32(3)}}
    >>> upload, own, _ = client_update(config, {"x": identity}, add, identity, download, own, data, key)
    >>> upload["x"].value["params"]["head"].tolist(), float(upload["x"].weight), float(own["waited"]["x"])
    ([0.5, -0.5], 1.0, 0.0)
    """
    model_key, fusion_key = jax.random.split(key)
    models = fused_models(encoders, head)

    def theta_loss(thetas: Parts, batch: Batch, key: Key) -> tuple[jax.Array, Metrics]:
        return modality_loss(encoders, head, thetas, batch)[0], {}

    def omega_loss(own: Parts, batch: Batch, key: Key) -> tuple[jax.Array, Metrics]:
        return local_loss(FedAvgConfig(), models, fusion, {**thetas, **own}, {}, batch)

    thetas, _, _ = train(config.fedavg, theta_loss, dict(download.sent), data, model_key)
    own, _, metrics = train(config.fedavg, omega_loss, {"head": state["head"]}, data, fusion_key)

    def measure(total: PyTree, batch: Batch, key: Key) -> tuple[PyTree, Metrics]:
        losses = jax.tree.map(lambda x: batch["mask"].sum() * x, modality_loss(encoders, head, thetas, batch)[1])
        right = right_by_set(encoders, head, fusion, thetas, own["head"], batch)
        return jax.tree.map(jnp.add, total, {"loss": losses, "right": right}), {}

    zeros = {"loss": dict.fromkeys(thetas, jnp.float32(0)), "right": jnp.zeros(2 ** len(thetas))}
    total, _ = local_steps(measure, zeros, data, key, batch_size=config.fedavg.batch_size, shuffle=False)
    total = jax.tree.map(lambda x: x / jnp.maximum(data.count, 1), total)
    waited = jnp.stack([state["waited"][m] + 1 for m in thetas])
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(thetas[m])) for m in thetas]
    weights = (config.shapley_weight, config.size_weight, config.recency_weight)
    offer = offered(priorities(weights, shapley_values(total["right"]), sizes, waited), config.sent_modalities)
    upload = {
        m: Each({"params": thetas[m], "loss": total["loss"][m]}, offer[i] * data.weight) for i, m in enumerate(thetas)
    }
    left = optax.tree.cast_like({m: (waited * (1 - offer))[i] for i, m in enumerate(thetas)}, state["waited"])
    return upload, {**own, "waited": left}, metrics


def server_update(
    share: float, state: Mapping[str, Parts], uploads: Mapping[str, Upload], public: Arrays | None, key: Key
) -> tuple[dict[str, Parts], Metrics]:
    """Step 4: the server's new state, and the metric "sent". A model that nobody offers stays as it is.

    >>> sent = {"params": jnp.array([3.0, 5.0, 1.0]), "loss": jnp.array([0.2, 0.1, 0.9])}
    >>> uploads = {"all": {"x": Each(sent, jnp.array([1.0, 3.0, 9.0]))}}
    >>> new, metrics = server_update(0.6, {"params": {"x": jnp.float32(0)}}, uploads, None, jax.random.key(0))
    >>> float(new["params"]["x"]), float(metrics["sent"])
    (4.5, 2.0)
    """
    params, sent = {}, jnp.float32(0)
    for m, old in state["params"].items():
        offers = Each(*aggregate.collect(uploads, m))
        weight = chosen(share, offers.weight, offers.value["loss"])
        params[m] = aggregate.weighted_mean(offers.value["params"], weight, old)
        sent += (weight > 0).sum()
    return {**state, "params": params}, {"sent": sent}
