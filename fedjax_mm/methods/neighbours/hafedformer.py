"""HA-Fedformer: clients train each modality on its own, and the server's models predict from all of them together.

Zhang, Chi, Liu, Zhang, Du, Wang, 2023, arXiv 2303.15486 (unimodal training, multimodal prediction):

    f_m, g_m  the encoder of modality m, and its decoder, from embeddings to logits     n_k  client k's examples
    v_kl      the variance of client k's samples of layer l, the mean over its entries  rho  `uncertainty`
    c         `cross`, how much a decoder takes from those of the other modalities

One round:
  1. The server sends f_m and g_m of a client's modalities, as in FedAvg.
  2. Client k trains each g_m f_m on the cross-entropy of its own predictions, and meanwhile follows mean and variance
     of the steps' weights, which are its samples of the posterior (`moments`, `client_update`).
  3. The server averages an encoder layer by layer, a client that is less sure of a layer counting less:
     f_l <- sum_k n_k v_kl^-rho f_kl / sum_k n_k v_kl^-rho  (`certainty`, `server_update`).
  4. It averages each decoder by n_k, and then over the modalities:  g_m <- (1 - c) g_m + c mean_m' g_m'  (`crossed`).

A prediction is of the mean of the modalities' logits. With rho = 0 and c = 0 this is FedAvg of a model for each
modality, and with c = 1 there is one decoder for all. All decoders begin alike.

What is not here: the paper's transformer, in whose place any encoders and decoder stand. Choices where its text was not
at hand: the paper samples each layer's weights by a Markov chain Monte Carlo; here the steps of SGD are the samples
(Mandt, Hoffman, Blei, JMLR 2017), of which a moving mean forgets the first. A layer is an array of the encoder's
parameters. The paper weighs the other modalities' decoders by how they go together with one's own; here they are alike.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax

from fedjax_mm import aggregate, trees
from fedjax_mm.federate import Method
from fedjax_mm.local import Batch, gradient_step, local_steps
from fedjax_mm.methods import fedavg
from fedjax_mm.methods.fedavg import CLIENT_OPTIMIZERS, FedAvgConfig, kind_weight
from fedjax_mm.methods.fedavg.network import Encoders, Parts
from fedjax_mm.methods.neighbours.mfedmc import fused_models, modality_logits, modality_loss
from fedjax_mm.methods.neighbours.training import check_plain_server, check_whole_model
from fedjax_mm.methods.settings import check_settings, is_used
from fedjax_mm.models import Model, as_encoder, as_encoders
from fedjax_mm.types import Arrays, ClientData, Download, HasPopulation, Key, Mean, Metrics, PyTree, Upload

KEEP = 0.9  # of the moving mean and variance, from step to step
LEAST = 1e-6  # is added to a variance: weights that did not move are not known for sure


@dataclasses.dataclass(frozen=True)
class HAFedformerConfig:
    """Settings of one run."""

    uncertainty: float = 0.5
    """rho: how much less a client counts in a layer where its weights vary; 1 is the inverse of the variance."""
    cross: float = 0.5
    """c in 0..1: the share of all modalities' decoders in each."""
    fedavg: FedAvgConfig = FedAvgConfig()
    """How clients train. The server takes means, so its optimiser stays as it is."""


def build(config: HAFedformerConfig, data: HasPopulation, encoders: Encoders, head: Model) -> Method:
    """The method for the cohorts of `data`. head: the decoder of each modality's model. Else as `fedavg.build`.

    Scores and errors are those of `fedavg.build`. Raises ValueError too where `config.fedavg` has parts that are
    `shared`, or a server optimiser other than the default.
    """
    check_settings(config, HAFedformerConfig)
    encoders, head = as_encoders("encoders", encoders), as_encoder(head, name="head")
    models = whole_models(encoders, head)
    base = fedavg.build(config.fedavg, data, models, Model(lambda key, x: {}, lambda params, x: x))
    check_whole_model("HA-Fedformer", config.fedavg)
    check_plain_server("HA-Fedformer", config.fedavg)
    server = base.server._replace(
        init=functools.partial(init_server, base.server.init), update=functools.partial(server_update, config.cross)
    )
    update = functools.partial(client_update, config, encoders, head)
    return base._replace(
        server=server, cohorts={name: one._replace(update=update) for name, one in base.cohorts.items()}
    )


