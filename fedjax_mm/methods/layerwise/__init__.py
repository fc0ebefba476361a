"""LW-FedMML and Prog-FedMML: the stages (method.py) and the network they train (network.py)."""

from fedjax_mm.methods.layerwise.method import ADVANCE_LR, COCO_LR, SCHEDULES, VARIANTS, LayerwiseConfig, build

__all__ = ["ADVANCE_LR", "COCO_LR", "VARIANTS", "SCHEDULES", "LayerwiseConfig", "build"]
