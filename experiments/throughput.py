"""How fast a round is: against a loop written by hand and clients one after another, with more and skewed clients.

    python -m experiments.throughput
    python -m experiments.throughput --only handwritten --repetitions 40

The workload is the 2NN of McMahan 2017 on synthetic data of MNIST's shape. Variants are timed in turn within one
process, every other time in reverse order (A B B A), so that a busy machine slows all of them alike; CPU time is the
whole process's, all threads together. A round is timed as `run.train` runs it, without evaluation and files.
"""

import dataclasses
import json
import os
import pathlib
import platform
import resource
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from experiments import compare, fedmekt, problems
from fedjax_mm import clients, records, report
from fedjax_mm.data import FederatedData, partition
from fedjax_mm.federate import remap
from fedjax_mm.methods import fedavg
from fedjax_mm.models import Model, mlp
from fedjax_mm.types import ClientData, FedState, Mean, Method, OverClients, PyTree, RoundData

Section = Literal["handwritten", "clients_per_round", "mapping", "skew", "one_after_another"]
COHORT = "all"  # the name FederatedData gives a cohort that is alone


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of the measurement."""

    only: tuple[Section, ...] = ("handwritten", "clients_per_round", "mapping", "skew", "one_after_another")
    clients: int = 100
    examples: int = 60
    """Examples of each client; where sizes are skewed, their mean."""
    per_round: int = 10
    batch_size: int = 20
    widths: tuple[int, ...] = (200, 200)
    """Hidden layers of the classifier."""
    client_lr: float = 0.1
    rounds: int = 20
    """Rounds in one timing."""
    repetitions: int = 15
    """Timings of each variant; reported is their median."""
    chunks: tuple[int, ...] = (1, 2, 5, 10)
    """Clients vmapped at a time."""
    devices: tuple[int, ...] = (1, 2, 4)
    """Devices to spread clients over; on CPU they are forced host devices, in a process of their own."""
    populations: tuple[int, ...] = (1000, 10000)
    taking_part: tuple[int, ...] = (1, 10, 100, 1000)
    alpha: float = 0.1
    """Dirichlet concentration of classes over clients where sizes are skewed."""
    seed: int = 0
    out: str = "runs/throughput"


class Timed(NamedTuple):
    """What is timed: `state = step(state, input)` over all inputs, always from a copy of the same start."""

    step: Callable[[PyTree, Any], PyTree]
    start: PyTree
    inputs: Sequence[Any]
    rounds: int  # in one timing


def main(settings: Settings) -> pathlib.Path:
    """Measures, prints a table per section and writes throughput.json, whose path is returned."""
    out = pathlib.Path(settings.out)
    out.mkdir(parents=True, exist_ok=True)
    load, sections = [os.getloadavg()], {}
    for name in settings.only:
        sections[name] = SECTIONS[name](settings)
        load.append(os.getloadavg())
        print(f"{name} (load average {load[-1][0]:.1f} on {os.cpu_count()} CPUs)")
        report.show(sections[name], COLUMNS.get(name))
    result = {
        "settings": dataclasses.asdict(settings),
        "versions": records.versions(),
        "device": records.device(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "load_average": load,
        "sections": sections,
    }
    path = out / "throughput.json"
    path.write_text(json.dumps(result, indent=1))
    print(f"written to {path}")
    return path


def handwritten(settings: Settings) -> list[dict]:
    """Our round beside one written by hand for this workload alone, each round dispatched by itself or all scanned.

    Raises ArithmeticError where the weights differ by more than 1e-5 after a round, or more than 1e-3 after all rounds
    (training magnifies the last digit).
    """
    data, method = workload(settings)
    key, rounds, state = jax.random.key(settings.seed), rounds_of(data, settings), start_of(method, settings)
    index = np.stack([r.cohorts[COHORT].index for r in rounds])
    own = data.cohorts[COHORT]
    fixed = (own.arrays, jnp.asarray(own.rows.reshape(settings.clients, settings.examples)), key)
    begin = (state.server["params"]["x"], jnp.int32(0))  # the same weights, and the number of the round
    results = []
    for chunk in settings.chunks:
        by_hand = round_by_hand(settings, chunk)
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
        key, state = jax.random.key(settings.seed), start_of(method, settings)
        for taking_part in (c for c in settings.taking_part if c <= population):
            rounds = rounds_of(data, dataclasses.replace(settings, per_round=taking_part, rounds=1))
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
        return in_own_process(settings)
    data, method = workload(settings)
    key, state, variants = jax.random.key(settings.seed), start_of(method, settings), {}
    for devices in (d for d in settings.devices if d <= jax.device_count()):
        mesh = clients.make_mesh(devices)
        arrays = replicated(data.cohorts[COHORT].arrays, mesh)  # once, not in every round
        here = {COHORT: dataclasses.replace(data.cohorts[COHORT], arrays=arrays)}
        rounds = rounds_of(dataclasses.replace(data, cohorts=here), settings)
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
    key, rounds, state = jax.random.key(settings.seed), rounds_of(data, settings), start_of(method, settings)
    variants = {c: ours(method, OverClients(c), state, rounds, key)[0] for c in settings.chunks}
    times = timings(variants, settings.repetitions)
    steps = [-(-r.cohorts[COHORT].count // settings.batch_size) for r in rounds]
    rng, results = np.random.default_rng(settings.seed), []
    shuffled = [rng.permutation(s) for s in steps]
    for chunk in settings.chunks:
        cpu, wall = median(times[chunk])
        row = {"chunk": chunk, "own steps per round": float(np.mean([s.sum() for s in steps]))}
        row |= {"wasted share": wasted(steps, chunk), "wasted if not sorted": wasted(shuffled, chunk)}
        results.append(row | {"CPU ms": cpu, "ms": wall})
    return results


def one_after_another(settings: Settings) -> list[dict]:
    """A round of each method beside its clients one after another: a jitted call per client, then the server's.

    The digits' halves with 10, 10 and 10 clients of which 9 take part, at the settings of the comparison.
    """
    results = []
    autoencoding = fedmekt.variants(fedmekt.PRESETS["digits"])
    methods = {"FedAvg": compare.variants("digits")["FedAvg"], "MMFL": autoencoding["FedAvg"]}
    for name, variant in (methods | {"FedMEKT": autoencoding["FedMEKT"]}).items():
        problem = problems.load("digits", None, "A10_B10_AB10", 0.3, settings.seed)
        method, data, key = variant.build(problem), problem.data, jax.random.key(settings.seed)
        state = start_of(method, settings)
        chosen = (clients.choose(data.sizes, 3, r, settings.seed) for r in range(max(1, settings.rounds // 4)))
        rounds = [data.round(who) for who in chosen]
        variants = {f"chunk {chunk}": ours(method, OverClients(chunk), state, rounds, key)[0] for chunk in (1, 3)}
        variants["one after another"] = Timed(serial(method, key), state, rounds, len(rounds))
        ends = {how: after(timed).server for how, timed in variants.items()}
        difference = max(max_difference(end, ends["chunk 1"]) for end in ends.values())
        times = timings(variants, max(3, settings.repetitions // 3))
        row = {"method": name, "difference": difference}
        for how in variants:
            cpu, wall = median(times[how])
            row |= {f"{how} CPU ms": cpu, f"{how} ms": wall}
        results.append(row)
    return results


def serial(method: Method, key) -> Callable[[FedState, RoundData], FedState]:
    """The round as a loop in Python over its clients, with the same draws as the engine's."""
    stay = lambda server, public, key: (server, {})
    begin, download = jax.jit(method.server.begin or stay), jax.jit(method.server.download)
    server_update = jax.jit(method.server.update)
    updates = {name: jax.jit(cohort.update) for name, cohort in method.cohorts.items()}

    def one_round(state: FedState, data: RoundData) -> FedState:
        round_key = jax.random.fold_in(jax.random.fold_in(key, 1), state.round)
        at_server, _ = begin(state.server, data.public, jax.random.fold_in(round_key, 1))
        downloads, uploads, states = download(at_server, data.public), {}, dict(state.clients)
        for name, taken in data.cohorts.items():
            sent = []
            cohort_key = jax.random.fold_in(round_key, zlib.crc32(name.encode()))
            for i, index in enumerate(taken.index):
                client_key = jax.random.fold_in(jax.random.fold_in(cohort_key, index), 0)
                own = (taken.rows[i], jnp.int32(taken.count[i]), jnp.float32(taken.weight[i]))
                seen = ClientData(taken.arrays, *own, data.public, taken.uniform)
                mine = jax.tree.map(lambda x, index=index: x[index], states[name])
                upload, new, _ = updates[name](downloads[name], mine, seen, client_key)
                states[name] = jax.tree.map(lambda x, n, index=index: x.at[index].set(n), states[name], new)
                sent.append(upload)
            uploads[name] = {slot: _mean([upload[slot] for upload in sent]) for slot in sent[0]}
        new, _ = server_update(at_server, uploads, data.public, jax.random.fold_in(round_key, 0))
        return FedState(new, states, state.round + 1)

    return one_round


