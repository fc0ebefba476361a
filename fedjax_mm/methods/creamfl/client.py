"""CreamFL at one client: steps 3 and 4 of a round (see method.py, whose symbols these are)."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_mm import losses, trees
from fedjax_mm.local import Batch, gradient_step, local_steps, take
from fedjax_mm.losses import unit
from fedjax_mm.methods.creamfl import joint_space
from fedjax_mm.methods.creamfl.config import CreamFLConfig
from fedjax_mm.methods.creamfl.joint_space import OTHER, Shapes, encode, represent_all, task
from fedjax_mm.methods.creamfl.joint_space_scores import score_rows
from fedjax_mm.methods.creamfl.training import Encoders, batch_of, finish_step, optimizer
from fedjax_mm.methods.creamfl.views import views
from fedjax_mm.types import Arrays, ClientData, Download, Each, Key, Metrics, PyTree


class Anchors(NamedTuple):
    """What a client compares its representations of the public examples with: {modality: [P, D]}, rows of length 1."""

    server: Mapping[str, jax.Array]
    """G_image and G_text, as the server sent them."""
    previous: Mapping[str, jax.Array]
    """z_m^old, for the client's modalities."""


def contrasts(
    config: CreamFLConfig,
    encoders: Encoders,
    params: PyTree,
    batch: Batch,
    anchors: Anchors,
    mask: jax.Array | None = None,
    key: Key | None = None,
) -> tuple[jax.Array, Metrics]:
    """(gamma (inter + intra) [], {"inter": [], "intra": []}) of a batch of public examples (section 1.5).

    batch: each modality of `encoders` [B, ...], and `row` [B] int, the numbers of these examples among all P; mask [B],
    0 where a row is padding. A client with both modalities has the sums over its two. key: draws the views of the
    examples where the settings ask for them (`public_views`).

    >>> from fedjax_mm.models import Model
    >>> encoders = {"image": Model(lambda key, x: 1.0, lambda params, x: params * x)}
    >>> reps = {m: jnp.full((6, 4), 0.5) for m in ("image", "text")}  # everything is at one point
    >>> batch = {"image": jnp.ones((2, 4)), "row": jnp.array([0, 5])}
    >>> total, terms = contrasts(CreamFLConfig(gamma=1.0), encoders, {"image": 1.0}, batch, Anchors(reps, reps))
    >>> {name: round(float(value), 3) for name, value in terms.items()}  # log of 6 pairs, log 2
    {'inter': 1.792, 'intra': 0.693}
    """
    rows, seen = batch["row"], batch
    if config.public_views and key is not None:
        seen = views(dataclasses.replace(config.training, alone="crop"), batch, tuple(encoders), key)
    z = {m: unit(encode(encoders[m], params[m], seen[m], config.training.at_once)) for m in encoders}
    settings = {"temperature": config.temperature, "mask": mask}
    inter = [losses.inter_modal(z[m], anchors.server[OTHER[m]], rows, **settings) for m in z]
    intra = [losses.intra_modal(z[m], anchors.server[m][rows], anchors.previous[m][rows], **settings) for m in z]
    none = jnp.float32(0)
    terms = {"inter": sum(inter, none), "intra": sum(intra, none) / (len(z) if config.intra_mean else 1)}
    return config.gamma * (config.inter * terms["inter"] + config.intra * terms["intra"]), terms


def joint_loss(
    config: CreamFLConfig,
    encoders: Encoders,
    anchors: Anchors,
    public: Arrays,
    params: PyTree,
    batch: Batch,
    key: Key,
) -> tuple[jax.Array, Metrics]:
    """(loss [], metrics) of a step that learns from a batch of own examples and from public ones drawn at random.

    batch: the client's own examples [B, ...] with `mask` [B]; public: leaves [P, ...].
    """
    value, metrics = task(config.training, encoders)(params, batch, key)
    if len(encoders) > 1:  # a sum over pairs, of which the paper adds the mean to the contrasts
        value /= jnp.maximum(batch["mask"].sum(), 1)
    total = len(next(iter(public.values())))
    rows = jax.random.randint(jax.random.fold_in(key, 2), (config.public_batch,), 0, total)
    some = {**take(public, rows), "row": rows}
    view_key = jax.random.fold_in(key, 3) if config.public_views else None
    more, terms = contrasts(config, encoders, params, some, anchors, key=view_key)
    return value + more, {"task": value, **metrics, **terms}


