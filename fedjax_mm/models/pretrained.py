"""Checkpoints under Hugging Face's names: read into our parameter trees, and written from them.

A model carries its `Checkpoint`, which says which tensor of a file is which of its parameters. To support another
family, write its table of names with `tensor`, `linear` and `norm`.

Files are read and written with safetensors, which is installed with `pip install 'fedjax_mm[text]'`.
"""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_mm._lazy import require
from fedjax_mm.models import checkpoint_files, configs
from fedjax_mm.models.paths import flatten, nest
from fedjax_mm.types import PyTree


class Layout(NamedTuple):
    """How to turn a tensor as the file has it into one as our tree has it, and back."""

    read: Callable
    write: Callable


SAME = Layout(lambda x: x, lambda x: x)
MATRIX = Layout(lambda x: x.T, lambda x: x.T)  # [out, in] <-> [in, out]
CONV = Layout(  # [out, in, h, w] <-> [h, w, in, out]
    lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1)
)
BATCHED = Layout(lambda x: x[0], lambda x: x[None])  # [1, ...] <-> [...]

# Buffers that files hold besides the weights and that say nothing.
BUFFERS = ("position_ids", "token_type_ids", "num_batches_tracked")

# What our parameters can be made of; other numbers are codes that mean nothing without their scales.
FLOATS = tuple(map(np.dtype, (np.float64, np.float32, np.float16, jnp.bfloat16)))

# our path "layers/00/fc_1/kernel" -> (name in the file, without prefix; layout)
Names = dict[str, tuple[str, Layout]]


def tensor(theirs: str, ours: str, layout: Layout = SAME) -> Names:
    """The entry of one tensor in a table of names.

    >>> tensor("cls_token", "embeddings/cls")["embeddings/cls"][0]
    'cls_token'
    """
    return {ours: (theirs, layout)}


def linear(theirs: str, ours: str, layout: Layout = MATRIX) -> Names:
    """The entries of a linear layer, whose weight and bias are our kernel and bias. A convolution has layout `CONV`.

    >>> {ours: theirs for ours, (theirs, _) in linear("pooler.dense", "pooler").items()}
    {'pooler/kernel': 'pooler.dense.weight', 'pooler/bias': 'pooler.dense.bias'}
    """
    return tensor(f"{theirs}.weight", f"{ours}/kernel", layout) | tensor(f"{theirs}.bias", f"{ours}/bias")


def norm(theirs: str, ours: str) -> Names:
    """The entries of a layer norm, whose weight and bias are our scale and bias.

    >>> {ours: theirs for ours, (theirs, _) in norm("layernorm", "norm").items()}
    {'norm/scale': 'layernorm.weight', 'norm/bias': 'layernorm.bias'}
    """
    return tensor(f"{theirs}.weight", f"{ours}/scale") | tensor(f"{theirs}.bias", f"{ours}/bias")


def layers(prefix: str, depth: int, linears: Mapping[str, str], norms: Mapping[str, str]) -> Names:
    """The names of all layers' tensors: prefix.i.<key> is layers/i/<value>, for linear layers and for layer norms.

    >>> sorted(layers("encoder.layer", 1, {"q_lin": "query"}, {}))
    ['layers/00/query/bias', 'layers/00/query/kernel']
    """
    names = {}
    for i in range(depth):
        for make, table in ((linear, linears), (norm, norms)):
            for theirs, ours in table.items():
                names |= make(f"{prefix}.{i}.{theirs}", f"layers/{i:02d}/{ours}")
    return names


class Checkpoint(NamedTuple):
    """Where a model's pretrained weights are, and what they are called there."""

    names: Names
    prefix: str  # of the trunk's tensors in files that hold a head too, such as "vit."
    heads: tuple[str, ...]  # beginnings of the names, without prefix, of tensors that the model does not need
    repository: str = ""  # on huggingface.co, "" where there is none
    optional: tuple[str, ...] = ()  # parts of our tree that some of the family's files lack
    stacked: bool = False  # our tree has its layers' leaves stacked, [layers, ...]; names are still those of one layer
    config: Mapping[str, Any] = {}  # what the config.json of such a model says (configs.stated)


class HasCheckpoint(Protocol):
    """A model that can be loaded: a Transformer, a Vilt, a ResNet, or whatever has these three fields."""

    @property
    def init(self) -> Callable[..., PyTree]: ...

    @property
    def example(self) -> Any: ...

    @property
    def checkpoint(self) -> Checkpoint: ...


