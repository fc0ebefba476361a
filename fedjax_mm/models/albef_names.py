"""The tensors of the authors' ALBEF files, and how they become those that `albef.encoder` names (section 7 of
docs/specs/feddat.md)."""

from collections.abc import Mapping

import numpy as np

from fedjax_mm.models import bert, configs, pretrained
from fedjax_mm.models.pretrained import BATCHED, CONV, Names, linear, norm, tensor

CONFIG = configs.Config(
    "albef",
    {
        "image": "image_size",
        "patch": "patch_size",
        "vocabulary": "vocab_size",
        "length": "max_position_embeddings",
        "dim": "hidden_size",
        "depths": "num_hidden_layers",
        "heads": "num_attention_heads",
        "mlp": "intermediate_size",
    },
)
"""config.json of a folder with other sizes than the published; "num_hidden_layers" has the three depths."""

REPOSITORY = "Salesforce/ALBEF"
OTHERS = (
    *(f"{part}_m." for part in ("visual_encoder", "text_encoder", "text_decoder", "vision_proj", "text_proj")),
    *("vision_proj.", "text_proj.", "itm_head.", "combined_encoder", "temp", "image_queue", "text_queue", "idx_queue"),
    *("queue_ptr", "ptr_queue", "text_decoder.cls.predictions.decoder."),
)
"""Beginnings of the names of tensors for other tasks, of momentum copies, and of the tied output layer."""


def names(depths: Mapping[str, int], fusion: int) -> Names:
    """Our path -> the name that `renamed` gives, for an ALBEF of so many layers; BERT fuses from layer `fusion` on."""
    visual, head = "visual_encoder", "text_decoder.cls.predictions"
    layers = {f"attn.{name}": name for name in ("query", "key", "value")}
    layers |= {"attn.proj": "out", "mlp.fc1": "fc_1", "mlp.fc2": "fc_2"}
    norms = {"norm1": "norm_1", "norm2": "norm_2"}
    image = pretrained.layers(f"{visual}.blocks", depths["image"], layers, norms)
    image |= tensor(f"{visual}.cls_token", "embeddings/cls", BATCHED) | norm(f"{visual}.norm", "norm")
    image |= tensor(f"{visual}.pos_embed", "embeddings/positions", BATCHED)
    image |= linear(f"{visual}.patch_embed.proj", "embeddings/patch", CONV)
    return (
        _under("image", image)
        | _under("text", _bert("text_encoder", depths["text"], fusion))
        | _under("decoder", _bert("text_decoder.bert", depths["decoder"], 0))
        | linear(f"{head}.transform.dense", "head/dense")
        | norm(f"{head}.transform.LayerNorm", "head/norm")
        | tensor(f"{head}.bias", "head/bias")
    )


def renamed(tensors: Mapping[str, np.ndarray], positions: int, depths: Mapping[str, int]) -> dict[str, np.ndarray]:
    """The tensors of a published file under the names of `names`.

    A ViT's joint query, key and value come apart, its positions are interpolated to `positions` ones, BERT loses the
    prefix of a BERT with a head, and a decoder that is not there starts from BERT's upper layers, with its head.
    """
    found = {name.replace("text_encoder.bert.", "text_encoder."): x for name, x in tensors.items()}
    if not any(name.startswith("text_decoder.") for name in found):
        found |= _decoder(found, depths["text"] - depths["decoder"])
    found = {name: x for name, x in found.items() if not name.startswith("text_encoder.cls.")}
    apart = {}
    for name, x in found.items():
        if ".attn.qkv." in name and len(x) % 3 == 0:
            for part, third in zip(("query", "key", "value"), np.split(x, 3), strict=True):
                apart[name.replace(".qkv.", f".{part}.")] = third
        else:
            apart[name] = x
    table = apart.get("visual_encoder.pos_embed")
    if table is not None and table.ndim == 3 and table.shape[1] != positions:
        apart["visual_encoder.pos_embed"] = _stretched(table, positions)
    return apart


def bicubic(size: int, grid: int) -> np.ndarray:
    """The matrix [size, grid] that stretches `grid` values over `size` places, as PyTorch's bicubic interpolation does.

    It is that without aligned corners and without antialiasing, with -0.75 for the kernel's slope at 1.

    >>> bicubic(2, 2).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    places = (np.arange(size) + 0.5) * grid / size - 0.5
    matrix, a = np.zeros((size, grid)), -0.75
    for offset in range(-1, 3):
        at = np.floor(places) + offset
        x = np.abs(places - at)
        near = ((a + 2) * x - (a + 3)) * x**2 + 1
        far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
        np.add.at(matrix, (np.arange(size), np.clip(at, 0, grid - 1).astype(int)), np.where(x <= 1, near, far))
    return matrix


def _stretched(table: np.ndarray, positions: int) -> np.ndarray:
    """Positions [1, 1 + grid^2, D] of the class token and of a square of patches, for `positions` of them."""
    before, after = (int(np.sqrt(number - 1)) for number in (table.shape[1], positions))
    squares = table[0, 1:].reshape(before, before, -1).astype(np.float64)
    rows = bicubic(after, before)
    new = np.einsum("rg,ch,ghd->rcd", rows, rows, squares).reshape(1, after * after, -1)
    return np.concatenate([table[:, :1], new.astype(table.dtype)], axis=1)


def _decoder(tensors: Mapping[str, np.ndarray], below: int) -> dict[str, np.ndarray]:
    """A decoder made of BERT's embeddings, head, and layers numbered `below` or more."""
    made = {}
    for name, x in tensors.items():
        part, _, rest = name.partition(".")
        if part != "text_encoder":
            continue
        if rest.startswith("encoder.layer."):
            number = int(rest.split(".")[2]) - below
            rest = rest.replace(f".layer.{number + below}.", f".layer.{number}.", 1)
            if number < 0:
                continue
        made[f"text_decoder.{rest}" if rest.startswith("cls.") else f"text_decoder.bert.{rest}"] = x
    return made


def _bert(prefix: str, depth: int, fusion: int) -> Names:
    """The names of a BERT whose layers numbered `fusion` or more attend to another sequence."""
    linears = {f"crossattention.self.{name}": f"cross_{name}" for name in ("query", "key", "value")}
    linears |= {"crossattention.output.dense": "cross_out"}
    cross = pretrained.layers("encoder.layer", depth, linears, {"crossattention.output.LayerNorm": "cross_norm"})
    cross = {ours: entry for ours, entry in cross.items() if int(ours.split("/")[1]) >= fusion}
    own = bert.embedding_names() | bert.layer_names(depth) | cross
    return {ours: (f"{prefix}.{theirs}", layout) for ours, (theirs, layout) in own.items()}


def _under(part: str, table: Names) -> Names:
    return {f"{part}/{ours}": entry for ours, entry in table.items()}
