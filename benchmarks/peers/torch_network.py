"""The workload's network and examples as PyTorch keeps them: channels first, dense [out, in], on a GPU if any."""

import numpy as np
import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
torch.backends.cuda.matmul.allow_tf32 = True  # as JAX multiplies float32 on a GPU, and PyTorch convolves


def wait() -> None:
    """Returns when all is computed."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def network(layers) -> torch.nn.Sequential:
    """The network with these weights."""
    parts, convolutions = [], sum(weight.ndim == 4 for weight, _ in layers)
    for i, (weight, _) in enumerate(layers):
        if i == convolutions > 0:
            parts += [torch.nn.MaxPool2d(2), torch.nn.Flatten()]
        size = weight.shape[-2:]
        parts.append(torch.nn.Conv2d(*size, 3) if weight.ndim == 4 else torch.nn.Linear(*size))
        parts += [torch.nn.ReLU()] if i + 1 < len(layers) else []
    model = torch.nn.Sequential(*parts)
    with torch.no_grad():
        for parameter, array in zip(model.parameters(), _to_torch(layers), strict=True):
            parameter.copy_(torch.from_numpy(np.ascontiguousarray(array)))
    return model.to(DEVICE)


def images(x: np.ndarray) -> torch.Tensor:
    """[E, H, W, F] -> [E, F, H, W]; [E, D] stays."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1) if x.ndim == 4 else x)).to(DEVICE)


def whole(numbers: np.ndarray) -> torch.Tensor:
    """[E] int64."""
    return torch.from_numpy(numbers).long().to(DEVICE)


def _to_torch(layers) -> list[np.ndarray]:
    flat = []
    for i, (weight, bias) in enumerate(layers):
        if weight.ndim == 4:
            weight = weight.transpose(3, 2, 0, 1)
        else:
            if channels := _channels_before(layers, i):
                weight = weight.reshape(-1, channels, weight.shape[-1]).swapaxes(0, 1).reshape(weight.shape)
            weight = weight.T
        flat += [weight, bias]
    return flat


def to_layers(parameters, like) -> list[tuple[np.ndarray, np.ndarray]]:
    """Back from PyTorch's parameters, in order; `like` are layers of these shapes."""
    flat, layers = [p.detach().cpu().numpy() if isinstance(p, torch.Tensor) else p for p in parameters], []
    for i, (weight, bias) in enumerate(zip(flat[::2], flat[1::2], strict=True)):
        if weight.ndim == 4:
            weight = weight.transpose(2, 3, 1, 0)
        else:
            weight = weight.T
            if channels := _channels_before(like, i):
                weight = weight.reshape(channels, -1, weight.shape[-1]).swapaxes(0, 1).reshape(weight.shape)
        layers.append((weight, bias))
    return layers


def _channels_before(layers, i: int) -> int:
    """Channels of the map that dense layer i sees flattened; 0 where it sees a vector."""
    return layers[i - 1][0].shape[-1] if i and layers[i - 1][0].ndim == 4 else 0
