"""config.json of a Hugging Face folder: what its tensors do not say of a model, such as the number of heads."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple


class Config(NamedTuple):
    """The config.json of a family of models."""

    kind: str
    """Its model_type."""
    arguments: Mapping[str, str]
    """Argument of the family's `encoder` -> its key in the file."""
    fixed: Mapping[str, Any] = {}
    """Key -> the value that all our models have, and that a file without the key has too."""


SIZES = {
    "dim": "hidden_size",
    "depth": "num_hidden_layers",
    "heads": "num_attention_heads",
    "mlp": "intermediate_size",
}
"""Arguments that most families have, and their keys."""


def stated(config: Config, **arguments: Any) -> dict[str, Any]:
    """What config.json of a model with these arguments says: key -> value.

    >>> stated(Config("vit", {"heads": "num_attention_heads"}, {"hidden_act": "gelu"}), heads=3)
    {'hidden_act': 'gelu', 'num_attention_heads': 3}
    """
    return {**config.fixed, **{config.arguments[name]: _plain(value) for name, value in arguments.items()}}


def arguments_of(folder: str | pathlib.Path, *families: Config) -> dict[str, Any]:
    """The arguments of `encoder` that a folder's config.json says, which is of one of the families.

    Raises FileNotFoundError where there is no such file, and ValueError where it is damaged, is of another family, or
    lacks one of the arguments.
    """
    if not isinstance(folder, str | pathlib.Path) or not str(folder):
        raise ValueError(f"folder is {folder!r}; give the path of a folder, as text or as pathlib.Path")
    file = pathlib.Path(folder) / "config.json"
    if not file.is_file():
        raise FileNotFoundError(f"there is no {file}; download it with model.safetensors, or give the sizes to encoder")
    found = _read(file)
    if found is None:
        raise ValueError(f"{file} is damaged or states no model_type; download it again")
    config = next((one for one in families if one.kind == found["model_type"]), None)
    if config is None:
        known = " or ".join(repr(one.kind) for one in families)
        raise ValueError(f"{file} is of a model of type {found['model_type']!r}; this function reads {known}")
    if missing := [key for key in config.arguments.values() if key not in found]:
        raise ValueError(f"{file} lacks {', '.join(missing)}; give the sizes to encoder, and read its weights by load")
    return {name: found[key] for name, key in config.arguments.items()}


def compare(of_model: Mapping[str, Any], path: pathlib.Path) -> None:
    """Raises ValueError where the config.json beside a checkpoint, or in its folder, says another thing than `stated`.

    A file of another kind, which states no model_type, says nothing.
    """
    file = (path if path.is_dir() else path.parent) / "config.json"
    found = (_read(file) or {}) if file.is_file() else {}
    if apart := [key for key, value in of_model.items() if key in found and _plain(found[key]) != value]:
        listed = "; ".join(f"{key} is {found[key]!r} there and {of_model[key]!r} in the model" for key in apart)
        raise ValueError(f"{file} describes another model: {listed}")


def _read(file: pathlib.Path) -> dict[str, Any] | None:
    """The content of a config.json; None where it is none of a model."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError):
        return None
    return content if isinstance(content, dict) and "model_type" in content else None


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
