"""FedDAT: a shared adapter and a local one that teach each other, so that a trunk is tuned for tasks that differ.

Chen, Zhang, Krompass, Gu, Tresp, AAAI 2024 (arXiv 2308.12305), after the authors' code; section numbers are of that
code's description in the project's specification.

    theta    the frozen trunk             A_s      the shared adapter, which alone travels
    h_k      client k's head              A_c      client k's own adapter, which never leaves it
    f(x; A)  logits with adapter A        A^_s     A_s as it was received, frozen
    DAT      both A_c and A^_s in every layer, their outputs averaged
    sg       without gradient             KL(t, s) T^2 KL(softmax of t / T || softmax of s / T)

One round (1):
  1. The server sends A_s; theta every client has.
  2. Client k, for every batch of E epochs:
     (0)  z_T = f(x; DAT)
     (1)  z_s = f(x; A_s);  one AdamW step of A_s and h_k on  1/2 [task(z_s) + alpha KL(sg z_T, z_s)]
     (2)  z_D = f(x; DAT);  one AdamW step of A_c and h_k on  1/2 [task(z_D) + beta KL(sg z_s, z_D)]
  3. It sends back A_s. The server takes the plain mean.

Between (0) and (2) only the head moves, so one pass through the trunk serves both: the features are kept, the head is
applied again, and a batch costs two passes forward and two backward, not three and two. What no adapter changes (the
embeddings, the first layer) is computed once.

Defects of the code that change the algorithm (1b), each a setting: A_c stops training after the first round
(`compat_freeze_local`); the schedule advances twice per batch, so that FedDAT's mean rate is almost twice that of the
baselines (`compat_double_schedule`). Left out: optimisers of the time that let the idle adapter drift.
Deviations: `evaluate` averages A_c with the newest A_s, the code with the one last received; the rate starts one step
above 0; every client draws its own first A_c.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from fedjax_mm import aggregate, losses, trees
from fedjax_mm.federate import Method, federate
from fedjax_mm.local import local_steps, masked_mean
from fedjax_mm.methods.feddat.vqa_tuning import (
    Training,
    adamw,
    answer,
    check,
    descend,
    evaluator,
    points,
    schedule,
    task_loss,
)
from fedjax_mm.models import Model
from fedjax_mm.types import Cohort, Download, Mean, PyTree, Server


@dataclasses.dataclass(frozen=True)
class FedDATConfig:
    """Settings of one run; rounds are counted by each client for itself."""

    training: Training = Training()
    temperature: float = 3.0
    alpha: float = 1.0
    """Weight of what A_s learns from the teacher; 0: the teacher teaches nobody."""
    beta: float = 1.0
    """Weight of what A_c learns from A_s; 0: the code's ablation "xxx"."""
    dual: bool = True
    """False: A_c alone in the place of DAT, plain mutual distillation; the code's ablation "yyy"."""
    warmup_rounds: int = 0
    """First rounds in which only A_s and the head train, on the task alone."""
    weights: Literal["uniform", "size"] = "uniform"
    """Of clients in the mean: all alike, or by their examples."""
    compat_freeze_local: bool = False
    """A_c trains in the first round alone, as in the released code (1b, D1)."""
    compat_double_schedule: bool = False
    """The schedule advances after (1) and after (2), as in the released code (1b, D3)."""


VARIANTS = {
    "paper": FedDATConfig(),
    "released": FedDATConfig(compat_freeze_local=True, compat_double_schedule=True),
    "no_distillation": FedDATConfig(alpha=0.0, beta=0.0),
    "mutual": FedDATConfig(dual=False),
}


