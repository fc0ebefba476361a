"""CreamFL's weighing of representations item by item, and the weights it is compared with.

The functions named `..._weights` give the weight of every client for every public item, [C, P]. Each column sums to 1,
or to 0 where nobody sent. `combine` applies the weights.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from fedjax_mm.aggregate.slots import valid
from fedjax_mm.checks import check_flag, check_scalar, check_traced, check_whole, say


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
    -> [C, P]. `block` rows are scored at a time, in memory for a few block x P numbers; a mesh of one axis (see
    clients.make_mesh) splits the items over its devices, each of which needs all anchors. (Yu 2023, CreamFL,
    global-local contrastive aggregation: the paper excludes the match, the authors' code includes it; the temperature
    is ours, theirs is 1)

    >>> anchors = jnp.eye(2)  # two items, and two clients: the first tells the items apart, the second confuses them
    >>> reps = jnp.stack([4 * anchors, 4 * anchors[::-1]])
    >>> (100 * contrastive_weights(reps, jnp.ones(2), anchors)).round().tolist()  # in percent
    [[98.0, 98.0], [2.0, 2.0]]
    """
    _check_reps(reps, weight, anchors)
    reps, items = jnp.asarray(reps), reps.shape[1]
    check_scalar("temperature", temperature, above=0)
    check_flag("exclude_match", exclude_match)
    block = check_whole("block", block, least=1)
    if exclude_match and items < 2:
        raise ValueError(f"{items} public item leaves nothing to compare with; use 2 or more, or exclude_match=False.")
    scores = functools.partial(_match_scores, exclude_match=exclude_match, block=block)
    fixed = (jnp.asarray(anchors), jnp.asarray(temperature, jnp.promote_types(reps.dtype, jnp.float32)))
    if mesh is None:
        return _softmax(scores(reps, jnp.arange(items), *fixed), weight)
    if not isinstance(mesh, Mesh):
        raise ValueError(f"mesh is {say(mesh)}; give what clients.make_mesh returns, or None")
    if len(mesh.axis_names) != 1:
        raise ValueError(f"the mesh has the axes {mesh.axis_names}; give one with one axis, as clients.make_mesh does.")
    split, whole = PartitionSpec(None, *mesh.axis_names), PartitionSpec()
    specs = (split, PartitionSpec(*mesh.axis_names), whole, whole)
    padding = -items % mesh.size
    padded = jnp.pad(reps, ((0, 0), (0, padding), (0, 0)))
    spread = jax.shard_map(scores, mesh=mesh, in_specs=specs, out_specs=split)
    return _softmax(spread(padded, jnp.arange(items + padding) % items, *fixed)[:, :items], weight)


def _match_scores(
    reps: jax.Array, numbers: jax.Array, anchors: jax.Array, temperature: jax.Array, *, exclude_match: bool, block: int
) -> jax.Array:
    """The log share of each rep's own anchor among all anchors.

    reps [C, p, D] of the items `numbers` [p], anchors [P, D], temperature []; -> [C, p].
    """
    clients, here, width = reps.shape
    rows, wide = reps.reshape(clients * here, width), temperature.dtype

    def score(row):
        item = numbers[row % here]
        logits = anchors.astype(wide) @ rows[row].astype(wide) / temperature  # [P]
        others = jnp.where(jnp.arange(len(anchors)) == item, -jnp.inf, logits) if exclude_match else logits
        return logits[item] - jax.nn.logsumexp(others)

    found = jax.lax.map(score, jnp.arange(clients * here), batch_size=min(block, clients * here))
    return found.reshape(clients, here)


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
    """CreamFL's aggregate: the mean of each public item's reps, weighted with `contrastive_weights`.

    The arguments are those of `contrastive_weights`, and default [P, D] (zeros) for where nobody sent; -> [P, D]. The
    result is not normalised again.
    """
    weights = contrastive_weights(reps, weight, anchors, temperature, exclude_match, block, mesh)
    return combine(weights, reps, default)


def combine(weights: jax.Array, reps: jax.Array, default: jax.Array | None = None) -> jax.Array:
    """sum_c weights[c, k] reps[c, k] of every item k.

    weights [C, P], reps [C, P, D], default [P, D] (zeros) for items without any weight; -> [P, D].

    >>> combine(jnp.array([[0.25], [0.75]]), jnp.array([[[4.0, 0.0]], [[0.0, 4.0]]])).tolist()
    [[1.0, 3.0]]
    """
    check_traced("weights", weights, "[C, P]")
    check_traced("reps", reps, "[C, P, D]")
    if default is not None:
        check_traced("default", default, "[P, D]")
    if weights.shape != reps.shape[:2] or (default is not None and default.shape != reps.shape[1:]):
        given = "" if default is None else f" and default {default.shape}"
        raise ValueError(
            f"weights {weights.shape}, reps {reps.shape}{given} do not fit; they must be [C, P], [C, P, D] and [P, D]"
        )

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
    """The same share for every client that sent. reps [C, P, D], weight [C]; -> [C, P]. (Li 2019, FedMD)

    >>> mean_weights(jnp.ones((3, 1, 4)), jnp.array([20.0, 0.0, 10.0])).tolist()
    [[0.5], [0.0], [0.5]]
    """
    _check_reps(reps, weight)
    return _proportional(jnp.ones(reps.shape[:2]), _sent(weight))


