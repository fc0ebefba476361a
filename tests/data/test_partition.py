"""Every split is disjoint and complete, repeats with its seed, and is as skewed as it says."""

import numpy as np
import pytest

from fedjax_mm.data import partition

M, N, K = 600, 6, 5
LABELS = np.random.default_rng(0).integers(0, K, M)
GROUPS = np.random.default_rng(1).integers(0, 15, M)

SPLITS = {
    "iid": lambda seed: partition.iid(M, N, seed),
    "iid of labels": lambda seed: partition.iid(LABELS, N, seed),
    "dirichlet": lambda seed: partition.dirichlet(LABELS, N, 0.5, seed),
    "dirichlet with a least size": lambda seed: partition.dirichlet(LABELS, N, 0.5, seed, min_size=20),
    "dirichlet balanced": lambda seed: partition.dirichlet(LABELS, N, 0.1, seed, balanced=True),
    "shards": lambda seed: partition.shards(LABELS, N, 2, seed),
    "by_group": lambda seed: partition.by_group(GROUPS, N, seed),
}


def same(first, second):
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def table(parts):
    return partition.split_table(parts, LABELS, K)


@pytest.mark.parametrize("name", SPLITS)
def test_disjoint_and_complete(name):
    parts = SPLITS[name](0)
    assert len(parts) == N
    assert all(part.dtype == np.int32 and np.all(np.diff(part) > 0) for part in parts)
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(M))


@pytest.mark.parametrize("name", SPLITS)
def test_the_seed_is_all_that_decides(name):
    split = SPLITS[name]
    np.random.seed(0)  # the global generator must not matter
    first = split(3)
    np.random.seed(1)
    assert same(first, split(3))
    assert same(first, split(np.random.default_rng(3)))
    assert not same(first, split(4))


def test_iid_sizes_differ_by_one_at_most_and_are_not_in_order():
    parts = partition.iid(20, 6, 0)
    assert sorted(map(len, parts)) == [3, 3, 3, 3, 4, 4]
    assert not same(parts, [part.astype(np.int32) for part in np.array_split(np.arange(20), 6)])


def test_dirichlet_is_iid_at_large_alpha_and_one_client_per_class_at_small():
    share = lambda alpha: table(partition.dirichlet(LABELS, N, alpha, 0)) / np.bincount(LABELS)
    np.testing.assert_allclose(share(1e6), 1 / N, atol=0.02)
    np.testing.assert_allclose(share(1e-4).max(axis=0), 1)
    skew = [np.var(share(alpha)) for alpha in (0.1, 1.0, 10.0, 100.0)]
    assert skew == sorted(skew, reverse=True)


def test_dirichlet_shares_have_the_variance_of_their_distribution():
    # each share is Beta(a, (N-1) a): mean 1/N, variance (N-1) / (N^2 (N a + 1))
    labels = np.repeat(np.arange(400), 50)
    share = partition.split_table(partition.dirichlet(labels, N, 0.7, 0), labels, 400) / 50
    np.testing.assert_allclose(share.mean(axis=1), 1 / N, atol=0.03)
    np.testing.assert_allclose(share.var(), (N - 1) / N**2 / (N * 0.7 + 1), rtol=0.1)


def test_dirichlet_takes_the_rows_of_a_class_in_no_order():
    for part in partition.dirichlet(np.zeros(M, int), 3, 10.0, 0):
        assert part[-1] - part[0] > 0.8 * M


def test_dirichlet_keeps_the_least_size():
    assert min(map(len, partition.dirichlet(LABELS, N, 0.3, 0))) < 40
    assert min(map(len, partition.dirichlet(LABELS, N, 0.3, 0, min_size=40))) >= 40


def test_balanced_dirichlet_gives_nothing_more_to_a_full_client():
    for seed in range(5):
        counts = table(partition.dirichlet(LABELS, N, 0.05, seed, balanced=True))
        held = np.cumsum(counts, axis=1)
        assert not counts[:, 1:][held[:, :-1] >= M / N].any()
    assert any(
        (table(partition.dirichlet(LABELS, N, 0.05, seed))[:, 1:] > 0)[
            np.cumsum(table(partition.dirichlet(LABELS, N, 0.05, seed)), axis=1)[:, :-1] >= M / N
        ].any()
        for seed in range(5)
    )


def test_shards_hold_few_classes_and_equal_sizes():
    labels = np.random.default_rng(2).permutation(np.repeat(np.arange(10), 60))
    parts = partition.shards(labels, 10, 2, 0)  # 20 shards of 30: each of one class
    assert {len(part) for part in parts} == {60}
    classes = (partition.split_table(parts, labels, 10) > 0).sum(axis=1)
    assert classes.max() == 2
    uneven = partition.shards(LABELS[:61], N, 3, 0)
    assert max(map(len, uneven)) - min(map(len, uneven)) <= 3


