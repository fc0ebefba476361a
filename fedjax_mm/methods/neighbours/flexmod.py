"""FlexMod: the modalities that matter, and those whose encoders still lag, get more of a client's training steps.

Bian, Wang, Xu, 2024, arXiv 2408.06549:

    q_m    the quality of the encoder of modality m, by prototypes     phi_m  the Shapley value of m
    p_m    the share of a client's steps that train encoder m          B      `budget`     beta   `need_weight`
    C_m^j  the prototype of class j in modality m, its mean embedding, as in FedProto

One round:
  1. The server turns q and phi into the shares p (`demand`, `allocate`), and sends a client the encoders of its
     modalities, their C_m and p_m, and the head (`server_download`).
  2. Client k measures the model that it received on its own examples (`measure`): the share of them whose nearest
     C_m^j is that of their class; the sums of their embeddings by class; and, where it has all modalities, in how many
     rows each set of modalities is right (`right_by_set`).
  3. It trains as in FedAvg, but for encoder m, which is trained in  p_m  of the steps and rests in the others (`works`,
     `client_update`).
  4. The server averages each part as in FedAvg, and the prototypes as in FedProto. q_m and phi_m are the means of what
     this round's clients measured (`server_update`). (flexmod_shares.py has what is no step of a client or server.)

With a budget of 1 all p_m are 1, and this is FedAvg.

What is not here: the paper's server learns by reinforcement (DDPG) what it allots from q, phi and the time that each
encoder takes. In its place stands a rule: p_m is proportional to  (1 - beta) phi_m + beta (1 - q_m),  both as shares of
their sums over m, is at most 1, and has the mean B. A budget is of steps, as if those of all encoders were as dear.
Choices where the paper's text was not at hand: the two measures, on clients' own examples; that they are of the model
received; that an encoder's steps lie evenly among a client's. A step here computes all gradients and drops those of an
encoder that rests, so that a round is no shorter and `costs.of` counts FedAvg's FLOPs and those of the measures: what a
client would save is 1 - p_m of the backward pass of encoder m. The metric "share/<m>" is p_m.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax

from fedjax_mm import aggregate
from fedjax_mm.federate import Method
from fedjax_mm.local import Batch, gradient_step, local_steps
from fedjax_mm.methods import fedavg, outputs
from fedjax_mm.methods.fedavg import FedAvgConfig, fitting, kind_weight, local_loss
from fedjax_mm.methods.fedavg.network import Encoders, Parts
from fedjax_mm.methods.neighbours import fedproto
from fedjax_mm.methods.neighbours.flexmod_shares import allocate, demand, right_by_set, works
from fedjax_mm.methods.neighbours.mfedmc_choice import shapley_values
from fedjax_mm.methods.neighbours.training import check_sgd, check_whole_model, named, take_named
from fedjax_mm.methods.settings import check_settings
from fedjax_mm.models import Model, as_encoder, as_encoders
from fedjax_mm.types import Arrays, ClientData, Download, HasPopulation, Key, Mean, Metrics, PyTree, Upload

STEP = "flexmod/step"  # beside the arrays of a batch: the number of the step


@dataclasses.dataclass(frozen=True)
class FlexModConfig:
    """Settings of one run."""

    budget: float = 0.6
    """B, the mean over encoders of the share of a client's steps that train them; above 0 and at most 1."""
    need_weight: float = 0.5
    """beta in 0..1: how much an encoder's want of quality counts, beside how much its modality matters."""
    fedavg: FedAvgConfig = FedAvgConfig()
    """How a client trains, by plain SGD, and how the server averages."""


def build(config: FlexModConfig, data: HasPopulation, encoders: Encoders, head: Model) -> Method:
    """The method for the cohorts of `data`. Arguments, scores and errors are those of `fedavg.build`.

    Where no cohort has all modalities phi is not known, and all count alike in its place. Raises ValueError too where
    `config.fedavg` has parts that are `shared`, or clients' optimiser is another than SGD.
    """
    check_settings(config, FlexModConfig)
    encoders, head = as_encoders("encoders", encoders), as_encoder(head, name="head")
    base = fedavg.build(config.fedavg, data, encoders, head)
    check_whole_model("FlexMod", config.fedavg)
    check_sgd("FlexMod", config.fedavg)
    held, examples = fitting.find_modalities(encoders, data.population)
    width = outputs.check_widths({m: outputs.output_shape(m, encoders[m], x) for m, x in examples.items()})
    shape = fitting.count_classes(encoders, head, examples), width
    server = base.server._replace(
        init=functools.partial(init_server, base.server.init, tuple(encoders), shape),
        download=functools.partial(server_download, config, held),
        update=functools.partial(server_update, config),
    )
    update = functools.partial(client_update, config, encoders, head)
    return base._replace(
        server=server, cohorts={name: one._replace(update=update) for name, one in base.cohorts.items()}
    )


