"""Files of tensors: safetensors, PyTorch's, and those in shards; read into NumPy arrays, or refused by name."""

import importlib
import json
import pathlib

import numpy as np

from fedjax_mm._lazy import require

# What NumPy can hold of safetensors' types, integers for buffers.
KINDS = frozenset(("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL"))


def read(path: pathlib.Path, repository: str = "") -> dict[str, np.ndarray]:
    """Returns all tensors of a file, of a folder, or of the shards an index names, as they are stored.

    repository: on huggingface.co, where to get the file, for the error. Raises FileNotFoundError, ImportError where the
    package that reads the file is missing, and ValueError where it is damaged or NumPy has no such type.
    """
    files = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
    here = [path / name for name in files if (path / name).is_file()] if path.is_dir() else [path]
    if not here or not here[0].is_file():
        what = f"none of {', '.join(files)}" if path.is_dir() else "no such file"
        where = f" of https://huggingface.co/{repository}" if repository else ""
        raise FileNotFoundError(f"{path}: {what}. Download model.safetensors{where} and pass its local path")
    file = here[0]
    if file.name.endswith(".index.json"):
        return _read_shards(file, repository)
    if file.suffix == ".safetensors":
        return _read_safetensors(file)
    if file.suffix == ".bin":
        return _read_torch(file)
    raise ValueError(f"{file} must be a .safetensors, .bin or .index.json file")


def _read_shards(index: pathlib.Path, repository: str) -> dict[str, np.ndarray]:
    try:
        shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{index} is damaged or no index of shards ({error!r}); download it again") from error
    tensors = {}
    for shard in shards:
        if not isinstance(shard, str) or pathlib.PurePath(shard).name != shard or shard.endswith(".index.json"):
            raise ValueError(f"{index} names {shard!r} as a shard; it must be a file beside it; download it again")
        for name, x in read(index.parent / shard, repository).items():
            if name in tensors:
                raise ValueError(f"{index.parent / shard} has {name}, which another shard has too; download them again")
            tensors[name] = x
    return tensors


def _read_safetensors(file: pathlib.Path) -> dict[str, np.ndarray]:
    safetensors = require("safetensors", "text")
    try:
        with safetensors.safe_open(file, "np") as tensors:
            kinds = {name: tensors.get_slice(name).get_dtype() for name in tensors.keys()}
            if foreign := sorted(name for name, kind in kinds.items() if kind not in KINDS):
                raise ValueError(
                    f"{file}: {foreign[0]} is of type {kinds[foreign[0]]}, quantised; "
                    f"get the checkpoint in one of {', '.join(sorted(KINDS))}"
                )
            return {name: tensors.get_tensor(name) for name in kinds}
    except (safetensors.SafetensorError, OSError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is damaged or incomplete ({error}); download it again") from error


def _read_torch(file: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        torch = importlib.import_module("torch")  # only for this old format, so not among what the library needs
    except ImportError as error:
        cure = "install torch, or convert it to safetensors and run: pip install 'fedjax_mm[text]'"
        raise ImportError(f"{file} needs torch to be read; {cure}") from error
    try:
        tensors = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle and torch each have their own
        raise ValueError(f"{file} is damaged, incomplete or holds more than weights ({error})") from error
    try:
        return {name: (x.float() if x.is_floating_point() else x).numpy() for name, x in tensors.items()}
    except (AttributeError, TypeError, RuntimeError) as error:
        raise ValueError(
            f"{file} is no mapping from names to tensors ({error}); save the model's state_dict"
        ) from error