def test_groups_stay_whole_and_loads_even():
    parts = partition.by_group(GROUPS, N, 0)
    homes = [set(GROUPS[part]) for part in parts]
    assert sum(map(len, homes)) == len(set.union(*homes)) == 15
    sizes = np.array([len(part) for part in parts])
    assert sizes.max() - sizes.min() <= np.bincount(GROUPS).max()
    assert {len(set(GROUPS[part])) for part in partition.by_group(GROUPS, 15, 0)} == {1}


def test_groups_are_packed_largest_first_to_no_client_in_particular():
    names = np.repeat(["a", "b", "c", "d", "e"], [5, 4, 3, 3, 3])  # greedy gives 8 and 10; 9 and 9 would need search
    splits = [partition.by_group(names, 2, seed) for seed in range(6)]
    assert {tuple(sorted(map(len, parts))) for parts in splits} == {(8, 10)}
    assert {0 in parts[0] for parts in splits} == {True, False}


def test_missing_modality_counts_and_covers_the_clients():
    holders = {("a",): 3, ("b",): 4, ("b", "a"): 5, ("c", "a"): 1, ("c",): 0}
    cohorts = partition.missing_modality(13, ("a", "b", "c"), holders, 0)
    assert {name: len(ids) for name, ids in cohorts.items()} == {"a": 3, "b": 4, "a+b": 5, "a+c": 1}
    np.testing.assert_array_equal(np.sort(np.concatenate(list(cohorts.values()))), np.arange(13))
    again = partition.missing_modality(13, ("a", "b", "c"), holders, 0)
    assert same(cohorts.values(), again.values())
    assert not same(cohorts.values(), partition.missing_modality(13, ("a", "b", "c"), holders, 1).values())


def test_missing_examples_at_their_rates_and_never_all():
    num, rates = 20000, {"a": 0.5, "b": 0.2}
    present = partition.missing_examples(num, ("a", "b", "c"), rates, 0)
    assert all(mask.shape == (num,) and mask.dtype == bool for mask in present.values())
    assert present["c"].all()
    np.testing.assert_allclose([1 - present["a"].mean(), 1 - present["b"].mean()], [0.5, 0.2], atol=0.02)
    np.testing.assert_allclose((~present["a"] & ~present["b"]).mean(), 0.5 * 0.2, atol=0.02)  # independent

    hard = partition.missing_examples(num, ("a", "b"), {"a": 0.5, "b": 0.5}, 0)
    assert (hard["a"] | hard["b"]).all()
    np.testing.assert_allclose([1 - m.mean() for m in hard.values()], 0.5 - 0.25 / 2, atol=0.02)
    one = partition.missing_examples(num, ("a", "b"), {"a": 1.0, "b": 0.9}, 0)
    assert not one["a"].any()
    assert one["b"].all()
    assert same(present.values(), partition.missing_examples(num, ("a", "b", "c"), rates, 0).values())
    assert not same(present.values(), partition.missing_examples(num, ("a", "b", "c"), rates, 1).values())


def test_labels_are_missing_and_wrong_at_their_rates():
    num, labels = 20000, np.arange(20000) % 4
    there = partition.missing_labels(num, 0.3, 0)
    np.testing.assert_allclose(there.mean(), 0.7, atol=0.02)
    assert partition.missing_labels(num, 0.0, 0).all() and not partition.missing_labels(num, 1.0, 0).any()
    parts = partition.with_labels(partition.iid(num, 7, 0), there)
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.flatnonzero(there))

    wrong = partition.erroneous_labels(labels, 4, 0.3, 0)
    assert wrong.dtype == np.int32 and same([wrong], [partition.erroneous_labels(labels, 4, 0.3, 0)])
    share = [[np.mean(wrong[labels == k] == j) for j in range(4)] for k in range(4)]
    np.testing.assert_allclose(share, np.where(np.eye(4, dtype=bool), 0.7, 0.1), atol=0.02)
    to_next = np.roll(np.eye(4), 1, axis=1)
    wrong = partition.erroneous_labels(labels, 4, 1.0, 0, transition=to_next + np.eye(4))
    np.testing.assert_array_equal(wrong, (labels + 1) % 4)
    np.testing.assert_array_equal(partition.erroneous_labels(labels, 4, 0.0, 0), labels)


def test_within_groups_shares_each_group_out_among_its_own_clients():
    groups, labels = np.repeat([5, 2, 9], 60), np.tile([0, 1, 2], 60)
    parts = partition.within_groups(groups, labels, 4, 0.5, 0)
    assert [set(groups[part]) for part in parts] == [{2}] * 4 + [{5}] * 4 + [{9}] * 4
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(180))
    assert same(parts, partition.within_groups(groups, labels, 4, 0.5, 0))
    assert not same(parts[:4], [part - 60 for part in parts[4:8]])  # each group has a draw of its own


