"""CreamFL: clients with other models and modalities teach a larger server through representations of public pairs.

Yu, Liu, Wang, Xu, Liu, ICLR 2023 (arXiv 2302.08888), after the paper's equations and the authors' code; section numbers
are of their description in the project's specification.

    m, m'    a modality and the other one     (i_k, t_k)  public pair k of P, which everyone has
    G_m      the server's representations     z_m         a client's, of all public examples; all of length 1
    z_m^old  its own before this round        tau         temperature

One round (1.3):
  1. The server trains on the public pairs (soft contrastive loss) and represents them all: G_image, G_text.
  2. It sends both to every client.
  3. A client trains E epochs on its own examples, to classify or to retrieve, and on public ones, on gamma times
       inter_m = -log softmax_j(z_m,k . G_m',j / tau) at j = k                              its own pair among all P
       intra_m = -log e^(z_m.G_m / tau) / (e^(z_m.G_m / tau) + e^(z_m.z_m^old / tau))       towards the server
     either both in one step (paper) or a pass over one after a pass over the other (code).
  4. It sends z_m of all P, for its modalities.
  5. The server averages them item by item with weights softmax over clients of log-softmax(z_m,k . G_m') at k (2), or
     with those of a baseline: FedMD, FedET, FedGEMS, "reamFL" with Avg or IoT (section 4).
  6. It is distilled towards them on the public pairs. A modality that nobody sent leaves its encoder as it was.

The presets differ where paper and code do (7.3), each a setting here. Of the code's defects (7.2) none is kept: labels
apart from their sentences, a server in training mode while it represents, a previous model that is the current one.
Deviations: Adam for AdamP; distillation sees whole images, where the code crops them; gamma holds for one of the two
contrasts alone too. As in the paper, inter's denominator has all P items, that of its weights P - 1 (`exclude_match`).

Controls: kd_epochs = 0 exchanges nothing, so that the server learns from the public pairs and clients from their own
examples alone.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from fedjax_mm import aggregate, losses, trees
from fedjax_mm.federate import Method, federate
from fedjax_mm.local import gradient_step, local_steps, masked_mean
from fedjax_mm.losses import unit
from fedjax_mm.methods.creamfl import joint_space
from fedjax_mm.methods.creamfl.joint_space import MODALITIES, OTHER, RELEASED, Encoders, Training, represent_all
from fedjax_mm.methods.creamfl.joint_space_scores import evaluator
from fedjax_mm.types import Cohort, Download, Each, Server

WEIGHINGS = {
    "mean": aggregate.mean_weights,
    "size": aggregate.size_weights,
    "variance": aggregate.variance_weights,
    "consensus": aggregate.consensus_weights,
    "entropy": aggregate.entropy_weights,
}
ANCHORED = ("contrastive", "similarity")


@dataclasses.dataclass(frozen=True)
class CreamFLConfig:
    """Settings of one run."""

    training: Training = Training()
    inter: bool = True
    intra: bool = True
    gamma: float = 0.5
    """Weight of both contrasts."""
    temperature: float = 0.5
    """Of both contrasts."""
    phases: Literal["joint", "alternate"] = "joint"
    """joint: a step has own examples and public ones drawn at random; alternate: an epoch is a pass over each."""
    public_batch: int = 64
    intra_mean: bool = False
    """Of a client with both modalities: the mean of its two intra terms, not their sum."""
    weighing: Literal["contrastive", "similarity", "mean", "size", "variance", "consensus", "entropy"] = "contrastive"
    weighing_temperature: float = 1.0
    """Of contrastive weights."""
    exclude_match: bool = False
    """The item's own pair is left out of the denominator of contrastive weights."""
    both_weight: float = 1.0
    """How many times its examples a client with both modalities counts in "size" weights (IoT: 100)."""
    distance: Literal["l2", "mse"] = "l2"
    """Of distillation: the length of the difference, or its mean square over dimensions."""
    kd_weight: float = 1.0
    kd_rate: float = 1.0
    """The rate of distillation, as a share of the server's: to Adam, which forgets scale, kd_weight is nothing."""
    kd_epochs: int = 1
    """Passes over the public pairs; 0: nothing is exchanged."""


