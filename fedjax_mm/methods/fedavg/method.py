"""Multimodal federated averaging, the baseline of every table.

McMahan et al., AISTATS 2017 (FedAvg); Reddi et al., ICLR 2021 (a server optimiser: FedAvgM, FedAdam, FedYogi);
Li et al., MLSys 2020 (FedProx); Arivazhagan et al., 2019 (FedPer); each part averaged over the clients that have it,
with a weight for multimodal clients: Zhao, Barnaghi, Haddadi, IoTDI 2022. The formulas are in docs/specs/fedavg.md.

The model has the parts w = {one encoder per modality, head}. A round has three steps, each of which is a function:
  1. `server_download`: the server sends each client the parts that it uses: the encoders of its modalities and the
     head.
  2. `client_update`: client k runs E epochs of SGD on `local_loss`, which is cross-entropy + mu/2 |w - w_global|^2,
     with its n_k examples in batches of B. An example's embedding is the mean of its modalities' embeddings
     (`predict_logits`), so that clients of all kinds share the head. The client sends back each part with weight n_k
     (times `multimodal_weight` if it has several modalities).
  3. `server_update`: the server averages each part over the clients that have it. The old part minus this mean is the
     gradient for the server's optimiser. A part that nobody sent stays as it is, and so do the optimiser's moments.

With `shared=()` nothing travels: this is local-only training, the control. With `shared=("image", "text")` the head is
personal (FedPer).
"""

import functools
from collections.abc import Mapping

import optax

from fedjax_mm import aggregate, trees
from fedjax_mm.checks import population_of
from fedjax_mm.federate import Evaluation, Method, federate
from fedjax_mm.local import gradient_step, local_steps
from fedjax_mm.methods.fedavg import fitting
from fedjax_mm.methods.fedavg.config import CLIENT_OPTIMIZERS, SERVER_OPTIMIZERS, FedAvgConfig, shared_parts
from fedjax_mm.methods.fedavg.evaluation import client_score, compile_predict, scores
from fedjax_mm.methods.fedavg.network import Encoders, Examples, Parts, init_parts, kind_weight, local_loss
from fedjax_mm.methods.fit import check_population
from fedjax_mm.methods.settings import check_settings
from fedjax_mm.models import Model, as_encoder, as_encoders
from fedjax_mm.types import (
    Arrays,
    ClientData,
    Cohort,
    Download,
    HasPopulation,
    Key,
    Mean,
    Metrics,
    PyTree,
    Server,
    Upload,
)


def build(
    config: FedAvgConfig,
    data: HasPopulation,
    encoders: Encoders,
    head: Model,
    *,
    server_optimizer: optax.GradientTransformation | None = None,
) -> Method:
    """The method for the cohorts of `data`, a FederatedData or a Population: only shapes are used.

    A cohort holds the modalities that its arrays have. An example may lack a modality that its client has: an array
    `has_<modality>` [E] of booleans says so.

    encoders: modality -> Model from a batch of it to embeddings [B, D], one D for all; head: Model [B, D] -> [B, K];
        or whatever models.as_encoder makes one of.
    server_optimizer: any optax transform, in place of the one that the config names.

    `evaluate` tests each modality on its own and, where several are given, all together: "image/macro_f1",
    "image+text/accuracy", ... With personal parts it is the mean over the clients holding these modalities (see
    `scores`). A client's own test rows are scored by `client_score`.

    Raises ValueError for a setting out of range, for a modality that no cohort holds, for a cohort without a modality
    or without `label`, for models that do not fit the arrays or each other, for labels and tokens that they do not
    know, and for an unknown part in `config.shared`. `evaluate` does for test arrays that do not fit.
    """
    population = population_of(data)
    check_settings(config, FedAvgConfig)
    encoders, head = as_encoders("encoders", encoders), as_encoder(head, name="head")
    fitting.check_optimizer(server_optimizer)
    modalities, examples = fitting.find_modalities(encoders, population)
    num_classes = fitting.count_classes(encoders, head, examples)
    fit = fitting.fit_of(encoders, num_classes, modalities, population)
    check_population(fit, population)
    shared = shared_parts(config, encoders)
    server = Server(
        functools.partial(init_server, config, encoders, head, examples, optimizer=server_optimizer),
        functools.partial(server_download, modalities),
        functools.partial(server_update, config, optimizer=server_optimizer),
    )
    update = functools.partial(client_update, config, encoders, head)
    score = functools.partial(client_score, encoders, head)
    cohorts = {}
    for name, size in population.sizes.items():
        personal = tuple(part for part in (*modalities[name], "head") if part not in shared)
        init = functools.partial(init_parts, encoders, head, examples, names=personal)
        cohorts[name] = Cohort(size, init, update, score)
    score_all = functools.partial(scores, encoders, head, modalities, predict=compile_predict(encoders, head))
    check_test = functools.partial(fitting.check_test, encoders, num_classes, examples)
    evaluate = Evaluation(check_test, score_all)
    return federate(server, cohorts, evaluate, check=functools.partial(check_population, fit))


