"""One paper a file: what ONE client does and what the server does."""

from fedjax_mm.methods import fedavg, feddat, fedmekt, layerwise, mmfl, peft

METHODS = {"fedavg": fedavg, "fedmekt": fedmekt, "layerwise": layerwise, "feddat": feddat}
BASELINES = {"mmfl": mmfl, "peft": peft}  # of FedMEKT and of FedDAT

__all__ = ["BASELINES", "METHODS", "fedavg", "feddat", "fedmekt", "layerwise", "mmfl", "peft"]
