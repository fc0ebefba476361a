"""The nouns of a federated round, and the shape of every field.

Letters: `N` clients of a cohort, `C` clients that take part in a round (padded), `M` examples of a client,
`R` the most of any client of the cohort, `E` examples of the cohort's arrays, `S` local steps, `B` examples of a batch,
`P` public (proxy) examples, `D` embedding width, `K` classes, `T` time steps.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, Protocol

import jax
import numpy as np

from fedjax_mm._summary import summary

PyTree = Any
Key = jax.Array
Arrays = Mapping[str, jax.Array]
Metrics = Mapping[str, jax.Array]


class Download(NamedTuple):
    """What the server gives the clients of one cohort; every client of the cohort gets the same.

    `sent` travels to every participant in every round. Clients need `held` too, but they have it already (frozen
    layers, a pretrained trunk): it costs bytes only for a client that joins late.

    >>> download = Download(sent={"head": jax.numpy.zeros((4, 2))}, held={"trunk": jax.numpy.ones((3, 4))})
    >>> download.sent["head"].shape
    (4, 2)
    """

    sent: PyTree
    held: PyTree = ()


class Mean(NamedTuple):
    """An upload slot of which the server needs only the weighted mean over clients.

    The engine sums the slot while it maps the clients, so the memory never holds C copies of it. In an upload, `value`
    is one client's tree and `weight` [] is this client's weight. In what the server gets, `value` is the mean over the
    clients and `weight` [] is the sum of their weights, 0 where nobody sent the slot.

    >>> upload = {"head": Mean(jax.numpy.ones((4, 2)), weight=jax.numpy.float32(20))}
    >>> upload["head"].value.shape, float(upload["head"].weight)
    ((4, 2), 20.0)
    """

    value: PyTree
    weight: jax.Array


class Each(NamedTuple):
    """An upload slot that the server needs from every client on its own.

    In an upload, `value` is one client's tree and `weight` [] is its weight. In what the server gets, `value` has
    leaves [C, ...] and `weight` is [C]. A weight of 0 marks a client that sent nothing; its values are then 0, not NaN.

    >>> upload = {"image": Each(jax.numpy.ones((6, 4)), weight=jax.numpy.float32(20))}  # six public images, D = 4
    >>> upload["image"].value.shape
    (6, 4)
    """

    value: PyTree
    weight: jax.Array


Upload = Mapping[str, Mean | Each]  # slot (a part or a modality) -> what travels


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ClientData:
    """What one client sees: its rows of the cohort's example arrays, and the public examples.

    >>> arrays = {"x": jax.numpy.arange(10.0)}  # E = 10
    >>> rows = jax.numpy.array([7, 2, 5, 0], jax.numpy.int32)  # R = 4, of which the first M = 3 are this client's
    >>> data = ClientData(arrays, rows, jax.numpy.int32(3), jax.numpy.float32(3), public=None)
    >>> data.arrays["x"][data.rows[: data.count]].tolist()
    [7.0, 2.0, 5.0]
    """

    arrays: Arrays
    """Leaves [E, ...], shared by the cohort; a step gathers its batch by row number."""
    rows: jax.Array
    """[R] int32. The first `count` are this client's own."""
    count: jax.Array
    """[] int32, M: how many examples the client owns."""
    weight: jax.Array
    """[] float32. The client's weight in an average; 0 for a padding client."""
    public: Arrays | None
    """Leaves [P, ...]: the public examples, which the server and all clients share. None where there are none."""
    uniform: bool = dataclasses.field(default=False, metadata={"static": True})
    """Whether every client of the cohort owns exactly R rows."""
    number: jax.Array | None = None
    """[] int32. The client's number in its cohort; None where nobody said."""
    work: jax.Array | None = None
    """[] float32. The share of its steps that the client takes, cut at a deadline; None takes all."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CohortRound:
    """Who takes part in a round from one cohort, and with which rows. A padding client has index N and weight 0."""

    index: jax.Array
    """[C] int32. The number of each participant in its cohort."""
    weight: jax.Array
    """[C] float32. The weight of each participant in an average."""
    rows: jax.Array
    """[C, R] int32. The rows of `arrays` that each participant owns."""
    count: jax.Array
    """[C] int32. How many of its rows are the participant's own."""
    arrays: Arrays
    """Leaves [E, ...]: the cohort's examples."""
    uniform: bool = dataclasses.field(default=False, metadata={"static": True})
    """Whether every client of the cohort owns exactly R rows."""
    place: jax.Array | None = None
    """[C] int32. Each one's row in `FedState.clients`, or one beyond. None: its number or, where split, its place."""
    work: jax.Array | None = None
    """[C] float32 in 0..1. The share of its steps that each participant takes. None: all take all."""
    split: Literal["states", "all"] | None = dataclasses.field(default=None, metadata={"static": True})
    """Whether a device has only a part of the clients' states, or of "all", examples too (see fedjax_mm/split.py)."""


class RoundData(NamedTuple):
    """The input of one round. Its shapes never change within a stage, whichever clients take part."""

    cohorts: Mapping[str, CohortRound]
    public: Arrays | None = None
    """Leaves [P, ...]: the public examples."""


