"""What one client of MMFL does: steps 2 and 3 of a round (see mmfl.py)."""

import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from fedjax_mm import losses
from fedjax_mm.local import Batch, local_steps
from fedjax_mm.methods.fedmekt import autoencoding
from fedjax_mm.methods.fedmekt.autoencoding import Modalities
from fedjax_mm.methods.fedmekt.mmfl_config import MMFLConfig
from fedjax_mm.methods.regularisers import proximal_term
from fedjax_mm.methods.settings import is_used
from fedjax_mm.models.autoencoder import AutoEncoder
from fedjax_mm.types import Arrays, ClientData, Download, Key, Mean, Metrics, PyTree, Upload


def init_client(
    config: MMFLConfig, autoencoder: AutoEncoder, modalities: Modalities, key: Key, server: Mapping
) -> dict[str, PyTree]:
    """A client's first state, from the server's w_m of the modalities that it owns (see `client_update`).

    >>> from fedjax_mm.models import autoencoder
    >>> ae, key = autoencoder.linear({"a": 3}, width=2), jax.random.key(0)
    >>> list(init_client(MMFLConfig(moon=0.1), ae, ("a",), key, {"a": ae.init(key)})["previous"])
    ['encoder_a']
    """
    params = by_part({m: server[m] for m in modalities})
    opt = autoencoding.init_opt(autoencoding.adam(config.client_lr), params)
    return _state_to_keep(config, autoencoder, modalities, params, opt)


def client_loss(
    config: MMFLConfig,
    autoencoder: AutoEncoder,
    start: PyTree,
    previous: PyTree,
    params: PyTree,
    batch: Batch,
    key: Key,
    sources: Sequence[str],
) -> tuple[jax.Array, Metrics]:
    """Step 2's loss of a batch of a client's own windows: (value [], {"reconstruction"}).

    start: the parameters of the round's start; previous: the client's encoders of its last round, which MOON alone
    needs; batch {m: [B, T, F], "mask": [B]}; sources: the modalities whose encoders are trained. No step is random, so
    `key` is not used.

    >>> from fedjax_mm.models import autoencoder
    >>> ae = autoencoder.linear({"a": 3}, width=2)
    >>> silent = jax.tree.map(jnp.zeros_like, jax.eval_shape(ae.init, jax.random.key(0)))
    >>> batch = {"a": 2 * jnp.ones((4, 5, 3)), "mask": jnp.ones(4)}
    >>> value, metrics = client_loss(MMFLConfig(prox=0.1), ae, silent, None, silent, batch, jax.random.key(1), ("a",))
    >>> float(value)
    4.0
    """
    x = {m: batch[m] for m in autoencoding.modalities_of(autoencoder, batch)}
    z = {m: autoencoder.encode(params, m, x[m])[0] for m in x}
    codes = {m: z[m][:, -1] for m in x}
    total = autoencoding.objective(config.objective, autoencoder, params, codes, x, batch["mask"], sources)
    metrics = {"reconstruction": total}
    if is_used(config.prox):
        total += proximal_term(config.prox, params, start)
    if is_used(config.moon):
        for m in sources:
            current, before = (autoencoder.encode(p, m, x[m])[0] for p in (start, previous))
            total += config.moon * moon_term(config, z[m], current, before, batch["mask"])
    return total, metrics


def moon_term(config: MMFLConfig, z: jax.Array, current: jax.Array, previous: jax.Array, mask: jax.Array) -> jax.Array:
    """MOON's loss of the embeddings of one modality, [], the mean over cosines; it pulls z to `current` and away from
    `previous`, which get no gradient.

    z, current (by the global encoder) and previous (by the client's own of its last round) [B, T, D]; mask [B].

    >>> z = jnp.ones((4, 5, 2))
    >>> round(float(moon_term(MMFLConfig(), z, z, z, jnp.ones(4))), 3)  # as near to both: log 2
    0.693
    """
    axes = (0, 1, 2) if config.moon_axis == "feature" else (0, 2, 1)
    lines = lambda x: x.transpose(axes).reshape(-1, x.shape[axes[2]])
    rows = jnp.repeat(mask, z.shape[axes[1]])
    current, previous = (jax.lax.stop_gradient(losses.unit(lines(x))) for x in (current, previous))
    return losses.intra_modal(losses.unit(lines(z)), current, previous, config.moon_temperature, mask=rows)


