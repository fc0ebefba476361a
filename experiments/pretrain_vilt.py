"""A small ViLT that knows pictures and words, for where no published checkpoint is at hand.

    python -m experiments.pretrain_vilt                                         scenes, embedded: a few minutes
    python -m experiments.pretrain_vilt --data flickr8k --data-dir DIR --without QUESTIONS     and photographs

Masked words are to be guessed and mismatched captions told from matching ones: ViLT's own two tasks. Scenes are
pictures that no client is asked about. Of Flickr8k the training pictures are used; with --without those about which a
client is asked, in training or in the test, are left out. A third task, which picture alone belongs to which
caption alone, is what makes so small a model look at pictures at all: without it, after 2,400 steps it guessed words
from their neighbours, and matches by chance.

The folder that is written holds model.safetensors with Hugging Face's names, vocab.txt, and model.json: sizes,
settings, and how well the tasks are done on held-out pictures.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from tokenizers import Tokenizer

from experiments.common import cli
from fedjax_mm import losses
from fedjax_mm.data import flickr8k, scenes, vqa, wordpiece
from fedjax_mm.models import albef, pretrained, transformer, vilt
from fedjax_mm.run import records
from fedjax_mm.types import PyTree

MASK, SEP = (wordpiece.SPECIAL.index(token) for token in ("[MASK]", "[SEP]"))
WORDS = len(wordpiece.SPECIAL)  # the first number of a word


@dataclasses.dataclass(frozen=True)
class Size:
    """Sizes of a small ViLT."""

    image: int = 32
    """Side of the pictures, in pixels."""
    patch: int = 8
    """Side of a patch, in pixels."""
    length: int = 24
    """Word pieces of a text."""
    vocabulary: int = 600
    """Word pieces in the vocabulary, at most."""
    dim: int = 64
    """Width of the transformer."""
    depth: int = 4
    """Layers of the transformer."""
    heads: int = 4
    """Attention heads of a layer."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is learnt from and for how long."""

    data: Literal["scenes", "flickr8k"] = "scenes"
    """Pictures to learn from: scenes are embedded; flickr8k adds its train split, which is read from --data-dir."""
    data_dir: str | None = None
    """Folder of Flickr8k's raw files."""
    without: str | None = None
    """Folder of clients' questions, DIR/<client>/{train,test}/metadata.jsonl, whose pictures are left out."""
    pictures: int = 12000
    """Scenes, spread evenly over their styles."""
    size: Size = Size()
    steps: int = 4000
    """Steps of AdamW."""
    batch_size: int = 64
    """Pairs in a batch."""
    lr: float = 1e-3
    """Highest learning rate, after a warm-up and before a cosine decay."""
    masked: float = 0.3
    """Share of the words that are to be guessed."""
    seed: int = 1000
    """Seed of the scenes, which no client has: their scenes have other seeds."""
    out: str = "runs/vilt_scenes"
    """Folder that the trunk is written to."""

    def __post_init__(self) -> None:
        cli.at_least(1, pictures=self.pictures, steps=self.steps, batch_size=self.batch_size)


PRESETS = {
    "scenes": Settings(),
    "flickr8k": Settings(
        "flickr8k", pictures=6000, size=Size(image=96, patch=16, vocabulary=4000), out="runs/vilt_flickr8k"
    ),
}


class Trunk(NamedTuple):
    """A pretrained trunk, here a ViLT, and what is needed to feed it."""

    model: vilt.Vilt | albef.Albef
    params: PyTree
    tokenizer: Tokenizer
    size: Size
    scores: Mapping[str, float]  # on held-out pictures; empty where they are not known
    head: PyTree | None = None  # of a model that writes answers, what every client's head starts from
    words: int | None = None  # how many word pieces its answers have


def load(folder: str | pathlib.Path, dtype: jax.typing.DTypeLike = jnp.float32) -> Trunk:
    """The trunk in a folder that this script wrote, or in one with ViLT-B/32's model.safetensors and vocab.txt.

    dtype: precision of the inputs of its matrix products.
    """
    folder = pathlib.Path(folder)
    about = folder / "model.json"
    if about.is_file():
        told = json.loads(about.read_text())
        size, scores = Size(**told["size"]), told["scores"]
        model = encoder(size, dtype)
    else:
        size, scores, model = Size(384, 32, 40, 30522, 768, 12, 12), {}, vilt.base(dtype=dtype)
    return Trunk(model, pretrained.load(model, folder), wordpiece.load(folder / "vocab.txt"), size, scores)


def encoder(size: Size, dtype: jax.typing.DTypeLike = jnp.float32) -> vilt.Vilt:
    """The ViLT of these sizes, its arithmetic in `dtype`."""
    shape: dict[str, Any] = {"dim": size.dim, "depth": size.depth, "heads": size.heads, "mlp": 4 * size.dim}
    return vilt.encoder(
        size.image, size.patch, size.vocabulary, size.length, std=0.5 * size.dim**-0.5, dtype=dtype, **shape
    )


