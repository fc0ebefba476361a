"""A room for each paper: what ONE client does and what the server does, and what the paper is compared with."""

from typing import TYPE_CHECKING

from fedjax_mm import _lazy

if TYPE_CHECKING:
    from fedjax_mm.methods import creamfl, fedavg, feddat, fedmekt, layerwise
    from fedjax_mm.methods.creamfl import encoder_averaging
    from fedjax_mm.methods.feddat import peft
    from fedjax_mm.methods.fedmekt import mmfl
    from fedjax_mm.methods.neighbours import (
        carmfl,
        ditto,
        fedclip,
        feddm,
        feddyn,
        fedet,
        fedftg,
        fedmsplit,
        fednova,
        fedproto,
        fedrep,
        fesem,
        flexmod,
        hafedformer,
        ifca,
        mfedmc,
        pfedme,
        promptfl,
        scaffold,
        splitmix,
    )

MODULES = {
    "carmfl": "neighbours.carmfl",
    "creamfl": "creamfl",
    "ditto": "neighbours.ditto",
    "encoder_averaging": "creamfl.encoder_averaging",
    "fedavg": "fedavg",
    "fedclip": "neighbours.fedclip",
    "feddat": "feddat",
    "feddm": "neighbours.feddm",
    "feddyn": "neighbours.feddyn",
    "fedet": "neighbours.fedet",
    "fedftg": "neighbours.fedftg",
    "fedmekt": "fedmekt",
    "fedmsplit": "neighbours.fedmsplit",
    "fednova": "neighbours.fednova",
    "fedproto": "neighbours.fedproto",
    "fedrep": "neighbours.fedrep",
    "fesem": "neighbours.fesem",
    "flexmod": "neighbours.flexmod",
    "hafedformer": "neighbours.hafedformer",
    "ifca": "neighbours.ifca",
    "layerwise": "layerwise",
    "mfedmc": "neighbours.mfedmc",
    "mmfl": "fedmekt.mmfl",
    "peft": "feddat.peft",
    "pfedme": "neighbours.pfedme",
    "promptfl": "neighbours.promptfl",
    "scaffold": "neighbours.scaffold",
    "splitmix": "neighbours.splitmix",
}

__getattr__, __dir__ = _lazy.attach(__name__, MODULES)
__all__ = [
    "carmfl",
    "creamfl",
    "ditto",
    "encoder_averaging",
    "fedavg",
    "fedclip",
    "feddat",
    "feddm",
    "feddyn",
    "fedet",
    "fedftg",
    "fedmekt",
    "fedmsplit",
    "fednova",
    "fedproto",
    "fedrep",
    "fesem",
    "flexmod",
    "hafedformer",
    "ifca",
    "layerwise",
    "mfedmc",
    "mmfl",
    "peft",
    "pfedme",
    "promptfl",
    "scaffold",
    "splitmix",
]
