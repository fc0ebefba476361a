"""Watchers that write a run to TensorBoard, Weights & Biases or MLflow: `run.train(watch=[track.tensorboard("logs")])`.

Each package is imported when its watcher is made. Of several processes the first one writes. A tracker writes every
number of the round's row that is finite, by its name in the log, at the round's number; of a run that goes on, only the
rounds that are run now. It is closed with the run, and opened again where it watches another.
"""

import math
import os
import re
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax

from fedjax_mm import _lazy
from fedjax_mm.checks import say
from fedjax_mm.run.rounds import Round

FOREIGN = r"[^\w./ :-]"  # characters that MLflow does not take in names, such as the + of image+text


class Writer(Protocol):
    """Where numbers go, while it is open."""

    def write(self, number: int, row: Mapping[str, float]) -> None:
        """Writes the numbers of round `number`."""
        ...

    def close(self) -> None:
        """Writes what is left and ends it. `run.train` calls it at the end, also where the run fails."""
        ...


class Tracker:
    """A watcher that opens a writer with the first round it sees. open: from the first round's number to the writer."""

    def __init__(self, open: Callable[[int], Writer]):
        self.open = open
        self.writer: Writer | None = None

    def reads_state(self, number: int) -> bool:
        """Never: it writes the row."""
        return False

    def __call__(self, done: Round, row: Mapping[str, float | None]) -> None:
        if jax.process_index() != 0:
            return
        self.writer = self.writer or self.open(done.number)
        self.writer.write(done.number, {k: v for k, v in row.items() if v is not None and math.isfinite(v)})

    def close(self) -> None:
        """Ends what was opened; another run opens anew."""
        writer, self.writer = self.writer, None
        if writer is not None:
            writer.close()


def tensorboard(directory: str | os.PathLike) -> Tracker:
    """Writes TensorBoard's files to a directory, for `tensorboard --logdir`. It needs tensorboardX.

    A run that goes on takes the place of what was written of the rounds that it runs again.
    """
    if not isinstance(directory, str | os.PathLike) or not os.fspath(directory):
        raise ValueError(f"directory is {say(directory)}; give the path of a directory for TensorBoard's files")
    make = _lazy.require("tensorboardX", "report").SummaryWriter
    return Tracker(lambda first: _TensorBoard(make(os.fspath(directory), purge_step=first)))


def wandb(**settings: Any) -> Tracker:
    """Writes a run of Weights & Biases. settings: as `wandb.init` takes them: project, name, config, mode, id, ...

    A run that goes on continues the same curve with `id="..."` and `resume="allow"`. Every number is drawn against
    "round". It needs wandb.

    Raises ValueError for a setting that `wandb.init` does not take.
    """
    package = _lazy.require("wandb", "wandb")
    return Tracker(lambda first: _WandB(_opened("wandb.init", package.init, settings)))


def mlflow(experiment: str | None = None, *, tracking_uri: str | None = None, **settings: Any) -> Tracker:
    """Writes a run of MLflow. experiment: its name; tracking_uri: the server or folder; None: as the environment says.

    Names have _ for characters that MLflow does not take: test/image+text/accuracy is test/image_text/accuracy.
    settings: as `mlflow.start_run` takes them: run_name, run_id (a run that goes on), tags, ... It needs mlflow or
    mlflow-skinny. Raises ValueError for a setting that `mlflow.start_run` does not take.
    """
    for name, value in (("experiment", experiment), ("tracking_uri", tracking_uri)):
        if value is not None and (not isinstance(value, str) or not value):
            raise ValueError(f"{name} is {say(value)}; give a text, or None")
    package = _lazy.require("mlflow", "mlflow")

    def open(first: int) -> Writer:
        if tracking_uri is not None:
            package.set_tracking_uri(tracking_uri)
        if experiment is not None:
            package.set_experiment(experiment)
        return _MLflow(package, _opened("mlflow.start_run", package.start_run, settings))

    return Tracker(open)


def _opened(name: str, open: Callable, settings: Mapping[str, Any]) -> Any:
    try:
        return open(**settings)
    except TypeError as error:
        raise ValueError(f"{name} does not take the settings {sorted(settings)}: {error}") from error


class _TensorBoard:
    def __init__(self, writer: Any):
        self.writer = writer

    def write(self, number: int, row: Mapping[str, float]) -> None:
        for name, value in row.items():
            self.writer.add_scalar(name, value, number)

    def close(self) -> None:
        self.writer.close()


class _WandB:
    def __init__(self, run: Any):
        self.run = run
        # Its own steps only grow, so that a run that goes on from a checkpoint would lose the rounds it runs again.
        run.define_metric("round")
        run.define_metric("*", step_metric="round")

    def write(self, number: int, row: Mapping[str, float]) -> None:
        self.run.log({**row, "round": number})

    def close(self) -> None:
        self.run.finish()


class _MLflow:
    def __init__(self, package: Any, run: Any):
        self.package, self.id = package, run.info.run_id

    def write(self, number: int, row: Mapping[str, float]) -> None:
        named = {re.sub(FOREIGN, "_", name): float(value) for name, value in row.items() if name != "round"}
        self.package.log_metrics(named, step=number, run_id=self.id)

    def close(self) -> None:
        self.package.end_run()
