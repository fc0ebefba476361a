"""FedDAT (method.py), the other ways of tuning one trunk (peft.py), and what they share (vqa_tuning.py)."""

from fedjax_mm.methods.feddat.method import VARIANTS, FedDATConfig, build
from fedjax_mm.methods.feddat.vqa_tuning import Training

__all__ = ["VARIANTS", "FedDATConfig", "Training", "build"]
