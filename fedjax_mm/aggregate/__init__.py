"""From what many clients sent to one tree: means, and CreamFL's weighing of representations item by item.

A weight above 0 marks a client that sent something. A client with weight 0 counts for nothing, whatever its values are
(NaN too), and where nobody sent anything the result is a default, never NaN. A weight below 0 or that is not finite is
no weight: such a client counts as one that sent nothing, in the value and in the sum of the weights alike.
"""

from fedjax_mm.aggregate.slots import average, collect, weighted_mean
from fedjax_mm.aggregate.weights import (
    combine,
    consensus_weights,
    contrastive_mean,
    contrastive_weights,
    entropy_weights,
    mean_weights,
    similarity_weights,
    size_weights,
    variance_weights,
)

__all__ = [
    "average",
    "collect",
    "combine",
    "consensus_weights",
    "contrastive_mean",
    "contrastive_weights",
    "entropy_weights",
    "mean_weights",
    "similarity_weights",
    "size_weights",
    "variance_weights",
    "weighted_mean",
]
