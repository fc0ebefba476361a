"""CAR-MFL: a client borrows the modality that it lacks from public examples that are like its own.

Poudel, Shrestha, Amgain, Shrestha, Gyawali, Bhattarai, MICCAI 2024, arXiv 2407.08648:

    f_m   the server's encoder of modality m     P   the public examples, which have all modalities, and labels
    k     `candidates`                           alpha   `borrowed_weight`

One round:
  1. The server sends every client the encoders of all modalities, and the head (`server_download`).
  2. Client i finds for each of its examples the k public ones whose embeddings, by the received f_m of the modalities
     that the example has, are nearest, and takes of these one with the same label, the nearest where several or none
     have (`embeddings_of`, `retrieve`). What its example lacks it takes from this one (`complete`), and trains all
     parts on such complete examples, as in FedAvg (`client_update`).
  3. The server averages each part. In the mean of an encoder, a client all of whose inputs were borrowed counts alpha
     times (`sent_weight`).

An example that lacks a modality which its client has (`has_<modality>` [E]) borrows it too. A client looks for public
examples in every step, always with the encoders that the round began with, so that it finds the same as once a round.
Labels of one class are alike where they are the same (the paper takes the Jaccard index of several); without public
labels the nearest is taken. Choices where the paper's text was not at hand: the squared L2 distance, and alpha, which
is a setting; with alpha = 1 all clients count by their examples. On its own test rows a client borrows nothing.
"""

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from fedjax_mm.federate import Method
from fedjax_mm.local import Batch, take
from fedjax_mm.methods import fedavg, fit
from fedjax_mm.methods.fedavg import FedAvgConfig, kind_weight, local_loss
from fedjax_mm.methods.fedavg.network import Encoders, Parts
from fedjax_mm.methods.neighbours.training import check_whole_model, fit_with_public, train
from fedjax_mm.methods.settings import check_settings
from fedjax_mm.models import Model, as_encoder, as_encoders
from fedjax_mm.types import (
    Arrays,
    ClientData,
    Download,
    HasPopulation,
    Key,
    Mean,
    Metrics,
    Population,
    Upload,
)


@dataclasses.dataclass(frozen=True)
class CARMFLConfig:
    """Settings of one run."""

    candidates: int = 5
    """k, how many of the nearest public examples are looked at for one of the same label."""
    borrowed_weight: float = 1.0
    """alpha, the factor on a client's weight in the mean of an encoder of which it has no input of its own."""
    fedavg: FedAvgConfig = FedAvgConfig()
    """How clients train, and how the server averages."""


def build(config: CARMFLConfig, data: HasPopulation, encoders: Encoders, head: Model) -> Method:
    """The method for the cohorts of `data`, whose public examples have all modalities and may have `label` [P].

    Arguments, scores and errors are those of `fedavg.build`. Raises ValueError too where the public examples lack a
    modality or do not fit, are fewer than the candidates, and where `config.fedavg.shared` names parts: all travel.
    """
    check_settings(config, CARMFLConfig)
    encoders, head = as_encoders("encoders", encoders), as_encoder(head, name="head")
    base = fedavg.build(config.fedavg, data, encoders, head)
    check_whole_model("CAR-MFL", config.fedavg)
    fitted = fit_with_public(encoders, head, data.population, "which clients borrow")
    check_candidates(config, data.population, next(iter(encoders)))
    if "label" in (data.population.public or {}):
        of_clients = next(iter(fitted.limits.values()))["label"]
        fitted = fitted._replace(public={**(fitted.public or {}), "label": of_clients})
    check = functools.partial(fit.check_population, fitted)
    check(data.population)
    update = functools.partial(client_update, config, encoders, head)
    cohorts = {name: one._replace(update=update) for name, one in base.cohorts.items()}
    download = functools.partial(server_download, tuple(cohorts))
    return base._replace(server=base.server._replace(download=download), cohorts=cohorts, check=check)


def check_candidates(config: CARMFLConfig, population: Population, modality: str) -> None:
    """Raises ValueError where there are fewer public examples than candidates."""
    rows = (population.public or {})[modality].shape[0]
    if config.candidates > rows:
        raise ValueError(f"CARMFLConfig.candidates is {config.candidates}; there are {rows} public examples")


def server_download(
    cohorts: tuple[str, ...], state: Mapping[str, Parts], public: Arrays | None = None
) -> dict[str, Download]:
    """Step 1: all parts for every cohort.

    >>> server_download(("phones",), {"params": {"image": 1, "text": 2, "head": 3}})["phones"].sent
    {'image': 1, 'text': 2, 'head': 3}
    """
    return {name: Download(dict(state["params"])) for name in cohorts}


def embeddings_of(encoders: Encoders, params: Parts, arrays: Arrays) -> dict[str, jax.Array]:
    """{modality: embeddings [B, D]} of the modalities that the arrays have.

    >>> identity = Model(lambda key, x: {}, lambda params, x: x)
    >>> embeddings_of({"a": identity, "b": identity}, {"a": {}, "b": {}}, {"b": jnp.ones((1, 2))})
    {'b': Array([[1., 1.]], dtype=float32)}
    """
    return {m: encoders[m].apply(params[m], arrays[m]) for m in encoders if m in arrays}


