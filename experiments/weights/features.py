"""What frozen encoders say of examples: each is computed once, and kept beside the encoder's weights."""

import hashlib
import os
import pathlib
import tempfile
import zipfile
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from experiments.weights import sources
from fedjax_mm.checks import check_array
from fedjax_mm.models import transformer
from fedjax_mm.types import PyTree

SIDE, PATCH, WIDTH = 98, 14, 384
"""Pixels of the pictures that ViT-S/14 takes and of its patches, and the width of its tokens and of MiniLM's."""
Encode = Callable[[PyTree, jax.Array], jax.Array]  # parameters, examples [B, ...] -> [B, ...]


def features(
    name: str, examples: np.ndarray, folder: str | pathlib.Path = sources.FOLDER, batch_size: int = 64
) -> np.ndarray:
    """What an encoder of the cache says of examples [N, ...]: [N, D] float32. Those that it has seen are not computed.

    name, D: vit_s14 takes pictures [98, 98, 3] uint8, D = 768, the class token and the mean of the patches; minilm
        word pieces [L] int32, D = 384, and whisper_base log-mel frames [T, 80], D = 512, the mean of the tokens;
        efficientnet_lite0 pictures [224, 224, 3] uint8, D = 1280.

    Raises FileNotFoundError where the encoder is not in the cache, and ValueError for examples that it does not take.
    """
    examples, kept = _checked(examples), sources.find(name, folder)

    def encoder() -> tuple[PyTree, Encode]:
        model, params = sources.load(name, folder)

        def encode(params: PyTree, batch: jax.Array) -> jax.Array:
            if name != "vit_s14":
                return model.apply(params, batch)
            tokens = model.tokens(params, batch)
            return jnp.concatenate([tokens[:, 0], tokens[:, 1:].mean(1)], axis=1)

        return params, encode

    return _kept(kept / f"features_{_of_weights(kept)}.npz", examples, encoder, batch_size)


def hidden(
    name: str,
    layers: int,
    examples: np.ndarray,
    folder: str | pathlib.Path = sources.FOLDER,
    batch_size: int = 64,
) -> np.ndarray:
    """All tokens of examples [N, ...] after the first `layers` layers of an encoder: [N, T, D] float16.

    name: vit_s14, minilm or whisper_base; examples as `features` takes them, but pictures may have any side of whole
    patches of 14 pixels, for which the positions are resized. The tokens of padding in texts are 0. Those of examples
    that it has seen are not computed. Raises what `features` raises, and ValueError where there are fewer layers.
    """
    examples, kept = _checked(examples), sources.find(name, folder)

    def encoder() -> tuple[PyTree, Encode]:
        model, params = sources.at_size(name, examples.shape[1:], folder)

        def encode(params: PyTree, batch: jax.Array) -> jax.Array:
            tokens = model.hidden(params, batch)
            return jnp.where((batch != 0)[..., None], tokens, 0) if name == "minilm" else tokens

        return transformer.first(params, layers), encode

    shape = "x".join(map(str, examples.shape[1:]))
    file = kept / f"hidden_{layers}_{shape}_{_of_weights(kept)}.npz"
    return _kept(file, examples, encoder, batch_size, np.float16)


def _checked(examples: np.ndarray) -> np.ndarray:
    examples = check_array("examples", examples)
    if examples.ndim < 2 or len(examples) == 0:
        raise ValueError(f"examples is {'empty' if examples.size == 0 else examples.shape}; give [N, ...], one or more")
    if not np.isfinite(examples).all():
        raise ValueError("examples has NaN or infinite numbers; leave these examples out")
    return examples


def _of_weights(kept: pathlib.Path) -> str:
    return (kept / sources.SUM).read_text().split()[0][:16]


def _kept(
    file: pathlib.Path,
    examples: np.ndarray,
    encoder: Callable[[], tuple[PyTree, Encode]],
    batch_size: int,
    dtype: type = np.float32,
) -> np.ndarray:
    """What an encoder gives of every example, from the file where it is there, which else gets it."""
    digests = _digests(examples)
    known = _read(file)
    unseen = {digest: i for i, digest in enumerate(digests) if digest not in known}
    if unseen:
        rows = _computed(*encoder(), examples[list(unseen.values())], batch_size, dtype)
        known |= _read(file) | dict(zip(unseen, rows, strict=True))  # another process may have added some meanwhile
        _write(file, known)
    return np.stack([known[digest] for digest in digests])


def _digests(examples: np.ndarray) -> list[bytes]:
    kind = f"{examples.dtype.str} {examples.shape[1:]}".encode()
    return [hashlib.sha256(kind + one.tobytes()).digest()[:16] for one in np.ascontiguousarray(examples)]


def _computed(params: PyTree, encode: Encode, examples: np.ndarray, batch_size: int, dtype: type) -> np.ndarray:
    encode, found = jax.jit(encode), []
    for start in range(0, len(examples), batch_size):
        batch = examples[start : start + batch_size]
        full = np.concatenate([batch, np.repeat(batch[-1:], batch_size - len(batch), axis=0)])  # one program
        found.append(np.asarray(encode(params, full), dtype)[: len(batch)])
    return np.concatenate(found)


def _read(file: pathlib.Path) -> dict[bytes, np.ndarray]:
    """Digest of an example -> its features. A damaged file is as none, and is written anew."""
    if not file.is_file():
        return {}
    try:
        with open(file, "rb") as opened, np.load(opened) as npz:
            return dict(zip([row.tobytes() for row in npz["digests"]], npz["features"], strict=True))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return {}


def _write(file: pathlib.Path, known: dict[bytes, np.ndarray]) -> None:
    digests = np.frombuffer(b"".join(known), np.uint8).reshape(len(known), -1)
    with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".tmp", delete=False) as temporary:
        np.savez(temporary, digests=digests, features=np.stack(list(known.values())))
    os.replace(temporary.name, file)  # what is there is whole
