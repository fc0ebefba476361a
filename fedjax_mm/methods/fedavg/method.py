"""Multimodal federated averaging, the baseline of every table.

McMahan et al., AISTATS 2017 (FedAvg); Reddi et al., ICLR 2021 (a server optimiser: FedAvgM, FedAdam, FedYogi);
Li et al., MLSys 2020 (FedProx); each part averaged over the clients that have it, multimodal clients' weight a
setting: Zhao, Barnaghi, Haddadi, IoTDI 2022.

One round, for parts w = {an encoder per modality, head}:
  1. The server sends each client the parts it uses: the encoders of its modalities, and the head.
  2. A client k runs E epochs of SGD on cross-entropy + mu/2 |w - w_global|^2, its n_k examples in batches of B.
     An example's embedding is the mean of its modalities' embeddings, so clients of all kinds share the head.
  3. It sends back each part, weighted by n_k (times `multimodal_weight` if it has several modalities).
  4. Old part minus the mean over the clients that have it is the server optimiser's gradient. A part nobody sent stays
     as it is, moments included.

With `shared=()` nothing travels: local-only training, the control. With `shared=("image", "text")` the head is
personal (FedPer).
"""

import dataclasses
from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_mm import aggregate, evaluate, trees
from fedjax_mm.federate import Method, federate
from fedjax_mm.local import gradient_step, local_steps, masked_mean
from fedjax_mm.models import Model
from fedjax_mm.types import Arrays, Cohort, Download, FedState, Mean, Server


@dataclasses.dataclass(frozen=True)
class FedAvgConfig:
    """Settings of one run; rates per step, counts per round."""

    client_lr: float = 0.1
    """Learning rate of the clients' optimiser."""
    client_optimizer: Literal["sgd", "adam"] = "sgd"
    """Started afresh by every client in every round."""
    batch_size: int = 20
    epochs: int = 1
    """Passes over a client's own examples in a round."""
    server_optimizer: Literal["sgd", "momentum", "adam", "yogi"] = "sgd"
    """sgd with rate 1 is FedAvg; the others FedAvgM, FedAdam and FedYogi."""
    server_lr: float = 1.0
    prox: float = 0.0
    """mu of FedProx; 0 is without."""
    multimodal_weight: float = 1.0
    """How many times its examples a client with several modalities counts (100 in Zhao et al.)."""
    shared: tuple[str, ...] | None = None
    """Parts that travel: modality names and "head". None: all. (): none, which is local-only training."""


CLIENT_OPTIMIZERS = {"sgd": optax.sgd, "adam": optax.adam}
SERVER_OPTIMIZERS = {  # epsilon and momenta of Reddi et al. 2021, section 5
    "sgd": optax.sgd,
    "momentum": lambda lr: optax.sgd(lr, momentum=0.9),
    "adam": lambda lr: optax.adam(lr, b1=0.9, b2=0.99, eps=1e-3),
    "yogi": lambda lr: optax.yogi(lr, b1=0.9, b2=0.99, eps=1e-3),
}