def retrieve(
    candidates: int,
    own: Mapping[str, jax.Array],
    there: Mapping[str, jax.Array],
    public: Mapping[str, jax.Array],
    labels: jax.Array,
    public_labels: jax.Array | None,
) -> jax.Array:
    """[B] int: the row of the public example that each own one borrows from.

    own: modality -> [B, D]; there: modality -> [B], 1 where the example has it; public: modality -> [P, D]; labels [B]
    and public_labels [P], or None where there are none.

    >>> own, public = {"a": jnp.array([[0.0]])}, {"a": jnp.array([[3.0], [1.0], [2.0], [9.0]])}
    >>> find = lambda k, labels: int(retrieve(k, own, {"a": jnp.ones(1)}, public, jnp.array([4]), labels)[0])
    >>> find(3, None), find(3, jnp.array([4, 0, 4, 4])), find(2, jnp.array([4, 0, 1, 4]))
    (1, 2, 1)
    """
    apart = sum(
        there[m][:, None] * jnp.square(own[m][:, None] - public[m][None]).sum(-1).astype(jnp.float32) for m in own
    )
    nearest = jax.lax.top_k(-jnp.asarray(apart), candidates)[1]  # [B, k], the nearest first
    if public_labels is None:
        return nearest[:, 0]
    same = public_labels[nearest] == labels[:, None]
    return jnp.take_along_axis(nearest, jnp.argmax(same, 1)[:, None], 1)[:, 0]


def complete(encoders: Encoders, batch: Batch, public: Arrays, rows: jax.Array) -> dict[str, jax.Array]:
    """The batch with all modalities: its own where an example has it, else that of its public example. rows: [B].

    >>> identity = Model(lambda key, x: {}, lambda params, x: x)
    >>> batch = {"a": jnp.array([[1.0], [2.0]]), "has_a": jnp.array([True, False]), "label": jnp.array([0, 1])}
    >>> public = {"a": jnp.array([[7.0], [8.0]]), "b": jnp.array([[5.0], [6.0]])}
    >>> full = complete({"a": identity, "b": identity}, batch, public, jnp.array([0, 1]))
    >>> full["a"].tolist(), full["b"].tolist(), sorted(full)
    ([[1.0], [8.0]], [[5.0], [6.0]], ['a', 'b', 'label'])
    """
    borrowed = take({m: public[m] for m in encoders}, rows)
    full = {name: x for name, x in batch.items() if not name.startswith("has_")}
    for m in encoders:
        there = batch.get(f"has_{m}", jnp.ones(len(rows))).reshape(-1, *[1] * (borrowed[m].ndim - 1)) > 0
        full[m] = jnp.where(there, batch[m], borrowed[m]) if m in batch else borrowed[m]
    return full


def sent_weight(config: CARMFLConfig, part: str, arrays: Arrays) -> float:
    """The factor on a client's weight in the mean of a part: alpha for an encoder without an input of its own, else 1.

    >>> config = CARMFLConfig(borrowed_weight=0.5)
    >>> [sent_weight(config, part, {"image": jnp.ones((1, 2))}) for part in ("image", "text", "head")]
    [1.0, 0.5, 1.0]
    """
    return 1.0 if part == "head" or part in arrays else config.borrowed_weight


def client_update(
    config: CARMFLConfig,
    encoders: Encoders,
    head: Model,
    download: Download,
    state: Parts,
    data: ClientData,
    key: Key,
) -> tuple[Upload, Parts, Metrics]:
    """Step 2: what one client sends, a Mean of every part, no state, and the metrics "loss" and "accuracy".

    >>> from fedjax_mm.local import whole
    >>> add = Model(lambda key, x: jnp.zeros(2), lambda bias, x: x + bias[None])
    >>> identity, public = Model(lambda key, x: {}, lambda params, x: x), jnp.eye(2)
    >>> data = whole({"a": jnp.zeros((1, 2)), "label": jnp.array([0])})
    >>> data = dataclasses.replace(data, public={"a": public, "b": -public, "label": jnp.array([0, 1])})
    >>> config = CARMFLConfig(candidates=2, borrowed_weight=0.5, fedavg=FedAvgConfig(client_lr=1.0))
    >>> params, encoders = {"a": {}, "b": jnp.zeros(2), "head": {}}, {"a": identity, "b": add}
    >>> upload, _, _ = client_update(config, encoders, identity, Download(params), {}, data, jax.random.key(0))
    >>> float(upload["a"].weight), float(upload["b"].weight), upload["b"].value.round(2).tolist()
    (1.0, 0.5, [0.31..., -0.31...])
    """
    if data.public is None:
        raise ValueError("CAR-MFL borrows from public examples, and there are none")
    received, public = dict(download.sent), data.public
    at_public = embeddings_of(encoders, received, public)

    def loss(params: Parts, batch: Batch, key: Key) -> tuple[jax.Array, Metrics]:
        own = embeddings_of(encoders, received, batch)
        there = {m: batch.get(f"has_{m}", batch["mask"]).astype(jnp.float32) for m in own}
        rows = retrieve(config.candidates, own, there, at_public, batch["label"], public.get("label"))
        full = complete(encoders, batch, public, rows)
        return local_loss(config.fedavg, encoders, head, params, received, full)

    params, _, metrics = train(config.fedavg, loss, received, data, key)
    kind = kind_weight(config.fedavg, {m: received[m] for m in encoders if m in data.arrays})
    weight = lambda part: kind * sent_weight(config, part, data.arrays) * data.weight
    return {part: Mean(params[part], weight(part)) for part in params}, state, metrics
