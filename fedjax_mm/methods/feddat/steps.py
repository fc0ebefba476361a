"""The three numbered steps of a FedDAT batch (see method.py), each of which can be used on its own.

They share one pass through the trunk with both adapters: between (0) and (2) only the head moves, so the features of
(0) are kept, and (2) applies the head to them again. Where the model has dropout, each of the three makes a pass of its
own. The arguments `config`, `model` and `head` are static, the others are trees of arrays:
`jax.jit(functools.partial(dual_adapter_step, config, model, head))` is a batch as one program.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax

from fedjax_mm import trees
from fedjax_mm.local import Batch, masked_mean
from fedjax_mm.methods.feddat.answers import Answers, answers_of
from fedjax_mm.methods.feddat.config import FedDATConfig
from fedjax_mm.methods.feddat.vqa_tuning import TrainState, adamw, descend, dropping, has_dropout
from fedjax_mm.models import Model, Vilt
from fedjax_mm.types import Download, Key, Metrics, PyTree


class DualAdapter(NamedTuple):
    """What a client trains in a round."""

    shared: TrainState  # A_s
    local: TrainState  # A_c
    head: TrainState  # h_k


class Teacher(NamedTuple):
    """What step (0) gives to steps (1) and (2)."""

    logits: jax.Array  # z_T [B, K]
    features: PyTree  # [B, D], what the head reads, or whatever an Answers reads
    pull_back: Callable[[PyTree], tuple[PyTree]]  # a gradient of the features -> that of A_c


def start(config: FedDATConfig, download: Download, state: PyTree) -> DualAdapter:
    """What a client trains, at the start of a round: A_s as received, its own A_c and head, and three fresh AdamWs.

    >>> parts = start(FedDATConfig(), Download({"adapter": 1.0}), {"adapter": 2.0, "head": 3.0, "rounds": 0})
    >>> [part.params for part in parts]
    [1.0, 2.0, 3.0]
    """
    tx = adamw(config.training)
    return DualAdapter(
        *(TrainState(x, tx.init(x)) for x in (download.sent["adapter"], state["adapter"], state["head"]))
    )


def forward_dual(
    config: FedDATConfig,
    model: Vilt,
    head: Model | Answers,
    download: Download,
    parts: DualAdapter,
    started: PyTree,
    batch: Batch,
) -> Teacher:
    """Step (0): z_T = f(x; DAT), one pass through the trunk with A_c and the frozen A^_s in every layer.

    started: model.start(trunk, batch), what no adapter changes. With `dual` False A_c stands alone.

    >>> import jax.numpy as jnp, types
    >>> mean = lambda trunk, started, adapters: started + sum(adapters) / len(adapters)
    >>> model, head = types.SimpleNamespace(finish=mean), Model(lambda key, x: (), lambda params, x: params * x)
    >>> download = Download({"adapter": jnp.array([[1.0, 1.0]])}, held=())
    >>> parts = start(FedDATConfig(), download, {"adapter": jnp.array([[3.0, -1.0]]), "head": jnp.float32(1)})
    >>> forward_dual(FedDATConfig(), model, head, download, parts, jnp.array([[2.0, 0.0]]), {}).logits.tolist()
    [[4.0, 0.0]]
    """
    trunk, received = download.held, download.sent["adapter"]
    adapters = (lambda local: (local, received)) if config.dual else (lambda local: (local,))
    features, pull_back = jax.vjp(lambda local: model.finish(trunk, started, adapters(local)), parts.local.params)
    return Teacher(answers_of(head).logits(parts.head.params, features, batch), features, pull_back)


def step_shared(
    config: FedDATConfig,
    model: Vilt,
    head: Model | Answers,
    download: Download,
    parts: DualAdapter,
    started: PyTree,
    batch: Batch,
    z_teacher: jax.Array,
    alpha: jax.Array | float,
    rate: jax.Array | float,
) -> tuple[DualAdapter, jax.Array, jax.Array]:
    """Step (1): one AdamW step of A_s and h_k on 1/2 [task(z_s) + alpha KL(sg z_T, z_s)], where z_s = f(x; A_s).

    z_teacher [B, K]: z_T. alpha []: 0 in a client's warm-up rounds. rate []: the learning rate.
    Returns the parts with A_s and h_k one step on, z_s [B, K] from before that step, and the loss [].

    >>> import jax.numpy as jnp, types
    >>> mean = lambda trunk, started, adapters: started + sum(adapters) / len(adapters)
    >>> model, head = types.SimpleNamespace(finish=mean), Model(lambda key, x: (), lambda params, x: params * x)
    >>> download = Download({"adapter": jnp.array([[1.0, 1.0]])}, held=())
    >>> parts = start(FedDATConfig(), download, {"adapter": jnp.array([[3.0, -1.0]]), "head": jnp.float32(1)})
    >>> batch = {"target": jnp.array([[1.0, 0.0]]), "mask": jnp.ones(1)}
    >>> given = (download, parts, jnp.array([[2.0, 0.0]]), batch, jnp.array([[4.0, 0.0]]))
    >>> new, z_s, _ = step_shared(FedDATConfig(), model, head, *given, alpha=1.0, rate=0.1)
    >>> z_s.tolist(), new.local.params.tolist()  # A_c stays as it is
    ([[3.0, 1.0]], [[3.0, -1.0]])
    >>> (new.shared.params - 1).round(1)
    Array([[ 0.1, -0.1]], dtype=float32)
    """

    def loss(shared: PyTree, head_params: PyTree) -> tuple[jax.Array, jax.Array]:
        features = model.finish(download.held, started, (shared,))
        return distilled_loss(config, head, head_params, features, batch, z_teacher, alpha)

    gradient = jax.value_and_grad(loss, (0, 1), has_aux=True)
    (value, z_s), (d_shared, d_head) = gradient(parts.shared.params, parts.head.params)
    tx = adamw(config.training)
    shared = descend(tx, rate, d_shared, parts.shared)
    return parts._replace(shared=shared, head=descend(tx, rate, d_head, parts.head)), z_s, value


def step_local(
    config: FedDATConfig,
    head: Model | Answers,
    parts: DualAdapter,
    batch: Batch,
    teacher: Teacher,
    z_shared: jax.Array,
    rate: jax.Array | float,
) -> tuple[DualAdapter, jax.Array, jax.Array]:
    """Step (2): one AdamW step of A_c and h_k on 1/2 [task(z_D) + beta KL(sg z_s, z_D)], where z_D = f(x; DAT).

    teacher: what step (0) gave, whose features and pull-back serve again. z_shared [B, K]: z_s. rate []: the learning
    rate. Returns the parts with A_c and h_k one step on, z_D [B, K] from before that step, and the loss [].

    >>> import jax.numpy as jnp
    >>> head = Model(lambda key, x: (), lambda params, x: params * x)
    >>> download, local = Download({"adapter": jnp.array([[1.0, 1.0]])}), jnp.array([[3.0, -1.0]])
    >>> parts = start(FedDATConfig(), download, {"adapter": local, "head": jnp.float32(1)})
    >>> features, pull_back = jax.vjp(lambda local: jnp.array([[2.5, 0.5]]) + 0.5 * local, local)
    >>> batch = {"target": jnp.array([[1.0, 0.0]]), "mask": jnp.ones(1)}
    >>> teacher = Teacher(features, features, pull_back)
    >>> new, z_dat, _ = step_local(FedDATConfig(beta=0.0), head, parts, batch, teacher, features, rate=0.25)
    >>> z_dat.tolist()
    [[4.0, 0.0]]
    >>> new.local.params.round(1)
    Array([[ 3.2, -1.2]], dtype=float32)
    """
    loss = lambda features, params: distilled_loss(config, head, params, features, batch, z_shared, config.beta)
    gradient = jax.value_and_grad(loss, (0, 1), has_aux=True)
    (value, z_dat), (d_features, d_head) = gradient(teacher.features, parts.head.params)
    tx = adamw(config.training)
    local = descend(tx, rate, *teacher.pull_back(d_features), parts.local)
    return parts._replace(local=local, head=descend(tx, rate, d_head, parts.head)), z_dat, value


def distilled_loss(
    config: FedDATConfig,
    head: Model | Answers,
    head_params: PyTree,
    features: PyTree,
    batch: Batch,
    z_teacher: jax.Array,
    weight: jax.Array | float,
) -> tuple[jax.Array, jax.Array]:
    """The loss 1/2 [task(z) + weight KL(sg z_teacher, z)] [], and z [B, K], the head's logits of features [B, D].

    head_params: h_k. z_teacher [B, K]: the other side's logits.

    >>> import jax.numpy as jnp
    >>> head = Model(lambda key, x: (), lambda params, x: params * x)
    >>> batch = {"target": jnp.array([[1.0, 0.0]]), "mask": jnp.ones(1)}
    >>> value, z = distilled_loss(FedDATConfig(), head, 2.0, jnp.array([[1.0, 0.0]]), batch, jnp.array([[2.0, 0.0]]), 5)
    >>> z.tolist(), round(float(value), 4)  # the teacher agrees: half the task loss
    ([[2.0, 0.0]], 0.41)
    """
    answers = answers_of(head)
    z = answers.logits(head_params, features, batch)
    kl = answers.distill(z_teacher, z, config.temperature, batch)
    return 0.5 * (answers.loss(config.training, z, batch) + weight * kl), z


def dual_adapter_step(
    config: FedDATConfig,
    model: Vilt,
    head: Model | Answers,
    download: Download,
    parts: DualAdapter,
    batch: Batch,
    rates: tuple[jax.Array | float, jax.Array | float],
    alpha: jax.Array | float,
    rounds: jax.Array,
    key: Key | None = None,
) -> tuple[DualAdapter, Metrics]:
    """Steps (0), (1) and (2) of one batch: the parts after it, and its metrics.

    download: A_s as it was received, and the trunk. parts: as `start` gives them, or this function. batch: the model's
    arrays [B, ...], `target` [B, K] and `mask` [B]. rates: the learning rates [] of steps (1) and (2). alpha []: weight
    of the teacher in (1), 0 in a client's warm-up rounds. rounds [] int32: the rounds in which the client took part
    before, on which warm-up and `compat_freeze_local` depend. key: turns on the dropout of a model that has one, in
    which (0), (1) and (2) then draw their own, so that (2) needs a third pass.

    >>> import jax.numpy as jnp, types
    >>> mean = lambda trunk, started, adapters: started + sum(adapters) / len(adapters)
    >>> model = types.SimpleNamespace(start=lambda trunk, batch: trunk * batch["x"], finish=mean)
    >>> head = Model(lambda key, x: (), lambda params, x: params * x)
    >>> download = Download({"adapter": jnp.array([[1.0, 1.0]])}, held=2.0)
    >>> parts = start(FedDATConfig(), download, {"adapter": jnp.array([[3.0, -1.0]]), "head": jnp.float32(1)})
    >>> batch = {"x": jnp.array([[1.0, 0.0]]), "target": jnp.array([[1.0, 0.0]]), "mask": jnp.ones(1)}
    >>> given = (download, parts, batch, (0.1, 0.1))
    >>> new, metrics = dual_adapter_step(FedDATConfig(), model, head, *given, alpha=1.0, rounds=jnp.int32(0))
    >>> {name: round(float(value), 2) for name, value in metrics.items()}
    {'loss_shared': 0.87, 'loss_dat': 0.64, 'score': 1.0}
    """
    batch = answers_of(head).prepare(batch)
    passes = _passes(model, download.held, batch, key)
    dual = lambda one, started: forward_dual(config, one, head, download, parts, started, batch)
    teacher, (second, started) = dual(*passes[0]), passes[1]
    before, z_shared, loss_shared = step_shared(
        config, second, head, download, parts, started, batch, teacher.logits, alpha, rates[0]
    )
    again = teacher if passes[2] is passes[0] else dual(*passes[2])
    after, z_dat, loss_dat = step_local(config, head, before, batch, again, z_shared, rates[1])
    local, head_state = after.local, after.head
    if config.warmup_rounds:
        trains = rounds >= config.warmup_rounds
        local, head_state = trees.where(trains, (local, head_state), (before.local, before.head))
    if config.compat_freeze_local:
        local = trees.where(rounds <= config.warmup_rounds, local, before.local)
    score = masked_mean(answers_of(head).points(z_dat, batch), batch["mask"])
    return DualAdapter(before.shared, local, head_state), {
        "loss_shared": loss_shared,
        "loss_dat": loss_dat,
        "score": score,
    }


def _passes(model: Vilt, trunk: PyTree, batch: Batch, key: Key | None) -> list[tuple[Vilt, PyTree]]:
    """The models of (0), (1) and (2), with what `start` gives: one three times, or three that drop other values."""
    if key is None or not has_dropout(model):
        return [(model, model.start(trunk, batch))] * 3
    models = [dropping(model, one) for one in jax.random.split(key, 3)]
    return [(one, one.start(trunk, batch)) for one in models]
