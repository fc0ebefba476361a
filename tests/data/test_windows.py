import numpy as np
import pytest
from sklearn.preprocessing import StandardScaler

from fedjax_mm.data import windows


def recordings(number=12, channels=3, seed=0):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(9, 30, number)
    return {
        10 + i: {"a": rng.normal(size=(t, channels)), "b": rng.normal(size=(t, 2)), "labels": rng.integers(0, 3, t)}
        for i, t in enumerate(lengths)
    }


@pytest.mark.parametrize(("length", "stride"), [(1, 1), (4, 4), (5, 2), (9, 30)])
def test_cut_is_the_plain_loop(length, stride):
    sequences = [*recordings().values(), {"a": np.ones((2, 3)), "b": np.ones((2, 2)), "labels": np.ones(2, int)}]
    expected = [(i, start) for i, s in enumerate(sequences) for start in range(0, len(s["a"]) - length + 1, stride)]
    got = windows.cut(sequences, length, stride)
    np.testing.assert_array_equal(got["sequence"], [i for i, _ in expected])
    for name in ("a", "b", "labels"):
        loop = np.stack([sequences[i][name][start : start + length] for i, start in expected])
        np.testing.assert_array_equal(got[name], loop)


@pytest.mark.parametrize(
    ("sequences", "length", "stride", "message"),
    [
        ([{"a": np.ones((5, 1))}], 6, 1, "no sequence is 6 steps long .*longest has 5"),
        ([{"a": np.ones((5, 1))}], 2, 0, "stride is 0; give a whole number of 1 or more"),
        ([{"a": np.ones((5, 1)), "b": np.ones((4, 1))}], 2, 1, "sequence 0 differ in length .a 5, b 4"),
        ([], 2, 1, "there are 0"),
    ],
)
def test_cut_says_what_is_wrong(sequences, length, stride, message):
    with pytest.raises(ValueError, match=message):
        windows.cut(sequences, length, stride)


def test_zscore_uses_training_statistics_alone():
    rng = np.random.default_rng(0)
    train, test = rng.normal(3, 5, (7, 4, 2)), rng.normal(size=(3, 4, 2))
    train[..., 1] = 2.0
    a, b = windows.zscore(train, test)
    rows = train.reshape(-1, 2)[:, 0]
    np.testing.assert_allclose([a[..., 0].mean(), a[..., 0].std()], [0, 1], atol=1e-6)
    np.testing.assert_allclose(b[..., 0], (test[..., 0] - rows.mean()) / rows.std(), rtol=1e-5)
    np.testing.assert_allclose(b[..., 1], test[..., 1] - 2, rtol=1e-5)  # constant in training: shifted only
    assert a.dtype == b.dtype == np.float32


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("value", [14.62, 9.81e5, -0.1, 1e-12, 0.0])
def test_a_constant_channel_is_only_shifted_though_its_mean_is_rounded(value, dtype):
    train = np.full((1000, 7, 2), value, dtype)
    train[..., 1] = np.linspace(0, 1, 1000)[:, None]
    test = train + dtype(0.01)
    a, b = windows.zscore(train, test)
    np.testing.assert_allclose(a[..., 0], 0, atol=1e-6 * abs(value))
    np.testing.assert_allclose(b[..., 0], test[..., 0].astype(float) - float(dtype(value)), rtol=1e-5, atol=1e-9)
    scaler = StandardScaler().fit(train.reshape(-1, 2).astype(np.float64))
    np.testing.assert_allclose(b.reshape(-1, 2), scaler.transform(test.reshape(-1, 2)), rtol=1e-4, atol=1e-6)


def test_a_channel_that_varies_little_is_still_scaled():
    train = 1000 + 1e-6 * np.random.default_rng(0).normal(size=(500, 1))
    (a,) = windows.zscore(train)
    np.testing.assert_allclose([a.mean(), a.std()], [0, 1], atol=1e-3)


def test_numbers_that_32_bits_do_not_hold_are_refused():
    data = recordings(4)
    data[10]["labels"] = data[10]["labels"].astype(np.int64) + 2**32
    with pytest.raises(ValueError, match="labels of the recordings have 42949672.*from -2147483648 to 2147483647"):
        windows.cut_splits(data, {"train": list(data)}, ("a",), 4, 4)
    with pytest.raises(ValueError, match="groups have 4294967296"):
        windows.split_groups([1, 2, 2**32], ["s"] * 3, {"test": 1}, seed=0)


