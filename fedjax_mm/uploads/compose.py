"""Transforms of transforms: one after the other, and with what was lost sent later."""

import jax
import optax

from fedjax_mm.transforms import AnyTransform, Transform, Values, as_transform
from fedjax_mm.types import Key, PyTree


def chain(*transforms: AnyTransform) -> Transform:
    """Encodes by each transform in turn, and decodes in the opposite order, as optax.chain does for gradients.

    A transform sees what the one before it encodes: chain(top_k(0.1), quantise(8)) sends 8-bit numbers and the indices,
    which are no floats, as they are.

    >>> import jax.numpy as jnp
    >>> from fedjax_mm import uploads
    >>> both = chain(uploads.top_k(0.5), uploads.quantise(8))
    >>> encoded, _ = both.encode(both.init({}, {}), {"w": jnp.array([1.0, 0.0])}, {}, jax.random.key(0))
    >>> encoded["w"].values.packed.nbytes, both.decode(encoded, {})["w"].tolist()
    (1, [1.0, 0.0])
    """
    if not transforms:
        raise ValueError("chain has no transforms; give it one or more")
    each = [as_transform(one) for one in transforms]

    def init(value: Values, received: PyTree) -> tuple:
        states = []
        for one in each:
            states.append(one.init(value, received))
            value = _shapes_after(one, states[-1], value, received)
        return tuple(states)

    def encode(states: tuple, value: Values, received: PyTree, key: Key) -> tuple[Values, tuple]:
        after = []
        for i, (one, state) in enumerate(zip(each, states, strict=True)):
            value, state = one.encode(state, value, received, jax.random.fold_in(key, i))
            after.append(state)
        return value, tuple(after)

    def decode(encoded: Values, received: PyTree) -> Values:
        for one in reversed(each):
            encoded = one.decode(encoded, received)
        return encoded

    return Transform(init, encode, decode)


def error_feedback(transform: AnyTransform) -> Transform:
    """Adds to each upload what the transform lost of the client's last one, so that all of it arrives in the end.

    A client keeps the sum of what was lost, one tree of the upload's shapes: put it on by `uploads.attach`. Where
    clients send weights, give on_change(error_feedback(...)). (Seide et al., Interspeech 2014; Stich 2018; Karimireddy
    2019)

    >>> import jax.numpy as jnp
    >>> from fedjax_mm import uploads
    >>> half, value, total = error_feedback(uploads.top_k(0.5)), {"w": jnp.array([3.0, 2.0])}, 0
    >>> state = half.init(value, {})
    >>> for _ in range(2):
    ...     encoded, state = half.encode(state, value, {}, jax.random.key(0))
    ...     total = total + half.decode(encoded, {})["w"]
    >>> total.tolist(), state["lost"]["w"].tolist()  # of [6, 4] after two rounds
    ([3.0, 4.0], [3.0, 0.0])
    """
    inner = as_transform(transform)

    def init(value: Values, received: PyTree) -> dict[str, PyTree]:
        return {"lost": optax.tree.zeros_like(value), "inner": inner.init(value, received)}

    def encode(state: dict, value: Values, received: PyTree, key: Key) -> tuple[Values, dict]:
        owed = optax.tree.add(value, state["lost"])
        encoded, after = inner.encode(state["inner"], owed, received, key)
        return encoded, {"lost": optax.tree.sub(owed, inner.decode(encoded, received)), "inner": after}

    return Transform(init, encode, inner.decode)


def _shapes_after(one: Transform, state: PyTree, value: Values, received: PyTree) -> Values:
    """What a transform makes of `value`, zeros in the place of its numbers."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    shapes, _ = jax.eval_shape(one.encode, state, value, received, key)
    return optax.tree.zeros_like(shapes)
