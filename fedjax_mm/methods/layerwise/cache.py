"""What frozen layers give of a client's examples, computed once a stage and kept."""

import jax
import jax.numpy as jnp

from fedjax_mm.local import take
from fedjax_mm.methods.layerwise.config import LayerwiseConfig
from fedjax_mm.methods.layerwise.network import Encoders, Params, frozen_name
from fedjax_mm.methods.layerwise.plan import StageSpec
from fedjax_mm.models import transformer
from fedjax_mm.types import Arrays


def frozen_outputs(
    config: LayerwiseConfig, encoders: Encoders, stage: StageSpec, params: Params, arrays: Arrays
) -> dict[str, jax.Array]:
    """{frozen_name(m): [E, T, D] float32}: all tokens of every example after the frozen layers of the stage.

    They are computed in batches of a step's size. arrays: every modality [E, ...].

    >>> import functools
    >>> from fedjax_mm.models import vit
    >>> encoders = {"image": vit.encoder(image=4, patch=2, dim=6, depth=2, heads=2, mlp=8)}
    >>> stage = StageSpec(1, {"image": range(1, 2)}, embeddings=False)
    >>> encoder = jax.eval_shape(encoders["image"].init, jax.random.key(0), encoders["image"].example)
    >>> arrays = {"image": jax.ShapeDtypeStruct((5, 4, 4, 3), jnp.float32)}
    >>> keep = functools.partial(frozen_outputs, LayerwiseConfig(), encoders, stage)
    >>> jax.eval_shape(keep, {"image": {"encoder": encoder}}, arrays)  # four patches and the class token
    {'image/frozen': ShapeDtypeStruct(shape=(5, 5, 6), dtype=float32)}
    """
    outputs = {}
    for m, encoder in encoders.items():
        assert encoder.hidden is not None  # `build` refuses such an encoder
        frozen = transformer.first(params[m]["encoder"], stage.layers[m].start)
        total = len(arrays[m])
        size = min(config.batch_size, total)
        rows = jnp.minimum(jnp.arange(-(-total // size) * size), total - 1).reshape(-1, size)
        of_rows = lambda some, m=m, run=encoder.hidden, frozen=frozen: run(frozen, take({m: arrays[m]}, some)[m])
        tokens = jax.lax.map(of_rows, rows)
        outputs[frozen_name(m)] = tokens.reshape(-1, *tokens.shape[2:])[:total]
    return outputs
