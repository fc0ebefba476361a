"""What the processes of one run do together: they fail together, agree before they begin, and notice one that is gone.

With one process nothing here costs anything.
"""

import contextlib
import hashlib
import os
import pathlib
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

T = TypeVar("T")

EXIT = os.EX_UNAVAILABLE
"""The exit status of a process that stops because another one is gone."""
MESSAGE_BYTES = 1000  # of an error that the other processes hear of
BEAT_SECONDS = 0.5


def all_or_none(prepare: Callable[[], T]) -> T:
    """What `prepare` gives. Where it raises in one process, every process raises: nobody waits for those that failed.

    >>> all_or_none(lambda: 3)
    3
    """
    if jax.process_count() == 1:
        return prepare()
    result, error = None, None
    try:
        result = prepare()
    except Exception as caught:
        error = caught
    said = _gather(b"" if error is None else (str(error) or repr(error)).encode())
    if error is not None:
        raise error
    for process, message in enumerate(said):
        if message:
            raise RuntimeError(f"process {process} cannot begin: {message.decode(errors='replace')}")
    return result  # type: ignore[return-value]  # it is set where there is no error


def agree(values: Mapping[str, str]) -> None:
    """Raises ValueError in every process where the processes were given different values.

    values: what it is, in words -> a text that must be the same everywhere.
    """
    if jax.process_count() == 1:
        return
    for what, value in values.items():
        given = _gather(hashlib.sha256(value.encode()).hexdigest().encode())
        if other := [process for process, one in enumerate(given) if one != given[0]]:
            raise ValueError(
                f"process {other[0]} was started with another {what} than process 0; start all processes with the "
                "same call, the same files and the same versions"
            )


def any_of(flag: bool) -> bool:
    """Whether the flag is set in any process; every process must ask at the same place."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.array(flag)).any())


def _gather(message: bytes) -> list[bytes]:
    """The messages of all processes, cut to MESSAGE_BYTES."""
    buffer = np.frombuffer(message[:MESSAGE_BYTES].ljust(MESSAGE_BYTES, b"\0"), np.uint8)
    return [row.tobytes().rstrip(b"\0") for row in np.atleast_2d(multihost_utils.process_allgather(buffer))]


class _Peer(NamedTuple):
    """What was last heard of another process, and when, by this process's clock."""

    said: str
    since: float


@contextlib.contextmanager
def watched_peers(folder: pathlib.Path | None, timeout: float | None) -> Iterator[None]:
    """While the body runs, a thread ends this process where another one stops, or is silent for `timeout` seconds.

    Each process writes a beat into a file of `folder`, which all of them share. A process that waits for another in the
    middle of a computation cannot be interrupted, so it is ended with status EXIT after a line that says which process
    is gone. folder, timeout: None watches nobody. Where process 0, the coordinator, is killed, JAX itself ends the
    others at once, before this can say so, with a message of its own ("the leader task was preempted/died").
    """
    if folder is None or timeout is None or jax.process_count() == 1:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    own, ended = folder / str(jax.process_index()), threading.Event()
    where, begun = f"pid {os.getpid()} on {socket.gethostname()}", time.time_ns()

    def say(state: str) -> None:
        with contextlib.suppress(OSError):  # a full disk is found where something is lost by it
            temporary = own.with_suffix(".tmp")
            temporary.write_text(f"{begun} {where}\n{state}")
            temporary.replace(own)

    def watch() -> None:
        beat, heard = 0, {}
        while not ended.wait(BEAT_SECONDS):
            say(f"beat {(beat := beat + 1)}")
            for process in range(jax.process_count()):
                if process != jax.process_index():
                    heard[process] = _listen(folder / str(process), heard.get(process))
                    if gone := _is_gone(heard[process], timeout):
                        who = f"process {process} of {jax.process_count()}"
                        _exit(f"{who} {gone}; run all processes again to go on from the last checkpoint")

    say("beat 0")
    multihost_utils.sync_global_devices("peers")  # from here on no file is one of an earlier run
    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    except BaseException as error:
        if _is_of_a_connection(error):
            time.sleep(timeout + 4 * BEAT_SECONDS)  # the thread ends this process where somebody is gone
        ended.set()
        say(f"stopped {type(error).__name__}: {error}")
        raise
    ended.set()
    say("done")


def _is_of_a_connection(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, is what a collective says when somebody is gone."""
    words = ("Gloo", "NCCL", "Connection", "UNAVAILABLE", "DEADLINE_EXCEEDED", "coordination")
    while error is not None:
        if isinstance(error, jax.errors.JaxRuntimeError) or any(word in str(error) for word in words):
            return True
        error = error.__cause__ or error.__context__
    return False


def _listen(file: pathlib.Path, before: _Peer | None) -> _Peer:
    """What a process said last, and since when."""
    try:
        said = file.read_text()
    except OSError:
        said = before.said if before else ""
    return before if before and before.said == said else _Peer(said, time.monotonic())


def _is_gone(peer: _Peer, timeout: float) -> str:
    """What happened to a process that is gone; empty where it is there, or is done."""
    where, _, state = peer.said.partition("\n")
    where = f"({where.partition(' ')[2]}) " if where else ""
    if state.startswith("stopped "):
        return f"{where}stopped with {state.removeprefix('stopped ')}"
    if state != "done" and time.monotonic() - peer.since > timeout:
        return f"{where}is dead or silent since {timeout:g} s"
    return ""


def _exit(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(EXIT)
