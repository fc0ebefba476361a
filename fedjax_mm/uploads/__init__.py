"""How uploads travel: compressed, clipped, with noise, masked, and combined so that a few bad clients do little harm.

A transform is what a client encodes and the server decodes: `method._replace(upload=uploads.quantise(8))`, or
`uploads.attach(method, transform, data)`, which also takes one that keeps a state for each client. `costs` counts the
bytes of what is encoded. docs/uploads.md has the scores of papers' methods against bytes.
"""

from fedjax_mm.transforms import Transform, on_change
from fedjax_mm.uploads import attacks, privacy
from fedjax_mm.uploads.attached import Sending, attach
from fedjax_mm.uploads.central import Adaptive, central_noise
from fedjax_mm.uploads.compose import chain, error_feedback
from fedjax_mm.uploads.masks import secure_sum
from fedjax_mm.uploads.noise import add_noise, clip_by_norm
from fedjax_mm.uploads.quantise import quantise, sign
from fedjax_mm.uploads.rules import bounded, krum, median, robust, trimmed_mean
from fedjax_mm.uploads.sparse import low_rank, random_k, top_k

__all__ = [
    "Adaptive",
    "Sending",
    "Transform",
    "add_noise",
    "attach",
    "attacks",
    "bounded",
    "central_noise",
    "chain",
    "clip_by_norm",
    "error_feedback",
    "krum",
    "low_rank",
    "median",
    "on_change",
    "privacy",
    "quantise",
    "random_k",
    "robust",
    "secure_sum",
    "sign",
    "top_k",
    "trimmed_mean",
]
