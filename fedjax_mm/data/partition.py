"""Which client owns which examples, and which modalities it lacks. Pure functions of a seed, in NumPy.

A partition is a list of row numbers: a sorted int32 array for each client. No row is in two of them, and together they
hold all rows. `seed` is an integer or a `numpy.random.Generator`.
"""

from collections.abc import Mapping, Sequence

import numpy as np

Seed = int | np.random.Generator
Parts = list[np.ndarray]

DRAWS = 1000  # a Dirichlet split is drawn at most this often to reach the smallest size asked for


def iid(labels_or_num: np.ndarray | int, num_clients: int, seed: Seed) -> Parts:
    """Returns a partition at random, in which every client has the same number of rows, give or take one.

    labels_or_num: the labels [M], of which only the number counts, or M itself.

    >>> [part.tolist() for part in iid(7, 3, seed=0)]
    [[2, 3, 4], [5, 6], [0, 1]]
    """
    num = int(labels_or_num) if np.ndim(labels_or_num) == 0 else len(np.asarray(labels_or_num))
    _check_clients(num_clients, num)
    return _parts(np.array_split(np.random.default_rng(seed).permutation(num), num_clients))


def dirichlet(
    labels: np.ndarray, num_clients: int, alpha: float, seed: Seed, min_size: int = 0, balanced: bool = False
) -> Parts:
    """Returns a partition that shares each class out in proportions drawn from Dirichlet(alpha).

    labels: [M] int >= 0. alpha: above 0; the smaller it is, the fewer classes a client has. min_size: the draw is
    repeated until every client owns at least so many rows; with 0 some clients may own none. balanced: a client that
    owns M / num_clients rows or more gets nothing of the next classes.
    Source: Hsu 2019, class by class as in Li 2022, NIID-Bench; `balanced` as in CreamFL.

    >>> labels = np.repeat([0, 1], 6)
    >>> split_table(dirichlet(labels, 3, alpha=0.3, seed=0, min_size=1), labels, 2).tolist()  # [clients, classes]
    [[4, 0], [1, 0], [1, 6]]
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
    """Returns a partition of shards: rows are sorted by class and cut into equal shards, give or take a row.

    labels: [M] int >= 0. shards_per_client: how many shards each client gets at random.
    Source: McMahan 2017, with 2 shards for each client.

    >>> labels = np.repeat([0, 1, 2], 4)
    >>> split_table(shards(labels, 3, 2, seed=0), labels, 3).tolist()  # at most two classes each
    [[2, 2, 0], [0, 2, 2], [2, 0, 2]]
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
    hands = rng.permutation(num_shards).reshape(num_clients, shards_per_client)
    return _parts(np.concatenate([cut[shard] for shard in hand]) for hand in hands)


def by_group(groups: np.ndarray, num_clients: int, seed: Seed) -> Parts:
    """Returns a partition that gives whole groups (subjects, recordings) to clients.

    The largest group comes first, and each goes to the client that has the fewest rows so far. Groups of the same size
    come in random order, and so do clients; with as many groups as clients each client is one group.
    groups: [M] of anything that can be sorted, with at least as many different values as there are clients.

    >>> [part.tolist() for part in by_group(np.array(["a", "b", "a", "c"]), 2, seed=0)]
    [[1, 3], [0, 2]]
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
    """Returns {cohort: sorted client numbers}: which clients hold which modalities, drawn at random.

    holders: {modalities: how many clients hold exactly these}, e.g. {("a",): 10, ("b",): 10, ("a", "b"): 10}. A cohort
    is named by its modalities in the order of `modalities`, as "a", "b", "a+b"; a cohort of 0 clients is left out.
    Raises ValueError unless the numbers add up to `num_clients` and every modality has a holder.

    >>> cohorts = missing_modality(4, ("a", "b"), {("a",): 1, ("b", "a"): 3}, seed=0)
    >>> {cohort: clients.tolist() for cohort, clients in cohorts.items()}
    {'a': [2], 'a+b': [0, 1, 3]}
    """
    counts = {}
    for subset, count in holders.items():
        if not subset or not set(subset) <= set(modalities) or len(set(subset)) != len(subset):
            raise ValueError(f"holders names {subset!r}; give one or more different ones of {tuple(modalities)}.")
        cohort = "+".join(m for m in modalities if m in subset)
        if cohort in counts or count < 0:
            raise ValueError(
                f"holders gives {count} clients to {subset!r}; give each set once, with 0 clients or more."
            )
        counts[cohort] = count
    if sum(counts.values()) != num_clients:
        raise ValueError(f"holders adds up to {sum(counts.values())} clients; it must add up to {num_clients}.")
    counts = {cohort: count for cohort, count in counts.items() if count}
    orphans = [m for m in modalities if not any(m in subset and count for subset, count in holders.items())]
    if orphans:
        raise ValueError(f"no client holds {orphans}; give each modality a holder or leave it out of modalities.")
    order = np.random.default_rng(seed).permutation(num_clients).astype(np.int32)
    return dict(zip(counts, _parts(np.split(order, np.cumsum(list(counts.values()))[:-1])), strict=True))


def missing_examples(
    num_examples: int, modalities: Sequence[str], rates: Mapping[str, float], seed: Seed
) -> dict[str, np.ndarray]:
    """Returns {modality: bool [M]}, True where an example has the modality.

    rates: {modality: the chance, 0..1, that an example lacks it}, 0 where not named; modalities are independent. An
    example that would lack all of them keeps one, drawn in proportion to 1 - rate, so that the fraction which lacks a
    modality is a little below its rate.

    >>> present = missing_examples(6, ("a", "b"), {"a": 0.5}, seed=1)
    >>> {modality: mask.astype(int).tolist() for modality, mask in present.items()}
    {'a': [0, 1, 1, 0, 0, 0], 'b': [1, 1, 1, 1, 1, 1]}
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
    """Returns [N, K] ints: how many examples of each class each client owns.

    labels: [M] int in 0..K-1.

    >>> split_table([np.array([0, 1]), np.array([2])], np.array([0, 2, 2]), num_classes=3).tolist()
    [[1, 0, 1], [0, 0, 1]]
    """
    labels = _labels(labels)
    if len(labels) and labels.max() >= num_classes:
        raise ValueError(
            f"labels go up to {labels.max()}; with num_classes {num_classes} the last is {num_classes - 1}."
        )
    owner = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    rows = np.concatenate([*parts, np.zeros(0, np.int64)]).astype(np.int64)
    cells = np.bincount(owner * num_classes + labels[rows], minlength=len(parts) * num_classes)
    return cells.reshape(len(parts), num_classes)


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
