"""What one client of FedMEKT does: steps 2 and 3 of a round (see method.py).

Numbers in parentheses are sections of docs/specs/fedmekt.md.
"""

import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from fedjax_mm.local import Batch, local_steps
from fedjax_mm.methods.fedmekt import autoencoding
from fedjax_mm.methods.fedmekt.autoencoding import Modalities
from fedjax_mm.methods.fedmekt.config import FedMEKTConfig
from fedjax_mm.methods.fedmekt.knowledge import distillation, embed, message
from fedjax_mm.models.autoencoder import AutoEncoder
from fedjax_mm.types import Arrays, ClientData, Download, Each, Key, Mean, Metrics, PyTree, Upload


def init_client(
    config: FedMEKTConfig, autoencoder: AutoEncoder, modalities: Modalities, key: Key, server: Mapping
) -> dict[str, PyTree]:
    """A client's first state: the parts of the server's autoencoder for its modalities ("params"), Adam's ("opt").

    >>> from fedjax_mm.models import autoencoder
    >>> ae, key = autoencoder.linear({"a": 3, "b": 2}, width=2), jax.random.key(0)
    >>> sorted(init_client(FedMEKTConfig(), ae, ("b",), key, {"params": ae.init(key)})["params"])
    ['decoder_b', 'encoder_b']
    """
    params = {part: server["params"][part] for m in modalities for part in autoencoder.parts(m)}
    return {"params": params, "opt": autoencoding.init_opt(autoencoding.adam(config.client_lr), params)}


def client_loss(
    config: FedMEKTConfig,
    autoencoder: AutoEncoder,
    download: Download,
    proxy: Arrays,
    params: PyTree,
    batch: Batch,
    key: Key,
    sources: Sequence[str],
) -> tuple[jax.Array, Metrics]:
    """Step 2's loss of a batch of a client's own windows (1.2): (value [], {"reconstruction", "distillation"}).

    proxy {m: [P, T, F]} of the client's modalities, of which `config.proxy_batch` are drawn with `key`; batch
    {m: [B, T, F], "mask": [B]}; sources: the modalities whose encoders are trained.

    >>> from fedjax_mm.models import autoencoder
    >>> ae = autoencoder.linear({"a": 3}, width=2)
    >>> silent = jax.tree.map(jnp.zeros_like, jax.eval_shape(ae.init, jax.random.key(0)))
    >>> windows, sent = jnp.ones((4, 5, 3)), Download({"a": {"z": jnp.zeros((4, 2))}})
    >>> batch, key = {"a": 2 * windows, "mask": jnp.ones(4)}, jax.random.key(1)
    >>> value, metrics = client_loss(FedMEKTConfig(), ae, sent, {"a": windows}, silent, batch, key, ("a",))
    >>> float(value), float(metrics["distillation"])
    (4.0, 0.0)
    """
    modalities = autoencoding.modalities_of(autoencoder, proxy)
    rows = jax.random.permutation(key, len(proxy[modalities[0]]))[: config.proxy_batch]
    x = {m: batch[m] for m in modalities}
    both = {m: jnp.concatenate([x[m], proxy[m][rows]]) for m in modalities}  # one pass of each encoder
    embeddings = embed(autoencoder, params, both, modalities)
    codes = {m: embeddings[m]["z"][: len(x[m]), -1] for m in modalities}
    of_proxy = {m: jax.tree.map(lambda e, m=m: e[len(x[m]) :], embeddings[m]) for m in sources}
    teacher = jax.tree.map(lambda t: t[rows], download.sent)
    rec = autoencoding.objective(config.objective, autoencoder, params, codes, x, batch["mask"], sources)
    weights = {"z": config.alpha, "h": config.beta}
    kd = distillation(config, weights, teacher, message(config, of_proxy), jnp.ones(len(rows)), download.held)
    return rec + kd, {"reconstruction": rec, "distillation": kd}


def client_update(
    config: FedMEKTConfig, autoencoder: AutoEncoder, download: Download, state: Mapping, data: ClientData, key: Key
) -> tuple[Upload, dict[str, PyTree], Metrics]:
    """Steps 2 and 3 of one client: ({m: its message of all proxy windows}, its new state, metrics).

    state: as `init_client` gives it; data.arrays {m: [E, T, F]} of the modalities that the client owns.

    >>> import numpy as np
    >>> from fedjax_mm.data.federated import FederatedData
    >>> from fedjax_mm.models import autoencoder
    >>> windows, config = np.ones((6, 5, 3), np.float32), FedMEKTConfig(batch_size=2, proxy_batch=2)
    >>> data = FederatedData.from_arrays({"a": windows}, [[0, 1, 2], [3]], public={"a": windows})
    >>> ae, key = autoencoder.linear({"a": 3}, width=2), jax.random.key(0)
    >>> state = init_client(config, ae, ("a",), key, {"params": ae.init(key)})
    >>> sent = Download({"a": {"z": jnp.zeros((6, 2))}})  # the global autoencoder's embeddings
    >>> upload, state, metrics = client_update(config, ae, sent, state, data.client("all", 0), key)
    >>> upload["a"].value["z"].shape, float(upload["a"].weight), sorted(metrics)
    ((6, 2), 1.0, ['distillation', 'loss', 'reconstruction'])
    """
    modalities = autoencoding.modalities_of(autoencoder, data.arrays)
    public = data.public or {}
    proxy = {m: public[m] for m in modalities}
    loss = functools.partial(client_loss, config, autoencoder, download, proxy)
    turns = autoencoding.phases(config.variant, autoencoder, modalities)
    step = autoencoding.phased_step(loss, autoencoding.adam(config.client_lr), turns)
    carry = (state["params"], state["opt"])
    (params, opt), metrics = local_steps(step, carry, data, key, batch_size=config.batch_size, epochs=config.epochs)
    sends = Mean if config.aggregate == "mean" else Each
    knowledge = message(config, embed(autoencoder, params, proxy, modalities))
    upload = {m: sends(knowledge[m], jnp.sign(data.weight)) for m in modalities}
    return upload, {"params": params, "opt": opt}, metrics


def score_client(
    autoencoder: AutoEncoder, download: Download, state: Mapping, arrays: Arrays, mask: jax.Array
) -> dict[str, jax.Array]:
    """How well a client's own autoencoder does on each of its own test windows {m: [B, T, F]}: {"reconstruction_error":
    [B]}, the mean squared error of each modality decoded from its own code (see `autoencoding.reconstruction_error`).

    >>> from fedjax_mm.models import autoencoder
    >>> ae = autoencoder.linear({"a": 3}, width=2)
    >>> silent = jax.tree.map(jnp.zeros_like, jax.eval_shape(ae.init, jax.random.key(0)))
    >>> state, arrays = {"params": silent}, {"a": jnp.arange(3.0)[:, None, None] * jnp.ones((3, 5, 3))}
    >>> score_client(ae, Download(()), state, arrays, jnp.ones(3))["reconstruction_error"].tolist()
    [0.0, 1.0, 4.0]
    """
    modalities = [m for m in autoencoder.modalities if autoencoder.parts(m)[0] in state["params"]]
    x = {m: arrays[m] for m in modalities}
    return {"reconstruction_error": autoencoding.reconstruction_error(autoencoder, state["params"], x)}
