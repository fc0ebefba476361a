"""FedMEKT: what a federation learns travels as embeddings of a proxy dataset, never as weights.

Le, Nguyen, Thwal, Qiao, Zhang, Hong, Neural Networks 183, 2025 (arXiv 2307.13214), after the authors' code; section
numbers are of that code's description in the project's specification.

    m        modality                         z_m, h_m   embedding and first-layer states of a window
    theta_k  client k's autoencoder           z_m^g      the global autoencoder's embedding of a proxy window
    theta_g  global (generalised) one         zbar_m     knowledge: the mean embedding over the clients that own m
    rec(m->n) error of n decoded from z_m     KD(t, s)   T^2 KL(t || s) of softmaxes over T, t without gradient
    alpha, beta   clients' weights of z, h    eta, gamma the server's
    R        server_epochs

One round (all clients and the server start from one theta; afterwards theta_k and its Adam state stay with client k):
  1. The server sends z_m^g of the P proxy windows for each modality m the client owns.
  2. Client k, E epochs over its own unlabelled windows, each step beside proxy windows drawn at random (1.2):
     sum_m,n rec(m->n) + alpha KD(z_m^g, z_m^k) + beta KD(h_m^g, h_m^k), the KD a mean over its modalities.
  3. It sends its z_m^k of all proxy windows: zbar_m is their plain mean over owners (1.3). A modality nobody sent
     keeps the zbar_m of before.
  4. The server, R epochs over the proxy windows (1.4): sum_m,n rec(m->n) + eta KD(zbar_m, z_m^g) +
     gamma KD(hbar_m, h_m^g). A round in which nobody took part changes nothing.
  5. The generalised classifier (1.5) is fitted whenever `evaluate` is called, on the frozen theta_g and the server's
     labelled set. It feeds nothing back, so no round needs it and no client ever sees a label.

Deviations from the code, each a setting: the last step's z travels, not all steps of z and h (`knowledge`); softmax
over features, not time (`kd_axis`); the mean over owners, not the last one (`aggregate`); KL(teacher || student) on the
server too, KD not doubled, no frozen random projection (`released`). Left out altogether: other proxy windows for every
client, the same nine clients in every round, test rows among the training rows, windows of random length.

Controls: eta = gamma = 0 is the server alone; server_epochs = 0 a random frozen encoder; clients alone are in mmfl.
"""

import dataclasses
from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp

from fedjax_mm import aggregate, trees
from fedjax_mm.federate import Method, federate
from fedjax_mm.local import local_steps, whole
from fedjax_mm.methods.fedmekt import autoencoding
from fedjax_mm.methods.fedmekt.autoencoding import Objective, Variant
from fedjax_mm.methods.fedmekt.linear_evaluation import Probe, linear_evaluation
from fedjax_mm.models.autoencoder import AutoEncoder
from fedjax_mm.types import Arrays, Cohort, Download, Each, Mean, Server


@dataclasses.dataclass(frozen=True)
class FedMEKTConfig:
    """Settings of one run; rates per step, counts per round."""

    alpha: float = 1.0
    """Clients' weight of KD on z (0.01 to 0.1 in the code, where it is 0.1 to 0.3 % of the loss)."""
    eta: float = 1.0
    """The server's weight of KD on z; with gamma 0 too, no client is heard: the server-only control."""
    beta: float = 0.4
    """Clients' weight of KD on h; only where h travels."""
    gamma: float = 0.4
    """The server's weight of KD on h; only where h travels."""
    temperature: float = 3.0
    client_lr: float = 0.004
    """Adam, its state kept from round to round."""
    server_lr: float = 0.002
    """Adam, its state kept from round to round."""
    batch_size: int = 24
    epochs: int = 2
    """Passes over a client's own examples in a round."""
    proxy_batch: int = 24
    """Proxy windows beside each batch of a client, and in each step of the server."""
    server_epochs: int = 2
    """R, passes over the proxy windows in a round."""
    knowledge: Literal["last", "seq", "seq+hidden"] = "last"
    """What travels: z at the last step, at all steps, or with h at all steps too."""
    kd_axis: Literal["feature", "time"] = "feature"
    """Axis of the distributions that KD compares."""
    aggregate: Literal["mean", "last"] = "mean"
    """last: the last listed owner's knowledge in place of the mean, as the released code's aliasing makes it."""
    released: bool = False
    """The released code's KD: summed, not averaged, over the modalities of one model, through a frozen random map, and
    KL(student || teacher) on the server."""
    variant: Variant = "C"
    """C: all modalities in one step; S: one modality after the other, the other encoders frozen."""
    objective: Objective = "split"
    """Reconstruction across modalities, or correlation of the modalities' embeddings (DCCAE)."""
    probe: Probe = Probe()


