"""Fewer numbers: the largest ones, random ones, or two thin matrices in place of one.

Top-k: Aji and Heafield, EMNLP 2017; Stich et al., NeurIPS 2018. Random-k: Konecny et al., 2016; Wangni et al., NeurIPS
2018. Low rank: Vogels et al., NeurIPS 2019 (PowerSGD).
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from fedjax_mm.checks import check_flag, check_number, check_whole
from fedjax_mm.transforms import Transform, stateless
from fedjax_mm.types import Key, PyTree
from fedjax_mm.uploads.leaves import decode_nodes, is_float, map_floats, wide


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Largest:
    """k numbers of an array, and where they are."""

    values: jax.Array
    """[k], of the array's type."""
    indices: jax.Array
    """[k] int32, in the array as one row."""
    shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Drawn:
    """k numbers of an array, and the key by which the server draws again where they are."""

    values: jax.Array
    """[k], of the array's type."""
    seed: jax.Array
    """[2] uint32: the data of a random key."""
    shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    impl: str = dataclasses.field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Factors:
    """A matrix [n, m] as left @ right.T, of rank r."""

    left: jax.Array
    """[n, r], with columns of length 1 at right angles."""
    right: jax.Array
    """[m, r]."""
    shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})


def top_k(fraction: float) -> Transform:
    """Sends of each array the share `fraction` of its numbers that are largest in size, and their int32 indices.

    It is biased: give error_feedback(top_k(0.01)), which sends the rest later. fraction: above 0, at most 1; at least
    one number of an array is sent; at 1 nothing is lost. (Stich 2018)

    >>> encoded, _ = top_k(0.5).encode((), {"w": jnp.array([1.0, -4.0, 2.0, 0.5])}, {}, jax.random.key(0))
    >>> encoded["w"].indices.tolist(), top_k(0.5).decode(encoded, {})["w"].tolist()
    ([1, 2], [0.0, -4.0, 2.0, 0.0])
    """
    check_number("fraction", fraction, most=1, above=0)

    def largest(x: jax.Array) -> Largest:
        flat = x.reshape(-1)
        _, indices = jax.lax.top_k(jnp.abs(flat), _count(fraction, flat.size))
        return Largest(flat[indices], indices.astype(jnp.int32), x.shape)

    back = lambda x: _scattered(x.values, x.indices, x.shape)
    encode = lambda value, received, key: map_floats(largest, value)
    return stateless(encode, lambda encoded, received: decode_nodes(encoded, Largest, back))


def random_k(fraction: float, unbiased: bool = True) -> Transform:
    """Sends of each array the share `fraction` of its numbers, drawn anew by every client in every round.

    The draw's seed of 8 bytes travels in place of indices. unbiased: numbers are multiplied with 1/fraction, so that
    their mean over draws is the array; give False within error_feedback. fraction: as of `top_k`. (Wangni 2018)

    >>> encoded, _ = random_k(0.5).encode((), {"w": jnp.ones(4)}, {}, jax.random.key(0))
    >>> encoded["w"].values.shape, sorted(random_k(0.5).decode(encoded, {})["w"].tolist())
    ((2,), [0.0, 0.0, 2.0, 2.0])
    """
    check_number("fraction", fraction, most=1, above=0)
    check_flag("unbiased", unbiased)

    def drawn(x: jax.Array, key: Key) -> Drawn:
        count = _count(fraction, x.size)
        values = x.reshape(-1)[_places(key, x.size, count)]
        scale = x.size / count if unbiased else 1.0
        return Drawn((scale * wide(values)).astype(x.dtype), jax.random.key_data(key), x.shape, _impl(key))

    def back(x: Drawn) -> jax.Array:
        key = jax.random.wrap_key_data(x.seed, impl=x.impl)
        return _scattered(x.values, _places(key, math.prod(x.shape), x.values.shape[0]), x.shape)

    encode = lambda value, received, key: map_floats(drawn, value, key=key)
    return stateless(encode, lambda encoded, received: decode_nodes(encoded, Drawn, back))


def low_rank(rank: int, iterations: int = 1) -> Transform:
    """Sends of each matrix [n, m] two factors [n, rank], [m, rank], by power iteration from those of last round.

    An array of more axes counts as a matrix of its last axis against all others. An array of fewer axes, and a matrix
    that would not become smaller, travels as it is. It is biased: give error_feedback(low_rank(2)), put on by
    `uploads.attach`, since each client keeps its last factors. (Vogels 2019, alg. 1, each client on its own: there is
    no all-reduce between a client's two products)

    >>> matrix = {"w": jnp.outer(jnp.arange(4.0), jnp.arange(5.0))}  # of rank 1
    >>> encoded, _ = low_rank(1).encode(low_rank(1).init(matrix, {}), matrix, {}, jax.random.key(0))
    >>> bool(jnp.allclose(low_rank(1).decode(encoded, {})["w"], matrix["w"], atol=1e-4))
    True
    """
    rank, iterations = check_whole("rank", rank, least=1), check_whole("iterations", iterations, least=1)

    def encode(state: list, value: PyTree, received: PyTree, key: Key) -> tuple[PyTree, list]:
        leaves, structure = jax.tree.flatten(value)
        done = [x if last is None else _factors(x, last, iterations) for x, last in zip(leaves, state, strict=True)]
        kept = [one.right if isinstance(one, Factors) else None for one in done]
        typed = [
            one if not isinstance(one, Factors) else _cast(one, x.dtype) for one, x in zip(done, leaves, strict=True)
        ]
        return jax.tree.unflatten(structure, typed), kept

    back = lambda x: jnp.matmul(x.left, x.right.T, precision="highest").reshape(x.shape)
    init = lambda value, received: [_first_factor(x, i, rank) for i, x in enumerate(jax.tree.leaves(value))]
    return Transform(init, encode, lambda encoded, received: decode_nodes(encoded, Factors, back))


def _first_factor(x: jax.Array, i: int, rank: int) -> jax.Array | None:
    """[m, r] that power iteration starts from; None for what travels as it is."""
    if not is_float(x) or x.ndim < 2:
        return None
    rows, columns = x.size // x.shape[-1], x.shape[-1]
    if rank * (rows + columns) >= rows * columns:
        return None
    return jax.random.normal(jax.random.key(i), (columns, rank), wide(x).dtype)


def _factors(x: jax.Array, right: jax.Array, iterations: int) -> Factors:
    matrix = wide(x).reshape(-1, x.shape[-1])
    left = matrix[:, :0]
    for _ in range(iterations):
        left = jnp.linalg.qr(matrix @ right)[0]
        right = matrix.T @ left
    return Factors(left, right, x.shape)


def _cast(x: Factors, dtype) -> Factors:
    return Factors(x.left.astype(dtype), x.right.astype(dtype), x.shape)


def _count(fraction: float, size: int) -> int:
    """How many numbers of an array of `size` are sent."""
    return min(size, max(1, math.ceil(round(fraction * size, 9))))


def _places(key: Key, size: int, count: int) -> jax.Array:
    """[count] int32, different, drawn from 0..size-1."""
    return jax.lax.top_k(jax.random.bits(key, (size,)), count)[1].astype(jnp.int32)


def _scattered(values: jax.Array, indices: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jnp.zeros(math.prod(shape), values.dtype).at[indices].set(values).reshape(shape)


def _impl(key: Key) -> str:
    return str(jax.random.key_impl(key))
