"""Which client owns which examples, and which modalities it lacks. Pure functions of a seed, in NumPy.

A partition is a list with one sorted int32 array of row numbers per client: disjoint, together all rows. `seed` is
an integer or a `numpy.random.Generator`.
"""

from collections.abc import Mapping, Sequence

import numpy as np

Seed = int | np.random.Generator
Parts = list[np.ndarray]

DRAWS = 1000  # a Dirichlet split is drawn at most this often to reach the smallest size asked for


def iid(labels_or_num: np.ndarray | int, num_clients: int, seed: Seed) -> Parts:
    """Rows at random, the same number for each client, give or take one. labels_or_num: [M], or M itself."""
    num = int(labels_or_num) if np.ndim(labels_or_num) == 0 else len(np.asarray(labels_or_num))
    _check_clients(num_clients, num)
    return _parts(np.array_split(np.random.default_rng(seed).permutation(num), num_clients))


def dirichlet(
    labels: np.ndarray, num_clients: int, alpha: float, seed: Seed, min_size: int = 0, balanced: bool = False
) -> Parts:
    """Each class shared out in proportions drawn from Dirichlet(alpha): small alpha, few classes per client.

    labels [M] int >= 0. The draw is repeated until every client owns at least `min_size` rows; at 0 some may own
    none. `balanced` gives a client that owns M / num_clients rows or more nothing of the next classes.
    (Hsu 2019, class by class as in Li 2022, NIID-Bench; `balanced` as in CreamFL)
    """
    labels = _labels(labels)
    _check_clients(num_clients, len(labels))
    if not alpha > 0:
        raise ValueError(f"alpha is {alpha}; it must be above 0 (0.1 is very skewed, 100 almost iid).")
    if min_size * num_clients > len(labels):
        raise ValueError(
            f"{num_clients} clients with {min_size} examples each need more than the {len(labels)} there are; "
            "lower min_size or num_clients."
        )
    rng = np.random.default_rng(seed)
    for _ in range(DRAWS):
        client = np.empty(len(labels), np.int64)  # the owner of each row
        sizes = np.zeros(num_clients, np.int64)
        for label in np.unique(labels):
            rows = rng.permutation(np.flatnonzero(labels == label))
            # Over the clients still open, which is the full draw, renormalised, but never 0 / 0.
            takers = np.flatnonzero(sizes < len(labels) / num_clients) if balanced else np.arange(num_clients)
            shares = rng.dirichlet(np.full(len(takers), float(alpha)))
            cuts = np.rint(np.cumsum(shares)[:-1] * len(rows)).astype(np.int64)
            client[rows] = takers[np.searchsorted(cuts, np.arange(len(rows)), side="right")]
            sizes += np.bincount(client[rows], minlength=num_clients)
        if sizes.min() >= min_size:
            return _owned(client, num_clients)
    raise ValueError(
        f"none of {DRAWS} draws gave every client {min_size} examples; lower min_size or num_clients, raise alpha, "
        "or set balanced=True."
    )


def shards(labels: np.ndarray, num_clients: int, shards_per_client: int, seed: Seed) -> Parts:
    """Rows sorted by class and cut into equal shards (give or take a row), `shards_per_client` at random for each.

    labels [M] int >= 0. (McMahan 2017: 2 shards each)
    """
    labels = _labels(labels)
    _check_clients(num_clients, len(labels))
    num_shards = num_clients * shards_per_client
    if not 0 < num_shards <= len(labels):
        raise ValueError(
            f"{num_clients} clients with {shards_per_client} shards each make {num_shards} shards of {len(labels)} "
            f"examples; choose shards_per_client from 1 to {len(labels) // num_clients}."
        )
    rng = np.random.default_rng(seed)
    rows = rng.permutation(len(labels))
    cut = np.array_split(rows[np.argsort(labels[rows], kind="stable")], num_shards)
    dealt = rng.permutation(num_shards).reshape(num_clients, shards_per_client)
    return _parts(np.concatenate([cut[shard] for shard in hand]) for hand in dealt)


def by_group(groups: np.ndarray, num_clients: int, seed: Seed) -> Parts:
    """Whole groups (subjects, recordings) to clients: the largest first, each to the client with the fewest rows.

    groups [M] of anything sortable, at least as many different ones as clients. Groups of the same size, and clients,
    are in random order; with as many groups as clients each client is one group.
    """
    groups = np.asarray(groups)
    if groups.ndim != 1:
        raise ValueError(f"groups is {groups.shape}; it must be [M], one group per example.")
    _check_clients(num_clients, len(groups))
    names, member, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    if len(names) < num_clients:
        raise ValueError(
            f"{len(names)} groups cannot be given whole to {num_clients} clients; use at most {len(names)} clients, "
            "or iid or dirichlet, which tear groups apart."
        )
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(names))
    load = np.zeros(num_clients, np.int64)
    client = np.empty(len(names), np.int64)
    for group in order[np.argsort(-sizes[order], kind="stable")]:
        client[group] = load.argmin()
        load[client[group]] += sizes[group]
    return _owned(rng.permutation(num_clients)[client][member], num_clients)


