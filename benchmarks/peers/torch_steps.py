"""The local training of FedMEKT's, stage-wise training's and FedDAT's clients in plain PyTorch.

Weights are those of fedjax_mm (paths in given.npz). Nothing is left for PyTorch to waste: layers that do not train run
without gradients and, in FedDAT, one pass serves as teacher and as student; its `released` variant makes three passes
through the whole model, as the authors' code does.
"""

import json
import os
import pathlib

import numpy as np
import protocol
import torch
from torch import nn
from torch.nn import functional as F
from torch_layers import Start, at, dense, kl, layer, leaves, linear, lstm, nested, norm, patches, pixels, read


def make(folder):
    folder = pathlib.Path(folder)
    about = json.loads((folder / "about.json").read_text())
    torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)
    torch.manual_seed(0)
    given = nested(np.load(folder / "given.npz"))
    train, loss = CLIENTS[about["name"]](given, about), float("nan")

    def run(rounds):
        nonlocal loss
        for _ in range(rounds):
            loss = train()

    return protocol.timed(run), lambda path: np.savez(path, loss=loss)


def fedmekt(given, about):
    """Split LSTM autoencoders of two modalities, and what is learnt from the server's embeddings of proxy windows."""

    class Half(nn.Module):
        def __init__(self, first, second):
            super().__init__()
            self.first, self.is_lstm = lstm(first), "recurrent_kernel" in second
            self.second = lstm(second) if self.is_lstm else dense(second)

        def forward(self, x):
            h = self.first(x)[0]
            return self.second(h)[0] if self.is_lstm else self.second(h)

    halves = {
        name: Half(*(p[k] for k in sorted(p, key=lambda k: (k != "LSTM_0", k)))) for name, p in given["params"].items()
    }
    start = Start([p for half in halves.values() for p in half.parameters() if p.requires_grad])
    arrays, public, teacher = given["arrays"], given["public"], {m: t["z"] for m, t in given["teacher"].items()}
    names, count = list(arrays), len(arrays["a"])
    last = lambda m, x: halves[f"encoder_{m}"](x)[:, -1]

    def loss(own, proxy):
        x = {m: arrays[m][own] for m in names}
        z = {m: last(m, torch.cat([x[m], public[m][proxy]])) for m in names}
        code = torch.cat([z[m][:count] for m in names])
        value = 0.0
        for n in names:
            repeated = code[:, None].expand(-1, x[n].shape[1], -1)
            wanted = x[n].flip(1).repeat(len(names), 1, 1)
            value = value + len(names) * F.mse_loss(halves[f"decoder_{n}"](repeated), wanted)
        far = sum(kl(teacher[m][proxy], z[m][count:], about["temperature"]) for m in names) / len(names)
        return value + about["alpha"] * far

    def train():
        optimizer, total = torch.optim.Adam(start.back(), lr=about["lr"]), 0.0
        for _ in range(about["steps"]):
            total += descend(loss(torch.randperm(count), torch.randperm(len(public["a"]))), optimizer)
        with torch.no_grad():
            {m: last(m, public[m]) for m in names}  # what is sent
        return total / about["steps"]

    return train


def stagewise(given, about):
    """A ViT and a DistilBERT, the first layers of which may be frozen, projection heads, symmetric InfoNCE."""
    sent, held, arrays, heads = given["sent"], given.get("held", {}), given["arrays"], about["heads"]
    images, tokens = pixels(arrays["image"]), arrays["text"].long()
    statistic = lambda path: "running" in path
    groups = {"encoder": [], "head": []}
    for path, x in leaves(sent):
        if not statistic(path):
            groups[path.split("/")[2]].append(x)
    start = Start([*groups["encoder"], *groups["head"]])
    running = [x for path, x in leaves(sent) if statistic(path)]
    fresh = [x.clone() for x in running]
    piece = lambda m: (
        held.get(m, {}).get("encoder", {})
        | {
            k: held.get(m, {}).get("encoder", {}).get(k, {}) | v if k == "layers" else v
            for k, v in sent[m]["encoder"].items()
        }
    )
    encoders = {m: piece(m) for m in sent}

    def see(p, images):
        x = patches(p["patch"], images)
        return torch.cat([p["cls"].expand(len(x), 1, -1), x], 1) + p["positions"]

    def encode(m, x):
        p, image = encoders[m], m == "image"
        mask = None if image else (x != 0)[:, None, None]
        with torch.set_grad_enabled(not about["frozen"]):
            h = see(p["embeddings"], x) if image else read(p["embeddings"], x)
        for i, name in enumerate(sorted(p["layers"])):
            with torch.set_grad_enabled(i >= about["frozen"]):
                h = layer(p["layers"][name], h, heads, mask, pre_norm=image)
        return norm(p["norm"], h[:, 0]) if image else h[:, 0]

    def project(p, x):
        for i in range(3):
            x, of = linear(p[f"dense_{i}"], x), p[f"norm_{i}"]
            x = F.batch_norm(x, of["running_mean"], of["running_variance"], of.get("scale"), of.get("bias"), True, 0.1)
            x = F.relu(x) if i < 2 else x
        return x

    def train():
        start.back()
        torch._foreach_copy_(running, fresh)
        decays = {"encoder": about["decay"], "head": about["projection_decay"]}
        rules = [{"params": groups[name], "weight_decay": decay} for name, decay in decays.items()]
        optimizer, total = torch.optim.AdamW(rules, lr=about["lr"]), 0.0
        for _ in range(about["steps"]):
            order = torch.randperm(len(images))
            z = [project(sent[m]["head"], encode(m, x[order])) for m, x in (("image", images), ("text", tokens))]
            logits = F.normalize(z[0]) @ F.normalize(z[1]).T / about["temperature"]
            target = torch.arange(len(order))
            value = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
            total += descend(value, optimizer)
        return total / about["steps"]

    return train


