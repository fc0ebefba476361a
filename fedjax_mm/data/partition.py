"""Which client owns which examples, and which modalities it lacks. Pure functions of a seed, in NumPy.

A partition is a list of row numbers: a sorted int32 array for each client. No row is in two of them, and together they
hold all rows. `seed` is an integer or a `numpy.random.Generator`.
"""

from collections.abc import Sequence

import numpy as np

from fedjax_mm.checks import check_array, check_flag, check_number, check_whole, say
from fedjax_mm.data.missing import Seed, draws, erroneous_labels, missing_examples, missing_labels, missing_modality

__all__ = [
    "by_group",
    "dirichlet",
    "erroneous_labels",
    "hold_out",
    "iid",
    "missing_examples",
    "missing_labels",
    "missing_modality",
    "shards",
    "split_table",
    "with_labels",
    "within_groups",
]

Parts = list[np.ndarray]

DRAWS = 1000  # a Dirichlet split is drawn at most this often to reach the smallest size asked for


def iid(labels_or_num: np.ndarray | int, num_clients: int, seed: Seed) -> Parts:
    """Returns a partition at random, in which every client has the same number of rows, give or take one.

    labels_or_num: the labels [M], of which only the number counts, or M itself.

    >>> [part.tolist() for part in iid(7, 3, seed=0)]
    [[2, 3, 4], [5, 6], [0, 1]]
    """
    if isinstance(labels_or_num, Sequence | np.ndarray) or hasattr(labels_or_num, "__array__"):
        labels = check_array("labels_or_num", labels_or_num, (np.generic,))
        num = check_whole("labels_or_num", labels) if labels.ndim == 0 else len(labels)
    else:
        num = check_whole("labels_or_num", labels_or_num)
    num_clients = _check_clients(num_clients, num)
    return _parts(np.array_split(draws(seed).permutation(num), num_clients))


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
    num_clients = _check_clients(num_clients, len(labels))
    alpha = check_number("alpha", alpha, above=0)  # 0.1 is very skewed, 100 almost iid
    min_size, balanced = check_whole("min_size", min_size), check_flag("balanced", balanced)
    if min_size * num_clients > len(labels):
        raise ValueError(
            f"{num_clients} clients with {min_size} examples each need more than the {len(labels)} there are; "
            "lower min_size or num_clients."
        )
    rng = draws(seed)
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
    num_clients = _check_clients(num_clients, len(labels))
    num_shards = num_clients * check_whole("shards_per_client", shards_per_client)
    if not 0 < num_shards <= len(labels):
        raise ValueError(
            f"{num_clients} clients with {shards_per_client} shards each make {num_shards} shards of {len(labels)} "
            f"examples; choose shards_per_client from 1 to {len(labels) // num_clients}."
        )
    rng = draws(seed)
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
    groups = check_array("groups", groups, (np.generic,), "[M]")
    if groups.dtype.kind == "f" and not np.isfinite(groups).all():
        raise ValueError("groups has NaN or infinite values; give each example a group")
    num_clients = _check_clients(num_clients, len(groups))
    try:
        names, member, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    except TypeError as error:  # of objects that have no order
        raise ValueError(f"groups holds what cannot be sorted ({error}); give numbers or texts alone") from error
    if len(names) < num_clients:
        raise ValueError(
            f"{len(names)} groups cannot be given whole to {num_clients} clients; use at most {len(names)} clients, "
            "or iid or dirichlet, which tear groups apart."
        )
    rng = draws(seed)
    order = rng.permutation(len(names))
    load = np.zeros(num_clients, np.int64)
    client = np.empty(len(names), np.int64)
    for group in order[np.argsort(-sizes[order], kind="stable")]:
        client[group] = load.argmin()
        load[client[group]] += sizes[group]
    return _owned(rng.permutation(num_clients)[client][member], num_clients)


def within_groups(groups: np.ndarray, labels: np.ndarray, per_group: int, alpha: float, seed: Seed) -> Parts:
    """Returns a partition that shares each group out among `per_group` clients of its own, by `dirichlet`.

    groups: [M], such as subjects, and labels: [M] int >= 0. The clients of the first group come first. Each client owns
    a row at least. (FedMultimodal, arXiv 2306.09486: five clients of each of 21 subjects)

    >>> groups, labels = np.repeat([7, 3], 6), np.tile([0, 1], 6)
    >>> [part.tolist() for part in within_groups(groups, labels, 2, alpha=100.0, seed=0)]
    [[6, 7, 10], [8, 9, 11], [1, 2, 3, 4], [0, 5]]
    """
    groups, labels = check_array("groups", groups, (np.generic,), "[M]"), _labels(labels)
    if len(groups) != len(labels):
        raise ValueError(f"groups has {len(groups)} rows and labels {len(labels)}; give both of each example")
    rng, parts = draws(seed), []
    for group in np.unique(groups):
        rows = np.flatnonzero(groups == group)
        parts += [rows[part] for part in dirichlet(labels[rows], per_group, alpha, rng, min_size=1)]
    return _parts(parts)


