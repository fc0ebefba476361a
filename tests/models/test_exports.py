"""Parameters written for other libraries and read back, and files and trees that are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax_mm.models import export, import_params

safetensors = pytest.importorskip("safetensors.numpy")
TREE = {
    "trunk": {
        "layers": ({"kernel": np.arange(6, dtype=np.float32).reshape(2, 3).T}, {"kernel": jnp.ones(2, jnp.bfloat16)})
    },
    "steps": np.int32(3),
    "mask": np.array([True, False]),
}


def test_types_shapes_and_values_come_back_under_dotted_names(tmp_path):
    file = tmp_path / "x.safetensors"
    export(TREE, file)
    found = safetensors.load_file(file)
    assert sorted(found) == ["mask", "steps", "trunk.layers.0.kernel", "trunk.layers.1.kernel"]
    assert found["trunk.layers.1.kernel"].dtype == jnp.bfloat16 and found["steps"].shape == ()
    back = import_params(str(file))
    np.testing.assert_array_equal(back["trunk"]["layers"]["0"]["kernel"], [[0, 3], [1, 4], [2, 5]])
    assert back["steps"].dtype == np.int32 and back["mask"].tolist() == [True, False]
    assert [f.name for f in tmp_path.iterdir()] == ["x.safetensors"]


def test_an_optimisers_state_is_a_tree_too(tmp_path):
    export(optax.adam(0.1).init({"w": jnp.ones(2)}), tmp_path / "adam.safetensors")
    assert sorted(import_params(tmp_path / "adam.safetensors")["0"]) == ["count", "mu", "nu"]


@pytest.mark.parametrize(
    "params, name, said",
    [
        ({"w": jnp.ones(2)}, "x.bin", r"it must end in \.safetensors"),
        ({"w": jnp.ones(2)}, 3, "path is 3; give the path"),
        ({}, "x.safetensors", "params has no arrays"),
        (jnp.ones(2), "x.safetensors", "params has a leaf called ''"),
        ({"a.b": jnp.ones(2)}, "x.safetensors", "a leaf called 'a.b'; give nested dicts whose keys have no dots"),
        ({"a": {1: jnp.ones(2), 2: "text"}}, "x.safetensors", "params has 'text' at 'a.2'; give arrays of numbers"),
        ({"key": jax.random.key(0)}, "x.safetensors", "at 'key'; give arrays of numbers"),
        ({"w": jnp.ones(2, jnp.float8_e4m3fn)}, "x.safetensors", "at 'w'; give arrays of numbers"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path, params, name, said):
    with pytest.raises(ValueError, match=said):
        export(params, tmp_path / name if isinstance(name, str) else name)
    assert not list(tmp_path.iterdir())


def test_files_that_are_no_tree_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        import_params(tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="path is None"):
        import_params(None)
    safetensors.save_file({"a": np.ones(2), "a.b": np.ones(2)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="has a tensor 'a' and others under this name"):
        import_params(tmp_path / "x.safetensors")
