"""Running statistics of the averaged model, which clients take in one more round, without training (1.9).

Clients' running statistics are those of the clients' own models. Their mean is not the averaged model's: averaging
parameters shrinks what the layers give, and of several clients' variances the mean leaves out how their means differ.
So each client runs the averaged model over its own examples once and sends the moments that its batches have before
each batch norm. The server pools them (Wu and Johnson 2021, arXiv 2105.07576, "precise" batch norm). Moments are about
the running means that the server sent, so that a variance keeps its digits where it is small beside the mean.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_mm import aggregate, trees
from fedjax_mm.local import local_steps
from fedjax_mm.methods.layerwise import network
from fedjax_mm.methods.layerwise.config import LayerwiseConfig
from fedjax_mm.methods.layerwise.network import Encoders, Params
from fedjax_mm.models import heads
from fedjax_mm.types import Arrays, ClientData, Download, Key, Mean, Metrics, PyTree, Upload

STATISTICS = "statistics"  # a slot of the upload

Moments = Mapping[str, Mapping[str, Mapping[str, jax.Array]]]  # modality -> norm -> "mean" and "square", each [width]


def statistics_update(
    config: LayerwiseConfig, encoders: Encoders, download: Download, state: tuple, data: ClientData, key: Key
) -> tuple[Upload, tuple, Metrics]:
    """What one client sends in the last round, its state (nothing), and no metrics.

    The upload has a Mean "statistics": the means of `batch_moments` over one pass of the client's full batches. Its
    weight is 0 where the client has no full batch. data: as `client_update` takes it.

    >>> from fedjax_mm.local import whole
    >>> from fedjax_mm.models import Transformer
    >>> init = lambda key, x: {"embeddings": jnp.eye(2), "layers": {}}
    >>> apply = lambda params, x: x @ params["embeddings"]
    >>> encoder = Transformer(0, 2, init, apply, apply, jax.ShapeDtypeStruct((1, 2), jnp.float32), None)
    >>> config = LayerwiseConfig(batch_size=2, projection_hidden=4, projection_dim=3)
    >>> params = network.init_network(config, {"image": encoder}, None, jax.random.key(0))
    >>> download, data = Download(params, jax.tree.map(lambda x: None, params)), whole({"image": jnp.eye(2)})
    >>> upload, _, _ = statistics_update(config, {"image": encoder}, download, (), data, jax.random.key(1))
    >>> norms = upload["statistics"].value["image"]
    >>> sorted(norms), norms["norm_0"]["square"].shape
    (['norm_0', 'norm_1', 'norm_2'], (4,))
    """
    params = trees.merge(download.sent, download.held)

    def step(carry: tuple, batch: Arrays, key: Key) -> tuple[tuple, Any]:
        return carry, batch_moments(config, encoders, params, batch, key)

    _, moments = local_steps(step, (), data, key, batch_size=config.batch_size, drop_last=True)
    weight = jnp.where(data.count >= config.batch_size, data.weight, 0.0)
    return {STATISTICS: Mean(moments, weight)}, state, {}


def batch_moments(config: LayerwiseConfig, encoders: Encoders, params: Params, batch: Arrays, key: Key) -> Moments:
    """The mean and the mean square of a batch before each norm of the projection heads, less the running mean.

    Examples are seen as they are scored: images whole, no unit dropped; of several captions one is drawn. A norm
    normalises by the batch itself, so that the norms after it do not depend on statistics that are still to be found.

    >>> from fedjax_mm.models import Transformer
    >>> init = lambda key, x: {"embeddings": jnp.eye(2), "layers": {}}
    >>> apply = lambda params, x: x @ params["embeddings"]
    >>> encoder = Transformer(0, 2, init, apply, apply, jax.ShapeDtypeStruct((1, 2), jnp.float32), None)
    >>> config = LayerwiseConfig(projection_hidden=2, projection_dim=3)
    >>> params = network.init_network(config, {"image": encoder}, None, jax.random.key(0))
    >>> params["image"]["head"]["dense_0"]["kernel"] = jnp.eye(2)
    >>> batch = {"image": jnp.array([[1.0, 0.0], [3.0, 2.0]])}  # the running means are 0
    >>> norm = batch_moments(config, {"image": encoder}, params, batch, jax.random.key(1))["image"]["norm_0"]
    >>> norm["mean"].tolist(), norm["square"].tolist()  # means of 1 and 3, of 0 and 2, and of their squares
    ([2.0, 1.0], [5.0, 2.0])
    """
    projection = heads.projection(config.projection_hidden, config.projection_dim, rate=0.0, keep=0.0)
    found = {}
    for i, (m, encoder) in enumerate(encoders.items()):
        view = network.draw_view(batch[m], encoder, None, jax.random.fold_in(key, i))
        feature = encoder.apply(params[m]["encoder"], view)
        old = params[m]["head"]
        _, new = projection.train(old, feature, key)
        found[m] = {name: _moments(old[name], new[name], len(feature)) for name in new if "running_mean" in new[name]}
    return found


def _moments(old: PyTree, new: PyTree, size: int) -> Mapping[str, jax.Array]:
    """Of a batch of `size` with the statistics of the norm `new`, whose variance is the unbiased one."""
    mean = new["running_mean"] - old["running_mean"]
    return {"mean": mean, "square": new["running_variance"] * (size - 1) / size + mean**2}


def pool_statistics(head: PyTree, moments: Mapping[str, Mapping[str, jax.Array]]) -> PyTree:
    """The head whose running statistics are those of all examples: E[x], and E[x^2] - E[x]^2.

    moments: norm -> the means over all clients' examples, as `batch_moments` gives them for this head.

    >>> norm = {"running_mean": jnp.ones(1), "running_variance": jnp.ones(1), "scale": jnp.ones(1)}
    >>> moments = {"mean": jnp.array([2.0]), "square": jnp.array([5.0])}
    >>> new = pool_statistics({"norm_0": norm}, {"norm_0": moments})["norm_0"]
    >>> {name: leaf.tolist() for name, leaf in new.items()}
    {'running_mean': [3.0], 'running_variance': [1.0], 'scale': [1.0]}
    """
    new = dict(head)
    for name, of in moments.items():
        variance = jnp.maximum(of["square"] - of["mean"] ** 2, 0)  # rounding may take it below 0
        mean = head[name]["running_mean"] + of["mean"]
        new[name] = {**head[name], "running_mean": mean, "running_variance": variance}
    return new


def recalibrate(
    state: Params, uploads: Mapping[str, Upload], public: Arrays | None, key: Key
) -> tuple[PyTree, Metrics]:
    """The server's parameters with the statistics that the clients' moments pool to, and no metrics.

    uploads: {cohort: {"statistics": Mean}}. Where nobody had a full batch, everything stays. public, key: not used.

    >>> norm = {"running_mean": jnp.zeros(1), "running_variance": jnp.ones(1)}
    >>> sent = {"image": {"norm_0": {"mean": jnp.array([2.0]), "square": jnp.array([5.0])}}}
    >>> uploads = {"all": {"statistics": Mean(sent, jnp.float32(8))}}
    >>> new, _ = recalibrate({"image": {"encoder": {}, "head": {"norm_0": norm}}}, uploads, None, jax.random.key(0))
    >>> new["image"]["head"]["norm_0"]["running_mean"].tolist()
    [2.0]
    """
    pooled = aggregate.collect(uploads, STATISTICS)
    new = {m: {**state[m], "head": pool_statistics(state[m]["head"], of)} for m, of in pooled.value.items()}
    return {**state, **trees.where(pooled.weight > 0, new, {m: dict(state[m]) for m in new})}, {}
