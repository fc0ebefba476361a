"""MMFL: federated averaging of split autoencoders, with FedProx and MOON: the baselines that share weights.

Zhao, Barnaghi, Haddadi, Multimodal federated learning on IoT data, IoTDI 2022; Li et al., FedProx, MLSys 2020; Li, He,
Song, MOON, CVPR 2021.

    m    modality                         w_m    its encoder and decoder
    z    embeddings of own windows        zg, zp by the global encoder, by the client's own of its last round

One round:
  1. The server sends w_m for each modality m the client owns.
  2. A client trains E epochs on its own unlabelled windows: sum_m,n rec(m->n) (or DCCAE), + mu/2 |w - w_global|^2
     (FedProx), + nu (-log e^{s+} / (e^{s+} + e^{s-})), s+ = cos(z, zg) / 0.5, s- = cos(z, zp) / 0.5 (MOON).
  3. It sends back each w_m, weighted by its examples, times `multimodal_weight` where it owns several modalities.
  4. The server takes the mean of w_m over the clients that own m; one that nobody sent stays.
  5. A linear classifier on the frozen encoders is fitted whenever `evaluate` is called, as in FedMEKT.

With `shared=False` nothing travels: clients alone, each with a classifier of its own; the scores are their mean.

Deviations: FedProx has the squared norm of all of w (the code FedMEKT compares with: the norm, encoders alone; its
gradient at 0 is not finite); MOON's cosine is over features, at every step (there over time); Adam starts afresh in
every round (there, not here by default, it goes on).
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_mm import aggregate, losses
from fedjax_mm.federate import Method, federate
from fedjax_mm.local import local_steps
from fedjax_mm.methods.fedmekt import autoencoding
from fedjax_mm.methods.fedmekt.autoencoding import Objective, Variant
from fedjax_mm.methods.fedmekt.linear_evaluation import Probe, linear_evaluation
from fedjax_mm.models.autoencoder import AutoEncoder
from fedjax_mm.types import Arrays, Cohort, Download, FedState, Mean, Server


@dataclasses.dataclass(frozen=True)
class MMFLConfig:
    """Settings of one run; rates per step, counts per round."""

    prox: float = 0.0
    """mu of FedProx; 0 is without."""
    moon: float = 0.0
    """nu of MOON; 0 is without."""
    moon_axis: Literal["feature", "time"] = "feature"
    """Axis of MOON's cosine."""
    moon_temperature: float = 0.5
    multimodal_weight: float = 1.0
    """How many times its examples a client with several modalities counts (100 in Zhao et al.)."""
    client_lr: float = 0.004
    """Adam."""
    persistent: bool = False
    """Clients keep Adam's state from round to round."""
    batch_size: int = 24
    epochs: int = 2
    """Passes over a client's own examples in a round."""
    shared: bool = True
    """False: nothing travels and clients keep their autoencoders, the control."""
    variant: Variant = "C"
    """C: all modalities in one step; S: one modality after the other, the other encoders frozen."""
    objective: Objective = "split"
    """Reconstruction across modalities, or correlation of the modalities' embeddings (DCCAE)."""
    probe: Probe = Probe()


