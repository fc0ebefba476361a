"""BlazeFL: its FedAvg's handler and its trainer of one client after the other, as one core asks for.

Examples come from PyTorch's DataLoader, as in BlazeFL's quickstart. Participants are those of the workload.
"""

import os

import protocol
import torch
import torch_network
import workload

os.environ["TQDM_DISABLE"] = "1"

from blazefl.contrib import FedAvgBaseClientTrainer, FedAvgBaseServerHandler  # noqa: E402  (it reads the variable)
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402


class Selector:
    """The network with the start weights, whatever its name."""

    def __init__(self, layers):
        self.layers = layers

    def select_model(self, model_name):
        return torch_network.network(self.layers)


class Clients:
    """The examples of each client, made once."""

    def __init__(self, task):
        x, label = torch_network.images(task.x), torch_network.whole(task.label)
        of = lambda rows: TensorDataset(x[rows], label[rows])
        self.sets = [of(torch.from_numpy(task.rows_of(j)).long()) for j in range(len(task.offsets) - 1)]

    def get_dataloader(self, type_, cid, batch_size, generator):
        return DataLoader(self.sets[cid], batch_size, shuffle=True, generator=generator)


def make(folder):
    task = workload.read(folder)
    torch.set_num_threads(task.cores)
    clients, per_round = len(task.offsets) - 1, task.participants.shape[1]
    data, selector = Clients(task), Selector(task.layers)
    server = FedAvgBaseServerHandler(selector, "net", data, 10**9, clients, per_round / clients, "cpu", 0, 0)
    server.num_clients_per_round = per_round  # its own rounding down of the share may lose one
    trainer = FedAvgBaseClientTrainer(selector, "net", data, "cpu", clients, 1, task.batch_size, task.client_lr, 0)
    number = 0

    def run(rounds):
        nonlocal number
        for _ in range(rounds):
            trainer.local_process(server.downlink_package(), list(task.taking_part(number)))
            for package in trainer.uplink_package():
                server.load(package)
            number += 1

    save = lambda path: workload.save_layers(
        torch_network.to_layers(list(server.model.parameters()), task.layers), path
    )
    return protocol.timed(run), save


if __name__ == "__main__":
    protocol.serve(make)
