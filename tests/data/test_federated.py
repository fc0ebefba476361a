"""Who owns which rows, and a round's share of them."""

import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_mm.data.federated import FederatedData, pooled

X = np.arange(20, dtype=np.float32).reshape(10, 2)
LABEL = np.array([0, 1, 2, 0, 1, 2, 0, 1, 2, 0], np.int32)
PARTS = [[1, 2], [], [0, 3, 4, 5], [9]]


def rows_seen(part):
    return [np.sort(np.asarray(part.arrays["x"])[part.rows[i, : part.count[i]]][:, 0]) for i in range(len(part.index))]


@pytest.mark.parametrize("on_device", [True, False])
def test_round_gives_every_participant_its_own_examples_longest_first(on_device):
    data = FederatedData.from_arrays({"x": X, "label": LABEL}, PARTS, on_device=on_device)
    part = data.round({"all": np.array([0, 1, 2, 4])}).cohorts["all"]
    assert part.index.tolist() == [2, 0, 1, 4] and part.count.tolist() == [4, 2, 0, 0]
    places = 128 if on_device else 4  # off the device each place is an example that is brought there
    assert part.weight.tolist() == [4, 2, 0, 0] and part.rows.shape == (4, places)
    expected = [[0, 6, 8, 10], [2, 4], [], []]
    for got, rows in zip(rows_seen(part), expected, strict=True):
        assert got.tolist() == rows
    if not on_device:
        assert part.arrays["x"].shape == (16, 2)  # the round's rows alone, the same shape whoever is drawn


def test_client_numbers_per_example_are_the_same_as_row_lists():
    owner = np.array([2, 0, 0, 2, 2, 2, 3, 3, 3, 3])
    by_number = FederatedData.from_arrays({"x": X}, owner)
    by_rows = FederatedData.from_arrays({"x": X}, [np.flatnonzero(owner == j) for j in range(4)])
    a, b = (d.round({"all": np.arange(4)}).cohorts["all"] for d in (by_number, by_rows))
    assert (a.rows == b.rows).all() and (a.index == b.index).all() and by_number.sizes == {"all": 4}


def test_uniform_is_said_only_where_every_client_owns_as_many():
    assert FederatedData.from_arrays({"x": X}, [[0, 1], [2, 3]]).round({"all": [0]}).cohorts["all"].uniform
    assert not FederatedData.from_arrays({"x": X}, [[0, 1], [2]]).round({"all": [0]}).cohorts["all"].uniform


def test_cohorts_share_one_copy_of_an_array_and_lack_what_they_lack():
    arrays = {"A": {"x": X, "label": LABEL}, "B": {"label": LABEL}}
    data = FederatedData.from_arrays(arrays, {"A": [[0, 1]], "B": [[2], [3]]}, public={"x": X[:3]}, num_classes=3)
    assert set(data.cohorts["B"].arrays) == {"label"} and data.sizes == {"A": 1, "B": 2}
    assert data.cohorts["A"].arrays["label"] is data.cohorts["B"].arrays["label"]
    assert data.round({"A": [0], "B": [1]}).public["x"].shape == (3, 2)


NAN = np.where(np.arange(20).reshape(10, 2) == 15, np.nan, X).astype(np.float32)


@pytest.mark.parametrize(
    ("arrays", "clients", "settings", "message"),
    [
        ({"x": NAN}, PARTS, {}, "'x' has NaN or infinite values in 1 examples, first in row 7"),
        ({"x": X, "label": LABEL}, PARTS, {"num_classes": 2}, r"labels must lie in 0..1, got 0..2"),
        ({"x": X, "label": LABEL - 1}, PARTS, {"num_classes": 3}, r"labels must lie in 0..2, got -1..1"),
        ({"x": X, "label": LABEL[:9]}, PARTS, {}, r"one common length, got {'x': 10, 'label': 9}"),
        ({"x": X}, [[0, 10]], {}, r"own rows 0..10, but it has rows 0..9"),
        ({"x": X}, [[], []], {}, "no client of all owns an example"),
        ({"x": X}, np.arange(9), {}, "9 client numbers for 10 examples"),
        ({"x": X, "mask": X}, PARTS, {}, "may not be called 'mask'"),
        ({"x": np.array(["a"] * 10)}, PARTS, {}, "has dtype <U1; give numbers"),
        ({"x": np.float32(1)}, PARTS, {}, "'x' is a scalar"),
        ({"x": X}, PARTS, {"public": {"x": NAN}}, "'x' has NaN"),
    ],
)
def test_bad_arrays_are_errors_that_name_the_cure(arrays, clients, settings, message):
    with pytest.raises(ValueError, match=message):
        FederatedData.from_arrays(arrays, clients, **settings)


def test_round_refuses_unknown_clients_and_cohorts():
    data = FederatedData.from_arrays({"x": X}, PARTS)
    with pytest.raises(ValueError, match="clients 0..3, not 0..5"):
        data.round({"all": [0, 5]})
    with pytest.raises(ValueError, match=r"cohorts \['B'\]; the data has \['all'\]"):
        data.round({"B": [0]})


