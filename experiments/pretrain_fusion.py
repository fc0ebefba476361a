"""A small trunk that sees together what frozen encoders say of pictures (ViT-S/14) and of texts (MiniLM).

    python -m experiments.pretrain_fusion --data-dir DIR/flickr8k --without DIR/vqa     a minute, and the features

The trunk is ViLT's layers over four tokens: one to read, one of the text, two of the picture. It learns from Flickr8k's
training pictures and captions, without the pictures about which a client of --without is asked, in training or in the
test. It tells mismatched captions from matching ones, as ViLT does, and which picture belongs to which caption. Words
cannot be masked, because a text is one vector.

The folder that is written holds trunk.safetensors and fusion.json: sizes, settings, and how well it tells matches on
held-out pictures.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from experiments.common import cli
from experiments.feddat import frozen
from experiments.pretrain_vilt import standardised, trained, unseen
from fedjax_mm import losses
from fedjax_mm.data import flickr8k
from fedjax_mm.models import exports, vilt
from fedjax_mm.models.layers import run_module
from fedjax_mm.run import records
from fedjax_mm.types import Arrays, PyTree

ABOUT, WEIGHTS = "fusion.json", "trunk.safetensors"


class Size(NamedTuple):
    """Sizes of the trunk."""

    dim: int = 64
    """Width of the transformer."""
    depth: int = 2
    """Layers of the transformer."""
    heads: int = 4
    """Attention heads of a layer."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is learnt from and for how long."""

    data_dir: str = "."
    """Folder of Flickr8k's raw files."""
    without: str | None = None
    """Folder of clients' questions, DIR/<client>/{train,test}/metadata.jsonl, whose pictures are left out."""
    size: Size = Size()
    steps: int = 900
    """Steps of AdamW."""
    batch_size: int = 128
    """Pairs in a batch."""
    lr: float = 2e-3
    """Highest learning rate, after a warm-up and before a cosine decay."""
    seed: int = 0
    """Seed of the first weights and of the batches."""
    out: str = "runs/fusion"
    """Folder that the trunk is written to."""

    def __post_init__(self) -> None:
        cli.at_least(1, steps=self.steps, batch_size=self.batch_size)


class Features(nn.Module):
    """A batch {"read" [B, W], "seen" [B, 2, W]} -> four tokens [B, 4, dim] and their mask: to read, text, picture.

    The token to read starts as a linear map of the product, number by number, of what the text and the picture say
    (Kim et al. 2017, arXiv 1610.04325). prompts are inserted behind it.

    Parameters: text, image and both (kernel, bias), places [4, dim].
    """

    dim: int

    @nn.compact
    def __call__(self, batch: Arrays, prompts: Mapping[str, jax.Array] | None = None) -> tuple[jax.Array, jax.Array]:
        read, seen = jnp.asarray(batch["read"]), jnp.asarray(batch["seen"])
        places = self.param("places", nn.initializers.normal(0.02), (4, self.dim))
        read, seen = nn.Dense(self.dim, name="text")(read[:, None]), nn.Dense(self.dim, name="image")(seen)
        both = nn.Dense(self.dim, name="both")(read * seen.mean(1, keepdims=True))
        tokens = jnp.concatenate([both, read, seen], axis=1) + places[None]
        for prompt in (prompts or {}).values():
            more = jnp.broadcast_to(prompt[None], (len(tokens), *prompt.shape))
            tokens = jnp.concatenate([tokens[:, :1], more, tokens[:, 1:]], axis=1)
        return tokens, jnp.ones(tokens.shape[:2], bool)


class Trunk(NamedTuple):
    """A pretrained trunk over frozen features."""

    model: vilt.Vilt
    params: PyTree
    known: Mapping[str, tuple[np.ndarray, np.ndarray]]
    """Mean and deviation of "seen" and "read" in the training pairs, by which features are standardised before."""
    scores: Mapping[str, float]
    """Share of the matches that it tells on held-out pictures, and half a batch is matched by chance."""


def encoder(size: Size, dtype: jax.typing.DTypeLike = jnp.float32) -> vilt.Vilt:
    """The trunk of these sizes, its arithmetic in `dtype`."""
    wide = frozen.WIDTH
    example = {"read": jax.ShapeDtypeStruct((1, wide), jnp.float32)}
    example |= {"seen": jax.ShapeDtypeStruct((1, 2, wide), jnp.float32)}
    std = 0.5 * size.dim**-0.5
    own = (Features(size.dim), example)
    return vilt.encoder(**size._asdict(), mlp=4 * size.dim, std=std, dtype=dtype, own=own)


def load(folder: str | pathlib.Path, dtype: jax.typing.DTypeLike = jnp.float32) -> Trunk:
    """The trunk in a folder that this script wrote. dtype: precision of the inputs of its matrix products."""
    told = json.loads((pathlib.Path(folder) / ABOUT).read_text())
    kept = exports.import_params(pathlib.Path(folder) / WEIGHTS)
    known = {name: (pair["mean"], pair["deviation"]) for name, pair in kept["known"].items()}
    return Trunk(encoder(Size(**told["size"]), dtype), kept["trunk"], known, told["scores"])


