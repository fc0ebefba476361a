"""FedAvg and FedIoT of image and text encoders: CreamFL's baselines that send weights, for which all models are equal.

McMahan et al., AISTATS 2017; Zhao, Barnaghi, Haddadi, IoTDI 2022; for encoders into one space, as CreamFL compares
them (section 4 of docs/specs/creamfl.md; their code is not released).

One round:
  1. `train_server`: the server trains its encoders on the public pairs, as CreamFL's server does.
  2. `download`: it sends each client the encoders of its modalities.
  3. `client_update`: a client trains them on its own examples, to classify with a head of its own, or to retrieve with
     a scale and a shift of its own, and sends them back.
  4. `server_update`: the server takes their mean, weighted by examples (times 100 for clients with both modalities:
     IoT). An encoder that nobody sent stays as it was.

Deviations: those of CreamFL's tasks and encoders (see method.py) hold here too. An optimiser starts afresh in every
round at a client.
"""

import dataclasses
import functools
from collections.abc import Mapping

import jax

from fedjax_mm import aggregate
from fedjax_mm.checks import population_of
from fedjax_mm.federate import Evaluation, Method, federate
from fedjax_mm.local import gradient_step, local_steps
from fedjax_mm.methods.creamfl import fitting, joint_space
from fedjax_mm.methods.creamfl.joint_space import MODALITIES, Shapes, modalities_of, task
from fedjax_mm.methods.creamfl.joint_space_scores import score_rows, scores
from fedjax_mm.methods.creamfl.training import Encoders, Training, batch_of, finish_step, optimizer
from fedjax_mm.methods.fit import check_mapping, check_population
from fedjax_mm.methods.settings import check_settings
from fedjax_mm.models import as_encoders
from fedjax_mm.types import (
    Arrays,
    ClientData,
    Cohort,
    Download,
    HasPopulation,
    Key,
    Mean,
    Metrics,
    PyTree,
    Server,
    Upload,
)


@dataclasses.dataclass(frozen=True)
class AveragingConfig:
    """Settings of one run."""

    training: Training = Training()
    """How the server and the clients learn their own tasks."""
    both_weight: float = 1.0
    """How many times its number of examples a client with both modalities counts in the mean (100 in IoT)."""


VARIANTS = {"fedavg": AveragingConfig(), "fediot": AveragingConfig(both_weight=100.0)}
"""fedavg: every example counts once; fediot: those of clients with both modalities count 100 times."""


def train_server(
    config: AveragingConfig, encoders: Encoders, state: dict[str, PyTree], public: Arrays | None, key: Key
) -> tuple[dict[str, PyTree], Metrics]:
    """Step 1: (the server's state, metrics) after `joint_space.train_on_pairs`."""
    return joint_space.train_on_pairs(config.training, encoders, state, public or {}, key)


def download(
    modalities: Mapping[str, tuple[str, ...]], state: dict[str, PyTree], public: Arrays | None = None
) -> dict[str, Download]:
    """Step 2: each cohort's Download, the parameters of its modalities {m: ...}. `held` is the round [] int.

    >>> import jax.numpy as jnp
    >>> state = {"params": {"image": jnp.ones(3), "text": jnp.ones(2)}, "round": jnp.int32(0)}
    >>> {name: sorted(download.sent) for name, download in download({"A": ("image",)}, state).items()}
    {'A': ['image']}
    """
    params = state["params"]
    return {name: Download({m: params[m] for m in own}, state["round"]) for name, own in modalities.items()}


def client_update(
    config: AveragingConfig,
    encoders: Encoders,
    download: Download,
    state: dict[str, PyTree],
    data: ClientData,
    key: Key,
) -> tuple[dict[str, Mean], dict[str, PyTree], Metrics]:
    """Step 3: (upload {m: the encoder's parameters}, the client's new state, metrics).

    encoders: those of the client's modalities. download: `sent` is {m: parameters}, `held` the round [] int. state:
    `params`, of which the encoders are replaced by those that were sent.

    >>> import jax.numpy as jnp
    >>> from fedjax_mm.local import whole
    >>> from fedjax_mm.models import Model
    >>> linear = Model(lambda key, x: jax.random.normal(key, (x.shape[-1], 4)), lambda params, x: x @ params)
    >>> own = {"image": jnp.ones((5, 3)), "label": jnp.arange(5) % 2}
    >>> state = {"params": joint_space.init(jax.random.key(0), {"image": linear}, own, 2)}
    >>> download = Download({"image": jnp.ones((3, 4))}, jnp.int32(0))
    >>> config = AveragingConfig(Training(epochs=1))
    >>> upload, state, _ = client_update(config, {"image": linear}, download, state, whole(own), jax.random.key(1))
    >>> round(float(jnp.abs(upload["image"].value - 1).max()), 4)  # one step of Adam at 0.001
    0.001
    """
    training, boost = config.training, config.both_weight if len(encoders) > 1 else 1.0
    tx = optimizer(training, encoders, download.held)
    params = {**state["params"], **download.sent}
    step = finish_step(training, gradient_step(task(training, encoders), tx))
    size, carry = batch_of(training, encoders), (params, tx.init(params))
    (params, _), metrics = local_steps(step, carry, data, key, batch_size=size, epochs=training.epochs)
    return {m: Mean(params[m], boost * data.weight) for m in encoders}, {"params": params}, metrics


