"""What comes in as arrays and client numbers: taken for what it is, or refused in one sentence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_mm.data.federated import FederatedData

X = np.arange(12, dtype=np.float32).reshape(6, 2)
OWNER = [0, 0, 0, 1, 1, 1]
ROWS = [[0, 1, 2], [3, 4, 5]]


def rows_by_client(data):
    cohort = data.cohorts["all"]
    return [part.tolist() for part in np.split(cohort.rows, cohort.offsets[1:-1])]


@pytest.mark.parametrize(
    "clients",
    [
        OWNER,
        tuple(OWNER),
        [np.int8(one) for one in OWNER],
        [jnp.int32(one) for one in OWNER],
        np.array(OWNER, np.uint64),
        np.array(OWNER, np.int8),
        jnp.array(OWNER),
        ROWS,
        np.array(ROWS),
        tuple(range(3 * j, 3 * j + 3) for j in range(2)),
        [np.array(part, np.uint8) for part in ROWS],
        np.array([np.arange(3), np.arange(3, 6), None], object)[:2],
    ],
)
def test_every_form_of_the_same_owners_is_the_same(clients):
    assert rows_by_client(FederatedData.from_arrays({"x": X}, clients)) == ROWS


def test_a_row_that_is_named_twice_counts_twice():
    data = FederatedData.from_arrays({"x": X}, [[0, 0, 1], [1]])
    assert rows_by_client(data) == [[0, 0, 1], [1]] and data.split()["all"]["examples"] == [3, 1]


def test_a_plain_list_may_say_that_an_example_is_nobodys():
    data = FederatedData.from_arrays({"x": X}, [0, 0, -1, 1, 1, 1], test=[-1, -1, 1, -1, -1, -1])
    assert rows_by_client(data) == [[0, 1], [3, 4, 5]] and data.test_rows("all")[0].tolist() == [[0], [2]]


@pytest.mark.parametrize(
    ("clients", "said"),
    [
        (np.array(OWNER, float), "clients of all is a float64 array"),
        (np.array(OWNER, bool), "clients of all is a bool array"),
        (np.array(list("aaabbb")), r"clients of all is a <U1 array .* np.unique\(names, return_inverse=True\)"),
        ([0.0, 0.0, 0.0, 1.0, 1.0, 1.0], "a client number of all is 0.0; give a whole number"),
        (["a", "a", "a", "b", "b", "b"], "a client number of all is 'a'"),
        ([True, True, False, False, True, True], "a client number of all is True"),
        (OWNER[:5], "5 client numbers for 6 examples of all"),
        ([0, 0, 0, 1, 1, 10**9], "client numbers of all go up to 1000000000 for 6 examples; number its clients 0, 1"),
        ([0, 0, 0, 1, 1, 10**30], "client numbers of all go up to 1"),
        ([[0, 1], 2, [3]], r"rows of client 1 of all has the shape \(\); it must be \[M\]"),
        ([[[0], [1]], [[2], [3]]], r"rows of client 0 of all has the shape \(2, 1\)"),
        ([[0.0, 1.0], [2]], "rows of client 0 of all is float64"),
        ([[0], np.array([True] * 6)], "rows of client 1 of all is bool"),
        ([["0"], [1]], "rows of client 0 of all is <U1"),
        ([{0, 1}, [2]], "rows of client 0 of all"),
        ([[0, [1]], [2]], "rows of client 0 of all is a list that makes no array"),
        ([None, [2]], "rows of client 0 of all"),
        ({"all": {0: [0], 1: [1]}}, "clients of all is {0: .*; give a whole client number per example, or a list"),
        ({0: [0], 1: [1]}, "a cohort 0; give a name of letters .* a list of row numbers per client"),
        ({"": ROWS}, "a cohort ''"),
        ({"a/b": ROWS}, "a cohort 'a/b'"),
        ({"..": ROWS}, "a cohort '..'"),
        ({"server": ROWS}, "that is not 'server'"),  # its metrics would be those of the server
        ({}, "clients names no cohort"),
        (3, "clients of all is 3"),
        (None, "clients of all is None"),
        ("012", "clients of all is '012'"),
        (np.zeros((2, 3, 1), int), "clients of all is a int64 array"),
    ],
)
def test_owners_that_are_neither_numbers_nor_lists_of_rows_are_refused(clients, said):
    with pytest.raises(ValueError, match=said):
        FederatedData.from_arrays({"x": X}, clients)


@pytest.mark.parametrize("on_device", [True, False])
def test_nested_lists_are_arrays(on_device):
    data = FederatedData.from_arrays(
        {"x": X.tolist(), "label": OWNER}, ROWS, public={"x": [[1.0]]}, on_device=on_device
    )
    seen = data.client("all", 1)
    assert seen.arrays["x"].dtype == jnp.float32 and seen.arrays["label"].dtype == jnp.int32
    assert np.asarray(seen.arrays["x"])[seen.rows].tolist() == X[3:].tolist() and np.shape(
        (data.public or {})["x"]
    ) == (1, 1)


@pytest.mark.parametrize("dtype", [np.int64, np.uint64, np.float64, np.float16, jnp.bfloat16, np.uint8, bool])
def test_numbers_that_the_device_holds_keep_their_value(dtype):
    values = np.array([0, 1, 3, 2, 1, 0]).astype(dtype)
    most = {np.int64: 2**31 - 1, np.uint64: 2**32 - 1, np.float64: 3.4028234663852886e38}.get(dtype)
    if most is not None:
        values[2] = most
    seen = FederatedData.from_arrays({"v": values}, ROWS, on_device=False).client("all", 0)
    assert [float(v) for v in seen.arrays["v"]] == [float(v) for v in values[:3]]


@pytest.mark.parametrize("on_device", [True, False])
@pytest.mark.parametrize(
    ("dtype", "value", "there"),
    [
        (np.int64, 2**31, "int32"),
        (np.int64, -(2**31) - 1, "int32"),
        (np.int64, 1_700_000_000_000_000_000, "int32"),  # nanoseconds
        (np.uint64, 2**40, "uint32"),
        (np.float64, 1e39, "float32"),
        (np.float64, -1e300, "float32"),
    ],
)
def test_numbers_that_32_bits_do_not_hold_are_refused_by_row(dtype, value, there, on_device):
    array = np.zeros((6, 2), dtype)
    array[4, 1] = value
    said = f"array 'v' has {np.dtype(dtype)} values in 1 examples, first in row 4, that {there}"
    for public in (None, {"v": array}):
        with pytest.raises(ValueError, match=said):
            FederatedData.from_arrays({"v": X if public else array}, ROWS, on_device=on_device, public=public)


def test_with_64_bits_on_the_device_they_are_taken():
    with jax.enable_x64(True):
        data = FederatedData.from_arrays({"v": np.full(6, 2**40)}, ROWS)
    assert data.cohorts["all"].arrays["v"].dtype == jnp.int64


def test_an_array_on_disk_is_looked_at_block_by_block(tmp_path, monkeypatch):
    monkeypatch.setattr("fedjax_mm.data.incoming.BLOCK", 4)
    array = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, (6, 2))
    array[5, 1] = array[3, 0] = np.nan
    with pytest.raises(ValueError, match="'x' has NaN or infinite values in 2 examples, first in row 3"):
        FederatedData.from_arrays({"x": array}, ROWS, on_device=False)
    array[:] = 1
    data = FederatedData.from_arrays({"x": array}, ROWS, on_device=False)
    assert isinstance(data.cohorts["all"].arrays["x"], np.memmap)


LABEL = np.array(OWNER)


@pytest.mark.parametrize(
    ("arrays", "settings", "said"),
    [
        ({"x": X.astype(complex)}, {}, "'x' has dtype complex64; give numbers|complex128; give numbers"),
        ({"x": np.zeros(6, "M8[ns]")}, {}, r"'x' has dtype datetime64\[ns\]"),
        ({"x": np.zeros(6, object)}, {}, "'x' has dtype object"),
        ({"x": ["a"] * 6}, {}, "'x' has dtype <U1"),
        ({"x": np.zeros(6, np.longdouble)}, {}, "'x' has dtype float128, which no device has"),
        ({"x": [[1.0], [2.0, 3.0]]}, {}, "array 'x' is a list that makes no array"),
        ({"x": np.ma.masked_greater(X, 3)}, {}, "'x' has masked values"),
        ({"x": 3}, {}, "'x' is a scalar"),
        ({"x": None}, {}, "'x' is a scalar"),
        ({"x": np.zeros((6, 0))}, {}, r"'x' has the shape \(6, 0\), without a value"),
        ({"x": X[:0]}, {}, "have 0 examples"),
        ({"x": {"y": X}}, {}, "'x' is a mapping; to give each cohort its own"),
        ({3: X}, {}, "an array is called 3"),
        ({"": X}, {}, "an array is called ''"),
        ({"a/b": X}, {}, "an array is called 'a/b'"),
        ({}, {}, "must have one common length, got {}"),
        (X, {}, r"arrays is a float32 array \(6, 2\); give a mapping from name to array"),
        (None, {}, "arrays is None"),
        ({"x": X}, {"public": X}, "arrays of public is a float32 array"),
        ({"x": X}, {"public": {}}, "arrays of public must have one common length, got {}"),
        ({"x": X}, {"public": {"x": X[:0]}}, "arrays of public have 0 examples"),
        ({"x": X, "label": LABEL.astype(float)}, {}, "'label' has dtype float64; number the classes"),
        ({"x": X, "label": LABEL > 0}, {}, "'label' has dtype bool; number the classes"),
        ({"x": X, "label": X}, {"num_classes": 2}, "'label' has dtype float32; number the classes"),
        ({"x": X, "label": LABEL}, {"num_classes": 0}, "num_classes is 0; give a whole number from 1 upwards"),
        ({"x": X, "label": LABEL}, {"num_classes": -2}, "num_classes is -2"),
        ({"x": X, "label": LABEL}, {"num_classes": True}, "num_classes is True"),
        ({"x": X, "label": LABEL}, {"num_classes": 2.0}, "num_classes is 2.0"),
        ({"x": X, "label": LABEL}, {"num_classes": "2"}, "num_classes is '2'"),
        ({"x": X}, {"on_device": "False"}, "on_device is 'False'; give True or False"),
    ],
)
def test_arrays_that_are_none_are_refused_by_name(arrays, settings, said):
    with pytest.raises(ValueError, match=said):
        FederatedData.from_arrays(arrays, ROWS, **settings)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda data: data.round({"all": np.array([0.0])}), "participants of all is float64"),
        (lambda data: data.round({"all": [True]}), "participants of all is bool"),
        (lambda data: data.round({"all": 0}), r"participants of all has the shape \(\)"),
        (lambda data: data.round({"all": [1, 1, 2]}), "a client of all takes part twice"),
        (lambda data: data.round([0]), "chosen is .0.; give a mapping"),
        (lambda data: data.client("all", 2), "the number of a client of all is 2; give a whole number from 0 to 1"),
        (lambda data: data.client("all", -1), "a client of all is -1"),
        (lambda data: data.client("B", 0), "no cohort 'B'"),
    ],
)
def test_participants_that_there_are_not_are_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call(FederatedData.from_arrays({"x": X}, ROWS))


def test_nobody_may_take_part_many_times():
    data = FederatedData.from_arrays({"x": X}, ROWS)
    assert data.round({"all": np.array([2, 0, 2])}).cohorts["all"].count.tolist() == [3, 0, 0]
