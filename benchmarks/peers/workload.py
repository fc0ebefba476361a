"""What every peer trains, and on what: made once from one seed, read by all from the same file."""

import dataclasses
import json
import pathlib
from collections.abc import Sequence

import numpy as np

Layers = Sequence[tuple[np.ndarray, np.ndarray]]
"""(weight, bias) per layer: convolutions [3, 3, in, out] without padding, then dense ones [in, out], relu between them.
Before the first dense layer comes a 2x2 max pool, flattened as (row, column, channel), where there are convolutions."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """A network, and who owns how much."""

    shape: tuple[int, ...]  # of an example
    channels: tuple[int, ...]
    hidden: tuple[int, ...]
    classes: int
    clients: int
    batches: tuple[int, int]  # least and most that a client owns: whole ones, so that nobody pads
    batch_size: int
    per_round: int
    rounds: int  # in one timing
    client_lr: float = 0.1
    pool: int = 6000  # examples of which a client's are drawn, so that memory stays small


KINDS = {
    # The 2NN of McMahan et al. 2017.
    "mlp": Kind((784,), (), (200, 200), 10, 100, (3, 3), 20, 10, rounds=20),
    # fedjax's and Reddi et al. 2021's EMNIST network without its dropout, as many clients as the federated EMNIST.
    "femnist_cnn": Kind((28, 28, 1), (32, 64), (128,), 62, 3400, (1, 5), 20, 10, rounds=2),
    # pfl's CIFAR-10 benchmark: its `simple_cnn` without dropout, cohort and users.
    "cifar_cnn": Kind((32, 32, 3), (32, 64), (128,), 10, 1000, (5, 5), 10, 50, rounds=1),
}


@dataclasses.dataclass(frozen=True)
class Workload:
    """Federated averaging of one local epoch of SGD; a client weighs as many as it has examples."""

    x: np.ndarray  # [E, ...] float32
    label: np.ndarray  # [E] int32
    rows: np.ndarray  # int32; those of client j are rows[offsets[j]:offsets[j + 1]]
    offsets: np.ndarray  # [N + 1] int32
    participants: np.ndarray  # [R, C] int32 of round r modulo R
    layers: Layers  # the start
    batch_size: int
    client_lr: float
    cores: int

    def rows_of(self, client: int) -> np.ndarray:
        return self.rows[self.offsets[client] : self.offsets[client + 1]]

    def taking_part(self, round: int) -> np.ndarray:
        return self.participants[round % len(self.participants)]


def make(kind: Kind, seed: int, cores: int = 1, distinct_rounds: int = 40) -> Workload:
    """Normal noise that a random linear map labels: the loss falls, and the labels are no client's own."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((kind.pool, *kind.shape), np.float32)
    label = (x.reshape(kind.pool, -1) @ rng.standard_normal((int(np.prod(kind.shape)), kind.classes))).argmax(-1)
    counts = kind.batch_size * rng.integers(kind.batches[0], kind.batches[1] + 1, kind.clients)
    participants = [rng.choice(kind.clients, kind.per_round, replace=False) for _ in range(distinct_rounds)]
    return Workload(
        x=x,
        label=label.astype(np.int32),
        rows=rng.integers(0, kind.pool, counts.sum(), np.int32),
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int32),
        participants=np.array(participants, np.int32),
        layers=_start(kind, rng),
        batch_size=kind.batch_size,
        client_lr=kind.client_lr,
        cores=cores,
    )


def check(workload: Workload) -> Workload:
    """The same task for three clients of 1, 2 and 3 batches, each of them one example over and over.

    Whatever order a peer shuffles them into, a round of all three gives the same weights.
    """
    counts = workload.batch_size * np.arange(1, 4)
    return dataclasses.replace(
        workload,
        rows=np.repeat(np.arange(3, dtype=np.int32), counts),
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int32),
        participants=np.arange(3, dtype=np.int32)[None],
    )


def _start(kind: Kind, rng: np.random.Generator) -> Layers:
    shape, layers = kind.shape, []
    for features in kind.channels:
        layers.append((3, 3, shape[-1], features))
        shape = (shape[0] - 2, shape[1] - 2, features)
    if kind.channels:
        shape = (shape[0] // 2, shape[1] // 2, shape[2])
    widths = (int(np.prod(shape)), *kind.hidden, kind.classes)
    layers += zip(widths[:-1], widths[1:], strict=True)
    normal = lambda shape: rng.standard_normal(shape, np.float32) / np.sqrt(np.prod(shape[:-1])).astype(np.float32)
    return [(normal(shape), np.zeros(shape[-1], np.float32)) for shape in layers]


def loss(layers: Layers, x: np.ndarray, label: np.ndarray) -> float:
    """Mean cross-entropy, in NumPy: the judge of all peers uses none of their arithmetic."""
    for i, (weight, bias) in enumerate(layers):
        if weight.ndim == 4:
            x = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (1, 2))  # [B, H, W, F, 3, 3]
            x = np.tensordot(x, weight, ((4, 5, 3), (0, 1, 2))) + bias
        else:
            if x.ndim == 4:
                batch, height, width, features = x.shape
                x = x.reshape(batch, height // 2, 2, width // 2, 2, features).max((2, 4)).reshape(batch, -1)
            x = x @ weight + bias
        if i + 1 < len(layers):
            x = np.maximum(x, 0)
    top = x.max(-1, keepdims=True)
    return float((np.log(np.exp(x - top).sum(-1)) + top[:, 0] - x[np.arange(len(x)), label]).mean())


def max_difference(a: Layers, b: Layers) -> float:
    return max(float(np.abs(x - y).max()) for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True))


def write(workload: Workload, folder: str | pathlib.Path) -> None:
    """workload.npz and workload.json."""
    folder, arrays, settings = pathlib.Path(folder), {}, {}
    folder.mkdir(parents=True, exist_ok=True)
    for field in dataclasses.fields(workload):
        value = getattr(workload, field.name)
        if isinstance(value, np.ndarray):
            arrays[field.name] = value
        elif field.name != "layers":
            settings[field.name] = value
    np.savez(folder / "workload.npz", **arrays)
    save_layers(workload.layers, folder / "start.npz")
    (folder / "workload.json").write_text(json.dumps(settings))


def read(folder: str | pathlib.Path) -> Workload:
    """What `write` wrote."""
    folder = pathlib.Path(folder)
    settings = json.loads((folder / "workload.json").read_text())
    return Workload(**np.load(folder / "workload.npz"), layers=read_layers(folder / "start.npz"), **settings)


def save_layers(layers: Layers, path: str | pathlib.Path) -> None:
    np.savez(path, *(array for layer in layers for array in layer))


def read_layers(path: str | pathlib.Path) -> Layers:
    with np.load(path) as arrays:
        flat = [arrays[f"arr_{i}"] for i in range(len(arrays.files))]
    return list(zip(flat[::2], flat[1::2], strict=True))