def feddat(given, about):
    """A frozen ViLT; the shared adapter, then the client's own beside the received one, and the head with both."""
    trunk, arrays, heads, received = given["trunk"], given["arrays"], about["heads"], given["received"]
    images, questions, target = pixels(arrays["image"]), arrays["question"].long(), arrays["target"]
    shared = {k: {n: x.clone() for n, x in v.items()} for k, v in received.items()}
    trees = {"shared": shared, "local": given["local"], "head": given["head"]}
    starts = {name: Start([x for _, x in leaves(tree)]) for name, tree in trees.items()}
    layers = [at(trunk["layers"], i) for i in range(len(trunk["layers"]["norm_1"]["scale"]))]

    def begin(images, questions):
        """All that no adapter changes."""
        p = trunk["embeddings"]
        text, x = read(p["text"], questions), patches(p["image"]["patch"], images)
        x = torch.cat([p["image"]["cls"].expand(len(x), 1, -1), x], 1) + p["image"]["positions"]
        mask = torch.cat([questions != 0, torch.ones(x.shape[:2], dtype=torch.bool)], 1)[:, None, None]
        h = torch.cat([text + p["modality"][0], x + p["modality"][1]], 1)
        return layer(layers[0], h, heads, mask), mask

    def site(h, adapters, i):
        return h + sum(linear(at(a["up"], i), F.relu(linear(at(a["down"], i), h))) for a in adapters) / len(adapters)

    def features(started, *adapters):
        h, mask = started
        h = site(h, adapters, 0)
        for i in range(1, len(layers)):
            h = site(layer(layers[i], h, heads, mask), adapters, i)
        return torch.tanh(linear(trunk["pooler"], norm(trunk["norm"], h[:, 0])))

    def answer(features):
        p = given["head"]
        return linear(p["dense_1"], F.gelu(norm(p["norm"], linear(p["dense_0"], features), 1e-5)))

    def loss(z, teacher, wanted):
        task = F.binary_cross_entropy_with_logits(z, wanted, reduction="sum") / len(z)
        return 0.5 * (task + kl(teacher, z, about["temperature"]))

    def step(order, of):
        batch, wanted = (images[order], questions[order]), target[order]
        if about["released"]:  # three passes through everything
            with torch.no_grad():
                z_t = answer(features(begin(*batch), given["local"], received))
            z_s = answer(features(begin(*batch), shared))
            first = descend(loss(z_s, z_t, wanted), of["shared"], of["head"])
            z_dat = answer(features(begin(*batch), given["local"], received))
        else:
            started = begin(*batch)
            dat = features(started, given["local"], received)
            with torch.no_grad():
                z_t = answer(dat)
            z_s = answer(features(started, shared))
            first = descend(loss(z_s, z_t, wanted), of["shared"], of["head"])
            z_dat = answer(dat)
        return first + descend(loss(z_dat, z_s.detach(), wanted), of["local"], of["head"])

    def optimizer(name):
        decays = [x for path, x in leaves(trees[name]) if not path.endswith("bias")]
        spared = [x for path, x in leaves(trees[name]) if path.endswith("bias")]
        rules = [{"params": decays, "weight_decay": about["decay"]}, {"params": spared, "weight_decay": 0.0}]
        return torch.optim.AdamW(rules, betas=(0.9, 0.98), eps=1e-8)

    def rate(step):
        rise = about["warmup"] * about["horizon"]
        up, down = (step + 1) / max(rise, 1.0), (about["horizon"] - step) / max(about["horizon"] - rise, 1.0)
        return about["lr"] * min(max(min(up, down), 0.0), 1.0)

    def train():
        for start in starts.values():
            start.back()
        of, total = {name: optimizer(name) for name in trees}, 0.0
        for i in range(about["steps"]):
            for group in (group for each in of.values() for group in each.param_groups):
                group["lr"] = rate(i)
            total += step(torch.randperm(len(images)), of)
        return total / about["steps"]

    return train


def descend(value, *optimizers):
    """The loss, after a step of each optimiser."""
    for each in optimizers:
        each.zero_grad()
    value.backward()
    for each in optimizers:
        each.step()
    return float(value.detach())


CLIENTS = {
    "FedMEKT": fedmekt,
    "layer-wise": stagewise,
    "end-to-end": stagewise,
    "FedDAT": feddat,
    "FedDAT released": feddat,
}


if __name__ == "__main__":
    protocol.serve(make)
