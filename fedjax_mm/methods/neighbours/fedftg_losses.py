"""What the server of FedFTG (fedftg.py) makes, whom it asks, and the losses of what they say."""

import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_mm.local import Batch
from fedjax_mm.methods.fedavg.network import Encoders, Parts, predict_logits
from fedjax_mm.models import Model
from fedjax_mm.types import Arrays, Key, PyTree

Kinds = Mapping[str, jax.ShapeDtypeStruct]  # modality -> an example's shape [...] and type


def sample_labels(counts: jax.Array, number: int, key: Key) -> jax.Array:
    """[B] int: B = `number` classes, each drawn in proportion to its examples among all clients. counts: n_k^y [C, K].

    >>> sample_labels(jnp.array([[0.0, 2.0, 0.0], [0.0, 1.0, 0.0]]), 3, jax.random.key(0)).tolist()
    [1, 1, 1]
    """
    return jax.random.categorical(key, jnp.log(counts.sum(0)), shape=(number,))


def class_weights(counts: jax.Array, label: jax.Array) -> jax.Array:
    """alpha_k^y [C, B]: each client's share of the examples of a made example's class. counts [C, K], label [B].

    >>> class_weights(jnp.array([[3.0, 0.0], [1.0, 2.0]]), jnp.array([0, 1, 0])).tolist()
    [[0.75, 0.0, 0.75], [0.25, 1.0, 0.25]]
    """
    owned = counts[:, label]
    return owned / jnp.maximum(owned.sum(0, keepdims=True), 1)


def draw_batch(number: int, noise: int, counts: jax.Array, key: Key) -> dict[str, jax.Array]:
    """{"z" [B, noise], "y": one-hot classes [B, K], "alpha" [C, B]} of B = `number` examples to make. counts: [C, K].

    >>> batch = draw_batch(2, 5, jnp.array([[0.0, 1.0]]), jax.random.key(0))
    >>> batch["z"].shape, batch["y"].tolist(), batch["alpha"].tolist()
    ((2, 5), [[0.0, 1.0], [0.0, 1.0]], [[1.0, 1.0]])
    """
    z_key, y_key = jax.random.split(key)
    label = sample_labels(counts, number, y_key)
    z = jax.random.normal(z_key, (number, noise))
    return {"z": z, "y": jax.nn.one_hot(label, counts.shape[1]), "alpha": class_weights(counts, label)}


def generate(generator: Model, kinds: Kinds, theta: PyTree, batch: Batch) -> dict[str, jax.Array]:
    """G(z, y): {modality: [B, ...]}. batch: as of `draw_batch`.

    >>> same = Model(lambda key, x: {}, lambda params, x: x)
    >>> kinds = {m: jax.ShapeDtypeStruct(shape, jnp.float32) for m, shape in (("a", (2, 1)), ("b", (1,)))}
    >>> made = generate(same, kinds, {}, {"z": jnp.array([[5.0]]), "y": jnp.array([[0.0, 1.0]])})
    >>> made["a"].tolist(), made["b"].tolist()
    ([[[5.0], [0.0]]], [[1.0]])
    """
    flat = generator.apply(theta, jnp.concatenate([batch["z"], batch["y"]], axis=1))
    ends = np.cumsum([math.prod(kind.shape) for kind in kinds.values()])[:-1]
    pieces = zip(kinds.items(), jnp.split(flat, ends, axis=1), strict=True)
    return {m: piece.reshape(-1, *kind.shape).astype(kind.dtype) for (m, kind), piece in pieces}