def missing_modality(
    num_clients: int, modalities: Sequence[str], holders: Mapping[tuple[str, ...], int], seed: Seed
) -> dict[str, np.ndarray]:
    """{cohort: client ids, sorted}: which clients hold which modalities, drawn at random.

    holders: {modalities held: number of clients}, e.g. {("a",): 10, ("b",): 10, ("a", "b"): 10}. A cohort is named by
    what it holds in the order of `modalities`, "a", "b", "a+b"; one of 0 clients is left out. ValueError unless the
    numbers add up to `num_clients` and every modality has a holder.
    """
    counts = {}
    for held, count in holders.items():
        if not held or not set(held) <= set(modalities) or len(set(held)) != len(held):
            raise ValueError(f"holders names {held!r}; give one or more different ones of {tuple(modalities)}.")
        cohort = "+".join(m for m in modalities if m in held)
        if cohort in counts or count < 0:
            raise ValueError(f"holders gives {count} clients to {held!r}; give each set once, with 0 clients or more.")
        counts[cohort] = count
    if sum(counts.values()) != num_clients:
        raise ValueError(f"holders adds up to {sum(counts.values())} clients; it must add up to {num_clients}.")
    counts = {cohort: count for cohort, count in counts.items() if count}
    orphans = [m for m in modalities if not any(m in held and count for held, count in holders.items())]
    if orphans:
        raise ValueError(f"no client holds {orphans}; give each modality a holder or leave it out of modalities.")
    drawn = np.random.default_rng(seed).permutation(num_clients).astype(np.int32)
    return dict(zip(counts, _parts(np.split(drawn, np.cumsum(list(counts.values()))[:-1])), strict=True))


def missing_examples(
    num_examples: int, modalities: Sequence[str], rates: Mapping[str, float], seed: Seed
) -> dict[str, np.ndarray]:
    """{modality: bool [M]}, True where an example has it; each example lacks each at its rate, independently.

    rates: {modality: chance of lacking it, 0..1}, 0 where not named. An example that would lack all keeps one, drawn
    in proportion to 1 - rate, so the fraction missing is a little below the rate.
    """
    unknown = sorted(set(rates) - set(modalities))
    if unknown:
        raise ValueError(f"rates names {unknown}, which are not modalities; use {tuple(modalities)}.")
    wrong = {m: rate for m, rate in rates.items() if not 0 <= rate <= 1}
    if wrong:
        raise ValueError(f"rates {wrong} are not chances; they must lie in 0..1.")
    kept = np.array([1 - rates.get(m, 0.0) for m in modalities])
    if not kept.sum() > 0:
        raise ValueError("every modality has rate 1, so that examples would hold nothing; lower at least one rate.")
    rng = np.random.default_rng(seed)
    present = rng.random((num_examples, len(modalities))) < kept
    spared = rng.choice(len(modalities), num_examples, p=kept / kept.sum())
    empty = ~present.any(axis=1)
    present[empty, spared[empty]] = True
    return dict(zip(modalities, present.T.copy(), strict=True))


def hold_out(parts: Sequence[np.ndarray], fraction: float, seed: Seed) -> tuple[Parts, Parts]:
    """Returns (train parts, test parts): of each client's rows `fraction`, drawn at random, become its own test rows.

    fraction: above 0 and below 1. The number of test rows is rounded; a client with two rows or more keeps at least
    one of each, and the only row of a client is for training. Both parts go to `FederatedData.from_arrays`.

    >>> train, test = hold_out([np.arange(5), np.arange(5, 6)], 0.4, seed=0)
    >>> [part.tolist() for part in train], [part.tolist() for part in test]
    ([[0, 1, 3], [5]], [[2, 4], []])
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction is {fraction}; give the share of each client's rows, above 0 and below 1.")
    rng = np.random.default_rng(seed)
    train, test = [], []
    for part in parts:
        rows = rng.permutation(np.asarray(part))
        number = min(max(1, round(fraction * len(rows))), max(0, len(rows) - 1))
        test.append(rows[:number])
        train.append(rows[number:])
    return _parts(train), _parts(test)


def split_table(parts: Parts, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """[N, K] ints: how many examples of each class each client owns. labels [M] int in 0..K-1."""
    labels = _labels(labels)
    if len(labels) and labels.max() >= num_classes:
        raise ValueError(
            f"labels go up to {labels.max()}; with num_classes {num_classes} the last is {num_classes - 1}."
        )
    return np.stack([np.bincount(labels[part], minlength=num_classes) for part in parts])


def _parts(rows) -> Parts:
    return [np.sort(part).astype(np.int32) for part in rows]


def _owned(client: np.ndarray, num_clients: int) -> Parts:
    return _parts(np.flatnonzero(client == one) for one in range(num_clients))


def _labels(labels: np.ndarray) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer) or (len(labels) and labels.min() < 0):
        raise ValueError(
            f"labels are {labels.dtype} {labels.shape}; they must be [M] integers from 0 upwards, "
            "so number the classes and leave unlabelled (-1) examples out."
        )
    return labels


def _check_clients(num_clients: int, num_examples: int) -> None:
    if not 0 < num_clients <= num_examples:
        raise ValueError(
            f"{num_examples} examples cannot be given to {num_clients} clients; use from 1 to {num_examples} clients."
        )
