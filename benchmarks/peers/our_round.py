"""fedjax_mm's round as `run.train` runs it, without evaluation and files; one client at a time on a CPU, else all."""

import jax
import jax.numpy as jnp
import protocol
import workload

from fedjax_mm.data import FederatedData
from fedjax_mm.methods import fedavg
from fedjax_mm.models import Model
from fedjax_mm.models.layers import Conv, as_model
from fedjax_mm.types import OverClients


def apply(layers, x):
    """Logits [B, K] of the workload's network with the convolution of fedjax_mm.models."""
    for i, (weight, bias) in enumerate(layers):
        if weight.ndim == 4:
            conv = as_model(Conv(weight.shape[-1], kernel=weight.shape[0], padding=0))
            x = conv.apply({"kernel": weight, "bias": bias}, x)
        else:
            if x.ndim == 4:
                batch, height, width, features = x.shape
                x = x.reshape(batch, height // 2, 2, width // 2, 2, features).max((2, 4)).reshape(batch, -1)
            x = x @ weight + bias[None]
        if i + 1 < len(layers):
            x = jax.nn.relu(x)
    return x


def make(folder):
    task = workload.read(folder)
    clients = [task.rows_of(j) for j in range(len(task.offsets) - 1)]
    data = FederatedData.from_arrays({"x": task.x, "label": task.label}, clients)
    config = fedavg.FedAvgConfig(client_lr=task.client_lr, batch_size=task.batch_size)
    start = [(jnp.asarray(weight), jnp.asarray(bias)) for weight, bias in task.layers]
    network = Model(init=lambda key, x: start, apply=apply)
    identity = Model(init=lambda key, x: {}, apply=lambda params, x: x)
    method = fedavg.build(config, data, {"x": network}, identity)
    at_once = 1 if jax.default_backend() == "cpu" else len(task.taking_part(0))
    method = method._replace(over=OverClients(at_once))
    key, step = jax.random.key(0), jax.jit(method.round, donate_argnums=0)
    state, number = jax.jit(method.init)(key), 0
    coming = data.round({"all": task.taking_part(0)})

    def run(rounds):
        nonlocal state, number, coming
        for _ in range(rounds):
            state, metrics = step(state, coming, key)
            number += 1
            coming = data.round({"all": task.taking_part(number)})
            jax.device_get(metrics)
        jax.block_until_ready(state)

    def save(path):
        workload.save_layers(jax.device_get(state.server["params"]["x"]), path)

    return protocol.timed(run), save


if __name__ == "__main__":
    protocol.serve(make)
