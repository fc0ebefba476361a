"""FedProto: clients share the mean embeddings of their classes and no parameters, here for each modality.

Tan, Long, Liu, Zhou, Lu, Jiang, Zhang, AAAI 2022, arXiv 2105.00243, algorithm 1, with a prototype for each modality:

    C_km^j   the mean embedding of client k's examples of class j in modality m     lambda   `strength`
    C_m^j    the global one, of all clients that have examples of class j           D_kj     client k's examples of j

One round:
  1. The server sends a client the C_m of its modalities, and which classes have one (`server_download`).
  2. Client k trains a whole model of its own on  L_S + lambda sum_m sum_j |C_km^j - C_m^j|^2  (`prototype_distance`,
     with the prototypes of the batch), and sends the C_km of the trained model (`client_update`, `class_totals`).
  3. C_m^j <- sum_k |D_kj| C_km^j / sum_k |D_kj|  over those who took part; a class that nobody has stays as it was
     (`server_update`).

A client with both modalities ties the two spaces together, since its head sees the mean of both embeddings. With
lambda = 0 clients train alone. Client k predicts with its own model; `nearest_prototype` is the paper's prediction for
a model that has no head of its own. Choices: equation 6 also divides by the number of clients that have the class,
by which prototypes would shrink while their weights add up to 1, so that this division is left out; the paper names
several distances, and this is the squared L2 distance.
"""

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from fedjax_mm import aggregate
from fedjax_mm.federate import Method
from fedjax_mm.local import Batch, local_steps
from fedjax_mm.methods import fedavg, outputs
from fedjax_mm.methods.fedavg import FedAvgConfig, fitting, local_loss
from fedjax_mm.methods.fedavg.network import Encoders, Parts
from fedjax_mm.methods.neighbours.training import check_plain_server, check_whole_model, train
from fedjax_mm.methods.settings import check_settings
from fedjax_mm.models import Model, as_encoder, as_encoders
from fedjax_mm.types import Arrays, ClientData, Download, HasPopulation, Key, Mean, Metrics, PyTree, Upload

SAME = Model(lambda key, x: {}, lambda params, x: x)


@dataclasses.dataclass(frozen=True)
class FedProtoConfig:
    """Settings of one run."""

    strength: float = 1.0
    """lambda, the weight of the distance between a client's prototypes and the global ones."""
    fedavg: FedAvgConfig = FedAvgConfig()
    """How a client trains its own model. The server takes means, so its optimiser stays as it is."""


def build(config: FedProtoConfig, data: HasPopulation, encoders: Encoders, head: Model) -> Method:
    """The method for the cohorts of `data`. Arguments and errors are those of `fedavg.build`.

    `evaluate` gives the mean over the clients that hold exactly the tested modalities, each with its own model; a
    client's own test rows have "accuracy", of this model, and "prototype_accuracy", of `nearest_prototype`. Raises
    ValueError too where `config.fedavg` has parts that are `shared`, or a server optimiser other than the default.
    """
    check_settings(config, FedProtoConfig)
    encoders, head = as_encoders("encoders", encoders), as_encoder(head, name="head")
    base = fedavg.build(dataclasses.replace(config.fedavg, shared=()), data, encoders, head)
    check_whole_model("FedProto", config.fedavg)
    check_plain_server("FedProto", config.fedavg)
    held, examples = fitting.find_modalities(encoders, data.population)
    width = outputs.check_widths({m: outputs.output_shape(m, encoders[m], x) for m, x in examples.items()})
    shape = fitting.count_classes(encoders, head, examples), width
    server = base.server._replace(
        init=functools.partial(init_server, tuple(encoders), shape),
        download=functools.partial(server_download, held),
        update=server_update,
    )
    update = functools.partial(client_update, config, encoders, head, shape)
    score = functools.partial(client_score, encoders, head)
    cohorts = {name: one._replace(update=update, score=score) for name, one in base.cohorts.items()}
    return base._replace(server=server, cohorts=cohorts)


def init_server(modalities: tuple[str, ...], shape: tuple[int, int], key: Key) -> dict[str, PyTree]:
    """The server's first state: no class has a prototype. shape: (K, D).

    >>> state = init_server(("image",), (3, 2), jax.random.key(0))
    >>> state["prototypes"]["image"]["mean"].shape, state["prototypes"]["image"]["known"].tolist()
    ((3, 2), [0.0, 0.0, 0.0])
    """
    none = {"mean": jnp.zeros(shape), "known": jnp.zeros(shape[0])}
    return {"params": {}, "prototypes": {m: none for m in modalities}}


def server_download(
    held: Mapping[str, tuple[str, ...]], state: Mapping[str, PyTree], public: Arrays | None = None
) -> dict[str, Download]:
    """Step 1: what each cohort gets, the prototypes of its modalities. held: cohort -> its modalities.

    >>> server_download({"phones": ("image",)}, {"prototypes": {"image": 1, "text": 2}})["phones"].sent
    {'image': 1}
    """
    return {name: Download({m: state["prototypes"][m] for m in own}) for name, own in held.items()}


