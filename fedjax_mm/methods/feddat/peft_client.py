"""One client of peft.py: its state, its loss, its update, and its answers."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from fedjax_mm import trees
from fedjax_mm.local import Batch, local_steps, masked_mean
from fedjax_mm.methods.feddat.answers import Answers, answers_of
from fedjax_mm.methods.feddat.config import PEFTConfig
from fedjax_mm.methods.feddat.vqa_tuning import TrainState, adamw, descend, dropping, schedule
from fedjax_mm.methods.regularisers import proximal_term, pull_term, update_pull
from fedjax_mm.methods.settings import is_used
from fedjax_mm.models import Model, Vilt
from fedjax_mm.types import ClientData, Download, Key, Mean, Metrics, PyTree, Upload


def client_init(
    config: PEFTConfig, model: Vilt, head: Model | Answers, init: Callable[[Key], PyTree], key: Key
) -> PyTree:
    """A client's state before its first round: its head and rounds, FedDyn's g_k ("pull"), and w where it is its own.

    init: key -> w, {"tuning": what is tuned besides the trunk, "trunk": tuned leaves of the trunk}.

    >>> import types
    >>> given = types.SimpleNamespace(width=5), Model(lambda key, x: x[0], lambda params, x: x), lambda key: {}
    >>> sorted(client_init(PEFTConfig(), *given, jax.random.key(0)))
    ['head', 'rounds']
    >>> sorted(client_init(PEFTConfig(travels=False), *given, jax.random.key(0)))
    ['head', 'rounds', 'tuned']
    """
    keys = jax.random.split(key)
    state = {"head": head.init(keys[1], jnp.zeros((1, model.width))), "rounds": jnp.int32(0)}
    if is_used(config.dyn):
        state["pull"] = optax.tree.zeros_like(init(keys[0]))
    return state if config.travels else {**state, "tuned": init(keys[0])}


def apply_tuned(
    model: Vilt, head: Model | Answers, tuned: PyTree, frozen: PyTree, head_params: PyTree, batch: Batch
) -> jax.Array:
    """f(x; w, h_k), logits [B, K].

    tuned: w. frozen: the trunk's other leaves, None where w has the leaf. head_params: h_k.

    >>> import types
    >>> model = types.SimpleNamespace(apply=lambda trunk, batch, tuning: batch["x"] * trunk["norm"] + tuning)
    >>> head = Model(lambda key, x: (), lambda params, x: params * x)
    >>> tuned, frozen = {"tuning": 1.0, "trunk": {"norm": None}}, {"norm": 5.0}
    >>> apply_tuned(model, head, tuned, frozen, 2.0, {"x": jnp.array([[0.0, 1.0]])}).tolist()
    [[2.0, 12.0]]
    """
    return answers_of(head).logits(head_params, _features(model, tuned, frozen, batch), batch)


def _features(model: Vilt, tuned: PyTree, frozen: PyTree, batch: Batch) -> PyTree:
    return model.apply(trees.merge(tuned["trunk"], frozen), batch, tuned["tuning"])


def client_loss(
    config: PEFTConfig,
    model: Vilt,
    head: Model | Answers,
    received: PyTree,
    frozen: PyTree,
    state: PyTree,
    params: tuple[PyTree, PyTree],
    batch: Batch,
    key: Key | None = None,
) -> tuple[jax.Array, Metrics]:
    """A client's loss [] on a batch, and {"score"}. params: (w, h_k); received: w_0; state: it holds FedDyn's g_k.

    key: turns on the dropout of a model that has one.

    >>> import types
    >>> model = types.SimpleNamespace(apply=lambda trunk, batch, tuning: batch["x"] + tuning)
    >>> head = Model(lambda key, x: (), lambda params, x: params * x)
    >>> batch = {"x": jnp.array([[0.0, 0.0]]), "target": jnp.array([[1.0, 0.0]]), "mask": jnp.ones(1)}
    >>> tuned = lambda value: {"tuning": jnp.array([[value, 0.0]]), "trunk": {}}
    >>> for mu in (0.0, 1.0):
    ...     config = PEFTConfig(prox=mu)
    ...     value, _ = client_loss(config, model, head, tuned(0.0), {}, {}, (tuned(2.0), 1.0), batch)
    ...     print(round(float(value), 4))
    0.8201
    2.8201
    """
    tuned, head_params = params
    answers = answers_of(head)
    batch = answers.prepare(batch)
    z = apply_tuned(dropping(model, key), head, tuned, frozen, head_params, batch)
    value = answers.loss(config.training, z, batch)
    mu = config.prox + config.dyn
    if is_used(mu):
        value += proximal_term(mu, tuned, received)
    if is_used(config.dyn):
        value -= pull_term(state["pull"], tuned)
    return value, {"score": masked_mean(answers.points(z, batch), batch["mask"])}


def step_head(
    config: PEFTConfig,
    model: Vilt,
    head: Model | Answers,
    frozen: PyTree,
    tuned: PyTree,
    own: TrainState,
    batch: Batch,
    rate: jax.Array | float,
    key: Key | None = None,
) -> TrainState:
    """One more AdamW step of h_k on a batch's task loss, for `head_steps` above 1: the head and its AdamW after it.

    tuned: w before the batch's first step, and key that step's. Their features are those of that step, which XLA
    computes again in part.

    >>> import types
    >>> model = types.SimpleNamespace(apply=lambda trunk, batch, tuning: batch["x"] + tuning)
    >>> head = Model(lambda key, x: (), lambda params, x: params * x)
    >>> batch = {"x": jnp.array([[1.0, 0.0]]), "target": jnp.array([[1.0, 0.0]]), "mask": jnp.ones(1)}
    >>> own = TrainState(jnp.float32(1), adamw(PEFTConfig().training).init(jnp.float32(1)))
    >>> tuned = {"tuning": 0.0, "trunk": {}}
    >>> round(float(step_head(PEFTConfig(), model, head, {}, tuned, own, batch, rate=0.5).params), 1)
    1.5
    """

    answers = answers_of(head)
    batch = answers.prepare(batch)

    def loss(params: PyTree) -> jax.Array:
        z = apply_tuned(dropping(model, key), head, tuned, frozen, params, batch)
        return answers.loss(config.training, z, batch)

    return descend(adamw(config.training), rate, jax.grad(loss)(own.params), own)


def _step_apart(
    config: PEFTConfig,
    model: Vilt,
    head: Model | Answers,
    frozen: PyTree,
    loss: Callable,
    rate: Callable[[jax.Array], jax.Array],
    carry: tuple[tuple[TrainState, TrainState], jax.Array],
    batch: Batch,
    key: Key,
) -> tuple[tuple, Metrics]:
    """A batch with `head_steps` above 1: a step of w and several of h_k, each with an AdamW of its own."""
    (tuned, own), i = carry
    (value, metrics), grads = jax.value_and_grad(loss, has_aux=True)((tuned.params, own.params), batch, key)
    tx = adamw(config.training)
    after, own = (descend(tx, rate(i), d, part) for d, part in zip(grads, (tuned, own), strict=True))
    for _ in range(config.head_steps - 1):
        own = step_head(config, model, head, frozen, tuned.params, own, batch, rate(i), key)
    return ((after, own), i + 1), {"loss": value, **metrics}


def client_update(
    config: PEFTConfig,
    model: Vilt,
    head: Model | Answers,
    download: Download,
    state: PyTree,
    data: ClientData,
    key: Key,
) -> tuple[Upload, PyTree, Metrics]:
    """A client's part of a round, its step 2: (upload, its new state, metrics).

    download: {"tuned": w} sent, or nothing where w does not travel, and the trunk's other leaves held. state: as
    `client_init` gives it. Metrics are means over batches: the loss and the score.

    >>> import types
    >>> from fedjax_mm.local import whole
    >>> model = types.SimpleNamespace(width=2, apply=lambda trunk, batch, tuning: batch["x"] + tuning)
    >>> head = Model(lambda key, x: jnp.float32(1), lambda params, x: params * x)
    >>> sent = {"tuned": {"tuning": jnp.zeros((1, 2)), "trunk": {}}}
    >>> state = client_init(PEFTConfig(), model, head, lambda key: sent["tuned"], jax.random.key(0))
    >>> data, key = whole({"x": jnp.eye(2), "target": jnp.eye(2)}), jax.random.key(1)
    >>> upload, new, metrics = client_update(PEFTConfig(), model, head, Download(sent, {}), state, data, key)
    >>> upload["tuned"].value["tuning"].shape, int(new["rounds"]), float(metrics["score"])
    ((1, 2), 1, 1.0)
    """
    training, rounds = config.training, state["rounds"]
    received = download.sent["tuned"] if config.travels else state["tuned"]
    rate, tx = schedule(training, data.count, rounds), adamw(training)
    loss = functools.partial(client_loss, config, model, head, received, download.held, state)

    def step(carry: tuple[TrainState, jax.Array], batch: Batch, key: Key) -> tuple[tuple, Metrics]:
        train_state, i = carry
        (value, metrics), grads = jax.value_and_grad(loss, has_aux=True)(train_state.params, batch, key)
        return (descend(tx, rate(i), grads, train_state), i + 1), {"loss": value, **metrics}

    parts = received, state["head"]
    apart = config.head_steps > 1  # then w and h_k each have an AdamW of their own
    begin = tuple(TrainState(part, tx.init(part)) for part in parts) if apart else TrainState(parts, tx.init(parts))
    (end, _), metrics = local_steps(
        functools.partial(_step_apart, config, model, head, download.held, loss, rate) if apart else step,
        (begin, jnp.int32(0)),
        data,
        key,
        batch_size=training.batch_size,
        epochs=training.epochs,
    )
    tuned, head_params = (part.params for part in end) if apart else end.params
    new = {**state, "head": head_params, "rounds": rounds + 1}
    if is_used(config.dyn):
        new["pull"] = update_pull(config.dyn, state["pull"], tuned, received)
    if not config.travels:
        return {}, {**new, "tuned": tuned}, metrics
    return {"tuned": Mean(tuned, data.weight if config.weights == "size" else jnp.asarray(1.0))}, new, metrics


def predict(
    model: Vilt, head: Model | Answers, download: Download, state: PyTree, batch: Batch
) -> dict[str, jax.Array]:
    """A client's logits {"score": [B, K]}. download, state: as for `client_update`.

    >>> import types
    >>> model = types.SimpleNamespace(apply=lambda trunk, batch, tuning: batch["x"] + tuning)
    >>> head = Model(lambda key, x: (), lambda params, x: params * x)
    >>> sent = {"tuned": {"tuning": 1.0, "trunk": {}}}
    >>> predict(model, head, Download(sent, {}), {"head": 3.0}, {"x": jnp.array([[0.0, 1.0]])})["score"].tolist()
    [[3.0, 6.0]]
    """
    tuned = state["tuned"] if "tuned" in state else download.sent["tuned"]
    features = _features(model, tuned, download.held, batch)
    return {"score": answers_of(head).scores(state["head"], features, batch)}
