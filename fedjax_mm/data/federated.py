"""Which client owns which examples, and one round's share of them."""

import dataclasses
from collections.abc import Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_mm.checks import check_flag, check_mapping, check_whole, say
from fedjax_mm.data import ownership, participants
from fedjax_mm.data.incoming import check_arrays, value_ranges
from fedjax_mm.data.ownership import Owners
from fedjax_mm.data.participants import Participants
from fedjax_mm.data.partition import split_table
from fedjax_mm.streamed import concatenated, is_streamed, picked
from fedjax_mm.types import Arrays, ClientData, CohortPopulation, CohortRound, Population, RoundData

LEAST_PLACES = 128  # row numbers that a ragged cohort's client has room for: they cost nothing, a compilation does


@dataclasses.dataclass(frozen=True)
class CohortExamples:
    """A cohort's example arrays, and which of their rows each client owns.

    Client j trains on the rows `rows[offsets[j]:offsets[j + 1]]`. Where clients have test rows of their own, those of
    client j are `test_rows[test_offsets[j]:test_offsets[j + 1]]`, and it trains on none of them.
    """

    arrays: Arrays  # leaves [E, ...]
    rows: np.ndarray  # int32
    offsets: np.ndarray  # [N + 1] int64
    test_rows: np.ndarray | None = None  # int32
    test_offsets: np.ndarray | None = None  # [N + 1] int64

    @property
    def counts(self) -> np.ndarray:
        """[N] how many examples each client trains on."""
        return np.diff(self.offsets)

    @property
    def test_counts(self) -> np.ndarray | None:
        """[N] how many test rows each client has; None where the cohort has none."""
        return None if self.test_offsets is None else np.diff(self.test_offsets)