def _mean(sent: Sequence[Mean]) -> Mean:
    total = sum(s.weight for s in sent)
    return Mean(
        jax.tree.map(
            lambda *x: sum(s.weight * v for s, v in zip(sent, x, strict=True)) / total, *[s.value for s in sent]
        ),
        total,
    )


SECTIONS: Mapping[str, Callable[[Settings], list[dict]]] = {
    "handwritten": handwritten,
    "clients_per_round": clients_per_round,
    "mapping": mapping,
    "skew": skew,
    "one_after_another": one_after_another,
}
COLUMNS = {  # of the printed table; the file has all
    "handwritten": ("chunk", "rounds", "ours CPU ms", "hand CPU ms", "CPU ratio", "CPU low", "CPU high", "ratio")
}


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


def start_of(method: Method, settings: Settings) -> FedState:
    return jax.jit(method.init)(jax.random.key(settings.seed + 1))


def rounds_of(data: FederatedData, settings: Settings) -> list[RoundData]:
    chosen = (clients.choose(data.sizes, settings.per_round, r, settings.seed) for r in range(settings.rounds))
    return [data.round(who) for who in chosen]


def round_by_hand(settings: Settings, chunk: int) -> Callable:
    """(weights, round), participants [C], arrays, rows [N, M], key -> the next (weights, round): FedAvg and no more.

    Equal clients with whole batches, no padding, no check, no metrics. Its shuffles are ours, drawn from the same keys.
    """
    apply, batch_size, rate = network(settings).apply, settings.batch_size, settings.client_lr

    def loss(weights, x, label):
        return optax.softmax_cross_entropy_with_integer_labels(apply(weights, x), label).mean()

    def client(weights, index, arrays, rows, key):
        key = jax.random.fold_in(key, index)
        for part in (0, 0, 0):  # local training, first epoch, shuffle
            key = jax.random.fold_in(key, part)
        order = rows[index][jnp.argsort(jax.random.uniform(key, (settings.examples,)))]

        def step(weights, batch):
            x, label = (jnp.take(arrays[name], batch, axis=0, mode="clip") for name in ("x", "label"))
            gradient = jax.grad(loss)(weights, x, label)
            return jax.tree.map(lambda w, g: w - rate * g, weights, gradient), None

        return jax.lax.scan(step, weights, order.reshape(-1, batch_size))[0]

    def one_round(state, index, arrays, rows, key):
        weights, number = state
        key = jax.random.fold_in(jax.random.fold_in(key, 1), number)
        key = jax.random.fold_in(key, zlib.crc32(COHORT.encode()))
        share = 1 / len(index)

        def some(total, index):
            if chunk == 1:
                trained = client(weights, index[0], arrays, rows, key)
                return jax.tree.map(lambda t, w: t + share * w, total, trained), None
            trained = jax.vmap(client, (None, 0, None, None, None))(weights, index, arrays, rows, key)
            add = lambda t, w: t + jnp.tensordot(jnp.full(chunk, share), w, 1, precision="highest")
            return jax.tree.map(add, total, trained), None

        zeros = jax.tree.map(jnp.zeros_like, weights)
        return jax.lax.scan(some, zeros, index.reshape(-1, chunk))[0], number + 1

    return one_round