def whole_models(encoders: Encoders, head: Model) -> dict[str, Model]:
    """g_m f_m of every modality, as an encoder of FedAvg's whose embeddings are logits, with {"encoder", "head"}.

    >>> double = Model(lambda key, x: {}, lambda params, x: 2 * x)
    >>> model = whole_models({"image": double}, double)["image"]
    >>> model.apply(model.init(jax.random.key(0), jnp.ones((1, 2))), jnp.ones((1, 2))).tolist()
    [[4.0, 4.0]]
    """
    with_init = fused_models(encoders, head)
    bind = lambda m: functools.partial(modality_logits, encoders[m], head)
    return {m: with_init[m]._replace(apply=bind(m)) for m in encoders}


def init_server(init: Callable[[Key], Mapping[str, Parts]], key: Key) -> dict[str, dict[str, PyTree]]:
    """The server's first state, {"params": FedAvg's, which `init` gives, but with one first decoder for all}.

    >>> params = {"a": {"encoder": 1, "head": 2}, "b": {"encoder": 3, "head": 4}, "head": {}}
    >>> init_server(lambda key: {"params": params}, jax.random.key(0))["params"]["b"]
    {'encoder': 3, 'head': 2}
    """
    params = init(key)["params"]
    first = next(iter(params.values()))["head"]
    return {"params": {m: {**theta, "head": first} if m != "head" else theta for m, theta in params.items()}}


def moments(of: tuple[PyTree, PyTree], w: PyTree) -> tuple[PyTree, PyTree]:
    """(the moving mean, the moving variance), leaves [...], after one more sample w, leaves [...].

    >>> mean, variance = moments((jnp.float32(1), jnp.float32(2)), jnp.float32(2))
    >>> round(float(mean), 3), round(float(variance), 3)  # .9 x 1 + .1 x 2, and .9 (2 + .1 x 1)
    (1.1, 1.89)
    """
    apart = jax.tree.map(jnp.subtract, w, of[0])
    mean = jax.tree.map(lambda old, d: old + (1 - KEEP) * d, of[0], apart)
    return mean, jax.tree.map(lambda old, d: KEEP * (old + (1 - KEEP) * jnp.square(d)), of[1], apart)


def certainty(uncertainty: float | jax.Array, variance: PyTree) -> PyTree:
    """v_kl^-rho [] for each layer. variance: leaves [...].

    >>> round(float(certainty(0.5, {"w": jnp.array([3.0, 5.0])})["w"]), 3)
    0.5
    """
    return jax.tree.map(lambda v: (v.astype(jnp.float32).mean() + LEAST) ** -uncertainty, variance)


def client_update(
    config: HAFedformerConfig,
    encoders: Encoders,
    head: Model,
    download: Download,
    state: Parts,
    data: ClientData,
    key: Key,
) -> tuple[Upload, Parts, Metrics]:
    """Step 2: what one client sends, no state, and the metric "loss", the sum over its modalities.

    The upload has a Mean for each modality: {"weighted": the encoder, each layer times its certainty, "certainty": of
    each layer, "head": the decoder}.

    >>> from fedjax_mm.local import whole
    >>> add = Model(lambda key, x: jnp.zeros(2), lambda bias, x: x + bias[None])
    >>> data = whole({"x": jnp.zeros((1, 2)), "label": jnp.array([0])})
    >>> download = Download({"x": {"encoder": jnp.zeros(2), "head": jnp.zeros(2)}, "head": {}})
    >>> config = HAFedformerConfig(uncertainty=0.5, fedavg=FedAvgConfig(client_lr=1.0))
    >>> sent = client_update(config, {"x": add}, add, download, {}, data, jax.random.key(0))[0]["x"].value
    >>> sent["head"].tolist(), round(float(sent["certainty"]), 2)  # the variance is .9 x .1 x .5 squared
    ([0.5, -0.5], 6.67)
    """
    start = {m: download.sent[m] for m in encoders if m in download.sent}
    how, optimizer = config.fedavg, CLIENT_OPTIMIZERS[config.fedavg.client_optimizer](config.fedavg.client_lr)

    def loss(thetas: Parts, batch: Batch, key: Key) -> tuple[jax.Array, Metrics]:
        drift = optax.tree.norm(optax.tree.sub(thetas, start), squared=True) if is_used(how.prox) else 0.0
        return modality_loss(encoders, head, thetas, batch)[0] + 0.5 * how.prox * drift, {}

    descend = gradient_step(loss, optimizer)
    encoders_of = lambda thetas: {m: thetas[m]["encoder"] for m in thetas}

    def step(carry: tuple[PyTree, tuple], batch: Batch, key: Key) -> tuple[tuple[PyTree, tuple], Metrics]:
        training, of = carry
        training, metrics = descend(training, batch, key)
        return (training, moments(of, encoders_of(training[0]))), metrics

    first = encoders_of(start)
    begin = (start, optimizer.init(start)), (first, optax.tree.zeros_like(first))
    (training, of), metrics = local_steps(step, begin, data, key, batch_size=how.batch_size, epochs=how.epochs)
    weight, sure = kind_weight(how, start) * data.weight, certainty(config.uncertainty, of[1])
    upload = {}
    for m, theta in training[0].items():
        weighted = jax.tree.map(jnp.multiply, theta["encoder"], sure[m])
        upload[m] = Mean({"weighted": weighted, "certainty": sure[m], "head": theta["head"]}, weight)
    return upload, state, metrics


