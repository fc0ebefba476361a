"""What an upload passes between a client's update and its aggregation: what a client encodes and the server decodes."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from fedjax_mm import trees
from fedjax_mm.checks import say
from fedjax_mm.types import Each, Key, Mean, PyTree, Upload

Values = Mapping[str, PyTree]  # slot -> one client's tree


class Transform(NamedTuple):
    """How uploads travel: what a client encodes, and what the server decodes before it sums. `uploads` has many.

    Each function sees all slots of ONE client at once. A transform that keeps a state for each client is put on a
    method by `uploads.attach`; any other one is the method's `upload` field.

    >>> halve = Transform(
    ...     init=lambda value, received: (),
    ...     encode=lambda state, value, received, key: (jax.tree.map(lambda x: x.astype("float16"), value), state),
    ...     decode=lambda encoded, received: jax.tree.map(lambda x: x.astype("float32"), encoded),
    ... )
    >>> encoded, _ = halve.encode((), {"w": jnp.ones(3)}, {}, jax.random.key(0))
    >>> encoded["w"].dtype, halve.decode(encoded, {})["w"].dtype
    (dtype('float16'), dtype('float32'))
    """

    init: Callable[[Values, PyTree], PyTree]
    """`init(value, received)` gives a client's state before its first round, of shapes alone; `()` for none. `value` is
    {slot: tree} as the update gives it, `received` what the server had sent."""
    encode: Callable[[PyTree, Values, PyTree, Key], tuple[Values, PyTree]]
    """`encode(state, value, received, key)` gives {slot: what travels} and the new state. The key is of this client and
    round alone."""
    decode: Callable[[Values, PyTree], Values]
    """`decode(encoded, received)` gives {slot: tree}, the server's reading of what travelled."""


AnyTransform = optax.GradientTransformation | Transform


def stateless(
    encode: Callable[[Values, PyTree, Key], Values], decode: Callable[[Values, PyTree], Values] | None = None
) -> Transform:
    """A Transform of `encode(value, received, key)` that keeps no state. decode: None where what travels is the value.

    >>> double = stateless(lambda value, received, key: {slot: 2 * x for slot, x in value.items()})
    >>> double.decode(double.encode((), {"w": 3}, {}, None)[0], {})
    {'w': 6}
    """
    return Transform(
        lambda value, received: (),
        lambda state, value, received, key: (encode(value, received, key), state),
        decode or (lambda encoded, received: encoded),
    )


def as_transform(transform: AnyTransform) -> Transform:
    """A Transform; one of optax gets what the server sent as `params` and the key as `key`, and starts afresh."""
    if isinstance(transform, Transform):
        return transform
    if not isinstance(transform, optax.GradientTransformation):
        raise ValueError(f"upload is {say(transform)}; give an uploads.Transform or a transform of optax")
    with_key = optax.with_extra_args_support(transform)

    def encode(value: Values, received: PyTree, key: Key) -> Values:
        return cast(Values, with_key.update(cast(Any, value), with_key.init(value), received, key=key)[0])

    return stateless(encode)


def on_change(transform: Any) -> Any:
    """An upload transform that sees how a client changed each slot that the server had sent under the same name.

    It is for methods whose clients send weights: on_change(optax.clip_by_global_norm(1.0)) clips the change of all
    slots together, and the client sends the old weights plus the clipped change. Of a Transform, the encoded change
    travels, and the server adds the old weights to what it decodes. A slot that the server sends nothing under, or
    something of another tree or other shapes, is given to a Transform as it is.

    transform: a Transform or a transform of optax; -> the same kind.

    >>> import jax.numpy as jnp
    >>> transform = on_change(optax.clip_by_global_norm(1.0))
    >>> received, trained = {"w": jnp.array([5.0, 5.0])}, {"w": jnp.array([8.0, 9.0])}  # a change of length 5
    >>> sent, _ = transform.update(trained, transform.init(trained), received)
    >>> sent["w"].round(3).tolist()
    [5.6..., 5.8...]
    """
    if isinstance(transform, Transform):
        return Transform(
            lambda value, received: transform.init(change_of(value, received), received),
            lambda state, value, received, key: transform.encode(state, change_of(value, received), received, key),
            lambda encoded, received: changed(transform.decode(encoded, received), received),
        )
    inner = optax.with_extra_args_support(transform)

    def update(updates, state, params=None, **extra_args):
        if params is None:
            raise ValueError("on_change needs what the server had sent, as the argument params; it got None")
        old = {slot: params[slot] for slot in updates}
        change, state = inner.update(optax.tree.sub(updates, old), state, None, **extra_args)
        return optax.tree.add(old, change), state

    return optax.GradientTransformationExtraArgs(inner.init, update)