def build(config: MMFLConfig, data, autoencoder: AutoEncoder, labelled: Arrays, num_classes: int) -> Method:
    """The method for the cohorts of `data`, a FederatedData: a cohort owns the modalities its arrays [E, T, F] have.

    labelled: the server's own windows {m: [Q, T, F]} with `labels` [Q, T] or `label` [Q] (see Probe).
    `evaluate` gives "a/macro_f1", "a+b/accuracy", ... (see linear_evaluation).
    """
    ae = autoencoder
    holds = {name: tuple(m for m in ae.modalities if m in cohort.arrays) for name, cohort in data.cohorts.items()}
    autoencoding.check_holders(ae, holds)
    if config.objective == "dcc" and config.variant == "S":
        raise ValueError('the dcc objective needs both encoders in one step; use variant "C"')
    tx = autoencoding.adam(config.client_lr)
    score = linear_evaluation(config.probe, ae, labelled, num_classes)
    keeps_opt = config.persistent or not config.shared
    flat = lambda by_modality: {part: value for w in by_modality.values() for part, value in w.items()}
    by_modality = lambda params, held: {m: {part: params[part] for part in ae.parts(m)} for m in held}
    encoders = lambda params, held: {ae.parts(m)[0]: params[ae.parts(m)[0]] for m in held}

    def keep(params, opt, held):
        """What stays with a client, of what its round ended with."""
        state = {"opt": opt} if keeps_opt else {}
        state |= {} if config.shared else {"params": params}
        return state | ({"previous": encoders(params, held)} if config.moon else {})

    def cohort(name):
        held = holds[name]
        boost = config.multimodal_weight if len(held) > 1 else 1.0

        def update(download, state, data, key):
            start = flat(download.sent) if config.shared else state["params"]

            def loss(params, batch, key, sources):
                x = {m: batch[m] for m in held}
                z = {m: ae.encode(params, m, x[m])[0] for m in held}
                codes = {m: z[m][:, -1] for m in held}
                total = autoencoding.objective(config.objective, ae, params, codes, x, batch["mask"], sources)
                metrics = {"reconstruction": total}
                if config.prox:
                    total += 0.5 * config.prox * optax.tree.norm(optax.tree.sub(params, start), squared=True)
                if config.moon:
                    for m in sources:
                        old = [ae.encode(p, m, x[m])[0] for p in (start, state["previous"])]
                        total += config.moon * _moon(config, z[m], *old, batch["mask"])
                return total, metrics

            step = autoencoding.phased_step(loss, tx, autoencoding.phases(config.variant, ae, held))
            opt = state["opt"] if keeps_opt else autoencoding.init_opt(tx, start)
            (params, opt), metrics = local_steps(
                step, (start, opt), data, key, batch_size=config.batch_size, epochs=config.epochs
            )
            w = by_modality(params, held) if config.shared else {}
            return {m: Mean(w[m], boost * data.weight) for m in w}, keep(params, opt, held), metrics

        return Cohort(data.sizes[name], lambda key, server: client_state(name, flat(server)), update)

    def client_state(name, params):
        own = flat(by_modality(params, holds[name]))
        return keep(own, autoencoding.init_opt(tx, own), holds[name])

    def server_init(key):
        return by_modality(ae.init(key), ae.modalities)

    def download(w, public):
        return {name: Download({m: w[m] for m in held} if config.shared else ()) for name, held in holds.items()}

    def server_update(w, uploads, public, key):
        if not config.shared:
            return w, {}
        return {m: aggregate.average(aggregate.collect(uploads, m), w[m]) for m in w}, {}

    def evaluate_state(state: FedState, arrays: Arrays) -> dict[str, float]:
        if config.shared:
            return score(flat(state.server), arrays)
        learn = set(config.probe.labelled or ae.modalities)
        scores = []
        for name in (name for name in holds if learn & set(holds[name])):
            for k in range(data.sizes[name]):
                scores.append(score(jax.tree.map(lambda x, k=k: x[k], state.clients[name]["params"]), arrays))
        keys = dict.fromkeys(key for s in scores for key in s)
        return {key: float(np.mean([s[key] for s in scores if key in s])) for key in keys}

    return federate(
        Server(server_init, download, server_update), {name: cohort(name) for name in holds}, evaluate_state
    )


def _moon(config: MMFLConfig, z, current, previous, mask):
    """MOON's loss of embeddings [B, T, D] of one modality, the mean over cosines; mask [B]."""
    axes = (0, 1, 2) if config.moon_axis == "feature" else (0, 2, 1)
    lines = lambda x: x.transpose(axes).reshape(-1, x.shape[axes[2]])
    rows = jnp.repeat(mask, z.shape[axes[1]])
    current, previous = (jax.lax.stop_gradient(losses.unit(lines(x))) for x in (current, previous))
    return losses.intra_modal(losses.unit(lines(z)), current, previous, config.moon_temperature, mask=rows)
