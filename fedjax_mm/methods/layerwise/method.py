"""LW-FedMML and Prog-FedMML: encoders trained stage by stage, a block of layers at a time, beside end-to-end training.

Tun, Thwal, Nguyen, Hong, IEEE IoT Journal 12(13), 2025 (arXiv 2407.15426), after the authors' code; section numbers
are of that code's description in the project's specification.

    m      modality                        Emb, B_1..B_S, LN   embeddings, blocks of layers, last norm of encoder F^m
    H^m    projection head -> z^m          P                   prediction head on the fused z (supervised)
    s, S   stage and their number          R_s                 rounds of stage s
    n_i    examples of client i            tau                 temperature

Stage s (1.2): to every encoder at once its block B_s is attached, with pretrained weights or fresh ones; all else is
as the stage before left it. Trained, and alone sent, are (1.7)
    layer-wise     B_s, LN, H, P, and in the first stage Emb
    progressive    B_1..B_s, LN, H, P, Emb
    end-to-end     the same, in one stage that has all blocks and all rounds
With R_s = 0 a stage only attaches its block. A round (1.6):
  1. The server sends what is trained; what is frozen every client has from the stages before.
  2. A client takes E epochs of AdamW, started afresh, at the stage's rates: symmetric InfoNCE of z^image and z^text
     over tau, or cross-entropy of P on the fused z (1.4; see network.py).
  3. The server averages by n_i, running statistics of batch norms too (1.5). A client with less than one batch takes
     no step and still counts.

One mask of the parameters says what is trained. The gradient is taken of that half alone, so the frozen one has no
activations to keep, no optimiser state and no upload.

Deviations from the code: ViT's pooler, which nothing reads, is frozen in every plan. End-to-end, which the code
lacks, takes the last stage's rates.
"""

import dataclasses
from collections.abc import Mapping
from typing import Literal

import jax
import optax

from fedjax_mm import aggregate, trees
from fedjax_mm.federate import Method, federate
from fedjax_mm.local import local_steps
from fedjax_mm.methods.layerwise.network import PREDICTION, Network, network
from fedjax_mm.models import Transformer, heads
from fedjax_mm.stages import Stage, blocks
from fedjax_mm.types import Cohort, Download, Mean, PyTree, Server

SCHEDULES = {  # rounds of six stages; from scratch, see stages.uniform
    "90_lh10": (0, 0, 0, 10, 30, 50),
    "90_uni": (15, 15, 15, 15, 15, 15),
    "120_lh11": (0, 0, 0, 20, 30, 70),
}


@dataclasses.dataclass(frozen=True)
class LayerwiseConfig:
    """Settings of one run; rates are for batches of 256 and used times batch_size / 256."""

    plan: Literal["layer-wise", "progressive", "end-to-end"] = "layer-wise"
    rounds: tuple[int, ...] = SCHEDULES["90_lh10"]
    """R_s of each stage. End-to-end runs their sum."""
    encoder_lr: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)
    """Modality -> a rate for each stage."""
    head_lr: float = 3e-4
    """Of projection and prediction heads."""
    weight_decay: float = 0.01
    """Of encoders and the prediction head."""
    projection_decay: float = 1e-6
    """Weight decay of projection heads."""
    batch_size: int = 32
    epochs: int = 3
    """Passes over a client's own examples in a round."""
    temperature: float = 0.05
    projection_hidden: int = 4096
    projection_dim: int = 256
    head_dropout: float = 0.1
    fusion: Literal["concat", "add", "attention", "co-attention"] = "concat"
    """What P gets, see heads.prediction."""
    crop: float | None = 0.08
    """The least share of an image's area that a random crop keeps; None: images as they are."""
    frozen_dropout: bool = True
    """Frozen layers drop units too, as in the code."""
    train_embeddings: bool = True
    """Layer-wise: embeddings train in the first stage."""


COCO_LR = {"image": (1e-7, 1e-7, 1e-7, 5e-6, 3e-5, 5e-5), "text": (1e-7, 1e-7, 1e-7, 1e-5, 3e-5, 5e-5)}
ADVANCE_LR = {"image": (1e-7, 1e-7, 1e-7, 5e-7, 1e-6, 5e-6), "audio": (1e-5, 1e-5, 1e-5, 1e-5, 1e-5, 3e-5)}
VARIANTS = {
    "coco": LayerwiseConfig(encoder_lr=COCO_LR),
    "advance": LayerwiseConfig(encoder_lr=ADVANCE_LR, head_lr=1e-4, batch_size=16),
}


def build(
    config: LayerwiseConfig,
    data,
    encoders: Mapping[str, Transformer],
    num_classes: int | None = None,
    pretrained: Mapping[str, PyTree] | None = None,
) -> list[Stage]:
    """The stages, for run.train. Every client of `data`, a FederatedData, holds every modality of `encoders`.

    Arrays are what the encoders take: images [E, H, W, C], tokens [E, L], log-mel [E, frames, mels]. With num_classes K
    there is `label` [E] and the loss is supervised; without, contrastive, of two modalities, images first, and of
    several captions of an image, [E, Q, L], one is drawn in every step.
    pretrained: modality -> parameters as models.pretrained.load gives them; their last norm is not used. None: from
        scratch, which wants rounds in every stage.

    `evaluate` gives, contrastive, recalls from `text` [I, L] or [I, Q, L], "i2t_r1" to "t2i_r50", and from
    `prompts` [K, L], one for each class, and `label` [I], "zero_shot_accuracy", whichever there are; supervised,
    "accuracy", "macro_f1", "macro_precision", "macro_recall" of the whole set, and "batch16_accuracy", ..., means
    over batches of 16, which the released code reports.
    """
    _check(config, data, encoders, num_classes, pretrained)
    stages = len(config.rounds)
    net = network(config, encoders, num_classes, pretrained)
    if config.plan == "end-to-end":
        whole = {m: range(encoder.depth) for m, encoder in encoders.items()}
        return [Stage("end-to-end", _method(config, data, net, whole, True, stages - 1), sum(config.rounds))]
    cut = {m: blocks(encoder.depth, stages) for m, encoder in encoders.items()}
    made = []
    for s, rounds in enumerate(config.rounds):
        progressive = config.plan == "progressive"
        trained = {m: range(0 if progressive else cut[m][s].start, cut[m][s].stop) for m in encoders}
        embeddings = progressive or (s == 0 and config.train_embeddings)
        made.append(Stage(f"stage {s + 1}", _method(config, data, net, trained, embeddings, s), rounds))
    return made


