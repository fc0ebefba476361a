"""The engine on the 2NN of McMahan 2017: compared with a loop by hand; more clients, chunks, devices; client sizes."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.by_hand import COHORT, round_by_hand
from benchmarks.timing import (
    Timed,
    after,
    in_own_process,
    max_difference,
    median,
    ours,
    peak_rss_mb,
    replicated,
    rounds_of,
    start_of,
    timings,
)
from fedjax_mm import clients
from fedjax_mm.data import FederatedData, partition
from fedjax_mm.federate import Method
from fedjax_mm.methods import fedavg
from fedjax_mm.models import Model, mlp
from fedjax_mm.types import FedState, OverClients, PyTree, RoundData


@dataclasses.dataclass(frozen=True)
class Settings:
    """The workload: FedAvg of a small classifier."""

    clients: int = 100
    """Clients of the population."""
    examples: int = 60
    """Examples of each client; where sizes are skewed, their mean."""
    per_round: int = 10
    """Clients that take part in a round."""
    batch_size: int = 20
    """Examples in a batch."""
    widths: tuple[int, ...] = (200, 200)
    """Hidden layers of the classifier."""
    client_lr: float = 0.1
    """Learning rate of the clients' SGD."""
    rounds: int = 20
    """Rounds in one timing."""
    repetitions: int = 15
    """Timings of each variant; reported is their median."""
    chunks: tuple[int, ...] = (1, 2, 5, 10)
    """Clients vmapped at a time."""
    devices: tuple[int, ...] = (1, 2, 4, 8)
    """Devices to spread clients over; on CPU they are forced host devices, in a process of their own."""
    populations: tuple[int, ...] = (1000, 10_000)
    """Sizes of the population in the section clients_per_round."""
    taking_part: tuple[int, ...] = (1, 8, 64, 512)
    """Clients that take part in a round in the section clients_per_round."""
    alpha: float = 0.1
    """Dirichlet concentration of classes over clients where sizes are skewed."""
    seed: int = 0
    """Seed of the data, the weights and the participants."""


def handwritten(settings: Settings) -> list[dict]:
    """Our round and one written by hand for this workload alone, each round dispatched by itself or all scanned.

    Raises ArithmeticError where the weights differ by more than 1e-5 after a round, or more than 1e-3 after all rounds
    (training magnifies the last digit).
    """
    data, method = workload(settings)
    key, rounds, state = jax.random.key(settings.seed), chosen(data, settings), start_of(method, settings.seed)
    index = np.stack([r.cohorts[COHORT].index for r in rounds])
    own = data.cohorts[COHORT]
    fixed = (own.arrays, jnp.asarray(own.rows.reshape(settings.clients, settings.examples)), key)
    begin = (state.server["params"]["x"], jnp.int32(0))  # the same weights, and the number of the round
    results = []
    for chunk in settings.chunks:
        by_hand = round_by_hand(network(settings).apply, settings, chunk)
        one, all_ours = jax.jit(by_hand, donate_argnums=0), scanned(method, chunk, rounds, key)
        all_by_hand = lambda s, i, *fixed, f=by_hand: jax.lax.scan(lambda s, i: (f(s, i, *fixed), None), s, i)[0]
        all_by_hand = jax.jit(all_by_hand, donate_argnums=0)
        variants = {
            "ours": ours(method, OverClients(chunk), state, rounds, key)[0],
            "hand": Timed(lambda s, i, f=one: f(s, i, *fixed), begin, index, len(rounds)),
            "ours scanned": Timed(lambda s, arrays, f=all_ours: f(s, arrays)[0], state, [own.arrays], len(rounds)),
            "hand scanned": Timed(lambda s, i, f=all_by_hand: f(s, i, *fixed), begin, [index], len(rounds)),
        }
        ends = {name: _weights(after(v)) for name, v in variants.items()}
        once = [_weights(after(variants[n]._replace(inputs=variants[n].inputs[:1]))) for n in ("ours", "hand")]
        first = max_difference(*once)
        difference = max(max_difference(end, ends["hand"]) for end in ends.values())
        if not (first <= 1e-5 and difference <= 1e-3):
            raise ArithmeticError(
                f"chunk {chunk}: our round and the one by hand differ by {first:.1e}, {difference:.1e}"
            )
        times = timings(variants, settings.repetitions)
        for name, how in {"separate": "", "scanned": " scanned"}.items():
            a, b = times["ours" + how], times["hand" + how]
            row = {"chunk": chunk, "rounds": name, "difference": first}
            for i, clock in enumerate(("CPU ", "")):
                low, ratio, high = np.quantile(a[:, i] / b[:, i], (0.25, 0.5, 0.75)).tolist()
                row |= {f"ours {clock}ms": median(a)[i], f"hand {clock}ms": median(b)[i]}
                row |= {f"{clock}ratio": ratio, f"{clock}low": low, f"{clock}high": high}
            results.append(row)
    return results


