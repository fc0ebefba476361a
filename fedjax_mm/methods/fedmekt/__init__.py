"""FedMEKT (method.py), the federated autoencoders it is compared with (mmfl.py), and linear evaluation."""

from fedjax_mm.methods.fedmekt.linear_evaluation import Probe
from fedjax_mm.methods.fedmekt.method import VARIANTS, FedMEKTConfig, build

__all__ = ["VARIANTS", "FedMEKTConfig", "Probe", "build"]
