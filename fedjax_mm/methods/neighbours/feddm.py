"""FedDM: a client sends a few synthetic examples that a model near the server's takes for its own, and no parameters.

Xiong, Wang, Cheng, Yu, Hsieh, CVPR 2023, arXiv 2207.09653:

    w_r   the server's parameters in round r     S_k^c  client k's synthetic examples of class c, n of them
    h_w   the embedding, z_w the logits          rho    `radius` of the ball around w_r where S_k stands for D_k

One round:
  1. The server sends w_r, as in FedAvg.
  2. Client k starts S_k at noise and trains it, in each step with a w drawn near w_r (`draw_near`), so that for each
     class c of the batch the means over real and over synthetic examples agree (`matching_loss`):
     |mean h_w(D_k^c) - mean h_w(S_k^c)|^2 + |mean z_w(D_k^c) - mean z_w(S_k^c)|^2.
     It sends S_k, and what share of its examples each class has (`client_update`).
  3. The server trains w from w_r on the cross-entropy of all S_k (`union_loss`), and holds it within rho of w_r
     (`onto_ball`, `server_update`).

A client's synthetic examples have all modalities that it has, and h_w is what the head reads, the mean of their
embeddings. Where the paper's text was not at hand: w is w_r plus a draw of N(0, I) that is pulled onto the ball, S_k
starts at N(0, I) in every round, an S_k^c weighs in the server's loss as many real examples as it stands for, and the
server takes steps on all S_k at once. The paper's differential privacy is not here.
"""

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax

from fedjax_mm.federate import Method
from fedjax_mm.local import Batch
from fedjax_mm.methods import fedavg
from fedjax_mm.methods.fedavg import FedAvgConfig, fitting, kind_weight
from fedjax_mm.methods.fedavg.config import SERVER_OPTIMIZERS
from fedjax_mm.methods.fedavg.network import Encoders, Parts, predict_logits
from fedjax_mm.methods.neighbours.training import check_floats, check_whole_model, class_counts, train
from fedjax_mm.methods.settings import check_settings, is_used
from fedjax_mm.models import Model, as_encoder, as_encoders
from fedjax_mm.types import Arrays, ClientData, Download, Each, HasPopulation, Key, Metrics, PyTree, Upload


@dataclasses.dataclass(frozen=True)
class FedDMConfig:
    """Settings of one run."""

    examples_per_class: int = 10
    """n, how many synthetic examples of each class a client sends."""
    radius: float = 5.0
    """rho, within which of w_r the client's random models lie, and the server's new one."""
    server_steps: int = 100
    """Steps of the server on all synthetic examples in a round."""
    fedavg: FedAvgConfig = FedAvgConfig(epochs=100)
    """The client's optimiser, rate, batches and epochs train its synthetic examples; the server's optimiser trains w
    on them, afresh in each round."""


def build(config: FedDMConfig, data: HasPopulation, encoders: Encoders, head: Model) -> Method:
    """The method for the cohorts of `data`. Arguments, scores and errors are those of `fedavg.build`.

    Raises ValueError too where a modality is no array of floats, since noise is no token or byte, and where
    `config.fedavg` has parts that are `shared` or FedProx's term.
    """
    check_settings(config, FedDMConfig)
    encoders, head = as_encoders("encoders", encoders), as_encoder(head, name="head")
    base = fedavg.build(config.fedavg, data, encoders, head)
    check_whole_model("FedDM", config.fedavg)
    if is_used(config.fedavg.prox):
        raise ValueError(f"FedAvgConfig.prox is {config.fedavg.prox}; FedDM's clients train no parameters, so leave 0")
    modalities, examples = fitting.find_modalities(encoders, data.population)
    check_floats("FedDM", examples)
    classes = fitting.count_classes(encoders, head, examples)
    init_server = lambda key: {"params": base.server.init(key)["params"]}
    update = functools.partial(server_update, config, encoders, head)
    cohorts = {}
    for name, cohort in base.cohorts.items():
        kinds = {m: jax.ShapeDtypeStruct(examples[m].shape[1:], examples[m].dtype) for m in modalities[name]}
        cohorts[name] = cohort._replace(update=functools.partial(client_update, config, classes, kinds, encoders, head))
    return base._replace(server=base.server._replace(init=init_server, update=update), cohorts=cohorts)


def onto_ball(centre: PyTree, point: PyTree, radius: float | jax.Array) -> PyTree:
    """The point nearest to `point` in the ball of this radius around the centre.

    >>> pull = lambda point: onto_ball(jnp.array([1.0, 0.0]), jnp.array(point), 2.5).tolist()
    >>> pull([4.0, 4.0]), pull([1.5, 0.0])
    ([2.5, 2.0], [1.5, 0.0])
    """
    away = optax.tree.sub(point, centre)
    shrink = jnp.minimum(1.0, radius / jnp.maximum(optax.tree.norm(away), 1e-12))
    return jax.tree.map(lambda c, a: (c + shrink * a).astype(c.dtype), centre, away)


