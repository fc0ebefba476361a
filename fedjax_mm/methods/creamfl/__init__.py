"""CreamFL (method.py), the baselines that average weights (encoder_averaging.py), and their scores."""

from fedjax_mm.methods.creamfl.joint_space import Training
from fedjax_mm.methods.creamfl.method import VARIANTS, CreamFLConfig, build

__all__ = ["VARIANTS", "CreamFLConfig", "Training", "build"]
