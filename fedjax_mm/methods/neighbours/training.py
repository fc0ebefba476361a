"""What the neighbours of FedAvg share: local training, weights and counts, names of what travels beside parameters."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fedjax_mm.federate import Method, client_init
from fedjax_mm.local import Loss, gradient_step, local_steps, take
from fedjax_mm.methods import fit
from fedjax_mm.methods.fedavg import CLIENT_OPTIMIZERS, FedAvgConfig, fitting, kind_weight
from fedjax_mm.methods.fedavg.network import Encoders
from fedjax_mm.models import Model
from fedjax_mm.types import ClientData, Key, Metrics, Population, PyTree


def train(
    config: FedAvgConfig, loss: Loss, start: PyTree, data: ClientData, key: Key, *, decay: float | jax.Array = 1.0
) -> tuple[PyTree, jax.Array, Metrics]:
    """(the parameters after E epochs of the clients' optimiser from `start`, K [], metrics).

    K is the number of steps that the client took. With a decay it is sum_{k<K} decay^k, the weight that all steps have
    together where each one shrinks what those before it did. A metric [] is the mean over the steps.

    >>> from fedjax_mm.local import whole
    >>> loss = lambda w, batch, key: ((batch["x"] * batch["mask"]).sum() * w, {})
    >>> data, config = whole({"x": jnp.ones(5)}), FedAvgConfig(client_lr=0.1, batch_size=2, epochs=2)
    >>> w, steps, _ = train(config, loss, jnp.float32(3), data, jax.random.key(0))
    >>> round(float(w), 4), float(steps)
    (2.0, 6.0)
    """
    optimizer = CLIENT_OPTIMIZERS[config.client_optimizer](config.client_lr)
    descend = gradient_step(loss, optimizer)

    def step(carry: tuple[Any, jax.Array], batch: Mapping, key: Key) -> tuple[tuple[Any, jax.Array], Metrics]:
        training, steps = carry
        training, metrics = descend(training, batch, key)
        return (training, decay * steps + 1), metrics

    begin = (start, optimizer.init(start)), jnp.float32(0)
    (training, steps), metrics = local_steps(step, begin, data, key, batch_size=config.batch_size, epochs=config.epochs)
    return training[0], steps, metrics


def class_counts(data: ClientData, classes: int) -> jax.Array:
    """[K]: how many of a client's own examples are of each class. classes: K.

    >>> from fedjax_mm.local import whole
    >>> class_counts(whole({"label": jnp.array([2, 0, 2])}), 3).tolist()
    [1.0, 0.0, 2.0]
    """
    label = take({"label": data.arrays["label"]}, data.rows)["label"]
    real = (jnp.arange(len(label)) < data.count).astype(jnp.float32)
    return (jax.nn.one_hot(label, classes) * real[:, None]).sum(0)


def total_weights(config: FedAvgConfig, method: Method) -> dict[str, float]:
    """{part: the sum of `kind_weight` over all clients that get the part}: their number N, where none counts more.

    method: FedAvg's.
    """
    shapes = jax.eval_shape(method.server.init, jax.random.key(0))
    sent = {name: get.sent for name, get in method.server.download(shapes, None).items()}
    weights = {name: method.cohorts[name].size * kind_weight(config, parts) for name, parts in sent.items()}
    return {part: sum(weights[name] for name in sent if part in sent[name]) for part in shapes["params"]}


def named(prefix: str, parts: Mapping[str, Any]) -> dict[str, Any]:
    """{"<prefix>/<part>": value}: no part is called so, as a modality has no slash.

    >>> named("control", {"image": 1, "head": 2})
    {'control/image': 1, 'control/head': 2}
    """
    return {f"{prefix}/{part}": value for part, value in parts.items()}


def take_named(prefix: str, tree: Mapping[str, Any]) -> dict[str, Any]:
    """{part: value} of what `named` called "<prefix>/<part>"; of an empty prefix, the parts themselves.

    >>> tree = {"head": 1, "control/head": 2}
    >>> take_named("control", tree), take_named("", tree)
    ({'head': 2}, {'head': 1})
    """
    split = {key: key.rpartition("/") for key in tree}
    return {part: tree[key] for key, (before, _, part) in split.items() if before == prefix}


def init_client(base: Method, name: str, prefix: str, key: Key, server: Mapping[str, Any]) -> dict[str, PyTree]:
    """A client's first state: its personal parts, and zeros as "<prefix>/<part>" like each part that it is sent.

    base: FedAvg's method; name: of the cohort; server: the state of FedAvg's server.

    >>> import numpy as np
    >>> from fedjax_mm import FederatedData
    >>> from fedjax_mm.methods import fedavg
    >>> from fedjax_mm.models import heads, mlp
    >>> data = FederatedData.from_arrays({"x": np.ones((2, 3), "f"), "label": np.arange(2)}, [[0], [1]])
    >>> base = fedavg.build(FedAvgConfig(shared=("x",)), data, {"x": mlp.encoder((), 4)}, heads.linear(2))
    >>> sorted(init_client(base, "all", "control", jax.random.key(0), base.server.init(jax.random.key(0))))
    ['control/x', 'head']
    """
    sent = base.server.download(server, None)[name].sent
    zeros = {part: optax.tree.zeros_like(value) for part, value in sent.items()}
    return {**client_init(base.cohorts[name])(key, server), **named(prefix, zeros)}


def check_sgd(paper: str, config: FedAvgConfig) -> None:
    """Raises ValueError where clients do not take plain steps of SGD, which `paper` is about."""
    if config.client_optimizer != "sgd":
        raise ValueError(f'FedAvgConfig.client_optimizer is {config.client_optimizer!r}; {paper} is about "sgd"')


def check_plain_server(paper: str, config: FedAvgConfig) -> None:
    """Raises ValueError where there is a server optimiser, and `paper` has a step of the server of its own."""
    if config.server_optimizer != "sgd" or config.server_lr != 1.0:
        given = f"server_optimizer is {config.server_optimizer!r} and server_lr {config.server_lr}"
        raise ValueError(f'{paper} has a step of the server of its own; {given}, which must be "sgd" and 1.0')


def check_whole_model(paper: str, config: FedAvgConfig) -> None:
    """Raises ValueError where parts are personal already, and `paper` says itself what is."""
    if config.shared is not None:
        raise ValueError(f"FedAvgConfig.shared is {config.shared}; {paper} says what is personal, so leave it None")


def check_floats(paper: str, examples: fitting.Examples) -> None:
    """Raises ValueError where a modality is no array of floats, and `paper` makes examples from noise."""
    for m, like in examples.items():
        if not jnp.issubdtype(like.dtype, jnp.floating):
            raise ValueError(f"array {m!r} is of {like.dtype}; {paper} makes examples from noise, so give it floats")


def fit_with_public(encoders: Encoders, head: Model, population: Population, use: str) -> fit.Fit:
    """What FedAvg's model is built for, where it reads the public examples too: all modalities, and maybe other arrays.

    Raises ValueError where the public examples lack a modality or do not fit; `use` says what they are for.
    """
    modalities, examples = fitting.find_modalities(encoders, population)
    public = population.public or {}
    if missing := [m for m in examples if m not in public]:
        raise ValueError(f"the public examples have no {missing}, {use}; their arrays are {sorted(public)}")
    for m, like in examples.items():
        fit.check_kind(f"the public array {m!r}", public[m], like)
    fit.check_complete("the public examples", public, tuple(examples))
    fitted = fitting.fit_of(encoders, fitting.count_classes(encoders, head, examples), modalities, population)
    return fitted._replace(population=population, public=fit.tokens(encoders, encoders))
