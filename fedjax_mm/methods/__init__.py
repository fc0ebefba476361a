"""One paper a file: what ONE client does and what the server does."""

from fedjax_mm.methods import fedavg, fedmekt, layerwise, mmfl

METHODS = {"fedavg": fedavg, "fedmekt": fedmekt}  # what experiments.compare shows; mmfl is in FedMEKT's tables

__all__ = ["METHODS", "fedavg", "fedmekt", "layerwise", "mmfl"]