def test_device_arrays_are_accepted():
    data = FederatedData.from_arrays({"x": jnp.asarray(X)}, PARTS)
    assert data.round({"all": [0]}).cohorts["all"].count.tolist() == [2]


def test_split_counts_classes_and_client_is_one_clients_view():
    data = FederatedData.from_arrays({"x": X, "label": LABEL}, PARTS, public={"x": X[:2]})
    held = data.split()["all"]
    assert held["examples"] == [2, 0, 4, 1] and held["arrays"] == ["label", "x"]
    assert held["classes"] == [np.bincount(LABEL[p], minlength=3).tolist() if p else [0, 0, 0] for p in PARTS]
    one = data.client("all", 2)
    own = np.asarray(one.arrays["x"])[np.asarray(one.rows)[: int(one.count)]]
    assert own.tolist() == X[[0, 3, 4, 5]].tolist() and float(one.weight) == 4 and one.public["x"].shape == (2, 2)


OWNER, TEST_OWNER = np.array([1, 0, 0, -1, 2, 2, -1, 2, -1, 2]), np.array([-1, -1, -1, 0, -1, -1, 0, -1, 2, -1])
TESTED = [[3, 6], [], [8]]


@pytest.mark.parametrize("on_device", [True, False])
@pytest.mark.parametrize("test", [TEST_OWNER, TESTED, {"all": TEST_OWNER}])
def test_clients_have_test_rows_of_their_own_padded_to_the_longest(test, on_device):
    clients = OWNER if isinstance(test, np.ndarray) else [[1, 2], [0], [4, 5, 7, 9]]
    clients = {"all": clients} if isinstance(test, dict) else clients
    data = FederatedData.from_arrays({"x": X, "label": LABEL}, clients, test=test, on_device=on_device)
    rows, mask = data.test_rows("all")
    assert rows.dtype == np.int32 and mask.dtype == np.float32
    assert rows.tolist() == [[3, 6], [0, 0], [8, 0]] and mask.tolist() == [[1, 1], [0, 0], [1, 0]]
    plain = FederatedData.from_arrays({"x": X, "label": LABEL}, [[1, 2], [0], [4, 5, 7, 9]], on_device=on_device)
    assert data.split()["all"] == plain.split()["all"] | {"test": [2, 0, 1]}
    some, same = (d.round({"all": np.array([0, 2])}).cohorts["all"] for d in (data, plain))
    assert (np.asarray(some.rows) == same.rows).all() and (np.asarray(some.arrays["x"]) == same.arrays["x"]).all()
    trained = pooled(data).cohorts["pooled"]
    assert np.asarray(trained.arrays["x"]).tolist() == X[[1, 2, 0, 4, 5, 7, 9]].tolist() and trained.test_rows is None


def test_a_cohort_that_test_does_not_name_has_no_test_rows():
    data = FederatedData.from_arrays({"x": X}, {"A": [[0], [1]], "B": [[0, 2]]}, test={"B": [[1]]})
    assert "test" not in data.split()["A"] and data.split()["B"]["test"] == [1]
    with pytest.raises(ValueError, match=r"clients of A have no test rows; give them with from_arrays"):
        data.test_rows("A")
    with pytest.raises(ValueError, match=r"no cohort 'C'; the data has \['A', 'B'\]"):
        data.test_rows("C")


@pytest.mark.parametrize(
    ("clients", "test", "message"),
    [
        (PARTS, [[6], [7]], "test has 2 clients of all, and clients has 4; give each its test rows"),
        (np.repeat([0, 1], 5), np.full(10, 2), "test has 3 clients of all, and clients has 2"),
        (PARTS, [[6], [7], [], [10]], "clients of all own test rows 6..10, but it has rows 0..9"),
        (PARTS, [[6], [7], [], [-1]], "clients of all own test rows -1..7"),
        (PARTS, [[6], [], [7, 9], []], "row 9 of all is a test row of client 2 and a training row of client 3"),
        (PARTS, [[1], [], [], []], "row 1 of all is a test row of client 0 and a training row of client 0"),
        (PARTS, [[], [], [], []], "no client of all has a test row; give it some, or leave the cohort out of test"),
        (PARTS, np.arange(9), "9 client numbers for 10 examples of all"),
        (OWNER - 1, TEST_OWNER, r"must not be below -1 \(nobody's\), got -2"),
        ({"A": PARTS}, {"B": PARTS}, r"test names cohorts \['B'\]; the data has \['A'\]"),
        ({"A": PARTS}, [[6], [], [], []], r"clients names cohorts \['A'\]; give test as a mapping from cohort too"),
        (OWNER, None, "must not be negative, got -1"),
    ],
)
def test_wrong_test_rows_are_errors_that_name_the_cohort_and_the_cure(clients, test, message):
    with pytest.raises(ValueError, match=message):
        FederatedData.from_arrays({"x": X}, clients, test=test)
