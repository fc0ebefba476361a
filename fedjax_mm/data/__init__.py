"""Datasets, partitions, and `FederatedData`, which takes anyone's own arrays."""

from typing import TYPE_CHECKING

from fedjax_mm import _lazy
from fedjax_mm.data.dataset import Dataset
from fedjax_mm.data.federated import FederatedData, pooled

if TYPE_CHECKING:
    from fedjax_mm.data import (
        advance,
        arrays,
        audio,
        av_digits,
        captions,
        coco_captions,
        digits,
        flickr8k,
        flickr30k,
        hapt,
        images,
        mhealth,
        opportunity,
        partition,
        prepared,
        scenes,
        streams,
        tables,
        ur_fall,
        utd_mhad,
        vqa,
        windows,
        wordpiece,
    )

__all__ = [
    "Dataset",
    "FederatedData",
    "advance",
    "arrays",
    "audio",
    "av_digits",
    "captions",
    "coco_captions",
    "digits",
    "flickr8k",
    "flickr30k",
    "hapt",
    "images",
    "mhealth",
    "opportunity",
    "partition",
    "pooled",
    "prepared",
    "scenes",
    "streams",
    "tables",
    "ur_fall",
    "utd_mhad",
    "vqa",
    "windows",
    "wordpiece",
]

__getattr__, __dir__ = _lazy.attach(__name__, [name for name in __all__ if name not in globals()])
