"""Methods made of methods: which slots are means, slots gathered from all clients, and a server's state with more."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax

from fedjax_mm.checks import say
from fedjax_mm.federate import Method
from fedjax_mm.transforms import Transform
from fedjax_mm.types import Cohort, Each, HasPopulation, Mean, PyTree, Upload
from fedjax_mm.uploads.attached import on_own_state, upload_shapes

Names = Mapping[str, tuple[str, ...]]  # cohort -> slots


def mean_slots(method: Any, data: HasPopulation, what: str) -> Names:
    """{cohort: the slots that it sends as Mean}. what: the wrapper, for the error where there is none.

    Raises ValueError for what is no method, and where the method sends no Mean.
    """
    if not isinstance(method, Method):
        raise ValueError(f"method is {say(method)}; give a Method, as `build` makes it")
    shapes = upload_shapes(method, data)
    kind = lambda upload, kind: tuple(slot for slot, sent in upload.items() if isinstance(sent, kind))
    slots = {name: kind(upload, Mean) for name, upload in shapes.items()}
    if not any(slots.values()):
        sent = {name: sorted(upload) for name, upload in shapes.items()}
        raise ValueError(f"method sends no Mean slot, which {what} is about; its slots {sent} are all Each")
    return slots


def each_slots(method: Method, data: HasPopulation) -> Names:
    """{cohort: the slots that it sends as Each}."""
    shapes = upload_shapes(method, data)
    return {name: tuple(s for s, sent in upload.items() if isinstance(sent, Each)) for name, upload in shapes.items()}


def changing(cohort: Cohort, change: Callable[..., Upload]) -> Cohort:
    """The cohort whose upload is `change(upload, received, data, key)` of what its update gives."""

    def update(download, state, data, key):
        sent, new, metrics = cohort.update(download, state, data, key)
        return change(sent, download.sent, data, key), new, metrics

    return cohort._replace(update=update)


def gathered(method: Method, slots: Names) -> dict[str, Cohort]:
    """The method's cohorts, whose Mean slots `slots` are sent as Each: the server then has all clients' values."""

    def gather(names: tuple[str, ...]) -> Callable[..., Upload]:
        each = lambda slot, sent: Each(*sent) if slot in names else sent
        return lambda sent, received, data, key: {slot: each(slot, one) for slot, one in sent.items()}

    return {name: changing(cohort, gather(slots[name])) for name, cohort in method.cohorts.items()}


def reducing(method: Method, cohorts: Mapping[str, Cohort], reduce: Callable[..., Any]) -> Method:
    """The method with other cohorts, whose server gets `reduce(uploads, received, key)` and its metrics in place of
    the uploads. received: cohort -> what the server had sent."""

    def update(state, uploads, public, key):
        received = {name: download.sent for name, download in method.server.download(state, public).items()}
        reduced, more = reduce(uploads, received, jax.random.fold_in(key, 0x736C6F))
        new, metrics = method.server.update(state, reduced, public, key)
        return new, {**metrics, **more}

    return method._replace(server=method.server._replace(update=update), cohorts=cohorts)


def with_server_state(method: Method, of: Callable[[PyTree], PyTree]) -> Method:
    """The method whose `evaluate` sees the part of the server's state that `of` takes."""
    own = lambda state: dataclasses.replace(state, server=of(state.server))
    return method._replace(evaluate=on_own_state(method.evaluate, own))


def refuse_transform(method: Method, what: str) -> None:
    """Raises ValueError where uploads pass a Transform, after which no bound holds that `what` relies on."""
    if isinstance(method.upload, Transform):
        raise ValueError(f"method has an upload transform, by which {what} would not hold; give the plain method")
