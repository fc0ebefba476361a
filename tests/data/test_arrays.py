"""Files of numbers are read whole or refused by name, and no number becomes another one."""

import io
import zipfile

import numpy as np
import pytest

from fedjax_mm.data import arrays


def npy(header):
    """The bytes of an npy file of version 1 with that header, and 8 bytes of values."""
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(8)


def archive(path, content):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("x.npy", content)
    return path


def test_arrays_come_back(tmp_path):
    held = {"x": np.arange(6).reshape(2, 3), "y": np.array(2.5), "z": np.array(["a", "b"]), "f": np.eye(3).T}
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", **held)
        found = arrays.load_npz(tmp_path / "a.npz", ("x", "y", "z", "f"))
        for name, array in held.items():
            np.testing.assert_array_equal(found[name], array)
            assert found[name].dtype == array.dtype
    with pytest.raises(KeyError, match=r"a.npz has no array \['w'\]; it has \['f', 'x', 'y', 'z'\]"):
        arrays.load_npz(tmp_path / "a.npz", ("x", "w"))


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f8', 'fortran_order': False, 'shape': (125000000000000,)}",  # 10^15 bytes
        "{'descr': '<f8', 'fortran_order': False, 'shape': (9999999999999999999, 9999999999999999999)}",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (-1,)}",
        "{'descr': '|O', 'fortran_order': False, 'shape': (1,)}",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (2,)}",
        "(" * 110,
        "{'descr': 'nothing'",
    ],
)
def test_a_damaged_npz_is_named(tmp_path, header):
    with pytest.raises(ValueError, match="a.npz is cut off or damaged .*; copy or download it again"):
        arrays.load_npz(archive(tmp_path / "a.npz", npy(header)), ("x",))


def test_objects_and_other_files_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.array([{}], object))
    with pytest.raises(ValueError, match="a.npz is cut off or damaged .*Object arrays"):
        arrays.load_npz(tmp_path / "a.npz", ("x",))
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    for content in (buffer.getvalue(), b"", b"PK"):
        (tmp_path / "b.npz").write_bytes(content)
        with pytest.raises(ValueError, match="b.npz is cut off or damaged"):
            arrays.load_npz(tmp_path / "b.npz", ("x",))


def test_whole_numbers_stay_what_they_are_or_are_refused():
    for values in ([0, -(2**31), 2**31 - 1], np.array([0, 2**31 - 1], np.uint64), [1.0, -3.0], [True, False]):
        found = arrays.as_int32(values, "labels")
        assert found.dtype == np.int32
        np.testing.assert_array_equal(found, np.asarray(values).astype(object))
    for wrong in ([2**31], [-(2**31) - 1], np.array([2**63 + 1], np.uint64), [1.5], [np.nan], [np.inf], [3e9]):
        with pytest.raises(ValueError, match="labels have .*; give whole numbers from -2147483648 to 2147483647"):
            arrays.as_int32(wrong, "labels")
    with pytest.raises(ValueError, match="labels are of type <U1"):
        arrays.as_int32(["a"], "labels")


def test_a_table_holds_finite_numbers(tmp_path):
    (tmp_path / "a.csv").write_text("1,2\n3,inf\n")
    with pytest.raises(ValueError, match="a.csv has an infinite number in row 1; get it again from there"):
        arrays.load_table(tmp_path / "a.csv", 2, "there", ",")
