"""The nouns of a federated round, and the shape of every field.

Letters used in every docstring: `N` clients of a cohort, `C` clients taking part (padded), `M` examples of a
client, `R` the most examples any client of the cohort owns, `E` examples of the cohort's arrays, `S` local
steps, `B` batch, `P` public (proxy) examples, `D` embedding width, `K` classes, `T` time steps.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

PyTree = Any
Key = jax.Array
Arrays = Mapping[str, jax.Array]
Metrics = Mapping[str, jax.Array]


class Download(NamedTuple):
    """What the clients of one cohort get from the server; the same for each of them.

    `sent` travels to every participant in every round. `held` is needed too, but every client has it already
    (frozen layers, a pre-trained trunk): it costs bytes only for a client that joins late.
    """

    sent: PyTree
    held: PyTree = ()


class Mean(NamedTuple):
    """An upload slot of which the server needs only the weighted mean over clients.

    It is summed while clients are mapped, so C clients never hold C copies. `value` is one client's tree, and
    after the round the mean over clients; `weight` [] is what stands behind it, 0 where nobody sent it.
    """

    value: PyTree
    weight: jax.Array


class Each(NamedTuple):
    """An upload slot the server needs from every client: after the round `value` has leaves [C, ...], `weight` [C].

    A weight of 0 marks a client that sent nothing (its values are then 0, never NaN).
    """

    value: PyTree
    weight: jax.Array


Upload = Mapping[str, Mean | Each]  # slot (a part or a modality) -> what travels


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ClientData:
    """What one client sees: its rows of the cohort's example arrays, and the public examples."""

    arrays: Arrays  # leaves [E, ...], shared by the cohort; a step gathers its batch by row number
    rows: jax.Array  # [R] int32; the first `count` are this client's own
    count: jax.Array  # [] int32, M
    weight: jax.Array  # [] float32; its weight in an average, 0 for a padding client
    public: Arrays | None  # leaves [P, ...]
    uniform: bool = dataclasses.field(default=False, metadata={"static": True})  # every client owns exactly R rows


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CohortRound:
    """Who takes part from one cohort, and with which rows. A padding client has index N and weight 0.

    `place` says in which row of the FedState's `clients` a participant's state is, where they hold participants alone
    (a padding client's is its own or beyond their end). None: all N are there, and a client's place is its number.
    """

    index: jax.Array  # [C] int32
    weight: jax.Array  # [C] float32
    rows: jax.Array  # [C, R] int32
    count: jax.Array  # [C] int32
    arrays: Arrays  # leaves [E, ...]
    uniform: bool = dataclasses.field(default=False, metadata={"static": True})
    place: jax.Array | None = None  # [C] int32


class RoundData(NamedTuple):
    """One round's input. Its shapes never change within a stage, whoever is drawn."""

    cohorts: Mapping[str, CohortRound]
    public: Arrays | None = None  # leaves [P, ...]


class CohortPopulation(NamedTuple):
    """What is known of a cohort before any of its examples is seen."""

    size: int  # N
    arrays: Mapping[str, jax.ShapeDtypeStruct]  # leaves [E, ...]
    classes: np.ndarray | None = None  # [N, K] examples of each class that each client owns, where there is `label` [E]


class Population(NamedTuple):
    """Who there is, and the shapes of what they hold: all that a method is built from."""

    cohorts: Mapping[str, CohortPopulation]
    public: Mapping[str, jax.ShapeDtypeStruct] | None = None  # leaves [P, ...]

    @property
    def sizes(self) -> dict[str, int]:
        """Clients per cohort, N."""
        return {name: cohort.size for name, cohort in self.cohorts.items()}

    @property
    def population(self) -> "Population":
        """Itself, so that a method is built from a population as from a FederatedData."""
        return self


class HasPopulation(Protocol):
    """A Population or a FederatedData: what every `build` takes."""

    @property
    def population(self) -> Population: ...


class Cohort(NamedTuple):
    """Clients with the same shapes. Its functions speak of ONE client.

    `init(key, server)` gives the client's state before its first round, `()` where it keeps none; `server` is the
    server's own first state. A function of the key alone is taken too.

    `score(download, state, arrays, mask)`, where there is one, gives {name: [B]}: how well the client's model does on
    each of its own test rows, which are leaves [B, ...]; `mask` [B] is 0 where a row is padding. More is better, but
    for a name that ends in "loss" or "error".
    """

    size: int  # N
    init: Callable[[Key, PyTree], PyTree] | Callable[[Key], PyTree]
    update: Callable[[Download, PyTree, ClientData, Key], tuple[Upload, PyTree, Metrics]]
    score: Callable[[Download, PyTree, Arrays, jax.Array], Mapping[str, jax.Array]] | None = None


class Server(NamedTuple):
    """The server's functions. `update` gets {cohort: {slot: Mean | Each}}.

    `begin`, where there is one, is what a server does before it sends anything: training on the public examples.
    """

    init: Callable[[Key], PyTree]
    download: Callable[[PyTree, Arrays | None], Mapping[str, Download]]
    update: Callable[[PyTree, Mapping[str, Upload], Arrays | None, Key], tuple[PyTree, Metrics]]
    begin: Callable[[PyTree, Arrays | None, Key], tuple[PyTree, Metrics]] | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FedState:
    """All there is to checkpoint."""

    server: PyTree
    clients: Mapping[str, PyTree]  # leaves [N, ...]
    round: jax.Array  # [] int32


class OverClients(NamedTuple):
    """How a round maps over its clients. Every choice gives the same result.

    `chunk` clients are vmapped at a time and the chunks scanned; a mapping gives each cohort its own. `mesh`, with
    one axis named "clients", spreads the clients over its devices (None: one device).
    """

    chunk: int | Mapping[str, int] = 1
    mesh: jax.sharding.Mesh | None = None
