"""FedDAT: a shared adapter and a local one that teach each other, so that a trunk is tuned for tasks that differ.

Chen, Zhang, Krompass, Gu, Tresp, AAAI 2024 (arXiv 2308.12305), after the authors' code. Section numbers are those of
docs/specs/feddat.md.

    theta    the frozen trunk             A_s      the shared adapter, which alone travels
    h_k      client k's head              A_c      client k's own adapter, which never leaves it
    f(x; A)  logits with adapter A        A^_s     A_s as it was received, frozen
    DAT      both A_c and A^_s in every layer, their outputs averaged
    sg       without gradient             KL(t, s) T^2 KL(softmax of t / T || softmax of s / T)

One round (section 1):
  1. The server sends A_s; every client has theta. (`download`)
  2. Client k, for every batch of E epochs: (`client_update`, `steps.dual_adapter_step`)
     (0)  z_T = f(x; DAT) (`forward_dual`)
     (1)  z_s = f(x; A_s);  one AdamW step of A_s and h_k on  1/2 [task(z_s) + alpha KL(sg z_T, z_s)] (`step_shared`)
     (2)  z_D = f(x; DAT);  one AdamW step of A_c and h_k on  1/2 [task(z_D) + beta KL(sg z_s, z_D)] (`step_local`)
  3. It sends back A_s. The server takes the plain mean. (`server_update`)

Between (0) and (2) only the head moves, so one pass through the trunk serves both: the features are kept, the head is
applied again, and a batch costs two passes forward and two backward, not three and two, unless the model has dropout
(ALBEF). What no adapter changes (the embeddings, the first layer) is computed once.

Two defects of the released code change the algorithm (section 1b), and each is a setting: A_c stops training after the
first round (`compat_freeze_local`), and the schedule advances twice per batch, so that FedDAT's mean rate is almost
twice that of the baselines (`compat_double_schedule`). The optimisers of the time, which let the idle adapter drift,
are left out.

Deviations (section 5):
  - `evaluate` averages A_c with the newest A_s; the released code takes the A_s that the client last received.
  - The learning rate starts one step above 0.
  - Every client draws its own first A_c.
  - The head takes two AdamW steps per batch, as in the released code; that of a baseline (peft.py) `head_steps`.
  - A client knows 100 answers. Its test questions whose answer is not among them stay in the test; the released code
    drops them. (data.vqa.load, `drop_unknown`; `--unknown dropped` of the experiments)
  - Images keep their aspect ratio in one bucket of a fixed size (data.vqa), scaled to touch it; in the sizes of the
    reference processor with `data.vqa.load(..., resize=models.vilt.resized_size)`.
  - ViLT's layers are compiled one by one (models.vilt), so that a round of a deep trunk takes minutes to compile.
"""

import functools
from collections.abc import Callable, Iterable, Mapping

import jax
import jax.numpy as jnp

from fedjax_mm import aggregate
from fedjax_mm.checks import population_of
from fedjax_mm.federate import Evaluation, Method, federate
from fedjax_mm.local import Batch, local_steps
from fedjax_mm.methods.feddat import fitting, steps
from fedjax_mm.methods.feddat.answers import Answers, answers_of
from fedjax_mm.methods.feddat.config import FedDATConfig
from fedjax_mm.methods.feddat.vqa_tuning import schedule, score_questions, scores
from fedjax_mm.methods.fit import check_population
from fedjax_mm.methods.settings import check_settings
from fedjax_mm.models import Model, Vilt, as_encoder
from fedjax_mm.types import (
    Arrays,
    ClientData,
    Cohort,
    Download,
    HasPopulation,
    Key,
    Mean,
    Metrics,
    PyTree,
    Server,
    Upload,
)


