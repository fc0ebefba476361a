"""Parameters as a .safetensors file that other libraries read, and back."""

import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_mm._lazy import require
from fedjax_mm.checks import say
from fedjax_mm.models import checkpoint_files
from fedjax_mm.models.paths import nest
from fedjax_mm.types import PyTree

WRITTEN = (np.bool_, np.integer, np.float16, np.float32, np.float64, jnp.bfloat16)


def export(params: PyTree, path: str | os.PathLike) -> None:
    """Writes a tree of arrays as a .safetensors file, whole or not at all, with dotted names: "trunk.layers.00.kernel".

    params: such as `state.server["params"]` after a run, or `run.load(directory).server["params"]`. Entries of a tuple
    or list go by their number. Types are kept, bfloat16 too. `import_params` reads the file back, and so do the readers
    of safetensors in Python, PyTorch and Rust. (`pretrained.save` writes a model under Hugging Face's own names.)

    Raises ValueError for another file name, and for a tree without arrays, with other leaves or with dots in its keys;
    ImportError where safetensors is missing: pip install 'fedjax_mm[text]'.

    >>> import tempfile
    >>> file = pathlib.Path(tempfile.mkdtemp()) / "head.safetensors"
    >>> export({"head": {"kernel": jnp.ones((4, 2), jnp.bfloat16)}}, file)
    >>> params = import_params(file)
    >>> params["head"]["kernel"].shape, params["head"]["kernel"].dtype.name
    ((4, 2), 'bfloat16')
    """
    file = _checked(path)
    if file.suffix != ".safetensors":
        raise ValueError(f"path is {str(path)!r}; it must end in .safetensors")
    tensors = {}
    for keys, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(keys, simple=True, separator=".")
        if not name or name.count(".") != len(keys) - 1:
            raise ValueError(f"params has a leaf called {name!r}; give nested dicts whose keys have no dots")
        if not any(jnp.issubdtype(getattr(leaf, "dtype", object), kind) for kind in WRITTEN):
            raise ValueError(f"params has {say(leaf)} at {name!r}; give arrays of numbers")
        tensors[name] = np.ascontiguousarray(jax.device_get(leaf)).reshape(np.shape(leaf))
    if not tensors:
        raise ValueError("params has no arrays; give those of a model, such as state.server['params']")
    if jax.process_index() == 0:
        temporary = file.with_name(f"{file.name}.tmp")
        require("safetensors.numpy", "text").save_file(tensors, temporary, {"format": "np"})
        temporary.replace(file)


def import_params(path: str | os.PathLike) -> PyTree:
    """The nested dicts of NumPy arrays that `export` wrote, or those of any other .safetensors file, in shards too.

    They are what `as_encoder(..., pretrained=...)` starts from. Raises FileNotFoundError where there is no such file,
    and ValueError where it is damaged or where one name is the beginning of another.
    """
    tensors = checkpoint_files.read(_checked(path))
    taken = {name.rsplit(".", depth)[0] for name in tensors for depth in range(1, name.count(".") + 1)}
    if both := sorted(taken & tensors.keys()):
        raise ValueError(f"path {str(path)!r} has a tensor {both[0]!r} and others under this name; read it by itself")
    return nest(tensors, ".")


def _checked(path: str | os.PathLike) -> pathlib.Path:
    if not isinstance(path, str | os.PathLike) or not os.fspath(path):
        raise ValueError(f"path is {say(path)}; give the path of a .safetensors file")
    return pathlib.Path(path)