def build(
    config: FedAvgConfig,
    data,
    encoders: Mapping[str, Model],
    head: Model,
    *,
    server_optimizer: optax.GradientTransformation | None = None,
) -> Method:
    """The method for the cohorts of `data` (a FederatedData): a cohort holds the modalities its arrays have.

    encoders: modality -> Model from a batch of it to embeddings [B, D], one D for all; head: Model [B, D] -> [B, K].
    server_optimizer: any optax transform, in place of the one the config names.
    An example may lack a modality its client has: an array `has_<modality>` [E] of booleans says so.

    `evaluate` tests each modality on its own and, where several are given, all together: "image/macro_f1",
    "image+text/accuracy", ... With personal parts it is the mean over the clients holding these modalities.
    """
    holds = {name: tuple(m for m in encoders if m in cohort.arrays) for name, cohort in data.cohorts.items()}
    _check(holds, encoders, data)
    example = {m: c.arrays[m][:1] for c in data.cohorts.values() for m in encoders if m in c.arrays}
    parts = (*encoders, "head")
    shared = parts if config.shared is None else tuple(config.shared)
    if set(shared) - set(parts):
        raise ValueError(f"shared names parts {sorted(set(shared) - set(parts))}; this model has {list(parts)}")
    client_tx = CLIENT_OPTIMIZERS[config.client_optimizer](config.client_lr)
    server_tx = server_optimizer or SERVER_OPTIMIZERS[config.server_optimizer](config.server_lr)

    def init_parts(key, names):
        keys = {part: jax.random.fold_in(key, i) for i, part in enumerate(parts)}
        params = {m: encoders[m].init(keys[m], jnp.asarray(example[m])) for m in encoders}
        embedding = jax.eval_shape(encoders[parts[0]].apply, params[parts[0]], example[parts[0]])
        params["head"] = head.init(keys["head"], jnp.zeros(embedding.shape, embedding.dtype))
        return {part: params[part] for part in names}

    def logits(params, batch):
        here = [m for m in encoders if m in params and m in batch]
        embeddings = jnp.stack([encoders[m].apply(params[m], batch[m]) for m in here])  # [modalities, B, D]
        ones = jnp.ones(embeddings.shape[1])
        has = jnp.stack([batch.get(f"has_{m}", ones).astype(jnp.float32) for m in here])[..., None]
        return head.apply(params["head"], (embeddings * has).sum(0) / jnp.maximum(has.sum(0), 1.0))

    def cohort(name):
        mine = (*holds[name], "head")
        travels = tuple(p for p in mine if p in shared)
        boost = config.multimodal_weight if len(holds[name]) > 1 else 1.0

        def update(download, own, data, key):
            start = {**download.sent, **own}

            def loss(params, batch, key):
                scores = logits(params, batch)
                task = masked_mean(
                    optax.softmax_cross_entropy_with_integer_labels(scores, batch["label"]), batch["mask"]
                )
                drift = optax.tree.norm(optax.tree.sub(params, start), squared=True) if config.prox else 0.0
                right = masked_mean((scores.argmax(-1) == batch["label"]).astype(jnp.float32), batch["mask"])
                return task + 0.5 * config.prox * drift, {"accuracy": right}

            (params, _), metrics = local_steps(
                gradient_step(loss, client_tx),
                (start, client_tx.init(start)),
                data,
                key,
                batch_size=config.batch_size,
                epochs=config.epochs,
            )
            upload = {part: Mean(params[part], boost * data.weight) for part in travels}
            return upload, {part: params[part] for part in own}, metrics

        personal = tuple(p for p in mine if p not in shared)
        return Cohort(data.sizes[name], lambda key: init_parts(key, personal), update)

    def server_init(key):
        params = init_parts(key, shared)
        return {"params": params, "opt": {part: server_tx.init(params[part]) for part in shared}}

    def download(state, public):
        sent = lambda name: {p: state["params"][p] for p in (*holds[name], "head") if p in shared}
        return {name: Download(sent(name)) for name in holds}

    def server_update(state, uploads, public, key):
        params, opt = {}, {}
        for part in shared:
            old, moments = state["params"][part], state["opt"][part]
            mean = aggregate.collect(uploads, part)
            updates, new_moments = server_tx.update(optax.tree.sub(old, mean.value), moments, old)
            sent = mean.weight > 0
            params[part] = trees.where(sent, optax.apply_updates(old, updates), old)
            opt[part] = trees.where(sent, new_moments, moments)
        return {"params": params, "opt": opt}, {}

    predict = jax.jit(lambda params, batch: logits(params, batch).argmax(-1))
    predict_each = jax.jit(
        lambda params, own, batch: jax.lax.map(lambda mine: logits({**params, **mine}, batch).argmax(-1), own)
    )

    def evaluate_state(state: FedState, arrays: Arrays) -> dict[str, float]:
        given = tuple(m for m in encoders if m in arrays)
        labels, results = np.asarray(arrays["label"]), {}
        classes = jax.eval_shape(logits, init_shapes, {m: jnp.asarray(arrays[m][:1]) for m in given}).shape[-1]
        for tested in dict.fromkeys([(m,) for m in given] + [given]):
            batch = {m: jnp.asarray(arrays[m]) for m in tested}
            if set(shared) == set(parts):
                predictions = [np.asarray(predict(state.server["params"], batch))]
            else:
                like = [name for name in holds if holds[name] == tested]
                params = state.server["params"]
                predictions = [p for name in like for p in np.asarray(predict_each(params, state.clients[name], batch))]
            scores = [evaluate.classification(labels, p, classes) for p in predictions]
            results |= {f"{'+'.join(tested)}/{k}": float(np.mean([s[k] for s in scores])) for k in (scores or [{}])[0]}
        return results

    init_shapes = jax.eval_shape(lambda key: init_parts(key, parts), jax.random.key(0))
    return federate(
        Server(server_init, download, server_update), {name: cohort(name) for name in holds}, evaluate_state
    )


def _check(holds: Mapping[str, tuple[str, ...]], encoders: Mapping[str, Model], data) -> None:
    for modality in encoders:
        if not any(modality in held for held in holds.values()):
            raise ValueError(
                f"no client holds modality {modality!r}: the cohorts have {holds}; drop its encoder or add clients"
            )
    for name, held in holds.items():
        if not held:
            raise ValueError(f"cohort {name} holds none of the modalities {list(encoders)}; leave the cohort out")
        if "label" not in data.cohorts[name].arrays:
            raise ValueError(f"cohort {name} has no array 'label'; FedAvg trains on labels 0..K-1")
