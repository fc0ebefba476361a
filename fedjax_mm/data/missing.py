"""Which modalities and labels clients and examples lack, and which labels are wrong. Functions of a seed, in NumPy."""

from collections.abc import Mapping, Sequence

import numpy as np

from fedjax_mm.checks import check_array, check_mapping, check_names, check_number, check_whole

Seed = int | np.random.Generator


def draws(seed: Seed) -> np.random.Generator:
    """The generator of a seed. None, which would be another one every time, is refused."""
    return (
        seed if isinstance(seed, np.random.Generator) else np.random.default_rng(check_whole("seed", seed, most=None))
    )


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
    num_clients, modalities = check_whole("num_clients", num_clients), check_names("modalities", modalities)
    counts = {}
    for subset, count in check_mapping("holders", holders, "modalities to a number of clients").items():
        count = check_whole(f"the number of holders of {subset!r}", count, least=None)
        if (
            not isinstance(subset, Sequence | frozenset)
            or not subset
            or not set(subset) <= set(modalities)
            or len(set(subset)) != len(subset)
        ):
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
    order = draws(seed).permutation(num_clients).astype(np.int32)
    parts = np.split(order, np.cumsum(list(counts.values()))[:-1])
    return {cohort: np.sort(part) for cohort, part in zip(counts, parts, strict=True)}


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
    num_examples, modalities = check_whole("num_examples", num_examples), check_names("modalities", modalities)
    unknown = sorted(map(str, set(check_mapping("rates", rates, "modality to a chance")) - set(modalities)))
    if unknown:
        raise ValueError(f"rates names {unknown}, which are not modalities; use {tuple(modalities)}.")
    rates = {m: check_number(f"the rate of {m}", rate) for m, rate in rates.items()}
    wrong = {m: rate for m, rate in rates.items() if not 0 <= rate <= 1}
    if wrong:
        raise ValueError(f"rates {wrong} are not chances; they must lie in 0..1.")
    kept = np.array([1 - rates.get(m, 0.0) for m in modalities])
    if not kept.sum() > 0:
        raise ValueError("every modality has rate 1, so that examples would hold nothing; lower at least one rate.")
    rng = draws(seed)
    present = rng.random((num_examples, len(modalities))) < kept
    spared = rng.choice(len(modalities), num_examples, p=kept / kept.sum())
    empty = ~present.any(axis=1)
    present[empty, spared[empty]] = True
    return dict(zip(modalities, present.T.copy(), strict=True))


def missing_labels(num_examples: int, rate: float, seed: Seed) -> np.ndarray:
    """Returns bool [M], True where an example has a label. rate: the chance, 0..1, that it has none.

    A method that learns from labels leaves the others out (`partition.with_labels`). (FedMultimodal, arXiv 2306.09486)

    >>> missing_labels(6, 0.5, seed=1).astype(int).tolist()
    [1, 1, 0, 1, 0, 0]
    """
    num_examples, rate = check_whole("num_examples", num_examples), check_number("rate", rate, 0, 1)
    return draws(seed).random(num_examples) >= rate


def erroneous_labels(
    labels: np.ndarray, num_classes: int, rate: float, seed: Seed, transition: np.ndarray | None = None
) -> np.ndarray:
    """Returns labels [M] int32, of which some are wrong. rate: the chance, 0..1, that a label becomes another one.

    labels: [M] in 0..num_classes - 1, two classes or more. transition: [K, K], in row k the chances of what a wrong
    label of class k becomes, of which that of k itself is not used; None: all other classes alike. (FedMultimodal,
    arXiv 2306.09486, draws them from a matrix too)

    >>> erroneous_labels(np.zeros(6, int), 3, 0.5, seed=1).tolist()
    [0, 0, 2, 0, 2, 2]
    """
    num_classes = check_whole("num_classes", num_classes, 2)
    labels = check_array("labels", labels, (np.integer,), "[M]")
    rate, rng = check_number("rate", rate, 0, 1), draws(seed)
    if len(labels) and not 0 <= labels.min() <= labels.max() < num_classes:
        raise ValueError(f"labels holds {labels.min()}..{labels.max()}; they must be within 0..{num_classes - 1}")
    chances = np.ones((num_classes, num_classes)) if transition is None else transition
    chances = check_array("transition", chances, shape="[K, K]").astype(np.float64)
    if chances.shape != (num_classes, num_classes):
        raise ValueError(f"transition is {chances.shape}; it must be {(num_classes, num_classes)}, a row a class")
    others = np.where(np.eye(num_classes, dtype=bool), 0.0, chances)
    if not (np.isfinite(others) & (others >= 0)).all() or not (others.sum(1) > 0).all():
        raise ValueError("transition must hold finite chances of at least 0, in each row one above 0 of another class")
    wrong = rng.random(len(labels)) < rate
    steps = np.cumsum(others / others.sum(1, keepdims=True), 1)[labels]
    drawn = np.minimum((rng.random((len(labels), 1)) > steps).sum(1), num_classes - 1)
    return np.where(wrong, drawn, labels).astype(np.int32)
