"""FedFTG: the server makes hard examples and trains the averaged model to say of them what the clients' models say.

Zhang, Shen, Ding, Tao, Duan, CVPR 2022, arXiv 2203.09249:

    w, w_k   the server's model, and client k's     D(x, w)  the class probabilities that w gives to x
    G(z, y)  the generator of an example of class y from noise z of N(0, I)     theta  its parameters
    n_k^y    client k's examples of class y         I, J_G, J_D  `steps`, `generator_steps`, `model_steps`

One round:
  1. The server sends w. Client k trains it as in FedAvg, and sends w_k and n_k^y (`client_update`). w <- their mean, as
     in FedAvg.
  2. I times, the server draws z, and y in proportion to sum_k n_k^y (`sample_labels`, the customised sampling). Then
     theta takes J_G steps on  -L_md + lambda_cls L_cls + lambda_dis L_dis  (`generator_loss`), so that G makes examples
     that are hard for w, and w takes J_D steps on L_md (`fine_tune`, `server_update`):
         L_md  = sum_k alpha_k^y KL(D(G(z, y), w_k) | D(G(z, y), w))     (`discrepancy`)
         L_cls = sum_k alpha_k^y CE(D(G(z, y), w_k), y)                  (`classification`)
         L_dis = exp(-mean_ij |G(z_i, y_i) - G(z_j, y_j)| |z_i - z_j|)   (`diversity`)
         alpha_k^y = n_k^y / sum_i n_i^y                                 (`class_weights`, the class-level ensemble)

theta and its moments of Adam go on from round to round. A made example has all modalities; w_k is asked about those
that client k has, and so is w beside it: an encoder that nobody sent does not move. With I = 0 this is FedAvg. Where
the paper's text was not at hand: the direction of KL, the lengths in L_dis (L2 over all modalities), and plain SGD for
w. G is a perceptron unless one is given. (fedftg_losses.py has what is no step of a client or the server.)
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_mm import aggregate, trees
from fedjax_mm.federate import Method
from fedjax_mm.local import Batch, Loss, gradient_step
from fedjax_mm.methods import fedavg, outputs
from fedjax_mm.methods.fedavg import FedAvgConfig, fitting
from fedjax_mm.methods.fedavg.network import Encoders, Parts
from fedjax_mm.methods.neighbours import fedftg_losses as losses
from fedjax_mm.methods.neighbours.training import check_floats, check_whole_model, class_counts
from fedjax_mm.methods.settings import check_settings
from fedjax_mm.models import Model, as_encoder, as_encoders, mlp
from fedjax_mm.types import Arrays, ClientData, Download, Each, HasPopulation, Key, Mean, Metrics, PyTree, Upload

COUNTS = "class/counts"  # the slot of n_k^y: no part is called so, as a modality has no slash
Make = Callable[[PyTree, Batch], Arrays]  # (theta, a batch) -> made examples, modality -> [B, ...]
Asked = Callable[[Arrays], jax.Array]  # made examples -> log-probabilities [C, B, K]


@dataclasses.dataclass(frozen=True)
class FedFTGConfig:
    """Settings of one run."""

    steps: int = 10
    """I, how many batches the server makes in a round. With 0 this is FedAvg."""
    generator_steps: int = 1
    """J_G, steps of the generator on a batch."""
    model_steps: int = 5
    """J_D, steps of the model on a batch."""
    made_batch: int = 32
    """Examples in a batch that the server makes."""
    noise: int = 16
    """The width of z."""
    model_lr: float = 0.1
    """The server's rate of SGD for w on L_md."""
    generator_lr: float = 0.01
    """The server's rate of Adam for theta."""
    classification: float = 1.0
    """lambda_cls, the weight of L_cls."""
    diversity: float = 1.0
    """lambda_dis, the weight of L_dis."""
    fedavg: FedAvgConfig = FedAvgConfig()
    """How clients train, and how the server averages before it fine-tunes."""


