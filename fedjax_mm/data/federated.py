"""Which client owns which examples, and one round's share of them."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_mm.data.partition import split_table
from fedjax_mm.types import Arrays, ClientData, CohortPopulation, CohortRound, Population, RoundData

RESERVED = "mask"  # local_steps adds it to every batch


@dataclasses.dataclass(frozen=True)
class CohortExamples:
    """A cohort's flat example arrays (leaves [E, ...]) and the rows of client j: rows[offsets[j]:offsets[j + 1]]."""

    arrays: Arrays
    rows: np.ndarray  # int32
    offsets: np.ndarray  # [N + 1] int64

    @property
    def counts(self) -> np.ndarray:
        """[N] examples of each client."""
        return np.diff(self.offsets)


@dataclasses.dataclass(frozen=True)
class FederatedData:
    """Examples by cohort and client, and the public examples.

    on_device: the arrays live on the accelerator and a step gathers its batch there; else they stay where they are
        (NumPy, also memory-mapped) and `round` brings the participants' rows alone.
    """

    cohorts: Mapping[str, CohortExamples]
    public: Arrays | None
    on_device: bool = True

    @classmethod
    def from_arrays(
        cls,
        arrays: Mapping,
        clients: Mapping | Sequence | np.ndarray,
        *,
        public: Mapping | None = None,
        num_classes: int | None = None,
        on_device: bool = True,
    ) -> "FederatedData":
        """Anyone's own arrays, with leaves [E, ...].

        clients: a client number per example [E]; or a list of row numbers per client; or, for several cohorts, a
            mapping from cohort to either. Then `arrays` may be a mapping from cohort to its arrays (what a cohort
            lacks is simply not in it), or one mapping for all.
        public: arrays [P, ...] that the server and all clients share.
        num_classes: if given, `label` is checked to lie in 0..num_classes-1.

        Raises ValueError, naming the array, for unequal lengths, NaN or infinite values, rows or labels out of
        range, and a cohort in which nobody owns an example. A client without examples is fine: it never counts.
        """
        several = isinstance(clients, Mapping)
        clients = clients if several else {"all": clients}
        nested = several and set(arrays) == set(clients) and all(isinstance(a, Mapping) for a in arrays.values())
        checked, cohorts = {}, {}
        for name, owned in clients.items():
            own = arrays[name] if nested else arrays
            for key, value in own.items():
                if (key, id(value)) not in checked:  # cohorts that are given one array share one copy
                    checked[key, id(value)] = _checked(key, value, num_classes if key == "label" else None, on_device)
            own = {key: checked[key, id(value)] for key, value in own.items()}
            cohorts[name] = CohortExamples(own, *_ragged(name, owned, _length(name, own)))
        if public is not None:
            public = {k: _checked(k, v, num_classes if k == "label" else None, True) for k, v in public.items()}
            _length("public", public)
        return cls(cohorts, public, on_device)

    @property
    def sizes(self) -> dict[str, int]:
        """Clients per cohort, N."""
        return {name: len(c.counts) for name, c in self.cohorts.items()}

    @functools.cached_property
    def population(self) -> Population:
        """Who there is, and the shapes of what they hold: all that a method is built from."""
        shapes = lambda arrays: {k: jax.ShapeDtypeStruct(np.shape(x), x.dtype) for k, x in arrays.items()}
        tables = {name: table.get("classes") for name, table in self.split().items()}
        cohorts = {
            name: CohortPopulation(
                len(cohort.counts), shapes(cohort.arrays), None if tables[name] is None else np.array(tables[name])
            )
            for name, cohort in self.cohorts.items()
        }
        return Population(cohorts, None if self.public is None else shapes(self.public))

    def split(self) -> dict[str, dict]:
        """Who holds what, by cohort: "examples" [N] of each client, the names of its "arrays", and where these have
        a `label`, "classes" [N, K], how many of each class; plain lists, as `report.plot_split` takes them."""
        table = {}
        for name, cohort in self.cohorts.items():
            table[name] = {"examples": cohort.counts.tolist(), "arrays": sorted(cohort.arrays)}
            if "label" in cohort.arrays and np.ndim(cohort.arrays["label"]) == 1:
                labels, parts = np.asarray(cohort.arrays["label"]), np.split(cohort.rows, cohort.offsets[1:-1])
                table[name]["classes"] = split_table(parts, labels, int(labels.max()) + 1).tolist()
        return table

    def client(self, cohort: str, number: int) -> ClientData:
        """What client `number` of a cohort sees, for calling its update by hand."""
        part = self._cohort_round(cohort, np.array([number]))
        scalars = jnp.asarray(part.count[0]), jnp.asarray(part.weight[0])
        return ClientData(part.arrays, jnp.asarray(part.rows[0]), *scalars, self.public, part.uniform)

    def round(self, chosen: Mapping[str, np.ndarray]) -> RoundData:
        """The data of a round in which clients `chosen` (per cohort [C] client numbers, N for nobody) take part.

        A client weighs as many as it has examples. Participants come sorted by their number of examples, so that
        a chunk holds clients of like length.
        """
        if set(chosen) != set(self.cohorts):
            raise ValueError(f"participants named for cohorts {sorted(chosen)}; the data has {sorted(self.cohorts)}")
        return RoundData({name: self._cohort_round(name, np.asarray(i)) for name, i in chosen.items()}, self.public)

    def _cohort_round(self, name: str, index: np.ndarray) -> CohortRound:
        cohort = self.cohorts[name]
        counts = np.append(cohort.counts, 0)
        if len(index) and (index.min() < 0 or index.max() >= len(counts)):
            raise ValueError(f"cohort {name} has clients 0..{len(counts) - 2}, not {index.min()}..{index.max()}")
        index = index[np.argsort(-counts[index], kind="stable")].astype(np.int32)
        count, most = counts[index].astype(np.int32), counts.max()
        uniform = bool((cohort.counts == most).all())
        if not uniform:  # so that another split of as many clients compiles to the same program
            most = 1 << int(most - 1).bit_length()
        places = np.arange(most) < count[:, None]  # [C, R]
        rows = np.zeros(places.shape, np.int32)
        start = np.append(cohort.offsets[:-1], 0)[index]
        rows[places] = cohort.rows[(start[:, None] + np.arange(most))[places]]
        arrays = cohort.arrays
        if not self.on_device:
            arrays = {k: jnp.asarray(v[rows.ravel()]) for k, v in arrays.items()}
            rows = np.arange(rows.size, dtype=np.int32).reshape(rows.shape)
        return CohortRound(index, count.astype(np.float32), rows, count, arrays, uniform)


