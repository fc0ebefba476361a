"""What the server of FedMEKT does: steps 1, 3 and 4 of a round (see method.py).

Numbers in parentheses are sections of docs/specs/fedmekt.md.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_mm import trees
from fedjax_mm.local import local_steps, whole
from fedjax_mm.methods.fedmekt import autoencoding
from fedjax_mm.methods.fedmekt.autoencoding import Owners
from fedjax_mm.methods.fedmekt.config import FedMEKTConfig
from fedjax_mm.methods.fedmekt.knowledge import combine_knowledge, distillation, embed, message
from fedjax_mm.models.autoencoder import AutoEncoder
from fedjax_mm.types import Arrays, Download, Key, Metrics, PyTree, Upload


def init_server(config: FedMEKTConfig, autoencoder: AutoEncoder, public: Mapping, key: Key) -> dict[str, PyTree]:
    """The server's first state: theta_g ("params") and its Adam state ("opt"), zbar_m ("knowledge") with {m: 1 once
    somebody sent it} ("known"), and the frozen maps of the released code ("projection").

    public {m: [P, T, F]}: the proxy windows or their shapes.

    >>> from fedjax_mm.models import autoencoder
    >>> public = {"a": jax.ShapeDtypeStruct((6, 5, 3), jnp.float32)}
    >>> state = init_server(FedMEKTConfig(), autoencoder.linear({"a": 3}, width=2), public, jax.random.key(0))
    >>> state["knowledge"]["a"]["z"].shape, float(state["known"]["a"])
    ((6, 2), 0.0)
    """
    params = autoencoder.init(jax.random.fold_in(key, 0))
    send = lambda params, public: message(config, embed(autoencoder, params, public, autoencoder.modalities))
    shapes = jax.eval_shape(send, params, dict(public))
    widths = {what: x.shape[-1] for what, x in shapes[autoencoder.modalities[0]].items()}
    maps = autoencoding.frozen_maps(jax.random.fold_in(key, 1), widths)
    return {
        "params": params,
        "opt": autoencoding.init_opt(autoencoding.adam(config.server_lr), params),
        "knowledge": jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes),
        "known": {m: jnp.zeros(()) for m in autoencoder.modalities},
        "projection": maps if config.released else {},
    }


def download(
    config: FedMEKTConfig, autoencoder: AutoEncoder, owners: Owners, state: Mapping, public: Arrays | None
) -> dict[str, Download]:
    """Step 1: for each cohort the message {m: z_m^g of all P proxy windows} of the modalities that it owns.

    >>> from fedjax_mm.models import autoencoder
    >>> ae = autoencoder.linear({"a": 3, "b": 2}, width=2)
    >>> public = {"a": jnp.ones((6, 5, 3)), "b": jnp.ones((6, 5, 2))}
    >>> state = init_server(FedMEKTConfig(), ae, public, jax.random.key(0))
    >>> sent = download(FedMEKTConfig(), ae, {"B": ("b",)}, state, public)["B"].sent
    >>> jax.tree.map(jnp.shape, sent)
    {'b': {'z': (6, 2)}}
    """
    sent = message(config, embed(autoencoder, state["params"], public or {}, autoencoder.modalities))
    projection = lambda modalities: state["projection"] if len(modalities) > 1 else {}
    return {name: Download({m: sent[m] for m in owned}, projection(owned)) for name, owned in owners.items()}


def server_loss(
    config: FedMEKTConfig,
    autoencoder: AutoEncoder,
    state: Mapping,
    params: PyTree,
    batch: Mapping,
    key: Key,
    sources: Sequence[str],
) -> tuple[jax.Array, Metrics]:
    """Step 4's loss of a batch of proxy windows (1.4): (value [], {"reconstruction", "distillation"}).

    state: "known" and "projection" of the server's state; batch {m: [B, T, F], "knowledge": zbar_m of these windows,
    "mask": [B]}; sources: the modalities whose encoders are trained. No step is random, so `key` is not used.

    >>> from fedjax_mm.models import autoencoder
    >>> ae = autoencoder.linear({"a": 3}, width=2)
    >>> silent = jax.tree.map(jnp.zeros_like, jax.eval_shape(ae.init, jax.random.key(0)))
    >>> state = {"known": {"a": jnp.float32(1)}, "projection": {}}
    >>> batch = {"a": 2 * jnp.ones((4, 5, 3)), "knowledge": {"a": {"z": jnp.zeros((4, 2))}}, "mask": jnp.ones(4)}
    >>> value, metrics = server_loss(FedMEKTConfig(), ae, state, silent, batch, jax.random.key(1), ("a",))
    >>> float(value), float(metrics["distillation"])
    (4.0, 0.0)
    """
    x = {m: batch[m] for m in autoencoder.modalities}
    embeddings = embed(autoencoder, params, x, autoencoder.modalities)
    codes = {m: embedding["z"][:, -1] for m, embedding in embeddings.items()}
    rec = autoencoding.objective(config.objective, autoencoder, params, codes, x, batch["mask"], sources)
    student = message(config, {m: embeddings[m] for m in sources})
    weights = {"z": config.eta, "h": config.gamma}
    reverse = config.released and config.variant == "C"
    kd = distillation(
        config, weights, batch["knowledge"], student, batch["mask"], state["projection"], state["known"], reverse
    )
    return rec + kd, {"reconstruction": rec, "distillation": kd}


def server_update(
    config: FedMEKTConfig,
    autoencoder: AutoEncoder,
    state: Mapping,
    uploads: Mapping[str, Upload],
    public: Arrays | None,
    key: Key,
) -> tuple[PyTree, Metrics]:
    """Steps 3 and 4: (the server's new state, metrics). A round in which nobody took part changes nothing.

    state: as `init_server` gives it; uploads {cohort: {m: Mean or Each of a message}}; public {m: [P, T, F]}.

    >>> from fedjax_mm.models import autoencoder
    >>> from fedjax_mm.types import Mean
    >>> ae, config, public = autoencoder.linear({"a": 3}, width=2), FedMEKTConfig(), {"a": jnp.ones((6, 5, 3))}
    >>> state = init_server(config, ae, public, jax.random.key(0))
    >>> uploads = {"all": {"a": Mean({"z": jnp.ones((6, 2))}, jnp.float32(2))}}
    >>> new, metrics = server_update(config, ae, state, uploads, public, jax.random.key(1))
    >>> float(new["known"]["a"]), bool((new["knowledge"]["a"]["z"] == 1).all()), sorted(metrics)
    (1.0, True, ['distillation', 'loss', 'reconstruction'])
    """
    knowledge, heard = combine_knowledge(config, uploads, state["knowledge"])
    known = {m: jnp.maximum(state["known"][m], heard[m]) for m in heard}
    new = {**state, "knowledge": knowledge, "known": known}
    loss = functools.partial(server_loss, config, autoencoder, new)
    turns = autoencoding.phases(config.variant, autoencoder, autoencoder.modalities)
    step = autoencoding.phased_step(loss, autoencoding.adam(config.server_lr), turns)
    examples: dict[str, Any] = {m: (public or {})[m] for m in autoencoder.modalities}
    examples["knowledge"] = knowledge
    size = min(config.proxy_batch, len(examples[autoencoder.modalities[0]]))
    carry = (state["params"], state["opt"])
    (params, opt), metrics = local_steps(
        step, carry, whole(examples), key, batch_size=size, epochs=config.server_epochs
    )
    new |= {"params": params, "opt": opt}
    return trees.where(jnp.asarray(sum(heard.values())) > 0, new, dict(state)), metrics
