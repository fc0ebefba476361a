"""The FEMNIST experiment whose time FLUTE publishes: 1,500 rounds of 10 of 3,400 clients, tested every 50 rounds.

FLUTE's README has 8 min 22 s for it (and 5 h 50 min for FedML), on GPUs of its own; its network has dropout besides.
The pictures here are noise in FEMNIST's shape and number, at as many clients, so that only the time means something.
"""

import dataclasses
import time

import jax
import numpy as np
from flax import linen as nn

from fedjax_mm import run
from fedjax_mm.data import FederatedData
from fedjax_mm.methods import fedavg
from fedjax_mm.models import Model, heads
from fedjax_mm.models.layers import Conv, as_model

PUBLISHED = {"FLUTE (NCCL), as published": 502.0, "FedML 0.7.303 (MPI), as FLUTE published": 20_992.0}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is trained, by how many."""

    clients: int = 3400
    """Clients of the population."""
    examples: int = 671_585
    """Training examples of all clients."""
    test: int = 77_483
    """Test examples."""
    per_round: int = 10
    """Clients that take part in a round, all vmapped at a time where there is an accelerator."""
    batch_size: int = 20
    """Examples of a batch."""
    rounds: int = 1500
    """Rounds."""
    evaluate_every: int = 50
    """Rounds between two tests."""
    calls: tuple[int, ...] = (1, 50)
    """Rounds in one call of the device (`rounds_per_call`)."""
    seed: int = 0
    """Seed of the data, the weights and the participants."""


class Network(nn.Module):
    """Two convolutions, a maximum over 2 x 2, and a layer of 128."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for features in (32, 64):
            x = nn.relu(Conv(features, padding=0)(x))
        batch, height, width, features = x.shape
        x = x.reshape(batch, height // 2, 2, width // 2, 2, features).max((2, 4)).reshape(batch, -1)
        return nn.relu(nn.Dense(128)(x))


def femnist(settings: Settings) -> list[dict]:
    """A row for each number of rounds in a call: seconds of the whole run, compilation and tests too."""
    if settings.examples < settings.clients:
        raise ValueError(f"{settings.examples} examples are fewer than the {settings.clients} clients; give each one")
    rng = np.random.default_rng(settings.seed)
    noise = lambda n: {"x": rng.integers(0, 256, (n, 28, 28, 1), np.uint8), "label": rng.integers(0, 62, n, np.int32)}
    share = rng.lognormal(0, 0.4, settings.clients)
    owner = np.sort(rng.choice(settings.clients, settings.examples, p=share / share.sum()))
    owner[: settings.clients] = np.arange(settings.clients)
    data, test = FederatedData.from_arrays(noise(settings.examples), owner), noise(settings.test)
    config = fedavg.FedAvgConfig(client_lr=0.1, batch_size=settings.batch_size)
    network = as_model(Network())
    scaled = Model(network.init, lambda params, x: network.apply(params, x / 255))
    method = fedavg.build(config, data, {"x": scaled}, heads.linear(62))
    given = {name: getattr(settings, name) for name in ("rounds", "per_round", "evaluate_every", "seed")}
    given |= {"chunk": 1 if jax.default_backend() == "cpu" else settings.per_round, "progress": False}
    rows = []
    for number in settings.calls:
        begun = time.perf_counter()
        state = run.train(method, data, test=test, rounds_per_call=number, log=lambda line: None, **given)
        jax.block_until_ready(state)
        seconds = time.perf_counter() - begun
        row = {"what": "ours", "rounds in a call": number, "s": seconds}
        rows.append(row | {"ms a round": 1e3 * seconds / settings.rounds})
    return rows + [{"what": name, "s": seconds} for name, seconds in PUBLISHED.items()]