def init_server(
    init: Callable[[Key], Mapping[str, PyTree]], modalities: tuple[str, ...], shape: tuple[int, int], key: Key
) -> dict[str, PyTree]:
    """The server's first state: that of FedAvg, which `init` gives, no "prototypes", and q and phi of 0, [M] each.

    shape: (K, D).

    >>> state = init_server(lambda key: {"params": {}, "opt": {}}, ("image", "text"), (3, 2), jax.random.key(0))
    >>> state["quality"].tolist(), state["prototypes"]["text"]["known"].tolist()
    ([0.0, 0.0], [0.0, 0.0, 0.0])
    """
    none = {m: {"mean": jnp.zeros(shape), "known": jnp.zeros(shape[0])} for m in modalities}
    zeros = jnp.zeros(len(modalities))
    return {**init(key), "prototypes": none, "quality": zeros, "shapley": zeros}


def server_download(
    config: FlexModConfig,
    modalities: Mapping[str, tuple[str, ...]],
    state: Mapping[str, PyTree],
    public: Arrays | None = None,
) -> dict[str, Download]:
    """Step 1: what FedAvg sends, and "prototype/<m>" and "share/<m>" of a client's modalities.

    >>> state = {"params": {"a": 1, "b": 2, "head": 3}, "prototypes": {"a": 4, "b": 5}}
    >>> state |= {"quality": jnp.array([0.5, 0.5]), "shapley": jnp.array([0.6, 0.2])}
    >>> sent = server_download(FlexModConfig(0.5, 0.0), {"phones": ("a",)}, state)["phones"].sent
    >>> {name: float(x) for name, x in sent.items()}
    {'a': 1.0, 'head': 3.0, 'prototype/a': 4.0, 'share/a': 0.75}
    """
    share = allocate(config.budget, demand(config.need_weight, state["quality"], state["shapley"]))
    of = {m: {"prototype": state["prototypes"][m], "share": share[i]} for i, m in enumerate(state["prototypes"])}
    parts = fedavg.server_download(modalities, state)
    extra = lambda own: {f"{kind}/{m}": of[m][kind] for kind in ("prototype", "share") for m in own}
    return {name: Download({**parts[name].sent, **extra(own)}) for name, own in modalities.items()}


def measure(
    config: FlexModConfig, encoders: Encoders, head: Model, received: Mapping[str, PyTree], data: ClientData, key: Key
) -> dict[str, dict[str, PyTree]]:
    """Step 2, of the received model on a client's own examples: {"prototype": {m: sums by class}, "quality": {m: []},
    "shapley": {m: []}}. "shapley" is empty but for a client that has all modalities.

    A quality is 0 while m has no prototype. received: `Download.sent`.
    """
    prototypes = take_named("prototype", received)
    complete = set(prototypes) == set(encoders)

    def step(total: PyTree, batch: Batch, key: Key) -> tuple[PyTree, Metrics]:
        embedded = fedproto.embed(encoders, received, batch)
        new: dict[str, PyTree] = {"right": {}, "rows": {}, "prototype": {}}
        for m, (h, there) in embedded.items():
            of_m = {m: prototypes[m]}
            nearest = fedproto.nearest_prototype({m: fedproto.SAME}, of_m, {m: {}}, {"label": batch["label"], m: h})
            known = (prototypes[m]["known"].sum() > 0) * there
            new["right"][m] = (known * (nearest == batch["label"])).sum()
            new["rows"][m] = there.sum()
            new["prototype"][m] = fedproto.class_totals(h, there, batch["label"], len(prototypes[m]["known"]))
        new["sets"] = right_by_set(head, received["head"], embedded, batch) if complete else ()
        return jax.tree.map(jnp.add, total, new), {}

    count = dict.fromkeys(prototypes, jnp.float32(0))
    sums = {
        m: {"total": jnp.zeros(c["mean"].shape), "count": jnp.zeros(c["known"].shape)} for m, c in prototypes.items()
    }
    zeros = {"right": count, "rows": count, "prototype": sums, "sets": jnp.zeros(2 ** len(count)) if complete else ()}
    total, _ = local_steps(step, zeros, data, key, batch_size=config.fedavg.batch_size, shuffle=False)
    quality = {m: total["right"][m] / jnp.maximum(total["rows"][m], 1) for m in prototypes}
    phi = shapley_values(total["sets"] / jnp.maximum(data.count, 1)) if complete else ()
    return {"prototype": total["prototype"], "quality": quality, "shapley": dict(zip(encoders, phi, strict=False))}


