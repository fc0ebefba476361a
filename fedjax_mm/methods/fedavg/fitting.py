"""Whether data and models fit federated averaging."""

from collections.abc import Mapping

import jax
import numpy as np
import optax

from fedjax_mm.checks import say
from fedjax_mm.methods import fit, outputs
from fedjax_mm.methods.fedavg.network import Encoders
from fedjax_mm.methods.fit import Fit, Limit
from fedjax_mm.models import Model
from fedjax_mm.types import Arrays, Population

Modalities = Mapping[str, tuple[str, ...]]  # cohort -> the modalities of its clients
Examples = Mapping[str, jax.ShapeDtypeStruct]  # modality -> a batch [1, ...]


def find_modalities(encoders: Encoders, population: Population) -> tuple[Modalities, Examples]:
    """({cohort: the modalities that its arrays have}, {modality: the shape of a batch [1, ...]}).

    Raises ValueError for a modality that no cohort holds or that is called like a part or an array, for cohorts that
    hold different examples of one modality, and for a cohort without a modality or without labels.
    """
    fit.check_mapping("encoders", encoders)
    fit.check_names(encoders, ("head", "label"))
    modalities = {name: tuple(m for m in encoders if m in c.arrays) for name, c in population.cohorts.items()}
    for modality in encoders:
        if not any(modality in own for own in modalities.values()):
            raise ValueError(
                f"no client holds modality {modality!r}: the cohorts have {modalities}; drop its encoder or add clients"
            )
    examples = {}
    for name, own in modalities.items():
        arrays = population.cohorts[name].arrays
        if not own:
            raise ValueError(f"cohort {name} holds none of the modalities {list(encoders)}; leave the cohort out")
        if "label" not in arrays:
            raise ValueError(f"cohort {name} has no array 'label'; FedAvg trains on labels 0..K-1")
        fit.check_complete(f"cohort {name}", arrays, ("label",))
        for m in own:
            fit.check_kind(f"array {m!r} of cohort {name}", arrays[m], examples.get(m, arrays[m]))
            examples[m] = jax.ShapeDtypeStruct((1, *arrays[m].shape[1:]), arrays[m].dtype)
    return modalities, {m: examples[m] for m in encoders}


def count_classes(encoders: Encoders, head: Model, examples: Examples) -> int:
    """K, the width of the head's output, from shapes alone. Raises ValueError where encoders and head do not fit."""
    shapes = {m: outputs.output_shape(f"encoders[{m!r}]", encoders[m], x) for m, x in examples.items()}
    embedding = jax.ShapeDtypeStruct((1, outputs.check_widths(shapes)), np.float32)
    logits = outputs.output_shape("head", head, embedding)
    if len(logits) != 2 or logits[0] != 2:
        raise ValueError(f"the head gives {[*logits]} of two embeddings; it must give logits [2, K]")
    return logits[1]


def fit_of(encoders: Encoders, num_classes: int, modalities: Modalities, population: Population) -> Fit:
    """What the method is built for."""
    limits = {}
    for name, cohort in population.cohorts.items():
        arrays, own = cohort.arrays, modalities[name]
        present = {f"has_{m}": Limit(0, 1, f"whether an example has {m}") for m in own if f"has_{m}" in arrays}
        for array in ("label", *present):
            if len(arrays[array].shape) != 1:
                raise ValueError(f"array {array!r} of cohort {name} is {[*arrays[array].shape]}; it must be [E]")
        booleans = {array for array in present if arrays[array].dtype == bool}
        limits[name] = {"label": fit.classes(num_classes), **fit.tokens(encoders, own)}
        limits[name] |= {array: limit for array, limit in present.items() if array not in booleans}
    return Fit(population._replace(public=None), limits)


def check_test(encoders: Encoders, num_classes: int, examples: Examples, arrays: Arrays) -> None:
    """Raises ValueError where test arrays do not fit: modalities [E, ...] and `label` [E]."""
    fit.check_mapping("the test set", arrays)
    given = [m for m in encoders if m in arrays]
    if not given:
        raise ValueError(f"the test set has {sorted(arrays)}, none of the modalities {list(encoders)}")
    fit.check_complete("the test set", arrays, given)
    limits = {"label": fit.classes(num_classes), **fit.tokens(encoders, given)}
    fit.check_rows("the test set", arrays, ["label"], {**examples, "label": np.zeros(1, np.int32)}, limits)


def check_optimizer(optimizer: optax.GradientTransformation | None) -> None:
    """Raises ValueError where a server optimiser of one's own is none."""
    if optimizer is not None and not all(callable(getattr(optimizer, name, None)) for name in ("init", "update")):
        raise ValueError(
            f"server_optimizer is {say(optimizer)}; give an optax transform such as optax.adam(0.1), or None"
        )
