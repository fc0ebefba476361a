"""What (epsilon, delta) clipping and noise give a client, by the accountants of dp-accounting (the extra `privacy`).

Two data sets are neighbours where one client is in one of them alone, or where one client has other data; each kind of
sampling says which. Composition over rounds is that of privacy loss distributions (Koskela et al., AISTATS 2020;
Doroshenko et al., PoPETs 2022) and of Renyi divergences (Mironov, CSF 2017; Wang et al., AISTATS 2019, for sampling of
fixed size). Gaussian noise without sampling needs no accountant.
"""

import dataclasses
import functools
import math
from typing import Any, Literal, get_args

from scipy.stats import norm

from fedjax_mm import _lazy
from fedjax_mm.checks import check_number, check_whole, say

STEP = 1e-3  # of the privacy loss's grid: epsilon is larger by less than that, and takes a tenth of the time
ORDERS = (*range(2, 33), 40, 48, 64, 96, 128)  # of the divergences
MANY = 10**6  # the accountant asks for numbers of clients, and their ratio alone counts

Sampling = Literal["independent", "fixed", "local"]


@dataclasses.dataclass(frozen=True)
class Privacy:
    """A mechanism in each round, and the delta for which its epsilon is asked. In `run.train(watch=[...])` it adds
    "privacy/epsilon" and "privacy/delta" to each row of the log, as spent so far.

    sampling says who adds the noise and how clients are drawn:
      "independent": the server adds it to a sum (`central_noise`), and each client takes part with the probability
        `rate`, whoever else does (`participation.independent`). Neighbours: one client more or less.
      "fixed": the same, where the share `rate` of a cohort's clients is drawn without replacement (`per_round`).
        Neighbours: one client's data replaced, which may change a sum by twice the clip. The bound is loose.
      "local": each client adds it to its own upload (`clip_by_norm`, then `add_noise(noise_multiplier x bound)`), and
        nobody is trusted. Neighbours: one client's data replaced. It counts as taking part in every round.

    Of several cohorts, whose clients are different people, `rate` is the largest.

    >>> round(Privacy(noise_multiplier=10.0, delta=1e-2, sampling="local").epsilon(25), 1)
    2.3
    """

    noise_multiplier: float
    """The noise's standard deviation as a multiple of the clip; 0 gives no privacy."""
    delta: float
    """Below one over the number of clients."""
    sampling: Sampling = "independent"
    rate: float = 1.0
    """The probability that a client takes part in a round."""
    every: int = 1
    """Rounds between entries of a log: the accountant takes a tenth of a second or more."""

    def __post_init__(self):
        check_number("noise_multiplier", self.noise_multiplier, least=0)
        check_number("delta", self.delta, above=0, most=1)
        check_number("rate", self.rate, above=0, most=1)
        check_whole("every", self.every, least=1)
        if not isinstance(self.sampling, str) or self.sampling not in get_args(Sampling):
            raise ValueError(f"sampling is {say(self.sampling)}; give one of {', '.join(get_args(Sampling))}")

    def epsilon(self, rounds: int) -> float:
        """The epsilon after so many rounds; infinite without noise. Raises ImportError without dp-accounting."""
        return _epsilon(self, check_whole("rounds", rounds))

    def __call__(self, done: Any, row: Any) -> dict[str, float]:
        """What a run logs after a round."""
        if not done.last and done.number % self.every:
            return {}
        return {"privacy/epsilon": self.epsilon(done.number), "privacy/delta": self.delta}


def noise_for(
    epsilon: float, delta: float, rounds: int, sampling: Sampling = "independent", rate: float = 1.0
) -> float:
    """The least noise multiplier, to 3 digits, with which `rounds` rounds spend `epsilon` at most (see `Privacy`).

    >>> round(noise_for(2.3, 1e-2, 25, "local"))
    10
    """
    target = check_number("epsilon", epsilon, above=0)
    rounds = check_whole("rounds", rounds, least=1)
    spent = lambda z: Privacy(z, delta, sampling, rate).epsilon(rounds)
    low, high = 0.0, 1.0
    while spent(high) > target:
        low, high = high, 2 * high
    while high - low > 1e-3 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if spent(middle) <= target else (middle, high)
    return high


@functools.lru_cache(maxsize=4096)
def _epsilon(privacy: Privacy, rounds: int) -> float:
    z, delta = privacy.noise_multiplier, privacy.delta
    if not rounds:
        return 0.0
    if not z:
        return float("inf")
    if privacy.sampling == "independent":
        if privacy.rate == 1:
            return gaussian_epsilon(rounds**0.5 / z, delta)
        dp = _lazy.require("dp_accounting", "privacy")
        event = dp.PoissonSampledDpEvent(privacy.rate, dp.GaussianDpEvent(z))
        return float(dp.pld.PLDAccountant(value_discretization_interval=STEP).compose(event, rounds).get_epsilon(delta))
    # Replaced data move a clipped sum by twice the clip. Without amplification this holds for both kinds of sampling.
    plain = gaussian_epsilon(2 * rounds**0.5 / z, delta)
    if privacy.sampling == "local" or privacy.rate == 1:
        return plain
    dp = _lazy.require("dp_accounting", "privacy")
    sampled = dp.SampledWithoutReplacementDpEvent(MANY, max(1, round(privacy.rate * MANY)), dp.GaussianDpEvent(z / 2))
    accountant = dp.rdp.RdpAccountant(orders=ORDERS, neighboring_relation=dp.NeighboringRelation.REPLACE_ONE)
    return min(plain, float(accountant.compose(sampled, rounds).get_epsilon(delta)))


def gaussian_epsilon(sensitivity: float, delta: float) -> float:
    """The epsilon of Gaussian noise of standard deviation 1 on what a neighbour moves by `sensitivity` at most.

    T rounds count as one with sqrt(T) times the sensitivity. It is exact. (Balle and Wang, ICML 2018, theorem 8)

    >>> round(gaussian_epsilon(1.0, 1e-5), 2)
    4.38
    """
    mu = check_number("sensitivity", sensitivity, above=0)
    delta = check_number("delta", delta, above=0, most=1)

    def too_small(epsilon: float) -> bool:
        spent = norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon + norm.logcdf(-mu / 2 - epsilon / mu))
        return float(spent) > delta

    if not too_small(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while too_small(high):
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if too_small(middle) else (low, middle)
    return high
