"""LW-FedMML and Prog-FedMML: encoders trained stage by stage, a block of layers at a time, and end-to-end training.

Tun, Thwal, Nguyen, Hong, IEEE IoT Journal 12(13), 2025 (arXiv 2407.15426), after the authors' code. Numbers such as
(1.4) are sections of docs/specs/layerwise.md.

    m      modality                        Emb, B_1..B_S, LN   embeddings, blocks of layers, last norm of encoder F^m
    H^m    projection head -> z^m          P                   prediction head on the fused z (supervised)
    s, S   stage and their number          R_s                 rounds of stage s
    n_i    examples of client i            tau                 temperature

Stage s attaches the block B_s to every encoder at once, with pretrained weights or fresh ones; everything else is as
the stage before left it (1.2). These parts alone are trained and sent (1.7, `plan_stages`, `split_trained`):
    layer-wise     B_s, LN, H, P, and in the first stage Emb
    progressive    B_1..B_s, LN, H, P, Emb
    end-to-end     the same, in one stage that has all blocks and all rounds
A stage with R_s = 0 only attaches its block. A round has three steps, each of which is a function (1.6):
  1. `server_download`: the server sends what is trained. Every client has what is frozen from the stages before.
  2. `client_update`: a client takes E epochs of AdamW, started afresh (`make_optimizer`), at the stage's rates on
     `network.local_loss`: symmetric InfoNCE of z^image and z^text over tau, or cross-entropy of P on the fused z (1.4).
  3. `server_update`: the server averages by n_i, the running statistics of batch norms too (1.5). A client with less
     than one batch takes no step and still counts.
With statistics="recalibrated" there is one more round at the end: `statistics_update` and `recalibrate` (1.9).

One mask of the parameters says what is trained. The gradient is taken of that half alone, so the frozen half has no
activations to keep, no optimiser state and no upload.

Deviations from the authors' code:
  - ViT's pooler, which nothing reads, is frozen in every plan.
  - End-to-end training, which the code lacks, takes the last stage's rates.
  - The fusions "attention" and "co-attention" are modules of our own (see models.heads.prediction): at width 6 they
    have 91 and 84 parameters, where the code's have 498 and 42. "concat", which the released runs use, is the same.
  - VARIANTS["coco"] has batches of 32, as progressive training was released; layer-wise training was with 1024.
  - A run from scratch, which is not the paper's setting, is experiments/layerwise.py's: one rate for all stages, and
    kernels that start with standard deviation 0.02 also at width 64. With its small clients AdamW starts afresh every 9
    to 14 steps; in the released runs it does so every 1,108 steps.
"""

import functools
from collections.abc import Callable, Iterable, Mapping

import jax

from fedjax_mm import aggregate, trees
from fedjax_mm.checks import population_of
from fedjax_mm.federate import Evaluation, Method, federate
from fedjax_mm.methods.fit import Fit, check_population
from fedjax_mm.methods.layerwise import evaluation, fitting, network
from fedjax_mm.methods.layerwise.cache import frozen_outputs
from fedjax_mm.methods.layerwise.client import client_update
from fedjax_mm.methods.layerwise.config import LayerwiseConfig
from fedjax_mm.methods.layerwise.network import Encoders, Params
from fedjax_mm.methods.layerwise.plan import StageSpec, plan_stages, split_trained
from fedjax_mm.methods.layerwise.statistics import recalibrate, statistics_update
from fedjax_mm.stages import Stage
from fedjax_mm.types import (
    Arrays,
    Cohort,
    Download,
    HasPopulation,
    Key,
    Metrics,
    PyTree,
    Server,
    Upload,
)


