"""Noise that the server adds to clipped means: client-level privacy with a server that is trusted.

Clipped changes, fixed denominator, Gaussian noise on the sum: McMahan et al., ICLR 2018 (DP-FedAvg). The clip that
follows a quantile of the changes' norms: Andrew et al., NeurIPS 2021.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_mm.checks import check_number, say
from fedjax_mm.federate import Method, client_init
from fedjax_mm.transforms import change_of, changed
from fedjax_mm.types import Cohort, Download, HasPopulation, Mean, PyTree, Upload
from fedjax_mm.uploads.leaves import norm
from fedjax_mm.uploads.noise import clipped, noisy
from fedjax_mm.uploads.slots import changing, each_slots, mean_slots, reducing, refuse_transform, with_server_state

CLIP = "clip_norm"  # the download's slot, and the upload's of whether a change was within it


SALT = 0x636C69  # a server's update folds small numbers into its key


class Adaptive(NamedTuple):
    """A clip that moves to a quantile of the norms of clients' changes. (Andrew 2021, alg. 1)"""

    quantile: float = 0.5
    """The share of clients whose change should be within the clip."""
    rate: float = 0.2
    """The step of the clip's logarithm."""
    count_noise: float = 0.05
    """The standard deviation of the noise on how many are within, as a share of the denominator."""


def central_noise(
    method: Method,
    data: HasPopulation,
    *,
    clip: float,
    noise_multiplier: float,
    denominator: float | Mapping[str, float],
    weight_cap: float | None = None,
    adaptive: Adaptive | None = None,
) -> Method:
    """The method whose server sees sums of clipped uploads with Gaussian noise, and nothing else of a client.

    Of each client the change of all slots together (see `on_change`) has a norm of `clip` at most, and a weight of 1 at
    most. To each cohort's weighted sum the server adds noise of the standard deviation noise_multiplier x clip, and
    divides by `denominator`, which must be fixed beforehand: the number of clients that are expected in a round, of
    every cohort or of each. `privacy.Privacy` says what (epsilon, delta) that is.

    weight_cap: None gives every client that sends the weight 1. A number cuts a client's weight there, and divides by
    it: min(w, cap) / cap; `denominator` is then the sum of such weights that is expected.
    adaptive: moves the clip, which begins at `clip` and is part of the server's state and of what it sends.

    A client's metrics are logged as they are: they are not private. Raises ValueError for a number out of range, for a
    slot that is Each, which the server sees client by client (use `add_noise`), and for an upload transform.
    """
    slots = mean_slots(method, data, "central_noise")
    refuse_transform(method, "the clip")
    if any(each_slots(method, data).values()):
        raise ValueError(f"method has the Each slots {each_slots(method, data)}, which no noise on a mean hides")
    clip, z = check_number("clip", clip, above=0), check_number("noise_multiplier", noise_multiplier, least=0)
    cap = None if weight_cap is None else check_number("weight_cap", weight_cap, above=0)
    total = _per_cohort(denominator, tuple(slots))
    if adaptive is None:
        cohorts = {name: changing(cohort, _clipping(clip, cap)) for name, cohort in method.cohorts.items()}

        def add(uploads, received, key):
            keys = dict(zip(uploads, _keys(key, uploads), strict=True))
            of = lambda name: _noisy_mean(uploads[name], received[name], z * clip, total[name], keys[name])
            return {name: of(name) for name in uploads}, {}

        return reducing(method, cohorts, add)
    return _adaptive(method, _checked(adaptive), clip, z, total, cap)


def _clipping(clip: Any, cap: float | None):
    """An upload whose change is clipped and whose weights are 1 at most."""

    def clip_one(sent: Upload, received: PyTree, data: Any, key: Any) -> dict[str, Mean]:
        change = clipped(change_of({slot: one.value for slot, one in sent.items()}, received), clip)
        value = changed(change, received)
        return {slot: Mean(value[slot], _bounded(one.weight, cap)) for slot, one in sent.items()}

    return clip_one


def _bounded(weight: Any, cap: float | None) -> jax.Array:
    """A weight in 0..1; one that is negative or not finite stays so, by which the engine leaves the client out."""
    weight = jnp.asarray(weight, jnp.float32)
    cut = jnp.sign(weight) if cap is None else jnp.minimum(weight, cap) / cap
    return jnp.where(jnp.isfinite(weight), cut, jnp.nan)


def _noisy_mean(sent: Upload, received: PyTree, std: Any, denominator: float, key: jax.Array) -> dict[str, Mean]:
    """The means of a cohort with noise on their sums."""
    values = {slot: one.value for slot, one in sent.items()}
    change = change_of(values, received)
    summed = {slot: optax.tree.scale(sent[slot].weight, change[slot]) for slot in change}
    mean = optax.tree.scale(1 / denominator, noisy(summed, std, key))
    return {slot: Mean(value, jnp.float32(denominator)) for slot, value in changed(mean, received).items()}


