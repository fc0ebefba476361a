"""The files of a run: settings and log, each written whole or not at all, and named where it is damaged."""

import contextlib
import fcntl
import os
import pathlib
import shutil
import socket
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import IO, Any

import jax

from fedjax_mm.run.checkpoints import Checkpoints
from fedjax_mm.run.json_files import Folder, Log, line_of, read_lines

GLOBBED = "*?[]"  # Orbax looks for a checkpoint's files by patterns


class RunDirectory:
    """The files of one run, which holds a lock on them until `close`.

    Raises ValueError where the directory belongs to another run, or a run is writing to it now, and OSError where it
    cannot be written. settings: plain values, as digests.plain gives them. log: what is said of damaged files.
    """

    def __init__(self, directory: str | os.PathLike, settings: Mapping[str, Any], log: Log = print):
        self.path, self.log, self._lock = pathlib.Path(directory).absolute(), log, None
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            probe = self.path / f"writable{jax.process_index()}.tmp"  # its own: processes share the directory
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise OSError(f"cannot write to {self.path} ({error.strerror}); give another directory") from error
        if jax.process_index() == 0:
            self._lock = _locked(self.path / "lock")
            try:
                self._claim(settings)
            except ValueError:
                self._lock.close()
                raise

    def open_checkpoints(self, frozen: Sequence[str]) -> None:
        """Looks for checkpoints; all processes do this together. frozen: what none of them has."""
        self.checkpoints = Checkpoints(self.path, frozen=frozen)

    def _claim(self, settings: Mapping[str, Any]) -> None:
        """Compares the settings with those of the run that the directory holds, or begins one."""
        if (held := Folder(self.path).read("config.json")) is None:
            if any((self.path / "checkpoints").glob("[0-9]*")):
                raise ValueError(
                    f"{self.path} has checkpoints and no config.json, so that nobody knows of what run; bring the file "
                    "back, or give another directory"
                )
            self.write("config.json", {**settings, "programs": {}, "versions": versions(), "device": device()})
            return
        refuse = lambda what, was: ValueError(
            f"{self.path} holds another run: {what} ({was}); give another directory or the same {what.split()[0]}"
        )
        for what, keys in (("data differ", ("data",)), ("settings differ", [key for key in settings if key != "data"])):
            differs = _differences({k: held.get(k) for k in keys}, {k: settings[k] for k in keys})
            if differs:
                raise refuse(what, "; ".join(differs))

    def claim_program(self, stage: str, digest: str) -> None:
        """Compares the digest of a stage's lowered round with that of the run that the directory holds, or keeps it.

        Raises ValueError where it is another one. Programs of other versions or platforms cannot be compared.
        """
        held = Folder(self.path).read("config.json") or {}
        programs, name = held.get("programs", {}), stage or "round"
        if name not in programs:
            self.write("config.json", {**held, "programs": {**programs, name: digest}})
        elif held.get("versions") != versions() or held.get("device", "").split()[2:] != device().split()[2:]:
            if programs[name] != digest:
                self.log(
                    f"{self.path.name} was begun with other versions or on another device; its program is not compared"
                )
        elif programs[name] != digest:
            raise ValueError(
                f"{self.path} holds another run: the program of {'its rounds' if not stage else stage} differs (the "
                "method, its models or its rates changed); give another directory or the same method"
            )

    def folder(self, name: str) -> Folder:
        """A folder within this one."""
        (self.path / name).mkdir(exist_ok=True)
        return Folder(self.path / name)

    def write(self, name: str, content: Mapping[str, Any]) -> None:
        """As `Folder.write`."""
        Folder(self.path).write(name, content)

    def read_or_rebuild(self, name: str) -> dict[str, Any]:
        """As `Folder.read_or_rebuild`."""
        return Folder(self.path).read_or_rebuild(name, self.log)

    def renew(self, name: str, content: Mapping[str, Any]) -> None:
        """Writes a JSON file in place of what is there, which the log names where it is damaged."""
        self.read_or_rebuild(name)
        self.write(name, content)

    def add(self, name: str, content: Mapping[str, Any]) -> None:
        """Adds keys to a JSON file, in place of those of the same names."""
        self.write(name, {**self.read_or_rebuild(name), **content})

    def append(self, row: Mapping[str, float | None]) -> None:
        """Adds a line to metrics.jsonl."""
        if jax.process_index() == 0:
            try:
                with open(self.path / "metrics.jsonl", "a") as file:
                    file.write(line_of(row))
            except OSError as error:
                raise OSError(
                    f"could not write round {row['round']} to {self.path / 'metrics.jsonl'} ({error.strerror}); free "
                    "some space and run again to go on from the last checkpoint"
                ) from error

    def cut_log(self, after: int) -> None:
        """Takes the lines behind round `after` off the log. Of a log with damaged lines a copy is kept."""
        rows = self.path / "metrics.jsonl"
        if jax.process_index() != 0 or not rows.exists():
            return
        whole, damaged = read_lines(rows)
        kept = {row["round"]: row for row in whole if row["round"] <= after}
        if damaged:
            shutil.copy(rows, copy := rows.with_suffix(".jsonl.damaged"))
            self.log(f"{rows} has {damaged} damaged lines, which are left out; a copy is in {copy.name}")
        if gaps := [r for r in range(1, after + 1) if r not in kept]:
            shown = ", ".join(map(str, gaps[:5])) + (", ..." if len(gaps) > 5 else "")
            self.log(f"{rows} has no line for {len(gaps)} of the {after} rounds before ({shown})")
        temporary = rows.with_suffix(".jsonl.tmp")
        temporary.write_text("".join(line_of(kept[r]) for r in sorted(kept)))
        temporary.replace(rows)

    def close(self) -> None:
        """Ends the use of the directory, so that another run may have it."""
        if hasattr(self, "checkpoints"):
            self.checkpoints.close()
        if self._lock is not None:
            self._lock.close()