def _method(
    config: LayerwiseConfig, data, net: Network, trained: Mapping[str, range], embeddings: bool, s: int
) -> Method:
    """Stage s, from 0: the method that trains layers trained[m] of encoders that have all layers up to these."""
    dropout_from = {m: 0 if config.frozen_dropout else trained[m].start for m in trained}

    def trains(path: str) -> bool:
        part, piece, *rest = path.split("/")
        if part == PREDICTION or piece == "head":
            return True
        if rest[0] == "layers":
            return int(rest[1]) in trained[part]
        return rest[0] == "norm" or (rest[0] == "embeddings" and embeddings)

    def halves(params):
        """(trained and sent, frozen)."""
        return trees.partition(params, trees.path_mask(params, trains))

    def statistics(params):
        """(running statistics, which travel but have no gradient; the rest)."""
        return trees.partition(params, trees.path_mask(params, heads.is_statistic))

    tx = _optimizer(config, trained, s)

    def update(download, state, data, key):
        def loss(train, running, batch, key):
            params = trees.merge(trees.merge(train, running), download.held)
            value, new, metrics = net.loss(params, batch, key, dropout_from)
            return value, (statistics(new)[0], metrics)

        def step(carry, batch, key):
            train, running, opt = carry
            of = jax.value_and_grad(loss, has_aux=True)
            (value, (running, metrics)), grads = of(train, running, batch, key)
            updates, opt = tx.update(grads, opt, train)
            return (optax.apply_updates(train, updates), running, opt), {"loss": value, **metrics}

        running, train = statistics(download.sent)
        (train, running, _), metrics = local_steps(
            step,
            (train, running, tx.init(train)),
            data,
            key,
            batch_size=config.batch_size,
            epochs=config.epochs,
            drop_last=True,
        )
        upload = {part: Mean(value, data.weight) for part, value in trees.merge(train, running).items()}
        return upload, state, metrics

    def download(params, public):
        return {name: Download(*halves(params)) for name in data.cohorts}

    def server_update(params, uploads, public, key):
        sent, held = halves(params)
        mean = {part: aggregate.average(aggregate.collect(uploads, part), sent[part]) for part in sent}
        return trees.merge(mean, held), {}

    init = lambda key: net.init(key, {m: layers.stop for m, layers in trained.items()})
    cohorts = {name: Cohort(size, lambda key: (), update) for name, size in data.sizes.items()}
    evaluate_state = lambda state, arrays: net.evaluate(state.server, arrays)
    return federate(Server(init, download, server_update), cohorts, evaluate_state)


def _optimizer(config: LayerwiseConfig, modalities, s: int) -> optax.GradientTransformation:
    """A rate and a decay for each encoder, for the projection heads, and for the prediction head."""
    rule = lambda lr, decay: optax.adamw(lr * config.batch_size / 256, weight_decay=decay)
    rules = {f"encoder {m}": rule(config.encoder_lr[m][s], config.weight_decay) for m in modalities}
    rules |= {"head": rule(config.head_lr, config.projection_decay)}
    rules |= {PREDICTION: rule(config.head_lr, config.weight_decay)}

    def label(path, leaf):
        part, piece = path[0].key, path[1].key
        return PREDICTION if part == PREDICTION else piece if piece == "head" else f"encoder {part}"

    return optax.multi_transform(rules, lambda params: jax.tree_util.tree_map_with_path(label, params))


def _check(
    config: LayerwiseConfig,
    data,
    encoders: Mapping[str, Transformer],
    num_classes: int | None,
    pretrained: Mapping[str, PyTree] | None,
) -> None:
    needed = (*encoders, *(["label"] if num_classes else []))
    for name, cohort in data.cohorts.items():
        if missing := [m for m in needed if m not in cohort.arrays]:
            raise ValueError(f"clients of {name} have no {missing}; all need {list(needed)}")
    if not num_classes and len(encoders) != 2:
        raise ValueError(f"the contrastive loss takes two modalities, not {list(encoders)}; or give num_classes")
    if PREDICTION in encoders:
        raise ValueError(f"a modality may not be called {PREDICTION!r}, a part of that name is there already")
    if config.batch_size < 2:
        raise ValueError(f"batch_size must be at least 2 for batch norm, got {config.batch_size}")
    for m in encoders:
        if len(config.encoder_lr.get(m, ())) != len(config.rounds):
            wanted = f"one rate for each of {len(config.rounds)} stages"
            raise ValueError(f"encoder_lr[{m!r}] is {config.encoder_lr.get(m)}; it must have {wanted}")
        if pretrained is not None and m not in pretrained:
            raise ValueError(f"pretrained has {sorted(pretrained)}, but not {m!r}; give all encoders' weights or none")
