"""Whether data fit the split autoencoders of FedMEKT and MMFL."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from fedjax_mm.methods import fit, outputs
from fedjax_mm.methods.fedmekt.autoencoding import Owners, find_owners, modalities_of
from fedjax_mm.methods.fit import Fit
from fedjax_mm.models.autoencoder import AutoEncoder
from fedjax_mm.types import Population, PyTree


def fit_of(ae: AutoEncoder, population: Population, shared: bool) -> Fit:
    """What a method of split autoencoders is built for, once everything fits. shared: whether it reads public windows.

    Raises ValueError where a modality has no owner, a cohort owns nothing, or windows do not fit the autoencoder.
    """
    if not isinstance(ae, AutoEncoder):
        raise ValueError(f"autoencoder is {type(ae).__name__}; give models.autoencoder.split_lstm of the modalities")
    fit.check_names(ae.modalities, ("label", "labels", "knowledge"))
    check_owners(ae, find_owners(ae, population))
    for name, cohort in population.cohorts.items():
        fit.check_complete(f"cohort {name}", cohort.arrays, modalities_of(ae, cohort.arrays))
        check_windows(f"cohort {name}", ae, cohort.arrays)
    if shared:
        check_windows("the public examples", ae, population.public or {})
    kept = population if shared else population._replace(public=None)
    return Fit(kept, {name: {} for name in population.cohorts}, {} if shared else None)


def check_windows(where: str, ae: AutoEncoder, arrays: Mapping[str, Any]) -> None:
    """Raises ValueError where windows [E, T, F], arrays or their shapes, do not fit the autoencoder."""
    params = jax.eval_shape(ae.init, jax.random.key(0))
    for m in modalities_of(ae, arrays):
        shape, dtype = np.shape(arrays[m]), arrays[m].dtype
        if len(shape) != 3:
            raise ValueError(f"array {m!r} of {where} is {[*shape]}; it must be windows [E, T, F]")
        window = jax.ShapeDtypeStruct((1, *shape[1:]), dtype)
        run = lambda m=m, window=window: jax.eval_shape(lambda p, x: _there_and_back(ae, p, m, x), params, window)
        decoded = outputs.traced(f"the autoencoder of {m!r}", f"windows {[*window.shape]} of {where}", run)
        if decoded.shape != window.shape:
            raise ValueError(
                f"the autoencoder of {m!r} gives {[*decoded.shape]} of windows {[*window.shape]} of {where}"
            )


def _there_and_back(ae: AutoEncoder, params: PyTree, modality: str, x: jax.Array) -> jax.Array:
    return ae.decode(params, modality, ae.encode(params, modality, x)[0][:, -1], x.shape[1])


def check_owners(ae: AutoEncoder, owners: Owners) -> None:
    """Raises ValueError where a modality has no owner or a cohort owns nothing."""
    for m in ae.modalities:
        if not any(m in modalities for modalities in owners.values()):
            raise ValueError(f"no client holds modality {m!r}: the cohorts have {dict(owners)}; drop it or add clients")
    for name, modalities in owners.items():
        if not modalities:
            raise ValueError(f"cohort {name} holds none of the modalities {list(ae.modalities)}; leave the cohort out")
