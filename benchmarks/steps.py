"""A client's local training compared with the same in PyTorch: same weights, batch, losses and optimiser, same cores.

A client owns one batch and takes as many epochs as there are steps, so that shuffling changes nothing. Its whole update
is timed, from the server's weights to what it sends; both sides are processes that wait for each other (see peers/).
"""

import dataclasses
import json
import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.peers import processes
from benchmarks.peers.comparison import statistics
from benchmarks.peers.processes import HERE, Peer, PeerError, ask, environment, started
from benchmarks.timing import in_own_process
from fedjax_mm.data import FederatedData
from fedjax_mm.federate import Method
from fedjax_mm.methods import feddat, fedmekt, layerwise
from fedjax_mm.methods.feddat.vqa_tuning import Training
from fedjax_mm.models import adapters, autoencoder, bert, vilt, vit
from fedjax_mm.types import PyTree

Name = Literal["FedMEKT", "layer-wise", "end-to-end", "FedDAT", "FedDAT released"]
OURS = Peer(HERE / "our_steps.py")
TORCH = Peer(HERE / "torch_steps.py", processes.TORCH)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Which steps, of what size, and on how many cores."""

    names: tuple[Name, ...] = ("FedMEKT", "layer-wise", "end-to-end", "FedDAT", "FedDAT released")
    """Steps that are measured. In "FedDAT released" PyTorch makes three passes, as the authors' code; we make two."""
    python: str | None = None
    """Python interpreter that has torch; None takes the environment of the peer torch."""
    cores: tuple[int, ...] = (1, 2)
    """Numbers of cores that both sides are pinned to."""
    steps: int = 10
    """Steps of a client's update."""
    batch_size: int = 16
    """Examples in a batch of the transformers; FedMEKT has 24 windows and 24 proxy windows."""
    width: int = 192
    """Width of the transformers, whose heads are 64 wide."""
    depth: int = 4
    """Layers of the transformers."""
    image: int = 64
    """Pixels of the side of an image, in patches of 8x8 (layer-wise) or 16x16 (FedDAT)."""
    length: int = 24
    """Tokens of a text."""
    window: int = 50
    """Time steps of a window."""
    repetitions: int = 7
    """Timings of each variant; their median is reported."""
    seed: int = 0
    """Seed of the data and the weights."""
    out: str = "runs/throughput_steps"
    """Folder that both sides read from and write to."""


class Task(NamedTuple):
    """A method with one client that owns one batch; `given` is what PyTorch starts from, `about` what it must know."""

    method: Method
    data: FederatedData
    given: Callable[[Any, Any], Mapping[str, PyTree]]  # of the server's message and the client's state
    about: Mapping[str, float]


def client_steps(settings: Settings) -> list[dict]:
    """A row per step and number of cores: milliseconds per step, and ratios PyTorch / ours, with quartiles.

    `loss` is the mean over the steps: where it is PyTorch's, gradients and optimiser are.
    """
    try:
        python = settings.python or environment("torch", TORCH, processes.Settings())
        if not pathlib.Path(python).exists():
            raise PeerError(f"there is no {python}")
    except PeerError as error:
        return [{"step": name, "skipped": str(error)} for name in settings.names]
    in_own_process(hand_over, settings, devices=1)  # JAX's threads and a fork for the peers do not go together
    rows = []
    for name in settings.names:
        for cores in settings.cores:
            folder = pathlib.Path(settings.out) / name
            rows.append({"step": name, "cores": cores, **side_by_side(settings, folder, cores, python)})
    return rows


def side_by_side(settings: Settings, folder: pathlib.Path, cores: int, python: str) -> dict:
    """The row of one step on so many cores."""
    pinned, times, losses = processes.Settings(cores=cores), {}, {}
    with (
        started(OURS, sys.executable, folder, "ours", pinned) as us,
        started(TORCH, python, folder, "torch", pinned) as them,
    ):
        sides = {"ours": us, "torch": them}
        for turn in range(settings.repetitions + 1):  # the first is not counted
            for side in list(sides)[:: 1 if turn % 2 else -1]:
                answer = ask(sides[side], "run 1")
                times.setdefault(side, []).append((turn, *(answer[c] / settings.steps for c in ("cpu", "wall"))))
        for side, running in sides.items():
            path = folder / f"{side}_loss.npz"
            ask(running, f"save {path.resolve()}")
            losses[f"{side} loss"] = float(np.load(path)["loss"])
    row = {}
    for side in sides:
        of = statistics(times[side], times["ours"])
        row |= {f"{side} {k}": v for k, v in of.items() if side != "ours" or "ratio" not in k}
    return row | losses


def hand_over(settings: Settings) -> list[dict]:
    """Writes for each step what both sides read: given.npz, arrays by path, and about.json."""
    for name in settings.names:
        folder, task = pathlib.Path(settings.out) / name, TASKS[name](settings)
        folder.mkdir(parents=True, exist_ok=True)
        _, (download, state, data, _) = update_of(task, settings)
        given = {**task.given(download, state), "arrays": data.arrays}
        paths = jax.tree_util.tree_leaves_with_path(given)
        leaves: dict[str, Any] = {
            jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(x) for path, x in paths
        }
        np.savez(folder / "given.npz", **leaves)
        about = {"name": name, "steps": settings.steps, **task.about, "settings": dataclasses.asdict(settings)}
        (folder / "about.json").write_text(json.dumps(about))
    return []


