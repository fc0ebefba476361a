"""The settings of layer-wise and progressive training, with the released ones as VARIANTS.

Numbers such as (1.7) are sections of docs/specs/layerwise.md.
"""

import dataclasses
from collections.abc import Mapping
from typing import Literal

SCHEDULES = {  # rounds of six stages (1.8); from scratch, see stages.uniform
    "90_lh10": (0, 0, 0, 10, 30, 50),
    "90_uni": (15, 15, 15, 15, 15, 15),
    "120_lh11": (0, 0, 0, 20, 30, 70),
}


@dataclasses.dataclass(frozen=True)
class LayerwiseConfig:
    """Settings of one run. Rates are for batches of 256; they are used times batch_size / 256."""

    plan: Literal["layer-wise", "progressive", "end-to-end"] = "layer-wise"
    """What each stage trains (1.7)."""
    rounds: tuple[int, ...] = SCHEDULES["90_lh10"]
    """R_s, the rounds of each stage. End-to-end training runs their sum."""
    encoder_lr: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)
    """Learning rates of the encoders: modality -> a rate for each stage."""
    head_lr: float = 3e-4
    """Learning rate of the projection heads and of the prediction head."""
    weight_decay: float = 0.01
    """Weight decay of the encoders and of the prediction head."""
    projection_decay: float = 1e-6
    """Weight decay of the projection heads."""
    batch_size: int = 32
    """Examples in one step of a client. A last batch that is not full is left out."""
    epochs: int = 3
    """Passes over a client's own examples in a round."""
    temperature: float = 0.05
    """tau of the contrastive loss."""
    projection_hidden: int = 4096
    """Width of the hidden layers of a projection head."""
    projection_dim: int = 256
    """Width of the embedding z that a projection head gives."""
    head_dropout: float = 0.1
    """Dropout rate of the projection heads and of the prediction head."""
    fusion: Literal["concat", "add", "attention", "co-attention"] = "concat"
    """How the prediction head fuses the embeddings of the modalities (see models.heads.prediction)."""
    crop: float | None = 0.08
    """Least share of an image's area that a random crop keeps. None: images stay as they are."""
    frozen_dropout: bool = True
    """Whether frozen layers drop units too while a client trains, as in the released code."""
    train_embeddings: bool = True
    """Whether the first stage of layer-wise training trains the embeddings."""
    cache_frozen: bool = False
    """Whether clients compute what frozen layers give of their examples once a stage, and keep it (1.9). It changes
    results by rounding alone. It needs plan="layer-wise", crop=None, frozen_dropout=False and one caption a picture.
    A stage that trains the embeddings keeps nothing."""
    statistics: Literal["averaged", "recalibrated"] = "averaged"
    """Running statistics of the model that the run ends with. "averaged": the mean of the clients' own, as in the
    released code. "recalibrated": those of the averaged model, which clients take in one more round (1.9)."""


# The released settings (2.3).
COCO_LR = {"image": (1e-7, 1e-7, 1e-7, 5e-6, 3e-5, 5e-5), "text": (1e-7, 1e-7, 1e-7, 1e-5, 3e-5, 5e-5)}
ADVANCE_LR = {"image": (1e-7, 1e-7, 1e-7, 5e-7, 1e-6, 5e-6), "audio": (1e-5, 1e-5, 1e-5, 1e-5, 1e-5, 3e-5)}
VARIANTS = {
    "coco": LayerwiseConfig(encoder_lr=COCO_LR),
    "advance": LayerwiseConfig(encoder_lr=ADVANCE_LR, head_lr=1e-4, batch_size=16),
}