def embed(encoders: Encoders, params: Parts, batch: Arrays) -> dict[str, tuple[jax.Array, jax.Array]]:
    """{modality: (embeddings [B, D], 1 where the row is an example that has the modality [B])} of a batch.

    The batch may have `mask` [B] and `has_<modality>` [B]; without them, all rows count.

    >>> identity = Model(lambda key, x: {}, lambda params, x: x)
    >>> batch = {"x": jnp.ones((2, 3)), "has_x": jnp.array([True, False])}
    >>> embed({"x": identity}, {"x": {}}, batch)["x"][1].tolist()
    [1.0, 0.0]
    """
    ones = jnp.ones(len(next(iter(batch.values()))))
    there = lambda m: batch.get("mask", ones) * batch.get(f"has_{m}", ones).astype(jnp.float32)
    return {m: (encoders[m].apply(params[m], batch[m]), there(m)) for m in encoders if m in params and m in batch}


def class_totals(embeddings: jax.Array, there: jax.Array, labels: jax.Array, classes: int) -> dict[str, jax.Array]:
    """{"total": [K, D], the sum of the embeddings of each class, "count": [K], how many they are}.

    embeddings [B, D], there [B] (0 for rows that do not count), labels [B]; classes: K.

    >>> totals = class_totals(jnp.array([[1.0], [3.0], [5.0]]), jnp.array([1.0, 1.0, 0.0]), jnp.array([1, 1, 0]), 2)
    >>> totals["total"].tolist(), totals["count"].tolist()
    ([[0.0], [4.0]], [0.0, 2.0])
    """
    of_class = jax.nn.one_hot(labels, classes) * there[:, None]
    return {"total": of_class.T @ embeddings, "count": of_class.sum(0)}


def prototypes(totals: Mapping[str, jax.Array]) -> jax.Array:
    """C^j [K, D], the mean embedding of each class, 0 where it has no example. totals: of `class_totals`.

    >>> prototypes({"total": jnp.array([[0.0], [4.0]]), "count": jnp.array([0.0, 2.0])}).tolist()
    [[0.0], [2.0]]
    """
    return totals["total"] / jnp.maximum(totals["count"], 1)[:, None]


def prototype_distance(totals: Mapping[str, jax.Array], received: Mapping[str, jax.Array]) -> jax.Array:
    """sum_j |C_k^j - C^j|^2 [], over the classes of which both there is one. received: {"mean" [K, D], "known" [K]}.

    >>> totals = {"total": jnp.array([[2.0], [4.0]]), "count": jnp.array([1.0, 2.0])}
    >>> float(prototype_distance(totals, {"mean": jnp.array([[0.0], [5.0]]), "known": jnp.array([0.0, 1.0])}))
    9.0
    """
    both = (totals["count"] > 0) * received["known"]
    return (jnp.square(prototypes(totals) - received["mean"]).sum(-1) * both).sum()


def client_loss(
    config: FedProtoConfig,
    encoders: Encoders,
    head: Model,
    received: Mapping[str, Mapping[str, jax.Array]],
    start: Parts,
    params: Parts,
    batch: Batch,
) -> tuple[jax.Array, Metrics]:
    """(L_S + lambda sum_m sum_j |C_km^j - C_m^j|^2 [], metrics). received: modality -> C_m; start: as of `local_loss`.

    >>> identity = Model(lambda key, x: {}, lambda params, x: x)
    >>> batch = {"x": jnp.zeros((1, 2)), "label": jnp.array([0]), "mask": jnp.ones(1)}
    >>> received = {"x": {"mean": jnp.ones((2, 2)), "known": jnp.ones(2)}}
    >>> params, config = {"x": {}, "head": {}}, FedProtoConfig(strength=0.5)
    >>> value, _ = client_loss(config, {"x": identity}, identity, received, params, params, batch)
    >>> round(float(value - jnp.log(2)), 4)
    1.0
    """
    embedded = embed(encoders, params, batch)
    known = {**batch, **{m: h for m, (h, _) in embedded.items()}}  # so that no encoder runs twice
    task, metrics = local_loss(config.fedavg, dict.fromkeys(encoders, SAME), head, params, start, known)
    totals = {
        m: class_totals(h, there, batch["label"], len(received[m]["known"])) for m, (h, there) in embedded.items()
    }
    apart = jnp.stack([prototype_distance(totals[m], received[m]) for m in totals]).sum()
    return task + config.strength * apart, {**metrics, "prototype_distance": apart}