def pretrain(settings: Settings, train: Mapping[str, np.ndarray], valid: Mapping[str, np.ndarray], log=print) -> Trunk:
    """Trains, writes the folder and returns what `load` would.

    train, valid: "seen" [I, 2, W] of pictures, and "read" [I, Q, W] of their captions.
    """
    model, key = encoder(settings.size), jax.random.key(settings.seed)
    known = {"seen": _moments(train["seen"]), "read": _moments(train["read"].reshape(-1, frozen.WIDTH))}
    train, valid = frozen.standardised(train, known), frozen.standardised(valid, known)
    trunk = model.init(key, {"read": jnp.asarray(train["read"][:1, 0]), "seen": jnp.asarray(train["seen"][:1])})
    params = {"trunk": trunk, "match": 0.1 * jax.random.normal(jax.random.fold_in(key, 1), (model.width, 2))}
    arrays = {name: jnp.asarray(x) for name, x in train.items()}

    def loss_of(key):
        batch = _batch(arrays, settings.batch_size, key)
        return lambda params: objective(model, params, batch)

    params = trained(loss_of, params, key, settings.lr, settings.steps, 5, log)
    told = held_out(model, params, valid)
    folder = pathlib.Path(settings.out)
    cli.write(folder, settings)
    named = {name: {"mean": mean, "deviation": deviation} for name, (mean, deviation) in known.items()}
    exports.export({"trunk": params["trunk"], "known": named}, folder / WEIGHTS)
    about = {"size": settings.size._asdict(), "scores": told, "settings": dataclasses.asdict(settings)}
    (folder / ABOUT).write_text(json.dumps(about | {"versions": records.versions()}, indent=1))
    log(f"{told}; wrote {folder}")
    return load(folder)


def _moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return x.mean(0), x.std(0)


def _batch(arrays: Mapping[str, jax.Array], size: int, key: jax.Array) -> dict[str, jax.Array]:
    rows, captions = jax.random.split(key)
    row = jax.random.randint(rows, (size,), 0, len(arrays["seen"]))
    caption = jax.random.randint(captions, (size,), 0, arrays["read"].shape[1])
    return {"seen": jnp.asarray(arrays["seen"])[row], "read": jnp.asarray(arrays["read"])[row, caption]}


def objective(model: vilt.Vilt, params: PyTree, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, dict[str, Any]]:
    """(loss [], scores): half the pictures of a batch change places, and texts and pictures find each other.

    They do so before the layers, as in ALBEF (Li et al. 2021, arXiv 2107.07651): behind the layers, 1,500 steps taught
    them to find each other and the layers to tell matches by chance alone.
    """
    trunk, half = params["trunk"], len(batch["read"]) // 2
    moved = jnp.concatenate([jnp.roll(batch["seen"][:half], 1, axis=0), batch["seen"][half:]])
    matches = (jnp.arange(len(moved)) >= half).astype(jnp.int32)
    match = standardised(model.apply(trunk, {**batch, "seen": moved})) @ params["match"]
    match_loss = optax.softmax_cross_entropy_with_integer_labels(match, matches).mean()
    tokens, _ = run_module(Features(model.width), trunk["embeddings"], batch)
    contrast = losses.info_nce(standardised(tokens[:, 1]), standardised(tokens[:, 2:].mean(1)), 0.1)
    return match_loss + contrast, {"contrast": contrast, "matches": (match.argmax(-1) == matches).mean()}


def held_out(model: vilt.Vilt, params: PyTree, valid: Mapping[str, np.ndarray]) -> dict[str, float]:
    """How many matches are told on held-out pictures, in batches of 64."""
    score = jax.jit(functools.partial(objective, model))
    order = np.random.default_rng(0).permutation(len(valid["seen"]))
    batches = [order[i : i + 64] for i in range(0, len(order) - 63, 64)]
    of = lambda rows: {"seen": np.asarray(valid["seen"][rows]), "read": np.asarray(valid["read"][rows, 0])}
    return {"matches": float(np.mean([score(params, of(rows))[1]["matches"] for rows in batches]))}


def captioned(settings: Settings) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(train, valid): features of Flickr8k's pictures and captions, of those of train that no client is asked about."""
    photos = flickr8k.load(settings.data_dir, image=frozen.SIDE, length=frozen.LENGTH)
    words = frozen.tokenizer()

    def read(split: str, rows: np.ndarray) -> dict[str, np.ndarray]:
        captions = photos.captions[split][rows]
        tokens = frozen.words(words, captions.reshape(-1).tolist())
        said = frozen.texts(tokens).reshape(*captions.shape, -1)
        return {"seen": frozen.pictures(np.asarray(photos.splits[split]["image"][rows])), "read": said}

    kept = {split: unseen(photos.files[split], settings.without) for split in ("train", "valid")}
    return read("train", kept["train"]), read("valid", kept["valid"])


def main(arguments: Sequence[str]) -> None:
    """Pretrains and writes the folder."""
    settings = cli.parse(Settings(), arguments, __doc__)
    pretrain(settings, *captioned(settings))


if __name__ == "__main__":
    cli.run(main)
