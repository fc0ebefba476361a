"""DrJAX: a `drjax.program` of broadcast, map_fn over clients and a weighted mean, jitted.

map_fn is a vmap, so that clients are padded to the longest, and convolutions are XLA's own.
"""

import drjax
import jax
import jax.numpy as jnp
import numpy as np
import protocol
import workload


def apply(layers, x):
    for i, (weight, bias) in enumerate(layers):
        if weight.ndim == 4:
            x = jax.lax.conv_general_dilated(x, weight, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
            x = x + bias
        else:
            if x.ndim == 4:
                x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
                x = x.reshape(len(x), -1)
            x = x @ weight + bias
        if i + 1 < len(layers):
            x = jax.nn.relu(x)
    return x


def make(folder):
    task = workload.read(folder)
    per_round, batch_size, rng = task.participants.shape[1], task.batch_size, np.random.default_rng(0)
    most = int(np.diff(task.offsets).max()) // batch_size
    arrays = {"x": jnp.asarray(task.x), "label": jnp.asarray(task.label)}

    def loss(layers, x, label):
        scores = jax.nn.log_softmax(apply(layers, x))
        return -jnp.take_along_axis(scores, label[:, None], axis=1).mean()

    def one_round(layers, arrays, rows, steps):
        def client(layers, own):
            rows, steps = own

            def step(layers, batch):
                i, batch = batch
                gradient = jax.grad(loss)(layers, arrays["x"][batch], arrays["label"][batch])
                rate = jnp.where(i < steps, task.client_lr, 0.0)
                return jax.tree.map(lambda w, g: w - rate * g, layers, gradient), None

            return jax.lax.scan(step, layers, (jnp.arange(most), rows))[0]

        @drjax.program(clients=per_round)
        def program(layers, rows, steps):
            trained = drjax.map_fn(client, (drjax.broadcast(layers), (rows, steps)))
            weight = steps.astype(jnp.float32)
            return drjax.reduce_weighted_mean(trained, jax.tree.map(lambda _: weight, trained))

        return program(layers, rows, steps)

    step = jax.jit(one_round, donate_argnums=0)
    state, number = [(jnp.asarray(w), jnp.asarray(b)) for w, b in task.layers], 0

    def run(rounds):
        nonlocal state, number
        for _ in range(rounds):
            own = [rng.permutation(task.rows_of(j)).reshape(-1, batch_size) for j in task.taking_part(number)]
            rows = np.zeros((per_round, most, batch_size), np.int32)
            for row, batches in zip(rows, own, strict=True):
                row[: len(batches)] = batches
            state = step(state, arrays, rows, np.array([len(batches) for batches in own], np.int32))
            number += 1
        jax.block_until_ready(state)

    return protocol.timed(run), lambda path: workload.save_layers(jax.device_get(state), path)


if __name__ == "__main__":
    protocol.serve(make)
