"""Fewer bits for a number: stochastic rounding to a few levels, and signs.

Stochastic levels: Alistarh et al., NeurIPS 2017 (QSGD); Suresh et al., ICML 2017. Signs with one scale for an array:
Bernstein et al., ICML 2018 (signSGD); Karimireddy et al., ICML 2019 (EF-signSGD).
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from fedjax_mm.checks import is_whole, say
from fedjax_mm.transforms import Transform, stateless
from fedjax_mm.types import Key
from fedjax_mm.uploads.leaves import decode_nodes, map_floats, wide

BITS = (2, 4, 8, 16)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Levels:
    """An array of n numbers as whole levels of `bits` each, packed, and the size of the largest number."""

    packed: jax.Array
    """[n * bits / 8, rounded up] uint8; with 16 bits [n] uint16."""
    scale: jax.Array
    """[] float32."""
    bits: int = dataclasses.field(metadata={"static": True})
    shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    dtype: str = dataclasses.field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Signs:
    """An array of n numbers as n bits, and the mean of the numbers' sizes."""

    packed: jax.Array
    """[n / 8, rounded up] uint8."""
    scale: jax.Array
    """[] float32."""
    shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    dtype: str = dataclasses.field(metadata={"static": True})


def quantise(bits: int = 8) -> Transform:
    """Rounds each number at random to one of the two levels beside it, so that its mean is the number itself.

    Each array has 2^(bits - 1) - 1 levels on each side of 0, up to its largest size, which travels as a float32; the
    error of a number is below one step of them. bits: 2, 4, 8 or 16. Where clients send weights, quantise their change
    (`on_change`). What is no float travels as it is. (Alistarh 2017, with the largest size in place of the norm)

    >>> value = {"w": jnp.array([0.0, 127.0, -64.0])}
    >>> encoded, _ = quantise(8).encode((), value, {}, jax.random.key(0))
    >>> encoded["w"].packed.dtype, quantise(8).decode(encoded, {})["w"].tolist()
    (dtype('uint8'), [0.0, 127.0, -64.0])
    """
    if not is_whole(bits, 2) or bits not in BITS:
        raise ValueError(f"bits is {say(bits)}; give 2, 4, 8 or 16")
    encode = lambda value, received, key: map_floats(lambda x, key: to_levels(x, bits, key), value, key=key)
    return stateless(encode, lambda encoded, received: decode_nodes(encoded, Levels, from_levels))


def sign() -> Transform:
    """Sends one bit for each number, and the mean size of an array's numbers, with which each sign is multiplied.

    It is biased: give error_feedback(sign()), which sends the rest later. (Karimireddy 2019)

    >>> encoded, _ = sign().encode((), {"w": jnp.array([1.0, -3.0])}, {}, jax.random.key(0))
    >>> encoded["w"].packed.nbytes, sign().decode(encoded, {})["w"].tolist()
    (1, [2.0, -2.0])
    """
    encode = lambda value, received, key: map_floats(to_signs, value)
    return stateless(encode, lambda encoded, received: decode_nodes(encoded, Signs, from_signs))


def to_levels(x: jax.Array, bits: int, key: Key) -> Levels:
    """An array of floats, rounded at random to whole levels."""
    most = 2 ** (bits - 1) - 1
    flat = wide(x).reshape(-1)
    scale = jnp.max(jnp.abs(flat)).astype(jnp.float32)
    # In -most..most: rounding up by less than 1 may carry the largest number one level too far in floating point.
    exact = jnp.where(scale > 0, flat / jnp.where(scale > 0, scale, 1), 0) * most
    level = jnp.clip(jnp.floor(exact + jax.random.uniform(key, flat.shape)), -most, most)
    whole = (level + most).astype(jnp.uint16 if bits == 16 else jnp.uint8)
    return Levels(_pack(whole, bits), scale, bits, x.shape, str(x.dtype))


def from_levels(x: Levels) -> jax.Array:
    """The numbers of the levels."""
    most, size = 2 ** (x.bits - 1) - 1, math.prod(x.shape)
    level = _unpack(x.packed, x.bits)[:size].astype(jnp.float32) - most
    return (level * (x.scale / most)).reshape(x.shape).astype(x.dtype)


def to_signs(x: jax.Array) -> Signs:
    """The signs of an array of floats, in bits; 0 counts as positive."""
    flat = wide(x).reshape(-1)
    return Signs(jnp.packbits(flat >= 0), jnp.abs(flat).mean().astype(jnp.float32), x.shape, str(x.dtype))


def from_signs(x: Signs) -> jax.Array:
    """The mean size with the signs."""
    positive = jnp.unpackbits(x.packed, count=math.prod(x.shape)).astype(bool)
    return jnp.where(positive, x.scale, -x.scale).reshape(x.shape).astype(x.dtype)


def _pack(whole: jax.Array, bits: int) -> jax.Array:
    """Levels [n] below 2^bits, several of them in a byte; those of 8 and 16 bits stay as they are."""
    if bits >= 8:
        return whole
    each = 8 // bits
    rows = jnp.pad(whole, (0, -whole.size % each)).reshape(-1, each)
    shifts = jnp.arange(each, dtype=jnp.uint8) * jnp.uint8(bits)
    return jnp.sum(rows << shifts[None], axis=1, dtype=jnp.uint8)


def _unpack(packed: jax.Array, bits: int) -> jax.Array:
    """The levels that `_pack` packed, and those that filled the last byte."""
    if bits >= 8:
        return packed
    shifts = jnp.arange(8 // bits, dtype=jnp.uint8) * jnp.uint8(bits)
    return ((packed[:, None] >> shifts[None]) & jnp.uint8(2**bits - 1)).reshape(-1)