def crossed(
    cross: float | jax.Array, decoders: Mapping[str, PyTree], heard: Mapping[str, jax.Array]
) -> dict[str, PyTree]:
    """Step 4: (1 - c) g_m + c mean_m' g_m' over the modalities that were heard; the others' decoders stay.

    decoders: modality -> g_m, leaves [...]; heard: modality -> [] bool.

    >>> decoders = {"a": jnp.float32(1), "b": jnp.float32(5), "c": jnp.float32(9)}
    >>> heard = {"a": jnp.bool_(True), "b": jnp.bool_(True), "c": jnp.bool_(False)}
    >>> {m: float(g) for m, g in crossed(0.5, decoders, heard).items()}
    {'a': 2.0, 'b': 4.0, 'c': 9.0}
    """
    stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), *decoders.values())
    weight = jnp.stack(list(heard.values())).astype(jnp.float32)
    mean = aggregate.weighted_mean(stack, weight, next(iter(decoders.values())))
    mixed = {m: jax.tree.map(lambda own, both: (1 - cross) * own + cross * both, g, mean) for m, g in decoders.items()}
    return {m: trees.where(heard[m], optax.tree.cast_like(mixed[m], g), g) for m, g in decoders.items()}


def server_update(
    cross: float | jax.Array,
    state: Mapping[str, Parts],
    uploads: Mapping[str, Upload],
    public: Arrays | None,
    key: Key,
) -> tuple[dict[str, dict[str, PyTree]], Metrics]:
    """Steps 3 and 4: the server's new state, and no metrics. Encoders and decoders that nobody sent stay.

    >>> sent = {"weighted": jnp.array([6.0]), "certainty": jnp.float32(2.0), "head": jnp.array([4.0])}
    >>> state = {"params": {"x": {"encoder": jnp.zeros(1), "head": jnp.zeros(1)}, "head": {}}}
    >>> uploads = {"all": {"x": Mean(sent, jnp.float32(1))}}
    >>> new, _ = server_update(0.5, state, uploads, None, jax.random.key(0))
    >>> new["params"]["x"]["encoder"].tolist(), new["params"]["x"]["head"].tolist()
    ([3.0], [4.0])
    """
    encoders, decoders, known = {}, {}, {}
    for m in (m for m in state["params"] if m != "head"):
        old, sent = state["params"][m], aggregate.collect(uploads, m)
        known[m] = heard = sent.weight > 0
        quotient = lambda x, sure, heard=heard: x / jnp.where(heard, sure, 1.0)
        mean = jax.tree.map(quotient, sent.value["weighted"], sent.value["certainty"])
        encoders[m] = trees.where(heard, optax.tree.cast_like(mean, old["encoder"]), old["encoder"])
        decoders[m] = trees.where(heard, optax.tree.cast_like(sent.value["head"], old["head"]), old["head"])
    mixed = crossed(cross, decoders, known)
    return {"params": {**{m: {"encoder": encoders[m], "head": mixed[m]} for m in encoders}, "head": {}}}, {}