def client_update(
    config: MMFLConfig, autoencoder: AutoEncoder, download: Download, state: Mapping, data: ClientData, key: Key
) -> tuple[Upload, dict[str, PyTree], Metrics]:
    """Steps 2 and 3 of one client: ({m: w_m}, its new state, metrics).

    state: what of {"opt", "params", "previous"} the settings let a client keep: Adam's state, its autoencoder where
    nothing is shared, its encoders of this round for MOON. data.arrays {m: [E, T, F]} of the modalities it owns.

    >>> import numpy as np
    >>> from fedjax_mm.data.federated import FederatedData
    >>> from fedjax_mm.models import autoencoder
    >>> data = FederatedData.from_arrays({"a": np.ones((6, 5, 3), np.float32)}, [[0, 1, 2], [3]])
    >>> ae, key, config = autoencoder.linear({"a": 3}, width=2), jax.random.key(0), MMFLConfig(batch_size=2)
    >>> sent = Download({"a": ae.init(key)})
    >>> upload, state, metrics = client_update(config, ae, sent, {}, data.client("all", 0), key)
    >>> sorted(upload["a"].value), float(upload["a"].weight), state
    (['decoder_a', 'encoder_a'], 3.0, {})
    """
    modalities = autoencoding.modalities_of(autoencoder, data.arrays)
    start = by_part(download.sent) if config.shared else state["params"]
    loss = functools.partial(client_loss, config, autoencoder, start, state.get("previous"))
    tx = autoencoding.adam(config.client_lr)
    step = autoencoding.phased_step(loss, tx, autoencoding.phases(config.variant, autoencoder, modalities))
    opt = state["opt"] if _keeps_opt(config) else autoencoding.init_opt(tx, start)
    (params, opt), metrics = local_steps(
        step, (start, opt), data, key, batch_size=config.batch_size, epochs=config.epochs
    )
    w = by_modality(autoencoder, params, modalities) if config.shared else {}
    boost = config.multimodal_weight if len(modalities) > 1 else 1.0
    upload = {m: Mean(w[m], boost * data.weight) for m in w}
    return upload, _state_to_keep(config, autoencoder, modalities, params, opt), metrics


def score_client(
    config: MMFLConfig, autoencoder: AutoEncoder, download: Download, state: Mapping, arrays: Arrays, mask: jax.Array
) -> dict[str, jax.Array]:
    """How well a client's autoencoder does on each of its own test windows {m: [B, T, F]}: {"reconstruction_error":
    [B]}, the mean squared error of each modality decoded from its own code (see `autoencoding.reconstruction_error`).

    The autoencoder is the one that was sent, or the client's own where nothing is shared.

    >>> from fedjax_mm.models import autoencoder
    >>> ae = autoencoder.linear({"a": 3}, width=2)
    >>> silent = jax.tree.map(jnp.zeros_like, jax.eval_shape(ae.init, jax.random.key(0)))
    >>> sent, arrays = Download({"a": silent}), {"a": jnp.arange(3.0)[:, None, None] * jnp.ones((3, 5, 3))}
    >>> score_client(MMFLConfig(), ae, sent, {}, arrays, jnp.ones(3))["reconstruction_error"].tolist()
    [0.0, 1.0, 4.0]
    """
    params = by_part(download.sent) if config.shared else state["params"]
    modalities = [m for m in autoencoder.modalities if autoencoder.parts(m)[0] in params]
    x = {m: arrays[m] for m in modalities}
    return {"reconstruction_error": autoencoding.reconstruction_error(autoencoder, params, x)}


def _keeps_opt(config: MMFLConfig) -> bool:
    return config.persistent or not config.shared


def _state_to_keep(
    config: MMFLConfig, autoencoder: AutoEncoder, modalities: Modalities, params: PyTree, opt: PyTree
) -> dict[str, PyTree]:
    """What stays with a client of what its round ended with."""
    state = {"opt": opt} if _keeps_opt(config) else {}
    state |= {} if config.shared else {"params": params}
    encoders = [autoencoder.parts(m)[0] for m in modalities]
    return state | ({"previous": {part: params[part] for part in encoders}} if is_used(config.moon) else {})


def by_modality(autoencoder: AutoEncoder, params: PyTree, modalities: Modalities) -> dict[str, PyTree]:
    """{part: its parameters} -> {m: {part: its parameters}}."""
    return {m: {part: params[part] for part in autoencoder.parts(m)} for m in modalities}


def by_part(by_modality: Mapping[str, PyTree]) -> dict[str, PyTree]:
    """{m: {part: its parameters}} -> {part: its parameters}."""
    return {part: value for w in by_modality.values() for part, value in w.items()}