class CohortPopulation(NamedTuple):
    """What is known of a cohort before any of its examples is seen."""

    size: int
    """N: how many clients the cohort has."""
    arrays: Mapping[str, jax.ShapeDtypeStruct]
    """Shapes [E, ...] and dtypes of the cohort's example arrays."""
    classes: np.ndarray | None = None
    """[N, K]. How many examples of each class each client owns, where the cohort has an array `label` [E]."""
    ranges: Mapping[str, tuple[float, float]] | None = None
    """Array of integers, or [E] or [E, K] of floats -> least and greatest value in rows that clients own, if known."""
    counts: np.ndarray | None = None
    """[N]. How many examples each client trains on. None: not known."""


class Population(NamedTuple):
    """Which clients there are, and the shapes of what they hold: all that a method is built from.

    >>> image = jax.ShapeDtypeStruct((1000, 28, 28), np.float32)
    >>> Population({"cameras": CohortPopulation(30, {"image": image})}).sizes
    {'cameras': 30}
    """

    cohorts: Mapping[str, CohortPopulation]
    public: Mapping[str, jax.ShapeDtypeStruct] | None = None
    """Shapes [P, ...] and dtypes of the public examples. None where there are none."""
    public_ranges: Mapping[str, tuple[float, float]] | None = None
    """Public array -> the least and the greatest value, as in `ranges`. None: not known."""

    @property
    def sizes(self) -> dict[str, int]:
        """The number of clients N of each cohort."""
        return {name: cohort.size for name, cohort in self.cohorts.items()}

    @property
    def population(self) -> "Population":
        """Itself, so that a method is built from a population as from a FederatedData."""
        return self


class HasPopulation(Protocol):
    """A Population or a FederatedData: what every `build` takes."""

    @property
    def population(self) -> Population:
        """Which clients there are, and the shapes of what they hold."""
        ...


class Cohort(NamedTuple):
    """Clients whose states, models and examples have the same shapes. Its functions speak of ONE client.

    >>> def update(download, state, data, key):
    ...     return {"w": Mean(download.sent + 1, data.weight)}, state, {}
    >>> cohort = Cohort(size=3, init=lambda key: (), update=update)
    >>> data = ClientData({}, *jax.numpy.zeros((3, 1), jax.numpy.int32), public=None)
    >>> upload, state, metrics = cohort.update(Download(jax.numpy.zeros(2)), (), data, jax.random.key(0))
    >>> upload["w"].value.tolist()
    [1.0, 1.0]
    """

    size: int
    """N: how many clients the cohort has."""
    init: Callable[[Key, PyTree], PyTree] | Callable[[Key], PyTree]
    """`init(key, server)` gives a client's state before its first round, `()` where it keeps none. `server` is the
    server's first state. A function of the key alone is taken too."""
    update: Callable[[Download, PyTree, ClientData, Key], tuple[Upload, PyTree, Metrics | Mapping[str, Mean]]]
    """`update(download, state, data, key)` is a client's part of a round: what it sends, its new state, its metrics. A
    metric counts with the client's weight; a Mean with its own, 0 where the client has no such number."""
    score: Callable[[Download, PyTree, Arrays, jax.Array], Mapping[str, jax.Array]] | None = None
    """`score(download, state, arrays, mask)` gives {name: [B]}: how well its model does on each of its own test
    rows [B, ...]; `mask` [B] is 0 for padding. More is better, unless the name ends in "loss", "error" or "medr"."""


class Server(NamedTuple):
    """The server's functions.

    >>> server = Server(
    ...     init=lambda key: jax.numpy.zeros(2),
    ...     download=lambda w, public: {"all": Download(w)},
    ...     update=lambda w, uploads, public, key: (uploads["all"]["w"].value, {}),
    ... )
    >>> uploads = {"all": {"w": Mean(jax.numpy.ones(2), jax.numpy.float32(3))}}
    >>> server.update(jax.numpy.zeros(2), uploads, None, jax.random.key(0))[0].tolist()
    [1.0, 1.0]
    """

    init: Callable[[Key], PyTree]
    """`init(key)` gives the server's state before the first round."""
    download: Callable[[PyTree, Arrays | None], Mapping[str, Download]]
    """`download(state, public)` gives what each cohort gets."""
    update: Callable[[PyTree, Mapping[str, Upload], Arrays | None, Key], tuple[PyTree, Metrics]]
    """`update(state, uploads, public, key)` gives the new state and metrics. uploads: {cohort: {slot: Mean | Each}}."""
    begin: Callable[[PyTree, Arrays | None, Key], tuple[PyTree, Metrics]] | None = None
    """`begin(state, public, key)` gives state and metrics of what the server does before it sends. None: nothing."""
    frozen: tuple[str, ...] = ()
    """Entries of the state, a dict, that no round changes: a checkpoint has their digests alone."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False)
class FedState:
    """The states of the server and of all clients: everything that a checkpoint holds. It prints as a summary.

    >>> state = FedState(server=jax.numpy.zeros(2), clients={"all": jax.numpy.ones((3, 2))}, round=jax.numpy.int32(0))
    >>> [x.shape for x in jax.tree.leaves(state)]
    [(2,), (3, 2), ()]
    """

    server: PyTree
    clients: Mapping[str, PyTree]
    """The states of each cohort's clients: leaves [N, ...]."""
    round: jax.Array
    """[] int32. How many rounds lie behind."""

    def __repr__(self) -> str:
        return summary(self)


class OverClients(NamedTuple):
    """How a round maps over its clients. Every choice gives the same result."""

    chunk: int | Mapping[str, int] = 1
    """How many clients are vmapped at a time; the chunks are scanned. A mapping gives each cohort its own number."""
    mesh: jax.sharding.Mesh | None = None
    """A mesh with the one axis "clients", over whose devices the clients are spread. None is one device."""