def init_server(
    config: FedAvgConfig,
    encoders: Encoders,
    head: Model,
    examples: Examples,
    key: Key,
    *,
    optimizer: optax.GradientTransformation | None = None,
) -> dict[str, dict[str, PyTree]]:
    """The server's first state: {"params": the parts that travel, "opt": the optimiser's state for each of them}.

    Arguments as of `init_parts`. optimizer: in place of the one that the config names.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> from fedjax_mm.models import heads, mlp
    >>> encoders, head = {"x": mlp.encoder((), 4)}, heads.linear(3)
    >>> state = init_server(FedAvgConfig(shared=("x",)), encoders, head, {"x": jnp.zeros((1, 5))}, jax.random.key(0))
    >>> list(state["params"]), list(state["opt"])
    (['x'], ['x'])
    """
    optimizer = optimizer or SERVER_OPTIMIZERS[config.server_optimizer](config.server_lr)
    params = init_parts(encoders, head, examples, key, shared_parts(config, encoders))
    return {"params": params, "opt": {part: optimizer.init(value) for part, value in params.items()}}


def server_download(
    modalities: Mapping[str, tuple[str, ...]], state: Mapping[str, Parts], public: Arrays | None = None
) -> dict[str, Download]:
    """Step 1: what each cohort gets, the encoders of its modalities and the head, of the parts that travel.

    modalities: cohort -> the modalities of its clients. public: not used.

    >>> state = {"params": {"image": 1, "text": 2, "head": 3}, "opt": {}}
    >>> server_download({"phones": ("image",)}, state)["phones"].sent
    {'image': 1, 'head': 3}
    """
    params = state["params"]
    pick = lambda own: {part: params[part] for part in (*own, "head") if part in params}
    return {name: Download(pick(own)) for name, own in modalities.items()}


def client_update(
    config: FedAvgConfig,
    encoders: Encoders,
    head: Model,
    download: Download,
    state: Parts,
    data: ClientData,
    key: Key,
) -> tuple[Upload, dict[str, PyTree], Metrics]:
    """Step 2: what one client sends after its training, its new personal parts, and the metrics "loss" and "accuracy".

    The upload has a Mean for each part of `download.sent`. state: the client's personal parts. data: its arrays are
    leaves [E, ...] of the client's modalities, and `label` [E]. A metric [] is the mean over the steps taken.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> from fedjax_mm.local import whole
    >>> from fedjax_mm.models import heads, mlp
    >>> encoders, head = {"x": mlp.encoder((), 4)}, heads.linear(3)
    >>> params = init_parts(encoders, head, {"x": jnp.zeros((1, 5))}, jax.random.key(0))
    >>> data = whole({"x": jnp.ones((6, 5)), "label": jnp.array([0, 1, 2, 0, 1, 2])})
    >>> update = functools.partial(client_update, FedAvgConfig(batch_size=2), encoders, head)
    >>> upload, state, metrics = update(Download(params), {}, data, jax.random.key(1))
    >>> sorted(upload), state, sorted(metrics)
    (['head', 'x'], {}, ['accuracy', 'loss'])
    """
    start = {**download.sent, **state}
    optimizer = CLIENT_OPTIMIZERS[config.client_optimizer](config.client_lr)
    loss = lambda params, batch, key: local_loss(config, encoders, head, params, start, batch)
    (params, _), metrics = local_steps(
        gradient_step(loss, optimizer),
        (start, optimizer.init(start)),
        data,
        key,
        batch_size=config.batch_size,
        epochs=config.epochs,
    )
    weight = kind_weight(config, start) * data.weight
    upload = {part: Mean(params[part], weight) for part in download.sent}
    return upload, {part: params[part] for part in state}, metrics


def server_update(
    config: FedAvgConfig,
    state: Mapping[str, Parts],
    uploads: Mapping[str, Upload],
    public: Arrays | None,
    key: Key,
    *,
    optimizer: optax.GradientTransformation | None = None,
) -> tuple[dict[str, dict[str, PyTree]], Metrics]:
    """Step 3: the server's new state, and no metrics.

    uploads: {cohort: {part: Mean}}, the means over the clients of a cohort with their total weights. optimizer: in
    place of the one that the config names. public, key: not used.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> state = {"params": {"head": jnp.zeros(2)}, "opt": {"head": optax.sgd(1.0).init(jnp.zeros(2))}}
    >>> sent = lambda value, weight: {"head": Mean(jnp.full(2, value), jnp.float32(weight))}
    >>> uploads = {"phones": sent(1.0, 30), "watches": sent(5.0, 10)}
    >>> server_update(FedAvgConfig(), state, uploads, None, jax.random.key(0))[0]["params"]["head"].tolist()
    [2.0, 2.0]
    """
    optimizer = optimizer or SERVER_OPTIMIZERS[config.server_optimizer](config.server_lr)
    params, opt = {}, {}
    for part, old in state["params"].items():
        moments = state["opt"][part]
        mean = aggregate.collect(uploads, part)
        updates, new_moments = optimizer.update(optax.tree.sub(old, mean.value), moments, old)
        sent = mean.weight > 0
        params[part] = trees.where(sent, optax.apply_updates(old, updates), old)
        # The mean is in float32: moments of parameters in half precision would change their type in the first round.
        opt[part] = trees.where(sent, optax.tree.cast_like(new_moments, moments), moments)
    return {"params": params, "opt": opt}, {}
