"""pfl: FederatedAveraging on its SimulatedBackend, put together as in its image classification benchmark.

No callbacks and no evaluation, but for the one pfl makes before and after training in the very first round. Its users
do not shuffle their examples.
"""

import itertools
import logging

import numpy as np
import protocol
import torch
import torch_network
import workload
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.data import FederatedDataset
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Weighted
from pfl.model.pytorch import PyTorchModel


def with_loss(network):
    """The network with the two methods pfl asks for."""
    cross_entropy = torch.nn.CrossEntropyLoss()
    network.loss = lambda x, label: cross_entropy(network(x), label)

    @torch.no_grad()
    def metrics(x, label):
        return {"loss": Weighted(len(x) * network.loss(x, label).item(), len(x))}

    network.metrics = metrics
    return network


def make(folder):
    task = workload.read(folder)
    logging.disable(logging.WARNING)
    torch.set_num_threads(task.cores)
    network = with_loss(torch_network.network(task.layers))
    parameters = list(network.parameters())
    model = PyTorchModel(network, torch.optim.SGD, torch.optim.SGD(parameters, 1.0))
    x, label = torch_network.images(task.x), torch_network.whole(task.label)
    users = {j: [x[task.rows_of(j)], label[task.rows_of(j)]] for j in np.unique(task.participants).tolist()}
    order = itertools.cycle(task.participants.ravel().tolist())
    data = FederatedDataset.from_slices(users, lambda: next(order))
    backend = SimulatedBackend(training_data=data, val_data=data, postprocessors=[WeightByDatapoints()])
    train = NNTrainHyperParams(local_learning_rate=task.client_lr, local_num_epochs=1, local_batch_size=task.batch_size)
    algorithm, done = FederatedAveraging(), 0

    def run(rounds):
        nonlocal done
        done += rounds
        settings = NNAlgorithmParams(
            central_num_iterations=done,
            evaluation_frequency=10**9,
            train_cohort_size=task.participants.shape[1],
            val_cohort_size=None,
        )
        algorithm.run(settings, backend, model, train, NNEvalHyperParams(local_batch_size=None), callbacks=[])
        torch_network.wait()

    return protocol.timed(run), lambda path: workload.save_layers(
        torch_network.to_layers(parameters, task.layers), path
    )


if __name__ == "__main__":
    protocol.serve(make)