def _adaptive(
    method: Method, adaptive: Adaptive, clip: float, z: float, total: Mapping[str, float], cap: float | None
) -> Method:
    """The clip is in the server's state: {"method": the method's own, CLIP: []}."""
    server, counted = method.server, adaptive.count_noise
    stds = {name: _split_noise(z, counted * n) for name, n in total.items()}

    def init(key):
        return {"method": server.init(key), CLIP: jnp.float32(clip)}

    def download(state, public):
        more = {CLIP: state[CLIP]}
        return {
            name: one._replace(sent={**_named(one.sent), **more})
            for name, one in server.download(state["method"], public).items()
        }

    def update(state, uploads, public, key):
        now, keys = state[CLIP], dict(zip(total, _keys(jax.random.fold_in(key, SALT), total), strict=True))
        received = {name: one.sent for name, one in server.download(state["method"], public).items()}
        means, within = {}, jnp.float32(0)
        for name, sent in uploads.items():
            noise = counted * total[name] * (z > 0) * jax.random.normal(jax.random.fold_in(keys[name], 1))
            within += (sent[CLIP].value * sent[CLIP].weight + noise) / sum(total.values())
            own = {slot: one for slot, one in sent.items() if slot != CLIP}
            means[name] = _noisy_mean(own, received[name], stds[name] * now, total[name], keys[name])
        new, metrics = server.update(state["method"], means, public, key)
        moved = now * jnp.exp(-adaptive.rate * (within + 0.5 - adaptive.quantile))
        return {"method": new, CLIP: moved}, {**metrics, CLIP: now}

    def begin(state, public, key):
        new, metrics = server.begin(state["method"], public, key)  # type: ignore[misc]  (it is there)
        return {**state, "method": new}, metrics

    cohorts = {name: _adaptive_cohort(cohort, cap) for name, cohort in method.cohorts.items()}
    wrapped = server._replace(
        init=init, download=download, update=update, begin=begin if server.begin else None, frozen=()
    )
    return with_server_state(method._replace(server=wrapped, cohorts=cohorts), lambda state: state["method"])


def _adaptive_cohort(cohort: Cohort, cap: float | None) -> Cohort:
    """Its clients clip at what the server sent, and say whether their change was within it, less a half."""
    own = lambda download: Download({k: v for k, v in download.sent.items() if k != CLIP}, download.held)
    init_own = client_init(cohort)

    def update(download, state, data, key):
        sent, new, metrics = cohort.update(own(download), state, data, key)
        received, now = own(download).sent, download.sent[CLIP]
        change = change_of({slot: one.value for slot, one in sent.items()}, received)
        bit = jnp.where(norm(change) <= now, 0.5, -0.5)
        upload = _clipping(now, cap)(sent, received, data, key)
        return {**upload, CLIP: Mean(bit, jnp.sign(data.weight))}, new, metrics

    score = cohort.score
    scored = None if score is None else lambda download, *rest: score(own(download), *rest)
    return cohort._replace(init=lambda key, server: init_own(key, server["method"]), update=update, score=scored)


def _split_noise(z: float, count_std: float) -> float:
    """The multiplier for the changes, where noise on the counts takes its share of z. (Andrew 2021, theorem 1)"""
    if z == 0:
        return 0.0
    left = z**-2 - (2 * count_std) ** -2 if count_std else -1.0
    if left <= 0:
        least = z / 2
        raise ValueError(
            f"adaptive.count_noise gives the count a noise of {count_std:g}; with the noise_multiplier {z:g} it must "
            f"be above {least:g}, so raise it or the denominator"
        )
    return left**-0.5


def _checked(adaptive: Any) -> Adaptive:
    if not isinstance(adaptive, Adaptive):
        raise ValueError(f"adaptive is {say(adaptive)}; give uploads.Adaptive(...), or None")
    check_number("adaptive.quantile", adaptive.quantile, least=0, most=1)
    check_number("adaptive.rate", adaptive.rate, least=0)
    check_number("adaptive.count_noise", adaptive.count_noise, least=0)
    return adaptive


def _per_cohort(number: Any, names: tuple[str, ...]) -> dict[str, float]:
    given = number if isinstance(number, Mapping) else dict.fromkeys(names, number)
    if set(given) != set(names):
        raise ValueError(f"denominator names cohorts {sorted(map(str, given))}; the method has {sorted(names)}")
    return {name: check_number(f"denominator of {name}", given[name], above=0) for name in names}


def _named(sent: PyTree) -> Mapping[str, PyTree]:
    if not isinstance(sent, Mapping):
        raise ValueError(f"method sends {say(sent)}; an adaptive clip needs a mapping from slots")
    return sent


def _keys(key: jax.Array, names: Any) -> list[jax.Array]:
    return [jax.random.fold_in(key, i) for i in range(len(names))]
