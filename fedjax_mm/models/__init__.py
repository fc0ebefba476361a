"""Models as pairs of pure functions. Flax stays inside this package."""

from fedjax_mm.models import cnn, heads, lstm, mlp, text
from fedjax_mm.models.layers import Model

__all__ = ["Model", "cnn", "heads", "lstm", "mlp", "text"]
