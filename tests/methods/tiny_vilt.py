"""A toy with the interface of models.vilt, methods small enough for every law, and AdamW in NumPy."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_mm.data.federated import FederatedData
from fedjax_mm.methods import feddat
from fedjax_mm.methods.feddat import peft
from fedjax_mm.methods.feddat.vqa_tuning import Training
from fedjax_mm.models import adapters, heads


class TinyVilt(NamedTuple):
    depth: int
    width: int
    init: object
    apply: object
    start: object
    finish: object


def bottleneck(tree, h):
    down, up = tree["down"], tree["up"]
    return jax.nn.relu(h @ down["kernel"] + down["bias"][None]) @ up["kernel"] + up["bias"][None]


def tiny(width=6, depth=2, image="image", question="question", seen=None) -> TinyVilt:
    """Vectors in place of tokens: h = image W + question V, then h + tanh(norm(h) W_i + b_i) in each layer.

    seen: a list that gets the name of every function called.
    """
    seen = [] if seen is None else seen

    def init(key, batch):
        draw = lambda i, *shape: jax.random.normal(jax.random.fold_in(key, i), shape) / shape[-2] ** 0.5
        norm = lambda *shape: {"scale": jnp.ones(shape), "bias": jnp.zeros(shape)}
        return {
            "embeddings": {
                "image": {"kernel": draw(0, batch[image].shape[-1], width)},
                "text": {"kernel": draw(1, batch[question].shape[-1], width), "norm": norm(width)},
            },
            "layers": {
                "norm_1": norm(depth, width),
                "query": {"kernel": draw(2, depth, width, width), "bias": jnp.zeros((depth, width))},
            },
            "norm": norm(width),
            "pooler": {"kernel": draw(3, width, width), "bias": jnp.zeros(width)},
        }

    scaled = lambda norm, x: x * norm["scale"][None] + norm["bias"][None]
    linear = lambda layer, x: x @ layer["kernel"] + layer["bias"][None]
    at = lambda tree, i: jax.tree.map(lambda leaf: leaf[i], tree)

    def embed(params, batch):
        see, read = params["embeddings"]["image"], params["embeddings"]["text"]
        return batch[image] @ see["kernel"] + scaled(read["norm"], batch[question] @ read["kernel"])

    def layer(params, h, i, lora=None):
        trunk = at(params["layers"], i)
        x = scaled(trunk["norm_1"], h)
        change = sum(x @ pair["a"][i] @ pair["b"][i] for pair in (lora or {}).values())
        return h + jnp.tanh(linear(trunk["query"], x) + change)

    def site(h, trees, i):
        return h + sum(bottleneck(at(tree, i), h) for tree in trees) / len(trees) if trees else h

    def pooled(params, h):
        return jnp.tanh(linear(params["pooler"], scaled(params["norm"], h)))

    def apply(params, batch, tuning=None):
        tuning = tuning or {}
        h = embed(params, batch)
        if "prompt" in tuning:
            h = h + sum(p.mean(0) for p in adapters.prompts(tuning["prompt"]).values())[None]
        for i in range(depth):
            h = site(layer(params, h, i, tuning.get("lora")), [tuning["adapter"]] if "adapter" in tuning else [], i)
        return pooled(params, h)

    def start(params, batch):
        seen.append("start")
        return layer(params, embed(params, batch), 0)

    def finish(params, started, trees):
        seen.append("finish")
        h = site(started, trees, 0)
        for i in range(1, depth):
            h = site(layer(params, h, i), trees, i)
        return pooled(params, h)

    return TinyVilt(depth, width, init, apply, start, finish)


def adapter_init(model):
    """Adapters that do more than ViLT's, so that tests see them."""
    return lambda key: jax.tree.map(lambda x: 20 * x, adapters.adapter(key, model.depth, model.width, hidden=3))


def questions(counts=(7,), answers=3, seed=0, image="image", question="question", cohort="all"):
    """A FederatedData whose client j owns counts[j] examples, with soft targets."""
    rng, total = np.random.default_rng(seed), sum(counts)
    target = np.zeros((total, answers), np.float32)
    target[np.arange(total), rng.integers(0, answers, total)] = 1.0
    target[np.arange(total), rng.integers(0, answers, total)] = 0.6
    arrays = {
        image: rng.normal(size=(total, 4)).astype(np.float32),
        question: rng.normal(size=(total, 2)).astype(np.float32),
        "target": target,
        "label": target.argmax(1).astype(np.int32),
    }
    owned = np.split(np.random.default_rng(seed + 1).permutation(total), np.cumsum(counts)[:-1])
    return FederatedData.from_arrays({cohort: arrays}, {cohort: owned})


TRAINING = Training(lr=0.05, batch_size=4, epochs=2, horizon=2.0)


def _laws():
    names = {"image": "a", "question": "b"}  # the arrays that the laws know
    model, data = tiny(**names), questions((14, 3, 6, 8, 11, 4), cohort="AB", **names)
    trunk = model.init(jax.random.key(3), {k: v[:1] for k, v in data.cohorts["AB"].arrays.items()})
    return model, data, trunk


def feddat_tiny(**settings):
    """(method, data)."""
    model, data, trunk = _laws()
    config = feddat.FedDATConfig(training=TRAINING, **settings)
    return feddat.build(config, data, model, trunk, adapter_init(model), heads.linear(3)), data


def peft_tiny(**settings):
    """(method, data): an adapter and the trunk's biases."""
    model, data, trunk = _laws()
    settings = settings or dict(prox=0.1, server_optimizer="adam", server_lr=0.1)
    config = peft.PEFTConfig(training=TRAINING, **settings)
    tuning = lambda key: {"adapter": adapter_init(model)(key)}
    return peft.build(config, data, model, trunk, heads.linear(3), tuning_init=tuning, trains=adapters.bias), data


def adamw(params, grads, state, rate, decay=0.01, b1=0.9, b2=0.98, eps=1e-8):
    """(params, state) after PyTorch's AdamW, of a dict {path: array} of NumPy arrays; a state of None is fresh.

    Neither biases nor the scale of the embeddings' norm decay.
    """
    m, v, t = state or ({k: 0.0 for k in params}, {k: 0.0 for k in params}, 0)
    m = {k: b1 * m[k] + (1 - b1) * g for k, g in grads.items()}
    v = {k: b2 * v[k] + (1 - b2) * g**2 for k, g in grads.items()}
    spared = lambda k: k.endswith("['bias']") or k.endswith("['embeddings']['text']['norm']['scale']")
    kept = lambda k: 1.0 if spared(k) else 1 - rate * decay
    step = lambda k: rate * (m[k] / (1 - b1 ** (t + 1))) / (np.sqrt(v[k] / (1 - b2 ** (t + 1))) + eps)
    return {k: p * kept(k) - step(k) for k, p in params.items()}, (m, v, t + 1)


def flat(tree):
    """{path: float64 array}."""
    paths = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path): np.asarray(leaf, np.float64) for path, leaf in paths}


def unflat(leaves, like):
    return jax.tree.unflatten(jax.tree.structure(like), [jnp.asarray(x, jnp.float32) for x in leaves.values()])
