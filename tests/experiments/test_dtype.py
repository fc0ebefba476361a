"""--dtype bfloat16 reaches the models of every study: its layers multiply in bfloat16, and only then."""

import dataclasses
import re

import jax
import numpy as np
import pytest

from experiments import pretrain_vilt
from experiments.common import data
from experiments.creamfl import models as creamfl
from experiments.fedavg import study as fedavg
from experiments.fedmekt import study as fedmekt
from experiments.layerwise import study as layerwise


def products(function, *shapes):
    """The type of each operand of each matrix product."""
    lines = re.findall(r"dot_general.*: \((.*)\) ->", jax.jit(function).lower(*shapes).as_text())
    return [kind for line in lines for kind in re.findall(r"[x<]([a-z]+\d+)>", line)]


def of_model(model, batch):
    return products(model.apply, jax.eval_shape(model.init, jax.random.key(0), batch), batch)


def problem(study, dtype):
    settings = study.PRESETS["digits"].problem
    return data.load_problem(dataclasses.replace(settings, common=dataclasses.replace(settings.common, dtype=dtype)), 0)


def of_fedavg(dtype):
    found = problem(fedavg, dtype)
    models = data.encoders(found.dataset, dtype=found.dtype)
    return sum((of_model(m, found.dataset.splits["train"][k][:2]) for k, m in models.items()), [])


def of_fedmekt(dtype):
    found = problem(fedmekt, dtype)
    ae, m = fedmekt.autoencoder_of(fedmekt.Shape(), found), found.dataset.modalities[0]
    x = found.dataset.splits["train"][m][:2]
    return products(lambda params: ae.encode(params, m, x), jax.eval_shape(ae.init, jax.random.key(0)))


def of_creamfl(dtype):
    made = creamfl.small(creamfl.Size(), 50, False, dtype)
    batches = {"image": np.zeros((2, 32, 32, 3), np.uint8), "text": np.ones((2, 5), np.int32)}
    models = [(m, model) for kind in (made.server, *made.clients.values()) for m, model in kind.items()]
    return sum((of_model(model, batches[m]) for m, model in models), [])


def of_layerwise(dtype):
    settings = layerwise.PRESETS["scenes"]
    settings = dataclasses.replace(settings, common=dataclasses.replace(settings.common, dtype=dtype))
    model = layerwise._encoder("image", np.zeros((2, 32, 32, 3), np.uint8), settings)
    return of_model(model, np.zeros((2, 32, 32, 3), np.uint8))


def of_feddat(dtype):
    model = pretrain_vilt.encoder(pretrain_vilt.Size(depth=1), dtype)
    trunk = jax.eval_shape(model.init, jax.random.key(0), model.example)
    return products(model.start, trunk, model.example)


@pytest.mark.parametrize("study", [of_fedavg, of_fedmekt, of_creamfl, of_layerwise, of_feddat])
def test_products_have_the_precision_that_is_asked_for(study):
    assert set(study("float32")) == {"f32"}
    kinds = study("bfloat16")
    # What pools words and places positions is no layer's product, and small.
    assert kinds.count("bf16") >= 4 * kinds.count("f32") and set(kinds) <= {"bf16", "f32"}
