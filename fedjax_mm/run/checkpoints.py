"""Checkpoints of a run by Orbax, each with a digest of its state, which is compared when it is read.

What no round changes (`Server.frozen`) is not written again and again: a checkpoint has its digest, and a run that goes
on has the values from the method's `init`, which must be the same.
"""

import contextlib
import dataclasses
import functools
import itertools
import logging
import pathlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from errno import EDQUOT, ENOSPC
from typing import Any, TypeVar, cast

import jax
import numpy as np
import orbax.checkpoint as ocp

from fedjax_mm.run import digests
from fedjax_mm.run.processes import all_or_none
from fedjax_mm.types import FedState, PyTree

T = TypeVar("T")
Log = Callable[[str], None]
Like = Callable[[int], FedState]
"""From the number of rounds of a checkpoint to a state of the same structure."""
CHANGED = "its values are not those that were saved"
KEPT = 2  # checkpoints: where the last one is damaged, the run goes on from the one before


class Checkpoints:
    """The folder `checkpoints` of a run: <round>/ by Orbax, and <round>.sha256, the digests of its state's parts.

    read_only: nothing is written, and the folder must be there. frozen: entries of the server's state that no
    checkpoint has.
    """

    def __init__(self, directory: pathlib.Path, read_only: bool = False, frozen: Sequence[str] = ()):
        self.path = directory / "checkpoints"
        self.frozen = frozen
        self._frozen_digests: str | None = None
        with _quiet():
            options = ocp.CheckpointManagerOptions(
                max_to_keep=None if read_only else KEPT, enable_async_checkpointing=False, read_only=read_only
            )
            self.manager = ocp.CheckpointManager(self.path, options=options)

    @property
    def rounds(self) -> list[int]:
        """The rounds of the complete checkpoints, the last one first."""
        return sorted(self.manager.all_steps(), reverse=True)

    def save(self, state: FedState) -> None:
        """Writes a checkpoint; the previous ones stay until this one is complete.

        Raises OSError where it cannot be written.
        """
        number, before = int(state.round), self.rounds
        if number in before:
            return
        moving, frozen = _without(state, self.frozen), self._of_frozen(state)
        try:
            if jax.process_index() == 0:  # first: a checkpoint without its digest is not complete
                self._digest_file(number).write_text(digests.of_parts(_parts(moving)) + frozen)
            self.manager.save(number, args=ocp.args.StandardSave(moving))
            self.manager.wait_until_finished()
        except (OSError, ValueError) as error:
            if jax.process_index() == 0:
                shutil.rmtree(self.path / str(number), ignore_errors=True)
                self._digest_file(number).unlink(missing_ok=True)
            full = getattr(error, "errno", None) in (ENOSPC, EDQUOT) or "No space left" in str(error)
            raise OSError(
                f"could not write the checkpoint of round {number} to {self.path} ({error}); the last complete one is "
                f"of round {before[0] if before else 0}: {'free some space and ' if full else ''}run again to go on "
                "from there"
            ) from error
        if jax.process_index() == 0:
            for file in self.path.glob("*.sha256"):
                if file.stem not in map(str, self.rounds):
                    file.unlink(missing_ok=True)

    def restore(self, like: Like, log: Log) -> FedState | None:
        """The state of the last checkpoint that is whole; None where there is no checkpoint.

        A damaged one is moved to checkpoint-<round>.damaged, and the run goes on from the one before. Raises OSError
        where there are checkpoints and none of them is whole, and ValueError where what is frozen is not what the run
        began with.
        """
        reader = lambda number: functools.partial(all_or_none, functools.partial(self._read, number, like(number)))
        return self._last_whole(reader, log, self._set_aside)

    def read_plain(self, clients: bool, log: Log) -> dict[str, Any] | None:
        """As `restore`, as plain dicts of NumPy arrays, for which no method is needed; nothing is moved.

        The keys are "server", "clients" and "round". clients: False leaves their states on the disk.
        """
        reader = lambda number: functools.partial(self._read_plain, number, clients, log)
        return self._last_whole(reader, log, lambda number: None)

    def _last_whole(
        self, reader: Callable[[int], Callable[[], T]], log: Log, set_aside: Callable[[int], None]
    ) -> T | None:
        rounds = self.rounds
        for number, before in itertools.zip_longest(rounds, rounds[1:]):
            read = reader(number)
            try:
                return read()
            except (MemoryError, jax.errors.JaxRuntimeError, _OtherFrozen):  # no fault of the checkpoint's
                raise
            except Exception as error:  # Orbax raises anything where a file is not what it wrote
                problem = f"the checkpoint {self.path / str(number)} is damaged ({_first_line(error)})"
                if before is None:
                    raise OSError(
                        f"{problem}, and there is none before it; bring it back from a copy, or remove {self.path} to "
                        "begin again"
                    ) from error
                log(f"{problem}; going on from the one before, of round {before}")
                set_aside(number)
        return None

    def _read(self, number: int, like: FedState) -> FedState:
        expected = self._digest_file(number).read_text()
        # A single digest, without names, and one without those of frozen entries are of earlier versions.
        frozen = self._of_frozen(like) if "  frozen/" in expected else ""
        if not expected.endswith(frozen):
            raise _OtherFrozen(
                f"{self.path.parent} holds another run: {' and '.join(self.frozen)} differs, which no round changes; "
                "give another directory or the weights that the run was begun with"
            )
        wanted = _without(like, self.frozen) if frozen else like
        with _quiet():
            state = cast(FedState, self.manager.restore(number, args=ocp.args.StandardRestore(wanted)))
        found = digests.of_parts(_parts(state)) + frozen if "  " in expected else digests.of_state(state)
        if expected != found:
            raise ValueError(CHANGED)
        if not frozen:
            return state
        kept = {name: like.server[name] for name in self.frozen}
        return dataclasses.replace(state, server={**state.server, **kept})

    def _of_frozen(self, state: FedState) -> str:
        """The digests of what is frozen, which are taken once."""
        if self._frozen_digests is None:
            if missing := [name for name in self.frozen if name not in state.server]:
                raise ValueError(f"Server.frozen names {missing}; the server's state has {sorted(state.server)}")
            parts = {f"frozen/{name}": state.server[name] for name in self.frozen}
            self._frozen_digests = digests.of_parts(parts)
        return self._frozen_digests

    def _read_plain(self, number: int, clients: bool, log: Log) -> dict[str, Any]:
        expected = self._digest_file(number).read_text()
        folder, checkpointer = self.path / str(number) / "default", ocp.PyTreeCheckpointer()
        with _quiet(), contextlib.closing(checkpointer):
            item = dict(cast(Any, checkpointer.metadata(folder)).item_metadata.tree)
            if not clients:
                item.pop("clients")
            as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
            args = ocp.args.PyTreeRestore(item=item, restore_args=as_numpy, partial_restore=True)
            state = {
                "clients": {},
                **{key: _plain(tree) for key, tree in checkpointer.restore(folder, args=args).items()},
            }
        if "  " not in expected:
            log(f"the checkpoint {self.path / str(number)} is of an earlier version; its values are not verified")
        elif not set(digests.of_parts(_parts(FedState(**state))).splitlines()) <= set(expected.splitlines()):
            raise ValueError(CHANGED)
        return state

    def _set_aside(self, number: int) -> None:
        if jax.process_index() == 0:
            aside = self.path.parent / f"checkpoint-{number}.damaged"
            shutil.rmtree(aside, ignore_errors=True)
            (self.path / str(number)).rename(aside)
        all_or_none(lambda: None)  # nobody looks before it is moved
        self.manager.reload()

    def _digest_file(self, number: int) -> pathlib.Path:
        return self.path / f"{number}.sha256"

    def close(self) -> None:
        self.manager.close()


class _OtherFrozen(ValueError):
    """What is frozen is not what the run was begun with."""


def _without(state: FedState, frozen: Sequence[str]) -> FedState:
    """The state without what is frozen at the server."""
    if not frozen:
        return state
    server = {name: part for name, part in state.server.items() if name not in frozen}
    return dataclasses.replace(state, server=server)


def _parts(state: FedState) -> dict[str, PyTree]:
    """What has a digest of its own, so that the server's state can be verified without those of the clients."""
    clients = {f"clients/{name}": states for name, states in state.clients.items()}
    return {"server": state.server, **clients, "round": state.round}


def _plain(tree: Any) -> Any:
    """What Orbax read without a structure: lists become dicts of "0", "1", ..., and what is empty an empty dict."""
    if isinstance(tree, list | tuple):
        tree = {str(i): one for i, one in enumerate(tree)}
    if isinstance(tree, dict):
        return {key: _plain(one) for key, one in tree.items()}
    if isinstance(tree, jax.Array) and jax.numpy.issubdtype(tree.dtype, jax.dtypes.prng_key):
        tree = jax.random.key_data(tree)
    return {} if tree is None else np.asarray(tree)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Orbax from logging the error of a damaged checkpoint, which is said in one line here."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