def ask_clients(encoders: Encoders, head: Model, models: Sequence[Parts], x: Arrays) -> jax.Array:
    """[C, B, K]: the log-probabilities log D(x, w_k). models: of each cohort, {part: leaves [C of it, ...]}.

    >>> identity = Model(lambda key, x: {}, lambda params, x: x)
    >>> add = Model(lambda key, x: jnp.zeros(2), lambda bias, x: x + bias[None])
    >>> models = [{"x": {}, "head": jnp.array([[0.0, 0.0], [1.0, 1.0]])}]
    >>> ask_clients({"x": identity}, add, models, {"x": jnp.zeros((1, 2))}).round(2).tolist()
    [[[-0.6..., -0.6...]], [[-0.6..., -0.6...]]]
    """
    ask = jax.vmap(lambda w: jax.nn.log_softmax(predict_logits(encoders, head, w, x)))
    return jnp.concatenate([ask(sent) for sent in models])


def ask_server(encoders: Encoders, head: Model, models: Sequence[Parts], params: Parts, x: Arrays) -> jax.Array:
    """[C, B, K]: the log-probabilities log D(x, w), each time of the modalities that the client has.

    models: as of `ask_clients`; params: w.

    >>> identity = Model(lambda key, x: {}, lambda params, x: x)
    >>> models = [{"a": jnp.zeros((3, 1)), "head": {}}]  # of three clients, which have one of two modalities
    >>> x = {"a": jnp.array([[0.0, 0.0]]), "b": jnp.array([[9.0, 0.0]])}
    >>> log_p = ask_server({"a": identity, "b": identity}, identity, models, {"a": {}, "b": {}, "head": {}}, x)
    >>> log_p.shape, log_p[0, 0].round(2).tolist()
    ((3, 1, 2), [-0.6..., -0.6...])
    """
    found = []
    for sent in models:
        log_p = jax.nn.log_softmax(predict_logits(encoders, head, {part: params[part] for part in sent}, x))
        found.append(jnp.broadcast_to(log_p, (len(jax.tree.leaves(sent)[0]), *log_p.shape)))
    return jnp.concatenate(found)


def discrepancy(alpha: jax.Array, clients: jax.Array, server: jax.Array) -> jax.Array:
    """L_md []: the mean over made examples of sum_k alpha_k^y KL(D(x, w_k) | D(x, w)).

    alpha [C, B]; clients, server: log-probabilities [C, B, K].

    >>> one, even = jnp.log(jnp.array([[[1.0, 1e-9]]])), jnp.log(jnp.array([[[0.5, 0.5]]]))
    >>> [round(float(discrepancy(jnp.array([[a]]), one, even)), 3) for a in (1.0, 0.5)]
    [0.693, 0.347]
    """
    return (alpha * optax.losses.kl_divergence_with_log_targets(server, clients)).sum(0).mean()


def classification(alpha: jax.Array, clients: jax.Array, y: jax.Array) -> jax.Array:
    """L_cls []: the mean over made examples of sum_k alpha_k^y CE(D(x, w_k), y). y: one-hot [B, K].

    >>> log_p = jnp.array([[[-1.0, -2.0]], [[-3.0, -4.0]]])
    >>> float(classification(jnp.array([[0.5], [0.5]]), log_p, jnp.array([[1.0, 0.0]])))
    2.0
    """
    return -(alpha[..., None] * clients * y[None]).sum((0, 2)).mean()


def diversity(x: Arrays, z: jax.Array) -> jax.Array:
    """L_dis []: exp of minus the mean over pairs of |x_i - x_j| |z_i - z_j|. x: modality -> [B, ...]; z [B, noise].

    >>> z = jnp.array([[0.0], [1.0]])
    >>> alike, apart = {"a": jnp.ones((2, 3))}, {"a": 2 * z}
    >>> round(float(diversity(alike, z)), 3), round(float(diversity(apart, z)), 3)  # exp(-(0 + 2 + 2 + 0) / 4)
    (1.0, 0.368)
    """
    # The root has no gradient at 0, where a row is compared with itself.
    lengths = lambda rows: jnp.sqrt(jnp.square(rows[:, None] - rows[None]).sum(-1) + 1e-12)
    flat = jnp.concatenate([one.reshape(len(one), -1) for one in x.values()], axis=1)
    return jnp.exp(-(lengths(flat) * lengths(z)).mean())
