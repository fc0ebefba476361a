"""Whether settings, encoders and data fit training in stages."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from fedjax_mm.checks import check_whole
from fedjax_mm.methods import fit, outputs
from fedjax_mm.methods.fit import Fit
from fedjax_mm.methods.layerwise.config import LayerwiseConfig
from fedjax_mm.methods.layerwise.network import PREDICTION, Encoders
from fedjax_mm.methods.layerwise.statistics import STATISTICS
from fedjax_mm.methods.settings import check_settings
from fedjax_mm.models import Transformer
from fedjax_mm.types import Arrays, Population, PyTree


def check_settings_fit(
    config: LayerwiseConfig, encoders: Encoders, num_classes: int | None, pretrained: Mapping[str, PyTree] | None
) -> None:
    """Raises ValueError where settings are out of range, or settings, encoders and weights do not fit each other."""
    check_settings(config, LayerwiseConfig)
    if num_classes is not None:
        check_whole("num_classes", num_classes, least=1)
    fit.check_mapping("encoders", encoders)
    if pretrained is not None:
        fit.check_mapping("pretrained", pretrained)
    if PREDICTION in encoders:
        raise ValueError(f"a modality may not be called {PREDICTION!r}, a part of that name is there already")
    fit.check_names(encoders, (PREDICTION, STATISTICS, "label", "prompts"))
    for m, encoder in encoders.items():
        if not isinstance(encoder, Transformer):
            raise ValueError(
                f"encoders[{m!r}] is {type(encoder).__name__}; give a Transformer, as models.vit.encoder does"
            )
    if num_classes is None and len(encoders) != 2:
        raise ValueError(f"the contrastive loss takes two modalities, not {list(encoders)}; or give num_classes")
    if config.batch_size < 2:
        raise ValueError(f"batch_size must be at least 2 for batch norm, got {config.batch_size}")
    if not config.rounds:
        raise ValueError("rounds is (); give the rounds of one stage or more")
    for m in encoders:
        if len(config.encoder_lr.get(m, ())) != len(config.rounds):
            wanted = f"one rate for each of {len(config.rounds)} stages"
            raise ValueError(f"encoder_lr[{m!r}] is {config.encoder_lr.get(m)}; it must have {wanted}")
        if pretrained is not None and m not in pretrained:
            raise ValueError(f"pretrained has {sorted(pretrained)}, but not {m!r}; give all encoders' weights or none")
    if config.fusion == "co-attention" and num_classes is not None and len(encoders) != 2:
        raise ValueError(f"co-attention is of two modalities, not {len(encoders)}; take another fusion")


def fit_of(config: LayerwiseConfig, encoders: Encoders, num_classes: int | None, population: Population) -> Fit:
    """What the stages are built for. Raises ValueError where a cohort lacks an array, or an encoder cannot take one."""
    needed = (*encoders, *(["label"] if num_classes else []))
    limits = fit.tokens(encoders, encoders) | ({"label": fit.classes(num_classes)} if num_classes else {})
    for name, cohort in population.cohorts.items():
        if missing := [m for m in needed if m not in cohort.arrays]:
            raise ValueError(f"clients of {name} have no {missing}; all need {list(needed)}")
        fit.check_complete(f"cohort {name}", cohort.arrays, needed)
        if num_classes and len(cohort.arrays["label"].shape) != 1:
            raise ValueError(f"array 'label' of cohort {name} is {[*cohort.arrays['label'].shape]}; it must be [E]")
        for m, encoder in encoders.items():
            check_features(f"cohort {name}", m, encoder, cohort.arrays[m])
        if config.cache_frozen:
            check_cache(config, encoders, f"cohort {name}", cohort.arrays)
    cohorts = {name: limits for name in population.cohorts}
    return Fit(population._replace(public=None), cohorts, step=config.batch_size)


def check_cache(config: LayerwiseConfig, encoders: Encoders, where: str, arrays: Mapping[str, Any]) -> None:
    """Raises ValueError, naming what to change, where frozen layers give of an example another thing in every step."""
    said = "cache_frozen is True, and "
    if config.plan != "layer-wise":
        raise ValueError(f"{said}plan {config.plan!r} freezes no layers; take plan='layer-wise' or cache_frozen=False")
    if config.frozen_dropout:
        raise ValueError(f"{said}frozen layers drop other units in every step; take frozen_dropout=False")
    for m, encoder in encoders.items():
        shape = arrays[m].shape
        if len(shape) > encoder.example.ndim:
            several = f"{where} has several {m!r} of an example, {[*shape]}"
            raise ValueError(f"{said}{several}, of which every step draws one; give one of each")
        if len(shape) == 4 and config.crop is not None:
            raise ValueError(f"{said}every step draws another part of {m!r}; take crop=None")
        if len(shape) == 4 and encoder.example.ndim == 4 and shape[1:3] != encoder.example.shape[1:3]:
            raise ValueError(f"{said}{m!r} has images of {[*shape[1:3]]} pixels; give those that the encoder takes")
        if encoder.hidden is None:
            raise ValueError(
                f"{said}encoders[{m!r}] has no `hidden`, by which it is cut; give one of models.transformer"
            )


def check_features(where: str, m: str, encoder: Transformer, array: Any) -> None:
    """Raises ValueError where an encoder cannot take the rows of an array, or gives of them no features [B, D]."""
    shape = array.shape[2:] if array.ndim > encoder.example.ndim else array.shape[1:]  # one of several captions
    rows = jax.ShapeDtypeStruct((2, *shape), array.dtype)
    if len(shape) == 3 and encoder.example.ndim == 4:
        rows = _as_seen(f"array {m!r} of {where}", rows, encoder)
    run = lambda: jax.eval_shape(lambda p, x: encoder.apply(p, x), *_first(encoder), rows)
    given = outputs.traced(f"encoders[{m!r}]", f"array {m!r} of {where}, {array.dtype} {[*array.shape]}", run)
    if given.shape != (2, encoder.width):
        raise ValueError(f"encoders[{m!r}] gives {[*given.shape]} of two rows; it must give [2, {encoder.width}]")


def _as_seen(what: str, rows: jax.ShapeDtypeStruct, encoder: Transformer) -> jax.ShapeDtypeStruct:
    """Images of the size that the encoder takes; they may be larger, so that parts are cut from them."""
    given, taken = rows.shape[1:3], encoder.example.shape[1:3]
    if given[0] < taken[0] or given[1] < taken[1]:
        raise ValueError(
            f"{what} has images of {[*given]} pixels, and the encoder takes {[*taken]}; decode them larger"
        )
    return jax.ShapeDtypeStruct((rows.shape[0], *taken, rows.shape[3]), rows.dtype)


def check_test(encoders: Encoders, num_classes: int | None, built: Fit, arrays: Arrays) -> None:
    """Raises ValueError where test arrays do not fit.

    Supervised, they are every modality [E, ...] and `label` [E]. Contrastive, they are the first modality, and the
    second, `prompts` [K, ...] with `label`, or both.
    """
    first, *others = encoders
    where, cohort = "the test set", next(iter(built.population.cohorts.values())).arrays
    fit.check_mapping(where, arrays)
    fit.check_complete(where, arrays, encoders)
    limits, rows = fit.tokens(encoders, encoders), {k: x for k, x in arrays.items() if k != "prompts"}
    if num_classes:
        needed, limits = (*encoders, "label"), limits | {"label": fit.classes(num_classes)}
    else:
        needed = (first, *(["label"] if "prompts" in arrays else []))
        if "prompts" in arrays:
            prompts, reader = {"prompts": arrays["prompts"]}, encoders[others[0]]
            fit.check_rows("the prompts", prompts, (), {}, fit.tokens({"prompts": reader}, prompts))
            check_features("the prompts", others[0], reader, arrays["prompts"])
            limits |= {"label": fit.classes(len(arrays["prompts"]), "the set of prompts")}
        elif others[0] not in arrays:
            raise ValueError(f"{where} has {sorted(arrays)}; it needs {others[0]!r} or 'prompts' to score {first!r} by")
    image = cohort[first]
    if image.ndim > encoders[first].example.ndim:  # clients have several views of an image, and the test has one
        image = jax.ShapeDtypeStruct((image.shape[0], *image.shape[2:]), image.dtype)
    fit.check_rows(where, rows, needed, {first: image, "label": np.zeros(1, np.int32)}, limits)
    for m in (m for m in encoders if m in arrays):
        check_features(where, m, encoders[m], arrays[m])


def _first(encoder: Transformer) -> tuple[PyTree]:
    return (jax.eval_shape(encoder.init, jax.random.key(0), encoder.example),)
