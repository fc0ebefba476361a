"""FedRep: clients share what turns examples into embeddings, and each has a head of its own.

Collins, Hassani, Mokhtari, Shakkottai, ICML 2021, arXiv 2102.07078, algorithm 1 with its neural network's steps (6):

    phi  the encoders, which travel     h_k  client k's head, which never does     tau  `head_epochs`

One round:
  1. The server sends phi, the encoders of a client's modalities, as in FedAvg.
  2. Client k first trains h_k for tau epochs with phi as it was received, and then phi for E epochs with this h_k. It
     sends phi and keeps h_k (`client_update`).
  3. The server averages phi, as in FedAvg.

FedPer, which is FedAvg with `shared` encoders, trains both at once. Deviation: clients weigh as in FedAvg, by examples;
in the paper they own equally many.
"""

import dataclasses
import functools

import jax

from fedjax_mm.federate import Method
from fedjax_mm.local import Batch
from fedjax_mm.methods import fedavg
from fedjax_mm.methods.fedavg import FedAvgConfig, kind_weight, local_loss
from fedjax_mm.methods.fedavg.network import Encoders, Parts
from fedjax_mm.methods.neighbours.training import check_whole_model, train
from fedjax_mm.methods.settings import check_settings
from fedjax_mm.models import Model, as_encoder, as_encoders
from fedjax_mm.types import ClientData, Download, HasPopulation, Key, Mean, Metrics, PyTree, Upload


@dataclasses.dataclass(frozen=True)
class FedRepConfig:
    """Settings of one run."""

    head_epochs: int = 10
    """tau, a client's passes over its examples that train its head. `fedavg.epochs` are those that train encoders."""
    fedavg: FedAvgConfig = FedAvgConfig()
    """How the encoders are trained. Heads take its rate, optimiser and batches."""


def build(config: FedRepConfig, data: HasPopulation, encoders: Encoders, head: Model) -> Method:
    """The method for the cohorts of `data`. Arguments, scores and errors are those of `fedavg.build` with personal
    heads.

    Raises ValueError too where `config.fedavg.shared` names parts: the encoders travel.
    """
    check_settings(config, FedRepConfig)
    encoders, head = as_encoders("encoders", encoders), as_encoder(head, name="head")
    base = fedavg.build(dataclasses.replace(config.fedavg, shared=tuple(encoders)), data, encoders, head)
    check_whole_model("FedRep", config.fedavg)
    update = functools.partial(client_update, config, encoders, head)
    return base._replace(cohorts={name: cohort._replace(update=update) for name, cohort in base.cohorts.items()})


def client_update(
    config: FedRepConfig,
    encoders: Encoders,
    head: Model,
    download: Download,
    state: Parts,
    data: ClientData,
    key: Key,
) -> tuple[Upload, dict[str, PyTree], Metrics]:
    """Step 2: what one client sends, a Mean of each of its encoders, its new head, and the metrics "loss" and
    "accuracy" of the steps that train encoders.

    >>> import jax.numpy as jnp
    >>> from fedjax_mm.local import whole
    >>> shift = Model(lambda key, x: jnp.zeros(2), lambda bias, x: x + bias[None])
    >>> data = whole({"x": jnp.zeros((1, 2)), "label": jnp.array([0])})
    >>> zero, config = jnp.zeros(2), FedRepConfig(1, FedAvgConfig(client_lr=1.0, epochs=0))
    >>> upload, state, _ = client_update(
    ...     config, {"x": shift}, shift, Download({"x": zero}), {"head": zero}, data, jax.random.key(0)
    ... )
    >>> upload["x"].value.tolist(), state["head"].tolist()
    ([0.0, 0.0], [0.5, -0.5])
    """
    of, received = config.fedavg, download.sent
    head_key, encoder_key = jax.random.split(key)

    def head_loss(own: Parts, batch: Batch, key: Key) -> tuple[jax.Array, Metrics]:
        return local_loss(FedAvgConfig(), encoders, head, {**received, **own}, {}, batch)

    def encoder_loss(phi: Parts, batch: Batch, key: Key) -> tuple[jax.Array, Metrics]:
        return local_loss(of, encoders, head, {**phi, **own}, {**received, **own}, batch)

    heads_of = dataclasses.replace(of, epochs=config.head_epochs)
    own, _, _ = train(heads_of, head_loss, dict(state), data, head_key)
    phi, _, metrics = train(of, encoder_loss, dict(received), data, encoder_key)
    weight = kind_weight(of, phi) * data.weight
    return {m: Mean(phi[m], weight) for m in phi}, own, metrics