def with_labels(parts: Sequence[np.ndarray], labelled: np.ndarray) -> Parts:
    """Returns the rows of each client that have a label. labelled: bool [M], such as of `missing_labels`.

    >>> [part.tolist() for part in with_labels([np.array([0, 2]), np.array([1])], np.array([True, False, False]))]
    [[0], []]
    """
    parts, labelled = _check_parts(parts), check_array("labelled", labelled, (np.bool_,), "[M]")
    rows = np.concatenate([*parts, np.zeros(0, np.int32)])
    if len(rows) and not 0 <= rows.min() <= rows.max() < len(labelled):
        raise ValueError(f"parts name rows {rows.min()}..{rows.max()}; labelled says of {len(labelled)}")
    return _parts(part[labelled[part]] for part in parts)


def hold_out(parts: Sequence[np.ndarray], fraction: float, seed: Seed) -> tuple[Parts, Parts]:
    """Returns (train parts, test parts): of each client's rows `fraction`, drawn at random, become its own test rows.

    fraction: above 0 and below 1. The number of test rows is rounded; a client with two rows or more keeps at least
    one of each, and the only row of a client is for training. Both parts go to `FederatedData.from_arrays`.

    >>> train, test = hold_out([np.arange(5), np.arange(5, 6)], 0.4, seed=0)
    >>> [part.tolist() for part in train], [part.tolist() for part in test]
    ([[0, 1, 3], [5]], [[2, 4], []])
    """
    if not 0 < check_number("fraction", fraction) < 1:
        raise ValueError(f"fraction is {fraction}; give the share of each client's rows, above 0 and below 1.")
    rng = draws(seed)
    train, test = [], []
    for part in _check_parts(parts):
        rows = rng.permutation(part)
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
    labels, parts = _labels(labels), _check_parts(parts)
    num_classes = check_whole("num_classes", num_classes, least=1)
    if len(labels) and labels.max() >= num_classes:
        raise ValueError(
            f"labels go up to {labels.max()}; with num_classes {num_classes} the last is {num_classes - 1}."
        )
    owner = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    rows = np.concatenate([*parts, np.zeros(0, np.int64)]).astype(np.int64)
    if len(rows) and not 0 <= rows.min() <= rows.max() < len(labels):
        raise ValueError(f"parts name rows {rows.min()}..{rows.max()}; there are {len(labels)} labels")
    cells = np.bincount(owner * num_classes + labels[rows], minlength=len(parts) * num_classes)
    return cells.reshape(len(parts), num_classes)


def _parts(rows) -> Parts:
    return [np.sort(part).astype(np.int32) for part in rows]


def _owned(client: np.ndarray, num_clients: int) -> Parts:
    return _parts(np.flatnonzero(client == one) for one in range(num_clients))


def _labels(labels: np.ndarray) -> np.ndarray:
    labels = check_array("labels", labels, (np.generic,))
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer) or (len(labels) and labels.min() < 0):
        raise ValueError(
            f"labels are {labels.dtype} {labels.shape}; they must be [M] integers from 0 upwards, "
            "so number the classes and leave unlabelled (-1) examples out."
        )
    return labels


def _check_clients(num_clients: int, num_examples: int) -> int:
    num_clients = check_whole("num_clients", num_clients, least=None)
    if not 0 < num_clients <= num_examples:
        raise ValueError(
            f"{num_examples} examples cannot be given to {num_clients} clients; use from 1 to {num_examples} clients."
        )
    return num_clients


def _check_parts(parts: Sequence[np.ndarray]) -> Parts:
    if not isinstance(parts, Sequence | np.ndarray) or isinstance(parts, str | bytes) or getattr(parts, "ndim", 1) == 0:
        raise ValueError(f"parts is {say(parts)}; give a list of row numbers per client")
    return [check_array(f"part {j}", part, (np.integer,), "[M]") for j, part in enumerate(parts)]
