"""A plain PyTorch loop: one model, its weights set back before every client, sums kept in place."""

import protocol
import torch
import torch_network
import workload


def make(folder):
    task = workload.read(folder)
    torch.set_num_threads(task.cores)
    torch.manual_seed(0)
    model, loss = torch_network.network(task.layers), torch.nn.CrossEntropyLoss()
    parameters = list(model.parameters())
    x, label = torch_network.images(task.x), torch_network.whole(task.label)
    server = [p.detach().clone() for p in parameters]
    number = 0

    def train(rows):
        optimizer = torch.optim.SGD(parameters, lr=task.client_lr)
        for batch in rows[torch.randperm(len(rows), device=rows.device)].split(task.batch_size):
            optimizer.zero_grad()
            loss(model(x[batch]), label[batch]).backward()
            optimizer.step()

    def run(rounds):
        nonlocal number
        for _ in range(rounds):
            chosen = [torch_network.whole(task.rows_of(j)) for j in task.taking_part(number)]
            total, everything = [torch.zeros_like(p) for p in server], sum(len(rows) for rows in chosen)
            for rows in chosen:
                with torch.no_grad():
                    torch._foreach_copy_(parameters, server)
                train(rows)
                with torch.no_grad():
                    torch._foreach_add_(total, parameters, alpha=len(rows) / everything)
            server[:] = total
            number += 1
        torch_network.wait()

    return protocol.timed(run), lambda path: workload.save_layers(torch_network.to_layers(server, task.layers), path)


if __name__ == "__main__":
    protocol.serve(make)
