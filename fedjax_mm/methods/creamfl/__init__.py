"""CreamFL (method.py), the baselines that average weights (encoder_averaging.py), and their scores."""

from fedjax_mm.methods.creamfl.joint_space import Training
from fedjax_mm.methods.creamfl.method import PRESETS, CreamFLConfig, build

__all__ = ["PRESETS", "CreamFLConfig", "Training", "build"]