def draw_near(params: PyTree, radius: float | jax.Array, key: Key) -> PyTree:
    """A random w within `radius` of the parameters: N(0, I) around them, pulled onto the ball.

    >>> round(float(jnp.linalg.norm(draw_near(jnp.zeros(100), 0.5, jax.random.key(0)))), 4)
    0.5
    """
    return onto_ball(params, optax.tree.add(params, optax.tree.random_like(key, params)), radius)


def embed(encoders: Encoders, head: Model, params: Parts, batch: Arrays) -> jax.Array:
    """[B, D + K]: an example's embedding h_w and its logits z_w, side by side.

    >>> identity = Model(lambda key, x: {}, lambda params, x: x)
    >>> twice, batch = identity._replace(apply=lambda params, x: 2 * x), {"x": jnp.array([[1.0, 3.0]])}
    >>> embed({"x": identity}, twice, {"x": {}, "head": {}}, batch).tolist()
    [[1.0, 3.0, 2.0, 6.0]]
    """
    h = predict_logits(encoders, Model(head.init, lambda params, x: x), params, batch)
    return jnp.concatenate([h, head.apply(params["head"], h)], axis=1)


def class_means(values: jax.Array, label: jax.Array, mask: jax.Array, classes: int) -> tuple[jax.Array, jax.Array]:
    """([K, D], [K]): the mean of each class's values [B, D], 0 where it has none, and how many rows it has.

    >>> mean, rows = class_means(jnp.array([[1.0], [3.0], [9.0]]), jnp.array([1, 1, 0]), jnp.array([1.0, 1.0, 0.0]), 2)
    >>> mean.tolist(), rows.tolist()
    ([[0.0], [2.0]], [0.0, 2.0])
    """
    belongs = jax.nn.one_hot(label, classes) * mask[:, None]
    rows = belongs.sum(0)
    return belongs.T @ values / jnp.maximum(rows, 1)[:, None], rows


def matching_loss(encoders: Encoders, head: Model, params: Parts, synthetic: Arrays, batch: Batch) -> jax.Array:
    """The sum over the batch's classes of the squared distances between the means over real and synthetic examples, [].

    params: w. synthetic: modality -> [K, n, ...].

    >>> identity = Model(lambda key, x: {}, lambda params, x: x)
    >>> batch = {"x": jnp.array([[1.0, 0.0]]), "label": jnp.array([1]), "mask": jnp.ones(1)}
    >>> synthetic = {"x": jnp.array([[[7.0, 7.0]], [[3.0, 0.0]]])}  # of a class that the batch lacks, and of its own
    >>> float(matching_loss({"x": identity}, identity, {"x": {}, "head": {}}, synthetic, batch))
    8.0
    """
    classes, n = next(iter(synthetic.values())).shape[:2]
    mean, rows = class_means(embed(encoders, head, params, batch), batch["label"], batch["mask"], classes)
    made = embed(encoders, head, params, {m: x.reshape(-1, *x.shape[2:]) for m, x in synthetic.items()})
    apart = jnp.square(mean - made.reshape(classes, n, -1).mean(1)).sum(1)
    return (apart * (rows > 0)).sum()


def init_synthetic(
    kinds: Mapping[str, jax.ShapeDtypeStruct], classes: int, number: int, key: Key
) -> dict[str, jax.Array]:
    """{modality: [K, n, ...]}, drawn from N(0, I). kinds: modality -> an example's shape and type; number: n.

    >>> init_synthetic({"x": jax.ShapeDtypeStruct((4,), jnp.float32)}, 3, 2, jax.random.key(0))["x"].shape
    (3, 2, 4)
    """
    keys = jax.random.split(key, len(kinds))
    draw = lambda kind, key: jax.random.normal(key, (classes, number, *kind.shape), kind.dtype)
    return {m: draw(kind, one) for (m, kind), one in zip(kinds.items(), keys, strict=True)}


