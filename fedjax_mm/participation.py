"""Who takes part in a round, as pure functions `choose(key, round)` that `run.train(choose=...)` takes.

Each function here makes such a chooser: uniform, by size, each client on its own, or by a trace of who is available.
`with_dropout` and `with_deadline` change what another one gives. A chooser's draw depends on the key and the round
alone, so a run that goes on has the participants that it would have had.
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from fedjax_mm import clients
from fedjax_mm.checks import (
    check_array,
    check_callable,
    check_flag,
    check_mapping,
    check_number,
    check_whole,
    population_of,
    say,
)
from fedjax_mm.data.participants import Participants
from fedjax_mm.types import HasPopulation, Key

Chosen = Mapping[str, np.ndarray | Participants]


class Chooser(Protocol):
    """`choose(key, round)` gives each cohort's participants, always as many places of them."""

    def __call__(self, key: Key, round: int, /) -> Chosen: ...


def uniform(data: HasPopulation, per_round: int | Mapping[str, int]) -> Chooser:
    """Every client is as likely as any other, without replacement. per_round: as of `clients.choose`.

    >>> from fedjax_mm.types import CohortPopulation, Population
    >>> ten = Population({"all": CohortPopulation(10, {})})
    >>> uniform(ten, 3)(jax.random.key(0), 0)["all"].shape
    (3,)
    """
    sizes = population_of(data).sizes
    clients.choose(sizes, per_round, 0, 0)  # a bad number is an error here
    return lambda key, round: clients.choose(sizes, per_round, round, int(_rng(key, round, "").integers(2**62)))


def by_size(data: HasPopulation, per_round: int | Mapping[str, int]) -> Chooser:
    """Clients are drawn in proportion to their numbers of examples, without replacement, and weigh the same.

    per_round: how many of each cohort. A client that is drawn more often must not weigh more as well, so all weights
    are 1; the mean over draws is then near that of all examples (Li et al., ICLR 2020, scheme I, which replaces).
    Raises ValueError where fewer clients own examples.

    >>> import numpy as np
    >>> from fedjax_mm.types import CohortPopulation, Population
    >>> three = Population({"all": CohortPopulation(3, {}, counts=np.array([0, 1, 99]))})
    >>> by_size(three, 2)(jax.random.key(0), 0)["all"].index.tolist()  # client 0 has nothing
    [1, 2]
    """
    population = population_of(data)
    numbers = _per_cohort("per_round", per_round, population.sizes)
    share = {}
    for name, of in population.cohorts.items():
        counts = np.zeros(of.size) if of.counts is None else np.asarray(of.counts, np.float64)
        if (counts > 0).sum() < numbers[name]:
            owners = int((counts > 0).sum())
            raise ValueError(
                f"per_round asks for {numbers[name]} clients of {name}, of which {owners} are known to own "
                "examples; ask for fewer"
            )
        share[name] = counts / max(counts.sum(), 1)

    def choose(key: Key, round: int) -> dict[str, Participants]:
        drawn = {}
        for name, p in share.items():
            number = numbers[name]
            who = np.sort(_rng(key, round, name).choice(len(p), number, replace=False, p=p)) if number else np.zeros(0)
            places = clients.fill_places(who, max(1, number), len(p))
            drawn[name] = Participants(places, np.ones(len(places), np.float32))
        return drawn

    return choose


def independent(data: HasPopulation, rate: float, places: Mapping[str, int] | None = None) -> Chooser:
    """Each client takes part with the probability `rate`, whoever else does (Poisson sampling of privacy accounting).

    places: of each cohort in a round. None: so many that more clients want to take part in one of 10^9 rounds; those
    beyond are then left out at random. rate: above 0, at most 1.

    >>> from fedjax_mm.types import CohortPopulation, Population
    >>> hundred = Population({"all": CohortPopulation(100, {})})
    >>> chosen = independent(hundred, 0.1)(jax.random.key(0), 0)["all"]
    >>> chosen.shape, 0 < int((chosen < 100).sum()) < 30
    ((32,), True)
    """
    from scipy.stats import binom

    sizes = population_of(data).sizes
    rate = check_number("rate", rate, most=1, above=0)
    enough = {name: max(1, min(size, int(binom.isf(1e-9, size, rate)))) for name, size in sizes.items()}
    room = enough if places is None else _per_cohort("places", places, sizes)

    def choose(key: Key, round: int) -> dict[str, np.ndarray]:
        drawn = {}
        for name, size in sizes.items():
            rng = _rng(key, round, name)
            who = rng.permutation(np.flatnonzero(rng.random(size) < rate))[: room[name]]
            drawn[name] = clients.fill_places(np.sort(who), max(1, room[name]), size)
        return drawn

    return choose


