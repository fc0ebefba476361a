"""Models as pairs of pure functions. Flax stays inside this package.

It needs jax, flax and numpy. Checkpoints (pretrained.py) also need safetensors: `pip install 'fedjax_mm[text]'`.
"""

from fedjax_mm.models import (
    adapters,
    albef,
    ast,
    bert,
    cnn,
    efficientnet,
    embedding,
    fusion,
    heads,
    lstm,
    mlp,
    pretrained,
    resnet,
    text,
    transformer,
    vault,
    vilt,
    vit,
    whisper,
)
from fedjax_mm.models.albef import Albef
from fedjax_mm.models.encoders import as_encoder, as_encoders
from fedjax_mm.models.exports import export, import_params
from fedjax_mm.models.layers import Model
from fedjax_mm.models.transformer import Transformer
from fedjax_mm.models.vilt import Vilt

__all__ = [
    "Albef",
    "Model",
    "Transformer",
    "Vilt",
    "adapters",
    "albef",
    "as_encoder",
    "as_encoders",
    "ast",
    "bert",
    "cnn",
    "efficientnet",
    "embedding",
    "export",
    "fusion",
    "heads",
    "import_params",
    "lstm",
    "mlp",
    "pretrained",
    "resnet",
    "text",
    "transformer",
    "vault",
    "vilt",
    "vit",
    "whisper",
]