def client_update(
    config: FlexModConfig,
    encoders: Encoders,
    head: Model,
    download: Download,
    state: Parts,
    data: ClientData,
    key: Key,
) -> tuple[Upload, Parts, Metrics]:
    """Steps 2 and 3: what one client sends, no state, and the metrics of FedAvg.

    The upload has a Mean of each part, as FedAvg's, and "prototype/<m>", "quality/<m>" and, where the client has all
    modalities, "shapley/<m>".

    >>> from fedjax_mm.local import whole
    >>> add = Model(lambda key, x: jnp.zeros(2), lambda bias, x: x + bias[None])
    >>> data = whole({"x": jnp.zeros((4, 2)), "label": jnp.array([0, 0, 0, 0])})
    >>> none = {"mean": jnp.zeros((2, 2)), "known": jnp.zeros(2)}
    >>> sent = {"x": jnp.zeros(2), "head": jnp.zeros(2), "prototype/x": none, "share/x": jnp.float32(0.5)}
    >>> config = FlexModConfig(fedavg=FedAvgConfig(client_lr=1.0, batch_size=2))
    >>> upload, _, _ = client_update(config, {"x": add}, add, Download(sent), {}, data, jax.random.key(0))
    >>> upload["x"].value.tolist(), sorted(upload)  # one step of two, and then it rests
    ([0.5, -0.5], ['head', 'prototype/x', 'quality/x', 'shapley/x', 'x'])
    """
    received, share = download.sent, take_named("share", download.sent)
    start = {part: received[part] for part in (*share, "head")}
    measured = measure(config, encoders, head, received, data, key)

    def loss(params: Parts, batch: Batch, key: Key) -> tuple[jax.Array, Metrics]:
        now = {m: works(share[m], batch[STEP]) for m in share}
        rest = {m: jax.tree.map(lambda x, m=m: jnp.where(now[m], x, jax.lax.stop_gradient(x)), params[m]) for m in now}
        return local_loss(config.fedavg, encoders, head, {**params, **rest}, start, batch)

    optimizer = optax.sgd(config.fedavg.client_lr)
    descend = gradient_step(loss, optimizer)

    def step(carry: tuple[PyTree, jax.Array], batch: Batch, key: Key) -> tuple[tuple[PyTree, jax.Array], Metrics]:
        training, steps = carry
        training, metrics = descend(training, {**batch, STEP: steps}, key)
        return (training, steps + 1), metrics

    begin, how = ((start, optimizer.init(start)), jnp.float32(0)), config.fedavg
    trained, metrics = local_steps(step, begin, data, key, batch_size=how.batch_size, epochs=how.epochs)
    weight = kind_weight(how, start) * data.weight
    upload = {part: Mean(value, weight) for part, value in trained[0][0].items()}
    upload |= named("prototype", {m: Mean(sums, jnp.float32(1)) for m, sums in measured["prototype"].items()})
    for kind in ("quality", "shapley"):
        upload |= named(kind, {m: Mean(value, data.weight) for m, value in measured[kind].items()})
    return upload, state, metrics


def server_update(
    config: FlexModConfig,
    state: Mapping[str, PyTree],
    uploads: Mapping[str, Upload],
    public: Arrays | None,
    key: Key,
) -> tuple[dict[str, PyTree], Metrics]:
    """Step 4: the server's new state, and the metrics "share/<m>", with which the next round begins."""
    modalities = tuple(state["prototypes"])
    sums = {name: take_named("prototype", upload) for name, upload in uploads.items()}
    new = {
        **fedavg.server_update(config.fedavg, state, uploads, public, key)[0],
        "prototypes": fedproto.server_update({"prototypes": state["prototypes"]}, sums, public, key)[0]["prototypes"],
    }
    for kind in ("quality", "shapley"):
        slots = [f"{kind}/{m}" for m in modalities]
        if all(any(slot in upload for upload in uploads.values()) for slot in slots):
            found = [
                aggregate.average(aggregate.collect(uploads, slot), old)
                for slot, old in zip(slots, state[kind], strict=True)
            ]
            new[kind] = jnp.stack(found)
        else:
            new[kind] = state[kind]
    share = allocate(config.budget, demand(config.need_weight, new["quality"], new["shapley"]))
    return new, named("share", dict(zip(modalities, share, strict=True)))
