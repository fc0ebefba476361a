"""CreamFL at the server: steps 1, 2, 5 and 6 of a round (see method.py, whose symbols these are)."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from fedjax_mm import aggregate, trees
from fedjax_mm.local import Batch, gradient_step, masked_mean
from fedjax_mm.losses import unit
from fedjax_mm.methods.creamfl import joint_space
from fedjax_mm.methods.creamfl.config import CreamFLConfig
from fedjax_mm.methods.creamfl.joint_space import MODALITIES, OTHER, Shapes, encode, represent_all
from fedjax_mm.methods.creamfl.training import Encoders, optimizer
from fedjax_mm.methods.creamfl.views import views
from fedjax_mm.types import Arrays, Download, Key, Mean, Metrics, PyTree, Upload

WEIGHINGS = {
    "mean": aggregate.mean_weights,
    "size": aggregate.size_weights,
    "variance": aggregate.variance_weights,
    "consensus": aggregate.consensus_weights,
    "entropy": aggregate.entropy_weights,
}


def init_server(config: CreamFLConfig, encoders: Encoders, public: Shapes, key: Key) -> dict[str, PyTree]:
    """The server's first state: `params`, `opt`, `round` [] int, and room for its representations `reps` {m: [P, D]}.
    Where distillation has a state of its own, that is `kd_opt`.

    public: `image` [P, ...] and `text` [P, L], of which the shapes alone count.
    """
    state = joint_space.init_server(config.training, encoders, public, key)
    represent = functools.partial(represent_all, encoders, config.training.block)
    shapes = jax.eval_shape(represent, state["params"], public) if config.represents else {}
    own = {"kd_opt": optax.tree.zeros_like(state["opt"])} if config.kd_state == "own" else {}  # Adam's first state
    return {**state, **own, "reps": optax.tree.zeros_like(shapes)}


def train_server(
    config: CreamFLConfig, encoders: Encoders, state: dict[str, PyTree], public: Arrays | None, key: Key
) -> tuple[dict[str, PyTree], Metrics]:
    """Step 1: (the server's state, metrics) after it has learnt from the public pairs and has represented them.

    public: `image` [P, ...] and `text` [P, L]. The new state's `reps` is G {"image": [P, D], "text": [P, D]}.

    >>> from fedjax_mm.models import Model
    >>> model = Model(lambda key, x: jax.random.normal(key, (x.shape[-1], 4)), lambda params, x: x @ params)
    >>> encoders, public = {"image": model, "text": model}, {"image": jnp.eye(6), "text": jnp.eye(6)}
    >>> state = init_server(CreamFLConfig(), encoders, public, jax.random.key(0))
    >>> state, metrics = train_server(CreamFLConfig(), encoders, state, public, jax.random.key(1))
    >>> bool(jnp.allclose(jnp.linalg.norm(state["reps"]["text"], axis=-1), 1)), sorted(metrics)
    (True, ['loss'])
    """
    training, public, metrics = config.training, public or {}, {}
    if training.server_epochs:
        state, metrics = joint_space.train_on_pairs(training, encoders, state, public, key)
    reps = represent_all(encoders, training.block, state["params"], public) if config.represents else {}
    return {**state, "reps": reps}, metrics


def download(
    config: CreamFLConfig, cohorts: Iterable[str], state: dict[str, PyTree], public: Arrays | None = None
) -> dict[str, Download]:
    """Step 2: each cohort's Download, G {m: [P, D]} where clients contrast. `held` is the round [] int, which every
    client knows without being told.

    >>> state = {"reps": {"image": jnp.ones((6, 4)), "text": jnp.ones((6, 4))}, "round": jnp.int32(3)}
    >>> {m: reps.shape for m, reps in download(CreamFLConfig(), ["A", "B"], state)["A"].sent.items()}
    {'image': (6, 4), 'text': (6, 4)}
    """
    return {name: Download(state["reps"] if config.contrasts else {}, state["round"]) for name in cohorts}


def weigh(
    config: CreamFLConfig,
    reps: jax.Array,
    weight: jax.Array,
    anchors: jax.Array | None = None,
    mesh: Mesh | None = None,
) -> jax.Array:
    """Step 5: the share [C, P] of each client in each public item (sections 2 and 4); shares of an item sum to 1.

    reps [C, P, D]; weight [C], above 0 for those who sent, their numbers of examples; anchors [P, D]: the server's
    representations of the other modality, which "contrastive" and "similarity" need. mesh: spreads the items over its
    devices.

    >>> import numpy as np
    >>> reps = jnp.stack([jnp.eye(3), jnp.roll(jnp.eye(3), 1, axis=0)])  # the second confuses the items
    >>> print(np.asarray(weigh(CreamFLConfig(), reps, jnp.ones(2), jnp.eye(3))).round(2))
    [[0.73 0.73 0.73]
     [0.27 0.27 0.27]]
    >>> print(weigh(CreamFLConfig(weighing="size"), reps, jnp.array([1.0, 3.0])))
    [[0.25 0.25 0.25]
     [0.75 0.75 0.75]]
    """
    if config.weighing in WEIGHINGS:
        return WEIGHINGS[config.weighing](reps, weight)
    if anchors is None:
        raise ValueError(f"{config.weighing} weights need anchors [P, D], the server's representations")
    if config.weighing == "similarity":
        return aggregate.similarity_weights(reps, weight, anchors)
    settings = (config.weighing_temperature, config.exclude_match)
    return aggregate.contrastive_weights(reps, weight, anchors, *settings, mesh=mesh)


def average(
    config: CreamFLConfig,
    anchors: Mapping[str, jax.Array],
    uploads: Mapping[str, Upload],
    mesh: Mesh | None = None,
) -> tuple[dict[str, Mean], Metrics]:
    """Step 5 for all modalities: ({m: the clients' average representations [P, D]}, metrics).

    anchors: the server's representations {m: [P, D]}, or {} where the weights need none; uploads: {cohort: {m: Each of
    [C, P, D]}}. An average has weight 0 where nobody sent the modality, and is not normalised again (section 2).

    >>> from fedjax_mm.types import Each
    >>> reps = jnp.stack([jnp.zeros((3, 4)), jnp.ones((3, 4))])
    >>> uploads = {"A": {"image": Each(reps, jnp.array([1.0, 3.0]))}}
    >>> targets, _ = average(CreamFLConfig(weighing="size"), {}, uploads)
    >>> targets["image"].value.shape, float(targets["image"].value[0, 0]), float(targets["image"].weight)
    ((3, 4), 0.75, 4.0)
    """
    targets, metrics = {}, {}
    for m in (m for m in MODALITIES if any(m in upload for upload in uploads.values())):
        reps, weight = aggregate.collect(uploads, m)
        share = weigh(config, reps, weight, anchors.get(OTHER[m]), mesh)
        targets[m] = Mean(aggregate.combine(share, reps), jnp.sum(weight))
        evenness = joint_space.measure_evenness(share, reps, weight)
        metrics |= {f"{name}_{m}": value for name, value in evenness.items()}
    return targets, metrics


def distillation_loss(
    config: CreamFLConfig, encoders: Encoders, present: Mapping[str, jax.Array], params: PyTree, batch: Batch, key: Key
) -> tuple[jax.Array, Metrics]:
    """(loss [], {"kd_m": []}): how far the server's representations are from the clients' averages (section 2).

    batch: `image` [B, ...], `text` [B, L], `target_m` [B, D] and `mask` [B]; present {m: [] bool}: whether anybody sent
    the modality.
    """
    terms: dict[str, jax.Array] = {}
    seen = views(config.training, batch, MODALITIES, key) if config.public_views else batch
    for m in present:
        z = unit(encode(encoders[m], params[m], seen[m], config.training.at_once))
        apart = jnp.square(z - batch[f"target_{m}"])
        apart = jnp.sqrt(apart.sum(-1) + 1e-12) if config.distance == "l2" else apart.mean(-1)
        terms[f"kd_{m}"] = present[m] * masked_mean(apart, batch["mask"])
    return config.kd_weight * sum(terms.values(), jnp.float32(0)), terms


def distil(
    config: CreamFLConfig,
    encoders: Encoders,
    state: dict[str, PyTree],
    targets: Mapping[str, Mean],
    public: Arrays,
    key: Key,
) -> tuple[dict[str, PyTree], Metrics]:
    """Step 6: (the server's state, metrics) after it has moved its representations towards the clients' averages.

    targets {m: Mean of [P, D]}; public: `image` [P, ...] and `text` [P, L]. An encoder whose target has weight 0 stays.

    >>> from fedjax_mm.models import Model
    >>> model = Model(lambda key, x: jax.random.normal(key, (x.shape[-1], 4)), lambda params, x: x @ params)
    >>> encoders, public = {"image": model, "text": model}, {"image": jnp.eye(6), "text": jnp.eye(6)}
    >>> config = CreamFLConfig()
    >>> state = init_server(config, encoders, public, jax.random.key(0))
    >>> targets = {"image": Mean(jnp.full((6, 4), 0.5), jnp.float32(20))}  # nobody sent texts
    >>> state, before = distil(config, encoders, state, targets, public, jax.random.key(1))
    >>> state, after = distil(config, encoders, state, targets, public, jax.random.key(1))
    >>> sorted(after), bool(after["kd_image"] < before["kd_image"])
    (['kd_image'], True)
    """
    training, present = config.training, {m: target.weight > 0 for m, target in targets.items()}
    examples = {**public, **{f"target_{m}": target.value for m, target in targets.items()}}
    slower = dataclasses.replace(training, server_lr=config.kd_rate * training.server_lr)
    loss = functools.partial(distillation_loss, config, encoders, present)
    step = gradient_step(loss, optimizer(slower, None, state["round"]))
    which = "kd_opt" if config.kd_state == "own" else "opt"
    carry = (state["params"], state[which])
    (params, opt), metrics = joint_space.passes(step, carry, examples, key, training.server_batch, config.kd_epochs)
    distilled = {m: trees.where(present[m], params[m], state["params"][m]) for m in targets}
    metrics = {name: value for name, value in metrics.items() if name != "loss"}
    return {**state, "params": {**state["params"], **distilled}, which: opt}, metrics


def server_update(
    config: CreamFLConfig,
    encoders: Encoders,
    state: dict[str, PyTree],
    uploads: Mapping[str, Upload],
    public: Arrays | None,
    key: Key,
    mesh: Mesh | None = None,
) -> tuple[dict[str, PyTree], Metrics]:
    """Steps 5 and 6: (the server's state, with its round counted, and metrics). Arguments as of `average`, `distil`.

    >>> from fedjax_mm.models import Model
    >>> from fedjax_mm.types import Each
    >>> model = Model(lambda key, x: jax.random.normal(key, (x.shape[-1], 4)), lambda params, x: x @ params)
    >>> encoders, public = {"image": model, "text": model}, {"image": jnp.eye(6), "text": jnp.eye(6)}
    >>> state = init_server(CreamFLConfig(), encoders, public, jax.random.key(0))
    >>> uploads = {"A": {"image": Each(jnp.full((2, 6, 4), 0.5), jnp.array([5.0, 2.0]))}}
    >>> state, metrics = server_update(CreamFLConfig(), encoders, state, uploads, public, jax.random.key(1))
    >>> int(state["round"]), sorted(metrics)
    (1, ['drift_image', 'entropy_image', 'kd_image'])
    """
    metrics = {}
    if config.exchanges:
        targets, metrics = average(config, state["reps"], uploads, mesh)
        state, distances = distil(config, encoders, state, targets, public or {}, key)
        metrics = {**metrics, **distances}
    return {**state, "round": state["round"] + 1}, metrics