def client_update(
    config: FedProtoConfig,
    encoders: Encoders,
    head: Model,
    shape: tuple[int, int],
    download: Download,
    state: Parts,
    data: ClientData,
    key: Key,
) -> tuple[Upload, dict[str, PyTree], Metrics]:
    """Step 2: what one client sends, its new model, and the metrics "loss", "accuracy" and "prototype_distance".

    The upload has a Mean of `class_totals` for each modality, all of weight 1. shape: (K, D).

    >>> from fedjax_mm.local import whole
    >>> identity = Model(lambda key, x: {}, lambda params, x: x)
    >>> add = Model(lambda key, x: jnp.zeros(2), lambda bias, x: x + bias[None])
    >>> data = whole({"x": jnp.eye(2), "label": jnp.array([1, 1])})
    >>> download = Download({"x": {"mean": jnp.zeros((2, 2)), "known": jnp.zeros(2)}})
    >>> config, own = FedProtoConfig(fedavg=FedAvgConfig(client_lr=1.0)), {"x": {}, "head": jnp.zeros(2)}
    >>> upload, own, _ = client_update(config, {"x": identity}, add, (2, 2), download, own, data, jax.random.key(0))
    >>> upload["x"].value["total"].tolist(), own["head"].tolist()
    ([[0.0, 0.0], [1.0, 1.0]], [-0.5, 0.5])
    """
    received, start = download.sent, dict(state)
    loss = functools.partial(client_loss, config, encoders, head, received, start)
    own, _, metrics = train(config.fedavg, lambda params, batch, key: loss(params, batch), start, data, key)

    def add(totals: PyTree, batch: Batch, key: Key) -> tuple[PyTree, Metrics]:
        seen = embed(encoders, own, batch)
        of_batch = {m: class_totals(h, there, batch["label"], shape[0]) for m, (h, there) in seen.items()}
        return jax.tree.map(jnp.add, totals, of_batch), {}

    zeros = {m: {"total": jnp.zeros(shape), "count": jnp.zeros(shape[0])} for m in received}
    totals, _ = local_steps(add, zeros, data, key, batch_size=config.fedavg.batch_size, shuffle=False)
    return {m: Mean(totals[m], jnp.float32(1)) for m in totals}, own, metrics


def server_update(
    state: Mapping[str, PyTree], uploads: Mapping[str, Upload], public: Arrays | None, key: Key
) -> tuple[dict[str, PyTree], Metrics]:
    """Step 3: the server's new state, and no metrics.

    >>> sent = Mean({"total": jnp.array([[6.0], [0.0]]), "count": jnp.array([2.0, 0.0])}, jnp.float32(4))
    >>> old = {"mean": jnp.array([[1.0], [7.0]]), "known": jnp.array([0.0, 1.0])}
    >>> new, _ = server_update({"prototypes": {"x": old}}, {"all": {"x": sent}}, None, jax.random.key(0))
    >>> new["prototypes"]["x"]["mean"].tolist(), new["prototypes"]["x"]["known"].tolist()
    ([[3.0], [7.0]], [1.0, 1.0])
    """
    new = {}
    for m, old in state["prototypes"].items():
        sent = aggregate.collect(uploads, m).value  # means over clients, whose number falls out of the quotient
        seen = sent["count"] > 0
        mean = sent["total"] / jnp.where(seen, sent["count"], 1)[:, None]
        new[m] = {"mean": jnp.where(seen[:, None], mean, old["mean"]), "known": jnp.maximum(old["known"], seen)}
    return {**state, "prototypes": new}, {}


def nearest_prototype(
    encoders: Encoders, received: Mapping[str, Mapping[str, jax.Array]], params: Parts, batch: Arrays
) -> jax.Array:
    """argmin_j sum_m |f_m(x) - C_m^j|^2, classes [B], among the classes of which each m has a prototype.

    >>> identity = Model(lambda key, x: {}, lambda params, x: x)
    >>> received = {"x": {"mean": jnp.array([[0.0], [1.0], [9.0]]), "known": jnp.array([1.0, 0.0, 1.0])}}
    >>> nearest_prototype({"x": identity}, received, {"x": {}}, {"x": jnp.array([[1.0], [8.0]])}).tolist()
    [0, 2]
    """
    apart = 0.0
    for m, (h, there) in embed(encoders, params, batch).items():
        squares = jnp.square(h[:, None] - received[m]["mean"][None]).sum(-1)  # [B, K]
        known = jnp.where(received[m]["known"][None] > 0, squares, jnp.inf)
        apart += jnp.where(there[:, None] > 0, known, 0.0)  # and not 0 x infinity
    return jnp.argmin(apart, -1)


def client_score(
    encoders: Encoders, head: Model, download: Download, state: Parts, arrays: Arrays, mask: jax.Array
) -> dict[str, jax.Array]:
    """{"accuracy": [B], "prototype_accuracy": [B]} of a client's own test rows: of its model, and of the prototypes."""
    right = nearest_prototype(encoders, download.sent, state, arrays) == arrays["label"]
    by_head = fedavg.client_score(encoders, head, Download({}), state, arrays, mask)
    return {**by_head, "prototype_accuracy": right.astype(jnp.float32)}
