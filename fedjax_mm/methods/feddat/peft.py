"""Parameter-efficient tuning of one trunk by federated averaging: what FedDAT is compared with.

Chen et al., AAAI 2024, after the authors' code; section numbers are those of docs/specs/feddat.md. Heads are personal
in every mode and never travel (section 4). A mode is what is tuned, w: trees besides the trunk (an adapter, LoRA, a
prompt), leaves of the trunk (biases, norms, all), or nothing but the head; with `travels=False` each client tunes its
own w, and nothing is sent.

One round:
  1. The server sends w; every client has the rest of the trunk. (`download`)
  2. Client k trains w and its head h_k, in E epochs, on task(f(x; w, h_k)) + mu/2 |w - w_0|^2, w_0 as it was received.
     (mu: FedProx, Li et al., MLSys 2020) (`client_update`, `client_loss`, `proximal_term`)
  3. It sends back w. The server takes the plain mean, or the one weighted by examples; w_0 minus it is the gradient of
     the server's optimiser. (FedAdam: Reddi et al., ICLR 2021) (`server_update`)

FedDyn (Acar et al., ICLR 2021) on w, with N clients, P of them taking part, g_k and h 0 at the start:
     client   task - <g_k, w> + alpha/2 |w - w_0|^2,   then   g_k <- g_k - alpha (w_k - w_0)
     server   h <- h - alpha/N sum_P (w_k - w_0),             w <- mean_P w_k - h / alpha
     (`pull_term`, `proximal_term`, `update_pull`; `dyn_server_step`)

Deviations (section 5): FedDyn's local problem is solved by E epochs of AdamW, as in every mode, and not to the end. The
released code has neither FedProx, FedDyn nor a server optimiser. All modes and FedDAT take one schedule and one AdamW
step of w per batch, but FedDAT's head takes two AdamW steps per batch and the head here takes one.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping

import jax
import jax.numpy as jnp
import optax

from fedjax_mm import aggregate, trees
from fedjax_mm.checks import population_of
from fedjax_mm.federate import Evaluation, Method, federate
from fedjax_mm.methods.fedavg import SERVER_OPTIMIZERS
from fedjax_mm.methods.feddat import fitting
from fedjax_mm.methods.feddat.answers import Answers
from fedjax_mm.methods.feddat.config import PEFTConfig
from fedjax_mm.methods.feddat.peft_client import apply_tuned, client_init, client_loss, client_update, predict
from fedjax_mm.methods.feddat.vqa_tuning import Training, score_questions, scores
from fedjax_mm.methods.fit import check_population
from fedjax_mm.methods.regularisers import dyn_server_step, proximal_term, pull_term, update_pull
from fedjax_mm.methods.settings import check_settings, is_used
from fedjax_mm.models import Model, Vilt, adapters, as_encoder
from fedjax_mm.types import Arrays, Cohort, Download, HasPopulation, Key, Mean, Metrics, PyTree, Server, Upload

__all__ = [
    "PEFTConfig",
    "Training",
    "apply_tuned",
    "build",
    "client_init",
    "client_loss",
    "client_update",
    "download",
    "dyn_server_step",
    "predict",
    "proximal_term",
    "pull_term",
    "send",
    "server_init",
    "server_update",
    "update_pull",
]


def build(
    config: PEFTConfig,
    data: HasPopulation,
    model: Vilt,
    trunk: PyTree,
    head: Model | Answers,
    *,
    tuning_init: Callable[[Key], PyTree] = lambda key: {},
    trains: Callable[[str], bool] = adapters.classifier,
) -> Method:
    """The method for the cohorts of `data`, whose arrays are the model's own and `target` [E, K].

    data: a FederatedData or its Population; shapes are all that is read.
    model: a Vilt, or whatever has its width D and a pure `apply(trunk, batch, tuning)` -> [B, D].
    head: Model [B, D] -> [B, K], or an Answers, which brings a loss and a score of its own.
    tuning_init: key -> what is tuned besides the trunk, {"adapter": ...}, {"lora": ...}, {"prompt": ...} or several.
    trains: which leaves of the trunk are tuned, by path: adapters.bias, adapters.norm, adapters.full. With neither, the
        head alone.

    `evaluate` gives, in percent, the mean over clients and each client's score: "score", "client 3/score" (see
    vqa_tuning.scores). `Cohort.score` gives "score", in percent, of a client's own test questions.

    Raises ValueError where the settings, the arrays, the trunk and the head do not fit each other; `evaluate` does for
    test questions.
    """
    population = population_of(data)
    check_settings(config, PEFTConfig)
    head = head if isinstance(head, Answers) else as_encoder(head, name="head")
    features = lambda trunk, batch: model.apply(trunk, batch, tuning_init(jax.random.key(0)))
    fit = fitting.fit_of(model, trunk, features, head, population)
    check_population(fit, population)
    leaves, frozen = trees.partition(trunk, trees.path_mask(trunk, trains))
    leaves = jax.tree.map(lambda x: x.astype(jnp.float32), leaves)  # a frozen leaf may be half precision
    init = lambda key: {"tuning": tuning_init(key), "trunk": leaves}
    travels = config.travels and bool(jax.tree.leaves(jax.eval_shape(init, jax.random.key(0))))
    _check(config, travels)
    config = dataclasses.replace(config, travels=travels)
    predictor = functools.partial(predict, model, head)
    score = functools.partial(score_questions, predictor)
    start = functools.partial(client_init, config, model, head, init)
    update = functools.partial(client_update, config, model, head)
    cohorts = {name: Cohort(size, start, update, score) for name, size in population.sizes.items()}
    server = Server(
        functools.partial(server_init, config, init, frozen),
        functools.partial(download, tuple(cohorts)),
        functools.partial(server_update, config, sum(population.sizes.values())),
        frozen=("frozen",),
    )
    score_all = functools.partial(scores, predictor, send, config.training)
    evaluate = Evaluation(functools.partial(fitting.check_test, model, head, fit), score_all)
    return federate(server, cohorts, evaluate, check=functools.partial(check_population, fit))


def server_init(config: PEFTConfig, init: Callable[[Key], PyTree], frozen: PyTree, key: Key) -> PyTree:
    """The server's state before the first round: the frozen leaves and, where w travels, w, its optimiser, FedDyn's h.

    >>> sorted(server_init(PEFTConfig(dyn=0.1), lambda key: jnp.ones(2), {}, jax.random.key(0)))
    ['frozen', 'h', 'opt', 'tuned']
    """
    if not config.travels:
        return {"frozen": frozen}
    tuned = init(key)
    state = {"frozen": frozen, "tuned": tuned, "opt": _server_optimizer(config).init(tuned)}
    return {**state, "h": optax.tree.zeros_like(tuned)} if is_used(config.dyn) else state


def send(state: PyTree) -> Download:
    """What each client gets of the server's state: w is sent where there is one, every client has the other leaves.

    >>> send({"frozen": "other leaves", "tuned": "w", "opt": ()})
    Download(sent={'tuned': 'w'}, held='other leaves')
    """
    return Download({"tuned": state["tuned"]} if "tuned" in state else {}, state["frozen"])


def download(cohorts: Iterable[str], state: PyTree, public: Arrays | None) -> dict[str, Download]:
    """Step 1 of a round, for each of the named cohorts.

    >>> download(["all"], {"frozen": "the trunk"}, None)
    {'all': Download(sent={}, held='the trunk')}
    """
    return {name: send(state) for name in cohorts}


def server_update(
    config: PEFTConfig, clients: int, state: PyTree, uploads: Mapping[str, Upload], public: Arrays | None, key: Key
) -> tuple[PyTree, Metrics]:
    """Step 3 of a round: w after the server's optimiser or FedDyn's step. The state stays where nobody sent anything.

    clients: N, all there are, of whom FedDyn takes account.

    >>> uploads = {"all": {"tuned": Mean(jnp.array([3.0]), jnp.float32(2))}}
    >>> config, key = PEFTConfig(server_lr=0.5), jax.random.key(0)
    >>> state = server_init(config, lambda key: jnp.array([1.0]), {}, key)
    >>> server_update(config, 4, state, uploads, None, key)[0]["tuned"].tolist()
    [2.0]
    """
    if not config.travels:
        return state, {}
    old, mean = state["tuned"], Mean(*aggregate.collect(uploads, "tuned"))
    new = dict(state)
    if is_used(config.dyn):
        new["h"], new["tuned"] = optax.tree.cast_like(
            dyn_server_step(config.dyn, clients, state["h"], old, mean), (state["h"], old)
        )
    else:
        gradient = optax.tree.sub(old, mean.value)
        updates, opt = _server_optimizer(config).update(gradient, state["opt"], old)
        new["opt"] = optax.tree.cast_like(opt, state["opt"])  # the mean is in float32, w may be in half precision
        new["tuned"] = optax.apply_updates(old, updates)
    moved = {part: trees.where(mean.weight > 0, new[part], state[part]) for part in new if part != "frozen"}
    return {**state, **moved}, {}


def _server_optimizer(config: PEFTConfig) -> optax.GradientTransformation:
    return SERVER_OPTIMIZERS[config.server_optimizer](config.server_lr)


def _check(config: PEFTConfig, travels: bool) -> None:
    if not travels and (config.prox or config.dyn or config.server_optimizer != "sgd" or config.server_lr != 1.0):
        raise ValueError(f"nothing travels to the server, so neither prox, dyn nor a server optimiser works: {config}")
    if is_used(config.dyn) and (
        config.weights != "uniform" or config.server_optimizer != "sgd" or config.server_lr != 1.0
    ):
        raise ValueError(f"FedDyn has its own server step and takes clients alike; it got {config}")
