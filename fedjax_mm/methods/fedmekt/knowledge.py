"""What FedMEKT's clients and server tell each other: embeddings, the part of them that travels, and its distillation.

Shapes: B or P windows, T steps, F features, D width of an embedding z, H width of a state h of the first layer. Numbers
in parentheses are sections of docs/specs/fedmekt.md.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp

from fedjax_mm import aggregate, losses
from fedjax_mm.local import masked_mean
from fedjax_mm.methods.fedmekt import autoencoding
from fedjax_mm.methods.fedmekt.config import FedMEKTConfig
from fedjax_mm.methods.fedmekt.readout import layer, read
from fedjax_mm.models.autoencoder import AutoEncoder
from fedjax_mm.models.checks import one_of
from fedjax_mm.types import Arrays, Each, Mean, PyTree, Upload

Embeddings = Mapping[str, Mapping[str, jax.Array]]  # {m: {"z": [B, T, D], "h": [B, T, H]}}
Message = Mapping[str, Mapping[str, jax.Array]]  # {m: {"z" or "h", or both: [B, D], or [B, T, D] of all steps}}


def embed(autoencoder: AutoEncoder, params: PyTree, arrays: Arrays, modalities: Iterable[str]) -> Embeddings:
    """The embeddings and the first layer's states of windows {m: [B, T, F]} at every step (1.1).

    >>> from fedjax_mm.models import autoencoder
    >>> ae = autoencoder.linear({"a": 3, "b": 2}, width=2)
    >>> embeddings = embed(ae, ae.init(jax.random.key(0)), {"a": jnp.ones((4, 5, 3))}, ("a",))
    >>> jax.tree.map(jnp.shape, embeddings)
    {'a': {'h': (4, 5, 2), 'z': (4, 5, 2)}}
    """
    return {m: dict(zip("zh", autoencoder.encode(params, m, arrays[m]), strict=True)) for m in modalities}


def message(config: FedMEKTConfig, embeddings: Embeddings) -> Message:
    """What of the embeddings travels (1.3): one row of z or of h a window, z at all steps, or z and h at all steps.

    >>> embeddings = {"a": {"z": jnp.ones((4, 5, 2)), "h": jnp.ones((4, 5, 8))}}
    >>> for what in ("last", "hidden_mean_std", "seq", "seq+hidden"):
    ...     print(jax.tree.map(jnp.shape, message(FedMEKTConfig(knowledge=what), embeddings)))
    {'a': {'z': (4, 2)}}
    {'a': {'h': (4, 16)}}
    {'a': {'z': (4, 5, 2)}}
    {'a': {'h': (4, 5, 8), 'z': (4, 5, 2)}}
    """
    what = config.knowledge
    if what == "seq" or what == "seq+hidden":
        names = ("z",) if what == "seq" else ("z", "h")
        return {m: {name: embedding[name] for name in names} for m, embedding in embeddings.items()}
    return {m: {layer(what): read(what, embedding["z"], embedding["h"])} for m, embedding in embeddings.items()}


def distillation(
    config: FedMEKTConfig,
    weights: Mapping[str, float],
    teacher: Message,
    student: Message,
    mask: jax.Array,
    projection: PyTree = None,
    known: Mapping[str, jax.Array] | None = None,
    reverse: bool = False,
) -> jax.Array:
    """The weighted distillation from one message to another, [], a mean over the modalities of the student (1.2, 1.4).

    weights: {"z", "h"}, of each part of the message. The teacher gets no gradient. mask [B] is 1 for a real window.
    projection: the frozen maps of z and h, which the released code's variant needs for several modalities.
    known: {m: 1 where the teacher knows the modality, else 0}; None: it knows all. reverse: KL(student || teacher).

    >>> teacher = {"a": {"z": jnp.array([[2.0, 0.0]])}, "b": {"z": jnp.array([[0.0, 0.0]])}}
    >>> student = {"a": {"z": jnp.array([[0.0, 0.0]])}, "b": {"z": jnp.array([[0.0, 0.0]])}}
    >>> of = lambda **settings: distillation(FedMEKTConfig(), {"z": 1.0}, teacher, student, jnp.ones(1), **settings)
    >>> round(float(of()), 3), float(of(known={"a": 0.0, "b": 1.0}))
    (0.237, 0.0)
    """
    terms = []
    for m in student:
        for what in student[m]:
            t, s = jax.lax.stop_gradient(teacher[m][what]), student[m][what]
            if config.released and len(student) > 1:
                t, s = (autoencoding.apply_map(projection[what], x) for x in (t, s))
            t, s = (s, t) if reverse else (t, s)
            if config.kd == "kl":
                term = autoencoding.distill(t, s, mask, config.temperature, config.kd_axis)
            else:
                term = distance(config.kd, t, s, mask)
            terms.append(weights[what] * term * (1.0 if known is None else known[m]))
    total = jnp.asarray(sum(terms))
    return total if config.released else total / len(student)


def distance(kind: Literal["cosine", "mse"], a: jax.Array, b: jax.Array, mask: jax.Array) -> jax.Array:
    """How far rows are from others, [], the mean over windows (and steps): 1 - cosine, or the mean squared error.

    a, b [B, D] or [B, T, D]; mask [B] is 1 for a real window. A row of zeros has cosine 0 with every other. Raises
    ValueError for another kind.

    >>> a, b = jnp.array([[1.0, 0.0], [9.0, 9.0]]), jnp.array([[0.0, 3.0], [0.0, 0.0]])
    >>> float(distance("cosine", a, b, jnp.array([1.0, 0.0]))), float(distance("mse", a, b, jnp.array([1.0, 0.0])))
    (1.0, 5.0)
    """
    one_of("kind", kind, ("cosine", "mse"))
    if kind == "mse":
        return masked_mean((a - b) ** 2, mask)
    return masked_mean(1 - (losses.unit(a) * losses.unit(b)).sum(-1), mask)


def distillation_share(done: Any, row: Mapping[str, float]) -> dict[str, float]:
    """What share of the loss the distillation is, "<cohort or server>/distillation_share": a watcher of `run.train`.

    row: the metrics of a round, of which those of FedMEKT have "distillation" (with its weight) and "reconstruction".
    The share is that of their absolute values: the correlation of "dcc" makes a loss negative. 0 where both are 0.

    >>> distillation_share(None, {"A/distillation": 1.0, "A/reconstruction": 3.0, "B/loss": 2.0})
    {'A/distillation_share': 0.25}
    """
    shares = {}
    for key in (key for key in row if key.endswith("/distillation")):
        kd, rec = abs(row[key]), abs(row[key.removesuffix("distillation") + "reconstruction"])
        shares[f"{key}_share"] = kd / (kd + rec) if kd else 0.0
    return shares


def combine_knowledge(
    config: FedMEKTConfig, uploads: Mapping[str, Upload], knowledge: Message
) -> tuple[Message, dict[str, jax.Array]]:
    """Step 3: (zbar_m by modality, {m: 1 where a client sent it in this round, else 0}).

    uploads {cohort: {m: Mean or Each of a message}}; knowledge: zbar_m of before, which a modality that nobody sent
    keeps. The mean weighs all owners alike (1.3); with aggregate "last" it is the message of the last one (5.1).

    >>> sent = lambda value, weight: Mean({"z": jnp.full((3, 2), value)}, jnp.float32(weight))
    >>> uploads = {"A": {"a": sent(1.0, 2)}, "AB": {"a": sent(4.0, 1), "b": sent(0.0, 0)}}
    >>> before = {"a": {"z": jnp.zeros((3, 2))}, "b": {"z": jnp.full((3, 2), 7.0)}}
    >>> zbar, heard = combine_knowledge(FedMEKTConfig(), uploads, before)
    >>> {m: (float(zbar[m]["z"][0, 0]), float(heard[m])) for m in zbar}
    {'a': (2.0, 1.0), 'b': (7.0, 0.0)}
    """
    slots = {m: aggregate.collect(uploads, m) for m in knowledge}
    combine = aggregate.average if config.aggregate == "mean" else take_last
    combined = {m: combine(slots[m], knowledge[m]) for m in slots}
    heard = {m: (jnp.sum(slots[m].weight) > 0).astype(jnp.float32) for m in slots}
    return combined, heard


def take_last(slot: Mean | Each, default: PyTree) -> PyTree:
    """The value of the last client that sent one; `default` where nobody did. slot: an Each, leaves [C, ...].

    >>> float(take_last(Each(jnp.array([5.0, 6.0, 0.0]), jnp.array([1.0, 1.0, 0.0])), jnp.float32(9)))
    6.0
    """
    last = jnp.max(jnp.where(slot.weight > 0, jnp.arange(len(slot.weight)), -1))
    return jax.tree.map(lambda x, other: jnp.where(last >= 0, x[last], other), slot.value, default)
