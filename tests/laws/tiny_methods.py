"""A small instance of every registered method, and a toy for what the registered ones do not use.

`staged`: a frozen lower half that every client holds; only the upper half is trained and sent.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tiny_vilt

from fedjax_mm import aggregate, trees
from fedjax_mm.data.federated import FederatedData
from fedjax_mm.federate import Method, federate
from fedjax_mm.local import gradient_step, local_steps, masked_mean
from fedjax_mm.methods import (
    carmfl,
    creamfl,
    ditto,
    fedavg,
    fedclip,
    feddm,
    feddyn,
    fedet,
    fedftg,
    fedmekt,
    fedmsplit,
    fednova,
    fedproto,
    fedrep,
    fesem,
    flexmod,
    hafedformer,
    ifca,
    layerwise,
    mfedmc,
    pfedme,
    promptfl,
    scaffold,
    splitmix,
)
from fedjax_mm.methods.creamfl import encoder_averaging
from fedjax_mm.methods.creamfl.joint_space import Training
from fedjax_mm.methods.fedmekt import mmfl
from fedjax_mm.models import Model, heads, mlp
from fedjax_mm.models.autoencoder import AutoEncoder
from fedjax_mm.models.pretrained import Checkpoint
from fedjax_mm.models.transformer import Transformer
from fedjax_mm.types import Cohort, Download, Mean, Server

SIZES = {"A": 5, "B": 4, "AB": 6}
TWO = ("B", "AB")  # for methods that compile long: a cohort of another modality alone is of no other kind


class Tiny(NamedTuple):
    method: Method
    data: FederatedData


def _data(shape_a=(4,), cohorts=("A", "B", "AB")) -> FederatedData:
    """Cohorts over one pool of 120 examples; clients own 1 to 14 of them, one of B none."""
    rng = np.random.default_rng(0)
    arrays = {
        "a": rng.normal(size=(120, *shape_a)).astype(np.float32),
        "b": rng.normal(size=(120, 3, 2)).astype(np.float32),
        "label": rng.integers(0, 3, 120).astype(np.int32),
    }
    owned = iter(np.split(rng.permutation(120), np.cumsum([0, 1, 7, 9, 14, 3, 6, 8, 11, 4, 5, 10, 12, 13])[:-1]))
    clients = {name: [next(owned) for _ in range(n)] for name, n in (("B", 4), ("A", 4), ("AB", 6))}
    clients["A"].append(np.arange(9))
    has = {"A": "a", "B": "b", "AB": "ab"}
    arrays_of = {name: {k: arrays[k] for k in (*has[name], "label")} for name in cohorts}
    public = {"a": arrays["a"][:10] + 1, "b": arrays["b"][:10] - 1}
    owned_by = {name: clients[name] for name in cohorts}
    return FederatedData.from_arrays(arrays_of, owned_by, public=public, num_classes=3)


def _fedavg() -> Tiny:
    """With a server optimiser and a personal head."""
    config = fedavg.FedAvgConfig(client_lr=0.1, batch_size=4, epochs=2, server_optimizer="adam", server_lr=0.1)
    config, data = dataclasses.replace(config, prox=0.1, shared=("a", "b")), _data(cohorts=TWO)
    encoders = {"a": mlp.encoder((6,), 5), "b": mlp.encoder((), 5)}
    return Tiny(fedavg.build(config, data, encoders, heads.linear(3)), data)


def _neighbour(build, config, cohorts=("AB",)) -> Tiny:
    """With linear models, and one cohort for methods that treat parts as FedAvg does."""
    linear = Model(lambda key, x: jax.random.normal(key, (x.shape[-1], 3)) / 2, lambda params, x: x @ params)
    data = _data(cohorts=cohorts)
    return Tiny(build(config, data, {"a": linear, "b": mlp.encoder((), 3)}, linear), data)


def _fedclip() -> Tiny:
    data = _data(cohorts=("A",))
    return Tiny(fedclip.build(fedclip.FedCLIPConfig(5.0, SGD), data, ["a"], np.eye(3, 4, dtype=np.float32)), data)


def _promptfl() -> Tiny:
    data, names = _data(cohorts=("A",)), np.arange(12, dtype=np.float32).reshape(3, 1, 4) / 10
    config = promptfl.PromptFLConfig(2, 5.0, SGD)
    return Tiny(promptfl.build(config, data, ["a"], names, lambda prompts: jnp.tanh(prompts).mean(1)), data)


def _fedet() -> Tiny:
    """With a small model of another kind for each cohort."""
    small = {"B": {"b": mlp.encoder((4,), 3)}, "AB": {"a": mlp.encoder((), 3), "b": mlp.encoder((), 3)}}
    build = lambda *given: fedet.build(*given, small)
    return _neighbour(build, fedet.FedETConfig(0.1, 2, 0.5, SGD), TWO)


def _autoencoder() -> AutoEncoder:
    """Maps step by step in place of the LSTMs, which take a minute to compile in every law."""
    features = {"a": 4, "b": 2}

    def init(key):
        draw = lambda i, shape: jax.random.normal(jax.random.fold_in(key, i), shape) / 2
        halves = [(f"encoder_{m}", (f, 3)) for m, f in features.items()]
        halves += [(f"decoder_{m}", (3, f)) for m, f in features.items()]
        return {part: draw(i, shape) for i, (part, shape) in enumerate(halves)}

    def encode(params, m, x):
        h = jnp.tanh(x @ params[f"encoder_{m}"]).astype(jnp.float32)
        return h.cumsum(1), h

    def decode(params, m, code, steps):
        return (jnp.repeat(code[:, None], steps, 1) @ params[f"decoder_{m}"]).astype(jnp.float32)

    return AutoEncoder(tuple(features), init, encode, decode)


def _autoencoding(paper, config) -> Tiny:
    data = _data((3, 4), TWO)
    labelled = {**data.public, "label": np.arange(10) % 3}
    return Tiny(paper.build(config, data, _autoencoder(), labelled, 3), data)


def _fedmekt() -> Tiny:
    probe = fedmekt.Probe(unit="window")
    return _autoencoding(fedmekt, fedmekt.FedMEKTConfig(batch_size=4, epochs=1, proxy_batch=6, probe=probe))


def _mmfl() -> Tiny:
    probe = mmfl.Probe(unit="window")
    return _autoencoding(mmfl, mmfl.MMFLConfig(prox=0.1, moon=0.1, batch_size=4, epochs=1, probe=probe))


def _encoder(features: int, width: int = 3) -> Transformer:
    """Two layers of a matrix each, in place of attention, which takes long to compile in every law."""

    def init(key, batch):
        draw = lambda i, rows: jax.random.normal(jax.random.fold_in(key, i), (rows, width))
        return {"embeddings": draw(2, features), "layers": {f"{i:02d}": draw(i, width) for i in range(2)}}

    def apply(params, x, key=None, dropout_from=0):
        h = x.reshape(len(x), -1) @ params["embeddings"]
        for w in params["layers"].values():
            h = h + jnp.tanh(h @ w)
        return h

    example = jax.ShapeDtypeStruct((1, features), jnp.float32)
    return Transformer(2, width, init, apply, apply, example, Checkpoint({}, "", ()))


def _layerwise() -> Tiny:
    """The second stage; its clients all have both modalities, so there is one cohort."""
    data = _data()
    data = dataclasses.replace(data, cohorts={"AB": data.cohorts["AB"]})
    rates = {"a": (0.1, 0.1), "b": (0.1, 0.1)}  # times 4 / 256
    config = layerwise.LayerwiseConfig(rounds=(0, 4), encoder_lr=rates, head_lr=0.1, batch_size=4, epochs=2)
    config = dataclasses.replace(config, projection_hidden=4, projection_dim=3, head_dropout=0.0)
    encoders = {"a": _encoder(4), "b": _encoder(2)}  # an example has three of b, of which a step draws one
    return Tiny(layerwise.build(config, data, encoders)[1].method, data)


def _pictures_and_texts(build) -> Tiny:
    """A method for `image` and `text` on a and on one of three texts b."""
    names, data = {"a": "image", "b": "text"}, _data(cohorts=TWO)
    renamed = lambda tree: {names.get(k, k): v for k, v in tree.items()}
    cohorts = {name: dataclasses.replace(c, arrays=renamed(c.arrays)) for name, c in data.cohorts.items()}
    data = dataclasses.replace(data, cohorts=cohorts, public=renamed({**data.public, "b": data.public["b"][:, 0]}))
    return Tiny(build(data), data)


ENCODER = Model(
    lambda key, x: jax.random.normal(key, (x.shape[-1], 5)) / 2,
    lambda params, x: jnp.tanh(x @ params).astype(jnp.float32),
)
ENCODERS = {"image": ENCODER, "text": ENCODER}
HOLDS = {"B": {"text": ENCODER}, "AB": ENCODERS}
TRAINING = Training(client_lr=0.05, both_lr=0.05, server_lr=0.05, batch_size=4, epochs=2, server_epochs=0, block=4)


def _creamfl() -> Tiny:
    config = creamfl.CreamFLConfig(TRAINING, public_batch=6)
    return _pictures_and_texts(lambda data: creamfl.build(config, data, ENCODERS, HOLDS, {"B": 3}))


def _encoder_averaging() -> Tiny:
    config = encoder_averaging.AveragingConfig(TRAINING, both_weight=100.0)
    return _pictures_and_texts(lambda data: encoder_averaging.build(config, data, ENCODERS, {"B": 3}))


def _staged() -> Method:
    trains = {"A": "upper", "B": "upper_b", "AB": "upper"}

    def mask(params, name):
        return {part: part == trains[name] for part in params}

    def cohort(name):
        x = "b" if name == "B" else "a"

        def update(download, state, data, key):
            def loss(train, batch, key):
                params = trees.merge(train, download.held)
                hidden = jnp.tanh(batch[x].reshape(len(batch[x]), -1)[:, :4] @ params["lower"])
                scores = hidden @ params[trains[name]]
                ce = optax.softmax_cross_entropy_with_integer_labels(scores, batch["label"])
                return masked_mean(ce, batch["mask"]), {}

            tx = optax.adam(0.05)
            carry = (download.sent, tx.init(download.sent))
            (train, _), metrics = local_steps(gradient_step(loss, tx), carry, data, key, batch_size=4)
            part = trains[name]
            return {part: Mean(train[part] - download.sent[part], data.weight)}, state, metrics

        return Cohort(SIZES[name], lambda key: (), update)

    def init(key):
        draw = lambda i, shape: jax.random.normal(jax.random.fold_in(key, i), shape)
        return {"lower": draw(0, (4, 5)), "upper": draw(1, (5, 3)), "upper_b": draw(2, (5, 3))}

    def download(params, public):
        return {name: Download(*trees.partition(params, mask(params, name))) for name in SIZES}

    def server_update(params, uploads, public, key):
        change = {part: aggregate.collect(uploads, part).value for part in ("upper", "upper_b")}
        return {part: p + change[part] if part in change else p for part, p in params.items()}, {}

    return federate(Server(init, download, server_update), {name: cohort(name) for name in SIZES})


SGD = fedavg.FedAvgConfig(client_lr=0.1, batch_size=4, epochs=2)
TINY = {
    "fedavg": _fedavg,
    "fedmekt": _fedmekt,
    "mmfl": _mmfl,
    "layerwise": _layerwise,
    "feddat": lambda: Tiny(*tiny_vilt.feddat_tiny(warmup_rounds=1)),
    "peft": lambda: Tiny(*tiny_vilt.peft_tiny()),
    "creamfl": _creamfl,
    "encoder_averaging": _encoder_averaging,
    "scaffold": lambda: _neighbour(scaffold.build, SGD, TWO),
    "fednova": lambda: _neighbour(fednova.build, dataclasses.replace(SGD, prox=0.1)),
    "feddyn": lambda: _neighbour(feddyn.build, feddyn.FedDynConfig(0.1, SGD)),
    "ditto": lambda: _neighbour(ditto.build, ditto.DittoConfig(0.5, SGD)),
    "fedrep": lambda: _neighbour(fedrep.build, fedrep.FedRepConfig(3, SGD)),
    "pfedme": lambda: _neighbour(pfedme.build, pfedme.PFedMeConfig(2.0, 3, 0.1, SGD)),
    "ifca": lambda: _neighbour(ifca.build, ifca.IFCAConfig(2, SGD)),
    "fedproto": lambda: _neighbour(fedproto.build, fedproto.FedProtoConfig(0.5, SGD)),
    "fedclip": _fedclip,
    "carmfl": lambda: _neighbour(carmfl.build, carmfl.CARMFLConfig(3, 0.5, SGD), TWO),
    "mfedmc": lambda: _neighbour(mfedmc.build, mfedmc.MFedMCConfig(1, 0.5, fedavg=SGD)),
    "fesem": lambda: _neighbour(fesem.build, fesem.FeSEMConfig(2, SGD)),
    "fedmsplit": lambda: _neighbour(fedmsplit.build, fedmsplit.FedMSplitConfig(0.3, SGD), TWO),
    "flexmod": lambda: _neighbour(flexmod.build, flexmod.FlexModConfig(0.6, 0.5, SGD), TWO),
    "hafedformer": lambda: _neighbour(hafedformer.build, hafedformer.HAFedformerConfig(0.5, 0.3, SGD), TWO),
    "splitmix": lambda: _neighbour(splitmix.build, splitmix.SplitMixConfig(3, {"AB": 2}, 2, SGD)),
    "feddm": lambda: _neighbour(feddm.build, feddm.FedDMConfig(2, 1.0, 3, SGD)),
    "promptfl": _promptfl,
    "fedftg": lambda: _neighbour(fedftg.build, fedftg.FedFTGConfig(2, 1, 2, 4, 2, fedavg=SGD), TWO),
    "fedet": _fedet,
    "staged": lambda: Tiny(_staged(), _data()),
}
