"""fedjax: `fedjax.algorithms.fed_avg` on `for_each_client`'s jit backend, its networks in Haiku, as in its examples."""

import fedjax
import haiku as hk
import jax
import numpy as np
import protocol
import workload
from fedjax.algorithms import fed_avg


def network(layers):
    convolutions = sum(weight.ndim == 4 for weight, _ in layers)
    parts = []
    for i, (weight, _) in enumerate(layers):
        if i == convolutions > 0:
            parts += [hk.MaxPool((1, 2, 2, 1), (1, 2, 2, 1), "VALID"), hk.Flatten()]
        parts.append(
            hk.Conv2D(weight.shape[-1], 3, padding="VALID") if weight.ndim == 4 else hk.Linear(weight.shape[-1])
        )
        parts += [jax.nn.relu] if i + 1 < len(layers) else []
    return hk.Sequential(parts)


def make(folder):
    task = workload.read(folder)
    forward = hk.transform(lambda batch: network(task.layers)(batch["x"]))
    model = fedjax.create_model_from_haiku(
        transformed_forward_pass=forward,
        sample_batch={"x": task.x[:1], "y": task.label[:1]},
        train_loss=lambda batch, scores: fedjax.metrics.unreduced_cross_entropy_loss(batch["y"], scores),
    )
    names = list(model.init(jax.random.PRNGKey(0)))  # in the order in which the network makes them
    start = {name: {"w": w, "b": b} for name, (w, b) in zip(names, task.layers, strict=True)}
    fedjax.set_for_each_client_backend("jit")
    algorithm = fed_avg.federated_averaging(
        fedjax.model_grad(model),
        fedjax.optimizers.sgd(task.client_lr),
        fedjax.optimizers.sgd(1.0),
        fedjax.ShuffleRepeatBatchHParams(batch_size=task.batch_size, num_epochs=1, drop_remainder=False),
    )
    examples = lambda rows: {"x": task.x[rows], "y": task.label[rows]}
    data = {j: fedjax.ClientDataset(examples(task.rows_of(j))) for j in np.unique(task.participants)}
    keys = jax.random.split(jax.random.PRNGKey(0), task.participants.shape[1])
    state, number = algorithm.init(jax.tree_util.tree_map(jax.numpy.asarray, start)), 0

    def run(rounds):
        nonlocal state, number
        for _ in range(rounds):
            clients = [(j, data[j], key) for j, key in zip(task.taking_part(number), keys, strict=True)]
            state, _ = algorithm.apply(state, clients)
            number += 1
        jax.block_until_ready(state.params)

    def save(path):
        params = jax.device_get(state.params)
        workload.save_layers([(params[name]["w"], params[name]["b"]) for name in names], path)

    return protocol.timed(run), save


if __name__ == "__main__":
    protocol.serve(make)
