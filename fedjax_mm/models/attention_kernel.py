"""Softmax attention, and its gradient, each as one kernel of a TPU.

XLA's own attention writes the weights [B, heads, T, S] to the large memory, and copies queries, keys and values into
layouts of its own. Here one example at a time is read into the vector memory, and results alone leave it. Logits are
laid out [S, T], keys before queries: then the softmax adds up rows and not lanes, and of the gradient's five products
one alone has to be transposed. Heads of 64 features share the 128 lanes of a register in pairs: a product takes the
other head's lanes as zeros, which 64 lanes would be padded with all the same.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

LANES = 128
MEMORY = 16e6  # bytes of vector memory that a v4 has; others have more
UNROLLED, MOST = 12, 48  # logits [S, block of queries] of one step; with more than that, compiling takes minutes
_KEYS_QUERIES = (((1,), (1,)), ((), ()))  # [S, d] [T, d] -> [S, T]
_SUM_KEYS = (((0,), (0,)), ((), ()))  # [S, T] [S, d] -> [T, d]
_SUM_QUERIES = (((1,), (0,)), ((), ()))  # [S, T] [T, d] -> [S, d]
_dot = functools.partial(jax.lax.dot_general, preferred_element_type=jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array | None,
    keep: jax.Array | None,
    rate: float = 0.0,
    interpret: bool = False,
) -> jax.Array:
    """`attention` in bfloat16: query, key and value [B, T, heads, d], mask [B, T] or None -> [B, T, heads, d].

    The sizes are those that `blocking` takes. keep [B, heads, T, T] or None: the weights that dropout at `rate` leaves.
    interpret: the kernel's steps are run by XLA, on any platform.
    """
    return _call(_forward, 1, (query, key, value), mask, keep, rate, interpret)[0]


def _attend_forward(query, key, value, mask, keep, rate, interpret):
    return attend(query, key, value, mask, keep, rate, interpret), (query, key, value, mask, keep)


def _attend_backward(rate, interpret, kept, dy):
    *arrays, mask, keep = kept
    return (*_call(_backward, 3, (*arrays, dy), mask, keep, rate, interpret), None, None)


attend.defvjp(_attend_forward, _attend_backward)


@functools.partial(jax.jit, static_argnums=(0, 1, 5, 6), inline=True)  # traced once for all layers
def _call(
    kernel: Callable,
    outputs: int,
    arrays: tuple[jax.Array, ...],
    mask: jax.Array | None,
    keep: jax.Array | None,
    rate: float,
    interpret: bool,
) -> list[jax.Array]:
    """The kernel's results for arrays [B, T, heads, d], of the same shape."""
    shape = arrays[0].shape
    rows, tokens, heads, features = shape
    sizes = blocking(tokens, heads, features, keep is not None)
    assert sizes is not None, "whoever calls has asked `blocking`"
    lanes, queries = sizes
    block = pl.BlockSpec((None, tokens, lanes), lambda row, part: (row, 0, part))
    given = [x.reshape(rows, tokens, heads * features) for x in arrays]
    out, blocks = jax.ShapeDtypeStruct(given[0].shape, given[0].dtype), [block] * len(given)
    if mask is not None:
        given.append(mask[..., None].astype(jnp.float32))
        blocks.append(pl.BlockSpec((None, tokens, 1), lambda row, part: (row, 0, 0)))
    if keep is not None:
        given.append(keep.swapaxes(2, 3).astype(jnp.bfloat16))  # keys before queries, as the logits are
        blocks.append(pl.BlockSpec((None, lanes // features, tokens, tokens), lambda row, part: (row, part, 0, 0)))
    call = pl.pallas_call(
        functools.partial(kernel, features, queries, mask is not None, rate if keep is not None else None),
        grid=(rows, heads * features // lanes),
        in_specs=blocks,
        out_specs=[block] * outputs,
        out_shape=[out] * outputs,
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel")),
        name=f"attention{kernel.__name__}_{features}"
        + "_masked" * (mask is not None)
        + "_dropped" * (keep is not None),
        interpret=interpret,
    )
    return [x.reshape(shape) for x in call(*given)]


def _forward(
    features: int, queries: int, masked: bool, rate: float | None, query: Any, key: Any, value: Any, *rest: Any
):
    counts, drop, (out,) = _told(masked, rate, rest)
    for lanes in _slices(query.shape[1], max(LANES, features)):
        k, v = key[:, lanes], value[:, lanes]
        for block in _slices(query.shape[0], queries, least=8):
            q = query[block, lanes]
            y = jnp.zeros(q.shape, jnp.float32)
            for head, mine in _heads(q, features, lanes):
                weights = drop(head, block, _weights(_only(mine, q), k, counts, features))
                y = jnp.where(mine, _dot(weights.astype(q.dtype), v, _SUM_KEYS), y)
            out[block, lanes] = y.astype(out.dtype)


def _backward(
    features: int, queries: int, masked: bool, rate: float | None, query: Any, key: Any, value: Any, dy: Any, *rest: Any
):
    counts, drop, (dquery, dkey, dvalue) = _told(masked, rate, rest)
    scale = features**-0.5
    for lanes in _slices(query.shape[1], max(LANES, features)):
        k, v = key[:, lanes], value[:, lanes]
        dk = dv = jnp.zeros(k.shape, jnp.float32)
        for block in _slices(query.shape[0], queries, least=8):
            q, g = query[block, lanes], dy[block, lanes]
            dq = jnp.zeros(q.shape, jnp.float32)
            for head, mine in _heads(q, features, lanes):
                own_q, own_g = _only(mine, q), _only(mine, g)
                weights = _weights(own_q, k, counts, features)
                dweights = drop(head, block, _dot(v, own_g, _KEYS_QUERIES))
                dlogits = weights * (dweights - (weights * dweights).sum(0, keepdims=True))
                if counts is not None:  # where no key counts, all weights are alike whatever the logits
                    dlogits = jnp.where(counts, dlogits, 0)
                dlogits = dlogits.astype(q.dtype)
                dv += _dot(drop(head, block, weights).astype(q.dtype), own_g, _SUM_QUERIES)
                dk += _dot(dlogits, own_q, _SUM_QUERIES)
                dq = jnp.where(mine, _dot(dlogits, k, _SUM_KEYS), dq)
            dquery[block, lanes] = (dq * scale).astype(dquery.dtype)
        dkey[:, lanes], dvalue[:, lanes] = (dk * scale).astype(dkey.dtype), dv.astype(dvalue.dtype)


def blocking(tokens: int, heads: int, features: int, dropped: bool = False) -> tuple[int, int] | None:
    """(lanes, queries) of which one step works on the logits; None for sizes that the kernels do not take.

    A step takes as many heads as are quick to compile in one go, since the compiler overlaps them.

    >>> blocking(185, 12, 64), blocking(577, 12, 64), blocking(9, 5, 48), blocking(1000, 16, 8)
    ((768, 185), (256, 256), None, None)
    """
    if tokens < 8 or LANES % features and features % LANES:
        return None
    padded = lambda length: -(-length // LANES) * LANES
    width, together = heads * features, max(LANES, features)
    for queries in (min(tokens, 2 * LANES), LANES):
        lanes = width
        if not width % together:
            logits, groups = -(-tokens // queries) * (together // features), width // together
            fitting = [n for n in range(1, groups + 1) if not groups % n and n * logits <= UNROLLED]
            lanes = together * max(fitting, default=1)
        arrays, mask = 14 * 2 * padded(lanes), 2 * 4 * LANES  # bytes of a token, held twice
        keep = 2 * 2 * (lanes // features) * padded(tokens) if dropped else 0
        fits = tokens * (arrays + mask + keep + 8 * 4 * queries) <= MEMORY  # and what is spilled of logits
        if fits and -(-tokens // queries) * (lanes // features) <= MOST:
            return lanes, queries
    return None


def _told(masked: bool, rate: float | None, rest: tuple) -> tuple[jax.Array | None, Callable, tuple]:
    """(which keys count [S, 1], dropout of a head's weights in a block of queries, the results)."""
    counts = rest[0][...] > 0 if masked else None
    if rate is None:
        return counts, lambda head, block, weights: weights, rest[masked:]
    keep, *results = rest[masked:]
    scaled = lambda head, block: keep[head, :, block].astype(jnp.float32) / (1 - rate)
    return counts, lambda head, block, weights: weights * scaled(head, block), tuple(results)


def _slices(length: int, at_once: int, least: int = 1) -> Iterator[slice]:
    """Parts of a length; a last one below `least`, which the compiler may refuse, goes with the one before."""
    firsts = range(0, max(1, length - least + 1), at_once)
    return (slice(first, length if first == firsts[-1] else first + at_once) for first in firsts)


def _heads(x: jax.Array, features: int, lanes: slice) -> Iterator[tuple[int, jax.Array]]:
    """The heads whose features are among x [T, lanes]: (number, which lanes are its own)."""
    lane = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
    for first in range(0, x.shape[1], features):
        yield (lanes.start + first) // features, (lane >= first) & (lane < first + features)


def _only(mine: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.where(mine, x, jnp.zeros_like(x))


def _weights(query: jax.Array, key: jax.Array, counts: jax.Array | None, features: int) -> jax.Array:
    """The softmax over keys, float32 [S, T]."""
    logits = _dot(key, query, _KEYS_QUERIES) * features**-0.5
    if counts is not None:
        logits = jnp.where(counts, logits, 0.7 * jnp.finfo(jnp.float32).min)
    weights = jnp.exp(logits - logits.max(0, keepdims=True))
    return weights * (1 / weights.sum(0, keepdims=True))
