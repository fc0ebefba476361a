"""One paper a file: what ONE client does and what the server does."""

from fedjax_mm.methods import creamfl, encoder_averaging, fedavg, feddat, fedmekt, layerwise, mmfl, peft

METHODS = {"fedavg": fedavg, "fedmekt": fedmekt, "layerwise": layerwise, "feddat": feddat, "creamfl": creamfl}
BASELINES = {"mmfl": mmfl, "peft": peft, "encoder_averaging": encoder_averaging}  # of FedMEKT, FedDAT, CreamFL

__all__ = [
    "BASELINES",
    "METHODS",
    "creamfl",
    "encoder_averaging",
    "fedavg",
    "feddat",
    "fedmekt",
    "layerwise",
    "mmfl",
    "peft",
]