def train_client(
    config: CreamFLConfig,
    encoders: Encoders,
    anchors: Anchors | None,
    round: jax.Array,
    carry: tuple[PyTree, PyTree],
    data: ClientData,
    key: Key,
) -> tuple[tuple[PyTree, PyTree], Metrics]:
    """Step 3: (parameters, optimiser state) and metrics after E epochs on own examples and on public ones.

    anchors: None leaves the contrasts out. round: [] int, on which the learning rate depends.

    >>> import dataclasses
    >>> from fedjax_mm.local import whole
    >>> from fedjax_mm.models import Model
    >>> linear = Model(lambda key, x: jax.random.normal(key, (x.shape[-1], 4)), lambda params, x: x @ params)
    >>> config, encoders, own = CreamFLConfig(), {"image": linear}, {"image": jnp.eye(6), "label": jnp.arange(6) % 2}
    >>> state = init_client(config, encoders, own, own, 2, jax.random.key(0))
    >>> carry, data = (state["params"], state["opt"]), dataclasses.replace(whole(own), public=own)
    >>> carry, metrics = train_client(config, encoders, None, jnp.int32(0), carry, data, jax.random.key(1))
    >>> sorted(metrics)
    ['accuracy', 'loss']
    """
    training, public = config.training, {m: (data.public or {})[m] for m in encoders}
    own_loss, own_size = task(training, encoders), batch_of(training, encoders)
    public_size = min(config.public_batch, len(next(iter(public.values()))))
    tx = optimizer(training, encoders, round)

    def run(loss, carry, data, key, batch_size, epochs=1):
        step = finish_step(training, gradient_step(loss, tx))
        return local_steps(step, carry, data, key, batch_size=batch_size, epochs=epochs)

    if anchors is None:
        return run(own_loss, carry, data, key, own_size, training.epochs)
    if config.phases == "joint":
        loss = functools.partial(joint_loss, config, encoders, anchors, public)
        return run(loss, carry, data, key, own_size, training.epochs)

    contrast = lambda params, batch, key: contrasts(config, encoders, params, batch, anchors, batch["mask"], key)
    everyones = joint_space.over_public(public, data.weight > 0)

    def epoch(carry, i):
        keys = jax.random.split(jax.random.fold_in(key, i))
        carry, own = run(own_loss, carry, data, keys[0], own_size)
        carry, shared = run(contrast, carry, everyones, keys[1], public_size)
        return carry, {**own, "task": own["loss"], **shared}

    carry, metrics = jax.lax.scan(epoch, carry, jnp.arange(training.epochs))
    return carry, jax.tree.map(lambda x: x.sum() / max(training.epochs, 1), metrics)


def recall(
    config: CreamFLConfig, encoders: Encoders, state: dict[str, PyTree], public: Arrays, present: jax.Array
) -> dict[str, jax.Array]:
    """z_m^old {m: [P, D]}: what the client sent when it last took part; before that, what its model gives now.

    public: leaves [P, ...]; present [] bool: where it is False, nothing is computed.
    """
    missing = present & ~state["has_reps"]
    fresh = represent_all(encoders, config.training.block, state["params"], public, missing)
    return trees.where(state["has_reps"], state["reps"], fresh)


def client_update(
    config: CreamFLConfig,
    encoders: Encoders,
    download: Download,
    state: dict[str, PyTree],
    data: ClientData,
    key: Key,
) -> tuple[dict[str, Each], dict[str, PyTree], Metrics]:
    """Steps 2 to 4: (upload {m: representations [P, D]}, the client's new state, metrics).

    download: `sent` is G {"image": [P, D], "text": [P, D]}, `held` the round [] int. state: as of `init_client`.
    data: the client's own examples, and the public ones as `data.public`, leaves [P, ...].

    >>> import dataclasses
    >>> from fedjax_mm.local import whole
    >>> from fedjax_mm.models import Model
    >>> linear = Model(lambda key, x: jax.random.normal(key, (x.shape[-1], 4)), lambda params, x: x @ params)
    >>> config, encoders, keys = CreamFLConfig(), {"image": linear}, jax.random.split(jax.random.key(0))
    >>> public = {"image": jnp.ones((6, 3)), "text": jnp.ones((6, 2))}
    >>> own = {"image": jnp.ones((5, 3)), "label": jnp.arange(5) % 2}
    >>> state = init_client(config, encoders, own, public, 2, keys[0])
    >>> download = Download({m: jnp.full((6, 4), 0.5) for m in public}, jnp.int32(0))
    >>> data = dataclasses.replace(whole(own), public=public)  # one client owns all
    >>> upload, state, metrics = client_update(config, encoders, download, state, data, keys[1])
    >>> upload["image"].value.shape, sorted(metrics)
    ((6, 4), ['accuracy', 'inter', 'intra', 'loss', 'task'])
    """
    present, public = data.weight > 0, {m: (data.public or {})[m] for m in encoders}
    anchors = None
    if config.contrasts:
        anchors = Anchors(download.sent, recall(config, encoders, state, public, present))
    carry = (state["params"], state["opt"])
    (params, opt), metrics = train_client(config, encoders, anchors, download.held, carry, data, key)
    reps = represent_all(encoders, config.training.block, params, public, present) if config.exchanges else {}
    boost = config.both_weight if len(encoders) > 1 else 1.0
    upload = {m: Each(z, boost * data.weight) for m, z in reps.items()}
    memory = {"reps": reps, "has_reps": jnp.bool_(True)} if config.contrasts else {}
    return upload, {"params": params, "opt": opt, **memory}, metrics


def init_client(
    config: CreamFLConfig, encoders: Encoders, arrays: Shapes, public: Shapes, num_classes: int | None, key: Key
) -> dict[str, PyTree]:
    """A client's first state: `params`, `opt`, and where it contrasts, room for the representations that it sends.

    arrays, public: the client's examples [E, ...] and the public ones [P, ...], of which the shapes alone count.
    """
    params = joint_space.init(key, encoders, arrays, num_classes)
    state = {"params": params, "opt": optimizer(config.training, encoders, jnp.int32(0)).init(params)}
    if not config.contrasts:
        return state
    represent = functools.partial(represent_all, encoders, config.training.block)
    reps = optax.tree.zeros_like(jax.eval_shape(represent, params, public))
    return state | {"reps": reps, "has_reps": jnp.bool_(False)}


def score_client(
    config: CreamFLConfig,
    encoders: Encoders,
    download: Download,
    state: dict[str, PyTree],
    arrays: Arrays,
    mask: jax.Array,
) -> dict[str, jax.Array]:
    """How well the client's own model does on each of its own test rows, as `score_rows` says."""
    return score_rows(config.training, encoders, state["params"], arrays, mask)
