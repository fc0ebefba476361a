"""What a row is: a method's round at full size, made of shapes alone."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_mm.federate import Method
from fedjax_mm.types import (
    CohortPopulation,
    CohortRound,
    FedState,
    Key,
    OverClients,
    Population,
    PyTree,
    RoundData,
)

Shape = jax.ShapeDtypeStruct
BOTH = ("bfloat16", "float32")


class Workload(NamedTuple):
    """A method, and the shapes of what its round takes."""

    method: Method
    state: FedState
    data: RoundData
    trips: float = 1.0
    """Of the loops whose length the program does not say."""

    def round(self, over: OverClients) -> tuple[Callable, tuple[FedState, RoundData, Key]]:
        """(the round with clients mapped that way, the shapes of its arguments)."""
        key = jax.eval_shape(lambda: jax.random.key(0))
        return self.method._replace(over=over).round, (self.state, self.data, key)


@dataclasses.dataclass(frozen=True)
class Row:
    """A round that is compiled at several chunks."""

    about: str
    """What is trained, by how many clients, for how many steps."""
    make: Callable[..., Workload]
    """dtype -> the workload with arithmetic of that type."""
    chunks: tuple[int, ...] = (1,)
    """Clients vmapped at a time."""
    dtypes: tuple[str, ...] = BOTH
    """Types of arithmetic that the models have."""
    takes_mesh: bool = False
    """Whether `make` takes the mesh too, None on one device."""
    off_device: bool = False
    """Whether several devices split the examples and the public ones (`on_device=False`, `split_public=True`)."""


class Clients(NamedTuple):
    """A cohort whose clients all own as many examples, so that the program says how many steps they take."""

    size: int
    examples: int  # of each client
    arrays: Mapping[str, Shape]  # of one example
    taking_part: int | None = None  # in a round; None: all

    def population(self) -> CohortPopulation:
        """What a method is built from."""
        arrays = {name: stacked(self.size * self.examples, x) for name, x in self.arrays.items()}
        return CohortPopulation(self.size, arrays, counts=np.full(self.size, self.examples))

    def round(self) -> CohortRound:
        """Who takes part, in shapes."""
        number, arrays = self.taking_part or self.size, self.population().arrays
        whole, real = lambda *shape: Shape(shape, np.int32), Shape((number,), np.float32)
        given: tuple[Any, ...] = (whole(number), real, whole(number, self.examples), whole(number), arrays)
        return CohortRound(*given, uniform=True)


def stacked(number: int, example: Shape) -> Shape:
    """The shape of so many examples."""
    return Shape((number, *example.shape), example.dtype)


def workload(
    build: Callable[..., Method],
    cohorts: Mapping[str, Clients],
    public: Mapping[str, Shape] | None = None,
    given: PyTree = (),
    trips: float = 1.0,
) -> Workload:
    """The workload of `build(population, *given)`, whose state is traced, so that no parameter is ever made.

    public: shapes [P, ...]. given: shapes that a method is built on, such as a frozen trunk's.
    """
    population = Population({name: clients.population() for name, clients in cohorts.items()}, public)
    state = jax.eval_shape(lambda given: build(population, *given).init(jax.random.key(0)), given)
    shared: Any = public
    data = RoundData({name: clients.round() for name, clients in cohorts.items()}, shared)
    return Workload(build(population, *given), state, data, trips)
