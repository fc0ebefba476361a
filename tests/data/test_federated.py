"""Who owns which rows, and a round's share of them."""

import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_mm.data.federated import FederatedData

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
    assert part.weight.tolist() == [4, 2, 0, 0] and part.rows.shape == (4, 4)
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
