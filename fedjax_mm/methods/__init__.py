"""One paper a file: what ONE client does and what the server does."""

from fedjax_mm.methods import fedavg, fedmekt, mmfl

METHODS = {"fedavg": fedavg}  # what experiments.compare shows; fedmekt and mmfl join with their experiments

__all__ = ["METHODS", "fedavg", "fedmekt", "mmfl"]
