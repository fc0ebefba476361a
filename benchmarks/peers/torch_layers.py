"""Layers over tensors with the names and the layout that fedjax_mm gives its weights."""

import torch
from torch import nn
from torch.nn import functional as F


def nested(arrays):
    """Tensors by path; kernels as [out, in], in which F.linear takes them."""
    tree = {}
    for path, x in arrays.items():
        *way, name = path.split("/")
        node = tree
        for piece in way:
            node = node.setdefault(piece, {})
        x = torch.from_numpy(x)
        if name == "kernel" and "patch" not in way:
            x = x.transpose(-1, -2).contiguous()
        node[name] = x
    return tree


def leaves(tree, way=""):
    """(path, tensor) of all leaves."""
    for name, x in tree.items():
        yield from leaves(x, f"{way}/{name}") if isinstance(x, dict) else [(f"{way}/{name}", x)]


def at(tree, i):
    return {name: at(x, i) if isinstance(x, dict) else x[i] for name, x in tree.items()}


class Start:
    """Tensors that train, set back to where they were before every client."""

    def __init__(self, tensors):
        self.tensors = [x.requires_grad_() for x in tensors]
        self.copies = [x.detach().clone() for x in self.tensors]

    @torch.no_grad()
    def back(self):
        torch._foreach_copy_(self.tensors, self.copies)
        return self.tensors


def linear(p, x):
    return F.linear(x, p["kernel"], p.get("bias"))


def norm(p, x, epsilon=1e-12):
    return F.layer_norm(x, x.shape[-1:], p["scale"], p["bias"], epsilon)


def pixels(images):
    """[B, H, W, 3] uint8 -> [B, 3, H, W] in -1..1."""
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1


def patches(p, images):
    """[B, 3, H, W] -> [B, T, D]."""
    kernel = p["kernel"].permute(3, 2, 0, 1)
    return F.conv2d(images, kernel, p["bias"], stride=kernel.shape[-1]).flatten(2).transpose(1, 2)


def layer(p, x, heads, mask=None, pre_norm=True):
    """A transformer's layer; mask [B, 1, 1, T], True at real tokens."""

    def attend(x):
        q, k, v = (linear(p[n], x).unflatten(-1, (heads, -1)).transpose(1, 2) for n in ("query", "key", "value"))
        return linear(p["out"], F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2))

    mlp = lambda x: linear(p["fc_2"], F.gelu(linear(p["fc_1"], x)))
    if pre_norm:
        x = x + attend(norm(p["norm_1"], x))
        return x + mlp(norm(p["norm_2"], x))
    x = norm(p["norm_1"], x + attend(x))
    return norm(p["norm_2"], x + mlp(x))


def read(p, tokens):
    """BERT's embeddings [B, T, D]."""
    x = F.embedding(tokens, p["word"]) + p["positions"][: tokens.shape[1]]
    return norm(p["norm"], x + p["types"][0] if "types" in p else x)


def kl(teacher, student, temperature):
    """T^2 KL(teacher || student), the mean over rows."""
    teacher, student = (F.log_softmax(x / temperature, -1) for x in (teacher, student))
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def lstm(p):
    """nn.LSTM with these weights; its second bias stays 0."""
    made = nn.LSTM(p["input_kernel"].shape[0], p["recurrent_kernel"].shape[0], batch_first=True)
    with torch.no_grad():
        made.weight_ih_l0.copy_(p["input_kernel"].T)
        made.weight_hh_l0.copy_(p["recurrent_kernel"].T)
        made.bias_ih_l0.copy_(p["bias"])
        made.bias_hh_l0.zero_().requires_grad_(False)
    return made


def dense(p):
    made = nn.Linear(*p["kernel"].shape[::-1])
    with torch.no_grad():
        made.weight.copy_(p["kernel"])
        made.bias.copy_(p["bias"])
    return made
