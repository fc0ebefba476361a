"""The files of a run: settings, log and checkpoints, each written whole or not at all."""

import dataclasses
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Any, NamedTuple, cast

import jax
import orbax.checkpoint as ocp

from fedjax_mm.types import FedState


class Folder(NamedTuple):
    """A folder of JSON files."""

    path: pathlib.Path

    def write(self, name: str, content: Any) -> None:
        """Writes a JSON file whole or not at all."""
        if jax.process_index() == 0:
            temporary = self.path / f"{name}.tmp"
            temporary.write_text(json.dumps(content, indent=1))
            temporary.replace(self.path / name)


class RunDirectory:
    """The files of one run."""

    def __init__(self, directory: str | os.PathLike, settings: Mapping[str, Any]):
        self.path, settings = pathlib.Path(directory).absolute(), _plain(settings)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            probe = self.path / f"writable{jax.process_index()}.tmp"  # its own: processes share the directory
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise OSError(f"cannot write to {self.path} ({error.strerror}); give another directory") from error
        config = self.path / "config.json"
        if config.exists():
            _compare(config, settings)
        else:
            self.write("config.json", {**settings, "versions": versions(), "device": device()})
        options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=False)
        self.checkpoints = ocp.CheckpointManager(self.path / "checkpoints", options=options)

    @property
    def saved_round(self) -> int:
        """How many rounds the last checkpoint has behind it; 0 where there is none."""
        return self.checkpoints.latest_step() or 0

    def folder(self, name: str) -> Folder:
        """A folder within this one."""
        (self.path / name).mkdir(exist_ok=True)
        return Folder(self.path / name)

    def write(self, name: str, content: Any) -> None:
        """Writes a JSON file whole or not at all."""
        Folder(self.path).write(name, content)

    def read(self, name: str, default: Any) -> Any:
        """The content of a JSON file, or `default` where it is not there."""
        file = self.path / name
        return json.loads(file.read_text()) if file.exists() else default

    def add(self, name: str, content: Mapping[str, Any]) -> None:
        """Adds keys to a JSON file, in place of those of the same names."""
        self.write(name, {**self.read(name, {}), **content})

    def append(self, row: Mapping[str, float]) -> None:
        """Adds a line to metrics.jsonl."""
        if jax.process_index() == 0:
            try:
                with open(self.path / "metrics.jsonl", "a") as file:
                    file.write(json.dumps(row) + "\n")
            except OSError as error:
                raise OSError(
                    f"could not write round {row['round']} to {self.path / 'metrics.jsonl'} ({error.strerror}); free "
                    "some space and run again to go on from the last checkpoint"
                ) from error

    def save(self, state: FedState) -> None:
        """Writes a checkpoint; the previous one stays until this one is complete."""
        step = int(state.round)
        if self.checkpoints.latest_step() == step:
            return
        try:
            self.checkpoints.save(step, args=ocp.args.StandardSave(state))
            self.checkpoints.wait_until_finished()
        except (OSError, ValueError) as error:
            shutil.rmtree(self.path / "checkpoints" / str(step), ignore_errors=True)
            raise OSError(
                f"could not write the checkpoint of round {step} to {self.path} ({error}); the last complete one is "
                f"of round {self.checkpoints.latest_step() or 0}: free some space and run again to go on from there"
            ) from error

    def restore(self, like: FedState, log: Callable[[str], None]) -> FedState:
        """The state of the last checkpoint, or `like` where there is none; later lines of the log are cut off."""
        step = self.checkpoints.latest_step()
        if step is not None:
            try:
                like = cast(FedState, self.checkpoints.restore(step, args=ocp.args.StandardRestore(like)))
            except Exception as error:
                raise OSError(
                    f"the checkpoint {self.path / 'checkpoints' / str(step)} cannot be read ({error}); remove that "
                    "folder to go on from the one before"
                ) from error
            log(f"resuming {self.path.name} after round {step}")
        rows = self.path / "metrics.jsonl"
        if rows.exists() and jax.process_index() == 0:
            kept = [row for row in read_metrics(self.path) if row["round"] <= (step or 0)]
            temporary = self.path / "metrics.jsonl.tmp"
            temporary.write_text("".join(json.dumps(row) + "\n" for row in kept))
            temporary.replace(rows)
        return like

    def close(self) -> None:
        self.checkpoints.close()


def read_metrics(directory: str | os.PathLike) -> list[dict[str, float]]:
    """The rows of a run's metrics.jsonl; a last line cut off by a kill is left out."""
    rows = []
    for line in (pathlib.Path(directory) / "metrics.jsonl").read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as JSON gives them back."""

    def as_plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return dataclasses.asdict(value)
        return str(value)

    return json.loads(json.dumps(settings, default=as_plain))


def _compare(config: pathlib.Path, settings: Mapping[str, Any]) -> None:
    held = json.loads(config.read_text())
    differs = [key for key in settings if held.get(key) != settings[key]]
    if differs:
        was = "; ".join(f"{key} was {held.get(key)}, now {settings[key]}" for key in differs)
        raise ValueError(f"{config.parent} holds another run ({was}); give another directory or the same settings")


def versions() -> dict[str, str]:
    """Of the libraries that decide on numbers and speed."""
    return {name: metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax", "numpy")}


def device() -> str:
    """How many of what, e.g. "1 x cpu"."""
    return f"{jax.device_count()} x {jax.devices()[0].device_kind}"
