"""Transforms that keep a state for each client, beside the client's own state."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_mm import transforms
from fedjax_mm.checks import population_of, say
from fedjax_mm.federate import Evaluation, Method, client_init
from fedjax_mm.transforms import AnyTransform, Transform, as_transform
from fedjax_mm.types import (
    Arrays,
    ClientData,
    Cohort,
    Download,
    FedState,
    HasPopulation,
    Key,
    Mean,
    Metrics,
    PyTree,
    Upload,
)

SALT = 0x75706C  # an update folds small numbers into its key


class Sending(NamedTuple):
    """A client's state where its uploads have one."""

    own: PyTree
    """The state that the method's own client keeps."""
    upload: PyTree
    """The state of the transform, such as what error feedback still owes."""


def attach(method: Method, transform: AnyTransform, data: HasPopulation) -> Method:
    """The method whose uploads pass a transform, in place of the one that it has.

    A transform with a state keeps it beside the client's own state, as a `Sending`: placements, checkpoints and the
    laws of a round see one state. The method's own update, scores and `evaluate` see their own part of it alone.
    One without a state becomes the method's `upload` field, and changes no state.

    data: a FederatedData or a Population, of which the shapes alone count. Raises ValueError where it does not fit,
    and for a method that has a transform with a state already.

    >>> import numpy as np
    >>> from fedjax_mm import FederatedData, methods, models, uploads
    >>> data = FederatedData.from_arrays({"x": np.ones((4, 3), "f"), "label": np.arange(4) % 2}, [[0, 1], [2, 3]])
    >>> encoders, head = {"x": models.mlp.encoder((), 4)}, models.heads.linear(2)
    >>> method = methods.fedavg.build(methods.fedavg.FedAvgConfig(), data, encoders, head)
    >>> sparse = attach(method, uploads.on_change(uploads.error_feedback(uploads.top_k(0.1))), data)
    >>> sparse.init(jax.random.key(0)).clients["all"].upload["lost"]["head"]["Dense_0"]["bias"].shape
    (2, 2)
    """
    if not isinstance(method, Method):
        raise ValueError(f"method is {say(method)}; give a Method, as `build` makes it")
    of = as_transform(transform)
    shapes = {name: _shapes(method, name, data) for name in method.cohorts}
    states = {
        name: jax.eval_shape(of.init, {slot: sent.value for slot, sent in upload.items()}, received)
        for name, (upload, received) in shapes.items()
    }
    if not jax.tree.leaves(states):
        return method._replace(upload=transform)
    if _keeps_state(method.upload):
        raise ValueError("method has a transform with a state already; attach chain(...) of both to the plain method")
    cohorts = {name: _sending(cohort, of, *shapes[name]) for name, cohort in method.cohorts.items()}
    return method._replace(
        cohorts=cohorts,
        upload=Transform(_no_state, _encoded_already, of.decode),
        evaluate=on_own_state(method.evaluate, lambda state: dataclasses.replace(state, clients=_own(state.clients))),
    )


def upload_shapes(method: Method, data: HasPopulation) -> dict[str, Upload]:
    """{cohort: what one of its clients' updates gives, {slot: Mean | Each} of shapes}."""
    return {name: _shapes(method, name, data)[0] for name in method.cohorts}


def on_own_state(evaluate: Callable, own: Callable[[FedState], FedState]) -> Callable:
    """A method's `evaluate` of a state that has more than the method's own part, which `own` takes from it."""
    if isinstance(evaluate, Evaluation):
        return evaluate._replace(scores=lambda state, arrays: evaluate.scores(own(state), arrays))
    return lambda state, arrays: evaluate(own(state), arrays)


def _own(clients: Mapping[str, Sending]) -> dict[str, PyTree]:
    return {name: state.own for name, state in clients.items()}


def _sending(cohort: Cohort, of: Transform, upload: Upload, received: PyTree) -> Cohort:
    """The cohort whose clients encode what they send. upload, received: shapes."""
    zeros = lambda tree: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), tree)
    init_own = client_init(cohort)

    def init(key: Key, server: PyTree) -> Sending:
        first = of.init({slot: zeros(sent.value) for slot, sent in upload.items()}, zeros(received))
        return Sending(init_own(key, server), first)

    def update(
        download: Download, state: Sending, data: ClientData, key: Key
    ) -> tuple[Upload, Sending, Metrics | Mapping[str, Mean]]:
        sent, own, metrics = cohort.update(download, state.own, data, key)
        sent = jax.tree.map(jnp.asarray, dict(sent))
        key = jax.random.fold_in(key, SALT)
        travels, after = transforms.encode_with(of, state.upload, sent, download.sent, key)
        return travels, Sending(own, after), metrics

    def score(download: Download, state: Sending, arrays: Arrays, mask: jax.Array) -> Mapping[str, jax.Array]:
        return cohort.score(download, state.own, arrays, mask)  # type: ignore[misc]  (it is there)

    return cohort._replace(init=init, update=update, score=None if cohort.score is None else score)


def _shapes(method: Method, name: str, data: Any) -> tuple[Upload, PyTree]:
    """(the upload of one client, what the server had sent) as shapes."""
    population = population_of(data)
    if name not in population.cohorts:
        raise ValueError(f"data has cohorts {sorted(population.cohorts)}; the method has {sorted(method.cohorts)}")
    of = population.cohorts[name]
    most = 1 if of.counts is None else max(1, int(of.counts.max(initial=1)))

    def run(key, arrays, rows, count, weight, public):
        server = method.server.init(key)
        download = method.server.download(server, public)[name]
        state = client_init(method.cohorts[name])(key, server)
        seen = ClientData(arrays, rows, count, weight, public, number=count)
        upload, _, _ = method.cohorts[name].update(download, state, seen, key)
        return jax.tree.map(jnp.asarray, dict(upload)), download.sent

    whole, number = jax.ShapeDtypeStruct((most,), jnp.int32), jax.ShapeDtypeStruct((), jnp.int32)
    weight, key = jax.ShapeDtypeStruct((), jnp.float32), jax.eval_shape(lambda: jax.random.key(0))
    return jax.eval_shape(run, key, dict(of.arrays), whole, number, weight, population.public)


def _keeps_state(transform: optax.GradientTransformation | Transform) -> bool:
    return isinstance(transform, Transform) and transform.encode is _encoded_already


def _encoded_already(state: PyTree, value: Any, received: PyTree, key: Key) -> tuple[Any, PyTree]:
    return value, state


def _no_state(value: Any, received: PyTree) -> tuple:
    return ()