def change_of(value: Values, received: PyTree) -> Values:
    """{slot: what was sent minus what was received under its name}; a slot with no such counterpart is as it is.

    >>> change_of({"w": jnp.float32(5), "z": jnp.ones(2)}, {"w": jnp.float32(3)})["w"]
    Array(2., dtype=float32)
    """
    return {slot: optax.tree.sub(x, received[slot]) if _known(x, received, slot) else x for slot, x in value.items()}


def changed(change: Values, received: PyTree) -> Values:
    """The inverse of `change_of`.

    >>> changed({"w": jnp.float32(2), "z": jnp.float32(1)}, {"w": jnp.float32(3)})
    {'w': Array(5., dtype=float32), 'z': Array(1., dtype=float32)}
    """
    return {slot: optax.tree.add(received[slot], x) if _known(x, received, slot) else x for slot, x in change.items()}


def encode(transform: AnyTransform, upload: Upload, received: PyTree, key: Key) -> Upload:
    """One client's upload as it travels, {slot: Mean | Each} of what the transform gives, which keeps no state.

    received: what the server had sent. Where a value is not finite before a Transform, which may hide it, the weights
    are NaN: the client is left out. Raises ValueError for a transform that keeps a state.
    """
    values = {slot: sent.value for slot, sent in upload.items()}
    of = as_transform(transform)
    state = of.init(values, received)
    if jax.tree.leaves(state):
        raise ValueError(
            "upload is a Transform that keeps a state for each client, which has to be shaped by the data; give "
            "uploads.attach(method, transform, data) instead"
        )
    if isinstance(transform, Transform):
        return encode_with(of, state, upload, received, key)[0]
    after, _ = of.encode(state, values, received, key)
    return with_values(upload, after)


def encode_with(
    of: Transform, state: PyTree, upload: Upload, received: PyTree, key: Key
) -> tuple[dict[str, Mean | Each], PyTree]:
    """(one client's upload as it travels, the transform's new state of the client).

    Where a value is not finite before the transform, which may hide it, the weights are NaN, by which the engine leaves
    the client out.
    """
    values = {slot: sent.value for slot, sent in upload.items()}
    encoded, after = of.encode(state, values, received, key)
    finite = trees.all_finite(values)
    weigh = lambda sent: sent._replace(weight=jnp.where(finite, sent.weight, jnp.nan))
    return {slot: weigh(sent) for slot, sent in with_values(upload, encoded).items()}, after


def decode(transform: AnyTransform, upload: Upload, received: PyTree) -> Upload:
    """One client's upload as the server reads it."""
    if not isinstance(transform, Transform):
        return upload
    return with_values(upload, transform.decode({slot: sent.value for slot, sent in upload.items()}, received))


def with_values(upload: Upload, values: Values) -> dict[str, Mean | Each]:
    """The upload with other values, and the weights that it has."""
    return {slot: sent._replace(value=values[slot]) for slot, sent in upload.items()}


def _known(value: PyTree, received: PyTree, slot: str) -> bool:
    """Whether the server sent a tree like `value` under the slot's name."""
    if not isinstance(received, Mapping) or slot not in received:
        return False
    old = received[slot]
    shapes = lambda tree: [jnp.shape(x) for x in jax.tree.leaves(tree)]
    return jax.tree.structure(value) == jax.tree.structure(old) and shapes(value) == shapes(old)
