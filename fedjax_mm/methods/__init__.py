"""A room for each paper: what ONE client does and what the server does, and what the paper is compared with."""

from typing import TYPE_CHECKING

from fedjax_mm import _lazy

if TYPE_CHECKING:
    from fedjax_mm.methods import creamfl, fedavg, feddat, fedmekt, layerwise
    from fedjax_mm.methods.creamfl import encoder_averaging
    from fedjax_mm.methods.feddat import peft
    from fedjax_mm.methods.fedmekt import mmfl

MODULES = {
    "creamfl": "creamfl",
    "encoder_averaging": "creamfl.encoder_averaging",
    "fedavg": "fedavg",
    "feddat": "feddat",
    "fedmekt": "fedmekt",
    "layerwise": "layerwise",
    "mmfl": "fedmekt.mmfl",
    "peft": "feddat.peft",
}

__getattr__, __dir__ = _lazy.attach(__name__, MODULES)
__all__ = ["creamfl", "encoder_averaging", "fedavg", "feddat", "fedmekt", "layerwise", "mmfl", "peft"]
