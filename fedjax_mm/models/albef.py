"""ALBEF (Li et al. 2021, arXiv 2107.07651) for visual questions: it sees a picture and writes the answer to a question.

A ViT gives the picture's tokens. BERT reads the question: its first layers read alone, its fusion layers attend to the
picture too. A causal decoder writes an answer word by word, and attends to what BERT gave. Layers are compiled one by
one, as ViLT's are. Section numbers are those of docs/specs/feddat.md; section 7 has the model.
"""

import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from fedjax_mm.models import adapters as tunings
from fedjax_mm.models import albef_names, bert, checkpoint_files, configs, pretrained, vit
from fedjax_mm.models import albef_parts as parts
from fedjax_mm.models.albef_parts import Pieces, WordHead
from fedjax_mm.models.checks import check_dtype, check_number, check_sizes
from fedjax_mm.models.pretrained import Checkpoint
from fedjax_mm.models.transformer_layer import Layer
from fedjax_mm.types import Arrays, Key, PyTree


class Albef(NamedTuple):
    """An ALBEF as pure functions over {"image", "text", "decoder", "head"}, each with its embeddings and layers.

    A batch holds "image" [B, H, H, 3], uint8 (which gets CLIP's mean and deviation) or float as the ViT takes it,
    "question" [B, T] int32, and "choices" [B, K, L] int32, answers as [CLS] words [SEP]; 0 is padding and changes
    nothing.

    `apply(params, batch, tuning={})` gives {"hidden" [B, K, L, D], what the decoder makes of each answer's words up to
    each place, "words" [vocabulary, D], its word vectors}; `word_logits` makes of it, with "head", the logits of each
    next word. `tuning` may hold "adapter", as `adapter` makes it. `finish(params, start(params, batch), (adapter,))` is
    `apply` with that adapter; with several adapters their outputs are averaged at each of the sites, one a layer.

    `drop(key)` is the same model with dropout of `dropout` in BERT and the decoder, drawn by the key.

    >>> model = encoder(image=4, patch=2, vocabulary=9, length=5, dim=4, depths=(1, 2, 1), heads=2, mlp=8)
    >>> params = jax.eval_shape(model.init, jax.random.key(0), model.example)
    >>> jax.eval_shape(model.apply, params, model.example)["hidden"].shape
    (1, 1, 5, 4)
    """

    depths: Mapping[str, int]  # layers of "image", "text" and "decoder"
    width: int  # D
    dropout: float
    init: Callable[[Key, Arrays], PyTree]
    apply: Callable[..., PyTree]
    start: Callable[[PyTree, Arrays], parts.Started]
    finish: Callable[[PyTree, parts.Started, Sequence[PyTree]], PyTree]
    drop: Callable[[Key], "Albef"]
    init_head: Callable[[Key], PyTree]  # a fresh "head"
    word_logits: Callable[[PyTree, PyTree], jax.Array]  # ("head", what `apply` gives) -> [B, K, L, vocabulary]
    example: Mapping[str, jax.ShapeDtypeStruct]  # a batch of one with one answer, in shapes
    checkpoint: Checkpoint
    vocabulary: int | None = None  # the ids of "question" and "choices" are 0..vocabulary-1


