"""FedAvg and FedIoT of image and text encoders: CreamFL's baselines that send weights, for which all models are equal.

McMahan et al., AISTATS 2017; Zhao, Barnaghi, Haddadi, IoTDI 2022; for encoders into one space, as CreamFL compares.

One round:
  1. The server trains its encoders on the public pairs, as CreamFL's does.
  2. It sends each client the encoders of its modalities.
  3. A client trains them on its own examples, to classify with a head of its own, or to retrieve.
  4. It sends them back; the server takes their mean, weighted by examples (times 100 for clients with both modalities:
     IoT). An encoder that nobody sent stays.
"""

import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp

from fedjax_mm import aggregate
from fedjax_mm.federate import Method, federate
from fedjax_mm.local import gradient_step, local_steps
from fedjax_mm.methods.creamfl import joint_space
from fedjax_mm.methods.creamfl.joint_space import MODALITIES, Encoders, Training
from fedjax_mm.methods.creamfl.joint_space_scores import evaluator
from fedjax_mm.types import Cohort, Download, Mean, Server


@dataclasses.dataclass(frozen=True)
class AveragingConfig:
    """Settings of one run."""

    training: Training = Training()
    both_weight: float = 1.0
    """How many times its examples a client with both modalities counts (IoT: 100)."""


VARIANTS = {"fedavg": AveragingConfig(), "fediot": AveragingConfig(both_weight=100.0)}


def build(config: AveragingConfig, data, encoders: Encoders, num_classes: Mapping[str, int]) -> Method:
    """The method for the cohorts of `data`, a FederatedData whose public arrays are `image` [P, ...] and `text` [P, L].

    encoders: of both modalities, the server's and every client's. num_classes: K of the cohorts that have one modality,
    and an array `label`. `evaluate` as creamfl's.
    """
    training = config.training
    held = {name: joint_space.held(cohort) for name, cohort in data.cohorts.items()}
    mine = {name: {m: encoders[m] for m in names if m in encoders} for name, names in held.items()}
    joint_space.check(data, encoders, mine, num_classes)

    def cohort(name):
        own = mine[name]
        loss, boost = joint_space.task(training, own), config.both_weight if len(own) > 1 else 1.0

        def update(download, state, data, key):
            tx = joint_space.optimizer(training, own, download.held)
            params = {**state["params"], **download.sent}
            step = joint_space.finish_step(training, gradient_step(loss, tx))
            size, carry = joint_space.batch_of(training, own), (params, tx.init(params))
            (params, _), metrics = local_steps(step, carry, data, key, batch_size=size, epochs=training.epochs)
            return {m: Mean(params[m], boost * data.weight) for m in own}, {"params": params}, metrics

        init = lambda key: {"params": joint_space.init(key, own, data.cohorts[name].arrays, num_classes.get(name))}
        return Cohort(data.sizes[name], init, update)

    on_pairs = joint_space.task(training, encoders)

    def server_init(key):
        params = joint_space.init(key, encoders, data.public, None)
        opt = joint_space.optimizer(training, None, jnp.int32(0)).init(params)
        return {"params": params, "opt": opt, "round": jnp.int32(0)}

    def begin(state, public, key):
        step = gradient_step(on_pairs, joint_space.optimizer(training, None, state["round"]))
        carry = (state["params"], state["opt"])
        carry, metrics = joint_space.passes(step, carry, public, key, training.server_batch, training.server_epochs)
        return {**state, "params": carry[0], "opt": carry[1]}, metrics

    def download(state, public):
        return {name: Download({m: state["params"][m] for m in own}, state["round"]) for name, own in mine.items()}

    def server_update(state, uploads, public, key):
        sent = {m: aggregate.collect(uploads, m) for m in MODALITIES if any(m in own for own in mine.values())}
        new = {m: aggregate.average(sent[m], state["params"][m]) for m in sent}
        return {**state, "params": {**state["params"], **new}, "round": state["round"] + 1}, {}

    server = Server(server_init, download, server_update, begin)
    evaluate = evaluator(training, encoders, mine, data)
    return federate(server, {name: cohort(name) for name in data.cohorts}, evaluate)