def server_update(
    state: dict[str, PyTree], uploads: Mapping[str, Upload], public: Arrays | None = None, key: Key | None = None
) -> tuple[dict[str, PyTree], Metrics]:
    """Step 4: (the server's state with the clients' mean encoders, no metrics). uploads: {cohort: {m: Mean}}.

    >>> import jax.numpy as jnp
    >>> state = {"params": {"image": jnp.zeros(2), "text": jnp.zeros(2)}, "round": jnp.int32(0)}
    >>> sent = lambda value, weight: {"image": Mean(jnp.full(2, value), jnp.float32(weight))}
    >>> uploads = {"A": sent(1.0, 1), "B": sent(0.0, 3)}
    >>> server_update(state, uploads)[0]["params"]["image"].tolist()
    [0.25, 0.25]
    """
    sent = [m for m in MODALITIES if any(m in upload for upload in uploads.values())]
    means = {m: aggregate.average(aggregate.collect(uploads, m), state["params"][m]) for m in sent}
    return {**state, "params": {**state["params"], **means}, "round": state["round"] + 1}, {}


def init_client(encoders: Encoders, arrays: Shapes, num_classes: int | None, key: Key) -> dict[str, PyTree]:
    """A client's first state, its `params`. arrays: its examples [E, ...], of which the shapes alone count."""
    return {"params": joint_space.init(key, encoders, arrays, num_classes)}


def score_client(
    config: AveragingConfig,
    encoders: Encoders,
    download: Download,
    state: dict[str, PyTree],
    arrays: Arrays,
    mask: jax.Array,
) -> dict[str, jax.Array]:
    """How well the server's encoders, with the client's own head, do on each of its test rows, as `score_rows` says."""
    return score_rows(config.training, encoders, {**state["params"], **download.sent}, arrays, mask)


def build(config: AveragingConfig, data: HasPopulation, encoders: Encoders, num_classes: Mapping[str, int]) -> Method:
    """The method for the cohorts of `data`, a FederatedData or a Population, whose public arrays are `image` [P, ...]
    and `text` [P, L].

    encoders: of both modalities, for the server and every client, as `creamfl.build` takes them. num_classes:
    {cohort: K} of the cohorts that have one modality, and an array `label`. `evaluate` gives the same scores as
    creamfl's. Raises ValueError as creamfl.build does.
    """
    check_settings(config, AveragingConfig)
    check_mapping("encoders", encoders)
    encoders = as_encoders("encoders", encoders)
    population, training = population_of(data), config.training
    modalities = {name: modalities_of(cohort.arrays) for name, cohort in population.cohorts.items()}
    clients = {name: {m: encoders[m] for m in own if m in encoders} for name, own in modalities.items()}
    fit = fitting.fit_of(population, encoders, clients, num_classes)
    check_population(fit, population)
    cohorts = {}
    for name, members in population.cohorts.items():
        own = clients[name]
        cohorts[name] = Cohort(
            members.size,
            functools.partial(init_client, own, members.arrays, num_classes.get(name)),
            functools.partial(client_update, config, own),
            functools.partial(score_client, config, own),
        )
    server = Server(
        functools.partial(joint_space.init_server, training, encoders, population.public or {}),
        functools.partial(download, modalities),
        server_update,
        functools.partial(train_server, config, encoders),
    )
    classes = {name: x.classes for name, x in population.cohorts.items() if x.classes is not None}
    score_all = functools.partial(scores, training, encoders, clients, classes)
    check_test = functools.partial(fitting.check_test, encoders, clients, num_classes, fit)
    evaluate = Evaluation(check_test, score_all)
    check = functools.partial(check_population, fit)
    return federate(server, cohorts, evaluate, public_by_rows=True, check=check)