def by_trace(
    data: HasPopulation, available: Mapping[str, Any], per_round: int | Mapping[str, int], repeat: bool = True
) -> Chooser:
    """Clients are drawn, each as likely as any other, among those that are available in the round.

    available: cohort -> [T, N] booleans, a row per round; after T rounds it begins again, or with repeat=False its last
    row holds. Where fewer than `per_round` are available, places stay empty.

    >>> import numpy as np
    >>> from fedjax_mm.types import CohortPopulation, Population
    >>> four = Population({"all": CohortPopulation(4, {})})
    >>> choose = by_trace(four, {"all": [[True, True, False, False], [False, False, False, True]]}, 2)
    >>> [choose(jax.random.key(0), r)["all"].tolist() for r in range(3)]  # 4 is nobody
    [[0, 1], [3, 4], [0, 1]]
    """
    sizes, repeat = population_of(data).sizes, check_flag("repeat", repeat)
    numbers = _per_cohort("per_round", per_round, sizes)
    if set(check_mapping("available", available, "cohort to [T, N] booleans")) != set(sizes):
        raise ValueError(f"available names cohorts {sorted(map(str, available))}; the data has {sorted(sizes)}")
    trace = {name: check_array(f"available of {name}", x, (np.bool_,), "[T, N]") for name, x in available.items()}
    for name, rows in trace.items():
        if not len(rows) or rows.shape[1] != sizes[name]:
            raise ValueError(f"available of {name} has the shape {rows.shape}; give [T, {sizes[name]}], T from 1")

    def choose(key: Key, round: int) -> dict[str, np.ndarray]:
        drawn = {}
        for name, rows in trace.items():
            now = rows[round % len(rows) if repeat else min(round, len(rows) - 1)]
            who = _rng(key, round, name).permutation(np.flatnonzero(now))[: numbers[name]]
            drawn[name] = clients.fill_places(np.sort(who), max(1, numbers[name]), sizes[name])
        return drawn

    return choose


def with_dropout(choose: Chooser, rate: float) -> Chooser:
    """Each participant drops out in the round with the probability `rate`: nothing of it is heard, its state stays.

    >>> from fedjax_mm.types import CohortPopulation, Population
    >>> ten = Population({"all": CohortPopulation(10, {})})
    >>> with_dropout(uniform(ten, 4), 0.5)(jax.random.key(1), 0)["all"].work.shape
    (4,)
    """
    check_callable("choose", choose, "(key, round) -> {cohort: participants}")
    rate = check_number("rate", rate, least=0, most=1)

    def lost(key: Key, round: int, name: str, index: np.ndarray) -> np.ndarray:
        return (_rng(key, round, f"dropout {name}").random(len(index)) >= rate).astype(np.float32)

    return _working(choose, lost)


def with_deadline(choose: Chooser, seconds: Mapping[str, Sequence[float] | np.ndarray], deadline: float) -> Chooser:
    """A participant's steps are cut at the deadline: of `seconds` for all of them it takes the share that fits.

    seconds: cohort -> [N], what all steps of each client take, at least 0; infinite for one that never answers.
    deadline: above 0, in seconds. `local_steps` takes the first of its steps, at least one.

    >>> from fedjax_mm.types import CohortPopulation, Population
    >>> three = Population({"all": CohortPopulation(3, {})})
    >>> slow = with_deadline(uniform(three, 3), {"all": [10.0, 40.0, 20.0]}, deadline=20.0)
    >>> slow(jax.random.key(0), 0)["all"].work.tolist()
    [1.0, 0.5, 1.0]
    """
    check_callable("choose", choose, "(key, round) -> {cohort: participants}")
    deadline = check_number("deadline", deadline, above=0)
    check_mapping("seconds", seconds, "cohort to [N]")
    took = {name: check_array(f"seconds of {name}", x, shape="[N]") for name, x in seconds.items()}
    for name, x in took.items():
        if not (x >= 0).all():
            raise ValueError(f"seconds of {name} is {say(seconds[name])}; give a number from 0 for each client")

    def cut(key: Key, round: int, name: str, index: np.ndarray) -> np.ndarray:
        if name not in took or index.max(initial=0) > len(took[name]):
            raise ValueError(f"seconds has no number for each client of cohort {name}; give [N] of every cohort")
        needed = np.append(took[name], 0)[np.minimum(index, len(took[name]))]
        return np.minimum(1, deadline / np.maximum(needed, deadline)).astype(np.float32)

    return _working(choose, cut)


def _working(choose: Chooser, share: Callable[[Key, int, str, np.ndarray], np.ndarray]) -> Chooser:
    """The chooser whose participants do `share` of the work that they would do."""

    def chosen(key: Key, round: int) -> dict[str, Participants]:
        given = {}
        for name, who in choose(key, round).items():
            who = who if isinstance(who, Participants) else Participants(who)
            index = np.asarray(who.index)
            work = share(key, round, name, index)
            given[name] = who._replace(work=work if who.work is None else work * np.asarray(who.work, np.float32))
        return given

    return chosen


def _per_cohort(name: str, numbers: Any, sizes: Mapping[str, int]) -> dict[str, int]:
    """A whole number of clients for each cohort; one number is that of every cohort."""
    given = numbers if isinstance(numbers, Mapping) else dict.fromkeys(sizes, numbers)
    if set(given) != set(sizes):
        raise ValueError(f"{name} names cohorts {sorted(map(str, given))}; the data has {sorted(sizes)}")
    whole = {cohort: check_whole(f"{name} of {cohort}", n, 0, sizes[cohort]) for cohort, n in given.items()}
    if not any(whole.values()):
        raise ValueError(f"{name} is {say(numbers)}, so that nobody ever takes part; give at least one client")
    return {cohort: whole[cohort] for cohort in sizes}


def _rng(key: Key, round: int, what: str) -> np.random.Generator:
    words = np.asarray(jax.random.key_data(key)).ravel().tolist()
    return np.random.default_rng([*words, int(round), zlib.crc32(what.encode()), 0x63686F])
