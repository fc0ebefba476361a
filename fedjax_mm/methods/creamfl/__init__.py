"""CreamFL (method.py), the baselines that average weights (encoder_averaging.py), and their scores."""

from fedjax_mm.methods.creamfl.config import PRESETS, CreamFLConfig
from fedjax_mm.methods.creamfl.method import build
from fedjax_mm.methods.creamfl.training import Training

__all__ = ["PRESETS", "CreamFLConfig", "Training", "build"]