def check_name(what: str, name: Any) -> None:
    """Raises ValueError where a name cannot be part of the names of files."""
    text = str(name) if isinstance(name, str | os.PathLike) else ""
    if not text or text in (".", "..") or any(c in GLOBBED or ord(c) < 32 for c in text) or "://" in text:
        raise ValueError(f"{what} is {name!r}; give a name or path without any of the characters {' '.join(GLOBBED)}")


def read_metrics(directory: str | os.PathLike) -> list[dict[str, float]]:
    """The rows of a run's metrics.jsonl, without what is null; lines that are damaged or cut off are left out."""
    rows = read_lines(pathlib.Path(directory) / "metrics.jsonl")[0]
    return [{key: value for key, value in row.items() if value is not None} for row in rows]


def _locked(file: pathlib.Path) -> IO[str]:
    """The file, open and locked until it is closed or the process ends. Raises ValueError where a run has it."""
    lock = open(file, "a+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.seek(0)
        holder = lock.read().strip() or "another process"
        lock.close()
        raise ValueError(
            f"a run is writing to {file.parent} now ({holder}); wait for it, stop it, or give another directory"
        ) from error
    except OSError:
        pass  # a file system without locks
    with contextlib.suppress(OSError):
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}")
        lock.flush()
    return lock


def _differences(was: Any, now: Any, name: str = "") -> list[str]:
    """What differs between two trees of plain values, in words."""
    if isinstance(was, dict) and isinstance(now, dict):
        keys = dict.fromkeys([*was, *now])
        parts = [_differences(was.get(key), now.get(key), f"{name}.{key}".lstrip(".")) for key in keys]
        return [line for part in parts for line in part]
    return [] if was == now else [f"{name} was {was}, now {now}"]


def versions() -> dict[str, str]:
    """Of the libraries that decide on numbers and speed."""
    return {name: metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax", "numpy")}


def device() -> str:
    """How many of what, e.g. "1 x cpu"."""
    return f"{jax.device_count()} x {jax.devices()[0].device_kind}"
