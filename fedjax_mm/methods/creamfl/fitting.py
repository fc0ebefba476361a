"""Whether data and models fit CreamFL and the baselines that average its encoders."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from fedjax_mm.checks import check_whole
from fedjax_mm.methods import fit, outputs
from fedjax_mm.methods.creamfl.joint_space import MODALITIES, modalities_of
from fedjax_mm.methods.creamfl.training import Encoders
from fedjax_mm.methods.fit import Fit
from fedjax_mm.types import Arrays, HasPopulation, Population


def fit_of(
    data: HasPopulation,
    server: Encoders,
    clients: Mapping[str, Encoders],
    num_classes: Mapping[str, int],
    one_width: bool = True,
) -> Fit:
    """What a method is built for. Raises ValueError where the data and the models do not fit each other.

    one_width: whether clients and server must represent in one width D, as where they exchange representations.
    """
    population = data.population
    _check_parts(population, server, clients, num_classes)
    public, limits = population.public or {}, {}
    widths = {
        f"server's {m}": _representation(f"the server's encoder of {m}", server[m], m, public[m], public[m])
        for m in MODALITIES
    }
    outputs.check_widths(widths)
    for name, cohort in population.cohorts.items():
        own = clients[name]
        fit.check_complete(f"cohort {name}", cohort.arrays, (*own, "label"))
        limits[name] = fit.tokens(own, own)
        encoder = f"the encoder of {name} of"
        given = {
            f"{name}'s {m}": _representation(f"{encoder} {m}", own[m], m, cohort.arrays[m], cohort.arrays[m])
            for m in own
        }
        seen = {
            f"{name}'s public {m}": _representation(f"{encoder} {m}", own[m], m, cohort.arrays[m], public[m])
            for m in own
        }
        outputs.check_widths({**given, **seen, **(widths if one_width else {})})
        if len(own) == 1:
            check_whole(f"num_classes[{name!r}]", num_classes[name], least=1)
            if len(shape := cohort.arrays["label"].shape) != 1:
                raise ValueError(f"array 'label' of cohort {name} is {[*shape]}; it must be [E]")
            limits[name] |= {"label": fit.classes(num_classes[name], f"num_classes[{name!r}]")}
    readers = [server, *clients.values()]
    known: list[Any] = [
        reader["text"] for reader in readers if getattr(reader.get("text"), "vocabulary", None) is not None
    ]
    smallest = {"text": min(known, key=lambda model: model.vocabulary)} if known else {}
    return Fit(population, limits, fit.tokens(smallest, public))


def check_test(
    server: Encoders, clients: Mapping[str, Encoders], num_classes: Mapping[str, int], built: Fit, arrays: Arrays
) -> None:
    """Raises ValueError where test arrays do not fit.

    They are `image` [I, ...], `text` [I, L] or [I, Q, L], and "<cohort>/image" or "<cohort>/text" with "<cohort>/label"
    for cohorts that classify.
    """
    where, public, cohorts = "the test set", built.population.public or {}, built.population.cohorts
    fit.check_mapping(where, arrays)
    pairs = {m: arrays[m] for m in MODALITIES if m in arrays}
    fit.check_rows(where, pairs, MODALITIES, {"image": public["image"]}, fit.tokens(server, server))
    _representation("the server's encoder of text", server["text"], "text", public["text"], arrays["text"])
    for key in (key for key in arrays if "/" in key):
        name, _, array = key.rpartition("/")
        if name not in clients or array not in (*clients[name], "label"):
            raise ValueError(
                f"array {key!r} of {where} is of no cohort that classifies; the cohorts are {sorted(clients)}"
            )
    for name, own in clients.items():
        rows = {key.rpartition("/")[2]: x for key, x in arrays.items() if key.startswith(f"{name}/")}
        if rows and len(own) == 1:
            limits = fit.tokens(own, own) | {"label": fit.classes(num_classes[name], f"num_classes[{name!r}]")}
            like = {m: cohorts[name].arrays[m] for m in own if m == "image"} | {"label": np.zeros(1, np.int32)}
            fit.check_rows(f"{where} of {name}", rows, (*own, "label"), like, limits)


def _representation(name: str, model: Any, m: str, like: Any, given: Any) -> tuple[int, ...]:
    """The shape of what an encoder that starts from `like` gives of two rows of `given`; texts may have several
    captions."""
    one = lambda x: jax.ShapeDtypeStruct((1, *x.shape[1 + (m == "text" and len(x.shape) == 3) :]), x.dtype)
    return outputs.output_shape(name, model, one(like), one(given))


def _check_parts(
    population: Population, server: Encoders, clients: Mapping[str, Encoders], num_classes: Mapping[str, int]
) -> None:
    """Raises ValueError where encoders, public arrays, labels or numbers of classes are missing."""
    for name, given in (("server", server), ("clients", clients), ("num_classes", num_classes)):
        fit.check_mapping(name, given)
    for name, own in clients.items():
        fit.check_mapping(f"clients[{name!r}]", own)
    public = population.public or {}
    if missing := [m for m in MODALITIES if m not in public or m not in server]:
        raise ValueError(
            f"the public arrays {sorted(public)} and the server's encoders {sorted(server)} need both image and text; "
            f"{missing} is missing"
        )
    if len(shape := np.shape(public["text"])) != 2:
        raise ValueError(f"the public texts are {shape}; they must be [P, L], one for each image")
    if set(clients) != set(population.cohorts):
        raise ValueError(f"encoders are given for cohorts {sorted(clients)}; the data has {sorted(population.cohorts)}")
    if unknown := sorted(set(num_classes) - set(population.cohorts)):
        raise ValueError(f"num_classes names cohorts {unknown}; the data has {sorted(population.cohorts)}")
    for name, cohort in population.cohorts.items():
        if set(names := modalities_of(cohort.arrays)) != set(clients[name]):
            raise ValueError(f"clients of {name} hold {list(names)} and have encoders of {list(clients[name])}")
        if not names:
            raise ValueError(f"cohort {name} holds neither image nor text; leave the cohort out")
        if len(names) == 1 and ("label" not in cohort.arrays or name not in num_classes):
            raise ValueError(f"clients of {name} have {names[0]} alone: they need an array 'label' and num_classes")
