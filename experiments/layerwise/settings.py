"""The settings of stage-wise training, and the presets of encoders that are trained from scratch."""

import dataclasses
from typing import Annotated, Literal

from experiments.common import cli
from fedjax_mm import stages
from fedjax_mm.methods import layerwise

Plan = Literal["end-to-end", "layer-wise", "progressive"]


@dataclasses.dataclass(frozen=True)
class Size:
    """Small encoders; every modality has the same width and depth."""

    dim: int = 64
    """Width of the encoders."""
    depth: int = 3
    """Layers of each encoder."""
    heads: int = 4
    """Attention heads of a layer."""
    std: float = 0.02
    """Standard deviation of the layers' first kernels. 0.02 is meant for a width of 768; 1 / sqrt(dim) is the
    scale of a narrow layer."""
    patch: int = 16
    """Side of a patch: pixels of an image, frames and bands of a sound."""
    image: int | None = None
    """Side of the images that the encoder takes, if it is less than that of the photos: crops are cut from these."""
    projection_hidden: int = 256
    """Hidden units of the projection heads."""
    projection_dim: int = 64
    """Width of the space in which modalities are contrasted."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is trained on, by whom and for how long."""

    data: Literal["scenes", "flickr8k", "av_digits", "advance", "coco"] = "scenes"
    """Dataset: scenes are embedded, and the others are read from --data-dir. COCO's photos stay there, and are decoded
    as steps need them."""
    plan: Plan = "layer-wise"
    """Plan of a single run; compare runs all three."""
    stages: int = 3
    """Stages that the rounds are spread over evenly, as for training from scratch; a --schedule has its own."""
    checkpoints: str | None = None
    """Folder of the paper's pretrained encoders as Hugging Face has them, vit-tiny-patch16-224, distilbert-base-uncased
    with vocab.txt, and distil-ast-audioset for sounds; other settings are then the paper's. None: small fresh ones."""
    schedule: str | None = None
    """Rounds of each stage, in place of --rounds and --stages: 90_lh10, 90_uni or 120_lh11, or numbers as 0_0_1."""
    clients: int = 10
    """Clients, who hold both modalities."""
    per_round: int = 10
    """Clients that take part in a round."""
    alpha: float = 0.5
    """Dirichlet concentration of classes over clients, where there are classes."""
    size: Size = Size()
    encoder_lr: float = 4e-3
    """Learning rate of the encoders in every stage, for batches of 256; it is scaled to batch_size."""
    image_lr: tuple[float, ...] = ()
    """Learning rates of the image encoder, one a stage, in place of encoder_lr."""
    other_lr: tuple[float, ...] = ()
    """Learning rates of the encoder of texts or sounds, one a stage, in place of encoder_lr."""
    head_lr: float = 4e-3
    """Learning rate of the heads, for batches of 256; it is scaled to batch_size."""
    batch_size: int = 64
    """Examples in a batch."""
    epochs: int = 2
    """Passes of a client over its own examples in a round."""
    temperature: float = 0.1
    """Temperature of the contrastive loss. The paper's 0.05 is for pretrained encoders; fresh ones on little data
    begin to learn sooner with 0.1."""
    dropout: float = 0.0
    """Dropout rate in text encoders and heads."""
    photo: int = 224
    """Side that COCO's photos are decoded at; with --checkpoints all photos."""
    length: int = 24
    """Word pieces of a caption."""
    zero_shot: tuple[str, ...] = ()
    """Datasets that a model of captions also classifies, by the prompts of their classes: those that TFDS prepared in
    the folder tfds of --data-dir, such as stl10 and cifar10."""
    stream: bool = False
    """Whether training examples stay in the host's memory, and come to the device batch by batch; COCO's always stay on
    the disk."""
    remat: bool = False
    """Whether encoders keep what enters each layer alone, and compute what is inside again for the gradient."""
    crop: float | None = None
    """Least share of an image's area that a random crop keeps; None takes no crops."""
    statistics: Literal["averaged", "recalibrated"] = "averaged"
    """Batch norms' running statistics: averages of the clients' own, as in the released code, or those of the averaged
    model, which clients take in one more round at the end."""
    cache_frozen: bool = False
    """Whether clients keep what frozen layers give of their examples. Of the plans, layer-wise training freezes layers;
    these then drop no units. It takes one caption a picture, and no crops."""
    common: Annotated[cli.Common, cli.FLAT] = cli.Common(out="runs/layerwise")

    def __post_init__(self) -> None:
        cli.at_least(1, stages=self.stages, clients=self.clients, per_round=self.per_round)
        cli.at_least(1, batch_size=self.batch_size, epochs=self.epochs, photo=self.photo)
        cli.at_least(3, length=self.length)
        rounds = self.rounds_of_stages
        for name in ("image_lr", "other_lr"):
            if (rates := getattr(self, name)) and len(rates) != len(rounds):
                raise ValueError(f"--{name.replace('_', '-')} has {len(rates)} rates; there are {len(rounds)} stages")

    @property
    def rounds_of_stages(self) -> tuple[int, ...]:
        """The rounds of each stage."""
        if self.schedule is None:
            return stages.uniform(self.stages, self.common.rounds)
        if self.schedule in layerwise.SCHEDULES:
            return layerwise.SCHEDULES[self.schedule]
        try:
            rounds = tuple(int(number) for number in self.schedule.split("_"))
        except ValueError:
            rounds = ()
        if not rounds or min(rounds) < 0 or not any(rounds):
            known = ", ".join(layerwise.SCHEDULES)
            raise ValueError(f"--schedule is {self.schedule}; give {known}, or the rounds of each stage, as 0_0_1")
        return rounds


SWEPT = ("plan", "stages", "encoder_lr", "head_lr", "batch_size", "epochs", "temperature", "crop")
PRESETS = {
    "scenes": Settings(per_round=5, size=Size(std=0.125, patch=8), dropout=0.1, crop=0.5),
    "flickr8k": Settings("flickr8k", per_round=4, epochs=1, crop=0.5, common=cli.Common(out="runs/layerwise_flickr8k")),
    "av_digits": Settings(
        "av_digits",
        clients=40,
        per_round=30,
        size=Size(patch=7),
        batch_size=16,
        epochs=1,
        encoder_lr=1.6e-2,
        head_lr=1.6e-2,
        common=cli.Common(rounds=30, out="runs/layerwise_av_digits"),
    ),
    "coco": Settings(
        "coco", size=Size(192, 12, 3), epochs=1, crop=0.08, common=cli.Common(split="valid", out="runs/layerwise_coco")
    ),
    "advance": Settings(
        "advance", clients=40, per_round=30, batch_size=16, common=cli.Common(out="runs/layerwise_advance")
    ),
}