def ours(method: Method, over: OverClients, state: FedState, rounds: Sequence[RoundData], key) -> tuple[Timed, dict]:
    """(the engine's round as run.train runs it, what compiling took and what it holds besides its arguments)."""
    begun = time.perf_counter()
    step = jax.jit(remap(method, over).round, donate_argnums=0).lower(state, rounds[0], key).compile()
    cost = {"compile s": time.perf_counter() - begun}
    cost["temporary MB"] = step.memory_analysis().temp_size_in_bytes / 1e6
    return Timed(lambda state, taken: step(state, taken, key)[0], state, rounds, len(rounds)), cost


def scanned(method: Method, chunk: int, rounds: Sequence[RoundData], key) -> Callable:
    """(state, arrays) -> (state, metrics) of all rounds in one program."""
    one_round, first = remap(method, OverClients(chunk)).round, rounds[0].cohorts[COHORT]
    fields = ("index", "weight", "rows", "count")
    stacked = {f: np.stack([getattr(r.cohorts[COHORT], f) for r in rounds]) for f in fields}

    def many(state, arrays):
        with_arrays = lambda taken: RoundData({COHORT: dataclasses.replace(first, arrays=arrays, **taken)})
        return jax.lax.scan(lambda state, taken: one_round(state, with_arrays(taken), key), state, stacked)

    return jax.jit(many, donate_argnums=0)