VARIANTS = {
    "ours": FedMEKTConfig(),
    "released": FedMEKTConfig(
        *(0.1, 0.1, 0.04, 0.04), knowledge="seq+hidden", kd_axis="time", aggregate="last", released=True
    ),
}


def build(config: FedMEKTConfig, data, autoencoder: AutoEncoder, labelled: Arrays, num_classes: int) -> Method:
    """The method for the cohorts of `data`, a FederatedData: a cohort owns the modalities its arrays [E, T, F] have.

    data.public holds the proxy windows {m: [P, T, F]}, index-aligned, of every modality; the clients have them already.
    labelled: the server's own windows {m: [Q, T, F]} with `labels` [Q, T] or `label` [Q] (see Probe).

    `evaluate` gives "a/macro_f1", "a+b/accuracy", ... of the global encoder (see linear_evaluation).
    """
    ae, public = autoencoder, data.public or {}
    holds = {name: tuple(m for m in ae.modalities if m in cohort.arrays) for name, cohort in data.cohorts.items()}
    _check(config, ae, holds, public)
    client_tx, server_tx = autoencoding.adam(config.client_lr), autoencoding.adam(config.server_lr)
    score = linear_evaluation(config.probe, ae, labelled, num_classes)
    proxies = len(public[ae.modalities[0]])

    def embed(params, arrays, modalities):
        """{m: {"z": [P, T, D], "h": [P, T, H]}}."""
        return {m: dict(zip("zh", ae.encode(params, m, arrays[m]), strict=True)) for m in modalities}

    def message(reps):
        """What of the embeddings travels."""
        if config.knowledge == "last":
            return {m: {"z": rep["z"][:, -1]} for m, rep in reps.items()}
        sent = ("z",) if config.knowledge == "seq" else ("z", "h")
        return {m: {what: rep[what] for what in sent} for m, rep in reps.items()}

    def kd(weights, teacher, reps, mask, projection, known=None, flip=False):
        """The weighted KD of messages, a mean over the modalities of `reps`; mask [B], known {m: 0 or 1}."""
        student, total = message(reps), 0.0
        for m in student:
            for what in student[m]:
                t, s = jax.lax.stop_gradient(teacher[m][what]), student[m][what]
                if config.released and len(student) > 1:
                    t, s = (autoencoding.apply_map(projection[what], x) for x in (t, s))
                t, s = (s, t) if flip else (t, s)
                term = autoencoding.distill(t, s, mask, config.temperature, config.kd_axis)
                total += weights[what] * term * (1.0 if known is None else known[m])
        return total if config.released else total / len(student)

    def cohort(name):
        held = holds[name]
        parts = [part for m in held for part in ae.parts(m)]

        def update(download, state, data, key):
            here = {m: data.public[m] for m in held}

            def loss(params, batch, key, sources):
                rows = jax.random.permutation(key, proxies)[: config.proxy_batch]
                x = {m: batch[m] for m in held}
                both = {m: jnp.concatenate([x[m], here[m][rows]]) for m in held}  # one pass of each encoder
                reps = embed(params, both, held)
                codes = {m: reps[m]["z"][: len(x[m]), -1] for m in held}
                on_proxy = {m: jax.tree.map(lambda r, m=m: r[len(x[m]) :], reps[m]) for m in sources}
                teacher = jax.tree.map(lambda t: t[rows], download.sent)
                rec = autoencoding.objective(config.objective, ae, params, codes, x, batch["mask"], sources)
                weights = {"z": config.alpha, "h": config.beta}
                far = kd(weights, teacher, on_proxy, jnp.ones(len(rows)), download.held)
                return rec + far, {"reconstruction": rec, "distillation": far}

            step = autoencoding.phased_step(loss, client_tx, autoencoding.phases(config.variant, ae, held))
            carry, metrics = local_steps(
                step, (state["params"], state["opt"]), data, key, batch_size=config.batch_size, epochs=config.epochs
            )
            sends = Mean if config.aggregate == "mean" else Each
            knowledge = message(embed(carry[0], here, held))
            upload = {m: sends(knowledge[m], jnp.sign(data.weight)) for m in held}
            return upload, {"params": carry[0], "opt": carry[1]}, metrics

        start = lambda key, server: client_state({part: server["params"][part] for part in parts})
        return Cohort(data.sizes[name], start, update)

    def client_state(params):
        return {"params": params, "opt": autoencoding.init_opt(client_tx, params)}

    def server_init(key):
        params = ae.init(jax.random.fold_in(key, 0))
        shapes = jax.eval_shape(
            lambda params, public: message(embed(params, public, ae.modalities)), params, dict(public)
        )
        widths = {what: x.shape[-1] for what, x in shapes[ae.modalities[0]].items()}
        maps = autoencoding.frozen_maps(jax.random.fold_in(key, 1), widths)
        return {
            "params": params,
            "opt": autoencoding.init_opt(server_tx, params),
            "knowledge": jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes),
            "known": {m: jnp.zeros(()) for m in ae.modalities},  # 1 once somebody sent it
            "projection": maps if config.released else {},
        }

    def download(state, public):
        sent = message(embed(state["params"], public, ae.modalities))  # 1.
        held = lambda owned: state["projection"] if len(owned) > 1 else {}
        return {name: Download({m: sent[m] for m in owned}, held(owned)) for name, owned in holds.items()}

    def server_update(state, uploads, public, key):
        sent = {m: aggregate.collect(uploads, m) for m in ae.modalities}
        combine = aggregate.average if config.aggregate == "mean" else _last
        knowledge = {m: combine(sent[m], state["knowledge"][m]) for m in sent}  # 3.
        heard = {m: (jnp.sum(sent[m].weight) > 0).astype(jnp.float32) for m in sent}
        known = {m: jnp.maximum(state["known"][m], heard[m]) for m in sent}

        flip = config.released and config.variant == "C"

        def loss(params, batch, key, sources):  # 4.
            x = {m: batch[m] for m in ae.modalities}
            reps = embed(params, x, ae.modalities)
            codes = {m: rep["z"][:, -1] for m, rep in reps.items()}
            rec = autoencoding.objective(config.objective, ae, params, codes, x, batch["mask"], sources)
            here = {m: reps[m] for m in sources}
            weights = {"z": config.eta, "h": config.gamma}
            far = kd(weights, batch["knowledge"], here, batch["mask"], state["projection"], known, flip)
            return rec + far, {"reconstruction": rec, "distillation": far}

        step = autoencoding.phased_step(loss, server_tx, autoencoding.phases(config.variant, ae, ae.modalities))
        examples = {**{m: public[m] for m in ae.modalities}, "knowledge": knowledge}
        size, carry = min(config.proxy_batch, proxies), (state["params"], state["opt"])
        carry, metrics = local_steps(step, carry, whole(examples), key, batch_size=size, epochs=config.server_epochs)
        new = {**state, "params": carry[0], "opt": carry[1], "knowledge": knowledge, "known": known}
        return trees.where(sum(heard.values()) > 0, new, state), metrics

    server = Server(server_init, download, server_update)
    on_global = lambda state, arrays: score(state.server["params"], arrays)  # 5.
    return federate(server, {name: cohort(name) for name in holds}, on_global)


def _last(slot: Each, default):
    last = jnp.max(jnp.where(slot.weight > 0, jnp.arange(len(slot.weight)), -1))
    return jax.tree.map(lambda x, other: jnp.where(last >= 0, x[last], other), slot.value, default)


def _check(config: FedMEKTConfig, ae: AutoEncoder, holds: Mapping[str, tuple[str, ...]], public: Mapping) -> None:
    if config.kd_axis == "time" and config.knowledge == "last":
        raise ValueError('kd_axis "time" compares whole sequences; set knowledge to "seq" or "seq+hidden"')
    if config.objective == "dcc" and config.variant == "S":
        raise ValueError('the dcc objective needs both encoders in one step; use variant "C"')
    autoencoding.check_holders(ae, holds)
    if missing := [m for m in ae.modalities if m not in public]:
        raise ValueError(
            f"the public arrays have no {missing}; FedMEKT needs proxy windows of every modality, index-aligned: "
            "FederatedData.from_arrays(..., public={modality: [P, T, F]})"
        )
