"""One client's training: shuffled mini-batches, gathered by row number, for as many steps as the client has data.

A step is a plain function `step(carry, batch, key) -> (carry, metrics)`. `gradient_step` makes the usual one; a
method with two optimisers or two phases writes its own, or runs `local_steps` twice.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_mm import streamed, trees
from fedjax_mm.checks import (
    check_callable,
    check_flag,
    check_key,
    check_leaves,
    check_length,
    check_mapping,
    check_traced,
    check_whole,
    say,
)
from fedjax_mm.split_rows import in_step, is_split, read_rows
from fedjax_mm.streamed import is_streamed
from fedjax_mm.types import Arrays, ClientData, Key, Metrics, PyTree

Batch = Mapping[str, jax.Array]  # leaves [B, ...], and "mask" [B] float32: 0 where a row is padding
Loss = Callable[[PyTree, Batch, Key], tuple[jax.Array, Metrics]]
Step = Callable[[Any, Batch, Key], tuple[Any, Metrics]]

LARGE, FLAT = 200_000, 50_000  # values of a row, and of one with a single axis: beyond it a TPU copies all for a gather
STEP_NAME = "client_step"  # of the jitted step that `local_steps` runs: by it `costs.of` finds the step, and counts it


def gradient_step(loss: Loss, tx: optax.GradientTransformation) -> Step:
    """A step over the carry (params, optimiser state) for `loss(params, batch, key) -> (value [], metrics)`.

    What gets no gradient (a frozen half, a global model) is not in `params`: the loss closes over it.

    >>> def loss(w, batch, key):
    ...     return masked_mean((batch["x"] - w) ** 2, batch["mask"]), {}
    >>> tx = optax.sgd(0.25)
    >>> batch = {"x": jnp.array([1.0, 3.0]), "mask": jnp.ones(2)}
    >>> (w, _), metrics = gradient_step(loss, tx)((jnp.float32(0), tx.init(0.0)), batch, jax.random.key(0))
    >>> float(w), float(metrics["loss"])  # the gradient is -4, the loss (1 + 9) / 2
    (1.0, 5.0)
    """

    def step(carry, batch, key):
        params, opt_state = carry
        (value, metrics), grads = jax.value_and_grad(loss, has_aux=True)(params, batch, key)
        updates, opt_state = tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), {"loss": value, **metrics}

    return step


def masked_mean(values: jax.Array, mask: jax.Array) -> jax.Array:
    """The mean of `values` [B, ...] over the real rows of a batch; 0 where there are none.

    mask [B] is 0 where a row is padding.

    >>> float(masked_mean(jnp.array([1.0, 3.0, 100.0]), jnp.array([1.0, 1.0, 0.0])))
    2.0
    """
    check_traced("values", values)
    check_traced("mask", mask, "[B]")
    if np.shape(values)[:1] != np.shape(mask):
        raise ValueError(f"values {values.shape} and mask {mask.shape} do not fit; they must be [B, ...] and [B]")
    mask = mask.reshape(mask.shape + (1,) * (values.ndim - 1))
    return (values * mask).sum() / jnp.maximum(jnp.broadcast_to(mask, values.shape).sum(), 1.0)


def in_blocks(function: Callable[..., jax.Array], at_once: int | None, *arrays: jax.Array) -> jax.Array:
    """function(*arrays) of arrays [B, ...], `at_once` rows at a time; None or at least B: all rows at once.

    function: treats each row by itself, and gives [B, ...]. What it computes on the way is in memory for so many rows.
    Raises ValueError where `at_once` is no whole number of at least 1.

    >>> in_blocks(lambda x, y: x * y, 2, jnp.arange(5), jnp.arange(5)).tolist()
    [0, 1, 4, 9, 16]
    """
    total = len(arrays[0])
    if at_once is None or check_whole("at_once", at_once, 1) >= total:
        return function(*arrays)
    full = lambda x: jnp.pad(x, [(0, -total % at_once)] + [(0, 0)] * (x.ndim - 1), mode="edge")
    some = tuple(full(x).reshape(-1, at_once, *x.shape[1:]) for x in arrays)
    blocks = jax.lax.map(lambda block: function(*block), some)
    return blocks.reshape(-1, *blocks.shape[2:])[:total]


def whole(arrays: Arrays) -> ClientData:
    """All rows of arrays with leaves [M, ...] as the examples of one client: what a server trains on.

    >>> whole({"x": jnp.zeros((3, 2))}).rows.tolist()
    [0, 1, 2]
    """
    total = _count(arrays)
    rows = jnp.arange(total, dtype=jnp.int32)
    return ClientData(arrays, rows, jnp.int32(total), jnp.float32(1), public=None, uniform=True)


def take(arrays: Arrays, rows: jax.Array, coming: jax.Array | None = None) -> Arrays:
    """Rows of every array: leaves [E, ...], [B] -> leaves [B, ...]. An array may be a SplitRows or a Streamed.

    coming: [n B] int, the rows of the next n batches, -1 for none, which a Streamed is to have ready.

    >>> take({"x": jnp.array([10, 20, 30])}, jnp.array([2, 0]))["x"].tolist()
    [30, 10]
    """
    if arrays:
        _count(arrays)
    check_traced("rows", rows)

    def taken(x):
        if is_streamed(x):
            return x.rows(rows, coming)
        return read_rows(x, rows, _rows) if is_split(x) else _rows(x, rows)

    return jax.tree.map(taken, arrays, is_leaf=_is_array)


def _take_batch(arrays: Arrays, rows: jax.Array, start: jax.Array, size: int) -> Arrays:
    here = jax.lax.dynamic_slice(rows, (start,), (size,))
    return take(arrays, here, streamed.coming(arrays, rows, start, size))


def _is_array(x: Any) -> bool:
    return is_split(x) or is_streamed(x)


def _rows(x: jax.Array, rows: jax.Array) -> jax.Array:
    gather = functools.partial(jnp.take, axis=0, mode="clip")
    if rows.ndim != 1 or math.prod(x.shape[1:]) <= (FLAT if x.ndim == 2 else LARGE):
        return gather(x, rows)
    one = lambda x, row: jax.lax.dynamic_index_in_dim(x, jnp.maximum(row, 0), keepdims=False)
    slices = lambda x, rows: jax.lax.map(functools.partial(one, x), rows)
    return jax.lax.platform_dependent(x, rows, tpu=slices, default=gather)


def local_steps(
    step: Step,
    carry: Any,
    data: ClientData,
    key: Key,
    *,
    batch_size: int,
    epochs: int = 1,
    drop_last: bool = False,
    shuffle: bool = True,
) -> tuple[Any, Metrics]:
    """The carry after `epochs` passes over one client's examples, and each metric's mean over the steps.

    The number of steps and the order of the examples are the client's own, whoever else takes part: under `vmap` a
    chunk of clients stops at its longest. Where the last batch is not full, `batch["mask"]` is 0 on its padding rows;
    `drop_last` leaves it out. A client without examples takes no step; `data.work` cuts the last ones, but for one.

    >>> def step(total, batch, key):
    ...     return total + (batch["x"] * batch["mask"]).sum(), {"rows": batch["mask"].sum()}
    >>> data = whole({"x": jnp.arange(5.0)})
    >>> total, metrics = local_steps(step, jnp.float32(0), data, jax.random.key(0), batch_size=2, epochs=3)
    >>> float(total), round(float(metrics["rows"]), 3)  # batches of 2, 2 and 1 examples, three times
    (30.0, 1.667)
    """
    _check_client(step, carry, data, key)
    batch_size, epochs = _check_steps(batch_size, epochs)
    drop_last, shuffle = check_flag("drop_last", drop_last), check_flag("shuffle", shuffle)
    most = data.rows.shape[0]
    count = most if data.uniform else data.count
    steps = count // batch_size if drop_last else -(-count // batch_size)
    taken = epochs * steps if data.work is None else jnp.ceil(data.work * (epochs * steps) - 1e-3).astype(jnp.int32)
    full = drop_last or (data.uniform and most % batch_size == 0)
    padding = -most % batch_size  # so that no slice of the last batch is clamped
    client_step = _named(step)
    padded = lambda rows: streamed.lengthened(data.arrays, jnp.pad(rows, (0, padding)), batch_size)

    def batch_at(rows, i):
        start = i * batch_size
        mask = jnp.ones(batch_size) if full else (start + jnp.arange(batch_size) < count).astype(jnp.float32)
        return {**_take_batch(data.arrays, rows, start, batch_size), "mask": mask}

    def one(rows, epoch_key, here, i, before):
        carry, metrics = client_step(before[0], batch_at(rows, i), jax.random.fold_in(epoch_key, 1 + i))
        after = carry, jax.tree.map(jnp.add, before[1], metrics)
        return after if here is None else trees.where(i < here, after, before)

    def epoch(e, carry_and_total):
        epoch_key, rows = jax.random.fold_in(key, e), data.rows
        if shuffle:  # a random key per own row, the padding rows last
            draw = jax.random.uniform(jax.random.fold_in(epoch_key, 0), (most,))
            rows = rows[jnp.argsort(jnp.where(jnp.arange(most) < count, draw, 2.0))]
        here = steps if data.work is None else jnp.clip(taken - e * steps, 0, steps)
        trips = in_step(here, (data.arrays, data.public))
        body = functools.partial(one, padded(rows), epoch_key, None if trips is here else here)
        return jax.lax.fori_loop(0, trips, body, carry_and_total)

    shapes = jax.eval_shape(client_step, carry, batch_at(padded(data.rows), 0), key)[1]
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    carry, total = jax.lax.fori_loop(0, epochs, epoch, (carry, zeros))
    return carry, jax.tree.map(lambda x: x / jnp.maximum(taken, 1), total)


def _check_client(step: Step, carry: Any, data: ClientData, key: Key) -> None:
    check_callable("step", step, "(carry, batch, key) -> (carry, metrics)")
    if not isinstance(data, ClientData):
        raise ValueError(f"data is {say(data)}; give a ClientData, as FederatedData.client and whole make it")
    check_key("key", key)
    check_leaves("carry", carry)


def _check_steps(batch_size: Any, epochs: Any) -> tuple[int, int]:
    batch_size, epochs = check_whole("batch_size", batch_size, least=None), check_whole("epochs", epochs, least=None)
    if batch_size < 1 or epochs < 0:
        raise ValueError(f"batch_size must be at least 1 and epochs at least 0, got {batch_size} and {epochs}")
    return batch_size, epochs


def _count(arrays: Arrays) -> int:
    return check_length(
        "arrays", jax.tree.leaves(check_mapping("arrays", arrays, "name to array"), is_leaf=_is_array), "[M, ...]"
    )


def _named(step: Step) -> Step:
    """The step, jitted under STEP_NAME: `costs.of` counts it as it is compiled, wherever its loop stands."""

    def client_step(carry, batch, key):
        return step(carry, batch, key)

    client_step.__name__ = STEP_NAME
    return jax.jit(client_step)