def test_hold_out_takes_the_fraction_of_each_client_and_leaves_some_to_train():
    parts = [np.arange(start, start + size) for start, size in ((0, 100), (100, 1), (101, 0), (101, 2), (103, 7))]
    for fraction, sizes in ((0.2, [20, 0, 0, 1, 1]), (0.99, [99, 0, 0, 1, 6]), (0.001, [1, 0, 0, 1, 1])):
        train, test = partition.hold_out(parts, fraction, 0)
        assert [len(part) for part in test] == sizes
        for part, kept, out in zip(parts, train, test, strict=True):
            assert kept.dtype == out.dtype == np.int32 and np.all(np.diff(kept) > 0) and np.all(np.diff(out) > 0)
            np.testing.assert_array_equal(np.sort(np.concatenate([kept, out])), part)
    again, other = partition.hold_out(parts, 0.2, np.random.default_rng(0))[1], partition.hold_out(parts, 0.2, 1)[1]
    first = partition.hold_out(parts, 0.2, 0)[1]
    assert same(first, again) and not same(first, other)
    share = np.mean([partition.hold_out(parts[:1], 0.2, seed)[1][0].mean() for seed in range(200)])
    np.testing.assert_allclose(share, 49.5, atol=2)  # no row is likelier than another


def test_split_table_counts():
    found = partition.split_table(
        [np.array([0, 3]), np.array([1, 2, 4]), np.array([], int)], np.array([2, 0, 0, 2, 1]), 4
    )
    np.testing.assert_array_equal(found, [[0, 0, 2, 0], [2, 1, 0, 0], [0, 0, 0, 0]])


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: partition.iid(3.0, 1, 0), "labels_or_num is 3.0; give a whole number"),
        (lambda: partition.iid("3", 1, 0), "labels_or_num is"),
        (lambda: partition.iid(None, 1, 0), "labels_or_num is None"),
        (lambda: partition.iid(True, 1, 0), "labels_or_num is True"),
        (lambda: partition.iid(3, 2.0, 0), "num_clients is 2.0; give a whole number"),
        (lambda: partition.iid(3, True, 0), "num_clients is True"),
        (lambda: partition.iid(3, "2", 0), "num_clients is '2'"),
        (lambda: partition.iid(3, 2, None), "seed is None; give a whole number from 0"),
        (lambda: partition.iid(3, 2, -1), "seed is -1"),
        (lambda: partition.iid(3, 2, 1.5), "seed is 1.5"),
        (lambda: partition.dirichlet(LABELS, 2, "0.1", 0), "alpha is '0.1'; give a finite number above 0"),
        (lambda: partition.dirichlet(LABELS, 2, True, 0), "alpha is True"),
        (lambda: partition.dirichlet(LABELS, 2, -1.0, 0), "alpha is -1"),
        (lambda: partition.dirichlet(LABELS, 2, np.inf, 0), "alpha is inf"),
        (lambda: partition.dirichlet(LABELS, 2, 1.0, 0, min_size=0.5), "min_size is 0.5"),
        (lambda: partition.dirichlet(LABELS, 2, 1.0, 0, min_size=-1), "min_size is -1"),
        (lambda: partition.dirichlet(LABELS, 2, 1.0, 0, balanced="no"), "balanced is 'no'; give True or False"),
        (lambda: partition.dirichlet(LABELS[:, None], 2, 1.0, 0), "labels are int64 .*, 1.; they must be"),
        (lambda: partition.dirichlet([[0], [0, 1]], 2, 1.0, 0), "labels is a list that makes no array"),
        (lambda: partition.shards(LABELS, 2, 1.5, 0), "shards_per_client is 1.5"),
        (lambda: partition.shards(LABELS, 2, 0, 0), "choose shards_per_client from 1"),
        (lambda: partition.by_group(np.array([0.0, np.nan, 1.0]), 2, 0), "groups has NaN"),
        (lambda: partition.by_group([None, 1, 2], 2, 0), "groups holds what cannot be sorted"),
        (lambda: partition.missing_modality(2.0, "ab", {("a", "b"): 2}, 0), "num_clients is 2.0"),
        (lambda: partition.missing_modality(2, "aa", {("a",): 2}, 0), "modalities is 'aa'; give a list"),
        (lambda: partition.missing_modality(2, "ab", {("a", "b"): 2.0}, 0), "holders of .* is 2.0"),
        (lambda: partition.missing_modality(2, "ab", [("a", "b")], 0), "holders is .*; give a mapping"),
        (lambda: partition.missing_modality(2, "ab", {3: 2}, 0), "holders names 3"),
        (lambda: partition.missing_examples(5.0, "ab", {}, 0), "num_examples is 5.0"),
        (lambda: partition.missing_examples(5, "ab", {"a": "1"}, 0), "the rate of a is '1'"),
        (lambda: partition.missing_examples(5, "ab", {"a": np.nan}, 0), "the rate of a is nan"),
        (lambda: partition.missing_examples(5, (), {}, 0), r"modalities is \(\)"),
        (lambda: partition.missing_labels(5, 1.5, 0), "rate is 1.5"),
        (
            lambda: partition.erroneous_labels(np.array([0, 3]), 3, 0.5, 0),
            r"labels holds 0..3; they must be within 0..2",
        ),
        (
            lambda: partition.erroneous_labels(np.zeros(2, int), 2, 0.5, 0, np.eye(3)),
            r"transition is \(3, 3\); it must",
        ),
        (lambda: partition.erroneous_labels(np.zeros(2, int), 2, 0.5, 0, np.eye(2)), "one above 0 of another class"),
        (lambda: partition.with_labels([[0, 5]], np.ones(2, bool)), "parts name rows 0..5; labelled says of 2"),
        (lambda: partition.within_groups(np.zeros(3), np.zeros(2, int), 1, 1.0, 0), "groups has 3 rows and labels 2"),
        (lambda: partition.hold_out([np.arange(5.0)], 0.5, 0), "part 0 is float64"),
        (lambda: partition.hold_out([5], 0.5, 0), r"part 0 has the shape \(\)"),
        (lambda: partition.hold_out({0: [1, 2]}, 0.5, 0), "parts is {0: .*; give a list of row numbers per client"),
        (lambda: partition.hold_out([np.arange(5)], "0.5", 0), "fraction is '0.5'"),
        (lambda: partition.split_table([[0, 5]], np.array([0, 1]), 2), "parts name rows 0..5; there are 2 labels"),
        (lambda: partition.split_table([[-1]], np.array([0, 1]), 2), "parts name rows -1..-1"),
        (lambda: partition.split_table([[0]], np.array([0, 1]), 2.0), "num_classes is 2.0"),
        (lambda: partition.iid(3, 4, 0), "3 examples cannot be given to 4 clients"),
        (lambda: partition.iid(3, 0, 0), "from 1 to 3 clients"),
        (lambda: partition.dirichlet(LABELS[:3], 4, 1.0, 0), "3 examples"),
        (lambda: partition.dirichlet(LABELS, 4, 0.0, 0), "alpha is 0"),
        (lambda: partition.dirichlet(LABELS, 4, float("nan"), 0), "alpha is nan"),
        (lambda: partition.dirichlet(LABELS, N, 1.0, 0, min_size=101), "lower min_size"),
        (lambda: partition.dirichlet(LABELS, N, 1e-3, 0, min_size=90), "none of 1000 draws"),
        (lambda: partition.dirichlet(np.array([0, -1, 1]), 2, 1.0, 0), "from 0 upwards"),
        (lambda: partition.shards(np.array([0.5, 1.0]), 2, 1, 0), "float64"),
        (lambda: partition.shards(LABELS[:10], 4, 3, 0), "from 1 to 2"),
        (lambda: partition.by_group(np.array([0, 0, 1, 1]), 3, 0), "at most 2 clients"),
        (lambda: partition.missing_modality(3, "ab", {("a",): 1, ("b",): 1}, 0), "adds up to 2"),
        (lambda: partition.missing_modality(2, "ab", {("a",): 2}, 0), r"no client holds \['b'\]"),
        (lambda: partition.missing_modality(2, "ab", {("a",): 2, ("b",): 0}, 0), r"no client holds \['b'\]"),
        (lambda: partition.missing_modality(2, "ab", {("a", "x"): 2}, 0), "holders names"),
        (lambda: partition.missing_modality(2, "ab", {("a", "b"): 1, ("b", "a"): 1}, 0), "each set once"),
        (lambda: partition.missing_modality(1, "ab", {("a",): 2, ("b",): -1}, 0), "0 clients or more"),
        (lambda: partition.missing_examples(5, "ab", {"x": 0.1}, 0), "'x'"),
        (lambda: partition.missing_examples(5, "ab", {"a": 1.1}, 0), "0..1"),
        (lambda: partition.missing_examples(5, "ab", {"a": 1.0, "b": 1.0}, 0), "every modality has rate 1"),
        (lambda: partition.hold_out([np.arange(5)], 1.0, 0), "fraction is 1.0"),
        (lambda: partition.hold_out([np.arange(5)], float("nan"), 0), "fraction is nan"),
        (lambda: partition.split_table([np.array([0])], np.array([4]), 4), "the last is 3"),
    ],
)
def test_errors_name_the_cure(call, words):
    with pytest.raises(ValueError, match=words):
        call()
