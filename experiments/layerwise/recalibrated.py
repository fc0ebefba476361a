"""Running statistics of the averaged model while a run goes on, and the round that scores best on validation."""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from fedjax_mm import clients
from fedjax_mm.data import FederatedData
from fedjax_mm.run import Round
from fedjax_mm.stages import Stage
from fedjax_mm.types import FedState


def recalibration(
    stages: Sequence[Stage], data: FederatedData, per_round: int, seed: int
) -> Callable[[FedState], FedState]:
    """A function from a state to that state with running statistics of its own model.

    stages: with statistics="recalibrated". As in their last round, clients take the statistics, those drawn for the
    round that would come next; the state may be of any stage.
    """
    method = stages[-1].method
    take, key = jax.jit(method.round), jax.random.fold_in(jax.random.key(seed), 1)  # the key of run.train

    def recalibrated(state: FedState) -> FedState:
        chosen = clients.choose(data.sizes, per_round, int(state.round), seed)
        return take(state, data.round(chosen), key)[0]

    return recalibrated


class Best:
    """A watcher that keeps the server of the round with the best score so far; of equals, the first.

    metric: in the row of the log; more is better. until: the last round that counts.
    """

    def __init__(self, metric: str, until: int):
        self.metric, self.until = metric, until
        self.round, self.value, self.state = 0, float("-inf"), None

    def __call__(self, done: Round, row: Any) -> None:
        if self.metric in row and done.number <= self.until and row[self.metric] > self.value:
            self.round, self.value = done.number, row[self.metric]
            self.state = jax.device_get(done.state)  # the next round is given the arrays
