"""A JAX round written for this workload alone: a scan over clients of a loop over whole batches, and no more.

It has no metrics, no padding, no check, no optimiser, no state but the weights; the network is our_round's.
"""

import jax
import jax.numpy as jnp
import numpy as np
import protocol
import workload
from our_round import apply


def make(folder):
    task = workload.read(folder)
    batch_size, counts = task.batch_size, np.diff(task.offsets)
    most, equal = int(counts.max()), bool((counts == counts[0]).all())
    arrays = {"x": jnp.asarray(task.x), "label": jnp.asarray(task.label)}
    rows = np.zeros((len(counts), most), np.int32)
    for j, count in enumerate(counts):
        rows[j, :count] = task.rows_of(j)
    rows, counts = jnp.asarray(rows), jnp.asarray(counts, jnp.int32)

    def loss(layers, x, label):
        scores = jax.nn.log_softmax(apply(layers, x))
        return -jnp.take_along_axis(scores, label[:, None], axis=1).mean()

    def client(layers, index, arrays, rows, counts, key):
        draw = jax.random.uniform(jax.random.fold_in(key, index), (most,))
        if not equal:
            draw = jnp.where(jnp.arange(most) < counts[index], draw, 2.0)
        order = rows[index][jnp.argsort(draw)]

        def step(i, layers):
            batch = jax.lax.dynamic_slice(order, (i * batch_size,), (batch_size,))
            gradient = jax.grad(loss)(layers, arrays["x"][batch], arrays["label"][batch])
            return jax.tree.map(lambda w, g: w - task.client_lr * g, layers, gradient)

        return jax.lax.fori_loop(0, most // batch_size if equal else counts[index] // batch_size, step, layers)

    def one_round(layers, index, arrays, rows, counts, key):
        def add(total, j):
            trained, weight = client(layers, j, arrays, rows, counts, key), counts[j] / counts[index].sum()
            return jax.tree.map(lambda t, w: t + weight * w, total, trained), None

        return jax.lax.scan(add, jax.tree.map(jnp.zeros_like, layers), index)[0]

    step = jax.jit(one_round, donate_argnums=0)
    keys = jax.random.split(jax.random.key(0), len(task.participants))
    state, number = [(jnp.asarray(w), jnp.asarray(b)) for w, b in task.layers], 0

    def run(rounds):
        nonlocal state, number
        for _ in range(rounds):
            state = step(state, task.taking_part(number), arrays, rows, counts, keys[number % len(keys)])
            number += 1
        jax.block_until_ready(state)

    return protocol.timed(run), lambda path: workload.save_layers(jax.device_get(state), path)


if __name__ == "__main__":
    protocol.serve(make)
