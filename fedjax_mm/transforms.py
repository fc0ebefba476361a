"""What an upload passes between a client's update and its aggregation: pure transforms in optax's manner."""

from typing import cast

import optax

from fedjax_mm.types import Key, PyTree, Upload


def on_change(transform: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """An upload transform that sees how a client changed each slot that the server had sent under the same name.

    It is for methods whose clients send weights: on_change(optax.clip_by_global_norm(1.0)) clips the change of all
    slots together, and the client sends the old weights plus the clipped change.

    >>> import jax.numpy as jnp
    >>> transform = on_change(optax.clip_by_global_norm(1.0))
    >>> received, trained = {"w": jnp.array([5.0, 5.0])}, {"w": jnp.array([8.0, 9.0])}  # a change of length 5
    >>> sent, _ = transform.update(trained, transform.init(trained), received)
    >>> sent["w"].round(3).tolist()
    [5.6..., 5.8...]
    """
    inner = optax.with_extra_args_support(transform)

    def update(updates, state, params=None, **extra_args):
        if params is None:
            raise ValueError("on_change needs what the server had sent, as the argument params; it got None")
        old = {slot: params[slot] for slot in updates}
        change, state = inner.update(optax.tree.sub(updates, old), state, None, **extra_args)
        return optax.tree.add(old, change), state

    return optax.GradientTransformationExtraArgs(inner.init, update)


def transformed(transform: optax.GradientTransformation, upload: Upload, received: PyTree, key: Key) -> Upload:
    """One client's upload as it travels: the values of all slots after the transform, which starts afresh.

    received: what the server had sent, which the transform gets as `params`.
    """
    with_key = optax.with_extra_args_support(transform)
    values = {slot: sent.value for slot, sent in upload.items()}
    after = cast(dict[str, PyTree], with_key.update(values, with_key.init(values), received, key=key)[0])
    return {slot: sent._replace(value=after[slot]) for slot, sent in upload.items()}
