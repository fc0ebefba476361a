"""The arguments of `run.train`, checked in one place: each is what it should be, or refused in one sentence."""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import jax
import numpy as np
from jax.sharding import Mesh

from fedjax_mm import clients, stages
from fedjax_mm.checks import check_callable, check_flag, check_mapping, check_number, check_whole, say
from fedjax_mm.data import FederatedData
from fedjax_mm.federate import Method
from fedjax_mm.run.client_state import holds_keys
from fedjax_mm.run.job import participation_key
from fedjax_mm.run.json_files import CHECKSUM
from fedjax_mm.run.records import check_name
from fedjax_mm.run.rounds import participants
from fedjax_mm.run.scoring import Every, checked
from fedjax_mm.stages import Stage
from fedjax_mm.streamed import streams
from fedjax_mm.types import Population

PLACES = ("device", "host")  # of clients' states, beside a folder


def check_arguments(
    method: Any,
    data: Any,
    *,
    rounds: Any,
    per_round: Any,
    choose: Any,
    seed: Any,
    directory: Any,
    test: Any,
    evaluate: Any,
    evaluate_every: Any,
    watch: Any,
    checkpoint_every: Any,
    rounds_per_call: Any,
    chunk: Any,
    devices: Any,
    client_state: Any,
    split_public: Any,
    config: Any,
    tensorboard: Any,
    progress: Any,
    peer_timeout: Any,
    log: Any,
) -> Sequence[Stage]:
    """The stages of the run. Raises ValueError, which names the argument, where one is not what `run.train` takes."""
    if not isinstance(data, FederatedData):
        raise ValueError(f"data is {say(data)}; give a FederatedData, as FederatedData.from_arrays makes it")
    plan = _plan(method, None if rounds is None else check_whole("rounds", rounds, 1))
    population = data.population
    for stage in plan:
        _check_fit(stage.method, population)
    stages.check_caches(plan, data.on_device)
    check_whole("seed", seed, 0, 2**63 - 1)
    _check_participation(data, per_round, choose, seed)
    if directory is not None:
        _check_path("directory", directory)
    every = {"evaluate_every": evaluate_every, "checkpoint_every": checkpoint_every}
    _check_chunk(chunk, data)
    if isinstance(devices, Mesh):
        if devices.axis_names != (clients.AXIS,):
            raise ValueError(f"devices is a mesh with axes {devices.axis_names}; it must have the one axis 'clients'")
    elif devices is not None:
        check_whole("devices", devices, 1, jax.device_count())
    if client_state not in PLACES:
        _check_folder_of_states(client_state)
    _check_split(plan, check_flag("split_public", split_public), data)
    _check_test(plan, test)
    _check_scores(evaluate)
    every |= {f"the period of evaluate[{k!r}]": v.rounds for k, v in (evaluate or {}).items() if isinstance(v, Every)}
    _check_calls(rounds_per_call, every, data.on_device, client_state)
    if isinstance(watch, str) or not isinstance(watch, Iterable) or not all(map(callable, watch)):
        raise ValueError(f"watch is {say(watch)}; give a list of functions of (done, row)")
    if peer_timeout is not None:
        check_number("peer_timeout", peer_timeout, above=0)
    check_flag("tensorboard", tensorboard)
    if progress is not None:
        check_flag("progress", progress)
    check_callable("log", log, "of a line of text, such as print")
    return plan


def check_sweep(
    plans: Sequence[Sequence[Stage]],
    data: Any,
    seeds: Any,
    rounds: Any,
    who: tuple[Any, Any],
    valid: Any,
    test: Any,
    evaluate_every: Any,
    chunk: Any,
    devices: Any,
    log: Any,
) -> tuple[int, ...]:
    """The seeds of a sweep over these plans. Raises ValueError where an argument is not what `run.sweep` takes.

    who: per_round and choose.
    """
    if jax.process_count() > 1:
        raise ValueError(f"a sweep runs in one process, and there are {jax.process_count()}; start it on one host")
    numbers = _check_seeds(seeds)
    if isinstance(chunk, str):
        raise ValueError(f"chunk is {chunk!r}; give a sweep a number of clients from 1 on, or None")
    if devices is None:
        raise ValueError("devices is None; give a sweep a whole number from 1 on")
    unused = {"directory": None, "evaluate": None, "watch": (), "checkpoint_every": None, "rounds_per_call": 1}
    unused |= {"client_state": "device", "split_public": False, "config": None, "tensorboard": False}
    unused |= {"progress": None, "peer_timeout": None}
    given = dict(zip(("per_round", "choose"), who, strict=True))
    given |= {"evaluate_every": evaluate_every, "chunk": chunk, "devices": devices, "log": log}
    lengths = [sum(stage.rounds for stage in plan) for plan in plans]
    if len(set(lengths)) > 1:
        raise ValueError(f"the stages that build gives have {lengths} rounds; give all settings as many")
    for plan in plans:
        method = plan if plan[0].name else plan[0].method
        check_arguments(method, data, rounds=rounds, seed=numbers[0], test=test, **given, **unused)
        _check_test(plan, valid, "valid")
    if not data.on_device:
        raise ValueError("data is off the device, and all runs of a sweep share it there; make it with on_device=True")
    return numbers


def _check_seeds(seeds: Any) -> tuple[int, ...]:
    if isinstance(seeds, Iterable) and not isinstance(seeds, str):
        numbers = tuple(check_whole("a seed of seeds", seed, 0, 2**63 - 1) for seed in seeds)
        if not numbers or len(set(numbers)) < len(numbers):
            raise ValueError(f"seeds is {say(seeds)}; name one seed or more, each once")
        return numbers
    return tuple(range(check_whole("seeds", seeds, 1)))