def client_update(
    config: FedDMConfig,
    classes: int,
    kinds: Mapping[str, jax.ShapeDtypeStruct],
    encoders: Encoders,
    head: Model,
    download: Download,
    state: Parts,
    data: ClientData,
    key: Key,
) -> tuple[Upload, Parts, Metrics]:
    """Step 2: what one client sends, no state, and the metric "loss", the mean matching loss.

    kinds: modality -> an example's shape and type. The upload has an Each "synthetic" of {"examples": modality ->
    [K, n, ...], "share": [K], each class's share of the client's own examples}.

    >>> from fedjax_mm.local import whole
    >>> identity = Model(lambda key, x: {}, lambda params, x: x)
    >>> data = whole({"x": jnp.array([[1.0, 5.0], [3.0, 5.0]]), "label": jnp.array([1, 1])})
    >>> config = FedDMConfig(1, 0.0, fedavg=FedAvgConfig(client_lr=0.25, epochs=9))
    >>> update = functools.partial(client_update, config, 2, {"x": jax.ShapeDtypeStruct((2,), jnp.float32)})
    >>> params = {"x": {}, "head": {}}
    >>> upload, _, _ = update({"x": identity}, identity, Download(params), {}, data, jax.random.key(0))
    >>> upload["synthetic"].value["examples"]["x"][1].tolist(), upload["synthetic"].value["share"].tolist()
    ([[2.0, 5.0]], [0.0, 1.0])
    """
    start_key, train_key = jax.random.split(key)
    start = init_synthetic(kinds, classes, config.examples_per_class, start_key)

    def loss(synthetic: Arrays, batch: Batch, key: Key) -> tuple[jax.Array, Metrics]:
        near = draw_near(dict(download.sent), config.radius, key)
        return matching_loss(encoders, head, near, synthetic, batch), {}

    made, _, metrics = train(config.fedavg, loss, start, data, train_key)
    rows = class_counts(data, classes)
    sent = {"examples": made, "share": rows / jnp.maximum(rows.sum(), 1)}
    return {"synthetic": Each(sent, kind_weight(config.fedavg, download.sent) * data.weight)}, state, metrics


def union_loss(encoders: Encoders, head: Model, uploads: Mapping[str, Upload], params: Parts) -> jax.Array:
    """The weighted mean cross-entropy of all clients' synthetic examples, []: 0 where nobody sent any.

    uploads: {cohort: {"synthetic": an Each of leaves [C, ...]}}.

    >>> identity = Model(lambda key, x: {}, lambda params, x: x)
    >>> examples = {"x": jnp.array([[[[0.0, 0.0]], [[9.0, 9.0]]]])}  # of one client, n = 1
    >>> sent = Each({"examples": examples, "share": jnp.array([[1.0, 0.0]])}, jnp.array([3.0]))
    >>> params = {"x": {}, "head": {}}
    >>> round(float(union_loss({"x": identity}, identity, {"all": {"synthetic": sent}}, params)), 4)
    0.6931
    """
    loss = total = jnp.float32(0)
    for sent in (upload["synthetic"] for upload in uploads.values()):
        weight = sent.weight[:, None] * sent.value["share"]  # [C, K]
        examples = sent.value["examples"]
        shape = next(iter(examples.values())).shape[:3]
        label = jnp.broadcast_to(jnp.arange(shape[1])[None, :, None], shape)
        logits = predict_logits(encoders, head, params, {m: x.reshape(-1, *x.shape[3:]) for m, x in examples.items()})
        each = optax.softmax_cross_entropy_with_integer_labels(logits, label.reshape(-1)).reshape(shape)
        loss, total = loss + (each.mean(2) * weight).sum(), total + weight.sum()
    return loss / jnp.where(total > 0, total, 1.0)


def server_update(
    config: FedDMConfig,
    encoders: Encoders,
    head: Model,
    state: Mapping[str, Parts],
    uploads: Mapping[str, Upload],
    public: Arrays | None,
    key: Key,
) -> tuple[dict[str, Parts], Metrics]:
    """Step 3: the server's new state, and the metric "loss" of its last step.

    >>> identity = Model(lambda key, x: {}, lambda params, x: x)
    >>> add = Model(lambda key, x: jnp.zeros(2), lambda bias, x: x + bias[None])
    >>> sent = Each({"examples": {"x": jnp.zeros((1, 2, 1, 2))}, "share": jnp.array([[1.0, 0.0]])}, jnp.ones(1))
    >>> state, uploads = {"params": {"x": {}, "head": jnp.zeros(2)}}, {"all": {"synthetic": sent}}
    >>> update = lambda radius: server_update(
    ...     FedDMConfig(1, radius, server_steps=1), {"x": identity}, add, state, uploads, None, jax.random.key(0)
    ... )[0]["params"]["head"].round(2).tolist()
    >>> update(5.0), update(0.3)
    ([0.5, -0.5], [0.2..., -0.2...])
    """
    optimizer = SERVER_OPTIMIZERS[config.fedavg.server_optimizer](config.fedavg.server_lr)
    start, loss = state["params"], functools.partial(union_loss, encoders, head, uploads)

    def step(_: int, carry: tuple) -> tuple:
        params, moments, _ = carry
        value, gradient = jax.value_and_grad(loss)(params)
        updates, moments = optimizer.update(gradient, moments, params)
        return onto_ball(start, optax.apply_updates(params, updates), config.radius), moments, value

    begin = (start, optimizer.init(start), jnp.float32(0))
    params, _, value = jax.lax.fori_loop(0, config.server_steps, step, begin)
    return {"params": params}, {"loss": value}
