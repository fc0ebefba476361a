"""The runs of a study, one after the other or several at a time in processes of their own (--jobs)."""

import concurrent.futures
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax

from experiments.common import cli
from fedjax_mm import report


def trained(train: Callable[..., Any], names: Collection[str], common: cli.Common) -> dict[str, list[Any]]:
    """What `train(name, seed)` gives: name -> a list over the seeds. `--jobs` of them are trained at a time.

    See `done_all`.
    """
    # Seed after seed: what the first one of a name compiles, the others find in the cache.
    runs = [(name, seed) for seed in common.all_seeds for name in names]
    found: dict[str, list[Any]] = {}
    for (name, _), result in zip(runs, done_all(train, runs, common.jobs), strict=True):
        found.setdefault(name, []).append(result)
    return found


def done_all(call: Callable[..., Any], arguments: Sequence[tuple], number: int) -> list[Any]:
    """What `call(*one)` gives for each of the arguments. `number` of the calls run at a time.

    With more than one at a time, `call` and what it gives must be picklable. After Ctrl-C, or an error in one of them,
    those that are under way are saved and ended, and the rest is not run. Raises what a call raises.
    """
    if number > 1 and (platform := jax.default_backend()) != "cpu":
        raise ValueError(f"--jobs is {number}; each process would claim the {platform}, so it must be 1 there")
    if number == 1 or len(arguments) == 1:
        return [call(*one) for one in arguments]
    # A forked process would have this one's JAX, whose threads it lacks.
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(number, spawn, _begin) as pool:
        try:
            done = []
            for one in pool.map(_outcome, [call] * len(arguments), arguments):
                if isinstance(one, Exception):
                    raise one
                done.append(one)
        except BaseException:
            for child in multiprocessing.active_children():
                child.terminate()
            raise
    return done


def loaded(train: Callable[..., Any], names: Collection[str], common: cli.Common) -> dict[str, list[report.Run]]:
    """The runs whose folders `train(name, seed)` gives: name -> a list over the seeds. See `trained`."""
    return {name: [report.load(one) for one in same] for name, same in trained(train, names, common).items()}


def _begin() -> None:
    """In a process, before its first run: Ctrl-C is for the process that started it, with which this one ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    cli.cache_compilations()


def _end_with_parent() -> None:
    """Waits for the end of the process that started this one, whatever ended it; a run that is under way is saved."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


def _outcome(call: Callable[..., Any], one: tuple) -> Any:
    """What a call gives, or its error where that is about settings: its traceback, which says so, does not travel."""
    try:
        return call(*one)
    except (ValueError, OSError) as error:
        if not cli.is_about_settings(error):
            raise
        return error