def _plan(method: Any, rounds: int | None) -> Sequence[Stage]:
    several = isinstance(method, Sequence) and not isinstance(method, Method | str)
    if not (isinstance(method, Method) or several and all(isinstance(stage, Stage) for stage in method)):
        raise ValueError(f"method is {say(method)}; give a Method, as `build` makes it, or a list of Stage")
    if several:
        for stage in cast(Sequence[Stage], method):
            check_name("the name of a stage", stage.name)
            check_whole(f"the number of rounds of stage {stage.name}", stage.rounds, 0)
    plan = stages.plan(method, rounds)
    for stage in plan:
        for name in stage.method.cohorts:
            check_name("the name of a cohort", name)
            if name == CHECKSUM:
                raise ValueError(f"a cohort may not be called {name!r}, as the checksum of a run's files is; rename it")
    return plan


def _check_participation(data: FederatedData, per_round: Any, choose: Any, seed: int) -> None:
    """One of `per_round` and `choose`, which gives as many places in every round and the same ones when asked again."""
    if choose is None:
        clients.choose(data.sizes, per_round, 0, seed)
        return
    if per_round is not None:
        raise ValueError(f"per_round is {say(per_round)} and choose is given too; leave per_round out")
    check_callable("choose", choose, "(key, round) -> {cohort: participants}")
    key = participation_key(seed)
    rounds = [data.round(check_mapping("what choose gives", choose(key, r), "cohort to numbers")) for r in (0, 1, 0)]
    arrays = [participants(one) for one in rounds]
    shapes = [jax.tree.map(np.shape, one, is_leaf=lambda x: hasattr(x, "shape")) for one in arrays]
    if shapes[0] != shapes[1]:
        raise ValueError(
            "choose gives other numbers of places in other rounds; fill the empty ones with the number of clients"
        )
    if not all(jax.tree.leaves(jax.tree.map(np.array_equal, arrays[0], arrays[2]))):
        raise ValueError("choose gives other participants when it is asked again; draw from its key and round alone")


def _check_fit(method: Method, population: Population) -> None:
    """Raises ValueError where the method was built for other clients than the data has."""
    built = {name: cohort.size for name, cohort in method.cohorts.items()}
    if built != population.sizes:
        raise ValueError(
            f"the method was built for {built} clients, and the data has {population.sizes}; build it from the data "
            "that it trains on"
        )
    method.check(population)


def _check_path(name: str, path: Any) -> None:
    if not isinstance(path, str | os.PathLike):
        raise ValueError(f"{name} is {say(path)}; give the path of a folder")
    check_name(name, path)
    check_name(name, os.path.abspath(path))  # the folders that it lies in too


def _check_folder_of_states(where: Any) -> None:
    """A path is taken; a bare word that names no folder may be a misspelt "device" or "host"."""
    if isinstance(where, str) and not os.path.dirname(where) and not os.path.isdir(where) or where is None:
        raise ValueError(f"client_state is {where!r}; give 'device', 'host', or a folder as a path, such as './states'")
    _check_path("client_state", where)


def _check_chunk(chunk: Any, data: FederatedData) -> None:
    if isinstance(chunk, Mapping):
        if set(chunk) != set(data.sizes):
            raise ValueError(f"chunk names cohorts {sorted(map(str, chunk))}; the data has {sorted(data.sizes)}")
        for name, number in chunk.items():
            check_whole(f"chunk of {name}", number, 1)
    elif isinstance(chunk, str):
        if chunk != "auto":
            raise ValueError(f"chunk is {chunk!r}; give a number of clients from 1 on, or 'auto'")
    elif chunk is not None:
        check_whole("chunk", chunk, 1)


def _check_split(plan: Sequence[Stage], split_public: bool, data: FederatedData) -> None:
    streaming = bool(streams(data.public))
    for stage in plan:
        if (split_public or streaming) and not stage.method.public_by_rows:
            what = "split_public is True" if split_public else "public arrays are streamed"
            cure = "leave it out" if split_public else "give them in memory"
            raise ValueError(
                f"{what}, but the method may read public examples otherwise than by local.take; {cure}, or build the "
                "method with federate(..., public_by_rows=True)"
            )
        if split_public and holds_keys(stage.method):
            raise ValueError(
                "split_public is True, but clients keep random keys, whose states are on every device; put their "
                "jax.random.key_data in the state"
            )


def _check_calls(number: Any, periods: Mapping[str, int | None], on_device: bool, client_state: Any) -> None:
    """Several rounds in one call need all that they use on the device, and give no state in between."""
    number = check_whole("rounds_per_call", number, 1)
    for name, period in periods.items():
        if period is not None and check_whole(name, period, 1) % number:
            raise ValueError(f"{name} is {period}; with rounds_per_call {number} it must be a multiple of {number}")
    if number > 1 and (not on_device or client_state != "device"):
        raise ValueError(f"rounds_per_call is {number}; it must be 1 where examples or states are off the device")


def _check_test(plan: Sequence[Stage], test: Any, name: str = "test") -> None:
    """Raises ValueError where test arrays do not fit a stage that has rounds."""
    for stage in (stage for stage in plan if stage.rounds and test is not None):
        checked(stage.method, check_mapping(name, test, "names to arrays"))


def _check_scores(evaluate: Any) -> None:
    if evaluate is None:
        return
    if not isinstance(evaluate, Mapping):
        raise ValueError(f"evaluate is {say(evaluate)}; give a mapping from names to scores")
    for name, score in evaluate.items():
        if not isinstance(name, str) or not name:
            raise ValueError(f"evaluate names a score {name!r}; give it a name that is text")
        if isinstance(score, Every):
            check_whole(f"the period of evaluate[{name!r}]", score.rounds, 1)
            score = score.score
        check_callable(f"evaluate[{name!r}]", score, "of the FedState, or run.Every")