def after(timed: Timed) -> PyTree:
    """The state after all inputs."""
    return _run(timed, jax.tree.map(jnp.copy, timed.start))


def _weights(end: FedState | tuple) -> PyTree:
    return end.server["params"]["x"] if isinstance(end, FedState) else end[0]


def timings(variants: Mapping[Any, Timed], repetitions: int) -> dict[Any, np.ndarray]:
    """[repetitions, 2] milliseconds per round of each variant, CPU and wall, after one run that is not counted."""
    taken = {name: [] for name in variants}
    for repetition in range(repetitions + 1):
        for name in list(variants)[:: 1 if repetition % 2 else -1]:
            start = jax.block_until_ready(jax.tree.map(jnp.copy, variants[name].start))
            cpu, wall = time.process_time(), time.perf_counter()
            _run(variants[name], start)
            taken[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    return {name: 1e3 * np.array(times[1:]) / variants[name].rounds for name, times in taken.items()}


def _run(timed: Timed, state: PyTree) -> PyTree:
    for x in timed.inputs:
        state = timed.step(state, x)
    return jax.block_until_ready(state)


def median(times: np.ndarray) -> list[float]:
    return np.median(times, axis=0).tolist()


def wasted(steps: Sequence[np.ndarray], chunk: int) -> float:
    """The share of executed steps that a client spends waiting for the longest of its chunk. steps: [C] per round."""
    own = sum(s.sum() for s in steps)
    executed = sum(chunk * s[i : i + chunk].max() for s in steps for i in range(0, len(s), chunk))
    return float(1 - own / executed)


def max_difference(a: PyTree, b: PyTree) -> float:
    return max(jax.tree.leaves(jax.tree.map(lambda x, y: float(np.abs(np.asarray(x) - np.asarray(y)).max()), a, b)))


def replicated(tree: PyTree, mesh: jax.sharding.Mesh) -> PyTree:
    return jax.device_put(tree, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))


def peak_rss_mb() -> float:
    """The most memory this process has held so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def in_own_process(settings: Settings) -> list[dict]:
    """What `mapping` returns in a process that has enough forced host devices."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={max(settings.devices)}"
    code = f"import json; from experiments.throughput import *; print(json.dumps(mapping({settings!r})))"
    command, environment = [sys.executable, "-c", code], {**os.environ, "XLA_FLAGS": flags}
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main(tyro.cli(Settings))
