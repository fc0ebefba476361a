"""What a client does in a round of a stage (1.6 in docs/specs/layerwise.md)."""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax

from fedjax_mm import trees
from fedjax_mm.local import local_steps
from fedjax_mm.methods.layerwise import network
from fedjax_mm.methods.layerwise.config import LayerwiseConfig
from fedjax_mm.methods.layerwise.network import Encoders, Params
from fedjax_mm.methods.layerwise.plan import (
    StageSpec,
    first_dropout_layers,
    make_optimizer,
    split_statistics,
)
from fedjax_mm.types import Arrays, ClientData, Download, Key, Mean, Metrics, Upload


def client_update(
    config: LayerwiseConfig,
    encoders: Encoders,
    stage: StageSpec,
    download: Download,
    state: tuple,
    data: ClientData,
    key: Key,
) -> tuple[Upload, tuple, Mapping[str, Mean]]:
    """Step 2: what one client sends after its training, its state (nothing), and the metrics of its steps.

    The upload has a Mean for each modality and, supervised, for "prediction": the trained parameters and the running
    statistics. data: its arrays are leaves [E, ...] of every modality and, supervised, `label` [E]. The metrics are
    "loss" and, supervised, "accuracy", means over the steps taken; a client that took none has weight 0 in them.

    >>> from fedjax_mm.local import whole
    >>> from fedjax_mm.methods.layerwise import plan_stages, split_trained
    >>> from fedjax_mm.models import Transformer
    >>> init = lambda key, x: {"embeddings": jnp.eye(2), "layers": {"00": jnp.eye(2), "01": jnp.eye(2)}}
    >>> apply = lambda params, x, key=None, dropout_from=0: x @ params["embeddings"]
    >>> encoder = Transformer(2, 2, init, apply, apply, jax.ShapeDtypeStruct((1, 2), jnp.float32), None)
    >>> encoders, rates = {"image": encoder, "depth": encoder}, {"image": (0.1,), "depth": (0.1,)}
    >>> config = LayerwiseConfig(rounds=(1,), encoder_lr=rates, batch_size=2, projection_hidden=4, projection_dim=3)
    >>> (stage,) = plan_stages(config, encoders)
    >>> params = network.init_network(config, encoders, None, jax.random.key(0))
    >>> data = whole({"image": jnp.eye(4)[:, :2], "depth": jnp.eye(4)[:, 1:3]})
    >>> update = jax.jit(functools.partial(client_update, config, encoders, stage))
    >>> upload, state, metrics = update(Download(*split_trained(stage, params)), (), data, jax.random.key(1))
    >>> sorted(upload), state, sorted(metrics)
    (['depth', 'image'], (), ['loss'])
    """
    running, train = split_statistics(download.sent)
    (train, running, _), metrics = local_steps(
        functools.partial(train_step, config, encoders, stage, download.held),
        (train, running, make_optimizer(config, stage).init(train)),
        data,
        key,
        batch_size=config.batch_size,
        epochs=config.epochs,
        drop_last=True,
    )
    upload = {part: Mean(value, data.weight) for part, value in trees.merge(train, running).items()}
    counts = jnp.where(data.count >= config.batch_size, data.weight, 0.0) if config.epochs else jnp.float32(0)
    return upload, state, {name: Mean(value, counts) for name, value in metrics.items()}


def train_step(
    config: LayerwiseConfig, encoders: Encoders, stage: StageSpec, frozen: Params, carry: tuple, batch: Arrays, key: Key
) -> tuple[tuple, Metrics]:
    """One step of a client: the carry after it, and the metrics.

    carry: (the trained parameters without running statistics, these statistics, the optimiser's state). The gradient is
    taken of the first alone. frozen: the other parameters. batch: leaves [B, ...].

    >>> from fedjax_mm.methods.layerwise import plan_stages, split_trained
    >>> from fedjax_mm.models import Transformer
    >>> init = lambda key, x: {"embeddings": jnp.eye(2), "layers": {"00": jnp.eye(2), "01": jnp.eye(2)}}
    >>> apply = lambda params, x, key=None, dropout_from=0: x @ params["embeddings"]
    >>> encoder = Transformer(2, 2, init, apply, apply, jax.ShapeDtypeStruct((1, 2), jnp.float32), None)
    >>> encoders = {"image": encoder}
    >>> config = LayerwiseConfig(rounds=(1, 1), encoder_lr={"image": (0.1, 0.1)}, batch_size=2, projection_hidden=4)
    >>> stage = plan_stages(config, encoders)[1]
    >>> half, frozen = split_trained(stage, network.init_network(config, encoders, 3, jax.random.key(0)))
    >>> running, train = split_statistics(half)
    >>> carry = (train, running, make_optimizer(config, stage).init(train))
    >>> batch = {"image": jnp.array([[1.0, 2.0], [3.0, 5.0]]), "label": jnp.array([0, 2])}
    >>> step = jax.jit(functools.partial(train_step, config, encoders, stage))
    >>> (new, _, _), metrics = step(frozen, carry, batch, jax.random.key(2))
    >>> new["image"]["encoder"]["embeddings"], bool((new["prediction"]["dense_1"]["bias"] != 0).any()), sorted(metrics)
    (None, True, ['accuracy', 'loss'])
    """

    def loss(train, running):
        params = trees.merge(trees.merge(train, running), frozen)
        dropout_from = first_dropout_layers(config, stage)
        value, new, metrics = network.local_loss(config, encoders, params, batch, key, dropout_from)
        return value, (split_statistics(new)[0], metrics)

    train, running, opt = carry
    (value, (running, metrics)), grads = jax.value_and_grad(loss, has_aux=True)(train, running)
    updates, opt = make_optimizer(config, stage).update(grads, opt, train)
    return (optax.apply_updates(train, updates), running, opt), {"loss": value, **metrics}