def encoder(
    image: int = 384,
    patch: int = 16,
    vocabulary: int = 30522,
    length: int = 512,
    dim: int = 768,
    depths: tuple[int, int, int] = (12, 12, 6),
    heads: int = 12,
    mlp: int = 3072,
    dropout: float = 0.1,
    std: float = 0.02,
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> Albef:
    """An ALBEF of pictures [image, image] whose ViT, BERT and decoder have `depths` layers; BERT's upper half fuses.

    vocabulary, length: texts have at most `length` word pieces of 0..vocabulary-1.
    dropout: rate in BERT and the decoder where `drop` turns it on. std: standard deviation of the first kernels.
    dtype: type of arithmetic.

    Raises ValueError where `patch` does not divide `image`, `heads` does not divide `dim`, or there are no layers.
    """
    check_sizes(image=image, patch=patch, vocabulary=vocabulary, length=length, dim=dim, heads=heads, mlp=mlp)
    check_number("dropout", dropout, below=1)
    check_number("std", std)
    check_dtype(dtype)
    if not isinstance(depths, Sequence) or len(depths) != 3:
        raise ValueError(f"depths is {depths!r}; give the layers of the ViT, of BERT and of the decoder")
    named: dict[str, int] = dict(zip(("image", "text", "decoder"), depths, strict=True))
    check_sizes(**{f"depths of {name}": depth for name, depth in named.items()})
    if image % patch or dim % heads:
        raise ValueError(f"patch must divide image, and heads dim; got {image}, {patch}, {dim}, {heads}")
    post = functools.partial(
        Layer, heads, mlp, pre_norm=False, dropout=(dropout, dropout, dropout), std=std, dtype=dtype
    )
    pieces = Pieces(
        patches=vit.Embeddings(image, patch, dim, dtype),
        image=Layer(heads, mlp, epsilon=1e-6, std=std, dtype=dtype),
        norm=nn.LayerNorm(1e-6, use_fast_variance=False, dtype=dtype),
        words=bert.Embeddings(vocabulary, dim, length, 2, 1e-12, dtype),
        text=post(),
        decoder=post(causal=True),
        head=WordHead(vocabulary, std, dtype),
        depths=named,
        dropout=dropout,
        width=dim,
    )
    sizes = {"image": image, "patch": patch, "vocabulary": vocabulary, "length": length, "dim": dim}
    config = configs.stated(albef_names.CONFIG, depths=depths, heads=heads, mlp=mlp, **sizes)
    names = albef_names.names(named, pieces.fusion)
    checkpoint = Checkpoint(names, "", albef_names.OTHERS, albef_names.REPOSITORY, config=config)
    pixels = jax.ShapeDtypeStruct((1, image, image, 3), jnp.uint8)
    tokens = lambda *shape: jax.ShapeDtypeStruct((1, *shape), jnp.int32)
    example = {"image": pixels, "question": tokens(min(length, 30)), "choices": tokens(1, min(length, 8))}
    return _model(pieces, example, checkpoint, None)


def _model(
    pieces: Pieces, example: Mapping[str, jax.ShapeDtypeStruct], checkpoint: Checkpoint, key: Key | None
) -> Albef:
    """The model, with the dropout that `key` draws."""
    return Albef(
        pieces.depths,
        pieces.width,
        pieces.dropout if key is None else 0.0,
        init=functools.partial(parts.init, pieces),
        apply=functools.partial(_apply, pieces, key),
        start=functools.partial(parts.start, pieces, key),
        finish=functools.partial(parts.finish, pieces, key),
        drop=functools.partial(_model, pieces, example, checkpoint),
        init_head=functools.partial(parts.init_head, pieces),
        word_logits=functools.partial(parts.word_logits, pieces),
        example=example,
        checkpoint=checkpoint,
        vocabulary=pieces.words.vocabulary,
    )


def _apply(pieces: Pieces, key: Key | None, params: PyTree, batch: Arrays, tuning: Mapping[str, PyTree] = {}) -> PyTree:
    if unknown := tuning.keys() - {"adapter"}:
        raise ValueError(f"tuning may hold adapter, got {sorted(unknown)}; ALBEF has neither LoRA nor prompts here")
    return parts.finish(pieces, key, params, parts.start(pieces, key, params, batch), tuple(tuning.values()))


def base(dropout: float = 0.1, dtype: jax.typing.DTypeLike = jnp.float32) -> Albef:
    """The published ALBEF at 384 x 384: ViT-B/16, 12 layers of BERT of which 6 fuse, and a decoder of 6."""
    return encoder(dropout=dropout, dtype=dtype)


def load(model: Albef, path: str | pathlib.Path) -> PyTree:
    """The model's parameters from a file that the authors published, before or after it was tuned on questions.

    path: a .safetensors file or a folder with model.safetensors. The published ALBEF.pth is PyTorch's, whose weights
    stand under "model"; with torch and safetensors.torch, `weights = torch.load("ALBEF.pth")["model"]` and
    `save_file({name: x.clone() for name, x in weights.items()}, "model.safetensors")` make one. The decoder of a file
    without one starts from the fusion layers, and positions of other picture sizes are interpolated, as in the authors'
    code. (section 7)

    Raises what `pretrained.load` raises.
    """
    folder = pathlib.Path(path)
    configs.compare(model.checkpoint.config, folder)
    tensors = checkpoint_files.read(folder, model.checkpoint.repository)
    patches = jax.eval_shape(model.init, jax.random.key(0), model.example)["image"]["embeddings"]["positions"].shape[0]
    return pretrained.place(model, albef_names.renamed(tensors, patches, model.depths), path)


def from_pretrained(
    folder: str | pathlib.Path, dropout: float = 0.1, dtype: jax.typing.DTypeLike = jnp.float32
) -> tuple[Albef, PyTree]:
    """(the ALBEF in a folder, its parameters): of its config.json, or the published size where there is none.

    dropout, dtype: as `encoder` takes them. Raises what `load` raises, and ValueError where config.json is damaged or
    describes no ALBEF.
    """
    stated = (pathlib.Path(folder) / "config.json").is_file()
    model = encoder(
        **(configs.arguments_of(folder, albef_names.CONFIG) if stated else {}), dropout=dropout, dtype=dtype
    )
    return model, load(model, folder)


def adapter(key: Key, model: Albef, hidden: int = 48) -> PyTree:
    """An adapter for each layer of the ViT, of BERT and of the decoder, as adapters.adapter draws them.

    It has 2,236,320 parameters at the 30 sites of the published size. (section 2)

    >>> model = encoder(image=4, patch=2, vocabulary=9, dim=4, depths=(1, 2, 1), heads=2, mlp=8)
    >>> {part: tree["up"]["bias"].shape for part, tree in adapter(jax.random.key(0), model).items()}
    {'image': (1, 4), 'text': (2, 4), 'decoder': (1, 4)}
    """
    keys = jax.random.split(key, len(model.depths))
    return {
        part: tunings.adapter(one, depth, model.width, hidden)
        for one, (part, depth) in zip(keys, model.depths.items(), strict=True)
    }