@pytest.mark.parametrize("seed", ["3", -1, 1.5, None, True])
def test_a_seed_is_a_whole_number(seed):
    with pytest.raises(ValueError, match="seed is .*; give a whole number of 0 or more"):
        windows.split_groups([1, 2, 3], ["s"] * 3, {"test": 1}, seed=seed)


def test_splits_are_disjoint_complete_and_stratified():
    groups, strata = np.arange(70), ["fall"] * 30 + ["adl"] * 40
    sizes = {"valid": 0.1, "proxy": 2, "test": 0.2}
    splits = windows.split_groups(groups, strata, sizes, seed=1)
    assert list(splits) == ["train", "valid", "proxy", "test"]
    np.testing.assert_array_equal(np.sort(np.concatenate(list(splits.values()))), groups)
    falls = {split: int((ids < 30).sum()) for split, ids in splits.items()}
    assert falls == {"valid": 3, "proxy": 2, "test": 6, "train": 19}
    assert {split: len(ids) for split, ids in splits.items()} == {"valid": 7, "proxy": 4, "test": 14, "train": 45}

    order = np.random.default_rng(0).permutation(70)
    same = windows.split_groups(groups[order], [strata[i] for i in order], sizes, seed=1)
    other = windows.split_groups(groups, strata, sizes, seed=2)
    assert all((same[split] == splits[split]).all() for split in splits)
    assert not (other["train"] == splits["train"]).all()


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"train": 1}, "sizes names 'train'"),
        ({"test": 4}, "leaves none of them for 'train'"),
        ({"test": 0}, "sizes.'test'. is 0"),
        ({"test": 1.5}, "sizes.'test'. is 1.5"),
    ],
)
def test_split_says_what_is_wrong(sizes, message):
    with pytest.raises(ValueError, match=message):
        windows.split_groups(range(4), ["s"] * 4, sizes, seed=0)


def test_a_group_named_twice_is_refused():
    with pytest.raises(ValueError, match="named once"):
        windows.split_groups([1, 1, 2], ["s"] * 3, {"test": 1}, seed=0)


def splits_of(data, seed=0, lead_in=False):
    ids = windows.split_groups(list(data), ["s"] * len(data), {"valid": 2, "test": 0.25}, seed)
    return windows.cut_splits(data, ids, ("a", "b"), 5, 2, lead_in)


def test_training_arrays_know_nothing_of_the_other_splits():
    data = recordings()
    before = splits_of(data)
    groups = {split: set(arrays["group"]) for split, arrays in before.items()}
    assert set.union(*groups.values()) == set(data) and sum(map(len, groups.values())) == len(data)

    for recording in groups["valid"] | groups["test"]:
        data[recording]["a"] = data[recording]["a"] * 1e6 - 1e9
        data[recording]["b"] = np.full_like(data[recording]["b"], np.nan)
    after = splits_of(data)
    for name, array in before["train"].items():
        np.testing.assert_array_equal(array, after["train"][name])
    assert not np.array_equal(before["test"]["a"], after["test"]["a"])


def test_windows_carry_the_rows_labels_and_group_of_their_recording():
    data = recordings()
    splits = splits_of(data)
    raw = np.concatenate([data[i]["a"] for i in data if i in set(splits["test"]["group"])])
    scale = np.concatenate([windows.cut([data[i]], 5, 2)["a"] for i in sorted(set(splits["train"]["group"]))])
    first = sorted(set(splits["test"]["group"]))[0]
    np.testing.assert_allclose(
        splits["test"]["a"][0], (raw[:5] - scale.mean((0, 1))) / scale.std((0, 1)), rtol=1e-4, atol=1e-6
    )
    np.testing.assert_array_equal(splits["test"]["labels"][0], data[first]["labels"][:5])
    for arrays in splits.values():
        np.testing.assert_array_equal(arrays["label"], arrays["labels"][:, -1])
        assert all(arrays[name].dtype == np.int32 for name in ("label", "labels", "group"))


def test_with_a_lead_in_every_step_is_the_last_of_a_window():
    data = recordings()
    splits = splits_of(data, lead_in=True)
    first = sorted(set(splits["test"]["group"]))[0]
    mine = splits["test"]["group"] == first
    np.testing.assert_array_equal(splits["test"]["label"][mine], data[first]["labels"][::2])
    opening = splits["test"]["a"][mine][0]
    np.testing.assert_array_equal(opening, np.broadcast_to(opening[-1:], opening.shape))