def load(model: HasCheckpoint, path: str | pathlib.Path) -> PyTree:
    """The model's parameters from a checkpoint, float32.

    `path` is a .safetensors file, a PyTorch .bin file (which needs torch), the .index.json of a sharded one, or a
    folder that holds one of these. Tensors of other heads are dropped. An optional part (the pooler) that the file
    lacks is left out of the result: `trees.grow(load(model, path), model.init(key, batch))` puts a fresh one there.

    Raises FileNotFoundError where there is no such file, ImportError where the package that reads it is missing, and
    ValueError for a damaged file, for tensors that are missing, have another shape, are quantised (integers, FP8) or
    not finite, for tensors that found no place, and where a config.json beside the file describes another model, such
    as one with other heads, which no tensor's shape tells.
    """
    if not isinstance(path, str | pathlib.Path) or not str(path):
        raise ValueError(f"path is {path!r}; give the path of a checkpoint, as text or as pathlib.Path")
    spec = model.checkpoint
    configs.compare(spec.config, pathlib.Path(path))
    return place(model, _strip(checkpoint_files.read(pathlib.Path(path), spec.repository), spec.prefix, path), path)


def place(model: HasCheckpoint, found: Mapping[str, np.ndarray], path: str | pathlib.Path) -> PyTree:
    """The model's parameters from tensors by the names of its checkpoint; `path` is where they are from, for errors.

    Raises what `load` raises for tensors.
    """
    spec = model.checkpoint
    fresh = lambda key, batch: _unstacked(model.init(key, batch), spec)
    expected = flatten(jax.eval_shape(fresh, jax.random.key(0), model.example))
    for part in spec.optional:
        leaves = {ours for ours in expected if ours.startswith(f"{part}/")}
        if not any(spec.names[ours][0] in found for ours in leaves):
            expected = {ours: leaf for ours, leaf in expected.items() if ours not in leaves}

    problems, params = [], {}
    for ours, leaf in expected.items():
        theirs, layout = spec.names[ours]
        shape = jax.eval_shape(layout.write, leaf).shape
        if theirs not in found:
            problems.append(f"{theirs} {shape} is missing")
        elif found[theirs].shape != shape:
            problems.append(f"{theirs} must be {shape}, found {found[theirs].shape}")
        elif found[theirs].dtype not in FLOATS:
            problems.append(f"{theirs} holds {found[theirs].dtype}, quantised weights without their scales")
        elif not np.isfinite(weights := _in_32_bits(found[theirs])).all():
            problems.append(f"{theirs} has NaN or numbers that float32 does not hold")
        else:
            params[ours] = jnp.asarray(layout.read(weights), jnp.float32)
    wanted = {spec.names[ours][0] for ours in expected}
    for theirs in sorted(found.keys() - wanted):
        if not theirs.startswith(spec.heads) and not theirs.endswith(BUFFERS):
            problems.append(f"{theirs} {found[theirs].shape} has no place in the model")
    if problems:
        listed = "\n  ".join(problems[:20] + [f"and {len(problems) - 20} more"] * (len(problems) > 20))
        raise ValueError(
            f"{path} is not a checkpoint of this model; its depth and sizes must be the file's:\n  {listed}"
        )
    params = nest(params)
    if spec.stacked:
        params["layers"] = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params["layers"].values())
    return params


def save(params: PyTree, model: HasCheckpoint, path: str | pathlib.Path) -> None:
    """Writes the parameters, of all layers or of the first ones, as a .safetensors file that `load` reads.

    Names and layouts are Hugging Face's, whose `from_pretrained` reads the file too.

    Raises ValueError for another file name and for parameters that the model does not have, and ImportError where
    safetensors is missing.
    """
    if pathlib.Path(path).suffix != ".safetensors":
        raise ValueError(f"{path} must end in .safetensors")
    names, leaves = model.checkpoint.names, flatten(_unstacked(params, model.checkpoint))
    if unknown := sorted(leaves.keys() - names.keys()):
        raise ValueError(f"the model has no parameters {unknown}")
    written = {names[ours][0]: names[ours][1].write(np.asarray(leaf, np.float32)) for ours, leaf in leaves.items()}
    # Hugging Face refuses files that do not say which framework they are for.
    contiguous = {name: np.ascontiguousarray(x) for name, x in written.items()}
    require("safetensors.numpy", "text").save_file(contiguous, path, {"format": "pt"})


def _in_32_bits(weights: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # what float32 does not hold becomes infinite, and is refused
        return weights.astype(np.float32, copy=False)


def _strip(tensors: Mapping[str, np.ndarray], prefix: str, path: str | pathlib.Path) -> dict[str, np.ndarray]:
    """The tensors without the prefix, and under the newer names of a layer norm's weight and bias."""
    stripped = {}
    for name, x in tensors.items():
        new = name.removeprefix(prefix)
        new = new.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
        if new in stripped:
            raise ValueError(f"{path} holds {new} twice, with and without the prefix {prefix!r} or under an old name")
        stripped[new] = x
    return stripped


def _unstacked(params: PyTree, spec: Checkpoint) -> PyTree:
    """The parameters with stacked layers apart, {"00": ..., "01": ...}, as they are named in files."""
    if not spec.stacked or "layers" not in params:
        return params
    at = lambda i: jax.tree.map(lambda leaf: leaf[i], params["layers"])
    depth = len(jax.tree.leaves(params["layers"])[0])
    return {**params, "layers": {f"{i:02d}": at(i) for i in range(depth)}}