VARIANTS = {
    "ours": CreamFLConfig(
        Training(server_lr=3e-3, client_lr=3e-3, both_lr=3e-3), gamma=1.0, temperature=0.1, kd_rate=0.1
    ),
    "paper": CreamFLConfig(RELEASED, temperature=1.0, exclude_match=True, public_batch=128),
    "released": CreamFLConfig(
        dataclasses.replace(RELEASED, margin=4.0, orthogonality=0.5, nonnegative=True),
        phases="alternate",
        public_batch=128,
        intra_mean=True,
        distance="mse",
        kd_weight=0.6,
    ),
}


def build(
    config: CreamFLConfig,
    data,
    server: Encoders,
    clients: Mapping[str, Encoders],
    num_classes: Mapping[str, int],
    mesh: Mesh | None = None,
) -> Method:
    """The method for the cohorts of `data`, a FederatedData whose public arrays are `image` [P, ...] and `text` [P, L].

    server, clients[cohort]: encoders of the modalities that the server (both) and the clients hold, into one width D;
        a pretrained one is a Model whose `init` gives the pretrained parameters.
    num_classes: K of the cohorts that have one modality, and an array `label`. mesh: spreads the weighing of public
        examples over its devices.

    `evaluate` gives the server's retrieval and the clients' own scores (see joint_space_scores).
    """
    training = config.training
    joint_space.check(data, server, clients, num_classes)
    exchange = config.kd_epochs > 0
    contrast = exchange and (config.inter or config.intra)
    anchored = exchange and (contrast or config.weighing in ANCHORED)
    public = dict(data.public)
    total = len(public["image"])

    def cohort(name):
        encoders = clients[name]
        learn, size = joint_space.task(training, encoders), joint_space.batch_of(training, encoders)
        reps_of = functools.partial(represent_all, encoders, training.block)

        def far(params, sent, old, batch, rows, mask=None):
            """(gamma (inter + intra), both) of public examples `rows` [B], which are `batch`."""
            z = {m: unit(encoders[m].apply(params[m], batch[m])) for m in encoders}
            at = {"temperature": config.temperature, "mask": mask}
            inter = sum(losses.inter_modal(z[m], sent[OTHER[m]], rows, **at) for m in z)
            intra = sum(losses.intra_modal(z[m], sent[m][rows], old[m][rows], **at) for m in z)
            intra /= len(z) if config.intra_mean else 1
            return config.gamma * (config.inter * inter + config.intra * intra), {"inter": inter, "intra": intra}

        def update(download, state, data, key):
            sent, here = download.sent, {m: data.public[m] for m in encoders}
            present = data.weight > 0
            tx = joint_space.optimizer(training, encoders, download.held)
            old = {}
            if contrast:  # as it sent them last, or if it never did, as it would have
                fresh = reps_of(state["params"], here, present & ~state["has_reps"])
                old = trees.where(state["has_reps"], state["reps"], fresh)

            def joint(params, batch, key):
                value, metrics = learn(params, batch, key)
                if len(encoders) > 1:  # a sum over pairs, of which the paper adds the mean to the contrasts
                    value /= jnp.maximum(batch["mask"].sum(), 1)
                rows = jax.random.randint(jax.random.fold_in(key, 2), (config.public_batch,), 0, total)
                more, terms = far(params, sent, old, {m: x[rows] for m, x in here.items()}, rows)
                return value + more, {"task": value, **metrics, **terms}

            def on_public(params, batch, key):
                return far(params, sent, old, batch, batch["row"], batch["mask"])

            def run(loss, carry, data, key, batch_size, epochs=1):
                step = joint_space.finish_step(training, gradient_step(loss, tx))
                return local_steps(step, carry, data, key, batch_size=batch_size, epochs=epochs)

            def epoch(carry, i):
                keys = jax.random.split(jax.random.fold_in(key, i))
                carry, own = run(learn, carry, data, keys[0], size)
                shared = joint_space.over_public(here, present)
                carry, common = run(on_public, carry, shared, keys[1], min(config.public_batch, total))
                return carry, {"task": own.pop("loss"), **own, **common}

            carry = (state["params"], state["opt"])
            if contrast and config.phases == "alternate":
                carry, metrics = jax.lax.scan(epoch, carry, jnp.arange(training.epochs))
                metrics = jax.tree.map(lambda x: x.sum() / max(training.epochs, 1), metrics)
            else:
                carry, metrics = run(joint if contrast else learn, carry, data, key, size, training.epochs)
            reps = reps_of(carry[0], here, present) if exchange else {}
            boost = config.both_weight if len(encoders) > 1 else 1.0
            upload = {m: Each(z, boost * data.weight) for m, z in reps.items()}
            kept = {"reps": reps, "has_reps": jnp.bool_(True)} if contrast else {}
            return upload, {"params": carry[0], "opt": carry[1], **kept}, metrics

        def client_init(key):
            params = joint_space.init(key, encoders, data.cohorts[name].arrays, num_classes.get(name))
            state = {"params": params, "opt": joint_space.optimizer(training, encoders, jnp.int32(0)).init(params)}
            reps = optax.tree.zeros_like(jax.eval_shape(reps_of, params, public))
            return state | ({"reps": reps, "has_reps": jnp.bool_(False)} if contrast else {})

        return Cohort(data.sizes[name], client_init, update)

    server_task = joint_space.task(training, server)
    represented = functools.partial(represent_all, server, training.block)

    def server_init(key):
        params = joint_space.init(key, server, public, None)
        reps = optax.tree.zeros_like(jax.eval_shape(represented, params, public)) if anchored else {}
        opt = joint_space.optimizer(training, None, jnp.int32(0)).init(params)
        return {"params": params, "opt": opt, "reps": reps, "round": jnp.int32(0)}

    def begin(state, public, key):  # 1.
        step = gradient_step(server_task, joint_space.optimizer(training, None, state["round"]))
        carry, metrics = (state["params"], state["opt"]), {}
        if training.server_epochs:
            carry, metrics = joint_space.passes(step, carry, public, key, training.server_batch, training.server_epochs)
        reps = represented(carry[0], public) if anchored else {}
        return {**state, "params": carry[0], "opt": carry[1], "reps": reps}, metrics

    def download(state, public):  # 2.
        return {name: Download(state["reps"] if contrast else {}, state["round"]) for name in data.cohorts}

    def weigh(reps, weight, anchors):
        """[C, P] from [C, P, D], [C] and the server's representations of the other modality [P, D]."""
        if config.weighing == "contrastive":
            at = (config.weighing_temperature, config.exclude_match)
            return aggregate.contrastive_weights(reps, weight, anchors, *at, mesh=mesh)
        if config.weighing == "similarity":
            return aggregate.similarity_weights(reps, weight, anchors)
        return WEIGHINGS[config.weighing](reps, weight)

    def server_update(state, uploads, public, key):
        new = {**state, "round": state["round"] + 1}
        if not exchange:
            return new, {}
        targets, heard, metrics = {}, {}, {}
        for m in (m for m in MODALITIES if any(m in sent for sent in uploads.values())):
            reps, weight = aggregate.collect(uploads, m)
            share = weigh(reps, weight, state["reps"].get(OTHER[m]))  # 5.
            targets[m], heard[m] = aggregate.combine(share, reps), jnp.sum(weight) > 0
            metrics |= {f"{name}_{m}": value for name, value in joint_space.evenness(share, reps, weight).items()}

        def loss(params, batch, key):
            terms = {}
            for m in targets:
                z = unit(server[m].apply(params[m], batch[m]))
                apart = jnp.square(z - batch[f"target_{m}"])
                apart = jnp.sqrt(apart.sum(-1) + 1e-12) if config.distance == "l2" else apart.mean(-1)
                terms[f"kd_{m}"] = heard[m] * masked_mean(apart, batch["mask"])
            return config.kd_weight * sum(terms.values()), terms

        examples = {**public, **{f"target_{m}": z for m, z in targets.items()}}
        slower = dataclasses.replace(training, server_lr=config.kd_rate * training.server_lr)
        step = gradient_step(loss, joint_space.optimizer(slower, None, state["round"]))  # 6.
        carry = (state["params"], state["opt"])
        carry, far = joint_space.passes(step, carry, examples, key, training.server_batch, config.kd_epochs)
        params = {**state["params"], **{m: trees.where(heard[m], carry[0][m], state["params"][m]) for m in targets}}
        far.pop("loss")
        return {**new, "params": params, "opt": carry[1]}, {**metrics, **far}

    return federate(
        Server(server_init, download, server_update, begin),
        {name: cohort(name) for name in data.cohorts},
        evaluator(training, server, clients, data),
    )
