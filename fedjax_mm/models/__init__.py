"""Models as pairs of pure functions. Flax stays inside this package."""

from fedjax_mm.models import ast, bert, cnn, heads, lstm, mlp, pretrained, text, transformer, vit
from fedjax_mm.models.layers import Model
from fedjax_mm.models.transformer import Transformer

__all__ = [
    "Model",
    "Transformer",
    "ast",
    "bert",
    "cnn",
    "heads",
    "lstm",
    "mlp",
    "pretrained",
    "text",
    "transformer",
    "vit",
]
