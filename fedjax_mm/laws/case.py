"""What the laws share: a method with its data, compiled once."""

import dataclasses
import functools
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_mm import clients, costs, transforms, trees
from fedjax_mm.checks import check_number, check_whole, say
from fedjax_mm.data.federated import FederatedData
from fedjax_mm.federate import Method
from fedjax_mm.laws.deviation import rows
from fedjax_mm.types import ClientData, Download, FedState, Key, Metrics, PyTree, RoundData, Upload

Run = tuple[FedState, list[dict[str, float]]]  # the last state, and the log


class DoesNotApply(Exception):
    """A law has nothing to say about this method and data, for the reason that the message gives."""


class ClientPart(NamedTuple):
    """One client's part of a round, outside the engine."""

    sent: Upload  # as the update gives it
    travels: Upload  # as the method's transforms encode it
    arrives: Upload  # as they decode it again
    state: PyTree
    finite: jax.Array


@dataclasses.dataclass(frozen=True)
class Case:
    """A method and the data it is checked on. Whatever several laws need is computed once.

    per_round: how many clients take part in a round, as `clients.choose` takes it.
    seed: of the states, of the draw of participants and of the rounds.
    tolerance: the deviation allowed where the order of a sum may differ.
    rounding: the deviation allowed between two programs of which a law asks the same bits.
    """

    method: Method
    data: FederatedData
    per_round: int | Mapping[str, int]
    seed: int = 0
    tolerance: float = 1e-5
    rounding: float = 0.0

    @property
    def key(self) -> Key:
        """The key of all rounds."""
        return jax.random.key(self.seed + 1)

    @functools.cached_property
    def init(self) -> Callable[[Key], FedState]:
        """`method.init`, jitted."""
        return jax.jit(self.method.init)

    @functools.cached_property
    def step(self) -> jax.stages.Wrapped:
        """`method.round`, jitted."""
        return jax.jit(self.method.round)

    @functools.cached_property
    def state(self) -> FedState:
        """The state before the first round."""
        return self.init(jax.random.key(self.seed))

    @functools.cached_property
    def taken(self) -> RoundData:
        """The data of the first round."""
        return self.round_data(0)

    @functools.cached_property
    def after(self) -> tuple[FedState, Mapping[str, Metrics]]:
        """The state after the first round, and its metrics."""
        return self.step(self.state, self.taken, self.key)

    def round_data(self, number: int) -> RoundData:
        """The data of the round of this number, from 0."""
        return self.data.round(clients.choose(self.data.sizes, self.per_round, number, self.seed))

    def round_key(self, state: FedState) -> Key:
        """The key that a round folds its own draws into."""
        return jax.random.fold_in(jax.random.fold_in(self.key, 1), state.round)

    @functools.cached_property
    def begin(self) -> Callable[[PyTree, Any, Key], tuple[PyTree, Mapping[str, Download]]]:
        """The server's beginning and its downloads, jitted: (state, public, the round's key) -> (state, downloads)."""

        def begin(server, public, key):
            if self.method.server.begin:
                server, _ = self.method.server.begin(server, public, jax.random.fold_in(key, 1))
            return server, self.method.server.download(server, public)

        return jax.jit(begin)

    @functools.cached_property
    def update(self) -> Callable[..., tuple[PyTree, Metrics]]:
        """The server's update, jitted."""
        return jax.jit(self.method.server.update)

    @functools.cached_property
    def client(self) -> Mapping[str, jax.stages.Wrapped]:
        """One client's part of a round in each cohort, jitted: (download, state, ClientData, key) -> ClientPart."""
        return {name: jax.jit(functools.partial(_client_part, self.method, name)) for name in self.method.cohorts}

    def client_data(self, name: str, place: int) -> ClientData:
        """What the participant at `place` of a cohort sees in the first round."""
        taken = self.taken.cohorts[name]
        own = taken.rows[place], taken.count[place], taken.weight[place]
        return ClientData(taken.arrays, *own, self.taken.public, taken.uniform, taken.index[place])

    def client_state(self, name: str, place: int) -> PyTree:
        """The state before the first round of the participant at `place` of a cohort."""
        taken = self.taken.cohorts[name]
        number = np.minimum(taken.index[place], self.method.cohorts[name].size - 1)  # a padding client gets anyone's
        return rows(self.state.clients[name], number)

    def present(self, name: str) -> np.ndarray:
        """The places of the cohort's participants that count in the first round."""
        taken = self.taken.cohorts[name]
        return np.flatnonzero((np.asarray(taken.index) < self.method.cohorts[name].size) & (taken.weight > 0))

    @functools.cached_property
    def costs(self) -> Mapping[str, costs.Cost]:
        """What a round costs."""
        return costs.of(self.method, self.taken)

    @functools.cached_property
    def trained(self) -> tuple[Run, Run]:
        """Four rounds of `run.train`, and the same run as it goes on after it was killed in its third round."""
        from fedjax_mm.run import records

        with tempfile.TemporaryDirectory() as folder:
            files = {"directory": folder, "checkpoint_every": 2}
            whole = self.train(**files), records.read_metrics(folder)
            shutil.rmtree(pathlib.Path(folder) / "checkpoints" / "4")
            return whole, (self.train(**files), records.read_metrics(folder))

    def train(self, **settings: Any) -> FedState:
        """The state after four rounds of `run.train`."""
        from fedjax_mm import run

        fixed = {"rounds": 4, "per_round": self.per_round, "seed": self.seed, "log": lambda line: None}
        return run.train(self.method, self.data, **fixed, **settings)


def make_case(
    method: Method,
    data: FederatedData,
    per_round: int | Mapping[str, int] | None = None,
    seed: int = 0,
    tolerance: float = 1e-5,
    rounding: float = 0.0,
) -> Case:
    """The case of a method and its data. per_round: None is up to 4 of each cohort, one fewer than it has.

    Raises ValueError where the two do not fit.
    """
    if not isinstance(method, Method):
        raise ValueError(f"the laws are about one Method, not {type(method).__name__}; check the method of each stage")
    if not isinstance(data, FederatedData):
        raise ValueError(f"data is {say(data)}; give a FederatedData")
    seed = check_whole("seed", seed)
    tolerance, rounding = check_number("tolerance", tolerance, 0), check_number("rounding", rounding, 0)
    sizes = {name: cohort.size for name, cohort in method.cohorts.items()}
    if sizes != data.sizes:
        raise ValueError(f"the method has cohorts of {sizes} clients; the data has {data.sizes}")
    if per_round is None:
        per_round = {name: min(4, max(1, size - 1)) for name, size in sizes.items()}
    clients.choose(sizes, per_round, 0, seed)  # a bad number is an error here
    return Case(method, data, per_round, seed, tolerance, rounding)


def _client_part(method: Method, name: str, download: Download, state: PyTree, data: ClientData, key: Key):
    """The keys are the engine's: 0 is folded in for the update, 1 for the transforms."""
    update = method.cohorts[name].update(download, state, data, jax.random.fold_in(key, 0))
    sent, new, _ = jax.tree.map(jnp.asarray, update)
    travels = transforms.encode(method.upload, sent, download.sent, jax.random.fold_in(key, 1))
    arrives = transforms.decode(method.upload, travels, download.sent)
    return ClientPart(sent, travels, arrives, new, trees.all_finite((arrives, new)))