def size_weights(reps: jax.Array, weight: jax.Array) -> jax.Array:
    """Shares in proportion to `weight`, the clients' numbers of examples. reps [C, P, D], weight [C]; -> [C, P].

    (McMahan 2017 on reps: "Avg" in CreamFL's table 1; its "IoT", after Zhao 2022, multiplies the weights of clients
    that hold both modalities by 100)

    >>> size_weights(jnp.ones((3, 1, 4)), jnp.array([30.0, 0.0, 10.0])).tolist()
    [[0.75], [0.0], [0.25]]
    """
    _check_reps(reps, weight)
    return _proportional(jnp.broadcast_to(weight[:, None], reps.shape[:2]), _sent(weight))


def variance_weights(reps: jax.Array, weight: jax.Array) -> jax.Array:
    """Shares in proportion to the variance of a rep over its D numbers: a confident rep is a peaked one.

    reps [C, P, D], weight [C]; -> [C, P]; equal shares where no rep varies. (Cho 2022, FedET, without its second pass)

    >>> reps = jnp.array([[[0.0, 2.0]], [[0.0, 6.0]]])  # of variances 1 and 9
    >>> (100 * variance_weights(reps, jnp.ones(2))).round().tolist()  # in percent
    [[10.0], [90.0]]
    """
    _check_reps(reps, weight)
    return _proportional(jnp.var(reps, axis=-1), _sent(weight))


def consensus_weights(reps: jax.Array, weight: jax.Array) -> jax.Array:
    """The mean of `variance_weights` among all clients and among those that agree with the aggregate of the former.

    A client agrees where its rep is largest in the same of its D numbers as the aggregate. Where nobody agrees, the
    weights are `variance_weights`. reps [C, P, D], weight [C]; -> [C, P]. (Cho 2022, FedET in full, as in CreamFL's
    comparison)

    >>> reps = jnp.array([[[0.0, 2.0]], [[0.0, 2.0]], [[2.0, 0.0]]])  # the third client disagrees
    >>> (100 * consensus_weights(reps, jnp.ones(3))).round().tolist()  # in percent
    [[42.0], [42.0], [17.0]]
    """
    first = variance_weights(reps, weight)
    mean = combine(first, reps)
    agree = _sent(weight) & (jnp.argmax(reps, axis=-1) == jnp.argmax(mean, axis=-1)[None])
    second = _proportional(jnp.var(reps, axis=-1), agree)
    return jnp.where(jnp.any(agree, axis=0)[None], (first + second) / 2, first)


def entropy_weights(reps: jax.Array, weight: jax.Array) -> jax.Array:
    """softmax over clients of 1 / H(softmax of a rep over its D numbers). reps [C, P, D], weight [C]; -> [C, P].

    (Cheng 2021, FedGEMS, as in CreamFL's comparison)

    >>> weights = entropy_weights(jnp.array([[[0.0, 0.0]], [[0.0, 3.0]]]), jnp.ones(2))  # the second is more certain
    >>> bool(weights[1, 0] > weights[0, 0])
    True
    """
    _check_reps(reps, weight)
    log_p = jax.nn.log_softmax(reps, axis=-1)
    entropy = -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)
    return _softmax(1 / jnp.maximum(entropy, 1e-6), weight)


def similarity_weights(reps: jax.Array, weight: jax.Array, anchors: jax.Array) -> jax.Array:
    """softmax over clients of z_k . a_k, without negatives. reps [C, P, D], weight [C], anchors [P, D]; -> [C, P].

    (an ablation of CreamFL's weighing, from its authors' code)

    >>> reps = jnp.array([[[1.0, 0.0]], [[0.0, 1.0]]])
    >>> (100 * similarity_weights(reps, jnp.ones(2), anchors=jnp.array([[2.0, 0.0]]))).round().tolist()  # in percent
    [[88.0], [12.0]]
    """
    _check_reps(reps, weight, anchors)
    return _softmax(jnp.sum(reps * anchors[None], axis=-1), weight)


def _sent(weight: jax.Array) -> jax.Array:
    return (valid(weight) > 0)[:, None]


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


def _check_reps(reps: jax.Array, weight: jax.Array, *anchors: jax.Array) -> None:
    check_traced("reps", reps, "[C, P, D]", (np.floating,))
    check_traced("weight", weight, "[C]")
    for given in anchors:
        check_traced("anchors", given, kinds=(np.floating,))
    if weight.shape != reps.shape[:1] or any(given.shape != reps.shape[1:] for given in anchors):
        others = "".join(f", anchors {given.shape}" for given in anchors)
        raise ValueError(
            f"reps {reps.shape}, weight {weight.shape}{others} do not fit; they must be [C, P, D], [C] and [P, D]."
        )
