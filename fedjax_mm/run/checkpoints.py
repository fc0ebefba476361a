"""Checkpoints of a run by Orbax, each with a digest of its state, which is compared when it is read."""

import contextlib
import itertools
import logging
import pathlib
import shutil
from collections.abc import Callable, Iterator
from errno import EDQUOT, ENOSPC
from typing import cast

import jax
import orbax.checkpoint as ocp

from fedjax_mm.run import digests
from fedjax_mm.run.processes import all_or_none
from fedjax_mm.types import FedState

Like = Callable[[int], FedState]
"""From the number of rounds of a checkpoint to a state of the same structure."""
KEPT = 2  # checkpoints: where the last one is damaged, the run goes on from the one before


class Checkpoints:
    """The folder `checkpoints` of a run: <round>/ by Orbax, and <round>.sha256, the digest of its state."""

    def __init__(self, directory: pathlib.Path):
        options = ocp.CheckpointManagerOptions(max_to_keep=KEPT, enable_async_checkpointing=False)
        self.path = directory / "checkpoints"
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
        try:
            if jax.process_index() == 0:  # first: a checkpoint without its digest is not complete
                self._digest_file(number).write_text(digests.of_state(state))
            self.manager.save(number, args=ocp.args.StandardSave(state))
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

    def restore(self, like: Like, log: Callable[[str], None]) -> FedState | None:
        """The state of the last checkpoint that is whole; None where there is no checkpoint.

        A damaged one is moved to checkpoint-<round>.damaged, and the run goes on from the one before. Raises OSError
        where there are checkpoints and none of them is whole.
        """
        rounds = self.rounds
        for number, before in itertools.zip_longest(rounds, rounds[1:]):
            first = like(number)
            try:
                return all_or_none(lambda number=number, first=first: self._read(number, first))
            except (MemoryError, jax.errors.JaxRuntimeError):  # no fault of the checkpoint's
                raise
            except Exception as error:  # Orbax raises anything where a file is not what it wrote
                problem = f"the checkpoint {self.path / str(number)} is damaged ({_first_line(error)})"
                if before is None:
                    raise OSError(
                        f"{problem}, and there is none before it; bring it back from a copy, or remove {self.path} to "
                        "begin again"
                    ) from error
                log(f"{problem}; going on from the one before, of round {before}")
                self._set_aside(number)
        return None

    def _read(self, number: int, like: FedState) -> FedState:
        expected = self._digest_file(number).read_text()
        with _quiet():
            state = cast(FedState, self.manager.restore(number, args=ocp.args.StandardRestore(like)))
        if digests.of_state(state) != expected:
            raise ValueError("its values are not those that were saved")
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