def update_of(task: Task, settings: Settings) -> tuple[Callable, tuple]:
    """(the client's update, its arguments)."""
    key = jax.random.key(settings.seed)
    state, data = jax.jit(task.method.init)(key), task.data.client("all", 0)
    download = task.method.server.download(state.server, task.data.public)["all"]
    own = jax.tree.map(lambda x: x[0], state.clients["all"])
    return task.method.cohorts["all"].update, (download, own, data, key)


def _fedmekt(settings: Settings) -> Task:
    rng, own = np.random.default_rng(settings.seed), 24
    features = {"a": 3, "b": 8}
    draw = lambda f: rng.normal(size=(own, settings.window, f)).astype(np.float32)
    arrays, public = ({m: draw(f) for m, f in features.items()} for _ in range(2))
    data = FederatedData.from_arrays(arrays, [np.arange(own)], public=public)
    ae = autoencoder.split_lstm(features, hidden=32, width=16, readout=True)
    config = fedmekt.FedMEKTConfig(batch_size=own, proxy_batch=own, epochs=settings.steps)
    labelled = {**public, "labels": np.zeros((own, settings.window), np.int32)}
    method = fedmekt.build(config, data, ae, labelled, 2)
    given = lambda download, state: {"params": state["params"], "teacher": download.sent, "public": public}
    about = {"lr": config.client_lr, "alpha": config.alpha, "temperature": config.temperature}
    return Task(method, data, given, about)


def _layerwise(settings: Settings, plan: Literal["layer-wise", "end-to-end"]) -> Task:
    rng, batch, vocabulary = np.random.default_rng(settings.seed), settings.batch_size, 4000
    tokens = rng.integers(1, vocabulary, (batch, settings.length)).astype(np.int32)
    tokens[np.arange(settings.length) >= rng.integers(4, settings.length + 1, batch)[:, None]] = 0
    images = rng.integers(0, 256, (batch, settings.image, settings.image, 3), np.uint8)
    data = FederatedData.from_arrays({"image": images, "text": tokens}, [np.arange(batch)])
    heads = settings.width // 64
    shape: dict[str, Any] = {"dim": settings.width, "depth": settings.depth, "heads": heads, "mlp": 4 * settings.width}
    encoders = {
        "image": vit.encoder(settings.image, 8, **shape),
        "text": bert.encoder(vocabulary, positions=settings.length, dropout=0.0, **shape),
    }
    config = layerwise.LayerwiseConfig(
        plan,
        rounds=(1, 1),
        encoder_lr=dict.fromkeys(encoders, (3e-3, 3e-3)),
        head_lr=3e-3,
        batch_size=batch,
        epochs=settings.steps,
        projection_hidden=1024,
        head_dropout=0.0,
        crop=None,
    )
    method = layerwise.build(config, data, encoders)[-1].method
    frozen = settings.depth // 2 if plan == "layer-wise" else 0
    rate = config.head_lr * batch / 256
    about = {"heads": heads, "patch": 8, "frozen": frozen, "lr": rate, "temperature": config.temperature}
    about |= {"decay": config.weight_decay, "projection_decay": config.projection_decay}
    whole = lambda download, state: {"sent": download.sent, "held": download.held}
    return Task(method, data, whole, about)


def _feddat(settings: Settings, released: bool) -> Task:
    rng, batch, answers, vocabulary = np.random.default_rng(settings.seed), settings.batch_size, 20, 4000
    question = rng.integers(1, vocabulary, (batch, settings.length)).astype(np.int32)
    question[np.arange(settings.length) >= rng.integers(4, settings.length + 1, batch)[:, None]] = 0
    target = np.eye(answers, dtype=np.float32)[rng.integers(0, answers, batch)]
    images = rng.integers(0, 256, (batch, settings.image, settings.image, 3), np.uint8)
    data = FederatedData.from_arrays({"image": images, "question": question, "target": target}, [np.arange(batch)])
    heads = settings.width // 64
    shape: dict[str, Any] = {"dim": settings.width, "depth": settings.depth, "heads": heads, "mlp": 4 * settings.width}
    model = vilt.encoder(settings.image, 16, vocabulary, settings.length, std=0.5 * settings.width**-0.5, **shape)
    trunk = model.init(
        jax.random.key(settings.seed), {k: jnp.asarray(v[:1]) for k, v in data.cohorts["all"].arrays.items()}
    )
    training = Training(lr=1e-2, batch_size=batch, epochs=settings.steps)
    config = feddat.FedDATConfig(training)
    adapter = lambda key: adapters.adapter(key, settings.depth, settings.width)
    method = feddat.build(config, data, model, trunk, adapter, adapters.answers(answers))
    given = lambda download, state: {
        "trunk": download.held,
        "received": download.sent["adapter"],
        "local": state["adapter"],
        "head": state["head"],
    }
    about = {"heads": heads, "patch": 16, "lr": training.lr, "decay": training.weight_decay}
    about |= {"horizon": training.horizon, "warmup": training.warmup, "temperature": config.temperature}
    return Task(method, data, given, about | {"released": released})


TASKS: Mapping[Name, Callable[[Settings], Task]] = {
    "FedMEKT": _fedmekt,
    "layer-wise": lambda settings: _layerwise(settings, "layer-wise"),
    "end-to-end": lambda settings: _layerwise(settings, "end-to-end"),
    "FedDAT": lambda settings: _feddat(settings, False),
    "FedDAT released": lambda settings: _feddat(settings, True),
}