def clients_per_round(settings: Settings) -> list[dict]:
    """More clients in a round, of larger populations, in one process: memory must not grow with them."""
    results = []
    for population in settings.populations:
        data, method = workload(dataclasses.replace(settings, clients=population))
        key, state = jax.random.key(settings.seed), start_of(method, settings.seed)
        for taking_part in (c for c in settings.taking_part if c <= population):
            rounds = rounds_of(data, taking_part, 1, settings.seed)
            variants, rows = {}, []
            for chunk in sorted({1, min(max(settings.chunks), taking_part)}):
                timed, cost = ours(method, OverClients(chunk), state, rounds, key)
                variants[chunk] = timed._replace(rounds=taking_part)  # so that times are per client
                rows.append({"population": population, "taking part": taking_part, "chunk": chunk, **cost})
            # Large rounds fewer times: one is an average over many clients already.
            times = timings(variants, max(3, min(settings.repetitions, 300 // taking_part)))
            for row in rows:
                cpu, wall = median(times[row["chunk"]])
                results.append(row | {"CPU ms per client": cpu, "ms per client": wall, "peak RSS MB": peak_rss_mb()})
    return results


def mapping(settings: Settings) -> list[dict]:
    """The same rounds at every chunk and on several devices: times, and how far the weights come out apart."""
    if jax.default_backend() == "cpu" and jax.device_count() < max(settings.devices):
        return in_own_process(mapping, settings, max(settings.devices))
    data, method = workload(settings)
    key, state, variants = jax.random.key(settings.seed), start_of(method, settings.seed), {}
    for devices in (d for d in settings.devices if d <= jax.device_count()):
        mesh = clients.make_mesh(devices)
        arrays = replicated(data.cohorts[COHORT].arrays, mesh)  # once, not in every round
        here = {COHORT: dataclasses.replace(data.cohorts[COHORT], arrays=arrays)}
        rounds = chosen(dataclasses.replace(data, cohorts=here), settings)
        inputs = replicated((state, rounds, key), mesh)
        for chunk in (c for c in settings.chunks if c == 1 or c * devices <= settings.per_round):
            over = OverClients(chunk, mesh if devices > 1 else None)
            variants[devices, chunk] = ours(method, over, *inputs)[0]
    ends = {where: jax.device_get(after(v).server["params"]) for where, v in variants.items()}
    first, times, results = next(iter(ends.values())), timings(variants, settings.repetitions), []
    for devices, chunk in variants:
        cpu, wall = median(times[devices, chunk])
        row = {"devices": devices, "chunk": chunk, "CPU ms": cpu, "ms": wall}
        results.append(row | {"difference": max_difference(ends[devices, chunk], first)})
    return results


def skew(settings: Settings) -> list[dict]:
    """Clients of very different sizes: the share of steps spent waiting for the longest of a chunk, and the time."""
    labels = synthetic(settings)["label"]
    data, method = workload(settings, partition.dirichlet(labels, settings.clients, settings.alpha, settings.seed))
    key, rounds, state = jax.random.key(settings.seed), chosen(data, settings), start_of(method, settings.seed)
    variants = {c: ours(method, OverClients(c), state, rounds, key)[0] for c in settings.chunks}
    times = timings(variants, settings.repetitions)
    steps = [-(-np.asarray(r.cohorts[COHORT].count) // settings.batch_size) for r in rounds]
    rng, results = np.random.default_rng(settings.seed), []
    shuffled = [rng.permutation(s) for s in steps]
    for chunk in settings.chunks:
        cpu, wall = median(times[chunk])
        row = {"chunk": chunk, "own steps per round": float(np.mean([s.sum() for s in steps]))}
        row |= {"wasted share": wasted(steps, chunk), "wasted if not sorted": wasted(shuffled, chunk)}
        results.append(row | {"CPU ms": cpu, "ms": wall})
    return results


def synthetic(settings: Settings) -> dict[str, np.ndarray]:
    """Random bytes as images [E, 784], labels [E] int32."""
    rng = np.random.default_rng(settings.seed)
    total = settings.clients * settings.examples
    pixels = rng.integers(0, 256, (total, 784), np.uint8)
    return {"x": pixels, "label": rng.integers(0, 10, total).astype(np.int32)}


def network(settings: Settings) -> Model:
    return mlp.classifier(settings.widths, 10)


def workload(settings: Settings, owned: Sequence[np.ndarray] | None = None) -> tuple[FederatedData, Method]:
    """FedAvg of the classifier. owned: rows of each client; None gives each the same number."""
    owner = np.repeat(np.arange(settings.clients), settings.examples) if owned is None else owned
    data = FederatedData.from_arrays(synthetic(settings), owner)
    config = fedavg.FedAvgConfig(client_lr=settings.client_lr, batch_size=settings.batch_size)
    identity = Model(init=lambda key, x: {}, apply=lambda params, x: x)
    return data, fedavg.build(config, data, {"x": network(settings)}, identity)


def chosen(data: FederatedData, settings: Settings) -> list[RoundData]:
    return rounds_of(data, settings.per_round, settings.rounds, settings.seed)


def scanned(method: Method, chunk: int, rounds: Sequence[RoundData], key) -> Callable:
    """(state, arrays) -> (state, metrics) of all rounds in one program."""
    one_round, first = method._replace(over=OverClients(chunk)).round, rounds[0].cohorts[COHORT]
    fields = ("index", "weight", "rows", "count")
    stacked = {f: np.stack([getattr(r.cohorts[COHORT], f) for r in rounds]) for f in fields}

    def many(state, arrays):
        with_arrays = lambda taken: RoundData({COHORT: dataclasses.replace(first, arrays=arrays, **taken)})
        return jax.lax.scan(lambda state, taken: one_round(state, with_arrays(taken), key), state, stacked)

    return jax.jit(many, donate_argnums=0)


def _weights(end: FedState | tuple) -> PyTree:
    return end.server["params"]["x"] if isinstance(end, FedState) else end[0]


def wasted(steps: Sequence[np.ndarray], chunk: int) -> float:
    """The share of executed steps that a client spends waiting for the longest of its chunk. steps: [C] per round."""
    own = sum(s.sum() for s in steps)
    executed = sum(chunk * s[i : i + chunk].max() for s in steps for i in range(0, len(s), chunk))
    return float(1 - own / executed)
