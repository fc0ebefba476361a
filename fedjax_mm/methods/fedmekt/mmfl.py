"""MMFL: federated averaging of split autoencoders, with FedProx and MOON: the baselines that share weights.

Zhao, Barnaghi, Haddadi, Multimodal federated learning on IoT data, IoTDI 2022; Li et al., FedProx, MLSys 2020; Li, He,
Song, MOON, CVPR 2021. Numbers in parentheses are sections of docs/specs/fedmekt.md.

    m    modality                         w_m    its encoder and decoder
    z    embeddings of own windows        zg, zp by the global encoder, by the client's own of its last round

One round:
  1. The server sends w_m for each modality m the client owns (`download`).
  2. A client trains E epochs on its own unlabelled windows (`client_update`, `client_loss`): sum_m,n rec(m->n) (or
     DCCAE), + mu/2 |w - w_global|^2 (FedProx, `proximal_term`), + nu (-log e^{s+} / (e^{s+} + e^{s-})),
     s+ = cos(z, zg) / 0.5, s- = cos(z, zp) / 0.5 (MOON, `moon_term`).
  3. It sends back each w_m, weighted by its examples, times `multimodal_weight` where it owns several modalities.
  4. The server takes the mean of w_m over the clients that own m; one that nobody sent stays (`server_update`).
  5. A linear classifier on the frozen encoders is fitted whenever `evaluate` is called, as in FedMEKT (`scores`).

With `shared=False` nothing travels: clients alone, each with a classifier of its own; the scores are their mean.

Deviations: FedProx has the squared norm of all of w (the code FedMEKT compares with (3.2): the norm, encoders alone;
its gradient at 0 is not finite); MOON's cosine is over features, at every step (there over time, `moon_axis`); Adam
starts afresh in every round (there, not here by default, it goes on, `persistent`). Windows, splits and states are
those that fedmekt/method.py describes.
"""

import functools
from collections.abc import Callable, Mapping

import jax
import numpy as np

from fedjax_mm import aggregate
from fedjax_mm.checks import population_of
from fedjax_mm.federate import Evaluation, Method, federate
from fedjax_mm.methods.fedmekt import autoencoding
from fedjax_mm.methods.fedmekt.autoencoding import Owners
from fedjax_mm.methods.fedmekt.fitting import fit_of
from fedjax_mm.methods.fedmekt.linear_evaluation import Probe, linear_evaluation
from fedjax_mm.methods.fedmekt.mmfl_client import (
    by_modality,
    by_part,
    client_loss,
    client_update,
    init_client,
    moon_term,
    score_client,
)
from fedjax_mm.methods.fedmekt.mmfl_config import MMFLConfig
from fedjax_mm.methods.fit import check_population
from fedjax_mm.methods.regularisers import proximal_term
from fedjax_mm.methods.settings import check_settings
from fedjax_mm.models.autoencoder import AutoEncoder
from fedjax_mm.types import Arrays, Cohort, Download, FedState, HasPopulation, Key, Metrics, PyTree, Server, Upload

__all__ = [
    "MMFLConfig",
    "Probe",
    "build",
    "client_loss",
    "client_update",
    "download",
    "init_client",
    "init_server",
    "moon_term",
    "proximal_term",
    "score_client",
    "scores",
    "server_update",
]


def build(
    config: MMFLConfig, data: HasPopulation, autoencoder: AutoEncoder, labelled: Arrays, num_classes: int
) -> Method:
    """The method for the cohorts of `data`, a FederatedData or a Population: a cohort owns the modalities that its
    arrays [E, T, F] have.

    labelled: the server's own windows {m: [Q, T, F]} with `labels` [Q, T] or `label` [Q] (see Probe).
    `evaluate` gives "a/macro_f1", "a+b/accuracy", ... (see linear_evaluation). Raises ValueError where settings are
    out of range or do not go together, a modality has no owner, labels are missing, or arrays do not fit the
    autoencoder or the number of classes; `evaluate` does for test windows.
    """
    population = population_of(data)
    check_settings(config, MMFLConfig)
    fit = fit_of(autoencoder, population, shared=False)
    check_population(fit, population)
    owners = autoencoding.find_owners(autoencoder, population)
    if config.objective == "dcc" and config.variant == "S":
        raise ValueError('the dcc objective needs both encoders in one step; use variant "C"')
    evaluation = linear_evaluation(config.probe, autoencoder, labelled, num_classes)
    cohorts = {
        name: Cohort(
            population.sizes[name],
            functools.partial(init_client, config, autoencoder, modalities),
            functools.partial(client_update, config, autoencoder),
            functools.partial(score_client, config, autoencoder),
        )
        for name, modalities in owners.items()
    }
    server = Server(
        functools.partial(init_server, autoencoder),
        functools.partial(download, config, owners),
        functools.partial(server_update, config),
    )
    score_all = functools.partial(scores, config, autoencoder, owners, evaluation.scores)
    evaluate = Evaluation(evaluation.check, score_all)
    return federate(server, cohorts, evaluate, check=functools.partial(check_population, fit))


