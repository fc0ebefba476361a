"""A run as its directory has it, read without the method, the data or the models that it was made with."""

import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedjax_mm._summary import summary
from fedjax_mm.checks import check_flag
from fedjax_mm.run.checkpoints import Checkpoints
from fedjax_mm.run.json_files import Folder
from fedjax_mm.run.records import read_metrics
from fedjax_mm.types import PyTree

ABOUT = ("programs", "versions", "device")  # of config.json, besides the settings


class SavedRun(NamedTuple):
    """What a run's directory holds. It prints as a summary."""

    round: int
    """How many rounds lie behind `server` and `clients`. The metrics may be of more."""
    server: PyTree
    """The server's state: nested dicts of NumPy arrays. Entries of a tuple go by "0", "1", ... What no round changes
    (`Server.frozen`), such as FedDAT's trunk, is not in it."""
    clients: Mapping[str, PyTree]
    """The states of each cohort's clients, leaves [N, ...]; {} where they were not asked for."""
    settings: Mapping[str, Any]
    """per_round, seed, sizes, stages ({name: rounds} or None), config, and the digests of the data."""
    rows: Sequence[Mapping[str, float]]
    """A mapping per round, from 1; what was not finite is not in it."""
    split: Mapping[str, Mapping[str, Any]]
    """Who owns what, as `FederatedData.split` gives it."""
    costs: Mapping[str, Mapping[str, float | None]]
    """The `costs.Cost` of a client of each cohort, under "<stage>/<cohort>" where there are several stages."""
    own_scores: Mapping[str, Mapping[str, Sequence[float | None]]]
    """Cohort -> metric -> the last score of every client on its own test rows; {} where there are none."""
    versions: Mapping[str, str]
    """Of the libraries that the run was begun with."""
    device: str
    """What it was begun on, such as "1 x cpu"."""

    @property
    def columns(self) -> dict[str, np.ndarray]:
        """{metric: [rounds] float64}, NaN in rounds that lack it: what `pandas.DataFrame` and plots take."""
        keys = dict.fromkeys(key for row in self.rows for key in row)
        return {key: np.array([row.get(key, np.nan) for row in self.rows], float) for key in keys}

    def __repr__(self) -> str:
        last = self.rows[-1] if self.rows else {}
        return f"{summary(self)}\n  {len(self.rows)} rows, the last with {', '.join(last) or 'nothing'}"


def load(directory: str | os.PathLike, *, clients: bool = True, log: Callable[[str], None] = print) -> SavedRun:
    """Everything that `run.train` kept in `directory`, whether the run is finished or not; nothing is changed there.

    clients: False leaves the clients' states on the disk, as where they outgrow the memory. log: is told of what is
    damaged. Where the last checkpoint is damaged, the one before is read, as a run that goes on does; a small file that
    is damaged is left out.

    Raises ValueError where the directory is no run or has no checkpoint yet, and OSError where none is whole.

    >>> import tempfile
    >>> from fedjax_mm import Cohort, Download, FederatedData, Mean, Server, federate, run
    >>> start, send = lambda key: {"w": np.zeros(2, "f")}, lambda w, public: {"all": Download(w)}
    >>> update = lambda download, state, data, key: ({"w": Mean(download.sent["w"], data.weight)}, state, {})
    >>> method = federate(Server(start, send, lambda w, *_: (w, {})), {"all": Cohort(2, lambda key: {}, update)})
    >>> data = FederatedData.from_arrays({"x": np.zeros(3)}, [[0, 1], [2]])
    >>> folder = tempfile.mkdtemp()
    >>> state = run.train(method, data, rounds=3, per_round=1, directory=folder, log=lambda line: None)
    >>> saved = load(folder)
    >>> saved.round, saved.server, saved.settings["seed"], saved.columns["round"]
    (3, {'w': array([0., 0.], dtype=float32)}, 0, array([1., 2., 3.]))
    """
    check_flag("clients", clients)
    if not isinstance(directory, str | os.PathLike) or not os.fspath(directory):
        raise ValueError(f"directory is {directory!r}; give the path of a directory that run.train wrote")
    path = pathlib.Path(directory).absolute()
    if not (path / "config.json").is_file() or not (path / "checkpoints").is_dir():
        raise ValueError(f"directory {path} is no run; give a directory that run.train wrote")
    checkpoints = Checkpoints(path, read_only=True)
    try:
        state = checkpoints.read_plain(clients, log)
    finally:
        checkpoints.close()
    if state is None:
        raise ValueError(f"the run in directory {path} has no checkpoint yet; wait for its first one")
    files = {name: _read(Folder(path), f"{name}.json", log) for name in ("config", "split", "costs", "own_scores")}
    config = files["config"]
    return SavedRun(
        round=int(state["round"]),
        server=state["server"],
        clients=state["clients"],
        settings={key: value for key, value in config.items() if key not in ABOUT},
        rows=read_metrics(path) if (path / "metrics.jsonl").is_file() else [],
        split=files["split"],
        costs=files["costs"],
        own_scores=files["own_scores"].get("cohorts", {}),
        versions=config.get("versions", {}),
        device=config.get("device", ""),
    )


def _read(folder: Folder, name: str, log: Callable[[str], None]) -> dict[str, Any]:
    try:
        return folder.read(name) or {}
    except ValueError as error:
        log(f"{str(error).partition(';')[0]}; it is left out")
        return {}