def pooled(data: FederatedData) -> FederatedData:
    """The same examples in one client's hands, the cohort "pooled": the centralised control.

    An example keeps what its owner had of it and lacks what it lacked: `has_<modality>` [E] says so, and its values
    there are 0.
    """
    keys = dict.fromkeys(k for cohort in data.cohorts.values() for k in cohort.arrays)
    parts = {key: [] for key in keys} | {f"has_{key}": [] for key in keys}
    like = {k: v for cohort in data.cohorts.values() for k, v in cohort.arrays.items()}
    for cohort in data.cohorts.values():
        for key in keys:
            held = key in cohort.arrays
            shape = (len(cohort.rows), *like[key].shape[1:])
            parts[key].append(np.asarray(cohort.arrays[key])[cohort.rows] if held else np.zeros(shape, like[key].dtype))
            parts[f"has_{key}"].append(np.full(len(cohort.rows), held))
    arrays = {key: np.concatenate(part) for key, part in parts.items()}
    arrays = {k: v for k, v in arrays.items() if not (k.startswith("has_") and v.all())}
    everything = {"pooled": [np.arange(len(next(iter(arrays.values()))))]}
    return FederatedData.from_arrays(arrays, everything, public=data.public, on_device=data.on_device)


def _length(name: str, arrays: Arrays) -> int:
    lengths = {key: np.shape(a)[0] for key, a in arrays.items()}
    if not lengths or len(set(lengths.values())) > 1:
        raise ValueError(f"the arrays of {name} must have one common length, got {lengths}")
    return next(iter(lengths.values()))


def _checked(key: str, value, num_classes: int | None, on_device: bool):
    if key == RESERVED:
        raise ValueError(f"an array may not be called {RESERVED!r}: every batch has one of that name; rename yours")
    if np.ndim(value) == 0:
        raise ValueError(f"array {key!r} is a scalar; its first axis must count examples")
    if np.issubdtype(value.dtype, np.floating):
        bad = ~np.isfinite(value).reshape(len(value), -1).all(1)
        if bad.any():
            rows = np.flatnonzero(bad)
            raise ValueError(
                f"array {key!r} has NaN or infinite values in {len(rows)} examples, first in row {rows[0]};"
                " drop or fill them"
            )
    elif value.dtype.kind not in "iub":
        raise ValueError(f"array {key!r} has dtype {value.dtype}; give numbers (tokenise text, number the classes)")
    if num_classes is not None and len(value) and not (0 <= np.min(value) and np.max(value) < num_classes):
        raise ValueError(
            f"labels must lie in 0..{num_classes - 1}, got {np.min(value)}..{np.max(value)}; renumber the classes"
        )
    return jnp.asarray(value) if on_device else value


def _ragged(name: str, owned, length: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows, offsets) from a client number per example, or from a list of row numbers per client."""
    if isinstance(owned, np.ndarray | jax.Array) and owned.ndim == 1 and owned.dtype.kind in "iu":
        owner = np.asarray(owned)
        if len(owner) != length:
            raise ValueError(f"{len(owner)} client numbers for {length} examples of {name}; give one for each")
        if length and owner.min() < 0:
            raise ValueError(f"client numbers of {name} must not be negative, got {owner.min()}")
        counts, rows = np.bincount(owner), np.argsort(owner, kind="stable")
    else:
        parts = [np.asarray(part, np.int64).reshape(-1) for part in owned]
        counts = np.array([len(part) for part in parts], np.int64)
        rows = np.concatenate(parts) if parts else np.zeros(0, np.int64)
        if len(rows) and (rows.min() < 0 or rows.max() >= length):
            raise ValueError(f"clients of {name} own rows {rows.min()}..{rows.max()}, but it has rows 0..{length - 1}")
    if counts.sum() == 0:
        raise ValueError(f"no client of {name} owns an example; give it some, or leave the cohort out")
    return rows.astype(np.int32), np.concatenate([[0], np.cumsum(counts)])
