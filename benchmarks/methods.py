"""Rounds of the methods compared with their clients one by one, in a compiled call for each client or each batch."""

import dataclasses
from collections.abc import Mapping
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.one_by_one import by_batch, separate, serial
from benchmarks.timing import Timed, after, max_difference, median, ours, rounds_of, start_of, timings
from experiments import pretrain_vilt
from experiments.common.data import load
from experiments.common.tables import Variant, fedavg_variant
from experiments.creamfl import study as creamfl
from experiments.creamfl.data import Numbers
from experiments.fedavg import study as fedavg
from experiments.feddat.modes import Mode, Widths, make
from experiments.fedmekt import study as fedmekt
from experiments.layerwise import study as layerwise
from fedjax_mm.data import FederatedData, vqa
from fedjax_mm.data.scenes import tasks
from fedjax_mm.federate import Method
from fedjax_mm.methods import layerwise as stagewise
from fedjax_mm.methods.feddat import FedDATConfig
from fedjax_mm.methods.feddat.vqa_tuning import Training
from fedjax_mm.models import adapters
from fedjax_mm.types import OverClients

WAYS = {"chunk 1": 1, "chunk 3": 3, "call per client": jax.jit, "call per batch": by_batch}
Name = Literal["FedAvg", "MMFL", "FedMEKT", "layer-wise", "FedDAT", "CreamFL"]


@dataclasses.dataclass(frozen=True)
class Settings:
    """Which methods' rounds, and how often."""

    names: tuple[Name, ...] = ("FedAvg", "MMFL", "FedMEKT", "layer-wise", "FedDAT", "CreamFL")
    """Methods whose rounds are measured."""
    rounds: int = 3
    """Rounds in one timing."""
    repetitions: int = 5
    """Timings of each way; their median is reported."""
    seed: int = 0
    """Seed of the data, the weights and the participants."""


class Workload(NamedTuple):
    """A method at the sizes of its experiment, and who takes part in a round, of every cohort as many each time."""

    method: Method
    data: FederatedData
    per_round: Mapping[str, int]


def one_after_another(settings: Settings) -> list[dict]:
    """A round of each method as one program; a call for each client, then the server's; and a call for each batch.

    differences: the largest in the server's state after all rounds, from the program with one client at a time. Where
    Adam divides a gradient that is nearly 0 by its own size, the last digit decides about a whole step.
    """
    return [{"method": name, **compared(settings, WORKLOADS[name](settings.seed))} for name in settings.names]


def compared(settings: Settings, workload: Workload) -> dict:
    """The row of one method."""
    method, data, per_round = workload
    key, state = jax.random.key(settings.seed), start_of(method, settings.seed)
    rounds = rounds_of(data, per_round, settings.rounds, settings.seed)
    apart = separate(method, state)
    variants, row = {}, {"clients": sum(per_round.values())}
    for how, compiled in WAYS.items():
        if isinstance(compiled, int):
            variants[how], cost = ours(method, OverClients(compiled), state, rounds, key)
            row[f"{how} compile s"] = cost["compile s"]
        else:
            variants[how] = Timed(serial(method, key, compiled), apart, rounds, len(rounds))
    ends = {how: after(timed) for how, timed in variants.items()}
    servers = {how: end[0] if isinstance(end, tuple) else end.server for how, end in ends.items()}
    times = timings(variants, settings.repetitions)
    for how in variants:
        cpu, wall = median(times[how])
        row |= {f"{how} CPU ms": cpu, f"{how} ms": wall}
        row[f"{how} difference"] = max_difference(servers[how], servers["chunk 1"])
    return row


def of_digits(variant: Variant, seed: int) -> Workload:
    """The digits' halves with 10, 10 and 10 clients of which 9 take part."""
    problem = load("digits", None, "A10_B10_AB10", 0.3, seed)
    assert variant.build, "the constant prediction is no method"
    return Workload(variant.build(problem), problem.data, dict.fromkeys(problem.data.sizes, 3))


def of_layerwise(seed: int) -> Workload:
    """Scenes, the last of three stages: two layers frozen, one trained, without crops and dropout."""
    settings = dataclasses.replace(layerwise.PRESETS["scenes"], crop=None, dropout=0.0)
    problem = layerwise.load(settings, seed)
    stages = stagewise.build(layerwise.config_of(settings, "layer-wise"), problem.data, problem.encoders)
    return Workload(stages[-1].method, problem.data, {"all": settings.per_round})


def of_feddat(
    seed: int,
    size: pretrain_vilt.Size,
    dtype: jax.typing.DTypeLike = np.float32,
    examples: int = 96,
    batch_size: int = 16,
) -> Workload:
    """Questions about scenes, a client a style, over a trunk that has learnt nothing, which costs the same."""
    settings = Training(lr=1e-2, batch_size=batch_size)
    sources = tasks.domain(examples, 8, size.image, seed=seed)
    data = vqa.federated(vqa.load(sources, (size.image, size.image), size.patch, size.length, seed=seed))
    model, arrays = pretrain_vilt.encoder(size, dtype), data.cohorts["all"].arrays
    trunk = model.init(jax.random.key(seed), {k: jnp.asarray(arrays[k][:1]) for k in arrays})
    trunk = jax.tree.map(lambda x: x.astype(dtype), trunk)
    head = adapters.answers(arrays["target"].shape[1])
    mode, widths = Mode(FedDATConfig(settings)), Widths(adapter=16)
    return Workload(make(mode, widths, data, model, trunk, head), data, data.sizes)


def of_creamfl(seed: int) -> Workload:
    """Scenes, fresh encoders, and a quarter of the public pairs."""
    numbers = Numbers(6, 6, 6, per_client=64, public=256, test=8, asked=8, pretraining=8)
    settings = creamfl.Settings(numbers=numbers, pretraining=0)
    problem = creamfl.load(settings, seed)
    return Workload(creamfl.method_of(settings, "CreamFL", problem), problem.data, dict.fromkeys(problem.data.sizes, 3))


PLAIN = dataclasses.replace(fedavg.PRESETS["digits"].method, server_optimizer="sgd", server_lr=1.0)
WORKLOADS = {
    "FedAvg": lambda seed: of_digits(fedavg_variant(PLAIN), seed),
    "MMFL": lambda seed: of_digits(fedmekt.variants(fedmekt.PRESETS["digits"])["FedAvg"], seed),
    "FedMEKT": lambda seed: of_digits(fedmekt.variants(fedmekt.PRESETS["digits"])["FedMEKT"], seed),
    "layer-wise": of_layerwise,
    "FedDAT": lambda seed: of_feddat(seed, pretrain_vilt.Size()),
    "CreamFL": of_creamfl,
}
