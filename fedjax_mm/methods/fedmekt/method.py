"""FedMEKT: what a federation learns travels as embeddings of a proxy dataset, never as weights.

Le, Nguyen, Thwal, Qiao, Zhang, Hong, Neural Networks 183, 2025 (arXiv 2307.13214), after the released code. Numbers in
parentheses are sections of docs/specs/fedmekt.md, which describes that code.

    m        modality                         z_m, h_m   embedding and first-layer states of a window
    theta_k  client k's autoencoder           z_m^g      the global autoencoder's embedding of a proxy window
    theta_g  global (generalised) one         zbar_m     knowledge: the mean embedding over the clients that own m
    rec(m->n) error of n decoded from z_m     KD(t, s)   T^2 KL(t || s) of softmaxes over T, t without gradient
    alpha, beta   clients' weights of z, h    eta, gamma the server's
    R        server_epochs

One round (all clients and the server start from one theta; afterwards theta_k and its Adam state stay with client k):
  1. The server sends z_m^g of the P proxy windows for each modality m the client owns (`download`).
  2. Client k trains E epochs over its own unlabelled windows, each step with proxy windows drawn at random (1.2,
     `client_update` and `client_loss`): sum_m,n rec(m->n) + alpha KD(z_m^g, z_m^k) + beta KD(h_m^g, h_m^k), the KD a
     mean over its modalities (`distillation`).
  3. It sends its z_m^k of all proxy windows (`embed`, `message`): zbar_m is their plain mean over owners (1.3,
     `combine_knowledge`). A modality that nobody sent keeps the zbar_m of before.
  4. The server trains R epochs over the proxy windows (1.4, `server_update` and `server_loss`): sum_m,n rec(m->n) +
     eta KD(zbar_m, z_m^g) + gamma KD(hbar_m, h_m^g). A round in which nobody took part changes nothing.
  5. The generalised classifier (1.5) is fitted whenever `evaluate` is called, on the frozen theta_g and the server's
     labelled set (`scores`). It feeds nothing back, so no round needs it and no client ever sees a label.

Deviations from the code, each a setting: the last step's z travels, not all steps of z and h (`knowledge`); softmax
over features, not time (`kd_axis`); the mean over owners, not the last one (`aggregate`); KL(teacher || student) on the
server too, KD not doubled, no frozen random projection (`released`); windows are encoded and scored from a zero state,
where the code carries the state through streams of up to 2000 frames and scores every frame (1.6, `Probe.stream`, of
scores alone). Not in the code: one row over time of z or h
may travel (`knowledge`) and be classified (`Probe.readout`), and KD may be a cosine or a squared distance (`kd`).

Deviations without a setting: all clients and the server see the same proxy windows (there each draws its own, 5.2);
the participants are drawn anew in every round (there they are the same nine, 5.4); all windows have one length (there
it is random, 1.2).

Deviations of the data of our experiments (2.3): clients own windows that are cut once; where these overlap by half,
clients of a Dirichlet split share frames (there a client has random segments of the stream). No test row is a training
row (there some are, 5.3). Splits are drawn anew for each seed, so that a validation subject of one seed may be a test
subject of another. The reduced mHealth is normalised per subject, test subjects too, as in the code; the other
recordings by training statistics.

Controls: eta = gamma = 0 is the server alone; server_epochs = 0 a random frozen encoder; clients alone are in mmfl.
"""

import functools
from collections.abc import Callable, Mapping

from fedjax_mm.checks import population_of
from fedjax_mm.federate import Evaluation, Method, federate
from fedjax_mm.methods.fedmekt import autoencoding
from fedjax_mm.methods.fedmekt.client import client_update, init_client, score_client
from fedjax_mm.methods.fedmekt.config import FedMEKTConfig, check
from fedjax_mm.methods.fedmekt.fitting import fit_of
from fedjax_mm.methods.fedmekt.linear_evaluation import linear_evaluation
from fedjax_mm.methods.fedmekt.server import download, init_server, server_update
from fedjax_mm.methods.fit import check_population
from fedjax_mm.models.autoencoder import AutoEncoder
from fedjax_mm.types import Arrays, Cohort, FedState, HasPopulation, PyTree, Server


def build(
    config: FedMEKTConfig, data: HasPopulation, autoencoder: AutoEncoder, labelled: Arrays, num_classes: int
) -> Method:
    """The method for the cohorts of `data`, a FederatedData or a Population: a cohort owns the modalities that its
    arrays [E, T, F] have.

    data.public holds the proxy windows {m: [P, T, F]} of every modality, index-aligned; the clients have them already.
    labelled: the server's own windows {m: [Q, T, F]} with `labels` [Q, T] or `label` [Q] (see Probe).
    `evaluate` gives "a/macro_f1", "a+b/accuracy", ... of the global encoder (see linear_evaluation). Raises ValueError
    where settings are out of range or do not go together, a modality has no owner, proxy windows or labels are missing,
    or arrays do not fit the autoencoder or the number of classes; `evaluate` does for test windows.
    """
    population = population_of(data)
    public = population.public or {}
    fit = fit_of(autoencoder, population, shared=True)
    check(config, autoencoder, public)
    check_population(fit, population)
    owners = autoencoding.find_owners(autoencoder, population)
    evaluation = linear_evaluation(config.probe, autoencoder, labelled, num_classes)
    cohorts = {
        name: Cohort(
            population.sizes[name],
            functools.partial(init_client, config, autoencoder, modalities),
            functools.partial(client_update, config, autoencoder),
            functools.partial(score_client, autoencoder),
        )
        for name, modalities in owners.items()
    }
    server = Server(
        functools.partial(init_server, config, autoencoder, public),
        functools.partial(download, config, autoencoder, owners),
        functools.partial(server_update, config, autoencoder),
    )
    check_data = functools.partial(check_population, fit)
    evaluate = Evaluation(evaluation.check, functools.partial(scores, evaluation.scores))
    return federate(server, cohorts, evaluate, check=check_data)


def scores(
    evaluation: Callable[[PyTree, Arrays], Mapping[str, float]], state: FedState, arrays: Arrays
) -> Mapping[str, float]:
    """Step 5: the scores of the global encoder by `evaluation`, a linear_evaluation, on test windows {m: [M, T, F]}.

    >>> import jax, numpy as np
    >>> from fedjax_mm.methods.fedmekt import Probe
    >>> from fedjax_mm.models import autoencoder
    >>> ae, label = autoencoder.linear({"a": 2}, width=2), np.array([0, 1] * 4)
    >>> windows = {"a": np.eye(2, dtype=np.float32)[label][:, None] * np.ones((1, 3, 1), np.float32), "label": label}
    >>> evaluation = linear_evaluation(Probe(unit="window"), ae, windows, num_classes=2)
    >>> state = FedState({"params": ae.init(jax.random.key(0))}, {}, jax.numpy.int32(1))
    >>> scores(evaluation, state, windows)["a/accuracy"]
    1.0
    """
    return evaluation(state.server["params"], arrays)
