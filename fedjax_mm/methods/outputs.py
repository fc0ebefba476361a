"""What models give, from shapes alone: asked when a method is built, so that no trace fails later."""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from fedjax_mm.models.checks import check_model


def output_shape(name: str, model: Any, like: Any, given: Any = None) -> tuple[int, ...]:
    """The shape of what a Model gives of a batch of two, from shapes alone; `name` is what messages call the model.

    like: an array [E, ...] or its shape, from which the model starts. given: another, which it gets; None: the same.
    Raises ValueError where `model` is no Model, or cannot take such a batch.

    >>> from fedjax_mm.models import mlp
    >>> output_shape("the encoder", mlp.encoder((), 4), jax.ShapeDtypeStruct((9, 5), "float32"))
    (2, 4)
    """
    check_model(name, model)
    given = like if given is None else given
    batch = lambda size, x: jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype)
    first, two = batch(1, like), batch(2, given)
    run = lambda: jax.eval_shape(model.apply, jax.eval_shape(model.init, jax.random.key(0), first), two)
    output = traced(name, f"{two.dtype} {[*two.shape]}", run)
    if not hasattr(output, "shape"):
        raise ValueError(f"{name} gives {type(output).__name__} of a batch; it must give one array")
    return tuple(output.shape)


def traced(name: str, what: str, run: Callable[[], Any]) -> Any:
    """What `run` gives; its error, whichever it is, becomes a ValueError that says that `name` cannot take `what`."""
    try:
        return run()
    except Exception as error:
        said = " ".join(str(error).split())[:300] or type(error).__name__
        raise ValueError(f"{name} cannot take {what}: {said}") from error


def check_widths(shapes: Mapping[str, tuple[int, ...]], one: bool = True) -> int:
    """D, where every encoder gives [B, D]. shapes: name -> the shape of what it gives of a batch of two.

    Raises ValueError otherwise, and with `one` where the D of two encoders differ.

    >>> check_widths({"image": (2, 4), "text": (2, 5)})
    Traceback (most recent call last):
    ...
    ValueError: the encoders give image [B, 4], text [B, 5]; all must give [B, D] with one D
    """
    shown = ", ".join(
        f"{name} [{', '.join(('B', *map(str, s[1:]))) if s[:1] == (2,) else s}]" for name, s in shapes.items()
    )
    if any(len(s) != 2 or s[0] != 2 for s in shapes.values()) or (one and len(set(shapes.values())) > 1):
        raise ValueError(f"the encoders give {shown}; all must give [B, D]{' with one D' if one else ''}")
    return next(iter(shapes.values()))[1]
