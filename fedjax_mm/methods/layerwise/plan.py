"""What each stage of a plan trains, and at which rates.

Numbers such as (1.7) are sections of docs/specs/layerwise.md.
"""

import functools
from collections.abc import Hashable, Mapping
from typing import NamedTuple

import jax
import optax

from fedjax_mm import trees
from fedjax_mm.methods.layerwise.config import LayerwiseConfig
from fedjax_mm.methods.layerwise.network import PREDICTION, Encoders, Params
from fedjax_mm.models import heads
from fedjax_mm.stages import blocks
from fedjax_mm.types import PyTree


class StageSpec(NamedTuple):
    """What one stage trains (1.7). Its encoders have all layers up to the last of these."""

    number: int  # s, from 0
    layers: Mapping[str, range]  # modality -> the layers that are trained
    embeddings: bool  # whether the embeddings are trained


def plan_stages(config: LayerwiseConfig, encoders: Encoders) -> list[StageSpec]:
    """What each stage of the plan trains (1.7). Raises ValueError where a depth cannot be cut into equal blocks.

    >>> from fedjax_mm.models import vit
    >>> encoders = {"image": vit.encoder(image=8, patch=4, dim=8, depth=4, heads=2, mlp=8)}
    >>> for stage in plan_stages(LayerwiseConfig(rounds=(5, 5)), encoders):
    ...     print(stage)
    StageSpec(number=0, layers={'image': range(0, 2)}, embeddings=True)
    StageSpec(number=1, layers={'image': range(2, 4)}, embeddings=False)
    >>> plan_stages(LayerwiseConfig(plan="progressive", rounds=(5, 5)), encoders)[1].layers
    {'image': range(0, 4)}
    """
    total, progressive = len(config.rounds), config.plan == "progressive"
    if config.plan == "end-to-end":
        return [StageSpec(total - 1, {m: range(encoder.depth) for m, encoder in encoders.items()}, True)]
    cut = {m: blocks(encoder.depth, total) for m, encoder in encoders.items()}
    first = lambda block: 0 if progressive else block.start
    return [
        StageSpec(
            s,
            {m: range(first(parts[s]), parts[s].stop) for m, parts in cut.items()},
            progressive or (s == 0 and config.train_embeddings),
        )
        for s in range(total)
    ]


def is_trained(stage: StageSpec, path: str) -> bool:
    """Whether the stage trains the parameter at a path such as "image/encoder/layers/03/query/kernel" (1.7).

    >>> stage = StageSpec(1, {"image": range(2, 4)}, embeddings=False)
    >>> paths = "encoder/layers/01/norm_1/bias", "encoder/layers/02/norm_1/bias", "encoder/norm/bias", "head/dense_0"
    >>> [is_trained(stage, f"image/{path}") for path in paths]
    [False, True, True, True]
    """
    part, piece, *rest = path.split("/")
    if part == PREDICTION or piece == "head":
        return True
    if rest[0] == "layers":
        return int(rest[1]) in stage.layers[part]
    return rest[0] == "norm" or (rest[0] == "embeddings" and stage.embeddings)


def split_trained(stage: StageSpec, params: Params) -> tuple[PyTree, PyTree]:
    """(what the stage trains and sends, what is frozen), as trees.partition splits (1.7).

    >>> params = {"image": {"encoder": {"embeddings": {"w": 1}, "layers": {"00": {"w": 2}}}, "head": {"w": 3}}}
    >>> split_trained(StageSpec(1, {"image": range(0, 1)}, embeddings=False), params)[1]
    {'image': {'encoder': {'embeddings': {'w': 1}, 'layers': {'00': {'w': None}}}, 'head': {'w': None}}}
    """
    return trees.partition(params, trees.path_mask(params, functools.partial(is_trained, stage)))


def split_statistics(params: PyTree) -> tuple[PyTree, PyTree]:
    """(running statistics, which travel but have no gradient; the rest), as trees.partition splits (1.5).

    >>> split_statistics({"norm_0": {"running_mean": 1, "scale": 2}})
    ({'norm_0': {'running_mean': 1, 'scale': None}}, {'norm_0': {'running_mean': None, 'scale': 2}})
    """
    return trees.partition(params, trees.path_mask(params, heads.is_statistic))


def make_optimizer(config: LayerwiseConfig, stage: StageSpec) -> optax.GradientTransformation:
    """AdamW with a rate and a decay for each encoder, for the projection heads and for the prediction head (1.6).

    >>> import jax.numpy as jnp
    >>> config = LayerwiseConfig(encoder_lr={"image": (0.5,)}, head_lr=0.25, batch_size=256, weight_decay=0.0)
    >>> params = {"image": {"encoder": {"w": jnp.zeros(1)}, "head": {"w": jnp.zeros(1)}}}
    >>> optimizer = make_optimizer(config, StageSpec(0, {"image": range(1)}, True))
    >>> updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, params), optimizer.init(params), params)
    >>> [round(float(updates["image"][piece]["w"][0]), 4) for piece in ("encoder", "head")]
    [-0.5, -0.25]
    """
    rule = lambda lr, decay: optax.adamw(lr * config.batch_size / 256, weight_decay=decay)
    rules: dict[Hashable, optax.GradientTransformation] = {
        "head": rule(config.head_lr, config.projection_decay),
        PREDICTION: rule(config.head_lr, config.weight_decay),
    }
    rules |= {f"encoder {m}": rule(config.encoder_lr[m][stage.number], config.weight_decay) for m in stage.layers}

    def label(path, leaf):
        part, piece = path[0].key, path[1].key
        return PREDICTION if part == PREDICTION else piece if piece == "head" else f"encoder {part}"

    return optax.multi_transform(rules, lambda params: jax.tree_util.tree_map_with_path(label, params))


def first_dropout_layers(config: LayerwiseConfig, stage: StageSpec) -> dict[str, int]:
    """Modality -> the first layer that drops units while a client trains: layer 0, or the first trained one (1.6).

    >>> stage = StageSpec(1, {"image": range(2, 4)}, embeddings=False)
    >>> [first_dropout_layers(LayerwiseConfig(frozen_dropout=frozen), stage) for frozen in (True, False)]
    [{'image': 0}, {'image': 2}]
    """
    return {m: 0 if config.frozen_dropout else layers.start for m, layers in stage.layers.items()}
