"""What federation costs: a round compared with as many steps of centralised SGD, which are one scan over batches.

A round does more than these steps: it trains from one start again and again, adds up the weights of its clients, draws
the order of their examples, and checks and counts what they send.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.timing import Timed, median, ours, rounds_of, start_of, timings
from fedjax_mm.data import FederatedData
from fedjax_mm.federate import Method
from fedjax_mm.methods import fedavg
from fedjax_mm.models import Model, cnn, heads, mlp, vit
from fedjax_mm.types import OverClients

Name = Literal["mlp", "wide mlp", "cnn", "transformer", "wide transformer"]
MODELS: Mapping[Name, Callable[[], Model]] = {
    "mlp": lambda: mlp.encoder((200, 200), 32),
    "wide mlp": lambda: mlp.encoder((2000, 2000), 32),
    "cnn": lambda: cnn.encoder((16, 32, 64), 64),
    "transformer": lambda: plain(vit.encoder(32, 8, dim=192, depth=4, heads=3, mlp=768)),
    "wide transformer": lambda: plain(vit.encoder(32, 8, dim=384, depth=6, heads=6, mlp=1536)),
}


RATE = 0.01


@dataclasses.dataclass(frozen=True)
class Settings:
    """The models, and one workload for all: images in ten classes."""

    names: tuple[Name, ...] = ("mlp", "wide mlp", "cnn", "transformer", "wide transformer")
    """Models that are measured."""
    side: int = 32
    """Pixels of the side of an image; the models here are for 32."""
    clients: int = 10
    """Clients, who all take part in a round."""
    examples: int = 64
    """Examples of each client."""
    batch_size: int = 16
    """Examples in a batch."""
    chunks: tuple[int, ...] = (1, 5)
    """Clients vmapped at a time."""
    rounds: int = 1
    """Rounds in one timing."""
    repetitions: int = 7
    """Timings of each variant; their median is reported."""
    seed: int = 0
    """Seed of the data, the weights and the participants."""


def price(settings: Settings) -> list[dict]:
    """A row per model and chunk; ratios are medians of pairs taken in turn."""
    return [row for name in settings.names for row in of_model(settings, MODELS[name](), name)]


def of_model(settings: Settings, encoder: Model, name: str) -> list[dict]:
    """A row per chunk."""
    rounds, alone = variants_of(settings, encoder)
    times = timings({**rounds, "centralised": alone}, settings.repetitions)
    base, rows = times.pop("centralised"), []
    steps = settings.clients * (settings.examples // settings.batch_size)
    for chunk, taken in times.items():
        ratio = median(taken / base)
        row = {"model": name, "parameters": sum(x.size for x in jax.tree.leaves(alone.start)), "steps": steps}
        row |= {"chunk": chunk, "CPU ms": median(taken)[0], "ms": median(taken)[1]}
        row |= {"centralised CPU ms": median(base)[0], "centralised ms": median(base)[1]}
        rows.append(row | {"CPU ratio": ratio[0], "ratio": ratio[1]})
    return rows


def variants_of(settings: Settings, encoder: Model) -> tuple[dict[int, Timed], Timed]:
    """(FedAvg of the encoder and a linear head at every chunk, centralised SGD from the same weights)."""
    data, method, head = workload(settings, encoder)
    key, state = jax.random.key(settings.seed), start_of(method, settings.seed)
    rounds = rounds_of(data, settings.clients, settings.rounds, settings.seed)
    federated = {c: ours(method, OverClients(c), state, rounds, key)[0] for c in settings.chunks}
    rng = np.random.default_rng(settings.seed)
    order = rng.permutation(settings.clients * settings.examples).reshape(-1, settings.batch_size)
    batches = jnp.asarray(order.astype(np.int32))
    run, arrays = centralised(encoder, head, RATE), data.cohorts["all"].arrays
    step = lambda params, batches: run(params, arrays, batches)
    return federated, Timed(step, state.server["params"], [batches] * settings.rounds, settings.rounds)


def workload(settings: Settings, encoder: Model) -> tuple[FederatedData, Method, Model]:
    """(random images of equal clients, FedAvg of the encoder and a linear head, the head)."""
    if settings.examples % settings.batch_size:
        raise ValueError(f"{settings.examples} examples do not divide into batches of {settings.batch_size}")
    rng = np.random.default_rng(settings.seed)
    total = settings.clients * settings.examples
    arrays = {"x": rng.integers(0, 256, (total, settings.side, settings.side, 3), np.uint8)}
    arrays["label"] = rng.integers(0, 10, total).astype(np.int32)
    data = FederatedData.from_arrays(arrays, np.repeat(np.arange(settings.clients), settings.examples))
    config, head = fedavg.FedAvgConfig(client_lr=RATE, batch_size=settings.batch_size), heads.linear(10)
    return data, fedavg.build(config, data, {"x": encoder}, head), head


def centralised(encoder: Model, head: Model, rate: float) -> Callable:
    """(params, arrays, rows [S, B]) -> params after S steps of SGD."""

    def loss(params, batch):
        logits = head.apply(params["head"], encoder.apply(params["x"], batch["x"]))
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()

    def step(params, arrays, rows):
        batch = {name: jnp.take(x, rows, axis=0, mode="clip") for name, x in arrays.items()}
        return jax.tree.map(lambda w, g: w - rate * g, params, jax.grad(loss)(params, batch))

    def run(params, arrays, batches):
        return jax.lax.scan(lambda params, rows: (step(params, arrays, rows), None), params, batches)[0]

    return jax.jit(run, donate_argnums=0)


def plain(transformer: vit.Transformer) -> Model:
    """The transformer as a model from images to its class token's output."""
    return Model(transformer.init, transformer.apply)