def build(config: FedDATConfig, data, model, trunk: PyTree, adapter_init, head: Model) -> Method:
    """The method for the cohorts of `data`, a FederatedData, whose arrays are the model's own and `target` [E, K].

    model: width D and pure functions of a trunk: `start(trunk, batch)`, all that no adapter changes, and `finish(trunk,
        started, adapters)` -> [B, D] with the outputs of a tuple of adapters averaged at every site (models.vilt).
    trunk: theta; adapter_init: key -> an adapter; head: Model [B, D] -> [B, K].

    `evaluate` gives, in percent, the mean over clients and each client's score with both adapters, with its own alone
    and with the shared one alone, always with its own head: "dat", "local", "shared", "client 3/dat" (see evaluator).
    """
    training = config.training
    check(training, data, head, model.width)
    if config.temperature <= 0 or config.warmup_rounds < 0:
        raise ValueError(f"temperature must be above 0 and warmup_rounds at least 0, got {config}")
    tx = adamw(training)

    def update(download, state, data, key):
        received, trunk, rounds = download.sent["adapter"], download.held, state["rounds"]
        rate = schedule(training, data.count, rounds)
        alpha = config.alpha * (rounds >= config.warmup_rounds)

        def step(carry, batch, key):
            shared, local, own, i = carry  # each (params, AdamW's state); own is the head
            first, second = (rate(2 * i), rate(2 * i + 1)) if config.compat_double_schedule else (rate(i), rate(i))
            started = model.start(trunk, batch)
            features = lambda *adapters: model.finish(trunk, started, adapters)
            both = (lambda local: features(local, received)) if config.dual else features

            def loss(own, features, teacher, weight):
                z = answer(head, own, features, batch)
                kl = losses.distill(teacher, z, config.temperature, mask=batch["mask"])
                return 0.5 * (task_loss(training, z, batch) + weight * kl), z

            gradient = lambda f: jax.value_and_grad(f, (0, 1), has_aux=True)

            dat, pull_back = jax.vjp(both, local[0])
            z_t = answer(head, own[0], dat, batch)  # (0)

            loss_s = lambda shared, own: loss(own, features(shared), z_t, alpha)
            (value_s, z_s), (d_shared, d_own) = gradient(loss_s)(shared[0], own[0])
            shared, own = descend(tx, first, d_shared, shared), descend(tx, first, d_own, own)  # (1)

            loss_dat = lambda dat, own: loss(own, dat, z_s, config.beta)
            (value_dat, z_dat), (d_dat, d_own) = gradient(loss_dat)(dat, own[0])
            new = descend(tx, second, *pull_back(d_dat), local), descend(tx, second, d_own, own)  # (2)
            if config.warmup_rounds:
                new = trees.where(rounds >= config.warmup_rounds, new, (local, own))
            if config.compat_freeze_local:
                new = trees.where(rounds <= config.warmup_rounds, new[0], local), new[1]
            score = masked_mean(points(z_dat, batch), batch["mask"])
            return (shared, *new, i + 1), {"loss_shared": value_s, "loss_dat": value_dat, "score": score}

        fresh = lambda params: (params, tx.init(params))
        (shared, local, own, _), metrics = local_steps(
            step,
            (fresh(received), fresh(state["adapter"]), fresh(state["head"]), jnp.int32(0)),
            data,
            key,
            batch_size=training.batch_size,
            epochs=training.epochs,
        )
        upload = {"adapter": Mean(shared[0], data.weight if config.weights == "size" else 1.0)}
        return upload, {"adapter": local[0], "head": own[0], "rounds": rounds + 1}, metrics

    def client_init(key):
        features = jnp.zeros((1, model.width))
        keys = jax.random.split(key)
        return {"adapter": adapter_init(keys[0]), "head": head.init(keys[1], features), "rounds": jnp.int32(0)}

    def server_init(key):
        return {"adapter": adapter_init(key), "trunk": trunk}

    def download(state, public):
        return {name: Download({"adapter": state["adapter"]}, state["trunk"]) for name in data.cohorts}

    def server_update(state, uploads, public, key):
        adapter = aggregate.average(aggregate.collect(uploads, "adapter"), state["adapter"])
        return {"adapter": adapter, "trunk": state["trunk"]}, {}

    def predict(server, mine, batch):
        trunk, shared, local = server["trunk"], server["adapter"], mine["adapter"]
        started = model.start(trunk, batch)
        used = {"dat": (local, shared), "local": (local,), "shared": (shared,)}
        logits = lambda adapters: answer(head, mine["head"], model.finish(trunk, started, adapters), batch)
        return {name: logits(adapters) for name, adapters in used.items()}

    cohorts = {name: Cohort(size, client_init, update) for name, size in data.sizes.items()}
    return federate(Server(server_init, download, server_update), cohorts, evaluator(training, predict))
