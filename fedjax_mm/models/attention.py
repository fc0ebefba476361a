"""Softmax attention with a mask and dropout: one kernel where a TPU's or cuDNN's is the faster, XLA's elsewhere."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import AxisType

from fedjax_mm.types import Key


def dropout(x: jax.Array, rate: float, key: Key | None) -> jax.Array:
    """`x` with a share `rate` of its values at 0 and the others scaled to keep the mean. Without a key it is `x`.

    >>> dropout(jnp.ones(3), 0.5, None).tolist()
    [1.0, 1.0, 1.0]
    """
    if key is None or rate == 0.0:
        return x
    return _kept(x, jax.random.bernoulli(key, 1.0 - rate, x.shape), rate)


def _kept(x: jax.Array, keep: jax.Array, rate: float) -> jax.Array:
    return jnp.where(keep, x / (1.0 - rate), 0)


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array | None,
    rate: float,
    dropout_key: Key | None,
    causal: bool = False,
) -> jax.Array:
    """Softmax attention: query [B, T, heads, D/heads], key and value [B, S, heads, D/heads] -> query's shape.

    mask [B, S] is True where a key takes part. A row without any such key attends to all keys alike, so that nothing
    becomes NaN. causal: a query attends to no key behind its own place. With `dropout_key`, a share `rate` of the
    weights is dropped. The softmax is in float32.

    >>> x = jnp.ones((1, 2, 1, 3))
    >>> attention(x, x, x, None, 0.0, None).shape
    (1, 2, 1, 3)
    """
    rows, tokens, heads, _ = query.shape
    keep = None
    if dropout_key is not None and rate:
        keep = jax.random.bernoulli(dropout_key, 1.0 - rate, (rows, heads, tokens, key.shape[1]))
    plain = functools.partial(_attend, rate=rate, causal=causal)
    kernels = {} if causal or query.shape != key.shape else _kernels(query, key, value, mask, keep, rate)
    if not kernels:
        return plain(query, key, value, mask, keep)
    return jax.lax.platform_dependent(query, key, value, mask, keep, **kernels, default=plain)


def _attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array | None,
    keep: jax.Array | None = None,
    rate: float = 0.0,
    causal: bool = False,
) -> jax.Array:
    """`attention` as XLA has it. keep [B, heads, T, S]: the weights that dropout leaves; None: all."""
    if mask is not None:
        mask = mask[:, None, None, :]
    if keep is None:
        return jax.nn.dot_product_attention(query, key, value, mask=mask, is_causal=causal)
    logits = jnp.einsum("bthd,bshd->bhts", query, key, preferred_element_type=jnp.float32) * query.shape[-1] ** -0.5
    if causal:
        before = jnp.tri(query.shape[1], key.shape[1], dtype=bool)[None, None]
        mask = before if mask is None else mask & before
    if mask is not None:
        logits = jnp.where(mask, logits, 0.7 * jnp.finfo(logits.dtype).min)
    weights = _kept(jax.nn.softmax(logits), keep, rate).astype(value.dtype)
    return jnp.einsum("bhts,bshd->bthd", weights, value)


def _kernels(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None, keep: jax.Array | None, rate: float
) -> dict[str, Callable[..., jax.Array]]:
    """What attends to these in one kernel on this machine, and is the faster there, by platform."""
    kernel = _kernel(query.shape, keep is not None, rate)
    if kernel is None or {x.dtype for x in (query, key, value)} != {jnp.dtype(jnp.bfloat16)}:
        return {}
    gradient = jax.grad(lambda *arrays: kernel(*arrays, mask, keep).sum().astype(jnp.float32), (0, 1, 2))
    try:
        jax.eval_shape(gradient, query, key, value)
    except (RuntimeError, ValueError):  # no cuDNN, an older card, or a shard_map that checks what varies over devices
        return {}
    return {"cuda" if kernel is _fused else "tpu": kernel}


def _kernel(shape: tuple[int, ...], dropped: bool, rate: float) -> Callable[..., jax.Array] | None:
    """This machine's kernel for queries [B, T, heads, D/heads]."""
    if not KERNELS:
        return None
    _, tokens, heads, features = shape
    if jax.default_backend() == "gpu" and not dropped and tokens >= LONG:
        return _fused
    if jax.default_backend() == "tpu" and _takes_kernels():
        from fedjax_mm.models import attention_kernel  # half a second, which nobody else waits for

        if attention_kernel.blocking(tokens, heads, features, dropped):
            return functools.partial(attention_kernel.attend, rate=rate)
    return None


def _takes_kernels() -> bool:
    """Whether a TPU takes a kernel of ours: from v4 on, and where XLA need not split it over devices, which it cannot.

    That is in a program of one device, and in what one device does of a shard_map.
    """
    mesh = jax.sharding.get_abstract_mesh()
    alone = jax.device_count() == 1 or (not mesh.empty and set(mesh.axis_types) == {AxisType.Manual})
    return alone and jax.local_devices()[0].device_kind not in ("TPU v2", "TPU v3")


KERNELS = True  # False: XLA's own attention in every program that is traced from then on
LONG = 128  # tokens from which cuDNN's kernel is faster than XLA's on an H200


def _fused(query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None, keep: None = None) -> jax.Array:
    """The attention in one kernel of cuDNN, which takes even lengths alone and, under `vmap`, no mask.

    So a key is added where the length is odd, and what a key must not count is told by eight more features of a head:
    a query has 1 in the first of them, a key 0, or a number far below every logit.
    """
    tokens, width, odd = query.shape[1], query.shape[-1], query.shape[1] % 2
    attend = functools.partial(jax.nn.dot_product_attention, scale=width**-0.5, implementation="cudnn")
    if mask is None and not odd:
        return attend(query, key, value)
    counts = jnp.ones(key.shape[:2], bool)
    if mask is not None:
        some = mask.any(1, keepdims=True)  # where no key counts, all do alike
        counts, query = mask | ~some, jnp.where(some[..., None, None], query, 0)
    low = jnp.pad(jnp.where(counts, 0.0, -1e4), ((0, 0), (0, odd)), constant_values=-1e4) * width**0.5
    query, key, value = (jnp.pad(x, ((0, 0), (0, odd), (0, 0), (0, 8))) for x in (query, key, value))
    query = query.at[..., width].set(1)
    key = key.at[..., width].set(low[..., None].astype(key.dtype))
    return attend(query, key, value)[:, :tokens, :, :width]