def build(
    config: FedDATConfig,
    data: HasPopulation,
    model: Vilt,
    trunk: PyTree,
    adapter_init: Callable[[Key], PyTree],
    head: Model | Answers,
) -> Method:
    """The method for the cohorts of `data`, whose arrays are the model's own and `target` [E, K].

    data: a FederatedData or its Population; shapes are all that is read.
    model: a Vilt, or whatever has its width D and, as pure functions of a trunk, `start(trunk, batch)`, all that no
        adapter changes, and `finish(trunk, started, adapters)` -> [B, D], which averages the outputs of a tuple of
        adapters in every layer.
    trunk: theta. adapter_init: key -> an adapter.
    head: Model [B, D] -> [B, K], or an Answers, which brings a loss, a distillation and a score of its own.

    `evaluate` gives, in percent, the mean over clients and each client's score with both adapters, with its own alone
    and with the shared one alone, always with its own head: "score", "local", "shared", "client 3/score" (see
    vqa_tuning.scores). `Cohort.score` gives the same scores, in percent too, of a client's own test questions.

    Raises ValueError where the settings, the arrays, the trunk and the head do not fit each other; `evaluate` does for
    test questions.
    """
    population = population_of(data)
    check_settings(config, FedDATConfig)
    head = head if isinstance(head, Answers) else as_encoder(head, name="head")

    def features(trunk: PyTree, batch: Batch) -> PyTree:
        adapter = adapter_init(jax.random.key(0))
        return model.finish(trunk, model.start(trunk, batch), (adapter, adapter))

    fit = fitting.fit_of(model, trunk, features, head, population)
    check_population(fit, population)
    init = functools.partial(client_init, model, head, adapter_init)
    update = functools.partial(client_update, config, model, head)
    predictor = functools.partial(predict, model, head)
    score = functools.partial(score_questions, predictor)
    cohorts = {name: Cohort(size, init, update, score) for name, size in population.sizes.items()}
    server = Server(
        functools.partial(server_init, trunk, adapter_init),
        functools.partial(download, tuple(cohorts)),
        server_update,
        frozen=("trunk",),
    )
    score_all = functools.partial(scores, predictor, send, config.training)
    evaluate = Evaluation(functools.partial(fitting.check_test, model, head, fit), score_all)
    return federate(server, cohorts, evaluate, check=functools.partial(check_population, fit))


def client_init(model: Vilt, head: Model | Answers, adapter_init: Callable[[Key], PyTree], key: Key) -> PyTree:
    """A client's state before its first round: {"adapter": A_c, "head": h_k, "rounds": 0}.

    >>> import types
    >>> head = Model(lambda key, x: {"kernel": jnp.zeros((x.shape[1], 3))}, lambda params, x: x @ params["kernel"])
    >>> adapter_init = lambda key: jax.random.normal(key, (2, 5))
    >>> jax.tree.map(jnp.shape, client_init(types.SimpleNamespace(width=5), head, adapter_init, jax.random.key(0)))
    {'adapter': (2, 5), 'head': {'kernel': (5, 3)}, 'rounds': ()}
    """
    features = jnp.zeros((1, model.width))
    keys = jax.random.split(key)
    return {"adapter": adapter_init(keys[0]), "head": head.init(keys[1], features), "rounds": jnp.int32(0)}


def client_update(
    config: FedDATConfig,
    model: Vilt,
    head: Model | Answers,
    download: Download,
    state: PyTree,
    data: ClientData,
    key: Key,
) -> tuple[Upload, PyTree, Metrics]:
    """A client's part of a round, its step 2: (upload, its new state, metrics).

    download: {"adapter": A_s} sent and the trunk held. state: as `client_init` gives it. Only A_s is uploaded. Metrics
    are means over batches: the losses of steps (1) and (2), and the score of DAT.

    >>> import types
    >>> from fedjax_mm.local import whole
    >>> mean = lambda trunk, started, adapters: started + sum(adapters) / len(adapters)
    >>> model = types.SimpleNamespace(width=2, start=lambda trunk, batch: trunk * batch["x"], finish=mean)
    >>> head = Model(lambda key, x: jnp.float32(1), lambda params, x: params * x)
    >>> state = client_init(model, head, lambda key: jnp.zeros((1, 2)), jax.random.key(0))
    >>> data = whole({"x": jnp.eye(2), "target": jnp.eye(2)})
    >>> sent = Download({"adapter": jnp.zeros((1, 2))}, held=jnp.float32(1))
    >>> upload, new, metrics = client_update(FedDATConfig(), model, head, sent, state, data, jax.random.key(1))
    >>> upload["adapter"].value.shape, int(new["rounds"]), float(metrics["score"])
    ((1, 2), 1, 1.0)
    """
    training, rounds = config.training, state["rounds"]
    rate = schedule(training, data.count, rounds)
    alpha = config.alpha * (rounds >= config.warmup_rounds)

    def step(carry: tuple[steps.DualAdapter, jax.Array], batch: Batch, key: Key) -> tuple[tuple, Metrics]:
        parts, i = carry
        rates = (rate(2 * i), rate(2 * i + 1)) if config.compat_double_schedule else (rate(i), rate(i))
        parts, metrics = steps.dual_adapter_step(config, model, head, download, parts, batch, rates, alpha, rounds, key)
        return (parts, i + 1), metrics

    (parts, _), metrics = local_steps(
        step,
        (steps.start(config, download, state), jnp.int32(0)),
        data,
        key,
        batch_size=training.batch_size,
        epochs=training.epochs,
    )
    weight = data.weight if config.weights == "size" else jnp.asarray(1.0)
    new = {"adapter": parts.local.params, "head": parts.head.params, "rounds": rounds + 1}
    return {"adapter": Mean(parts.shared.params, weight)}, new, metrics


