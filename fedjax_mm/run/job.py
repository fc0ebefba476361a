"""What a run does, and what its directory belongs to."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import jax

from fedjax_mm import clients
from fedjax_mm.data import FederatedData
from fedjax_mm.participation import Chooser
from fedjax_mm.run import digests
from fedjax_mm.run.json_files import Folder
from fedjax_mm.run.records import RunDirectory
from fedjax_mm.run.signals import Interruption
from fedjax_mm.stages import Stage
from fedjax_mm.types import Key, RoundData


class Job(NamedTuple):
    """What a run does, however it is mapped and watched."""

    plan: Sequence[Stage]
    rounds: int
    data: FederatedData
    per_round: int | Mapping[str, int] | None
    seed: int
    files: RunDirectory | None
    log: Callable[[str], None]
    stop: Interruption
    choose: Chooser | None = None

    @property
    def several(self) -> bool:
        """Whether there are several stages."""
        return len(self.plan) > 1

    def feed(self, r: int) -> RoundData:
        """The data of round r, from 0."""
        return take_part(self.data, self.per_round, self.choose, self.seed, r)

    def folder(self, stage: Stage) -> RunDirectory | Folder | None:
        """Where what is known of a stage is remembered."""
        return self.files.folder(stage.name) if self.files and self.several else self.files


def take_part(
    data: FederatedData, per_round: int | Mapping[str, int] | None, choose: Chooser | None, seed: int, r: int
) -> RoundData:
    """The data of round r, from 0, of a run with this seed."""
    if choose is None:
        return data.round(clients.choose(data.sizes, cast(Any, per_round), r, seed))
    return data.round(choose(participation_key(seed), r))


def participation_key(seed: int) -> Key:
    """The key that `choose` gets in every round; 0 and 1 are folded in for the first states and the rounds."""
    return jax.random.fold_in(jax.random.key(seed), 2)


def settings_of(
    plan: Sequence[Stage],
    data: FederatedData,
    per_round: int | Mapping[str, int] | None,
    seed: int,
    config: Any,
    choose: Chooser | None = None,
) -> dict[str, Any]:
    """What a directory belongs to, as JSON has it; of `choose` these are the participants of the first rounds."""
    several = {stage.name: stage.rounds for stage in plan} if len(plan) > 1 else None
    settings = {"per_round": per_round, "seed": seed, "sizes": data.sizes, "stages": several, "config": config}
    if choose is not None:
        settings["participants"] = digests.of_choice([choose(participation_key(seed), r) for r in range(8)])
    return {k: digests.plain(v, k) for k, v in settings.items()} | {"data": digests.of_data(data)}
