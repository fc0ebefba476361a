"""From recordings to windows: they are cut, split by whole groups, and normalised with training statistics."""

import numbers
from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from fedjax_mm.data import arguments, arrays

Sizes = Mapping[str, int | float]  # split -> groups of every stratum: a number of them, or a fraction


def cut(sequences: Sequence[Mapping[str, np.ndarray]], length: int, stride: int) -> dict[str, np.ndarray]:
    """Returns every window of `length` steps, one each `stride` steps, of every sequence.

    sequences: arrays with leaves [T, ...]; T may differ from sequence to sequence. A window never reaches over the
    end of its sequence, so that a remainder shorter than `length` is left out.
    The result has the same names with leaves [M, length, ...], and `sequence` [M] int32, the window's place in
    `sequences`.

    >>> windows = cut([{"x": np.arange(5)}, {"x": np.arange(10, 13)}], length=3, stride=2)
    >>> windows["x"].tolist(), windows["sequence"].tolist()
    ([[0, 1, 2], [2, 3, 4], [10, 11, 12]], [0, 0, 1])
    """
    arguments.check_whole(1, length=length, stride=stride)
    steps = np.array([len(next(iter(s.values()))) for s in sequences], int)
    for i, s in enumerate(sequences):
        if any(len(a) != steps[i] for a in s.values()):
            found = ", ".join(f"{name} {len(a)}" for name, a in s.items())
            raise ValueError(
                f"the arrays of sequence {i} differ in length ({found}); they must have one row a time step"
            )
    count = np.maximum(0, (steps - length) // stride + 1)
    if not count.sum():
        raise ValueError(
            f"no sequence is {length} steps long (there are {len(steps)}, the longest has {steps.max(initial=0)}); "
            "choose a shorter window"
        )
    sequence = np.repeat(np.arange(len(steps)), count)
    nth = np.arange(len(sequence)) - np.repeat(np.cumsum(count) - count, count)
    first = (np.cumsum(steps) - steps)[sequence] + nth * stride
    rows = first[:, None] + np.arange(length)
    windows = {name: np.concatenate([s[name] for s in sequences])[rows] for name in sequences[0]}
    return {**windows, "sequence": sequence.astype(np.int32)}


def zscore(train: np.ndarray, *others: np.ndarray) -> tuple[np.ndarray, ...]:
    """Returns `train` and the others, float32, minus the mean and over the standard deviation of `train` alone.

    All arrays are [..., D]; each of the D features has its own statistics. A feature that is constant in `train` is
    only shifted; it counts as constant where its deviation is no more than the rounding of its mean, as in
    scikit-learn's StandardScaler. Raises ValueError where `train` has no values or the arrays differ in D.

    >>> train, test = zscore(np.full((3, 1), 14.62), np.full((1, 1), 14.63))  # the mean is not exactly 14.62
    >>> bool(abs(train).max() < 1e-9), test.round(4).item()
    (True, 0.009999999776482582)
    """
    if not train.ndim or not train.size or any(a.shape[-1:] != train.shape[-1:] for a in others):
        shapes = [list(np.shape(a)) for a in (train, *others)]
        raise ValueError(f"the arrays to normalise are {shapes}; give values of train, and as many features in all")
    axes = tuple(range(train.ndim - 1))
    mean = train.mean(axes, dtype=np.float64)
    std = train.std(axes, dtype=np.float64)
    # Chan, Golub and LeVeque 1983: how far rounding alone moves the variance of that many values.
    rounding = train[..., 0].size * np.finfo(np.float64).eps
    std = np.where(std * np.sqrt(1 - rounding) > rounding * np.abs(mean), std, 1.0)
    return tuple(((a - mean) / std).astype(np.float32) for a in (train, *others))


def split_groups(
    groups: Sequence[int] | np.ndarray, strata: Sequence[Hashable], sizes: Sizes, seed: int, rest: str = "train"
) -> dict[str, np.ndarray]:
    """Returns split -> sorted ids: disjoint splits of whole groups, drawn at random within each stratum.

    groups: [G] distinct ids. strata: [G] the kind of each group, of which every split should have its share (falls and
    everyday activities). sizes: split -> how many groups of EVERY stratum, as a whole number or as a fraction of the
    stratum (rounded, at least 1). rest: the split that gets all other groups.
    The result depends on the seed and the set of groups, not on their order.
    """
    arguments.check_whole(0, seed=seed)
    if not isinstance(sizes, Mapping):
        raise ValueError(f"sizes is {sizes!r}; give a mapping from split to how many groups it gets")
    if rest in sizes:
        raise ValueError(
            f"sizes names {rest!r}, which gets what the other splits leave; remove it, or name another rest"
        )
    if len(np.unique(groups)) != len(groups) or len(strata) != len(groups):
        raise ValueError(
            f"{len(groups)} groups and {len(strata)} strata; each group must be named once and have a stratum"
        )
    members: dict[Hashable, list[int]] = {}
    for group, stratum in zip(np.asarray(groups), strata, strict=True):
        members.setdefault(stratum, []).append(group)
    rng = np.random.default_rng(seed)
    chosen = {split: [] for split in (rest, *sizes)}
    for stratum in sorted(members, key=str):
        order = rng.permutation(np.sort(members[stratum]))
        take = {split: _number(size, len(order), split) for split, size in sizes.items()}
        if sum(take.values()) >= len(order):
            raise ValueError(
                f"stratum {stratum!r} has {len(order)} groups, and {take} leaves none of them for {rest!r}; "
                "choose smaller sizes"
            )
        parts = np.split(order, np.cumsum(list(take.values())))
        for split, part in zip((*sizes, rest), parts, strict=True):
            chosen[split].append(part)
    return {split: arrays.as_int32(np.sort(np.concatenate(parts)), "groups") for split, parts in chosen.items()}


def _number(size: int | float, members: int, split: str) -> int:
    if isinstance(size, float) and 0 < size < 1:
        return max(1, round(size * members))
    if isinstance(size, numbers.Integral) and not isinstance(size, bool) and size > 0:
        return int(size)
    raise ValueError(f"sizes[{split!r}] is {size!r}; give a whole number from 1 on, or a fraction between 0 and 1")


def cut_splits(
    recordings: Mapping[int, Mapping[str, np.ndarray]],
    ids: Mapping[str, Sequence[int] | np.ndarray],
    modalities: Sequence[str],
    window: int,
    stride: int,
    lead_in: bool = False,
) -> dict[str, dict[str, np.ndarray]]:
    """Returns split -> windows of labelled recordings, normalised with the statistics of the split `train`.

    recordings: id -> arrays with leaves [T, ...]: one per modality, and `labels` [T]. ids: split -> recordings.
    window, stride: as `length` and `stride` of `cut`. lead_in: whether a recording's first step is repeated
    `window` - 1 times before it, so that every step is the last one of some window; without it no window ends within
    the first `window` - 1 steps.
    Every split has the modalities [M, window, D] float32; `labels` [M, window] int32, one per time step; `label` [M],
    that of the last step; `group` [M] int32, the recording's id.

    A window's label is that of its last step and not the commonest one: this is what a causal model knows at the end
    of the window, there are no ties, and short phases (a fall takes about one window) are not voted away.
    """
    arguments.check_whole(1, window=window, stride=stride)
    padded = lambda a: np.concatenate([np.repeat(a[:1], window - 1, axis=0), a]) if lead_in else a
    splits = {}
    for split, members in ids.items():
        chosen = [{name: padded(a) for name, a in recordings[int(i)].items()} for i in members]
        parts = cut(chosen, window, stride)
        labels = arrays.as_int32(parts["labels"], "the labels of the recordings")
        group = arrays.as_int32(members, "the numbers of the recordings")[parts.pop("sequence")]
        splits[split] = {**parts, "labels": labels, "label": labels[:, -1], "group": group}
    for modality in modalities:
        others = [split for split in splits if split != "train"]
        normalised = zscore(splits["train"][modality], *(splits[split][modality] for split in others))
        for split, array in zip(("train", *others), normalised, strict=True):
            splits[split][modality] = array
    return splits