def init_server(autoencoder: AutoEncoder, key: Key) -> dict[str, PyTree]:
    """The server's first state, {m: w_m}, and w_m is {part: its parameters}.

    >>> from fedjax_mm.models import autoencoder
    >>> server = init_server(autoencoder.linear({"a": 3, "b": 2}), jax.random.key(0))
    >>> list(server), sorted(server["a"])
    (['a', 'b'], ['decoder_a', 'encoder_a'])
    """
    return by_modality(autoencoder, autoencoder.init(key), autoencoder.modalities)


def download(config: MMFLConfig, owners: Owners, state: Mapping, public: Arrays | None) -> dict[str, Download]:
    """Step 1: for each cohort {m: w_m} of the modalities that it owns; () where nothing travels.

    >>> from fedjax_mm.models import autoencoder
    >>> server = init_server(autoencoder.linear({"a": 3, "b": 2}), jax.random.key(0))
    >>> sorted(download(MMFLConfig(), {"B": ("b",)}, server, None)["B"].sent["b"])
    ['decoder_b', 'encoder_b']
    """
    send = lambda modalities: {m: state[m] for m in modalities} if config.shared else ()
    return {name: Download(send(modalities)) for name, modalities in owners.items()}


def server_update(
    config: MMFLConfig, state: Mapping, uploads: Mapping[str, Upload], public: Arrays | None, key: Key
) -> tuple[PyTree, Metrics]:
    """Step 4: ({m: the mean of w_m over the clients that sent it, or w_m of before}, no metrics).

    >>> import jax.numpy as jnp
    >>> from fedjax_mm.types import Mean
    >>> uploads = {"A": {"a": Mean(jnp.float32(1), jnp.float32(3))}, "AB": {"a": Mean(jnp.float32(5), jnp.float32(1))}}
    >>> float(server_update(MMFLConfig(), {"a": jnp.float32(0)}, uploads, None, jax.random.key(0))[0]["a"])
    2.0
    """
    if not config.shared:
        return state, {}
    return {m: aggregate.average(aggregate.collect(uploads, m), state[m]) for m in state}, {}


def scores(
    config: MMFLConfig,
    autoencoder: AutoEncoder,
    owners: Owners,
    evaluation: Callable[[PyTree, Arrays], Mapping[str, float]],
    state: FedState,
    arrays: Arrays,
) -> Mapping[str, float]:
    """Step 5: the scores of the global encoders by `evaluation`, a linear_evaluation, on test windows {m: [M, T, F]}.

    Where nothing is shared: the mean over the clients that own a modality from which the classifier learns.

    >>> from fedjax_mm.models import autoencoder
    >>> ae, label = autoencoder.linear({"a": 2}, width=2), np.array([0, 1] * 4)
    >>> windows = {"a": np.eye(2, dtype=np.float32)[label][:, None] * np.ones((1, 3, 1), np.float32), "label": label}
    >>> evaluation = linear_evaluation(Probe(unit="window"), ae, windows, num_classes=2)
    >>> state = FedState(init_server(ae, jax.random.key(0)), {}, jax.numpy.int32(1))
    >>> scores(MMFLConfig(), ae, {"all": ("a",)}, evaluation, state, windows)["a/accuracy"]
    1.0
    """
    if config.shared:
        return evaluation(by_part(state.server), arrays)
    learn = set(config.probe.labelled or autoencoder.modalities)
    rows = []
    for name in (name for name in owners if learn & set(owners[name])):
        params = state.clients[name]["params"]
        for k in range(len(jax.tree.leaves(params)[0])):
            rows.append(evaluation(jax.tree.map(lambda x, k=k: x[k], params), arrays))
    keys = dict.fromkeys(key for row in rows for key in row)
    return {key: float(np.mean([row[key] for row in rows if key in row])) for key in keys}