@dataclasses.dataclass(frozen=True)
class FederatedData:
    """The examples of a federation by cohort and client, and the public examples.

    on_device: True keeps the arrays on the accelerator, where each step gathers its batch. False leaves them where
        they are (NumPy arrays, memory-mapped ones too), and `round` takes only the participants' rows. An array that is
        a Streamed (see data.streams) is read batch by batch with either.

    >>> arrays = {"x": np.arange(6.0), "label": np.array([0, 1, 0, 1, 1, 0])}
    >>> data = FederatedData.from_arrays(arrays, np.array([0, 0, 1, 1, 1, 0]))  # the client of each example
    >>> data.sizes
    {'all': 2}
    >>> data.split()["all"]["classes"]  # how many examples of each class each client owns
    [[2, 1], [1, 2]]
    >>> data.client("all", 1).rows
    Array([2, 3, 4], dtype=int32)
    """

    cohorts: Mapping[str, CohortExamples]
    public: Arrays | None
    on_device: bool = True

    @classmethod
    def from_arrays(
        cls,
        arrays: Mapping,
        clients: Mapping[str, Owners] | Owners,
        *,
        public: Mapping | None = None,
        num_classes: int | None = None,
        on_device: bool = True,
        test: Mapping[str, Owners] | Owners | None = None,
    ) -> "FederatedData":
        """Returns the federation of anyone's own arrays, with leaves [E, ...].

        arrays: name -> array, nested list or Streamed, of booleans, integers or floats. A name is a text without a
            slash.
        clients: a client number per example [E], as an array or a plain list; or a list of row numbers per client; or,
            for several cohorts, a mapping from cohort to either. Then `arrays` may be a mapping from cohort to its
            arrays (what a cohort lacks is simply not in it), or one mapping for all. A row may stand twice in one
            list, and in the lists of several clients: it then counts as often.
        public: arrays [P, ...] that the server and all clients share.
        num_classes: if given, `label` is checked to lie in 0..num_classes-1.
        on_device: see the class.
        test: each client's own test rows, in the same forms as `clients`; a client trains on none of them. In a client
            number per example -1 means that the example is nobody's: with `test` it may stand in `clients` too. A
            cohort that the mapping does not name has no test rows. `partition.hold_out` makes them.

        Raises ValueError, naming the array, for unequal lengths, NaN or infinite values, numbers that the dtype on the
        device does not hold (int64 beyond 32 bits), rows or labels out of range, and a cohort in which nobody owns an
        example. A client without examples is fine: it never counts.
        Raises ValueError, naming the cohort, where `test` has another number of clients, a row out of range, or a row
        that a client of the cohort trains on.
        """
        if num_classes is not None:
            check_whole("num_classes", num_classes, least=1)
        check_flag("on_device", on_device)
        several = isinstance(clients, Mapping)
        clients, test = ownership.name_cohorts(clients, test)
        check_mapping("arrays", arrays, "name to array")
        nested = several and set(arrays) == set(clients) and all(isinstance(a, Mapping) for a in arrays.values())
        checked, cohorts = {}, {}
        for name, owned in clients.items():
            own = check_arrays(name, arrays[name] if nested else arrays, num_classes, on_device, checked)
            length, own_test = len(next(iter(own.values()))), test.get(name)
            rows, offsets = ownership.read_owners(name, owned, length, nobody=own_test is not None)
            cohorts[name] = CohortExamples(own, rows, offsets)
            if own_test is not None:
                tested = ownership.read_test_owners(name, own_test, length, rows, offsets)
                cohorts[name] = dataclasses.replace(cohorts[name], test_rows=tested[0], test_offsets=tested[1])
        if public is not None:
            public = check_arrays("public", public, num_classes, True, {})
        return cls(cohorts, public, on_device)

    @property
    def sizes(self) -> dict[str, int]:
        """How many clients each cohort has, N."""
        return {name: len(c.counts) for name, c in self.cohorts.items()}

    @property
    def population(self) -> Population:
        """The cohorts, their clients, and the shapes of what these own: all that a method is built from."""
        shapes = lambda arrays: {k: jax.ShapeDtypeStruct(np.shape(x), x.dtype) for k, x in arrays.items()}
        cohorts = {}
        for name, table in self.split().items():
            cohort, classes = self.cohorts[name], table.get("classes")
            classes = None if classes is None else np.array(classes)
            ranges = value_ranges(cohort.arrays, _owned_rows(cohort))
            cohorts[name] = CohortPopulation(len(cohort.counts), shapes(cohort.arrays), classes, ranges, cohort.counts)
        if self.public is None:
            return Population(cohorts)
        return Population(cohorts, shapes(self.public), value_ranges(self.public, slice(None)))

    def split(self) -> dict[str, dict]:
        """Returns which client owns what, as plain lists by cohort, which `report.plot_split` takes.

        "examples" [N] is how many examples each client trains on, and "arrays" are the names of the cohort's arrays.
        "classes" [N, K], where there is a `label` [E], is how many of these are of each class. "test" [N], where the
        cohort has test rows, is how many test rows each client has.
        """
        table = {}
        for name, cohort in self.cohorts.items():
            table[name] = {"examples": cohort.counts.tolist(), "arrays": sorted(cohort.arrays)}
            if "label" in cohort.arrays and np.ndim(cohort.arrays["label"]) == 1:
                labels = np.asarray(cohort.arrays["label"])
                parts = np.split(np.arange(len(cohort.rows)), cohort.offsets[1:-1])
                table[name]["classes"] = split_table(parts, labels[cohort.rows], int(labels.max()) + 1).tolist()
            if cohort.test_counts is not None:
                table[name]["test"] = cohort.test_counts.tolist()
        return table

    def test_rows(self, cohort: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns the test rows of all N clients of a cohort, padded to the longest: rows [N, T], mask [N, T].

        rows: int32 row numbers in the cohort's arrays, 0 where a client has fewer than T. mask: float32, 1 where a
        row is a client's own and 0 where it is padding. Raises ValueError where the cohort has no test rows.
        """
        examples = self._cohort(cohort)
        if examples.test_rows is None or examples.test_counts is None:
            raise ValueError(f"clients of {cohort} have no test rows; give them with from_arrays(..., test=...)")
        real = np.arange(examples.test_counts.max()) < examples.test_counts[:, None]
        rows = np.zeros(real.shape, np.int32)
        rows[real] = examples.test_rows  # they lie client by client, as the rows of `real` do
        return rows, real.astype(np.float32)

    def client(self, cohort: str, number: int) -> ClientData:
        """Returns what client `number` of a cohort sees, so that its update can be called by hand.

        Raises ValueError for a cohort or a number that there is not.
        """
        last = len(self._cohort(cohort).counts) - 1
        part = self._cohort_round(
            cohort, np.array([check_whole(f"the number of a client of {cohort}", number, 0, last)])
        )
        scalars = jnp.asarray(part.count[0]), jnp.asarray(part.weight[0])
        own = part.uniform, jnp.int32(number)
        return ClientData(part.arrays, jnp.asarray(part.rows[0]), *scalars, self.public, *own)

    def round(self, chosen: Mapping[str, np.ndarray | Participants]) -> RoundData:
        """Returns the data of a round in which the clients `chosen` take part.

        chosen: client numbers [C] for each cohort, or Participants; the number N stands for nobody. A client's weight
        is its number of examples, if nothing else is said. Participants are sorted by their number of examples, so that
        clients of like length share a chunk.
        Raises ValueError for other cohorts, for numbers that are no clients', and for a client that is named twice.
        """
        if set(check_mapping("chosen", chosen, "cohort to client numbers")) != set(self.cohorts):
            named = sorted(map(str, chosen))
            raise ValueError(f"participants named for cohorts {named}; the data has {sorted(self.cohorts)}")
        return RoundData({name: self._cohort_round(name, i) for name, i in chosen.items()}, self.public)

    def _cohort(self, name: str) -> CohortExamples:
        if not isinstance(name, str) or name not in self.cohorts:
            raise ValueError(f"there is no cohort {name!r}; the data has {sorted(self.cohorts)}")
        return self.cohorts[name]

    def _cohort_round(self, name: str, chosen: np.ndarray | Participants) -> CohortRound:
        cohort = self.cohorts[name]
        counts = np.append(cohort.counts, 0)
        index, weigh, work = participants.checked(name, chosen, len(cohort.counts))
        order, weight = np.argsort(-counts[index], kind="stable"), weigh(counts[index])
        index, weight = index[order].astype(np.int32), weight[order]
        count, most = counts[index].astype(np.int32), counts.max()
        uniform = bool((cohort.counts == most).all())
        if not uniform:  # so that another split of as many clients compiles to the same program
            most = max(1 << int(most - 1).bit_length(), LEAST_PLACES if self.on_device else 1)
        places = np.arange(most) < count[:, None]  # [C, R]
        rows = np.zeros(places.shape, np.int32)
        start = np.append(cohort.offsets[:-1], 0)[index]
        rows[places] = cohort.rows[(start[:, None] + np.arange(most))[places]]
        arrays = cohort.arrays
        if not self.on_device:
            arrays = {k: jnp.asarray(v[rows.ravel()]) for k, v in arrays.items()}
            rows = np.arange(rows.size, dtype=np.int32).reshape(rows.shape)
        # These stay NumPy arrays until the loop puts them on the devices, of which there may be several.
        typed = lambda x: cast(jax.Array, x)
        work = None if work is None else typed(work[order])
        return CohortRound(typed(index), typed(weight), typed(rows), typed(count), arrays, uniform, work=work)


def pooled(data: FederatedData) -> FederatedData:
    """Returns the same training examples as those of one client in the cohort "pooled": the centralised control.

    An example keeps the arrays that its owner had of it. Where its owner lacked a modality, its values are 0 and
    `has_<modality>` [E] is False. It has no test rows of its own.

    >>> arrays = {"A": {"x": np.array([1.0, 2.0])}, "A+B": {"x": np.array([3.0]), "y": np.array([4.0])}}
    >>> data = FederatedData.from_arrays(arrays, {"A": [[0], [1]], "A+B": [[0]]})
    >>> {name: array.tolist() for name, array in pooled(data).cohorts["pooled"].arrays.items()}
    {'x': [1.0, 2.0, 3.0], 'y': [0.0, 0.0, 4.0], 'has_y': [False, False, True]}
    """
    if not isinstance(data, FederatedData):
        raise ValueError(f"data is {say(data)}; give a FederatedData")
    keys = dict.fromkeys(k for cohort in data.cohorts.values() for k in cohort.arrays)
    parts = {key: [] for key in keys} | {f"has_{key}": [] for key in keys}
    like = {k: v for cohort in data.cohorts.values() for k, v in cohort.arrays.items()}
    for cohort in data.cohorts.values():
        for key in keys:
            has = key in cohort.arrays
            shape = (len(cohort.rows), *like[key].shape[1:])
            parts[key].append(picked(cohort.arrays[key], cohort.rows) if has else np.zeros(shape, like[key].dtype))
            parts[f"has_{key}"].append(np.full(len(cohort.rows), has))
    join = lambda part: concatenated(part) if any(map(is_streamed, part)) else np.concatenate(part)
    arrays: dict[str, Any] = {key: join(part) for key, part in parts.items()}
    arrays = {k: v for k, v in arrays.items() if not (k.startswith("has_") and v.all())}
    everything = {"pooled": [np.arange(len(next(iter(arrays.values()))))]}
    return FederatedData.from_arrays(arrays, everything, public=data.public, on_device=data.on_device)


def _owned_rows(cohort: CohortExamples) -> np.ndarray:
    """The rows that clients train on or are tested on."""
    return cohort.rows if cohort.test_rows is None else np.concatenate([cohort.rows, cohort.test_rows])
