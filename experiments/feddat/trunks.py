"""The trunks that experiments.feddat tunes, read from a folder: ViLT, VAuLT and ALBEF, and a head for each."""

import pathlib

import jax
from safetensors import safe_open

from experiments import pretrain_vilt
from experiments.pretrain_vilt import Size, Trunk
from fedjax_mm.data import wordpiece
from fedjax_mm.methods.feddat import Answers, written_answers
from fedjax_mm.models import Albef, Model, Vilt, adapters, albef, vault, vilt
from fedjax_mm.types import PyTree

KNOWN = """a folder of experiments.pretrain_vilt; of ViLT-B/32, with model.safetensors and vocab.txt; of VAuLT, with the
folders vilt and bert; or of ALBEF, with model.safetensors and vocab.txt"""


def load(folder: str | pathlib.Path, dtype: str = "float32") -> Trunk:
    """The trunk in a folder, with arithmetic in `dtype`: a ViLT's, a VAuLT's or an ALBEF's, as its files say.

    Raises FileNotFoundError for a folder of none of these, and what their readers raise.
    """
    folder = pathlib.Path(folder)
    if (folder / "vilt").is_dir() and (folder / "bert").is_dir():
        model, params = vault.from_pretrained(folder / "vilt", folder / "bert", dtype=dtype)
        return Trunk(model, params, wordpiece.load(folder / "bert" / "vocab.txt"), _size(model), {})
    if not [*folder.glob("model.safetensors*"), *folder.glob("pytorch_model.bin*")]:
        raise FileNotFoundError(f"{folder} holds no trunk; give {' '.join(KNOWN.split())}")
    if _is_albef(folder / "model.safetensors"):
        model, params = albef.from_pretrained(folder, dtype=dtype)
        trunk = {part: leaves for part, leaves in params.items() if part != "head"}
        words, tokenizer = model.example["choices"].shape[-1], wordpiece.load(folder / "vocab.txt")
        return Trunk(model, trunk, tokenizer, _size(model), {}, params["head"], words)
    if (folder / "config.json").is_file():
        model, params = vilt.from_pretrained(folder, dtype=dtype)
        return Trunk(model, params, wordpiece.load(folder / "vocab.txt"), _size(model), {})
    return pretrain_vilt.load(folder, dtype)


def head(model: Vilt | Albef, answers: int, dtype: str = "float32", start: PyTree | None = None) -> Model | Answers:
    """What a client answers with: classes over ViLT and VAuLT, words over ALBEF, from the head `start`."""
    return written_answers.written(model, start) if isinstance(model, Albef) else adapters.answers(answers, dtype)


def _is_albef(file: pathlib.Path) -> bool:
    if not file.is_file():
        return False
    with safe_open(file, "np") as tensors:
        return any(name.startswith("visual_encoder.") for name in tensors.keys())


def _size(model: Vilt | Albef) -> Size:
    """What the data must be for a model: sides of pictures and of patches, and the length of questions."""
    params = jax.eval_shape(model.init, jax.random.key(0), model.example)
    images = params["image"]["embeddings"] if isinstance(model, Albef) else params["embeddings"]["image"]
    image, length = (model.example[name].shape[1] for name in ("image", "question"))
    return Size(image, images["patch"]["kernel"].shape[0], length, model.vocabulary or 0, model.width)