def build(
    config: FedFTGConfig, data: HasPopulation, encoders: Encoders, head: Model, generator: Model | None = None
) -> Method:
    """The method for the cohorts of `data`. Other arguments, scores and errors are those of `fedavg.build`.

    generator: a Model [B, noise + K] -> [B, F], from z beside the one-hot class to the F numbers of an example, those
    of its modalities one after the other in the order of `encoders`. None: a perceptron with one layer of 64 units.
    Raises ValueError too where the generator gives something else, where a modality is no array of floats, and where
    `config.fedavg.shared` names parts: all travel.
    """
    check_settings(config, FedFTGConfig)
    encoders, head = as_encoders("encoders", encoders), as_encoder(head, name="head")
    base = fedavg.build(config.fedavg, data, encoders, head)
    check_whole_model("FedFTG", config.fedavg)
    _, examples = fitting.find_modalities(encoders, data.population)
    check_floats("FedFTG", examples)
    classes = fitting.count_classes(encoders, head, examples)
    kinds = {m: jax.ShapeDtypeStruct(like.shape[1:], like.dtype) for m, like in examples.items()}
    numbers = sum(math.prod(kind.shape) for kind in kinds.values())
    generator = mlp.encoder((64,), numbers) if generator is None else as_encoder(generator, name="generator")
    given = jax.ShapeDtypeStruct((1, config.noise + classes), np.float32)
    if (found := outputs.output_shape("generator", generator, given)) != (2, numbers):
        raise ValueError(f"the generator gives {[*found]} of two draws; it must give [2, {numbers}], all of an example")
    server = base.server._replace(
        init=functools.partial(init_server, config, base, generator, given),
        update=functools.partial(server_update, config, generator, kinds, encoders, head),
    )
    update = functools.partial(client_update, config, classes, encoders, head)
    cohorts = {name: cohort._replace(update=update) for name, cohort in base.cohorts.items()}
    return base._replace(server=server, cohorts=cohorts)


def init_server(
    config: FedFTGConfig, base: Method, generator: Model, given: jax.ShapeDtypeStruct, key: Key
) -> dict[str, PyTree]:
    """The server's first state: that of FedAvg, {"params", "opt"}, with {"generator": theta, "moments": of its Adam}.

    base: FedAvg's method; given: what the generator takes, [1, noise + K].
    """
    theta = generator.init(jax.random.fold_in(key, 1), jnp.zeros(given.shape, given.dtype))
    return {**base.server.init(key), "generator": theta, "moments": optax.adam(config.generator_lr).init(theta)}


def generator_loss(
    config: FedFTGConfig, make: Make, clients: Asked, server: Asked, theta: PyTree, batch: Batch
) -> jax.Array:
    """-L_md + lambda_cls L_cls + lambda_dis L_dis, [].

    make: `generate` of (theta, batch); clients, server: `ask_clients` and `ask_server` of x, all else bound; batch: as
    of `draw_batch`.

    >>> batch = {"z": jnp.zeros((1, 1)), "y": jnp.array([[1.0, 0.0]]), "alpha": jnp.ones((1, 1))}
    >>> make = lambda theta, batch: {"x": jnp.log(jnp.array([[theta, 1 - theta]]))}
    >>> clients, server = lambda x: x["x"][None], lambda x: jnp.log(jnp.full((1, 1, 2), 0.5))
    >>> value = generator_loss(FedFTGConfig(diversity=3.0), make, clients, server, jnp.float32(0.25), batch)
    >>> round(float(value), 3)  # -KL + log 4 + 3, with KL = log 2 - .75 log 4 + .75 log 3
    4.255
    """
    x = make(theta, batch)
    said = clients(x)
    known = config.classification * losses.classification(batch["alpha"], said, batch["y"])
    return (
        known - losses.discrepancy(batch["alpha"], said, server(x)) + config.diversity * losses.diversity(x, batch["z"])
    )


def client_update(
    config: FedFTGConfig,
    classes: int,
    encoders: Encoders,
    head: Model,
    download: Download,
    state: Parts,
    data: ClientData,
    key: Key,
) -> tuple[Upload, Parts, Metrics]:
    """Step 1: what one client sends, no state, and the metrics of FedAvg.

    The upload has an Each of every part of w_k, and n_k^y [K] as "class/counts".

    >>> from fedjax_mm.local import whole
    >>> identity = Model(lambda key, x: {}, lambda params, x: x)
    >>> add = Model(lambda key, x: jnp.zeros(2), lambda bias, x: x + bias[None])
    >>> data = whole({"x": jnp.zeros((1, 2)), "label": jnp.array([1])})
    >>> download = Download({"x": {}, "head": jnp.zeros(2)})
    >>> update = functools.partial(client_update, FedFTGConfig(fedavg=FedAvgConfig(client_lr=1.0)), 2)
    >>> upload, _, _ = update({"x": identity}, add, download, {}, data, jax.random.key(0))
    >>> upload["head"].value.tolist(), upload["class/counts"].value.tolist()
    ([-0.5, 0.5], [0.0, 1.0])
    """
    sent, own, metrics = fedavg.client_update(config.fedavg, encoders, head, download, state, data, key)
    counts = Each(class_counts(data, classes), data.weight)
    return {**{part: Each(*one) for part, one in sent.items()}, COUNTS: counts}, own, metrics


