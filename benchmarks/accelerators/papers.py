"""The rows: federated averaging of small networks and of ResNet-18, and the rounds of the four papers at full size."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh

from benchmarks.accelerators.rows import Clients, Row, Shape, Workload, stacked, workload
from experiments.creamfl import models as creamfl_models
from experiments.creamfl import study as creamfl_study
from experiments.feddat.modes import Mode, Widths, make
from experiments.fedmekt.study import PRESETS as FEDMEKT
from fedjax_mm.methods import creamfl, fedavg, fedmekt, layerwise
from fedjax_mm.methods.feddat import FedDATConfig
from fedjax_mm.methods.feddat.vqa_tuning import Training
from fedjax_mm.models import Model, adapters, ast, autoencoder, bert, cnn, heads, mlp, resnet, vilt, vit

IDENTITY = Model(lambda key, x: {}, lambda params, x: x)
LABEL = Shape((), np.int32)
Plan = Literal["layer-wise", "end-to-end"]
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


def vilt_b32(clients: int, dtype: np.dtype) -> Workload:
    """FedDAT over one frozen ViLT-B/32, with 100 answers and the paper's widths."""
    model, head, mode = vilt.base(dtype=dtype), adapters.answers(100), Mode(FedDATConfig(Training(batch_size=16)))
    arrays = {name: Shape(x.shape[1:], x.dtype) for name, x in model.example.items()}
    trunk = jax.eval_shape(model.init, jax.random.key(0), model.example)
    trunk = jax.tree.map(lambda x: Shape(x.shape, dtype), trunk)
    build = lambda population, trunk: make(mode, Widths(), population, model, trunk, head)
    cohorts = {"all": Clients(clients, 64, {**arrays, "target": Shape((100,), np.float32)})}
    return workload(build, cohorts, given=(trunk,))


def in_stages(name: Literal["coco", "advance"], plan: Plan, clients: Clients, dtype: np.dtype) -> Workload:
    """The last stage of a plan with the paper's encoders, batch and epochs."""
    config = dataclasses.replace(layerwise.VARIANTS[name], plan=plan)
    others = {"text": bert.distilbert(dtype=dtype)} if name == "coco" else {"audio": ast.distilled(dtype=dtype)}
    encoders, classes = {"image": vit.tiny(dtype=dtype), **others}, None if name == "coco" else 13
    build = lambda population: layerwise.build(config, population, encoders, classes)[-1].method
    return workload(build, {"all": clients})


def plans(name: Literal["coco", "advance"], about: str, clients: Clients) -> dict[str, Row]:
    """The rows of a data set: end to end, and the last of six stages."""
    row = lambda how, plan: Row(about.format(how), functools.partial(in_stages, name, plan, clients))
    return {
        f"layerwise/{name}": row("end to end", "end-to-end"),
        f"layerwise/{name}-last": row("the last of six stages", "layer-wise"),
    }


COCO = Clients(10, 64, {"image": image(224), "text": Shape((5, 40), np.int32)})
ADVANCE = Clients(40, 96, {"image": image(224), "audio": Shape((1024, 128), np.float32), "label": LABEL}, 30)


def creamfl_full(dtype: np.dtype, mesh: Mesh | None) -> Workload:
    """CreamFL at the settings of its study on COCO: all clients have 500 examples. 10 of all are drawn, whatever their
    kind, so that a round has places for 10 of each."""
    settings = creamfl_study.PRESETS["coco"]
    config, numbers, side = creamfl_study.variants(settings)["CreamFL"], settings.numbers, settings.side
    assert isinstance(config, creamfl.CreamFLConfig)
    models = creamfl_models.fresh(settings.size.dim, side, released=False, dtype=dtype)
    picture, text = image(side), Shape((24,), np.int32)
    arrays = {
        "image": {"image": picture, "label": LABEL},
        "text": {"text": text, "label": LABEL},
        "both": {"image": picture, "text": text},
    }
    sizes = {"image": numbers.image, "text": numbers.text, "both": numbers.both}
    cohorts = {k: Clients(n, numbers.per_client, arrays[k], settings.per_round) for k, n in sizes.items()}
    public = {"image": stacked(numbers.public, picture), "text": stacked(numbers.public, text)}
    classes = {"image": 100, "text": 4}
    build = lambda population: creamfl.build(config, population, models.server, models.clients, classes, mesh)
    # What has no length in the program represents the public examples, a block at a time.
    return workload(build, cohorts, public, trips=-(-numbers.public // config.training.block))


ROWS: Mapping[str, Row] = {
    "fedavg/mlp": Row("784-200-200-10, 128 clients x 3 steps of 20", small_mlp, (1, 8, 32, 128)),
    "fedavg/cnn": Row("CNN (32, 64), group norm, 128 clients x 10 steps of 20", small_cnn, (1, 2, 4, 8)),
    "fedavg/resnet18": Row("ResNet-18, 1 client x 1 step of 64 pictures of 224", resnet_step),
    "fedmekt/ur_fall": Row("LSTMs, UR Fall's shapes, 30 clients x 4 steps of 24", ur_fall, (1, 8, 30), ("float32",)),
    "feddat/4": Row("ViLT-B/32, 4 clients x 4 steps of 16", functools.partial(vilt_b32, 4)),
    "feddat/32": Row("ViLT-B/32, 32 clients x 4 steps of 16", functools.partial(vilt_b32, 32)),
    **plans("coco", "ViT-Tiny and DistilBERT, {}, 10 clients x 6 steps of 32", COCO),
    **plans("advance", "ViT-Tiny and distilled AST, {}, 30 of 40 clients x 18 steps of 16", ADVANCE),
    "creamfl/full": Row(
        "ResNet-101 and BERT at the server in batches of 128, 50,000 public pairs, places for 10 clients of each kind",
        creamfl_full,
        takes_mesh=True,
        off_device=True,
    ),
}
