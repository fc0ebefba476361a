"""The rows: federated averaging of small networks and of ResNet-18, and the rounds of the four papers at full size."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.accelerators.rows import Clients, Row, Shape, Workload, workload
from experiments.fedmekt.study import PRESETS as FEDMEKT
from fedjax_mm.methods import fedavg, fedmekt
from fedjax_mm.models import Model, autoencoder, cnn, heads, mlp, resnet

IDENTITY = Model(lambda key, x: {}, lambda params, x: x)
LABEL = Shape((), np.int32)
image = lambda side, channels=3: Shape((side, side, channels), np.uint8)


def averaging(encoder: Model, head: Model, x: Shape, clients: int, examples: int, batch_size: int) -> Workload:
    """Federated averaging of one model by clients of one epoch each."""
    config = fedavg.FedAvgConfig(client_lr=0.1, batch_size=batch_size)
    build = lambda population: fedavg.build(config, population, {"x": encoder}, head)
    return workload(build, {"all": Clients(clients, examples, {"x": x, "label": LABEL})})


def small_mlp(dtype: np.dtype) -> Workload:
    """McMahan's 2NN."""
    return averaging(mlp.classifier((200, 200), 10, dtype), IDENTITY, Shape((784,), np.float32), 128, 60, 20)


def small_cnn(dtype: np.dtype) -> Workload:
    """Two convolutions of stride 2 with group norms on pictures in FEMNIST's shape."""
    x = Shape((28, 28, 1), np.float32)
    return averaging(cnn.encoder((32, 64), 128, dtype=dtype), heads.linear(10, dtype), x, 128, 200, 20)


def resnet_step(dtype: np.dtype) -> Workload:
    """One client that takes one step, which is all that a round has to do."""
    trunk = resnet.resnet18(dtype=dtype)
    pooled = Model(trunk.init, lambda params, x: trunk.apply(params, x).mean((1, 2)))
    return averaging(pooled, heads.linear(100, dtype), image(224), 1, 64, 64)


def ur_fall(dtype: np.dtype) -> Workload:
    """FedMEKT at the settings of its study; the windows for its linear evaluation are no part of the round."""
    settings, features = FEDMEKT["ur_fall"], {"accelerometer": 3, "depth": 8}
    shape = settings.autoencoder
    ae = autoencoder.split_lstm(features, shape.hidden, shape.width, readout=shape.readout)
    windows = {m: Shape((24, width), np.float32) for m, width in features.items()}
    labelled: Any = {m: np.zeros((6, *x.shape), np.float32) for m, x in windows.items()} | {"label": np.arange(6) % 3}
    build = lambda population: fedmekt.build(settings.method, population, ae, labelled, 3)
    public = {m: Shape((settings.problem.proxy, *x.shape), x.dtype) for m, x in windows.items()}
    return workload(build, {"AB": Clients(30, 34, {**windows, "label": LABEL})}, public)


ROWS: Mapping[str, Row] = {
    "fedavg/mlp": Row("784-200-200-10, 128 clients x 3 steps of 20", small_mlp, (1, 8, 32, 128)),
    "fedavg/cnn": Row("CNN (32, 64), group norm, 128 clients x 10 steps of 20", small_cnn, (1, 2, 4, 8)),
    "fedavg/resnet18": Row("ResNet-18, 1 client x 1 step of 64 pictures of 224", resnet_step),
    "fedmekt/ur_fall": Row("LSTMs, UR Fall's shapes, 30 clients x 4 steps of 24", ur_fall, (1, 8, 30), ("float32",)),
}