def fine_tune(
    config: FedFTGConfig,
    make: Make,
    clients: Asked,
    server: Callable[[Parts, Arrays], jax.Array],
    counts: jax.Array,
    state: Mapping[str, PyTree],
    key: Key,
) -> tuple[dict[str, PyTree], jax.Array]:
    """Step 2 on one batch: ({"params", "generator", "moments"} after it, L_md [] after it).

    make, clients: as of `generator_loss`; server: `ask_server` of (w, x); counts: n_k^y [C, K]; state: as it gives.

    >>> make, clients = lambda theta, batch: {"x": batch["y"]}, lambda x: jnp.log(jnp.full((1, 4, 2), 0.5))
    >>> server = lambda w, x: jax.nn.log_softmax(jnp.broadcast_to(w, (1, 4, 2)))
    >>> config = FedFTGConfig(generator_steps=0, model_steps=1, made_batch=4, model_lr=1.0)
    >>> state = {"params": jnp.log(jnp.array([3.0, 1.0])), "generator": {}, "moments": optax.adam(0.01).init({})}
    >>> new, _ = fine_tune(config, make, clients, server, jnp.ones((1, 2)), state, jax.random.key(0))
    >>> (new["params"] - state["params"]).round(2).tolist()  # against the gradient D(x, w) - D(x, w_k)
    [-0.25, 0.25]
    """
    batch = losses.draw_batch(config.made_batch, config.noise, counts, key)
    server_now = functools.partial(server, state["params"])
    harder = lambda theta, batch, key: (generator_loss(config, make, clients, server_now, theta, batch), {})
    start = state["generator"], state["moments"]
    theta, moments = _repeat(harder, optax.adam(config.generator_lr), config.generator_steps, start, batch, key)
    x = make(theta, batch)
    said = clients(x)
    apart = lambda w, batch, key: (losses.discrepancy(batch["alpha"], said, server(w, x)), {})
    sgd = optax.sgd(config.model_lr)
    start = state["params"], sgd.init(state["params"])
    params, _ = _repeat(apart, sgd, config.model_steps, start, batch, key)
    return {"params": params, "generator": theta, "moments": moments}, apart(params, batch, key)[0]


def _repeat(
    loss: Loss, tx: optax.GradientTransformation, number: int, start: tuple[PyTree, PyTree], batch: Batch, key: Key
) -> tuple[PyTree, PyTree]:
    """(the parameters, their moments) after so many steps on one batch."""
    step = gradient_step(loss, tx)
    return jax.lax.fori_loop(0, number, lambda _, at: step(at, batch, key)[0], start)


def server_update(
    config: FedFTGConfig,
    generator: Model,
    kinds: losses.Kinds,
    encoders: Encoders,
    head: Model,
    state: Mapping[str, PyTree],
    uploads: Mapping[str, Upload],
    public: Arrays | None,
    key: Key,
) -> tuple[dict[str, PyTree], Metrics]:
    """Step 2, and the mean before it: the server's new state, and the metric "discrepancy", L_md at the end.

    Where nobody sent anything, the state stays as it is.

    >>> same = Model(lambda key, x: {}, lambda params, x: x)
    >>> add = Model(lambda key, x: jnp.zeros(2), lambda bias, x: x + bias[None])
    >>> kinds, state = {"x": jax.ShapeDtypeStruct((2,), jnp.float32)}, {"params": {"x": {}, "head": jnp.zeros(2)}}
    >>> opt = {part: optax.sgd(1.0).init(value) for part, value in state["params"].items()}
    >>> state |= {"opt": opt, "generator": {}, "moments": optax.adam(0.01).init({})}
    >>> sent = {"x": {}, "head": jnp.array([[1.0, 0.0], [0.0, 3.0]])}
    >>> upload = {part: Each(value, jnp.array([3.0, 1.0])) for part, value in sent.items()}
    >>> upload["class/counts"] = Each(jnp.ones((2, 2)), jnp.ones(2))
    >>> update = functools.partial(server_update, FedFTGConfig(steps=0, noise=0), same, kinds, {"x": same}, add, state)
    >>> update({"all": upload}, None, jax.random.key(0))[0]["params"]["head"].tolist()
    [0.75, 0.75]
    """
    means = {}
    for part, old in state["params"].items():
        sent = aggregate.collect(uploads, part)
        means[part] = Mean(aggregate.average(sent, old), sent.weight.sum())
    averaged, _ = fedavg.server_update(config.fedavg, state, {"all": means}, public, key)
    counts = aggregate.collect(uploads, COUNTS).value
    models = [{part: one.value for part, one in sent.items() if part != COUNTS} for sent in uploads.values()]
    make = functools.partial(losses.generate, generator, kinds)
    clients, server = (
        functools.partial(one, encoders, head, models) for one in (losses.ask_clients, losses.ask_server)
    )
    start = {"params": averaged["params"], "generator": state["generator"], "moments": state["moments"]}
    one = lambda i, at: fine_tune(config, make, clients, server, counts, at[0], jax.random.fold_in(key, i))
    tuned, apart = jax.lax.fori_loop(0, config.steps, one, (start, jnp.float32(0)))
    return {"opt": averaged["opt"], **trees.where(counts.sum() > 0, tuned, start)}, {"discrepancy": apart}
