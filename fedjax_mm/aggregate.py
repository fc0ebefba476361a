"""From what many clients sent to one tree: means, and CreamFL's weighing of representations item by item.

A weight above 0 marks a client that sent something. One with weight 0 counts for nothing, whatever its values are
(NaN too), and where nobody sent anything the result is a default, never NaN.

The functions named `..._weights` give the weight of every client for every public item, [C, P], each column summing
to 1 (0 where nobody sent); `combine` applies them.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from fedjax_mm.types import Each, Mean, PyTree, Upload


def collect(uploads: Mapping[str, Upload], slot: str) -> Mean | Each:
    """One slot, gathered from every cohort that sent it.

    uploads {cohort: {slot: Mean | Each}}. Each: leaves [sum of C, ...] and weight [sum of C], cohorts in order of
    `uploads`. Mean: the weighted mean of the cohorts' means and their total weight; value 0 where that is 0. KeyError
    where no cohort has the slot; ValueError where cohorts disagree about its kind, tree or shapes.
    """
    sent = {cohort: upload[slot] for cohort, upload in uploads.items() if slot in upload}
    if not sent:
        known = sorted({name for upload in uploads.values() for name in upload})
        raise KeyError(f"no cohort sent a slot '{slot}'; the slots sent are {known}.")
    kinds = {cohort: type(found) for cohort, found in sent.items()}
    if len(set(kinds.values())) != 1:
        found = ", ".join(f"{kind.__name__} from '{cohort}'" for cohort, kind in kinds.items())
        raise ValueError(f"slot '{slot}' is {found}; every cohort must send it as the same kind.")
    each = Each in kinds.values()
    shapes = {cohort: _shapes(found.value, skip=1 if each else 0) for cohort, found in sent.items()}
    if any(shape != shapes[next(iter(shapes))] for shape in shapes.values()):
        raise ValueError(
            f"slot '{slot}' has different trees or shapes: {shapes}; cohorts must agree, or rename the slot."
        )
    join = jnp.concatenate if each else jnp.stack
    value = jax.tree.map(lambda *leaves: join(leaves), *(found.value for found in sent.values()))
    weight = join([found.weight for found in sent.values()])
    if each:
        return Each(value, weight)
    zero = jax.tree.map(lambda leaf: jnp.zeros_like(leaf[0]), value)
    return Mean(weighted_mean(value, weight, zero), jnp.sum(weight))


def average(slot: Mean | Each, default: PyTree) -> PyTree:
    """The weighted mean of a collected slot of either kind; `default`, the same tree, where its weights sum to 0."""
    if isinstance(slot, Each):
        return weighted_mean(slot.value, slot.weight, default)
    return jax.tree.map(lambda leaf, other: jnp.where(slot.weight > 0, leaf, other), slot.value, default)


def weighted_mean(stack: PyTree, weight: jax.Array, default: PyTree) -> PyTree:
    """Mean over clients, weighted; `default` where the weights sum to 0. (McMahan 2017, FedAvg)

    stack leaves [C, ...], weight [C] >= 0, default leaves [...]; -> leaves [...] in the stack's dtypes.
    """
    total = jnp.sum(weight)
    share = weight / jnp.where(total > 0, total, 1)

    def mean(leaf, other):
        # A matmul, because XLA's sum over a leading axis is 30 times slower on CPU (measured); at the highest
        # precision, because accelerators otherwise round its inputs.
        sent = jnp.where((weight > 0).reshape(-1, *[1] * (leaf.ndim - 1)), leaf, 0)
        summed = jnp.tensordot(share, sent.astype(jnp.promote_types(leaf.dtype, share.dtype)), 1, precision="highest")
        return jnp.where(total > 0, summed, other).astype(leaf.dtype)

    return jax.tree.map(mean, stack, default)


def contrastive_weights(
    reps: jax.Array,
    weight: jax.Array,
    anchors: jax.Array,
    temperature: jax.Array | float = 1.0,
    exclude_match: bool = False,
    block: int = 256,
    mesh: Mesh | None = None,
) -> jax.Array:
    """The share of each client in each public item, by how well its rep tells the item's anchor from all others.

    softmax over clients of log(exp(z_k . a_k / t) / sum_j exp(z_k . a_j / t)); `exclude_match` leaves j = k out of
    the sum. reps [C, P, D], weight [C] (> 0 marks who sent), anchors [P, D] the server's reps of the other modality;
    -> [C, P]. Rows are scored `block` at a time, in memory for a few block x P numbers; a mesh of one axis (see
    clients.make_mesh) splits the items over its devices, each of which needs all anchors. (Yu 2023, CreamFL,
    global-local contrastive aggregation: the paper excludes the match, the authors' code includes it; the temperature
    is ours, 1 is theirs)
    """
    _check_reps(reps, weight, anchors)
    clients, items, width = reps.shape
    if isinstance(temperature, int | float) and not temperature > 0:
        raise ValueError(f"temperature is {temperature}; it must be above 0.")
    if exclude_match and items < 2:
        raise ValueError(f"{items} public item leaves nothing to compare with; use 2 or more, or exclude_match=False.")
    wide = jnp.promote_types(reps.dtype, jnp.float32)

    def scores(reps, items_here, anchors, temperature):  # [C, p, D], [p], [P, D], [] -> [C, p]
        here = len(items_here)
        rows = reps.reshape(clients * here, width)

        def score(row):
            item = items_here[row % here]
            logits = anchors.astype(wide) @ rows[row].astype(wide) / temperature  # [P]
            others = jnp.where(jnp.arange(items) == item, -jnp.inf, logits) if exclude_match else logits
            return logits[item] - jax.nn.logsumexp(others)

        found = jax.lax.map(score, jnp.arange(clients * here), batch_size=min(block, clients * here))
        return found.reshape(clients, here)

    fixed = (jnp.asarray(anchors), jnp.asarray(temperature, wide))
    if mesh is None:
        return _softmax(scores(jnp.asarray(reps), jnp.arange(items), *fixed), weight)
    if len(mesh.axis_names) != 1:
        raise ValueError(f"the mesh has the axes {mesh.axis_names}; give one with one axis, as clients.make_mesh does.")
    split, whole = PartitionSpec(None, *mesh.axis_names), PartitionSpec()
    specs = (split, PartitionSpec(*mesh.axis_names), whole, whole)
    padding = -items % mesh.size
    padded = jnp.pad(reps, ((0, 0), (0, padding), (0, 0)))
    spread = jax.shard_map(scores, mesh=mesh, in_specs=specs, out_specs=split)
    return _softmax(spread(padded, jnp.arange(items + padding) % items, *fixed)[:, :items], weight)


def contrastive_mean(
    reps: jax.Array,
    weight: jax.Array,
    anchors: jax.Array,
    temperature: jax.Array | float = 1.0,
    exclude_match: bool = False,
    block: int = 256,
    default: jax.Array | None = None,
    mesh: Mesh | None = None,
) -> jax.Array:
    """CreamFL's aggregate: each public item's reps averaged with `contrastive_weights`; not normalised again.

    Arguments as there, default [P, D] (zeros) for where nobody sent; -> [P, D].
    """
    weights = contrastive_weights(reps, weight, anchors, temperature, exclude_match, block, mesh)
    return combine(weights, reps, default)


def combine(weights: jax.Array, reps: jax.Array, default: jax.Array | None = None) -> jax.Array:
    """sum_c weights[c, k] reps[c, k]. weights [C, P], reps [C, P, D], default [P, D] (zeros) for items with no weight
    at all; -> [P, D].
    """

    def add(total, client):
        share, rep = client
        return total + jnp.where(share[:, None] > 0, share[:, None] * rep, 0), None

    # A scan, because a sum over clients is compiled on CPU with a second copy of all reps.
    start = jnp.zeros(reps.shape[1:], jnp.result_type(weights, reps))
    summed, _ = jax.lax.scan(add, start, (weights, reps))
    if default is None:
        return summed
    return jnp.where(jnp.any(weights > 0, axis=0)[:, None], summed, default)


def mean_weights(reps: jax.Array, weight: jax.Array) -> jax.Array:
    """The same share for every client that sent. reps [C, P, D], weight [C]; -> [C, P]. (Li 2019, FedMD)"""
    return _proportional(jnp.ones(reps.shape[:2]), _sent(weight))


def size_weights(reps: jax.Array, weight: jax.Array) -> jax.Array:
    """Shares in proportion to `weight`, the clients' numbers of examples. reps [C, P, D], weight [C]; -> [C, P].

    (McMahan 2017 on reps: "Avg" in CreamFL's table 1; its "IoT", after Zhao 2022, is this with the weights of clients
    that hold both modalities times 100)
    """
    return _proportional(jnp.broadcast_to(weight[:, None], reps.shape[:2]), _sent(weight))


def variance_weights(reps: jax.Array, weight: jax.Array) -> jax.Array:
    """Shares in proportion to the variance of a rep over its D numbers: a confident rep is a peaked one.

    reps [C, P, D], weight [C]; -> [C, P]; equal shares where no rep varies. (Cho 2022, FedET, without its second pass)
    """
    return _proportional(jnp.var(reps, axis=-1), _sent(weight))


def consensus_weights(reps: jax.Array, weight: jax.Array) -> jax.Array:
    """Half `variance_weights`, half the same among the clients that agree with the aggregate which these give: whose
    rep is largest in the same of its D numbers. Where nobody agrees, `variance_weights`.

    reps [C, P, D], weight [C]; -> [C, P]. (Cho 2022, FedET in full, as in CreamFL's comparison)
    """
    first = variance_weights(reps, weight)
    mean = combine(first, reps)
    agree = _sent(weight) & (jnp.argmax(reps, axis=-1) == jnp.argmax(mean, axis=-1)[None])
    second = _proportional(jnp.var(reps, axis=-1), agree)
    return jnp.where(jnp.any(agree, axis=0)[None], (first + second) / 2, first)


def entropy_weights(reps: jax.Array, weight: jax.Array) -> jax.Array:
    """softmax over clients of 1 / H(softmax of a rep over its D numbers). reps [C, P, D], weight [C]; -> [C, P].

    (Cheng 2021, FedGEMS, as in CreamFL's comparison)
    """
    log_p = jax.nn.log_softmax(reps, axis=-1)
    entropy = -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)
    return _softmax(1 / jnp.maximum(entropy, 1e-6), weight)


def similarity_weights(reps: jax.Array, weight: jax.Array, anchors: jax.Array) -> jax.Array:
    """softmax over clients of z_k . a_k, no negatives. reps [C, P, D], weight [C], anchors [P, D]; -> [C, P].

    (an ablation of CreamFL's weighing, from its authors' code)
    """
    _check_reps(reps, weight, anchors)
    return _softmax(jnp.sum(reps * anchors[None], axis=-1), weight)


def _sent(weight: jax.Array) -> jax.Array:
    return (weight > 0)[:, None]


def _softmax(score: jax.Array, weight: jax.Array) -> jax.Array:
    sent = _sent(weight)
    # Equal finite scores, not -inf, so that a column nobody sent is not 0 / 0.
    share = jax.nn.softmax(jnp.where(sent, score, jnp.finfo(score.dtype).min), axis=0)
    return jnp.where(sent, share, 0)


def _proportional(score: jax.Array, counts: jax.Array) -> jax.Array:
    """Shares of the clients that count, [C, P] or [C, 1]; equal where their scores [C, P] are all 0."""
    counts = jnp.broadcast_to(counts, score.shape)
    score = jnp.where(counts, score, 0)
    score = jnp.where(jnp.sum(score, axis=0, keepdims=True) > 0, score, counts)
    total = jnp.sum(score, axis=0, keepdims=True)
    return score / jnp.where(total > 0, total, 1)


def _shapes(tree: PyTree, skip: int) -> PyTree:
    return jax.tree.map(lambda leaf: f"{leaf.dtype}{list(leaf.shape[skip:])}", tree)


def _check_reps(reps: jax.Array, weight: jax.Array, anchors: jax.Array) -> None:
    if reps.ndim != 3 or weight.shape != reps.shape[:1] or anchors.shape != reps.shape[1:]:
        raise ValueError(
            f"reps {reps.shape}, weight {weight.shape}, anchors {anchors.shape} do not fit; "
            "they must be [C, P, D], [C] and [P, D]."
        )