def server_init(trunk: PyTree, adapter_init: Callable[[Key], PyTree], key: Key) -> PyTree:
    """The server's state before the first round: {"adapter": A_s, "trunk": theta}.

    >>> server_init("theta", lambda key: "A_s", jax.random.key(0))
    {'adapter': 'A_s', 'trunk': 'theta'}
    """
    return {"adapter": adapter_init(key), "trunk": trunk}


def send(state: PyTree) -> Download:
    """What each client gets of the server's state: A_s is sent, every client has the trunk.

    >>> send({"adapter": "A_s", "trunk": "theta"})
    Download(sent={'adapter': 'A_s'}, held='theta')
    """
    return Download({"adapter": state["adapter"]}, state["trunk"])


def download(cohorts: Iterable[str], state: PyTree, public: Arrays | None) -> dict[str, Download]:
    """Step 1 of a round, for each of the named cohorts.

    >>> download(["all"], {"adapter": "A_s", "trunk": "theta"}, None)["all"].sent
    {'adapter': 'A_s'}
    """
    return {name: send(state) for name in cohorts}


def server_update(
    state: PyTree, uploads: Mapping[str, Upload], public: Arrays | None, key: Key
) -> tuple[PyTree, Metrics]:
    """Step 3 of a round: A_s is the mean of what clients sent, and stays as it is where nobody sent anything.

    >>> uploads = {"all": {"adapter": Mean(jnp.array([2.0]), jnp.float32(3))}}
    >>> state, _ = server_update({"adapter": jnp.array([1.0]), "trunk": ()}, uploads, None, jax.random.key(0))
    >>> state["adapter"].tolist()
    [2.0]
    """
    adapter = aggregate.average(aggregate.collect(uploads, "adapter"), state["adapter"])
    return {"adapter": adapter, "trunk": state["trunk"]}, {}


def predict(
    model: Vilt, head: Model | Answers, download: Download, state: PyTree, batch: Batch
) -> dict[str, jax.Array]:
    """A client's scores of the answers with both adapters ("score"), its own alone ("local") and A_s alone ("shared").

    Each is [B, K]; of a head of classes they are its logits. download, state: as for `client_update`.

    >>> import types
    >>> mean = lambda trunk, started, adapters: started + sum(adapters) / len(adapters)
    >>> model = types.SimpleNamespace(start=lambda trunk, batch: trunk * batch["x"], finish=mean)
    >>> head = Model(lambda key, x: (), lambda params, x: params * x)
    >>> state = {"adapter": 3.0, "head": 1.0, "rounds": 0}
    >>> logits = predict(model, head, Download({"adapter": 1.0}, held=2.0), state, {"x": jnp.array([[0.0, 1.0]])})
    >>> {name: z.tolist() for name, z in logits.items()}
    {'score': [[2.0, 4.0]], 'local': [[3.0, 5.0]], 'shared': [[1.0, 3.0]]}
    """
    trunk, shared, local = download.held, download.sent["adapter"], state["adapter"]
    started = model.start(trunk, batch)
    used = {"score": (local, shared), "local": (local,), "shared": (shared,)}
    scores = lambda adapters: answers_of(head).scores(state["head"], model.finish(trunk, started, adapters), batch)
    return {name: scores(adapters) for name, adapters in used.items()}
