"""How near the limit a round comes: the FLOP rate of its clients' steps, compared with one large matrix product.

FLOPs are those of the matrix products in the traced local steps (see fedjax_mm.costs): padding, weighing and the server
take time and count for nothing.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import engine, methods, price
from benchmarks.timing import Timed, median, ours, rounds_of, start_of, timings
from experiments import pretrain_vilt
from fedjax_mm import costs
from fedjax_mm.data import FederatedData
from fedjax_mm.federate import Method
from fedjax_mm.models import vit
from fedjax_mm.types import OverClients

Name = Literal["transformer clients", "adapters over a frozen trunk", "many small clients"]


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is measured, and at which size."""

    names: tuple[Name, ...] = ("transformer clients", "adapters over a frozen trunk", "many small clients")
    """Workloads that are measured."""
    size: Literal["auto", "small", "full"] = "auto"
    """Size of the workloads: full takes ViT-B/16 and ViLT-B/32 in bfloat16 and 512 small clients; auto takes small on
    a CPU and full elsewhere."""
    rounds: int = 1
    """Rounds in one timing."""
    repetitions: int = 5
    """Timings of each variant; their median is reported."""
    seed: int = 0
    """Seed of the data, the weights and the participants."""


class Workload(NamedTuple):
    """A method, who takes part, over how many clients it maps at a time, and local steps in a round, of all clients."""

    method: Method
    data: FederatedData
    chunks: tuple[int, ...]
    steps: int


def peak(settings: Settings) -> list[dict]:
    """A row per workload and chunk; product is that of two large matrices, TFLOP a second, and share is of it."""
    on_cpu = jax.default_backend() == "cpu"
    full = {"auto": not on_cpu, "small": False, "full": True}[settings.size]
    dtype = jnp.dtype(jnp.float32 if on_cpu else jnp.bfloat16)
    limit = product(2048 if on_cpu else 8192, dtype)
    rows = []
    for name in settings.names:
        rows += of_workload(settings, name, WORKLOADS[name](full, dtype, settings.seed), limit)
    return [{**row, "dtype": dtype.name} for row in rows]


def product(n: int, dtype: jnp.dtype) -> tuple[Timed, float]:
    """(square matrices of side n multiplied with one another again and again, TFLOP of one)."""
    a = jax.random.normal(jax.random.key(0), (n, n)).astype(dtype) / n**0.5  # products keep their size
    times = 4
    many = jax.jit(lambda a, b: jax.lax.fori_loop(0, times, lambda _, b: a @ b, b), donate_argnums=1)
    return Timed(lambda b, a: many(a, b), a, [a], times), 2e-12 * n**3


def of_workload(settings: Settings, name: str, workload: Workload, limit: tuple[Timed, float]) -> list[dict]:
    """A row per chunk."""
    method, data, chunks, steps = workload
    key, state = jax.random.key(settings.seed), start_of(method, settings.seed)
    rounds = rounds_of(data, data.sizes, settings.rounds, settings.seed)
    (cost,) = costs.of(method, rounds[0], state).values()
    flops, (multiply, flops_of_product) = steps * cost.flops * 1e-12, limit
    compiled = {chunk: ours(method, OverClients(chunk), state, rounds, key) for chunk in chunks}
    times = timings(
        {"product": multiply, **{chunk: timed for chunk, (timed, _) in compiled.items()}}, settings.repetitions
    )
    most, rows = flops_of_product / (1e-3 * times["product"][:, 1]), []
    for chunk in chunks:
        cpu, wall = median(times[chunk])
        reached = flops / (1e-3 * times[chunk][:, 1])
        rates = {"share": np.median(reached / most), "TFLOP per s": np.median(reached), "product": np.median(most)}
        rates = {what: float(value) for what, value in rates.items()}
        row = {"workload": name, "chunk": chunk, **rates, "steps": steps, "TFLOP a round": flops, "CPU ms": cpu}
        rows.append({**row, "ms": wall, **compiled[chunk][1]})
    return rows


def transformers(full: bool, dtype: jnp.dtype, seed: int) -> Workload:
    """FedAvg of an image classifier."""
    if full:
        of_price = price.Settings(clients=8, examples=256, batch_size=64, side=224, seed=seed)
        model = vit.encoder(224, 16, dim=768, depth=12, heads=12, mlp=3072, dtype=dtype)
    else:
        of_price = price.Settings(clients=4, examples=32, batch_size=16, seed=seed)
        model = vit.encoder(32, 4, dim=384, depth=4, heads=6, mlp=1536, dtype=dtype)
    data, method, _ = price.workload(of_price, price.plain(model))
    steps = of_price.clients * of_price.examples // of_price.batch_size
    return Workload(method, data, (1, 2, 4, 8) if full else (1, 2), steps)


def over_trunk(full: bool, dtype: jnp.dtype, seed: int) -> Workload:
    """FedDAT."""
    if full:
        size, examples, batch_size = pretrain_vilt.Size(384, 32, 40, 30522, 768, 12, 12), 256, 64
    else:
        size, examples, batch_size = pretrain_vilt.Size(32, 4, dim=256, heads=4), 32, 16
    method, data, _ = methods.of_feddat(seed, size, dtype, examples, batch_size)
    (cohort,) = data.cohorts.values()
    return Workload(method, data, (1, 2, 3) if full else (1,), sum(math.ceil(n / batch_size) for n in cohort.counts))


def small(full: bool, dtype: jnp.dtype, seed: int) -> Workload:
    """FedAvg of the 2NN of McMahan 2017, float32 everywhere."""
    number, chunks = (512, (1, 16, 128, 512)) if full else (64, (1, 4, 16))
    settings = engine.Settings(clients=number, per_round=number, seed=seed)
    data, method = engine.workload(settings)
    return Workload(method, data, chunks, number * settings.examples // settings.batch_size)


WORKLOADS: Mapping[Name, Callable[[bool, jnp.dtype, int], Workload]] = {
    "transformer clients": transformers,
    "adapters over a frozen trunk": over_trunk,
    "many small clients": small,
}