class Captions(NamedTuple):
    image: np.ndarray  # [I, H, W, 3] uint8
    text: np.ndarray  # [I] or [I, Q] str


def captioned(settings: Settings) -> tuple[Captions, Captions, list[str]]:
    """(train, held out, questions about scenes: the tokenizer is to know their words too)."""
    size, train, valid = settings.size, [], []
    each = -(-settings.pictures // len(scenes.STYLES))
    asked = []
    for place, style in enumerate(scenes.STYLES):
        pictures = scenes.make(each + 100, (settings.seed, place), style, size.image)
        several = scenes.captions(pictures, 5, (settings.seed, place))[0].reshape(-1, 5)
        train.append(Captions(pictures.image[:each], several[:each]))
        valid.append(Captions(pictures.image[each:], several[each:]))
        asked += scenes.questions(pictures, per_scene=1, seed=settings.seed).text.tolist()
    if settings.data == "flickr8k":
        photos = flickr8k.load(settings.data_dir, image=size.image, vocabulary=size.vocabulary)
        for split, into in (("train", train), ("valid", valid)):
            kept = unseen(photos.files[split], settings.without)
            into.append(Captions(np.asarray(photos.splits[split]["image"])[kept], photos.captions[split][kept]))
    together = lambda parts: Captions(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
    return together(train), together(valid), asked


def unseen(files: Iterable[str], without: str | None) -> np.ndarray:
    """The rows of pictures, by their files, about which no question of the folder `without` is asked."""
    asked = vqa.imagefolder(without) if without else {}
    taken = {
        pathlib.Path(str(question.image)).name
        for splits in asked.values()
        for questions in splits.values()
        for question in questions
    }
    return np.flatnonzero([pathlib.Path(str(file)).name not in taken for file in files])


def pretrain(settings: Settings, log=print) -> Trunk:
    """Trains, writes the folder and returns what `load` would."""
    size = settings.size
    train, valid, asked = captioned(settings)
    tokenizer = wordpiece.train([*train.text.reshape(-1).tolist(), *asked], size.vocabulary)
    tokens = lambda text: wordpiece.encode(tokenizer, text.reshape(-1).tolist(), size.length).reshape(*text.shape, -1)
    arrays = {"image": jnp.asarray(train.image), "text": jnp.asarray(tokens(train.text))}
    model, key = encoder(size), jax.random.key(settings.seed)
    example = {"image": arrays["image"][:1], "question": arrays["text"][:1, 0]}
    params = {"trunk": model.init(key, example)} | _heads(jax.random.fold_in(key, 1), size)

    def loss_of(key):
        rows, captions, views = jax.random.split(key, 3)
        row = jax.random.randint(rows, (settings.batch_size,), 0, len(arrays["image"]))
        caption = jax.random.randint(captions, row.shape, 0, arrays["text"].shape[1])
        batch = {"image": arrays["image"][row], "question": arrays["text"][row, caption]}
        return lambda params: objective(model, params, batch, views, settings.masked)

    params = trained(loss_of, params, key, settings.lr, settings.steps, 10, log)
    scores = held_out(model, params, Captions(valid.image, tokens(valid.text[:, 0])), settings)
    folder = pathlib.Path(settings.out)
    cli.write(folder, settings)
    pretrained.save(params["trunk"], model, folder / "model.safetensors")
    words = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    told = {"size": dataclasses.asdict(size), "scores": scores, "settings": dataclasses.asdict(settings)}
    (folder / "model.json").write_text(json.dumps(told | {"versions": records.versions()}, indent=1))
    log(", ".join(f"{name} {score:.3f}" for name, score in scores.items()) + f"; wrote {folder}")
    return load(folder)


def trained(
    loss_of: Callable[[jax.Array], Callable], params: PyTree, key: jax.Array, lr: float, steps: int, said: int, log
) -> PyTree:
    """The parameters after so many steps of AdamW, with a warm-up and a cosine decay.

    loss_of: the key of a step -> its loss, (parameters) -> (a number [], {name: a score []}). said: how often the mean
    scores since the last time are logged.
    """
    rate = optax.warmup_cosine_decay_schedule(0.0, lr, max(1, steps // 20), steps)
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=0.01))

    def step(carry, key):
        params, opt = carry
        (_, scores), grads = jax.value_and_grad(loss_of(key), has_aux=True)(params)
        updates, opt = tx.update(grads, opt, params)
        return (optax.apply_updates(params, updates), opt), scores

    several = jax.jit(lambda carry, keys: jax.lax.scan(step, carry, keys), donate_argnums=0)
    carry, block = (params, tx.init(params)), max(1, steps // said)
    for start in range(0, steps, block):
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(start, min(start + block, steps)))
        carry, scores = several(carry, keys)
        log(f"step {start + len(keys)}: " + ", ".join(f"{k} {float(v.mean()):.3f}" for k, v in scores.items()))
    return carry[0]


def _heads(key: jax.Array, size: Size) -> PyTree:
    """A transform before the word vectors, which are the output layer too, and a linear layer that says "match"."""
    dense = lambda i, width: 0.02 * jax.random.normal(jax.random.fold_in(key, i), (size.dim, width))
    return {
        "words": {"kernel": dense(0, size.dim), "bias": jnp.zeros(size.vocabulary)},
        "match": {"kernel": dense(1, 2), "bias": jnp.zeros(2)},
        "image": 0.1 * jax.random.normal(jax.random.fold_in(key, 2), (size.dim, size.dim)),
        "text": 0.1 * jax.random.normal(jax.random.fold_in(key, 3), (size.dim, size.dim)),
    }


def objective(model: vilt.Vilt, params: PyTree, batch: Mapping[str, jax.Array], key: jax.Array, masked: float):
    """(loss [], scores): half the pictures of a batch change places, in the whole of it words are masked.

    Words are guessed where picture and caption match; pictures without captions and captions without pictures are told
    apart within the batch. (ViLT, Kim et al. 2021; the contrast as in ALBEF, Li et al. 2021)
    """
    text = jnp.asarray(batch["question"])
    half = len(text) // 2
    hidden = (text >= WORDS) & jax.random.bernoulli(key, masked, text.shape)
    image = jnp.concatenate([jnp.roll(batch["image"][:half], 1, axis=0), batch["image"][half:]])
    patch = params["trunk"]["embeddings"]["image"]["patch"]["kernel"].shape[0]
    tokens = model.tokens(params["trunk"], {"image": image, "question": jnp.where(hidden, MASK, text)})
    matches = (jnp.arange(len(text)) >= half).astype(jnp.int32)
    match = (
        standardised(transformer.pooled(params["trunk"], tokens)) @ params["match"]["kernel"]
        + params["match"]["bias"][None]
    )
    words = nn.gelu(tokens[half:, : text.shape[1]] @ params["words"]["kernel"])
    words = words @ params["trunk"]["embeddings"]["text"]["word"].T + params["words"]["bias"][None, None]
    weight = hidden[half:].astype(jnp.float32)
    mean = lambda x: (x * weight).sum() / jnp.maximum(weight.sum(), 1)
    word_loss = mean(optax.softmax_cross_entropy_with_integer_labels(words, text[half:]))
    match_loss = optax.softmax_cross_entropy_with_integer_labels(match, matches).mean()
    mute = {**batch, "question": text[:, :2].at[:, 1].set(SEP)}
    blind = {"image": jnp.zeros((len(text), patch, patch, 3), batch["image"].dtype), "question": text}
    seen, read = (model.apply(params["trunk"], view) for view in (mute, blind))
    contrast = losses.info_nce(standardised(seen) @ params["image"], standardised(read) @ params["text"], 0.1)
    scores = {
        "contrast": contrast,
        "words": mean((words.argmax(-1) == text[half:]).astype(jnp.float32)),
        "matches": (match.argmax(-1) == matches).mean(),
        "loss": word_loss + match_loss,
    }
    return word_loss + match_loss + contrast, scores


def standardised(x: jax.Array) -> jax.Array:
    """Each of a batch's features with mean 0 and variance 1: at the start they hardly differ between examples."""
    return (x - x.mean(0)[None]) / (x.std(0)[None] + 1e-6)


def held_out(model: vilt.Vilt, params: PyTree, valid: Captions, settings: Settings) -> dict[str, float]:
    """Both tasks on held-out pictures; words also with pictures that belong to other captions, as a control."""
    score = jax.jit(lambda batch, key: objective(model, params, batch, key, settings.masked)[1])
    order = np.random.default_rng(0).permutation(len(valid.image))
    sums: dict[str, list[float]] = {}
    for i, start in enumerate(range(0, len(order) - 63, 64)):
        rows, other = order[start : start + 64], np.roll(order, 7)[start : start + 64]
        for name, seen in (("", rows), (" with another picture", other)):
            batch = {"image": valid.image[seen], "question": valid.text[rows]}
            for key, value in score(batch, jax.random.key(i)).items():
                sums.setdefault(f"{key}{name}", []).append(float(value))
    kept = ("words", "words with another picture", "matches")
    return {name: float(np.mean(sums[name])) for name in kept}


def main(arguments: Sequence[str]) -> None:
    """Pretrains and writes the folder."""
    pretrain(cli.parse(PRESETS, arguments, __doc__))


if __name__ == "__main__":
    cli.run(main)
