"""Flower: `run_simulation` on Ray with one actor a core, PyTorch clients, FedAvg.

A simulation cannot be paused. So each request for N rounds runs one of 2 N in a process of its own and answers with
what the last N took: start-up and end do not count. Each begins at the start weights again, and keeps those after N
rounds; clients are drawn by Flower. CPU time is read from /proc: not all of Ray's processes are waited for.
"""

import functools
import json
import os
import pathlib
import subprocess
import sys
import time

import protocol
import workload

os.environ |= {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0"}


@functools.cache
def local(folder):
    """(task, model, images, labels), once in each of Ray's processes."""
    import torch
    import torch_network

    task = workload.read(folder)
    torch.set_num_threads(1)
    return (
        task,
        torch_network.network(task.layers),
        torch_network.images(task.x),
        torch_network.whole(task.label),
    )


def simulate(folder, rounds, path):
    """Runs 2 `rounds` rounds and saves in `path` the weights after `rounds`, and [CPU, wall] s after each in a JSON."""
    import torch
    import torch_network
    from flwr.client import ClientApp, NumPyClient
    from flwr.common import Context, ndarrays_to_parameters
    from flwr.server import ServerApp, ServerAppComponents, ServerConfig
    from flwr.server.strategy import FedAvg
    from flwr.simulation import run_simulation

    task, start, _, _ = local(folder)
    clients, per_round, cores = len(task.offsets) - 1, task.participants.shape[1], task.cores
    arrays = lambda model: [p.detach().numpy() for p in model.parameters()]

    class Client(NumPyClient):
        def __init__(self, number):
            self.number = number

        def fit(self, parameters, config):
            task, model, x, label = local(folder)
            loss, rows = torch.nn.CrossEntropyLoss(), torch.from_numpy(task.rows_of(self.number)).long()
            with torch.no_grad():
                for p, array in zip(model.parameters(), parameters, strict=True):
                    p.copy_(torch.from_numpy(array))
            optimizer = torch.optim.SGD(model.parameters(), lr=task.client_lr)
            for batch in rows[torch.randperm(len(rows))].split(task.batch_size):
                optimizer.zero_grad()
                loss(model(x[batch]), label[batch]).backward()
                optimizer.step()
            return arrays(model), len(rows), {}

    def client(context: Context):
        return Client(int(context.node_config["partition-id"])).to_client()

    clocks = []

    def keep(number, parameters, config):
        clocks.append((tree_cpu_seconds(), time.perf_counter()))
        if number == rounds:
            workload.save_layers(torch_network.to_layers(parameters, task.layers), path)

    def server(context: Context):
        strategy = FedAvg(
            fraction_fit=per_round / clients,
            min_fit_clients=per_round,
            min_available_clients=clients,
            fraction_evaluate=0.0,
            evaluate_fn=keep,
            initial_parameters=ndarrays_to_parameters(arrays(start)),
        )
        return ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=2 * rounds))

    resources = {"client_resources": {"num_cpus": 1, "num_gpus": 0}, "init_args": {"num_cpus": cores}}
    run_simulation(ServerApp(server_fn=server), ClientApp(client_fn=client), clients, backend_config=resources)
    pathlib.Path(f"{path}.json").write_text(json.dumps(clocks))


def tree_cpu_seconds():
    """CPU time of this process and of all that descend from it, living or waited for."""
    fields, tree, total = {}, {os.getpid()}, 0
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            fields[int(stat.parent.name)] = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended meanwhile
    while more := {pid for pid, f in fields.items() if int(f[1]) in tree} - tree:
        tree |= more
    for pid in tree:
        total += sum(int(ticks) for ticks in fields[pid][11:15])
    return total / os.sysconf("SC_CLK_TCK")


def make(folder):
    path = os.path.join(folder, "flower.npz")

    def run(rounds):
        begun = time.perf_counter()
        subprocess.run([sys.executable, __file__, folder, "simulate", str(rounds), path], check=True)
        clocks = json.loads(pathlib.Path(f"{path}.json").read_text())  # before round 1, after round 1, ...
        (cpu_before, wall_before), (cpu, wall) = clocks[rounds], clocks[2 * rounds]
        times = {"cpu": cpu - cpu_before, "wall": wall - wall_before, "first": clocks[1][1] - begun}
        return {"rounds": rounds, "trained": rounds, **times}

    return run, lambda to: os.replace(path, to)


if __name__ == "__main__":
    if sys.argv[2:3] == ["simulate"]:
        import flower_round  # by this name Ray's processes find what clients are made of; they have another __main__

        flower_round.simulate(sys.argv[1], int(sys.argv[3]), sys.argv[4])
    else:
        protocol.serve(make)