def build(
    config: LayerwiseConfig,
    data: HasPopulation,
    encoders: Encoders,
    num_classes: int | None = None,
    pretrained: Mapping[str, PyTree] | None = None,
) -> list[Stage]:
    """The stages, for run.train. Every client of `data`, a FederatedData or a Population, has every modality.

    With statistics="recalibrated" the last of them is "statistics", of one round.

    Arrays are what the encoders take: images [E, H, W, C], tokens [E, L], log-mel [E, frames, mels]. With num_classes
    K there is `label` [E] and the loss is supervised. Without, the loss is contrastive, of two modalities, images
    first. Of several captions or views of an example, such as [E, Q, L], each step draws one; a test has one view.
    pretrained: modality -> parameters as models.pretrained.load gives them; their last norm is not used. None: training
        from scratch, for which every stage needs rounds.

    `evaluate` is `scores`. Contrastive, it gives recalls, "i2t_r1" to "t2i_r50", where the test set has `text` [I, L]
    or [I, Q, L], and "zero_shot_accuracy" where it has `prompts` [K, L], one for each class, and `label` [I].
    Supervised, it gives "accuracy", "macro_f1", "macro_precision" and "macro_recall" of the whole set, and the means
    over batches of 16 that the released code reports, "batch16_accuracy", ... A client's own test rows are scored by
    `client_score`.

    Raises ValueError for settings, weights and data that do not fit each other, and where no client owns a whole batch,
    so that none would take a step; `evaluate` does for test arrays that do not fit.
    """
    population = population_of(data)
    fitting.check_settings_fit(config, encoders, num_classes, pretrained)
    fit = fitting.fit_of(config, encoders, num_classes, population)
    check_population(fit, population)
    plan = plan_stages(config, encoders)
    cohorts = tuple(population.cohorts)
    update = functools.partial(client_update, config, encoders)
    score = functools.partial(evaluation.client_score, config, encoders)
    scores = _evaluation(config, encoders, num_classes, fit)

    def bind(stage: StageSpec, client: Callable, at_server: Callable) -> Method:
        layers = {m: numbers.stop for m, numbers in stage.layers.items()}
        init = lambda key: network.init_network(config, encoders, num_classes, key, layers, pretrained)
        server = Server(init, functools.partial(server_download, stage, cohorts), at_server)
        cohort = lambda size: Cohort(size, lambda key: (), client, score)
        of_all = {name: cohort(size) for name, size in population.sizes.items()}
        return federate(server, of_all, scores, check=functools.partial(check_population, fit))

    trained = [bind(s, functools.partial(update, s), functools.partial(server_update, s)) for s in plan]
    if config.plan == "end-to-end":
        stages = [Stage("end-to-end", trained[0], sum(config.rounds))]
    else:
        keep = lambda s: functools.partial(frozen_outputs, config, encoders, s) if config.cache_frozen else None
        caches = [None if s.embeddings else keep(s) for s in plan]
        numbered = enumerate(zip(trained, config.rounds, caches, strict=True), 1)
        stages = [Stage(f"stage {s}", *stage) for s, stage in numbered]
    if config.statistics == "recalibrated":
        last = bind(plan[-1], functools.partial(statistics_update, config, encoders), recalibrate)
        stages.append(Stage("statistics", last, 1))
    return stages


def _evaluation(config: LayerwiseConfig, encoders: Encoders, num_classes: int | None, fit: Fit) -> Evaluation:
    """How the server's model is scored; compiled once for all stages."""
    scores = functools.partial(
        evaluation.scores,
        config,
        encoders,
        project=jax.jit(functools.partial(network.project, config, encoders), static_argnums=1),
        predict=jax.jit(functools.partial(network.predict_logits, config)),
    )
    return Evaluation(functools.partial(fitting.check_test, encoders, num_classes, fit), scores)


def server_download(
    stage: StageSpec, cohorts: Iterable[str], state: Params, public: Arrays | None = None
) -> dict[str, Download]:
    """Step 1: what the stage trains is sent; what is frozen, every client has already.

    state: the server's parameters. public: not used.

    >>> state = {"image": {"encoder": {"embeddings": {"w": 1}}, "head": {"w": 3}}}
    >>> server_download(StageSpec(1, {"image": range(0, 1)}, embeddings=False), ["all"], state)["all"].sent
    {'image': {'encoder': {'embeddings': {'w': None}}, 'head': {'w': 3}}}
    """
    return {name: Download(*split_trained(stage, state)) for name in cohorts}


def server_update(
    stage: StageSpec, state: Params, uploads: Mapping[str, Upload], public: Arrays | None, key: Key
) -> tuple[PyTree, Metrics]:
    """Step 3: the server's parameters with what was trained averaged over clients (1.5), and no metrics.

    uploads: {cohort: {modality or "prediction": Mean}}. What nobody sent stays as it is. public, key: not used.

    >>> import jax.numpy as jnp
    >>> from fedjax_mm import Mean
    >>> state = {"image": {"encoder": {"embeddings": jnp.zeros(1)}, "head": jnp.zeros(1)}}
    >>> sent = {"image": Mean({"encoder": {"embeddings": None}, "head": jnp.full(1, 2.0)}, jnp.float32(8))}
    >>> stage = StageSpec(1, {"image": range(0, 1)}, embeddings=False)
    >>> new, _ = server_update(stage, state, {"all": sent}, None, jax.random.key(0))
    >>> new["image"]["encoder"]["embeddings"].tolist(), new["image"]["head"].tolist()
    ([0.0], [2.0])
    """
    old, frozen = split_trained(stage, state)
    mean = {part: aggregate.average(aggregate.collect(uploads, part), old[part]) for part in old}
    return trees.merge(mean, frozen), {}
