"""PromptFL: clients learn and send a few context vectors before the classes' names, and no parameters of a model.

Guo, Guo, Wang, Xu, 2022, arXiv 2208.11625, with the prompts of CoOp (Zhou, Yang, Loy, Liu, IJCV 2022, 2109.01134):

    f(x)  frozen features of a picture [D], such as CLIP's    g    the frozen encoder of texts, on words' embeddings
    v_1, ..., v_M  the context, shared by all classes [M, W]  c_j  the embeddings of class j's name, L words [L, W]

One round:
  1. The server sends v.
  2. Client k trains v on the cross-entropy of  s cos(f(x), g([v_1, ..., v_M, c_j]))  over the classes j (`prompts`,
     `prompt_head`), through the frozen g, and sends it.
  3. The server averages v.

This is FedAvg, whose encoders have no parameters and whose head has v alone, so that all of its settings, weights and
scores are the same. Features are arrays [E, D] that were computed once; g is held by all, neither sent nor trained.
Where clients have several modalities in the space of g, an example's feature is the mean of theirs. Where the paper's
text was not at hand: v starts at N(0, .02^2), the context comes before the name, and s is CLIP's 100.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_mm.checks import check_array, check_callable, check_names, population_of
from fedjax_mm.federate import Method
from fedjax_mm.losses import unit
from fedjax_mm.methods import fedavg
from fedjax_mm.methods.fedavg import FedAvgConfig
from fedjax_mm.methods.settings import check_settings
from fedjax_mm.models import Model
from fedjax_mm.types import HasPopulation


@dataclasses.dataclass(frozen=True)
class PromptFLConfig:
    """Settings of one run."""

    context: int = 16
    """M, how many context vectors are learned."""
    scale: float = 100.0
    """s, by which the cosine of a picture and a prompt is multiplied."""
    fedavg: FedAvgConfig = FedAvgConfig()
    """How the context is trained and averaged."""


TextEncoder = Callable[[jax.Array], jax.Array]  # embeddings of words [K, M + L, W] -> features [K, D]


def build(
    config: PromptFLConfig,
    data: HasPopulation,
    modalities: Sequence[str],
    names: jax.typing.ArrayLike,
    text: TextEncoder,
) -> Method:
    """The method for the cohorts of `data`, whose arrays of these modalities are features [E, D].

    names: [K, L, W], the embeddings of the words of each class's name. text: g, from prompts [K, M + L, W] to features
    [K, D]; which places are padding it must know itself. Scores and errors are those of `fedavg.build`. Raises
    ValueError too where `names` is no such array, and where g takes no such prompts or gives features of other widths.
    """
    check_settings(config, PromptFLConfig)
    given = check_array("names", names, kinds=(np.floating,), shape="[K, L, W]")
    if not np.isfinite(given).all():
        raise ValueError("names holds NaN or infinity; give the finite embeddings of the words of every class's name")
    check_callable("text", text, "(prompts [K, M + L, W]) -> features [K, D]")
    features = features_of(config, given, text)
    for name, cohort in population_of(data).cohorts.items():
        for m in check_names("modalities", modalities):
            if m in cohort.arrays and cohort.arrays[m].shape[1:] != features.shape[1:]:
                found = f"array {m!r} of cohort {name} is {[*cohort.arrays[m].shape]}"
                raise ValueError(f"{found}; it must be [E, {features.shape[1]}], as text gives features of this width")
    same = Model(lambda key, x: {}, lambda params, x: x)
    return fedavg.build(config.fedavg, data, dict.fromkeys(modalities, same), prompt_head(config, given, text))


def features_of(config: PromptFLConfig, names: np.ndarray, text: TextEncoder) -> jax.ShapeDtypeStruct:
    """The shape [K, D] of the features that g gives to prompts. Raises ValueError where it gives none.

    >>> features_of(PromptFLConfig(context=2), np.ones((3, 1, 4), "f"), lambda prompts: prompts.mean(1)).shape
    (3, 4)
    """
    classes, length, width = names.shape
    prompt = jax.ShapeDtypeStruct((classes, config.context + length, width), names.dtype)
    try:
        found = jax.eval_shape(text, prompt)
    except (TypeError, ValueError) as error:
        raise ValueError(f"text cannot take prompts {[*prompt.shape]}: {error}") from error
    if getattr(found, "ndim", None) != 2 or found.shape[0] != classes:
        raise ValueError(f"text gives {found} of prompts {[*prompt.shape]}; it must give features [{classes}, D]")
    return found


def prompts(context: jax.Array, names: jax.Array) -> jax.Array:
    """[K, M + L, W]: the context [M, W] before each class's name, names [K, L, W].

    >>> prompts(jnp.array([[5.0], [6.0]]), jnp.array([[[1.0]], [[2.0]]]))[..., 0].tolist()
    [[5.0, 6.0, 1.0], [5.0, 6.0, 2.0]]
    """
    repeated = jnp.broadcast_to(context[None], (len(names), *context.shape))
    return jnp.concatenate([repeated, names], axis=1)


def prompt_head(config: PromptFLConfig, names: jax.typing.ArrayLike, text: TextEncoder) -> Model:
    """The head whose parameters are v [M, W]: s cos(f, g(prompt j)), logits [B, K] of features [B, D].

    >>> names, first = jnp.array([[[3.0, 4.0]], [[0.0, 1.0]]]), lambda prompts: prompts[:, -1]
    >>> head = prompt_head(PromptFLConfig(context=1, scale=10.0), names, first)
    >>> [round(x, 4) for x in head.apply(jnp.ones((1, 2)), jnp.array([[7.0, 0.0]]))[0].tolist()]
    [6.0, 0.0]
    """
    known = jnp.asarray(names)

    def apply(context: jax.Array, features: jax.Array) -> jax.Array:
        return config.scale * unit(features) @ unit(text(prompts(context, known))).T

    draw = lambda key, x: 0.02 * jax.random.normal(key, (config.context, known.shape[-1]), known.dtype)
    return Model(draw, apply)
